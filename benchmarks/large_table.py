"""`get` from a table of 10,000,000 rows beside `get` from one of 10,000, chosen uniformly.

Both tables fit in shared_buffers. One row in a hundred of the large one is a session that can be
presented; they lie evenly all over it, and hardly any is asked for twice.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Callable

import _servers
import psycopg
from _common import KEYS, Effort, Report, interleave, main, ratios, say
from _floor import get
from _rows import Crowd

from pgstore import PGStore

# The row and its place in the index, in the folder in memory and in shared_buffers; and slack.
_BYTES_PER_ROW = 900


def run(effort: Effort) -> Report:
    wanted = effort.pick(full=10_000_000, quick=500_000, smoke=20_000)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    rows = min(wanted, memory // 2 // _BYTES_PER_ROW)
    few = effort.pick(full=10_000, quick=10_000, smoke=1_000)
    rounds = effort.pick(full=100, quick=30, smoke=1)
    calls = effort.pick(full=500, quick=200, smoke=5)
    buffers = effort.pick(full="4GB", quick="512MB", smoke="64MB")
    report = Report(f"get from {rows:,} rows, and from {few:,}")
    if rows < wanted:
        report.left_out.append(f"{wanted:,} rows: there is memory for {rows:,} here")
    with (
        _servers.postgres(
            shared_buffers=buffers,
            wal_level="minimal",
            max_wal_senders=0,
            max_wal_size="4GB",
            maintenance_work_mem="1GB",
        ) as server,
        PGStore(server.dsn, *KEYS, table="large") as large,
        PGStore(server.dsn, *KEYS, table="small") as small,
    ):
        report.about |= _servers.about(server)
        times = interleave(
            {
                f"{few:,} rows": _gets(small, server.dsn, few, every=1, calls=calls),
                f"{rows:,} rows": _gets(large, server.dsn, rows, every=100, calls=calls),
            },
            rounds,
        )
    report.draw(times)
    small_table, large_table = times.values()
    report.add(
        f"get of {rows:,} rows", f"of {few:,} rows", ratios(large_table, small_table), at_most=1.2
    )
    return report


def _gets(store: PGStore, dsn: str, rows: int, *, every: int, calls: int) -> Callable[[], float]:
    """Fill the store's table; return what measures a get, in microseconds."""
    table = store.backend.table
    cookies = Crowd(table, rows, every, {"n": 1}).settle(dsn)
    random.Random(1).shuffle(cookies)
    turn = itertools.cycle(cookies)
    with psycopg.connect(dsn, autocommit=True) as connection:
        # Filling and vacuuming leave some of it out of the cache.
        connection.execute("CREATE EXTENSION IF NOT EXISTS pg_prewarm")
        for relation in (table, f"{table}_pkey"):
            connection.execute("SELECT pg_prewarm(%s)", [relation])
        size = connection.execute(
            "SELECT pg_size_pretty(pg_total_relation_size(%s::regclass))", [table]
        ).fetchone()
        say(f"{table}: {size and size[0]}, in memory")

    def measure() -> float:
        start = time.perf_counter()
        for cookie in itertools.islice(turn, calls):
            get(store, cookie)
        return (time.perf_counter() - start) / calls * 1e6

    return measure


if __name__ == "__main__":
    main(run)
