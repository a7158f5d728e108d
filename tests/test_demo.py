"""The demo: what its site does, and how the command runs it. tests/browser has how it looks."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pgstore import MemoryStore, SQLiteStore, Store, demo_site, embedded
from pgstore.cli import main
from pgstore.demo_site import MERGE
from pgstore.urls import open_store, parse_keys
from support.postgres import NEWEST, binaries
from support.site import Browser, demo
from support.sqlalchemy_labs import MariaDBLab
from support.stores import KEYS, Lab

FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
IPHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 "
    "(KHTML, like Gecko) Version/18.1 Mobile/15E148 Safari/604.1"
)


@pytest.fixture
def store() -> Iterator[Store]:
    with MemoryStore(*KEYS, merge=MERGE) as store:
        yield store


@pytest.fixture
def alice(store: Store) -> Browser:
    """Return a browser in which alice is signed in."""
    alice = Browser(store, agent=FIREFOX)
    alice.sign_in("alice")
    return alice


def users(store: Store) -> list[str]:
    return [user.user_key for user in store.users()]


# -- signing in and out ----------------------------------------------------------------------------


def test_who_is_not_signed_in_is_led_to_the_sign_in_page(store: Store) -> None:
    """Whatever is asked for, and nothing is done, and no row is made for it."""
    visitor = Browser(store)
    for path in ("/", "/devices", "/admin"):
        page = visitor.open(path)
        assert (page.status, page.headers["Location"]) == (303, "/sign-in")
    for path in (
        "/count", "/cart/add", "/cart/remove", "/sign-out", "/devices/sign-out",
        "/devices/sign-out-others", "/devices/sign-out-all", "/admin/sign-out",
    ):  # fmt: skip
        assert visitor.post(path, item="tea", handle="x", user="x") == "/sign-in"
    assert visitor.cookie is None
    assert store.stats().live == 0


def test_any_name_signs_in(store: Store) -> None:
    """It is shown escaped, with a welcome that is shown once."""
    visitor = Browser(store)
    visitor.look("/sign-in")
    assert visitor.post("/sign-in", name=" <b>Zoë</b> ") == "/"
    page = visitor.open()
    assert "Welcome, &lt;b&gt;Zoë&lt;/b&gt;." in page.text
    assert "Welcome" not in visitor.look()
    assert visitor.open("/sign-in").headers["Location"] == "/"
    assert users(store) == ["<b>Zoë</b>"]


@pytest.mark.parametrize("name", ["", "  ", "x" * 256, "a\0b"])
def test_what_cannot_be_a_name_is_said(store: Store, name: str) -> None:
    visitor = Browser(store)
    visitor.look("/sign-in")
    assert visitor.post("/sign-in", name=name) == "/sign-in"
    assert "That cannot be a name" in visitor.look("/sign-in")
    assert users(store) == []


def test_signing_in_changes_cookie_and_token(store: Store) -> None:
    """So that neither what was planted before nor a form of before is of any use."""
    visitor = Browser(store)
    visitor.look("/sign-in")
    cookie, token = visitor.cookie, visitor.token
    visitor.sign_in("alice")
    assert visitor.cookie != cookie
    assert visitor.token != token
    visitor.token = token
    assert visitor.post("/count") == "403"


def test_signing_out_ends_the_session(store: Store, alice: Browser) -> None:
    assert alice.post("/sign-out") == "/sign-in"
    assert "You are signed out." in alice.look("/sign-in")
    assert users(store) == []
    assert alice.open().headers["Location"] == "/sign-in"


def test_the_cookie_stays_when_the_browser_is_closed(store: Store, alice: Browser) -> None:
    """And it is for HTTP only, and for this site's own requests."""
    (line,) = [
        page.headers["Set-Cookie"]
        for page in alice.pages
        if page.headers.get("Location") == "/" and "Set-Cookie" in page.headers
    ]
    for attribute in ("Max-Age=", "HttpOnly", "SameSite=Lax", "Path=/"):
        assert attribute in line


# -- counter and cart ------------------------------------------------------------------------------


def test_a_count_is_kept_from_request_to_request(alice: Browser) -> None:
    for number in (1, 2, 3):
        assert alice.post("/count") == "/"
        assert alice.count == number


def test_the_cart_is_filled_and_emptied(alice: Browser) -> None:
    """With a message that is shown once, and not spent on HEAD."""
    assert "Nothing yet." in alice.look()
    for item in ("tea", "milk", "tea"):
        assert alice.post("/cart/add", item=item) == "/"
    assert alice.open(method="HEAD").status == 200
    page = alice.look()
    assert page.count("In your cart:") == 3
    assert "Tea × 2 Remove Milk × 1 Remove" in page
    assert "In your cart:" not in alice.look()
    for item in ("tea", "milk", "tea", "tea"):
        assert alice.post("/cart/remove", item=item) == "/"
    assert "Nothing yet." in alice.look()


def test_nothing_else_gets_into_the_cart(alice: Browser) -> None:
    assert alice.post("/cart/add", item="<script>") == "400"
    assert alice.post("/cart/add") == "400"
    assert "Nothing yet." in alice.look()


def test_a_full_cart_is_said_and_the_session_stays(alice: Browser, store: Store) -> None:
    store.max_length(400)
    while (led := alice.post("/cart/add", item="lemons")) == "/":
        alice.look()
    assert led == "413"
    assert "Your cart is full" in alice.pages[-1].words
    assert alice.post("/cart/remove", item="lemons") == "/"
    assert "Lemons" in alice.look()


# -- devices ---------------------------------------------------------------------------------------


def test_a_user_sees_each_device(store: Store, alice: Browser) -> None:
    """Browser, system, address, times, and which of them is this one; nobody else's."""
    phone = Browser(store, agent=IPHONE, address="2001:db8::1")
    phone.sign_in("alice")
    Browser(store, agent="curl/8").sign_in("bob")
    assert (
        "Mobile Safari on iOS IP address 2001:db8::1 First seen just now Last seen just now "
        "Sign out Firefox on Linux This device IP address 192.0.2.7 First seen just now "
        "Last seen just now Sign out"
    ) in alice.look("/devices")
    assert "Mobile Safari on iOS This device" in phone.look("/devices")
    assert "curl" not in alice.pages[-1].text


def test_one_device_is_signed_out(store: Store, alice: Browser) -> None:
    """It is out with its next request; this one stays."""
    other = Browser(store, agent=IPHONE)
    other.sign_in("alice")
    alice.look("/devices")
    handles = [form["handle"] for form in alice.pages[-1].forms("/devices/sign-out")]
    assert len(handles) == 2
    assert alice.post("/devices/sign-out", handle=handles[0]) == "/devices"
    assert "That device is signed out." in alice.look("/devices")
    assert alice.post("/devices/sign-out", handle=handles[0]) == "/devices"
    assert "That device was signed out already." in alice.look("/devices")
    assert other.post("/count") == "/sign-in"
    assert alice.post("/devices/sign-out", handle=handles[1]) == "/sign-in"
    assert alice.open().headers["Location"] == "/sign-in"
    assert users(store) == []


def test_all_other_devices_are_signed_out(store: Store, alice: Browser) -> None:
    others = [Browser(store), Browser(store)]
    for other in others:
        other.sign_in("alice")
    Browser(store).sign_in("bob")
    for number, said in ((2, "2 other devices"), (0, "0 other devices")):
        assert alice.post("/devices/sign-out-others") == "/devices"
        assert f"Signed out on {said}." in alice.look("/devices")
        assert [(u.user_key, u.sessions) for u in store.users()] == [("alice", 1), ("bob", 1)]
        assert all(other.open().status == 303 for other in others), number
    assert "Sign out all other devices" not in alice.look("/devices")


def test_all_devices_are_signed_out(store: Store, alice: Browser) -> None:
    other = Browser(store)
    other.sign_in("alice")
    assert alice.post("/devices/sign-out-all") == "/sign-in"
    assert "You are signed out." in alice.look("/sign-in")
    assert alice.open().status == other.open().status == 303
    assert users(store) == []


def test_somebody_elses_device_is_not_to_be_signed_out(store: Store, alice: Browser) -> None:
    """Nor does the answer tell whether there is one with that handle."""
    Browser(store).sign_in("bob")
    (device,) = store.sessions_of("bob")
    assert alice.post("/devices/sign-out", handle=device.handle) == "404"
    assert device.handle not in alice.pages[-1].text
    assert users(store) == ["alice", "bob"]


# -- the administrator -----------------------------------------------------------------------------


def test_the_administrators_page(lab: Lab) -> None:
    """Users with live sessions, and the table: rows, expired ones, size, the oldest."""
    store = lab.store(idle_timeout=3600, merge=MERGE)
    Browser(store).sign_in("expired")
    lab.pass_time(9000)
    Browser(store).sign_in("alice")
    lab.pass_time(1000)
    Browser(store).sign_in("alice")
    admin = Browser(store)
    admin.sign_in("admin")
    page = admin.look("/admin")
    assert "Live sessions 3 Expired, to be swept 1 Size of the table" in page
    size = "unknown" if store.stats().size is None else r"\d+(\.\d+)? kB"
    assert re.search(f"Size of the table {size} Oldest session 16 minutes ago", page)
    assert "admin 1 just now Sign out alice 2 just now Sign out" in page
    assert "expired" not in page


def test_the_administrator_signs_users_out(store: Store, alice: Browser) -> None:
    admin = Browser(store)
    admin.sign_in("admin")
    forms = admin.open("/admin").forms("/admin/sign-out")
    assert [form["user"] for form in forms] == ["admin", "alice"]
    assert admin.post("/admin/sign-out", user="alice") == "/admin"
    assert "Signed out: alice, on 1 device." in admin.look("/admin")
    assert alice.post("/count") == "/sign-in"
    assert admin.post("/admin/sign-out", user="") == "400"


def test_users_come_page_by_page(store: Store) -> None:
    for number in range(45):
        Browser(store).sign_in(f"user&{number:02}")
    admin = Browser(store)
    admin.sign_in("admin")
    path, seen = "/admin", []
    for size in (20, 20, 6):
        page = admin.open(path)
        seen += re.findall(r'<th scope="row">(.*?)</th>', page.text)
        assert len(page.forms("/admin/sign-out")) == size
        more = re.findall(r'<a href="(.*?)" rel="next">', page.text)
        path = more[0].replace("&amp;", "&") if more else ""
    assert path == ""
    assert seen == ["admin", *(f"user&amp;{number:02}" for number in range(45))]
    for after in ("", "x" * 300):
        assert admin.open(f"/admin?after={after}").status == 400


def test_nobody_else_is_the_administrator(store: Store, alice: Browser) -> None:
    for name in ("Admin", "admin\u200b", "alice"):
        other = Browser(store)
        other.sign_in(name)
        assert "Administration" not in other.look()
        assert other.open("/admin").status == 403
        assert other.post("/admin/sign-out", user="alice") == "403"
    assert "alice" in users(store)


# -- what it refuses -------------------------------------------------------------------------------


def test_a_form_without_its_sessions_token_changes_nothing(store: Store, alice: Browser) -> None:
    """Not without one, not with somebody else's, not with one of before."""
    mallory = Browser(store)
    mallory.sign_in("mallory")
    live = store.stats().live
    for token in ("", "x", mallory.token, alice.token[:-1], "é"):
        alice.look()
        alice.token = token
        for path in (
            "/count", "/cart/add", "/cart/remove", "/sign-in", "/sign-out",
            "/devices/sign-out", "/devices/sign-out-others", "/devices/sign-out-all",
            "/admin/sign-out",
        ):  # fmt: skip
            assert alice.post(path, item="tea", name="eve", handle="x", user="alice") == "403"
            assert "is not this site's own" in alice.pages[-1].words
    assert alice.count == 0
    assert users(store) == ["alice", "mallory"]
    assert store.stats().live == live


def test_nobody_is_signed_in_by_another_sites_form(store: Store) -> None:
    visitor = Browser(store)
    assert visitor.post("/sign-in", name="mallory") == "403"
    visitor.look("/sign-in")
    visitor.token = "x"
    assert visitor.post("/sign-in", name="mallory") == "403"
    assert users(store) == []


def test_every_form_has_a_token(store: Store, alice: Browser) -> None:
    alice.post("/cart/add", item="tea")
    admin = Browser(store)
    admin.sign_in("admin")
    pages = [alice.open("/"), alice.open("/devices"), admin.open("/admin")]
    pages.append(Browser(store).open("/sign-in"))
    for page in pages:
        forms = re.findall(r"<form.*?</form>", page.text, re.DOTALL)
        assert forms
        for form in forms:
            assert 'method="post"' in form
            assert re.search(r'name="csrf" value="[\w-]{43}"', form)


def test_unknown_pages_and_methods_are_refused(store: Store, alice: Browser) -> None:
    assert alice.open("/nothing").status == 404
    assert Browser(store).open("/nothing").status == 404
    for method, path, allowed in (
        ("GET", "/sign-out", {"POST", "OPTIONS"}),
        ("POST", "/devices", {"GET", "HEAD", "OPTIONS"}),
    ):
        page = alice.open(path, method=method, csrf=alice.token)
        assert page.status == 405
        assert set(page.headers["Allow"].split(", ")) == allowed
        assert '<a href="/">' in page.text
    assert alice.post("/count", much="x" * 20_000) == "413"


def test_no_page_may_be_kept_or_framed_or_load_anything(store: Store, alice: Browser) -> None:
    """no-store on each, errors and redirects included; the stylesheet is public."""
    pages = [alice.open(path) for path in ("/", "/devices", "/sign-in", "/admin", "/nothing")]
    alice.post("/count")
    for page in [*pages, alice.pages[-1], Browser(store).open("/sign-in")]:
        assert "no-store" in page.headers["Cache-Control"]
        policy = page.headers["Content-Security-Policy"]
        assert "default-src 'none'; style-src 'self';" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert "<script" not in page.text
        assert " style=" not in page.text
    style = Browser(store).open("/static/style.css")
    assert style.status == 200
    assert not {"Set-Cookie", "Vary"} & set(style.headers.keys())
    assert "no-store" not in style.headers["Cache-Control"]


def test_an_outage_is_503_and_never_a_sign_in_page(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "sessions.db"
    with SQLiteStore(path, *KEYS, merge=MERGE) as store:
        alice = Browser(store)
        alice.sign_in("alice")
        alice.post("/count")
        cookie = alice.cookie
        path.rename(tmp_path / "away.db")
        for led in (alice.post("/count"), str(alice.open("/devices").status)):
            assert led == "503"
            assert alice.pages[-1].headers["Retry-After"] == "5"
            assert "<h1>Service Unavailable</h1>" in alice.pages[-1].text
            assert str(tmp_path) not in alice.pages[-1].text
        assert len(caplog.records) == 2
        (tmp_path / "away.db").rename(path)
        assert alice.cookie == cookie
        assert alice.count == 1


def test_times_are_told_in_the_largest_unit() -> None:
    """Two clocks are compared, so that a time may seem to be in the future."""
    now = datetime.now(UTC)
    for seconds, text in (
        (-5, "just now"),
        (1.5, "1 second ago"),
        (119, "1 minute ago"),
        (7230, "2 hours ago"),
        (90_000, "1 day ago"),
    ):
        time = now - timedelta(seconds=seconds)
        said = str(demo_site._ago(time))
        assert said.endswith(f">{text}</time>")
        assert f'datetime="{time.isoformat(" ", "seconds")}"' in said


def test_sizes_are_told_in_the_largest_unit() -> None:
    sizes = (0, 999, 8192, 999_600, 12_345_678, 5_000_000_000)
    said = [demo_site._bytes(size) for size in sizes]
    assert said == ["0 bytes", "999 bytes", "8.19 kB", "1 MB", "12.3 MB", "5 GB"]


# -- as a process ----------------------------------------------------------------------------------


def test_sessions_outlive_a_restart_on_postgresql(tmp_path: Path) -> None:
    binaries(NEWEST)
    cookies: dict[str, str] = {}
    for run, number in enumerate([signal.SIGINT, signal.SIGTERM]):
        # The first in the folder that is its default, the second with that folder named.
        where = ["--data", str(tmp_path / ".pgstore-demo")] if run else []
        with demo(*where, cwd=None if run else tmp_path) as site:
            visitor, cookies = site.visitor(cookies)
            assert " on PostgreSQL " in site.announced
            if not run:
                visitor.sign_in("alice")
            assert visitor.count == run
            assert visitor.post("/count") == "/"
            assert visitor.count == run + 1
            assert site.stop(number) == (0, "", "")
        assert embedded._postgres_in(tmp_path / ".pgstore-demo" / "postgres") == []
    keys = tmp_path / ".pgstore-demo" / "keys"
    assert stat.S_IMODE(keys.stat().st_mode) == 0o600
    assert len(parse_keys(keys.read_text())) == 2


def test_without_postgresql_sessions_outlive_a_restart_on_sqlite(tmp_path: Path) -> None:
    data = tmp_path / "a?b%20c"
    nowhere = "import pgstore.demo; pgstore.demo.find_binaries = dict"
    cookies: dict[str, str] = {}
    for run in range(2):
        with demo("--data", str(data), code=nowhere) as site:
            visitor, cookies = site.visitor(cookies)
            assert " on SQLite " in site.announced
            if not run:
                visitor.sign_in("alice")
            assert visitor.count == run
            visitor.post("/count")
            assert site.stop(signal.SIGINT) == (0, "", "")
    assert {path.name for path in data.iterdir()} == {"keys", "sessions.db"}


def test_a_database_of_ones_own_gets_a_table_of_the_demos_own(
    tmp_path: Path, pg_dsn: str, pg_schema: str
) -> None:
    dsn = f"{pg_dsn}?options=-c%20search_path%3D{pg_schema}"
    with demo("--dsn", dsn, "--data", str(tmp_path)) as site:
        assert site.announced.endswith("on PostgreSQL, a database of yours; Ctrl-C ends it\n")
        assert "postgresql://" not in site.announced
        visitor, _ = site.visitor()
        visitor.sign_in("alice")
    keys = parse_keys((tmp_path / "keys").read_text())
    with open_store(dsn, *keys, table="pgstore_demo", schema="check") as store:
        assert users(store) == ["alice"]
    assert [path.name for path in tmp_path.iterdir()] == ["keys"]


def test_it_runs_on_mariadb(tmp_path: Path, mariadb_lab: MariaDBLab) -> None:
    with demo("--dsn", mariadb_lab.url, "--data", str(tmp_path)) as site:
        assert site.announced.endswith("on MySQL, a database of yours; Ctrl-C ends it\n")
        visitor, _ = site.visitor()
        visitor.sign_in("alice")
        for count in (1, 2):
            visitor.post("/count")
            assert visitor.count == count
        assert site.stop(signal.SIGINT) == (0, "", "")


def test_clicks_in_many_tabs_at_once_are_all_counted(tmp_path: Path) -> None:
    dsn = f"sqlite:///{tmp_path}/a.db"
    with demo("--dsn", dsn, "--data", str(tmp_path)) as site:
        visitor, _ = site.visitor()
        visitor.sign_in("alice")
        with ThreadPoolExecutor(8) as tabs:
            assert set(tabs.map(lambda _: visitor.post("/count"), range(40))) == {"/"}
        assert visitor.count == 40
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


def test_without_flask_it_is_said_what_to_install(tmp_path: Path) -> None:
    """In one line, and before anything is made."""
    without = "import sys; sys.modules['flask'] = None"
    with demo("--data", str(tmp_path / "data"), code=without) as site:
        assert site.announced == ""
        code, _, err = site.stop(signal.SIGTERM)
    assert (code, err) == (2, "pgstore: the demo wants Flask: pip install 'pgstore[demo]'\n")
    assert list(tmp_path.iterdir()) == []


def test_where_postgresql_cannot_run_the_demo_runs_on_sqlite(tmp_path: Path) -> None:
    """It says why, and works."""
    unreachable = "import pgstore.embedded as e; e._Account.reaches = lambda self, folder: False"
    with demo("--data", str(tmp_path), code=unreachable) as site:
        assert " on SQLite " in site.announced
        assert "may not enter" in site.announced
        visitor, _ = site.visitor()
        visitor.sign_in("alice")
        assert site.stop(signal.SIGINT) == (0, "", "")
