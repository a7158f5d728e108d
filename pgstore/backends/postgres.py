"""Rows in PostgreSQL, 14 or newer: a prepared statement and a round trip for each verb.

Every statement of the request path addresses one key, and uses neither a volatile function nor a
trigger, so that the table may be distributed by ``key`` (Citus). Inside a caller's long transaction
``now()`` stands still; ``statement_timestamp()`` does not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from psycopg.pq.abc import PGresult

from ..errors import BackendError
from ..rows import Expiry, Lazy, Loaded, PGSession, Stats, UserStats, check_table, meta_of
from ..sql import Schema
from .postgres_formats import boolean, int4, int8, interval, microseconds, moment, number, text
from .postgres_lent import Lent
from .postgres_pool import Pool
from .postgres_table import PostgresTable, sqlstate_of
from .postgres_tokens import PostgresTokens
from .postgres_wire import Statement

__all__ = ["PostgresBackend"]

_FEATURE_NOT_SUPPORTED = "0A000"

_NOW = "statement_timestamp()"
_LIVE = f"expires_on > {_NOW}"
_CONTENT = """key, name, generation, min_generation, secret_hash, data, version, max_age,
    user_key, ip, user_agent, meta, previous_hash, successor"""
_TIMES = "created_on, modified_on, seen_on, expires_on, gc_after, authenticated_on, renewed_on"
_WITHOUT_DATA = _CONTENT.replace("data,", "''::bytea,", 1)
_VALUES = """$1::bytea, $2::text, $3::int4, $4::int4, $5::bytea, $6::bytea, $7::int8, $8::int4,
    $9::text, $10::text, $11::text, $12::jsonb, $13::bytea, $14::bytea"""


class _Sql:
    """The statements for one table, composed once.

    The table's name is two plain identifiers in quotes; everything else that goes into the text
    are the constants above.
    """

    def __init__(self, table: str) -> None:
        self.load = Statement(f"""
            SELECT {_CONTENT}, {_TIMES}, {_NOW}
            FROM {table} WHERE key = $1::bytea AND {_LIVE}""")

        end, after = _expiry_sql(_NOW, "$15", "$16", "$17")
        self.insert = Statement(f"""
            INSERT INTO {table} ({_CONTENT}, {_TIMES})
            VALUES ({_VALUES}, {_NOW}, {_NOW}, {_NOW}, {end}, {after},
                    CASE WHEN $9::text IS NOT NULL THEN {_NOW} END, NULL)
            ON CONFLICT (key) DO NOTHING
            RETURNING {_TIMES}""")

        names = _CONTENT.replace("key, ", "", 1)
        values = _VALUES.replace("$1::bytea, ", "", 1)
        update = f"""
            UPDATE {table} SET ({names}) = ROW({values}),
                modified_on = {_NOW},
                authenticated_on = CASE WHEN $16::bool THEN {_NOW} ELSE authenticated_on END,
                renewed_on = CASE WHEN $17::bool THEN {_NOW} ELSE renewed_on END"""
        where = f"""
            WHERE key = $1::bytea AND version = $15::int8 AND {_LIVE}
            RETURNING {_TIMES}"""
        self.update = Statement(update + where)
        start = f"CASE WHEN $16::bool THEN {_NOW} ELSE COALESCE(authenticated_on, created_on) END"
        end, after = _expiry_sql(start, "$18", "$19", "$20")
        visit = f", seen_on = {_NOW}, expires_on = {end}, gc_after = {after}"
        self.update_and_visit = Statement(update + visit + where)

        end, after = _expiry_sql("COALESCE(authenticated_on, created_on)", "$4", "$5", "$6")
        self.touch = Statement(f"""
            UPDATE {table} SET seen_on = {_NOW}, expires_on = {end}, gc_after = {after}
            WHERE key = $1::bytea AND generation = $2::int4 AND seen_on = $3::timestamptz
                AND {_LIVE}
            RETURNING seen_on, expires_on, gc_after""")

        self.delete = Statement(f"""
            DELETE FROM {table}
            WHERE key = $1::bytea AND {_LIVE}
                AND ($2::int8 IS NULL OR version = $2)
                AND ($3::int4 IS NULL OR min_generation <= $3)
                AND ($4::text IS NULL OR user_key = $4)
            RETURNING {_WITHOUT_DATA}, {_TIMES}""")

        self.update_data = Statement(f"""
            UPDATE {table} SET data = $2::bytea, version = $3::int8, modified_on = {_NOW}
            WHERE key = $1::bytea AND version = $4::int8 AND {_LIVE}
            RETURNING modified_on""")

        self.rewrite = Statement(f"""
            UPDATE {table} SET data = $2::bytea, version = $3::int8
            WHERE key = $1::bytea AND version = $4::int8 AND {_LIVE}""")

        self.scan = Statement(f"""
            SELECT {_CONTENT}, {_TIMES}
            FROM {table} WHERE key > $1::bytea AND {_LIVE} ORDER BY key LIMIT $2::int8""")

        newest = "COALESCE(authenticated_on, created_on) DESC, key DESC"
        of_user = f"user_key = $1::text AND {_LIVE}"
        self.of_user = Statement(f"""
            SELECT {_WITHOUT_DATA}, {_TIMES} FROM {table} WHERE {of_user} ORDER BY {newest}""")
        self.delete_of_user = Statement(f"""
            DELETE FROM {table} WHERE {of_user} AND ($2::bytea IS NULL OR key <> $2)
            RETURNING {_WITHOUT_DATA}, {_TIMES}""")
        self.trim_user = Statement(f"""
            DELETE FROM {table} WHERE {of_user} AND ($2::bytea IS NULL OR key <> $2)
                AND key IN (
                    SELECT key FROM {table} WHERE {of_user}
                    ORDER BY key = $2 DESC, {newest} OFFSET $3::int8
                )
            RETURNING {_WITHOUT_DATA}, {_TIMES}""")

        self.users = Statement(f"""
            SELECT user_key, count(*), max(seen_on) FROM {table}
            WHERE user_key IS NOT NULL AND ($1::text IS NULL OR user_key > $1) AND {_LIVE}
            GROUP BY user_key ORDER BY user_key LIMIT $2::int8""")
        self.stats = Statement(f"""
            SELECT count(*) FILTER (WHERE {_LIVE}), count(*) FILTER (WHERE NOT {_LIVE}),
                pg_total_relation_size('{table}'::regclass),
                min(created_on) FILTER (WHERE {_LIVE})
            FROM {table}""")

        self.lock = Statement(f"SELECT 1 FROM {table} WHERE key = $1::bytea FOR UPDATE")

        self.take_turns = Statement("SELECT pg_advisory_xact_lock($1::int8)")
        self.lead = Statement("SELECT pg_try_advisory_xact_lock($1::int8)")
        expired = f"""
            SELECT key FROM {table}
            WHERE gc_after <= {_NOW} + $2::interval AND expires_on <= {_NOW}
            ORDER BY gc_after LIMIT $1::int8"""
        sweep = f"DELETE FROM {table} WHERE expires_on <= {_NOW} AND key IN"
        returning = f"RETURNING {_WITHOUT_DATA}, {_TIMES}"
        # The lock is asked for once, before any row is looked at, and ends with the statement: a
        # transaction around two would be four round trips, each of which waits for a core on a busy
        # server. Planned anew each time: a plan made for an empty table would read all of a full
        # one.
        self.sweep = Statement(
            f"{sweep} ({expired} FOR UPDATE SKIP LOCKED)"
            f" AND (SELECT pg_try_advisory_xact_lock($3::int8)) {returning}",
            keep=False,
        )
        # A distributed table refuses SKIP LOCKED without the key.
        self.sweep_distributed = Statement(f"{sweep} ({expired}) {returning}")


def _expiry_sql(start: str, idle: str, lifetime: str, bucket: str) -> tuple[str, str]:
    """Return the SQL of ``expires_on`` and ``gc_after``. LEAST passes over a NULL lifetime."""
    end = f"LEAST({_NOW} + {idle}::interval, {start} + {lifetime}::interval)"
    after = f"date_bin({bucket}::interval, {end}, '2000-01-01 00:00:00+00') + {bucket}::interval"
    return end, after


class PostgresBackend(PostgresTable):
    """A `Backend` on PostgreSQL.

    ``pool`` lends connections, and belongs to this backend. ``table`` and ``db_schema`` are plain
    identifiers; without a schema, the connection's search_path finds the table.
    """

    def __init__(
        self, pool: Pool, *, table: str = "http_sessions", db_schema: str | None = None
    ) -> None:
        super().__init__(pool, _SCHEMA, table, db_schema)
        self._sql = _Sql(self._qualified)
        self._distributed = False

    # -- a request's verbs

    def load(self, key: bytes) -> Loaded | None:
        result = self._run(self._sql.load, [key], read=True)
        if not result.ntuples:
            return None
        return Loaded(_Row.of(result, 0), moment(result.get_value(0, 21)))

    def insert(self, row: PGSession, expiry: Expiry) -> PGSession | None:
        return self._write(self._sql.insert, row, *_intervals(expiry))

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
            result = self._run(
                self._sql.update_data,
                [row.key, row.data, int8(row.version), int8(version)],
            )
            if not result.ntuples:
                return None
            return row.but(modified_on=moment(result.get_value(0, 0)))
        conditions = (int8(version), boolean(login), boolean(renew))
        if expiry is None:
            return self._write(self._sql.update, row, *conditions)
        return self._write(self._sql.update_and_visit, row, *conditions, *_intervals(expiry))

    def touch(self, row: PGSession, expiry: Expiry) -> PGSession | None:
        assert row.seen_on is not None
        seen = microseconds(row.seen_on)
        result = self._run(
            self._sql.touch, [row.key, int4(row.generation), seen, *_intervals(expiry)]
        )
        if not result.ntuples:
            return None
        seen_on, expires_on, gc_after = (moment(result.get_value(0, i)) for i in range(3))
        return row.but(seen_on=seen_on, expires_on=expires_on, gc_after=gc_after)

    def delete(
        self,
        key: bytes,
        *,
        version: int | None = None,
        generation: int | None = None,
        user_key: str | None = None,
    ) -> PGSession | None:
        result = self._run(
            self._sql.delete,
            [
                key,
                None if version is None else int8(version),
                None if generation is None else int4(generation),
                text(user_key),
            ],
        )
        return _Row.of(result, 0) if result.ntuples else None

    def rewrite(self, row: PGSession, version: int) -> bool:
        result = self._run(self._sql.rewrite, [row.key, row.data, int8(row.version), int8(version)])
        return result.command_tuples == 1

    def scan(self, after: bytes | None, limit: int) -> list[PGSession]:
        result = self._run(self._sql.scan, [after or b"", int8(limit)], read=True)
        return _rows(result)

    def of_user(self, user_key: str) -> list[PGSession]:
        return _rows(self._run(self._sql.of_user, [text(user_key)], read=True))

    def delete_of_user(
        self, user_key: str, *, keep: bytes | None = None, newest: int = 0
    ) -> list[PGSession]:
        user = text(user_key)
        if newest:
            # Two trims that do not see what the other deletes could delete each other's login. Not
            # by locks on the rows: they would not keep out a login that is about to be committed.
            turn = int8(self._lock(f"trim {user_key}"))
            with self._transaction() as backend:
                backend._run(self._sql.take_turns, [turn])
                return _rows(backend._run(self._sql.trim_user, [user, keep, int8(newest)]))
        return _rows(self._run(self._sql.delete_of_user, [user, keep]))

    def users(self, after: str | None, limit: int) -> list[UserStats]:
        found = self._run(self._sql.users, [text(after), int8(limit)], read=True)
        return [
            UserStats(
                (found.get_value(index, 0) or b"").decode("utf-8"),
                number(found.get_value(index, 1)),
                moment(found.get_value(index, 2)),
            )
            for index in range(found.ntuples)
        ]

    def stats(self) -> Stats:
        counted = self._run(self._sql.stats, [], read=True)
        live, expired, size = (number(counted.get_value(0, column)) for column in range(3))
        oldest = counted.get_value(0, 3)
        return Stats(live, expired, size, None if oldest is None else moment(oldest))

    @contextmanager
    def locked(self, key: bytes) -> Iterator[PostgresBackend]:
        with self._transaction() as backend:
            backend._run(self._sql.lock, [key])
            yield backend

    def using(self, connection: Any) -> PostgresBackend:
        return self._on(Lent(connection, self._pool.statement_timeout))

    def sweep(self, limit: int, horizon: float) -> list[PGSession]:
        lock, batch = int8(self._lock("sweep")), [int8(limit), interval(horizon)]
        if not self._distributed:
            try:
                return _rows(self._run(self._sql.sweep, [*batch, lock]))
            except BackendError as error:
                if sqlstate_of(error) != _FEATURE_NOT_SUPPORTED:
                    raise
            self._distributed = True
        with self._transaction() as backend:
            # Held until the transaction ends, and no longer: a pooler gives the connection to
            # others then.
            lead = backend._run(self._sql.lead, [lock])
            if lead.get_value(0, 0) != boolean(True):
                return []
            return _rows(backend._run(self._sql.sweep_distributed, batch))

    def tokens(self, table: str, db_schema: str | None = None) -> PostgresTokens:
        """Return where the data of tokens lives: in the same database, over the same pool."""
        db_schema = self._db_schema if db_schema is None else db_schema
        return PostgresTokens(self._pool, table=table, db_schema=db_schema, shared=True)

    # -- below the verbs

    def _write(self, statement: Statement, row: PGSession, *more: bytes | None) -> PGSession | None:
        parameters = [
            row.key,
            text(row.name),
            int4(row.generation),
            int4(row.min_generation),
            row.secret_hash,
            row.data,
            int8(row.version),
            int4(row.max_age),
            text(row.user_key),
            text(row.ip),
            text(row.user_agent),
            _jsonb(row.meta),
            row.previous_hash,
            row.successor,
            *more,
        ]
        result = self._run(statement, parameters)
        return row.but(**_times(result)) if result.ntuples else None


_SCHEMA = Schema("postgres")


def schema_sql(table: str = "http_sessions", db_schema: str | None = None) -> str:
    """Return the SQL that makes the table, for whoever has the right to run it."""
    if db_schema is not None:
        check_table(db_schema, what="schema", longest=63)
    return f"BEGIN;\n\n{_SCHEMA.text(check_table(table), db_schema=db_schema)}\nCOMMIT;\n"


# -- PostgreSQL's binary formats


def _intervals(expiry: Expiry) -> tuple[bytes, bytes | None, bytes]:
    lifetime = None if expiry.lifetime is None else interval(expiry.lifetime)
    return interval(expiry.idle), lifetime, interval(expiry.bucket)


def _jsonb(meta: Mapping[str, str]) -> bytes | None:
    return b"\1" + json.dumps(meta).encode("ascii") if meta else None


def _rows(result: PGresult) -> list[PGSession]:
    return [_Row.of(result, index) for index in range(result.ntuples)]


def _times(result: PGresult) -> dict[str, Any]:
    values = (result.get_value(0, column) for column in range(7))
    return {
        name: None if value is None else moment(value)
        for name, value in zip(_TIMES.split(", "), values, strict=True)
    }


class _Row(PGSession):
    """A row as the server sent it, in the order of `_CONTENT` and `_TIMES`."""

    min_generation: Any = Lazy(3, number)
    version: Any = Lazy(6, number)
    max_age: Any = Lazy(7, number)
    ip: Any = Lazy(9, bytes.decode)
    user_agent: Any = Lazy(10, bytes.decode)
    previous_hash: Any = Lazy(12)
    successor: Any = Lazy(13)
    created_on: Any = Lazy(14, moment)
    modified_on: Any = Lazy(15, moment)
    seen_on: Any = Lazy(16, moment)
    expires_on: Any = Lazy(17, moment)
    gc_after: Any = Lazy(18, moment)
    authenticated_on: Any = Lazy(19, moment)
    renewed_on: Any = Lazy(20, moment)

    @classmethod
    def of(cls, result: PGresult, index: int) -> _Row:
        row = object.__new__(cls)
        raw: Any = partial(result.get_value, index)
        user_key, meta = raw(8), raw(11)
        row.__dict__.update(
            _raw=raw,
            key=raw(0),
            name=raw(1).decode(),
            generation=number(raw(2)),
            secret_hash=raw(4),
            data=raw(5),
            user_key=None if user_key is None else user_key.decode(),
            meta=meta_of(meta[1:]) if meta else {},
        )
        return row
