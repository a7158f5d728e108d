"""What the statements about users cost, and how they meet, on PostgreSQL and SQLite."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgstore import PGStore, Store
from pgstore.backends import sqlite_files
from pgstore.backends.postgres import PostgresBackend
from pgstore.backends.sqlite import SQLiteBackend
from pgstore.embedded import PostgresServer
from support.fault_proxy import FaultProxy
from support.stores import KEYS, Browser, Lab, PostgresLab, SQLiteLab

Act = Callable[[Store, str], Any]

# Each in one statement, for the handle of a session of Alice's.
ACTS: dict[str, Act] = {
    "sessions_of": lambda store, handle: store.sessions_of("alice"),
    "fetch": lambda store, handle: store.fetch(handle),
    "fetch by its owner": lambda store, handle: store.fetch(handle, owner="alice"),
    "revoke": lambda store, handle: store.revoke(handle),
    "revoke by its owner": lambda store, handle: store.revoke(handle, owner="alice"),
    "revoke_user": lambda store, handle: store.revoke_user("alice"),
}


def sign_in(store: Store) -> str:
    """Make a session of Alice's and return its handle."""
    with Browser().visit(store) as session:
        session.login("alice")
    return session.handle


@pytest.fixture
def postgres_count(
    pg_server: PostgresServer, pg_lab: PostgresLab
) -> Iterator[tuple[Store, Callable[[], int]]]:
    """Return a store, and what tells how many round trips it has made."""
    pg_lab.store()
    with FaultProxy("127.0.0.1", pg_server.port) as proxy:
        dsn = f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres"
        settings: dict[str, Any] = {"db_schema": pg_lab.schema, "schema": "off", "pool_size": 1}
        with PGStore(dsn, *KEYS, **settings) as store:
            yield store, lambda: proxy.round_trips


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
def test_one_round_trip_on_postgres(
    postgres_count: tuple[Store, Callable[[], int]], act: Act
) -> None:
    """A user's sessions are listed, fetched and ended in one round trip each."""
    store, count = postgres_count
    act(store, sign_in(store))  # connects, and prepares the statement
    handle = sign_in(store)
    before = count()
    assert act(store, handle)
    assert count() == before + 1


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
def test_one_statement_on_sqlite(tmp_path: Path, act: Act, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's sessions are listed, fetched and ended in one statement each."""
    ran: list[str] = []
    run = sqlite_files._Connection.run

    def counting(self: Any, sql: str, *arguments: Any) -> Any:
        ran.append(sql)
        return run(self, sql, *arguments)

    with SQLiteLab(tmp_path / "sessions.db") as lab:
        store = lab.store()
        handle = sign_in(store)
        monkeypatch.setattr(sqlite_files._Connection, "run", counting)
        assert act(store, handle)
    assert len(ran) == 1


# -- indexes


def multiply(lab: Lab) -> None:
    """Make of the one row 4000 more, of 500 users, and let the database look at them."""
    names = ", ".join(name for name in lab.row() if name not in ("key", "user_key"))
    if isinstance(lab, PostgresLab):
        lab.execute(
            f"INSERT INTO http_sessions (key, user_key, {names}) "
            f"SELECT decode(md5(n::text), 'hex'), 'user ' || n % 500, {names} "
            "FROM http_sessions, generate_series(1, 4000) n"
        )
        lab.execute("ANALYZE http_sessions")
    elif isinstance(lab, SQLiteLab):
        with closing(sqlite3.connect(lab.path)) as connection, connection:
            connection.execute(
                "WITH RECURSIVE s (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < 4000) "
                f"INSERT INTO http_sessions (key, user_key, {names}) "
                f"SELECT randomblob(16), 'user ' || n % 500, {names} FROM http_sessions, s"
            )
            connection.execute("ANALYZE")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("of_user", "'user 7'"),
        ("delete_of_user", "'user 7', NULL"),
        ("trim_user", "'user 7', '\\x00', 3"),
        ("delete", "'\\x00', NULL, NULL, NULL"),
        ("load", "'\\x00'"),
    ],
)
def test_indexes_on_postgres(pg_lab: PostgresLab, name: str, arguments: str) -> None:
    """No statement about a user or a session reads the whole of a large table."""
    store = pg_lab.store()
    sign_in(store)
    multiply(pg_lab)
    assert isinstance(store.backend, PostgresBackend)
    statement = getattr(store.backend._sql, name).text.decode()
    with psycopg.connect(pg_lab.dsn) as connection:
        for mode in ("force_custom_plan", "force_generic_plan"):
            connection.execute(f"SET plan_cache_mode = {mode}")
            connection.execute(f"PREPARE {mode} AS {statement}")
            rows = connection.execute(f"EXPLAIN EXECUTE {mode} ({arguments})").fetchall()
            plan = "\n".join(row[0] for row in rows)
            assert "Seq Scan" not in plan, plan
            assert ("http_sessions_user_key" in plan) == ("user" in name), plan


@pytest.mark.parametrize("name", ["of_user", "delete_of_user", "delete", "load"])
def test_indexes_on_sqlite(tmp_path: Path, name: str) -> None:
    """No statement about a user or a session reads the whole of a large file."""
    with SQLiteLab(tmp_path / "sessions.db") as lab:
        store = lab.store()
        sign_in(store)
        multiply(lab)
        assert isinstance(store.backend, SQLiteBackend)
        statement = getattr(store.backend._sql, name)
        values = ("key", "now", "version", "generation", "user_key", "keep", "newest")
        with closing(sqlite3.connect(lab.path)) as connection:
            query = f"EXPLAIN QUERY PLAN {statement}"
            rows = connection.execute(query, dict.fromkeys(values)).fetchall()
    plan = "\n".join(row[3] for row in rows)
    assert "SCAN" not in plan, plan
    assert ("http_sessions_user_key" in plan) == ("user" in name), plan


# -- how they meet


def test_a_deadlock_is_tried_again(pg_lab: PostgresLab) -> None:
    """Two that delete several rows of a user in different orders both get through."""
    # The store's statement is the one that finds the deadlock, and is refused for it.
    dsn = f"{pg_lab.dsn}?options=-c%20deadlock_timeout%3D1s"
    with (
        PGStore(dsn, *KEYS, db_schema=pg_lab.schema) as store,
        psycopg.connect(pg_lab.dsn, autocommit=True) as other,
    ):
        for _ in range(2):
            sign_in(store)
        other.execute(f"SET search_path = {pg_lab.schema}; SET deadlock_timeout = '60s'")
        first, last = (row[0] for row in other.execute("SELECT key FROM http_sessions"))
        lock = "SELECT FROM http_sessions WHERE key = %s FOR UPDATE"
        ended: list[int] = []
        revoking = threading.Thread(target=lambda: ended.append(store.revoke_user("alice")))
        with other.transaction():
            other.execute(lock, [last])
            revoking.start()
            wait_for_a_waiter(pg_lab.dsn)
            other.execute(lock, [first])
        revoking.join(10)
        assert ended == [2]


def wait_for_a_waiter(dsn: str) -> None:
    """Return when some statement waits for a lock."""
    deadline = time.monotonic() + 10
    with psycopg.connect(dsn, autocommit=True) as connection:
        query = "SELECT FROM pg_locks WHERE NOT granted"
        while not connection.execute(query).fetchall():
            assert time.monotonic() < deadline
