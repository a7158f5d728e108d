"""Expiry by idleness and by age, on every kind of store. Time moves by making the rows older."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from datetime import timedelta
from typing import Any

import pytest

from pgstore import ConfigurationError, Options, SessionGone, SessionNotFound, Store
from support.stores import Browser, Lab, Visit

HOUR = 3600
DAY = 24 * HOUR


def start(store: Store, browser: Browser, **values: Any) -> None:
    with browser.visit(store) as session:
        session.values.update(values or {"x": 1})


def alive(store: Store, browser: Browser) -> bool:
    """Tell whether the browser's session is found; saves nothing."""
    return not Visit(browser, store).session.is_new


def test_a_session_ends_when_it_is_idle(lab: Lab, browser: Browser) -> None:
    """It lives idle_timeout plus one touch interval after the last stamped visit, and no longer."""
    store = lab.store(idle_timeout=HOUR, touch_interval=60)
    start(store, browser)
    lab.pass_time(HOUR + 59)
    assert alive(store, browser)
    lab.pass_time(2)
    session = Visit(browser, store).session
    assert isinstance(session.error, SessionNotFound)
    assert session.error.reason == "unknown"


def test_idleness_is_never_cut_short(lab: Lab, browser: Browser) -> None:
    """A visit just inside the touch interval moves nothing, and still leaves the whole
    idle_timeout.
    """
    store = lab.store(idle_timeout=HOUR, touch_interval=60)
    start(store, browser)
    lab.pass_time(59)
    with browser.visit(store):
        pass
    lab.pass_time(HOUR - 1)
    assert alive(store, browser)


def test_visits_keep_a_session_alive(lab: Lab, browser: Browser) -> None:
    """Each save of a request, with or without a change, slides the expiry."""
    store = lab.store(idle_timeout=HOUR)
    start(store, browser)
    for number in range(20):
        lab.pass_time(0.9 * HOUR)
        with browser.visit(store) as session:
            if number % 2:
                session["x"] = number
    assert alive(store, browser)


def test_a_handler_that_never_saves_slides_nothing(lab: Lab, browser: Browser) -> None:
    """Reading alone writes nothing."""
    store = lab.store(idle_timeout=HOUR)
    start(store, browser)
    before = lab.row()
    lab.pass_time(0.9 * HOUR)
    aged = lab.row()
    assert alive(store, browser)
    assert lab.row() == aged != before


def test_the_absolute_lifetime(lab: Lab, browser: Browser) -> None:
    """However busy, a session ends ``lifetime`` after its creation."""
    store = lab.store(lifetime=DAY, idle_timeout=HOUR)
    start(store, browser)
    for _ in range(47):
        lab.pass_time(HOUR / 2)
        with browser.visit(store) as session:
            assert not session.is_new
            assert session.expires_on <= session.created_on + timedelta(days=1)
    lab.pass_time(HOUR / 2)
    assert not alive(store, browser)


def test_login_starts_the_lifetime_anew(lab: Lab, browser: Browser) -> None:
    """The absolute lifetime counts from the login."""
    store = lab.store(lifetime=DAY)
    start(store, browser)
    lab.pass_time(0.9 * DAY)
    with browser.visit(store) as session:
        session.login("alice")
    lab.pass_time(0.9 * DAY)
    with browser.visit(store) as session:
        assert session.user_key == "alice"
        assert session.expires_on == session.authenticated_on + timedelta(days=1)
    lab.pass_time(0.2 * DAY)
    assert not alive(store, browser)


def test_the_earliest_limit_counts(lab: Lab, browser: Browser) -> None:
    """max_age, idle_timeout and lifetime hold together."""
    for settings, seconds in (
        ({"options": Options(max_age=100), "idle_timeout": 200, "lifetime": 300}, 100),
        ({"options": Options(max_age=300), "idle_timeout": 100, "lifetime": 200}, 100),
        ({"options": Options(max_age=300), "idle_timeout": 200, "lifetime": 100}, 100),
        ({"options": Options(max_age=0), "idle_timeout": 100}, 100),
        ({"options": Options(max_age=0), "lifetime": 100}, 100),
        ({"options": Options(max_age=0)}, DAY),
    ):
        store, browser = lab.store(touch_interval=0, **settings), Browser()
        start(store, browser)
        lab.pass_time(seconds - 1)
        assert alive(store, browser)
        lab.pass_time(2)
        assert not alive(store, browser)


def test_a_browser_session_cookie(lab: Lab, browser: Browser) -> None:
    """max_age=0 sends neither Max-Age nor Expires, and its row lives 24 hours."""
    store = lab.store(options=Options(max_age=0))
    visit = Visit(browser, store)
    visit.session["x"] = 1
    cookie = visit.save()["Set-Cookie"]
    assert "Max-Age" not in cookie
    assert "Expires" not in cookie
    assert visit.session.expires_on - visit.session.created_on == timedelta(seconds=DAY + 300)


def test_a_cookie_that_is_not_persistent(lab: Lab, browser: Browser) -> None:
    """It sends neither Max-Age nor Expires, and its row lives for ``max_age`` all the same."""
    store = lab.store(options=Options(max_age=HOUR, persistent=False))
    visit = Visit(browser, store)
    visit.session["x"] = 1
    cookie = visit.save()["Set-Cookie"]
    assert "Max-Age" not in cookie
    assert "Expires" not in cookie
    assert visit.session.expires_on - visit.session.created_on == timedelta(seconds=HOUR + 300)


def test_a_cookie_is_sent_again_when_asked(lab: Lab, browser: Browser) -> None:
    """`send_cookie` sends it once, with the options of the request, and nothing is written."""
    store = lab.store()
    with browser.visit(store) as session:
        session["x"] = 1
    before = lab.row()
    visit = Visit(browser, store)
    visit.session.options.persistent = False
    visit.session.send_cookie()
    assert "Max-Age" not in visit.save()["Set-Cookie"]
    assert "Set-Cookie" not in Visit(browser, store).save()
    assert lab.row() == before
    new = Visit(Browser(), store)
    new.session.send_cookie()
    assert "Set-Cookie" not in new.save()


def test_the_cookie_never_outlives_its_row(lab: Lab, browser: Browser) -> None:
    """Max-Age is what the row has left: max_age and a touch interval, or less by its lifetime."""
    store = lab.store(lifetime=HOUR, touch_interval=0)
    visit = Visit(browser, store)
    visit.session["x"] = 1
    assert f"; Max-Age={HOUR};" in visit.save()["Set-Cookie"]
    lab.pass_time(HOUR - 100)
    cookie = Visit(browser, store).save()["Set-Cookie"]
    assert 95 <= int(cookie.partition("Max-Age=")[2].partition(";")[0]) <= 100


def test_the_cookie_lives_as_long_as_its_row(lab: Lab, browser: Browser) -> None:
    """The touch interval does not cut idleness short in the browser, either."""
    store = lab.store(options=Options(max_age=HOUR), touch_interval=60)
    visit = Visit(browser, store)
    visit.session["x"] = 1
    assert "; Max-Age=3660;" in visit.save()["Set-Cookie"]


def test_a_touch_changes_only_three_columns(lab: Lab, browser: Browser) -> None:
    """A read-only request writes three columns, once per touch interval."""
    store = lab.store()
    start(store, browser)
    lab.pass_time(299)
    before = lab.row()
    assert "Set-Cookie" not in Visit(browser, store).save()
    assert lab.row() == before
    lab.pass_time(2 * DAY)
    before = lab.row()
    assert "Set-Cookie" in Visit(browser, store).save()
    after = lab.row()
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"seen_on", "expires_on", "gc_after"}
    assert "Set-Cookie" not in Visit(browser, store).save()
    assert lab.row() == after


def test_parallel_readers_touch_once(lab: Lab, browser: Browser) -> None:
    """Of two requests that find a touch due, one writes and sends the cookie."""
    store = lab.store()
    start(store, browser)
    lab.pass_time(DAY)
    first, second = Visit(browser, store), Visit(browser, store)
    assert "Set-Cookie" in first.save()
    after = lab.row()
    assert "Set-Cookie" not in second.save()
    assert lab.row() == after


def test_a_busy_session_gets_its_cookie_again(lab: Lab, browser: Browser) -> None:
    """A session that is changed all the time still has its cookie sent once per touch interval."""
    store = lab.store()
    start(store, browser)
    sent = 0
    for number in range(100):
        lab.pass_time(30)
        visit = Visit(browser, store)
        visit.session["x"] = number
        sent += "Set-Cookie" in visit.save()
    assert sent == 10


def test_expired_in_mid_request(lab: Lab, browser: Browser) -> None:
    """A session that expires while a request works on it is gone for every write."""
    store = lab.store(idle_timeout=HOUR)
    actions: list[Callable[[Any], object]] = [
        lambda session: session.values.update(x=2),
        lambda session: session.login("alice"),
        lambda session: session.values.clear(),
        lambda session: None,
    ]
    for act in actions:
        browser = Browser()
        start(store, browser)
        lab.pass_time(DAY / 24)
        visit = Visit(browser, store)
        lab.pass_time(DAY)
        before = lab.rows()
        act(visit.session)
        with pytest.raises(SessionGone):
            visit.save()
        assert "Set-Cookie" not in visit.headers
        assert lab.rows() == before


def test_deleting_an_expired_session(lab: Lab, browser: Browser) -> None:
    """A delete that comes after the expiry leaves the row to the sweep and clears the cookie."""
    store = lab.store(idle_timeout=HOUR)
    start(store, browser)
    visit = Visit(browser, store)
    lab.pass_time(DAY)
    visit.session.delete()
    assert "Max-Age=0" in visit.save()["Set-Cookie"]
    assert store.delete_expired() == 1


def test_delete_expired(lab: Lab) -> None:
    """It deletes what has expired, across batches, and returns how many; live rows stay."""
    store = lab.store(idle_timeout=HOUR)
    for _ in range(5):
        start(store, Browser())
    lab.pass_time(DAY)
    browser = Browser()
    start(store, browser)
    assert store.delete_expired() == 5
    assert store.delete_expired() == 0
    assert len(lab.rows()) == 1
    assert alive(store, browser)


@pytest.mark.parametrize("interval", [-1, -0.5, timedelta(seconds=-1), "5", float("nan")])
def test_cleanup_intervals_that_do_not_fit(lab: Lab, interval: Any) -> None:
    """A negative interval, or none at all, is the caller's mistake."""
    store = lab.store()
    for start_it in (store.cleanup, lambda i: store.run_cleanup(None, i)):
        with pytest.raises(ConfigurationError, match="interval"):
            start_it(interval)


def test_a_regenerated_session_is_not_touched_by_an_older_request(
    lab: Lab, browser: Browser
) -> None:
    """A request that came before a login and only reads sends no cookie over the new one."""
    store = lab.store()
    start(store, browser)
    lab.pass_time(DAY)
    slow = Visit(copy(browser), store)
    with browser.visit(store) as session:
        session.login("alice")
    with pytest.raises(SessionGone):
        slow.save()
    assert "Set-Cookie" not in slow.headers
    assert Visit(browser, store).session.user_key == "alice"
