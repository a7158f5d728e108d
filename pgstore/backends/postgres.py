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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from psycopg.pq.abc import PGresult

from ..errors import BackendError, SchemaError
from ..rows import Expiry, Loaded, PGSession, check_table, meta_of
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
            RETURNING {_TIMES}""")

        self.delete = Statement(f"""
            DELETE FROM {table}
            WHERE key = $1::bytea AND {_LIVE}
                AND ($2::int8 IS NULL OR version = $2)
                AND ($3::int4 IS NULL OR min_generation <= $3)
                AND ($4::text IS NULL OR user_key = $4)
            RETURNING {_WITHOUT_DATA}, {_TIMES}""")

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
        result = self._run(self._sql.load, key, read=True)
        if not result.ntuples:
            return None
        return Loaded(_row(result, 0), _time(result.get_value(0, 21)))

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
    ) -> PGSession | None:
        conditions = (_int8(version), _bool(login), _bool(renew))
        if expiry is None:
            return self._write(self._sql.update, row, *conditions)
        return self._write(self._sql.update_and_visit, row, *conditions, *_intervals(expiry))

    def touch(self, row: PGSession, expiry: Expiry) -> PGSession | None:
        assert row.seen_on is not None
        seen = _int8((row.seen_on - _EPOCH) // _MICROSECOND)
        result = self._run(
            self._sql.touch, row.key, _int4(row.generation), seen, *_intervals(expiry)
        )
        if not result.ntuples:
            return None
        times = _times(result, 0, 0)
        moved = {name: times[name] for name in ("seen_on", "expires_on", "gc_after")}
        return replace(row, **moved)

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
            key,
            None if version is None else _int8(version),
            None if generation is None else _int4(generation),
            user_key,
        )
        return _row(result, 0) if result.ntuples else None

    def rewrite(self, row: PGSession, version: int) -> bool:
        result = self._run(self._sql.rewrite, row.key, row.data, _int8(row.version), _int8(version))
        return result.command_tuples == 1

    def scan(self, after: bytes | None, limit: int) -> list[PGSession]:
        result = self._run(self._sql.scan, after or b"", _int8(limit), read=True)
        return _rows(result)

    def of_user(self, user_key: str) -> list[PGSession]:
        return _rows(self._run(self._sql.of_user, user_key, read=True))

    def delete_of_user(
        self, user_key: str, *, keep: bytes | None = None, newest: int = 0
    ) -> list[PGSession]:
        if newest:
            # Two trims that do not see what the other deletes could delete each other's login. Not
            # by locks on the rows: they would not keep out a login that is about to be committed.
            turn = _int8(_lock_number(f"trim {user_key}", self._names))
            with self._transaction() as backend:
                backend._run(self._sql.take_turns, turn)
                return _rows(backend._run(self._sql.trim_user, user_key, keep, _int8(newest)))
        return _rows(self._run(self._sql.delete_of_user, user_key, keep))

    @contextmanager
    def locked(self, key: bytes) -> Iterator[PostgresBackend]:
        with self._transaction() as backend:
            backend._run(self._sql.lock, key)
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
        result = self._run(
            statement,
            row.key,
            row.name,
            _int4(row.generation),
            _int4(row.min_generation),
            row.secret_hash,
            row.data,
            _int8(row.version),
            _int4(row.max_age),
            row.user_key,
            row.ip,
            row.user_agent,
            _jsonb(row.meta),
            row.previous_hash,
            row.successor,
            *more,
        )
        return _stamped(row, result)

    def _run(
        self, statement: Statement, *parameters: bytes | str | None, read: bool = False
    ) -> PGresult:
        """Run one statement, and again when the first try can have done nothing."""
        encoded = [p.encode("utf-8") if isinstance(p, str) else p for p in parameters]
        for tries_left in reversed(range(1 + self._pool.size + _MORE_TRIES)):
            wire = self._pool.get()
            try:
                return wire.execute(statement, encoded)
            except Lost as lost:
                # A transaction that has lost its connection is rolled back, and cannot go on.
                harmless = read or not lost.sent
                if tries_left and harmless and not lost.late and not self._in_transaction:
                    continue
                unknown = not harmless and not self._in_transaction
                raise BackendError(str(lost), outcome_unknown=unknown) from lost
            except Refused as refused:
                # A statement that met another, where transactions are serializable by default, or
                # when both delete several rows. It sees what the other did when it is run again.
                met = refused.sqlstate in (_SERIALIZATION_FAILURE, _DEADLOCK)
                if tries_left and met and not self._in_transaction:
                    continue
                raise _refusal(refused, self._qualified) from refused
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
            lead = backend._run(self._sql.lead, number)
            if lead.get_value(0, 0) != _bool(True):
                return None
            result = backend._run(statement, _int8(limit), _interval(horizon))
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

    def get(self) -> Wire:
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


def _intervals(expiry: Expiry) -> tuple[bytes, bytes | None, bytes]:
    lifetime = None if expiry.lifetime is None else _interval(expiry.lifetime)
    return _interval(expiry.idle), lifetime, _interval(expiry.bucket)


def _jsonb(meta: Mapping[str, str]) -> bytes | None:
    return b"\1" + json.dumps(meta).encode("ascii") if meta else None


def _rows(result: PGresult) -> list[PGSession]:
    return [_row(result, index) for index in range(result.ntuples)]


def _row(result: PGresult, index: int) -> PGSession:
    def text(column: int) -> str | None:
        value = result.get_value(index, column)
        return None if value is None else value.decode("utf-8")

    def number(column: int) -> int:
        return int.from_bytes(result.get_value(index, column) or b"", "big", signed=True)

    def known(column: int) -> bytes:
        return result.get_value(index, column) or b""

    meta = result.get_value(index, 11)
    return PGSession(
        key=known(0),
        name=known(1).decode("utf-8"),
        generation=number(2),
        min_generation=number(3),
        secret_hash=known(4),
        data=known(5),
        version=number(6),
        max_age=number(7),
        user_key=text(8),
        ip=text(9),
        user_agent=text(10),
        meta=meta_of(meta[1:]) if meta else {},
        previous_hash=result.get_value(index, 12),
        successor=result.get_value(index, 13),
        **_times(result, index, 14),
    )


def _times(result: PGresult, index: int, first: int) -> dict[str, Any]:
    values = (result.get_value(index, first + offset) for offset in range(7))
    return {
        name: None if value is None else _time(value)
        for name, value in zip(_TIMES.split(", "), values, strict=True)
    }


def _time(value: bytes | None) -> datetime:
    try:
        return _EPOCH + timedelta(microseconds=int.from_bytes(value or b"", "big", signed=True))
    except OverflowError:  # infinity, or a year that Python does not know: an operator's "never"
        return _LATEST


def _stamped(row: PGSession, result: PGresult) -> PGSession | None:
    return replace(row, **_times(result, 0, 0)) if result.ntuples else None
