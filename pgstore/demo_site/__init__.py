"""The site of ``pgstore demo``, in Flask: users, their devices, and an administrator."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from hmac import compare_digest
from typing import TYPE_CHECKING, Any, Final

from flask import (
    Flask,
    Response,
    abort,
    flash,
    get_flashed_messages,
    redirect,
    render_template,
    request,
)
from markupsafe import Markup
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from .. import merge
from ..errors import ConfigurationError, NotOwner, SessionTooLong
from ..ext.flask import FlaskSessions, login_required, session
from ..store import Store

if TYPE_CHECKING:
    from flask.typing import ResponseReturnValue

    Guard = Callable[[Callable[[], ResponseReturnValue]], Callable[[], ResponseReturnValue]]

__all__ = ["COOKIE", "MERGE", "create_app"]

COOKIE: Final = "pgstore_demo"
# Clicks in several tabs at once all count.
MERGE: Final = {"counter": merge.add, "cart": merge.append}

_ADMIN = "admin"
_GOODS = ("tea", "milk", "honey", "lemons")
_USERS_PER_PAGE = 20

_SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src data:; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


def create_app(store: Store, *, database: str = "its store") -> Flask:
    """Return the site on ``store``, which stays the caller's to close.

    The store wants `MERGE`. ``database`` is what the pages say that it runs on.
    """
    app = Flask(__name__)
    app.config.update(SESSION_COOKIE_NAME=COOKIE, MAX_CONTENT_LENGTH=16 * 1024)
    FlaskSessions(app, store)
    app.before_request(_check_csrf)
    app.after_request(_harden)
    app.register_error_handler(HTTPException, _problem)
    app.register_error_handler(SessionTooLong, _too_long)
    app.jinja_env.globals.update(csrf_token=_csrf_token, database=database, admin=_ADMIN)
    app.jinja_env.filters.update(ago=_ago, bytes=_bytes)
    signed_in: Guard = login_required(store, reject=lambda: redirect("/sign-in", 303))
    _add_signing_in(app, signed_in)
    _add_shop(app, signed_in)
    _add_devices(app, signed_in, store)
    _add_administration(app, signed_in, store)
    return app


# -- its pages -------------------------------------------------------------------------------------


def _add_signing_in(app: Flask, signed_in: Guard) -> None:
    @app.get("/sign-in")
    def sign_in() -> ResponseReturnValue:
        if session.user_key is not None:
            return redirect("/", 303)
        return _page("sign_in.html")

    @app.post("/sign-in")
    def signing_in() -> ResponseReturnValue:
        name = request.form["name"].strip()
        try:
            session.login(name)
        except ConfigurationError:
            flash("That cannot be a name: it is empty, or too long.", "problem")
            return redirect("/sign-in", 303)
        # A new one, for what the user may do.
        session.pop("csrf", None)
        session.permanent = True
        flash(f"Welcome, {name}.")
        return redirect("/", 303)

    @app.post("/sign-out")
    @signed_in
    def sign_out() -> ResponseReturnValue:
        return _signed_out()


def _add_shop(app: Flask, signed_in: Guard) -> None:
    @app.get("/")
    @signed_in
    def home() -> ResponseReturnValue:
        cart = Counter(session.get("cart", []))
        return _page("home.html", counter=session.get("counter", 0), cart=cart, goods=_GOODS)

    @app.post("/count")
    @signed_in
    def count() -> ResponseReturnValue:
        session["counter"] = session.get("counter", 0) + 1
        return redirect("/", 303)

    @app.post("/cart/add")
    @signed_in
    def add() -> ResponseReturnValue:
        item = request.form["item"]
        if item not in _GOODS:
            abort(400, "There is no such thing to buy here.")
        session.setdefault("cart", []).append(item)
        flash(f"In your cart: {item}.")
        return redirect("/", 303)

    @app.post("/cart/remove")
    @signed_in
    def remove() -> ResponseReturnValue:
        item, cart = request.form["item"], session.get("cart", [])
        if item in cart:
            cart.remove(item)
        return redirect("/", 303)


def _add_devices(app: Flask, signed_in: Guard, store: Store) -> None:
    @app.get("/devices")
    @signed_in
    def devices() -> ResponseReturnValue:
        return _page("devices.html", devices=store.sessions_of(_user(), current=session.pgstore))

    @app.post("/devices/sign-out")
    @signed_in
    def sign_out_one() -> ResponseReturnValue:
        handle = request.form["handle"]
        try:
            ended = store.revoke(handle, owner=_user())
        except NotOwner:
            abort(404)
        if handle == session.handle:
            return _signed_out()
        flash("That device is signed out." if ended else "That device was signed out already.")
        return redirect("/devices", 303)

    @app.post("/devices/sign-out-others")
    @signed_in
    def sign_out_others() -> ResponseReturnValue:
        ended = store.revoke_user(_user(), keep=session.pgstore)
        flash(f"Signed out on {ended} other {'device' if ended == 1 else 'devices'}.")
        return redirect("/devices", 303)

    @app.post("/devices/sign-out-all")
    @signed_in
    def sign_out_all() -> ResponseReturnValue:
        store.revoke_user(_user())
        return _signed_out()


def _add_administration(app: Flask, signed_in: Guard, store: Store) -> None:
    @app.get("/admin")
    @signed_in
    def administration() -> ResponseReturnValue:
        _only_the_administrator()
        try:
            users = store.users(after=request.args.get("after"), limit=_USERS_PER_PAGE + 1)
        except ConfigurationError:
            abort(400)
        more = len(users) > _USERS_PER_PAGE
        users = users[:_USERS_PER_PAGE]
        return _page("admin.html", users=users, more=more, stats=store.stats())

    @app.post("/admin/sign-out")
    @signed_in
    def sign_out_user() -> ResponseReturnValue:
        _only_the_administrator()
        name = request.form["user"]
        try:
            ended = store.revoke_user(name)
        except ConfigurationError:
            abort(400)
        flash(f"Signed out: {name}, on {ended} {'device' if ended == 1 else 'devices'}.")
        return redirect("/admin", 303)


def _page(template: str, **context: Any) -> str:
    # HEAD shows no message, so it must not consume any.
    messages = get_flashed_messages(with_categories=True) if request.method == "GET" else []
    return render_template(template, user=session.user_key, messages=messages, **context)


def _user() -> str:
    assert session.user_key is not None
    return session.user_key


def _signed_out() -> ResponseReturnValue:
    session.logout()
    flash("You are signed out.")
    return redirect("/sign-in", 303)


def _only_the_administrator() -> None:
    if session.user_key != _ADMIN:
        abort(403, "This page is for the administrator.")


# -- what holds for all of them --------------------------------------------------------------------


def _csrf_token() -> str:
    """Return the token of this session's forms (OWASP: synchronizer token)."""
    token: str = session.setdefault("csrf", secrets.token_urlsafe(32))
    return token


def _check_csrf() -> None:
    """Refuse a form that another site made the browser send."""
    if request.method != "POST" or (session.user_key is None and request.path != "/sign-in"):
        return  # who is not signed in only gets to the sign-in page
    kept, sent = session.get("csrf"), request.form.get("csrf", "")
    if kept is None or not compare_digest(kept.encode(), sent.encode()):
        abort(403, "This form is too old, or is not this site's own. Go back and try again.")


def _harden(response: Response) -> Response:
    response.headers.update(_SECURITY_HEADERS)
    if request.endpoint != "static":
        # Nor by the back button, after signing out.
        response.headers["Cache-Control"] = "no-store"
    return response


def _problem(error: HTTPException) -> ResponseReturnValue:
    """Answer with a page that needs no session, for it may be the storage that failed."""
    code = error.code or 500
    if code < 400:
        return error
    response = Response.force_type(error.get_response())
    response.set_data(render_template("problem.html", title=error.name, text=error.description))
    if code == 503:
        response.headers["Retry-After"] = "5"
    return response


def _too_long(error: SessionTooLong) -> ResponseReturnValue:
    return _problem(RequestEntityTooLarge("Your cart is full: take something out of it."))


# -- how things are said ---------------------------------------------------------------------------


def _ago(time: datetime) -> Markup:
    """Say how long ago a time is, in the largest unit."""
    iso, span = time.isoformat(" ", "seconds"), datetime.now(UTC) - time
    text = "just now" if span < timedelta(seconds=1) else f"{_span(span)} ago"
    return Markup('<time datetime="{iso}" title="{iso}">{text}</time>').format(iso=iso, text=text)


def _span(span: timedelta) -> str:
    seconds = int(span.total_seconds())
    size, unit = next((size, unit) for size, unit in _UNITS if seconds >= size or size == 1)
    count = seconds // size
    return f"{count} {unit}" if count == 1 else f"{count} {unit}s"


_UNITS = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def _bytes(size: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
