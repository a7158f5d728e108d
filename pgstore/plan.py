"""Every decision of a request, as pure functions: cookie → id, row → session, session → write.

Nothing here does I/O, so that a store of another kind (an async one) can share it whole.

    find       the Cookie header        → an id whose signature holds, or the reason why not
    resume     an id and a loaded row   → a session, or the reason why not
    decide     a session                → at most one write
    rebase     a session and a newer row→ the same changes, on top of that row
    settle     what was stored          → the session as its next save finds it
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Hashable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal, TypeAlias, TypeVar

from .agents import Agent
from .codecs import Codec, Sealer, decode_with_index
from .cookies import cookie_values
from .errors import (
    ConfigurationError,
    CookieError,
    PGStoreError,
    RowError,
    SerializationError,
    SessionGone,
    SessionNotFound,
    SessionTooLong,
    UnknownTypeError,
)
from .ids import SessionId
from .merge import MISSING, MergeFunction
from .options import Expiry, Lifetimes, Options
from .rows import Loaded, PGSession
from .serializers import PLAIN, TypedSerializer
from .session import Contents, FlashId, Session, SessionStore, Snapshot

__all__ = [
    "Bond",
    "Delete",
    "Found",
    "Insert",
    "Rules",
    "Touch",
    "Update",
    "Write",
    "client_of",
    "decide",
    "find",
    "is_login",
    "mergeable",
    "rebase",
    "reseal",
    "resume",
    "sends_cookie",
    "sent",
    "settle",
    "take_back",
]

Bond: TypeAlias = Literal["ip", "agent"]

_LONGEST_AGENT = 512
_K = TypeVar("_K", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a store was told about its sessions."""

    table: str
    codecs: Sequence[Codec]
    sealers: Sequence[Sealer]
    serializer: TypedSerializer
    options: Options
    lifetimes: Lifetimes
    max_length: int
    merge: Mapping[Hashable, MergeFunction]
    bind: Set[Bond]


@dataclass(frozen=True, slots=True)
class Found:
    """What a request's cookies said: an id, or why there is none. ``old_key``: re-sign it."""

    id: SessionId | None = None
    old_key: bool = False
    error: CookieError | None = None


@dataclass(frozen=True, slots=True)
class Insert:
    row: PGSession
    expiry: Expiry
    contents: Contents


@dataclass(frozen=True, slots=True)
class Update:
    """Replace version ``version`` by ``row``; without an expiry the visit is not stamped.

    ``id`` is the session's once it is done; ``renew`` says that its secret is a new one, and
    ``data_only`` that nothing but ``data`` and ``version`` differs.
    """

    row: PGSession
    version: int
    expiry: Expiry | None
    contents: Contents
    login: bool
    renew: bool
    data_only: bool
    id: SessionId


@dataclass(frozen=True, slots=True)
class Touch:
    row: PGSession
    expiry: Expiry


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete the row of a session that was emptied, unless somebody else has changed it."""

    row: PGSession


Write = Insert | Update | Touch | Delete


def find(rules: Rules, environ: Mapping[str, Any], name: str) -> Found:
    """Return the id of the first cookie called ``name`` that verifies."""
    error: CookieError | None = None
    for value in cookie_values(environ, name):
        try:
            data, index = decode_with_index(name, value, rules.codecs)
            return Found(SessionId.from_bytes(data), old_key=index > 0)
        except CookieError as refused:
            error = error or refused
    return Found(error=error)


def resume(
    rules: Rules,
    store: SessionStore,
    name: str,
    found: Found,
    loaded: Loaded | None,
    environ: Mapping[str, Any],
) -> Session:
    """Return the session that a verified id leads to, for the client that sent it.

    Raises `SessionNotFound` or `RowError` when there is none: the caller makes a new one.
    """
    id = found.id
    assert id is not None
    if loaded is None or loaded.row.name != name:
        raise SessionNotFound(id.handle, "unknown")
    row = loaded.row
    if row.key != id.selector:
        # Only a connection that answers for another statement could do this. Never hand it out.
        raise RowError("the database answered with another row than the one asked for")
    # First: not even a replayed secret touches a row that is bound to another client.
    if rules.bind and not _is_bound_to(row, environ, rules.bind):
        raise SessionNotFound(id.handle, "binding")
    current = _current_id(rules, id, loaded)
    resend = found.old_key or current is not id
    contents, old_key, error = _open(rules, row)
    session = Session(store, name, current, error=error)
    session._user_key = row.user_key
    session.meta = {**row.meta}
    if contents is not None:
        try:
            loads = rules.serializer.loads_all
            values, flashes = contents
            session.values = dict(zip(values, loads(values.values()), strict=True))
            if flashes:
                session._flashes = dict(zip(flashes, loads(flashes.values()), strict=True))
        except UnknownTypeError as unknown:
            contents = None
            session.values, session._flashes, session.error = {}, {}, unknown
    decoded = session.values.copy()
    session._base = Snapshot(
        row, current, contents, loaded.now, old_key, resend, lapsed=False, decoded=decoded
    )
    return session


def values_of(rules: Rules, row: PGSession) -> dict[Any, Any]:
    """Return the values that a row holds. Raises `RowError` for one that cannot be read."""
    contents, _, error = _open(rules, row)
    if contents is None:
        assert error is not None
        raise error
    loaded = rules.serializer.loads_all(contents.values.values())
    return dict(zip(contents.values, loaded, strict=True))


def client_of(environ: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return a request's address and user agent, as they came.

    The address is the WSGI server's word. What a proxy forwards counts only when the application
    says so, by werkzeug's ``ProxyFix``.
    """
    return environ.get("REMOTE_ADDR"), environ.get("HTTP_USER_AGENT")


def decide(rules: Rules, session: Session, ip: str | None, agent: str | None) -> Write | None:
    """Return the one write that brings the row to what the session holds now, or None.

    Raises, before anything is written, `SerializationError`, `SessionTooLong`, `ConfigurationError`
    for options or metadata that do not fit, and `UnknownTypeError` for a session whose stored
    values could not be read and that was changed without `Session.clear`.
    """
    base = session._base
    options = session._options or session._adapted
    meta = _check_meta(session.meta) if session.meta else {}
    contents = _encode(rules, session)
    empty = not (contents or meta or session._user_key)
    if base is None:
        if empty:
            return None
        max_age = options.max_age if options else rules.options.max_age
        row = PGSession(
            key=session._id.selector,
            name=session.name,
            generation=session._id.generation,
            min_generation=session._id.generation,
            secret_hash=session._id.secret_hash,
            data=b"",
            version=_new_version(),
            max_age=max_age,
            user_key=session._user_key,
            ip=_clean(ip),
            user_agent=_clean(agent),
            meta=meta,
        )
        data = _seal(rules, row, row.user_key, contents, rules.max_length)
        return Insert(row.but(data=data), rules.lifetimes.expiry(max_age), contents)

    row = base.row
    max_age = options.max_age if options else row.max_age
    regenerated = session._id is not base.id
    due = base.now - _known(row.seen_on) >= timedelta(seconds=rules.lifetimes.touch_after(max_age))
    if base.contents is None and not session._overwrite:
        assert session.error is not None
        if contents or regenerated or meta != row.meta:
            raise session.error
        return Touch(row, rules.lifetimes.expiry(max_age)) if due else None
    changed = contents != base.contents or base.reseal
    if empty and (changed or meta != row.meta):
        return Delete(row)
    renew = regenerated or _is_old(rules, base)
    if not (changed or renew or meta != row.meta or max_age != row.max_age):
        return Touch(row, rules.lifetimes.expiry(max_age)) if due else None

    visit = due or renew or max_age != row.max_age
    id = session._id
    new: dict[str, Any] = {"version": _new_version()}
    if meta != row.meta:
        new["meta"] = meta
    if max_age != row.max_age:
        new["max_age"] = max_age
    if row.successor is not None and not _in_grace(rules, row, base.now):
        new["successor"] = None
    if regenerated:
        new |= {"min_generation": id.generation, "previous_hash": None, "successor": None}
    elif renew:
        # Who still carries the secret before can open its successor for a while.
        id = base.id.renewed(row.generation)
        new |= {"previous_hash": row.secret_hash, "successor": base.id.seal_successor(id)}
    if renew:
        new |= {"generation": id.generation, "secret_hash": id.secret_hash}
    if session._login:
        new |= {"user_key": session._user_key, "ip": _clean(ip), "user_agent": _clean(agent)}
    data_only = new.keys() == {"version"} and not visit
    if changed or (new.get("user_key") != row.user_key and session._login):
        grew = contents != base.contents
        user_key = session._user_key if session._login else row.user_key
        max_length = rules.max_length if grew else 0
        new["data"] = _seal(rules, row, user_key, contents, max_length)
    expiry = rules.lifetimes.expiry(max_age) if visit else None
    login = session._login
    return Update(row.but(**new), row.version, expiry, contents, login, renew, data_only, id)


def rebase(rules: Rules, session: Session, loaded: Loaded | None) -> None:
    """Put the changes of this request on top of what another one has stored meanwhile.

    Raises `SessionGone`, with the session as it was, when the row is gone, or was renewed by a
    login or a `Session.regenerate`: what an anonymous request wrote must not turn up in the session
    that logged in.
    """
    base = session._base
    assert base is not None
    if loaded is None or base.id.generation < loaded.row.min_generation:
        raise SessionGone(session.handle)
    row = loaded.row
    try:
        id, lapsed = _current_id(rules, base.id, loaded), False
    except SessionNotFound:
        # Renewed by age, and longer ago than the grace: a slow request, whose changes still count.
        id, lapsed = base.id, True
    resend = base.resend or id is not base.id
    contents, old_key, unreadable = _open(rules, row)
    theirs = Snapshot(row, id, contents, loaded.now, old_key, resend, lapsed)
    # What another user's session holds is not taken over by the one who logs in on top of it.
    stranger = session._login and row.user_key not in (None, session._user_key)
    if not (stranger or session._overwrite):
        if theirs.contents is None or base.contents is None:
            session.error = unreadable or RowError("the stored session cannot be merged with")
            raise session.error
        ours = _encode(rules, session)
        try:
            values = _merge(base.contents.values, theirs.contents.values, ours.values, rules)
            flashes = _merge(base.contents.flashes, theirs.contents.flashes, ours.flashes)
            loads = rules.serializer.loads
            _adopt(session.values, ours.values, values, loads)
            _adopt(session._flashes, ours.flashes, flashes, loads)
        except UnknownTypeError as unknown:
            session.error = unknown
            raise
        take_back(session, base.contents.flashes.keys() - theirs.contents.flashes.keys())
    if session.meta != row.meta and not stranger:
        merged = _merge(base.row.meta, row.meta, session.meta)
        session.meta.clear()
        session.meta.update(merged)
    if session._options is not None and session._options.max_age == base.row.max_age:
        session._options.max_age = row.max_age
    if session._id is base.id:
        session._id = theirs.id
    else:
        session._id = replace(session._id, generation=row.generation + 1)
    if not session._login:
        session._user_key = row.user_key
    session._base = theirs


def mergeable(rules: Rules, session: Session, write: Update) -> bool:
    """Tell whether a write of unknown outcome may be applied again without counting twice."""
    base = session._base
    assert base is not None
    before = base.contents.values if base.contents else {}
    after = write.contents.values
    if any(before.get(key) != after.get(key) for key in rules.merge):
        return False
    # A message that it added may have been shown and consumed since.
    return (
        not write.contents.flashes.keys() - (base.contents.flashes if base.contents else {}).keys()
    )


def settle(session: Session, write: Write, row: PGSession | None) -> None:
    """Make the session what it is after ``write`` was stored as ``row``, for its next save."""
    session._consumed.clear()
    session._unanswered = None
    if isinstance(write, Delete):
        session._base = session._options = None
        session._id = session._id.unrelated()
        return
    assert row is not None
    base = session._base
    now = max(_known(row.seen_on), _known(row.modified_on))
    if isinstance(write, Touch):
        assert base is not None
        session._base = base._replace(row=row, now=now)
    else:
        if isinstance(write, Update):
            session._id = write.id
        resend = base is not None and base.resend
        lapsed = base is not None and base.lapsed and session._id is base.id
        session._base = Snapshot(
            row, session._id, write.contents, now, resend=resend, lapsed=lapsed
        )
        session._login = session._overwrite = False


def sends_cookie(write: Write) -> bool:
    """Tell whether the browser's cookie is out of date after ``write``.

    So ``seen_on`` is when the cookie was last sent, and neither cookie nor row can outlive the
    other by more than one touch interval.
    """
    match write:
        case Insert() | Touch():
            return True
        case Update(expiry=expiry):
            return expiry is not None
    return False


def is_login(write: Write) -> bool:
    """Tell whether ``write`` ties a session to a user."""
    match write:
        case Insert(row):
            return row.user_key is not None
        case Update(login=login):
            return login
    return False


def sent(session: Session) -> None:
    """Note that the browser gets its cookie."""
    if session._base is not None:
        session._base = session._base._replace(resend=False)


def _is_bound_to(row: PGSession, environ: Mapping[str, Any], bind: Set[Bond]) -> bool:
    """Tell whether the request comes from the client that the row was made for, or logged in."""
    ip, agent = map(_clean, client_of(environ))
    if "ip" in bind and (ip is None or ip != row.ip):
        return False
    return "agent" not in bind or Agent(agent).is_like(Agent(row.user_agent))


def _current_id(rules: Rules, id: SessionId, loaded: Loaded) -> SessionId:
    """Return the id that the row has now: ``id``, or its successor while the grace lasts.

    Raises `SessionNotFound` for an id that is not, or no more, the row's.
    """
    row, now = loaded
    if id.generation == row.generation:
        if not id.proves(row.secret_hash):
            raise SessionNotFound(id.handle, "secret")
        return id
    if not row.min_generation <= id.generation < row.generation:
        raise SessionNotFound(id.handle, "generation")
    if id.generation == row.generation - 1:
        if row.previous_hash is None or not id.proves(row.previous_hash):
            raise SessionNotFound(id.handle, "secret")
        if row.successor is not None and _in_grace(rules, row, now):
            successor = id.open_successor(row.successor, row.generation)
            if successor is not None and successor.proves(row.secret_hash):
                return successor
    raise SessionNotFound(id.handle, "replayed")


def _in_grace(rules: Rules, row: PGSession, now: datetime) -> bool:
    """Tell whether the secret before the row's own is still good for reaching it."""
    if row.renewed_on is None:
        return False
    return now - row.renewed_on <= timedelta(seconds=rules.lifetimes.rotation_grace)


def _is_old(rules: Rules, base: Snapshot) -> bool:
    """Tell whether the secret has the age at which it is renewed."""
    if rules.lifetimes.rotate_every is None or base.lapsed:
        return False
    age: timedelta = base.now - _known(base.row.renewed_on or base.row.created_on)
    return age >= timedelta(seconds=rules.lifetimes.rotate_every)


def _open(rules: Rules, row: PGSession) -> tuple[Contents | None, bool, PGStoreError | None]:
    """Open a row: return what it holds, whether an old key opened it, and why it cannot be read.

    Raises `RowError` for data that is not this row's.
    """
    data, old_key = _unseal(rules, row)
    try:
        values, flashes = rules.serializer.loads(data)
        contents = Contents(values, {(key, ident): item for key, ident, item in flashes})
    except UnknownTypeError as unknown:
        return None, old_key, unknown
    return contents, old_key, None


def _encode(rules: Rules, session: Session) -> Contents:
    dumps = rules.serializer.dumps
    base = session._base
    known = base.contents.values if base and base.contents else {}
    decoded = base.decoded if base else {}
    try:
        values = {
            # What cannot change in place, and is still the same object, has the same bytes.
            key: known[key]
            if type(item) in PLAIN and key in known and decoded.get(key, MISSING) is item
            else dumps(item, "value", known=known.get(key))
            for key, item in session.values.items()
        }
        return Contents(
            values, {flash: dumps(item, "flash") for flash, item in session._flashes.items()}
        )
    except SerializationError:
        # Again, for the path from the top.
        dumps(session.values, "values")
        dumps(list(session._flashes.values()), "flashes")
        raise


def _seal(
    rules: Rules, row: PGSession, user_key: str | None, contents: Contents, max_length: int
) -> bytes:
    flashes = [[key, ident, item] for (key, ident), item in contents.flashes.items()]
    try:
        data = rules.serializer.dumps([contents.values, flashes])
    except SerializationError:
        # Again, for the path of the key.
        rules.serializer.dumps(dict.fromkeys(contents.values), "values")
        rules.serializer.dumps([key for key, _, _ in flashes], "flashes")
        raise
    if 0 < max_length < len(data):
        raise SessionTooLong(len(data), max_length)
    return rules.sealers[0].seal(data, _context(rules.table, row.name, row.key, user_key))


def reseal(rules: Rules, row: PGSession) -> PGSession | None:
    """Return the row sealed with the newest key under a new version; None when it is so already.

    Raises `RowError` when no key opens it.
    """
    data, old_key = _unseal(rules, row)
    if not old_key:
        return None
    context = _context(rules.table, row.name, row.key, row.user_key)
    return row.but(data=rules.sealers[0].seal(data, context), version=_new_version())


def _unseal(rules: Rules, row: PGSession) -> tuple[bytes, bool]:
    """Return a row's data, and whether an old key opened it. Raises `RowError` when none does."""
    context = _context(rules.table, row.name, row.key, row.user_key)
    refusal: RowError | None = None
    for sealer in rules.sealers:
        try:
            return sealer.open(row.data, context), refusal is not None
        except RowError as refused:
            refusal = refusal or refused
    assert refusal is not None
    raise refusal


def _context(table: str, name: str, key: bytes, user_key: str | None) -> bytes:
    """Name the row that data is sealed for. Lengths keep the parts apart."""
    user = b"" if user_key is None else b"=" + user_key.encode("utf-8")
    return b"%b%b%b%b%b%b%b%b" % (
        len(table).to_bytes(4),
        table.encode("ascii"),
        len(name).to_bytes(4),
        name.encode("ascii"),
        len(key).to_bytes(4),
        key,
        len(user).to_bytes(4),
        user,
    )


def _merge(
    base: Mapping[_K, Any],
    theirs: Mapping[_K, Any],
    ours: Mapping[_K, Any],
    rules: Rules | None = None,
) -> dict[_K, Any]:
    """Apply what changed from ``base`` to ``ours`` to ``theirs``, key by key."""
    merged = dict(theirs)
    for key in base.keys() | ours.keys():
        before, now = base.get(key), ours.get(key)
        if before == now:
            continue
        function = rules.merge.get(key) if rules else None
        if rules and function and theirs.get(key) != before:
            now = _call(rules.serializer, function, key, before, theirs.get(key), now)
        if now is None:
            merged.pop(key, None)
        else:
            merged[key] = now
    return merged


def _call(
    serializer: TypedSerializer, function: MergeFunction, key: Hashable, *encoded: bytes | None
) -> bytes | None:
    arguments = [MISSING if item is None else serializer.loads(item) for item in encoded]
    result = function(*arguments)
    return None if result is MISSING else serializer.dumps(result, f"merge[{key!r}]")


def _adopt(
    live: dict[Any, Any],
    ours: Mapping[Any, bytes],
    merged: Mapping[Any, bytes],
    loads: Callable[[bytes], Any],
) -> None:
    """Bring the decoded values to ``merged``; what did not change stays the handler's object."""
    adopted = {
        key: live[key] if ours.get(key) == item else loads(item) for key, item in merged.items()
    }
    live.clear()
    live.update(adopted)


def take_back(session: Session, gone: Set[FlashId] | None = None) -> None:
    """Take messages that another request has consumed out of the lists that this one gave out.

    All of them, without ``gone``.
    """
    for flash in session._consumed.keys() & (session._consumed if gone is None else gone):
        shown, message = session._consumed.pop(flash)
        for place, candidate in enumerate(shown):
            if candidate is message:
                del shown[place]
                break


def _check_meta(meta: Mapping[str, str]) -> dict[str, str]:
    for text in itertools.chain.from_iterable(meta.items()):
        # PostgreSQL's jsonb keeps neither NUL nor half of a surrogate pair.
        if not isinstance(text, str) or "\0" in text or not _is_utf8(text):
            raise ConfigurationError(
                "session.meta holds texts without NUL, by keys that are such texts"
            )
    return dict(meta)


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _clean(text: str | None) -> str | None:
    """Make what a client or server says of itself fit to be stored and shown."""
    if text is None:
        return None
    return "".join(c for c in text if c.isprintable())[:_LONGEST_AGENT] or None


def _new_version() -> int:
    return int.from_bytes(os.urandom(8)) >> 1


def _known(value: Any) -> Any:
    assert value is not None
    return value
