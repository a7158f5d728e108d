"""The pool of one's own, when connecting fails, and when who waits is interrupted."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from pgstore import BackendError
from pgstore.backends.postgres_pool import OwnPool
from pgstore.backends.postgres_wire import Wire
from pgstore.embedded import PostgresServer
from support.fault_proxy import FaultProxy

LONG = 30.0  # a pool_timeout that no test waits for


class ScriptedPool(OwnPool):
    """Connects as the pool does, once what the test has put into ``script`` was done."""

    def __init__(self, dsn: str, size: int) -> None:
        super().__init__(dsn, size=size, statement_timeout=5.0, pool_timeout=LONG)
        self.script: list[Callable[[], None]] = []

    def _connection(self) -> Any:
        if self.script:
            self.script.pop(0)()
        return super()._connection()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


def refuse() -> None:
    raise BackendError("no room")


def test_all_who_wait_learn_of_an_outage(
    pg_server: PostgresServer, threads: ThreadPoolExecutor
) -> None:
    """When the last connection that was being opened has failed, nobody waits any longer."""
    with FaultProxy("127.0.0.1", pg_server.port) as proxy:
        proxy.stall = True
        dsn = f"host=127.0.0.1 port={proxy.port} user=postgres dbname=postgres connect_timeout=60"
        pool = OwnPool(dsn, size=4, statement_timeout=5.0, pool_timeout=LONG)
        getting = [threads.submit(pool.get) for _ in range(6)]
        wait_until(lambda: proxy.accepted == 4 and pool._waiting == 2)
        proxy.refuse = True
        # Again and again: one that was accepted may not be known to the proxy's killer yet.
        wait_until(lambda: proxy.kill() or all(each.done() for each in getting))
        for each in getting:
            with pytest.raises(BackendError, match="cannot be reached"):
                each.result()
    assert (pool._open, pool._waiting) == (0, 0)


@pytest.mark.parametrize("hosts", [1, 2])
def test_a_crowd_before_a_silent_host(
    pg_server: PostgresServer, threads: ThreadPoolExecutor, hosts: int
) -> None:
    """Nobody waits for longer than for a connection of others and then for one of the own."""
    with FaultProxy("127.0.0.1", pg_server.port) as proxy:
        proxy.stall = True
        addresses = ",".join(["127.0.0.1"] * hosts)
        dsn = f"host={addresses} port={proxy.port} user=postgres dbname=postgres"
        pool = OwnPool(dsn, size=2, statement_timeout=1.0, pool_timeout=1.0)

        def refused(_: int) -> float:
            begin = time.monotonic()
            with pytest.raises(BackendError):
                pool.get()
            return time.monotonic() - begin

        slowest = max(threads.map(refused, range(8)))
        proxy.stall = False
    assert slowest < 1.0 + hosts * 2.0 + 2.0  # libpq's least time to connect; a busy machine
    assert (pool._open, pool._waiting) == (0, 0)


def test_room_goes_to_who_can_use_it(pg_dsn: str, threads: ThreadPoolExecutor) -> None:
    """Who has failed to open a connection, and waits for one of the others, keeps nobody from
    opening one.
    """
    pool = ScriptedPool(pg_dsn, size=2)
    wire, slow = pool.get(), threading.Event()

    def refuse_slowly() -> None:
        slow.wait(20)
        refuse()

    pool.script = [refuse, refuse_slowly]
    failed = threads.submit(pool.get)
    wait_until(lambda: pool._waiting == 1)
    failing = threads.submit(pool.get)
    wait_until(lambda: pool._open == 2)
    hopeful = threads.submit(pool.get)
    wait_until(lambda: pool._waiting == 2)
    slow.set()
    other = hopeful.result(10)
    wait_until(lambda: pool._waiting == 2)
    pool.put(wire)
    pool.put(other)
    assert {failed.result(10), failing.result(10)} == {wire, other}
    give_back(pool, wire, other)


def test_who_is_interrupted_passes_it_on(
    pg_dsn: str, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that was called, for a connection or for room to open one, and is interrupted, calls
    the next.
    """
    pool = ScriptedPool(pg_dsn, size=1)
    unlucky: list[int] = []
    wait = threading.Condition.wait

    def interrupted(self: threading.Condition, timeout: float | None = None) -> bool:
        called = wait(self, timeout)
        if threading.get_ident() in unlucky:
            raise KeyboardInterrupt
        return called

    def get_and_be_interrupted() -> None:
        unlucky.append(threading.get_ident())
        with pytest.raises(KeyboardInterrupt):
            pool.get()
        unlucky.clear()

    monkeypatch.setattr(threading.Condition, "wait", interrupted)
    wire = pool.get()
    for broken in (False, True):
        first = threads.submit(get_and_be_interrupted)
        wait_until(lambda: pool._waiting == 1)
        second: Future[Wire] = threads.submit(pool.get)
        wait_until(lambda: pool._waiting == 2)
        if broken:
            wire.connection.close()
        pool.put(wire)
        first.result(10)
        assert (second.result(10) is wire) is not broken
        wire = second.result()
    give_back(pool, wire)


def test_closed_while_others_use_it_and_wait(pg_dsn: str, threads: ThreadPoolExecutor) -> None:
    """Who waits is told at once; what is in use goes on, and is closed when it is given back."""
    pool = ScriptedPool(pg_dsn, size=2)
    wires = [pool.get()]
    pool.script = [refuse]
    failed = threads.submit(pool.get)
    wait_until(lambda: pool._failed == 1)
    wires.append(threads.submit(pool.get).result(10))
    hopeful = threads.submit(pool.get)
    wait_until(lambda: pool._waiting == 2)
    pool.close()
    for each in (failed, hopeful):
        with pytest.raises(BackendError, match="closed"):
            each.result(10)
    assert [wire.is_alive() for wire in wires] == [True, True]
    give_back(pool, *wires)
    assert [wire.connection.closed for wire in wires] == [True, True]


def test_a_signal_handler_may_use_the_pool(pg_dsn: str) -> None:
    """What runs between two lines of the pool's own (a signal's handler, a finalizer) may use it,
    and close it.
    """

    class Interrupted(list[Wire]):
        def append(self, wire: Wire) -> None:
            super().append(wire)
            if not nested:
                nested.append(pool.get())
                pool.put(nested[0])
                pool.close()

    nested: list[Wire] = []
    pool = OwnPool(pg_dsn, size=2, statement_timeout=5.0, pool_timeout=LONG)
    wire = pool.get()
    pool._free = Interrupted()
    putting = threading.Thread(target=pool.put, args=(wire,), daemon=True)
    putting.start()
    putting.join(10)
    assert nested == [wire]
    assert wire.connection.closed
    give_back(pool)


def test_no_file_to_spare(pg_dsn: str) -> None:
    """A process that may open no more files, or only a few, has a BackendError, and the pool does
    not lose count.
    """
    pool, refused = OwnPool(pg_dsn, size=1, statement_timeout=5.0, pool_timeout=LONG), 0
    give_back(pool, pool.get())
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    for spare in range(8):
        pool = OwnPool(pg_dsn, size=1, statement_timeout=5.0, pool_timeout=LONG)
        number = os.dup(0)
        os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (number + spare, limits[1]))
        try:
            wires = [pool.get()]
        except BackendError:
            wires, refused = [], refused + 1
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        give_back(pool, *wires)
    assert 2 <= refused < 8


def give_back(pool: OwnPool, *wires: Wire) -> None:
    """Give connections back and close the pool, which must not have lost count."""
    for wire in wires:
        pool.put(wire)
    assert (pool._open, pool._waiting) == (len(pool._free), 0)
    pool.close()
    assert pool._open == 0


def wait_until(condition: Callable[[], bool]) -> None:
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < 20
        time.sleep(0.001)
