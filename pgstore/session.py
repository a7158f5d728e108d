"""A session as a handler sees it, and the registry of one request's sessions. No I/O here."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator, Mapping, MutableMapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Protocol

from .errors import ConfigurationError, PGStoreError, RowError, SaveErrors
from .ids import SessionId
from .options import Options, SessionOptions, seconds
from .rows import PGSession

__all__ = ["Contents", "Registry", "Session", "SessionStore", "Snapshot", "environ_of"]

_DEFAULT_FLASH_KEY = "_flash"
_REGISTRY_KEY = "pgstore.registry"

FlashId = tuple[Hashable, bytes]


class Contents(NamedTuple):
    """What a session holds, each entry encoded by itself, so that changes show key by key.

    A flash message has a key of its own, so that adding and consuming in parallel are changes of
    different keys.
    """

    values: Mapping[Hashable, bytes]
    flashes: Mapping[FlashId, bytes]

    def __bool__(self) -> bool:
        return bool(self.values or self.flashes)

    def __repr__(self) -> str:
        return f"<Contents of {len(self.values)} values, {len(self.flashes)} flashes>"


class Snapshot(NamedTuple):
    """A session as its row had it when it was loaded, or last saved.

    ``now`` is the database's time then. ``contents`` is None when the data holds a type that is not
    registered. ``reseal`` says that the row was sealed with an old key pair; ``resend`` that the
    browser's cookie is an old one, by its key pair or its generation. ``lapsed`` means that the row
    has a newer secret than ``id``, which this request cannot know: it can be saved, but no cookie.
    ``decoded`` holds the values that a session was given: the same objects, by their keys.
    """

    row: PGSession
    id: SessionId
    contents: Contents | None
    now: datetime
    reseal: bool = False
    resend: bool = False
    lapsed: bool = False
    decoded: Mapping[Hashable, Any] = {}

    def __repr__(self) -> str:
        return f"<Snapshot of {self.row!r}>"


class SessionStore(Protocol):
    """What a session and a registry need of their store."""

    @property
    def options(self) -> Options: ...

    def new(self, request: Any, name: str) -> Session: ...

    def save(self, request: Any, response: Any, session: Session) -> None: ...

    def owns(self, session: Session) -> bool: ...


class Session:
    """Values that follow one browser from request to request.

    ``values`` is an ordinary dict: put in what the serializer carries, change it in place as you
    like; `save` finds out what changed. ``meta`` holds free string metadata, shown in device lists.
    ``name`` is the cookie's name. ``is_new`` is true until the session has a row. ``error`` says
    why a cookie that came with the request was not used, or is None.

    Belongs to one request and is not for several threads at once. Made by a store.
    """

    # Underscored attributes belong to this package: `pgstore.plan` reads and settles them.

    def __init__(
        self, store: SessionStore, name: str, id: SessionId, *, error: PGStoreError | None = None
    ) -> None:
        self.name = name
        self.error = error
        self.values: dict[Any, Any] = {}
        self.meta: dict[str, str] = {}
        self._store = store
        self._id = id
        self._base: Snapshot | None = None
        self._flashes: dict[FlashId, Any] = {}
        # The list in which each consumed message was given out.
        self._consumed: dict[FlashId, tuple[list[Any], Any]] = {}
        self._options: SessionOptions | None = None
        # An adapter's attributes, in place of the store's and of the row's max_age.
        self._adapted: Options | None = None
        self._user_key: str | None = None
        self._login = False
        self._overwrite = False
        # A write of which no answer came; `pgstore.saving` finds out at the next save.
        self._unanswered: object = None
        self._ended: list[Snapshot] = []
        self._forget: Options | None = None

    def __repr__(self) -> str:
        state = "new" if self.is_new else "live"
        return f"<Session {self.name!r} {self.handle} {state}>"

    # -- values

    def __getitem__(self, key: Hashable) -> Any:
        return self.values[key]

    def __setitem__(self, key: Hashable, value: Any) -> None:
        self.values[key] = value

    def __delitem__(self, key: Hashable) -> None:
        del self.values[key]

    def __contains__(self, key: object) -> bool:
        return key in self.values

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values)

    def __len__(self) -> int:
        return len(self.values)

    def get(self, key: Hashable, default: Any = None) -> Any:
        """Return the value of ``key``, or ``default``."""
        return self.values.get(key, default)

    def pop(self, key: Hashable, *default: Any) -> Any:
        """Remove ``key`` and return its value, or the default; without one, raise KeyError."""
        return self.values.pop(key, *default)

    def clear(self) -> None:
        """Remove all values and flash messages. Who is logged in stays.

        Also allows a session to be saved over whose stored values could not be read.
        """
        self.values.clear()
        self._flashes.clear()
        self._overwrite = self._base is not None and isinstance(self.error, RowError)

    def add_flash(self, value: Any, key: Hashable = _DEFAULT_FLASH_KEY) -> None:
        """Add a message for a later request to show (gorilla's ``AddFlash``)."""
        self._flashes[key, os.urandom(8)] = value

    def flashes(self, key: Hashable = _DEFAULT_FLASH_KEY) -> list[Any]:
        """Return the messages under ``key`` in the order of their adding, and remove them.

        Save the session, or they will be there again. When another request was faster in consuming
        a message, `save` takes it out of the returned list: render the list after the save, and
        each message is shown once.
        """
        shown: list[Any] = []
        for flash in [flash for flash in self._flashes if flash[0] == key]:
            message = self._flashes.pop(flash)
            self._consumed[flash] = (shown, message)
            shown.append(message)
        return shown

    # -- what the row says

    @property
    def id(self) -> str:
        """The session's id as text. It is the bearer's secret: show and log `handle` instead."""
        return self._id.to_text()

    @property
    def handle(self) -> str:
        """The session's public name, for device lists, logs and revocation."""
        return self._id.handle

    @property
    def is_new(self) -> bool:
        """True until the session has a row."""
        return self._base is None

    @property
    def user_key(self) -> str | None:
        """Whom `login` tied this session to, or None."""
        return self._user_key

    @property
    def created_on(self) -> datetime | None:
        """When the row was made, aware, by the database's clock; None for a new session."""
        return self._base.row.created_on if self._base else None

    @property
    def expires_on(self) -> datetime | None:
        """When the row ends unless it is visited, as `created_on`; None for a new session."""
        return self._base.row.expires_on if self._base else None

    @property
    def authenticated_on(self) -> datetime | None:
        """When `login` was saved, aware, by the database's clock; None for an anonymous session."""
        return self._base.row.authenticated_on if self._base else None

    def fresh(self, within: float | timedelta) -> bool:
        """Tell whether the user proved who they are within so many seconds before this request.

        For asking again before what is sensitive (OWASP ASVS 5.0, 7.5). By the database's clock,
        at the time of loading, without a query. A `login` of this request counts, saved or not.
        False for an anonymous session. Raises `ConfigurationError` unless ``within`` is positive.
        """
        limit = seconds(within, "within")
        if not limit > 0:
            raise ConfigurationError(f"within must be more than 0 seconds, not {limit:g}")
        if self._login:
            return True
        if self._base is None or self._base.row.authenticated_on is None:
            return False
        age = self._base.now - self._base.row.authenticated_on
        return age.total_seconds() <= limit

    @property
    def options(self) -> SessionOptions:
        """This session's own cookie attributes, to change before `save`; max_age -1 deletes."""
        if self._options is None:
            self._options = (self._adapted or self._store.options).thaw()
            if self._base is not None and self._adapted is None:
                self._options.max_age = self._base.row.max_age
        return self._options

    # -- its life

    def save(self, request: Any, response: Any) -> None:
        """Save to the store that made this session; see `Store.save`."""
        self._store.save(request, response, self)

    def send_cookie(self) -> None:
        """Send the cookie with the next save though the browser's is good: its `options` changed.

        A new session's cookie is sent anyway.
        """
        if self._base is not None:
            self._base = self._base._replace(resend=True)

    def regenerate(self) -> None:
        """Give the session a new secret; the cookie so far is dead once `save` has returned.

        Call it when what the bearer may do changes (OWASP ASVS 5.0, 7.2.4). `login` does. The row,
        its handle and its values stay. Of two requests that regenerate at once one gets
        `SessionGone`.
        """
        if self._base is not None:
            self._id = self._base.id.renewed(self._base.row.generation)

    def login(self, user_key: str) -> None:
        """Tie the session to a user and give it a new secret.

        At `save`, ``authenticated_on``, IP and user agent are stamped, and the absolute lifetime
        starts anew. The values of an anonymous session stay; those of another user are cleared.
        User keys are compared byte by byte. Raises `ConfigurationError` unless ``user_key`` is a
        text of 1 to 255 bytes in UTF-8 without NUL.
        """
        check_user_key(user_key)
        if self._user_key not in (None, user_key):
            self.clear()
            self.meta.clear()
        self._user_key = user_key
        self._login = True
        self.regenerate()

    def logout(self) -> None:
        """Say the same as `delete`."""
        self.delete()

    def delete(self) -> None:
        """End the session: at `save` its row goes, and the browser is told to forget the cookie.

        Values, flash messages, metadata and user are cleared at once. What is put in afterwards
        makes a new session with a new id. A row that is gone already is no error. Raises
        `ConfigurationError` for options that do not fit.
        """
        options = self.options
        # The attributes of the first call: those that the browser's cookie was set with.
        self._forget = self._forget or replace(options.freeze(), max_age=0)
        options.max_age = (self._adapted or self._store.options).max_age
        if self._base is not None:
            self._ended.append(self._base)
        self.values.clear()
        self.meta.clear()
        self._flashes.clear()
        self._consumed.clear()
        self._base = self._user_key = self._unanswered = None
        self._login = self._overwrite = False
        self._id = self._id.unrelated()


class Registry:
    """The sessions of one request, by cookie name: each is loaded once (gorilla's ``Registry``)."""

    def __init__(self, request: Any) -> None:
        self._environ = environ_of(request)
        # The environ keeps the sessions and not this object, which would keep the environ.
        self._sessions: dict[str, Session] = self._environ.setdefault(_REGISTRY_KEY, {})

    @classmethod
    def of(cls, request: Any) -> Registry:
        """Return the registry of a werkzeug Request or a WSGI environ, kept in the environ."""
        return cls(request)

    def get(self, store: SessionStore, name: str) -> Session:
        """Return this request's session called ``name``, loading it from ``store`` the first time.

        Raises `ConfigurationError` when another store has used the name in this request.
        """
        known = self._sessions.get(name)
        if known is None:
            known = self._sessions[name] = store.new(self._environ, name)
        if not store.owns(known):
            raise ConfigurationError(
                f"two stores use the cookie name {name!r} in one request: give each a name of its "
                "own"
            )
        return known

    def known(self, name: str) -> Session | None:
        """Return this request's session called ``name`` if it was loaded already; load nothing."""
        return self._sessions.get(name)

    def save(self, response: Any) -> None:
        """Save every session of this request (gorilla's ``sessions.Save``).

        One that fails keeps none of the others from being saved. Raises the error when there was
        one, `SaveErrors` with all of them when there were several.
        """
        errors = []
        # A callback or a merge function may get another one meanwhile.
        for session in list(self._sessions.values()):
            try:
                session.save(self._environ, response)
            except Exception as error:  # noqa: BLE001 - raised below
                errors.append(error)
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise SaveErrors("sessions could not be saved", errors)


def environ_of(request: Any) -> MutableMapping[str, Any]:
    """Return the WSGI environ of a werkzeug Request, or of an environ."""
    environ = getattr(request, "environ", request)
    # The first check is several times faster, and answers nearly always (PEP 3333 wants a dict).
    if not isinstance(environ, dict) and not isinstance(environ, MutableMapping):
        raise ConfigurationError(
            "the request must be a werkzeug Request or a WSGI environ, "
            f"not {type(request).__name__}"
        )
    return environ


def check_user_key(user_key: str) -> str:
    """Return a user key that every database can keep. Raises `ConfigurationError` for another."""
    try:
        size = len(user_key.encode("utf-8")) if isinstance(user_key, str) else 0
    except UnicodeEncodeError:
        size = 0
    if not 1 <= size <= 255 or "\0" in user_key:
        raise ConfigurationError("a user key must be a text of 1 to 255 bytes in UTF-8 without NUL")
    return user_key
