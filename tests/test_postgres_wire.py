"""One statement over one connection: how an answer is awaited."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from pgstore.backends import postgres_wire
from pgstore.backends.postgres_formats import number
from pgstore.backends.postgres_wire import Statement, Wire
from pgstore.embedded import PostgresServer
from pgstore.testing import in_fork

ALWAYS, NEVER = 3600.0, -1.0  # for how long a wait stays awake, in seconds


@pytest.fixture
def wire(pg_server: PostgresServer) -> Iterator[Wire]:
    with psycopg.connect(pg_server.dsn, autocommit=True) as connection:
        yield Wire(connection, {}, seconds=5.0)


@pytest.fixture
def yields(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One entry for each time that a wait gave the core to others."""
    seen: list[None] = []
    really = os.sched_yield

    def sched_yield() -> None:
        seen.append(None)
        really()

    monkeypatch.setattr(os, "sched_yield", sched_yield)
    return seen


def slow() -> Statement:
    return Statement("SELECT 1 FROM pg_sleep(0.005)")


def awake(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(postgres_wire, "_AWAKE", seconds)


def test_a_wait_begins_awake(
    wire: Wire, yields: list[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    awake(monkeypatch, ALWAYS)
    statement = slow()
    wire.execute(statement, [])
    assert yields
    assert statement.asleep == 0


def test_a_slow_statement_is_awaited_asleep(
    wire: Wire, yields: list[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time that it was slow again, for twice as many times; and only that statement is."""
    statement, tries = slow(), []
    wire.execute(statement, [])  # prepared now
    statement.doubt = statement.asleep = 0
    yields.clear()
    awake(monkeypatch, NEVER)
    for turn in range(100):
        before = statement.doubt
        wire.execute(statement, [])
        if statement.doubt > before:
            tries.append(turn)
    assert tries == [0, 3, 8, 17, 34, 67]  # with 2, 4, 8, 16 and 32 in between
    assert not yields
    awake(monkeypatch, ALWAYS)
    wire.execute(slow(), [])
    assert yields


def test_there_is_a_most_of_doubt(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    awake(monkeypatch, NEVER)
    statement = slow()
    statement.doubt = 100
    wire.execute(statement, [])
    assert statement.asleep <= 128


def test_a_prompt_answer_ends_the_doubt(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    statement = Statement("SELECT 1")
    statement.doubt = 5
    awake(monkeypatch, ALWAYS)
    wire.execute(statement, [])
    assert (statement.doubt, statement.asleep) == (0, 0)


def test_an_awake_wait_gives_the_answer(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than one packet long, too."""
    awake(monkeypatch, ALWAYS)
    statement = Statement("SELECT count(*), string_agg(n::text, ' ') FROM generate_series(1, $1) n")
    for last in (1, 100_000):
        result = wire.execute(statement, [last.to_bytes(4, "big")])
        assert number(result.get_value(0, 0)) == last
        assert (result.get_value(0, 1) or b"").endswith(b"%d" % last)


def test_beside_another_wait_nobody_stays_awake(
    wire: Wire, pg_server: PostgresServer, yields: list[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several threads that ask again and again would keep each other from their work."""
    awake(monkeypatch, NEVER)
    statement, lock = slow(), Statement("SELECT pg_advisory_lock(4711)")
    with (
        ThreadPoolExecutor() as threads,
        psycopg.connect(pg_server.dsn, autocommit=True) as holder,
        psycopg.connect(pg_server.dsn, autocommit=True) as connection,
    ):
        holder.execute(lock.text)
        waiting = threads.submit(wire.execute, lock, [])
        while not waits_for_a_lock(holder, wire):
            assert not waiting.done()
        awake(monkeypatch, ALWAYS)
        other = Wire(connection, {}, seconds=5.0)
        other.execute(statement, [])
        assert not yields
        assert statement.doubt == 0
        holder.close()
        waiting.result()
        other.execute(statement, [])
        assert yields


def waits_for_a_lock(asking: psycopg.Connection[Any], wire: Wire) -> bool:
    """Tell whether a wire's statement waits for an advisory lock."""
    process = wire.connection.info.backend_pid
    query = "SELECT FROM pg_locks WHERE pid = %s AND NOT granted"
    return asking.execute(query, [process]).rowcount == 1


def test_a_forked_child_knows_of_no_waits(wire: Wire) -> None:
    """Threads of the parent's do not wait there."""

    def check() -> None:
        assert not postgres_wire._waiting

    postgres_wire._waiting.add(wire)
    try:
        assert in_fork(check) == 0
    finally:
        postgres_wire._waiting.clear()


def test_nobody_stays_awake_under_gevent(
    wire: Wire, yields: list[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where `select.poll` was replaced, it is what lets the other greenlets run."""
    awake(monkeypatch, ALWAYS)
    really = select.poll

    def poll() -> Any:
        return really()

    monkeypatch.setattr(select, "poll", poll)
    wire.execute(slow(), [])
    assert not yields
