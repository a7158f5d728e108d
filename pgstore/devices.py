"""The sessions of a user as a device list shows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from .agents import Agent
from .rows import PGSession

__all__ = ["UserSession"]


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
    def of(cls, row: PGSession, *, current: bytes | None = None) -> UserSession:
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
        )
