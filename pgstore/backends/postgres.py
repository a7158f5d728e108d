"""Rows in PostgreSQL, 14 or newer: a prepared statement and a round trip for each verb.

Every statement of the request path addresses one key, and uses neither a volatile function nor a
trigger, so that the table may be distributed by ``key`` (Citus). Inside a caller's long transaction
``now()`` stands still; ``statement_timestamp()`` does not.
"""

from __future__ import annotations

import copy
import hashlib
import json
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from psycopg.pq.abc import PGresult

from ..errors import BackendError, SchemaError
from ..rows import Expiry, Lazy, Loaded, PGSession, Stats, UserStats, check_table, meta_of
from ..sql import Schema
from .postgres_lent import Lent
from .postgres_pool import Pool
from .postgres_wire import Lost, Refused, Statement, Wire

__all__ = ["PostgresBackend"]

# How often a statement is run again when the tries before can have done nothing, beyond once for
# each connection that may have died with the server.
_MORE_TRIES = 4

_SERIALIZATION_FAILURE = "40001"
_DEADLOCK = "40P01"
_FEATURE_NOT_SUPPORTED = "0A000"
_UNDEFINED_TABLE = "42P01"
_UNDEFINED_SCHEMA = "3F000"
_INSUFFICIENT_PRIVILEGE = "42501"

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_LATEST = datetime.max.replace(tzinfo=UTC)

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
        self.sweep = Statement(f"{sweep} ({expired} FOR UPDATE SKIP LOCKED) {returning}")
        # A distributed table refuses SKIP LOCKED without the key.
        self.sweep_distributed = Statement(f"{sweep} ({expired}) {returning}")


def _expiry_sql(start: str, idle: str, lifetime: str, bucket: str) -> tuple[str, str]:
    """Return the SQL of ``expires_on`` and ``gc_after``. LEAST passes over a NULL lifetime."""
    end = f"LEAST({_NOW} + {idle}::interval, {start} + {lifetime}::interval)"
    after = f"date_bin({bucket}::interval, {end}, '2000-01-01 00:00:00+00') + {bucket}::interval"
    return end, after


class PostgresBackend:
    """A `Backend` on PostgreSQL.

    ``pool`` lends connections, and belongs to this backend. ``table`` and ``db_schema`` are plain
    identifiers; without a schema, the connection's search_path finds the table.
    """

    def __init__(
        self, pool: Pool, *, table: str = "http_sessions", db_schema: str | None = None
    ) -> None:
        self._table = check_table(table)
        if db_schema is not None:
            check_table(db_schema, what="schema", longest=63)
        self._names = (db_schema, table)
        self._qualified = _qualified(*self._names)
        self._pool = pool
        self._sql = _Sql(self._qualified)
        self._distributed = False

    def __repr__(self) -> str:
        return f"<PostgresBackend {self._qualified} {self._pool!r}>"

    @property
    def table(self) -> str:
        return self._table

    # -- a request's verbs

    def load(self, key: bytes) -> Loaded | None:
        result = self._run(self._sql.load, [key], read=True)
        if not result.ntuples:
            return None
        return Loaded(_Row.of(result, 0), _time(result.get_value(0, 21)))

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
                [row.key, row.data, _int8(row.version), _int8(version)],
            )
            if not result.ntuples:
                return None
            return row.but(modified_on=_time(result.get_value(0, 0)))
        conditions = (_int8(version), _bool(login), _bool(renew))
        if expiry is None:
            return self._write(self._sql.update, row, *conditions)
        return self._write(self._sql.update_and_visit, row, *conditions, *_intervals(expiry))

    def touch(self, row: PGSession, expiry: Expiry) -> PGSession | None:
        assert row.seen_on is not None
        seen = _int8((row.seen_on - _EPOCH) // _MICROSECOND)
        result = self._run(
            self._sql.touch, [row.key, _int4(row.generation), seen, *_intervals(expiry)]
        )
        if not result.ntuples:
            return None
        seen_on, expires_on, gc_after = (_time(result.get_value(0, i)) for i in range(3))
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
                None if version is None else _int8(version),
                None if generation is None else _int4(generation),
                _text(user_key),
            ],
        )
        return _Row.of(result, 0) if result.ntuples else None

    def rewrite(self, row: PGSession, version: int) -> bool:
        result = self._run(
            self._sql.rewrite, [row.key, row.data, _int8(row.version), _int8(version)]
        )
        return result.command_tuples == 1

    def scan(self, after: bytes | None, limit: int) -> list[PGSession]:
        result = self._run(self._sql.scan, [after or b"", _int8(limit)], read=True)
        return _rows(result)

    def of_user(self, user_key: str) -> list[PGSession]:
        return _rows(self._run(self._sql.of_user, [_text(user_key)], read=True))

    def delete_of_user(
        self, user_key: str, *, keep: bytes | None = None, newest: int = 0
    ) -> list[PGSession]:
        user = _text(user_key)
        if newest:
            # Two trims that do not see what the other deletes could delete each other's login. Not
            # by locks on the rows: they would not keep out a login that is about to be committed.
            turn = _int8(_lock_number(f"trim {user_key}", self._names))
            with self._transaction() as backend:
                backend._run(self._sql.take_turns, [turn])
                return _rows(backend._run(self._sql.trim_user, [user, keep, _int8(newest)]))
        return _rows(self._run(self._sql.delete_of_user, [user, keep]))

    def users(self, after: str | None, limit: int) -> list[UserStats]:
        found = self._run(self._sql.users, [_text(after), _int8(limit)], read=True)
        return [
            UserStats(
                (found.get_value(index, 0) or b"").decode("utf-8"),
                _number(found.get_value(index, 1)),
                _time(found.get_value(index, 2)),
            )
            for index in range(found.ntuples)
        ]

    def stats(self) -> Stats:
        counted = self._run(self._sql.stats, [], read=True)
        live, expired, size = (_number(counted.get_value(0, column)) for column in range(3))
        oldest = counted.get_value(0, 3)
        return Stats(live, expired, size, None if oldest is None else _time(oldest))

    @contextmanager
    def locked(self, key: bytes) -> Iterator[PostgresBackend]:
        with self._transaction() as backend:
            backend._run(self._sql.lock, [key])
            yield backend

    def using(self, connection: Any) -> PostgresBackend:
        return self._on(Lent(connection, self._pool.statement_timeout))

    def sweep(self, limit: int, horizon: float) -> list[PGSession] | None:
        try:
            return self._sweep(limit, horizon)
        except BackendError as error:
            if self._distributed or _sqlstate(error) != _FEATURE_NOT_SUPPORTED:
                raise
        self._distributed = True
        return self._sweep(limit, horizon)

    # -- schema and end

    def apply_schema(self) -> None:
        with self._pool.direct() as wire:
            if self._version_on(wire) >= _SCHEMA.version:
                return
            try:
                # SET LOCAL: behind a pooler nothing may outlive the transaction.
                wire.script(
                    "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = 0; "
                    f"SELECT pg_advisory_xact_lock({_lock_number('schema', self._names)})"
                )
                db_schema, table = self._names
                after = self._version_on(wire)
                wire.script(_SCHEMA.text(table, db_schema=db_schema, after=after))
                wire.script("COMMIT")
            except Refused as refused:
                wire.script("ROLLBACK")
                if refused.sqlstate == _INSUFFICIENT_PRIVILEGE:
                    raise SchemaError(
                        f"this role may not create or change the table {self._qualified}: run "
                        "'pgstore schema apply' as a role that may, or give what 'pgstore schema "
                        "print' shows to whoever may"
                    ) from refused
                raise SchemaError(
                    f"the schema of {self._qualified} was not applied: {refused}"
                ) from refused
            except Lost as lost:
                raise BackendError(
                    f"the schema of {self._qualified} was not applied: {lost}"
                ) from lost

    def check_schema(self) -> None:
        with self._pool.direct() as wire:
            version = self._version_on(wire)
        if version < _SCHEMA.version:
            missing = "is missing" if version == 0 else f"has version {version} of its schema"
            raise SchemaError(
                f"the table {self._qualified} {missing}, and this code wants {_SCHEMA.version}: "
                "run 'pgstore schema apply'"
            )

    def close(self) -> None:
        self._pool.close()

    # -- below the verbs

    def _write(self, statement: Statement, row: PGSession, *more: bytes | None) -> PGSession | None:
        parameters = [
            row.key,
            _text(row.name),
            _int4(row.generation),
            _int4(row.min_generation),
            row.secret_hash,
            row.data,
            _int8(row.version),
            _int4(row.max_age),
            _text(row.user_key),
            _text(row.ip),
            _text(row.user_agent),
            _jsonb(row.meta),
            row.previous_hash,
            row.successor,
            *more,
        ]
        result = self._run(statement, parameters)
        return row.but(**_times(result)) if result.ntuples else None

    def _run(
        self, statement: Statement, parameters: Sequence[bytes | None], *, read: bool = False
    ) -> PGresult:
        """Run one statement, and again when the try before can have done nothing.

        No try begins later than `Pool.statement_timeout` after the first that failed.
        """
        until: float | None = None
        for tries_left in reversed(range(1 + self._pool.size + _MORE_TRIES)):
            wire = self._pool.get(check=not read)
            try:
                return wire.execute(statement, parameters)
            except (Lost, Refused) as failure:
                # A transaction that has lost its connection is rolled back, and cannot go on.
                alone = not self._in_transaction
                now = time.monotonic()
                until = until or now + self._pool.statement_timeout
                if tries_left and now < until and alone and _may_repeat(failure, read=read):
                    continue
                if isinstance(failure, Refused):
                    raise _refusal(failure, self._qualified) from failure
                unknown = failure.sent and not read and alone
                raise BackendError(str(failure), outcome_unknown=unknown) from failure
            finally:
                self._pool.put(wire)
        raise AssertionError("the last try returns or raises")

    @property
    def _in_transaction(self) -> bool:
        return isinstance(self._pool, _Held | Lent)

    def _on(self, pool: Pool) -> PostgresBackend:
        backend = copy.copy(self)
        backend._pool = pool
        return backend

    @contextmanager
    def _transaction(self) -> Iterator[PostgresBackend]:
        """Give a backend inside a transaction, which the end of the block commits.

        One that is open already is left to whoever opened it.
        """
        if self._in_transaction:
            yield self
            return
        wire = self._pool.get()
        try:
            # READ COMMITTED, whatever the role's default: a statement must see what was committed
            # before it.
            _control(wire, "BEGIN ISOLATION LEVEL READ COMMITTED")
            # Nothing is prepared there: that a statement has vanished would only show by an error,
            # and an error ends the transaction.
            try:
                yield self._on(_Held(wire.unprepared(), self._pool.statement_timeout))
            except BaseException:
                try:
                    _control(wire, "ROLLBACK")
                except BackendError:
                    wire.connection.close()
                raise
            _control(wire, "COMMIT", unknown=True)
        finally:
            self._pool.put(wire)

    def _sweep(self, limit: int, horizon: float) -> list[PGSession] | None:
        statement = self._sql.sweep_distributed if self._distributed else self._sql.sweep
        with self._transaction() as backend:
            # Held until the transaction ends, and no longer: a pooler gives the connection to
            # others then.
            number = _int8(_lock_number("sweep", self._names))
            lead = backend._run(self._sql.lead, [number])
            if lead.get_value(0, 0) != _bool(True):
                return None
            result = backend._run(statement, [_int8(limit), _interval(horizon)])
            return _rows(result)

    def _version_on(self, wire: Wire) -> int:
        """Return the version of the table's schema, 0 for none; raise for one that is too new."""
        # From the catalog and not with to_regclass: another process may have made the table since
        # this transaction began, and a name that was looked up in vain is remembered until a table
        # is locked.
        exists = Statement("""
            SELECT EXISTS (
                SELECT FROM pg_catalog.pg_class c
                JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                WHERE c.relname = $1::text AND (
                    n.nspname = $2::text
                    OR ($2::text IS NULL AND pg_catalog.pg_table_is_visible(c.oid))
                )
            )""")
        db_schema, log = self._names[0], f"{self._table}_schema"
        query = Statement(f"""
            SELECT version, oldest_code
            FROM {_qualified(db_schema, log)} ORDER BY version DESC LIMIT 1""")
        try:
            names = [log.encode("ascii"), None if db_schema is None else db_schema.encode("ascii")]
            if wire.execute(exists, names).get_value(0, 0) != _bool(True):
                return 0
            result = wire.execute(query, [])
        except Refused as refused:
            raise _refusal(refused, self._qualified) from refused
        except Lost as lost:
            raise BackendError(str(lost)) from lost
        if not result.ntuples:
            return 0
        version, oldest = (struct.unpack(">i", result.get_value(0, i) or b"")[0] for i in (0, 1))
        if oldest > _SCHEMA.version:
            raise SchemaError(
                f"the table {self._qualified} has version {version} of its schema, which code "
                f"older than version {oldest} may not use; this is version {_SCHEMA.version}: "
                "update pgstore here"
            )
        return int(version)


class _Held:
    """Lends the one connection of a transaction, again and again."""

    size = 1

    def __init__(self, wire: Wire, statement_timeout: float) -> None:
        self._wire = wire
        self.statement_timeout = statement_timeout

    def get(self, *, check: bool = True) -> Wire:
        return self._wire

    def put(self, wire: Wire) -> None:
        pass

    @contextmanager
    def direct(self) -> Iterator[Wire]:
        yield self._wire

    def close(self) -> None:
        pass


_SCHEMA = Schema("postgres")


def schema_sql(table: str = "http_sessions", db_schema: str | None = None) -> str:
    """Return the SQL that makes the table, for whoever has the right to run it."""
    if db_schema is not None:
        check_table(db_schema, what="schema", longest=63)
    return f"BEGIN;\n\n{_SCHEMA.text(check_table(table), db_schema=db_schema)}\nCOMMIT;\n"


def _qualified(db_schema: str | None, table: str) -> str:
    # Both are plain identifiers (check_table); the quotes keep their case and let them be reserved
    # words.
    return f'"{table}"' if db_schema is None else f'"{db_schema}"."{table}"'


def _lock_number(purpose: str, names: tuple[str | None, str]) -> int:
    text = f"pgstore {purpose} {names[0] or ''}.{names[1]}"
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big", signed=True)


def _control(wire: Wire, text: str, *, unknown: bool = False) -> None:
    try:
        wire.script(text)
    except Lost as lost:
        raise BackendError(
            f"{text} was lost: {lost}", outcome_unknown=unknown and lost.sent
        ) from lost
    except Refused as refused:
        raise BackendError(f"PostgreSQL refused {text}: {refused}") from refused


def _may_repeat(failure: Lost | Refused, *, read: bool) -> bool:
    """Tell whether a statement that failed did nothing, and may fare better when it is run again.

    One that is late is not: that would be waiting again.
    """
    if isinstance(failure, Lost):
        return (read or not failure.sent) and not failure.late
    # It met another, where transactions are serializable by default, or when both delete several
    # rows. It sees what the other did when it is run again.
    return failure.sqlstate in (_SERIALIZATION_FAILURE, _DEADLOCK)


def _refusal(refused: Refused, table: str) -> BackendError:
    if refused.sqlstate in (_UNDEFINED_TABLE, _UNDEFINED_SCHEMA):
        return SchemaError(f"the table {table} is missing: run 'pgstore schema apply'")
    return BackendError(f"PostgreSQL refused a statement on {table}: {refused}")


def _sqlstate(error: BackendError) -> str | None:
    cause = error.__cause__
    return cause.sqlstate if isinstance(cause, Refused) else None


# -- PostgreSQL's binary formats


def _int4(value: int) -> bytes:
    return value.to_bytes(4, "big", signed=True)


def _int8(value: int) -> bytes:
    return value.to_bytes(8, "big", signed=True)


def _bool(value: bool) -> bytes:
    return b"\1" if value else b"\0"


def _interval(seconds: float) -> bytes:
    """Encode as microseconds, no days, no months: a day of 24 hours whatever the time zone."""
    return struct.pack(">qii", round(seconds * 1_000_000), 0, 0)


def _text(value: str | None) -> bytes | None:
    return None if value is None else value.encode("utf-8")


def _intervals(expiry: Expiry) -> tuple[bytes, bytes | None, bytes]:
    lifetime = None if expiry.lifetime is None else _interval(expiry.lifetime)
    return _interval(expiry.idle), lifetime, _interval(expiry.bucket)


def _jsonb(meta: Mapping[str, str]) -> bytes | None:
    return b"\1" + json.dumps(meta).encode("ascii") if meta else None


def _rows(result: PGresult) -> list[PGSession]:
    return [_Row.of(result, index) for index in range(result.ntuples)]


def _times(result: PGresult) -> dict[str, Any]:
    values = (result.get_value(0, column) for column in range(7))
    return {
        name: None if value is None else _time(value)
        for name, value in zip(_TIMES.split(", "), values, strict=True)
    }


def _number(value: bytes | None) -> int:
    return int.from_bytes(value or b"", "big", signed=True)


def _time(value: bytes | None) -> datetime:
    try:
        return _EPOCH + timedelta(microseconds=_number(value))
    except OverflowError:  # infinity, or a year that Python does not know: an operator's "never"
        return _LATEST


class _Row(PGSession):
    """A row as the server sent it, in the order of `_CONTENT` and `_TIMES`."""

    min_generation: Any = Lazy(3, _number)
    version: Any = Lazy(6, _number)
    max_age: Any = Lazy(7, _number)
    ip: Any = Lazy(9, bytes.decode)
    user_agent: Any = Lazy(10, bytes.decode)
    previous_hash: Any = Lazy(12)
    successor: Any = Lazy(13)
    created_on: Any = Lazy(14, _time)
    modified_on: Any = Lazy(15, _time)
    seen_on: Any = Lazy(16, _time)
    expires_on: Any = Lazy(17, _time)
    gc_after: Any = Lazy(18, _time)
    authenticated_on: Any = Lazy(19, _time)
    renewed_on: Any = Lazy(20, _time)

    @classmethod
    def of(cls, result: PGresult, index: int) -> _Row:
        row = object.__new__(cls)
        raw: Any = partial(result.get_value, index)
        user_key, meta = raw(8), raw(11)
        row.__dict__.update(
            _raw=raw,
            key=raw(0),
            name=raw(1).decode(),
            generation=_number(raw(2)),
            secret_hash=raw(4),
            data=raw(5),
            user_key=None if user_key is None else user_key.decode(),
            meta=meta_of(meta[1:]) if meta else {},
        )
        return row
