"""The contract of a backend on PostgreSQL, for each way to reach a server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import psycopg
import pytest

from pgstore.backends.postgres import PostgresBackend
from pgstore.backends.postgres_pool import OwnPool, Pool
from pgstore.rows import Backend
from pgstore.store import Store
from pgstore.testing import BackendContract
from support.postgres import NEWEST, PostgresServers, fresh_schema
from support.stores import PostgresLab


def own_pool(dsn: str, pooler: Literal["transaction"] | None = None) -> Pool:
    """Return a pool for eight threads, patient enough for a busy machine."""
    return OwnPool(dsn, size=8, statement_timeout=10.0, pool_timeout=10.0, pooler=pooler)


class PostgresContract(BackendContract):
    """The contract on one server; a subclass says how it is reached."""

    version = NEWEST

    @pytest.fixture(autouse=True)
    def _storage(self, postgres: PostgresServers) -> Iterator[None]:
        dsn = postgres(self.version).dsn
        with fresh_schema(dsn) as schema, PostgresLab(dsn, schema) as self.lab:
            yield

    def make_pool(self) -> Pool:
        return own_pool(self.lab.dsn)

    def make_backend(self) -> Backend:
        return PostgresBackend(self.make_pool(), db_schema=self.lab.schema)

    def make_connection(self) -> Any:
        return psycopg.connect(self.lab.dsn)

    def raw_rows(self) -> list[dict[str, Any]]:
        rows = self.lab.rows()
        for row in rows:
            row["meta"] = row["meta"] or {}
        return rows

    def raw_shift(self, seconds: float) -> None:
        self.lab.pass_time(seconds)


def each_connection(store: Store, size: int) -> Iterator[None]:
    """Open ``size`` connections, and arrange for the next request to have one after another.

    The pool hands out the one that came back last.
    """
    pool = store.backend._pool  # type: ignore[attr-defined]
    wires = [pool.get() for _ in range(size)]
    assert len({wire.connection.info.backend_pid for wire in wires}) == size
    while wires:
        pool.put(wires.pop())
        yield
