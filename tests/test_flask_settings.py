"""The settings of a Flask app: which store, which keys, the cleaner, and ``flask sessions``."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import flask
import pytest
from flask.testing import FlaskClient

import pgstore
from pgstore import BackendError, ConfigurationError, MemoryStore, Options, SQLiteStore, Store
from pgstore.devices import format_sessions
from pgstore.ext.flask import FlaskSessions, session
from pgstore.ext.flask_settings import _keys, open_store_of
from pgstore.urls import format_keys
from support.flask_site import FlaskSite
from support.stores import KEYS, PostgresLab, SQLiteLab

OLD, NEW = "an old secret", b"new"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/sessions.db"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[SQLiteLab]:
    with SQLiteLab(tmp_path / "sessions.db") as lab:
        yield lab


@pytest.fixture
def sites() -> Iterator[Any]:
    """Return a function that makes a site; the stores that they open are closed."""
    made: list[FlaskSite] = []

    def make(store: Store | None = None, **config: Any) -> FlaskSite:
        made.append(FlaskSite(store, **config))
        return made[-1]

    yield make
    for site in made:
        for store in site.sessions._made.get(site.app, {}).values():
            store.close()


def put(**values: Any) -> Any:
    return lambda: session.update(values)


def shown() -> str:
    return repr(dict(session))


def cleaners() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "pgstore-cleanup"]


# -- keys


def test_keys_from_the_secret_key(sites: Any, url: str) -> None:
    """SECRET_KEY is enough, of any length, as text or bytes; it may be set after `init_app`."""
    for secret in ("dev", "x" * 1000, b"\x00\xff", "ü"):
        site = sites(PGSTORE_URL=url)
        site.app.secret_key = secret
        browser = site.browser()
        site.visit(browser, put(x=1))
        assert site.visit(browser, shown).text == "{'x': 1}"
    site.app.secret_key = "ü".encode()
    assert site.visit(browser, shown).text == "{'x': 1}"


def test_derived_keys_stay_the_same() -> None:
    """The derivation is frozen: another one would end every session at an upgrade."""
    app = flask.Flask("app")
    app.config.update(SECRET_KEY="dev", SECRET_KEY_FALLBACKS=["", b"old"])
    assert [key and key.hex() for key in _keys(app)] == [
        "8bbb01d951ebb70ec904781d917ad186081928d499e44d1d58c6cc5ae6e6ec3e",
        "1e7f34c00c71ec56c7e645f2dfd4fcf46d804e099c8e3272ab684d6804b98718",
        "54416f08e0156e3081998b869c772ce2900c70d3ca6c40d16cc8f8ecafd29a4b",
        "0d55a6bb9f89ca0b1977f537fb4cf75c8140f87160c405c5e35f234782fd97da",
    ]


def test_fallbacks(sites: Any, url: str, lab: SQLiteLab) -> None:
    """A session of an old secret key is read, and written with the new one; then that is enough."""
    site = sites(PGSTORE_URL=url, SECRET_KEY=OLD)
    browser = site.browser()
    site.visit(browser, put(x=1))
    site.app.secret_key = NEW
    response = site.visit(browser, shown)
    assert (response.text, "Set-Cookie" in response.headers) == ("{}", False)
    site.app.config["SECRET_KEY_FALLBACKS"] = ["some other", OLD]
    assert site.visit(browser, shown).text == "{'x': 1}"
    site.visit(browser, put(y=2))
    site.app.config["SECRET_KEY_FALLBACKS"] = []
    assert site.visit(browser, shown).text == "{'x': 1, 'y': 2}"


def test_keys_of_their_own(sites: Any, url: str) -> None:
    """PGSTORE_KEYS goes before SECRET_KEY, and a store's keys before both."""
    site = sites(PGSTORE_URL=url, PGSTORE_KEYS=format_keys(*KEYS))
    browser = site.browser()
    site.visit(browser, put(x=1))
    site.app.secret_key = "of no account"
    assert site.visit(browser, shown).text == "{'x': 1}"
    with open_store_in(url, *KEYS) as store:
        other = sites(store, SECRET_KEY="x", PGSTORE_KEYS="y")
        other_browser = other.browser()
        cookie = browser.get_cookie("session")
        other_browser.set_cookie("session", cookie.value)
        assert other.visit(other_browser, shown).text == "{'x': 1}"


def open_store_in(url: str, *keys: bytes | None) -> Store:
    return SQLiteStore(url.removeprefix("sqlite:///"), *keys)


@pytest.mark.parametrize("secret", [None, "", b""])
def test_without_a_key(sites: Any, url: str, secret: Any) -> None:
    """Flask's null session stands in: it can be read, and says what is missing when written."""
    site = sites(PGSTORE_URL=url, SECRET_KEY=secret, SECRET_KEY_FALLBACKS=["old"])
    browser = site.browser()
    assert site.visit(browser, lambda: repr(session.get("x"))).text == "None"
    for change in (put(x=1), lambda: session.pop("x")):
        with pytest.raises(RuntimeError, match="session is unavailable because no secret key"):
            site.visit(browser, change)
    with pytest.raises(RuntimeError, match="did not open a session"):
        browser.session_transaction().__enter__()


def test_a_store_needs_no_secret_key() -> None:
    """A store that is given has its keys."""
    site = FlaskSite(MemoryStore(*KEYS))
    assert site.app.secret_key is None
    site.visit(browser := site.browser(), put(x=1))
    assert site.visit(browser, shown).text == "{'x': 1}"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"PGSTORE_URL": None}, "set PGSTORE_URL"),
        ({"PGSTORE_URL": "redis://x"}, "no store speaks redis"),
        ({"SECRET_KEY_FALLBACKS": "old"}, "must be a list"),
        ({"SECRET_KEY_FALLBACKS": b"old"}, "must be a list"),
        ({"SECRET_KEY_FALLBACKS": [1]}, "text or bytes"),
        ({"SECRET_KEY": 123}, "text or bytes"),
        ({"SECRET_KEY": bytearray(b"x")}, "text or bytes"),
        ({"PGSTORE_KEYS": "???"}, "PGSTORE_KEYS: key 1"),
        ({"PGSTORE_CLEANUP_INTERVAL": -1}, "interval"),
    ],
)
def test_settings_that_do_not_fit(
    sites: Any, url: str, config: dict[str, Any], message: str
) -> None:
    """They are the developer's mistake, at every use of a session, and quote no secret."""
    site = sites(**({"PGSTORE_URL": url, "SECRET_KEY": "x"} | config))
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=message) as caught:
            site.visit(site.browser(), shown)
        assert "old" not in str(caught.value)
    assert site.visit(site.browser(), lambda: "no session").text == "no session"


def test_the_store_of_no_keys(sites: Any, url: str) -> None:
    """Who asks for the store itself is told that keys are missing."""
    site = sites(PGSTORE_URL=url, SECRET_KEY_FALLBACKS=["old"])
    with site.app.app_context(), pytest.raises(ConfigurationError, match="set SECRET_KEY"):
        site.sessions.store.delete_expired()


# -- the store


def test_the_store_is_made_when_it_is_needed(sites: Any, url: str, lab: SQLiteLab) -> None:
    """Not by `init_app`, nor by a request without session; then it is the same one for all."""
    site = sites(PGSTORE_URL=url, SECRET_KEY="x")
    site.visit(site.browser(), lambda: "")
    assert not lab.path.exists()
    site.visit(site.browser(), shown)
    assert lab.path.exists()
    with site.app.app_context():
        store = site.sessions.store
        assert store is site.app.extensions["pgstore"].store
    site.visit(site.browser(), put(x=1))
    site.app.secret_key = "y"
    site.visit(site.browser(), put(x=1))
    site.app.secret_key = "x"
    with site.app.app_context():
        assert site.sessions.store is store
    assert len(lab.rows()) == 2


def at_once(site: FlaskSite, view: Any) -> None:
    """Send eight requests, each in a thread of its own."""
    threads = [threading.Thread(target=site.visit, args=(site.browser(), view)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_one_store_for_all_threads(sites: Any, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that are the first at once end up with one store; the others are closed."""
    opened, used = [], []
    meeting = threading.Barrier(8)

    def open_at_once(app: flask.Flask) -> Store:
        store = open_store_of(app)
        opened.append(store)
        meeting.wait(30)
        return store

    monkeypatch.setattr("pgstore.ext.flask.open_store_of", open_at_once)
    at_once(sites(PGSTORE_URL=url, SECRET_KEY="x"), lambda: used.append(session.pgstore._store))
    assert (len(opened), len(used), len(set(used))) == (8, 8, 1)
    for store in set(opened) - set(used):
        with pytest.raises(BackendError, match="closed"):
            store.cleanup()


def test_each_app_has_its_store(tmp_path: Path) -> None:
    """One extension on two apps opens the store of each; one that is gone is forgotten."""
    sessions = FlaskSessions()
    stores = []
    for name in ("a", "b"):
        app = flask.Flask(name)
        app.config.update(SECRET_KEY="x", PGSTORE_URL=f"sqlite:///{tmp_path}/{name}.db")
        sessions.init_app(app)
        with app.app_context():
            stores.append(sessions.store)
    assert stores[0] is not stores[1]
    assert {path.name for path in tmp_path.glob("*.db")} == {"a.db", "b.db"}
    for store in stores:
        store.close()


def test_settings_of_the_store(sites: Any, url: str) -> None:
    """PGSTORE_SETTINGS are the store's; by default its sessions live as long as the app's."""
    site = sites(
        PGSTORE_URL=url, SECRET_KEY="x", PGSTORE_SETTINGS={"table": "web", "max_length": 9}
    )
    with site.app.app_context():
        assert site.sessions.store.backend.table == "web"
        assert site.sessions.store.options.max_age == 31 * 24 * 3600
    options = Options(path="/app")
    site = sites(PGSTORE_URL=url, SECRET_KEY="x", PGSTORE_SETTINGS={"options": options})
    response = site.visit(site.browser(), put(x=1))
    assert "Path=/app;" in response.headers["Set-Cookie"] + ";"
    site = sites(PGSTORE_URL=url, SECRET_KEY="x", PGSTORE_SETTINGS={"wheels": 4})
    with pytest.raises(TypeError, match="wheels"):
        site.visit(site.browser(), shown)


def test_a_database_that_is_down_at_first(sites: Any) -> None:
    """A store that cannot be made is a storage failure, and the next request tries again."""
    url = "postgresql://nobody@127.0.0.1:1/none"
    site = sites(PGSTORE_URL=url, SECRET_KEY="x", PGSTORE_SETTINGS={"pool_timeout": 0.5})
    for _ in range(2):
        assert site.visit(site.browser(), shown).status_code == 503
    with site.app.app_context(), pytest.raises(BackendError):
        site.sessions.store.delete_expired()


# -- the cleaner


def test_the_cleaner_starts_with_the_first_session(sites: Any, url: str) -> None:
    """PGSTORE_CLEANUP_INTERVAL starts one cleaner per process and store, when one is used."""
    for store in (None, MemoryStore(*KEYS)):
        site = sites(store, PGSTORE_URL=url, SECRET_KEY="x", PGSTORE_CLEANUP_INTERVAL=1000)
        with site.app.app_context():
            site.sessions.store.delete_expired()
        site.visit(site.browser(), lambda: "")
        assert cleaners() == []
        for _ in range(3):
            site.visit(site.browser(), shown)
        assert len(cleaners()) == 1
        with site.app.app_context():
            site.sessions.store.close()
        assert cleaners() == []


def test_one_cleaner_for_all_threads() -> None:
    """Requests that are the first at once start one cleaner."""
    meeting = threading.Barrier(8)

    class Meeting(MemoryStore):
        def cleanup(self, interval: Any = 300.0) -> Any:
            events = super().cleanup(interval)
            meeting.wait(30)
            return events

    with Meeting(*KEYS) as store:
        at_once(FlaskSite(store, PGSTORE_CLEANUP_INTERVAL=1000), shown)
        assert len(cleaners()) == 1


@pytest.mark.parametrize("interval", [None, 0])
def test_no_cleaner_unless_asked_for(sites: Any, url: str, interval: Any) -> None:
    """Without an interval, or with 0, there is none."""
    site = sites(PGSTORE_URL=url, SECRET_KEY="x", PGSTORE_CLEANUP_INTERVAL=interval)
    site.visit(site.browser(), shown)
    assert cleaners() == []


APP = """
import atexit, os, sys, threading
import flask
from pgstore.devices import format_sessions
from pgstore.ext.flask import FlaskSessions, session

app = flask.Flask("app")
app.config.update(
    SECRET_KEY="x", PGSTORE_URL=os.environ["URL"], PGSTORE_CLEANUP_INTERVAL=0.05, TESTING=True
)
FlaskSessions(app)

def cleaners():
    return [t.name for t in threading.enumerate()].count("pgstore-cleanup")

@app.get("/")
def view():
    session["x"] = 1
    return f"{os.getpid()} {cleaners()}"

def report():
    print("end", os.getpid(), cleaners(), file=sys.stderr, flush=True)

atexit.register(report)  # it runs after what was registered later
"""


def environ(tmp_path: Path, url: str) -> dict[str, str]:
    (tmp_path / "flask_app.py").write_text(APP)
    paths = [str(tmp_path), str(Path(pgstore.__file__).parents[1])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "URL": url}


def test_the_cleaner_stops_at_exit(tmp_path: Path, url: str) -> None:
    """A process that ends stops its cleaner first, and says nothing."""
    code = "from flask_app import app, cleaners; app.test_client().get('/'); assert cleaners() == 1"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environ(tmp_path, url),
        stderr=subprocess.PIPE,
        text=True,
        check=True,
        timeout=60,
    )
    assert re.fullmatch(r"end \d+ 0\n", done.stderr)


def test_no_cleaner_in_the_reloaders_parent(tmp_path: Path, url: str) -> None:
    """With the reloader, the process that serves has the cleaner, its parent has none."""
    command = ["-m", "flask", "--app", "flask_app", "run", "--reload", "--port", "0"]
    server = subprocess.Popen(
        [sys.executable, *command],
        env=environ(tmp_path, url),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        assert server.stderr
        port = next(
            int(found[1])
            for line in server.stderr
            if (found := re.search(r"Running on http://127.0.0.1:(\d+)", line))
        )
        connection = HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/")
        pid, running = connection.getresponse().read().decode().split()
        connection.close()
        assert (int(pid) != server.pid, running) == (True, "1")
    finally:
        os.killpg(server.pid, signal.SIGINT)
        rest = server.communicate(timeout=60)[1]
    ends = dict(re.findall(r"end (\d+) (\d+)", rest))
    assert ends[str(server.pid)] == "0"


# -- commands


@pytest.fixture
def flask_command(sites: Any, url: str) -> Any:
    """Return a function that runs ``flask sessions …`` and gives its exit code and output."""
    site = sites(PGSTORE_URL=url, SECRET_KEY="x")

    def run(*arguments: str, site: FlaskSite = site) -> tuple[int, str]:
        done = site.app.test_cli_runner().invoke(args=["sessions", *arguments])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.output

    run.site = site  # type: ignore[attr-defined]
    return run


def sign_in(site: FlaskSite, user: str, agent: str = "Browser/1.0") -> FlaskClient:
    browser = site.browser()
    site.visit(browser, lambda: session.login(user), headers={"User-Agent": agent})
    return browser


def test_listing(flask_command: Any) -> None:
    """``list`` shows a user's live sessions, by their handles."""
    site = flask_command.site
    sign_in(site, "alice")
    browser = sign_in(site, "alice")
    sign_in(site, "bob")
    handle = site.visit(browser, lambda: session.handle).text
    code, text = flask_command("list", "alice")
    with site.app.app_context():
        assert (code, text) == (0, format_sessions(site.sessions.store.sessions_of("alice")))
    assert text.count(handle) == 1


def test_revoking(flask_command: Any) -> None:
    """``revoke`` ends one session, or all of a user's, and says how many."""
    site = flask_command.site
    browsers = [sign_in(site, "alice") for _ in range(3)]
    handle = site.visit(browsers[1], lambda: session.handle).text
    assert flask_command("revoke", "--handle", handle) == (0, "revoked 1\n")
    assert flask_command("revoke", "--handle", handle) == (1, "revoked 0\n")
    users = [site.visit(browser, lambda: str(session.user_key)).text for browser in browsers]
    assert users == ["alice", "None", "alice"]
    assert flask_command("revoke", "--user", "alice") == (0, "revoked 2\n")
    assert flask_command("revoke", "--user", "alice") == (0, "revoked 0\n")
    for arguments in ([], ["--user", "a", "--handle", "b"]):
        code, text = flask_command("revoke", *arguments)
        assert (code, "either --handle or --user" in text) == (2, True)


def test_cleaning_up(flask_command: Any, lab: SQLiteLab) -> None:
    """``cleanup`` deletes what has expired, and says how many."""
    sign_in(flask_command.site, "alice")
    lab.pass_time(10**8)
    sign_in(flask_command.site, "alice")
    assert flask_command("cleanup") == (0, "1\n")
    assert len(lab.rows()) == 1


def test_the_schema(flask_command: Any, lab: SQLiteLab) -> None:
    """``schema`` makes the table, with ``--check`` it only looks, whatever the app does itself."""
    code, text = flask_command("schema", "--check")
    assert code == 1
    assert text.startswith("Error: ")
    assert flask_command("schema") == (
        0,
        "the table http_sessions is as this version of pgstore wants it\n",
    )
    assert flask_command("schema", "--check")[0] == 0
    assert lab.rows() == []


def test_commands_on_a_given_store(sites: Any, flask_command: Any) -> None:
    """They work on a store that was given, and leave it open."""
    site = sites(MemoryStore(*KEYS))
    browser = sign_in(site, "alice")
    assert flask_command("schema", site=site)[0] == 0
    assert flask_command("revoke", "--user", "alice", site=site) == (0, "revoked 1\n")
    assert site.visit(browser, lambda: str(session.user_key)).text == "None"


def test_errors_of_a_command(sites: Any, flask_command: Any) -> None:
    """What fails is one line, with exit code 1."""
    down = {"PGSTORE_URL": "postgresql://nobody:secret@127.0.0.1:1/none", "SECRET_KEY": "x"}
    for config in (
        {},
        {"SECRET_KEY": "x"},
        {**down, "PGSTORE_SETTINGS": {"pool_timeout": 0.5}},
    ):
        code, text = flask_command("cleanup", site=sites(**config))
        assert (code, text.count("\n")) == (1, 1)
        assert text.startswith("Error: ")
        assert "secret@" not in text


# -- processes


def test_a_preloaded_app(pg_lab: PostgresLab, tmp_path: Path) -> None:
    """An app that was used before a fork serves in the children, on connections of their own."""
    dsn = f"{pg_lab.dsn}?options=-c%20search_path%3D{pg_lab.schema}"
    code = """
import os
from flask_app import app
with app.app_context():
    app.extensions["pgstore"].store.delete_expired()
client = app.test_client()
client.get("/")
for n in range(3):
    pid = os.fork()
    if not pid:
        assert client.get("/").text == f"{os.getpid()} 1"
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
assert client.get("/").text == f"{os.getpid()} 1"
"""
    env = environ(tmp_path, dsn)
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=60)
    assert len(pg_lab.rows()) == 1
