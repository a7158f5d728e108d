"""Data under tokens in one SQLite file."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from ..sql import Schema
from .sqlite_files import Busy
from .sqlite_table import SQLiteTable, micros

__all__ = ["SQLiteTokens"]

_SCHEMA: Final = Schema("sqlite", "tokens")
# As for sessions: a sweep that finds the file locked for so long leaves it to the next.
_SWEEP_WAIT_SECONDS: Final = 0.25


class SQLiteTokens(SQLiteTable):
    """A `TokenBackend` on a SQLite file; its settings are those of `SQLiteBackend`."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        table: str = "http_tokens",
        busy_timeout: float | timedelta = 5.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        columns = ("token_hash", "data", "expires_on")
        super().__init__(path, _SCHEMA, table, columns, busy_timeout, clock)
        self._find = f"""
            SELECT data FROM "{table}" WHERE token_hash = :key AND expires_on > :now"""
        self._commit = f"""
            INSERT INTO "{table}" (token_hash, data, expires_on) VALUES (:key, :data, :expires_on)
            ON CONFLICT (token_hash) DO UPDATE
            SET data = excluded.data, expires_on = excluded.expires_on"""
        self._delete = f'DELETE FROM "{table}" WHERE token_hash = :key'
        self._page = f"""
            SELECT token_hash, data FROM "{table}" WHERE token_hash > :after AND expires_on > :now
            ORDER BY token_hash LIMIT :limit"""
        self._sweep = f"""
            DELETE FROM "{table}" WHERE rowid IN (
                SELECT rowid FROM "{table}" WHERE expires_on <= :now
                ORDER BY expires_on LIMIT :limit)
            RETURNING token_hash"""

    def find(self, key: bytes) -> bytes | None:
        for (data,) in self._source.run(self._find, {"key": key, "now": self._now()}):
            return bytes(data)
        return None

    def commit(self, key: bytes, data: bytes, expiry: timedelta | datetime) -> None:
        if isinstance(expiry, datetime):
            expires_on = micros(expiry)
        else:
            expires_on = self._now() + expiry // timedelta(microseconds=1)
        self._source.run(self._commit, {"key": key, "data": data, "expires_on": expires_on})

    def delete(self, key: bytes) -> None:
        self._source.run(self._delete, {"key": key})

    def page(self, after: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        values = {"after": after or b"", "now": self._now(), "limit": limit}
        return [(key, data) for key, data in self._source.run(self._page, values)]

    def sweep(self, limit: int) -> list[bytes]:
        values = {"now": self._now(), "limit": limit}
        try:
            swept = self._source.run(self._sweep, values, wait=_SWEEP_WAIT_SECONDS)
        except Busy:
            return []
        return [key for (key,) in swept]
