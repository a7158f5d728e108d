"""`get`, one change and `save`, beside the two statements that they send.

The floor is the same SELECT and UPDATE through libpq alone (`pgconn.exec_prepared`), on the same
server in the same run. The server keeps its data in memory: on a disk, both would mostly wait for
it.
"""

from __future__ import annotations

import _servers
from _common import KEYS, Effort, Report, interleave, main, ratios, timed
from _floor import get_and_save, new_visitor, postgres_floor

from pgstore import PGStore
from pgstore.embedded import temporary


def run(effort: Effort) -> Report:
    rounds = effort.pick(full=200, quick=30, smoke=1)
    calls = effort.pick(full=100, quick=100, smoke=5)
    report = Report("get, one change, save")
    with temporary() as server, PGStore(server.dsn, *KEYS) as store:
        report.about |= _servers.about(server)
        cookie = new_visitor(store)
        with postgres_floor(server) as (_, floor):
            times = interleave(
                {
                    "pgstore": timed(lambda: get_and_save(store, cookie), calls),
                    "floor": timed(floor, calls),
                },
                rounds,
            )
    report.draw(times)
    report.add(
        "get + one change + save",
        "floor (SELECT + UPDATE)",
        ratios(times["pgstore"], times["floor"]),
        at_most=1.4,
    )
    return report


if __name__ == "__main__":
    main(run)
