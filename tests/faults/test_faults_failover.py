"""The primary dies under load and its standby is promoted; the DSN names both hosts."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgstore import BackendError, PGStore, merge
from support.standby import Pair, replicated
from support.stores import KEYS, Browser, Visit
from support.writers import Writers


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "psycopg.pool")


@pytest.fixture
def pair() -> Iterator[Pair]:
    with replicated() as pair:
        yield pair


@pytest.mark.parametrize("synchronous_commit", ["on", "remote_apply"])
def test_failover_loses_no_acknowledged_save(
    pair: Pair, synchronous_commit: str, record_property: pytest.RecordProperty
) -> None:
    """With synchronous replication every save that returned is on the promoted standby, and
    requests get through within a second of the promotion, by themselves.
    """
    pair.require_standby(synchronous_commit)
    with PGStore(pair.dsn, *KEYS, pool_size=4, merge={"hits": merge.add}) as store:
        with Writers(store, 6) as writers:
            writers.wait_for_turns()
            acknowledged = writers.acknowledged
            pair.primary.kill()
            down = time.monotonic()
            writers.wait_for_errors()
            promoting = time.monotonic()
            pair.promote()
            ready = time.monotonic()
            writers.wait_for_turns()
            back = writers.back(down) - ready
        refused = writers.turns(down, promoting)
        for name, value in (
            ("promotion_took", ready - promoting),
            ("back_after", back),
            ("acknowledged_before", acknowledged),
            ("acknowledged", writers.acknowledged),
            ("unknown", writers.unknown),
            ("slowest_error", max(turn.took for turn in refused)),
        ):
            record_property(name, value)
            print(f"{name}: {value:.3f}")
        assert [turn for turn in refused if turn.error is None] == []
        assert max(turn.took for turn in refused) < 2.0
        assert back < 1.0
        writers.check_all_is_there()
    with PGStore(pair.standby.dsn, *KEYS, merge={"hits": merge.add}) as store:
        writers.check_all_is_there(store)


def test_two_hosts_in_either_form(pair: Pair) -> None:
    """A URL and libpq's key=value form may both name two hosts; the one that takes writes is found
    wherever it stands.
    """
    parts = conninfo_to_dict(pair.dsn)
    turned = {**parts, "port": ",".join(reversed(str(parts["port"]).split(",")))}
    browser = Browser()
    for number, dsn in enumerate((pair.dsn, make_conninfo(**parts), make_conninfo(**turned))):
        with PGStore(dsn, *KEYS) as store, browser.visit(store) as session:
            session[number] = number
    with PGStore(pair.primary.dsn, *KEYS) as store:
        assert Visit(browser, store).session.values == {0: 0, 1: 1, 2: 2}


def test_only_a_standby_is_left(pair: Pair) -> None:
    """Until somebody promotes it, a standby is no database for this DSN: that is an error which
    says so, and never a session that is new.
    """
    browser = Browser()
    with PGStore(pair.dsn, *KEYS) as store:
        with browser.visit(store) as session:
            session["x"] = 1
        pair.primary.kill()
        for _ in range(2):
            with pytest.raises(BackendError, match="cannot be reached"):
                Visit(browser, store)


def test_a_standby_serves_reads(pair: Pair) -> None:
    """On a standby sessions can be read; a save is refused with the reason, and changes nothing."""
    browser = Browser()
    with PGStore(pair.primary.dsn, *KEYS) as store, browser.visit(store) as session:
        session["x"] = 1
    with (
        psycopg.connect(pair.primary.dsn) as primary,
        psycopg.connect(pair.standby.dsn, autocommit=True) as standby,
    ):
        written = primary.execute("SELECT pg_current_wal_lsn()").fetchone()
        assert written is not None
        deadline = time.monotonic() + 30
        query = "SELECT pg_last_wal_replay_lsn() >= %s"
        while standby.execute(query, written).fetchone() != (True,):
            assert time.monotonic() < deadline
            time.sleep(0.005)
    with PGStore(pair.standby.dsn, *KEYS) as store:
        visit = Visit(browser, store)
        assert visit.session["x"] == 1
        visit.session["x"] = 2
        with pytest.raises(BackendError, match="read-only transaction") as caught:
            visit.save()
        assert not caught.value.outcome_unknown
        assert Visit(browser, store).session["x"] == 1
