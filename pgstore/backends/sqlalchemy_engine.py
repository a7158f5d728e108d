"""Running statements on a SQLAlchemy engine, ours or the caller's, and what its errors mean."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.pool import NullPool, Pool, QueuePool

from ..errors import BackendError, ConfigurationError, SchemaError
from ..forks import in_forked_child

__all__ = ["Busy", "Database", "Held", "Job", "Lent", "code_of", "dialect_of"]

T = TypeVar("T")

# A statement that was refused because it met another, and did nothing, is run again.
_MOST_TRIES: Final = 10
_MET_ANOTHER: Final = {"40001", "40P01", "1020", "1213"}
_MISSING: Final = {"42P01", "3F000", "42703", "1146", "1049", "1054"}
# Of an engine of the caller's no time limit is known. A connection that died while it was idle
# shows at once; a statement that failed later than this is not run again.
_AT_ONCE_SECONDS: Final = 1.0

_BUSY: Final = {"SQLITE_BUSY", "SQLITE_LOCKED", "55P03", "1205"}

_EXTRAS: Final = {"pymysql": "mysql", "psycopg": "binary"}


class Busy(BackendError):
    """Another connection held a lock for too long. Nothing was done."""


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
    ) -> Sequence[sa.Row[Any]]:
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
            self.engine = _make_engine(
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
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        # With SQLite, setting an isolation level for a moment would not leave the caller's
        # connections as they were, and transactions cost next to nothing.
        self._each, self._several = self.engine, self.engine
        if not self.is_sqlite:
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
        for tries_left in reversed(range(_MOST_TRIES)):
            connection, job = None, None
            try:
                connection = self._connect(self._each)
                job = Job(connection, commit=self.is_sqlite)
                return work(job)
            except exc.SQLAlchemyError as error:
                lost = job is not None and is_lost(error)
                written = job is not None and job.has_written
                harmless = job is not None and lost and not written and not self._is_late(job)
                if (harmless and tries_left == _MOST_TRIES - 1) or (
                    tries_left and code_of(error) in _MET_ANOTHER
                ):
                    continue
                raise meaning(error, self._table, unknown=lost and written) from _cause(error)
            finally:
                _let_go(connection)
        raise AssertionError("the last try returns or raises")

    @contextmanager
    def transaction(self) -> Iterator[Held]:
        """Give a transaction in which each statement sees what was committed before it.

        With SQLite it holds the write lock from the beginning. Leaving the block commits; an
        exception rolls back.
        """
        connection, committing = None, False
        try:
            connection = self._connect(self._several)
            if self.is_sqlite:
                _begin_immediate(connection)
            yield Held(connection, self._table)
            committing = True
            connection.commit()
        except exc.SQLAlchemyError as error:
            unknown = committing and is_lost(error)
            raise meaning(error, self._table, unknown=unknown) from _cause(error)
        finally:
            # What was not committed is rolled back.
            _let_go(connection)

    def in_transaction(self, work: Callable[[Job], T]) -> T:
        """Do some work in one transaction, and again when it met another and was rolled back."""
        for tries_left in reversed(range(_MOST_TRIES)):
            try:
                with self.transaction() as held:
                    return held.run(work)
            except BackendError as error:
                if not tries_left or code_of(error.__cause__) not in _MET_ANOTHER:
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

    def _is_late(self, job: Job) -> bool:
        return time.monotonic() - job.began >= self._late

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
            raise meaning(error, self._table) from _cause(error)

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
        if _commits_each(self._connection):
            raise ConfigurationError(
                "the connection for using() is in autocommit: take one that begins a transaction"
            )
        return super().run(work)

    def close(self) -> None:
        """Use the connection no more, and leave it as it is."""
        self._ended = True


def _commits_each(connection: sa.Connection) -> bool:
    if not connection.in_transaction():
        connection.begin()  # as SQLAlchemy does before each first statement
    raw: Any = connection.connection.driver_connection
    try:
        autocommit = connection.dialect.detect_autocommit_setting(raw)
    except NotImplementedError:
        return False
    # With SQLite a listener of the caller's may have begun one by hand.
    return autocommit and not getattr(raw, "in_transaction", False)


def _begin_immediate(connection: sa.Connection) -> None:
    """Begin a transaction of SQLite's that holds the write lock."""
    connection.begin()
    raw = connection.connection.driver_connection
    # A listener of the caller's, or the driver, may have begun one that only reads so far.
    if getattr(raw, "in_transaction", False):
        connection.exec_driver_sql("ROLLBACK")
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def is_lost(error: exc.SQLAlchemyError) -> bool:
    """Tell whether the connection is gone, and with it the answer."""
    return isinstance(error, exc.DBAPIError) and error.connection_invalidated


def code_of(error: BaseException | None) -> str:
    """Return the database's own code for an error: SQLSTATE, MySQL's number, SQLite's name."""
    orig = error.orig if isinstance(error, exc.StatementError) else error
    first = orig.args[0] if orig is not None and orig.args else None
    if isinstance(first, int):  # MySQL's, which says more than its SQLSTATE
        return str(first)
    for name in ("sqlstate", "pgcode", "sqlite_errorname"):
        if isinstance(code := getattr(orig, name, None), str):
            return code
    return ""


def meaning(error: exc.SQLAlchemyError, table: str, *, unknown: bool = False) -> BackendError:
    """Return what an error means here, without the statement's values."""
    code, text = code_of(error), _text(error)
    if code in _MISSING or text.startswith(("no such table", "no such column")):
        return SchemaError(
            f"there is no table {table} that this code can use ({text}): run 'pgstore schema apply'"
        )
    if code in _BUSY:
        return Busy(f"another connection held a lock for too long: {text}")
    if isinstance(error, exc.TimeoutError):
        return BackendError("no connection of the engine's became free in time")
    return BackendError(f"the database failed: {text}", outcome_unknown=unknown)


def _text(error: exc.SQLAlchemyError) -> str:
    # SQLAlchemy's own text quotes the statement's values; so do the details of PostgreSQL's.
    orig = error.orig if isinstance(error, exc.StatementError) else None
    if orig is None:
        return type(error).__name__
    diagnosis = getattr(getattr(orig, "diag", None), "message_primary", None)
    parts = [part for part in orig.args if isinstance(part, str)]
    text = str(diagnosis or (parts[-1] if parts else "")).strip()
    first = text.splitlines()[0] if text else type(orig).__name__
    code = code_of(error)
    return f"{first} [{code}]" if code else first


def _cause(error: exc.SQLAlchemyError) -> BaseException:
    """Return what may be shown in a traceback: SQLAlchemy's error would show the values."""
    orig = error.orig if isinstance(error, exc.StatementError) else None
    return orig if orig is not None else error


def _let_go(connection: sa.Connection | None) -> None:
    if connection is not None:
        # What was to be done is done, or has failed: a connection that breaks now is dropped.
        with suppress(exc.SQLAlchemyError):
            connection.close()


def dialect_of(url: str) -> sa.Dialect:
    """Return the dialect of a URL, whose driver need not be installed."""
    with _url_errors(url):
        return sa.make_url(url).get_dialect()()


def _make_engine(text: str, size: int, seconds: float, wait: float) -> sa.Engine:
    with _url_errors(text):
        url = sa.make_url(text)
        dialect = url.get_dialect()
        settings: dict[str, Any] = {
            "hide_parameters": True,
            "connect_args": _limits(url, dialect, seconds),
        }
        if dialect.name == "sqlite":
            # Opening a file costs little, and no connection can cross a fork.
            settings["poolclass"] = NullPool
        else:
            settings |= {
                "isolation_level": "AUTOCOMMIT",
                "skip_autocommit_rollback": True,
                "pool_size": size,
                "max_overflow": 0,
                "pool_timeout": wait,
            }
        return sa.create_engine(url, **settings)


@contextmanager
def _url_errors(text: str) -> Iterator[None]:
    """Turn what SQLAlchemy says of a URL into what would fit, without quoting the URL."""
    try:
        yield
    except exc.NoSuchModuleError:
        scheme = re.match(r"[\w+.-]+(?=://)", text)
        raise ConfigurationError(
            f"SQLAlchemy knows no dialect for {scheme[0] if scheme else 'this'}://: use "
            "mysql+pymysql://…, mariadb+pymysql://… or postgresql+psycopg://…, or install the "
            "package that brings the dialect"
        ) from None
    except ImportError as error:
        name = str(error.name or "").partition(".")[0]
        hint = f"pip install 'pgstore[{_EXTRAS[name]}]'" if name in _EXTRAS else f"install {name}"
        if name == "MySQLdb":
            hint = "write mysql+pymysql://… and pip install 'pgstore[mysql]'"
        raise ConfigurationError(f"the URL's driver {name} is not installed: {hint}") from error
    except (exc.ArgumentError, ValueError, TypeError):
        raise ConfigurationError(
            "this is no URL of SQLAlchemy's: write dialect+driver://user:password@host/database, "
            "with user and password percent-encoded"
        ) from None


def _limits(url: sa.URL, dialect: type[sa.Dialect], seconds: float) -> dict[str, Any]:
    """Return what bounds connecting and statements with a driver; what the URL says goes first."""
    limits: dict[str, Any] = {}
    if dialect.driver == "pymysql":
        limits = {"connect_timeout": 5, "read_timeout": seconds, "write_timeout": seconds}
    elif dialect.driver in ("psycopg", "psycopg2"):
        # No limit for a server that is slow, but one for a network that is silent.
        limits = {
            "connect_timeout": 5,
            "keepalives_idle": max(1, round(seconds)),
            "keepalives_interval": 1,
            "keepalives_count": 3,
            "tcp_user_timeout": round(seconds * 1000),
        }
    elif dialect.name == "sqlite":
        limits = {"timeout": seconds}
    if dialect.driver == "psycopg":
        # A pooler gives the server's side of a connection to other clients.
        limits["prepare_threshold"] = None
    return {name: value for name, value in limits.items() if name not in url.query}


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
