"""The row, and what a backend has to do with it. No I/O here.

A backend knows selectors, hashes, bytes, user keys and times. It never sees a request, a cookie, a
secret or a codec, and it never decides: which of its verbs is called, with which row, is
`pgstore.plan`'s to say.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple, Protocol, Self

from .errors import ConfigurationError
from .ids import handle_of
from .options import Expiry

__all__ = [
    "Backend",
    "Expiry",
    "Loaded",
    "PGSession",
    "Stats",
    "UserStats",
    "check_table",
    "expiry_times",
]

_EPOCH: Final = datetime.fromisoformat("2000-01-01T00:00:00+00:00")


@dataclass(frozen=True, kw_only=True, eq=False)
class PGSession:
    """One session's row.

    The times are aware, in UTC, from the database's clock; before the first insert they are None.
    ``key`` is the public selector, ``data`` is sealed, ``version`` is the writer's random 63-bit
    number. ``min_generation`` is the oldest generation that is still this session:
    `Session.regenerate` raises it, renewal by age does not.
    """

    key: bytes
    name: str
    generation: int
    min_generation: int
    secret_hash: bytes = field(repr=False)
    data: bytes = field(repr=False)
    version: int
    max_age: int
    user_key: str | None = field(default=None, repr=False)
    ip: str | None = field(default=None, repr=False)
    user_agent: str | None = field(default=None, repr=False)
    meta: Mapping[str, str] = field(default_factory=dict, repr=False)
    # Renewal by age: the hash of the secret before, and what it takes to issue the new cookie
    # again.
    previous_hash: bytes | None = field(default=None, repr=False)
    successor: bytes | None = field(default=None, repr=False)
    created_on: datetime | None = None
    modified_on: datetime | None = None
    seen_on: datetime | None = None
    expires_on: datetime | None = None
    gc_after: datetime | None = field(default=None, repr=False)
    authenticated_on: datetime | None = None
    renewed_on: datetime | None = None

    @property
    def handle(self) -> str:
        """The session's public name."""
        return handle_of(self.key)

    def but(self, **changes: Any) -> Self:
        """Return a copy with some columns changed: `dataclasses.replace` at a tenth of the cost."""
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__, **changes)
        return copy

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PGSession):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in _COLUMNS)

    __hash__ = None  # type: ignore[assignment]  # its metadata is a dict

    def __reduce__(self) -> Any:
        # Pickled and copied with every column read.
        return _with_columns, ({name: getattr(self, name) for name in _COLUMNS},)


def _with_columns(columns: dict[str, Any]) -> PGSession:
    return PGSession(**columns)


_COLUMNS: Final = tuple(column.name for column in fields(PGSession))


class Lazy:
    """A column that is decoded when it is first asked for: a request needs half of them.

    It stands in a subclass of `PGSession` whose instances keep what the database returned as
    ``_raw``, a function from the number of a column to its value.
    """

    def __init__(self, number: int, decode: Callable[[Any], Any] | None = None) -> None:
        self._number = number
        self._decode = decode

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, row: Any, owner: type | None = None) -> Any:
        value = row._raw(self._number)
        if self._decode is not None and value is not None:
            value = self._decode(value)
        # From now on the instance's own attribute is found first.
        row.__dict__[self._name] = value
        return value


class Loaded(NamedTuple):
    """A live row, and the time on its database's clock at which it was read."""

    row: PGSession
    now: datetime


class Stats(NamedTuple):
    """How a table is: its live rows, and those that have expired and wait to be swept.

    ``size`` is what it takes on disk with its indexes, in bytes, and in SQLite the whole file; None
    when that cannot be known. ``oldest`` is when the oldest live session began, aware; None without
    one.
    """

    live: int
    expired: int
    size: int | None
    oldest: datetime | None


class UserStats(NamedTuple):
    """A user with live sessions: how many there are, and when one was last seen, aware."""

    user_key: str
    sessions: int
    seen_on: datetime


class Backend(Protocol):
    """Where rows live. `pgstore.testing.BackendContract` holds an implementation to this text.

    **Live.** A row is live while its ``expires_on`` is later than the database's clock. Every verb
    but `sweep` treats a row that is not live as absent, swept or not.

    **Time.** The backend stamps rows with its database's clock and works out expiries from an
    `Expiry`; the rows that it is given carry no times, or stale ones. Times are exact to the
    microsecond.

    **Atomic.** Each verb is one atomic step, seen by others wholly or not at all, and durable as
    the database promises when it returns.

    **Errors.** None, False and 0 mean that the row was not there, or not as asked. Failing storage
    raises `BackendError`, with ``outcome_unknown=True`` when the write may have happened. It is
    raised within the backend's own time limit.

    Thread-safe; usable in a forked child.
    """

    @property
    def table(self) -> str:
        """The table's name without its schema. Data is sealed for it."""

    def load(self, key: bytes) -> Loaded | None:
        """Return the live row, in one round trip."""

    def insert(self, row: PGSession, expiry: Expiry) -> PGSession | None:
        """Add a row and return it as stored.

        ``created_on``, ``modified_on`` and ``seen_on`` are now, and so is ``authenticated_on`` when
        the row has a ``user_key``. None when the key is taken, by a live row or not: nothing is
        replaced.
        """

    def update(
        self,
        row: PGSession,
        version: int,
        expiry: Expiry | None,
        *,
        login: bool = False,
        renew: bool = False,
        data_only: bool = False,
    ) -> PGSession | None:
        """Store all of ``row`` but its times over the live row with its key and ``version``.

        ``modified_on`` becomes now. With an ``expiry``, ``seen_on`` becomes now too and the expiry
        moves; without one they stay. ``login`` makes ``authenticated_on`` now, ``renew`` makes
        ``renewed_on`` now; ``created_on`` stays. Returns the row as stored, or None when no live
        row has that key and version.

        ``data_only`` promises that nothing but ``data`` and ``version`` differs from that version,
        and no more is asked for: a backend may write just these.
        """

    def touch(self, row: PGSession, expiry: Expiry) -> PGSession | None:
        """Move ``seen_on`` to now, and the expiry; nothing else changes.

        Only if the live row still has ``row``'s ``generation`` and ``seen_on``. Returns the given
        row with its new times, or None.
        """

    def delete(
        self,
        key: bytes,
        *,
        version: int | None = None,
        generation: int | None = None,
        user_key: str | None = None,
    ) -> PGSession | None:
        """Delete the live row and return it, its ``data`` empty, or None.

        Only if it has ``version`` and ``user_key``, when these are given, and if its
        ``min_generation`` is not above ``generation``, when that is.
        """

    def rewrite(self, row: PGSession, version: int) -> bool:
        """Replace ``data`` and ``version`` of the live row that has ``version``.

        For maintenance: nobody visited, and every time stays as it is. Tells whether it did.
        """

    def scan(self, after: bytes | None, limit: int) -> list[PGSession]:
        """Return up to ``limit`` live rows by their keys, from the first key above ``after``."""

    def of_user(self, user_key: str) -> list[PGSession]:
        """Return the user's live rows without their ``data``, the newest login first.

        Users are compared byte by byte.
        """

    def users(self, after: str | None, limit: int) -> list[UserStats]:
        """Return up to ``limit`` users who have live rows, from the first one above ``after``.

        They are in the order of their keys' bytes in UTF-8.
        """

    def delete_of_user(
        self, user_key: str, *, keep: bytes | None = None, newest: int = 0
    ) -> list[PGSession]:
        """Delete the user's live rows and return them without their ``data``.

        Not the one with the key ``keep``, nor the ``newest`` first ones of `of_user`, of which
        ``keep`` counts as the first, however old its login. Calls with ``newest`` for one user act
        one after the other: each sees what was committed, and deleted by the others, before.
        """

    def locked(self, key: bytes) -> AbstractContextManager[Backend]:
        """Give a backend that works in a short transaction which holds the row's lock.

        Other writers of that row wait, so that what is loaded is what will be replaced. Leaving the
        block commits; an exception rolls back. An absent row is no error: nothing is locked then.
        """

    def using(self, connection: Any) -> Backend:
        """Return a backend that works on the caller's connection, in the caller's transaction.

        ``connection`` is one of the database's own driver. Its transaction is neither committed nor
        rolled back, and begun only where the driver itself would begin it before a statement. No
        statement is tried again. `locked` holds the row until the caller's transaction ends. A
        connection is closed only when a statement on it broke off, whose answer nobody may read.

        Raises `ConfigurationError` for what is no such connection, and, from the verbs, for one on
        which each statement would be committed by itself. When the returned backend is closed, the
        connection stays open, and the verbs raise `BackendError`. Not for several threads.
        """

    def sweep(self, limit: int, horizon: float) -> list[PGSession]:
        """Delete up to ``limit`` rows that are not live, passing over locked rows.

        In one transaction. Only rows whose ``gc_after`` is at most ``horizon`` seconds away need be
        found. Returns what was deleted, without ``data``; nothing is, when another process is
        sweeping this table now, or the lock cannot be had soon.
        """

    def stats(self) -> Stats:
        """Count the rows, which reads all of the table: for people who look, not for requests."""

    def apply_schema(self) -> None:
        """Create or migrate the table; safe for many processes at once. Raises `SchemaError`."""

    def check_schema(self) -> None:
        """Raise `SchemaError` unless the table is there, new enough and not too new."""

    def close(self) -> None:
        """Free what this backend opened. What it was handed stays open. May be called again."""


def check_table(name: str, *, what: str = "table", longest: int = 48) -> str:
    """Return a name for a table or a schema that every database takes.

    Raises `ConfigurationError` otherwise. The length leaves room for the names of its indexes.
    """
    fits = isinstance(name, str) and name.isascii() and name.isidentifier() and len(name) <= longest
    if not fits:
        raise ConfigurationError(
            f"{name!r} cannot be the {what}: use ASCII letters, digits and underscores, not "
            f"starting with a digit, at most {longest}"
            + (" (the schema goes into db_schema)" if what == "table" else "")
        )
    return name


def meta_of(text: bytes | str) -> dict[str, str]:
    """Read metadata as a backend keeps it, in JSON. What is no object of texts counts as none.

    It is not sealed, so somebody may have changed it by hand; that must not lock a session out.
    """
    try:
        meta = json.loads(text)
    except ValueError:
        return {}
    texts = isinstance(meta, dict) and all(isinstance(value, str) for value in meta.values())
    return meta if texts else {}


def expiry_times(now: datetime, start: datetime, expiry: Expiry) -> tuple[datetime, datetime]:
    """Return ``expires_on`` and ``gc_after``, for backends that reckon in Python."""
    end = now + timedelta(seconds=expiry.idle)
    if expiry.lifetime is not None:
        end = min(end, start + timedelta(seconds=expiry.lifetime))
    bucket = timedelta(seconds=expiry.bucket)
    return end, _EPOCH + ((end - _EPOCH) // bucket + 1) * bucket
