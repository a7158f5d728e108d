"""One table in PostgreSQL: its statements are run again, or refused, and its schema is applied."""

from __future__ import annotations

import copy
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Self

from psycopg.pq.abc import PGresult

from ..errors import BackendError, SchemaError
from ..rows import check_table
from ..sql import Schema, lock_number
from .postgres_formats import boolean
from .postgres_lent import Lent
from .postgres_pool import Pool
from .postgres_wire import Lost, Refused, Statement, Wire

__all__ = ["PostgresTable", "sqlstate_of"]

# How often a statement is run again when the tries before can have done nothing, beyond once for
# each connection that may have died with the server.
_MORE_TRIES = 4

_SERIALIZATION_FAILURE = "40001"
_DEADLOCK = "40P01"
_UNDEFINED_TABLE = "42P01"
_UNDEFINED_SCHEMA = "3F000"
_INSUFFICIENT_PRIVILEGE = "42501"


class PostgresTable:
    """A table, made by the files of ``schema``, and the pool that lends connections for it.

    ``pool`` belongs to this object. ``table`` and ``db_schema`` are plain identifiers; without a
    schema, the connection's search_path finds the table.
    """

    def __init__(self, pool: Pool, schema: Schema, table: str, db_schema: str | None) -> None:
        self._table = check_table(table)
        if db_schema is not None:
            check_table(db_schema, what="schema", longest=63)
        self._db_schema = db_schema
        self._qualified = qualified(table, db_schema)
        self._schema = schema
        self._pool = pool

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._qualified} {self._pool!r}>"

    @property
    def table(self) -> str:
        return self._table

    def apply_schema(self) -> None:
        with self._pool.direct() as wire:
            if self._version_on(wire) >= self._schema.version:
                return
            try:
                # SET LOCAL: behind a pooler nothing may outlive the transaction.
                wire.script(
                    "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = 0; "
                    f"SELECT pg_advisory_xact_lock({self._lock('schema')})"
                )
                after = self._version_on(wire)
                wire.script(self._schema.text(self._table, db_schema=self._db_schema, after=after))
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
        if version < self._schema.version:
            missing = "is missing" if version == 0 else f"has version {version} of its schema"
            raise SchemaError(
                f"the table {self._qualified} {missing}, and this code wants "
                f"{self._schema.version}: run 'pgstore schema apply'"
            )

    def close(self) -> None:
        self._pool.close()

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

    def _on(self, pool: Pool) -> Self:
        table = copy.copy(self)
        table._pool = pool
        return table

    def _lock(self, purpose: str) -> int:
        """Return the number of the advisory lock that stands for this table and a purpose."""
        return lock_number(purpose, self._table, self._db_schema)

    @contextmanager
    def _transaction(self) -> Iterator[Self]:
        """Give this table inside a transaction, which the end of the block commits.

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
        db_schema, log = self._db_schema, f"{self._table}_schema"
        query = Statement(f"""
            SELECT version, oldest_code
            FROM {qualified(log, db_schema)} ORDER BY version DESC LIMIT 1""")
        try:
            names = [log.encode("ascii"), None if db_schema is None else db_schema.encode("ascii")]
            if wire.execute(exists, names).get_value(0, 0) != boolean(True):
                return 0
            result = wire.execute(query, [])
        except Refused as refused:
            raise _refusal(refused, self._qualified) from refused
        except Lost as lost:
            raise BackendError(str(lost)) from lost
        if not result.ntuples:
            return 0
        version, oldest = (struct.unpack(">i", result.get_value(0, i) or b"")[0] for i in (0, 1))
        if oldest > self._schema.version:
            raise SchemaError(
                f"the table {self._qualified} has version {version} of its schema, which code "
                f"older than version {oldest} may not use; this is version {self._schema.version}: "
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


def qualified(table: str, db_schema: str | None) -> str:
    """Return a table's name as it stands in a statement."""
    # Both are plain identifiers (check_table); the quotes keep their case and let them be reserved
    # words.
    return f'"{table}"' if db_schema is None else f'"{db_schema}"."{table}"'


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


def sqlstate_of(error: BackendError) -> str | None:
    """Return the SQLSTATE with which the server refused a statement, or None."""
    cause = error.__cause__
    return cause.sqlstate if isinstance(cause, Refused) else None
