"""Where connections come from: a pool of ours, made in each process, or the caller's."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, Protocol
from weakref import WeakKeyDictionary

import psycopg
import psycopg_pool
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus

from ..errors import BackendError, ConfigurationError, PGStoreError
from ..forks import in_forked_child
from .postgres_wire import Wire, is_alive, is_utf8

__all__ = ["BorrowedPool", "OwnPool", "Pool"]

# psycopg_pool tells a waiting thread nothing when connecting fails: look this often, in seconds. A
# thread that looks has left the queue, so it looks less often when there is a queue to wait in.
_SLICE = 0.1
_QUEUE_SLICE = 1.0

_AnyConnection = psycopg.Connection[Any]
_AnyPool = psycopg_pool.ConnectionPool[_AnyConnection]


class Pool(Protocol):
    """What a `PostgresBackend` needs: wires to take and give back."""

    @property
    def size(self) -> int:
        """How many connections there may be at once."""

    @property
    def statement_timeout(self) -> float:
        """How long a statement may take, in seconds."""

    def get(self) -> Wire:
        """Return a live, idle connection. Raises `BackendError` when there is none in time."""

    def put(self, wire: Wire) -> None:
        """Take a connection back, in whatever state it is."""

    def direct(self) -> AbstractContextManager[Wire]:
        """Give a connection for work on the schema, with a minute for each statement."""

    def close(self) -> None:
        """Close what this pool opened."""


class _Leases:
    """The part that both pools share: handing out, looking after, and taking back."""

    def __init__(
        self,
        statement_timeout: float,
        pool_timeout: float,
        pooler: Literal["transaction"] | None,
    ) -> None:
        for name, value in (
            ("statement_timeout", statement_timeout),
            ("pool_timeout", pool_timeout),
        ):
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ConfigurationError(
                    f"{name} must be a positive number of seconds, not {value!r}"
                )
        if pooler not in (None, "transaction"):
            raise ConfigurationError(f"pooler must be None or 'transaction', not {pooler!r}")
        self.statement_timeout = statement_timeout
        self.pool_timeout = pool_timeout
        self.pooler = pooler
        # By connection: which statements are prepared there, and under which names.
        self._prepared: WeakKeyDictionary[_AnyConnection, dict[bytes, bytes]] = WeakKeyDictionary()

    def wire(self, connection: _AnyConnection, seconds: float) -> Wire:
        prepared = self._prepared.get(connection)
        if prepared is None:
            prepared = self._prepared[connection] = {}
        return Wire(connection, None if self.pooler else prepared, seconds=seconds)

    def take(self, pool: _AnyPool, timeout: float) -> _AnyConnection | None:
        """Return a connection that is alive; None when there was none in time."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            try:
                connection = pool.getconn(timeout=left)
            except psycopg_pool.PoolTimeout:
                return None
            try:
                if is_alive(connection):
                    return _fit(connection)
            except PGStoreError:
                pool.putconn(connection)
                raise
            except BaseException:
                # A greenlet's timeout, or Ctrl-C: the pool must not lose count of it.
                connection.close()
                pool.putconn(connection)
                raise
            # One of many that died with the server: the pool makes another.
            connection.close()
            pool.putconn(connection)
        return None


class OwnPool:
    """A pool that is made on first use in each process, so that a fork shares no socket.

    It connects when a request needs it, and never waits out a backoff: after an outage the first
    request that finds the server back gets through.
    """

    def __init__(
        self,
        dsn: str,
        *,
        size: int,
        statement_timeout: float,
        pool_timeout: float,
        pooler: Literal["transaction"] | None = None,
    ) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ConfigurationError(f"pool_size must be 1 or more connections, not {size!r}")
        self._leases = _Leases(statement_timeout, pool_timeout, pooler)
        self._conninfo = _complete(dsn, statement_timeout, pooler)
        self._size = size
        self._pool: _AnyPool | None = None
        self._making = threading.Lock()
        self._closed = False
        self._inherited: list[_AnyPool] = []
        self._failure: tuple[float, psycopg.Error] | None = None
        in_forked_child(self._start_anew)

    def __repr__(self) -> str:
        parts = conninfo_to_dict(self._conninfo)
        where = {name: parts[name] for name in ("host", "port", "dbname") if name in parts}
        return f"<OwnPool {where}>"

    @property
    def size(self) -> int:
        return self._size

    @property
    def statement_timeout(self) -> float:
        return self._leases.statement_timeout

    def get(self) -> Wire:
        start = time.monotonic()
        deadline = start + self._leases.pool_timeout
        pool = self._pool or self._make()
        piece = _SLICE
        while True:
            left = deadline - time.monotonic()
            try:
                connection = self._leases.take(pool, min(left, piece))
            except psycopg_pool.PoolClosed as error:
                raise BackendError("the store is closed") from error
            if connection is not None:
                return self._leases.wire(connection, self._leases.statement_timeout)
            failure = self._failure
            size = pool.get_stats().get("pool_size", 0)
            if failure and failure[0] >= start and not size:
                raise BackendError(
                    f"PostgreSQL cannot be reached: {_first_line(failure[1])}"
                ) from failure[1]
            if left <= piece:
                raise BackendError(
                    f"no connection became free within {self._leases.pool_timeout:g} s "
                    f"(pool_size={self._size})"
                ) from (failure and failure[1])
            piece = _SLICE if size < self._size else _QUEUE_SLICE

    def put(self, wire: Wire) -> None:
        assert self._pool is not None
        self._pool.putconn(wire.connection)

    @contextmanager
    def direct(self) -> Iterator[Wire]:
        try:
            connection = psycopg.connect(self._conninfo, autocommit=True)
        except psycopg.Error as error:
            raise BackendError(f"PostgreSQL cannot be reached: {_first_line(error)}") from error
        try:
            yield self._leases.wire(connection, 60.0)
        finally:
            connection.close()

    def close(self) -> None:
        with self._making:
            self._closed = True
            if self._pool is not None:
                self._pool.close()

    def _start_anew(self) -> None:
        if self._pool is not None:
            # It belongs to the parent: closing or collecting it here would end the parent's
            # connections.
            self._inherited.append(self._pool)
        self._pool = None
        self._making = threading.Lock()

    def _make(self) -> _AnyPool:
        with self._making:
            if self._closed:
                raise BackendError("the store is closed")
            if self._pool is None:
                self._pool = self._open()
            return self._pool

    def _open(self) -> _AnyPool:
        owner = self

        class Connection(_AnyConnection):
            """Keeps the reason when connecting fails; the pool only logs it."""

            @classmethod
            def connect(cls, *args: Any, **kwargs: Any) -> Any:
                try:
                    return super().connect(*args, **kwargs)
                except psycopg.Error as error:
                    owner._failure = time.monotonic(), error
                    raise

        pool: _AnyPool = psycopg_pool.ConnectionPool(
            self._conninfo,
            connection_class=Connection,
            kwargs={"autocommit": True, "prepare_threshold": None},
            min_size=0,
            max_size=self._size,
            timeout=self._leases.pool_timeout,
            # Its backoff doubles to minutes. Without it, each request that waits makes the pool try
            # again.
            reconnect_timeout=0.0,
            open=False,
            name="pgstore",
        )
        pool.open()
        return pool


class BorrowedPool:
    """A pool of the caller's, whose connections are used as they are and given back so."""

    def __init__(
        self,
        pool: _AnyPool,
        *,
        statement_timeout: float,
        pool_timeout: float,
        pooler: Literal["transaction"] | None = None,
    ) -> None:
        if not isinstance(pool, psycopg_pool.ConnectionPool):
            raise ConfigurationError(
                f"from_pool wants a psycopg_pool.ConnectionPool, not {type(pool).__name__}"
            )
        self._leases = _Leases(statement_timeout, pool_timeout, pooler)
        self._pool = pool
        self._inherited = False
        in_forked_child(self._after_fork)

    def __repr__(self) -> str:
        return f"<BorrowedPool {self._pool.name!r}>"

    @property
    def size(self) -> int:
        return self._pool.max_size

    @property
    def statement_timeout(self) -> float:
        return self._leases.statement_timeout

    def get(self) -> Wire:
        return self._take(self._leases.statement_timeout)

    def put(self, wire: Wire) -> None:
        self._pool.putconn(wire.connection)

    @contextmanager
    def direct(self) -> Iterator[Wire]:
        wire = self._take(60.0)
        try:
            yield wire
        finally:
            self.put(wire)

    def close(self) -> None:
        """Do nothing: the pool is the caller's."""

    def _after_fork(self) -> None:
        # One that was not open yet has no connections to share.
        self._inherited = self._inherited or not self._pool.closed

    def _take(self, seconds: float) -> Wire:
        if self._inherited:
            raise ConfigurationError(
                "this pool was opened before a fork, and its connections belong to the parent "
                "process: open it in the child (gunicorn's post_fork, uWSGI's postfork), or use "
                "PGStore(dsn), which makes its own there"
            )
        try:
            connection = self._leases.take(self._pool, self._leases.pool_timeout)
        except psycopg_pool.PoolClosed as error:
            raise BackendError(f"the pool given to from_pool is not open: {error}") from error
        except psycopg_pool.TooManyRequests as error:
            raise BackendError(str(error)) from error
        if connection is None:
            raise BackendError(f"no connection became free within {self._leases.pool_timeout:g} s")
        return self._leases.wire(connection, seconds)


def _fit(connection: _AnyConnection) -> _AnyConnection:
    """Return a connection that can be worked on; raise for one that cannot."""
    if connection.pgconn.transaction_status != TransactionStatus.IDLE:
        raise BackendError("the pool handed out a connection that is inside a transaction")
    if not is_utf8(connection):
        raise ConfigurationError("the pool's connections must have client_encoding=utf8")
    return connection


def _complete(dsn: str, statement_timeout: float, pooler: str | None) -> str:
    """Add what the connections of ours want and the caller has not said."""
    # A password that ends early: libpq would take its rest for a host, and name it in its errors.
    if re.match(r"\w+://([^@/]*@[^/?]*@|[^@/?]*/[^?]*@)", dsn):
        raise ConfigurationError(
            "user name, password and database are percent-encoded in a URL: write @ as %40, "
            "/ as %2F, % as %25"
        )
    try:
        given = conninfo_to_dict(dsn)
    except psycopg.Error:
        # libpq's own message quotes the text, and with it a password: it must not be the cause,
        # either.
        raise ConfigurationError(
            "the DSN cannot be parsed: use postgresql://user:password@host:port/database "
            "or libpq's key=value form (open_store takes URLs of other databases, too)"
        ) from None
    wanted: dict[str, Any] = {
        "application_name": "pgstore",
        "connect_timeout": 5,
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "client_encoding": "utf8",
    }
    if pooler is None:
        # The client's deadline is what counts; this frees the server of a statement that nobody
        # waits for.
        limit = f"-c statement_timeout={int(statement_timeout * 1000)}"
        # After ours, so that what the caller says counts; PGOPTIONS is what libpq would have used.
        others = given.get("options") or os.environ.get("PGOPTIONS", "")
        wanted["options"] = f"{limit} {others}".strip()
        given = {name: value for name, value in given.items() if name != "options"}
    return make_conninfo(**{**wanted, **given})


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
