"""One statement over one connection: how an answer is awaited."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from pgstore.backends import postgres_wire
from pgstore.backends.postgres_formats import number
from pgstore.backends.postgres_wire import Lost, Refused, Statement, Wire
from pgstore.embedded import PostgresServer
from pgstore.testing import in_fork

ALWAYS, NEVER = 3600.0, -1.0  # for how long a wait stays awake, in seconds
UNDER_WAY = postgres_wire._under_way

_ready = Wire._ready


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread of another test's has a statement under way."""
    monkeypatch.setattr(postgres_wire, "_under_way", set())


@pytest.fixture
def wire(pg_server: PostgresServer) -> Iterator[Wire]:
    with psycopg.connect(pg_server.dsn, autocommit=True) as connection:
        wire = Wire(connection, {}, seconds=5.0)
        wire.execute(Statement("SELECT 1"), [])  # prepared now
        yield wire


class Waits:
    """What happened in the waits: ``yields`` to others, and ``asleep``, in which nobody looked.

    An answer is never there at the first look.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.yields = self.asleep = 0
        self.on_yield: Callable[[], object] = lambda: None
        self._looked = False
        monkeypatch.setattr(os, "sched_yield", self._sched_yield)
        monkeypatch.setattr(Wire, "_ready", lambda *args: self._ready(*args))

    def of(self, wire: Wire, statement: Statement) -> tuple[bool, bool]:
        """Execute a statement. Tell whether its wait was awake, and whether it was asleep."""
        before = self.yields, self.asleep
        self._looked = False
        wire.execute(statement, [])
        return self.yields > before[0], self.asleep > before[1]

    def _sched_yield(self) -> None:
        self.yields += 1
        self.on_yield()

    def _ready(self, wire: Wire, events: int, milliseconds: float) -> bool:
        if milliseconds:
            self.asleep += 1
        elif not self._looked:
            self._looked = True
            return False
        return _ready(wire, events, milliseconds)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    return Waits(monkeypatch)


def awake(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(postgres_wire, "_AWAKE", seconds)


def test_a_wait_begins_awake(wire: Wire, waits: Waits, monkeypatch: pytest.MonkeyPatch) -> None:
    awake(monkeypatch, ALWAYS)
    statement = Statement("SELECT 1")
    assert waits.of(wire, statement) == (True, False)
    assert (statement.doubt, statement.asleep) == (0, 0)


def test_a_slow_statement_is_awaited_asleep(
    wire: Wire, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time that it was slow again, for twice as many times; and only that statement is."""
    statement, tries = Statement("SELECT 1"), []
    awake(monkeypatch, NEVER)
    for turn in range(400):
        left = statement.asleep
        assert waits.of(wire, statement) == (False, True)
        if not left:
            tries.append(turn)
    #                   2  4  8   16  32  64   128  and 128 in between
    assert tries == [0, 3, 8, 17, 34, 67, 132, 261, 390]
    awake(monkeypatch, ALWAYS)
    assert waits.of(wire, Statement("SELECT 1")) == (True, False)


def test_prompt_answers_end_the_doubt(
    wire: Wire, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    statement = Statement("SELECT 1")
    statement.doubt = 2
    awake(monkeypatch, ALWAYS)
    doubts = []
    for _ in range(3):
        assert waits.of(wire, statement) == (True, False)
        doubts.append(statement.doubt)
    assert doubts == [1, 0, 0]


def test_an_answer_that_was_found_late(
    wire: Wire, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else has had the core for long: being woken would have been sooner."""
    statement = Statement("SELECT 1")
    awake(monkeypatch, ALWAYS)
    waits.on_yield = lambda: awake_time_passes(wire)
    now, passed = postgres_wire.time.monotonic, 0.0

    def awake_time_passes(wire: Wire) -> None:
        nonlocal passed
        assert _ready(wire, select.POLLIN, 5000)
        passed = 2 * ALWAYS

    monkeypatch.setattr(postgres_wire.time, "monotonic", lambda: now() + passed)
    assert waits.of(wire, statement) == (True, False)
    assert (statement.doubt, statement.asleep) == (1, 2)


def test_a_long_answer(wire: Wire, waits: Waits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an answer in many packets only the first one is awaited awake."""
    statement = Statement("SELECT count(*), string_agg(n::text, ' ') FROM generate_series(1, $1) n")
    last = 100_000
    for seconds in (ALWAYS, NEVER):
        awake(monkeypatch, seconds)
        result = wire.execute(statement, [last.to_bytes(4, "big")])
        assert number(result.get_value(0, 0)) == last
        assert (result.get_value(0, 1) or b"").endswith(b"%d" % last)
    assert (statement.doubt, statement.asleep) == (1, 2)


def test_what_is_no_statement_of_the_kind_is_awaited_asleep(
    wire: Wire, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Preparing, and a COMMIT that waits for a disk, are not held against a statement."""
    awake(monkeypatch, NEVER)
    statement = Statement("SELECT 1")
    wire.execute(statement, [])
    assert statement.asleep == 2
    wire.script("COMMIT")
    assert (waits.yields, statement.asleep) == (0, 2)


def test_beside_another_nobody_stays_awake(
    wire: Wire, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several threads that ask again and again would keep each other from their work."""
    awake(monkeypatch, ALWAYS)
    other, statement = wire.unprepared(), Statement("SELECT 1")
    wire.execute(statement, [])
    postgres_wire._under_way.add(other)
    assert waits.of(wire, statement) == (False, True)
    postgres_wire._under_way.discard(other)
    assert waits.of(wire, statement) == (True, False)
    waits.on_yield = lambda: postgres_wire._under_way.add(other)
    assert waits.of(wire, statement) == (True, True)
    assert (statement.doubt, statement.asleep) == (0, 0)


def test_what_is_under_way(wire: Wire, waits: Waits, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wire, while its statement is, however that ends."""
    awake(monkeypatch, ALWAYS)
    seen: list[set[Wire]] = []
    waits.on_yield = lambda: seen.append(postgres_wire._under_way.copy())
    waits.of(wire, Statement("SELECT 1"))
    assert seen[-1] == {wire}
    with pytest.raises(Refused):
        wire.execute(Statement("SELECT 1/0"), [])
    assert not postgres_wire._under_way
    wire.connection.close()
    with pytest.raises(Lost):
        wire.execute(Statement("SELECT 1"), [])
    assert not postgres_wire._under_way


def test_nothing_is_under_way_in_a_forked_child(wire: Wire) -> None:
    def check() -> None:
        assert not UNDER_WAY

    UNDER_WAY.add(wire)
    try:
        assert in_fork(check) == 0
    finally:
        UNDER_WAY.discard(wire)


def test_nobody_stays_awake_under_gevent(
    wire: Wire, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where `select.poll` was replaced, it is what lets the other greenlets run."""
    awake(monkeypatch, ALWAYS)
    really = select.poll

    def poll() -> Any:
        return really()

    monkeypatch.setattr(select, "poll", poll)
    assert waits.of(wire, Statement("SELECT 1")) == (False, True)
