"""The processes that serve: gunicorn's workers, forks by hand, and greenlets."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import pgstore
from pgstore.embedded import PostgresServer
from support.gunicorn import Client, gunicorn
from support.holding_proxy import HoldingProxy
from support.stores import PostgresLab

PYTHONPATH = os.pathsep.join(
    [str(Path(__file__).parents[1]), str(Path(pgstore.__file__).parents[1])]
)


@pytest.fixture
def proxy(pg_server: PostgresServer) -> Iterator[HoldingProxy]:
    assert pg_server.port
    with HoldingProxy("127.0.0.1", pg_server.port) as proxy:
        yield proxy


@pytest.fixture
def proxied(proxy: HoldingProxy) -> str:
    """Return a DSN that leads through the proxy."""
    return f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres"


def test_preloaded_workers(pg_lab: PostgresLab) -> None:
    """A store that was used before gunicorn forked shares no connection with its workers, and each
    of them sweeps, and can be told to stop.
    """
    seen: dict[int, set[int]] = {}
    parents: set[int] = set()
    with gunicorn(pg_lab.dsn, pg_lab.schema, "--preload", "-w", "4") as server:
        client = Client(server.port, "x")
        deadline = time.monotonic() + 60
        with ThreadPoolExecutor(8) as threads:
            while len(seen) < 4 and time.monotonic() < deadline:
                for about in threads.map(lambda _: client.get("/about"), range(16)):
                    assert about["sweeps"]
                    seen.setdefault(about["process"], set()).add(about["backend"])
                    parents.add(about["parent's backend"])
            assert list(threads.map(lambda _: client.get("/stop"), range(16))) == [True] * 16
    assert len(seen) == 4
    assert len(parents) == 1
    backends = [backend for each in seen.values() for backend in each]
    assert len(set(backends)) == len(backends)
    assert parents.isdisjoint(backends)


def test_a_fork_that_ends_like_any_program(pg_lab: PostgresLab) -> None:
    """A child of os.fork() that uses the store, and leaves through the interpreter's own end, takes
    no connection of its parent's with it.
    """
    done = subprocess.run(
        [sys.executable, "-c", FORK, pg_lab.dsn, pg_lab.schema],
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    before, child, after, value = done.stdout.split()
    assert before == after
    assert child != before
    assert value == "2"


FORK = """
import os, sys, warnings
from pgstore import PGStore
from support.stores import KEYS, Browser, Visit

warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside the pool's threads

def backend_pid():
    wire = store.backend._pool.get()
    store.backend._pool.put(wire)
    return wire.connection.info.backend_pid

store = PGStore(sys.argv[1], *KEYS, db_schema=sys.argv[2], pool_size=1)
browser = Browser()
with browser.visit(store) as session:
    session["x"] = 1
print(backend_pid(), flush=True)
child = os.fork()
if not child:
    with browser.visit(store) as session:
        session["x"] += 1
    print(backend_pid(), flush=True)
    sys.exit()
assert os.waitpid(child, 0)[1] == 0
print(backend_pid(), Visit(browser, store).session["x"])
store.close()
"""


def test_gunicorn_kills_a_worker(proxy: HoldingProxy, proxied: str, pg_lab: PostgresLab) -> None:
    """A worker that waits for its database until gunicorn's timeout kills it: others serve
    meanwhile, the service recovers, and everyone has the session that is his.
    """
    with gunicorn(proxied, pg_lab.schema, "-w", "2", "--timeout", "2") as server:
        alice, bob = Client(server.port, "alice"), Client(server.port, "bob")
        assert [alice.get(), bob.get()] == [("alice", 1), ("bob", 1)]
        (first, _) = sorted(pg_lab.rows(), key=lambda row: row["created_on"])
        proxy.hold_reply_to = first["key"]
        with ThreadPoolExecutor(1) as threads:
            stuck = threads.submit(alice.get, "/?read-only")
            assert proxy.held.wait(30)
            assert bob.get() == ("bob", 2)
            with pytest.raises((OSError, http.client.HTTPException)):
                stuck.result(30)
        server.wait_for_log("WORKER TIMEOUT")
        proxy.release()
        assert [bob.get(), alice.get(), bob.get(), alice.get()] == [
            ("bob", 3),
            ("alice", 2),
            ("bob", 4),
            ("alice", 3),
        ]


def test_greenlets_overlap(
    proxy: HoldingProxy,
    proxied: str,
    pg_lab: PostgresLab,
    record_property: pytest.RecordProperty,
) -> None:
    """Twenty requests to a slow database take the time of a few in one gevent worker."""
    with gunicorn(proxied, pg_lab.schema, "-k", "gevent", "-w", "1", pool_size=20) as server:
        clients = [Client(server.port, str(number)) for number in range(20)]
        with ThreadPoolExecutor(20) as threads:

            def all_at_once(path: str) -> tuple[list[object], float]:
                begin = time.monotonic()
                answers = list(threads.map(lambda client: client.get(path), clients))
                return answers, time.monotonic() - begin

            proxy.latency = 0.05  # so that the pool grows to its size, and all is prepared
            for number in (1, 2):
                answers, _ = all_at_once("/")
                assert answers == [(str(n), number) for n in range(20)]
            proxy.latency = 0.3
            answers, took = all_at_once("/?read-only")
            proxy.latency = 0.0
            assert answers == [(str(n), 3) for n in range(20)]
    one = 2 * 0.3  # there and back
    record_property("took", took)
    print(f"20 requests of {one:.1f} s each: {took:.2f} s")
    assert took < 20 * one / 3


def test_a_greenlet_that_is_given_up(
    proxy: HoldingProxy, proxied: str, pg_lab: PostgresLab
) -> None:
    """gevent.Timeout while a statement is under way: its late answer is read by nobody."""
    with subprocess.Popen(
        [sys.executable, "-m", "support.greenlets", proxied, pg_lab.schema],
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin and process.stdout
        first, _ = (process.stdout.readline().strip() for _ in range(2))
        proxy.hold_reply_to = bytes.fromhex(first)
        print(file=process.stdin, flush=True)
        assert process.stdout.readline() == "given up\n"
        assert process.stdout.readline() == "others ran\n"
        assert proxy.held.is_set()
        proxy.release()
        print(file=process.stdin, flush=True)
        assert process.stdout.read().split() == ["1", "0"]
    assert process.returncode == 0


@pytest.mark.parametrize("patch", ["monkey.patch_all()", "monkey.patch_all(thread=False)"])
def test_threads_beside_greenlets(pg_lab: PostgresLab, patch: str) -> None:
    """A connection goes from thread to thread under gevent, too, where each has its event loop."""
    pg_lab.store()
    done = subprocess.run(
        [sys.executable, "-c", THREADS.replace("PATCH", patch), pg_lab.dsn, pg_lab.schema],
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "40\n"), done.stderr


THREADS = """
import sys
from gevent import monkey
PATCH
import gevent
from pgstore import PGStore, merge
from support.stores import KEYS, Browser, Visit

def work():
    for _ in range(5):
        with browser.visit(store) as session:
            session["n"] = session.get("n", 0) + 1

store = PGStore(
    sys.argv[1], *KEYS, db_schema=sys.argv[2], merge={"n": merge.add}, pool_size=4, schema="off"
)
browser = Browser()
threads = gevent.get_hub().threadpool
for _ in range(2):
    work()
    threads.apply(work)
jobs = [threads.spawn(work) for _ in range(2)] + [gevent.spawn(work) for _ in range(2)]
gevent.joinall(jobs, raise_error=True)
print(Visit(browser, store).session["n"])
store.close()
"""
