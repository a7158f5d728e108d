"""What Flask's visitors and developers get when a session cannot be loaded or saved."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import flask
import pytest
from flask.testing import FlaskClient
from werkzeug.exceptions import HTTPException
from werkzeug.test import TestResponse

from pgstore import (
    BackendError,
    ConflictError,
    PGSession,
    PGStore,
    SerializationError,
    SessionTooLong,
)
from pgstore.backends.memory import MemoryBackend
from pgstore.embedded import PostgresServer
from pgstore.ext.flask import FlaskSessions, session
from pgstore.options import Expiry
from pgstore.rows import Loaded
from pgstore.store import Store
from support.fault_proxy import FaultProxy
from support.flask_site import FlaskSite, do
from support.stores import KEYS, PostgresLab

SECRET_OF_THE_DATABASE = "could not reach db.internal"


class Failing(MemoryBackend):
    """Memory that fails while it is told to."""

    down = False
    asked = 0
    error: Exception = BackendError(SECRET_OF_THE_DATABASE)

    def _ask(self) -> None:
        self.asked += 1
        if self.down:
            raise self.error

    def load(self, key: bytes) -> Loaded | None:
        self._ask()
        return super().load(key)

    def insert(self, row: PGSession, expiry: Expiry) -> PGSession | None:
        self._ask()
        return super().insert(row, expiry)

    def update(self, row: PGSession, version: int, *args: Any, **more: Any) -> PGSession | None:
        self._ask()
        return super().update(row, version, *args, **more)


@pytest.fixture
def backend() -> Failing:
    return Failing()


@pytest.fixture
def site(backend: Failing) -> FlaskSite:
    return FlaskSite(Store(backend, *KEYS), TESTING=False)


def fails_to_load(site: FlaskSite, backend: Failing, browser: FlaskClient) -> TestResponse:
    """Send a request that finds the database down."""
    site.visit(browser, lambda: session.update(x=1))
    backend.down = True
    try:
        return site.visit(browser, lambda: str(session["x"]))
    finally:
        backend.down = False


def fails_to_save(site: FlaskSite, backend: Failing, browser: FlaskClient) -> TestResponse:
    """Send a request during which the database goes down."""

    def view() -> Any:
        session["x"] = "new"
        backend.down = True
        response = flask.Response("all is well", headers={"Cache-Control": "public, max-age=60"})
        response.set_cookie("other", "of the view")
        return response

    try:
        return site.visit(browser, view)
    finally:
        backend.down = False


FAILURES = [fails_to_load, fails_to_save]


@pytest.mark.parametrize("testing", [False, True])
@pytest.mark.parametrize("failure", FAILURES)
def test_503_by_default(
    site: FlaskSite,
    backend: Failing,
    caplog: pytest.LogCaptureFixture,
    failure: Any,
    testing: bool,
) -> None:
    """A storage failure is a 503 that tells nothing, and one line in the app's log."""
    site.app.testing = testing
    response = failure(site, backend, site.browser())
    assert response.status_code == 503
    assert "Set-Cookie" not in response.headers
    assert "max-age" not in response.headers.get("Cache-Control", "")
    assert SECRET_OF_THE_DATABASE not in response.text
    assert "all is well" not in response.text
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert (record.name, record.levelname) == ("site", "ERROR")
    assert SECRET_OF_THE_DATABASE in record.getMessage()
    assert "\n" not in record.getMessage()
    assert record.exc_info is None


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("early", [False, True])
def test_the_apps_handler_answers_once(
    backend: Failing, caplog: pytest.LogCaptureFixture, failure: Any, early: bool
) -> None:
    """The app's handler for `BackendError` answers, whenever it was registered."""
    handled = []

    def handler(error: BackendError) -> Any:
        handled.append(error)
        return "come back later", 502, {"Retry-After": "5"}

    site = FlaskSite(Store(backend, *KEYS))
    site.app.register_error_handler(BackendError, handler)
    if early:
        FlaskSessions(site.app, Store(backend, *KEYS))
    response = failure(site, backend, site.browser())
    assert (response.status_code, response.text) == (502, "come back later")
    assert response.headers["Retry-After"] == "5"
    assert len(handled) == 1
    assert "Set-Cookie" not in response.headers
    assert caplog.records == []


@pytest.mark.parametrize("failure", FAILURES)
def test_the_apps_page_for_503(site: FlaskSite, backend: Failing, failure: Any) -> None:
    """Without such a handler, the app's page for 503 is shown, or its handler for everything."""
    site.app.register_error_handler(503, lambda error: ("our page for 503", 503))
    response = failure(site, backend, site.browser())
    assert (response.status_code, response.text) == (503, "our page for 503")


@pytest.mark.parametrize("failure", FAILURES)
def test_a_handler_for_everything(site: FlaskSite, backend: Failing, failure: Any) -> None:
    """A handler for every exception is given a 503."""
    seen = []

    @site.app.errorhandler(Exception)
    def handler(error: Exception) -> Any:
        seen.append(error)
        assert isinstance(error, HTTPException)
        return f"handled {error.code}", 503

    assert failure(site, backend, site.browser()).text == "handled 503"
    assert len(seen) == 1


@pytest.mark.parametrize("failure", FAILURES)
def test_a_blueprints_handler(site: FlaskSite, backend: Failing, failure: Any) -> None:
    """A blueprint's own handler goes before the app's."""
    blueprint = flask.Blueprint("inner", __name__)
    blueprint.register_error_handler(BackendError, lambda error: ("of the blueprint", 503))
    blueprint.add_url_rule("/<number>", "view", site._run)
    site.app.register_blueprint(blueprint, url_prefix="/inner")
    visit = site.visit

    def inner(browser: FlaskClient, view: Any) -> TestResponse:
        site._views[f"/{id(view)}"] = view
        return browser.get(f"/inner/{id(view)}")

    site.visit = inner  # type: ignore[method-assign,assignment]
    assert failure(site, backend, site.browser()).text == "of the blueprint"
    site.visit = visit  # type: ignore[method-assign]


@pytest.mark.parametrize("failure", FAILURES)
def test_what_follows_a_response_follows_the_answer(
    site: FlaskSite, backend: Failing, failure: Any
) -> None:
    """Functions after the request see the answer that goes out, as with any error of a view."""

    @site.app.after_request
    def mark(response: flask.Response) -> flask.Response:
        response.headers["Content-Security-Policy"] = "default-src 'self'"
        return response

    response = failure(site, backend, site.browser())
    assert response.status_code == 503
    assert response.headers.getlist("Content-Security-Policy") == ["default-src 'self'"]
    assert int(response.headers["Content-Length"]) == len(response.data)


def test_what_the_view_had_opened_is_closed(site: FlaskSite, backend: Failing) -> None:
    """The stream that an answer replaces is closed, and so is the answer's own."""
    closed = []

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def __iter__(self) -> Iterator[str]:
            yield self.name

        def close(self) -> None:
            closed.append(self.name)

    def view() -> flask.Response:
        session["x"] = 1
        backend.down = True
        response = flask.Response(Stream("view"))
        response.call_on_close(lambda: closed.append("on close"))
        return response

    @site.app.errorhandler(BackendError)
    def handler(error: BackendError) -> flask.Response:
        response = flask.Response(Stream("answer"))
        response.call_on_close(lambda: closed.append("on close of the answer"))
        return response

    with site.visit(site.browser(), view) as response:
        assert response.text == "answer"
    assert set(closed) == {"view", "on close", "answer", "on close of the answer"}


def test_the_storage_is_asked_once(site: FlaskSite, backend: Failing) -> None:
    """After a failure to load, whoever uses the session next in the request need not wait again."""
    browser = site.browser()
    site.visit(browser, lambda: session.update(x=1))

    def view() -> str:
        for _ in range(3):
            with pytest.raises(BackendError):
                session["x"]
        return "without it"

    backend.down, backend.asked = True, 0
    assert site.visit(browser, view).text == "without it"
    assert backend.asked == 1
    backend.down = False
    assert site.visit(browser, lambda: str(session["x"])).text == "1"


def test_nothing_but_the_failed_session_is_lost(site: FlaskSite, backend: Failing) -> None:
    """After a failed save the stored session is as it was, and so is the browser's cookie."""
    browser = site.browser()
    site.visit(browser, lambda: session.update(x="old"))
    cookie = browser.get_cookie("session")
    fails_to_save(site, backend, browser)
    assert browser.get_cookie("session") == cookie
    assert browser.get_cookie("other") is None
    assert site.visit(browser, lambda: session["x"]).text == "old"


def too_long() -> None:
    session["x"] = "x" * 5000


def not_serializable() -> None:
    session["x"] = object()


MISTAKES = [(too_long, SessionTooLong), (not_serializable, SerializationError)]


@pytest.mark.parametrize(("mistake", "error"), MISTAKES)
def test_a_developers_mistake_is_a_500(
    site: FlaskSite, caplog: pytest.LogCaptureFixture, mistake: Any, error: type[Exception]
) -> None:
    """It is handled once as any error of a view: with its traceback in the log."""
    handled: list[Any] = []

    @site.app.errorhandler(500)
    def handler(error: Any) -> Any:
        handled.append(error.original_exception)
        return "sorry", 500

    response = site.visit(site.browser(), mistake)
    assert (response.status_code, response.text) == (500, "sorry")
    assert "Set-Cookie" not in response.headers
    assert [type(original) for original in handled] == [error]
    (record,) = caplog.records
    assert record.exc_info
    assert record.exc_info[0] is error


@pytest.mark.parametrize(("mistake", "error"), MISTAKES)
def test_a_developers_mistake_reaches_a_test(
    site: FlaskSite, mistake: Any, error: type[Exception]
) -> None:
    """With TESTING it is raised, from a request and from ``session_transaction``."""
    site.app.testing = True
    with pytest.raises(error):
        site.visit(site.browser(), mistake)
    with pytest.raises(error), site.browser().session_transaction() as opened:
        opened["x"] = "x" * 5000 if error is SessionTooLong else object()


def test_an_app_may_handle_a_mistake(site: FlaskSite) -> None:
    """A handler for it answers in place of the 500."""
    site.app.register_error_handler(SessionTooLong, lambda error: (f"over {error.limit}", 413))
    response = site.visit(site.browser(), too_long)
    assert (response.status_code, response.text) == (413, "over 4096")


def test_a_conflict_is_a_500(
    site: FlaskSite, backend: Failing, caplog: pytest.LogCaptureFixture
) -> None:
    """Other writers that were faster for all of the deadline are no outage."""
    backend.error = ConflictError("others were faster")
    assert fails_to_save(site, backend, site.browser()).status_code == 500
    (record,) = caplog.records
    assert record.exc_info


def test_a_handler_that_fails_is_a_500(
    site: FlaskSite, backend: Failing, caplog: pytest.LogCaptureFixture
) -> None:
    """An error handler that raises ends in a 500, once."""
    calls = []

    @site.app.errorhandler(BackendError)
    def handler(error: BackendError) -> Any:
        calls.append(error)
        raise ZeroDivisionError

    for failure in FAILURES:
        assert failure(site, backend, site.browser()).status_code == 500
    assert (len(calls), len(caplog.records)) == (2, 2)


def test_a_session_that_is_gone(site: FlaskSite, caplog: pytest.LogCaptureFixture) -> None:
    """When it ended during the request, the response goes out as it is, without a cookie."""
    browser = site.browser()
    site.visit(browser, lambda: session.update(x=1))

    def view() -> str:
        session["x"] = 2
        assert site.sessions.store.revoke(session.handle)
        return "as it is"

    response = site.visit(browser, view)
    assert (response.status_code, response.text) == (200, "as it is")
    assert "Set-Cookie" not in response.headers
    assert caplog.records == []
    assert site.visit(browser, lambda: str(dict(session))).text == "{}"


def test_a_signal_receiver_that_fails(site: FlaskSite) -> None:
    """What fails after the save ends in a 500 without saving again."""
    browser = site.browser()
    site.visit(browser, lambda: session.update(x=1))

    def fail(sender: Any, **more: Any) -> None:
        raise ZeroDivisionError

    with flask.request_finished.connected_to(fail, site.app):
        assert site.visit(browser, lambda: session.update(x=2)).status_code == 500
    assert site.visit(browser, lambda: str(session["x"])).text == "2"


def test_a_test_sees_that_the_storage_failed(site: FlaskSite, backend: Failing) -> None:
    """``session_transaction`` raises what failed, where a request would get a page."""
    browser = site.browser()

    def change() -> None:
        with browser.session_transaction() as opened:
            opened["x"] = 1
            backend.down = True

    with pytest.raises(BackendError):
        change()
    with site.app.test_request_context(), pytest.raises(BackendError):
        change()


def test_a_database_that_dies(
    pg_server: PostgresServer, pg_lab: PostgresLab, caplog: pytest.LogCaptureFixture
) -> None:
    """Between requests or in one, its death is a 503; when it is back, all is as before."""
    pg_lab.store()
    with FaultProxy("127.0.0.1", pg_server.port) as proxy:
        dsn = f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres"
        settings: dict[str, Any] = {"pool_timeout": 1.0, "statement_timeout": 1.0}
        with PGStore(dsn, *KEYS, db_schema=pg_lab.schema, schema="off", **settings) as store:
            site = FlaskSite(store)
            browser = site.browser()

            def go_down() -> None:
                proxy.refuse = True
                proxy.kill()

            site.visit(browser, lambda: session.update(x=1))
            row = pg_lab.row()
            during = do(lambda: session.update(x=2), go_down)
            assert site.visit(browser, during).status_code == 503
            assert site.visit(browser, lambda: str(session["x"])).status_code == 503
            assert site.visit(browser, lambda: "no session needed").status_code == 200
            proxy.refuse = False
            assert site.visit(browser, lambda: str(session["x"])).text == "1"
            assert pg_lab.row() == row
    errors = [record for record in caplog.records if record.name == "site"]
    assert [record.levelname for record in errors] == ["ERROR", "ERROR"]
    assert all("password" not in record.getMessage() for record in errors)
