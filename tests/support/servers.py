"""Any WSGI server as a process of its own, and a client that keeps its cookies."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pgstore
from pgstore import embedded
from pgstore.urls import format_keys
from support.stores import KEYS


@contextmanager
def serving(*command: str, dsn: str = "") -> Iterator[int]:
    """Run ``python command…`` until the end of the block and give the port that it listens on.

    ``{port}`` in the command stands for that, and so does PORT in its environment. What it prints
    must not hold a traceback.
    """
    paths = [Path(__file__).parents[1], Path(pgstore.__file__).parents[1]]
    port = embedded._free_port()
    environ = {
        **os.environ,
        "PORT": str(port),
        "PGSTORE_DSN": dsn,
        "PGSTORE_KEYS": format_keys(*KEYS),
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
    }
    with subprocess.Popen(
        [sys.executable, *(part.format(port=port) for part in command)],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout
        try:
            _wait_for(port, process)
            yield port
        finally:
            process.terminate()
            try:
                printed = process.communicate(timeout=60)[0]
            finally:
                process.kill()
            print(printed)  # shown when the test fails
    assert "Traceback" not in printed


def _wait_for(port: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=30).close()
            return
        except ConnectionRefusedError:
            assert process.poll() is None, "the server has ended"
            assert time.monotonic() < deadline, "the server does not listen"
            time.sleep(0.02)


class Reply(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    text: str


class Client:
    """A browser without pages: follows nothing, keeps cookies."""

    def __init__(self, port: int) -> None:
        self.cookies: dict[str, str] = {}
        self._port = port

    def request(self, method: str, path: str, *, data: Any = None, **form: str) -> Reply:
        """Send one request; ``data`` as JSON, else a form."""
        body, headers = urlencode(form), {"Content-Type": "application/x-www-form-urlencoded"}
        if data is not None:
            body, headers = json.dumps(data), {"Content-Type": "application/json"}
        if self.cookies:
            headers["Cookie"] = "; ".join(f"{k}={v}" for k, v in self.cookies.items())
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            connection.request(method, path, body or None, headers)
            response = connection.getresponse()
            reply = Reply(response.status, response.headers, response.read().decode())
        finally:
            connection.close()
        for line in reply.headers.get_all("Set-Cookie", []):
            for name, morsel in SimpleCookie(line).items():
                if morsel["max-age"] == "0":
                    self.cookies.pop(name, None)
                else:
                    self.cookies[name] = morsel.value
        return reply

    def get(self, path: str = "/") -> Reply:
        return self.request("GET", path)

    def post(self, path: str, **form: str) -> Reply:
        return self.request("POST", path, **form)
