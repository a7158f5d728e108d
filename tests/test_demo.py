from __future__ import annotations

import base64
import hashlib
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from werkzeug.test import Client, TestResponse

from pgstore import MemoryStore, Options, SQLiteStore, Store, embedded
from pgstore.backends.memory import MemoryBackend
from pgstore.cli import main
from pgstore.demo import create_app
from pgstore.ids import key_of
from pgstore.rows import PGSession
from pgstore.urls import open_store, parse_keys
from support.postgres import NEWEST, binaries
from support.sqlalchemy_labs import MariaDBLab

KEYS = (b"hash key of this test, 32 bytes.", b"block key of the test: 32 bytes.")


class Visitor:
    """A browser on the site: sends Origin with its forms, and keeps every page that it is shown."""

    def __init__(self, store: Store) -> None:
        self._client = Client(create_app(store, database="<the test>"))
        self.pages: list[TestResponse] = []

    def get(self, path: str = "/", **settings: Any) -> TestResponse:
        return self._keep(self._client.get(path, **settings))

    def look(self) -> str:
        response = self.get()
        assert response.status_code == 200
        return response.text

    def open(self, method: str, path: str) -> TestResponse:
        return self._keep(self._client.open(path, method=method))

    def post(self, path: str, *, origin: str | None = "http://localhost", **form: str) -> int:
        headers = {} if origin is None else {"Origin": origin}
        response = self._keep(self._client.post(path, data=form, headers=headers))
        if response.status_code == 303:
            assert response.headers["Location"] == "/"
        return response.status_code

    @property
    def cookie(self) -> str | None:
        cookie = self._client.get_cookie("pgstore_demo")
        return None if cookie is None else cookie.value

    @cookie.setter
    def cookie(self, value: str) -> None:
        self._client.set_cookie("pgstore_demo", value)

    def _keep(self, response: TestResponse) -> TestResponse:
        self.pages.append(response)
        return response


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "memory":
        with MemoryStore(*KEYS) as store:
            yield store
    else:
        with SQLiteStore(tmp_path / "sessions.db", *KEYS) as store:
            yield store


@pytest.fixture
def visitor(store: Store) -> Visitor:
    return Visitor(store)


def rows(store: Store) -> list[PGSession]:
    return store.backend.scan(None, 100)


def counter(page: str) -> int:
    (number,) = re.findall(r"<output[^>]*>(\d+)</output>", page)
    return int(number)


# -- the site --------------------------------------------------------------------------------------


def test_looking_makes_no_row_and_sets_no_cookie(visitor: Visitor, store: Store) -> None:
    page = visitor.look()
    assert counter(page) == 0
    assert "looking costs no row" in page
    assert "Set-Cookie" not in visitor.get().headers
    assert rows(store) == []


def test_a_count_is_kept_from_request_to_request(visitor: Visitor) -> None:
    for number in (1, 2, 3):
        assert visitor.post("/count") == 303
        assert counter(visitor.look()) == number


def test_values_are_set_shown_escaped_and_removed(visitor: Visitor, store: Store) -> None:
    assert visitor.post("/set", name="<i>", value='"<script>&') == 303
    visitor.post("/set", name="tea", value="two pounds")
    page = visitor.look()
    assert "&#34;&lt;script&gt;&amp;" in page
    assert '<th scope="row">&lt;i&gt;</th>' in page
    assert "<script" not in page
    assert "<i>" not in page
    assert "two pounds" in page
    assert visitor.post("/remove", name="tea") == 303
    assert "two pounds" not in visitor.look()
    visitor.post("/remove", name="<i>")
    assert rows(store) == []


def test_a_value_cannot_take_the_counters_place(visitor: Visitor) -> None:
    visitor.post("/count")
    for name in ("counter", " counter ", " "):
        visitor.post("/set", name=name, value="many")
        assert "A value needs a name" in visitor.look()
    assert counter(visitor.look()) == 1


def test_a_flash_message_is_shown_once_and_not_spent_on_head(visitor: Visitor) -> None:
    visitor.post("/flash", text="only <once>")
    assert visitor.open("HEAD", "/").status_code == 200
    assert "<p>only &lt;once&gt;</p>" in visitor.look()
    assert "only" not in visitor.look()


def test_renewing_keeps_the_row_and_kills_the_old_cookie(visitor: Visitor, store: Store) -> None:
    visitor.post("/count")
    (before,), old = rows(store), visitor.cookie
    assert old is not None
    visitor.post("/renew")
    (after,) = rows(store)
    assert visitor.cookie != old
    assert (after.key, after.generation) == (before.key, before.generation + 1)
    assert "Same row, new secret" in visitor.look()
    assert counter(visitor.look()) == 1
    thief = Visitor(store)
    thief.cookie = old
    page = thief.look()
    assert "The cookie that came was not used" in page
    assert counter(page) == 0


def test_deleting_removes_row_and_cookie(visitor: Visitor, store: Store) -> None:
    visitor.post("/count")
    assert visitor.post("/delete") == 303
    assert visitor.cookie is None
    assert rows(store) == []
    assert counter(visitor.look()) == 0


def test_renewing_or_deleting_nothing_is_no_error(visitor: Visitor, store: Store) -> None:
    assert visitor.post("/renew") == 303
    assert visitor.post("/delete") == 303
    assert rows(store) == []


def test_the_page_shows_what_the_row_holds(visitor: Visitor, store: Store) -> None:
    visitor.post("/count")
    page = visitor.look()
    (row,) = rows(store)
    cells = dict(re.findall(r'<th scope="row">(\w+)</th><td>(.*?)</td></tr>', page))
    text = {name: re.sub("<[^>]*>", "", cell) for name, cell in cells.items()}
    handle = base64.urlsafe_b64encode(row.key).rstrip(b"=").decode()
    assert key_of(handle) == row.key
    assert text["key"].startswith(handle)
    assert text["version"].startswith(str(row.version))
    assert text["data"] == f"{len(row.data)} bytes encrypted"
    assert text["secret_hash"].startswith("32 bytes")
    assert text["max_age"] == "2592000 s 30 days without a visit"
    assert text["user_key"] == "NULL nobody is logged in"
    assert text["created_on"].strip() == "just now"
    assert text["expires_on"].strip() == "in 30 days"
    assert row.expires_on is not None
    assert f'datetime="{row.expires_on.isoformat(timespec="seconds")}"' in cells["expires_on"]


def test_ages_are_told_in_the_largest_unit_and_by_the_databases_clock() -> None:
    clock = [1e9]
    store = Store(MemoryBackend(clock=lambda: clock[0]), *KEYS, options=Options(max_age=0))
    with store:
        visitor = Visitor(store)
        visitor.post("/count")
        assert "0 s <small>until the browser is closed</small>" in visitor.look()
        for now, begun in (
            (1, "1 second"),
            (119, "1 minute"),
            (7200, "2 hours"),
            (90_000, "1 day"),
        ):
            clock[0] = 1e9 + now
            assert re.search(f"Begun <time [^>]*>{begun} ago</time>", visitor.look())


def test_the_page_says_when_data_is_not_encrypted() -> None:
    with MemoryStore(KEYS[0]) as store:
        visitor = Visitor(store)
        visitor.post("/count")
        assert "signed, and readable there" in visitor.look()


def test_no_page_holds_a_cookie_a_key_or_a_hash(visitor: Visitor, store: Store) -> None:
    secrets = []

    def learn() -> None:
        assert visitor.cookie is not None
        (row,) = rows(store)
        secrets.extend([visitor.cookie, *visitor.cookie.split(".")])
        for data in (row.secret_hash, row.data):
            secrets.extend([data.hex(), base64.b64encode(data).decode().rstrip("="), repr(data)])

    visitor.post("/count")
    learn()
    visitor.look()
    visitor.post("/renew")
    learn()
    visitor.look()
    stale = secrets[0]
    visitor.post("/delete")
    visitor.cookie = stale
    visitor.look()
    visitor.cookie = "x" * 3000
    visitor.look()
    visitor.get("/nothing")
    for key in KEYS:
        secrets.extend([key.decode(), key.hex(), base64.urlsafe_b64encode(key).decode()])
    for response in visitor.pages:
        assert [secret for secret in secrets if secret in response.text] == []


# -- what it refuses -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin",
    [None, "", "null", "http://evil.example", "http://localhost:8001", "http://localhost.evil",
     "localhost", "http://[", "http://localhost/"],
)  # fmt: skip
def test_a_form_from_elsewhere_changes_nothing(
    origin: str | None, visitor: Visitor, store: Store
) -> None:
    visitor.post("/count")
    before = rows(store)
    for action in ("count", "set", "remove", "flash", "renew", "delete"):
        assert visitor.post(f"/{action}", origin=origin, name="a", value="b", text="c") == 403
    assert rows(store) == before


def test_unknown_pages_and_methods_are_refused(visitor: Visitor, store: Store) -> None:
    assert visitor.get("/nothing").status_code == 404
    for method, path, allowed in (("GET", "/delete", {"POST"}), ("POST", "/", {"GET", "HEAD"})):
        response = visitor.open(method, path)
        assert response.status_code == 405
        assert set(response.headers["Allow"].split(", ")) - {"OPTIONS"} == allowed
        assert '<a href="/">' in response.text
    response = visitor.open("HEAD", "/")
    assert (response.status_code, response.data) == (200, b"")
    assert visitor.post("/set", name="no value") == 400
    assert rows(store) == []


def test_too_much_is_refused_and_the_session_stays(visitor: Visitor) -> None:
    visitor.post("/count")
    assert visitor.post("/set", name="a", value="x" * 5000) == 413
    assert "max_length is 4096" in visitor.pages[-1].text
    assert visitor.post("/set", name="a", value="x" * 50_000) == 413
    assert counter(visitor.look()) == 1


def test_an_outage_is_503_and_never_a_new_session(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    with SQLiteStore(path, *KEYS) as store:
        visitor = Visitor(store)
        visitor.post("/count")
        cookie = visitor.cookie
        path.rename(tmp_path / "away.db")
        assert visitor.post("/count") == 503
        response = visitor.get()
        assert response.status_code == 503
        assert response.headers["Retry-After"] == "5"
        assert str(tmp_path) not in response.text
        (tmp_path / "away.db").rename(path)
        assert visitor.cookie == cookie
        assert counter(visitor.look()) == 1


def test_a_session_that_ended_meanwhile_leads_back_to_the_page(
    visitor: Visitor, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = store.save

    def ended_by_another(request: Any, response: Any, session: Any) -> None:
        for row in rows(store):
            store.backend.delete(row.key)
        save(request, response, session)

    for act in (lambda: visitor.post("/count"), lambda: visitor.get().status_code):
        visitor.post("/flash", text="kept for the next page")
        with monkeypatch.context() as patch:
            patch.setattr(store, "save", ended_by_another)
            assert act() == 303
        assert "Set-Cookie" not in visitor.pages[-1].headers
        assert "The cookie that came was not used" in visitor.look()


# -- how it looks ----------------------------------------------------------------------------------


def test_the_policy_lets_the_page_have_its_style_and_nothing_else(visitor: Visitor) -> None:
    response = visitor.get()
    (style,) = re.findall("<style>(.*?)</style>", response.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = response.headers["Content-Security-Policy"]
    assert f"style-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert " style=" not in response.text
    assert "no-store" in response.headers["Cache-Control"]
    assert visitor.get("/nothing").headers["Content-Security-Policy"] == policy


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_have_the_contrast_that_wcag_asks_for(visitor: Visitor, theme: int) -> None:
    blocks = re.findall(r":root \{(.*?)\}", visitor.look(), re.DOTALL)
    assert len(blocks) == 2
    colours = dict(re.findall(r"--([\w-]+): (#\w{6});", blocks[theme]))
    for front, backs in {
        "text": ["back", "card", "note", "warn"],
        "soft": ["back", "card"],
        "link": ["card"],
        "risk": ["card"],
        "on-link": ["link"],
    }.items():
        for back in backs:
            assert contrast(colours[front], colours[back]) >= 4.5, (front, back)
    assert contrast(colours["edge"], colours["card"]) >= 3  # of an input: 1.4.11


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of WCAG 2.2."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)


# -- as a process ----------------------------------------------------------------------------------


class Demo:
    """A demo that runs, and one browser's cookie."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self.process = process
        self.announced = process.stdout.readline()
        self.address = urlsplit(self.announced.partition(" ")[0]).netloc
        self.cookie = ""

    def request(self, method: str, path: str, **form: str) -> str:
        headers = {"Cookie": self.cookie}
        if method == "POST":
            headers["Origin"] = f"http://{self.address}"
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        connection = HTTPConnection(self.address, timeout=30)
        try:
            connection.request(method, path, urlencode(form), headers)
            response = connection.getresponse()
            assert response.status == (303 if method == "POST" else 200)
            if (cookie := response.headers["Set-Cookie"]) is not None:
                self.cookie = cookie.partition(";")[0]
            return response.read().decode()
        finally:
            connection.close()

    def stop(self, number: signal.Signals) -> tuple[int, str, str]:
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@contextmanager
def demo(*argv: str, code: str = "", cwd: Path | None = None) -> Iterator[Demo]:
    """Run the demo on a free port for the length of a block."""
    start = ["-c", f"{code}; from pgstore.cli import main; raise SystemExit(main())"]
    with subprocess.Popen(
        [sys.executable, *(start if code else ["-m", "pgstore"]), "demo", "--port", "0", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
    ) as process:
        try:
            yield Demo(process)
        finally:
            # As an operator would: what it started must be gone even when a test fails.
            process.terminate()
            process.wait(60)


def test_sessions_outlive_a_restart_on_postgresql(tmp_path: Path) -> None:
    binaries(NEWEST)
    cookie = ""
    for run, number in enumerate([signal.SIGINT, signal.SIGTERM]):
        # The first in the folder that is its default, the second with that folder named.
        where = ["--data", str(tmp_path / ".pgstore-demo")] if run else []
        with demo(*where, cwd=None if run else tmp_path) as site:
            site.cookie = cookie
            assert " on PostgreSQL " in site.announced
            assert counter(site.request("GET", "/")) == run
            site.request("POST", "/count")
            assert counter(site.request("GET", "/")) == run + 1
            cookie = site.cookie
            assert site.stop(number) == (0, "", "")
        assert embedded._postgres_in(tmp_path / ".pgstore-demo" / "postgres") == []
    keys = tmp_path / ".pgstore-demo" / "keys"
    assert stat.S_IMODE(keys.stat().st_mode) == 0o600
    assert len(parse_keys(keys.read_text())) == 2


def test_without_postgresql_sessions_outlive_a_restart_on_sqlite(tmp_path: Path) -> None:
    data = tmp_path / "a?b%20c"
    nowhere = "import pgstore.demo; pgstore.demo.find_binaries = dict"
    cookie = ""
    for count in (1, 2):
        with demo("--data", str(data), code=nowhere) as site:
            site.cookie = cookie
            assert " on SQLite " in site.announced
            site.request("POST", "/count")
            assert counter(site.request("GET", "/")) == count
            cookie = site.cookie
            assert site.stop(signal.SIGINT) == (0, "", "")
    assert {path.name for path in data.iterdir()} == {"keys", "sessions.db"}


def test_a_database_of_ones_own_gets_a_table_of_the_demos_own(
    tmp_path: Path, pg_dsn: str, pg_schema: str
) -> None:
    dsn = f"{pg_dsn}?options=-c%20search_path%3D{pg_schema}"
    with demo("--dsn", dsn, "--data", str(tmp_path)) as site:
        assert site.announced.endswith("on PostgreSQL, a database of yours; Ctrl-C ends it\n")
        assert "postgresql://" not in site.announced
        site.request("POST", "/count")
        page = site.request("GET", "/")
    assert counter(page) == 1
    assert site.cookie.partition("=")[2] not in page
    keys = parse_keys((tmp_path / "keys").read_text())
    with open_store(dsn, *keys, table="pgstore_demo", schema="check") as store:
        assert len(rows(store)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["keys"]


def test_it_runs_on_mariadb(tmp_path: Path, mariadb_lab: MariaDBLab) -> None:
    with demo("--dsn", mariadb_lab.url, "--data", str(tmp_path)) as site:
        assert site.announced.endswith("on MySQL, a database of yours; Ctrl-C ends it\n")
        for count in (1, 2):
            site.request("POST", "/count")
            assert counter(site.request("GET", "/")) == count
        assert site.stop(signal.SIGINT) == (0, "", "")


def test_clicks_in_many_tabs_at_once_are_all_counted(tmp_path: Path) -> None:
    dsn = f"sqlite:///{tmp_path}/a.db"
    with demo("--dsn", dsn, "--data", str(tmp_path)) as site:
        site.request("POST", "/count")
        with ThreadPoolExecutor(8) as tabs:
            list(tabs.map(lambda _: site.request("POST", "/count"), range(39)))
        assert counter(site.request("GET", "/")) == 40
        assert site.stop(signal.SIGINT) == (0, "", "")


def test_a_port_that_is_taken_is_said_before_a_database_is_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert main(["demo", "--port", port, "--data", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"pgstore: cannot listen on port {port} of 127.0.0.1: Address already in")
    assert [path.name for path in tmp_path.iterdir()] == ["keys"]


def test_a_folder_that_cannot_be_used_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "keys").write_text("sesame!")
    for data, message in (("file", "file/keys cannot be used: "), (".", "is not base64url")):
        assert main(["demo", "--port", "0", "--data", os.path.join(tmp_path, data)]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert message in err
        assert "sesame" not in err


def test_where_postgresql_cannot_run_the_demo_runs_on_sqlite(tmp_path: Path) -> None:
    """It says why, and works."""
    unreachable = "import pgstore.embedded as e; e._Account.reaches = lambda self, folder: False"
    with demo("--data", str(tmp_path), code=unreachable) as site:
        assert " on SQLite " in site.announced
        assert "may not enter" in site.announced
        site.request("POST", "/count")
        assert counter(site.request("GET", "/")) == 1
        assert site.stop(signal.SIGINT) == (0, "", "")
