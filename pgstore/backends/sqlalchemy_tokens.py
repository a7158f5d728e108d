"""Data under tokens in any SQL database, through SQLAlchemy Core."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.exc import IntegrityError

from ..rows import check_table
from .sqlalchemy_engine import Database, Job
from .sqlalchemy_table import SQLAlchemyTable
from .sqlalchemy_tables import time_type

__all__ = ["SQLAlchemyTokens", "tokens_table"]


def tokens_table(
    metadata: sa.MetaData, *, name: str = "http_tokens", schema: str | None = None
) -> sa.Table:
    """Add the tokens' table to a `sqlalchemy.MetaData` of yours, as `sessions_table` does."""
    check_table(name)
    if schema is not None:
        check_table(schema, what="schema", longest=63)
    table = sa.Table(
        name,
        metadata,
        sa.Column(
            "token_hash",
            sa.LargeBinary(32).with_variant(mysql.BINARY(32), "mysql", "mariadb"),
            primary_key=True,
        ),
        sa.Column(
            "data",
            sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb"),
            nullable=False,
        ),
        sa.Column("expires_on", time_type(), nullable=False),
        schema=schema,
        sqlite_strict=True,
        mysql_engine="InnoDB",
        mariadb_engine="InnoDB",
    )
    sa.Index(f"{name}_expires_on", table.c.expires_on)
    return table


class SQLAlchemyTokens(SQLAlchemyTable):
    """A `TokenBackend` in a database that SQLAlchemy speaks to; see `SQLAlchemyBackend`."""

    def __init__(
        self,
        where: sa.Engine | str | Database,
        *,
        table: str = "http_tokens",
        db_schema: str | None = None,
        clock: sa.ColumnElement[Any] | None = None,
        pool_size: int | None = None,
        statement_timeout: float | None = None,
        pool_timeout: float | None = None,
    ) -> None:
        rows = tokens_table(sa.MetaData(), name=table, schema=db_schema)
        super().__init__(
            where,
            rows,
            part="tokens",
            clock=clock,
            pool_size=pool_size,
            statement_timeout=statement_timeout,
            pool_timeout=pool_timeout,
        )
        c, now = rows.c, self._flavour.now
        key = c.token_hash == sa.bindparam("the_key")
        live = c.expires_on > now
        self._find = self._sql_now.add_columns(c.data).where(key, live)
        self._upsert = self._flavour.upsert(rows, ["data", "expires_on"])
        self._insert = sa.insert(rows)
        self._update = sa.update(rows).where(key)
        self._page = (
            self._sql_now.add_columns(c.token_hash, c.data)
            .where(c.token_hash > sa.bindparam("after"), live)
            .order_by(c.token_hash)
            .limit(sa.bindparam("limit", type_=sa.Integer()))
        )
        expired = c.expires_on <= sa.bindparam("the_now", type_=c.expires_on.type)
        self._expired = (
            sa.select(c.token_hash)
            .where(expired)
            .order_by(c.expires_on)
            .limit(sa.bindparam("limit", type_=sa.Integer()))
        )
        if self._flavour.holds:
            self._expired = self._expired.with_for_update(skip_locked=True)
        else:
            # One that was committed anew meanwhile is to stay.
            self._sql_delete_one = self._sql_delete_one.where(expired)

    def find(self, key: bytes) -> bytes | None:
        def work(job: Job) -> bytes | None:
            for _, data in self._read(job, self._find, the_key=key):
                return bytes(data)
            return None

        return self._db.run(work)

    def commit(self, key: bytes, data: bytes, expiry: timedelta | datetime) -> None:
        def work(job: Job) -> None:
            # Also finds out whether the connection is alive.
            now = self._now(job)
            expires_on = expiry if isinstance(expiry, datetime) else now + expiry
            values = {"data": data, "expires_on": self._flavour.time_in(expires_on)}
            if self._upsert is not None:
                job.write(self._upsert, {"token_hash": key, **values})
                return
            while not job.write(self._update, {"the_key": key, **values}):
                try:
                    job.write(self._insert, {"token_hash": key, **values})
                    return
                except IntegrityError:
                    pass  # another was faster: replace what it committed

        self._db.run(work)

    def delete(self, key: bytes) -> None:
        def work(job: Job) -> None:
            self._now(job)
            job.write(self._sql_delete, {"keys": [key]})

        self._db.run(work)

    def page(self, after: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        def work(job: Job) -> list[tuple[bytes, bytes]]:
            rows = self._read(job, self._page, after=after or b"", limit=limit)
            return [(bytes(key), bytes(data)) for _, key, data in rows]

        return self._db.run(work)

    def sweep(self, limit: int) -> list[bytes]:
        def work(job: Job, now: datetime) -> list[bytes]:
            values = {"the_now": self._flavour.time_in(now), "limit": limit}
            keys = [bytes(row[0]) for row in job.read(self._expired, values)]
            return sorted(self._delete_keys(job, keys, the_now=values["the_now"]))

        return self._in_sweep(work)
