"""The token level: data under tokens of the caller's, without cookies and sessions.

For people who bring their own session handling, in the manner of scs's ``Store`` (Go).
"""

from __future__ import annotations

import base64
import hashlib
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, runtime_checkable

from .cleanup import Cleaner
from .errors import ConfigurationError
from .hooks import Hooks
from .options import seconds
from .store import SchemaMode, Store, needs_sqlalchemy
from .urls import engine_of, sqlite_path

if TYPE_CHECKING:
    import psycopg
    import psycopg_pool
    import sqlalchemy

__all__ = ["TokenBackend", "TokenStore"]

# 68 years, as the longest lifetime of a session.
_LONGEST: Final = 2**31 - 1
# Before any of ours: what was over long ago is over, in databases that know no such year, too.
_LONG_AGO: Final = datetime(2000, 1, 1, tzinfo=UTC)
_LATEST: Final = datetime.max.replace(tzinfo=UTC)


@runtime_checkable
class TokenBackend(Protocol):
    """Where a `TokenStore` keeps its data. `pgstore.testing.TokenContract` holds one to this text.

    A key is a token's SHA-256. **Live**, **Atomic** and **Errors** are as for
    `pgstore.rows.Backend`: what has expired by the database's clock is absent, swept or not.
    Thread-safe; usable in a forked child.
    """

    @property
    def table(self) -> str:
        """The table's name without its schema."""

    def find(self, key: bytes) -> bytes | None:
        """Return the live data under a key, in one round trip, or None."""

    def commit(self, key: bytes, data: bytes, expiry: timedelta | datetime) -> None:
        """Insert or replace data and expiry, both in one statement.

        A `timedelta` counts from the database's now; a datetime is aware.
        """

    def delete(self, key: bytes) -> None:
        """Delete what is under a key, live or not; nothing is no error."""

    def page(self, after: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        """Return up to ``limit`` live keys with their data, in order, from the first above."""

    def sweep(self, limit: int) -> list[bytes]:
        """Delete up to ``limit`` rows that are not live, passing over locked rows.

        Returns their keys; none are deleted when another process is sweeping this table now, or the
        lock cannot be had soon.
        """

    def apply_schema(self) -> None:
        """Create or migrate the table; safe for many processes at once. Raises `SchemaError`."""

    def check_schema(self) -> None:
        """Raise `SchemaError` unless the table is there, new enough and not too new."""

    def close(self) -> None:
        """Free what this backend opened. What it was handed stays open. May be called again."""


class TokenStore:
    """Opaque bytes under tokens of yours, each until it expires, in a table of their own.

    ``where`` is one of: a URL as `open_store` takes it; a `Store`, whose connections are shared and
    stay its own to close; a ``psycopg_pool.ConnectionPool`` or ``sqlalchemy.Engine`` of yours,
    which is never closed; a `TokenBackend`, which this store closes.

    - ``table``, ``db_schema``: plain identifiers; by default `http_tokens`, in the `Store`'s schema
      or where the search_path leads.
    - ``cleanup_interval``: about how often, in seconds or as a `timedelta`, expired data is deleted
      in a daemon thread, and again in each forked child; 0 for never.
    - ``schema``: ``"apply"``, ``"check"`` or ``"off"``, as for `Store`.
    - ``settings``: those of the store that the URL would make, for its connections:
      ``pool_size``, ``statement_timeout``, ``pool_timeout``, ``pooler``, ``busy_timeout`` or
      ``clock``.

    A token is any text or bytes; text counts as its UTF-8, so that ``"a"`` and ``b"a"`` are the
    same one. Only its SHA-256 is kept: who reads the database holds no token, so long as tokens
    cannot be guessed (`secrets.token_urlsafe`). The data is kept as it is; seal it yourself.

    Unlike a session, a token that was deleted comes back when it is committed again: `commit`
    inserts or replaces, and a slow request may do so after a logout. Where that matters, use
    `Store`.

    Thread-safe. Raises `ConfigurationError` for what does not fit and `BackendError` when the
    storage fails, never None in its place.
    """

    def __init__(
        self,
        where: (
            str
            | Store
            | TokenBackend
            | sqlalchemy.Engine
            | psycopg_pool.ConnectionPool[psycopg.Connection[Any]]
        ),
        *,
        table: str = "http_tokens",
        db_schema: str | None = None,
        cleanup_interval: float | timedelta = 300.0,
        schema: SchemaMode = "apply",
        **settings: Any,
    ) -> None:
        if schema not in ("apply", "check", "off"):
            raise ConfigurationError(f"schema must be 'apply', 'check' or 'off', not {schema!r}")
        self._backend: TokenBackend = _backend(where, table, db_schema, settings)
        self._cleaner = Cleaner(_Sweeps(self._backend), lambda: 0.0, Hooks(), what="tokens")
        try:
            if schema == "apply":
                self._backend.apply_schema()
            elif schema == "check":
                self._backend.check_schema()
            self._events = self._cleaner.start(cleanup_interval)
        except BaseException:
            self._backend.close()
            raise

    def __repr__(self) -> str:
        return f"<TokenStore {self._backend!r}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def backend(self) -> TokenBackend:
        """Where the data lives."""
        return self._backend

    def find(self, token: str | bytes) -> bytes | None:
        """Return the data of a token; None when there is none, or it has expired (``Find``)."""
        return self._backend.find(_key(token))

    def commit(self, token: str | bytes, data: bytes, expiry: float | timedelta | datetime) -> None:
        """Put ``data`` and its expiry under a token, in place of both that were there (``Commit``).

        ``expiry`` is in seconds from now, by the database's clock, or an aware datetime. One that
        is past leaves nothing to find. After a `BackendError` it may be called again: doing it
        twice is doing it once.
        """
        if not isinstance(data, bytes | bytearray | memoryview):
            raise ConfigurationError(f"data must be bytes, not {type(data).__name__}")
        self._backend.commit(_key(token), bytes(data), _expiry(expiry))

    def delete(self, token: str | bytes) -> None:
        """Delete the data of a token; nothing is no error (``Delete``)."""
        self._backend.delete(_key(token))

    def all(self, *, batch: int = 500) -> Iterator[tuple[str, bytes]]:
        """Yield the handle and the data of every token that has not expired (``All``).

        ``batch`` rows are read at a time, each in a statement of its own: memory holds no more, and
        no transaction stays open. The tokens themselves are not known here; `handle` leads from one
        to its handle.
        """
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise ConfigurationError(f"batch must be 1 or more rows, not {batch!r}")
        return self._all(batch)

    @staticmethod
    def handle(token: str | bytes) -> str:
        """Return the token's public name, for logs and lists: its SHA-256 in base64url."""
        return _handle(_key(token))

    def delete_expired(self) -> int:
        """Delete what has expired now and return how many; 0 while another process does so."""
        return self._cleaner.sweep()

    def stop_cleanup(self) -> None:
        """Stop deleting in the background and wait for its end (``StopCleanup``).

        Again, before the first sweep, or with no cleanup at all, is no error.
        """
        self._cleaner.stop(*self._events)

    def close(self) -> None:
        """Stop the cleanup and free what this store opened. May be called again."""
        self._cleaner.close()
        self._backend.close()

    def _all(self, batch: int) -> Iterator[tuple[str, bytes]]:
        after: bytes | None = None
        while page := self._backend.page(after, batch):
            for key, data in page:
                yield _handle(key), data
            after = page[-1][0]


class _Sweeps:
    """What a `Cleaner` sweeps."""

    def __init__(self, backend: TokenBackend) -> None:
        self._backend = backend

    def sweep(self, limit: int, horizon: float) -> list[Any]:
        return self._backend.sweep(limit)


def _backend(where: Any, table: str, db_schema: str | None, settings: dict[str, Any]) -> Any:
    if isinstance(where, str):
        return _backend_of_url(where, table, db_schema, settings)
    if isinstance(where, Store):
        tokens = getattr(where.backend, "tokens", None)
        if tokens is None:
            raise ConfigurationError(
                f"{type(where.backend).__name__} keeps no tokens: give TokenStore a TokenBackend"
            )
        _no_settings(settings, "a store has its own")
        return tokens(table, db_schema)
    # A caller who has one of these has imported its package.
    pools = sys.modules.get("psycopg_pool")
    if pools is not None and isinstance(where, pools.ConnectionPool):
        from .backends.postgres_pool import BorrowedPool
        from .backends.postgres_tokens import PostgresTokens

        limits = {"statement_timeout": 5.0, "pool_timeout": 5.0, **settings}
        return PostgresTokens(BorrowedPool(where, **limits), table=table, db_schema=db_schema)
    alchemy = sys.modules.get("sqlalchemy")
    if alchemy is not None and isinstance(where, alchemy.Engine):
        from .backends.sqlalchemy_tokens import SQLAlchemyTokens

        return SQLAlchemyTokens(where, table=table, db_schema=db_schema, **settings)
    if isinstance(where, TokenBackend):
        _no_settings(settings, "a backend has its own")
        return where
    raise ConfigurationError(
        "TokenStore wants a URL, a Store, a psycopg_pool.ConnectionPool, a sqlalchemy.Engine or a "
        f"TokenBackend, not {type(where).__name__}"
    )


def _backend_of_url(url: str, table: str, db_schema: str | None, settings: dict[str, Any]) -> Any:
    match engine_of(url):
        case "postgres":
            from .backends.postgres_pool import OwnPool
            from .backends.postgres_tokens import PostgresTokens

            size = settings.pop("pool_size", 10)
            limits = {"statement_timeout": 5.0, "pool_timeout": 5.0, **settings}
            return PostgresTokens(
                OwnPool(url, size=size, **limits), table=table, db_schema=db_schema
            )
        case "sqlite":
            from .backends.sqlite_tokens import SQLiteTokens

            if db_schema is not None:
                raise ConfigurationError("db_schema is for PostgreSQL: SQLite has no schemas")
            return SQLiteTokens(sqlite_path(url), table=table, **settings)
    with needs_sqlalchemy("TokenStore"):
        from .backends.sqlalchemy_tokens import SQLAlchemyTokens
    return SQLAlchemyTokens(url, table=table, db_schema=db_schema, **settings)


def _no_settings(settings: dict[str, Any], why: str) -> None:
    if settings:
        raise ConfigurationError(f"{', '.join(settings)}: {why}")


def _key(token: str | bytes) -> bytes:
    if isinstance(token, str):
        with suppress(UnicodeEncodeError):
            return hashlib.sha256(token.encode("utf-8")).digest()
    elif isinstance(token, bytes):
        return hashlib.sha256(token).digest()
    # Not quoted: it may be a real one.
    raise ConfigurationError("a token must be bytes, or text that has a form in UTF-8")


def _handle(key: bytes) -> str:
    return base64.urlsafe_b64encode(key).rstrip(b"=").decode("ascii")


def _expiry(expiry: float | timedelta | datetime) -> timedelta | datetime:
    if isinstance(expiry, datetime):
        if expiry.utcoffset() is None:
            raise ConfigurationError(
                "an expiry's datetime must be aware, such as datetime.now(UTC)"
            )
        try:
            return max(expiry.astimezone(UTC), _LONG_AGO)
        except OverflowError:
            return _LATEST if expiry.year > 2000 else _LONG_AGO
    left = seconds(expiry, "expiry")
    if not 0 < left <= _LONGEST:
        raise ConfigurationError(
            f"expiry must be more than 0 and at most {_LONGEST} seconds, or an aware datetime, not "
            f"{left:g}"
        )
    return timedelta(seconds=left)
