"""The wire between store and PostgreSQL fails: requests and answers are lost, held up, or given up.

What is lost is lost by a proxy in front of a real server; an outage of the whole server is in
`test_faults_outage`.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from typing import Any

import pytest

from pgstore import BackendError, PGStore, SessionGone, merge
from pgstore.backends.postgres_pool import OwnPool
from pgstore.embedded import PostgresServer
from pgstore.errors import RowError
from pgstore.rows import Loaded
from support.holding_proxy import HoldingProxy
from support.stores import KEYS, Browser, PostgresLab, Visit
from support.writers import Writers

LIMIT = 1.0  # the stores' statement_timeout and pool_timeout, in seconds
MARGIN = 2.0  # for a busy machine
BY_THE_PROXY = pytest.mark.parametrize("lost", ["request", "reply"])


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "psycopg.pool")


@pytest.fixture
def proxy(pg_server: PostgresServer) -> Iterator[HoldingProxy]:
    assert pg_server.port
    with HoldingProxy("127.0.0.1", pg_server.port) as proxy:
        yield proxy


@pytest.fixture
def make(proxy: HoldingProxy, pg_lab: PostgresLab) -> Iterator[Callable[..., PGStore]]:
    """Return what makes a store that reaches its database through the proxy."""
    pg_lab.store()
    dsn = f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres"
    stores = []

    def make(**settings: Any) -> PGStore:
        settings = {"statement_timeout": LIMIT, "pool_timeout": LIMIT, **settings}
        settings.setdefault("merge", {"hits": merge.add})
        store = PGStore(dsn, *KEYS, db_schema=pg_lab.schema, schema="off", **settings)
        stores.append(store)
        return store

    yield make
    proxy.stall = False
    proxy.release()
    for store in stores:
        store.close()


@pytest.fixture
def store(make: Callable[..., PGStore]) -> PGStore:
    return make()


@pytest.fixture
def known(store: PGStore) -> Browser:
    """Return a browser whose session has hits = 1 and x = 1."""
    browser = Browser()
    with browser.visit(store) as session:
        session["hits"] = session["x"] = 1
    return browser


def selector(session: Any) -> bytes:
    """Return what every statement about this session has in it."""
    selector: bytes = session._id.selector
    return selector


def lose(proxy: HoldingProxy, lost: str, session: Any) -> None:
    """Make the proxy lose the next statement about a session, or the answer to it."""
    if lost == "request":
        proxy.lose_request = selector(session)
    else:
        proxy.lose_reply_to = selector(session)


def was_lost(proxy: HoldingProxy) -> bool:
    return proxy.lose_request is None and proxy.lose_reply_to is None


def then(
    monkeypatch: pytest.MonkeyPatch,
    store: PGStore,
    work: Callable[[Loaded | None], Any],
    *,
    before: bool = True,
) -> None:
    """Have ``work`` done once, by somebody else, before (or after) the next load of the store."""
    load = store.backend.load

    def patched(key: bytes) -> Loaded | None:
        monkeypatch.setattr(store.backend, "load", load)
        if before:
            work(None)
        loaded = load(key)
        if not before:
            work(loaded)
        return loaded

    monkeypatch.setattr(store.backend, "load", patched)


# -- a connection that is reset before or after the statement has reached the server


@BY_THE_PROXY
def test_a_get_that_is_reset(
    store: PGStore, proxy: HoldingProxy, known: Browser, lost: str
) -> None:
    """A read is answered all the same."""
    lose(proxy, lost, Visit(known, store).session)
    assert Visit(known, store).session["x"] == 1
    assert was_lost(proxy)


@BY_THE_PROXY
def test_an_update_that_is_reset(
    store: PGStore, proxy: HoldingProxy, known: Browser, lost: str
) -> None:
    """An update is done once, counters included."""
    visit = Visit(known, store)
    visit.session["hits"] += 1
    visit.session["x"] = 2
    lose(proxy, lost, visit.session)
    visit.save()
    assert was_lost(proxy)
    assert Visit(known, store).session.values == {"hits": 2, "x": 2}


@BY_THE_PROXY
def test_an_insert_that_is_reset(
    store: PGStore, proxy: HoldingProxy, pg_lab: PostgresLab, lost: str
) -> None:
    """A first save makes one row, and the cookie that is sent opens it."""
    browser = Browser()
    visit = Visit(browser, store)
    visit.session["hits"] = 1
    lose(proxy, lost, visit.session)
    visit.save()
    assert was_lost(proxy)
    assert Visit(browser, store).session.values == {"hits": 1}
    assert len(pg_lab.rows()) == 1


@BY_THE_PROXY
def test_a_touch_that_is_reset(
    store: PGStore, proxy: HoldingProxy, known: Browser, pg_lab: PostgresLab, lost: str
) -> None:
    """A visit is stamped, and the cookie that belongs to the stamp is sent."""
    pg_lab.pass_time(3600)
    before = pg_lab.row()
    visit = Visit(known, store)
    lose(proxy, lost, visit.session)
    headers = visit.save()
    assert was_lost(proxy)
    after = pg_lab.row()
    assert after["seen_on"] > before["seen_on"]
    assert after["expires_on"] > before["expires_on"]
    assert "Set-Cookie" in headers


@BY_THE_PROXY
def test_a_delete_that_is_reset(
    store: PGStore, proxy: HoldingProxy, known: Browser, pg_lab: PostgresLab, lost: str
) -> None:
    """A logout ends the session and clears the cookie."""
    visit = Visit(known, store)
    lose(proxy, lost, visit.session)
    visit.session.delete()
    visit.save()
    assert was_lost(proxy)
    assert known.cookies == {}
    assert pg_lab.rows() == []


def test_a_connection_that_is_reset_while_it_rests(
    make: Callable[..., PGStore], proxy: HoldingProxy
) -> None:
    """All connections of the pool are reset at once: no request notices, reads or writes."""
    store = make(pool_size=8)
    browsers = [Browser() for _ in range(8)]
    for number in range(3):
        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(lambda each: count(store, each), browsers)) == [number] * 8
        proxy.kill()


def count(store: PGStore, browser: Browser) -> int:
    with browser.visit(store) as session:
        session["n"] = session.get("n", -1) + 1
    n: int = session["n"]
    return n


# -- an update that was done and whose answer was lost; and what others do before anybody looks


@BY_THE_PROXY
def test_a_lost_update_and_another_writer(
    store: PGStore,
    proxy: HoldingProxy,
    known: Browser,
    pg_lab: PostgresLab,
    monkeypatch: pytest.MonkeyPatch,
    lost: str,
) -> None:
    """Plain keys are applied on top of what the other one wrote."""
    other = pg_lab.store()
    visit = Visit(known, store)
    visit.session["x"] = 2
    lose(proxy, lost, visit.session)

    def write(_: object) -> None:
        with copy(known).visit(other) as session:
            session["theirs"] = session["x"]

    then(monkeypatch, store, write)
    visit.save()
    assert was_lost(proxy)
    seen_by_the_other = 2 if lost == "reply" else 1
    assert Visit(known, store).session.values == {"hits": 1, "x": 2, "theirs": seen_by_the_other}


@BY_THE_PROXY
def test_a_lost_count_and_another_writer(
    store: PGStore,
    proxy: HoldingProxy,
    known: Browser,
    pg_lab: PostgresLab,
    monkeypatch: pytest.MonkeyPatch,
    lost: str,
) -> None:
    """A counter that cannot be known is not counted again: the caller is told so."""
    other = pg_lab.store(merge={"hits": merge.add})
    visit = Visit(known, store)
    visit.session["hits"] += 1
    lose(proxy, lost, visit.session)

    def write(_: object) -> None:
        with copy(known).visit(other) as session:
            session["hits"] += 10

    then(monkeypatch, store, write)
    with pytest.raises(BackendError) as caught:
        visit.save()
    assert was_lost(proxy)
    assert caught.value.outcome_unknown
    assert "Set-Cookie" not in visit.headers
    assert Visit(known, store).session["hits"] == (12 if lost == "reply" else 11)


def test_an_update_that_arrives_late_and_another_writer(
    store: PGStore,
    proxy: HoldingProxy,
    known: Browser,
    pg_lab: PostgresLab,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An update that was given up, arrives after the store has looked for it, and is overwritten,
    is not counted twice.
    """
    other = pg_lab.store(merge={"hits": merge.add})
    visit = Visit(known, store)
    visit.session["hits"] += 1
    before = pg_lab.row()["version"]
    proxy.hold_request = selector(visit.session)

    def arrive(loaded: Loaded | None) -> None:
        assert loaded and loaded.row.version == before
        proxy.release()
        wait_until(lambda: pg_lab.row()["version"] != before)
        with copy(known).visit(other) as session:
            session["hits"] += 10

    then(monkeypatch, store, arrive, before=False)
    with pytest.raises(BackendError) as caught:
        visit.save()
    assert caught.value.outcome_unknown
    assert Visit(known, store).session["hits"] == 12


@BY_THE_PROXY
def test_a_lost_update_and_a_logout(
    store: PGStore,
    proxy: HoldingProxy,
    known: Browser,
    pg_lab: PostgresLab,
    monkeypatch: pytest.MonkeyPatch,
    lost: str,
) -> None:
    """A row that was deleted meanwhile stays deleted, and the caller is told that it is gone."""
    other = pg_lab.store()
    visit = Visit(known, store)
    visit.session["x"] = 2
    lose(proxy, lost, visit.session)

    def logout(_: object) -> None:
        with copy(known).visit(other) as session:
            session.logout()

    then(monkeypatch, store, logout)
    with pytest.raises(SessionGone):
        visit.save()
    assert was_lost(proxy)
    assert "Set-Cookie" not in visit.headers
    assert pg_lab.rows() == []


@BY_THE_PROXY
def test_a_lost_first_login_and_a_revocation(
    store: PGStore,
    proxy: HoldingProxy,
    pg_lab: PostgresLab,
    monkeypatch: pytest.MonkeyPatch,
    lost: str,
) -> None:
    """A new session of a user that may have been stored and revoked is not stored again."""
    browser = Browser()
    visit = Visit(browser, store)
    visit.session.login("alice")
    lose(proxy, lost, visit.session)
    then(monkeypatch, store, lambda _: pg_lab.execute("DELETE FROM http_sessions"))
    with pytest.raises(BackendError) as caught:
        visit.save()
    assert was_lost(proxy)
    assert caught.value.outcome_unknown
    assert browser.cookies == {}
    assert pg_lab.rows() == []


def test_counting_over_a_bad_network(make: Callable[..., PGStore], proxy: HoldingProxy) -> None:
    """Whatever is lost at random: a save that returned was counted once, one that raised not at
    all, unless it says that it does not know.
    """
    store = make(pool_size=4, statement_timeout=10.0, pool_timeout=10.0)
    dice = random.Random(7)
    with Writers(store, 4) as writers:
        keys = [writer.browser for writer in writers.writers]
        handles = [selector(Visit(browser, store).session) for browser in keys]
        for _ in range(40):
            lost = dice.choice(["lose_reply_to", "lose_request", "kill"])
            if lost == "kill":
                proxy.kill()
            else:
                # Any statement of one of the writers, or any of all: all name the table's columns.
                setattr(proxy, lost, dice.choice([*handles, b"pgstore_"]))
                wait_until(lambda lost=lost: getattr(proxy, lost) is None)  # type: ignore[misc]
        proxy.lose_reply_to = proxy.lose_request = None
        writers.wait_for_turns()
    writers.check_all_is_there()
    assert writers.acknowledged > 40


# -- a silent network


def test_a_read_without_an_answer(
    store: PGStore, proxy: HoldingProxy, known: Browser, pg_lab: PostgresLab
) -> None:
    """The client's deadline holds, and the next request has another connection."""
    pids = {backend_pid(store) for _ in range(2)}
    proxy.hold_reply_to = selector(Visit(known, store).session)
    begin = time.monotonic()
    with pytest.raises(BackendError, match="within the time limit") as caught:
        Visit(known, store)
    took = time.monotonic() - begin
    assert proxy.held.is_set()
    assert LIMIT - 0.1 <= took < LIMIT + MARGIN
    assert not caught.value.outcome_unknown
    # The one that waits is still silent.
    assert Visit(known, store).session["x"] == 1
    assert backend_pid(store) not in pids


def test_a_save_without_an_answer(store: PGStore, proxy: HoldingProxy, known: Browser) -> None:
    """A write whose answer does not come is looked for over another connection."""
    visit = Visit(known, store)
    visit.session["hits"] += 1
    proxy.hold_reply_to = selector(visit.session)
    begin = time.monotonic()
    visit.save()
    took = time.monotonic() - begin
    assert proxy.held.is_set()
    assert LIMIT - 0.1 <= took < LIMIT + MARGIN
    assert Visit(known, store).session["hits"] == 2


def test_a_save_when_everything_is_silent(
    store: PGStore, proxy: HoldingProxy, known: Browser
) -> None:
    """When looking has no answer, either, the error says that the outcome is unknown."""
    with known.visit(store) as session:
        session["x"] = 2  # the statement is prepared from now on
    visit = Visit(known, store)
    visit.session["hits"] += 1
    proxy.stall = True
    begin = time.monotonic()
    with pytest.raises(BackendError) as caught:
        visit.save()
    took = time.monotonic() - begin
    proxy.stall = False
    assert caught.value.outcome_unknown
    assert took < 3 * LIMIT + MARGIN  # the statement, a connection, the look
    assert "Set-Cookie" not in visit.headers
    wait_until(lambda: can_read(store, known))
    assert Visit(known, store).session["hits"] in (1, 2)


@pytest.mark.parametrize("save", [False, True], ids=["get", "save"])
def test_a_network_that_loses_every_statement(
    make: Callable[..., PGStore], proxy: HoldingProxy, save: bool
) -> None:
    """A statement that is lost on each new connection is not tried again without end."""
    store, browser = make(pool_size=20), Browser()
    with browser.visit(store) as session:
        session["x"] = 1
    visit = Visit(browser, store)
    visit.session["x"] = 2
    proxy.kill()
    proxy.latency, proxy.lose_each = 0.2, b"pgstore_"
    begin = time.monotonic()
    with pytest.raises(BackendError) as caught:
        visit.save() if save else Visit(browser, store)
    assert time.monotonic() - begin < 2 * LIMIT + MARGIN
    assert not caught.value.outcome_unknown


def can_read(store: PGStore, browser: Browser) -> bool:
    try:
        Visit(browser, store)
    except BackendError:
        return False
    return True


def backend_pid(store: PGStore) -> int:
    """Return the server process behind the connection that the next request would have."""
    pool = store.backend._pool  # type: ignore[attr-defined]
    assert isinstance(pool, OwnPool)
    wire = pool.get()
    try:
        return wire.connection.info.backend_pid
    finally:
        pool.put(wire)


def wait_until(condition: Callable[[], bool], *, timeout: float = 30.0) -> None:
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < timeout, "it does not come to pass"
        time.sleep(0.005)


# -- an exception between sending and reading


def test_a_keyboard_interrupt(make: Callable[..., PGStore], proxy: HoldingProxy) -> None:
    """Ctrl-C while a statement is under way: its late answer is read by nobody."""
    store = make(pool_size=1, statement_timeout=20.0, pool_timeout=20.0)
    browsers = [Browser(), Browser()]
    for number, browser in enumerate(browsers):
        with browser.visit(store) as session:
            session["owner"] = number
    pid = backend_pid(store)
    proxy.hold_reply_to = selector(Visit(browsers[0], store).session)

    def press() -> None:
        if proxy.held.wait(20):
            os.kill(os.getpid(), signal.SIGINT)

    pressing = threading.Thread(target=press)
    pressing.start()
    with pytest.raises(KeyboardInterrupt):
        Visit(browsers[0], store)
    pressing.join()
    proxy.release()  # the answer for the first browser arrives
    assert Visit(browsers[1], store).session["owner"] == 1
    assert Visit(browsers[0], store).session["owner"] == 0
    assert backend_pid(store) != pid


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, ZeroDivisionError])
def test_an_interrupted_connection_is_closed(
    store: PGStore,
    known: Browser,
    monkeypatch: pytest.MonkeyPatch,
    interrupt: type[BaseException],
) -> None:
    """The wire itself closes the connection, and does not count on the pool to do it."""
    import select

    pool = store.backend._pool  # type: ignore[attr-defined]
    returned = []
    put = pool.put

    def note(wire: Any) -> None:
        returned.append(wire.connection.closed)
        put(wire)

    class Interrupted:
        def register(self, *args: Any) -> None: ...

        def poll(self, timeout: float) -> list[Any]:
            if timeout == 0:
                return []
            raise interrupt

    monkeypatch.setattr(pool, "put", note)
    with monkeypatch.context() as patch:
        patch.setattr(select, "poll", Interrupted)
        with pytest.raises(interrupt):
            Visit(known, store)
    assert returned == [True]


def test_an_answer_that_is_anothers(
    store: PGStore, known: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should a connection answer for another statement all the same, nobody gets its row."""
    load = store.backend.load
    other = Browser()
    with other.visit(store) as session:
        session["x"] = "another's"
    key = selector(session)
    with monkeypatch.context() as patch:
        patch.setattr(store.backend, "load", lambda _: load(key))
        session = Visit(known, store).session
    assert isinstance(session.error, RowError)
    assert session.values == {}
    assert Visit(known, store).session["x"] == 1


# -- a pool that is exhausted


def test_a_crowd_at_an_exhausted_pool(make: Callable[..., PGStore], proxy: HoldingProxy) -> None:
    """While statements without an answer hold every connection, the others are refused in time,
    with an error that says why; afterwards the pool is as large as before.
    """
    store = make(pool_size=2, statement_timeout=20.0)
    browser = Browser()
    with browser.visit(store) as session:
        session["x"] = 1
    pool = store.backend._pool  # type: ignore[attr-defined]
    for wire in [pool.get(), pool.get()]:
        pool.put(wire)
    with ThreadPoolExecutor(8) as threads:
        proxy.stall = True
        slow = [threads.submit(Visit, browser, store) for _ in range(2)]
        wait_until(lambda: not pool._free)

        def refused(_: int) -> tuple[str, float]:
            begin = time.monotonic()
            with pytest.raises(BackendError) as caught:
                Visit(browser, store)
            return str(caught.value), time.monotonic() - begin

        outcomes = list(threads.map(refused, range(6)))
        proxy.stall = False
        assert [visit.result().session["x"] for visit in slow] == [1, 1]
    assert {message for message, _ in outcomes} == {
        f"no connection became free within {LIMIT:g} s (pool_size=2)"
    }
    assert max(took for _, took in outcomes) < LIMIT + MARGIN
    with ThreadPoolExecutor(8) as threads:
        assert {v.session["x"] for v in threads.map(lambda _: Visit(browser, store), range(8))} == {
            1
        }
    assert pool._open <= 2
