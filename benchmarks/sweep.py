"""A sweep of 1,000,000 expired rows out of 2,000,000, while four clients read and save.

Each client is a process that does requests one after the other; of five, four only read, and one
changes its session. Their 99th percentile during the sweep is compared with that of the time
before: once with clients that go as fast as they can, so that all cores are busy anyway, and once
with clients that pause, so that it is the sweep that makes them wait. PostgreSQL, on a disk and
with its own defaults for durability, logs whoever has waited for a lock for more than 50 ms; what
it logs while the table is filled is not of the sweep: TRUNCATE waits so long for an autovacuum.
"""

from __future__ import annotations

import multiprocessing
import random
import re
import statistics
import time
from array import array
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from typing import Self

import _servers
from _common import KEYS, PAYLOAD, Effort, Report, main, say
from _floor import get, get_and_save
from _rows import Crowd

from pgstore import PGStore
from pgstore.embedded import temporary

_SPAWN = multiprocessing.get_context("spawn")
_CLIENTS = 4
_SESSIONS = 2_000
_AGENT = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"


def run(effort: Effort) -> Report:
    rows = effort.pick(full=2_000_000, quick=100_000, smoke=8_000)
    calm_seconds = effort.pick(full=20.0, quick=3.0, smoke=0.3)
    report = Report(f"Requests while {rows // 2:,} expired rows of {rows:,} are swept", "ms")
    with (
        temporary(
            durable=effort.name != "smoke",
            shared_buffers=effort.pick(full="3GB", quick="512MB", smoke="64MB"),
            wal_level="minimal",
            max_wal_senders=0,
            max_wal_size="4GB",
            maintenance_work_mem="512MB",
            log_lock_waits="on",
            deadlock_timeout="50ms",
        ) as server,
        PGStore(server.dsn, *KEYS) as store,
    ):
        report.about |= _servers.about(server)
        waits: list[tuple[str, str]] = []
        every = rows // _SESSIONS
        crowd = Crowd("http_sessions", rows, every, PAYLOAD, agent=_AGENT, backlog=True)
        for name, pause in (("busy clients", 0.0), ("clients that pause", 0.01)):
            with _Clients(server.dsn, crowd.settle(server.dsn), pause) as clients:
                time.sleep(calm_seconds / 4)
                begin = time.monotonic()
                time.sleep(calm_seconds)
                say(f"sweeping beside {name}")
                logged = len(server.log_path.read_text())
                middle = time.monotonic()
                swept = store.delete_expired()
                end = time.monotonic()
                clients.stop()
                waits += _waits(server.log_path.read_text()[logged:])
            assert swept == rows // 2, f"{swept} rows were swept"
            before, during = clients.between(begin, middle), clients.between(middle, end)
            calm, busy = _p99(before), _p99(during)
            say(f"p99 {calm:.1f} ms of {len(before) / (middle - begin):,.0f} requests/s before")
            say(f"p99 {busy:.1f} ms of {len(during) / (end - middle):,.0f} requests/s during")
            report.draw({f"{name}, before: p99": [calm], f"{name}, during: p99": [busy]})
            report.add(f"p99 of {name} during a sweep", "before it", [busy / calm], at_most=2)
            rate = swept / (end - middle)
            report.add(f"rows swept beside {name}", "–", [rate], " rows/s", at_least=10_000)
    for lock, milliseconds in waits:
        say(f"waited for {lock} for {milliseconds} ms")
    longest = max((float(milliseconds) for _, milliseconds in waits), default=0.0)
    report.add("longest wait for a lock, 0 if below 50 ms", "–", [longest], " ms", at_most=50)
    return report


def _waits(log: str) -> list[tuple[str, str]]:
    """Return each lock that somebody waited for, and for how many milliseconds."""
    return re.findall(r"acquired (.*) after ([\d.]+) ms", log)


def _p99(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[98]


class _Clients:
    """Processes that do requests, with pauses of so many seconds, until they are stopped."""

    def __init__(self, dsn: str, cookies: Sequence[str], pause: float) -> None:
        self._stop = _SPAWN.Event()
        self._done: list[array[float]] = []
        self._crew = []
        for number in range(_CLIENTS):
            receive, send = _SPAWN.Pipe(duplex=False)
            arguments = (dsn, cookies, pause, number, self._stop, send)
            process = _SPAWN.Process(target=_requests, args=arguments, daemon=True)
            process.start()
            send.close()
            self._crew.append((process, receive))

    def __enter__(self) -> Self:
        for _, receive in self._crew:
            receive.recv()  # it is there
        return self

    def __exit__(self, *exc_info: object) -> None:
        for process, _ in self._crew:
            if not self._done:
                process.kill()
            process.join()

    def stop(self) -> None:
        self._stop.set()
        self._done = [receive.recv() for _, receive in self._crew]

    def between(self, begin: float, end: float) -> list[float]:
        """Return how long each request took that began then, in milliseconds."""
        return [
            seconds * 1000
            for done in self._done
            for start, seconds in zip(done[::2], done[1::2], strict=True)
            if begin <= start < end
        ]


def _requests(
    dsn: str, cookies: Sequence[str], pause: float, seed: int, stop: Event, send: Connection
) -> None:
    chance = random.Random(seed)
    done = array("d")
    with PGStore(dsn, *KEYS) as store:
        get(store, cookies[0])
        send.send(None)
        while not stop.is_set():
            cookie = chance.choice(cookies)
            act = get_and_save if chance.randrange(5) == 0 else get
            start = time.monotonic()
            act(store, cookie)
            done.extend((start, time.monotonic() - start))
            if pause:
                time.sleep(chance.uniform(0, 2 * pause))
        send.send(done)


if __name__ == "__main__":
    main(run)
