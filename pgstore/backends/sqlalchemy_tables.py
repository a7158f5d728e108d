"""The table in SQLAlchemy's terms, and how each kind of database keeps a row's values."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Final

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from ..errors import BackendError, ConfigurationError
from ..rows import check_table, meta_of
from ..sql import lock_number
from .sqlalchemy_engine import Job

__all__ = [
    "COLUMNS",
    "CONTENT",
    "KNOWN",
    "TEXTS",
    "TIMES",
    "Flavour",
    "flavour_of",
    "sessions_table",
    "time_type",
]

CONTENT: Final = (
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
TIMES: Final = (
    "created_on",
    "modified_on",
    "seen_on",
    "expires_on",
    "gc_after",
    "authenticated_on",
    "renewed_on",
)
COLUMNS: Final = ("key", *CONTENT, *TIMES)
TEXTS: Final = ("name", "user_key", "ip", "user_agent")

_MYSQL: Final = ("mysql", "mariadb")
_UNIX_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_LATEST: Final = datetime.max.replace(tzinfo=UTC)


def sessions_table(
    metadata: sa.MetaData, *, name: str = "http_sessions", schema: str | None = None
) -> sa.Table:
    """Add the sessions' table to a `sqlalchemy.MetaData` of yours and return it.

    So that Alembic makes and migrates it with your own tables; give the store ``schema="check"``
    then. Its columns are those that the store itself would make, on every dialect. Raises
    `ConfigurationError` for a name that is no plain identifier.
    """
    check_table(name)
    if schema is not None:
        check_table(schema, what="schema", longest=63)
    table = sa.Table(
        name,
        metadata,
        sa.Column("key", _bytes(16, mysql.BINARY(16)), primary_key=True),
        sa.Column("name", _text(1024), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("min_generation", sa.Integer(), nullable=False),
        sa.Column("secret_hash", _bytes(255), nullable=False),
        sa.Column("data", _bytes(None, mysql.LONGBLOB()), nullable=False),
        sa.Column("version", _long(), nullable=False),
        sa.Column("max_age", sa.Integer(), nullable=False),
        sa.Column("user_key", _text(255, in_postgres=sa.Text(collation="C"))),
        sa.Column("ip", _text(2048)),
        sa.Column("user_agent", _text(2048)),
        sa.Column("meta", _text(None, in_postgres=_jsonb())),
        sa.Column("previous_hash", _bytes(255)),
        sa.Column("successor", _bytes(255)),
        *(
            sa.Column(column, time_type(), nullable=column in ("authenticated_on", "renewed_on"))
            for column in TIMES
        ),
        schema=schema,
        **_STORAGE,
        sqlite_strict=True,
        mysql_engine="InnoDB",
        mariadb_engine="InnoDB",
    )
    sa.Index(f"{name}_gc_after", table.c.gc_after)
    has_user = table.c.user_key.is_not(None)
    sa.Index(f"{name}_user_key", table.c.user_key, postgresql_where=has_user, sqlite_where=has_user)
    return table


# Room for updates in place, for which SQLAlchemy 2.0 has no word.
_STORAGE: Final[dict[str, Any]] = (
    {} if sa.__version__.startswith("2.0.") else {"postgresql_with": {"fillfactor": "80"}}
)


def _bytes(length: int | None, in_mysql: sa.types.TypeEngine[bytes] | None = None) -> Any:
    in_mysql = in_mysql or mysql.VARBINARY(length)
    return sa.LargeBinary(length).with_variant(in_mysql, *_MYSQL)


def _text(length: int | None, *, in_postgres: Any = None) -> Any:
    """Return a type for text, in UTF-8 as bytes where a collation would take two texts for one."""
    binary = _bytes(length, None if length else mysql.LONGBLOB())
    return binary.with_variant(sa.Text(), "sqlite").with_variant(
        in_postgres or sa.Text(), "postgresql"
    )


def _jsonb() -> Any:
    jsonb = postgresql.JSONB()
    # Alembic would write it down with an argument that its scripts cannot read.
    jsonb.astext_type = None  # type: ignore[assignment]
    return jsonb


def _long() -> Any:
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def time_type() -> Any:
    """Return the type of a time: exact to the microsecond in every database."""
    return (
        _long()
        .with_variant(mysql.DATETIME(fsp=6), *_MYSQL)
        .with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")
    )


class Flavour:
    """How a database keeps a row that is not known by name: times are microseconds, texts bytes.

    ``clock`` is an SQL expression for its time.
    """

    # Whose files in pgstore/sql make the tables; None where SQLAlchemy makes them from the columns.
    engine: ClassVar[str | None] = None
    # Whether a statement of the schema ends the transaction.
    ddl_commits: ClassVar[bool] = True
    # Whether reads in a transaction must lock to see what is there now.
    reads_lock: ClassVar[bool] = False
    # Whether rows that were read with FOR UPDATE are held, so that they can be deleted at once.
    holds: ClassVar[bool] = False
    insert: Any = staticmethod(sa.insert)

    def __init__(self, clock: sa.ColumnElement[Any] | None) -> None:
        if clock is None:
            raise ConfigurationError(
                "no clock is known for this dialect of SQLAlchemy's: give clock=, an SQL "
                "expression for the database's time in UTC, such as sa.func.sysutcdatetime()"
            )
        self._clock: sa.Executable = sa.select(clock)
        # What stands for the time in a statement, unless it is found out before.
        self.now: sa.ColumnElement[Any] = sa.bindparam("now", type_=sa.BigInteger())

    def bind_now(self, job: Job) -> dict[str, Any]:
        """Return what the statement that comes next needs as its time."""
        (((now,),)) = job.read(self._clock)
        return {"now": self.time_in(_aware(now))}

    def text_in(self, text: str) -> Any:
        return text.encode("utf-8")

    def text_out(self, stored: Any) -> str:
        return bytes(stored).decode("utf-8")

    def meta_in(self, meta: Mapping[str, str]) -> Any:
        return self.text_in(json.dumps(dict(meta)))

    def meta_out(self, stored: Any) -> dict[str, str]:
        return meta_of(stored)

    def time_in(self, time: datetime) -> Any:
        return (time - _UNIX_EPOCH) // _MICROSECOND

    def time_out(self, stored: Any) -> datetime:
        micros: int = stored
        try:
            return _UNIX_EPOCH + micros * _MICROSECOND
        except OverflowError:  # a year that Python does not know: an operator's "never"
            return _LATEST

    def column(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        """Return how a column is selected."""
        return column

    def size(self, job: Job, table: sa.Table) -> int | None:
        """Return how many bytes the table and its indexes take, or None where that is not told."""
        return None

    def upsert(self, table: sa.Table, columns: Sequence[str]) -> Any:
        """Return an INSERT that replaces columns of a row with its key, or None."""
        insert = self.insert(table)
        if not hasattr(insert, "on_conflict_do_update"):
            return None
        return insert.on_conflict_do_update(
            index_elements=list(table.primary_key.columns),
            set_={name: insert.excluded[name] for name in columns},
        )

    @contextmanager
    def lead(self, job: Job, purpose: str, table: sa.Table, *, wait: bool) -> Iterator[bool]:
        """Keep other processes from doing the same to the table; False when one is at it."""
        yield True

    def check_connection(self, connection: sa.Connection) -> None:
        """Raise for a connection, or a server, on which the promises could not be kept."""


class _SQLite(Flavour):
    engine = "sqlite"
    ddl_commits = False
    holds = True  # the write lock
    insert = staticmethod(sqlite.insert)

    def __init__(self, clock: sa.ColumnElement[Any] | None) -> None:
        # An embedded database has no clock but the machine's.
        self.now = sa.bindparam("now", type_=sa.Integer())

    def bind_now(self, job: Job) -> dict[str, Any]:
        return {"now": round(time.time() * 1_000_000)}

    def text_in(self, text: str) -> Any:
        return text

    def text_out(self, stored: Any) -> str:
        return str(stored)


class _Postgres(Flavour):
    engine = "postgres"
    ddl_commits = False
    holds = True
    insert = staticmethod(postgresql.insert)

    def __init__(self, clock: sa.ColumnElement[Any] | None) -> None:
        # In a long transaction of the caller's now() stands still.
        self.now = sa.literal_column("statement_timestamp()", postgresql.TIMESTAMP(timezone=True))

    def bind_now(self, job: Job) -> dict[str, Any]:
        return {}

    def text_in(self, text: str) -> Any:
        return text

    def text_out(self, stored: Any) -> str:
        return str(stored)

    def meta_in(self, meta: Mapping[str, str]) -> Any:
        return dict(meta)

    def time_in(self, time: datetime) -> Any:
        return time

    def time_out(self, stored: Any) -> datetime:
        moment: datetime = stored.astimezone(UTC)
        return moment

    def column(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        if column.name == "meta":
            return sa.cast(column, sa.Text).label("meta")
        if column.name in ("expires_on", "gc_after"):
            # An operator's "never"; the driver knows no later year, in any time zone.
            latest: sa.ColumnElement[datetime] = sa.literal_column(
                "timestamptz '9999-12-30 00:00:00+00'"
            )
            return sa.func.least(column, latest).label(column.name)
        return column

    def size(self, job: Job, table: sa.Table) -> int | None:
        name = job.connection.dialect.identifier_preparer.format_table(table)
        size: int = job.read(sa.select(sa.func.pg_total_relation_size(sa.text(f"'{name}'"))))[0][0]
        return size

    @contextmanager
    def lead(self, job: Job, purpose: str, table: sa.Table, *, wait: bool) -> Iterator[bool]:
        number = lock_number(purpose, table.name, table.schema)
        if wait:
            job.read(sa.select(sa.func.pg_advisory_xact_lock(number)))
            yield True
        else:
            ((leads,),) = job.read(sa.select(sa.func.pg_try_advisory_xact_lock(number)))
            yield leads


class _MySQL(Flavour):
    engine = "mysql"
    # REPEATABLE READ, the default, shows a transaction the rows as they were at its first read.
    reads_lock = True
    holds = True

    def __init__(self, clock: sa.ColumnElement[Any] | None) -> None:
        # NOW() follows the session's time zone.
        self.now = sa.literal_column("UTC_TIMESTAMP(6)", mysql.DATETIME(fsp=6))

    def bind_now(self, job: Job) -> dict[str, Any]:
        return {}

    def upsert(self, table: sa.Table, columns: Sequence[str]) -> Any:
        insert = mysql.insert(table)
        return insert.on_duplicate_key_update({name: insert.inserted[name] for name in columns})

    def time_in(self, time: datetime) -> Any:
        return time.astimezone(UTC).replace(tzinfo=None)

    def time_out(self, stored: Any) -> datetime:
        return _aware(stored)

    @contextmanager
    def lead(self, job: Job, purpose: str, table: sa.Table, *, wait: bool) -> Iterator[bool]:
        # One namespace for all databases of the server.
        name = sa.func.concat(
            "pgstore ",
            sa.func.sha1(
                sa.func.concat_ws(
                    ".",
                    purpose,
                    sa.func.database() if table.schema is None else table.schema,
                    table.name,
                )
            ),
        )
        lock = sa.select(sa.func.get_lock(name, 0))
        deadline = time.monotonic() + 60.0
        while not (leads := job.read(lock)[0][0] == 1) and wait:
            if time.monotonic() > deadline:
                raise BackendError(f"another process has been at work on {table} for a minute")
            time.sleep(0.05)
        try:
            yield leads
        finally:
            if leads:
                # It is the session's, not the transaction's; it goes with a lost session.
                with suppress(SQLAlchemyError):
                    job.read(sa.select(sa.func.release_lock(name)))

    def check_connection(self, connection: sa.Connection) -> None:
        dialect: Any = connection.dialect
        is_mariadb, version = dialect.is_mariadb, dialect.server_version_info
        oldest = (10, 6) if is_mariadb else (8, 0, 1)
        if version < oldest:
            raise BackendError(
                f"{'MariaDB' if is_mariadb else 'MySQL'} {'.'.join(map(str, version[:3]))} is too "
                "old: sessions need MariaDB 10.6 or MySQL 8.0.1, or newer"
            )
        raw = connection.connection.driver_connection
        flags = getattr(raw, "client_flag", None)
        found_rows = 2
        if isinstance(flags, int) and not flags & found_rows:
            raise ConfigurationError(
                "the engine's connections count the rows that changed, and not those that were "
                "found: connect with client_flag=pymysql.constants.CLIENT.FOUND_ROWS"
            )


KNOWN: Final[dict[str, type[Flavour]]] = {
    "sqlite": _SQLite,
    "postgresql": _Postgres,
    "mysql": _MySQL,
    "mariadb": _MySQL,
}


def flavour_of(dialect: sa.Dialect, clock: sa.ColumnElement[Any] | None) -> Flavour:
    """Return how a dialect's databases keep a row."""
    if clock is not None and dialect.name in KNOWN:
        raise ConfigurationError(f"clock is for other dialects: {dialect.name} has its own")
    return KNOWN.get(dialect.name, Flavour)(clock)


def _aware(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
