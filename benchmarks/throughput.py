"""Read-only requests per second through gunicorn, beside Flask's own signed-cookie session.

Two workers of gunicorn's default kind, wrk, and PostgreSQL share the machine. The signed cookie
asks no server for anything: it cannot be revoked, and the browser can read it.
"""

from __future__ import annotations

import http.client
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import _servers
from _common import Effort, Missing, Report, interleave, main, ratios, say

from pgstore.embedded import PostgresServer, temporary


def run(effort: Effort) -> Report:
    report = Report("Requests per second, gunicorn with 2 workers", "requests/s")
    seconds = effort.pick(full=5, quick=2, smoke=1)
    with ExitStack() as stack:
        try:
            wrk = _servers.tool("wrk")
        except Missing as missing:
            report.left_out.append(f"all of it: {missing}")
            return report
        server = stack.enter_context(temporary())
        report.about |= _servers.about(server)
        loads = {}
        for kind in ("pgstore", "signed cookie", "Flask alone"):
            say(f"starting gunicorn: {kind}")
            port = stack.enter_context(_gunicorn(kind, server))
            loads[kind] = _load(wrk, port, seconds)
        rates = interleave(loads, effort.pick(full=6, quick=2, smoke=1))
    report.draw(rates)
    report.add(
        "read-only requests/s, gunicorn",
        "Flask's signed cookie",
        ratios(rates["pgstore"], rates["signed cookie"]),
        at_least=0.7,
    )
    report.add(
        "read-only requests/s, gunicorn",
        "Flask without sessions",
        ratios(rates["pgstore"], rates["Flask alone"]),
    )
    return report


@contextmanager
def _gunicorn(kind: str, server: PostgresServer) -> Iterator[int]:
    """Serve the site with that kind of session; give its port."""
    command = [sys.executable, "-m", "gunicorn", "-w", "2", "-b", "127.0.0.1:0"]
    process = subprocess.Popen(
        [*command, f"_sites:make({kind!r}, {server.port})"],
        cwd=Path(__file__).parent,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    try:
        log = ""
        for line in process.stderr:
            log += line
            if found := re.search(r"Listening at: http://127\.0\.0\.1:(\d+)", line):
                yield int(found[1])
                return
        raise RuntimeError(log)
    finally:
        process.terminate()
        process.communicate()


def _load(wrk: str, port: int, seconds: int) -> Callable[[], float]:
    """Sign in; return what measures the requests per second."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/new")
    response = connection.getresponse()
    response.read()
    cookie = (response.getheader("Set-Cookie") or "none=").partition(";")[0]
    connection.close()
    command = [wrk, "-t", "1", "-c", "4", "-d", f"{seconds}s", "-H", f"Cookie: {cookie}"]

    def measure() -> float:
        shown = subprocess.run(
            [*command, f"http://127.0.0.1:{port}/read"], check=True, capture_output=True, text=True
        ).stdout
        assert "Non-2xx" not in shown, shown
        found = re.search(r"Requests/sec:\s+([\d.]+)", shown)
        assert found, shown
        return float(found[1])

    return measure


if __name__ == "__main__":
    main(run)
