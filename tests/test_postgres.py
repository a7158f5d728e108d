"""What only PostgreSQL can show: round trips, plans, roles, schema, forks, pools, outages."""

from __future__ import annotations

import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import psycopg
import psycopg_pool
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgstore import BackendError, ConfigurationError, Options, PGStore, SchemaError
from pgstore.backends import postgres, postgres_pool
from pgstore.backends.postgres import PostgresBackend, schema_sql
from pgstore.backends.postgres_formats import int8
from pgstore.backends.postgres_pool import BorrowedPool, OwnPool
from pgstore.backends.postgres_wire import Wire
from pgstore.embedded import PostgresServer, temporary
from pgstore.sql import Step, grants
from support.fault_proxy import FaultProxy
from support.postgres import PostgresServers
from support.stores import KEYS, Browser, PostgresLab, Visit


@pytest.fixture
def proxy(pg_server: PostgresServer) -> Iterator[FaultProxy]:
    with FaultProxy("127.0.0.1", pg_server.port) as proxy:
        yield proxy


@pytest.fixture
def proxied(proxy: FaultProxy, pg_lab: PostgresLab) -> Iterator[PGStore]:
    """Return a store that reaches its database through the proxy."""
    pg_lab.store()
    dsn = f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres"
    with PGStore(dsn, *KEYS, db_schema=pg_lab.schema, schema="off", statement_timeout=1.0) as store:
        yield store


# -- round trips and statements


def steps(store: PGStore, lab: PostgresLab) -> Iterator[tuple[str, Any, int]]:
    """Yield what a request may do, as (name, action, the round trips that it may take)."""
    browser = Browser()

    def insert() -> None:
        nonlocal browser
        browser = Browser()
        visit = Visit(browser, store)
        visit.session["x"] = 1
        visit.save()

    def read() -> None:
        Visit(browser, store).save()

    def update() -> None:
        with browser.visit(store) as session:
            session["x"] += 1

    def touch() -> None:
        with browser.visit(store):
            pass

    def login() -> None:
        with browser.visit(store) as session:
            session.login("alice")

    def delete() -> None:
        with browser.visit(store) as session:
            session.delete()

    yield "insert", insert, 1
    yield "read", read, 1
    yield "update", update, 2
    lab.pass_time(3600)
    yield "touch", touch, 2
    yield "login", login, 2
    yield "delete", delete, 2
    yield "sweep", lambda: store.backend.sweep(10, 0.0), 1
    yield "nothing", lambda: Visit(Browser(), store).save(), 0


@pytest.mark.parametrize("borrowed", [False, True])
def test_round_trips(proxy: FaultProxy, pg_lab: PostgresLab, borrowed: bool) -> None:
    """Load, insert, update, touch, delete and a batch of a sweep are one round trip each, whatever
    the pool's autocommit.
    """
    pg_lab.store()
    dsn = f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres"
    settings: dict[str, Any] = {"db_schema": pg_lab.schema, "schema": "off"}
    with psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=1, open=True) as pool:
        if borrowed:
            store = PGStore.from_pool(pool, *KEYS, **settings)
        else:
            store = PGStore(dsn, *KEYS, pool_size=1, **settings)
        with store:
            for _, act, _ in steps(store, pg_lab):  # connects, and prepares the statements
                act()
            counted = {}
            for name, act, _ in steps(store, pg_lab):
                before = proxy.round_trips
                act()
                counted[name] = proxy.round_trips - before
            assert counted == {name: trips for name, _, trips in steps(store, pg_lab)}


def test_statements_are_prepared_on_the_server(pg_lab: PostgresLab) -> None:
    """The statements of a request are planned once per connection; that of a sweep is not kept."""
    store = pg_lab.store(pool_size=1)
    for _ in range(2):
        for _, act, _ in steps(store, pg_lab):
            act()
    wire = store.backend._pool.get()  # type: ignore[attr-defined]
    try:
        prepared = wire.connection.execute(
            "SELECT count(*), count(*) FILTER (WHERE name LIKE 'pgstore%') "
            "FROM pg_prepared_statements"
        ).fetchone()
    finally:
        store.backend._pool.put(wire)  # type: ignore[attr-defined]
    assert prepared == (6, 6)


def test_no_idle_transaction_is_left(pg_lab: PostgresLab) -> None:
    """A connection of a borrowed pool without autocommit is given back idle."""
    with psycopg_pool.ConnectionPool(pg_lab.dsn, min_size=1, max_size=1, open=True) as pool:
        store = PGStore.from_pool(pool, *KEYS, db_schema=pg_lab.schema)
        for _, act, _ in steps(store, pg_lab):
            act()
        with store.backend.locked(b"x" * 16), pytest.raises(BackendError):
            PGStore.from_pool(pool, *KEYS, db_schema=pg_lab.schema, pool_timeout=0.05)
        connection = pool.getconn()
        assert connection.pgconn.transaction_status == psycopg.pq.TransactionStatus.IDLE
        assert connection.autocommit is False
        pool.putconn(connection)


def test_a_load_uses_the_primary_key(pg_lab: PostgresLab) -> None:
    """Load and sweep are planned on the indexes that are there for them."""
    store = pg_lab.store()
    backend = store.backend
    assert isinstance(backend, PostgresBackend)
    with psycopg.connect(pg_lab.dsn, autocommit=True) as connection:
        connection.execute("SET enable_seqscan = off")

        def plan(statement: Any, *arguments: str) -> str:
            text = statement.text.decode()
            for number, argument in reversed(list(enumerate(arguments, 1))):
                text = text.replace(f"${number}", argument)
            return "\n".join(row[0] for row in connection.execute("EXPLAIN " + text))

        assert "http_sessions_pkey" in plan(backend._sql.load, "''")
        sweep = plan(backend._sql.sweep, "1000", "'0'", "1")
        # Whether another process sweeps is asked above all that is read, not beside it.
        assert sweep.index("One-Time Filter") < sweep.index("http_sessions_gc_after")


# -- schema


def test_sixteen_processes_at_once(pg_lab: PostgresLab) -> None:
    """Sixteen processes that start at once on an empty schema all succeed."""
    code = (
        "import sys; from pgstore import PGStore; sys.stdin.read(1);"
        "PGStore(sys.argv[1], b'k' * 32, db_schema=sys.argv[2]).close()"
    )
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, pg_lab.dsn, pg_lab.schema],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(16)
    ]
    outcomes = []
    for worker in workers:
        assert worker.stdin
        worker.stdin.write(b".")
        worker.stdin.flush()
    for worker in workers:
        _, error = worker.communicate(timeout=60)
        outcomes.append((worker.returncode, error))
    assert outcomes == [(0, b"")] * 16


@pytest.fixture
def role(pg_lab: PostgresLab) -> Iterator[str]:
    """Return the DSN of a role that may use the schema, and create nothing in it."""
    name = f"role_{pg_lab.schema}"
    pg_lab.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
    pg_lab.execute(
        sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(
            sql.Identifier(pg_lab.schema), sql.Identifier(name)
        )
    )
    yield pg_lab.dsn.replace("postgres@", f"{name}@")
    pg_lab.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(name)))


def test_a_role_without_create(pg_lab: PostgresLab, role: str) -> None:
    """It is told what to do when the table is missing, and can use one that is there."""
    with pytest.raises(SchemaError, match="may not create"):
        PGStore(role, *KEYS, db_schema=pg_lab.schema)
    pg_lab.store()
    pg_lab.execute(grants("http_sessions", f"role_{pg_lab.schema}", db_schema=pg_lab.schema))
    for mode in ("apply", "check", "off"):
        with PGStore(role, *KEYS, db_schema=pg_lab.schema, schema=mode) as store:
            for _, act, _ in steps(store, pg_lab):
                act()
            pg_lab.pass_time(10**8)
            assert store.delete_expired() == 0


def test_grants_are_enough_and_no_more(pg_lab: PostgresLab, role: str) -> None:
    """With them everything works that a store does, and nothing else does."""
    pg_lab.store()
    pg_lab.execute(grants("http_sessions", f"role_{pg_lab.schema}", db_schema=pg_lab.schema))
    with PGStore(role, *KEYS, db_schema=pg_lab.schema) as store:
        for _, act, _ in steps(store, pg_lab):
            act()
        with store.backend.locked(b"x" * 16) as backend:
            backend.load(b"x" * 16)
        with Browser().visit(store) as session:
            session.login("alice")
        assert len(store.sessions_of("alice")) == 1
        store.reseal()
        assert store.revoke_user("alice") == 1
        with Browser().visit(store) as session:
            session["x"] = 1
        pg_lab.pass_time(10**8)
        assert store.delete_expired() == 1
    table = f"{pg_lab.schema}.http_sessions"
    with psycopg.connect(role, autocommit=True) as connection:
        for forbidden in (
            f"UPDATE {table} SET key = key",
            f"UPDATE {table} SET created_on = now()",
            f"TRUNCATE {table}",
            f"DROP TABLE {table}",
            f"ALTER TABLE {table} ADD COLUMN x int",
            f"INSERT INTO {table}_schema VALUES (9, 9)",
            f"CREATE TABLE {pg_lab.schema}.other (x int)",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(forbidden)  # type: ignore[arg-type]


def test_checking_the_schema(pg_lab: PostgresLab) -> None:
    """``schema="check"`` raises when the table is missing, and passes when it is there."""
    with pytest.raises(SchemaError, match="pgstore schema apply"):
        pg_lab.store(schema="check")
    pg_lab.store()
    pg_lab.store(schema="check")


def test_using_a_missing_table(pg_lab: PostgresLab, browser: Browser) -> None:
    """Without a look at the schema, a missing table is a SchemaError at its first use."""
    store = pg_lab.store(schema="off")
    visit = Visit(browser, store)
    visit.session["x"] = 1
    with pytest.raises(SchemaError, match="is missing"):
        visit.save()


def test_code_that_is_too_old(pg_lab: PostgresLab, browser: Browser) -> None:
    """A table that this code may no longer use is refused; a newer one that it may use is not."""
    pg_lab.store()
    pg_lab.execute("INSERT INTO http_sessions_schema (version, oldest_code) VALUES (98, 1)")
    for mode in ("apply", "check"):
        with browser.visit(pg_lab.store(schema=mode)) as session:
            session[mode] = 1
    pg_lab.execute("INSERT INTO http_sessions_schema (version, oldest_code) VALUES (99, 99)")
    for mode in ("apply", "check"):
        with pytest.raises(SchemaError, match="update pgstore"):
            pg_lab.store(schema=mode)


def test_migrations(pg_lab: PostgresLab, monkeypatch: pytest.MonkeyPatch, browser: Browser) -> None:
    """A new step is applied once, old code goes on, and connections that planned before do, too."""
    old = pg_lab.store()
    with browser.visit(old) as session:
        session["x"] = 1
    step = Step(
        2,
        1,
        "ALTER TABLE {table} ADD COLUMN colour text;\n"
        "ALTER TABLE {table} ALTER ip TYPE varchar(99);\n",
    )
    monkeypatch.setattr(postgres._SCHEMA, "steps", [*postgres._SCHEMA.steps, step])
    with pytest.raises(SchemaError, match="wants 2"):
        pg_lab.store(schema="check")
    for _ in range(2):
        pg_lab.store()
    monkeypatch.undo()
    assert "colour" in pg_lab.row()
    with browser.visit(old) as session:
        session["x"] += 1
    assert Visit(browser, pg_lab.store()).session["x"] == 2


def test_a_migration_that_fails_changes_nothing(
    pg_lab: PostgresLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step is applied wholly or not at all."""
    pg_lab.store()
    step = Step(2, 1, "ALTER TABLE {table} ADD COLUMN colour text; SELECT 1 / 0;\n")
    monkeypatch.setattr(postgres._SCHEMA, "steps", [*postgres._SCHEMA.steps, step])
    with pytest.raises(SchemaError, match="division by zero"):
        pg_lab.store()
    monkeypatch.undo()
    pg_lab.store()
    with psycopg.connect(pg_lab.dsn) as connection:
        columns = connection.execute(
            "SELECT column_name FROM information_schema.columns "
            "WHERE table_schema = %s AND table_name = 'http_sessions'",
            [pg_lab.schema],
        ).fetchall()
    assert len(columns) == 21


def test_printed_schema_equals_the_applied_one(pg_lab: PostgresLab, pg_dsn: str) -> None:
    """What ``pgstore schema print`` shows makes the same table."""

    def describe() -> list[tuple[Any, ...]]:
        with psycopg.connect(pg_dsn) as connection:
            return connection.execute(
                "SELECT column_name, data_type, is_nullable, collation_name, ordinal_position "
                "FROM information_schema.columns WHERE table_schema = %s "
                "UNION ALL SELECT indexname, replace(indexdef, %s, ''), '', '', 0 FROM pg_indexes "
                "WHERE schemaname = %s ORDER BY 1, 2",
                [pg_lab.schema, pg_lab.schema, pg_lab.schema],
            ).fetchall()

    pg_lab.store()
    applied = describe()
    pg_lab.execute("DROP TABLE http_sessions, http_sessions_schema")
    pg_lab.execute(schema_sql(db_schema=pg_lab.schema))
    assert describe() == applied
    pg_lab.store(schema="check")


def test_any_plain_identifier_names_a_table(pg_lab: PostgresLab, browser: Browser) -> None:
    """Reserved words and capitals are quoted; two tables in one schema are two stores."""
    for table in ("User", "select", "a" * 48):
        store = pg_lab.store(table=table)
        with browser.visit(store) as session:
            assert session.is_new
            session["x"] = table
        assert Visit(browser, store).session["x"] == table
        browser = Browser()


ODD_NAMES = ['http"sessions', "http.sessions", "http sessions", "x; DROP TABLE y", "", "1st", "é"]


@pytest.mark.parametrize(
    ("setting", "name"),
    [("table", name) for name in [*ODD_NAMES, "a" * 49, None]]
    + [("db_schema", name) for name in [*ODD_NAMES, "a" * 64]],
)
def test_names_that_are_no_plain_identifiers(setting: str, name: str | None) -> None:
    """A name with quotes, dots, spaces or a semicolon is refused before any connection is made."""
    with pytest.raises(ConfigurationError, match="ASCII letters, digits and underscores"):
        PGStore("postgresql://127.0.0.1:1/x", *KEYS, **{setting: name})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pool_size": 0}, "pool_size"),
        ({"pool_size": 2.5}, "pool_size"),
        ({"statement_timeout": 0}, "statement_timeout"),
        ({"pool_timeout": "5"}, "pool_timeout"),
        ({"pooler": "session"}, "pooler must be"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    """Each mistake is a ConfigurationError that says what fits."""
    with pytest.raises(ConfigurationError, match=message):
        PGStore("postgresql://127.0.0.1:1/x", *KEYS, **settings)


def test_a_dsn_that_cannot_be_parsed() -> None:
    """The error shows the two forms, and not the DSN with its password."""
    with pytest.raises(ConfigurationError, match="key=value") as caught:
        PGStore("postgresql://user:hunter2@[bad", *KEYS)
    assert "hunter2" not in f"{caught.value} {caught.value.__cause__!r}"


# -- roles' and databases' own settings


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_a_strict_default_isolation(pg_lab: PostgresLab, isolation: str) -> None:
    """Where every transaction is serializable, a lost race is still a lost race."""
    pg_lab.store()
    options = f"-c default_transaction_isolation={isolation.replace(' ', chr(92) + ' ')}"
    store = pg_lab.store(merge=None)
    with psycopg_pool.ConnectionPool(
        pg_lab.dsn, kwargs={"options": options}, min_size=4, max_size=4, open=True
    ) as pool:
        store = PGStore.from_pool(pool, *KEYS, db_schema=pg_lab.schema)
        browser = Browser()
        with browser.visit(store) as session:
            session["x"] = 0
        barrier = threading.Barrier(4)
        failures: list[BaseException] = []

        def work(number: int) -> None:
            try:
                barrier.wait(10)
                for turn in range(20):
                    visit = Visit(browser, store)
                    visit.session[number] = turn
                    visit.session.save(visit.environ, visit.headers)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert Visit(browser, store).session.values == {"x": 0, 0: 19, 1: 19, 2: 19, 3: 19}


def test_another_client_encoding(pg_lab: PostgresLab) -> None:
    """Borrowed connections that do not speak UTF-8 are the caller's mistake, found at once."""
    with (
        psycopg_pool.ConnectionPool(
            pg_lab.dsn, kwargs={"client_encoding": "latin1"}, min_size=1, open=True
        ) as pool,
        pytest.raises(ConfigurationError, match="client_encoding=utf8"),
    ):
        PGStore.from_pool(pool, *KEYS, db_schema=pg_lab.schema)


def test_texts_of_any_alphabet(pg_lab: PostgresLab, browser: Browser) -> None:
    """User keys and metadata come back exactly."""
    store = pg_lab.store()
    with browser.visit(store) as session:
        session.login("älice 日本")
        session.meta["näme"] = "日本"
    session = Visit(browser, store).session
    assert (session.user_key, session.meta) == ("älice 日本", {"näme": "日本"})


# -- pools


def test_the_pool_is_made_on_first_use(pg_lab: PostgresLab) -> None:
    """A store that was made and not used holds no connection and no thread."""
    threads = threading.active_count()
    store = pg_lab.store()
    assert threading.active_count() == threads
    assert store.backend._pool._free == []  # type: ignore[attr-defined]


def test_an_exhausted_pool(pg_lab: PostgresLab, browser: Browser) -> None:
    """The wait for a connection is bounded, the error says so, and the pool recovers."""
    store = pg_lab.store(pool_size=1, pool_timeout=0.2)
    with browser.visit(store) as session:
        session["x"] = 1
    with store.backend.locked(b"x" * 16), pytest.raises(BackendError, match="pool_size=1"):
        Visit(browser, store)
    assert Visit(browser, store).session["x"] == 1


def test_the_connection_used_last_is_used_next(pg_lab: PostgresLab) -> None:
    """Requests one after another need one connection, however large the pool may be."""
    store = pg_lab.store(pool_size=8)
    for _ in range(20):
        store.backend.load(b"x" * 16)
    assert len(pool_of(store)._free) == pool_of(store)._open == 1


def test_waiting_threads_are_served_in_their_order(pg_lab: PostgresLab) -> None:
    """Who waits for a connection is not overtaken by who comes later."""
    pool = pool_of(pg_lab.store(pool_size=1, pool_timeout=20.0))
    wire, order, waiting = pool.get(), [], []

    def wait(number: int) -> None:
        mine = pool.get()
        order.append(number)
        pool.put(mine)

    for number in range(5):
        thread = threading.Thread(target=wait, args=(number,))
        thread.start()
        waiting.append(thread)
        wait_until(lambda: pool._waiting == len(waiting))
    pool.put(wire)
    wait(99)
    for thread in waiting:
        thread.join(20)
    assert order == [0, 1, 2, 3, 4, 99]


def test_a_server_without_a_connection_to_spare(pg_lab: PostgresLab) -> None:
    """Where no more can be opened, requests share those that are; without any, they say why."""
    pg_lab.store()
    role = f"few_{pg_lab.schema}"
    pg_lab.execute(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 1")
    pg_lab.execute(f"GRANT USAGE ON SCHEMA {pg_lab.schema} TO {role}")
    pg_lab.execute(f"GRANT ALL ON http_sessions TO {role}")
    dsn = make_conninfo(pg_lab.dsn, user=role)
    pool = OwnPool(dsn, size=4, statement_timeout=5.0, pool_timeout=20.0)
    wire, got = pool.get(), []
    thread = threading.Thread(target=lambda: got.append(pool.get()))
    thread.start()
    wait_until(lambda: pool._waiting == 1)
    pool.put(wire)
    thread.join(20)
    assert got == [wire]
    other = OwnPool(dsn, size=4, statement_timeout=5.0, pool_timeout=20.0)
    with pytest.raises(BackendError, match="too many connections"):
        other.get()
    pool.put(wire)
    pool.close()


def test_connections_grow_old(pg_lab: PostgresLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that rests for ten minutes is closed, and so is one that is an hour old."""
    pool = pool_of(pg_lab.store(pool_size=3))
    wires = [pool.get() for _ in range(3)]
    for wire in wires:
        pool.put(wire)
    now = time.monotonic()
    monkeypatch.setattr(postgres_pool.time, "monotonic", lambda: now + 601)
    pool.put(pool.get())
    pool.put(pool.get())
    assert [wire.connection.closed for wire in wires] == [True, True, False]
    monkeypatch.setattr(postgres_pool.time, "monotonic", lambda: now + 3601)
    pool.put(pool.get())
    assert wires[2].connection.closed
    assert (pool._free, pool._open) == ([], 0)


def test_the_time_to_connect(pg_lab: PostgresLab) -> None:
    """All hosts together may take as long as a wait for a connection, and the DSN has its way."""
    for given, timeout, expected in (
        ("host=a", 5.0, "5"),
        ("host=a", 60.0, "5"),
        ("host=a,b", 8.0, "4"),
        ("host=a,b", 1.0, "2"),
        ("host=a connect_timeout=30", 1.0, "30"),
    ):
        pool = OwnPool(given, size=1, statement_timeout=1.0, pool_timeout=timeout)
        assert conninfo_to_dict(pool._conninfo)["connect_timeout"] == expected


def test_connections_end_with_the_store(pg_lab: PostgresLab, browser: Browser) -> None:
    """`close` closes the connections of the store's own pool; afterwards the store says so."""
    store = pg_lab.store()
    with browser.visit(store) as session:
        session["x"] = 1
    store.close()
    with pytest.raises(BackendError, match="store is closed"):
        store.get(browser.environ(), "sid")
    unused = pg_lab.store()
    unused.close()
    with pytest.raises(BackendError, match="store is closed"):
        unused.get(browser.environ(), "sid")


def test_borrowed_pools_that_do_not_fit(pg_lab: PostgresLab, browser: Browser) -> None:
    """What is no pool, or a closed one, is said clearly."""
    with pytest.raises(ConfigurationError, match="ConnectionPool"):
        PGStore.from_pool(object(), *KEYS)  # type: ignore[arg-type]
    pool = psycopg_pool.ConnectionPool(pg_lab.dsn, open=False)
    with pytest.raises(BackendError, match="not open"):
        PGStore.from_pool(pool, *KEYS, db_schema=pg_lab.schema)


def test_a_borrowed_pool_with_too_many_waiting(pg_lab: PostgresLab) -> None:
    """The pool's own limit on waiting requests is a BackendError."""
    with psycopg_pool.ConnectionPool(
        pg_lab.dsn, min_size=1, max_size=1, max_waiting=1, open=True
    ) as pool:
        leases = [BorrowedPool(pool, statement_timeout=1, pool_timeout=5) for _ in range(2)]
        connection = pool.getconn()
        waiting = threading.Thread(target=lambda: leases[0].put(leases[0].get()))
        waiting.start()
        while not pool.get_stats().get("requests_waiting"):
            pass
        with pytest.raises(BackendError, match="requests waiting"):
            leases[1].get()
        pool.putconn(connection)
        waiting.join()


def test_a_pool_that_hands_out_transactions(pg_lab: PostgresLab) -> None:
    """A connection inside somebody's transaction is not written into."""

    class Careless(psycopg_pool.ConnectionPool[Any]):
        def getconn(self, timeout: float | None = None) -> Any:
            connection = super().getconn(timeout)
            connection.execute("SELECT 1")
            return connection

    with (
        Careless(pg_lab.dsn, min_size=1, open=True) as pool,
        pytest.raises(BackendError, match="inside a transaction"),
    ):
        PGStore.from_pool(pool, *KEYS, db_schema=pg_lab.schema)


# -- forks


def _in_child(work: Any) -> None:
    """Run ``work`` in a forked child and assert that it returns."""
    context = multiprocessing.get_context("fork")
    child = context.Process(target=work)
    child.start()
    child.join(30)
    if child.is_alive():
        child.kill()
        pytest.fail("the child hangs")
    assert child.exitcode == 0


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_store_crosses_a_fork(pg_lab: PostgresLab, browser: Browser) -> None:
    """Parent and child go on with connections of their own."""
    store = pg_lab.store()
    with browser.visit(store) as session:
        session["x"] = 1
    wire = store.backend._pool.get()  # type: ignore[attr-defined]
    pid = wire.connection.info.backend_pid
    store.backend._pool.put(wire)  # type: ignore[attr-defined]

    def child() -> None:
        wire = store.backend._pool.get()  # type: ignore[attr-defined]
        assert wire.connection.info.backend_pid != pid
        store.backend._pool.put(wire)  # type: ignore[attr-defined]
        with browser.visit(store) as session:
            session["x"] += 1
        store.close()

    for _ in range(3):
        _in_child(child)
    assert Visit(browser, store).session["x"] == 4


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_borrowed_pool_does_not_cross_a_fork(pg_lab: PostgresLab, browser: Browser) -> None:
    """In the child it raises, and names what to do."""
    with psycopg_pool.ConnectionPool(pg_lab.dsn, min_size=1, open=True) as pool:
        store = PGStore.from_pool(pool, *KEYS, db_schema=pg_lab.schema)
        with browser.visit(store) as session:
            session["x"] = 1

        def child() -> None:
            with pytest.raises(ConfigurationError, match="post_fork"):
                Visit(browser, store)

        _in_child(child)
        assert Visit(browser, store).session["x"] == 1


def test_a_borrowed_pool_that_is_opened_after_the_fork(
    pg_lab: PostgresLab, browser: Browser
) -> None:
    """A pool that was made and not opened before a fork is the child's own."""
    pg_lab.store()
    pool = psycopg_pool.ConnectionPool(pg_lab.dsn, min_size=1, open=False)
    store = PGStore.from_pool(pool, *KEYS, db_schema=pg_lab.schema, schema="off")

    def child() -> None:
        with pool, browser.visit(store) as session:
            session["x"] = 1

    _in_child(child)
    assert len(pg_lab.rows()) == 1


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_borrowed_pool_that_was_opened_later_does_not_cross_a_fork(
    pg_lab: PostgresLab, browser: Browser
) -> None:
    """What counts is whether the pool was open at the fork, not whether the store had used it."""
    pg_lab.store()
    with psycopg_pool.ConnectionPool(pg_lab.dsn, min_size=1, open=False) as pool:
        store = PGStore.from_pool(pool, *KEYS, db_schema=pg_lab.schema, schema="off")
        pool.open()

        def child() -> None:
            with pytest.raises(ConfigurationError, match="post_fork"):
                store.backend.load(b"x" * 16)

        _in_child(child)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_the_cleaner_crosses_a_fork(pg_lab: PostgresLab) -> None:
    """It runs in the child, and stop_cleanup in the child returns."""
    store = pg_lab.store(options=Options(max_age=60))
    quit, done = store.cleanup(interval=0.01)

    def child() -> None:
        with Browser().visit(store) as session:
            session["x"] = 1
        pg_lab_rows_older(pg_lab)
        deadline = time.monotonic() + 20
        while store.backend.scan(None, 1) and time.monotonic() < deadline:
            pass
        store.stop_cleanup(quit, done)
        assert done.is_set()
        store.close()

    def pg_lab_rows_older(lab: PostgresLab) -> None:
        with psycopg.connect(lab.dsn) as connection:
            connection.execute(
                sql.SQL("UPDATE {}.http_sessions SET expires_on = now() - interval '1 s'").format(
                    sql.Identifier(lab.schema)
                )
            )

    _in_child(child)
    store.stop_cleanup(quit, done)


# -- sweeping


@pytest.mark.parametrize("distributed", [False, True])
def test_one_process_sweeps_at_a_time(pg_lab: PostgresLab, distributed: bool) -> None:
    """While one sweep's transaction is open, another returns at once."""
    store = pg_lab.store(options=Options(max_age=60))
    backend = store.backend
    assert isinstance(backend, PostgresBackend)
    backend._distributed = distributed
    with Browser().visit(store) as session:
        session["x"] = 1
    pg_lab.pass_time(3600)
    with backend._transaction() as leader:
        leader._run(backend._sql.lead, [int8(backend._lock("sweep"))])
        assert store.delete_expired() == 0
    assert store.delete_expired() == 1


def test_one_process_sweeps_tokens_at_a_time(pg_lab: PostgresLab) -> None:
    """As of sessions."""
    backend = pg_lab.store().backend
    assert isinstance(backend, PostgresBackend)
    tokens = backend.tokens("http_tokens")
    tokens.apply_schema()
    tokens.commit(b"gone".ljust(32), b"data", timedelta(seconds=-1))
    with backend._transaction() as leader:
        leader._run(backend._sql.lead, [int8(tokens._lock("sweep"))])
        assert tokens.sweep(10) == []
    assert tokens.sweep(10) == [b"gone".ljust(32)]


def test_a_sweep_on_a_distributed_table(pg_lab: PostgresLab) -> None:
    """Where the database refuses SKIP LOCKED, the sweep takes its other form and remembers it."""
    store = pg_lab.store(options=Options(max_age=60))
    backend = store.backend
    assert isinstance(backend, PostgresBackend)
    with Browser().visit(store) as session:
        session["x"] = 1
    pg_lab.pass_time(3600)
    # Stands for Citus, which cannot be had here: FOR UPDATE on an aggregate is refused as 0A000,
    # too.
    text = backend._sql.sweep.text.decode().replace("SELECT key", "SELECT max(key) AS key")
    backend._sql.sweep = postgres.Statement(text.replace("ORDER BY gc_after", "GROUP BY gc_after"))
    assert store.delete_expired() == 1
    assert backend._distributed


def test_a_refused_sweep_is_an_error(pg_lab: PostgresLab) -> None:
    """Any other refusal is raised."""
    store = pg_lab.store()
    pg_lab.execute("DROP TABLE http_sessions")
    with pytest.raises(SchemaError):
        store.delete_expired()


# -- outages


def test_down_at_construction() -> None:
    """With the database down, apply and check raise, and ``schema="off"`` does not look."""
    dsn = "postgresql://postgres@127.0.0.1:1/postgres"
    for mode in ("apply", "check"):
        with pytest.raises(BackendError, match="cannot be reached") as caught:
            PGStore(dsn, *KEYS, schema=mode)
        assert isinstance(caught.value.__cause__, psycopg.OperationalError)
    PGStore(dsn, *KEYS, schema="off").close()


def test_down_and_back_again(browser: Browser, caplog: pytest.LogCaptureFixture) -> None:
    """Down at get and save is a BackendError with its cause; back again, the store works."""
    caplog.set_level(logging.CRITICAL, "psycopg.pool")
    with temporary() as server, PGStore(server.dsn, *KEYS) as store:
        with browser.visit(store) as session:
            session["x"] = 1
        slow = Visit(browser, store)
        slow.session["x"] = 2
        server.kill()
        with pytest.raises(BackendError) as caught:
            store.get(browser.environ(), "sid")
        assert caught.value.__cause__ is not None
        with pytest.raises(BackendError):
            slow.save()
        assert "Set-Cookie" not in slow.headers
        server.start()
        assert Visit(browser, store).session["x"] == 1
        slow.save()
        assert Visit(browser, store).session["x"] == 2


def test_a_read_is_retried_on_a_fresh_connection(proxied: PGStore, proxy: FaultProxy) -> None:
    """A read that finds its connection broken is answered all the same."""
    browser = Browser()
    with browser.visit(proxied) as session:
        session["x"] = 1
    assert Visit(browser, proxied).session["x"] == 1
    proxy.kill()
    assert Visit(browser, proxied).session["x"] == 1
    proxy.lose_reply_to = session._id.selector
    assert Visit(browser, proxied).session["x"] == 1


@pytest.mark.parametrize("noticed", [True, False], ids=["before", "while it is used"])
def test_many_connections_that_the_server_ended(
    pg_lab: PostgresLab, monkeypatch: pytest.MonkeyPatch, noticed: bool
) -> None:
    """However many died with a farewell, the next read and the next save get through."""
    store, browser = pg_lab.store(pool_size=8), Browser()
    with browser.visit(store) as session:
        session["x"] = 0
    if not noticed:
        monkeypatch.setattr(Wire, "is_alive", lambda wire: True)
    pool = store.backend._pool  # type: ignore[attr-defined]
    for number in range(1, 4):
        wires = [pool.get() for _ in range(8)]
        pids = [wire.connection.info.backend_pid for wire in wires]
        for wire in wires:
            pool.put(wire)
        with psycopg.connect(pg_lab.dsn, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 60000) FROM unnest(%s::int[]) pid", [pids]
            )
        with browser.visit(store) as session:
            assert session["x"] == number - 1
            session["x"] = number


def test_an_interrupt_while_a_connection_is_taken(
    pg_lab: PostgresLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool does not lose count of the connection."""
    store = pg_lab.store(pool_size=1, pool_timeout=2.0)
    store.backend.load(b"x" * 16)

    def interrupted(wire: Wire) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Wire, "is_alive", interrupted)
        for _ in range(3):
            store.backend.load(b"x" * 16)  # may be run again, and needs no look
            with pytest.raises(KeyboardInterrupt):
                store.backend.delete(b"x" * 16)
    assert store.backend.load(b"x" * 16) is None


def test_an_error_in_a_locked_block_is_not_replaced(proxied: PGStore, proxy: FaultProxy) -> None:
    """A rollback that fails hides nothing: the transaction ends with its connection."""

    def interrupted() -> None:
        with proxied.backend.locked(b"x" * 16):
            proxy.kill()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert proxied.backend.load(b"x" * 16) is None


def test_a_silent_network(proxied: PGStore, proxy: FaultProxy) -> None:
    """The client's deadline holds, and the connection is not used again."""
    browser = Browser()
    with browser.visit(proxied) as session:
        session["x"] = 1
    visit = Visit(browser, proxied)
    proxy.stall = True
    start = time.monotonic()
    with pytest.raises(BackendError, match="within the time limit") as caught:
        store_read(proxied, browser)
    assert not caught.value.outcome_unknown
    assert time.monotonic() - start < 4
    proxy.stall = False
    visit.session["x"] = 2
    visit.save()
    assert Visit(browser, proxied).session["x"] == 2


def store_read(store: PGStore, browser: Browser) -> None:
    store.get(browser.environ(), "sid")


def test_a_lost_answer(proxied: PGStore, proxy: FaultProxy, pg_lab: PostgresLab) -> None:
    """An insert or update whose answer is lost on the wire is stored once."""
    browser = Browser()
    visit = Visit(browser, proxied)
    visit.session["x"] = 1
    proxy.lose_reply_to = visit.session._id.selector
    visit.save()
    assert proxy.lose_reply_to is None
    visit = Visit(browser, proxied)
    visit.session["x"] += 1
    proxy.lose_reply_to = visit.session._id.selector
    visit.save()
    assert proxy.lose_reply_to is None
    assert len(pg_lab.rows()) == 1
    assert Visit(browser, proxied).session["x"] == 2


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, ZeroDivisionError])
def test_an_interrupted_statement(
    proxied: PGStore,
    proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
    interrupt: type[BaseException],
) -> None:
    """An exception between sending and reading closes the connection: nobody reads another's
    answer.
    """
    import select

    browsers = [Browser(), Browser()]
    for number, each in enumerate(browsers):
        with each.visit(proxied) as session:
            session["n"] = number

    class Interrupted:
        def register(self, *args: Any) -> None: ...

        def poll(self, timeout: float) -> list[Any]:
            if timeout == 0:
                return []
            raise interrupt

    with monkeypatch.context() as patch:
        patch.setattr(select, "poll", Interrupted)
        with pytest.raises(interrupt):
            store_read(proxied, browsers[0])
    assert Visit(browsers[1], proxied).session["n"] == 1
    assert Visit(browsers[0], proxied).session["n"] == 0


def test_prepared_statements_that_vanish(pg_lab: PostgresLab, browser: Browser) -> None:
    """DISCARD ALL on a connection costs one more round trip, and nothing else."""
    with psycopg_pool.ConnectionPool(
        pg_lab.dsn, kwargs={"autocommit": True}, min_size=1, max_size=1, open=True
    ) as pool:
        store = PGStore.from_pool(pool, *KEYS, db_schema=pg_lab.schema)
        for number in range(3):
            with browser.visit(store) as session:
                session["x"] = number
            with pool.connection() as connection:
                connection.execute("DISCARD ALL")
        assert Visit(browser, store).session["x"] == 2


def test_a_pool_that_discards_all(pg_lab: PostgresLab, browser: Browser) -> None:
    """Sweeps and locks work on connections that are reset after each use."""

    def reset(connection: psycopg.Connection[Any]) -> None:
        connection.autocommit = True
        connection.execute("DISCARD ALL")

    with psycopg_pool.ConnectionPool(
        pg_lab.dsn, min_size=1, max_size=1, reset=reset, open=True
    ) as pool:
        store = PGStore.from_pool(pool, *KEYS, db_schema=pg_lab.schema)
        for _ in range(4):
            assert store.delete_expired() == 0
            with store.backend.locked(b"x" * 16) as backend:
                assert backend.load(b"x" * 16) is None


def test_pgoptions_are_kept(pg_lab: PostgresLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """What libpq would have taken from the environment still counts."""
    monkeypatch.setenv("PGOPTIONS", "-c work_mem=9MB")
    pool = OwnPool(pg_lab.dsn, size=1, statement_timeout=2.5, pool_timeout=5)
    wire = pool.get()
    try:
        assert wire.connection.execute("SHOW work_mem").fetchone() == ("9MB",)
    finally:
        pool.put(wire)
        pool.close()


def test_a_read_only_database(pg_lab: PostgresLab, browser: Browser) -> None:
    """A database that takes no writes is a BackendError that says so, and reads go on."""
    with browser.visit(pg_lab.store()) as session:
        session["x"] = 1
    dsn = f"{pg_lab.dsn}?options=-c%20default_transaction_read_only%3Don"
    store = PGStore(dsn, *KEYS, db_schema=pg_lab.schema)
    with store:
        visit = Visit(browser, store)
        assert visit.session["x"] == 1
        visit.session["x"] = 2
        with pytest.raises(BackendError, match="read-only"):
            visit.save()


def test_errors_show_no_values(pg_lab: PostgresLab, browser: Browser) -> None:
    """A refusal quotes the server's primary message only, without the row that it is about."""
    store = pg_lab.store()
    pg_lab.execute("ALTER TABLE http_sessions ADD CHECK (user_key <> 'hunter2')")
    visit = Visit(browser, store)
    visit.session.login("hunter2")
    with pytest.raises(BackendError, match="check constraint") as caught:
        visit.save()
    assert "hunter2" not in f"{caught.value} {caught.value.__cause__}"


def test_pooler_mode_keeps_nothing_on_the_server(pg_lab: PostgresLab) -> None:
    """With pooler="transaction" nothing is prepared and no startup option is sent."""
    store = pg_lab.store(pooler="transaction", pool_size=1)
    for _, act, _ in steps(store, pg_lab):
        act()
    pool = store.backend._pool  # type: ignore[attr-defined]
    assert isinstance(pool, OwnPool)
    wire = pool.get()
    try:
        assert wire.connection.execute(
            "SELECT count(*) FROM pg_prepared_statements"
        ).fetchone() == (0,)
        assert wire.connection.execute("SHOW statement_timeout").fetchone() == ("0",)
    finally:
        pool.put(wire)


def test_own_connections_have_the_servers_timeout(pg_lab: PostgresLab) -> None:
    """The server's statement_timeout backs the client's deadline, beside the DSN's own options."""
    dsn = f"{pg_lab.dsn}?options=-c%20work_mem%3D8MB&application_name=shop"
    pool = OwnPool(dsn, size=1, statement_timeout=2.5, pool_timeout=5)
    wire = pool.get()
    try:
        shown = [
            wire.connection.execute(f"SHOW {name}").fetchone()
            for name in ("statement_timeout", "work_mem", "application_name")
        ]
    finally:
        pool.put(wire)
        pool.close()
    assert shown == [("2500ms",), ("8MB",), ("shop",)]
    assert "password" not in repr(
        OwnPool("postgresql://u:password@h/d", size=1, statement_timeout=1, pool_timeout=1)
    )


def test_every_version_of_postgresql(postgres: PostgresServers) -> None:
    """The whole suite of a request runs on every PostgreSQL that is found."""
    from support.postgres import fresh_schema, postgres_versions

    for version in postgres_versions():
        server = postgres(version)
        with fresh_schema(server.dsn) as schema, PostgresLab(server.dsn, schema) as lab:
            store = lab.store()
            for _, act, _ in steps(store, lab):
                act()
            assert os.path.exists(server.log_path)


def pool_of(store: PGStore) -> OwnPool:
    pool = store.backend._pool  # type: ignore[attr-defined]
    assert isinstance(pool, OwnPool)
    return pool


def wait_until(condition: Callable[[], bool]) -> None:
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < 20
        time.sleep(0.001)
