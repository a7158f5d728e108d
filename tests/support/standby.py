"""A primary with a streaming standby, to kill the one and promote the other."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import LiteralString

import psycopg
from psycopg import sql

from pgstore.embedded import PostgresServer, temporary


@dataclass(frozen=True)
class Pair:
    """Two servers, of which `standby` follows `primary`."""

    primary: PostgresServer
    standby: PostgresServer

    @property
    def dsn(self) -> str:
        """Return the URL that leads to whichever of the two can be written to."""
        hosts = f"127.0.0.1:{self.primary.port},127.0.0.1:{self.standby.port}"
        return f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write"

    def require_standby(self, synchronous_commit: str) -> None:
        """Let no commit on the primary return before the standby has it."""
        with psycopg.connect(self.primary.dsn, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            setting = sql.SQL("ALTER SYSTEM SET synchronous_commit = {}")
            connection.execute(setting.format(synchronous_commit))
            connection.execute("SELECT pg_reload_conf()")
            _wait_for(connection, "SELECT sync_state = 'sync' FROM pg_stat_replication")

    def promote(self) -> None:
        """Make the standby take writes; return when it does."""
        with psycopg.connect(self.standby.dsn, autocommit=True) as connection:
            connection.execute("SELECT pg_promote(true, 30)")


@contextmanager
def replicated() -> Iterator[Pair]:
    """Run a primary and a standby that streams from it, for the length of a `with` block."""
    with temporary() as primary, tempfile.TemporaryDirectory(dir=primary.data_dir.parent) as folder:
        data_dir = Path(folder) / "standby"
        _copy(primary, data_dir)
        settings = {"fsync": "off", "dynamic_shared_memory_type": "mmap"}
        with (
            PostgresServer(data_dir, bin_dir=primary.bin_dir, settings=settings) as standby,
            psycopg.connect(primary.dsn, autocommit=True) as connection,
        ):
            _wait_for(connection, "SELECT state = 'streaming' FROM pg_stat_replication")
            connection.close()
            yield Pair(primary, standby)


def _copy(primary: PostgresServer, data_dir: Path) -> None:
    program = str(primary.bin_dir / "pg_basebackup")
    backup = [program, "-d", primary.dsn, "-D", str(data_dir), "-R", "-X", "stream", "-c", "fast"]
    subprocess.run(backup, check=True, capture_output=True)
    owner = primary.data_dir.stat()
    if owner.st_uid != os.geteuid():
        for path in (data_dir.parent, data_dir, *data_dir.rglob("*")):
            shutil.chown(path, owner.st_uid, owner.st_gid)


def _wait_for(
    connection: psycopg.Connection, query: LiteralString, *, timeout: float = 30.0
) -> None:
    deadline = time.monotonic() + timeout
    while connection.execute(query).fetchone() != (True,):
        assert time.monotonic() < deadline, query
        time.sleep(0.01)
