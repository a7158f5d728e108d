"""The PostgreSQL servers of a test run: one per major version found, started when first asked for.

With pytest-xdist every worker has servers of its own.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from pgstore.embedded import PostgresServer, find_binaries, newest, temporary
from pgstore.errors import ConfigurationError

NEWEST = 0


def postgres_versions() -> list[int]:
    """List the major versions to parametrise over.

    Never empty, so that no test vanishes: where no PostgreSQL is found it holds `NEWEST`, and
    `binaries` speaks up.
    """
    return sorted(find_binaries()) or [NEWEST]


def binaries(version: int) -> Path:
    """Return the folder of binaries of a version; without any PostgreSQL, skip, or fail in CI."""
    if version != NEWEST:
        return find_binaries()[version]
    try:
        return newest()
    except ConfigurationError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


class PostgresServers:
    """Start one throw-away server per major version and keep it until the block ends."""

    def __init__(self) -> None:
        self._servers: dict[Path, PostgresServer] = {}
        self._stack = ExitStack()

    def __call__(self, version: int = NEWEST) -> PostgresServer:
        """Return the running server of a major version."""
        bin_dir = binaries(version)
        if bin_dir not in self._servers:
            self._servers[bin_dir] = self._stack.enter_context(temporary(bin_dir=bin_dir))
        return self._servers[bin_dir]

    def __enter__(self) -> PostgresServers:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()


@contextmanager
def fresh_schema(dsn: str) -> Iterator[str]:
    """Create a schema under a new name, yield the name, drop the schema with all it holds."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
    yield name
    with psycopg.connect(dsn, autocommit=True) as connection:
        # A test that left a transaction open fails here, instead of hanging the run.
        connection.execute("SET lock_timeout = '10s'")
        connection.execute("SET client_min_messages = warning")
        connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(name)))
