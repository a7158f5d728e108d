"""The contract of a backend through SQLAlchemy, on every database that is had, and ways to it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from pgstore.backends.sqlalchemy import SQLAlchemyBackend
from pgstore.rows import Backend
from pgstore.testing import TIMES, BackendContract


class TestSQLite(BackendContract):
    @pytest.fixture(autouse=True)
    def _storage(self, tmp_path: Path) -> None:
        self.path = tmp_path / "sessions.db"

    def make_backend(self) -> Backend:
        return SQLAlchemyBackend(f"sqlite:///{self.path}", statement_timeout=30.0)

    def raw_rows(self) -> list[dict[str, Any]]:
        import json
        with closing(sqlite3.connect(self.path)) as connection:
            connection.row_factory = sqlite3.Row
            rows = [dict(row) for row in connection.execute("SELECT * FROM http_sessions")]
        for row in rows:
            row["meta"] = json.loads(row["meta"] or "{}")
            for name in TIMES:
                if row[name] is not None:
                    row[name] = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=row[name])
        return rows

    def raw_shift(self, seconds: float) -> None:
        names = ", ".join(f"{name} = {name} - :us" for name in TIMES)
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute(f"UPDATE http_sessions SET {names}", {"us": round(seconds * 1e6)})
