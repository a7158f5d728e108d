"""Where connections come from: a pool of ours, made in each process, or the caller's."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, Protocol
from weakref import WeakKeyDictionary, finalize

import psycopg
import psycopg_pool
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus

from ..errors import BackendError, ConfigurationError, PGStoreError
from ..forks import in_forked_child
from .postgres_wire import Wire, is_utf8

__all__ = ["BorrowedPool", "OwnPool", "Pool"]

# Connections of ours are closed when they have rested for so long, or are so old, in seconds: the
# server gets its memory back, and a balancer in between can move them.
_LONGEST_REST = 600.0
_LONGEST_LIFE = 3600.0

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

    def get(self, *, check: bool = True) -> Wire:
        """Return an idle connection. Raises `BackendError` when there is none in time.

        With ``check`` one that has died at rest is not returned. A statement that may be run again
        can do without.
        """

    def put(self, wire: Wire) -> None:
        """Take a connection back, in whatever state it is."""

    def direct(self) -> AbstractContextManager[Wire]:
        """Give a connection for work on the schema, with a minute for each statement."""

    def close(self) -> None:
        """Close what this pool opened."""


class OwnPool:
    """A pool that connects when a request needs it, in the request's own thread.

    So an error in connecting is the request's to report, the first request after an outage gets
    through, and nothing runs in the background. Nothing is opened before the first use in a
    process, so that a fork shares no socket. The connection used last is handed out first; threads
    that wait are served in their order.
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
        _check_settings(statement_timeout, pool_timeout, pooler)
        self._conninfo = _complete(dsn, statement_timeout, pool_timeout, pooler)
        self._size = size
        self._statement_timeout = statement_timeout
        self._pool_timeout = pool_timeout
        self._prepares = pooler is None
        self._free: list[Wire] = []
        self._open = 0
        self._closed = False
        self._inherited: list[list[Wire]] = []
        # For who does not close the store, or the process ends.
        self._ending = finalize(self, _close, self._free)
        self._make_locks()
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
        return self._statement_timeout

    def get(self, *, check: bool = True) -> Wire:
        deadline = time.monotonic() + self._pool_timeout
        failure: BackendError | None = None
        while True:
            with self._lock:
                # Who comes while others wait queues up behind them.
                wire = self._free.pop() if self._free and not self._waiting else None
            wire = wire or self._wait(deadline, failure)
            if wire is None:
                try:
                    return self._connect()
                except BackendError as error:
                    # The server may have no more to give: then those that are open have to do.
                    failure = error
                    continue
            if not check:
                return wire
            try:
                if wire.is_alive():
                    return wire
            except BaseException:
                # A greenlet's timeout, or Ctrl-C: the pool must not lose count of it.
                wire.connection.close()
                self.put(wire)
                raise
            wire.connection.close()
            self.put(wire)

    def put(self, wire: Wire) -> None:
        wire.resting_since = now = time.monotonic()
        fit = wire.is_idle() and now - wire.born < _LONGEST_LIFE
        rested = None
        with self._lock:
            fit = fit and not self._closed
            if fit:
                if self._free and now - self._free[0].resting_since > _LONGEST_REST:
                    rested = self._free.pop(0)
                self._free.append(wire)
            if rested or not fit:
                self._open -= 1
            if self._waiting:
                self._call_next()
        if not fit:
            wire.connection.close()
        if rested:
            rested.connection.close()

    @contextmanager
    def direct(self) -> Iterator[Wire]:
        connection = self._connection()
        try:
            yield Wire(connection, {} if self._prepares else None, seconds=60.0)
        finally:
            connection.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            free = self._free.copy()
            self._free.clear()
            self._open -= len(free)
            self._changed.notify_all()
            self._returned.notify_all()
        _close(free)

    def _make_locks(self) -> None:
        # A signal handler, or a finalizer, may run while its own thread holds it.
        self._lock = threading.RLock()
        # Who waits for a connection, or for room to open one; and who has failed to open one.
        self._changed = threading.Condition(self._lock)
        self._returned = threading.Condition(self._lock)
        self._waiting = self._failed = 0

    def _start_anew(self) -> None:
        # They belong to the parent: closing or collecting them here would end its connections.
        self._inherited.append(self._free)
        self._ending.detach()
        self._free, self._open = [], 0
        self._ending = finalize(self, _close, self._free)
        self._make_locks()

    def _wait(self, deadline: float, failure: BackendError | None) -> Wire | None:
        """Return a connection that became free, or None when a new one may be opened.

        After a ``failure`` to open one none may be, and it is raised when none becomes free.
        """
        failed = failure is not None
        condition = self._returned if failed else self._changed
        with self._lock:
            self._waiting += 1
            self._failed += failed
            try:
                called = self._waiting == 1
                while True:
                    if self._closed:
                        raise BackendError("the store is closed")
                    if self._free and called:
                        return self._free.pop()
                    if failure is None and self._open < self._size:
                        self._open += 1
                        return None
                    left = deadline - time.monotonic()
                    if failure is not None and (left <= 0 or not self._open):
                        raise failure
                    if left <= 0:
                        raise BackendError(
                            f"no connection became free within {self._pool_timeout:g} s "
                            f"(pool_size={self._size})"
                        )
                    condition.wait(left)
                    called = True
            finally:
                self._waiting -= 1
                self._failed -= failed
                # This thread may have been called for something that it leaves to others.
                self._call_next()

    def _call_next(self) -> None:
        """Call one of the threads that can go on now, which calls the next when it has."""
        if self._failed and (self._free or not self._open):
            self._returned.notify()
        elif self._waiting and (self._free or self._open < self._size):
            self._changed.notify()

    def _connect(self) -> Wire:
        """Open one of the ``size`` connections, which `_wait` has counted already."""
        try:
            connection = self._connection()
            return Wire(connection, {} if self._prepares else None, seconds=self._statement_timeout)
        except BaseException:
            with self._lock:
                self._open -= 1
                self._call_next()
            raise

    def _connection(self) -> _AnyConnection:
        try:
            return psycopg.connect(self._conninfo, autocommit=True, prepare_threshold=None)
        except (psycopg.Error, OSError) as error:
            raise BackendError(f"PostgreSQL cannot be reached: {_first_line(error)}") from error


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
        _check_settings(statement_timeout, pool_timeout, pooler)
        self._pool = pool
        self._statement_timeout = statement_timeout
        self._pool_timeout = pool_timeout
        # By connection: which statements are prepared there, and under which names.
        self._prepared: WeakKeyDictionary[_AnyConnection, dict[bytes, bytes]] | None = (
            None if pooler else WeakKeyDictionary()
        )
        self._inherited = False
        in_forked_child(self._after_fork)

    def __repr__(self) -> str:
        return f"<BorrowedPool {self._pool.name!r}>"

    @property
    def size(self) -> int:
        return self._pool.max_size

    @property
    def statement_timeout(self) -> float:
        return self._statement_timeout

    def get(self, *, check: bool = True) -> Wire:
        return self._take(self._statement_timeout)

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
        deadline = time.monotonic() + self._pool_timeout
        while (left := deadline - time.monotonic()) > 0:
            try:
                connection = self._pool.getconn(timeout=left)
            except psycopg_pool.PoolTimeout:
                break
            except psycopg_pool.PoolClosed as error:
                raise BackendError(f"the pool given to from_pool is not open: {error}") from error
            except psycopg_pool.TooManyRequests as error:
                raise BackendError(str(error)) from error
            try:
                wire = Wire(connection, self._prepared_on(connection), seconds=seconds)
                if wire.is_alive():
                    _check_fit(connection)
                    return wire
            except PGStoreError:
                self._pool.putconn(connection)
                raise
            except BaseException:
                # A greenlet's timeout, or Ctrl-C: the pool must not lose count of it.
                connection.close()
                self._pool.putconn(connection)
                raise
            # One of many that died with the server: the pool makes another.
            connection.close()
            self._pool.putconn(connection)
        raise BackendError(f"no connection became free within {self._pool_timeout:g} s")

    def _prepared_on(self, connection: _AnyConnection) -> dict[bytes, bytes] | None:
        if self._prepared is None:
            return None
        prepared = self._prepared.get(connection)
        if prepared is None:
            prepared = self._prepared[connection] = {}
        return prepared


def _close(wires: list[Wire]) -> None:
    for wire in wires:
        wire.connection.close()


def _check_settings(statement_timeout: float, pool_timeout: float, pooler: str | None) -> None:
    for name, value in (("statement_timeout", statement_timeout), ("pool_timeout", pool_timeout)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ConfigurationError(f"{name} must be a positive number of seconds, not {value!r}")
    if pooler not in (None, "transaction"):
        raise ConfigurationError(f"pooler must be None or 'transaction', not {pooler!r}")


def _check_fit(connection: _AnyConnection) -> None:
    """Raise for a connection that cannot be worked on."""
    if connection.pgconn.transaction_status != TransactionStatus.IDLE:
        raise BackendError("the pool handed out a connection that is inside a transaction")
    if not is_utf8(connection):
        raise ConfigurationError("the pool's connections must have client_encoding=utf8")


def _complete(dsn: str, statement_timeout: float, pool_timeout: float, pooler: str | None) -> str:
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
    hosts = 1 + str(given.get("host") or given.get("hostaddr") or "").count(",")
    wanted: dict[str, Any] = {
        "application_name": "pgstore",
        # For each host; libpq waits for 2 s at least.
        "connect_timeout": max(2, min(5, int(pool_timeout / hosts))),
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
