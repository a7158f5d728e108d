"""A throw-away MariaDB server, from Debian's package mariadb-server."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import pymysql
import pymysql.cursors
import pytest

from pgstore import embedded

USER, PASSWORD = "pgstore", "pass/word@%"


def find_program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")


class MariaDBServer:
    """Run MariaDB on 127.0.0.1 for the length of a `with` block, on a folder of its own.

    Its time zone is an odd one. Nothing waits for a disk: commits outlive a `kill`, though not the
    machine. Skips the test where MariaDB is not installed; with CI set it fails.
    """

    def __init__(self) -> None:
        programs = [find_program("mariadb-install-db"), find_program("mariadbd")]
        if None in programs:
            reason = "MariaDB is missing: install the Debian package mariadb-server"
            if os.environ.get("CI"):
                pytest.fail(reason)
            pytest.skip(reason)
        self._install, self._server = programs
        self.port = embedded._free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        base = "/dev/shm" if embedded._room_in_shm() else None
        self._folder = Path(tempfile.mkdtemp(prefix="mariadb-", dir=base))
        try:
            self._initialise()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()
        shutil.rmtree(self._folder)

    def start(self) -> None:
        """Start it; return when it accepts connections."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(self._server),
                    "--no-defaults",
                    *self._account(),
                    f"--datadir={self._folder / 'data'}",
                    f"--socket={self._folder / 'socket'}",
                    f"--pid-file={self._folder / 'pid'}",
                    f"--init-file={self._folder / 'init.sql'}",
                    "--bind-address=127.0.0.1",
                    f"--port={self.port}",
                    "--skip-name-resolve",
                    "--max-connections=300",
                    "--default-time-zone=+05:45",
                    "--character-set-server=utf8mb4",
                    "--innodb-flush-log-at-trx-commit=2",
                    "--innodb-buffer-pool-size=32M",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )
        deadline = time.monotonic() + 60
        while True:
            with suppress(pymysql.OperationalError):
                self.connect().close()
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(self._log.read_text())
            time.sleep(0.02)

    def kill(self) -> None:
        """Kill it, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def connect(
        self, database: str | None = None, *, user: str = USER, password: str = PASSWORD
    ) -> pymysql.Connection[Any]:
        """Return a connection in autocommit, by default as an account with every right."""
        return pymysql.connect(
            host="127.0.0.1",
            port=self.port,
            user=user,
            password=password,
            database=database,
            autocommit=True,
            ssl_disabled=True,
            cursorclass=pymysql.cursors.DictCursor,
        )

    def url(self, database: str, *, user: str = USER, password: str = PASSWORD) -> str:
        """Return the URL of a database for SQLAlchemy."""
        account = f"{quote(user, safe='')}:{quote(password, safe='')}"
        return f"mysql+pymysql://{account}@127.0.0.1:{self.port}/{database}"

    @property
    def _log(self) -> Path:
        return self._folder / "log"

    def _initialise(self) -> None:
        self._folder.chmod(0o755)  # it is read by another account
        (self._folder / "init.sql").write_text(
            f"CREATE USER IF NOT EXISTS {USER}@'127.0.0.1' IDENTIFIED BY '{PASSWORD}';\n"
            f"GRANT ALL ON *.* TO {USER}@'127.0.0.1' WITH GRANT OPTION;\n"
        )
        if os.geteuid() == 0:
            shutil.chown(self._folder, "mysql", "mysql")
        done = subprocess.run(
            [
                str(self._install),
                "--no-defaults",
                *self._account(),
                f"--datadir={self._folder / 'data'}",
                "--skip-test-db",
                "--skip-name-resolve",
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd="/",
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def _account(self) -> list[str]:
        return ["--user=mysql"] if os.geteuid() == 0 else []


@contextmanager
def fresh_database(server: MariaDBServer) -> Iterator[str]:
    """Create a database under a new name, yield the name, drop it with all it holds."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    with server.connect() as connection, connection.cursor() as cursor:
        # MariaDB's own default takes 'alice' and 'Alice' for one.
        cursor.execute(f"CREATE DATABASE {name}")
    yield name
    with server.connect() as connection, connection.cursor() as cursor:
        # A test that left a transaction open fails here, instead of hanging the run.
        cursor.execute("SET lock_wait_timeout = 10")
        cursor.execute(f"DROP DATABASE {name}")
        # A connection that was closed is gone a moment later.
        deadline = time.monotonic() + 10
        query = "SELECT id, info FROM information_schema.processlist WHERE db = %s"
        while cursor.execute(query, [name]):
            left = cursor.fetchall()
            assert time.monotonic() < deadline, f"connections were left open: {left}"
            time.sleep(0.01)
