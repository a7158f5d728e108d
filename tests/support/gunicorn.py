"""A real gunicorn that serves `support.worker_app`, and a client that keeps its cookie."""

from __future__ import annotations

import ast
import http.client
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pgstore
from pgstore.urls import format_keys
from support.stores import KEYS


@dataclass
class Gunicorn:
    """A server that runs; ``log`` grows with what it writes."""

    port: int = 0
    log: list[str] = field(default_factory=list)

    def wait_for_log(self, text: str, *, timeout: float = 30.0) -> None:
        deadline = time.monotonic() + timeout
        while not any(text in line for line in self.log):
            assert time.monotonic() < deadline, f"{text!r} is not in {''.join(self.log)}"
            time.sleep(0.01)


@contextmanager
def gunicorn(dsn: str, schema: str, *arguments: str, pool_size: int = 4) -> Iterator[Gunicorn]:
    """Run gunicorn for the length of a `with` block; it must end when it is told to."""
    paths = [Path(__file__).parents[1], Path(pgstore.__file__).parents[1]]
    environ = {
        **os.environ,
        "PGSTORE_DSN": dsn,
        "PGSTORE_SCHEMA": schema,
        "PGSTORE_KEYS": format_keys(*KEYS),
        "PGSTORE_POOL_SIZE": str(pool_size),
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
    }
    command = [sys.executable, "-m", "gunicorn", "-b", "127.0.0.1:0", *arguments]
    process = subprocess.Popen(
        [*command, "support.worker_app:app"], env=environ, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr
    server = Gunicorn()
    reading = threading.Thread(target=lambda: server.log.extend(process.stderr or ()))
    reading.start()
    try:
        server.wait_for_log("Listening at")
        found = re.search(r"http://127\.0\.0\.1:(\d+)", "".join(server.log))
        assert found
        server.port = int(found[1])
        yield server
    finally:
        process.terminate()
        try:
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()
            reading.join()
            print("".join(server.log))  # shown when the test fails
            process.stderr.close()


class Client:
    """A browser of `support.worker_app`, which keeps its cookie."""

    def __init__(self, port: int, name: str) -> None:
        self.name = name
        self.cookie = ""
        self._port = port

    def get(self, path: str = "/", *, timeout: float = 60.0) -> Any:
        """Return what the app answers. Raises `OSError` or `HTTPException` without an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=timeout)
        try:
            glue = "&" if "?" in path else "?"
            headers = {"Cookie": self.cookie} if self.cookie else {}
            connection.request("GET", f"{path}{glue}name={quote(self.name)}", headers=headers)
            response = connection.getresponse()
            body = response.read().decode()
        finally:
            connection.close()
        if response.status != 200:
            raise http.client.HTTPException(f"{response.status}: {body}")
        if cookie := response.getheader("Set-Cookie"):
            self.cookie = cookie.partition(";")[0]
        return ast.literal_eval(body)
