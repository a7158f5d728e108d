"""What the SQLite backend adds to its bare statements, beside what PostgreSQL's adds to its own.

The bare statements go through `sqlite3` alone and through libpq alone, in the same run. Both
databases are in memory-backed folders where there is one. With PostgreSQL on a core of its own,
libpq's time has a wake-up that the store saves, and that hides what the store adds: so PostgreSQL
is measured on the same core, too.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import _servers
from _common import KEYS, Effort, Report, differences, interleave, main, ratios, timed
from _floor import get, get_and_save, new_visitor, postgres_floor, sqlite_floor
from _servers import sharing_a_core

from pgstore import PGStore, SQLiteStore


def run(effort: Effort) -> Report:
    rounds = effort.pick(full=100, quick=20, smoke=1)
    calls = effort.pick(full=100, quick=100, smoke=5)
    report = Report("What the store adds to its bare statements")
    with (
        _servers.postgres() as server,
        tempfile.TemporaryDirectory(prefix="pgstore-", dir=server.data_dir.parent) as folder,
        PGStore(server.dsn, *KEYS) as postgres,
        SQLiteStore(Path(folder) / "sessions.db", *KEYS) as sqlite,
        postgres_floor(server) as (select, select_and_update),
        sqlite_floor(Path(folder) / "sessions.db") as (sqlite_select, sqlite_select_and_update),
    ):
        report.about |= _servers.about(server)
        ours, theirs = new_visitor(sqlite), new_visitor(postgres)
        sqlite_measures = {
            "get, sqlite": timed(lambda: get(sqlite, ours), calls),
            "get, sqlite bare": timed(sqlite_select, calls),
            "save, sqlite": timed(lambda: get_and_save(sqlite, ours), calls),
            "save, sqlite bare": timed(sqlite_select_and_update, calls),
        }
        measures = {
            "get, libpq": timed(lambda: get(postgres, theirs), calls),
            "get, libpq bare": timed(select, calls),
            "save, libpq": timed(lambda: get_and_save(postgres, theirs), calls),
            "save, libpq bare": timed(select_and_update, calls),
        }
        shared = {f"{name}, shared": sharing_a_core(measures[name]) for name in measures}
        times = interleave(sqlite_measures | measures | shared, rounds)
    for what, name in (("get", "get"), ("get + one change + save", "save")):
        sqlite_adds = differences(times[f"{name}, sqlite"], times[f"{name}, sqlite bare"])
        report.draw({f"{what}: above sqlite3": sqlite_adds})
        for core, where in ((", shared", ", sharing a core"), ("", "")):
            libpq_adds = differences(
                times[f"{name}, libpq{core}"], times[f"{name}, libpq bare{core}"]
            )
            report.draw({f"{what}: above libpq{where}": libpq_adds})
            report.add(
                f"{what}: our time above sqlite3",
                f"our time above libpq{where}",
                ratios(sqlite_adds, libpq_adds),
                at_most=1.1,
            )
    return report


if __name__ == "__main__":
    main(run)
