"""A connection of the caller's, in whose transaction the store's statements run."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, Final

from ..errors import BackendError, ConfigurationError
from .sqlite_files import Database

__all__ = ["Lent"]

# sqlite3.LEGACY_TRANSACTION_CONTROL, since Python 3.12: `isolation_level` says how it begins.
_LEGACY: Final = -1


class Lent:
    """Runs statements on the caller's connection, inside the caller's transaction."""

    def __init__(self, database: Database, connection: Any) -> None:
        if not isinstance(connection, sqlite3.Connection):
            raise ConfigurationError(
                f"using() wants an sqlite3.Connection, not {type(connection).__name__}"
            )
        if connection.text_factory is not str:
            raise ConfigurationError("the connection for using() must have text_factory=str")
        self._connection = connection
        self._database = database
        self._ended = False
        files = [file for _, name, file in self._fetch("PRAGMA database_list") if name == "main"]
        if not (files and files[0] and _is_same(files[0], database.path)):
            raise ConfigurationError(
                f"the connection for using() must be to the store's file, {database.path}"
            )
        ((milliseconds,),) = self._fetch("PRAGMA busy_timeout")
        self._database = replace(database, busy_timeout=milliseconds / 1000)

    def run(
        self, sql: str, values: Mapping[str, Any] | None = None, *, wait: float | None = None
    ) -> list[tuple[Any, ...]]:
        if self._ended:
            raise BackendError("the block of using() has ended")
        try:
            begun = self._connection.in_transaction
        except sqlite3.Error as error:  # it is closed
            raise self._database.error(error) from error
        if not begun:
            self._begin()
        return self._fetch(sql, values)

    @contextmanager
    def transaction(self) -> Iterator[Lent]:
        """Hold the file's write lock, to the end of the caller's transaction."""
        self.run(f'DELETE FROM "{self._database.table}" WHERE 0')
        yield self

    def creation(self) -> AbstractContextManager[Lent]:
        raise ConfigurationError("the schema is not for using(): it has transactions of its own")

    def close(self) -> None:
        """Use the connection no more, and leave it as it is."""
        self._ended = True

    def _begin(self) -> None:
        """Begin as the driver would before the caller's own first write, reads included."""
        level = self._connection.isolation_level
        if level is None or getattr(self._connection, "autocommit", _LEGACY) != _LEGACY:
            raise ConfigurationError(
                "the connection for using() is in autocommit and outside a transaction: begin one "
                "inside the block of using()"
            )
        self._fetch(f"BEGIN {level}")

    def _fetch(self, sql: str, values: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        try:
            cursor = self._connection.cursor()
            cursor.row_factory = None
            return cursor.execute(sql, values or {}).fetchall()
        except sqlite3.Error as error:
            raise self._database.error(error) from error


def _is_same(file: str, path: str) -> bool:
    try:
        return os.path.samefile(file, path)
    except OSError:
        return False
