"""Sessions in Flask: `flask.session` on a store of this library.

sessions = FlaskSessions(store)
sessions.init_app(app)
flask.session["cart"] = ["tea"]
flask.session.login("alice")
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import wraps
from threading import Event
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast
from weakref import WeakKeyDictionary

import flask
from flask import Flask, current_app
from flask.sessions import SessionInterface, SessionMixin
from werkzeug.exceptions import ServiceUnavailable

from .. import plan
from ..cookies import clear_cookie, vary_on_cookie
from ..errors import BackendError, ConfigurationError, ConflictError, RowError, SessionGone
from ..options import Options, SameSite, SessionOptions, check_cookie_name
from ..session import Registry, Session
from ..store import Store
from .flask_commands import commands
from .flask_settings import lifetime_of, open_store_of, secrets_of

if TYPE_CHECKING:
    from datetime import timedelta

    from _typeshed.wsgi import WSGIEnvironment
    from flask.typing import ResponseReturnValue
    from flask.wrappers import Request, Response

__all__ = ["FlaskSession", "FlaskSessions", "login_required", "session"]

# The cookie's attributes, by whether the session is permanent.
_Attributes = dict[bool, Options]
_View = TypeVar("_View", bound=Callable[..., Any])

_FLASHES = "_flashes"
_PERMANENT = "_permanent"


class FlaskSessions(SessionInterface):
    """Puts `flask.session` on a store: an extension that is the app's `SessionInterface`.

    ``FlaskSessions(store)`` and ``init_app(app)``, or ``FlaskSessions(app, store)``. Without a
    store, ``app.config["PGSTORE_URL"]`` names one (`pgstore.open_store`): it is made when a process
    first needs it, and never closed. docs/flask.md lists every setting.

    A session is loaded when the request first uses it, and saved once, after the ``after_request``
    functions. When the storage fails, the app's error handler for `BackendError` answers; by
    default with 503, and one line in the app's log.
    """

    def __init__(self, app: Flask | Store | None = None, store: Store | None = None) -> None:
        if isinstance(app, Store) and store is None:
            app, store = None, app
        if not (isinstance(app, Flask | None) and isinstance(store, Store | None)):
            raise ConfigurationError("FlaskSessions takes an app, a store, or an app and a store")
        self._given = store
        self._known_attributes: tuple[object, _Attributes] = (), {}
        self._made: WeakKeyDictionary[Flask, dict[object, Store]] = WeakKeyDictionary()
        self._cleaners: WeakKeyDictionary[Store, tuple[Event, Event]] = WeakKeyDictionary()
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Make this the app's session interface, and add the ``flask sessions`` commands.

        Opens nothing: settings and keys may come later, until the first request. A handler for
        `BackendError` that the app has is kept; one that it registers later replaces the default.
        """
        app.session_interface = self
        app.extensions["pgstore"] = self
        app.cli.add_command(commands)
        if BackendError not in app.error_handler_spec[None][None]:
            app.register_error_handler(BackendError, _answer_503)

    @property
    def store(self) -> Store:
        """The store that was given, or that of the current app's settings.

        Raises `ConfigurationError` when they name none, and `BackendError` when it cannot be
        opened.
        """
        return self._given or self._store_of(_current_app())

    # -- what Flask calls

    def open_session(self, app: Flask, request: Request) -> FlaskSession | None:
        """Return the request's session, not loaded yet; None, Flask's null session, without keys.

        The keys are the given store's, ``PGSTORE_KEYS``, or derived from ``SECRET_KEY``.
        """
        if self._given is None and not (app.config.get("PGSTORE_KEYS") or app.secret_key):
            return None
        return FlaskSession(self, app, request)

    def save_session(self, app: Flask, session: SessionMixin, response: Response) -> None:
        """Save the session if this request used it, and put its cookie on the response.

        `SessionGone` lets the response go out, without a cookie. For any other error the app's
        error handlers are asked, and their answer takes the response's place.
        """
        assert isinstance(session, FlaskSession)
        if session._closed or not session._is_used():
            return
        if response.status_code >= 500 and not app.config.get("PGSTORE_SAVE_ON_ERROR"):
            vary_on_cookie(response.headers)
            return
        try:
            session._save(response)
        except SessionGone:
            pass
        except Exception as error:
            # Flask saves once more when it answers an error, be it one that is raised here.
            session._closed = True
            if not session._is_current():
                raise  # to the test that called session_transaction()
            answer = app.make_response(app.handle_user_exception(error))
            _replace(response, app.process_response(answer))

    # -- stores

    def _store_of(self, app: Flask) -> Store:
        origin = app.config.get("PGSTORE_URL"), app.config.get("PGSTORE_KEYS"), secrets_of(app)
        stores = self._made.setdefault(app, {})
        if origin not in stores:
            # Under no lock: while the database is down, each request waits for itself.
            store = open_store_of(app)
            if stores.setdefault(origin, store) is not store:
                store.close()
        return stores[origin]

    def _load(self, app: Flask, environ: WSGIEnvironment, name: str) -> tuple[Session, _Attributes]:
        store = self._given or self._store_of(app)
        self._clean(store, app.config.get("PGSTORE_CLEANUP_INTERVAL"))
        attributes = self._attributes(app, name, store.options)
        # The app's attributes count: the store would hold the name to its own.
        store._names.add(name)
        session = store.get(environ, name)
        session._adapted = attributes[True]
        return session, attributes

    def _clean(self, store: Store, interval: float | timedelta | None) -> None:
        """Start the cleaner, once per process; never in a reloader's parent, which serves none."""
        if interval and store not in self._cleaners:
            events = store.cleanup(interval)
            if self._cleaners.setdefault(store, events) is events:
                atexit.register(store.stop_cleanup, *events)
            else:
                store.stop_cleanup(*events)

    def _attributes(self, app: Flask, name: str, own: Options) -> _Attributes:
        """Return the cookie's attributes: the app's settings, and the store's ``own`` elsewhere.

        A setting at Flask's default leaves the attribute to the store, which by default is safer
        than Flask about Secure and SameSite.
        """
        settings = (
            name,
            own,
            lifetime_of(app),
            self.get_cookie_path(app),
            self.get_cookie_domain(app),
            self.get_cookie_secure(app),
            self.get_cookie_httponly(app),
            self.get_cookie_samesite(app),
            self.get_cookie_partitioned(app),
        )
        # They seldom change, and to check them takes as long as to verify a cookie.
        known, attributes = self._known_attributes
        if settings != known:
            attributes = _attributes_of(*settings)
            self._known_attributes = settings, attributes
        return attributes


class FlaskSession(SessionMixin):
    """What `flask.session` is: a mapping over a `pgstore.Session`, which is loaded when it is used.

    What changed is found out at the save, deep inside of values too: ``modified`` need not be set,
    and setting it changes nothing. Using it raises `BackendError` when the storage fails.
    """

    modified = False
    """Whether this request assigned or deleted a key, or signed in or out."""

    accessed = False
    """Whether this request used the session."""

    def __init__(self, sessions: FlaskSessions, app: Flask, request: Request) -> None:
        self._sessions = sessions
        self._app = app
        self._environ = request.environ
        self._name = sessions.get_cookie_name(app)
        self._session: Session | None = None
        self._error: BackendError | None = None
        self._was_permanent = False
        # The list that `flask.flash` works on, while it may differ from the session's messages.
        self._messages: list[Any] | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<FlaskSession {self._name!r} {self._session or 'not loaded'}>"

    # -- a mapping

    def __getitem__(self, key: str) -> Any:
        if key != _FLASHES:
            return self._loaded()[key]
        if not self._flashes():
            raise KeyError(key)
        return self._messages

    def __setitem__(self, key: str, value: Any) -> None:
        session = self._loaded()
        self.modified = True
        if key == _FLASHES:
            self._messages = value
        else:
            session[key] = value

    def __delitem__(self, key: str) -> None:
        if key == _FLASHES and self._flashes():
            self._messages = []
        else:
            del self._loaded()[key]
        self.modified = True

    def __iter__(self) -> Iterator[str]:
        yield from self._loaded()
        if self._flashes():
            yield _FLASHES

    def __len__(self) -> int:
        return len(self._loaded()) + bool(self._flashes())

    def clear(self) -> None:
        """Remove all values and messages. Who signed in with `login` stays: see `logout`."""
        self.pgstore.clear()
        self.modified = True

    # -- a session

    @property
    def pgstore(self) -> Session:
        """The session of the store under it, for all that is not offered here."""
        session = self._loaded()
        self._settle_messages(session)
        return session

    @property
    def new(self) -> bool:  # type: ignore[override]
        """True until the session has a row."""
        return self._loaded().is_new

    @property
    def user_key(self) -> str | None:
        """Whom `login` tied this session to, or None."""
        return self._loaded().user_key

    @property
    def handle(self) -> str:
        """The session's public name, for device lists, logs and revocation."""
        return self._loaded().handle

    @property
    def meta(self) -> dict[str, str]:
        """Free string metadata, shown in device lists."""
        return self._loaded().meta

    @property
    def options(self) -> SessionOptions:
        """The cookie's attributes in this request, from the app's settings, to change."""
        return self._loaded().options

    def login(self, user_key: str) -> None:
        """Tie the session to a user and give it a new secret; see `Session.login`."""
        self.pgstore.login(user_key)
        self.modified = True

    def fresh(self, within: float | timedelta) -> bool:
        """Tell whether the user proved who they are so lately; see `Session.fresh`."""
        return self._loaded().fresh(within)

    def logout(self) -> None:
        """End the session and have the browser forget its cookie; see `Session.delete`."""
        session = self.pgstore
        max_age = session.options.max_age
        session.logout()
        session.options.max_age = max_age
        self.modified = True

    def regenerate(self) -> None:
        """Give the session a new secret; see `Session.regenerate`."""
        self._loaded().regenerate()
        self.modified = True

    # -- loading and saving

    def _loaded(self) -> Session:
        self.accessed = True
        if self._error is not None:
            raise self._error  # asking again would be waiting again
        if self._session is None:
            try:
                self._session, self._attributes = self._sessions._load(
                    self._app, self._environ, self._name
                )
            except BackendError as error:
                self._error = error
                raise
            self._was_permanent = bool(self._session.values.get(_PERMANENT))
        return self._session

    def _is_used(self) -> bool:
        """Tell whether the request loaded the session, here or with `Store.get`."""
        return self._error is None and Registry.of(self._environ).known(self._name) is not None

    def _is_current(self) -> bool:
        return flask.has_request_context() and session._get_current_object() is self  # type: ignore[attr-defined]

    def _flashes(self) -> list[Any]:
        if self._messages is None:
            flashes = self._loaded()._flashes
            self._messages = [value for (key, _), value in flashes.items() if key == _FLASHES]
        return self._messages

    def _settle_messages(self, session: Session) -> None:
        """Bring the session's messages to those of the list.

        Each has a key of its own there, so that requests at the same time may add and consume.
        """
        if self._messages is None:
            return
        added = list(self._messages)
        for flash, message in list(session._flashes.items()):
            if flash[0] == _FLASHES:
                if message in added:
                    added.remove(message)
                else:
                    del session._flashes[flash]
        for message in added:
            session.add_flash(message, _FLASHES)
        self._messages = None

    def _save(self, response: Response) -> None:
        session = self.pgstore
        if session.values.keys() == {_PERMANENT} and not (
            session._flashes or session.meta or session.user_key
        ):
            # Said before every request, this alone would make a row for every visitor.
            session.values.clear()
        permanent = bool(session.values.get(_PERMANENT))
        if session._options is not None:
            session._options.persistent = permanent
        else:
            session._adapted = self._attributes[permanent]
        if permanent != self._was_permanent:
            session.send_cookie()
        refreshed = self._app.config["SESSION_REFRESH_EACH_REQUEST"]
        if permanent and not refreshed and _is_only_read(session):
            vary_on_cookie(response.headers)
            return
        had_row = not session.is_new
        session.save(self._environ, response)
        if had_row and session.is_new:
            https = self._environ["wsgi.url_scheme"] == "https"
            clear_cookie(response.headers, self._name, session.options.freeze(), https=https)


session = cast("FlaskSession", flask.session)
"""`flask.session` itself, for type checkers to know what it is."""


def login_required(
    sessions: FlaskSessions | Store, *, reject: Callable[[], ResponseReturnValue] | None = None
) -> Callable[[_View], _View]:
    """Let only those into a view who have signed in with `FlaskSession.login`.

    ``sessions`` is the app's `FlaskSessions`, or its store. Others get what ``reject`` returns (a
    redirect to a sign-in page, say), by default a plain 401. View and ``reject`` may be async. Goes
    under ``app.route``. Raises `ConfigurationError`, in a request, when the app's sessions are
    those of another store.
    """

    def decorate(view: _View) -> _View:
        @wraps(view)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if _user_key(sessions) is None:
                return current_app.ensure_sync(reject or _answer_401)()
            return current_app.ensure_sync(view)(*args, **kwargs)

        return cast("_View", guarded)

    return decorate


def _user_key(sessions: FlaskSessions | Store) -> str | None:
    store = sessions if isinstance(sessions, Store) else sessions.store
    if not isinstance(session, FlaskSession) or not store.owns(session.pgstore):
        raise ConfigurationError("login_required was given other sessions than the app has")
    return session.user_key


def _answer_401() -> NoReturn:
    flask.abort(401, "Sign in first.")


def _answer_503(error: BackendError) -> ResponseReturnValue:
    """Answer when the storage failed; the app may have a page for 503."""
    if isinstance(error, ConflictError | RowError):
        raise error  # no outage: trying again later would not help
    current_app.logger.error("the session storage failed: %s", " ".join(str(error).split()))
    answer: ResponseReturnValue = current_app.handle_http_exception(ServiceUnavailable())
    return answer


def _is_only_read(session: Session) -> bool:
    """Tell whether a save would do no more than to move the session's end."""
    if session._base is None or session._base.resend:
        return False
    rules = cast("Store", session._store)._rules
    return isinstance(plan.decide(rules, session, None, None), plan.Touch)


def _attributes_of(
    name: str,
    own: Options,
    lifetime: int,
    path: str,
    domain: str | None,
    secure: bool,
    http_only: bool,
    same_site: str | None,
    partitioned: bool,
) -> _Attributes:
    options = Options(
        path=own.path if path == "/" else path,
        domain=domain or own.domain,
        max_age=lifetime,
        secure=secure or partitioned or own.partitioned or own.secure,
        http_only=http_only and own.http_only,
        same_site=cast("SameSite", same_site.title()) if same_site else own.same_site,
        partitioned=partitioned or own.partitioned,
    )
    check_cookie_name(name, options)
    return {True: options, False: replace(options, persistent=False)}


def _replace(response: Response, answer: Response) -> None:
    """Make ``response``, which is under way to the browser, say what ``answer`` does."""
    if hasattr(response.response, "close"):
        response.response.close()
    response.response = answer.response
    response.status = answer.status
    response.headers = answer.headers
    response.direct_passthrough = answer.direct_passthrough
    response.call_on_close(answer.close)


def _current_app() -> Flask:
    return current_app._get_current_object()  # type: ignore[attr-defined,no-any-return]
