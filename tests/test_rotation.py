"""Renewal by age: a secret is renewed in place, parallel requests keep up, thieves do not."""

from __future__ import annotations

import logging
from copy import copy
from typing import Any

import pytest

from pgstore import BackendError, ConfigurationError, SessionGone, SessionNotFound, Store
from pgstore.backends.memory import MemoryBackend
from pgstore.ids import SessionId
from support.stores import KEYS, Browser, Lab, Visit

HOUR = 3600
GRACE = 30


@pytest.fixture
def store(lab: Lab) -> Store:
    return lab.store(rotate_every=HOUR)


@pytest.fixture
def known(store: Store, browser: Browser) -> Browser:
    """Return a browser whose session's secret is due to be renewed."""
    with browser.visit(store) as session:
        session["x"] = 1
    return browser


def due(lab: Lab) -> None:
    lab.pass_time(HOUR + 1)


def secret(browser: Browser, store: Store) -> str:
    """Return the id in the browser's cookie, whoever signed it."""
    return Visit(browser, store).session.id


def test_a_young_secret_stays(lab: Lab, store: Store, known: Browser) -> None:
    """Before it has the age, a secret is not renewed."""
    before = known.cookies["sid"]
    lab.pass_time(HOUR - 10)
    with known.visit(store) as session:
        session["x"] = 2
    assert lab.row()["generation"] == 0
    assert Visit(copy(known), store).session.handle == session.handle
    assert len(before) == len(known.cookies["sid"])


@pytest.mark.parametrize("change", [True, False])
def test_an_old_secret_is_renewed_in_place(
    lab: Lab, store: Store, known: Browser, change: bool
) -> None:
    """The next save, of a change or of nothing, puts a new secret into the same row."""
    due(lab)
    before, old = lab.row(), secret(known, store)
    visit = Visit(known, store)
    if change:
        visit.session["x"] = 2
    assert "Set-Cookie" in visit.save()
    after = lab.row()
    assert after["key"] == before["key"]
    assert (after["generation"], after["min_generation"]) == (1, 0)
    assert after["secret_hash"] != before["secret_hash"]
    assert secret(known, store) != old
    assert Visit(known, store).session["x"] == (2 if change else 1)
    # It is young now.
    assert "Set-Cookie" not in Visit(known, store).save()
    due(lab)
    with known.visit(store):
        pass
    assert lab.row()["generation"] == 2


def test_a_handler_that_never_saves_renews_nothing(lab: Lab, store: Store, known: Browser) -> None:
    """Reading alone does not renew."""
    due(lab)
    before = lab.row()
    Visit(known, store)
    assert lab.row() == before


def test_parallel_requests_get_the_same_new_cookie(lab: Lab, store: Store, known: Browser) -> None:
    """One of several requests renews; the others reach the same session and get the same secret."""
    due(lab)
    before = [Visit(copy(known), store) for _ in range(3)]
    for number, visit in enumerate(before):
        if number:
            visit.session[f"key {number}"] = number
        visit.save()
    after = [Visit(copy(known), store) for _ in range(2)]
    for visit in after:
        assert visit.session["x"] == 1
        assert "Set-Cookie" in visit.save()
    assert lab.row()["generation"] == 1
    assert len({secret(visit.browser, store) for visit in [*before, *after]}) == 1
    assert Visit(before[0].browser, store).session.values == {"x": 1, "key 1": 1, "key 2": 2}


def test_a_request_in_the_grace_that_reads_only(lab: Lab, store: Store, known: Browser) -> None:
    """It gets the new cookie without a write."""
    due(lab)
    late = copy(known)
    with known.visit(store):
        pass
    row = lab.row()
    lab.pass_time(GRACE - 5)
    before = lab.row()
    visit = Visit(late, store)
    assert "Set-Cookie" in visit.save()
    assert lab.row() == before
    assert row["version"] == before["version"]
    assert secret(late, store) == secret(known, store)


def test_after_the_grace_an_old_secret_means_theft(
    lab: Lab, store: Store, known: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    """The session is ended, for the thief and for the owner, and the operator is warned."""
    due(lab)
    thief = copy(known)
    with known.visit(store) as session:
        handle = session.handle
    lab.pass_time(GRACE + 5)
    with caplog.at_level(logging.INFO, "pgstore"):
        stolen = Visit(thief, store)
    assert isinstance(stolen.session.error, SessionNotFound)
    assert stolen.session.error.reason == "replayed"
    assert (stolen.session.is_new, stolen.session.values) == (True, {})
    assert "Set-Cookie" not in stolen.save()
    assert lab.rows() == []
    assert Visit(known, store).session.is_new
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert handle in record.getMessage()
    for browser in (known, thief):
        assert browser.cookies["sid"] not in record.getMessage()


def test_an_even_older_secret_means_theft(lab: Lab, store: Store, known: Browser) -> None:
    """Two renewals back is theft within the grace of the last one, too."""
    thief = copy(known)
    for _ in range(2):
        due(lab)
        with known.visit(store):
            pass
    assert Visit(thief, store).session.error.reason == "replayed"  # type: ignore[union-attr]
    assert lab.rows() == []


def test_a_forged_secret_ends_nothing(lab: Lab, store: Store, known: Browser) -> None:
    """An older generation with a secret that was never ours is refused, and the session lives."""
    due(lab)
    with known.visit(store) as session:
        key = session._id.selector
    forged = Browser()
    forged.cookies["sid"] = store.codecs[0].encode("sid", SessionId(key, 0, b"\0" * 32).to_bytes())
    for _ in range(3):
        assert Visit(forged, store).session.error.reason == "secret"  # type: ignore[union-attr]
        with known.visit(store) as session:
            session["x"] += 1
        lab.pass_time(GRACE + 5)
    assert Visit(known, store).session["x"] == 4


def test_regenerate_leaves_no_grace_and_raises_no_alarm(
    lab: Lab, store: Store, known: Browser
) -> None:
    """The cookie from before a login is dead at once, and never an alarm, whatever comes after."""
    before_login, in_flight = copy(known), Visit(copy(known), store)
    with known.visit(store) as session:
        session.login("alice")
    assert Visit(before_login, store).session.error.reason == "generation"  # type: ignore[union-attr]
    in_flight.session["planted"] = 1
    with pytest.raises(SessionGone):
        in_flight.save()
    due(lab)
    with known.visit(store):
        pass
    lab.pass_time(GRACE + 5)
    assert Visit(before_login, store).session.error.reason == "generation"  # type: ignore[union-attr]
    assert Visit(known, store).session.user_key == "alice"


def test_a_login_counts_as_renewal(lab: Lab, store: Store, known: Browser) -> None:
    """A secret's age counts from the last `regenerate`."""
    lab.pass_time(HOUR - 60)
    with known.visit(store) as session:
        session.login("alice")
    lab.pass_time(120)
    with known.visit(store):
        pass
    assert lab.row()["generation"] == 1


def test_a_login_at_the_time_of_a_renewal(lab: Lab, store: Store, known: Browser) -> None:
    """A login of a request that came before a renewal by age still succeeds, with a new secret."""
    due(lab)
    login = Visit(copy(known), store)
    with known.visit(store):
        pass
    login.session.login("alice")
    assert "Set-Cookie" in login.save()
    assert (lab.row()["generation"], lab.row()["min_generation"]) == (2, 2)
    assert Visit(login.browser, store).session.user_key == "alice"
    assert Visit(known, store).session.is_new


def test_a_signing_key_that_rotates_inside_the_grace(
    lab: Lab, store: Store, known: Browser
) -> None:
    """The old cookie still gets the same secret, signed with the new key."""
    due(lab)
    late = copy(known)
    with known.visit(store):
        pass
    rotated = lab.store(b"n" * 32, b"N" * 32, *KEYS, rotate_every=HOUR)
    with late.visit(rotated) as session:
        assert session["x"] == 1
    only_new = lab.store(b"n" * 32, b"N" * 32, rotate_every=HOUR)
    assert secret(late, only_new) == secret(known, rotated)


@pytest.mark.parametrize("keys", [KEYS, KEYS[:1]])
def test_nothing_presentable_in_the_row(
    lab: Lab, browser: Browser, keys: tuple[bytes, ...]
) -> None:
    """What is kept for the grace shows neither secret, with or without a block key."""
    store = lab.store(*keys, rotate_every=HOUR)
    with browser.visit(store) as session:
        session["x"] = 1
        old = session._id.secret
    due(lab)
    with browser.visit(store) as session:
        session["x"] = 2
    new = session._id.secret
    assert new != old
    for value in lab.row().values():
        if isinstance(value, bytes | memoryview):
            assert old not in bytes(value)
            assert new not in bytes(value)


def test_what_is_kept_for_the_grace_goes_after_it(lab: Lab, store: Store, known: Browser) -> None:
    """The next write after the grace clears what could be opened; the hash tells thieves."""
    due(lab)
    with known.visit(store):
        pass
    assert lab.row()["successor"] is not None
    with known.visit(store) as session:
        session["x"] = 2
    assert lab.row()["successor"] is not None
    lab.pass_time(GRACE + 5)
    with known.visit(store) as session:
        session["x"] = 3
    assert lab.row()["successor"] is None
    assert lab.row()["previous_hash"] is not None


@pytest.mark.parametrize("renewals", [1, 2])
def test_a_slow_request_merges_after_the_grace(
    lab: Lab, store: Store, known: Browser, renewals: int
) -> None:
    """Its changes count, though it can send no cookie: the newest is not its to know."""
    slow = Visit(copy(known), store)
    for _ in range(renewals):
        due(lab)
        with known.visit(store):
            pass
    lab.pass_time(GRACE + 5)
    slow.session["slow"] = 1
    for number in range(2):
        slow.session["again"] = number
        assert "Set-Cookie" not in slow.save()
    assert Visit(known, store).session.values == {"x": 1, "slow": 1, "again": 1}
    assert lab.row()["generation"] == renewals
    # Another renewal is not its affair either.
    due(lab)
    slow.session["again"] = 2
    assert "Set-Cookie" not in slow.save()
    assert lab.row()["generation"] == renewals


def test_a_slow_request_never_renews_a_secret_that_is_not_its_own(
    lab: Lab, store: Store, known: Browser
) -> None:
    """Saved twice when the secret is due again, it leaves the renewal to who has the newest."""
    slow = Visit(copy(known), store)
    due(lab)
    with known.visit(store):
        pass
    due(lab)
    for number in range(3):
        slow.session["slow"] = number
        assert "Set-Cookie" not in slow.save()
    assert lab.row()["generation"] == 1
    with known.visit(store) as session:
        assert session.values == {"x": 1, "slow": 2}
    assert lab.row()["generation"] == 2


def test_no_grace_at_all(lab: Lab, browser: Browser) -> None:
    """With rotation_grace=0 the old secret means theft at once."""
    store = lab.store(rotate_every=HOUR, rotation_grace=0)
    with browser.visit(store) as session:
        session["x"] = 1
    due(lab)
    thief = copy(browser)
    with browser.visit(store):
        pass
    lab.pass_time(0.001)
    assert Visit(thief, store).session.error.reason == "replayed"  # type: ignore[union-attr]


@pytest.mark.parametrize("lost", ["answer", "request"])
def test_a_renewal_without_an_answer(lost: str) -> None:
    """The cookie that is sent fits the secret that was stored."""

    class Lossy(MemoryBackend):
        lose: str | None = None

        def update(self, *args: Any, **kwargs: Any) -> Any:
            lose, self.lose = self.lose, None
            result = None if lose == "request" else super().update(*args, **kwargs)
            if lose:
                raise BackendError("lost", outcome_unknown=True)
            return result

    backend, browser = Lossy(), Browser()
    store = Store(backend, *KEYS, rotate_every=0.001, rotation_grace=0)
    with browser.visit(store) as session:
        session["x"] = 1
    while session.created_on == store.backend.load(session._id.selector).now:  # type: ignore[union-attr]
        pass
    backend.lose = lost
    with browser.visit(store) as session:
        session["x"] = 2
    assert Visit(browser, store).session["x"] == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rotate_every": 0}, "rotate_every must be positive"),
        ({"rotate_every": 30}, "rotation_grace must be less than rotate_every"),
        ({"rotate_every": 60, "rotation_grace": -1}, "rotation_grace must be positive"),
        ({"rotate_every": "1h"}, "rotate_every must be seconds"),
        ({"rotation_grace": None}, "rotation_grace must be seconds"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    """Each mistake is a ConfigurationError that says what fits."""
    with pytest.raises(ConfigurationError, match=message):
        Store(MemoryBackend(), *KEYS, **settings)
