"""A crowd on one session: threads in several processes that save at once, on every real database.

On PostgreSQL 8 threads in each of 4 processes save 500 times: 16,000 saves of one row.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from pgstore import merge
from pgstore.embedded import PostgresServer
from support import crowd
from support.crowd import MakeStore, Shown, Traced, Written, maker
from support.mariadb import MariaDBServer, fresh_database
from support.postgres import fresh_schema
from support.sqlalchemy_labs import MariaDBLab
from support.stores import Browser, Lab, PostgresLab, SQLiteLab, Visit

# A load and an update; one more of each per lost race; after three the row's lock ends it.
ORDINARY = "lu"
SAVE = re.compile(r"(lu){1,3}|(lu){3}l\[lu\]")


@dataclass(frozen=True)
class Size:
    processes: int
    threads: int
    turns: int

    @property
    def members(self) -> int:
        return self.processes * self.threads

    @property
    def saves(self) -> int:
        return self.members * self.turns


SIZES = {"sqlite": Size(4, 2, 50), "postgres": Size(4, 8, 500), "mariadb": Size(4, 4, 50)}
# How many messages each thread adds.
FLASHES = 25
SETTINGS: dict[str, dict[str, Any]] = {
    # One file has one writer at a time.
    "sqlite": {"busy_timeout": 60.0},
    "postgres": {"pool_size": 1, "statement_timeout": 60.0, "pool_timeout": 60.0},
    "mariadb": {"pool_size": 8, "statement_timeout": 60.0, "pool_timeout": 60.0},
}


@dataclass(frozen=True)
class Storage:
    """A storage that many processes can reach, and how large a crowd it is to bear."""

    kind: str
    lab: Lab
    size: Size

    def maker(self, **settings: Any) -> MakeStore:
        """Return what makes a store on it with a deadline that no crowd reaches."""
        return maker(self.lab, save_deadline=60.0, **SETTINGS[self.kind], **settings)


@pytest.fixture(scope="module", params=["sqlite", "postgres", "mariadb"])
def storage(request: pytest.FixtureRequest) -> Iterator[Storage]:
    size = SIZES[request.param]
    if request.param == "sqlite":
        folder = request.getfixturevalue("tmp_path_factory").mktemp("crowd")
        with SQLiteLab(folder / "sessions.db") as lab:
            yield Storage("sqlite", lab, size)
        return
    if request.param == "mariadb":
        mariadb: MariaDBServer = request.getfixturevalue("mariadb")
        with fresh_database(mariadb) as name, MariaDBLab(mariadb, name) as mariadb_lab:
            yield Storage("mariadb", mariadb_lab, size)
        return
    server: PostgresServer = request.getfixturevalue("pg_server")
    with fresh_schema(server.dsn) as schema, PostgresLab(server.dsn, schema) as postgres_lab:
        yield Storage("postgres", postgres_lab, size)


@dataclass(frozen=True)
class Aftermath:
    size: Size
    values: dict[Any, Any]
    written: list[Written]


@pytest.fixture(scope="module")
def aftermath(storage: Storage) -> Aftermath:
    """Return what a crowd left of a session in which each save changed three values."""
    browser, make, size = Browser(), storage.maker(merge={"hits": merge.add}), storage.size
    with make() as store:
        with browser.visit(store) as session:
            session["hits"], session["untouched"] = 1000, ["as", {"it": "was"}]
        written = crowd.run(
            make,
            browser,
            crowd.write,
            processes=size.processes,
            threads=size.threads,
            turns=size.turns,
        )
        values = Visit(browser, store).session.values
    return Aftermath(size, values, written)


def test_every_write_is_there(aftermath: Aftermath) -> None:
    """Of keys that each have one writer no write is lost, though it was made deep in a list."""
    size = aftermath.size
    everything = {"turns": [(1 << size.turns) - 1]}
    own = {key: value for key, value in aftermath.values.items() if key.startswith("thread")}
    assert own == {f"thread {number}": everything for number in range(size.members)}


def test_the_sum_is_exact(aftermath: Aftermath) -> None:
    """A counter with merge.add, to which every save adds one, has counted every save."""
    assert aftermath.values["hits"] == 1000 + aftermath.size.saves


def test_the_last_writer_wins(aftermath: Aftermath) -> None:
    """A key without a merge function holds what the save put there that was stored last."""
    last = max(aftermath.written, key=lambda written: written.modified_on)
    assert aftermath.values["last"] == last.last


def test_other_keys_survive(aftermath: Aftermath) -> None:
    """What nobody wrote is as it was."""
    assert aftermath.values["untouched"] == ["as", {"it": "was"}]


def test_what_a_save_costs(aftermath: Aftermath) -> None:
    """A load and an update, and a lost race one of each more; the row's lock ends the fourth."""
    traces = Counter(trace for written in aftermath.written for trace in written.traces)
    assert traces.total() == aftermath.size.saves
    assert [trace for trace in traces if not SAVE.fullmatch(trace)] == []
    # A crowd that never met would have proved nothing.
    assert traces.total() - traces[ORDINARY] > aftermath.size.saves / 100


def test_what_a_save_costs_without_a_race(storage: Storage) -> None:
    """A load and an update, whoever else has saved before."""
    browser = Browser()
    with storage.maker()() as store:
        store._backend = traced = Traced(store.backend)
        with browser.visit(store) as session:
            session["n"] = 0
        assert traced.take() == "i"
        for number in range(1, 21):
            with browser.visit(store) as session:
                session["n"] = number
            assert traced.take() == ORDINARY


# -- flash messages


@dataclass(frozen=True)
class Messages:
    added: list[Any]
    shown: list[Shown]
    left: list[Any]

    @property
    def taken(self) -> Counter[Any]:
        return Counter(message for shown in self.shown for message in shown.messages)


def flashed(storage: Storage, task: crowd.Task) -> Messages:
    """Let a crowd add and take messages; then take what is there once more, and look again."""
    size = storage.size
    browser, make = Browser(), storage.maker(max_length=0)
    with make() as store:
        with browser.visit(store) as session:
            session["x"] = 1
        results = crowd.run(
            make, browser, task, processes=size.processes, threads=size.threads, turns=FLASHES
        )
        with browser.visit(store) as session:
            rest = session.flashes()
        left = Visit(browser, store).session.flashes()
    shown = [shown for result in results for shown in result]
    end = max(each.saved for each in shown)
    added = [(number, turn) for number in range(size.members) for turn in range(FLASHES)]
    return Messages(added, [*shown, Shown(rest, end, len(rest))], left)


@pytest.fixture(scope="module")
def taken_in_turn(storage: Storage) -> Messages:
    return flashed(storage, crowd.flash_in_turn)


def test_flashes_that_are_taken_in_turn(taken_in_turn: Messages) -> None:
    """Messages added in parallel are each shown exactly once by requests that come one by one."""
    assert taken_in_turn.taken == Counter(taken_in_turn.added)
    assert taken_in_turn.left == []


def test_flashes_keep_the_order_of_each_writer(taken_in_turn: Messages, storage: Storage) -> None:
    """However many add messages at once, those of one writer are shown in the order of adding."""
    by_time = sorted(taken_in_turn.shown, key=lambda shown: shown.saved)
    for number in range(storage.size.members):
        own = [m for shown in by_time for m in shown.messages if m[0] == number]
        assert own == [(number, turn) for turn in range(FLASHES)]


def test_flashes_that_are_taken_in_parallel(storage: Storage) -> None:
    """Added and taken in parallel, each message is shown exactly once: by the request whose save
    took it from the row, for it shows its list after that save.
    """
    messages = flashed(storage, crowd.flash)
    assert messages.taken == Counter(messages.added)
    assert messages.left == []
    # Without two that had the same message in hand, nothing would have been proved.
    in_hand = sum(shown.in_hand for shown in messages.shown)
    assert in_hand > messages.taken.total()
