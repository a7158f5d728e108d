"""The contract of a backend, on every PostgreSQL that is found, and the ways to reach it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import psycopg_pool
import pytest

from pgstore.backends.postgres import PostgresBackend
from pgstore.backends.postgres_pool import BorrowedPool, Pool
from pgstore.errors import ConfigurationError
from pgstore.rows import Backend
from pgstore.sql import grants
from pgstore.testing import in_fork
from support.contract import PostgresContract, own_pool
from support.postgres import postgres_versions

for _version in postgres_versions():
    _name = f"TestPostgreSQL{_version or ''}"
    _on = f"PostgreSQL {_version or ''}".strip()
    globals()[_name] = type(_name, (PostgresContract,), {"version": _version, "on": _on})


class TestPoolerMode(PostgresContract):
    """With nothing prepared, as behind PgBouncer in transaction mode."""

    on = "PostgreSQL, nothing prepared"

    def make_pool(self) -> Pool:
        return own_pool(self.lab.dsn, "transaction")


class TestApplicationRole(PostgresContract):
    """As a role that has been given what ``pgstore schema grants`` prints, and no more."""

    on = "PostgreSQL, as an application's role"

    @pytest.fixture(autouse=True)
    def _role(self, _storage: None) -> Iterator[None]:
        role, schema = f"app_{self.lab.schema}", self.lab.schema
        with psycopg.connect(self.lab.dsn, autocommit=True) as connection:
            connection.execute(f'CREATE ROLE "{role}" LOGIN')  # type: ignore[arg-type]
            PostgresBackend(super().make_pool(), db_schema=schema).apply_schema()
            connection.execute(grants("http_sessions", role, db_schema=schema))  # type: ignore[arg-type]
            self.dsn = self.lab.dsn.replace("postgres@", f"{role}@")
            yield
            connection.execute(f'DROP OWNED BY "{role}"')  # type: ignore[arg-type]
            connection.execute(f'DROP ROLE "{role}"')  # type: ignore[arg-type]

    def make_pool(self) -> Pool:
        return own_pool(self.dsn)


class TestBorrowedPool(PostgresContract):
    """Over a pool of the caller's, whose connections are not in autocommit."""

    on = "PostgreSQL, over a pool of the caller's"

    @pytest.fixture(autouse=True)
    def _pools(self, _storage: None) -> Iterator[None]:
        self.pools: list[psycopg_pool.ConnectionPool[psycopg.Connection[Any]]] = []
        yield
        for pool in self.pools:
            pool.close()

    def make_pool(self) -> Pool:
        pool = psycopg_pool.ConnectionPool(self.lab.dsn, min_size=1, max_size=8, open=True)
        self.pools.append(pool)
        return BorrowedPool(pool, statement_timeout=10.0, pool_timeout=10.0)

    def test_forked_child(self, backend: Backend) -> None:
        """A pool of the caller's does not cross a fork; the child is told so."""
        backend.load(b"")

        def child() -> None:
            with pytest.raises(ConfigurationError, match="belong to the parent process"):
                backend.load(b"")

        assert in_fork(child) == 0
