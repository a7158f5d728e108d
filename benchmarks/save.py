"""`get`, one change and `save`, beside the two statements that they send.

The floor is the same SELECT and UPDATE through libpq alone (`pgconn.exec_prepared`), on the same
server in the same run. The server keeps its data in memory: on a disk, both would mostly wait for
it.
"""

from __future__ import annotations

import _servers
from _common import KEYS, Effort, Report, main
from _floor import beside_floor, get_and_save, new_visitor, postgres_floor

from pgstore import PGStore


def run(effort: Effort) -> Report:
    report = Report("get, one change, save")
    with _servers.postgres() as server, PGStore(server.dsn, *KEYS) as store:
        report.about |= _servers.about(server)
        cookie = new_visitor(store)
        with postgres_floor(server) as (_, floor):
            beside_floor(
                report,
                effort,
                "get + one change + save",
                lambda: get_and_save(store, cookie),
                "floor (SELECT + UPDATE)",
                floor,
            )
    return report


if __name__ == "__main__":
    main(run)
