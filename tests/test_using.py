"""A store's statements in the caller's transaction: all of it is committed, or nothing."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from werkzeug.datastructures import Headers

from pgstore import BackendError, ConfigurationError, MemoryStore, Registry, SessionGone, Store
from pgstore.backends.postgres import PostgresBackend
from support.stores import KEYS, Browser, Lab, PostgresLab, SQLiteLab, Visit


@pytest.fixture(params=["sqlite", "postgres"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Return a storage of each kind that has transactions, with tables of an application's."""
    lab: Lab
    if request.param == "sqlite":
        lab = SQLiteLab(request.getfixturevalue("tmp_path") / "sessions.db")
    else:
        lab = request.getfixturevalue("pg_lab")
    with lab:
        lab.store()
        with closing(lab.connect()) as connection:
            connection.execute("CREATE TABLE accounts (name TEXT, password TEXT)")
            connection.execute("CREATE TABLE audit (what TEXT)")
            connection.execute("INSERT INTO accounts VALUES ('alice', 'old')")
            connection.commit()
        yield lab


@pytest.fixture
def store(lab: Lab) -> Store:
    return lab.store()


@pytest.fixture
def connection(lab: Lab) -> Iterator[Any]:
    with closing(lab.connect()) as connection:
        yield connection


def sign_in(store: Store, user: str = "alice") -> Browser:
    browser = Browser()
    with browser.visit(store) as session:
        session.login(user)
    return browser


def user_of(store: Store, browser: Browser) -> str | None:
    return Visit(browser, store).session.user_key


def application(lab: Lab) -> list[Any]:
    """Return what the application's own tables hold, as others see it."""
    with closing(lab.connect()) as connection:
        query = "SELECT password FROM accounts UNION ALL SELECT what FROM audit"
        return [value for (value,) in connection.execute(query).fetchall()]


def change_password(connection: Any, inside: Store, visit: Visit) -> None:
    """Change Alice's password, as an application would, with all that belongs to it."""
    connection.execute("UPDATE accounts SET password = 'new' WHERE name = 'alice'")
    visit.session.login("alice")
    inside.save(visit.environ, visit.headers, visit.session)
    inside.revoke_user("alice", keep=visit.session)
    connection.execute("INSERT INTO audit VALUES ('changed')")


def test_one_commit(lab: Lab, store: Store, connection: Any) -> None:
    """The password, the login and the ends of the others are seen together, when it commits."""
    here, there = sign_in(store), sign_in(store)
    told: list[tuple[str, str, int]] = []
    store.on_deletion(lambda row, reason: told.append((row.handle, reason, len(lab.rows()))))
    ended = Visit(there, store).session.handle
    visit = Visit(here, store)
    with store.using(connection) as inside:
        change_password(connection, inside, visit)
        assert [one.handle for one in inside.sessions_of("alice")] == [visit.session.handle]
        assert inside.fetch(ended) is None
        assert application(lab) == ["old"]
        assert len(store.sessions_of("alice")) == 2
        connection.commit()
        assert application(lab) == ["new", "changed"]
        assert told == []
    # After the commit, and once.
    assert told == [(ended, "revoked", 1)]
    old = Visit(here, store).session
    assert (old.user_key, old.is_new) == (None, True)
    here.receive(visit.headers)
    assert (user_of(store, here), user_of(store, there)) == ("alice", None)


def test_rolled_back_together(
    lab: Lab, store: Store, connection: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """When anything in it raises, nothing of it has happened, and nobody is told anything."""
    here, there = sign_in(store), sign_in(store)
    store.on_deletion(lambda row, reason: pytest.fail(reason))
    before = lab.rows()
    with suppress(ZeroDivisionError), store.using(connection) as inside:
        try:
            change_password(connection, inside, Visit(here, store))
            raise ZeroDivisionError
        except BaseException:
            connection.rollback()
            raise
    assert lab.rows() == before
    assert application(lab) == ["old"]
    assert (user_of(store, here), user_of(store, there)) == ("alice", "alice")
    assert caplog.records == []


@pytest.mark.parametrize("ending", ["rollback", "left open"])
def test_what_did_not_end_is_not_told(
    lab: Lab, store: Store, connection: Any, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows that are still there at the end of the block are not told of; a warning says why."""
    browser = sign_in(store)
    store.on_deletion(lambda row, reason: pytest.fail(reason))
    with store.using(connection) as inside:
        assert inside.revoke_user("alice") == 1
        if ending == "rollback":
            connection.rollback()
    (warning,) = caplog.records
    assert warning.levelname == "WARNING"
    assert "1 sessions that ended in a transaction" in warning.getMessage()
    assert user_of(store, browser) == "alice"
    connection.commit()
    assert user_of(store, browser) == ("alice" if ending == "rollback" else None)


def test_each_reason_is_told(lab: Lab, store: Store, connection: Any) -> None:
    """What ends inside is told with the reason that it has outside, each row once."""
    store = lab.store(max_sessions_per_user=1)
    told: list[tuple[str, str]] = []
    store.on_deletion(lambda row, reason: told.append((row.handle, reason)))
    evicted, deleted = (Visit(sign_in(store, user), store) for user in ("alice", "bob"))
    expected = [(evicted.session.handle, "evicted"), (deleted.session.handle, "deleted")]
    login = Visit(Browser(), store)
    login.session.login("alice")
    deleted.session.logout()
    with store.using(connection) as inside:
        for visit in (login, deleted):
            inside.save(visit.environ, visit.headers, visit.session)
        assert inside.revoke(expected[0][0]) is False
        connection.commit()
    assert told == expected


def test_callbacks_can_be_made_inside(store: Store, connection: Any) -> None:
    """A callback that is subscribed inside is the store's, and stays when the block ends."""
    told: list[str] = []
    sign_in(store)
    with store.using(connection) as inside:
        unsubscribe = inside.on_deletion(lambda row, reason: told.append(reason))
        inside.revoke_user("alice")
        connection.commit()
    sign_in(store)
    store.revoke_user("alice")
    unsubscribe()
    sign_in(store)
    store.revoke_user("alice")
    assert told == ["revoked", "revoked"]


def test_nobody_listens(store: Store, connection: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Without subscribers nothing is looked up after the block, and nothing is logged."""
    sign_in(store)
    with store.using(connection) as inside:
        inside.revoke_user("alice")
        connection.commit()
        store.close()
    assert caplog.records == []


def test_an_outage_after_the_commit(
    store: Store, connection: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """When it cannot be found out what is gone, nobody is told, and the caller is not disturbed."""
    sign_in(store)
    store.on_deletion(lambda row, reason: pytest.fail(reason))
    with store.using(connection) as inside:
        inside.revoke_user("alice")
        connection.commit()
        store.close()
    (warning,) = caplog.records
    assert "were not called: " in warning.getMessage()


def test_sessions_belong_to_both(lab: Lab, store: Store, connection: Any) -> None:
    """There is one session per request and name, inside and outside, and both can save it."""
    browser = sign_in(store)
    for first_inside in (True, False):
        visit = Visit(browser, store) if not first_inside else None
        environ, headers = visit.environ if visit else browser.environ(), Headers()
        with store.using(connection) as inside:
            session = inside.get(environ, "sid")
            if visit:
                assert session is visit.session
            assert Registry.of(environ).get(inside, "sid") is session
            session["inside"] = first_inside
            inside.save(environ, headers, session)
            connection.commit()
        assert store.get(environ, "sid") is session
        session["outside"] = first_inside
        session.save(environ, headers)
        expected = {"inside": first_inside, "outside": first_inside}
        assert Visit(browser, store).session.values == expected
    other = lab.store()
    with store.using(connection), pytest.raises(ConfigurationError, match="two stores"):
        other.get(environ, "sid")
    with other.using(connection) as inside, pytest.raises(ConfigurationError, match="another"):
        inside.save(environ, headers, session)


def test_a_session_saves_itself_where_it_was_got_from(
    lab: Lab, store: Store, connection: Any
) -> None:
    """One got inside is saved in the transaction by its own save, and outside after the block."""
    browser = sign_in(store)
    environ, headers = browser.environ(), Headers()
    with store.using(connection) as inside:
        for number, get in enumerate((inside.get, inside.new, inside.get)):
            session = get(environ, "sid")
            session["x"] = number
            session.save(environ, headers)
            assert "x" not in store.new(browser.environ(), "sid")
            connection.rollback()
        session = inside.get(environ := browser.environ(), "sid")
        session["x"] = "inside"
        Registry.of(environ).save(headers)
        connection.commit()
        again = store.get(environ, "sid")
        assert again is session
        again["x"] = "outside"
        again.save(environ, headers)
        assert Visit(browser, store).session["x"] == "outside"
        session = inside.get(environ, "sid")
    session["x"] = "after"
    session.save(environ, headers)
    assert Visit(browser, store).session["x"] == "after"


def test_the_block_is_the_end(store: Store, connection: Any) -> None:
    """What was given for the block does nothing after it; closing it inside closes nothing."""
    browser = sign_in(store)
    with store.using(connection) as inside:
        inside.close()
        with inside:
            assert user_of(inside, browser) == "alice"
        assert len(inside.sessions_of("alice")) == 1
        with inside.using(connection) as deeper:
            assert len(deeper.sessions_of("alice")) == 1
            session = Visit(browser, deeper).session
            assert session._store is deeper
        assert session._store is inside
        connection.rollback()
    assert session._store is store
    for ended in (inside, deeper):
        with pytest.raises(BackendError, match="has ended"):
            ended.sessions_of("alice")
    assert user_of(store, browser) == "alice"
    connection.execute("SELECT 1")


def test_another_writer_meanwhile(lab: Lab, store: Store, connection: Any) -> None:
    """A session that was changed since it was loaded is merged inside the transaction, too."""
    browser = sign_in(store)
    visit = Visit(browser, store)
    with browser.visit(store) as session:
        session["theirs"] = 1
    visit.session["ours"] = 2
    with store.using(connection) as inside:
        inside.save(visit.environ, visit.headers, visit.session)
        connection.commit()
    assert Visit(browser, store).session.values == {"theirs": 1, "ours": 2}


# -- sessions after a rollback


def test_a_login_that_was_rolled_back(store: Store, connection: Any) -> None:
    """The browser's cookie still leads to what there is; saving again logs nobody in."""
    browser = Browser()
    with browser.visit(store) as session:
        session["x"] = 1
    visit = Visit(browser, store)
    visit.session.login("alice")
    with store.using(connection) as inside:
        inside.save(visit.environ, visit.headers, visit.session)
        connection.rollback()
    session = Visit(browser, store).session
    assert (session.user_key, session["x"]) == (None, 1)
    visit.session["x"] = 2
    visit.session.save(visit.environ, Headers())
    session = Visit(browser, store).session
    assert (session.user_key, session["x"]) == (None, 2)
    # Should the response go out all the same, its cookie opens nothing.
    browser.receive(visit.headers)
    assert Visit(browser, store).session.is_new


def test_a_first_save_that_was_rolled_back(store: Store, connection: Any) -> None:
    """A session that was never stored is not stored by a later save, either."""
    visit = Visit(Browser(), store)
    visit.session["x"] = 1
    with store.using(connection) as inside:
        inside.save(visit.environ, visit.headers, visit.session)
        connection.rollback()
    visit.session["x"] = 2
    with pytest.raises(SessionGone):
        visit.save()


def test_a_logout_that_was_rolled_back(store: Store, connection: Any) -> None:
    """The session goes on."""
    browser = sign_in(store)
    visit = Visit(browser, store)
    visit.session.logout()
    with store.using(connection) as inside:
        inside.save(visit.environ, visit.headers, visit.session)
        connection.rollback()
    assert user_of(store, browser) == "alice"


def test_an_eviction_that_fails_inside(
    lab: Lab, connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is raised: a transaction in which a statement failed is to be rolled back as a whole."""
    store = lab.store(max_sessions_per_user=1)
    browser = sign_in(store)
    visit = Visit(Browser(), store)
    visit.session.login("alice")

    def fail(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise BackendError("the disk is on fire")

    monkeypatch.setattr(type(store.backend), "delete_of_user", fail)
    with store.using(connection) as inside, pytest.raises(BackendError, match="on fire"):
        inside.save(visit.environ, visit.headers, visit.session)
    connection.rollback()
    assert user_of(store, browser) == "alice"


# -- connections that do not fit


def test_memory_has_no_transactions() -> None:
    """The error says what has."""
    with pytest.raises(ConfigurationError, match="needs a database"), MemoryStore(*KEYS).using(1):
        pass


@pytest.mark.parametrize("kind", ["postgres", "sqlite", "other"])
def test_connections_of_another_driver(lab: Lab, store: Store, kind: str, pg_dsn: str) -> None:
    """They are refused by name before anything runs."""
    other: Any
    if kind == "postgres":
        other = psycopg.connect(pg_dsn)
    elif kind == "sqlite":
        other = sqlite3.connect(":memory:")
    else:
        other = closing(lab)
    wanted = "psycopg.Connection" if isinstance(lab, PostgresLab) else "sqlite3.Connection"
    if kind == ("postgres" if isinstance(lab, PostgresLab) else "sqlite"):
        other.close()
        return
    with pytest.raises(ConfigurationError, match=f"wants an? {wanted}, not "), store.using(other):
        pass
    if kind != "other":
        other.close()


def autocommitting(lab: Lab) -> Any:
    if isinstance(lab, PostgresLab):
        return lab.connect(autocommit=True)
    connection = lab.connect()
    connection.isolation_level = None
    return connection


def test_autocommit(lab: Lab, store: Store) -> None:
    """Where each statement would be committed by itself, none is run; in a transaction they are."""
    browser = sign_in(store)
    with closing(autocommitting(lab)) as connection, store.using(connection) as inside:
        for act in (lambda: inside.revoke_user("alice"), lambda: Visit(browser, inside)):
            with pytest.raises(ConfigurationError, match="autocommit"):
                act()
        assert user_of(store, browser) == "alice"
        connection.execute("BEGIN")
        assert inside.revoke_user("alice") == 1
        connection.execute("ROLLBACK")
        with pytest.raises(ConfigurationError, match="autocommit"):
            inside.revoke_user("alice")
        assert user_of(store, browser) == "alice"
        connection.execute("BEGIN")
        assert inside.revoke_user("alice") == 1
        connection.execute("COMMIT")
    assert user_of(store, browser) is None


def test_a_closed_connection(store: Store, connection: Any) -> None:
    """It is an error of the storage, and never "no session"."""
    browser = sign_in(store)
    with store.using(connection) as inside:
        connection.close()
        with pytest.raises(BackendError):
            Visit(browser, inside)


# -- PostgreSQL


@pytest.fixture
def pg_store(pg_lab: PostgresLab) -> Store:
    return pg_lab.store()


def test_a_transaction_block_and_its_savepoints(pg_lab: PostgresLab, pg_store: Store) -> None:
    """psycopg's own blocks work, nested as well; what a savepoint took back is not told."""
    users = ["alice", "bob", "carol"]
    for user in users:
        sign_in(pg_store, user)
    told: list[str | None] = []
    pg_store.on_deletion(lambda row, reason: told.append(row.user_key))
    with (
        pg_lab.connect(autocommit=True) as connection,
        pg_store.using(connection) as inside,
        connection.transaction(),
    ):
        inside.revoke_user("alice")
        with connection.transaction(force_rollback=True):
            inside.revoke_user("bob")
            inside.revoke_user("carol")
        inside.revoke_user("carol")
    assert told == ["alice", "carol"]
    assert [len(pg_store.sessions_of(user)) for user in users] == [0, 1, 0]


def test_the_transaction_is_as_the_connection_says(pg_lab: PostgresLab, pg_store: Store) -> None:
    """One that the store's statement begins has the connection's isolation level."""
    with pg_lab.connect() as connection:
        connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        connection.read_only = True
        with pg_store.using(connection) as inside:
            inside.sessions_of("alice")
            level = connection.execute("SHOW transaction_isolation").fetchone()
            assert level == ("serializable",)
            connection.rollback()
            with pytest.raises(BackendError, match="read-only transaction"):
                inside.revoke_user("alice")


@pytest.mark.parametrize("begun", [True, False])
def test_a_connection_that_is_lost_inside(
    pg_lab: PostgresLab, pg_store: Store, begun: bool
) -> None:
    """Nothing is tried again, and nothing was done: the outcome is known."""
    browser = sign_in(pg_store)
    connection = pg_lab.connect()
    with pg_store.using(connection) as inside:
        if begun:
            inside.revoke_user("alice")
        pg_lab.execute("SELECT pg_terminate_backend(%s)", [connection.info.backend_pid])
        with pytest.raises(BackendError) as caught:
            inside.revoke_user("bob")
        assert not caught.value.outcome_unknown
        with pytest.raises(BackendError, match="is closed"):
            inside.revoke_user("bob")
    assert user_of(pg_store, browser) == "alice"


def test_a_statement_inside_that_is_late(pg_lab: PostgresLab) -> None:
    """Its answer may still come, so that nobody may use the connection any more."""
    store = pg_lab.store(statement_timeout=0.3)
    handle = Visit(sign_in(store), store).session.handle
    with pg_lab.connect() as other, pg_lab.connect() as connection:
        other.execute("SELECT FROM http_sessions FOR UPDATE")
        with store.using(connection) as inside:
            with pytest.raises(BackendError, match="time limit"):
                inside.revoke(handle)
            assert connection.closed
        other.rollback()
    assert store.fetch(handle)


def test_a_transaction_that_has_failed(pg_lab: PostgresLab, pg_store: Store) -> None:
    """After an error of the caller's own, each statement is refused until the rollback."""
    browser = sign_in(pg_store)
    with pg_lab.connect() as connection, pg_store.using(connection) as inside:
        with pytest.raises(psycopg.Error):
            connection.execute("SELECT 1 / 0")
        with pytest.raises(BackendError, match="25P02"):
            inside.revoke_user("alice")
        connection.rollback()
        assert inside.revoke_user("alice") == 1
        connection.commit()
    assert user_of(pg_store, browser) is None


def test_a_conflict_inside_is_not_tried_again(pg_lab: PostgresLab, pg_store: Store) -> None:
    """A serialization failure is shown as what it is: the whole transaction is to be repeated."""
    browser = sign_in(pg_store)
    with pg_lab.connect() as connection, pg_store.using(connection) as inside:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        visit = Visit(browser, inside)
        with browser.visit(pg_store) as session:
            session["theirs"] = 1
        visit.session["ours"] = 1
        with pytest.raises(BackendError, match="40001"):
            inside.save(visit.environ, visit.headers, visit.session)
        connection.rollback()


def test_a_pipeline_is_refused(pg_lab: PostgresLab, pg_store: Store) -> None:
    """Answers that come later cannot be waited for."""
    with pg_lab.connect() as connection, pg_store.using(connection) as inside:
        with connection.pipeline(), pytest.raises(ConfigurationError, match="pipeline"):
            inside.sessions_of("alice")
        inside.sessions_of("alice")


def test_a_connection_in_another_encoding(pg_lab: PostgresLab, pg_store: Store) -> None:
    """Names would be stored as others."""
    with (
        pg_lab.connect(client_encoding="latin1") as connection,
        pg_store.using(connection) as inside,
        pytest.raises(ConfigurationError, match="client_encoding=utf8"),
    ):
        inside.sessions_of("alice")


def test_a_busy_connection(pg_lab: PostgresLab, pg_store: Store) -> None:
    """In the middle of a COPY no other statement can run."""
    with pg_lab.connect() as connection, pg_store.using(connection) as inside:
        with connection.cursor().copy("COPY (SELECT generate_series(1, 9)) TO STDOUT") as copy:
            copy.read()
            with pytest.raises(BackendError, match="busy"):
                inside.sessions_of("alice")
            while copy.read():
                pass
        inside.sessions_of("alice")


def test_the_schema_is_not_applied_inside(lab: Lab, store: Store, connection: Any) -> None:
    """It has transactions of its own, which would end the caller's."""
    for table in ("http_sessions", "http_sessions_schema"):
        connection.execute(f"DROP TABLE {table}")
    with store.using(connection) as inside, pytest.raises(ConfigurationError, match="schema"):
        inside.backend.apply_schema()
    connection.rollback()


def test_nothing_is_prepared_inside(pg_lab: PostgresLab, pg_store: Store) -> None:
    """The caller's connection keeps nothing of the store's."""
    assert isinstance(pg_store.backend, PostgresBackend)
    with pg_lab.connect() as connection, pg_store.using(connection) as inside:
        for _ in range(10):
            inside.sessions_of("alice")
            connection.rollback()
        count = connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchone()
        assert count == (0,)


# -- SQLite


@pytest.fixture
def file(tmp_path: Path) -> Iterator[SQLiteLab]:
    with SQLiteLab(tmp_path / "sessions.db") as lab:
        lab.store()
        yield lab


@pytest.mark.parametrize("factory", [sqlite3.Row, lambda cursor, row: {"row": row}])
def test_a_connection_with_rows_of_its_own(file: SQLiteLab, factory: Any) -> None:
    """Whatever the caller makes of rows, the store reads its own."""
    store = file.store()
    with closing(file.connect()) as connection:
        connection.row_factory = factory
        with store.using(connection) as inside:
            browser = sign_in(inside)
            connection.commit()
        assert connection.row_factory is factory
    assert user_of(store, browser) == "alice"


def test_a_connection_with_texts_of_its_own(file: SQLiteLab) -> None:
    """Texts that are no texts would be taken for other users: refused."""
    store = file.store()
    with closing(file.connect()) as connection:
        connection.text_factory = bytes
        with pytest.raises(ConfigurationError, match="text_factory"), store.using(connection):
            pass


@pytest.mark.parametrize("other", [":memory:", "", "other.db"])
def test_a_connection_to_another_file(file: SQLiteLab, other: str) -> None:
    """Rows are not written to a file in which nobody looks for them."""
    name = str(file.path.with_name(other)) if other.endswith(".db") else other
    with (
        closing(sqlite3.connect(name)) as connection,
        pytest.raises(ConfigurationError, match="to the store's file"),
        file.store().using(connection),
    ):
        pass


def test_a_connection_by_another_path(file: SQLiteLab) -> None:
    """One file has many names."""
    link = file.path.with_name("link.db")
    link.symlink_to(file.path)
    with closing(sqlite3.connect(link)) as connection, file.store().using(connection) as inside:
        sign_in(inside)
        connection.commit()
    assert len(file.rows()) == 1


def test_a_stale_snapshot(file: SQLiteLab) -> None:
    """A transaction that began by reading, and was overtaken, is told how to begin."""
    store = file.store()
    browser = sign_in(store)
    with closing(file.connect()) as connection, store.using(connection) as inside:
        assert user_of(inside, browser) == "alice"
        sign_in(store, "bob")
        with pytest.raises(BackendError, match="BEGIN IMMEDIATE"):
            inside.revoke_user("alice")
        connection.rollback()
        connection.execute("BEGIN IMMEDIATE")
        assert inside.revoke_user("alice") == 1
        connection.commit()


@pytest.mark.parametrize("level", ["", "DEFERRED", "IMMEDIATE", "EXCLUSIVE"])
def test_the_transaction_is_begun_as_the_driver_would(file: SQLiteLab, level: Any) -> None:
    """With the connection's isolation level, and at the first read already."""
    store = file.store()
    with closing(file.connect()) as connection:
        connection.isolation_level = level
        with store.using(connection) as inside, connection:
            inside.sessions_of("alice")
            assert connection.in_transaction
            sign_in(inside)
    assert len(file.rows()) == 1


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sqlite3 has no autocommit before 3.12")
def test_autocommit_as_of_python_3_12(file: SQLiteLab) -> None:
    """With autocommit=False a transaction is always open; with True, when the caller says so."""
    store = file.store()
    connection = file.connect()
    connection.autocommit = False
    with closing(connection), store.using(connection) as inside:
        sign_in(inside)
        connection.rollback()
        assert file.rows() == []
        sign_in(inside)
        connection.commit()
        connection.autocommit = True
        with pytest.raises(ConfigurationError, match="autocommit"):
            inside.revoke_user("alice")
    assert len(file.rows()) == 1
