"""What an administrator's page is made of."""

from __future__ import annotations

import pytest

from pgstore import ConfigurationError, MemoryStore
from support.stores import KEYS, Browser, Lab


def test_users_with_live_sessions(lab: Lab) -> None:
    """Each user once, by the key's bytes and page by page; who has no live session is not there."""
    store = lab.store(idle_timeout=100, touch_interval=1)
    with Browser().visit(store) as session:
        session.login("gone")
    lab.pass_time(200)
    for user in ("bob", "alice", "Bob", "alice", None):
        with Browser().visit(store) as session:
            session["a"] = 1
            if user:
                session.login(user)
    assert [(user, count) for user, count, _ in store.users()] == [
        ("Bob", 1),
        ("alice", 2),
        ("bob", 1),
    ]
    assert [user.user_key for user in store.users(limit=2)] == ["Bob", "alice"]
    assert [user.user_key for user in store.users(after="alice", limit=2)] == ["bob"]
    newest = store.sessions_of("alice")[0]
    assert store.users()[1].seen_on == newest.seen_on


def test_stats_of_the_table(lab: Lab, browser: Browser) -> None:
    """Live and expired sessions apart, and when the oldest live one began."""
    store = lab.store(idle_timeout=100, touch_interval=1)
    assert store.stats()[:2] == (0, 0)
    with Browser().visit(store) as session:
        session["a"] = 1
    lab.pass_time(200)
    with browser.visit(store) as session:
        session["a"] = 1
    created = session.created_on
    with Browser().visit(store) as session:
        session["a"] = 1
    live, expired, _, oldest = store.stats()
    assert (live, expired, oldest) == (2, 1, created)
    assert store.delete_expired() == 1
    assert store.stats()[:2] == (2, 0)


def test_what_cannot_be_a_page() -> None:
    """A limit below 1, and a key that no user can have."""
    store = MemoryStore(*KEYS)
    with pytest.raises(ConfigurationError, match="limit"):
        store.users(limit=0)
    with pytest.raises(ConfigurationError, match="user key"):
        store.users(after="")
