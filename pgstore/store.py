"""Stores: they run what `pgstore.plan` decides, and put the cookie on the response."""

from __future__ import annotations

import copy
import logging
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from threading import Event
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Literal, Self

from . import plan
from .agents import check_parser
from .cleanup import Cleaner, SweepResult
from .codecs import (
    Codec,
    Sealer,
    check_max_length,
    codecs_from_pairs,
    encode_multi,
    sealers_from_pairs,
)
from .cookies import Headers, HttpsCheck, clear_cookie, set_cookie, vary_on_cookie
from .devices import StoredSession, UserSession
from .errors import (
    BackendError,
    ConfigurationError,
    NotOwner,
    PGStoreError,
    RowError,
    SessionGone,
    SessionNotFound,
)
from .hooks import DeletionCallback, HeldHooks, Hooks, Unsubscribe
from .ids import SessionId, key_of
from .merge import MergeFunction
from .options import Lifetimes, Options, check_cookie_name, seconds
from .rows import Backend, PGSession, Stats, UserStats
from .saving import Saving
from .serializers import TypedSerializer
from .session import Registry, Session, Snapshot, check_user_key, environ_of

if TYPE_CHECKING:
    import psycopg
    import psycopg_pool
    import sqlalchemy

__all__ = ["MemoryStore", "PGStore", "SQLAlchemyStore", "SQLiteStore", "Store"]

_log = logging.getLogger("pgstore")

SchemaMode = Literal["apply", "check", "off"]


class Store:
    """Sessions in any `Backend`. `PGStore`, `SQLiteStore` and `MemoryStore` make one with theirs.

    ``keys`` are ``hash_key, block_key, old_hash_key, old_block_key, …`` as in `codecs_from_pairs`:
    the first pair writes, every pair reads; a session that was read with another pair is written
    with the first at its next save.

    - ``options``: the cookie's attributes, and ``max_age``.
    - ``max_length``: the most bytes that a session's serialized data may take; 0 for no limit.
    - ``idle_timeout``, ``lifetime``, ``touch_interval``, ``rotate_every``, ``rotation_grace``: see
      `Lifetimes`; seconds or `timedelta`.
    - ``merge``: `MergeFunction` by key, for keys that two requests may change at once; see
      `pgstore.merge`.
    - ``serializer``: a `TypedSerializer` with types of yours registered.
    - ``codecs``, ``sealers``: your own, in place of those made from ``keys``. A codec is given the
      id as bytes.
    - ``schema``: ``"apply"`` creates or migrates the table, ``"check"`` raises unless it fits,
      ``"off"`` does not look.
    - ``save_deadline``: seconds for which a save tries again while other writers are faster.
    - ``max_sessions_per_user``: how many sessions a user may have; a login ends the oldest beyond
      them. None for any number.
    - ``bind``: ``("ip",)``, ``("agent",)`` or both: a session is for the address, or the browser
      and system, that made it or last logged in. Another one's request gets a new session, whose
      ``error`` says so, and the stored one is left alone. What is missing, stored or sent, does not
      match. Mind that the address of a mobile device changes, and that behind a proxy it is the
      proxy's without werkzeug's ``ProxyFix``. "agent" needs the extra ``pgstore[agents]``.

    The store owns ``backend`` and closes it. Thread-safe once it is set up, and usable in forked
    children.
    """

    def __init__(
        self,
        backend: Backend,
        *keys: bytes | None,
        options: Options | None = None,
        max_length: int = 4096,
        idle_timeout: float | timedelta | None = None,
        lifetime: float | timedelta | None = None,
        touch_interval: float | timedelta | None = None,
        rotate_every: float | timedelta | None = None,
        rotation_grace: float | timedelta = 30.0,
        merge: Mapping[Any, MergeFunction] | None = None,
        serializer: TypedSerializer | None = None,
        codecs: Sequence[Codec] | None = None,
        sealers: Sequence[Sealer] | None = None,
        schema: SchemaMode = "apply",
        save_deadline: float | timedelta = 10.0,
        max_sessions_per_user: int | None = None,
        bind: Collection[plan.Bond] = (),
    ) -> None:
        options = options if options is not None else Options()
        for key, function in (merge or {}).items():
            if not callable(function):
                raise ConfigurationError(
                    f"merge[{key!r}] must be a function of (base, theirs, ours)"
                )
        if schema not in ("apply", "check", "off"):
            raise ConfigurationError(f"schema must be 'apply', 'check' or 'off', not {schema!r}")
        lifetimes = Lifetimes(
            idle_timeout=idle_timeout,  # type: ignore[arg-type]  # Lifetimes turns timedeltas into seconds
            lifetime=lifetime,  # type: ignore[arg-type]
            touch_interval=touch_interval,  # type: ignore[arg-type]
            rotate_every=rotate_every,  # type: ignore[arg-type]
            rotation_grace=rotation_grace,  # type: ignore[arg-type]
        )
        lifetimes.check(options.max_age)
        if codecs is None:
            codecs = codecs_from_pairs(*keys, max_age=0, serializer=_Raw())
        self._rules = plan.Rules(
            table=backend.table,
            codecs=tuple(codecs),
            sealers=tuple(sealers_from_pairs(*keys) if sealers is None else sealers),
            serializer=serializer if serializer is not None else TypedSerializer(),
            options=options,
            lifetimes=lifetimes,
            max_length=check_max_length(max_length),
            merge=dict(merge or {}),
            bind=_check_bind(bind),
        )
        if not (self._rules.codecs and self._rules.sealers):
            raise ConfigurationError("at least one codec and one sealer are needed")
        self._backend = backend
        self._save_deadline = seconds(save_deadline, "save_deadline")
        if not 0 <= self._save_deadline <= 3600:
            raise ConfigurationError(f"save_deadline must be 0 to 3600 seconds: {save_deadline}")
        most = max_sessions_per_user
        if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
            raise ConfigurationError(
                f"max_sessions_per_user must be 1 or more sessions, or None, not {most!r}"
            )
        self._max_sessions = most
        # The store whose `using` made this one, and the sessions that this one gave out.
        self._outer: Self | None = None
        self._given: list[Session] = []
        self._names: set[str] = set()
        self._is_https = HttpsCheck()
        self._hooks = Hooks()
        self._cleaner = Cleaner(backend, self._sweep_horizon, self._hooks)
        try:
            if schema == "apply":
                backend.apply_schema()
            elif schema == "check":
                backend.check_schema()
        except BaseException:
            backend.close()
            raise

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._backend!r}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # -- settings

    @property
    def backend(self) -> Backend:
        """Where the rows live."""
        return self._backend

    @property
    def codecs(self) -> Sequence[Codec]:
        """The codecs of the cookies, the newest first."""
        return self._rules.codecs

    @property
    def options(self) -> Options:
        """The cookie attributes that new sessions get."""
        return self._rules.options

    @property
    def serializer(self) -> TypedSerializer:
        """What turns values into bytes; register types on it before the first request."""
        return self._rules.serializer

    def max_age(self, seconds: int | timedelta) -> None:
        """Set ``max_age`` for new sessions, in seconds (gorilla's ``MaxAge``).

        Existing sessions keep theirs. Raises `ConfigurationError` when it does not fit the other
        lifetimes.
        """
        options = replace(self._rules.options, max_age=seconds)  # type: ignore[arg-type]
        self._rules.lifetimes.check(options.max_age)
        self._rules = replace(self._rules, options=options)
        self._names.clear()

    def max_length(self, n: int) -> None:
        """Set the most bytes that serialized data may take; 0 for no limit (``MaxLength``)."""
        self._rules = replace(self._rules, max_length=check_max_length(n))

    # -- a request

    def get(self, request: Any, name: str) -> Session:
        """Return this request's session called ``name``, loading it the first time.

        ``request`` is a werkzeug Request or a WSGI environ. Raises `ConfigurationError` for a name
        that cannot name a cookie, or that another store uses in this request, and `BackendError`
        when the storage fails.
        """
        return self._give(Registry.of(request).get(self, name))

    def new(self, request: Any, name: str) -> Session:
        """Load the session that the request's cookie ``name`` leads to, or make a new one.

        A missing, bad, unknown or expired cookie is no error: the session is new, with a new id,
        and ``session.error`` says why (None without a cookie). Raises as `get` does. One round trip
        at the most.
        """
        if name not in self._names:
            check_cookie_name(name, self._rules.options)
            self._names.add(name)
        environ = environ_of(request)
        found = plan.find(self._rules, environ, name)
        error: PGStoreError | None = found.error
        if found.id is not None:
            loaded = self._backend.load(found.id.selector)
            try:
                return self._give(plan.resume(self._rules, self, name, found, loaded, environ))
            except SessionNotFound as missing:
                error = missing
                if missing.reason == "replayed":
                    self._end_replayed(found.id)
            except RowError as refused:
                _log.warning("session %s was refused: %s", found.id.handle, refused)
                error = refused
        return self._give(Session(self, name, SessionId.new(time.time()), error=error))

    def save(self, request: Any, response: Any, session: Session) -> None:
        """Store what this request changed, and put the cookie on the response if need be.

        ``response`` is a werkzeug Response or Headers. At most one statement in the ordinary case:
        insert, update, touch, delete, or none for a session that was only read lately. Changes of
        other requests are kept, key by key. May be called again in the same request.

        Raises `SessionGone` when the session ended meanwhile (the response may go out as it is),
        and, with nothing written, `SerializationError`, `SessionTooLong`, `ConfigurationError`,
        `UnknownTypeError` or `RowError` for stored data that this process cannot read or merge
        with (`Session.clear` saves over it), and what a merge function raises;
        `ConflictError` when other writers were faster for all of ``save_deadline``; `BackendError`
        when the storage fails, with ``outcome_unknown`` when the write may have been stored.
        """
        if not self.owns(session):
            raise ConfigurationError("the session belongs to another store")
        environ, headers = environ_of(request), _headers_of(response)
        client = plan.client_of(environ)
        options = self._options_of(session)
        if options.max_age < 0:
            session.delete()
            options = self._options_of(session)
        vary_on_cookie(headers)
        if session._ended:
            # For its errors: nothing ends before what comes after it is known to be storable.
            plan.decide(self._rules, session, *client)
            while session._ended:
                self._end(session, session._ended[0])
                del session._ended[0]
        saving = Saving(self._rules, self._backend, session, self._hooks, *client)
        send = saving.run(self._save_deadline)
        base = session._base
        if base is not None and not base.lapsed and (send or base.resend):
            value = encode_multi(session.name, session._id.to_bytes(), self._rules.codecs)
            age = _cookie_age(base) if options.persistent else None
            https = self._is_https(environ, options)
            set_cookie(headers, session.name, value, options, age, https=https)
            plan.sent(session)
        elif session._forget is not None:
            https = self._is_https(environ, session._forget)
            clear_cookie(headers, session.name, session._forget, https=https)
        session._forget = None
        if saving.logged_in and self._max_sessions is not None:
            self._evict_beyond(self._max_sessions, session)

    def owns(self, session: Session) -> bool:
        """Tell whether this store made the session, also inside or outside of its `using`."""
        store = session._store
        return store is self or (isinstance(store, Store) and store._root is self._root)

    # -- users

    def sessions_of(self, user_key: str, *, current: Session | None = None) -> list[UserSession]:
        """Return a user's live sessions, the newest login first, for a device list.

        ``current`` is the session of this request, which is marked as such. User keys are compared
        byte by byte. Raises `ConfigurationError` for what is no user key.
        """
        rows = self._backend.of_user(check_user_key(user_key))
        return [UserSession.of(row, current=_key_of(current)) for row in rows]

    def fetch(
        self,
        handle: str,
        *,
        owner: str | EllipsisType | None = ...,
        current: Session | None = None,
    ) -> UserSession | None:
        """Return the live session with that handle as `sessions_of` lists it, or None.

        ``owner`` is as in `revoke`, and so is what is raised.
        """
        key = _key_for(handle, owner)
        loaded = None if key is None else self._backend.load(key)
        if loaded is None:
            return None
        if owner is not ... and loaded.row.user_key != owner:
            raise NotOwner(handle)
        return UserSession.of(loaded.row, current=_key_of(current))

    def revoke(self, handle: str, *, owner: str | EllipsisType | None = ...) -> bool:
        """End the session with that handle, at once and for good. Tells whether there was one.

        Handles are public. For one that a visitor sends, say ``owner=session.user_key``: raises
        `NotOwner` for somebody else's session, which is left alone, and for any when the owner is
        None, who owns nothing. Without an ``owner`` nothing is checked: for administrators.
        """
        key = _key_for(handle, owner)
        if key is None:
            return False
        row = self._backend.delete(key, user_key=None if owner is ... else owner)
        if row is not None:
            self._hooks.fire([row], "revoked")
        elif owner is not ... and self._backend.load(key) is not None:
            raise NotOwner(handle)
        return row is not None

    def revoke_user(self, user_key: str, *, keep: Session | None = None) -> int:
        """End all of a user's sessions, but ``keep`` ("sign out everywhere else"); return how many.

        One statement: a session whose secret is being renewed meanwhile is not missed.
        """
        rows = self._backend.delete_of_user(check_user_key(user_key), keep=_key_of(keep))
        self._hooks.fire(rows, "revoked")
        return len(rows)

    def users(self, *, after: str | None = None, limit: int = 100) -> list[UserStats]:
        """Return the users who have live sessions, with how many, for an administrator's page.

        Up to ``limit`` of them by their keys' bytes; for the next page, ``after`` is the last one.
        """
        if limit < 1:
            raise ConfigurationError(f"limit must be 1 or more, not {limit}")
        return self._backend.users(None if after is None else check_user_key(after), limit)

    def on_deletion(self, callback: DeletionCallback) -> Unsubscribe:
        """Call ``callback(row, reason)`` for every session that this process ends.

        The reason is ``"deleted"`` (logout, or emptied), ``"revoked"``, ``"expired"`` (swept),
        ``"replayed"`` or ``"evicted"`` (by a newer login, see ``max_sessions_per_user``). Called at
        most once per row, after the commit, in the thread that deleted, with no lock held; the row
        is without its ``data``. One that raises is logged. Returns a function that unsubscribes;
        its ``wait=True`` waits for calls under way (sessionup's ``OnDeletion``).
        """
        return self._hooks.subscribe(callback)

    # -- transactions

    @contextmanager
    def using(self, connection: Any) -> Iterator[Self]:
        """Run statements in a transaction of yours: all of it is committed, or nothing.

            with store.using(connection) as inside, connection.transaction():
                connection.execute("UPDATE accounts SET password = …")
                inside.revoke_user("alice", keep=session)
                inside.save(request, response, session)

        ``connection`` is a `psycopg.Connection` for a `PGStore`, an `sqlite3.Connection` to the
        same file for an `SQLiteStore`, a `sqlalchemy.Connection` (and its ``begin()``) for a
        `SQLAlchemyStore`; anything else raises `ConfigurationError`. ``inside`` is this store on
        that connection: what is called on it is in the transaction (but for the cleanup), and
        nothing else is. Sessions belong to both; the own ``save`` of one goes where
        it was last got from. In autocommit without a transaction the methods of ``inside`` raise
        `ConfigurationError`. The transaction is neither committed nor rolled back here, and the
        connection is closed only when a statement on it broke off.

        End the transaction inside the block, as above: when that is left, the callbacks of
        `on_deletion` are called for the rows that are gone, unless an exception leaves it. After a
        rollback, drop the response, and do not save the session again: both speak of what was not
        stored. The next request finds what is.

        An eviction (``max_sessions_per_user``) that fails is raised by ``inside.save``.
        """
        backend, held = self._backend.using(connection), HeldHooks(self._hooks)
        inside = copy.copy(self)
        inside._backend, inside._hooks = backend, held
        inside._outer, inside._given = self, []
        try:
            yield inside
        finally:
            backend.close()
            for session in inside._given:
                if session._store is inside:
                    self._give(session)
        try:
            kept = held.release(lambda key: self._backend.load(key) is not None)
        except BackendError as error:
            _log.warning("callbacks for what ended in a transaction were not called: %s", error)
            return
        if kept:
            _log.warning(
                "no callbacks were called for %d sessions that ended in a transaction: it was "
                "rolled back, or is still open (end it inside the block of using())",
                kept,
            )

    # -- cleanup

    def delete_expired(self) -> int:
        """Delete the rows that have expired and return how many (gorilla's ``DeleteExpired``).

        Returns 0 at once while another process is doing so. Raises `BackendError`.
        """
        return self._cleaner.sweep()

    def cleanup(self, interval: float | timedelta = 300.0) -> tuple[Event, Event]:
        """Delete expired rows about every ``interval`` seconds, in a daemon thread (``Cleanup``).

        0 means off: no thread. Raises `ConfigurationError` for a negative interval. Returns
        ``(quit, done)`` for `stop_cleanup`. The thread starts anew in a forked child.
        """
        return self._cleaner.start(interval)

    def stop_cleanup(self, quit: Event, done: Event) -> None:
        """Stop a `cleanup` and wait for its end; again, or in a forked child, is no error."""
        self._cleaner.stop(quit, done)

    def run_cleanup(
        self, stop: Event, interval: float | timedelta = 300.0
    ) -> Iterator[SweepResult]:
        """Sweep in the background until ``stop`` is set, yielding a result each (``RunCleanup``).

        Sweeping goes on whether or not anybody takes the results; those nobody takes are dropped,
        oldest first.
        """
        return self._cleaner.run(stop, interval)

    def stats(self) -> Stats:
        """Return how the table is: live and expired rows, size, the oldest session.

        It reads the whole table: for an administrator's page, not for every request.
        """
        return self._backend.stats()

    def close(self) -> None:
        """Stop the cleanups of this store and free what it opened. May be called again.

        Inside `using` it does nothing: the block is the end.
        """
        if self._outer is not None:
            return
        self._cleaner.close()
        self._backend.close()

    # -- maintenance

    def reseal(self, *, check: bool = False, batch: int = 500) -> Mapping[str, int]:
        """Rewrite the rows that were sealed with an old key pair, so that it can be dropped.

        It reads ``batch`` rows at a time. With ``check`` nothing is written. Returns counts:
        ``current`` rows need nothing, ``old`` ones need (or needed) an old pair, ``refused`` ones
        open with no key at all and are left alone. Browsers' cookies are signed anew at each
        session's next save: keep an old pair for ``max_age`` after a rotation.
        """
        counts = {"current": 0, "old": 0, "refused": 0}
        after: bytes | None = None
        while rows := self._backend.scan(after, batch):
            for row in rows:
                counts[self._reseal_row(row, check=check)] += 1
            after = rows[-1].key
        return counts

    def iterate(self, *, batch: int = 500) -> Iterator[StoredSession]:
        """Yield every live session with its values, for maintenance jobs.

        ``batch`` rows are read at a time, in a statement of their own: no transaction stays open
        meanwhile, and no connection is held. Sessions may come, change and go; each is yielded once
        at most, as it was when it was read. One that cannot be read (`RowError`) is logged and
        passed over. Raises `ConfigurationError` for a batch that is no positive number, and
        `BackendError`.
        """
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise ConfigurationError(f"batch must be 1 or more rows, not {batch!r}")
        return self._iterate(batch)

    def _iterate(self, batch: int) -> Iterator[StoredSession]:
        after: bytes | None = None
        while rows := self._backend.scan(after, batch):
            for row in rows:
                try:
                    values = plan.values_of(self._rules, row)
                except RowError as refused:
                    _log.warning("session %s was passed over: %s", row.handle, refused)
                    continue
                yield StoredSession.of(row, name=row.name, values=values)
            after = rows[-1].key

    def _reseal_row(self, row: PGSession, *, check: bool) -> str:
        for _ in range(5):
            try:
                new = plan.reseal(self._rules, row)
            except RowError:
                return "refused"
            if new is None:
                return "current"
            if check or self._backend.rewrite(new, row.version):
                return "old"
            # Saved by a request meanwhile: that has resealed it, or it is gone.
            loaded = self._backend.load(row.key)
            if loaded is None:
                return "current"
            row = loaded.row
        return "old"

    def _give(self, session: Session) -> Session:
        """Return a session that its own `save` saves to this store."""
        session._store = self
        if self._outer is not None:
            self._given.append(session)
        return session

    @property
    def _root(self) -> Self:
        """The store itself, also for the one inside `using`."""
        return self if self._outer is None else self._outer._root

    def _options_of(self, session: Session) -> Options:
        if session._options is None:
            return session._adapted or self._rules.options
        options = session._options.freeze()
        session._options.max_age = options.max_age  # a timedelta has become seconds
        check_cookie_name(session.name, options)
        return options

    def _end(self, session: Session, ended: Snapshot) -> None:
        key, generation = ended.row.key, ended.id.generation
        try:
            deleted = self._backend.delete(key, generation=generation)
        except BackendError as error:
            if not error.outcome_unknown:
                raise
            deleted = self._backend.delete(key, generation=generation)
        if deleted is not None:
            self._hooks.fire([deleted], "deleted")
        elif self._backend.load(key) is not None:
            # A login has taken the session over: it, and the cookie it sent, are not this request's
            # to end.
            session._ended.clear()
            session._forget = None
            raise SessionGone(ended.id.handle)

    def _evict_beyond(self, most: int, session: Session) -> None:
        """End the oldest sessions of a user who has just logged in, beyond so many."""
        user_key = session._user_key
        assert user_key is not None
        try:
            rows = self._backend.delete_of_user(user_key, keep=_key_of(session), newest=most)
        except BackendError as error:
            if self._outer is not None:
                raise  # with the transaction, in which nothing stands by itself
            # The login stands, and its cookie goes out.
            _log.warning(
                "after the login of session %s the user's sessions beyond "
                "max_sessions_per_user=%d were not ended: %s; their next login ends them",
                session.handle,
                most,
                error,
            )
        else:
            self._hooks.fire(rows, "evicted")

    def _end_replayed(self, id: SessionId) -> None:
        """End a session of which somebody has a copy: thief or owner, nobody can tell which."""
        row = self._backend.delete(id.selector, generation=id.generation)
        if row is not None:
            self._hooks.fire([row], "replayed")
            _log.warning(
                "session %s was ended: a cookie from before its secret was renewed came back after "
                "the grace, so there is a copy of it",
                id.handle,
            )

    def _sweep_horizon(self) -> float:
        return self._rules.lifetimes.expiry(self._rules.options.max_age).bucket


class MemoryStore(Store):
    """Sessions in this process's memory, gone with it: for tests.

    ``keys`` and ``settings`` are those of `Store`.
    """

    def __init__(self, *keys: bytes | None, table: str = "http_sessions", **settings: Any) -> None:
        from .backends.memory import MemoryBackend

        super().__init__(MemoryBackend(table), *keys, **settings)


class SQLiteStore(Store):
    """Sessions in an SQLite file, for one machine: many threads and processes may use it at once.

    ``path`` is the file, made when it is missing. ``busy_timeout`` is how long a statement waits
    for another writer, in seconds. ``keys`` and the other settings are those of `Store`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *keys: bytes | None,
        table: str = "http_sessions",
        busy_timeout: float = 5.0,
        **settings: Any,
    ) -> None:
        from .backends.sqlite import SQLiteBackend

        super().__init__(
            SQLiteBackend(path, table=table, busy_timeout=busy_timeout), *keys, **settings
        )


class PGStore(Store):
    """Sessions in PostgreSQL.

    ``dsn`` is a libpq connection string or URL. The store makes its pool of up to ``pool_size``
    connections on first use in a process, so that it may be made before a fork, and owns it.
    ``statement_timeout`` bounds every statement and ``pool_timeout`` every wait for a connection,
    in seconds, on the client's clock. ``pooler="transaction"`` is for PgBouncer in transaction
    mode: nothing that outlives a transaction is used. ``keys`` and the other settings are those of
    `Store`.
    """

    def __init__(
        self,
        dsn: str,
        *keys: bytes | None,
        table: str = "http_sessions",
        db_schema: str | None = None,
        pool_size: int = 10,
        statement_timeout: float = 5.0,
        pool_timeout: float = 5.0,
        pooler: Literal["transaction"] | None = None,
        **settings: Any,
    ) -> None:
        from .backends.postgres import PostgresBackend
        from .backends.postgres_pool import OwnPool

        pool = OwnPool(
            dsn,
            size=pool_size,
            statement_timeout=statement_timeout,
            pool_timeout=pool_timeout,
            pooler=pooler,
        )
        backend = PostgresBackend(pool, table=table, db_schema=db_schema)
        super().__init__(backend, *keys, **settings)

    @classmethod
    def from_pool(
        cls,
        pool: psycopg_pool.ConnectionPool[psycopg.Connection[Any]],
        *keys: bytes | None,
        table: str = "http_sessions",
        db_schema: str | None = None,
        statement_timeout: float = 5.0,
        pool_timeout: float = 5.0,
        pooler: Literal["transaction"] | None = None,
        **settings: Any,
    ) -> Self:
        """Make a store on a pool of yours, which is never closed and on which nothing is changed.

        Open it yourself, before or after. A pool that was used before a fork raises
        `ConfigurationError` in the child.
        """
        from .backends.postgres import PostgresBackend
        from .backends.postgres_pool import BorrowedPool

        borrowed = BorrowedPool(
            pool, statement_timeout=statement_timeout, pool_timeout=pool_timeout, pooler=pooler
        )
        store = cls.__new__(cls)
        backend = PostgresBackend(borrowed, table=table, db_schema=db_schema)
        Store.__init__(store, backend, *keys, **settings)
        return store


class SQLAlchemyStore(Store):
    """Sessions in any database that SQLAlchemy speaks to: MySQL and MariaDB above all.

    ``engine_or_url``: an engine of yours is never disposed of, and nothing is changed on it; one
    with connections in its pool must not cross a fork. With a URL (``mysql+pymysql://…``) the store
    makes an engine of up to ``pool_size`` connections (10) and owns it; ``statement_timeout`` (5.0)
    bounds statements where the driver can, ``pool_timeout`` (5.0) the wait for a connection, both
    in seconds.

    PostgreSQL, MySQL, MariaDB and SQLite are known. For another dialect give ``clock``, an SQL
    expression of the database's time in UTC. ``keys`` and the other settings are those of `Store`.

    Raises `ConfigurationError` without SQLAlchemy or the URL's driver, and for an engine or URL
    that will not do.
    """

    def __init__(
        self,
        engine_or_url: sqlalchemy.Engine | str,
        *keys: bytes | None,
        table: str = "http_sessions",
        db_schema: str | None = None,
        clock: sqlalchemy.ColumnElement[Any] | None = None,
        pool_size: int | None = None,
        statement_timeout: float | None = None,
        pool_timeout: float | None = None,
        **settings: Any,
    ) -> None:
        with needs_sqlalchemy("SQLAlchemyStore"):
            from .backends.sqlalchemy import SQLAlchemyBackend
        backend = SQLAlchemyBackend(
            engine_or_url,
            table=table,
            db_schema=db_schema,
            clock=clock,
            pool_size=pool_size,
            statement_timeout=statement_timeout,
            pool_timeout=pool_timeout,
        )
        super().__init__(backend, *keys, **settings)


@contextmanager
def needs_sqlalchemy(who: str) -> Iterator[None]:
    """Turn SQLAlchemy's absence into an error that names what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "sqlalchemy":
            raise
        raise ConfigurationError(
            f"{who} needs SQLAlchemy: pip install 'pgstore[sqlalchemy]', or 'pgstore[mysql]' with "
            "a driver for MySQL and MariaDB"
        ) from error


class _Raw:
    """Leaves bytes as they are: an id is what the store's cookies carry."""

    def dumps(self, value: bytes, /) -> bytes:
        return value

    def loads(self, data: bytes, /) -> bytes:
        return data


def _check_bind(bind: Collection[plan.Bond]) -> Set[plan.Bond]:
    fits = isinstance(bind, list | tuple | Set) and all(bond in ("ip", "agent") for bond in bind)
    if not fits:
        raise ConfigurationError(f'bind must be ("ip",), ("agent",), both, or (), not {bind!r}')
    if "agent" in bind:
        check_parser()
    return frozenset(bind)


def _key_of(session: Session | None) -> bytes | None:
    return None if session is None else session._id.selector


def _key_for(handle: str, owner: str | EllipsisType | None) -> bytes | None:
    """Return the key behind a handle, None for no handle, on behalf of an owner who may be one."""
    if owner is None:
        raise NotOwner(handle)
    if owner is not ...:
        check_user_key(owner)
    return key_of(handle)


def _headers_of(response: Any) -> Headers:
    headers: Headers = getattr(response, "headers", response)
    try:
        headers.add, headers.getlist, headers.setlist  # noqa: B018
    except AttributeError:
        raise ConfigurationError(
            f"the response must be a werkzeug Response or Headers, not {type(response).__name__}"
        ) from None
    return headers


def _cookie_age(base: Snapshot) -> int | None:
    """Return the cookie's Max-Age in seconds: what its row has left.

    That is ``max_age`` and a touch interval: a visit within the interval sends no cookie, and its
    idle time must not be cut short in the browser, either.
    """
    if base.row.max_age == 0:
        return None
    assert base.row.expires_on is not None
    # Browsers keep no cookie for longer than 400 days (RFC 6265bis section 5.5).
    return min(int((base.row.expires_on - base.now).total_seconds()), 400 * 24 * 3600)
