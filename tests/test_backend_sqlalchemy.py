"""The contract of a backend through SQLAlchemy, on every database that is had, and ways to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from pgstore.backends.sqlalchemy import SQLAlchemyBackend
from pgstore.rows import Backend
from pgstore.testing import TIMES, BackendContract
from support.mariadb import MariaDBServer, fresh_database
from support.postgres import PostgresServers, fresh_schema, postgres_versions
from support.sqlalchemy_labs import MariaDBLab, SQLAlchemyPostgresLab, SQLAlchemySQLiteLab
from support.stores import Lab


class SQLAlchemyContract(BackendContract):
    """The contract on a lab, over an engine that the backend makes itself."""

    lab: Lab
    settings: dict[str, Any] = {"pool_size": 8, "statement_timeout": 30.0, "pool_timeout": 30.0}

    def make_backend(self) -> Backend:
        return SQLAlchemyBackend(self.lab.url, **self.settings)

    def raw_rows(self) -> list[dict[str, Any]]:
        return self.lab.rows()

    def raw_shift(self, seconds: float) -> None:
        self.lab.pass_time(seconds)


class TestSQLite(SQLAlchemyContract):
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


for _version in postgres_versions():
    _name = f"TestPostgreSQL{_version or ''}"
    globals()[_name] = type(_name, (PostgresThroughSQLAlchemy,), {"version": _version})
