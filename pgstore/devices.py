"""Stored sessions as a device list and maintenance jobs see them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self

from .agents import Agent
from .rows import PGSession

__all__ = ["StoredSession", "UserSession", "format_sessions"]

_TITLES = ("HANDLE", "SIGNED IN", "LAST SEEN", "EXPIRES", "ADDRESS", "AGENT", "META")


@dataclass(frozen=True, slots=True, kw_only=True)
class UserSession:
    """One live session, with what may be shown of it: no secret, and none of its values.

    ``handle`` is what `Store.revoke` takes. The times are aware, in UTC, from the database's clock:
    ``seen_on`` is exact to the store's touch interval, ``authenticated_on`` is when the user last
    proved who they are. ``ip`` and ``agent`` are those of the login. ``meta`` is `Session.meta`.
    ``current`` says that it is the session that was given as such to `Store.sessions_of`.
    """

    handle: str
    user_key: str | None = field(repr=False)
    created_on: datetime
    seen_on: datetime
    expires_on: datetime
    authenticated_on: datetime | None
    ip: str | None = field(repr=False)
    agent: Agent = field(repr=False)
    meta: Mapping[str, str] = field(repr=False)
    current: bool = False

    @classmethod
    def of(cls, row: PGSession, *, current: bytes | None = None, **more: Any) -> Self:
        """Return what may be shown of a stored row; ``current`` is the key of the own one."""
        assert row.created_on is not None
        assert row.seen_on is not None
        assert row.expires_on is not None
        return cls(
            handle=row.handle,
            user_key=row.user_key,
            created_on=row.created_on,
            seen_on=row.seen_on,
            expires_on=row.expires_on,
            authenticated_on=row.authenticated_on,
            ip=row.ip,
            agent=Agent(row.user_agent),
            meta=row.meta,
            current=row.key == current,
            **more,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSession(UserSession):
    """One live session as `Store.iterate` finds it, for maintenance jobs.

    ``name`` is that of its cookie, ``values`` what it held when its row was read: to look at, for
    changing it stores nothing.
    """

    name: str
    values: Mapping[Any, Any] = field(repr=False)


def format_sessions(sessions: Iterable[UserSession]) -> str:
    """Return sessions as a table of text for a terminal, times in UTC; it ends with a newline."""
    rows = [_TITLES, *map(_cells, sessions)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "".join(f"{line}\n" for line in lines)


def _cells(one: UserSession) -> tuple[str, ...]:
    # What a browser or somebody at the database wrote must not steer the terminal.
    agent = str(one.agent) if one.agent.browser else one.agent.text or str(one.agent)
    meta = ", ".join(f"{name}={value}" for name, value in one.meta.items())
    texts = (
        "".join(c if c.isprintable() else "?" for c in text)
        for text in (one.ip or "-", agent, meta)
    )
    times = (one.authenticated_on or one.created_on, one.seen_on, one.expires_on)
    return one.handle, *(f"{time:%Y-%m-%d %H:%M}" for time in times), *texts
