"""What a request costs beside the bare statements: get, and get + change + save, on PostgreSQL.

Run it with an environment that has pgstore[embedded]:  python benchmarks/request.py [ROUNDS]

The floor is the same statement through libpq alone, prepared and in binary, on the same server in
the same run. Rounds are interleaved, and what is printed are medians and their ratios. On a busy
machine the microseconds mean little, the ratios more.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable

import psycopg
from psycopg.pq import ExecStatus
from werkzeug.datastructures import Headers

from pgstore import PGStore, generate_random_key
from pgstore.embedded import temporary

CALLS = 200


def main(rounds: int) -> None:
    with temporary() as server, psycopg.connect(server.dsn, autocommit=True) as connection:
        store = PGStore(server.dsn, generate_random_key(), generate_random_key())
        with store:
            timings = measure(scenarios(store, connection), rounds)
        version = server.version
    medians = {name: statistics.median(times) for name, times in timings.items()}
    for name, floor in (("get", "select"), ("get + change + save", "select + update")):
        print(
            f"{name:20} {medians[name]:7.1f} us   {floor:16} {medians[floor]:7.1f} us   "
            f"ratio {medians[name] / medians[floor]:.2f}"
        )
    about = {"python": platform.python_version(), "postgresql": version, "rounds": rounds}
    print(json.dumps({"medians_us": medians, **about}))


def scenarios(store: PGStore, connection: psycopg.Connection) -> dict[str, Callable[[], None]]:
    """Return what is measured, by name; all of it works on one session of 300 bytes."""
    environ: dict[str, object] = {"wsgi.url_scheme": "http", "REMOTE_ADDR": "127.0.0.1"}
    headers = Headers()
    session = store.get(dict(environ), "session")
    session["text"], session["n"] = "x" * 280, 0
    session.save(dict(environ), headers)
    environ["HTTP_COOKIE"] = headers["Set-Cookie"].partition(";")[0]
    key = session._id.selector

    pgconn = connection.pgconn
    sql = store.backend._sql
    update = b"UPDATE http_sessions SET data = data, version = version WHERE key = $1::bytea"
    for name, text in ((b"select", sql.load.text), (b"update", update)):
        assert pgconn.prepare(name, text).status == ExecStatus.COMMAND_OK

    def run(name: bytes) -> None:
        result = pgconn.exec_prepared(name, [key], [1], 1)
        assert result.status in (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK)

    def select_and_update() -> None:
        run(b"select")
        run(b"update")

    def get() -> None:
        assert not store.get(dict(environ), "session").is_new

    def get_and_save() -> None:
        request = dict(environ)
        session = store.get(request, "session")
        session["n"] += 1
        session.save(request, Headers())

    return {
        "select": lambda: run(b"select"),
        "get": get,
        "select + update": select_and_update,
        "get + change + save": get_and_save,
    }


def measure(what: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Return the microseconds per call of each round, the rounds interleaved."""
    timings: dict[str, list[float]] = {name: [] for name in what}
    for number in range(rounds + 1):
        for name, call in what.items():
            start = time.perf_counter()
            for _ in range(CALLS):
                call()
            if number:  # the first round warms up
                timings[name].append((time.perf_counter() - start) / CALLS * 1e6)
    return timings


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
