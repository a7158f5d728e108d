"""SQLAlchemyStore on MariaDB when connections break, others are at work, and time zones are odd."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from copy import copy
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pgstore import BackendError, Options, SessionGone, SQLAlchemyStore, Store, merge
from pgstore.testing import BARE, EXPIRY, add, key
from support.fault_proxy import FaultProxy
from support.sqlalchemy_labs import MariaDBLab
from support.stores import KEYS, Browser, Visit


@pytest.fixture
def proxy(mariadb_lab: MariaDBLab) -> Iterator[FaultProxy]:
    with FaultProxy("127.0.0.1", mariadb_lab.server.port) as proxy:
        yield proxy


@pytest.fixture
def proxied(mariadb_lab: MariaDBLab, proxy: FaultProxy) -> Store:
    """Return a store whose connections go through the proxy, one at a time."""
    url = mariadb_lab.url.replace(f":{mariadb_lab.server.port}/", f":{proxy.port}/")
    store = SQLAlchemyStore(
        url, *KEYS, pool_size=1, statement_timeout=1.0, merge={"hits": merge.add}
    )
    mariadb_lab._stores.append(store)
    return store


@pytest.fixture
def known(proxied: Store) -> Browser:
    browser = Browser()
    with browser.visit(proxied) as session:
        session["x"] = 1
    return browser


# -- connections that break


def test_a_read_is_retried_on_a_fresh_connection(
    proxied: Store, known: Browser, proxy: Any
) -> None:
    """A connection that died while it was idle is replaced, by reads and writes alike."""
    proxy.kill()
    assert Visit(known, proxied).session["x"] == 1
    visit = Visit(known, proxied)
    visit.session["x"] = 2
    proxy.kill()
    visit.save()
    proxy.kill()
    assert Visit(known, proxied).session["x"] == 2


def test_connections_ended_by_an_administrator(mariadb_lab: MariaDBLab) -> None:
    """Idle connections that are killed are replaced without an error."""
    store, browser = mariadb_lab.store(), Browser()
    for number in range(3):
        with browser.visit(store) as session:
            session[number] = number
        assert mariadb_lab.kill_connections() > 0
    assert Visit(browser, store).session.values == {0: 0, 1: 1, 2: 2}


def test_a_lost_answer(mariadb_lab: MariaDBLab, proxied: Store, proxy: FaultProxy) -> None:
    """An insert, an update, a touch or a delete whose answer is lost on the wire is done once."""
    browser = Browser()
    visit = Visit(browser, proxied)
    visit.session["hits"] = 1
    for verb, hits in ((b"INSERT", 1), (b"UPDATE", 2)):
        proxy.lose_reply_to = verb
        visit.save()
        assert proxy.lose_reply_to is None
        visit = Visit(browser, proxied)
        assert visit.session["hits"] == hits
        visit.session["hits"] += 1
    mariadb_lab.pass_time(3600)
    reading = Visit(browser, proxied)
    proxy.lose_reply_to = b"UPDATE"
    assert "Set-Cookie" in reading.save()
    assert proxy.lose_reply_to is None
    visit.session.delete()
    proxy.lose_reply_to = b"DELETE"
    visit.save()
    assert proxy.lose_reply_to is None
    assert mariadb_lab.rows() == []


@pytest.mark.parametrize("verb", [b"UPDATE", b"DELETE"])
def test_a_lost_request(
    mariadb_lab: MariaDBLab, proxied: Store, proxy: FaultProxy, known: Browser, verb: bytes
) -> None:
    """A write that never arrived is sent again."""
    visit = Visit(known, proxied)
    if verb == b"DELETE":
        visit.session.delete()
    visit.session["x"] = 2
    proxy.lose_request = verb
    visit.save()
    assert proxy.lose_request is None
    assert Visit(known, proxied).session["x"] == 2
    assert len(mariadb_lab.rows()) == 1


def test_a_lost_count_and_another_writer(
    mariadb_lab: MariaDBLab, proxied: Store, proxy: FaultProxy, known: Browser
) -> None:
    """A counter whose save was lost is not counted twice when another writer came after it."""
    visit = Visit(known, proxied)
    visit.session["hits"] = 1
    other = mariadb_lab.store(merge={"hits": merge.add})
    load = proxied.backend.load

    def load_after_another(key: bytes) -> Any:
        proxied.backend.load = load  # type: ignore[method-assign]
        with copy(known).visit(other) as session:
            session["y"] = 1
        return load(key)

    proxied.backend.load = load_after_another  # type: ignore[method-assign]
    proxy.lose_reply_to = b"UPDATE"
    with pytest.raises(BackendError) as caught:
        visit.save()
    assert caught.value.outcome_unknown
    assert Visit(known, other).session.values == {"x": 1, "hits": 1, "y": 1}


def test_a_silent_network(proxied: Store, proxy: FaultProxy, known: Browser) -> None:
    """The driver's deadline holds; a read is not tried again after it, and the store recovers."""
    visit = Visit(known, proxied)
    proxy.stall = True
    start = time.monotonic()
    with pytest.raises(BackendError, match="timed out") as caught:
        Visit(known, proxied)
    assert not caught.value.outcome_unknown
    assert 0.9 < time.monotonic() - start < 1.9
    proxy.stall = False
    visit.session["x"] = 2
    visit.save()
    assert Visit(known, proxied).session["x"] == 2


def test_a_row_that_another_holds(mariadb_lab: MariaDBLab, proxied: Store, known: Browser) -> None:
    """A save that waits for a row longer than the deadline raises, and is known to be unsure."""
    visit = Visit(known, proxied)
    visit.session["x"] = 2
    mariadb_lab.execute("BEGIN")
    mariadb_lab.execute("SELECT 1 FROM http_sessions FOR UPDATE")
    try:
        with pytest.raises(BackendError, match="timed out") as caught:
            visit.save()
        assert caught.value.outcome_unknown
    finally:
        # What waits on the server ends first: it would still be done.
        while waiting := mariadb_lab.execute(
            "SELECT id FROM information_schema.processlist WHERE db = %s AND info LIKE 'UPDATE%%'",
            [mariadb_lab.database],
        ):
            mariadb_lab.execute(f"KILL {waiting[0]['id']}")
        mariadb_lab.execute("ROLLBACK")
    assert Visit(known, proxied).session["x"] == 1


def test_an_outage_is_never_no_session(proxied: Store, proxy: FaultProxy, known: Browser) -> None:
    """Storage that is down is an error, and as soon as it is back the same store works."""
    visit = Visit(known, proxied)
    visit.session["x"] = 2
    proxy.stop_listening()
    proxy.kill()
    for work in (lambda: Visit(known, proxied), visit.save, proxied.delete_expired):
        with pytest.raises(BackendError, match="Can't connect") as caught:
            work()
        assert not caught.value.outcome_unknown
    proxy.start_listening()
    visit.save()
    assert Visit(known, proxied).session["x"] == 2


def test_an_interrupted_statement(mariadb_lab: MariaDBLab, proxied: Store, known: Browser) -> None:
    """An exception between sending and reading closes the connection: nobody reads another's
    answer.
    """
    other = Browser()
    with other.visit(proxied) as session:
        session["x"] = "other"

    class Interrupted(BaseException):
        pass

    def interrupt(number: int, frame: object) -> None:
        raise Interrupted

    mariadb_lab.execute("LOCK TABLES http_sessions WRITE")
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(Interrupted):
            Visit(known, proxied)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        mariadb_lab.execute("UNLOCK TABLES")
    assert Visit(other, proxied).session["x"] == "other"
    assert Visit(known, proxied).session["x"] == 1


def test_an_exhausted_pool(mariadb_lab: MariaDBLab) -> None:
    """The wait for a connection is bounded."""
    store = mariadb_lab.store(pool_size=1, pool_timeout=0.2)
    with store.backend.locked(BARE.key), pytest.raises(BackendError, match="became free in time"):
        store.backend.load(BARE.key)
    assert store.backend.load(BARE.key) is None


def test_an_error_in_a_locked_block_is_not_replaced(proxied: Store, proxy: FaultProxy) -> None:
    """When the connection breaks on the way out, what happened first is what is raised."""

    def interrupted() -> None:
        with proxied.backend.locked(BARE.key):
            proxy.kill()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert proxied.backend.load(BARE.key) is None


def test_a_commit_without_an_answer(proxied: Store, proxy: FaultProxy) -> None:
    """Whether a transaction was committed is then not known."""
    row = add(proxied.backend, BARE)

    def work() -> None:
        with proxied.backend.locked(BARE.key) as inside:
            assert inside.update(row.but(version=1), row.version, EXPIRY)
            proxy.lose_reply_to = b"COMMIT"

    with pytest.raises(BackendError) as caught:
        work()
    assert caught.value.outcome_unknown
    loaded = proxied.backend.load(BARE.key)
    assert loaded
    assert loaded.row.version == 1


def test_deadlocks_are_not_the_callers_affair(mariadb_lab: MariaDBLab) -> None:
    """Of two transactions that wait for each other MariaDB ends one: its work is done again."""
    backend = mariadb_lab.store().backend
    rows = [add(backend, BARE.but(key=key(number), user_key="alice")) for number in range(2)]
    ended = []
    real = backend._of_user  # type: ignore[attr-defined]

    def of_user(job: Any, *args: Any, **settings: Any) -> Any:
        # The raw connection holds what is asked for next, and waits for what is held already.
        if not ended:
            job.connection.exec_driver_sql("DELETE FROM http_sessions WHERE 0")
            ended.append(True)
            import pymysql
            import sqlalchemy as sa

            raise sa.exc.OperationalError(
                "", {}, pymysql.OperationalError(1213, "Deadlock found when trying to get lock")
            )
        return real(job, *args, **settings)

    backend._of_user = of_user  # type: ignore[attr-defined]
    assert sorted(row.key for row in backend.delete_of_user("alice")) == [r.key for r in rows]


# -- others at work


def test_one_process_sweeps_at_a_time(mariadb_lab: MariaDBLab) -> None:
    """While another session leads the sweep of this table, a sweep returns at once."""
    store = mariadb_lab.store(options=Options(max_age=60))
    for _ in range(3):
        with Browser().visit(store) as session:
            session["x"] = 1
    mariadb_lab.pass_time(3600)
    name = "CONCAT('pgstore ', SHA1(CONCAT_WS('.', 'sweep', DATABASE(), 'http_sessions')))"
    assert mariadb_lab.execute(f"SELECT GET_LOCK({name}, 0) AS got") == [{"got": 1}]
    assert store.backend.sweep(10, 600.0) == []
    assert store.delete_expired() == 0
    mariadb_lab.execute(f"SELECT RELEASE_LOCK({name})")
    assert store.delete_expired() == 3
    # And it gives the lead away when it is done.
    assert mariadb_lab.execute(f"SELECT GET_LOCK({name}, 0) AS got") == [{"got": 1}]


def test_a_sweep_passes_over_locked_rows(mariadb_lab: MariaDBLab) -> None:
    """A row that somebody holds is left to the next sweep."""
    store = mariadb_lab.store()
    for number in range(3):
        add(store.backend, BARE.but(key=key(number)))
    mariadb_lab.pass_time(30 * 24 * 3600)
    mariadb_lab.execute("BEGIN")
    mariadb_lab.execute("SELECT 1 FROM http_sessions WHERE `key` = %s FOR UPDATE", [key(1)])
    assert store.delete_expired() == 2
    mariadb_lab.execute("ROLLBACK")
    assert store.delete_expired() == 1


def test_sweeps_of_two_databases_do_not_meet(mariadb_lab: MariaDBLab) -> None:
    """MariaDB's named locks are the whole server's; ours are named after the database, too."""
    store = mariadb_lab.store()
    name = "CONCAT('pgstore ', SHA1(CONCAT_WS('.', 'sweep', 'another', 'http_sessions')))"
    mariadb_lab.execute(f"SELECT GET_LOCK({name}, 0)")
    assert store.backend.sweep(10, 600.0) == []


def test_a_lock_holds_up_nobody_else(mariadb_lab: MariaDBLab) -> None:
    """Under REPEATABLE READ, MariaDB's default, a lock on a row holds the gaps beside it, too."""
    backend = mariadb_lab.store(statement_timeout=2.0).backend
    for number in (1, 9):
        add(backend, BARE.but(key=key(number), user_key="alice"))
    for held in (5, 9):
        with backend.locked(key(held)) as inside:
            inside.of_user("alice")
            for number in (4, 5, 6, 20):
                if number != held or held == 5:
                    add(backend, BARE.but(key=key(number), user_key="alice"))
                    assert backend.delete(key(number))


def test_a_logout_against_a_slow_request(mariadb_lab: MariaDBLab) -> None:
    """A row that is deleted while another request works on it does not come back."""
    store, browser = mariadb_lab.store(), Browser()
    with browser.visit(store) as session:
        session["x"] = 1
    slow = Visit(browser, store)
    slow.session["x"] = 2
    with copy(browser).visit(store) as session:
        session.delete()
    with pytest.raises(SessionGone):
        slow.save()
    assert mariadb_lab.rows() == []


# -- what MariaDB would spoil


def test_times_are_in_utc_whatever_the_servers_time_zone(mariadb_lab: MariaDBLab) -> None:
    """They are the server's clock's, not its time zone's, to the microsecond."""
    ((zone,),) = [tuple(row.values()) for row in mariadb_lab.execute("SELECT @@time_zone")]
    assert zone == "+05:45"
    with Browser().visit(mariadb_lab.store()) as session:
        session["x"] = 1
    created_on = mariadb_lab.row()["created_on"]
    assert abs(created_on - datetime.now(UTC)) < timedelta(seconds=60)
    assert session.created_on == created_on


def test_texts_of_any_alphabet(mariadb_lab: MariaDBLab) -> None:
    """Whatever character set the connection has: it never sees a text."""
    for charset in ("latin1", "utf8mb4", "big5"):
        store = SQLAlchemyStore(f"{mariadb_lab.url}?charset={charset}", *KEYS)
        mariadb_lab._stores.append(store)
        user, browser = f"Łukasz ☃ \U0001f36a {charset}", Browser(agent="Browser/é\xff")
        with browser.visit(store) as session:
            session.login(user)
            session.meta["device"] = "téléphone \U0001f36a"
        (found,) = store.sessions_of(user)
        assert found.meta == {"device": "téléphone \U0001f36a"}
        assert [row["user_agent"] for row in mariadb_lab.rows() if row["user_key"] == user] == [
            browser.agent
        ]


def test_a_megabyte_of_data(mariadb_lab: MariaDBLab) -> None:
    """LONGBLOB holds it, and comes back as it was."""
    store, browser = mariadb_lab.store(max_length=0), Browser()
    data = bytes(range(256)) * 8192
    with browser.visit(store) as session:
        session["data"] = data
    assert Visit(browser, store).session["data"] == data
