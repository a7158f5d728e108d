"""Every kind of store behind one interface, with a raw view of its rows and a way to move time."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, fields, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Self

import psycopg
from psycopg.rows import dict_row
from werkzeug.datastructures import Headers

from pgstore import PGSession, PGStore, SQLiteStore, Store
from pgstore.backends.memory import MemoryBackend
from pgstore.session import Session

KEYS = (b"hash key of the tests, 32 bytes.", b"block key, 32 bytes long, tests.")

TIMES = [field.name for field in fields(PGSession) if field.name.endswith(("_on", "gc_after"))]


class Lab:
    """One storage: makes stores on it, shows its rows, and makes them older."""

    def store(self, *keys: bytes | None, **settings: Any) -> Store:
        """Return a new store on this storage. It is closed with the lab."""
        store = self.make(*(keys or KEYS), **settings)
        self._stores.append(store)
        return store

    def __init__(self) -> None:
        self._stores: list[Store] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for store in self._stores:
            store.close()

    def make(self, *keys: bytes | None, **settings: Any) -> Store:
        raise NotImplementedError

    def connect(self) -> Any:
        """Return a connection of the database's driver, as `Store.using` takes it."""
        raise NotImplementedError

    def rows(self) -> list[dict[str, Any]]:
        """Return every row, live or not, in the order of their keys."""
        raise NotImplementedError

    def row(self) -> dict[str, Any]:
        (row,) = self.rows()
        return row

    def set(self, **columns: Any) -> None:
        """Change columns of every row by hand."""
        raise NotImplementedError

    def pass_time(self, seconds: float) -> None:
        """Make every row that much older."""
        raise NotImplementedError


class MemoryLab(Lab):
    def __init__(self) -> None:
        super().__init__()
        self.backend = MemoryBackend()

    def make(self, *keys: bytes | None, pool_size: int = 0, **settings: Any) -> Store:
        return Store(self.backend, *keys, **settings)

    @property
    def _rows(self) -> dict[bytes, PGSession]:
        return self.backend._rows

    def rows(self) -> list[dict[str, Any]]:
        return [asdict(self._rows[key]) for key in sorted(self._rows)]

    def set(self, **columns: Any) -> None:
        for key, row in self._rows.items():
            self._rows[key] = replace(row, **columns)

    def pass_time(self, seconds: float) -> None:
        for key, row in self._rows.items():
            older: dict[str, Any] = {
                name: value - timedelta(seconds=seconds)
                for name in TIMES
                if isinstance(value := getattr(row, name), datetime)
            }
            self._rows[key] = replace(row, **older)


class SQLiteLab(Lab):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def make(self, *keys: bytes | None, pool_size: int = 0, **settings: Any) -> Store:
        return SQLiteStore(self.path, *keys, **settings)

    def connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path)

    def rows(self) -> list[dict[str, Any]]:
        with closing(sqlite3.connect(self.path)) as connection:
            connection.row_factory = sqlite3.Row
            return [
                dict(row) for row in connection.execute("SELECT * FROM http_sessions ORDER BY key")
            ]

    def set(self, **columns: Any) -> None:
        names = ", ".join(f"{name} = ?" for name in columns)
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute(f"UPDATE http_sessions SET {names}", list(columns.values()))

    def pass_time(self, seconds: float) -> None:
        names = ", ".join(f"{name} = {name} - :us" for name in TIMES)
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute(f"UPDATE http_sessions SET {names}", {"us": round(seconds * 1e6)})


class PostgresLab(Lab):
    def __init__(self, dsn: str, schema: str) -> None:
        super().__init__()
        self.dsn = dsn
        self.schema = schema
        self._raw = psycopg.connect(dsn, autocommit=True, options=f"-c search_path={schema}")

    def __exit__(self, *exc_info: object) -> None:
        super().__exit__(*exc_info)
        self._raw.close()

    def make(self, *keys: bytes | None, **settings: Any) -> Store:
        return PGStore(self.dsn, *keys, db_schema=self.schema, **settings)

    def connect(self, **settings: Any) -> psycopg.Connection[Any]:
        return psycopg.connect(self.dsn, options=f"-c search_path={self.schema}", **settings)

    def rows(self) -> list[dict[str, Any]]:
        cursor = self._raw.cursor(row_factory=dict_row)
        return cursor.execute("SELECT * FROM http_sessions ORDER BY key").fetchall()

    def set(self, **columns: Any) -> None:
        names = ", ".join(f"{name} = %s" for name in columns)
        self.execute(f"UPDATE http_sessions SET {names}", list(columns.values()))

    def pass_time(self, seconds: float) -> None:
        names = ", ".join(f"{name} = {name} - %(step)s" for name in TIMES)
        self.execute(f"UPDATE http_sessions SET {names}", {"step": timedelta(seconds=seconds)})

    def execute(self, text: str, parameters: Any = None) -> None:
        """Run a statement over the raw connection, with the lab's schema as search_path."""
        self._raw.execute(text, parameters)


class Browser:
    """Keeps cookies as a browser does, as far as one site's sessions need it."""

    def __init__(self, *, address: str = "192.0.2.7", agent: str = "Browser/1.0") -> None:
        self.cookies: dict[str, str] = {}
        self.address = address
        self.agent = agent

    def environ(self, **more: str) -> dict[str, Any]:
        """Return the environ of a new request."""
        environ: dict[str, Any] = {
            "REQUEST_METHOD": "GET",
            "wsgi.url_scheme": "http",
            "REMOTE_ADDR": self.address,
            "HTTP_USER_AGENT": self.agent,
        }
        if self.cookies:
            environ["HTTP_COOKIE"] = "; ".join(f"{k}={v}" for k, v in self.cookies.items())
        return {**environ, **more}

    def receive(self, headers: Headers) -> None:
        """Store the cookies of a response; those with Max-Age=0 are forgotten."""
        for line in headers.getlist("Set-Cookie"):
            pair, _, attributes = line.partition(";")
            name, _, value = pair.partition("=")
            if "Max-Age=0" in attributes:
                self.cookies.pop(name, None)
            else:
                self.cookies[name] = value

    @contextmanager
    def visit(self, store: Store, name: str = "sid") -> Iterator[Session]:
        """Give the session of a new request, and save it at the end of the block."""
        visit = Visit(self, store, name)
        yield visit.session
        visit.save()

    def __copy__(self) -> Browser:
        copy = Browser(address=self.address, agent=self.agent)
        copy.cookies = dict(self.cookies)
        return copy


class Visit:
    """One request of a browser, to be saved when the test wants it."""

    def __init__(self, browser: Browser, store: Store, name: str = "sid", **environ: str) -> None:
        self.browser = browser
        self.store = store
        self.environ = browser.environ(**environ)
        self.headers = Headers()
        self.session = store.get(self.environ, name)

    def save(self) -> Headers:
        """Save the session and let the browser have the response's headers, which are returned."""
        self.session.save(self.environ, self.headers)
        self.browser.receive(self.headers)
        return self.headers
