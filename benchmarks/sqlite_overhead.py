"""What the SQLite backend adds to its bare statements, beside what PostgreSQL's adds to its own.

The bare statements go through `sqlite3` alone and through libpq alone, in the same run. Both
databases are in memory-backed folders where there is one.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import _servers
from _common import KEYS, Effort, Report, differences, interleave, main, ratios, timed
from _floor import get, get_and_save, new_visitor, postgres_floor, sqlite_floor

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
        times = interleave(
            {
                "get, sqlite": timed(lambda: get(sqlite, ours), calls),
                "get, sqlite bare": timed(sqlite_select, calls),
                "get, libpq": timed(lambda: get(postgres, theirs), calls),
                "get, libpq bare": timed(select, calls),
                "save, sqlite": timed(lambda: get_and_save(sqlite, ours), calls),
                "save, sqlite bare": timed(sqlite_select_and_update, calls),
                "save, libpq": timed(lambda: get_and_save(postgres, theirs), calls),
                "save, libpq bare": timed(select_and_update, calls),
            },
            rounds,
        )
    for what, name in (("get", "get"), ("get + one change + save", "save")):
        added = {
            kind: differences(times[f"{name}, {kind}"], times[f"{name}, {kind} bare"])
            for kind in ("sqlite", "libpq")
        }
        report.draw(
            {
                f"{what}: above sqlite3": added["sqlite"],
                f"{what}: above libpq": added["libpq"],
            }
        )
        report.add(
            f"{what}: our time above sqlite3",
            "our time above libpq",
            ratios(added["sqlite"], added["libpq"]),
            at_most=1.1,
        )
    return report


if __name__ == "__main__":
    main(run)
