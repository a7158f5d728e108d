"""What was prepared vanishes, the table changes or goes, and one node's clock is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import LiteralString

import psycopg
import psycopg_pool
import pytest

import pgstore
from pgstore import Options, PGStore, SchemaError, merge
from support.contract import each_connection
from support.stores import KEYS, Browser, PostgresLab, Visit
from support.writers import Writers

ROUNDS = 5


@pytest.fixture
def store(pg_lab: PostgresLab) -> PGStore:
    """Return a store with eight connections."""
    store = pg_lab.store(pool_size=8, merge={"hits": merge.add})
    assert isinstance(store, PGStore)
    return store


def prepare_everywhere(store: PGStore) -> Browser:
    """Load and save over each connection of a pool of eight, so that each has planned both."""
    browser = Browser()
    with browser.visit(store) as session:
        session["x"] = 0
    for _ in each_connection(store, 8):
        with browser.visit(store) as session:
            session["x"] += 1
    return browser


MIGRATIONS: list[LiteralString] = [
    "ALTER TABLE http_sessions ALTER ip TYPE varchar(99)",
    "ALTER TABLE http_sessions ADD COLUMN colour text",
    "ALTER TABLE http_sessions ALTER ip TYPE text",
    "ALTER TABLE http_sessions DROP COLUMN colour",
]


@pytest.mark.parametrize("statement", MIGRATIONS[:2])
def test_a_migration_between_requests(
    store: PGStore, pg_lab: PostgresLab, statement: LiteralString
) -> None:
    """A column's type changes when every connection has its statements planned: no request
    notices.
    """
    browser = prepare_everywhere(store)
    pg_lab.execute(statement)
    for _ in each_connection(store, 8):
        assert Visit(browser, store).session["x"] == 8
    pg_lab.execute("ALTER TABLE http_sessions ALTER user_agent TYPE varchar(999)")
    with Browser().visit(store) as session:
        session["x"] = 1
    for _ in each_connection(store, 8):
        with browser.visit(store) as session:
            session["x"] += 1
    assert Visit(browser, store).session["x"] == 16


def test_a_migration_before_a_transaction(store: PGStore, pg_lab: PostgresLab) -> None:
    """What was planned before a migration ends no transaction after it."""
    prepare_everywhere(store)
    (row,) = store.backend.scan(None, 1)
    pg_lab.execute(MIGRATIONS[0])
    for _ in each_connection(store, 8):
        with store.backend.locked(row.key) as backend:
            loaded = backend.load(row.key)
        assert loaded is not None and loaded.row == row
    assert store.delete_expired() == 0


def test_migrations_under_load(store: PGStore, pg_lab: PostgresLab) -> None:
    """Columns come, go and change their types while eight connections are busy: no request fails,
    and no save is lost or done twice.
    """
    with Writers(store, 6) as writers:
        for _ in range(ROUNDS):
            for statement in MIGRATIONS:
                pg_lab.execute(statement)
                writers.wait_for_turns()
    writers.check_all_is_there()
    errors = [turn.error for writer in writers.writers for turn in writer.turns if turn.error]
    assert errors == []


def test_discarded_under_load(pg_lab: PostgresLab) -> None:
    """DISCARD ALL on connections that the caller lends: no request fails, and none is lost."""
    with psycopg_pool.ConnectionPool(
        pg_lab.dsn,
        kwargs={"autocommit": True, "prepare_threshold": None},
        min_size=4,
        max_size=4,
        open=True,
    ) as pool:
        store = PGStore.from_pool(pool, *KEYS, db_schema=pg_lab.schema, merge={"hits": merge.add})
        with Writers(store, 6) as writers:
            for _ in range(ROUNDS):
                for _ in range(4):
                    with pool.connection() as connection:
                        connection.execute("DISCARD ALL")
                writers.wait_for_turns()
        writers.check_all_is_there()
    errors = [turn.error for writer in writers.writers for turn in writer.turns if turn.error]
    assert errors == []


def test_a_table_that_is_dropped(store: PGStore, pg_lab: PostgresLab) -> None:
    """A table that goes under a running store is a SchemaError for every verb, and never a new
    session; made again, the same store works on it.
    """
    browser = prepare_everywhere(store)
    slow = Visit(browser, store)
    slow.session["x"] = 20
    leaving = Visit(copy(browser), store)
    leaving.session.delete()
    first = Visit(Browser(), store)
    first.session["x"] = 1
    pg_lab.execute("ALTER TABLE http_sessions RENAME TO hidden")
    for act in (
        slow.save,
        leaving.save,
        first.save,
        store.delete_expired,
    ):
        with pytest.raises(SchemaError, match="is missing"):
            act()
    for _ in each_connection(store, 8):
        with pytest.raises(SchemaError, match="is missing"):
            Visit(browser, store)
    for visit in (slow, leaving, first):
        assert "Set-Cookie" not in visit.headers
    pg_lab.execute("ALTER TABLE hidden RENAME TO http_sessions")
    slow.save()
    assert Visit(browser, store).session["x"] == 20
    leaving.save()
    assert Visit(browser, store).session.is_new
    pg_lab.execute("DROP TABLE http_sessions, http_sessions_schema")
    pg_lab.store()
    first.save()
    assert Visit(first.browser, store).session["x"] == 1


# -- one node's clock

NODE = """
import sys, datetime, time_machine
from pgstore import Options, PGStore
from support.stores import KEYS, Browser, Visit

dsn, schema, days = sys.argv[1:]
wrong = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=int(days))
with time_machine.travel(wrong, tick=True):
    store = PGStore(dsn, *KEYS, db_schema=schema, options=Options(max_age=3600))
    with store:
        for line in sys.stdin:
            verb, cookie = line.split()
            browser = Browser()
            if cookie != "-":
                browser.cookies["sid"] = cookie
            answer = None
            if verb == "sweep":
                answer = store.delete_expired()
            else:
                visit = Visit(browser, store)
                answer = visit.session.get("n")
                if verb == "count":
                    visit.session["n"] = answer = (answer or 0) + 1
                if verb == "login":
                    visit.session.login("alice")
                visit.save()
            print(answer, browser.cookies.get("sid", "-"), flush=True)
"""


class Node:
    """A process of its own, whose clock is off."""

    def __init__(self, lab: PostgresLab, days: int) -> None:
        paths = [Path(__file__).parents[1], Path(pgstore.__file__).parents[1]]
        self._process = subprocess.Popen(
            [sys.executable, "-c", NODE, lab.dsn, lab.schema, str(days)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, verb: str, browser: Browser | None = None) -> str:
        assert self._process.stdin and self._process.stdout
        cookie = browser.cookies.get("sid", "-") if browser else "-"
        print(verb, cookie, file=self._process.stdin, flush=True)
        answer, cookie = self._process.stdout.readline().split()
        if browser and cookie != "-":
            browser.cookies["sid"] = cookie
        return answer

    def close(self) -> int:
        self._process.communicate(timeout=30)
        return self._process.returncode


@pytest.fixture(params=[-1, 1])
def node(request: pytest.FixtureRequest, pg_lab: PostgresLab) -> Iterator[Node]:
    """Return a node whose clock is a day behind or ahead."""
    node = Node(pg_lab, request.param)
    yield node
    assert node.close() == 0


def test_one_of_two_nodes_has_a_wrong_clock(
    pg_lab: PostgresLab, node: Node, browser: Browser
) -> None:
    """A session goes to and fro between a node whose clock is right and one whose clock is a day
    off: none of it is lost, shortened or lengthened, and the wrong node sweeps nothing that lives.
    """
    store = pg_lab.store(options=Options(max_age=3600))
    assert node("count", browser) == "1"
    with browser.visit(store) as session:
        session["n"] += 1
    assert node("count", browser) == "3"
    assert node("login", browser) == "3"
    assert node("sweep") == "0"
    pg_lab.pass_time(3000)
    assert node("read", browser) == "3"  # moves the expiry
    pg_lab.pass_time(3000)
    assert node("sweep") == "0"
    assert Visit(browser, store).session["n"] == 3
    with psycopg.connect(pg_lab.dsn, options=f"-c search_path={pg_lab.schema}") as connection:
        row = connection.execute(
            "SELECT extract(epoch FROM expires_on - seen_on), seen_on <= now(), "
            "seen_on > now() - interval '3001 s' FROM http_sessions"
        ).fetchone()
    assert row is not None
    assert (int(row[0]), row[1]) == (3900, True)
    pg_lab.pass_time(3601 + 300)
    assert node("read", copy(browser)) == "None"
    assert node("sweep") == "1"
    assert pg_lab.rows() == []
