"""Rows in one SQLite file: no server, many threads and processes of one machine."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from ..errors import ConfigurationError
from ..rows import (
    Expiry,
    Lazy,
    Loaded,
    PGSession,
    Stats,
    UserStats,
    expiry_times,
    meta_of,
)
from ..sql import Schema
from .sqlite_files import Busy
from .sqlite_lent import Lent
from .sqlite_table import SQLiteTable, check_sqlite_table, micros, moment
from .sqlite_tokens import SQLiteTokens

__all__ = ["SQLiteBackend", "schema_sql"]

_SCHEMA: Final = Schema("sqlite")

# Sweeping is not urgent: a sweep that finds the file locked for so long leaves it to the next.
_SWEEP_WAIT_SECONDS: Final = 0.25

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
_UNTIMED: Final = ("key", *_STORED)
_COLUMNS: Final = (*_UNTIMED, *_TIMES)


class SQLiteBackend(SQLiteTable):
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
        super().__init__(path, _SCHEMA, table, _COLUMNS, busy_timeout, clock)
        self._sql = _Statements(self.table)

    def load(self, key: bytes) -> Loaded | None:
        now = self._now()
        for values in self._source.run(self._sql.load, {"key": key, "now": now}):
            return Loaded(_Row.of(values), moment(now))
        return None

    def insert(self, row: PGSession, expiry: Expiry) -> PGSession | None:
        now = moment(self._now())
        expires_on, gc_after = expiry_times(now, now, expiry)
        stored = row.but(
            created_on=now,
            modified_on=now,
            seen_on=now,
            expires_on=expires_on,
            gc_after=gc_after,
            authenticated_on=None if row.user_key is None else now,
            renewed_on=None,
        )
        set_times = ((name, getattr(stored, name)) for name in _TIMES)
        times = {name: time and micros(time) for name, time in set_times}
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
        data_only: bool = False,
    ) -> PGSession | None:
        if data_only:
            now = self._now()
            values = {**_data(row, version), "now": now}
            done = self._source.run(self._sql.update_data, values)
            return row.but(modified_on=moment(now)) if done else None
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
            "seen_on": row.seen_on and micros(row.seen_on),
            **self._expiry(expiry),
        }
        for times in self._source.run(self._sql.touch, values):
            return _with_times(row, ("seen_on", "expires_on", "gc_after"), times)
        return None

    def delete(
        self,
        key: bytes,
        *,
        version: int | None = None,
        generation: int | None = None,
        user_key: str | None = None,
    ) -> PGSession | None:
        values = {
            "key": key,
            "now": self._now(),
            "version": version,
            "generation": generation,
            "user_key": user_key,
        }
        for deleted in self._source.run(self._sql.delete, values):
            return _Row.of(deleted)
        return None

    def rewrite(self, row: PGSession, version: int) -> bool:
        values = {**_data(row, version), "now": self._now()}
        return bool(self._source.run(self._sql.rewrite, values))

    def scan(self, after: bytes | None, limit: int) -> list[PGSession]:
        # Every key comes after the empty one.
        values = {"after": after or b"", "now": self._now(), "limit": limit}
        return [_Row.of(found) for found in self._source.run(self._sql.scan, values)]

    def of_user(self, user_key: str) -> list[PGSession]:
        values = {"user_key": user_key, "now": self._now()}
        return [_Row.of(found) for found in self._source.run(self._sql.of_user, values)]

    def users(self, after: str | None, limit: int) -> list[UserStats]:
        values = {"after": after, "now": self._now(), "limit": limit}
        found = self._source.run(self._sql.users, values)
        return [UserStats(user, sessions, moment(seen)) for user, sessions, seen in found]

    def delete_of_user(
        self, user_key: str, *, keep: bytes | None = None, newest: int = 0
    ) -> list[PGSession]:
        values = {"user_key": user_key, "now": self._now(), "keep": keep, "newest": newest}
        return [_Row.of(deleted) for deleted in self._source.run(self._sql.delete_of_user, values)]

    @contextmanager
    def locked(self, key: bytes) -> Iterator[SQLiteBackend]:
        with self._source.transaction() as transaction:
            yield self._inside(transaction)

    def using(self, connection: Any) -> SQLiteBackend:
        return self._inside(Lent(self._database, connection))

    def sweep(self, limit: int, horizon: float) -> list[PGSession]:
        now = self._now()
        values = {"now": now, "until": now + round(horizon * 1_000_000), "limit": limit}
        try:
            # One statement is one transaction, and holds the file's only write lock.
            swept = self._source.run(self._sql.sweep, values, wait=_SWEEP_WAIT_SECONDS)
        except Busy:
            return []
        return [_Row.of(deleted) for deleted in swept]

    def stats(self) -> Stats:
        ((live, expired, size, oldest),) = self._source.run(self._sql.stats, {"now": self._now()})
        return Stats(live, expired, size, None if oldest is None else moment(oldest))

    def tokens(self, table: str, db_schema: str | None = None) -> SQLiteTokens:
        """Return where the data of tokens lives: in the same file, over connections of its own."""
        if db_schema is not None:
            raise ConfigurationError("db_schema is for PostgreSQL: SQLite has no schemas")
        wait = self._database.busy_timeout
        return SQLiteTokens(self.path, table=table, busy_timeout=wait, clock=self._clock)

    def _expiry(self, expiry: Expiry) -> dict[str, int]:
        lifetime = expiry.lifetime
        return {
            "now": self._now(),
            "idle": round(expiry.idle * 1_000_000),
            "lifetime": _NEVER if lifetime is None else round(lifetime * 1_000_000),
            "bucket": round(expiry.bucket * 1_000_000),
        }


def schema_sql(table: str = "http_sessions") -> str:
    """Return the SQL text that makes the table, for whoever has the right to run it."""
    text = _SCHEMA.text(check_sqlite_table(table))
    return f"PRAGMA journal_mode = WAL;\n\nBEGIN IMMEDIATE;\n\n{text}\nCOMMIT;\n"


class _Statements:
    """The text of every statement, for one table."""

    def __init__(self, table: str) -> None:
        live = "key = :key AND expires_on > :now"
        start = "coalesce(authenticated_on, created_on)"
        columns = ", ".join(_COLUMNS)
        without_data = ", ".join("x''" if name == "data" else name for name in _COLUMNS)
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
                AND (:user_key IS NULL OR user_key = :user_key)
            RETURNING {without_data}"""
        data = f'UPDATE "{table}" SET data = :data, version = :version'
        same = f"WHERE {live} AND version = :loaded_version RETURNING 1"
        self.update_data = f"{data}, modified_on = :now {same}"
        self.rewrite = f"{data} {same}"
        self.scan = f"""
            SELECT {columns} FROM "{table}" WHERE key > :after AND expires_on > :now
            ORDER BY key LIMIT :limit"""
        newest = "coalesce(authenticated_on, created_on) DESC, key DESC"
        of_user = "user_key = :user_key AND expires_on > :now"
        self.of_user = f"""
            SELECT {without_data} FROM "{table}" WHERE {of_user} ORDER BY {newest}"""
        self.delete_of_user = f"""
            DELETE FROM "{table}" WHERE rowid IN (
                SELECT rowid FROM "{table}" WHERE {of_user}
                ORDER BY key = :keep DESC, {newest} LIMIT -1 OFFSET :newest)
                AND (:keep IS NULL OR key <> :keep)
            RETURNING {without_data}"""
        self.sweep = f"""
            DELETE FROM "{table}" WHERE rowid IN (
                SELECT rowid FROM "{table}" WHERE gc_after <= :until AND expires_on <= :now
                ORDER BY gc_after LIMIT :limit)
            RETURNING {without_data}"""
        self.users = f"""
            SELECT user_key, count(*), max(seen_on) FROM "{table}"
            WHERE user_key IS NOT NULL AND (:after IS NULL OR user_key > :after)
                AND expires_on > :now
            GROUP BY user_key ORDER BY user_key LIMIT :limit"""
        self.stats = f"""
            SELECT count(*) FILTER (WHERE live), count(*) FILTER (WHERE NOT live),
                (SELECT page_count * page_size FROM pragma_page_count, pragma_page_size),
                min(created_on) FILTER (WHERE live)
            FROM (SELECT expires_on > :now AS live, created_on FROM "{table}")"""


class _Row(PGSession):
    """A row as it came from the file, in the order of `_COLUMNS`."""

    created_on: Any = Lazy(14, moment)
    modified_on: Any = Lazy(15, moment)
    seen_on: Any = Lazy(16, moment)
    expires_on: Any = Lazy(17, moment)
    gc_after: Any = Lazy(18, moment)
    authenticated_on: Any = Lazy(19, moment)
    renewed_on: Any = Lazy(20, moment)

    @classmethod
    def of(cls, values: Sequence[Any]) -> _Row:
        row = object.__new__(cls)
        fields = row.__dict__
        fields.update(zip(_UNTIMED, values, strict=False))
        fields["meta"] = meta_of(fields["meta"]) if fields["meta"] else {}
        fields["_raw"] = values.__getitem__
        return row


def _set_seen(start: str) -> str:
    end = f"min(:now + :idle, {start} + :lifetime)"
    zero = micros(datetime(2000, 1, 1, tzinfo=UTC))
    # As in rows.expiry_times: an expression of SET sees the row as it was.
    return f"""seen_on = :now, expires_on = {end},
                gc_after = {zero} + (({end} - {zero}) / :bucket + 1) * :bucket"""


def _values(row: PGSession) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in _UNTIMED}
    values["meta"] = json.dumps(dict(row.meta)) if row.meta else None
    return values


def _data(row: PGSession, version: int) -> dict[str, Any]:
    return {
        "key": row.key,
        "data": row.data,
        "version": row.version,
        "loaded_version": version,
    }


def _with_times(row: PGSession, names: Sequence[str], values: Sequence[int | None]) -> PGSession:
    times: dict[str, Any] = {
        name: None if value is None else moment(value)
        for name, value in zip(names, values, strict=True)
    }
    return row.but(**times)
