"""One root error, in three branches by who can mend it: the caller, the client, the operator.

Messages name handles (public), sizes, types and settings. They never hold a key, a cookie, an id's
secret or a session's values.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

__all__ = [
    "BackendError",
    "ClientError",
    "ConfigurationError",
    "ConflictError",
    "CookieError",
    "CookieExpired",
    "CookieMalformed",
    "CookieNotYetValid",
    "CookieSignatureInvalid",
    "CookieTooLong",
    "NotOwner",
    "PGStoreError",
    "RowError",
    "SaveErrors",
    "SchemaError",
    "SerializationError",
    "SessionGone",
    "SessionNotFound",
    "SessionTooLong",
    "UnknownTypeError",
]


class PGStoreError(Exception):
    """The root of every error that this library raises on purpose."""


# -- the caller's to mend ------------------------------------------------------------------------


class ConfigurationError(PGStoreError):
    """A setting or an argument does not fit; the message says what would."""


class SerializationError(ConfigurationError):
    """A session holds a value that cannot be serialized. Nothing was written.

    ``path`` leads to the value, such as ``values["cart"][3]``; ``type`` is its class.
    """

    def __init__(self, path: str, type_: type, reason: str) -> None:
        super().__init__(f"{path} ({type_.__module__}.{type_.__qualname__}): {reason}")
        self.path = path
        self.type = type_


class SessionTooLong(ConfigurationError):
    """The serialized data is longer than the store's ``max_length``. The stored row is unchanged.

    ``size`` and ``limit`` are in bytes.
    """

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(
            f"the session's data takes {size} bytes serialized, and max_length is {limit}: "
            f"store less, or raise the limit with store.max_length(n), 0 for none"
        )
        self.size = size
        self.limit = limit


# -- the client's to mend ------------------------------------------------------------------------


class ClientError(PGStoreError):
    """The browser sent what cannot be used. On reading it is ``session.error``, never raised."""


class CookieError(ClientError):
    """A cookie's value was refused.

    ``causes`` holds one error per codec when several were tried (`decode_multi`), in their order.
    """

    def __init__(self, message: str, causes: Sequence[CookieError] = ()) -> None:
        super().__init__(message)
        self.causes = tuple(causes)


class CookieTooLong(CookieError):
    """The value is longer than a cookie may be. It was refused before any cryptography."""


class CookieMalformed(CookieError):
    """The value is not in the one form that this library writes."""


class CookieSignatureInvalid(CookieError):
    """The value was not signed for this cookie name with this key."""


class _CookieDateError(CookieError):
    """Carries ``date``, the aware time at which the value was signed."""

    def __init__(self, message: str, date: datetime) -> None:
        super().__init__(message)
        self.date = date


class CookieExpired(_CookieDateError):
    """The value is older than ``max_age``."""


class CookieNotYetValid(_CookieDateError):
    """The value is younger than ``min_age``, or signed in the future beyond the allowed skew."""


class SessionNotFound(ClientError):
    """A well-signed cookie leads to no live session; the reader gets a new one.

    ``reason`` is ``"unknown"`` (no live row: expired, deleted, revoked, or never ours),
    ``"binding"`` (a row, but for another address or browser: see the store's ``bind``),
    ``"secret"`` (a row, but another secret), ``"generation"`` (from before a login or
    `Session.regenerate`) or ``"replayed"`` (renewed by age since, and past the grace: somebody has
    a copy of the cookie, and the session was ended).
    """

    def __init__(self, handle: str, reason: str) -> None:
        super().__init__(f"no live session for handle {handle} ({reason})")
        self.handle = handle
        self.reason = reason


class NotOwner(ClientError):
    """The session is somebody else's; it was left alone."""

    def __init__(self, handle: str) -> None:
        super().__init__(f"session {handle} is not the given owner's")
        self.handle = handle


class SessionGone(ClientError):
    """The session ended while this request worked on it; nothing was written or brought back.

    Let the response go out. No cookie was set, so a login elsewhere stays as it is.
    """

    def __init__(self, handle: str) -> None:
        super().__init__(f"session {handle} ended during the request; nothing was saved")
        self.handle = handle


# -- the operator's to mend ----------------------------------------------------------------------


class BackendError(PGStoreError):
    """The storage failed. It says nothing of whether the session exists.

    ``outcome_unknown`` is true when a write was sent and its answer was lost.
    """

    def __init__(self, message: str, *, outcome_unknown: bool = False) -> None:
        super().__init__(message)
        self.outcome_unknown = outcome_unknown


class ConflictError(BackendError):
    """Other writers were faster until the deadline passed. Nothing was written."""


class SchemaError(BackendError):
    """The table is missing, or this code is older than the table still allows."""


class RowError(BackendError):
    """A stored row was refused: changed by hand, moved, given away, or sealed with a dropped key.

    On reading it is ``session.error``; the row is left alone.
    """


class UnknownTypeError(RowError):
    """A row holds a value of a registered type that this process has not registered.

    The row is kept: saving over it needs an explicit ``session.clear()``. ``tag`` names the type.
    """

    def __init__(self, tag: str) -> None:
        super().__init__(f"the stored session holds a value of type {tag!r}, not registered here")
        self.tag = tag


class SaveErrors(PGStoreError, ExceptionGroup[Exception]):
    """Several sessions of one request could not be saved; one error each, none skipped."""
