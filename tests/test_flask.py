"""`flask.session` on every kind of store: what Flask promises of it, and what is new."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import flask
import pytest
from flask.testing import FlaskClient
from markupsafe import Markup
from werkzeug.test import TestResponse

from pgstore import (
    ConfigurationError,
    MemoryStore,
    Options,
    PGStore,
    merge,
)
from pgstore.embedded import PostgresServer
from pgstore.ext.flask import FlaskSession, FlaskSessions, login_required, session
from support.fault_proxy import FaultProxy
from support.flask_site import FlaskSite, attributes, do, max_age
from support.stores import KEYS, Lab, PostgresLab

MONTH = 31 * 24 * 3600  # Flask's PERMANENT_SESSION_LIFETIME
TOUCH = 300


@pytest.fixture
def site(lab: Lab) -> FlaskSite:
    return FlaskSite(lab.store())


@pytest.fixture
def browser(site: FlaskSite) -> FlaskClient:  # type: ignore[override]
    return site.browser()


def put(**values: Any) -> Any:
    """Return a view that puts values into the session."""
    return lambda: session.update(values)


def shown() -> str:
    """Show what is in the session: a view."""
    return repr(dict(session))


def cookie_of(browser: FlaskClient) -> str | None:
    cookie = browser.get_cookie("session")
    return cookie.value if cookie else None


def seconds_left(lab: Lab) -> float:
    """Return how long the one row lives, counted from its last visit."""
    row = lab.row()
    left = row["expires_on"] - row["seen_on"]
    return float(left / 1e6 if isinstance(left, int) else left.total_seconds())


# -- values


def test_values_follow_the_browser(site: FlaskSite, browser: FlaskClient) -> None:
    """What a request puts in, the next one of the same browser finds."""
    site.visit(browser, put(value=42))
    assert site.visit(browser, shown).text == "{'value': 42}"
    assert site.visit(site.browser(), shown).text == "{}"


def test_it_is_a_mapping(site: FlaskSite, browser: FlaskClient) -> None:
    """The verbs of a dict work as they do there."""

    def view() -> None:
        assert (len(session), bool(session), "a" in session) == (0, False, False)
        assert session.setdefault("a", 1) == 1
        session.update(b=2, c=3)
        assert session.pop("b") == 2
        assert session.pop("b", "none") == "none"
        assert session.get("b") is None
        with pytest.raises(KeyError):
            session["b"]
        with pytest.raises(KeyError):
            del session["b"]
        assert list(session.items()) == [("a", 1), ("c", 3)]
        assert session == {"a": 1, "c": 3}
        del session["a"]
        session.clear()
        assert (len(session), list(session)) == (0, [])

    assert site.visit(browser, view).status_code == 200


def test_a_nested_change_is_stored(site: FlaskSite, browser: FlaskClient) -> None:
    """A change deep inside a value is stored without a word about ``session.modified``."""
    site.visit(browser, put(cart={"tea": [1]}))
    site.visit(browser, lambda: session["cart"]["tea"].append(2))
    assert site.visit(browser, shown).text == "{'cart': {'tea': [1, 2]}}"


def test_values_come_back_with_their_types(site: FlaskSite, browser: FlaskClient) -> None:
    """Everything that Flask's own sessions carry comes back exactly, and more."""
    values = {
        "tuple": (1, [2], {"x": (3,)}),
        "bytes": b"\xff",
        "markup": Markup("<html>"),
        "uuid": uuid.uuid4(),
        "time": datetime.now(UTC),
        "naive": datetime(2026, 1, 2),
        "set": {1, 2},
        "tag": {" t": "no tuple", " di": "no dict"},
        "numbers": {1: "int keys stay"},
    }
    site.visit(browser, put(**values))

    def view() -> None:
        assert dict(session) == values
        assert type(session["markup"]) is Markup
        assert type(session["tuple"]) is tuple

    assert site.visit(browser, view).status_code == 200


def test_new_modified_and_accessed(site: FlaskSite, browser: FlaskClient) -> None:
    """They tell whether the session has a row yet, was assigned to, and was used at all."""
    opened: list[FlaskSession] = []

    class Keeping(FlaskSessions):
        def open_session(self, app: flask.Flask, request: flask.Request) -> FlaskSession | None:
            found = super().open_session(app, request)
            assert found is not None
            opened.append(found)
            return found

    Keeping(site.app, site.sessions.store)

    for use, expected in [
        (lambda: None, (False, False, True)),
        (lambda: session.get("x"), (False, True, True)),
        (put(x=1), (True, True, True)),
        (lambda: session["x"], (False, True, False)),
    ]:
        states = []

        def look(states: Any = states) -> None:
            found = opened[-1]
            states.append((found.modified, found.accessed, found.new))

        site.visit(browser, do(use, look))
        assert states == [expected]


def test_what_says_modified(site: FlaskSite, browser: FlaskClient) -> None:
    """Assigning, deleting, flashing, clearing, signing in and out say ``modified``."""
    site.visit(browser, put(x=1))
    for change in (
        put(y=1),
        lambda: session.pop("x"),
        lambda: flask.flash("hello"),
        lambda: session.clear(),
        lambda: session.login("alice"),
        lambda: session.regenerate(),
        lambda: session.logout(),
    ):

        def view(change: Any = change) -> str:
            assert not session.modified
            change()
            return str(session.modified)

        assert site.visit(browser, view).text == "True"
        site.visit(browser, put(x=1))


def test_setting_modified_is_harmless(lab: Lab, site: FlaskSite, browser: FlaskClient) -> None:
    """``session.modified = True`` writes nothing that has not changed, False keeps nothing back."""
    site.visit(browser, put(x=1))
    before = lab.row()
    site.visit(browser, lambda: setattr(session, "modified", True))
    site.visit(browser, do(shown, lambda: setattr(session, "modified", True)))
    assert lab.row() == before
    site.visit(browser, do(put(x=2), lambda: setattr(session, "modified", False)))
    assert site.visit(browser, shown).text == "{'x': 2}"


def test_its_repr_shows_no_value(site: FlaskSite, browser: FlaskClient) -> None:
    """It shows the cookie's name and the handle, and loads nothing."""
    assert site.visit(browser, lambda: repr(session)).text == "<FlaskSession 'session' not loaded>"

    def view() -> str:
        session["password"] = "hunter2"
        assert session.handle in repr(session)
        return repr(session)

    assert "hunter2" not in site.visit(browser, view).text


# -- a request that does nothing


def test_an_untouched_session_costs_nothing(pg_server: PostgresServer, pg_lab: PostgresLab) -> None:
    """No query, no cookie and no Vary without a use; one query to read, one more to write."""
    pg_lab.store()
    with FaultProxy("127.0.0.1", pg_server.port) as proxy:
        dsn = f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres"
        with PGStore(dsn, *KEYS, db_schema=pg_lab.schema, schema="off") as store:
            site = FlaskSite(store)
            browser = site.browser()
            for n in range(10):  # statements are prepared on the way
                site.visit(browser, put(x=n))
                pg_lab.pass_time(3600)  # the next visit is written
                site.visit(browser, shown)
            pg_lab.pass_time(3600)

            def cost(view: Any) -> tuple[int, TestResponse]:
                before = proxy.round_trips
                response = site.visit(browser, view)
                return proxy.round_trips - before, response

            def by_another_context() -> str:
                with site.app.app_context():
                    return flask.render_template_string("{{ config['TESTING'] }}")

            for view in (lambda: "", by_another_context, lambda: repr(session)):
                queries, response = cost(view)
                assert queries == 0
                assert "Set-Cookie" not in response.headers
                assert "Vary" not in response.headers
                assert "Cache-Control" not in response.headers
            assert [cost(view)[0] for view in (shown, shown, put(x=2))] == [2, 1, 2]
            queries, response = cost(lambda: session.get("x"))
            assert (queries, response.headers["Vary"]) == (1, "Cookie")


def test_no_row_for_who_only_looks(lab: Lab, site: FlaskSite, browser: FlaskClient) -> None:
    """Reading, and saying that sessions are permanent, make neither row nor cookie."""

    def view() -> None:
        session.permanent = True
        assert session.permanent
        session.get("user")

    response = site.visit(browser, view)
    assert lab.rows() == []
    assert "Set-Cookie" not in response.headers
    assert response.headers["Vary"] == "Cookie"


@pytest.mark.parametrize(
    ("before", "after"),
    [([], "Cookie"), (["Cookie"], "Cookie"), (["Accept, Accept-Language"], None), (["*"], "*")],
)
def test_vary(site: FlaskSite, browser: FlaskClient, before: list[str], after: str | None) -> None:
    """Vary names Cookie once, beside what the app says, however the session was used."""
    uses: list[Any] = [
        put(x=1),
        lambda: session.get("x"),
        lambda: session["x"],
        lambda: "x" in session,
        lambda: session.setdefault("x", 2),
        lambda: session.permanent,
        lambda: session.new,
        lambda: session.user_key,
        lambda: session.clear(),
    ]
    for use in uses:

        def view(use: Any = use) -> flask.Response:
            use()
            response = flask.Response()
            for line in before:
                response.headers.add("Vary", line)
            return response

        headers = site.visit(browser, view).headers
        assert headers.getlist("Vary") == [after or f"{before[0]}, Cookie"]


# -- how long


def test_permanent_or_not(lab: Lab, site: FlaskSite, browser: FlaskClient) -> None:
    """A permanent session's cookie lives as long as its row, another's until the browser closes.

    Either row lives for PERMANENT_SESSION_LIFETIME without a visit.
    """
    response = site.visit(browser, put(x=1))
    assert max_age(response) is None
    assert seconds_left(lab) == MONTH + TOUCH
    other = site.browser()
    lab.set(expires_on=lab.row()["seen_on"])
    site.sessions.store.delete_expired()
    response = site.visit(other, put(x=1, _permanent=True))
    assert max_age(response) == MONTH + TOUCH
    assert site.visit(other, lambda: str(session.permanent)).text == "True"


def test_the_lifetime_is_the_apps(lab: Lab, site: FlaskSite, browser: FlaskClient) -> None:
    """PERMANENT_SESSION_LIFETIME holds for cookie and row at the next use after it was changed."""
    site.app.config["PERMANENT_SESSION_LIFETIME"] = timedelta(hours=1)
    assert max_age(site.visit(browser, put(x=1, _permanent=True))) == 3600 + TOUCH
    assert seconds_left(lab) == 3600 + TOUCH
    site.app.config["PERMANENT_SESSION_LIFETIME"] = 7200
    assert max_age(site.visit(browser, shown)) == 7200 + TOUCH
    assert seconds_left(lab) == 7200 + TOUCH
    lab.pass_time(7200 + TOUCH + 1)
    assert site.visit(browser, shown).text == "{}"


@pytest.mark.parametrize("lifetime", [0, -1, timedelta(seconds=0.5)])
def test_lifetimes_that_do_not_fit(lifetime: Any) -> None:
    """A session must live for a second."""
    site = FlaskSite(MemoryStore(*KEYS), PERMANENT_SESSION_LIFETIME=lifetime)
    with pytest.raises(ConfigurationError, match="PERMANENT_SESSION_LIFETIME"):
        site.visit(site.browser(), shown)


def test_idle_timeout_and_lifetime_of_the_store_hold(lab: Lab) -> None:
    """What the store was told goes on holding: the row ends at the earliest."""
    site = FlaskSite(lab.store(idle_timeout=600))
    assert max_age(site.visit(site.browser(), put(x=1, _permanent=True))) == 660
    assert seconds_left(lab) == 660


def test_becoming_permanent(lab: Lab, site: FlaskSite, browser: FlaskClient) -> None:
    """The browser is told at once, both ways, and nothing else is sent meanwhile."""
    ages = []
    for permanent in (False, False, True, True, False):
        response = site.visit(browser, put(x=1, _permanent=permanent))
        ages.append(max_age(response) if "Set-Cookie" in response.headers else "not sent")
    # What the row has left: it was last visited a moment ago.
    assert ages == [None, "not sent", pytest.approx(MONTH + TOUCH, abs=60), "not sent", None]
    assert len(lab.rows()) == 1


def test_refresh_each_request(lab: Lab, site: FlaskSite, browser: FlaskClient) -> None:
    """With it, reading moves a permanent session's end, once per touch interval.

    Without it, only a change does.
    """
    for refresh, permanent, slides in [
        (True, True, True),
        (False, True, False),
        (True, False, True),
        (False, False, True),
    ]:
        site.app.config["SESSION_REFRESH_EACH_REQUEST"] = refresh
        site.visit(browser, put(x=uuid.uuid4(), _permanent=permanent))
        before = lab.row()["seen_on"]
        assert "Set-Cookie" not in site.visit(browser, shown).headers
        assert lab.row()["seen_on"] == before
        lab.pass_time(TOUCH)
        before = lab.row()["seen_on"]
        response = site.visit(browser, shown)
        assert response.headers["Vary"] == "Cookie"
        assert ("Set-Cookie" in response.headers) == slides
        assert (lab.row()["seen_on"] != before) == slides
        response = site.visit(browser, put(x=uuid.uuid4()))
        assert ("Set-Cookie" in response.headers) == (not slides)


def test_no_refresh_but_a_new_secret(lab: Lab) -> None:
    """Without SESSION_REFRESH_EACH_REQUEST, too, a renewed secret reaches parallel requests."""
    store = lab.store(rotate_every=3600, touch_interval=0)
    site = FlaskSite(store, SESSION_REFRESH_EACH_REQUEST=False)
    browser = site.browser()
    site.visit(browser, put(x=1, _permanent=True))
    lab.pass_time(3600)
    parallel = copy_of(site, browser)
    for each in (browser, parallel):
        assert "Set-Cookie" in site.visit(each, shown).headers
        assert "Set-Cookie" not in site.visit(each, shown).headers
    assert site.visit(parallel, lambda: session.handle).text == lab_handle(lab, site)


# -- the cookie


@pytest.mark.parametrize(
    ("config", "sent"),
    [
        ({}, {"httponly", "path=/", "samesite=lax"}),
        ({"SESSION_COOKIE_HTTPONLY": False}, {"path=/", "samesite=lax"}),
        ({"SESSION_COOKIE_SAMESITE": "strict"}, {"httponly", "path=/", "samesite=strict"}),
        (
            {"SESSION_COOKIE_SAMESITE": "None", "SESSION_COOKIE_SECURE": True},
            {"httponly", "path=/", "samesite=none", "secure"},
        ),
        (
            {"SESSION_COOKIE_PARTITIONED": True},
            {"httponly", "path=/", "samesite=lax", "secure", "partitioned"},
        ),
        ({"APPLICATION_ROOT": "/app"}, {"httponly", "path=/app", "samesite=lax"}),
        (
            {"APPLICATION_ROOT": "/app", "SESSION_COOKIE_PATH": "/other"},
            {"httponly", "path=/other", "samesite=lax"},
        ),
        (
            {"SESSION_COOKIE_DOMAIN": ".localhost"},
            {"httponly", "path=/", "samesite=lax", "domain=localhost"},
        ),
    ],
)
def test_cookie_attributes(config: dict[str, Any], sent: set[str]) -> None:
    """The settings count as they are in the request; clearing the cookie uses the same."""
    site = FlaskSite(MemoryStore(*KEYS))
    base = "http://localhost" + config.get(
        "SESSION_COOKIE_PATH", config.get("APPLICATION_ROOT", "")
    )
    browser = site.browser()
    site.visit(browser, lambda: "")
    site.app.config.update(config)
    assert attributes(site.visit(browser, put(x=1), base_url=base)) == sent
    for ending in (lambda: session.pop("x"), lambda: session.logout()):
        site.visit(browser, put(x=1), base_url=base)
        cleared = attributes(site.visit(browser, ending, base_url=base))
        assert {part.partition("=")[0] for part in cleared - sent} == {"expires", "max-age"}
        assert sent <= cleared
        assert browser.get_cookie("session", path=site.sessions.get_cookie_path(site.app)) is None


def test_the_stores_options_are_the_default() -> None:
    """Where Flask's setting is at Flask's default, the store's option holds."""
    options = Options(
        path="/app",
        domain="localhost",
        secure=True,
        http_only=False,
        same_site="None",
        partitioned=True,
    )
    site = FlaskSite(MemoryStore(*KEYS, options=options))
    assert attributes(site.visit(site.browser(), put(x=1))) == {
        "path=/app",
        "domain=localhost",
        "secure",
        "samesite=none",
        "partitioned",
    }
    site = FlaskSite(MemoryStore(*KEYS, options=Options(same_site=None)))
    assert attributes(site.visit(site.browser(), put(x=1))) == {"path=/", "httponly"}


def test_secure_by_itself_over_https() -> None:
    """A request that came by https gets a Secure cookie without being told to."""
    site = FlaskSite(MemoryStore(*KEYS))
    browser = site.browser()
    response = site.visit(browser, put(x=1), base_url="https://localhost")
    assert "secure" in attributes(response)
    response = site.visit(browser, lambda: session.pop("x"), base_url="https://localhost")
    assert {"secure", "max-age=0"} <= attributes(response)


def test_attributes_that_do_not_fit() -> None:
    """A setting that no browser would take is the developer's mistake."""
    site = FlaskSite(MemoryStore(*KEYS), SESSION_COOKIE_SAMESITE="invalid")
    with pytest.raises(ConfigurationError, match="same_site"):
        site.visit(site.browser(), put(x=1))


def test_prefixed_names() -> None:
    """``__Host-`` is held to the app's settings, not to those of the store."""
    site = FlaskSite(MemoryStore(*KEYS), SESSION_COOKIE_NAME="__Host-session")
    with pytest.raises(ConfigurationError, match="needs secure=True"):
        site.visit(site.browser(), shown)
    site.app.config["SESSION_COOKIE_SECURE"] = True
    browser = site.browser()
    response = site.visit(browser, put(x=1), base_url="https://localhost")
    assert response.headers["Set-Cookie"].startswith("__Host-session=")
    assert site.visit(browser, shown, base_url="https://localhost").text == "{'x': 1}"


def test_a_cookie_name_of_the_requests_own() -> None:
    """Who derives from it may name the cookie by the request."""

    class ByPath(FlaskSessions):
        def get_cookie_name(self, app: flask.Flask) -> str:
            return "a" if "a" in flask.request.args else super().get_cookie_name(app)

    site = FlaskSite(MemoryStore(*KEYS))
    ByPath(site.app, site.sessions.store)
    browser = site.browser()
    site.visit(browser, put(x=1))
    site.visit(browser, put(x=2), query_string="a")
    assert site.visit(browser, shown).text == "{'x': 1}"
    assert site.visit(browser, shown, query_string="a").text == "{'x': 2}"


def test_an_emptied_session(lab: Lab, site: FlaskSite, browser: FlaskClient) -> None:
    """Its row goes, and the browser forgets its cookie; ``permanent`` alone is empty."""
    for permanent in (False, True):
        site.visit(browser, put(x=1, _permanent=permanent))
        site.visit(browser, lambda: session.pop("x"))
        assert lab.rows() == []
        assert cookie_of(browser) is None


def test_nothing_is_sent_for_a_cookie_that_leads_nowhere(
    lab: Lab, site: FlaskSite, browser: FlaskClient
) -> None:
    """A cookie that is not ours, or whose session has ended, is neither adopted nor cleared."""
    site.visit(browser, put(x=1))
    known = cookie_of(browser)
    site.sessions.store.revoke(lab_handle(lab, site))
    for value in (known, "garbage", "A" * 4000):
        assert value is not None
        browser.set_cookie("session", value)
        for view in (shown, lambda: session.clear(), lambda: session.pop("x", None)):
            response = site.visit(browser, view)
            assert "Set-Cookie" not in response.headers
        assert cookie_of(browser) == value
    assert lab.rows() == []


def lab_handle(lab: Lab, site: FlaskSite) -> str:
    (row,) = site.sessions.store.backend.scan(None, 2)
    return row.handle


# -- messages


def test_messages(site: FlaskSite, browser: FlaskClient) -> None:
    """They come in their order, with category and type, once; a filter picks categories."""

    def flash() -> None:
        flask.flash("Hello")
        flask.flash("Hello", "error")
        flask.flash(Markup("<em>now</em>"), "warning")

    everything = [("message", "Hello"), ("error", "Hello"), ("warning", Markup("<em>now</em>"))]
    for settings, expected in [
        ({}, [message for _, message in everything]),
        ({"with_categories": True}, everything),
        ({"with_categories": True, "category_filter": ["error", "warning"]}, everything[1:]),
        ({"category_filter": ["warning"]}, [Markup("<em>now</em>")]),
    ]:

        def view(settings: Any = settings, expected: Any = expected) -> None:
            messages = flask.get_flashed_messages(**settings)
            assert messages == expected
            assert "Markup" in repr(messages)
            assert flask.get_flashed_messages(**settings) == expected

        site.visit(browser, flash)
        assert site.visit(browser, view).status_code == 200
        assert site.visit(browser, lambda: str(flask.get_flashed_messages())).text == "[]"


def test_messages_of_several_requests(lab: Lab, site: FlaskSite, browser: FlaskClient) -> None:
    """They add up until they are shown, also in the request that adds; then no row is left."""
    site.visit(browser, lambda: flask.flash("one"))
    site.visit(browser, lambda: flask.flash("two"))
    assert (
        site.visit(browser, shown).text == "{'_flashes': [('message', 'one'), ('message', 'two')]}"
    )

    def view() -> str:
        flask.flash("three")
        return str(flask.get_flashed_messages())

    assert site.visit(browser, view).text == "['one', 'two', 'three']"
    assert lab.rows() == []


def test_messages_in_place(site: FlaskSite, browser: FlaskClient) -> None:
    """The list under ``_flashes`` may be changed in place, as older extensions do."""

    def view() -> None:
        session.setdefault("_flashes", []).append(("message", "one"))
        session.setdefault("_flashes", []).append(("message", "two"))

    site.visit(browser, view)
    site.visit(browser, lambda: session["_flashes"].pop(0))
    assert site.visit(browser, lambda: str(flask.get_flashed_messages())).text == "['two']"
    with pytest.raises(KeyError):
        site.visit(browser, lambda: session["_flashes"])


def test_messages_of_the_stores_kind(site: FlaskSite, browser: FlaskClient) -> None:
    """Messages that were added with `Session.add_flash` are others, and stay what they are."""
    site.visit(browser, do(lambda: session.pgstore.add_flash("core"), lambda: flask.flash("flask")))
    assert site.visit(browser, lambda: str(flask.get_flashed_messages())).text == "['flask']"
    assert site.visit(browser, lambda: str(session.pgstore.flashes())).text == "['core']"


def test_messages_of_parallel_requests(site: FlaskSite, browser: FlaskClient) -> None:
    """Whoever adds or shows meanwhile: each message is shown by later requests exactly once."""
    site.visit(browser, lambda: flask.flash("old"))

    def during(meanwhile: Any, view: Any) -> None:
        """Run a view whose session was loaded before another request runs and saves."""

        def slow() -> None:
            assert "x" not in session
            site.visit(copy_of(site, browser), meanwhile)
            view()

        assert site.visit(browser, slow).status_code == 200

    def show() -> str:
        return str(flask.get_flashed_messages())

    during(lambda: flask.flash("theirs"), lambda: flask.flash("ours"))
    assert site.visit(browser, lambda: str(session["_flashes"])).text == str(
        [("message", text) for text in ("old", "theirs", "ours")]
    )
    during(lambda: flask.flash("new"), show)
    assert site.visit(browser, show).text == "['new']"
    site.visit(browser, put(y=1))
    site.visit(browser, lambda: flask.flash("once"))
    during(show, lambda: flask.flash("last"))
    assert site.visit(browser, show).text == "['last']"


def copy_of(site: FlaskSite, browser: FlaskClient) -> FlaskClient:
    """Return the same browser for another request at the same time."""
    copy = site.browser()
    value = cookie_of(browser)
    if value is not None:
        copy.set_cookie("session", value)
    return copy


def test_parallel_requests_lose_nothing(lab: Lab) -> None:
    """Changes of different keys both win, and a merge function counts both."""
    site = FlaskSite(lab.store(merge={"hits": merge.add}))
    browser = site.browser()
    site.visit(browser, put(hits=1))

    def count() -> None:
        session["hits"] += 1

    def slow() -> None:
        session["mine"] = True
        count()
        site.visit(copy_of(site, browser), do(put(theirs=True), count))

    site.visit(browser, slow)

    def view() -> None:
        assert dict(session) == {"hits": 3, "mine": True, "theirs": True}

    assert site.visit(browser, view).status_code == 200


def test_emptied_while_another_request_fills(site: FlaskSite, browser: FlaskClient) -> None:
    """What another request has put in meanwhile stays, and so does the cookie."""
    site.visit(browser, put(x=1))

    def slow() -> None:
        session.pop("x")
        site.visit(copy_of(site, browser), put(y=2))

    assert "Set-Cookie" not in site.visit(browser, slow).headers
    assert site.visit(browser, shown).text == "{'y': 2}"


# -- where Flask uses it


def test_it_is_saved_last(site: FlaskSite, browser: FlaskClient) -> None:
    """What an ``after_request`` function puts in is stored, too."""

    @site.app.after_request
    def count(response: flask.Response) -> flask.Response:
        session["count"] = session.get("count", 0) + 1
        return response

    seen = [site.visit(browser, lambda: str(session.get("count"))).text for _ in range(3)]
    assert seen == ["None", "1", "2"]


def test_redirects_keep_it(site: FlaskSite, browser: FlaskClient) -> None:
    """A redirect sets the cookie that the request after it carries."""
    target = f"/{id(shown)}"
    site.visit(site.browser(), shown)

    def view() -> Any:
        session["x"] = 1
        return flask.redirect(target)

    assert site.visit(browser, view, follow_redirects=True).text == "{'x': 1}"


def test_templates(site: FlaskSite, browser: FlaskClient) -> None:
    """A template reads keys as attributes; one that does not name the session does not use it."""
    site.visit(browser, put(name="aha"))

    def render(text: str) -> TestResponse:
        return site.visit(browser, lambda: flask.render_template_string(text))

    assert render("{{ session.name }} {{ session['name'] }}").text == "aha aha"
    assert render("{{ session.missing is defined }}").text == "False"
    assert "Vary" not in render("hello").headers


def test_the_test_client_keeps_the_context(site: FlaskSite, browser: FlaskClient) -> None:
    """After a request in a ``with`` block the session can be looked at."""
    with browser:
        site.visit(browser, put(x=1))
        assert flask.session["x"] == 1
        assert session.handle == flask.session.pgstore.handle  # type: ignore[attr-defined]


def test_session_transaction(site: FlaskSite, browser: FlaskClient) -> None:
    """A test may read and change the session between requests, inside a request's context too."""
    with browser.session_transaction() as opened:
        assert len(opened) == 0
        opened["x"] = [42]
        opened["_flashes"] = [("message", "hello")]
    assert site.visit(browser, lambda: str(session["x"])).text == "[42]"
    with browser.session_transaction() as opened:
        assert opened.pop("x") == [42]
        assert opened.pop("_flashes") == [("message", "hello")]
    assert cookie_of(browser) is None
    with site.app.test_request_context():
        request = flask.request._get_current_object()  # type: ignore[attr-defined]
        with browser.session_transaction() as opened:
            opened["y"] = 1
            assert flask.request._get_current_object() is request  # type: ignore[attr-defined]
    assert site.visit(browser, shown).text == "{'y': 1}"
    with site.app.test_client(use_cookies=False) as no_cookies, pytest.raises(TypeError):
        no_cookies.session_transaction().__enter__()


def test_a_test_may_sign_in(site: FlaskSite, browser: FlaskClient) -> None:
    """``session_transaction`` gives a session that signs in."""
    with browser.session_transaction() as opened:
        assert isinstance(opened, FlaskSession)
        opened.login("alice")
    assert site.visit(browser, lambda: session.user_key).text == "alice"


def test_streaming(site: FlaskSite, browser: FlaskClient) -> None:
    """A stream reads the session, loaded before or not; what it puts in is too late."""
    site.visit(browser, put(x=1))
    for before in (lambda: None, lambda: session["x"]):

        def view(before: Any = before) -> Any:
            @flask.stream_with_context
            def stream() -> Iterator[str]:
                yield "x is "
                yield str(session["x"])
                session["late"] = True

            before()
            return stream()

        with site.visit(browser, view) as response:
            assert response.text == "x is 1"
    assert site.visit(browser, shown).text == "{'x': 1}"


def test_a_copied_context(site: FlaskSite, browser: FlaskClient) -> None:
    """Another thread sees the same session in a copy of the request's context."""

    def view() -> None:
        session["x"] = 1

        @flask.copy_current_request_context
        def work() -> None:
            session["y"] = session["x"] + 1

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    site.visit(browser, view)
    assert site.visit(browser, shown).text == "{'x': 1, 'y': 2}"


def test_nested_app_contexts(site: FlaskSite, browser: FlaskClient) -> None:
    """Another app's context inside of a request changes nothing for the session."""
    other = FlaskSite(MemoryStore(*KEYS), SESSION_COOKIE_NAME="other")

    def view() -> None:
        with other.app.app_context():
            session["x"] = 1
            with other.app.test_request_context():
                assert "x" not in session

    site.visit(browser, view)
    assert site.visit(browser, shown).text == "{'x': 1}"


def test_async_views(site: FlaskSite, browser: FlaskClient) -> None:
    """An async view and its guard use the session as any other."""

    async def view() -> str:
        session["x"] = 1
        session.login("alice")
        return "signed in"

    @login_required(site.sessions)
    async def guarded() -> str:
        return f"{session.user_key} {session['x']}"

    assert site.visit(browser, guarded).status_code == 401
    assert site.visit(browser, view).text == "signed in"
    assert site.visit(browser, guarded).text == "alice 1"


def test_the_same_session_as_the_stores(lab: Lab, site: FlaskSite, browser: FlaskClient) -> None:
    """``store.get`` and ``flask.session`` are one session, saved whichever was used."""
    store = site.sessions.store

    def view() -> None:
        found = store.get(flask.request, "session")
        found["x"] = 1
        assert session["x"] == 1
        assert session.pgstore is found

    site.visit(browser, view)

    def only_the_store() -> None:
        found = store.get(flask.request, "session")
        found["x"] += 1

    response = site.visit(browser, only_the_store)
    assert response.headers["Vary"] == "Cookie"
    assert site.visit(browser, shown).text == "{'x': 2}"

    def with_options_of_its_own() -> None:
        store.get(flask.request, "session").options.max_age = 60
        session["x"] += 1

    site.visit(browser, with_options_of_its_own)
    assert lab.row()["max_age"] == 60
    site.visit(browser, lambda: store.get(flask.request, "session").clear())
    assert (lab.rows(), cookie_of(browser)) == ([], None)


def test_two_apps_of_one_extension(lab: Lab) -> None:
    """One `FlaskSessions` serves several apps, each with its own settings."""
    sessions = FlaskSessions(lab.store())
    texts = []
    for name in ("a", "b"):
        app = flask.Flask(name)
        app.config["SESSION_COOKIE_NAME"] = name
        sessions.init_app(app)

        @app.get("/")
        def view() -> str:
            session["app"] = flask.current_app.name
            return ""

        texts.append(app.test_client().get("/").headers["Set-Cookie"].partition("=")[0])
    assert texts == ["a", "b"]
    assert len(lab.rows()) == 2


@pytest.mark.parametrize("arguments", [("app",), (None, "store"), (MemoryStore(*KEYS), "x"), (1,)])
def test_arguments_that_do_not_fit(arguments: Any) -> None:
    """It takes an app, a store, or both in this order."""
    with pytest.raises(ConfigurationError, match="FlaskSessions takes"):
        FlaskSessions(*arguments)


# -- errors of a view


def test_nothing_is_saved_after_an_error(lab: Lab, site: FlaskSite, browser: FlaskClient) -> None:
    """A 5xx of the view stores nothing and sends no cookie, unless the app asks for it."""

    def returned() -> Any:
        session["x"] = "returned"
        return "sorry", 503

    def raised() -> None:
        session["x"] = "raised"
        raise ZeroDivisionError

    site.app.testing = False
    for view in (returned, raised):
        response = site.visit(browser, view)
        assert response.headers["Vary"] == "Cookie"
        assert "Set-Cookie" not in response.headers
    assert lab.rows() == []
    site.app.config["PGSTORE_SAVE_ON_ERROR"] = True
    for view in (returned, raised):
        site.visit(browser, view)
        assert site.visit(browser, shown).text == f"{{'x': '{view.__name__}'}}"


def test_a_client_error_is_saved(site: FlaskSite, browser: FlaskClient) -> None:
    """A 4xx is an answer like another."""

    def view() -> None:
        session["x"] = 1
        flask.abort(403)

    assert site.visit(browser, view).status_code == 403
    assert site.visit(browser, shown).text == "{'x': 1}"


# -- users


def test_login_and_logout(lab: Lab, site: FlaskSite, browser: FlaskClient) -> None:
    """Signing in keeps row and values under a new cookie; signing out ends both."""
    site.visit(browser, put(cart=["tea"], _permanent=True))
    handle, anonymous = lab_handle(lab, site), cookie_of(browser)
    assert site.visit(browser, lambda: str(session.user_key)).text == "None"
    response = site.visit(browser, lambda: session.login("alice"))
    assert max_age(response) == MONTH + TOUCH
    assert cookie_of(browser) != anonymous
    assert lab_handle(lab, site) == handle

    def view() -> str:
        assert session.fresh(within=60)
        assert session.handle == handle
        assert session["cart"] == ["tea"]
        session.meta["device"] = "phone"
        return str(session.user_key)

    assert site.visit(browser, view).text == "alice"
    (device,) = site.sessions.store.sessions_of("alice")
    assert (device.handle, device.meta, device.ip) == (handle, {"device": "phone"}, "127.0.0.1")
    old = copy_of(site, browser)
    site.visit(browser, lambda: session.regenerate())
    assert site.visit(old, lambda: str(session.user_key)).text == "None"
    site.visit(browser, lambda: session.logout())
    assert (lab.rows(), cookie_of(browser)) == ([], None)


@pytest.mark.parametrize(
    "end", [lambda: session.logout(), lambda: session.pgstore.delete()], ids=["logout", "delete"]
)
def test_after_logout(lab: Lab, site: FlaskSite, browser: FlaskClient, end: Any) -> None:
    """What is said after signing out is in a new session, with the app's lifetime."""
    site.visit(browser, lambda: session.login("alice"))
    handle = lab_handle(lab, site)
    site.visit(browser, do(end, lambda: flask.flash("Bye")))
    assert lab_handle(lab, site) != handle
    assert seconds_left(lab) == MONTH + TOUCH
    assert site.visit(browser, shown).text == "{'_flashes': [('message', 'Bye')]}"


def test_clear_does_not_sign_out(site: FlaskSite, browser: FlaskClient) -> None:
    """It removes values and messages; who signed in stays."""

    def view() -> None:
        session.login("alice")
        session["x"] = 1
        flask.flash("hello")

    site.visit(browser, view)
    site.visit(browser, lambda: session.clear())
    assert site.visit(browser, lambda: f"{session.user_key} {dict(session)}").text == "alice {}"


def test_messages_do_not_change_hands(site: FlaskSite, browser: FlaskClient) -> None:
    """Another user's messages are gone with their values; an anonymous one's stay."""
    site.visit(browser, do(lambda: flask.flash("for all"), lambda: session.login("alice")))
    assert site.visit(browser, lambda: str(session["_flashes"])).text == "[('message', 'for all')]"

    def view() -> str:
        flask.flash("for alice")
        session.login("bob")
        flask.flash("for bob")
        return str(flask.get_flashed_messages())

    assert site.visit(browser, view).text == "['for bob']"


def test_options_of_a_session(lab: Lab, site: FlaskSite, browser: FlaskClient) -> None:
    """A view may change this response's cookie; a negative ``max_age`` ends the session."""

    def view() -> None:
        session["x"] = 1
        session.options.same_site = "Strict"

    assert "samesite=strict" in attributes(site.visit(browser, view))
    site.visit(browser, lambda: setattr(session.options, "max_age", -1))
    assert (lab.rows(), cookie_of(browser)) == ([], None)


def test_login_required(site: FlaskSite, browser: FlaskClient) -> None:
    """A guarded view is for who has signed in, a public one sees the session of both."""

    def page() -> str:
        return f"hello {session.user_key}"

    for guard in (login_required(site.sessions), login_required(site.sessions.store)):
        view = guard(page)
        response = site.visit(browser, view)
        assert response.status_code == 401
        assert response.headers["Vary"] == "Cookie"
        assert "Sign in first" in response.text
        assert "pgstore" not in response.text.lower()
    assert site.visit(browser, page).text == "hello None"
    site.visit(browser, lambda: session.login("alice"))
    assert site.visit(browser, view).text == "hello alice"
    assert view.__name__ == "page"
    site.visit(browser, lambda: session.logout())
    assert site.visit(browser, view).status_code == 401


def test_what_a_guard_rejects_with(site: FlaskSite, browser: FlaskClient) -> None:
    """``reject`` answers in place of the view; by default the app's page for 401."""

    async def sign_in() -> Any:
        return flask.redirect("/sign-in")

    @login_required(site.sessions, reject=sign_in)
    def view() -> None:
        raise AssertionError

    site.app.register_error_handler(401, lambda error: ("who are you?", 401))
    assert site.visit(browser, view).headers["Location"] == "/sign-in"
    assert site.visit(browser, login_required(site.sessions)(view)).text == "who are you?"


def test_a_guard_of_other_sessions(site: FlaskSite, browser: FlaskClient) -> None:
    """A guard that was given another store than the app has lets nobody in."""
    site.visit(browser, lambda: session.login("alice"))
    other = MemoryStore(*KEYS)
    for sessions in (other, FlaskSessions(other)):
        with pytest.raises(ConfigurationError, match="other sessions"):
            site.visit(browser, login_required(sessions)(shown))
    plain = FlaskSite(other, SECRET_KEY="x")
    plain.app.session_interface = flask.sessions.SecureCookieSessionInterface()
    with pytest.raises(ConfigurationError, match="other sessions"):
        plain.visit(plain.browser(), login_required(other)(shown))
