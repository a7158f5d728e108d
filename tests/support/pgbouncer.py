"""PgBouncer in transaction mode in front of a PostgreSQL server of ours."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from pgstore import embedded
from pgstore.embedded import PostgresServer

_PROGRAM = "/usr/sbin/pgbouncer"


class PgBouncer:
    """Run PgBouncer for the length of a `with` block; its `dsn` leads to `server` through it.

    `pool_size` bounds the connections to the server. Skips the test where PgBouncer is not
    installed; with CI set it fails.
    """

    def __init__(self, server: PostgresServer, *, pool_size: int) -> None:
        program = shutil.which("pgbouncer") or _PROGRAM
        if not os.access(program, os.X_OK):
            reason = "PgBouncer is missing: install the Debian package pgbouncer"
            if os.environ.get("CI"):
                pytest.fail(reason)
            pytest.skip(reason)
        self._program = program
        self._server = server
        self._pool_size = pool_size
        self.port = embedded._free_port()

    @property
    def dsn(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="pgbouncer-")
        folder = Path(self._folder.name)
        folder.chmod(0o755)  # it is read by another account
        (folder / "users.txt").write_text('"postgres" ""\n')
        (folder / "pgbouncer.ini").write_text(
            f"""[databases]
* = host=127.0.0.1 port={self._server.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {self.port}
unix_socket_dir =
auth_type = trust
auth_file = {folder}/users.txt
pool_mode = transaction
default_pool_size = {self._pool_size}
max_client_conn = 200
server_login_retry = 0.1
"""
        )
        self.start()
        return self

    def start(self) -> None:
        """Start it; return when it accepts connections."""
        folder = Path(self._folder.name)
        root = os.geteuid() == 0  # as whom it refuses to run
        with (folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, str(folder / "pgbouncer.ini")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                user="nobody" if root else None,
                group="nogroup" if root else None,
                extra_groups=() if root else None,
            )
        deadline = time.monotonic() + 30
        while True:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError((folder / "log").read_text())
            time.sleep(0.01)

    def kill(self) -> None:
        """Kill it, as a crash would."""
        self._process.kill()
        self._process.wait()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()
        self._folder.cleanup()
