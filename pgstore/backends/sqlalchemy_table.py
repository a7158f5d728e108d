"""One table through SQLAlchemy: its database, its clock, and its schema."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final, Self, TypeVar

import sqlalchemy as sa

from ..errors import ConfigurationError
from .sqlalchemy_engine import Database, Held, Job
from .sqlalchemy_errors import Busy
from .sqlalchemy_schema import TableSchema
from .sqlalchemy_tables import Flavour, flavour_of

__all__ = ["SQLAlchemyTable"]

T = TypeVar("T")

# Below every database's limit of parameters.
_MOST_KEYS: Final = 500


class SQLAlchemyTable:
    """The table ``rows``, made by the schema files of ``part``, in the database of an engine.

    ``where`` is an engine or a URL (see `Database`), or the database of another table, which stays
    the other's to close.
    """

    def __init__(
        self,
        where: sa.Engine | str | Database,
        rows: sa.Table,
        *,
        part: str | None = None,
        clock: sa.ColumnElement[Any] | None = None,
        **limits: Any,
    ) -> None:
        self._rows = rows
        self._clock = clock
        self._db: Database | Held
        if isinstance(where, Database):
            self._db = database = where.shared(str(rows))
        else:
            self._db = database = Database(where, table=str(rows), check=self._check, **limits)
        self._dialect = database.dialect
        if rows.schema is not None and self._dialect.name == "sqlite":
            raise ConfigurationError("db_schema is for other databases: SQLite has no schemas")
        self._flavour: Flavour = flavour_of(self._dialect, clock)
        self._schema = TableSchema(rows, self._flavour, part)
        (key,) = rows.primary_key.columns
        self._sql_now = sa.select(self._flavour.now.label("now_"))
        self._sql_delete = sa.delete(rows).where(key.in_(sa.bindparam("keys", expanding=True)))
        self._sql_delete_one = sa.delete(rows).where(key == sa.bindparam("the_key"))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._rows} {self._db!r}>"

    @property
    def table(self) -> str:
        return self._rows.name

    def apply_schema(self) -> None:
        self._schema.apply(self._db)

    def check_schema(self) -> None:
        self._schema.check(self._db)

    def close(self) -> None:
        self._db.close()

    def _check(self, connection: sa.Connection) -> None:
        self._flavour.check_connection(connection)

    def _inside(self, held: Held) -> Self:
        inside = copy.copy(self)
        inside._db = held
        return inside

    def _read(self, job: Job, statement: sa.Select[Any], **values: Any) -> list[list[Any]]:
        """Run a statement whose first column is the database's time; return that in Python's."""
        if self._flavour.reads_lock and isinstance(self._db, Held):
            statement = statement.with_for_update()
        rows = job.read(statement, values | self._flavour.bind_now(job))
        return [[self._flavour.time_out(row[0]), *row[1:]] for row in rows]

    def _write(self, job: Job, statement: sa.Executable, values: dict[str, Any]) -> int:
        return job.write(statement, values | self._flavour.bind_now(job))

    def _now(self, job: Job) -> datetime:
        now: datetime = self._read(job, self._sql_now)[0][0]
        return now

    def _in_sweep(self, work: Callable[[Job, datetime], list[T]]) -> list[T]:
        """Do some work, given the time, unless somebody else is sweeping this table."""

        def led(job: Job) -> list[T]:
            with self._flavour.lead(job, "sweep", self._rows, wait=False) as leads:
                return work(job, self._now(job)) if leads else []

        try:
            return self._db.in_transaction(led)
        except Busy:
            return []

    def _delete_keys(self, job: Job, keys: Sequence[bytes], **condition: Any) -> set[bytes]:
        """Delete rows that this transaction has found; return the keys of those that it deleted.

        ``condition`` is for where nothing holds what was found.
        """
        if not self._flavour.holds:
            one = self._sql_delete_one
            return {key for key in keys if job.write(one, {"the_key": key, **condition})}
        for first in range(0, len(keys), _MOST_KEYS):
            job.write(self._sql_delete, {"keys": keys[first : first + _MOST_KEYS]})
        return set(keys)
