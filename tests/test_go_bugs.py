"""The bugs of the Go originals, one test each: they must not come back.

What a test here names is a bug of gorilla's pgstore, sessionup's SQLite store, or an scs store.
Those of user lists and hooks are tested where these are.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import closing
from copy import copy
from datetime import timedelta
from pathlib import Path

import psycopg
import psycopg_pool
import pytest
from werkzeug.datastructures import Headers

from pgstore import (
    BackendError,
    MemoryStore,
    Options,
    PGSession,
    PGStore,
    SessionGone,
    SessionTooLong,
    generate_random_key,
)
from support.postgres import PostgresServers
from support.stores import KEYS, Browser, Lab, PostgresLab, SQLiteLab, Visit


def test_expired_rows_served_on_read(lab: Lab, browser: Browser) -> None:
    """An expired row that no sweep has deleted yet is not served."""
    store = lab.store(options=Options(max_age=60))
    with browser.visit(store) as session:
        session["x"] = 1
    lab.pass_time(3600)
    assert len(lab.rows()) == 1
    assert Visit(browser, store).session.is_new


def test_an_expired_row_revived_by_a_write(lab: Lab, browser: Browser) -> None:
    """A request that loaded the row before it expired does not revive it."""
    store = lab.store(options=Options(max_age=60))
    with browser.visit(store) as session:
        session["x"] = 1
    slow = Visit(browser, store)
    lab.pass_time(3600)
    before = lab.rows()
    slow.session["x"] = 2
    with pytest.raises(SessionGone):
        slow.save()
    assert lab.rows() == before


def test_a_revoked_id_adopted_again_at_the_next_login(lab: Lab, browser: Browser) -> None:
    """A browser that comes back with the id of a deleted session logs in under a new one."""
    store = lab.store()
    with browser.visit(store) as session:
        session.login("alice")
        revoked = session.handle
    with copy(browser).visit(store) as session:
        session.delete()
    with browser.visit(store) as session:
        session.login("alice")
        assert session.handle != revoked
    assert len(lab.rows()) == 1


def test_the_second_save_in_one_request_inserting_twice(lab: Lab, browser: Browser) -> None:
    """Saving a new session twice makes one row."""
    visit = Visit(browser, lab.store())
    for number in range(2):
        visit.session["x"] = number
        visit.save()
    assert len(lab.rows()) == 1


def test_an_update_of_a_deleted_row_reported_as_success(lab: Lab, browser: Browser) -> None:
    """Every write looks at its row count."""
    store = lab.store()
    with browser.visit(store) as session:
        session["x"] = 1
    visit = Visit(browser, store)
    store.backend.delete(visit.session._id.selector)
    visit.session["x"] = 2
    with pytest.raises(SessionGone):
        visit.save()


def test_max_age_0_stored_as_already_expired(lab: Lab, browser: Browser) -> None:
    """A cookie for the browser's session has a row that lives."""
    store = lab.store(options=Options(max_age=0))
    with browser.visit(store) as session:
        session["x"] = 1
    assert Visit(browser, store).session["x"] == 1
    assert store.delete_expired() == 0


def test_shared_settings_changed_by_every_load(lab: Lab, browser: Browser) -> None:
    """A session's options are its own: changing them changes neither the store's nor another
    session's.
    """
    store = lab.store()
    with browser.visit(store) as session:
        session["x"] = 1
        session.options.max_age = 60
        session.options.path = "/app"
    before = store.options
    assert Visit(browser, store).session.options.max_age == 60
    assert store.options is before
    other = Visit(Browser(), store).session.options
    assert (other.max_age, other.path) == (2592000, "/")


def test_one_limit_for_cookie_and_data(lab: Lab, browser: Browser) -> None:
    """max_length bounds the row's data; the cookie is short whatever the row holds."""
    store = lab.store(max_length=0)
    with browser.visit(store) as session:
        session["x"] = "y" * 100_000
    assert len(browser.cookies["sid"]) < 200
    assert len(Visit(browser, store).session["x"]) == 100_000
    store.max_length(50)
    visit = Visit(Browser(), store)
    visit.session["x"] = "y" * 51
    with pytest.raises(SessionTooLong):
        visit.save()


def test_dropping_an_old_key_breaking_rows_that_are_reread_under_the_new_one(
    lab: Lab, browser: Browser
) -> None:
    """A row that was saved under the new key is sealed with it: the old one can be dropped."""
    old, new = KEYS, (b"n" * 32, b"N" * 32)
    with browser.visit(lab.store(*old)) as session:
        session["x"] = 1
    with browser.visit(lab.store(*new, *old)):
        pass
    assert Visit(browser, lab.store(*new)).session.values == {"x": 1}


def test_table_creation_racing_between_workers(pg_lab: PostgresLab) -> None:
    """Eight stores that are made at once on an empty schema all succeed (16 processes:
    test_postgres).
    """
    barrier = threading.Barrier(8)
    failures: list[BaseException] = []

    def make() -> None:
        try:
            barrier.wait(10)
            pg_lab.make(*KEYS).close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert pg_lab.rows() == []


def test_stop_cleanup_twice_hanging(lab: Lab) -> None:
    """Stopping a cleanup again returns at once."""
    store = lab.store()
    quit, done = store.cleanup(interval=3600)
    for _ in range(3):
        store.stop_cleanup(quit, done)
    assert done.is_set()


def test_run_cleanup_stalling_with_no_reader(lab: Lab, browser: Browser) -> None:
    """Sweeps go on though nobody takes their results."""
    store = lab.store(options=Options(max_age=60))
    swept = threading.Semaphore(0)
    sweep = store.backend.sweep

    def counted(limit: int, horizon: float) -> list[PGSession] | None:
        swept.release()
        return sweep(limit, horizon)

    store.backend.sweep = counted  # type: ignore[method-assign]
    stop = threading.Event()
    results = store.run_cleanup(stop, interval=0.001)
    for _ in range(150):
        assert swept.acquire(timeout=10)
    stop.set()
    assert all(result.error is None for result in results)


def test_one_unbounded_delete_waiting_on_a_locked_row(pg_lab: PostgresLab) -> None:
    """A sweep passes over a row that somebody has locked, and deletes the others."""
    store = pg_lab.store(options=Options(max_age=60))
    for _ in range(3):
        with Browser().visit(store) as session:
            session["x"] = 1
    pg_lab.pass_time(3600)
    with psycopg.connect(pg_lab.dsn) as other:
        locked = other.execute(
            f"SELECT key FROM {pg_lab.schema}.http_sessions ORDER BY key LIMIT 1 FOR UPDATE"
        ).fetchone()
        assert store.delete_expired() == 2
    assert [(row["key"],) for row in pg_lab.rows()] == [locked]
    assert store.delete_expired() == 1


def test_an_unchecked_random_source(monkeypatch: pytest.MonkeyPatch, browser: Browser) -> None:
    """A failing random source raises: there is never a weak key or id."""
    store = MemoryStore(*KEYS)

    def broken(size: int) -> bytes:
        raise OSError("no entropy")

    monkeypatch.setattr(os, "urandom", broken)
    monkeypatch.setattr("secrets.token_bytes", broken)
    for make in (generate_random_key, lambda: store.get(browser.environ(), "sid")):
        with pytest.raises(OSError, match="no entropy"):
            make()


def test_null_times(lab: Lab, browser: Browser) -> None:
    """Times that a row does not have are None, not an error or a year 1."""
    store = lab.store()
    with browser.visit(store) as session:
        session["x"] = 1
    session = Visit(browser, store).session
    assert session.authenticated_on is None
    assert lab.row()["renewed_on"] is None


@pytest.mark.parametrize("days", [-1, 1])
def test_application_clock_against_database_clock(
    pg_lab: PostgresLab, browser: Browser, days: int
) -> None:
    """An application whose clock is a day off neither shortens nor lengthens a session."""
    import datetime as dt

    import time_machine as machine

    store = pg_lab.store(options=Options(max_age=3600))
    with machine.travel(dt.datetime.now(dt.UTC) + timedelta(days=days), tick=True):
        with browser.visit(store) as session:
            session["x"] = 1
        assert not Visit(browser, store).session.is_new
    assert not Visit(browser, store).session.is_new
    pg_lab.pass_time(3600 + 361)
    assert Visit(browser, store).session.is_new


def test_closing_a_pool_that_the_caller_owns(pg_lab: PostgresLab) -> None:
    """A store on a borrowed pool leaves it open."""
    with psycopg_pool.ConnectionPool(pg_lab.dsn, min_size=1, open=True) as pool:
        store = PGStore.from_pool(pool, *KEYS, db_schema=pg_lab.schema)
        store.close()
        with pool.connection() as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_an_outage_read_as_not_found(
    postgres: PostgresServers, pg_lab: PostgresLab, browser: Browser
) -> None:
    """A database that is down raises BackendError; it is never a new session."""
    store = pg_lab.store()
    with browser.visit(store) as session:
        session["x"] = 1
    nowhere = PGStore(
        "postgresql://postgres@127.0.0.1:1/postgres", *KEYS, schema="off", pool_timeout=1
    )
    with nowhere, pytest.raises(BackendError, match="cannot be reached"):
        nowhere.get(browser.environ(), "sid")


def test_a_save_that_never_moves_the_expiry(lab: Lab, browser: Browser) -> None:
    """Saving a change moves the expiry."""
    store = lab.store()
    with browser.visit(store) as session:
        session["x"] = 1
    lab.pass_time(3600)
    before = lab.row()["expires_on"]
    with browser.visit(store) as session:
        session["x"] = 2
    assert lab.row()["expires_on"] > before


def test_local_time_text_compared_with_utc_text(tmp_path: Path, browser: Browser) -> None:
    """SQLite's times are numbers, the same in every time zone."""
    lab = SQLiteLab(tmp_path / "sessions.db")
    zones = ("Pacific/Kiritimati", "Pacific/Niue")  # 25 hours apart
    import time

    before = os.environ.get("TZ")
    try:
        with lab:
            for zone in zones:
                os.environ["TZ"] = zone
                time.tzset()
                store = lab.store(options=Options(max_age=3600))
                with browser.visit(store) as session:
                    session["x"] = zone
                assert store.delete_expired() == 0
                assert Visit(browser, store).session["x"] == zone
        assert len(lab.rows()) == 1
    finally:
        os.environ.pop("TZ", None)
        if before is not None:
            os.environ["TZ"] = before
        time.tzset()


def test_a_failed_begin_immediate_leaking_its_connection(tmp_path: Path, browser: Browser) -> None:
    """A lock that cannot be had is an error, and leaves the store usable."""
    lab = SQLiteLab(tmp_path / "sessions.db")
    with lab:
        store = lab.store(busy_timeout=0.01)
        with browser.visit(store) as session:
            session["x"] = 1
        key = session._id.selector
        with closing(sqlite3.connect(lab.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            descriptors = len(os.listdir("/proc/self/fd"))
            for _ in range(20):
                with pytest.raises(BackendError), store.backend.locked(key):
                    raise AssertionError("the lock is somebody else's")
            assert len(os.listdir("/proc/self/fd")) <= descriptors
            other.execute("ROLLBACK")
        with browser.visit(store) as session:
            session["x"] = 2
        assert Visit(browser, store).session["x"] == 2


def test_an_in_list_past_the_variable_limit(tmp_path: Path) -> None:
    """One sweep deletes more rows than SQLite takes variables."""
    with SQLiteLab(tmp_path / "sessions.db") as lab:
        store = lab.store(options=Options(max_age=60))
        browser = Browser()
        with browser.visit(store) as session:
            session["x"] = 1
        lab.pass_time(3600)
        with closing(sqlite3.connect(lab.path)) as connection, connection:
            names = [row[1] for row in connection.execute("PRAGMA table_info(http_sessions)")]
            columns = ", ".join(names)
            values = ", ".join("randomblob(16)" if name == "key" else name for name in names)
            for _ in range(16):
                connection.execute(
                    f"INSERT INTO http_sessions ({columns}) SELECT {values} FROM http_sessions"
                )
        assert store.delete_expired() == 2**16


def test_x_forwarded_for_believed_from_anyone(lab: Lab, browser: Browser) -> None:
    """The IP is the WSGI server's REMOTE_ADDR, whatever a client claims."""
    store = lab.store()
    environ = browser.environ(HTTP_X_FORWARDED_FOR="203.0.113.9", HTTP_FORWARDED="for=203.0.113.9")
    session = store.get(environ, "sid")
    session.login("alice")
    session.save(environ, Headers())
    assert lab.row()["ip"] == "192.0.2.7"


def test_the_bearer_id_handed_out_by_the_device_list(lab: Lab, browser: Browser) -> None:
    """What a row shows of a session, its handle, is no part of what a browser must present."""
    store = lab.store()
    with browser.visit(store) as session:
        session.login("alice")
    (row,) = store.backend.scan(None, 9)
    secret = session._id.secret
    assert not any(secret in value for value in lab.row().values() if isinstance(value, bytes))
    assert row.key == session._id.selector
    assert session.handle not in browser.cookies["sid"]
