"""What runs the site of ``pgstore demo``: its keys, its database, and its server."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from werkzeug.serving import WSGIRequestHandler, make_server

from .embedded import PostgresServer, UnreachableError, find_binaries
from .errors import ConfigurationError
from .ids import generate_random_key
from .urls import engine_of, format_keys, open_store, parse_keys

__all__ = ["run"]

# A table of its own: in a database of the user's, the sessions of a real site may be next to it.
_TABLE = "pgstore_demo"

_NAMES = {
    "postgresql": "PostgreSQL",
    "postgres": "PostgreSQL",
    "sqlite": "SQLite",
    "mysql": "MySQL",
    "mariadb": "MariaDB",
}


def run(
    *,
    url: str | None = None,
    data: Path = Path(".pgstore-demo"),
    host: str = "127.0.0.1",
    port: int = 8000,
) -> None:
    """Serve the site until KeyboardInterrupt, which is not passed on.

    Without the ``url`` of a database it runs on a PostgreSQL of its own where there are binaries
    for one (`pgstore.embedded`), else on SQLite. That database and the keys are kept in the folder
    ``data``, so that sessions outlive a restart. ``port`` 0 is any free one; the address is
    printed.

    Raises `ConfigurationError` without Flask, and when it cannot listen there or use the folder,
    and what the database raises.
    """
    try:
        from . import demo_site
    except ImportError as error:
        if error.name != "flask":
            raise
        raise ConfigurationError("the demo wants Flask: pip install 'pgstore[demo]'") from error
    keys = _keys_in(data)
    with _listen(host, port) as listener, _database(url, data) as (url, database):
        store = open_store(url, *keys, table=_TABLE, merge=demo_site.MERGE)
        with store:
            store.cleanup()
            app = demo_site.create_app(store, database=database)
            server = make_server(
                host, port, app, threaded=True, request_handler=_Handler, fd=listener.fileno()
            )
            shown = f"[{host}]" if ":" in host else host
            print(f"http://{shown}:{server.port}/ on {database}; Ctrl-C ends it", flush=True)
            server.serve_forever()


class _Handler(WSGIRequestHandler):
    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Say nothing: the page shows what happens."""


@contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    """Take the port before a database is started, so that one that is taken shows at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on port {port} of {host}: {error.strerror}"
        ) from error
    with listener:
        yield listener


@contextmanager
def _database(url: str | None, data: Path) -> Iterator[tuple[str, str]]:
    """Give the URL of the database and its name for people, and stop it if it was started here."""
    if url is not None:
        engine_of(url)
        scheme = re.split("[+:]", url)[0]
        yield url, f"{_NAMES.get(scheme, scheme)}, a database of yours"
    elif find_binaries():
        server = PostgresServer(data / "postgres")
        try:
            server.start()
        except UnreachableError as error:
            yield _sqlite(data, str(error))
            return
        with server:
            yield server.dsn, f"PostgreSQL {server.version} in {data}"
    else:
        yield _sqlite(data, "no PostgreSQL found")


def _sqlite(data: Path, why: str) -> tuple[str, str]:
    path = (data / "sessions.db").resolve()
    return f"sqlite:///{quote(str(path))}", f"SQLite in {data} ({why})"


def _keys_in(data: Path) -> list[bytes | None]:
    """Return the keys that the folder keeps, made by the first run."""
    path = data / "keys"
    try:
        data.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _write_private(path, format_keys(generate_random_key(32), generate_random_key(32)))
        return parse_keys(path.read_text("ascii"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be used: {error}") from error


def _write_private(path: Path, text: str) -> None:
    """Write a file for the owner only, whole or not at all."""
    draft = path.with_suffix(f".{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text + "\n")
    draft.replace(path)
