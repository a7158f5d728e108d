"""Storages that are reached through SQLAlchemy, seen through the databases' own drivers."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from pgstore import Store
from pgstore.store import SQLAlchemyStore
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


def _decoded(row: dict[str, Any]) -> dict[str, Any]:
    for name in ("name", "user_key", "ip", "user_agent", "meta"):
        if row[name] is not None:
            row[name] = row[name].decode()
    for name in TIMES:
        if row[name] is not None:
            row[name] = row[name].replace(tzinfo=UTC)
    row["meta"] = json.loads(row["meta"]) if row["meta"] else {}
    return row
