"""What depends on no machine: pages that are read, writes, updates in place, bytes of WAL.

``tests/test_measures.py`` holds the same figures to their bounds.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self

import _servers
import psycopg
from _common import KEYS, PAYLOAD, Effort, Report, environ, main, say
from _floor import get, new_visitor
from _rows import Crowd
from psycopg import sql
from werkzeug.datastructures import Headers

from pgstore import PGStore
from pgstore.embedded import temporary

# The store's statements find this in front of PostgreSQL's own, in the search_path. So weeks pass
# in seconds, and no row has to be changed for it: what PostgreSQL counts is what visits did.
_CLOCK = """
CREATE TABLE clock AS SELECT interval '0' AS ahead;
CREATE FUNCTION statement_timestamp() RETURNS timestamptz LANGUAGE sql STABLE
    RETURN pg_catalog.statement_timestamp() + (SELECT ahead FROM clock);
"""

_COUNTS = """
SELECT n_tup_upd, n_tup_hot_upd, seq_scan, idx_scan, idx_tup_fetch,
    heap_blks_read + heap_blks_hit, idx_blks_read + idx_blks_hit
FROM pg_stat_user_tables JOIN pg_statio_user_tables USING (relid)
WHERE relid = 'http_sessions'::regclass
"""

_MINUTE, _HOUR, _DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


@dataclass(frozen=True)
class Counted:
    """What PostgreSQL counted on the table of a site."""

    updates: int
    updates_in_place: int
    table_scans: int
    index_scans: int
    rows_by_index: int
    table_pages: int
    index_pages: int


class Site:
    """A store with the default settings, on a schema of its own, and a clock that can be moved.

    Makes the schema if it is not there.
    """

    def __init__(self, dsn: str, schema: str) -> None:
        self._name = f"site {schema}"
        self._dsn = f"{dsn}?options=-c%20search_path%3D{schema},pg_catalog"
        with psycopg.connect(dsn, autocommit=True) as connection:
            create = sql.SQL("CREATE SCHEMA IF NOT EXISTS {}")
            connection.execute(create.format(sql.Identifier(schema)))
        self._watch = psycopg.connect(self._dsn, autocommit=True)
        self._watch.execute(_CLOCK)
        self.store = self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.store.close()
        self._watch.close()

    def settle(self, crowd: Crowd) -> list[str]:
        """Fill the table; return the cookies of the real sessions."""
        return crowd.settle(self._dsn)

    def set_clock(self, ahead: timedelta) -> None:
        self._watch.execute("UPDATE clock SET ahead = %s", [ahead])

    def checkpoint(self) -> None:
        self._watch.execute("CHECKPOINT")

    def start_of_bucket(self) -> timedelta:
        """Return how far ahead the clock has to be for new expiries to lie early in a bucket."""
        self.set_clock(timedelta())
        new_visitor(self.store)
        left: timedelta = self.one("SELECT max(gc_after - expires_on) FROM http_sessions")
        return left + _MINUTE

    def visit(self, cookie: str) -> None:
        """Do what a read-only request does."""
        request = environ(cookie)
        session = self.store.get(request, "session")
        assert not session.is_new
        session.save(request, Headers())

    def count(self, act: Callable[[], None]) -> Counted:
        """Return what the store's connections did to the table meanwhile."""
        before = self._counts()
        act()
        return Counted(*(a - b for a, b in zip(self._counts(), before, strict=True)))

    def one(self, query: str) -> Any:
        """Return the one value of a query."""
        row = self._watch.execute(query).fetchone()
        assert row is not None
        return row[0]

    def _open(self) -> PGStore:
        return PGStore(f"{self._dsn}&application_name={self._name.replace(' ', '%20')}", *KEYS)

    def _counts(self) -> tuple[int, ...]:
        # A backend tells what it has done when it ends, at the latest.
        self.store.close()
        deadline = time.monotonic() + 10
        while self.one(
            f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{self._name}'"
        ):
            assert time.monotonic() < deadline
        counts = self._watch.execute(_COUNTS).fetchone()
        assert counts is not None
        self.store = self._open()
        return counts


def touches_in_a_bucket(site: Site, *, visitors: int, touches: int) -> Counted:
    """Let each visitor come every ten minutes, all expiries within one bucket."""
    start = site.start_of_bucket()
    site.set_clock(start)
    cookies = [new_visitor(site.store) for _ in range(visitors)]

    def come() -> None:
        for number in range(1, touches + 1):
            site.set_clock(start + number * 10 * _MINUTE)
            for cookie in cookies:
                site.visit(cookie)

    return site.count(come)


def mixed_visits(site: Site, *, visitors: int, days: int, seed: int = 1) -> Counted:
    """Let visitors of several kinds come for so many days.

    Of ten, two come every hour of an eight-hour day, four once a day, and four twice a week for
    half an hour, a page every minute.
    """
    chance = random.Random(seed)
    site.set_clock(timedelta())
    visits = [
        (moment, cookie)
        for number in range(visitors)
        for cookie in [new_visitor(site.store)]
        for moment in _visits(number % 10, days, chance)
    ]

    def come() -> None:
        for moment, cookie in sorted(visits):
            site.set_clock(moment)
            site.visit(cookie)

    return site.count(come)


def _visits(kind: int, days: int, chance: random.Random) -> Iterator[timedelta]:
    for number in range(days):
        day = (number + 1) * _DAY
        if kind < 2:
            for hour in range(8):
                yield day + (9 + hour + chance.random()) * _HOUR
        elif kind < 6:
            yield day + chance.uniform(8, 22) * _HOUR
        elif (number + kind) % 7 in (0, 3):
            begin = day + chance.uniform(8, 22) * _HOUR
            for minute in range(30):
                yield begin + minute * _MINUTE


def wal_of_touches(site: Site, touches: int) -> list[float]:
    """Return the bytes of WAL of each touch of one session, in a bucket, without page images."""
    start = site.start_of_bucket()
    site.set_clock(start)
    cookie = new_visitor(site.store)
    site.checkpoint()
    sizes = []
    for number in range(touches + 1):
        site.set_clock(start + (number + 1) * 10 * _MINUTE)
        before = site.one("SELECT pg_current_wal_insert_lsn() - '0/0'")
        site.visit(cookie)
        after = site.one("SELECT pg_current_wal_insert_lsn() - '0/0'")
        if number:  # the first one after a checkpoint may carry an image of its page
            sizes.append(float(after - before))
    return sizes


def reads(site: Site, visits: int) -> tuple[Counted, Counted]:
    """Let a visitor come so often within the touch interval, and so often just after it."""
    site.set_clock(timedelta())
    cookie = new_visitor(site.store)

    def within() -> None:
        for number in range(visits):
            site.set_clock(timedelta(seconds=299 * number / visits))
            site.visit(cookie)

    def after() -> None:
        site.set_clock(timedelta(seconds=301))
        for _ in range(visits):
            site.visit(cookie)

    return site.count(within), site.count(after)


def gets(site: Site, *, rows: int, visitors: int) -> Counted:
    """Get each of so many sessions once, from a table of so many rows."""
    cookies = site.settle(Crowd("http_sessions", rows, rows // visitors, PAYLOAD))

    def come() -> None:
        for cookie in cookies:
            get(site.store, cookie)

    return site.count(come)


def run(effort: Effort) -> Report:
    report = Report("Counted by PostgreSQL", "")
    with temporary() as server:
        report.about |= _servers.about(server)

        with Site(server.dsn, "bucket") as site:
            counted = touches_in_a_bucket(
                site, visitors=20, touches=effort.pick(full=50, quick=20, smoke=2)
            )
        share = 100 * counted.updates_in_place / counted.updates
        report.add("touches in a bucket, in place (HOT)", "–", [share], " %", at_least=100)

        visitors = effort.pick(full=200, quick=40, smoke=10)
        days = effort.pick(full=28, quick=14, smoke=7)
        say(f"{visitors} visitors for {days} days")
        with Site(server.dsn, "mix") as site:
            counted = mixed_visits(site, visitors=visitors, days=days)
        share = 100 * counted.updates_in_place / counted.updates
        report.add("touches of mixed visitors, in place (HOT)", "–", [share], " %", at_least=85)

        with Site(server.dsn, "wal") as site:
            sizes = wal_of_touches(site, effort.pick(full=200, quick=50, smoke=5))
        report.add("WAL of a touch, 300-byte session", "–", sizes, " bytes", at_most=250)

        with Site(server.dsn, "reads") as site:
            within, after = reads(site, effort.pick(full=1000, quick=200, smoke=5))
        report.add(
            "writes of read-only requests in touch_interval", "–", [within.updates], "", at_most=0
        )
        report.add("and of as many after it", "–", [after.updates], "", at_most=1)

        with Site(server.dsn, "gets") as site:
            counted = gets(site, rows=10_000, visitors=100)
        pages = (counted.table_pages + counted.index_pages) / 100
        report.add("pages read by a get, of 10,000 rows", "–", [pages], "")
    return report


if __name__ == "__main__":
    main(run)
