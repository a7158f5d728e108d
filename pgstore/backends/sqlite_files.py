"""Connections to one SQLite file: lent to one thread at a time, never across a fork."""

from __future__ import annotations

import os
import random
import sqlite3
import time
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from ..errors import BackendError, SchemaError

__all__ = ["Busy", "Connections", "Database", "Source", "Transaction"]


class Source(Protocol):
    """What a `SQLiteBackend` runs its statements on."""

    def run(
        self, sql: str, values: Mapping[str, Any] | None = None, *, wait: float | None = None
    ) -> list[tuple[Any, ...]]:
        """Run one statement and return its rows; ``wait`` replaces the busy timeout."""

    def transaction(self) -> AbstractContextManager[Source]:
        """Hold the file's write lock for a block."""

    def creation(self) -> AbstractContextManager[Source]:
        """Open a transaction on the file, which is made first if there is none."""

    def close(self) -> None:
        """Free what this source opened."""


class Connections:
    """Lends connections to one file, each to one thread at a time.

    They are kept in a stack, not one per thread: a server that starts a thread per request would
    open one per request, and nobody would close it in time when its thread ends.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._idle: deque[_Connection] = deque()
        self._closed = False
        weakref.finalize(self, _close_all, self._idle)

    def run(
        self, sql: str, values: Mapping[str, Any] | None = None, *, wait: float | None = None
    ) -> list[tuple[Any, ...]]:
        """Run one statement, in a transaction of its own."""
        connection = self._take()
        try:
            if wait is not None:
                connection.wait(min(wait, self._database.busy_timeout))
            rows = connection.run(sql, values)
            if wait is not None:
                connection.wait(self._database.busy_timeout)
        except BaseException:
            connection.close()
            raise
        self._give_back(connection)
        return rows

    def transaction(self) -> AbstractContextManager[Transaction]:
        """Hold the file's write lock for a block; commit at its end, or roll back."""
        return self._transaction(self._take())

    def creation(self) -> AbstractContextManager[Transaction]:
        """Open a transaction on the file, which is made first if there is none."""
        return self._transaction(self._database.open(create=True))

    def close(self) -> None:
        self._closed = True
        _close_all(self._idle)

    @contextmanager
    def _transaction(self, connection: _Connection) -> Iterator[Transaction]:
        try:
            connection.run("BEGIN IMMEDIATE")
            yield Transaction(connection)
            connection.run("COMMIT")
        except BaseException:
            connection.roll_back()
            connection.close()
            raise
        self._give_back(connection)

    def _take(self) -> _Connection:
        if self._closed:
            raise BackendError(f"the backend for {self._database.path} is closed")
        identity = self._database.identity()
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return self._database.open()
            if connection.fits(identity):
                return connection
            connection.close()

    def _give_back(self, connection: _Connection) -> None:
        self._idle.append(connection)
        if self._closed:
            # close() may have looked before this one was back.
            _close_all(self._idle)


class Transaction:
    """The inside of a transaction: one connection, lent for the length of a block."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    def run(
        self, sql: str, values: Mapping[str, Any] | None = None, *, wait: float | None = None
    ) -> list[tuple[Any, ...]]:
        return self._connection.run(sql, values)

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        yield self

    creation = transaction

    def close(self) -> None:
        """Do nothing: the block ends the transaction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """One file: how to open it, and what its errors mean."""

    path: str
    table: str
    busy_timeout: float

    def identity(self) -> tuple[int, int] | None:
        """Return what tells this file from another that takes its place later."""
        try:
            status = os.stat(self.path)
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def open(self, *, create: bool = False) -> _Connection:
        # The identity is taken first: if the file is replaced in between, the connection is taken
        # for one to the old file, and not used again.
        identity = self.identity()
        if identity is None and not (create and os.path.isdir(os.path.dirname(self.path))):
            raise self._missing()
        mode = "rwc" if create else "rw"
        try:
            raw = sqlite3.connect(
                f"{Path(self.path).as_uri()}?mode={mode}",
                uri=True,
                timeout=self.busy_timeout,
                isolation_level=None,
                check_same_thread=False,
            )
        except sqlite3.Error as error:
            raise self.error(error) from error
        connection = _Connection(self, raw, identity or self.identity())
        try:
            journal = connection.run("PRAGMA journal_mode")[0][0]
            if create and journal != "wal":
                journal = self._enter_wal(connection)
            if journal == "wal":
                # Without WAL it would not be safe against a power cut.
                connection.run("PRAGMA synchronous = NORMAL")
        except BaseException:
            connection.close()
            raise
        return connection

    def error(self, error: sqlite3.Error) -> BackendError:
        """Return what an error of SQLite's means here. A statement that failed wrote nothing."""
        name = getattr(error, "sqlite_errorname", "")
        text = str(error)
        if text.startswith(("no such table", "no such column")):
            return SchemaError(
                f"{self.path} has no table {self.table} that this code can use: "
                f"run `pgstore schema apply`"
            )
        if text.endswith("already exists"):
            return SchemaError(
                f"{self.path} has a table {self.table} that pgstore did not make: choose another"
            )
        if name == "SQLITE_BUSY_SNAPSHOT":
            return Busy(
                f"{self.path} was written by another since this transaction first read it: begin "
                "with BEGIN IMMEDIATE"
            )
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            return Busy(f"{self.path} was locked by another writer for {self.busy_timeout:g} s")
        for code, meaning in _MEANINGS.items():
            if name.startswith(code):
                return BackendError(f"{self.path} {meaning}")
        return BackendError(f"SQLite failed on {self.path} ({name or type(error).__name__})")

    def _missing(self) -> BackendError:
        folder = os.path.dirname(self.path)
        if os.path.isdir(folder) and os.access(folder, os.X_OK):
            return SchemaError(f"there is no database {self.path}: run `pgstore schema apply`")
        return BackendError(f"there is no folder {folder} that this process may enter")

    def _enter_wal(self, connection: _Connection) -> str:
        """Switch the file to WAL, for good, and return its journal's mode, an older one if need be.

        SQLite does not wait for another writer here: of many processes at once on a new file, all
        may be refused.
        """
        deadline = time.monotonic() + self.busy_timeout
        while True:
            try:
                return str(connection.run("PRAGMA journal_mode = WAL")[0][0])
            except Busy:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(random.uniform(0.001, 0.02))  # noqa: S311


class _Connection:
    """One connection. Only the process that opened it uses it, while the file is the same."""

    def __init__(
        self, database: Database, raw: sqlite3.Connection, identity: tuple[int, int] | None
    ) -> None:
        self._database = database
        self._raw = raw
        self._identity = identity
        self._pid = os.getpid()
        # Only close() frees this connection, for it holds itself through this function. Otherwise
        # garbage collection, or the interpreter's end, would close it in a forked child.
        raw.create_function("pgstore_hold", 0, lambda: raw.total_changes)

    def fits(self, identity: tuple[int, int] | None) -> bool:
        """Tell whether this is a connection of this process to the file with that identity."""
        return self._identity == identity is not None and self._pid == os.getpid()

    def run(self, sql: str, values: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        if self._pid != os.getpid():
            raise BackendError(f"a transaction on {self._database.path} cannot cross a fork")
        try:
            # RETURNING's rows are all fetched: a statement left halfway holds its lock.
            return self._raw.execute(sql, values or {}).fetchall()
        except sqlite3.Error as error:
            raise self._database.error(error) from error

    def wait(self, seconds: float) -> None:
        """Set how long statements wait for another writer."""
        self.run(f"PRAGMA busy_timeout = {round(seconds * 1000)}")

    def roll_back(self) -> None:
        """End the transaction now: close() leaves that to the last statement still in use."""
        if self._pid == os.getpid():
            with suppress(sqlite3.Error):
                self._raw.rollback()

    def close(self) -> None:
        """Close the connection, or abandon it in a forked child.

        There, closing could write to the file, or delete its journal, without the parent's locks.
        https://www.sqlite.org/howtocorrupt.html section 2.6
        """
        if self._pid == os.getpid():
            self._raw.close()


class Busy(BackendError):
    """Another connection held the lock for too long."""


_MEANINGS: Final = {
    "SQLITE_CANTOPEN": "cannot be opened: this process must be able to write it and its folder",
    "SQLITE_READONLY": "is read-only for this process",
    "SQLITE_NOTADB": "is not a SQLite database",
    "SQLITE_CORRUPT": "is damaged",
    "SQLITE_FULL": "cannot grow: the disk is full",
    "SQLITE_IOERR": "could not be read or written",
}


def _close_all(connections: deque[_Connection]) -> None:
    with suppress(IndexError):
        while True:
            connections.pop().close()
