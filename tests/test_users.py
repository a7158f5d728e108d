"""Users and their sessions: listed, revoked, and told of, on every kind of store."""

from __future__ import annotations

import logging
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import asdict, replace
from datetime import timedelta
from typing import Any

import pytest

from pgstore import (
    BackendError,
    ConfigurationError,
    MemoryStore,
    NotOwner,
    Options,
    SessionGone,
    SessionNotFound,
    Store,
)
from pgstore.hooks import Hooks
from support.stores import KEYS, Browser, Lab, MemoryLab, Visit

FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"


@pytest.fixture
def store(lab: Lab) -> Store:
    return lab.store()


def sign_in(store: Store, user: str, **settings: str) -> Browser:
    browser = Browser(**settings)
    with browser.visit(store) as session:
        session.login(user)
    return browser


def user_of(store: Store, browser: Browser) -> str | None:
    return Visit(browser, store).session.user_key


def test_sessions_of_a_user(lab: Lab, store: Store) -> None:
    """They are listed by the newest login, live ones only, and nobody else's."""
    browsers = [sign_in(store, "alice", agent=f"Browser/{n}") for n in range(3)]
    sign_in(store, "Alice")
    with Browser().visit(store) as session:
        session["anonymous"] = 1
    handles = [Visit(browser, store).session.handle for browser in browsers]
    assert [one.handle for one in store.sessions_of("alice")] == handles[::-1]
    # Signing in again in the first one makes that the newest.
    lab.pass_time(60)
    with browsers[0].visit(store) as session:
        session.login("alice")
    listed = store.sessions_of("alice")
    assert [one.handle for one in listed] == [handles[0], handles[2], handles[1]]
    lab.pass_time(10**8)
    assert store.sessions_of("alice") == []


def test_what_a_device_list_shows(lab: Lab, store: Store) -> None:
    """Times, address, agent and metadata are the row's; nothing in it is secret or a value."""
    browser = Browser(address="2001:db8::1", agent=FIREFOX)
    with browser.visit(store) as session:
        session["cart"] = "private"
        session.login("alice")
        session.meta["device"] = "Alice's phone"
    session = Visit(browser, store).session
    (listed,) = store.sessions_of("alice")
    assert session._base
    row = session._base.row
    assert asdict(listed) == {
        "handle": session.handle,
        "user_key": "alice",
        "created_on": session.created_on,
        "seen_on": row.seen_on,
        "expires_on": session.expires_on,
        "authenticated_on": session.authenticated_on,
        "ip": "2001:db8::1",
        "agent": {"text": FIREFOX},
        "meta": {"device": "Alice's phone"},
        "current": False,
    }
    assert "alice" not in repr(listed)
    assert "2001" not in repr(listed)


def test_the_current_session_is_marked(store: Store) -> None:
    """The session that is given as the current one is, and no other."""
    here, there = sign_in(store, "alice"), sign_in(store, "alice")
    session = Visit(here, store).session
    listed = store.sessions_of("alice", current=session)
    assert {one.handle: one.current for one in listed} == {
        session.handle: True,
        Visit(there, store).session.handle: False,
    }
    assert not any(one.current for one in store.sessions_of("alice"))
    session.logout()
    assert not any(one.current for one in store.sessions_of("alice", current=session))


@pytest.mark.parametrize("user", ["", None, b"alice", "a\0"])
def test_user_keys_that_do_not_fit(user: Any) -> None:
    """What is no user key is the caller's mistake."""
    store = MemoryStore(*KEYS)
    for ask in (store.sessions_of, store.revoke_user):
        with pytest.raises(ConfigurationError, match="user key"):
            ask(user)


def test_fetching_one(lab: Lab, store: Store) -> None:
    """A live session is fetched by its handle as the list has it; one that ended is None."""
    browser = sign_in(store, "alice", agent=FIREFOX)
    session = Visit(browser, store).session
    (listed,) = store.sessions_of("alice")
    assert store.fetch(session.handle) == listed
    assert store.fetch(session.handle, owner="alice") == listed
    assert store.fetch(session.handle, current=session) == replace(listed, current=True)
    with Browser().visit(store) as anonymous:
        anonymous["x"] = 1
    fetched = store.fetch(anonymous.handle)
    assert fetched
    assert fetched.user_key is fetched.authenticated_on is None
    lab.pass_time(10**8)
    assert store.fetch(session.handle) is None
    assert store.fetch(session.handle, owner="alice") is None


def test_revoking_one(store: Store) -> None:
    """A revoked session is dead at once; revoking it again is no error."""
    here, there = sign_in(store, "alice"), sign_in(store, "alice")
    handle = Visit(there, store).session.handle
    assert store.revoke(handle) is True
    assert store.revoke(handle) is False
    assert (user_of(store, here), user_of(store, there)) == ("alice", None)


@pytest.mark.parametrize("handle", ["", "garbage", "A" * 22, "é" * 22, "A" * 10_000, None, 7])
def test_handles_that_lead_nowhere(store: Store, handle: Any) -> None:
    """Whatever a form sends as a handle, revoking or fetching it raises nothing."""
    sign_in(store, "alice")
    assert store.revoke(handle) is False
    assert store.revoke(handle, owner="alice") is False
    assert store.fetch(handle) is None
    assert store.fetch(handle, owner="alice") is None
    assert len(store.sessions_of("alice")) == 1


def test_revoking_as_an_owner(store: Store) -> None:
    """With an owner, somebody else's session is neither shown nor ended."""
    alice, bob = sign_in(store, "alice"), sign_in(store, "bob")
    handle = Visit(alice, store).session.handle
    for owner in ("bob", "Alice", "alicé", "alice "):
        for ask in (store.revoke, store.fetch):
            with pytest.raises(NotOwner) as caught:
                ask(handle, owner=owner)
            assert caught.value.handle == handle
    assert user_of(store, alice) == "alice"
    assert store.revoke(handle, owner="alice") is True
    assert (user_of(store, alice), user_of(store, bob)) == (None, "bob")


@pytest.mark.parametrize("owner", ["", "a\0b", "\ud800", 3, b"alice"])
def test_owners_that_do_not_fit(store: Store, owner: Any) -> None:
    """What is no user key owns nothing, and is the caller's mistake."""
    handle = Visit(sign_in(store, "alice"), store).session.handle
    for ask in (store.revoke, store.fetch):
        with pytest.raises(ConfigurationError, match="user key"):
            ask(handle, owner=owner)


def test_a_visitor_who_is_nobody_owns_nothing(store: Store) -> None:
    """``owner=session.user_key`` of an anonymous session refuses every handle."""
    alice, anonymous = sign_in(store, "alice"), Browser()
    with anonymous.visit(store) as session:
        session["x"] = 1
    for browser in (alice, anonymous):
        for ask in (store.revoke, store.fetch):
            with pytest.raises(NotOwner):
                ask(Visit(browser, store).session.handle, owner=session.user_key)
    assert user_of(store, alice) == "alice"


def test_sign_out_everywhere(store: Store) -> None:
    """All of a user's sessions end, or all but the one that is kept; nobody else's do."""
    browsers = [sign_in(store, "alice") for _ in range(3)]
    bob = sign_in(store, "bob")
    here = Visit(browsers[1], store).session
    assert store.revoke_user("alice", keep=here) == 2
    assert [user_of(store, browser) for browser in browsers] == [None, "alice", None]
    assert store.revoke_user("alice") == 1
    assert store.revoke_user("alice") == 0
    assert user_of(store, bob) == "bob"


def test_a_slow_request_does_not_survive_a_revocation(store: Store) -> None:
    """What was loaded before a revocation cannot be saved after it, and sends no cookie."""
    for revoke in (
        lambda session: store.revoke(session.handle),
        lambda session: store.revoke_user("alice"),
    ):
        browser = sign_in(store, "alice")
        slow = Visit(copy(browser), store)
        revoke(slow.session)
        slow.session["x"] = 1
        with pytest.raises(SessionGone):
            slow.save()
        assert "Set-Cookie" not in slow.headers
        again = Visit(browser, store)
        again.session.login("alice")
        again.save()
        assert user_of(store, browser) == "alice"
        store.revoke_user("alice")


def test_a_login_that_is_being_saved_against_a_revocation(store: Store) -> None:
    """A session of the user that regenerates meanwhile is revoked, whatever its generation."""
    browser = sign_in(store, "alice")
    renewing = Visit(browser, store)
    renewing.session.regenerate()
    renewing.save()
    assert store.revoke_user("alice") == 1
    assert user_of(store, browser) is None
    # One that is saved after the revocation is a new proof of who it is.
    late = Visit(Browser(), store)
    late.session.login("alice")
    store.revoke_user("alice")
    late.save()
    assert user_of(store, late.browser) == "alice"


# -- the most sessions of a user


def handles_of(store: Store, user: str) -> list[str]:
    return [one.handle for one in store.sessions_of(user)]


def test_a_login_ends_the_oldest_beyond_the_limit(lab: Lab) -> None:
    """After each login a user has so many sessions at most: the newest ones, and nobody loses."""
    store = lab.store(max_sessions_per_user=2)
    told: list[tuple[str, str]] = []
    store.on_deletion(lambda row, reason: told.append((row.handle, reason)))
    bob = sign_in(store, "Alice")
    browsers = [sign_in(store, "alice") for _ in range(4)]
    assert [user_of(store, browser) for browser in browsers] == [None, None, "alice", "alice"]
    ended = [handle for handle, _ in told]
    assert [reason for _, reason in told] == ["evicted", "evicted"]
    assert not set(ended) & set(handles_of(store, "alice"))
    # Signing in again is no new session; a visit is no login.
    with browsers[2].visit(store) as session:
        session.login("alice")
    with browsers[2].visit(store) as session:
        session["x"] = 1
    with Browser().visit(store) as session:
        session["x"] = 1
    assert len(told) == 2
    assert [user_of(store, browser) for browser in browsers[2:]] == ["alice", "alice"]
    assert user_of(store, bob) == "Alice"


def test_a_login_keeps_itself(lab: Lab) -> None:
    """Its own session stays, even where the database's clock was ahead at the other logins."""
    unlimited, store = lab.store(), lab.store(max_sessions_per_user=2)
    for _ in range(4):
        sign_in(unlimited, "alice")
    lab.pass_time(-3600)
    newest = handles_of(store, "alice")[0]
    browser = sign_in(store, "alice")
    own = Visit(browser, store).session
    assert own.user_key == "alice"
    assert handles_of(store, "alice") == [newest, own.handle]


def test_logins_at_once_settle_at_the_limit(lab: Lab) -> None:
    """Logins that are all stored before one of them ends others leave the limit, and not less."""
    for most in (1, 2, 3):
        store = lab.store(max_sessions_per_user=most)
        told: list[str] = []
        store.on_deletion(lambda row, reason, told=told: told.append(row.handle))
        store._backend = TogetherAt("delete_of_user", store.backend, 4)  # type: ignore[assignment]
        with ThreadPoolExecutor(4) as threads:
            browsers = list(threads.map(lambda _, store=store: sign_in(store, "alice"), range(4)))
        users = [user_of(store, browser) for browser in browsers]
        assert users.count("alice") == len(store.sessions_of("alice")) == most
        assert len(told) == len(set(told)) == 4 - most
        lab.store().revoke_user("alice")


def test_logins_at_once_and_a_revocation(lab: Lab) -> None:
    """Whoever is first, nobody fails, and what is left is within the limit."""
    store = lab.store(max_sessions_per_user=2)
    for _ in range(5):
        barrier = threading.Barrier(5)

        def act(number: int, barrier: threading.Barrier = barrier) -> None:
            visit = Visit(Browser(), store)
            visit.session.login("alice")
            barrier.wait(10)
            if number:
                visit.save()
            else:
                store.revoke_user("alice")

        with ThreadPoolExecutor(5) as threads:
            list(threads.map(act, range(5)))
        assert len(store.sessions_of("alice")) <= 2


def test_a_slow_request_of_an_evicted_session(lab: Lab) -> None:
    """What was loaded before the eviction is not saved after it, and sends no cookie."""
    store = lab.store(max_sessions_per_user=1)
    slow = Visit(sign_in(store, "alice"), store)
    sign_in(store, "alice")
    slow.session["x"] = 1
    with pytest.raises(SessionGone):
        slow.save()
    assert "Set-Cookie" not in slow.headers


def test_an_eviction_that_fails(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    """The login stands, its cookie goes out, a warning is logged; the next login catches up."""
    store = lab.store(max_sessions_per_user=1)
    sign_in(store, "alice")
    whole = store.backend
    store._backend = Failing("delete_of_user", whole)  # type: ignore[assignment]
    browser = sign_in(store, "alice")
    assert user_of(store, browser) == "alice"
    assert len(store.sessions_of("alice")) == 2
    (warning,) = caplog.records
    assert warning.levelname == "WARNING"
    assert "max_sessions_per_user=1 were not ended: the disk is on fire" in warning.getMessage()
    assert "alice" not in warning.getMessage()
    store._backend = whole
    browser = sign_in(store, "alice")
    assert handles_of(store, "alice") == [Visit(browser, store).session.handle]


def test_a_login_whose_answer_was_lost_counts(lab: Lab) -> None:
    """A login that turns out to have been stored ends the oldest, too."""
    store = lab.store(max_sessions_per_user=1)
    for first in (True, False):
        sign_in(lab.store(), "alice")
        browser = Browser()
        if not first:
            with browser.visit(store) as session:
                session["x"] = 1
        whole = store.backend
        store._backend = AnswerLost("insert" if first else "update", whole)  # type: ignore[assignment]
        with browser.visit(store) as session:
            session.login("alice")
        store._backend = whole
        assert handles_of(store, "alice") == [session.handle]


@pytest.mark.parametrize("most", [0, -1, 1.5, "3", True])
def test_limits_that_make_no_sense(most: Any) -> None:
    """The most sessions of a user are a positive number, or None."""
    with pytest.raises(ConfigurationError, match="max_sessions_per_user"):
        MemoryStore(*KEYS, max_sessions_per_user=most)


class Wrapped:
    """A backend with one verb replaced."""

    def __init__(self, verb: str, backend: Any) -> None:
        self._verb, self._backend = verb, backend

    def __getattr__(self, name: str) -> Any:
        return self.replaced if name == self._verb else getattr(self._backend, name)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._backend, self._verb)(*args, **kwargs)


class TogetherAt(Wrapped):
    """All callers meet before one of them goes on."""

    def __init__(self, verb: str, backend: Any, callers: int) -> None:
        super().__init__(verb, backend)
        self._barrier = threading.Barrier(callers)

    def replaced(self, *args: Any, **kwargs: Any) -> Any:
        self._barrier.wait(10)
        return self.call(*args, **kwargs)


class Failing(Wrapped):
    def replaced(self, *args: Any, **kwargs: Any) -> Any:
        raise BackendError("the disk is on fire")


class AnswerLost(Wrapped):
    def replaced(self, *args: Any, **kwargs: Any) -> Any:
        self.call(*args, **kwargs)
        raise BackendError("the answer was lost", outcome_unknown=True)


# -- sessions bound to a client


CHROME = (
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/126.0.0.0 Safari/537.36"
)
NEWER_FIREFOX = FIREFOX.replace("128.0", "131.0")
FIREFOX_ON_WINDOWS = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:128.0) Gecko/20100101 Firefox/128.0"
)


@pytest.mark.parametrize(
    ("bind", "address", "agent", "is_same"),
    [
        ((), "192.0.2.8", CHROME, True),
        (("ip",), "192.0.2.7", CHROME, True),
        (("ip",), "192.0.2.8", FIREFOX, False),
        (("ip",), "", FIREFOX, False),
        (["agent"], "192.0.2.8", FIREFOX, True),
        (["agent"], "192.0.2.8", NEWER_FIREFOX, True),
        ({"agent"}, "192.0.2.7", CHROME, False),
        ({"agent"}, "192.0.2.7", FIREFOX_ON_WINDOWS, False),
        ({"agent"}, "192.0.2.7", "", False),
        (("ip", "agent"), "192.0.2.7", NEWER_FIREFOX, True),
        (("ip", "agent"), "192.0.2.8", FIREFOX, False),
        (("ip", "agent"), "192.0.2.7", CHROME, False),
    ],
)
def test_a_bound_session(lab: Lab, bind: Any, address: str, agent: str, is_same: bool) -> None:
    """Another client's request gets a new session, is told why, and leaves the stored one alone."""
    store = lab.store(bind=bind, rotate_every=3600)
    for login in (False, True):
        owner = Browser(agent=FIREFOX)
        with owner.visit(store) as session:
            session["x"] = 1
            if login:
                session.login("alice")
        # Due to be touched, and to be renewed.
        lab.pass_time(7200)
        before = lab.rows()
        other = copy(owner)
        other.address, other.agent = address, agent
        visit = Visit(other, store)
        if is_same:
            assert visit.session.handle == session.handle
            continue
        assert visit.session.is_new
        assert visit.session.handle != session.handle
        assert visit.session.user_key is None
        assert isinstance(visit.session.error, SessionNotFound)
        assert visit.session.error.reason == "binding"
        assert "Set-Cookie" not in visit.save()
        assert lab.rows() == before
        assert Visit(owner, store).session.handle == session.handle


@pytest.mark.parametrize(("column", "bond"), [("ip", "ip"), ("user_agent", "agent")])
def test_a_missing_stored_value_fits_nobody(lab: Lab, column: str, bond: Any) -> None:
    """Of a session of which it is not known whose it is, nobody is the owner."""
    browser = Browser(agent=FIREFOX)
    with browser.visit(lab.store()) as session:
        session.login("alice")
    lab.set(**{column: None})
    nobody = copy(browser)
    nobody.address, nobody.agent = "", ""
    for client in (browser, nobody):
        for environ in (client.environ(), {"HTTP_COOKIE": client.environ()["HTTP_COOKIE"]}):
            error = lab.store(bind=[bond]).new(environ, "sid").error
            assert isinstance(error, SessionNotFound)
            assert error.reason == "binding"


def test_unknown_agents_fit_by_their_text(lab: Lab) -> None:
    """Two agents of which nothing is known are not the same for that; they are when equal."""
    store = lab.store(bind=("agent",))
    browser = sign_in(store, "alice", agent="Something/1.0")
    assert user_of(store, browser) == "alice"
    browser.agent = "Other/1.0"
    assert user_of(store, browser) is None


def test_a_login_binds_anew(lab: Lab) -> None:
    """A session that was bound to nobody yet, or to another, is bound to who logs in."""
    browser = Browser(address="192.0.2.1")
    with browser.visit(lab.store()) as session:
        session["x"] = 1
    browser.address = "192.0.2.2"
    store = lab.store(bind=("ip",))
    assert Visit(browser, store).session.is_new
    with browser.visit(lab.store()) as session:
        session.login("alice")
    assert user_of(store, browser) == "alice"
    browser.address = "192.0.2.1"
    assert user_of(store, browser) is None


def test_a_replay_by_another_client_ends_nothing(lab: Lab) -> None:
    """A secret from before a renewal, sent by another client, leaves the session alone, too."""
    store = lab.store(bind=("ip",), rotate_every=3600)
    owner = sign_in(store, "alice")
    thief = copy(owner)
    thief.address = "192.0.2.66"
    lab.pass_time(3601)
    with owner.visit(store):
        pass
    lab.pass_time(60)
    error = Visit(thief, store).session.error
    assert isinstance(error, SessionNotFound)
    assert error.reason == "binding"
    assert user_of(store, owner) == "alice"


@pytest.mark.parametrize("bind", ["ip", "agent", ("cookie",), ("ip", "host"), None, 3, [["ip"]]])
def test_bonds_that_do_not_exist(bind: Any) -> None:
    """A session is bound by address, by agent, by both or not at all."""
    with pytest.raises(ConfigurationError, match="bind must be"):
        MemoryStore(*KEYS, bind=bind)


def test_agents_cannot_be_compared_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Binding by agent without ua-parser is refused at once, naming what to install."""
    missing: Any = None
    monkeypatch.setitem(sys.modules, "ua_parser", missing)
    with pytest.raises(ConfigurationError, match=r"pgstore\[agents\]"):
        MemoryStore(*KEYS, bind=("agent",))
    MemoryStore(*KEYS, bind=("ip",))


# -- step-up


def test_fresh(lab: Lab, store: Store) -> None:
    """A session is fresh for so long after its login, by the database's clock, and asks nothing."""
    browser = sign_in(store, "alice")
    lab.pass_time(600)
    session = Visit(browser, store).session
    store.close()
    assert session.fresh(within=660)
    assert session.fresh(timedelta(minutes=11))
    assert not session.fresh(within=599.5)
    assert session.fresh(float("inf"))


def test_a_visit_does_not_make_fresh(lab: Lab, store: Store) -> None:
    """Saving, touching and regenerating are no proof of who the user is; a login is, anew."""
    browser = sign_in(store, "alice")
    lab.pass_time(600)
    with browser.visit(store) as session:
        session["x"] = 1
        session.regenerate()
    for visited in (session, Visit(browser, store).session):
        assert not visited.fresh(within=300)
    with browser.visit(store) as session:
        session.login("alice")
    for visited in (session, Visit(browser, store).session):
        assert visited.fresh(within=300)


def test_fresh_in_the_request_of_the_login(store: Store) -> None:
    """A login counts before it is saved, too; a logout ends it; who is nobody is never fresh."""
    session = Visit(Browser(), store).session
    assert not session.fresh(within=300)
    session["x"] = 1
    session.login("alice")
    assert session.fresh(within=300)
    session.logout()
    assert not session.fresh(within=300)
    anonymous = Browser()
    with anonymous.visit(store) as session:
        session["x"] = 1
    assert not session.fresh(within=300)
    assert not Visit(anonymous, store).session.fresh(within=300)


@pytest.mark.parametrize("within", [0, -1, timedelta(0), float("nan"), "300", None, True])
def test_fresh_within_what_is_no_time(within: Any) -> None:
    """Whoever the session is, a limit that makes no sense is the caller's mistake."""
    session = Visit(Browser(), MemoryStore(*KEYS)).session
    with pytest.raises(ConfigurationError, match="within"):
        session.fresh(within)


# -- hooks


def test_every_end_is_told_with_its_reason(lab: Lab) -> None:
    """Subscribers learn of each row that this store deleted, without its data, and why."""
    store = lab.store(options=Options(max_age=7200), rotate_every=3600)
    told: list[tuple[str, str]] = []
    store.on_deletion(lambda row, reason: told.append((row.handle, reason)))
    expected = []

    def make(**values: Any) -> Browser:
        browser = Browser()
        with browser.visit(store) as session:
            session.values.update(values or {"x": 1})
            session.login("alice")
        return browser

    def handle(browser: Browser) -> str:
        return Visit(browser, store).session.handle

    deleted, revoked, replayed, expired = make(), make(), make(), make()
    expected.append((handle(deleted), "deleted"))
    with deleted.visit(store) as session:
        session.delete()
    emptied = Browser()
    with emptied.visit(store) as session:
        session["x"] = 1
    expected.append((session.handle, "deleted"))
    with emptied.visit(store) as session:
        session.clear()
    expected.append((handle(revoked), "revoked"))
    store.revoke(handle(revoked))
    expected.append((handle(replayed), "replayed"))
    lab.pass_time(3601)
    thief = copy(replayed)
    with replayed.visit(store):
        pass
    lab.pass_time(60)
    Visit(thief, store)
    expected.append((handle(expired), "expired"))
    lab.pass_time(10**7)
    assert store.delete_expired() == 1
    assert told == expected


def test_what_ended_elsewhere_is_not_told(lab: Lab, store: Store) -> None:
    """Only the process that deleted a row tells of it, once."""
    told: list[str] = []
    lab.store().on_deletion(lambda row, reason: told.append(reason))
    browser = sign_in(store, "alice")
    handle = Visit(browser, store).session.handle
    store.on_deletion(lambda row, reason: told.append(f"here: {reason}"))
    store.revoke(handle)
    store.revoke(handle)
    with browser.visit(store) as session:
        session.delete()
    assert told == ["here: revoked"]


def test_a_callback_that_raises_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged; the others are called, and the caller sees nothing of it."""
    store = MemoryStore(*KEYS)
    told: list[str] = []

    def broken(row: Any, reason: str) -> None:
        raise ZeroDivisionError

    store.on_deletion(broken)
    store.on_deletion(lambda row, reason: told.append(reason))
    browser = sign_in(store, "alice")
    with caplog.at_level(logging.ERROR, "pgstore"):
        assert store.revoke_user("alice") == 1
    assert told == ["revoked"]
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert user_of(store, browser) is None


def test_unsubscribing() -> None:
    """After it a callback is called no more; again is no error; the others stay."""
    store = MemoryStore(*KEYS)
    told: list[str] = []
    first = store.on_deletion(lambda row, reason: told.append("first"))
    store.on_deletion(lambda row, reason: told.append("second"))
    for _ in range(2):
        first()
        sign_in(store, "alice")
        store.revoke_user("alice")
    assert told == ["second", "second"]


def test_callbacks_run_outside_locks() -> None:
    """A callback may use the store, subscribe and unsubscribe, itself included, and wait."""
    store = MemoryStore(*KEYS)
    told: list[str] = []

    def callback(row: Any, reason: str) -> None:
        told.append(reason)
        unsubscribe(wait=True)
        store.on_deletion(lambda row, reason: told.append(f"later: {reason}"))
        store.revoke_user("bob")

    unsubscribe = store.on_deletion(callback)
    for user in ("alice", "bob"):
        sign_in(store, user)
    store.revoke_user("alice")
    assert told == ["revoked", "later: revoked"]


def test_unsubscribing_may_wait_for_a_call_under_way() -> None:
    """With wait=True it returns when no other thread is in the callback any more."""
    lab = MemoryLab()
    store = lab.store()
    entered, leave = threading.Event(), threading.Event()
    left: list[bool] = []

    def slow(row: Any, reason: str) -> None:
        entered.set()
        assert leave.wait(10)
        left.append(True)

    unsubscribe = store.on_deletion(slow)
    sign_in(store, "alice")
    revoking = threading.Thread(target=store.revoke_user, args=("alice",))
    revoking.start()
    assert entered.wait(10)
    unsubscribe()
    assert left == []
    waiting = threading.Thread(target=unsubscribe, kwargs={"wait": True})
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    leave.set()
    waiting.join(10)
    assert left == [True]
    revoking.join(10)


def test_two_callbacks_may_wait_for_their_own_end() -> None:
    """Waiting inside one callback in two threads at once ends in both."""
    store = MemoryStore(*KEYS)
    barrier = threading.Barrier(2)

    def callback(row: Any, reason: str) -> None:
        barrier.wait(10)
        unsubscribe(wait=True)

    unsubscribe = store.on_deletion(callback)
    threads = []
    for user in ("alice", "bob"):
        sign_in(store, user)
        threads.append(threading.Thread(target=store.revoke_user, args=(user,), daemon=True))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_a_callback_may_stop_the_cleanup_that_called_it(lab: Lab) -> None:
    """A callback for an expired session runs in the cleaner's thread, and may end it."""
    store = lab.store()
    ended = threading.Event()

    def stop(row: Any, reason: str) -> None:
        store.stop_cleanup(quit, done)
        ended.set()

    store.on_deletion(stop)
    sign_in(store, "alice")
    lab.pass_time(10**8)
    quit, done = store.cleanup(interval=0.01)
    assert ended.wait(10)
    assert done.wait(10)


def test_nothing_is_started_after_close() -> None:
    """A cleanup on a closed store is an error, and no thread that fails for ever."""
    store = MemoryStore(*KEYS)
    store.close()
    with pytest.raises(BackendError, match="closed"):
        store.cleanup()


def test_hooks_are_iterated_without_a_lock() -> None:
    """Subscribing while another thread fires disturbs neither (a bug of sessionup's)."""
    hooks, told = Hooks(), []
    row: Any = None
    hooks.subscribe(lambda row, reason: hooks.subscribe(lambda row, reason: told.append(1)))
    hooks.fire([row], "deleted")
    assert told == []
    hooks.fire([row], "deleted")
    assert told == [1]
