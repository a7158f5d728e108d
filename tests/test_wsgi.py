"""The WSGI middleware and its guard, between an application and Python's reference server.

`ask` puts `wsgiref.validate` between server and middleware; `site` puts it between middleware and
application.
"""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import pytest
from werkzeug import Request, Response

from pgstore import (
    BackendError,
    ConfigurationError,
    MemoryStore,
    SerializationError,
    Session,
    SessionTooLong,
    SQLiteStore,
    Store,
)
from pgstore.backends.memory import MemoryBackend
from pgstore.ext.wsgi import SessionMiddleware, login_required
from support.reference_server import Spy, ask
from support.stores import KEYS, Browser, Lab

TEXT = [("Content-Type", "text/plain")]
SESSION = "pgstore.session"

App = Callable[[dict[str, Any], Any], Iterable[bytes]]


def site(app: App, store: Store, **settings: Any) -> SessionMiddleware:
    return SessionMiddleware(validator(app), store, **settings)


def count(environ: dict[str, Any]) -> bytes:
    session = environ[SESSION]
    session["count"] = session.get("count", 0) + 1
    return b"%d" % session["count"]


def at_once(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", TEXT)
    return [count(environ)]


def late(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", TEXT)
    yield b""
    yield count(environ)
    yield b" times"


def started_late(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    number = count(environ)
    start_response("200 OK", TEXT)
    yield number


def written(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    write = start_response("200 OK", TEXT)
    write(b"")
    write(count(environ))
    write(b" times")
    return []


def empty(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", TEXT)
    count(environ)
    return []


def nothing_yielded(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", TEXT)
    count(environ)
    yield b""


def not_modified(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("304 Not Modified", [])
    count(environ)
    return iter(())


def a_file(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", TEXT)
    return environ["wsgi.file_wrapper"](io.BytesIO(count(environ)))


def by_werkzeug(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    return Response(count(environ))(environ, start_response)


SHAPES = [
    at_once, late, started_late, written, empty, nothing_yielded, not_modified, a_file, by_werkzeug,
]  # fmt: skip


@pytest.mark.parametrize("app", SHAPES)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_session_is_kept_for_every_shape_of_application(
    lab: Lab, browser: Browser, app: App, method: str
) -> None:
    """List, generator, late start, write(), no body, 304, file: one row, one cookie, the count."""
    middleware = site(app, lab.store())
    first = ask(middleware, browser, method=method)
    assert [line.partition("=")[0] for line in first.cookies] == ["session"]
    assert first.headers["Vary"] == "Cookie"
    assert first.headers["Cache-Control"] == "private, no-cache"
    second = ask(middleware, browser)
    assert second.cookies == []
    assert second.headers["Vary"] == "Cookie"
    assert second.body in (b"", b"2", b"2 times")
    with browser.visit(lab.store(), "session") as session:
        assert session["count"] == 2
    assert len(lab.rows()) == 1


@pytest.mark.parametrize("body", [list, iter])
def test_a_request_that_does_not_use_the_session_costs_nothing(
    browser: Browser, body: Callable[[list[bytes]], Iterable[bytes]]
) -> None:
    """No query, no cookie, no Vary, also when the browser has a cookie, and for printing it."""
    spy = Spy(MemoryBackend())
    store = Store(spy, *KEYS)

    def untouched(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", TEXT)
        return body([repr(environ).encode()])

    ask(site(at_once, store), browser)
    spy.asked.clear()
    answer = ask(site(untouched, store), browser)
    assert b"'pgstore.session': <Session, not loaded>" in answer.body
    assert spy.asked == []
    assert answer.headers.to_wsgi_list()[:1] == TEXT
    assert not {"Set-Cookie", "Vary", "Cache-Control"} & set(answer.headers.keys())


def test_a_session_is_loaded_once_and_saved_once(browser: Browser) -> None:
    """However often it is used, and by whatever way: one load and one write."""
    spy = Spy(MemoryBackend())
    store = Store(spy, *KEYS)

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        count(environ)
        copy = dict(environ)
        assert repr(environ[SESSION]) == repr(store.get(copy, "session"))
        yield count(copy)
        yield b"."

    ask(site(app, store), browser)
    spy.asked.clear()
    assert ask(site(app, store), browser).body == b"4."
    assert spy.asked == ["load", "update"]


def test_the_stand_in_is_all_that_a_session_is(browser: Browser) -> None:
    """Everything public of `Session` is there, through the middleware, and it passes for one."""
    store = MemoryStore(*KEYS)

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        session, real = environ[SESSION], store.get(environ, "session")
        for name in dir(real):
            if not name.startswith("_"):
                assert getattr(session, name) == getattr(real, name)
        assert isinstance(session, Session)
        session["a"] = session["b"] = 1
        del session["b"]
        assert ("a" in session, "b" in session, len(session), list(session)) == (
            True,
            False,
            1,
            ["a"],
        )
        session.values = {"c": 2}
        session.options.max_age = 60
        session.meta["device"] = "phone"
        session.add_flash("hello")
        assert session.flashes() == ["hello"]
        session.login("alice")
        assert bool(session)
        start_response("200 OK", TEXT)
        return [repr(session).encode()]

    answer = ask(site(app, store), browser)
    assert answer.body.startswith(b"<Session 'session' ")
    assert "Max-Age=6" in answer.cookies[0]
    with browser.visit(store, "session") as session:
        assert (session.values, session.user_key, session.meta) == (
            {"c": 2},
            "alice",
            {"device": "phone"},
        )


def test_a_session_that_the_application_gets_by_itself_is_saved_too(browser: Browser) -> None:
    """`store.get` gives the same session, and using that is using it."""
    store = MemoryStore(*KEYS)

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        store.get(Request(environ), "session")["a"] = 1
        start_response("200 OK", TEXT)
        return [b"."]

    assert ask(site(app, store), browser).cookies
    with browser.visit(store, "session") as session:
        assert session["a"] == 1


def test_two_middlewares_keep_two_sessions(browser: Browser) -> None:
    """Each saves its own; the inner one's is at the key."""
    store, other = MemoryStore(*KEYS), MemoryStore(*KEYS)

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        other.get(environ, "outer")["a"] = 1
        return at_once(environ, start_response)

    answer = ask(SessionMiddleware(site(app, store), other, "outer"), browser)
    assert sorted(line.partition("=")[0] for line in answer.cookies) == ["outer", "session"]


def test_what_the_application_says_of_caching_is_kept(browser: Browser) -> None:
    """Its Vary, Cache-Control and cookies stay, beside the session's."""
    own = [("Vary", "Accept"), ("Cache-Control", "no-store"), ("Set-Cookie", "theme=dark")]

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        count(environ)
        start_response("200 OK", [*TEXT, *own])
        return [b"."]

    answer = ask(site(app, MemoryStore(*KEYS)), browser)
    assert answer.headers["Vary"] == "Accept, Cookie"
    assert answer.headers["Cache-Control"] == "private, no-cache, no-store"
    assert [line.partition(";")[0].partition("=")[0] for line in answer.cookies] == [
        "theme",
        "session",
    ]


# -- the protocol ----------------------------------------------------------------------------------


def test_nothing_leaves_before_the_save_and_chunks_leave_one_by_one(browser: Browser) -> None:
    """What the first chunk's making changes is saved; the second chunk is made after the first."""
    store = MemoryStore(*KEYS)
    sent: list[bytes] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        environ[SESSION]["a"] = 1
        yield b"one"
        assert sent == [b"one"]
        assert len(store.backend.scan(None, 9)) == 1
        yield b"two"

    def wire(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        with closing(site(app, store)(environ, start_response)) as chunks:
            for chunk in chunks:
                sent.append(chunk)
                yield chunk

    assert ask(wire, browser, validate=False).chunks == [b"one", b"two"]


def test_a_list_stays_a_list_and_a_file_a_file(browser: Browser) -> None:
    """Servers ask the one for its length, and send the other by themselves."""
    answer = ask(SessionMiddleware(at_once, MemoryStore(*KEYS)), validate=False)
    assert answer.headers["Content-Length"] == "1"
    seen: list[Any] = []

    def wire(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        seen.append(SessionMiddleware(a_file, MemoryStore(*KEYS))(environ, start_response))
        seen.append(environ["wsgi.file_wrapper"])
        return seen[0]

    assert ask(wire, browser, validate=False).cookies
    assert type(seen[0]) is seen[1]


class Closing:
    """A body that counts how often it is closed, and raises where it is told to."""

    def __init__(self, *chunks: bytes | Exception) -> None:
        self.closed = 0
        self._chunks = iter(chunks)

    def __iter__(self) -> Closing:
        return self

    def __next__(self) -> bytes:
        chunk = next(self._chunks)
        if isinstance(chunk, Exception):
            raise chunk
        return chunk

    def close(self) -> None:
        self.closed += 1


class ClosingList(list[bytes]):
    closed = 0

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize(
    ("body", "value", "status"),
    [
        (Closing(b"a", b"b"), 1, 200),
        (Closing(), 1, 200),
        (ClosingList([b"a"]), 1, 200),
        (Closing(ValueError("app")), 1, 500),
        (Closing(BackendError("down")), 1, 503),
        (Closing(b"a"), object(), 500),
        (ClosingList([b"a"]), object(), 500),
    ],
    ids=lambda case: type(case).__name__,
)
def test_close_is_called_exactly_once(
    body: Any, value: object, status: int, browser: Browser
) -> None:
    """After a whole answer, an error of the application, and an error of the save."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ[SESSION]["value"] = value
        start_response("200 OK", TEXT)
        return body  # type: ignore[no-any-return]

    middleware = SessionMiddleware(app, MemoryStore(*KEYS))
    assert ask(middleware, browser, complaints=True, validate=False).status == status
    assert body.closed == 1


def test_an_error_page_in_place_of_the_answer(browser: Browser) -> None:
    """Before anything was sent, exc_info replaces status and headers, and the last ones count."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", TEXT)
        count(environ)
        try:
            raise ValueError("app")
        except ValueError:
            start_response("403 Forbidden", TEXT, sys.exc_info())
        return [b"no"]

    answer = ask(site(app, MemoryStore(*KEYS)), browser)
    assert (answer.status, answer.body, len(answer.cookies)) == (403, b"no", 1)


@pytest.mark.parametrize("how", ["yield", "write"])
def test_an_error_after_the_answer_began_is_raised_again(browser: Browser, how: str) -> None:
    """PEP 3333: start_response with exc_info raises it when the headers have been sent."""

    def yields(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        yield count(environ)
        try:
            raise ValueError("the application's own")
        except ValueError:
            start_response("500 Oops", TEXT, sys.exc_info())
            raise AssertionError("not reached") from None

    def writes(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        write = start_response("200 OK", TEXT)
        write(count(environ))
        try:
            raise ValueError("the application's own")
        except ValueError:
            start_response("500 Oops", TEXT, sys.exc_info())
            raise AssertionError("not reached") from None

    app = site(yields if how == "yield" else writes, MemoryStore(*KEYS))
    answer = ask(app, browser, complaints=True)
    assert (answer.status, answer.body, len(answer.cookies)) == (200, b"1", 1)
    assert [str(raised) for raised in answer.errors] == ["the application's own"]


def test_starting_twice_without_an_error_is_a_mistake(browser: Browser) -> None:
    """PEP 3333 calls it fatal."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", TEXT)
        start_response("200 OK", TEXT)
        return [b"."]

    answer = ask(SessionMiddleware(app, MemoryStore(*KEYS)), browser, complaints=True)
    assert answer.status == 500
    assert "start_response was called again, without exc_info" in answer.complaints


@pytest.mark.parametrize("body", [list, iter])
def test_never_starting_is_for_the_server_to_complain_of(browser: Browser, body: Any) -> None:
    """Nothing is saved for an answer that cannot go out."""
    store = MemoryStore(*KEYS)

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        return body([count(environ)])  # type: ignore[no-any-return]

    answer = ask(SessionMiddleware(app, store), browser, complaints=True)
    assert answer.status == 500
    assert "start_response" in answer.complaints
    assert store.backend.scan(None, 9) == []


# -- what goes wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize("app", SHAPES)
@pytest.mark.parametrize("when", ["load", "save"])
def test_an_outage_is_answered_with_503(
    app: App, when: str, tmp_path: Path, browser: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    """Plain, without internals, with one line in the log, no cookie, and nothing of the answer."""
    path, away = tmp_path / "sessions.db", tmp_path / "away.db"
    with SQLiteStore(path, *KEYS) as store:
        ask(site(app, store), browser)
        cookies = dict(browser.cookies)

        def during(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            if when == "save":
                len(environ[SESSION])
            path.rename(away)
            return app(environ, start_response)

        answer = ask(SessionMiddleware(during, store), browser)
        assert (answer.status, answer.cookies) == (503, [])
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.body == b"The service is not available at the moment.\n"
        (record,) = caplog.records
        assert record.levelno == logging.ERROR
        assert "\n" not in record.getMessage()
        away.rename(path)
        assert browser.cookies == cookies
        with browser.visit(store, "session") as session:
            assert session["count"] == 1


def test_an_outage_that_the_application_answers_is_its_own_affair(
    tmp_path: Path, browser: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    """A page without the session goes out, without a cookie and without a word."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        try:
            count(environ)
        except BackendError:
            start_response("200 OK", TEXT)
            return [b"as a guest"]
        raise AssertionError

    with SQLiteStore(tmp_path / "sessions.db", *KEYS) as store:
        ask(site(at_once, store), browser)
        (tmp_path / "sessions.db").unlink()
        answer = ask(site(app, store), browser)
    assert (answer.status, answer.body, answer.cookies) == (200, b"as a guest", [])
    assert caplog.records == []


def test_an_outage_in_mid_answer_is_the_servers_to_end(tmp_path: Path, browser: Browser) -> None:
    """What was sent cannot be taken back: the server sees the error."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        yield b"one"
        count(environ)
        yield b"two"

    with SQLiteStore(tmp_path / "sessions.db", *KEYS) as store:
        ask(site(at_once, store), browser)
        (tmp_path / "sessions.db").unlink()
        answer = ask(site(app, store), browser, complaints=True)
    assert (answer.status, answer.body) == (200, b"one")
    assert [isinstance(raised, BackendError) for raised in answer.errors] == [True]


def test_an_outage_stops_the_body_and_drops_what_is_written(
    tmp_path: Path, browser: Browser
) -> None:
    """Of an answer whose session could not be saved nothing goes out, however it goes on."""
    path = tmp_path / "sessions.db"
    made: list[str] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        path.unlink()
        yield count(environ)
        made.append("second")
        yield b"."

    def writing(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        write = start_response("200 OK", TEXT)
        count(environ)
        path.unlink()
        write(b"one")
        try:
            raise ValueError
        except ValueError:
            start_response("500 Oops", TEXT, sys.exc_info())(b"two")
        raise BackendError("again")

    for broken in (app, writing):
        with SQLiteStore(path, *KEYS) as store:
            answer = ask(site(broken, store), browser)
        assert answer.status == 503
        assert answer.body == b"The service is not available at the moment.\n"
    assert made == []


def test_a_session_that_ended_meanwhile_lets_the_answer_go_out(
    lab: Lab, browser: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    """As it is, with Vary and without a cookie; nothing is brought back, nothing is warned of."""
    store = lab.store()
    ask(site(at_once, store), browser)
    before = dict(browser.cookies)

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        number = count(environ)
        assert store.revoke(environ[SESSION].handle)
        start_response("200 OK", TEXT)
        yield number

    answer = ask(site(app, store), browser)
    assert (answer.status, answer.body, answer.cookies) == (200, b"2", [])
    assert answer.headers["Vary"] == "Cookie"
    assert browser.cookies == before
    assert lab.rows() == []
    assert caplog.records == []


@pytest.mark.parametrize("how", [list, iter])
def test_on_a_5xx_nothing_is_saved_unless_asked_for(
    lab: Lab, browser: Browser, how: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The half of a change that an error left is not kept. The answer still varies on Cookie."""

    def failing(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("500 Internal Server Error", TEXT)
        return how([count(environ)])  # type: ignore[no-any-return]

    store = lab.store()
    answer = ask(site(failing, store), browser)
    assert (answer.cookies, answer.headers["Vary"], lab.rows()) == ([], "Cookie", [])
    assert caplog.records == []
    answer = ask(site(failing, store, save_on_error=True), browser)
    assert (len(answer.cookies), len(lab.rows())) == (1, 1)


def test_a_client_error_is_saved(lab: Lab, browser: Browser) -> None:
    """A 404 page may count a visit."""

    def missing(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("404 Not Found", TEXT)
        return [count(environ)]

    assert ask(site(missing, lab.store()), browser).cookies
    assert len(lab.rows()) == 1


@pytest.mark.parametrize("app", SHAPES)
@pytest.mark.parametrize(
    ("value", "error"), [(object(), SerializationError), ("x" * 5000, SessionTooLong)]
)
def test_a_programmers_error_reaches_the_server_once(
    app: App, value: object, error: type[Exception], browser: Browser
) -> None:
    """It is a 500 with its traceback, not hidden behind a 503; nothing is stored or sent."""

    def during(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ[SESSION]["value"] = value
        return app(environ, start_response)

    store = MemoryStore(*KEYS)
    answer = ask(SessionMiddleware(during, store), browser, complaints=True)
    assert (answer.status, answer.cookies) == (500, [])
    assert [type(raised) for raised in answer.errors] == [error]
    assert store.backend.scan(None, 9) == []


def test_a_programmers_error_in_write_is_raised_once(browser: Browser) -> None:
    """An application that answers it with a page of its own gets that page out, unsaved."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        write = start_response("200 OK", TEXT)
        environ[SESSION]["value"] = object()
        try:
            write(b"one")
        except SerializationError:
            start_response("500 Oops", TEXT, sys.exc_info())(b"oops")
        return [b"!"]

    answer = ask(site(app, MemoryStore(*KEYS)), browser)
    assert (answer.status, answer.body, answer.cookies) == (500, b"oops!", [])


def test_a_change_after_the_first_chunk_is_lost_and_said_once(
    lab: Lab, browser: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    """A developer must not have to wonder where it went."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        environ[SESSION]["early"] = 1
        yield b"one"
        environ[SESSION]["late"] = object()
        yield b"two"

    middleware = site(app, lab.store())
    for _ in range(2):
        assert ask(middleware, browser).body == b"onetwo"
    with browser.visit(lab.store(), "session") as session:
        assert session.values == {"early": 1}
        (record,) = caplog.records
        assert record.getMessage().startswith(f"session {session.handle} was changed after its")


@pytest.mark.parametrize("change", [True, False])
def test_a_first_use_after_the_first_chunk(
    lab: Lab, browser: Browser, change: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Reading is harmless; a change is lost, and said."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        yield b"one"
        yield count(environ) if change else b"%d" % environ[SESSION]["count"]

    store = lab.store()
    ask(site(at_once, store), browser)
    lab.pass_time(1000)  # a visit would be stamped
    assert ask(site(app, store), browser).body == (b"one2" if change else b"one1")
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * change


def test_a_name_that_cannot_name_a_cookie() -> None:
    """Said when the middleware is made, and not in the first request."""
    with pytest.raises(ConfigurationError, match="cookie"):
        SessionMiddleware(at_once, MemoryStore(*KEYS), "my session")


# -- the guard -------------------------------------------------------------------------------------


def sign_in(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    environ[SESSION].login("alice")
    start_response("200 OK", TEXT)
    return [b"hello"]


def private(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", TEXT)
    return [b"for your eyes only"]


@pytest.mark.parametrize("guard_stands", ["inside", "outside", "alone"])
def test_the_guard_lets_only_users_in(lab: Lab, browser: Browser, guard_stands: str) -> None:
    """An anonymous visitor gets a plain 401, with a session or without; a user gets the page."""
    store = lab.store()
    guard = login_required(store)
    guarded: Any = {
        "inside": lambda: SessionMiddleware(guard(validator(private)), store),
        "outside": lambda: guard(site(private, store)),
        "alone": lambda: guard(validator(private)),
    }[guard_stands]()
    for visited_before in (False, True):
        answer = ask(guarded, browser)
        assert (answer.status, answer.body, answer.cookies) == (401, b"Sign in first.\n", [])
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert answer.headers["Vary"] == "Cookie"
        if not visited_before:
            ask(site(at_once, store), browser)
    ask(site(sign_in, store), browser)
    answer = ask(guarded, browser)
    assert (answer.status, answer.body) == (200, b"for your eyes only")
    assert answer.headers["Vary"] == "Cookie"
    store.revoke_user("alice")
    assert ask(guarded, browser).status == 401


def test_the_guards_answer_can_be_ones_own(browser: Browser) -> None:
    """``reject`` is an application, and sees the session."""
    store = MemoryStore(*KEYS)

    def to_login(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ[SESSION]["next"] = environ["PATH_INFO"]
        start_response("303 See Other", [*TEXT, ("Location", "/login")])
        return [b""]

    guarded = SessionMiddleware(login_required(store, reject=to_login)(private), store)
    answer = ask(guarded, browser, "/private")
    assert (answer.status, answer.headers["Location"]) == (303, "/login")
    with browser.visit(store, "session") as session:
        assert session["next"] == "/private"


def test_the_guard_takes_an_outage_for_no_anonymous_visitor(
    tmp_path: Path, browser: Browser
) -> None:
    """In a middleware it is a 503, never a 401 and never the page."""
    with SQLiteStore(tmp_path / "sessions.db", *KEYS) as store:
        ask(site(sign_in, store), browser)
        (tmp_path / "sessions.db").unlink()
        guarded = login_required(store)(private)
        assert ask(SessionMiddleware(guarded, store), browser).status == 503
        assert ask(guarded, browser, complaints=True).status == 500
