"""What a store on SQLite does when its file is locked, gone, read-only, damaged or full."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, Any

import pytest

from pgstore import BackendError, SQLiteStore
from pgstore.errors import RowError, SchemaError
from pgstore.ids import handle_of
from support import sqlite_faults
from support.stores import KEYS, Browser, Visit

BUSY_TIMEOUT = 0.3
# A busy machine's share of a bounded wait, in seconds.
MARGIN = 5.0

linux = pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


@pytest.fixture
def store(path: Path) -> Iterator[SQLiteStore]:
    with SQLiteStore(path, *KEYS, busy_timeout=BUSY_TIMEOUT, max_length=0) as store:
        yield store


@pytest.fixture
def known(store: SQLiteStore) -> Browser:
    """Return a browser that has a session with n = 1."""
    browser = Browser()
    with browser.visit(store) as session:
        session["n"] = 1
    return browser


def execute(path: Path, sql: str, *values: Any) -> list[Any]:
    """Run a statement on a connection of the test's own."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return connection.execute(sql, values).fetchall()


def whole(path: Path) -> bool:
    return execute(path, "PRAGMA integrity_check") == [("ok",)]


def steps(browser: Browser, store: SQLiteStore) -> list[str]:
    """Try a get, a change, a new session and a logout; return what each came to."""

    def change() -> None:
        with browser.visit(store) as session:
            session["n"] = 2

    def first() -> None:
        with Browser().visit(store) as session:
            session["n"] = 1

    def logout() -> None:
        with browser.visit(store) as session:
            session.logout()

    came_to = []
    for step in (lambda: Visit(browser, store), change, first, logout):
        try:
            step()
            came_to.append("done")
        except BackendError as error:
            came_to.append(str(error).partition(" ")[2])
    return came_to


# -- locked


def test_locked_by_another_process(path: Path, store: SQLiteStore, known: Browser) -> None:
    """Reads go on; a save waits as long as it was told, says so, has written nothing, and works
    when the lock is gone.
    """
    with sqlite_faults.locked_elsewhere(path, "BEGIN IMMEDIATE"):
        visit = Visit(known, store)
        assert visit.session["n"] == 1
        visit.session["n"] = 2
        begun = time.monotonic()
        with pytest.raises(BackendError, match=r"locked by another writer for 0\.3 s") as caught:
            visit.save()
        assert BUSY_TIMEOUT <= time.monotonic() - begun < BUSY_TIMEOUT + MARGIN
        assert not caught.value.outcome_unknown
        assert visit.headers.getlist("Set-Cookie") == []
        assert Visit(known, store).session["n"] == 1
    visit.save()
    assert Visit(known, store).session["n"] == 2


def test_locked_without_wal(path: Path, store: SQLiteStore, known: Browser) -> None:
    """Where readers wait too, `get` says that the file is locked, and never "no session"."""
    store.close()
    execute(path, "PRAGMA journal_mode = DELETE")
    with SQLiteStore(path, *KEYS, busy_timeout=BUSY_TIMEOUT) as store:
        with sqlite_faults.locked_elsewhere(path, "BEGIN EXCLUSIVE"):
            begun = time.monotonic()
            assert steps(known, store) == ["was locked by another writer for 0.3 s"] * 4
            assert time.monotonic() - begun < 4 * BUSY_TIMEOUT + MARGIN
        assert Visit(known, store).session["n"] == 1


# -- gone, and read-only


def test_deleted(path: Path, store: SQLiteStore, known: Browser) -> None:
    """Every verb says that the database is gone; made again, it is used, by this store too."""
    for file in path.parent.iterdir():
        file.unlink()
    gone = "is no database"
    assert [gone in text for text in steps(known, store)] == [True] * 4
    with pytest.raises(SchemaError):
        Visit(known, store)
    assert not path.exists()
    with SQLiteStore(path, *KEYS) as another, known.visit(another) as session:
        assert session.is_new
        session["n"] = 3
    assert Visit(known, store).session["n"] == 3


@pytest.fixture
def guarded(request: pytest.FixtureRequest) -> Iterator[tuple[Path, Browser]]:
    """Return a database that this process may only read, and a browser with a session in it."""
    # Not tmp_path: another account may not enter it.
    folder = Path(tempfile.mkdtemp())
    path, browser = folder / "sessions.db", Browser()
    with SQLiteStore(path, *KEYS) as store, browser.visit(store) as session:
        session["n"] = 1
    execute(path, "PRAGMA journal_mode = DELETE")
    path.chmod(0o444)
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield path, browser
    if root:
        os.seteuid(0)
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_read_only(guarded: tuple[Path, Browser]) -> None:
    """Sessions are read; what is saved is refused with the reason, and no cookie is set."""
    path, browser = guarded
    with SQLiteStore(path, *KEYS) as store:
        reason = "is read-only for this process"
        assert steps(browser, store) == ["done", reason, reason, reason]
        visit = Visit(browser, store)
        visit.session["n"] = 2
        with pytest.raises(BackendError):
            visit.save()
        assert visit.headers.getlist("Set-Cookie") == []
        assert Visit(browser, store).session["n"] == 1


# -- damaged

PAGE = 4096


@pytest.fixture
def crowded(path: Path) -> dict[int, Browser]:
    """Return browsers whose sessions fill a database of many pages, with its log folded in."""
    browsers = {number: Browser() for number in range(40)}
    with SQLiteStore(path, *KEYS) as store:
        for number, browser in browsers.items():
            with browser.visit(store) as session:
                session["n"], session["filling"] = number, bytes(1500)
    assert path.stat().st_size > 20 * PAGE
    assert not path.with_name("sessions.db-wal").exists()
    return browsers


def overwrite(path: Path, start: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(data)


def outcomes(path: Path, browsers: dict[int, Browser]) -> dict[str, list[int]]:
    """Return what a new store's `get` comes to, for each browser."""
    found: dict[str, list[int]] = {}
    with SQLiteStore(path, *KEYS, schema="off") as store:
        for number, browser in browsers.items():
            try:
                session = Visit(browser, store).session
            except BackendError as error:
                outcome = str(error).removeprefix(f"{path} ")
            else:
                outcome = "new" if session.is_new else "good"
                assert session.is_new or session["n"] == number
            found.setdefault(outcome, []).append(number)
    return found


def test_a_damaged_head(path: Path, crowded: dict[int, Browser]) -> None:
    """No session can be read, and every `get` says why."""
    overwrite(path, 0, bytes(100))
    assert outcomes(path, crowded) == {"is not a SQLite database": list(crowded)}
    with pytest.raises(BackendError, match="is not a SQLite database"):
        SQLiteStore(path, *KEYS)


@pytest.mark.parametrize("filling", [b"\0", b"\xff"])
def test_a_damaged_page(path: Path, crowded: dict[int, Browser], filling: bytes) -> None:
    """The sessions that it held are errors, never "no session"; all others are good."""
    lost: set[int] = set()
    pages = path.stat().st_size // PAGE
    before = path.read_bytes()
    for page in range(pages // 4, pages):
        overwrite(path, page * PAGE, filling * PAGE)
        found = outcomes(path, crowded)
        assert found.keys() <= {"good", "is damaged"}
        assert not whole_or_refused(path)
        lost |= set(found.get("is damaged", []))
        overwrite(path, 0, before)
    assert len(lost) > len(crowded) / 2


def whole_or_refused(path: Path) -> bool:
    try:
        return whole(path)
    except sqlite3.DatabaseError:
        return False


def test_damage_inside_one_row(
    path: Path, crowded: dict[int, Browser], caplog: pytest.LogCaptureFixture
) -> None:
    """Bytes that changed in a row's data are noticed: that session alone is refused, with a word
    to the operator, and its row is left as it is.
    """
    ((key, data),) = execute(path, "SELECT key, data FROM http_sessions LIMIT 1 OFFSET 20")
    content = path.read_bytes()
    assert content.count(data) == 1
    middle = content.index(data) + len(data) // 2
    overwrite(path, middle, bytes(byte ^ 0xFF for byte in content[middle : middle + 16]))
    assert whole(path)
    damaged = path.read_bytes()
    found = outcomes(path, crowded)
    (victim,) = found["new"]
    assert found == {"good": [number for number in crowded if number != victim], "new": [victim]}
    with SQLiteStore(path, *KEYS) as store:
        visit = Visit(crowded[victim], store)
        assert isinstance(visit.session.error, RowError)
        assert visit.save().getlist("Set-Cookie") == []
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert [handle_of(key) in record.getMessage() for record in caplog.records] == [True] * 2
    assert path.read_bytes() == damaged


# -- killed


@linux
def test_a_writer_killed_inside_a_transaction(
    path: Path, store: SQLiteStore, known: Browser
) -> None:
    """The session that it was about to delete is as it was, and saves go on at once."""
    writer = sqlite_faults.run_module("stop-inside", str(path))
    assert writer.stdout
    assert writer.stdout.readline() == "inside\n"
    sqlite_faults.kill(writer)
    with known.visit(store) as session:
        assert session["n"] == 1
        session["n"] = 2
    assert Visit(known, store).session["n"] == 2
    assert whole(path)


@linux
def test_writers_killed_under_load(path: Path, store: SQLiteStore, known: Browser) -> None:
    """Whenever a writer is killed, the file is whole, and every save that it acknowledged is
    there.
    """
    for turn in range(3):
        names = [f"writer {turn}.{number}" for number in range(3)]
        writers = [
            sqlite_faults.run_module("write", str(path), name, known.cookies["sid"])
            for name in names
        ]
        acknowledged = []
        for writer in writers:
            assert writer.stdout
            # Until it is well under way, and so are the others.
            heard = [writer.stdout.readline() for _ in range(20 + 10 * turn)]
            acknowledged.append(int(heard[-1]))
        for number, writer in enumerate(writers):
            rest = sqlite_faults.kill(writer).split("\n")[:-1]
            acknowledged[number] = int([acknowledged[number], *rest][-1])
        assert whole(path)
        session = Visit(known, store).session
        for name, last in zip(names, acknowledged, strict=True):
            acknowledged_bits = (1 << last + 1) - 1
            assert session[name] & acknowledged_bits == acknowledged_bits
            # It may have been killed between a save and its acknowledgement.
            assert session[name] < 1 << last + 2
        assert session["n"] == 1
        with known.visit(store) as session:
            session["turn"] = turn
    assert Visit(known, store).session["turn"] == 2


# -- full


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a folder that is a file system of one megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None:
        pytest.skip("there is no mount command")
    done = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", os.fspath(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", os.fspath(folder)], check=True)


@linux
def test_disk_full(small_disk: Path) -> None:
    """A save that finds no room says so and has written nothing; what was saved is good, and with
    room again the store works again.
    """
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(400_000))
    path, browsers = small_disk / "sessions.db", list[Browser]()
    with SQLiteStore(path, *KEYS) as store:

        def fill() -> tuple[Visit, BackendError]:
            while True:
                visit = Visit(Browser(), store)
                visit.session["n"], visit.session["filling"] = len(browsers), bytes(3000)
                try:
                    visit.save()
                except BackendError as error:
                    return visit, error
                browsers.append(visit.browser)

        def numbers() -> list[int]:
            return [Visit(browser, store).session["n"] for browser in browsers]

        refused, error = fill()
        assert str(error) == f"{path} cannot grow: the disk is full"
        assert not error.outcome_unknown
        assert refused.headers.getlist("Set-Cookie") == []
        assert len(browsers) > 10
        assert numbers() == list(range(len(browsers)))
        assert whole(path)
        assert execute(path, "SELECT count(*) FROM http_sessions") == [(len(browsers),)]

        ballast.unlink()
        refused.save()
        browsers.append(refused.browser)
        assert numbers() == list(range(len(browsers)))
        before = len(browsers)
        fill()
        assert len(browsers) > before
        assert numbers() == list(range(len(browsers)))
    assert whole(path)


@linux
def test_disk_full_and_a_logout(small_disk: Path) -> None:
    """A logout that finds no room says so, tells the browser to forget nothing, and can be said
    again.
    """
    path, browser = small_disk / "sessions.db", Browser()
    with SQLiteStore(path, *KEYS) as store:
        with browser.visit(store) as session:
            session["n"] = 1
        # All the room there is. A transaction elsewhere keeps the log from being written anew from
        # its start, which takes no room.
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM http_sessions").fetchall()
            ballast = small_disk / "ballast"
            with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
                fill_up(file)
            visit = Visit(browser, store)
            visit.session.logout()
            with pytest.raises(BackendError, match="the disk is full"):
                visit.save()
            assert visit.headers.getlist("Set-Cookie") == []
            assert Visit(browser, store).session["n"] == 1
            ballast.unlink()
            reader.execute("COMMIT")
        visit.save()
        assert execute(path, "SELECT * FROM http_sessions") == []
    assert browser.cookies == {}
    assert whole(path)


def fill_up(file: IO[bytes]) -> None:
    while True:
        file.write(bytes(4096))
