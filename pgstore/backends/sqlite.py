"""Rows in one SQLite file: no server, many threads and processes of one machine."""

from __future__ import annotations

import copy
import json
import os
import random
import re
import sqlite3
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from ..errors import BackendError, ConfigurationError, SchemaError
from ..options import seconds
from ..rows import Expiry, Loaded, PGSession, check_table, expiry_times
from ..sql import migrations

__all__ = ["SCHEMA_VERSION", "SQLiteBackend", "schema_sql"]

_MIGRATIONS: Final = migrations("sqlite")
# The newest schema, which this code wants.
SCHEMA_VERSION: Final = _MIGRATIONS[-1].version

# Sweeping is not urgent: a sweep that finds the file locked for so long leaves it to the next.
_SWEEP_WAIT_SECONDS: Final = 0.25

_UNIX_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
# Further than any expiry, and still a 64-bit integer when a time is added to it.
_NEVER: Final = 2**62

_STORED: Final = (
    "name",
    "generation",
    "min_generation",
    "secret_hash",
    "data",
    "version",
    "max_age",
    "user_key",
    "ip",
    "user_agent",
    "meta",
    "previous_hash",
    "successor",
)
_TIMES: Final = (
    "created_on",
    "modified_on",
    "seen_on",
    "expires_on",
    "gc_after",
    "authenticated_on",
    "renewed_on",
)
_COLUMNS: Final = ("key", *_STORED, *_TIMES)


class SQLiteBackend:
    """Keep rows in a SQLite file (3.38 or newer), in WAL mode where the file system allows it.

    ``path`` is a file on a local disk; a network file system loses SQLite's locks. The file is made
    by `apply_schema` only, never by a request. In WAL mode a commit outlives the process that made
    it; a power cut may take the last ones, and leaves the file whole.

    ``busy_timeout`` (seconds or a `timedelta`) is how long a statement waits for another writer.
    ``clock`` returns Unix seconds: an embedded database has no clock but the machine's.

    SQLite has one writer at a time: ``locked`` holds every row, and a sweep passes over no row.

    Raises `ConfigurationError` for a path that is not a file's. Connections at rest are closed by
    `close`, or when the backend is collected, or at exit; those in use are when they are done.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        table: str = "http_sessions",
        busy_timeout: float | timedelta = 5.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.table = _check_table(table)
        self.path = _check_path(path)
        wait = seconds(busy_timeout, "busy_timeout")
        if not 0 <= wait <= 3600:
            raise ConfigurationError(f"busy_timeout must be 0 to 3600 seconds, not {wait:g}")
        self._clock = clock
        self._sql = _Statements(self.table)
        self._source: _Connections | _Transaction = _Connections(
            _Database(path=self.path, table=self.table, busy_timeout=wait)
        )

    def __repr__(self) -> str:
        return f"<SQLiteBackend {self.path} {self.table}>"

    def load(self, key: bytes) -> Loaded | None:
        now = self._now()
        for values in self._source.run(self._sql.load, {"key": key, "now": now}):
            return Loaded(_row(values), _time(now))
        return None

    def insert(self, row: PGSession, expiry: Expiry) -> PGSession | None:
        now = _time(self._now())
        expires_on, gc_after = expiry_times(now, now, expiry)
        stored = replace(
            row,
            created_on=now,
            modified_on=now,
            seen_on=now,
            expires_on=expires_on,
            gc_after=gc_after,
            authenticated_on=None if row.user_key is None else now,
            renewed_on=None,
        )
        times = {name: _micros(getattr(stored, name)) for name in _TIMES}
        added = self._source.run(self._sql.insert, _values(row) | times)
        return stored if added else None

    def update(
        self,
        row: PGSession,
        version: int,
        expiry: Expiry | None,
        *,
        login: bool = False,
        renew: bool = False,
    ) -> PGSession | None:
        sql, more = self._sql.update, {"now": self._now()}
        if expiry is not None:
            sql, more = self._sql.update_and_visit, self._expiry(expiry)
        more |= {"loaded_version": version, "login": login, "renew": renew}
        for times in self._source.run(sql, _values(row) | more):
            return _with_times(row, _TIMES, times)
        return None

    def touch(self, row: PGSession, expiry: Expiry) -> PGSession | None:
        values = {
            "key": row.key,
            "generation": row.generation,
            "seen_on": _micros(row.seen_on),
            **self._expiry(expiry),
        }
        for times in self._source.run(self._sql.touch, values):
            return _with_times(row, ("seen_on", "expires_on", "gc_after"), times)
        return None

    def delete(
        self, key: bytes, *, version: int | None = None, generation: int | None = None
    ) -> PGSession | None:
        values = {"key": key, "now": self._now(), "version": version, "generation": generation}
        for deleted in self._source.run(self._sql.delete, values):
            return _row(deleted)
        return None

    def rewrite(self, row: PGSession, version: int) -> bool:
        values = {
            "key": row.key,
            "now": self._now(),
            "data": row.data,
            "version": row.version,
            "loaded_version": version,
        }
        return bool(self._source.run(self._sql.rewrite, values))

    def scan(self, after: bytes | None, limit: int) -> list[PGSession]:
        # Every key comes after the empty one.
        values = {"after": after or b"", "now": self._now(), "limit": limit}
        return [_row(found) for found in self._source.run(self._sql.scan, values)]

    @contextmanager
    def locked(self, key: bytes) -> Iterator[SQLiteBackend]:
        with self._source.transaction() as transaction:
            yield self._inside(transaction)

    def sweep(self, limit: int, horizon: float) -> int | None:
        now = self._now()
        values = {"now": now, "until": now + round(horizon * 1_000_000), "limit": limit}
        try:
            # One statement is one transaction, and holds the file's only write lock.
            return len(self._source.run(self._sql.sweep, values, wait=_SWEEP_WAIT_SECONDS))
        except _Busy:
            return None

    def apply_schema(self) -> None:
        if self._schema_versions()[0] < SCHEMA_VERSION:
            with self._source.creation() as transaction:
                # Another process may have been faster.
                applied, _ = self._inside(transaction)._schema_versions()
                for statement in _split(_schema_sql(self.table, after=applied)):
                    transaction.run(statement)
        self.check_schema()

    def check_schema(self) -> None:
        applied, oldest_code = self._schema_versions()
        if applied == 0:
            raise SchemaError(
                f"no sessions table {self.table} in {self.path}: run `pgstore schema apply`"
            )
        if oldest_code > SCHEMA_VERSION:
            raise SchemaError(
                f"table {self.table} in {self.path} is for code that knows schema {oldest_code} "
                f"or later, and this code knows {SCHEMA_VERSION}: upgrade pgstore"
            )
        if applied < SCHEMA_VERSION:
            raise SchemaError(
                f"table {self.table} in {self.path} has schema {applied} and this code needs "
                f"{SCHEMA_VERSION}: run `pgstore schema apply`"
            )
        self._source.run(self._sql.probe)

    def close(self) -> None:
        self._source.close()

    def _inside(self, transaction: _Transaction) -> SQLiteBackend:
        inside = copy.copy(self)
        inside._source = transaction
        return inside

    def _now(self) -> int:
        return round(self._clock() * 1_000_000)

    def _expiry(self, expiry: Expiry) -> dict[str, int]:
        lifetime = expiry.lifetime
        return {
            "now": self._now(),
            "idle": round(expiry.idle * 1_000_000),
            "lifetime": _NEVER if lifetime is None else round(lifetime * 1_000_000),
            "bucket": round(expiry.bucket * 1_000_000),
        }

    def _schema_versions(self) -> tuple[int, int]:
        """Return the newest migration that was applied, 0 for none, and the oldest code for it."""
        try:
            for applied, oldest_code in self._source.run(self._sql.schema_versions):
                return applied, oldest_code
        except SchemaError:
            pass
        return 0, 0


def schema_sql(table: str = "http_sessions") -> str:
    """Return the SQL text that makes the table, for whoever has the right to run it."""
    text = _schema_sql(_check_table(table), after=0)
    return f"PRAGMA journal_mode = WAL;\n\nBEGIN IMMEDIATE;\n\n{text}\nCOMMIT;\n"


class _Statements:
    """The text of every statement, for one table."""

    def __init__(self, table: str) -> None:
        live = "key = :key AND expires_on > :now"
        start = "coalesce(authenticated_on, created_on)"
        columns = ", ".join(_COLUMNS)
        self.load = f'SELECT {columns} FROM "{table}" WHERE {live}'
        self.insert = f"""
            INSERT INTO "{table}" ({columns}) VALUES ({", ".join(":" + name for name in _COLUMNS)})
            ON CONFLICT (key) DO NOTHING RETURNING 1"""
        update = f"""
            UPDATE "{table}" SET {", ".join(f"{name} = :{name}" for name in _STORED)},
                modified_on = :now,
                authenticated_on = iif(:login, :now, authenticated_on),
                renewed_on = iif(:renew, :now, renewed_on)"""
        where = f"""
            WHERE {live} AND version = :loaded_version
            RETURNING {", ".join(_TIMES)}"""
        self.update = update + where
        visit = _set_seen(f"iif(:login, :now, {start})")
        self.update_and_visit = f"{update}, {visit}{where}"
        self.touch = f"""
            UPDATE "{table}" SET {_set_seen(start)}
            WHERE {live} AND generation = :generation AND seen_on = :seen_on
            RETURNING seen_on, expires_on, gc_after"""
        self.delete = f"""
            DELETE FROM "{table}" WHERE {live}
                AND (:version IS NULL OR version = :version)
                AND (:generation IS NULL OR min_generation <= :generation)
            RETURNING {", ".join("x''" if name == "data" else name for name in _COLUMNS)}"""
        self.rewrite = f"""
            UPDATE "{table}" SET data = :data, version = :version
            WHERE {live} AND version = :loaded_version RETURNING 1"""
        self.scan = f"""
            SELECT {columns} FROM "{table}" WHERE key > :after AND expires_on > :now
            ORDER BY key LIMIT :limit"""
        self.sweep = f"""
            DELETE FROM "{table}" WHERE rowid IN (
                SELECT rowid FROM "{table}" WHERE gc_after <= :until AND expires_on <= :now
                ORDER BY gc_after LIMIT :limit)
            RETURNING 1"""
        self.schema_versions = f"""
            SELECT version, oldest_code FROM "{table}_schema" ORDER BY version DESC LIMIT 1"""
        self.probe = f'SELECT {columns} FROM "{table}" LIMIT 0'


class _Connections:
    """Lends connections to one file, each to one thread at a time.

    They are kept in a stack, not one per thread: a server that starts a thread per request would
    open one per request, and nobody would close it in time when its thread ends.
    """

    def __init__(self, database: _Database) -> None:
        self._database = database
        self._idle: deque[_Connection] = deque()
        self._closed = False
        weakref.finalize(self, _close_all, self._idle)

    def run(
        self, sql: str, values: Mapping[str, Any] | None = None, *, wait: float | None = None
    ) -> list[tuple[Any, ...]]:
        """Run one statement, in a transaction of its own; ``wait`` replaces the busy timeout."""
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

    def transaction(self) -> AbstractContextManager[_Transaction]:
        """Hold the file's write lock for a block; commit at its end, or roll back."""
        return self._transaction(self._take())

    def creation(self) -> AbstractContextManager[_Transaction]:
        """Open a transaction on the file, which is made first if there is none."""
        return self._transaction(self._database.open(create=True))

    def close(self) -> None:
        self._closed = True
        _close_all(self._idle)

    @contextmanager
    def _transaction(self, connection: _Connection) -> Iterator[_Transaction]:
        try:
            connection.run("BEGIN IMMEDIATE")
            yield _Transaction(connection)
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


class _Transaction:
    """The inside of a transaction: one connection, lent for the length of a block."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    def run(
        self, sql: str, values: Mapping[str, Any] | None = None, *, wait: float | None = None
    ) -> list[tuple[Any, ...]]:
        return self._connection.run(sql, values)

    @contextmanager
    def transaction(self) -> Iterator[_Transaction]:
        yield self

    creation = transaction

    def close(self) -> None:
        """Do nothing: the block ends the transaction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Database:
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
                f"{self.path} has no sessions table {self.table} that this code can use: "
                f"run `pgstore schema apply`"
            )
        if text.endswith("already exists"):
            return SchemaError(
                f"{self.path} has a table {self.table} that pgstore did not make: choose another"
            )
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            return _Busy(f"{self.path} was locked by another writer for {self.busy_timeout:g} s")
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
            except _Busy:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(random.uniform(0.001, 0.02))  # noqa: S311


class _Connection:
    """One connection. Only the process that opened it uses it, while the file is the same."""

    def __init__(
        self, database: _Database, raw: sqlite3.Connection, identity: tuple[int, int] | None
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


class _Busy(BackendError):
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


def _check_table(name: str) -> str:
    if check_table(name).lower().startswith("sqlite_"):
        raise ConfigurationError(f"{name!r} cannot be the table: SQLite keeps sqlite_ for itself")
    return name


def _check_path(path: str | os.PathLike[str]) -> str:
    text = os.fspath(path)
    if text == ":memory:":
        raise ConfigurationError("SQLiteStore needs a file; for rows in memory, use MemoryStore")
    if not isinstance(text, str) or not text or text.startswith("file:"):
        raise ConfigurationError(f"path must name a file, and be no URI: {text!r}")
    # A server may change its working folder later.
    return os.path.abspath(text)


def _set_seen(start: str) -> str:
    end = f"min(:now + :idle, {start} + :lifetime)"
    zero = _micros(datetime(2000, 1, 1, tzinfo=UTC))
    # As in rows.expiry_times: an expression of SET sees the row as it was.
    return f"""seen_on = :now, expires_on = {end},
                gc_after = {zero} + (({end} - {zero}) / :bucket + 1) * :bucket"""


def _values(row: PGSession) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in ("key", *_STORED)}
    values["meta"] = json.dumps(dict(row.meta)) if row.meta else None
    return values


def _row(values: Sequence[Any]) -> PGSession:
    fields = dict(zip(_COLUMNS, values, strict=True))
    fields["meta"] = json.loads(fields["meta"]) if fields["meta"] else {}
    for name in _TIMES:
        if fields[name] is not None:
            fields[name] = _time(fields[name])
    return PGSession(**fields)


def _with_times(row: PGSession, names: Sequence[str], values: Sequence[int | None]) -> PGSession:
    times: dict[str, Any] = {
        name: None if value is None else _time(value)
        for name, value in zip(names, values, strict=True)
    }
    return replace(row, **times)


def _time(micros: int) -> datetime:
    return _UNIX_EPOCH + micros * _MICROSECOND


def _micros(time: datetime | None) -> int | None:
    return None if time is None else (time - _UNIX_EPOCH) // _MICROSECOND


def _schema_sql(table: str, *, after: int) -> str:
    """Return the text of the migrations after the one with that number, 0 for all."""
    parts = [
        f"""\
-- Which steps of the schema were applied, and the oldest code that may use the table after each.
CREATE TABLE IF NOT EXISTS "{table}_schema" (
    version     INTEGER NOT NULL PRIMARY KEY,
    oldest_code INTEGER NOT NULL,
    applied_on  INTEGER NOT NULL DEFAULT (unixepoch() * 1000000)
) STRICT;
"""
    ]
    for step in _MIGRATIONS:
        if step.version > after:
            parts.append(
                step.text.format(
                    table=f'"{table}"',
                    gc_index=f'"{table}_gc_after"',
                    user_index=f'"{table}_user_key"',
                )
            )
            parts.append(
                f'INSERT INTO "{table}_schema" (version, oldest_code) '
                f"VALUES ({step.version}, {step.oldest_code});\n"
            )
    return "\n".join(parts)


def _split(script: str) -> Iterator[str]:
    """Give a script's statements; sqlite3's executescript would commit before the first."""
    statement = ""
    for piece in re.findall(r"[^;]*;", script):
        statement += piece
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
