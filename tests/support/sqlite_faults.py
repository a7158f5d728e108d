"""Processes that hold a SQLite file's lock, or write sessions to it until they are killed."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from copy import copy
from pathlib import Path
from typing import Any

from pgstore import SQLiteStore
from support.stores import KEYS, Browser


def run_module(*arguments: str) -> subprocess.Popen[str]:
    """Start this module in another process, which can import what this one can."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(
        [sys.executable, "-m", "support.sqlite_faults", *arguments],
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@contextmanager
def locked_elsewhere(path: Path, begin: str) -> Iterator[None]:
    """Let another process hold a transaction on the file, begun so, for the length of the block."""
    holder = run_module("hold", str(path), begin)
    assert holder.stdin
    assert holder.stdout
    assert holder.stdout.readline() == "holding\n"
    try:
        yield
    finally:
        holder.communicate("\n", timeout=30)
    assert holder.returncode == 0


def kill(process: subprocess.Popen[str]) -> str:
    """Kill a process with SIGKILL and return what it has written since it was last read."""
    assert process.stdin
    assert process.stdout
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    # Not communicate(), which passes over what readline() has buffered.
    with process.stdin, process.stdout:
        return process.stdout.read()


def _hold(path: str, begin: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(begin)
        print("holding", flush=True)
        sys.stdin.readline()
        connection.execute("ROLLBACK")


def _write(path: str, me: str, cookie: str) -> None:
    """Set one bit after the other, and acknowledge each that was saved."""
    browser, number = Browser(), 0
    browser.cookies["sid"] = cookie
    settings: dict[str, Any] = {"busy_timeout": 30.0, "save_deadline": 30.0}
    with SQLiteStore(path, *KEYS, schema="off", max_length=0, **settings) as store:
        while True:
            with copy(browser).visit(store) as session:
                session[me] = session.get(me, 0) | 1 << number
            os.write(1, f"{number}\n".encode("ascii"))
            number += 1


def _stop_inside(path: str) -> None:
    """Delete a row under the lock, and stop before the commit."""
    with SQLiteStore(path, *KEYS, schema="off") as store:
        loaded = next(iter(store.backend.scan(None, 1)))
        with store.backend.locked(loaded.key) as inside:
            assert inside.delete(loaded.key) is not None
            print("inside", flush=True)
            signal.pause()


_TASKS: dict[str, Callable[..., None]] = {
    "hold": _hold,
    "write": _write,
    "stop-inside": _stop_inside,
}

if __name__ == "__main__":
    _TASKS[sys.argv[1]](*sys.argv[2:])
