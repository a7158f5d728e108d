"""The contract of a backend through SQLAlchemy, on every database that is had, and ways to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa

from pgstore.backends.sqlalchemy import SQLAlchemyBackend
from pgstore.errors import ConfigurationError
from pgstore.rows import Backend
from pgstore.testing import BARE, TIMES, BackendContract, add, in_fork, load
from support.mariadb import MariaDBServer, fresh_database
from support.postgres import NEWEST, PostgresServers, fresh_schema, postgres_versions
from support.sqlalchemy_labs import (
    MariaDBLab,
    OtherLab,
    SQLAlchemyPostgresLab,
    SQLAlchemySQLiteLab,
)


class SQLAlchemyContract(BackendContract):
    """The contract on a lab, over an engine that the backend makes itself."""

    lab: Any
    settings: ClassVar[dict[str, Any]] = {
        "pool_size": 8,
        "statement_timeout": 30.0,
        "pool_timeout": 30.0,
    }

    def make_backend(self) -> Backend:
        return SQLAlchemyBackend(self.lab.url, **self.settings)

    @pytest.fixture(autouse=True)
    def _engines(self, _storage: None) -> Iterator[None]:
        self.engines: list[sa.Engine] = []
        yield
        for engine in self.engines:
            engine.dispose()

    def make_engine(self) -> sa.Engine:
        engine = sa.create_engine(self.lab.url)
        self.engines.append(engine)
        return engine

    def make_connection(self) -> sa.Connection:
        return self.make_engine().connect()

    def raw_rows(self) -> list[dict[str, Any]]:
        return self.lab.rows()

    def raw_shift(self, seconds: float) -> None:
        self.lab.pass_time(seconds)


class TestSQLite(SQLAlchemyContract):
    on = "SQLAlchemy on SQLite"

    @pytest.fixture(autouse=True)
    def _storage(self, tmp_path: Path) -> Iterator[None]:
        with SQLAlchemySQLiteLab(tmp_path / "sessions.db") as self.lab:
            yield

    def raw_rows(self) -> list[dict[str, Any]]:
        rows = self.lab.rows()
        for row in rows:
            row["meta"] = json.loads(row["meta"] or "{}")
            for name in TIMES:
                if row[name] is not None:
                    row[name] = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=row[name])
        return rows


class TestMariaDB(SQLAlchemyContract):
    on = "SQLAlchemy on MariaDB"

    @pytest.fixture(autouse=True)
    def _storage(self, mariadb: MariaDBServer) -> Iterator[None]:
        with fresh_database(mariadb) as name, MariaDBLab(mariadb, name) as self.lab:
            yield


class PostgresThroughSQLAlchemy(SQLAlchemyContract):
    version: int

    @pytest.fixture(autouse=True)
    def _storage(self, postgres: PostgresServers) -> Iterator[None]:
        dsn = postgres(self.version).dsn
        with fresh_schema(dsn) as schema, SQLAlchemyPostgresLab(dsn, schema) as self.lab:
            yield

    def make_backend(self) -> Backend:
        return SQLAlchemyBackend(self.lab.url, db_schema=self.lab.schema, **self.settings)

    def raw_rows(self) -> list[dict[str, Any]]:
        rows = self.lab.rows()
        for row in rows:
            row["meta"] = row["meta"] or {}
        return rows


class TestUnknownDialect(PostgresThroughSQLAlchemy):
    """A dialect that is not known by its name: integers, bytes, and a clock that the caller names.

    It is PostgreSQL's, under another name.
    """

    on = "SQLAlchemy on a dialect that is not known"
    version = NEWEST

    @pytest.fixture(autouse=True)
    def _storage(self, postgres: PostgresServers) -> Iterator[None]:
        dsn = postgres().dsn
        with fresh_schema(dsn) as schema, OtherLab(dsn, schema) as self.lab:
            yield

    def make_backend(self) -> Backend:
        return SQLAlchemyBackend(
            self.lab.url, db_schema=self.lab.schema, clock=self.lab.clock, **self.settings
        )


class CallersEngine(SQLAlchemyContract):
    """Over an engine of the caller's, with the settings of the caller."""

    def make_backend(self) -> Backend:
        engine = self.make_engine()
        return SQLAlchemyBackend(engine, db_schema=getattr(self.lab, "schema", None))

    def test_forked_child(self, backend: Backend) -> None:
        """An engine that was used does not cross a fork; the child is told so, and what to do."""
        row = add(backend, BARE)

        def child() -> None:
            with pytest.raises(ConfigurationError, match=r"engine\.dispose\(close=False\)"):
                backend.load(BARE.key)
            self.engines[0].dispose(close=False)
            assert load(backend) == row

        assert in_fork(child) == 0
        assert load(backend) == row


class TestMariaDBCallersEngine(CallersEngine, TestMariaDB):
    """In transactions under REPEATABLE READ, and in a time zone of its own."""

    on = "SQLAlchemy on MariaDB, an engine of the caller's"

    def make_engine(self) -> sa.Engine:
        engine = super().make_engine()

        @sa.event.listens_for(engine, "connect")
        def set_time_zone(connection: Any, record: object) -> None:
            with connection.cursor() as cursor:
                cursor.execute("SET time_zone = '-09:30', sql_mode = ''")

        return engine


class TestPostgreSQLCallersEngine(CallersEngine, PostgresThroughSQLAlchemy):
    """In transactions that are serializable, and in a time zone of its own."""

    on = "SQLAlchemy on PostgreSQL, an engine of the caller's"
    version = NEWEST

    def make_engine(self) -> sa.Engine:
        options = "-c default_transaction_isolation=serializable -c timezone=Asia/Kathmandu"
        engine = sa.create_engine(self.lab.url, connect_args={"options": options})
        self.engines.append(engine)
        return engine


class TestSQLiteCallersEngine(CallersEngine, TestSQLite):
    """With one thread's connection kept for the next, as SQLAlchemy does for files."""

    on = "SQLAlchemy on SQLite, an engine of the caller's"

    def make_engine(self) -> sa.Engine:
        engine = sa.create_engine(self.lab.url, connect_args={"timeout": 30})
        self.engines.append(engine)
        return engine


class TestSQLiteCallersTransactions(TestSQLiteCallersEngine):
    """With the listeners that SQLAlchemy's manual has for transactions of SQLite's."""

    on = "SQLAlchemy on SQLite, with listeners"

    def make_engine(self) -> sa.Engine:
        engine = super().make_engine()

        @sa.event.listens_for(engine, "connect")
        def begin_nothing(connection: Any, record: object) -> None:
            connection.isolation_level = None

        @sa.event.listens_for(engine, "begin")
        def begin(connection: sa.Connection) -> None:
            connection.exec_driver_sql("BEGIN")

        return engine


for _version in postgres_versions():
    _name = f"TestPostgreSQL{_version or ''}"
    _on = f"SQLAlchemy on PostgreSQL {_version or ''}".strip()
    globals()[_name] = type(_name, (PostgresThroughSQLAlchemy,), {"version": _version, "on": _on})
