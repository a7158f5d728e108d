"""PostgreSQL goes away and comes back: by SIGKILL under load, by restarts, by a full disk."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgstore import BackendError, PGStore, merge
from pgstore.embedded import PostgresServer, temporary
from support.contract import each_connection
from support.stores import KEYS, Browser, PostgresLab, Visit
from support.writers import Writers


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Keep psycopg_pool from filling the report of an outage."""
    caplog.set_level(logging.CRITICAL, "psycopg.pool")


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """Return a server of the test's own, to be killed."""
    with temporary() as server:
        yield server


@pytest.mark.parametrize("outage", [2, 35])
def test_killed_under_load(
    server: PostgresServer, outage: float, record_property: pytest.RecordProperty
) -> None:
    """No acknowledged save is lost by a SIGKILL, requests fail fast while the server is down, and
    get through within a second of its return.
    """
    with PGStore(server.dsn, *KEYS, pool_size=4, merge={"hits": merge.add}) as store:
        with Writers(store, 6) as writers:
            acknowledged = writers.acknowledged
            server.kill()
            down = time.monotonic()
            writers.wait_for_errors()
            time.sleep(down + outage - time.monotonic())
            still_down = time.monotonic()
            server.start()
            ready = time.monotonic()
            writers.wait_for_turns()
            back = writers.back(down) - ready
            before = writers.acknowledged
            writers.wait_for_turns()
        meanwhile = writers.turns(down, still_down)
        slowest = max(turn.took for turn in meanwhile)
        for name, value in (
            ("outage", still_down - down),
            ("back_after", back),
            ("slowest_error", slowest),
            ("requests_refused", len(meanwhile)),
            ("acknowledged_before", acknowledged),
            ("acknowledged", writers.acknowledged),
            ("unknown", writers.unknown),
        ):
            record_property(name, value)
            print(f"{name}: {value:.3f}")
        writers.check_all_is_there()
        assert before > acknowledged > 0
        assert [turn for turn in meanwhile if turn.error is None] == []
        assert slowest < 2.0
        assert back < 1.0


@pytest.mark.parametrize("how", ["fast", "immediate"])
def test_restarted_between_requests(server: PostgresServer, how: Any) -> None:
    """After a restart every idle connection is dead, and no request is to notice."""
    with PGStore(server.dsn, *KEYS, pool_size=8) as store:
        browser = fill_pool(store, 8)
        server.restart(how)
        assert Visit(browser, store).session["x"] == 1
        visit = Visit(browser, store)
        visit.session["x"] = 2
        server.restart(how)
        visit.save()
        server.restart(how)
        with Browser().visit(store) as session:
            session["new"] = 1
        assert Visit(browser, store).session["x"] == 2


def test_connections_ended_by_an_administrator(pg_lab: PostgresLab) -> None:
    """Idle connections that are terminated, all at once, are replaced without an error."""
    store = pg_lab.store(pool_size=8)
    assert isinstance(store, PGStore)
    browser = fill_pool(store, 8)
    for number in range(3):
        with psycopg.connect(pg_lab.dsn, autocommit=True) as connection:
            ended = connection.execute(
                "SELECT count(*) FROM (SELECT pg_terminate_backend(pid, 10000) "
                "FROM pg_stat_activity WHERE application_name = 'pgstore') AS ended"
            ).fetchone()
        assert ended is not None and ended[0] > 0
        with browser.visit(store) as session:
            session[number] = number
    assert Visit(browser, store).session.values == {"x": 1, 0: 0, 1: 1, 2: 2}


def fill_pool(store: PGStore, size: int) -> Browser:
    """Make the store open ``size`` connections, each with its statements prepared."""
    browser = Browser()
    with browser.visit(store) as session:
        session["x"] = 0
    for _ in each_connection(store, size):
        for value in (0, 1):
            with browser.visit(store) as session:
                session["x"] = value
    return browser


# -- no room


@contextmanager
def small_disk(megabytes: int) -> Iterator[Path]:
    """Mount a file system of its own size; skip where that is not allowed."""
    folder = Path(tempfile.mkdtemp(prefix="pgstore-disk-"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=755", "pgstore", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        folder.rmdir()
        pytest.skip(f"a file system cannot be mounted: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
        folder.rmdir()


def fill_disk(path: Path, *, leave: int) -> None:
    """Write a file that leaves about ``leave`` bytes of its file system free."""
    free = shutil.disk_usage(path.parent).free
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - leave)


def save_until_refused(store: PGStore, browsers: list[Browser]) -> BackendError:
    """Save new sessions of 100 KB until one is refused; add the browsers that have theirs."""
    for number in range(2000):
        browser = Browser()
        visit = Visit(browser, store)
        visit.session["n"] = number
        visit.session["ballast"] = os.urandom(100_000)
        try:
            visit.save()
        except BackendError as error:
            assert "Set-Cookie" not in visit.headers
            return error
        browsers.append(browser)
    raise AssertionError("the disk is not full")


def check_all_numbers(store: PGStore, browsers: list[Browser]) -> None:
    numbers = [Visit(browser, store).session["n"] for browser in browsers]
    assert numbers == list(range(len(browsers)))


def test_no_room_for_a_table() -> None:
    """A full disk is a BackendError that says so; reads go on, nothing is lost, and once there is
    room again the same store works.
    """
    with (
        small_disk(160) as disk,
        PostgresServer(disk / "data", settings={"fsync": "off", "max_wal_size": "48MB"}) as server,
        PGStore(server.dsn, *KEYS, max_length=0) as store,
    ):
        browsers: list[Browser] = []
        fill_disk(disk / "filler", leave=5_000_000)
        error = save_until_refused(store, browsers)
        assert "No space left on device" in str(error)
        assert len(browsers) > 0
        check_all_numbers(store, browsers)
        (disk / "filler").unlink()
        with browsers[0].visit(store) as session:
            session["ballast"] = os.urandom(100_000)
        check_all_numbers(store, browsers)
        save_more(store, browsers)


def test_no_room_for_the_log(server: PostgresServer) -> None:
    """Where the write-ahead log has no room PostgreSQL itself goes down: that is a BackendError,
    and all that was acknowledged is there when it runs again.
    """
    with small_disk(40) as disk:
        server.stop()
        (server.data_dir / "pg_wal").rename(server.data_dir / "old_wal")
        shutil.copytree(server.data_dir / "old_wal", disk / "wal")
        own_as(server.data_dir, disk)
        (server.data_dir / "pg_wal").symlink_to(disk / "wal")
        server.start()
        with PGStore(server.dsn, *KEYS, max_length=0) as store:
            browsers: list[Browser] = []
            fill_disk(disk / "filler", leave=1_000_000)
            save_until_refused(store, browsers)
            assert len(browsers) > 0
            (disk / "filler").unlink()
            # It may have given up, or be about to.
            server.stop("immediate")
            server.start()
            check_all_numbers(store, browsers)
            save_more(store, browsers)
        server.stop("immediate")


def save_more(store: PGStore, browsers: list[Browser]) -> None:
    """Save ten more sessions, and see that they are there."""
    for _ in range(10):
        browsers.append(Browser())
        with browsers[-1].visit(store) as session:
            session["n"] = len(browsers) - 1
    check_all_numbers(store, browsers)


def own_as(model: Path, folder: Path) -> None:
    """Give a folder and what is in it to the owner of another folder."""
    owner = model.stat()
    for path in (folder, *folder.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid)
