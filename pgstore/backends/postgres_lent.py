"""A connection of the caller's, in whose transaction the store's statements run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.pq import PipelineStatus, TransactionStatus

from ..errors import BackendError, ConfigurationError
from .postgres_wire import Wire, is_utf8

__all__ = ["Lent"]


class Lent:
    """Lends the caller's connection for each statement, inside the caller's transaction.

    It goes straight to libpq, where psycopg begins no transaction. What it leaves open, psycopg
    sees, and ends when it is told to.
    """

    size = 1

    def __init__(self, connection: Any, statement_timeout: float) -> None:
        if not isinstance(connection, psycopg.Connection):
            raise ConfigurationError(
                f"using() wants a psycopg.Connection, not {type(connection).__name__}"
            )
        self.statement_timeout = statement_timeout
        self._connection: psycopg.Connection[Any] = connection
        # Nothing is prepared there: an error would end the transaction.
        self._wire = Wire(connection, None, seconds=statement_timeout)
        self._ended = False

    def __repr__(self) -> str:
        return "<Lent>"

    def get(self, *, check: bool = True) -> Wire:
        connection = self._connection
        if self._ended:
            raise BackendError("the block of using() has ended")
        if connection.closed:
            raise BackendError("the connection given to using() is closed")
        if connection.pgconn.pipeline_status != PipelineStatus.OFF:
            raise ConfigurationError("using() does not work inside a pipeline")
        if not is_utf8(connection):
            raise ConfigurationError("the connection for using() must have client_encoding=utf8")
        match connection.pgconn.transaction_status:
            case TransactionStatus.IDLE if connection.autocommit:
                raise ConfigurationError(
                    "the connection for using() is in autocommit and outside a transaction: open "
                    "one with connection.transaction(), inside the block of using()"
                )
            case TransactionStatus.IDLE:
                # As before each first statement of the caller's own.
                try:
                    connection.execute("SELECT 1", prepare=False)
                except psycopg.Error as error:
                    raise BackendError(
                        "no transaction could be begun on the connection given to using()"
                    ) from error
            case TransactionStatus.ACTIVE:
                raise BackendError("the connection given to using() is busy with a statement")
        return self._wire

    def put(self, wire: Wire) -> None:
        """Do nothing: the connection stays the caller's."""

    @contextmanager
    def direct(self) -> Iterator[Wire]:
        raise ConfigurationError("the schema is not for using(): it has transactions of its own")
        yield

    def close(self) -> None:
        """Lend the connection no more, and leave it as it is."""
        self._ended = True
