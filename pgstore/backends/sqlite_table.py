"""One table in an SQLite file: its connections, its clock, and how its schema is applied."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, Self

from ..errors import ConfigurationError, SchemaError
from ..options import seconds
from ..rows import check_table
from ..sql import Schema, statements
from .sqlite_files import Connections, Database, Source

__all__ = ["SQLiteTable", "check_sqlite_table", "micros", "moment"]

_UNIX_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class SQLiteTable:
    """A table, made by the files of ``schema``, in a file on a local disk.

    ``busy_timeout`` (seconds or a `timedelta`) is how long a statement waits for another writer.
    ``clock`` returns Unix seconds: an embedded database has no clock but the machine's.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        schema: Schema,
        table: str,
        columns: Sequence[str],
        busy_timeout: float | timedelta,
        clock: Callable[[], float],
    ) -> None:
        self.table = check_sqlite_table(table)
        self.path = _check_path(path)
        wait = seconds(busy_timeout, "busy_timeout")
        if not 0 <= wait <= 3600:
            raise ConfigurationError(f"busy_timeout must be 0 to 3600 seconds, not {wait:g}")
        self._clock = clock
        self._schema = schema
        self._database = Database(path=self.path, table=self.table, busy_timeout=wait)
        self._source: Source = Connections(self._database)

        self._versions = f"""
            SELECT version, oldest_code FROM "{self.table}_schema" ORDER BY version DESC LIMIT 1"""
        # Fails unless all of the columns are there.
        self._probe = f'SELECT {", ".join(columns)} FROM "{self.table}" LIMIT 0'

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path} {self.table}>"

    def apply_schema(self) -> None:
        if self._schema_versions()[0] < self._schema.version:
            with self._source.creation() as transaction:
                # Another process may have been faster.
                applied, _ = self._inside(transaction)._schema_versions()
                for statement in statements(self._schema.text(self.table, after=applied)):
                    transaction.run(statement)
        self.check_schema()

    def check_schema(self) -> None:
        applied, oldest_code = self._schema_versions()
        if applied == 0:
            raise SchemaError(f"no table {self.table} in {self.path}: run `pgstore schema apply`")
        if oldest_code > self._schema.version:
            raise SchemaError(
                f"table {self.table} in {self.path} is for code that knows schema {oldest_code} "
                f"or later, and this code knows {self._schema.version}: upgrade pgstore"
            )
        if applied < self._schema.version:
            raise SchemaError(
                f"table {self.table} in {self.path} has schema {applied} and this code needs "
                f"{self._schema.version}: run `pgstore schema apply`"
            )
        self._source.run(self._probe)

    def close(self) -> None:
        self._source.close()

    def _inside(self, source: Source) -> Self:
        inside = copy.copy(self)
        inside._source = source
        return inside

    def _now(self) -> int:
        return round(self._clock() * 1_000_000)

    def _schema_versions(self) -> tuple[int, int]:
        """Return the newest migration that was applied, 0 for none, and the oldest code for it."""
        try:
            for applied, oldest_code in self._source.run(self._versions):
                return applied, oldest_code
        except SchemaError:
            pass
        return 0, 0


def check_sqlite_table(name: str) -> str:
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


def moment(micros: int) -> datetime:
    """Return the time that is kept as whole microseconds since 1970."""
    try:
        return _UNIX_EPOCH + micros * _MICROSECOND
    except OverflowError:  # a year that Python does not know: an operator's "never"
        return datetime.max.replace(tzinfo=UTC)


def micros(time: datetime) -> int:
    """Return how a time is kept."""
    return (time - _UNIX_EPOCH) // _MICROSECOND
