"""PgBouncer in transaction mode: the whole contract through it, and nothing is left behind."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pgstore import BackendError, Options, PGStore, merge
from pgstore.backends.postgres_pool import Pool
from pgstore.embedded import PostgresServer
from support.contract import PostgresContract, own_pool
from support.pgbouncer import PgBouncer
from support.postgres import PostgresServers
from support.stores import KEYS, Browser, PostgresLab, Visit
from support.writers import Writers


@pytest.fixture(scope="module")
def bouncer(postgres: PostgresServers) -> Iterator[PgBouncer]:
    """Return a PgBouncer that has two connections to the server."""
    with PgBouncer(postgres(), pool_size=2) as bouncer:
        yield bouncer


@pytest.fixture
def narrow(pg_server: PostgresServer) -> Iterator[PgBouncer]:
    """Return a PgBouncer that has one connection to the server: whatever is left on it is seen."""
    with PgBouncer(pg_server, pool_size=1) as bouncer:
        yield bouncer


def pooled(bouncer: PgBouncer, lab: PostgresLab, **settings: Any) -> PGStore:
    return PGStore(bouncer.dsn, *KEYS, db_schema=lab.schema, pooler="transaction", **settings)


class TestThroughPgBouncer(PostgresContract):
    """The contract of a backend, with eight clients on two connections to the server."""

    on = "PostgreSQL, behind PgBouncer"

    @pytest.fixture(autouse=True)
    def _bouncer(self, bouncer: PgBouncer) -> None:
        self.bouncer = bouncer

    def make_pool(self) -> Pool:
        return own_pool(self.bouncer.dsn, "transaction")


# What PgBouncer itself keeps for each client and sets again.
TRACKED = {
    "application_name",
    "client_encoding",
    "DateStyle",
    "IntervalStyle",
    "standard_conforming_strings",
    "TimeZone",
}


def left_behind(bouncer: PgBouncer) -> dict[str, Any]:
    """Look, as the next client, at what is on the only connection to the server."""
    with psycopg.connect(bouncer.dsn, autocommit=True, prepare_threshold=None) as connection:

        def query(text: str) -> list[Any]:
            return connection.execute(text).fetchall()  # type: ignore[arg-type]

        return {
            "server process": query("SELECT pg_backend_pid()"),
            "prepared statements": query("SELECT name FROM pg_prepared_statements"),
            "advisory locks": query("SELECT objid FROM pg_locks WHERE locktype = 'advisory'"),
            "cursors": query("SELECT name FROM pg_cursors WHERE name <> ''"),
            "channels": query("SELECT pg_listening_channels()"),
            "settings": sorted(
                (name, value)
                for name, value in query(
                    "SELECT name, setting FROM pg_settings WHERE source IN ('session', 'client')"
                )
                if name not in TRACKED
            ),
            "temporary tables": query("SELECT relname FROM pg_class WHERE relpersistence = 't'"),
            "role": query("SELECT current_user, session_user"),
            "search_path": query("SELECT current_schemas(true)"),
        }


def test_nothing_is_left_for_the_next_client(narrow: PgBouncer, pg_lab: PostgresLab) -> None:
    """After everything that a store does, the server's connection is as it was."""
    before = left_behind(narrow)
    assert before["prepared statements"] == before["advisory locks"] == []
    store = pooled(narrow, pg_lab, pool_size=3, options=Options(max_age=3600))
    with store:
        browser = Browser()
        for step in range(3):
            with browser.visit(store) as session:
                session["n"] = step
        pg_lab.pass_time(1800)
        with browser.visit(store):
            pass
        with browser.visit(store) as session:
            session.login("alice")
        with store.backend.locked(pg_lab.row()["key"]) as locked:
            locked.load(pg_lab.row()["key"])
        assert store.reseal()["current"] == 1
        pg_lab.pass_time(7200)
        assert store.delete_expired() == 1
        with browser.visit(store) as session:
            session["n"] = 1
        with browser.visit(store) as session:
            session.delete()
        assert left_behind(narrow) == before
    assert left_behind(narrow) == before


@pytest.mark.parametrize("size", [1, 2])
def test_many_clients_on_few_connections(
    pg_server: PostgresServer, pg_lab: PostgresLab, size: int
) -> None:
    """Six threads on one or two connections to the server: each sees its own session, and a
    counter that they share is exact.
    """
    with (
        PgBouncer(pg_server, pool_size=size) as bouncer,
        pooled(bouncer, pg_lab, pool_size=6, merge={"hits": merge.add}) as store,
    ):
        with Writers(store, 6) as writers:
            for _ in range(5):
                writers.wait_for_turns()
        writers.check_all_is_there()
        assert writers.acknowledged >= 60
        assert writers.unknown == 0


def test_pgbouncer_killed_and_started_again(
    bouncer: PgBouncer, pg_lab: PostgresLab, caplog: pytest.LogCaptureFixture
) -> None:
    """Without PgBouncer requests are refused; with it back the same store works."""
    caplog.set_level(logging.CRITICAL, "psycopg.pool")
    with pooled(bouncer, pg_lab, pool_size=3) as store:
        browser = Browser()
        with browser.visit(store) as session:
            session["x"] = 1
        bouncer.kill()
        with pytest.raises(BackendError, match="cannot be reached"):
            Visit(browser, store)
        bouncer.start()
        with browser.visit(store) as session:
            session["x"] += 1
        assert Visit(browser, store).session["x"] == 2


def test_without_being_told(narrow: PgBouncer, pg_lab: PostgresLab) -> None:
    """A store that was not told of PgBouncer says at once what is wrong."""
    with pytest.raises(BackendError, match="startup parameter"):
        PGStore(narrow.dsn, *KEYS, db_schema=pg_lab.schema)
