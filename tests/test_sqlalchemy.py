"""What is SQLAlchemyStore's own: engines, tables that others made, rights, and bad input."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pymysql
import pytest
import sqlalchemy as sa
from alembic.autogenerate import produce_migrations, render_python_code
from alembic.migration import MigrationContext
from alembic.operations import Operations
from flask import Flask
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.pool import StaticPool

from pgstore import (
    BackendError,
    ConfigurationError,
    PGStore,
    SchemaError,
    SQLAlchemyStore,
    SQLiteStore,
    merge,
)
from pgstore.backends.sqlalchemy import sessions_table
from pgstore.ext.flask import FlaskSessions, session
from pgstore.sql import grants, statements
from support.mariadb import MariaDBServer
from support.sqlalchemy_labs import (
    MariaDBLab,
    OtherLab,
    SQLAlchemyPostgresLab,
    SQLAlchemySQLiteLab,
)
from support.stores import KEYS, Browser, PostgresLab, Visit

# Nobody listens on port 1.
DOWN = "mysql+pymysql://me:sesame@127.0.0.1:1/db"


@pytest.fixture
def sa_pg_lab(pg_dsn: str, pg_schema: str) -> Iterator[SQLAlchemyPostgresLab]:
    with SQLAlchemyPostgresLab(pg_dsn, pg_schema) as lab:
        yield lab


@pytest.fixture
def sa_sqlite_lab(tmp_path: Path) -> Iterator[SQLAlchemySQLiteLab]:
    with SQLAlchemySQLiteLab(tmp_path / "sessions.db") as lab:
        yield lab


@pytest.fixture(params=["mariadb_lab", "sa_pg_lab", "sa_sqlite_lab"])
def sa_lab(request: pytest.FixtureRequest) -> Any:
    """Return a fresh storage of each kind that is reached through SQLAlchemy."""
    return request.getfixturevalue(request.param)


Engines = Callable[..., sa.Engine]


@pytest.fixture
def make_engine() -> Iterator[Engines]:
    """Return `sqlalchemy.create_engine`, whose engines end with the test."""
    engines: list[sa.Engine] = []

    def make(*args: Any, **settings: Any) -> sa.Engine:
        engines.append(sa.create_engine(*args, **settings))
        return engines[-1]

    yield make
    for engine in engines:
        engine.dispose()


def schema_of(lab: Any) -> str | None:
    return getattr(lab, "schema", None)


def count(store: Any, browser: Browser) -> int:
    with browser.visit(store) as session:
        session["n"] = session.get("n", 0) + 1
        number: int = session["n"]
        return number


# -- engines ---------------------------------------------------------------------------------------


def test_an_engine_of_the_callers_stays_as_it_is(sa_lab: Any, make_engine: Engines) -> None:
    """It is not disposed of, and its connections come back with the settings that they had."""
    engine = make_engine(sa_lab.url, pool_size=1, max_overflow=0)

    def settings() -> list[Any]:
        with engine.connect() as connection:
            raw: Any = connection.connection.driver_connection
            return [
                id(raw),
                connection.get_isolation_level(),
                engine.dialect.name == "mysql" and raw.get_autocommit(),
                getattr(raw, "autocommit", None) if engine.dialect.name == "postgresql" else None,
                getattr(raw, "isolation_level", None) if engine.name == "sqlite" else None,
            ]

    before = settings()
    browser = Browser()
    with SQLAlchemyStore(engine, *KEYS, db_schema=schema_of(sa_lab)) as store:
        assert [count(store, browser) for _ in range(2)] == [1, 2]
        with store.backend.locked(b""):
            pass
        store.delete_expired()
        store.revoke_user("alice")
        assert settings() == before
    assert settings() == before
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def test_a_callers_transaction_is_the_stores(sa_lab: Any, make_engine: Engines) -> None:
    """With using(connection), what the store does is committed with the caller's own, or not."""
    store, browser = sa_lab.store(), Browser()
    count(store, browser)
    engine = make_engine(sa_lab.url)
    with engine.connect() as connection:
        accounts = sa.Table("accounts", sa.MetaData(), sa.Column("n", sa.Integer))
        accounts.schema = schema_of(sa_lab)
        accounts.create(connection)
        connection.commit()
        for ends in ("rollback", "commit"):
            with store.using(connection) as inside, connection.begin() as transaction:
                connection.execute(accounts.insert().values(n=1))
                request = Visit(browser, inside)
                request.session["n"] = 7
                request.save()
                getattr(transaction, ends)()
            found = connection.execute(sa.select(sa.func.count()).select_from(accounts)).scalar()
            connection.rollback()
            assert (found, Visit(browser, store).session["n"]) == (
                (0, 1) if ends == "rollback" else (1, 7)
            )


def test_a_callers_transaction_under_repeatable_read(
    mariadb_lab: MariaDBLab, make_engine: Engines
) -> None:
    """A transaction that goes on seeing an old row would save over what came since: it locks."""
    store = mariadb_lab.store(merge={"n": merge.add})
    browser = Browser()
    count(store, browser)
    engine = make_engine(mariadb_lab.url)
    with engine.connect() as connection:
        assert connection.get_isolation_level() == "REPEATABLE READ"
        assert connection.scalar(sa.text("SELECT count(*) FROM http_sessions")) == 1
        count(store, browser)
        with store.using(connection) as inside:
            request = Visit(browser, inside)
            assert request.session["n"] == 2
            request.session["n"] += 1
            request.save()
            connection.commit()
    assert Visit(browser, store).session["n"] == 3


def test_connections_that_commit_each_statement_are_refused(
    sa_lab: Any, make_engine: Engines
) -> None:
    """In autocommit there is no transaction that using() could be part of."""
    store = sa_lab.store()
    engine = make_engine(sa_lab.url, isolation_level="AUTOCOMMIT")
    with (
        engine.connect() as connection,
        store.using(connection) as inside,
        pytest.raises(ConfigurationError, match="is in autocommit"),
    ):
        inside.revoke_user("alice")
    other = make_engine("sqlite://" if sa_lab.url[0] != "s" else DOWN)
    if other.dialect.name == "sqlite":
        with (
            other.connect() as connection,
            pytest.raises(ConfigurationError, match="is to sqlite, and the store's to"),
            store.using(connection),
        ):
            pass


def test_a_schema_is_not_applied_in_a_callers_transaction(
    mariadb_lab: MariaDBLab, make_engine: Engines
) -> None:
    """MySQL's DDL would commit it."""
    backend = mariadb_lab.store().backend
    mariadb_lab.execute("DROP TABLE http_sessions, http_sessions_schema")
    with (
        make_engine(mariadb_lab.url).connect() as connection,
        pytest.raises(ConfigurationError, match="not for using"),
    ):
        backend.using(connection).apply_schema()


def test_a_closed_store(sa_lab: Any) -> None:
    """A store on a URL is closed for good; one on an engine leaves that open."""
    store = sa_lab.store()
    store.close()
    store.close()
    with pytest.raises(BackendError, match="the store is closed"):
        store.sessions_of("alice")


def test_an_engine_that_was_disposed_of(sa_lab: Any, make_engine: Engines) -> None:
    """SQLAlchemy fills its pool again, so the store goes on."""
    engine = make_engine(sa_lab.url)
    with SQLAlchemyStore(engine, *KEYS, db_schema=schema_of(sa_lab)) as store:
        browser = Browser()
        count(store, browser)
        engine.dispose()
        assert count(store, browser) == 2


def test_a_fork_before_the_engine_was_used(mariadb_lab: MariaDBLab, make_engine: Engines) -> None:
    """An engine without connections may cross a fork: there is nothing to share."""
    from pgstore.testing import in_fork

    mariadb_lab.store()
    store = SQLAlchemyStore(make_engine(mariadb_lab.url), *KEYS, schema="off")
    assert in_fork(lambda: count(store, Browser())) == 0
    assert count(store, Browser()) == 1


def test_engines_that_will_not_do(make_engine: Engines) -> None:
    """What the store could not keep its promises on is refused at once, and why."""
    for engine, message in (
        (make_engine("sqlite://"), "needs a file of SQLite's"),
        (make_engine("sqlite:///:memory:"), "needs a file of SQLite's"),
        (make_engine("sqlite:///file:x?mode=memory&uri=true", poolclass=StaticPool), "a file of"),
        ("sqlite://", "needs a file of SQLite's"),
        (None, "wants a sqlalchemy.Engine"),
        (make_engine(DOWN).connect, "wants a sqlalchemy.Engine"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            SQLAlchemyStore(engine, *KEYS)
    with pytest.raises(ConfigurationError, match="pool_size and pool_timeout: an engine of yours"):
        SQLAlchemyStore(make_engine(DOWN), *KEYS, pool_size=1, pool_timeout=2.0)
    for setting in ({"pool_size": 0}, {"pool_size": 1.5}, {"statement_timeout": True}):
        with pytest.raises(ConfigurationError, match="must be a positive number"):
            SQLAlchemyStore(DOWN, *KEYS, **setting)
    with pytest.raises(ConfigurationError, match="SQLite has no schemas"):
        SQLAlchemyStore("sqlite:///a.db", *KEYS, db_schema="app")


def test_a_dialect_that_counts_no_rows(make_engine: Engines) -> None:
    """Whether a write found its row is all that the store goes by."""
    engine = make_engine(DOWN)
    engine.dialect.supports_sane_rowcount = False
    with pytest.raises(ConfigurationError, match="does not tell how many rows"):
        SQLAlchemyStore(engine, *KEYS)


def test_connections_that_count_changed_rows(mariadb_lab: MariaDBLab, make_engine: Engines) -> None:
    """MySQL can count the rows that changed, not those that were found: that is refused."""

    def connect() -> Any:
        server = mariadb_lab.server
        return pymysql.connect(
            host="127.0.0.1",
            port=server.port,
            user="pgstore",
            password="pass/word@%",
            database=mariadb_lab.database,
        )

    engine = make_engine("mysql+pymysql://", creator=connect)
    with pytest.raises(ConfigurationError, match=r"CLIENT\.FOUND_ROWS"):
        SQLAlchemyStore(engine, *KEYS)


def test_a_server_that_is_too_old(mariadb_lab: MariaDBLab, make_engine: Engines) -> None:
    """SKIP LOCKED came with MariaDB 10.6 and MySQL 8.0.1."""
    engine = make_engine(mariadb_lab.url)
    engine.connect().close()
    for is_mariadb, version in ((True, (10, 5, 29)), (False, (5, 7, 44))):
        engine.dialect.is_mariadb, engine.dialect.server_version_info = is_mariadb, version
        with pytest.raises(BackendError, match=r"is too old: sessions need MariaDB 10\.6"):
            SQLAlchemyStore(engine, *KEYS)


# -- URLs ------------------------------------------------------------------------------------------


def test_a_dialect_without_a_known_clock(pg_lab: PostgresLab) -> None:
    """An application server's clock would do for no promise: the database's has to be named."""
    lab = OtherLab(pg_lab.dsn, pg_lab.schema)
    with lab, pytest.raises(ConfigurationError, match=r"no clock is known .* give clock="):
        SQLAlchemyStore(lab.url, *KEYS)
    with pytest.raises(ConfigurationError, match="mysql has its own"):
        SQLAlchemyStore(DOWN, *KEYS, clock=sa.func.now())


def test_a_driver_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the extra that brings it."""
    monkeypatch.setitem(sys.modules, "pymysql", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'pgstore\[mysql\]'"):
        SQLAlchemyStore(DOWN, *KEYS)
    with pytest.raises(ConfigurationError, match=r"write mysql\+pymysql://"):
        SQLAlchemyStore("mysql://me:sesame@host/db", *KEYS)
    with pytest.raises(ConfigurationError, match="asyncpg is not installed"):
        SQLAlchemyStore("postgresql+asyncpg://me:sesame@host/db", *KEYS)


def test_without_sqlalchemy() -> None:
    """The error names the extra; the other stores do without it, and import none of it."""
    code = """
import sys
import pgstore
assert not {"sqlalchemy", "pymysql"} & sys.modules.keys()
sys.modules["sqlalchemy"] = None
for make in (lambda: pgstore.open_store("mysql+pymysql://me:sesame@host/db", b"k" * 32),
             lambda: pgstore.SQLAlchemyStore("x", b"k" * 32)):
    try:
        make()
    except pgstore.ConfigurationError as error:
        assert "pip install 'pgstore[sqlalchemy]'" in str(error)
        assert "sesame" not in str(error)
    else:
        raise AssertionError
try:
    pgstore.open_store("mongodb://host/db", b"k" * 32)
except pgstore.ConfigurationError as error:
    assert "no store speaks mongodb://" in str(error)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mongodb://me:sesame@host/db", "no dialect for mongodb://"),
        ("mysql+nobody://me:sesame@host/db", r"no dialect for mysql\+nobody://"),
        ("me:sesame@host", "no URL of SQLAlchemy's"),
        ("mysql+pymysql://me:sesame@host:port/db", "no URL of SQLAlchemy's"),
        ("", "no URL of SQLAlchemy's"),
        ("mysql+aiomysql://me:sesame@host/db", "aiomysql is not installed|is for asyncio"),
    ],
)
def test_a_url_that_nobody_speaks(url: str, message: str) -> None:
    """It is explained, and never quoted."""
    with pytest.raises(ConfigurationError, match=message) as caught:
        SQLAlchemyStore(url, *KEYS)
    assert "sesame" not in "".join(traceback.format_exception(caught.value))


def test_wrong_credentials(mariadb_lab: MariaDBLab) -> None:
    """They are an outage with its reason, and no password is told, not even in a traceback."""
    url = mariadb_lab.server.url(mariadb_lab.database, user="mallory", password="sesame")
    with pytest.raises(BackendError, match="Access denied for user 'mallory'") as caught:
        SQLAlchemyStore(url, *KEYS)
    assert "sesame" not in "".join(traceback.format_exception(caught.value))
    assert "sesame" not in repr(SQLAlchemyStore(url, *KEYS, schema="off"))


def test_no_value_is_told_by_an_error(sa_lab: Any, make_engine: Engines) -> None:
    """SQLAlchemy's own errors quote every value of a statement; ours and their causes do not."""
    engine = make_engine(sa_lab.url)
    with SQLAlchemyStore(engine, *KEYS, db_schema=schema_of(sa_lab)) as store:
        browser = Browser()
        count(store, browser)
        request = Visit(browser, store)
        request.session["n"] = 2
        request.session.login("alice.sesame@example.org")
        sa_lab.execute("ALTER TABLE http_sessions RENAME COLUMN user_key TO other")
        with pytest.raises(SchemaError, match="run 'pgstore schema apply'") as caught:
            request.save()
        text = "".join(traceback.format_exception(caught.value))
        assert "sesame" not in text
        assert "[parameters:" not in text


# -- tables ----------------------------------------------------------------------------------------


def test_a_table_of_the_callers_metadata(sa_lab: Any, make_engine: Engines) -> None:
    """sessions_table() makes the very table that the store would make: columns and indexes."""
    engine, schema = make_engine(sa_lab.url), schema_of(sa_lab)

    def portrait() -> Any:
        inspector = sa.inspect(engine)
        columns = [
            (c["name"], str(c["type"].compile(engine.dialect)), c["nullable"], c["default"])
            for c in inspector.get_columns("http_sessions", schema=schema)
        ]
        indexes = [
            (
                i["name"],
                i["column_names"],
                *(str(option) for option in i.get("dialect_options", {}).values()),
            )
            for i in inspector.get_indexes("http_sessions", schema=schema)
        ]
        key = inspector.get_pk_constraint("http_sessions", schema=schema)["constrained_columns"]
        options = {}
        if engine.name == "mysql":
            options = inspector.get_table_options("http_sessions", schema=schema)
        return columns, sorted(indexes), key, options.get("mysql_engine")

    metadata = sa.MetaData()
    table = sessions_table(metadata, schema=schema)
    assert list(metadata.tables.values()) == [table]
    metadata.create_all(engine)
    theirs = portrait()
    assert count(sa_lab.store(schema="check"), Browser()) == 1
    metadata.drop_all(engine)
    sa_lab.store()
    assert portrait() == theirs


def test_alembic(sa_lab: Any, make_engine: Engines) -> None:
    """What Alembic writes by itself for sessions_table() runs, and makes what the store wants."""
    metadata = sa.MetaData()
    sessions_table(metadata, schema=schema_of(sa_lab))

    def is_ours(name: str | None, kind: str, parents: object) -> bool:
        return name == {"schema": schema_of(sa_lab), "table": "http_sessions"}.get(kind, name)

    with make_engine(sa_lab.url).connect() as connection:
        options = {"compare_type": True, "include_schemas": True, "include_name": is_ours}
        context = MigrationContext.configure(connection, opts=options)

        def changes() -> Any:
            return produce_migrations(context, metadata).upgrade_ops

        script = render_python_code(changes())
        names = {"op": Operations(context), "sa": sa, "mysql": mysql, "postgresql": postgresql}
        exec(textwrap.dedent(script.replace("# ###", "    # ###")), names)
        connection.commit()
        assert changes().ops == []
    assert count(sa_lab.store(schema="check"), Browser()) == 1


def test_a_table_of_ones_own_migrations_may_be_applied_to(
    sa_lab: Any, make_engine: Engines
) -> None:
    """A table that fits is taken as it is, and its version is recorded from then on."""
    metadata = sa.MetaData()
    sessions_table(metadata, schema=schema_of(sa_lab))
    engine = make_engine(sa_lab.url)
    metadata.create_all(engine)
    for _ in range(2):
        assert count(sa_lab.store(), Browser()) == 1
    log = sa.table("http_sessions_schema", sa.column("version"), schema=schema_of(sa_lab))
    with engine.connect() as connection:
        assert connection.scalars(sa.select(log.c.version)).all() == [1]


def test_names_of_tables(make_engine: Engines) -> None:
    """A name that is no plain identifier is refused, as the other stores do."""
    for settings in ({"name": "a b"}, {"name": "x" * 49}, {"schema": 'a"b'}):
        with pytest.raises(ConfigurationError, match="cannot be the"):
            sessions_table(sa.MetaData(), **settings)
    assert sessions_table(sa.MetaData(), name="order").name == "order"


@pytest.mark.parametrize("sa_lab", ["sa_pg_lab", "sa_sqlite_lab"], indirect=True)
def test_one_table_for_the_native_store_and_this_one(sa_lab: Any, pg_dsn: str) -> None:
    """On PostgreSQL and SQLite both work on one table, whichever made it."""

    def native(**settings: Any) -> Any:
        if isinstance(sa_lab, PostgresLab):
            return PGStore(pg_dsn, *KEYS, db_schema=sa_lab.schema, **settings)
        return SQLiteStore(sa_lab.path, *KEYS, **settings)

    for first, second in ((native, sa_lab.store), (sa_lab.store, native)):
        browser = Browser()
        with first() as one, second() as other:
            for n, store in enumerate((one, other, other, one), 1):
                with browser.visit(store) as session:
                    session["n"] = session.get("n", 0) + 1
                    assert session["n"] == n
                    session.login("alicé")
                    session.meta["device"] = f"phone {n}"
                for reader in (one, other):
                    (row,) = reader.sessions_of("alicé")
                    assert row.meta == {"device": f"phone {n}"}
            assert other.revoke_user("alicé") == 1
        if isinstance(sa_lab, PostgresLab):
            sa_lab.execute("DROP TABLE http_sessions, http_sessions_schema")
        else:
            sa_lab.path.unlink()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("MODIFY data BLOB NOT NULL", "column data is BLOB and must be LONGBLOB"),
        ("MODIFY seen_on DATETIME NOT NULL", r"seen_on is DATETIME and must be DATETIME\(6\)"),
        ("MODIFY seen_on DATETIME(3) NOT NULL", r"seen_on is DATETIME\(3\) and must be"),
        ("MODIFY seen_on TIMESTAMP(6) NOT NULL", r"seen_on is TIMESTAMP\(6\) and must be"),
        ("MODIFY version INT NOT NULL", "column version is INTEGER.* and must be BIGINT"),
        ("MODIFY user_key VARCHAR(255)", r"user_key is VARCHAR.* and must be VARBINARY\(255\)"),
        ("MODIFY user_key VARBINARY(64)", r"user_key is VARBINARY\(64\) and must be"),
        ("MODIFY `key` BINARY(20) NOT NULL", r"column key is BINARY\(20\) and must be BINARY\(16"),
        ("MODIFY user_key VARBINARY(255) NOT NULL", "column user_key must allow NULL"),
        ("DROP COLUMN meta", "there is no column meta LONGBLOB"),
        ("ADD COLUMN tenant INT NOT NULL", "column tenant is none of the store's"),
        ("DROP PRIMARY KEY", r"the primary key is \(\) and must be \(key\)"),
    ],
)
def test_a_table_that_does_not_fit(mariadb_lab: MariaDBLab, change: str, problem: str) -> None:
    """A column that is missing, too small or of another kind is named, with what is wanted."""
    mariadb_lab.store()
    mariadb_lab.execute(f"ALTER TABLE http_sessions {change}")
    with pytest.raises(SchemaError, match=problem):
        mariadb_lab.store(schema="check")
    with pytest.raises(SchemaError, match=problem):
        mariadb_lab.store()
    # Nor is it taken for one of somebody's migrations.
    mariadb_lab.execute("DROP TABLE http_sessions_schema")
    with pytest.raises(SchemaError, match=problem):
        mariadb_lab.store()
    assert mariadb_lab.execute("SHOW TABLES LIKE 'http_sessions_schema'") == []


@pytest.mark.parametrize(
    "change",
    [
        "MODIFY max_age BIGINT NOT NULL",
        "MODIFY user_key VARBINARY(300)",
        "MODIFY ip BLOB",
        "ADD COLUMN tenant INT NOT NULL DEFAULT 7",
        "ADD COLUMN note TEXT",
    ],
)
def test_a_table_with_more_room(mariadb_lab: MariaDBLab, change: str) -> None:
    """Wider columns, and columns of one's own that fill themselves, are no reason to refuse."""
    mariadb_lab.store()
    mariadb_lab.execute(f"ALTER TABLE http_sessions {change}")
    assert count(mariadb_lab.store(schema="check"), Browser()) == 1


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("ALTER seen_on TYPE timestamptz(0)", r"seen_on is TIMESTAMP\(0\) WITH TIME ZONE and must"),
        ("ALTER seen_on TYPE timestamp", "seen_on is TIMESTAMP WITHOUT TIME ZONE and must be"),
        ("ALTER version TYPE int", "column version is INTEGER and must be BIGINT"),
        ("ALTER user_key TYPE varchar(20)", r"user_key is VARCHAR\(20\).* and must be TEXT"),
        ("DROP COLUMN meta", "there is no column meta JSONB"),
    ],
)
def test_a_table_of_postgresql_that_does_not_fit(
    sa_pg_lab: SQLAlchemyPostgresLab, change: str, problem: str
) -> None:
    """The same on PostgreSQL."""
    sa_pg_lab.store()
    sa_pg_lab.execute(f"ALTER TABLE http_sessions {change}")
    with pytest.raises(SchemaError, match=problem):
        sa_pg_lab.store(schema="check")


def test_a_table_of_sqlite_that_does_not_fit(sa_sqlite_lab: SQLAlchemySQLiteLab) -> None:
    """SQLite's columns have an affinity; that, and all of their names, have to fit."""
    sa_sqlite_lab.execute("CREATE TABLE http_sessions (key BLOB PRIMARY KEY, version TEXT)")
    with pytest.raises(SchemaError, match=r"no column name TEXT.*version is TEXT and must be INT"):
        sa_sqlite_lab.store(schema="check")


def test_a_table_of_newer_code(sa_lab: Any, make_engine: Engines) -> None:
    """Code that is too old for a table is refused; older code that the table allows is not."""
    sa_lab.store()
    log = sa.table(
        "http_sessions_schema",
        sa.column("version"),
        sa.column("oldest_code"),
        schema=schema_of(sa_lab),
    )
    engine = make_engine(sa_lab.url)
    with engine.begin() as connection:
        connection.execute(log.insert().values(version=7, oldest_code=1))
    assert count(sa_lab.store(), Browser()) == 1
    with engine.begin() as connection:
        connection.execute(log.insert().values(version=8, oldest_code=8))
    for schema in ("apply", "check"):
        with pytest.raises(SchemaError, match="code older than version 8 may not use"):
            sa_lab.store(schema=schema)


def test_a_missing_table(sa_lab: Any) -> None:
    """It is said at once, and by requests, with what to do."""
    with pytest.raises(SchemaError, match="run 'pgstore schema apply'"):
        sa_lab.store(schema="check")
    with pytest.raises(SchemaError, match="run 'pgstore schema apply'"):
        sa_lab.store(schema="off").sessions_of("alice")


def test_grants_of_mysql_are_enough_and_no_more(
    mariadb: MariaDBServer, mariadb_lab: MariaDBLab
) -> None:
    """With what `pgstore schema grants` prints, an application's account can do all it has to."""
    admin = mariadb_lab.store()
    role = f"app_{mariadb_lab.database[-8:]}"
    mariadb_lab.execute(f"CREATE USER {role} IDENTIFIED BY 'sesame'")
    try:
        text = grants("http_sessions", role, engine="mysql")
        for statement in statements(text):
            mariadb_lab.execute(statement)
        url = mariadb.url(mariadb_lab.database, user=role, password="sesame")
        with SQLAlchemyStore(url, *KEYS) as store:
            browser = Browser()
            with browser.visit(store) as session:
                session.login("alice")
            assert count(store, browser) == 1
            with store.backend.locked(b""):
                pass
            mariadb_lab.pass_time(40 * 24 * 3600)
            assert store.delete_expired() == 1
            assert store.revoke_user("alice") == 0
        for refused in ("DROP TABLE http_sessions", "UPDATE http_sessions SET created_on = 0"):
            with (
                mariadb.connect(mariadb_lab.database, user=role, password="sesame") as connection,
                connection.cursor() as cursor,
                pytest.raises(pymysql.err.OperationalError, match="command denied"),
            ):
                cursor.execute(refused)
        mariadb_lab.execute("DROP TABLE http_sessions, http_sessions_schema")
        with pytest.raises(SchemaError, match="this account may not create"):
            SQLAlchemyStore(url, *KEYS)
        admin.close()
    finally:
        mariadb_lab.execute(f"DROP USER {role}")


def test_a_maker_of_the_table_that_was_killed(mariadb_lab: MariaDBLab) -> None:
    """MySQL commits each statement of a schema: what is half made is completed."""
    mariadb_lab.store()
    for undone in ("DELETE FROM http_sessions_schema", "DROP TABLE http_sessions_schema"):
        mariadb_lab.execute(undone)
        assert count(mariadb_lab.store(), Browser()) == 1
        mariadb_lab.store(schema="check")
    mariadb_lab.execute("DROP TABLE http_sessions")
    mariadb_lab.execute("DELETE FROM http_sessions_schema")
    assert count(mariadb_lab.store(), Browser()) == 1


# -- where a URL is a setting ---------------------------------------------------------------------


def test_flask_on_mariadb(mariadb_lab: MariaDBLab) -> None:
    """PGSTORE_URL may be one of SQLAlchemy's."""
    app = Flask(__name__)
    app.config.update(SECRET_KEY="a secret key of thirty-two bytes!", PGSTORE_URL=mariadb_lab.url)
    sessions = FlaskSessions(app)

    @app.get("/")
    def index() -> str:
        session["n"] = session.get("n", 0) + 1
        return str(session["n"])

    client = app.test_client()
    assert [client.get("/").text for _ in range(2)] == ["1", "2"]
    with app.app_context():
        assert type(sessions.store) is SQLAlchemyStore
        sessions.store.close()
    assert len(mariadb_lab.rows()) == 1


# -- statements ------------------------------------------------------------------------------------


def statements_of(store: Any, caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    seen: list[str] = []

    def note(conn: Any, cursor: Any, statement: str, *rest: Any) -> None:
        seen.append(" ".join(statement.split())[:6])

    sa.event.listen(store.backend._db.engine, "before_cursor_execute", note)

    def take() -> list[str]:
        taken, seen[:] = list(seen), []
        return taken

    return take


def test_what_a_request_costs(sa_lab: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A load is one statement; a write is a read and a compare-and-set, and no transaction."""
    caplog.set_level(logging.INFO, "sqlalchemy.engine")
    store, browser = sa_lab.store(), Browser()
    take = statements_of(store, caplog)
    count(store, browser)
    assert take() == ["SELECT", "INSERT"]
    Visit(browser, store)
    assert take() == ["SELECT"]
    count(store, browser)
    assert take() == ["SELECT", "SELECT", "UPDATE"]
    sa_lab.pass_time(3600)
    with browser.visit(store) as session:
        assert session["n"] == 2
    assert take() == ["SELECT", "SELECT", "UPDATE"]
    with browser.visit(store) as session:
        session.delete()
    assert take() == ["SELECT", "SELECT", "DELETE"]


def test_types_of_the_table(make_engine: Engines) -> None:
    """What MariaDB's defaults would spoil has types of its own."""
    table = sessions_table(sa.MetaData())
    dialect = mysql.dialect()  # type: ignore[no-untyped-call]
    types = {column.name: column.type.compile(dialect) for column in table.columns}
    assert types["user_key"] == "VARBINARY(255)"
    assert types["data"] == "LONGBLOB"
    assert {types[name] for name in types if name.endswith(("_on", "gc_after"))} == {"DATETIME(6)"}
