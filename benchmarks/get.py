"""`get` of an existing session beside the one statement that it sends.

The request is parsed, the cookie verified, the row loaded, opened and decoded. The floor is the
same statement through libpq alone (`pgconn.exec_prepared`), on the same server in the same run.
"""

from __future__ import annotations

import _servers
from _common import KEYS, Effort, Report, interleave, main, ratios, timed
from _floor import get, new_visitor, postgres_floor

from pgstore import PGStore
from pgstore.embedded import temporary


def run(effort: Effort) -> Report:
    rounds = effort.pick(full=200, quick=30, smoke=1)
    calls = effort.pick(full=200, quick=200, smoke=5)
    report = Report("get of an existing session")
    with temporary() as server, PGStore(server.dsn, *KEYS) as store:
        report.about |= _servers.about(server)
        cookie = new_visitor(store)
        with postgres_floor(server) as (floor, _):
            times = interleave(
                {
                    "pgstore": timed(lambda: get(store, cookie), calls),
                    "floor": timed(floor, calls),
                },
                rounds,
            )
    report.draw(times)
    report.add("get", "floor", ratios(times["pgstore"], times["floor"]), at_most=1.4)
    return report


if __name__ == "__main__":
    main(run)
