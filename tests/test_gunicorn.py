"""A real server: gunicorn with four workers on a real PostgreSQL, and on SQLite."""

from __future__ import annotations

import http.client
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import pgstore
from pgstore.urls import format_keys
from support.stores import KEYS, PostgresLab


@contextmanager
def gunicorn(dsn: str, *arguments: str) -> Iterator[int]:
    """Run the counter under gunicorn and give its port; it must end cleanly."""
    environ = {
        **os.environ,
        "PGSTORE_DSN": dsn,
        "PGSTORE_KEYS": format_keys(*KEYS),
        "PYTHONPATH": os.pathsep.join(
            [str(Path(__file__).parent), str(Path(pgstore.__file__).parents[1])]
        ),
    }
    command = [sys.executable, "-m", "gunicorn", "-w", "4", "-b", "127.0.0.1:0", *arguments]
    server = subprocess.Popen(
        [*command, "support.counter:app"], env=environ, stderr=subprocess.PIPE, text=True
    )
    assert server.stderr
    try:
        log = []
        for line in server.stderr:
            log.append(line)
            if found := re.search(r"Listening at: http://127\.0\.0\.1:(\d+)", line):
                yield int(found[1])
                break
        else:
            pytest.fail("".join(log))
    finally:
        server.terminate()
        rest = server.communicate(timeout=60)[1]
    assert server.returncode == 0
    assert "Traceback" not in rest


class Client:
    """Keeps the cookie, and counts how often one was set."""

    def __init__(self) -> None:
        self.cookie = ""
        self.sent = 0
        self.workers: set[str] = set()

    def count(self, port: int) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/", headers={"Cookie": self.cookie} if self.cookie else {})
        response = connection.getresponse()
        body = response.read().decode()
        connection.close()
        assert response.status == 200, body
        if cookie := response.getheader("Set-Cookie"):
            self.cookie = cookie.partition(";")[0]
            self.sent += 1
        number, _, worker = body.partition(" ")
        self.workers.add(worker)
        return int(number)


def test_a_counter_through_a_restart(pg_lab: PostgresLab) -> None:
    """A cookie-keeping client counts right through 1,000 requests and a restart of the server."""
    dsn = f"{pg_lab.dsn}?options=-c%20search_path%3D{pg_lab.schema}"
    client = Client()
    with gunicorn(dsn) as port:
        assert [client.count(port) for _ in range(500)] == list(range(1, 501))
    with gunicorn(dsn) as port:
        assert [client.count(port) for _ in range(500)] == list(range(501, 1001))
    assert len(client.workers) > 4
    assert client.sent == 1
    assert len(pg_lab.rows()) == 1


def test_preloaded_workers_share_no_connection(pg_lab: PostgresLab) -> None:
    """With --preload the store is made before the fork, and every worker has a pool of its own."""
    dsn = f"{pg_lab.dsn}?options=-c%20search_path%3D{pg_lab.schema}"
    client = Client()
    with gunicorn(dsn, "--preload") as port:
        assert [client.count(port) for _ in range(100)] == list(range(1, 101))
    assert len(client.workers) > 1


def test_workers_on_one_sqlite_file(tmp_path: Path) -> None:
    """Four workers share one SQLite file."""
    client = Client()
    with gunicorn(f"sqlite:///{tmp_path}/sessions.db") as port:
        assert [client.count(port) for _ in range(200)] == list(range(1, 201))
    assert len(client.workers) > 1
