"""Storages that are reached through SQLAlchemy, seen through the databases' own drivers."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pymysql
import sqlalchemy as sa
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from pgstore import SQLAlchemyStore, Store
from support.mariadb import MariaDBServer
from support.stores import TIMES, Lab, PostgresLab, SQLiteLab


class MariaDBLab(Lab):
    """A database of MariaDB's."""

    def __init__(self, server: MariaDBServer, database: str) -> None:
        super().__init__()
        self.server = server
        self.database = database
        self.url = server.url(database)
        self._raw = server.connect(database)

    def __exit__(self, *exc_info: object) -> None:
        super().__exit__(*exc_info)
        if self._raw.open:
            self._raw.close()

    def make(self, *keys: bytes | None, **settings: Any) -> Store:
        return SQLAlchemyStore(self.url, *keys, **settings)

    def rows(self) -> list[dict[str, Any]]:
        with self._raw.cursor() as cursor:
            cursor.execute("SELECT * FROM http_sessions ORDER BY `key`")
            return [_decoded(dict(row)) for row in cursor.fetchall()]

    def set(self, **columns: Any) -> None:
        names = ", ".join(f"`{name}` = %s" for name in columns)
        values = [v.astimezone(UTC) if isinstance(v, datetime) else v for v in columns.values()]
        self.execute(f"UPDATE http_sessions SET {names}", values)

    def pass_time(self, seconds: float) -> None:
        names = ", ".join(f"{name} = {name} - INTERVAL %(us)s MICROSECOND" for name in TIMES)
        self.execute(f"UPDATE http_sessions SET {names}", {"us": round(seconds * 1e6)})

    def execute(self, text: str, parameters: Any = None) -> list[dict[str, Any]]:
        """Run a statement over the raw connection and return its rows."""
        with self._raw.cursor() as cursor:
            cursor.execute(text, parameters)
            return list(cursor.fetchall())

    def kill_connections(self) -> int:
        """End every other connection to the database, as an administrator would; say how many."""
        others = self.execute(
            "SELECT id FROM information_schema.processlist WHERE db = %s AND id <> CONNECTION_ID()",
            [self.database],
        )
        for other in others:
            with suppress(pymysql.OperationalError):  # it has ended by itself
                self.execute(f"KILL {other['id']}")
        return len(others)


class SQLAlchemyPostgresLab(PostgresLab):
    """A schema of PostgreSQL's, through SQLAlchemy."""

    @property
    def url(self) -> str:
        return self.dsn.replace("postgresql://", "postgresql+psycopg://", 1)

    def make(self, *keys: bytes | None, **settings: Any) -> Store:
        return SQLAlchemyStore(self.url, *keys, db_schema=self.schema, **settings)


class SQLAlchemySQLiteLab(SQLiteLab):
    """A file of SQLite's, through SQLAlchemy."""

    @property
    def url(self) -> str:
        return f"sqlite:///{self.path}"

    def make(self, *keys: bytes | None, **settings: Any) -> Store:
        return SQLAlchemyStore(self.url, *keys, **settings)

    def execute(self, text: str) -> None:
        """Run a statement over a connection of its own."""
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute(text)


class OtherDialect(PGDialect_psycopg):
    """A dialect that nobody knows by its name; behind it is PostgreSQL."""

    name = "other"
    supports_statement_cache = True


registry.register("other.psycopg", __name__, "OtherDialect")


class OtherLab(PostgresLab):
    """A schema of a database of which no more is known than that SQLAlchemy speaks to it."""

    @property
    def url(self) -> str:
        return self.dsn.replace("postgresql://", "other+psycopg://", 1)

    @property
    def clock(self) -> sa.ColumnElement[Any]:
        return sa.literal_column("statement_timestamp()")

    def make(self, *keys: bytes | None, **settings: Any) -> Store:
        settings["clock"] = self.clock
        return SQLAlchemyStore(self.url, *keys, db_schema=self.schema, **settings)

    def rows(self) -> list[dict[str, Any]]:
        rows = super().rows()
        for row in rows:
            for name in TIMES:
                if row[name] is not None:
                    row[name] = _UNIX_EPOCH + timedelta(microseconds=row[name])
        return [_decoded(row) for row in rows]

    def pass_time(self, seconds: float) -> None:
        names = ", ".join(f"{name} = {name} - %(us)s" for name in TIMES)
        self.execute(f"UPDATE http_sessions SET {names}", {"us": round(seconds * 1e6)})


_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _decoded(row: dict[str, Any]) -> dict[str, Any]:
    for name in ("name", "user_key", "ip", "user_agent", "meta"):
        if row[name] is not None:
            row[name] = row[name].decode()
    for name in TIMES:
        if row[name] is not None:
            row[name] = row[name].replace(tzinfo=UTC)
    row["meta"] = json.loads(row["meta"]) if row["meta"] else {}
    return row
