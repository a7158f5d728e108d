"""Data under tokens in PostgreSQL: a prepared statement and a round trip for each verb."""

from __future__ import annotations

from datetime import datetime, timedelta

from ..sql import Schema
from .postgres_formats import int8, interval, microseconds
from .postgres_pool import Pool
from .postgres_table import PostgresTable
from .postgres_wire import Statement

__all__ = ["PostgresTokens"]

_SCHEMA = Schema("postgres", "tokens")
_NOW = "statement_timestamp()"


class PostgresTokens(PostgresTable):
    """A `TokenBackend` on PostgreSQL.

    ``pool`` lends connections, and is closed with this object unless it is ``shared``. ``table``
    and ``db_schema`` are plain identifiers.
    """

    def __init__(
        self,
        pool: Pool,
        *,
        table: str = "http_tokens",
        db_schema: str | None = None,
        shared: bool = False,
    ) -> None:
        super().__init__(pool, _SCHEMA, table, db_schema)
        self._shared = shared
        name = self._qualified
        self._find = Statement(f"""
            SELECT data FROM {name} WHERE token_hash = $1::bytea AND expires_on > {_NOW}""")
        commit = f"""
            INSERT INTO {name} (token_hash, data, expires_on)
            VALUES ($1::bytea, $2::bytea, %s)
            ON CONFLICT (token_hash) DO UPDATE
            SET data = EXCLUDED.data, expires_on = EXCLUDED.expires_on"""
        self._commit_for = Statement(commit % f"{_NOW} + $3::interval")
        self._commit_until = Statement(commit % "$3::timestamptz")
        self._delete = Statement(f"DELETE FROM {name} WHERE token_hash = $1::bytea")
        self._page = Statement(f"""
            SELECT token_hash, data FROM {name}
            WHERE token_hash > $1::bytea AND expires_on > {_NOW}
            ORDER BY token_hash LIMIT $2::int8""")
        # As for sessions: the lock first, then the rows, planned anew each time.
        self._sweep = Statement(
            f"""
            DELETE FROM {name} WHERE expires_on <= {_NOW} AND token_hash IN (
                SELECT token_hash FROM {name} WHERE expires_on <= {_NOW}
                ORDER BY expires_on LIMIT $1::int8 FOR UPDATE SKIP LOCKED)
            AND (SELECT pg_try_advisory_xact_lock($2::int8))
            RETURNING token_hash""",
            keep=False,
        )

    def find(self, key: bytes) -> bytes | None:
        result = self._run(self._find, [key], read=True)
        return result.get_value(0, 0) if result.ntuples else None

    def commit(self, key: bytes, data: bytes, expiry: timedelta | datetime) -> None:
        if isinstance(expiry, datetime):
            self._run(self._commit_until, [key, data, microseconds(expiry)])
        else:
            self._run(self._commit_for, [key, data, interval(expiry.total_seconds())])

    def delete(self, key: bytes) -> None:
        self._run(self._delete, [key])

    def page(self, after: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        found = self._run(self._page, [after or b"", int8(limit)], read=True)
        return [
            (found.get_value(index, 0) or b"", found.get_value(index, 1) or b"")
            for index in range(found.ntuples)
        ]

    def sweep(self, limit: int) -> list[bytes]:
        swept = self._run(self._sweep, [int8(limit), int8(self._lock("sweep"))])
        return [swept.get_value(index, 0) or b"" for index in range(swept.ntuples)]

    def close(self) -> None:
        if not self._shared:
            super().close()
