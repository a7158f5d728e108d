"""Two nodes on one PostgreSQL, and the clock of one is wrong by a day: sessions do not notice.

Every time in a row is the database's. (`SecureCookie`, which keeps no row, goes by the clock of the
node, with an allowance for skew: see test_codecs.py.)
"""

from __future__ import annotations

import re
from copy import copy
from datetime import datetime, timedelta

import pytest

from support import clocks, crowd
from support.clocks import Seen
from support.stores import Browser, PostgresLab

HOUR = timedelta(hours=1)
WRONG = pytest.mark.parametrize("wrong", [-24 * HOUR, 24 * HOUR], ids=["slow", "fast"])
# Idle after two hours, renewed every hour, touched after five minutes.
SETTINGS = {"idle_timeout": 7200.0, "lifetime": 10 * 3600.0, "rotate_every": 3600.0}
TOUCH = timedelta(seconds=300)
MARGIN = timedelta(seconds=60)


class Nodes:
    """A node whose clock is right, and one whose clock is wrong; they share the database."""

    def __init__(self, lab: PostgresLab, wrong: timedelta) -> None:
        self._wrong = wrong
        self._make = crowd.maker(lab, **SETTINGS)

    def right(self, browser: Browser, **what: object) -> Seen:
        return clocks.visit(self._make, browser, **what)  # type: ignore[arg-type]

    def wrong(self, browser: Browser, **what: object) -> Seen:
        return clocks.visit_wrong_node(self._wrong, self._make, copy(browser), **what)


@pytest.fixture
def nodes(pg_lab: PostgresLab, wrong: timedelta) -> Nodes:
    return Nodes(pg_lab, wrong)


def left(lab: PostgresLab) -> timedelta:
    """Return how long the one row has to live, by the database's clock."""
    row = lab.row()
    end, now = row["expires_on"], lab._raw.execute("SELECT now()").fetchone()
    assert now
    assert isinstance(end, datetime)
    remaining = end - now[0]
    assert isinstance(remaining, timedelta)
    return remaining


def cookie_age(seen: Seen) -> timedelta:
    (line,) = seen.headers
    found = re.search(r"Max-Age=(\d+)", line)
    assert found
    return timedelta(seconds=int(found[1]))


@WRONG
def test_nobody_is_logged_out(pg_lab: PostgresLab, nodes: Nodes) -> None:
    """A session that either node has made, or changed, is good on the other."""
    for first, second in ((nodes.right, nodes.wrong), (nodes.wrong, nodes.right)):
        browser = first(Browser(), change=1).browser
        for number in range(1, 3):
            for node in (second, first):
                seen = node(browser)
                assert (seen.values, seen.is_new, seen.error) == ({"n": number}, False, None)
                browser = seen.browser
            browser = second(browser, change=number + 1).browser
        assert first(browser).values == {"n": 3}


@WRONG
def test_nobody_is_kept_for_longer(pg_lab: PostgresLab, nodes: Nodes) -> None:
    """Whichever node makes, changes or only touches a session, its row and its cookie live for as
    long as they are to, by the database's clock.
    """
    whole = timedelta(hours=2) + TOUCH
    seen = nodes.wrong(Browser(), change=1)
    assert whole - MARGIN < left(pg_lab) <= whole
    assert whole - MARGIN < cookie_age(seen) <= whole

    # Too soon to be touched, by either clock.
    before = pg_lab.row()
    assert nodes.wrong(seen.browser).headers == []
    assert pg_lab.row() == before

    pg_lab.pass_time(HOUR.total_seconds() / 2)
    seen = nodes.wrong(seen.browser)
    assert whole - MARGIN < left(pg_lab) <= whole
    assert whole - MARGIN < cookie_age(seen) <= whole

    # The absolute lifetime counts from the making, whatever the time was there.
    for _ in range(9):
        pg_lab.pass_time(HOUR.total_seconds())
        seen = nodes.wrong(seen.browser)
        assert not seen.is_new
    assert HOUR / 2 - MARGIN < left(pg_lab) <= HOUR / 2
    pg_lab.pass_time(HOUR.total_seconds() / 2)
    assert nodes.wrong(seen.browser).is_new
    assert nodes.right(seen.browser).is_new


@WRONG
def test_idleness_ends_a_session_on_both_nodes(pg_lab: PostgresLab, nodes: Nodes) -> None:
    """A session that expired by the database's clock is gone for the node that is behind, too."""
    seen = nodes.wrong(Browser(), change=1)
    pg_lab.pass_time((2 * HOUR + TOUCH - MARGIN).total_seconds())
    assert not nodes.wrong(copy(seen.browser)).is_new
    pg_lab.pass_time((2 * HOUR + TOUCH + MARGIN).total_seconds())
    assert nodes.wrong(seen.browser).is_new
    assert nodes.right(seen.browser).is_new


@WRONG
def test_a_secret_is_renewed_in_time(pg_lab: PostgresLab, nodes: Nodes) -> None:
    """Renewal by age, and its grace, go by the database's clock: neither node sees a theft."""
    browser = nodes.right(Browser(), change=1).browser
    assert not nodes.wrong(browser, change=2).is_new
    assert pg_lab.row()["generation"] == 0
    pg_lab.pass_time(HOUR.total_seconds() + 1)
    late = copy(browser)
    renewed = nodes.wrong(browser)
    assert pg_lab.row()["generation"] == 1
    assert nodes.right(late).values == {"n": 2}
    assert nodes.wrong(renewed.browser).values == {"n": 2}
    assert pg_lab.row()["generation"] == 1


@WRONG
def test_the_times_of_a_row(pg_lab: PostgresLab, nodes: Nodes) -> None:
    """What a device list shows is the database's time, whichever node wrote it."""
    seen = nodes.wrong(Browser(), change=1)
    nodes.wrong(seen.browser, login="alice")
    row = pg_lab.row()
    now = pg_lab._raw.execute("SELECT now()").fetchone()
    assert now
    times = ("created_on", "modified_on", "seen_on", "authenticated_on", "renewed_on")
    assert [now[0] - MARGIN < row[name] <= now[0] for name in times] == [True] * len(times)


@WRONG
def test_ids_are_unique(pg_lab: PostgresLab, nodes: Nodes) -> None:
    """Ids of both nodes differ, and each finds its own row, though their births are a day apart or
    the same.
    """
    seen = [node(Browser(), change=1) for node in (nodes.right, nodes.wrong) for _ in range(3)]
    assert len({each.handle for each in seen}) == 6
    assert len(pg_lab.rows()) == 6
    for each in seen:
        assert nodes.right(each.browser).handle == each.handle


@WRONG
def test_sweeping(pg_lab: PostgresLab, wrong: timedelta, nodes: Nodes) -> None:
    """A node whose clock is a day fast sweeps nothing that lives; one that is slow sweeps what is
    dead.
    """
    nodes.right(Browser(), change=1)
    assert sweep_elsewhere(pg_lab, wrong) == 0
    pg_lab.pass_time((3 * HOUR).total_seconds())
    assert sweep_elsewhere(pg_lab, wrong) == 1


def sweep_elsewhere(lab: PostgresLab, wrong: timedelta) -> int:
    swept = crowd.elsewhere(clocks.sweep, wrong, crowd.maker(lab, **SETTINGS))
    assert isinstance(swept, int)
    return swept
