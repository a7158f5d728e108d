"""`get` of an existing session beside the one statement that it sends.

The request is parsed, the cookie verified, the row loaded, opened and decoded. The floor is the
same statement through libpq alone (`pgconn.exec_prepared`), on the same server in the same run.
"""

from __future__ import annotations

import _servers
from _common import KEYS, Effort, Report, main
from _floor import beside_floor, get, new_visitor, postgres_floor

from pgstore import PGStore


def run(effort: Effort) -> Report:
    report = Report("get of an existing session")
    with _servers.postgres() as server, PGStore(server.dsn, *KEYS) as store:
        report.about |= _servers.about(server)
        cookie = new_visitor(store)
        with postgres_floor(server) as (floor, _):
            beside_floor(report, effort, "get", lambda: get(store, cookie), "floor", floor)
    return report


if __name__ == "__main__":
    main(run)
