"""Running statements on a SQLAlchemy engine, ours or the caller's."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.pool import NullPool, Pool, QueuePool

from ..errors import BackendError, ConfigurationError
from ..forks import in_forked_child
from .sqlalchemy_errors import cause, is_lost, meaning, met_another
from .sqlalchemy_urls import make_engine

__all__ = ["Database", "Held", "Job", "Lent"]

T = TypeVar("T")

# A statement that was refused because it met another, and did nothing, is run again.
_MOST_TRIES: Final = 10
# Of an engine of the caller's no time limit is known. A connection that died while it was idle
# shows at once; a statement that failed later than this is not run again.
_AT_ONCE_SECONDS: Final = 1.0

# How a transaction is begun that sees at each statement what was committed before it. SQLAlchemy
# would set and reset the level over the network, and lose count of a connection that breaks then.
_BEGIN: Final = {
    "sqlite": ["BEGIN IMMEDIATE"],
    "mysql": ["SET TRANSACTION ISOLATION LEVEL READ COMMITTED", "START TRANSACTION"],
    "mariadb": ["SET TRANSACTION ISOLATION LEVEL READ COMMITTED", "START TRANSACTION"],
}


class Job:
    """One piece of work on one connection: it reads first, then writes.

    A connection that died while nobody used it is found out by the read, before anything was
    written.
    """

    def __init__(self, connection: sa.Connection, *, commit: bool = False) -> None:
        self.connection = connection
        self.has_written = False
        self.began = time.monotonic()
        self._commit = commit

    def read(
        self, statement: sa.Executable, values: Mapping[str, Any] | None = None
    ) -> Sequence[Any]:
        """Run a statement and return all of its rows."""
        self.began = time.monotonic()
        rows = self.connection.execute(statement, values or {}).all()
        self._end()
        return rows

    def write(self, statement: sa.Executable, values: Mapping[str, Any] | None = None) -> int:
        """Run a statement that may change something and return how many rows it addressed."""
        self.began = time.monotonic()
        self.has_written = True
        count = self.connection.execute(statement, values or {}).rowcount
        self._end()
        self.has_written = count != 0
        return count

    def run(self, text: str) -> None:
        """Run a statement of the schema, with no parameters."""
        self.connection.exec_driver_sql(text)

    def _end(self) -> None:
        # Where the engine has no autocommit, a transaction would go on and keep its old view.
        if self._commit:
            self.connection.commit()


class Database:
    """An engine, and how work is run on it.

    Every statement is a transaction of its own, but in `transaction`. ``engine_or_url``: an engine
    stays the caller's, with all of its settings; for a URL one is made, of up to ``pool_size``
    connections, whose statements take at most ``statement_timeout`` seconds where the driver can
    bound that. ``check`` is given the first connection, and raises for one that will not do.

    Raises `ConfigurationError` for what SQLAlchemy cannot make an engine of.
    """

    def __init__(
        self,
        engine_or_url: sa.Engine | str,
        *,
        table: str,
        check: Callable[[sa.Connection], None],
        pool_size: int | None = None,
        statement_timeout: float | None = None,
        pool_timeout: float | None = None,
    ) -> None:
        self._table = table
        self._check = check
        self._checked = False
        self._closed = False
        self._inherited: list[Pool] = []
        limits = {
            "pool_size": pool_size,
            "statement_timeout": statement_timeout,
            "pool_timeout": pool_timeout,
        }
        self._is_own = isinstance(engine_or_url, str)
        if isinstance(engine_or_url, str):
            for name, value in limits.items():
                kinds = int if name == "pool_size" else int | float
                is_number = isinstance(value, kinds) and not isinstance(value, bool)
                if value is not None and not (is_number and value > 0):
                    raise ConfigurationError(f"{name} must be a positive number, not {value!r}")
            self._late = statement_timeout or 5.0
            self.engine = make_engine(
                engine_or_url, pool_size or 10, self._late, pool_timeout or 5.0
            )
        elif isinstance(engine_or_url, sa.Engine):
            given = [name for name, value in limits.items() if value is not None]
            if given:
                raise ConfigurationError(
                    f"{' and '.join(given)}: an engine of yours has its own; give a URL, or set "
                    "them on the engine"
                )
            self._late = _AT_ONCE_SECONDS
            self.engine = engine_or_url
        else:
            raise ConfigurationError(
                "SQLAlchemyStore wants a sqlalchemy.Engine (not an async one) or a URL, not "
                f"{type(engine_or_url).__name__}"
            )
        _check_engine(self.engine)
        self._errors = (exc.SQLAlchemyError, self.engine.dialect.loaded_dbapi.Error)
        self._each, self._several = self.engine, self.engine
        self._begin = _BEGIN.get(self.engine.dialect.name, [])
        if not self._begin:
            self._each = self.engine.execution_options(isolation_level="AUTOCOMMIT")
            self._several = self.engine.execution_options(isolation_level="READ COMMITTED")
        in_forked_child(self._after_fork)

    def __repr__(self) -> str:
        return f"<{self.engine.url.render_as_string(hide_password=True)}>"

    @property
    def dialect(self) -> sa.Dialect:
        return self.engine.dialect

    def run(self, work: Callable[[Job], T]) -> T:
        """Do some work, each statement for itself, and again when nothing can have been done."""
        for tries in range(1, _MOST_TRIES + 1):
            connection, job = None, None
            try:
                connection = self._connect(self._each)
                job = Job(connection, commit=bool(self._begin) and not commits_each(connection))
                return work(job)
            except self._errors as error:
                written = job is not None and job.has_written
                if not written and self._died_idle(error, job, tries):
                    continue
                if met_another(error) and tries < _MOST_TRIES:
                    continue
                unknown = is_lost(error) and written
                raise meaning(error, self._table, unknown=unknown) from cause(error)
            finally:
                self._let_go(connection)
        raise AssertionError("the last try returns or raises")

    @contextmanager
    def transaction(self) -> Iterator[Held]:
        """Give a transaction in which each statement sees what was committed before it.

        With SQLite it holds the write lock from the beginning. Leaving the block commits; an
        exception rolls back.
        """
        connection = self._open()
        committing = False
        try:
            yield Held(connection, self._table)
            committing = True
            if self._begin:
                # By hand, as it was begun: SQLite's driver may be told to commit nothing.
                connection.exec_driver_sql("COMMIT")
            else:
                connection.commit()
        except BaseException as error:
            if not committing:
                self._roll_back(connection)
            if isinstance(error, self._errors):
                unknown = committing and is_lost(error)
                raise meaning(error, self._table, unknown=unknown) from cause(error)
            raise
        finally:
            self._let_go(connection)

    def in_transaction(self, work: Callable[[Job], T]) -> T:
        """Do some work in one transaction, and again when it met another and was rolled back."""
        for tries_left in reversed(range(_MOST_TRIES)):
            try:
                with self.transaction() as held:
                    return held.run(work)
            except BackendError as error:
                if not (tries_left and met_another(error.__cause__)):
                    raise
        raise AssertionError("the last try returns or raises")

    @contextmanager
    def patient(self) -> Iterator[Database]:
        """Give a database for work on the schema, with a minute for each statement."""
        if not self._is_own:
            yield self
            return
        url = self.engine.url.render_as_string(hide_password=False)
        database = Database(
            url, table=self._table, check=self._check, pool_size=1, statement_timeout=60.0
        )
        try:
            yield database
        finally:
            database.close()

    def shared(self, table: str) -> Database:
        """Return this database for another table, which does not close it."""
        shared = copy.copy(self)
        shared._table, shared._is_own = table, False
        return shared

    def close(self) -> None:
        if self._is_own:
            self._closed = True
            self.engine.dispose()

    def _connect(self, engine: sa.Engine) -> sa.Connection:
        if self._closed:
            raise BackendError("the store is closed")
        if any(pool is self.engine.pool for pool in self._inherited):
            raise ConfigurationError(
                "this engine was used before a fork, and its connections belong to the parent "
                "process: call engine.dispose(close=False) in the child (gunicorn's post_fork, "
                "uWSGI's postfork), or give the store a URL"
            )
        connection = engine.connect()
        if not self._checked:
            try:
                self._check(connection)
            except BaseException:
                connection.close()
                raise
            self._checked = True
        return connection

    def _open(self) -> sa.Connection:
        """Return a connection on which a transaction has begun."""
        for tries in range(1, _MOST_TRIES + 1):
            connection, job, begun = None, None, False
            try:
                connection = self._connect(self._several)
                job = Job(connection)
                if self.engine.dialect.name == "sqlite":
                    _end_what_reads(connection)
                for text in self._begin:
                    job.run(text)
                if not self._begin:
                    job.read(sa.select(sa.literal(1)))
                begun = True
                return connection
            except self._errors as error:
                if not self._died_idle(error, job, tries):
                    raise meaning(error, self._table) from cause(error)
            finally:
                if not begun:
                    self._let_go(connection)
        raise AssertionError("the last try returns or raises")

    def _died_idle(self, error: Exception, job: Job | None, tries: int) -> bool:
        """Tell whether a connection was dead before it was used: the next one is a fresh one."""
        late = job is not None and time.monotonic() - job.began >= self._late
        return tries == 1 and job is not None and is_lost(error) and not late

    def _roll_back(self, connection: sa.Connection) -> None:
        try:
            if self._begin:
                # SQLAlchemy may take the driver's autocommit for no transaction.
                connection.exec_driver_sql("ROLLBACK")
            else:
                connection.rollback()
        except self._errors:
            with suppress(*self._errors):
                connection.invalidate()

    def _let_go(self, connection: sa.Connection | None) -> None:
        if connection is not None:
            # What was to be done is done, or has failed: a connection that breaks now is dropped.
            with suppress(*self._errors):
                connection.close()

    def _after_fork(self) -> None:
        pool = self.engine.pool
        # Counted without the pool's lock, which a thread of the parent may have held.
        is_new = isinstance(pool, QueuePool) and pool.size() and not pool.size() + pool.overflow()
        if is_new or isinstance(pool, NullPool):
            return  # it has no connection that could be shared
        # Kept, for collecting it here would end the parent's connections.
        self._inherited.append(pool)
        if self._is_own:
            self.engine.dispose(close=False)


class Held:
    """A connection inside a transaction that somebody else ends."""

    def __init__(self, connection: sa.Connection, table: str) -> None:
        self._connection = connection
        self._table = table

    def run(self, work: Callable[[Job], T]) -> T:
        """Do some work, once: whether any of it stays is not decided yet."""
        try:
            return work(Job(self._connection))
        except exc.SQLAlchemyError as error:
            raise meaning(error, self._table) from cause(error)

    def in_transaction(self, work: Callable[[Job], T]) -> T:
        return self.run(work)

    @contextmanager
    def transaction(self) -> Iterator[Held]:
        yield self

    def patient(self) -> AbstractContextManager[Held]:
        raise ConfigurationError("the schema is not for using(): it has transactions of its own")

    def close(self) -> None:
        """Do nothing: the block ends the transaction."""


class Lent(Held):
    """A connection of the caller's, in whose transaction the store's statements run."""

    def __init__(self, connection: Any, table: str, dialect: sa.Dialect) -> None:
        if not isinstance(connection, sa.Connection):
            raise ConfigurationError(
                f"using() wants a sqlalchemy.Connection, not {type(connection).__name__}"
            )
        if connection.dialect.name != dialect.name:
            raise ConfigurationError(
                f"the connection for using() is to {connection.dialect.name}, and the store's to "
                f"{dialect.name}"
            )
        super().__init__(connection, table)
        self._ended = False

    def run(self, work: Callable[[Job], T]) -> T:
        if self._ended:
            raise BackendError("the block of using() has ended")
        if self._connection.closed:
            raise BackendError("the connection given to using() is closed")
        if commits_each(self._connection):
            raise ConfigurationError(
                "the connection for using() is in autocommit: take one that begins a transaction"
            )
        return super().run(work)

    def close(self) -> None:
        """Use the connection no more, and leave it as it is."""
        self._ended = True


def commits_each(connection: sa.Connection) -> bool:
    """Tell whether the driver commits each statement by itself."""
    if not connection.in_transaction():
        connection.begin()  # as SQLAlchemy does before each first statement
    raw: Any = connection.connection.driver_connection
    try:
        autocommit = connection.dialect.detect_autocommit_setting(raw)
    except NotImplementedError:
        return False
    # With SQLite a listener of the caller's may have begun one by hand.
    return autocommit and not getattr(raw, "in_transaction", False)


def _end_what_reads(connection: sa.Connection) -> None:
    """End the transaction that a listener of the caller's, or the driver, has begun by itself."""
    connection.begin()
    raw = connection.connection.driver_connection
    if getattr(raw, "in_transaction", False):
        connection.exec_driver_sql("ROLLBACK")


def _check_engine(engine: sa.Engine) -> None:
    if not engine.dialect.supports_sane_rowcount:
        raise ConfigurationError(
            f"SQLAlchemy's dialect {engine.dialect.name} does not tell how many rows a statement "
            "found, and the store must know"
        )
    if engine.dialect.is_async:
        raise ConfigurationError(
            f"the driver {engine.dialect.driver} is for asyncio: the store needs another one, "
            "such as pymysql, psycopg or pysqlite"
        )
    if engine.dialect.name == "sqlite":
        database = engine.url.database
        if not database or database == ":memory:" or "mode=memory" in str(engine.url):
            raise ConfigurationError(
                "the store needs a file of SQLite's; for sessions in memory, use MemoryStore"
            )
