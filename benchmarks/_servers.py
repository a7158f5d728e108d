"""The servers of a run: each on a free port of 127.0.0.1, and gone at the end.

Where client and server are left to the scheduler, they sometimes share a core and sometimes wake
each other on two, which takes three times as long: the figures would be those of that choice. So
the servers here have a core of their own, and so has what asks them.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from _common import Missing

from pgstore.embedded import PostgresServer, temporary

_CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
_CLIENT_CORE, _SERVER_CORE = (*_CORES, 0, 0)[:2]


def about(server: PostgresServer) -> dict[str, str]:
    """Return the server's exact version, for a report."""
    with psycopg.connect(server.dsn) as connection:
        version = connection.execute("SHOW server_version").fetchone()
    return {"postgresql": str(version[0] if version else server.version)}


@contextmanager
def postgres(**settings: Any) -> Iterator[PostgresServer]:
    """Run a `pgstore.embedded.temporary` server on its core; this process has the other one."""
    _move_to(_SERVER_CORE)
    try:
        with temporary(**settings) as server:
            _move_to(_CLIENT_CORE)
            yield server
    finally:
        _move_to(*_CORES)


def sharing_a_core(measure: Callable[[], float]) -> Callable[[], float]:
    """Return what measures on the core of the server."""

    def moved() -> float:
        _move_to(_SERVER_CORE)
        try:
            return measure()
        finally:
            _move_to(_CLIENT_CORE)

    return moved


def _move_to(*cores: int) -> None:
    if len(_CORES) > 1:
        os.sched_setaffinity(0, cores)


@contextmanager
def redis() -> Iterator[tuple[int, str]]:
    """Run a Redis that keeps nothing on disk; give its port and its version.

    Raises `Missing` when it is not installed.
    """
    program = tool("redis-server")
    shown = subprocess.run([program, "--version"], check=True, capture_output=True, text=True)
    version = re.search(r"v=(\S+)", shown.stdout)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="pgstore-redis-") as folder:
        settings = {"port": str(port), "bind": "127.0.0.1", "dir": folder, "save": ""}
        flags = [word for name, value in settings.items() for word in (f"--{name}", value)]
        _move_to(_SERVER_CORE)
        server = subprocess.Popen([program, *flags], stdout=subprocess.DEVNULL)
        _move_to(_CLIENT_CORE)
        try:
            _wait_for(port, server)
            yield port, version[1] if version else ""
        finally:
            server.terminate()
            server.wait()


def tool(name: str) -> str:
    """Return the path of a program. Raises `Missing`."""
    path = shutil.which(name)
    if path is None:
        raise Missing(f"{name} is not installed")
    return path


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return
