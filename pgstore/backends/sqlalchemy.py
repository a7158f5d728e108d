"""Rows in any SQL database, through SQLAlchemy Core.

Every write is a read, which brings the row's times and the database's clock, and a compare-and-set
that finds the row only as it was read. Expiries are worked out in between, in Python: so all
databases reckon alike, none needs RETURNING, and a connection that died while it was idle is found
out before anything was written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from ..errors import ConflictError
from ..rows import Expiry, Loaded, PGSession, Stats, UserStats, expiry_times
from .sqlalchemy_engine import Database, Job, Lent
from .sqlalchemy_schema import sql_of
from .sqlalchemy_table import SQLAlchemyTable
from .sqlalchemy_tables import (
    COLUMNS,
    CONTENT,
    TEXTS,
    TIMES,
    Flavour,
    sessions_table,
)
from .sqlalchemy_tokens import SQLAlchemyTokens

__all__ = ["SQLAlchemyBackend", "schema_sql", "sessions_table"]

# Each time somebody else got through. Only where a transaction goes on seeing what was, nobody did.
_MOST_SWAPS: Final = 100
_TOO_FAST: Final = f"other writers were faster {_MOST_SWAPS} times; nothing was written"

_WITHOUT_DATA: Final = tuple(name for name in COLUMNS if name != "data")
_TIMES: Final = frozenset(TIMES)
_STAMPS: Final = ("generation", "version", *TIMES)


class SQLAlchemyBackend(SQLAlchemyTable):
    """Keep rows in a database that SQLAlchemy speaks to.

    ``engine_or_url``: an engine stays the caller's, who closes it, and nothing is changed on it; it
    must not cross a fork with connections in its pool. For a URL an engine is made, which is this
    backend's: up to ``pool_size`` connections, ``statement_timeout`` and ``pool_timeout`` in
    seconds. ``table`` and ``db_schema`` are plain identifiers.

    PostgreSQL, MySQL, MariaDB and SQLite are known. For another dialect ``clock`` is an SQL
    expression of the database's time in UTC.
    """

    def __init__(
        self,
        engine_or_url: sa.Engine | str,
        *,
        table: str = "http_sessions",
        db_schema: str | None = None,
        clock: sa.ColumnElement[Any] | None = None,
        pool_size: int | None = None,
        statement_timeout: float | None = None,
        pool_timeout: float | None = None,
    ) -> None:
        super().__init__(
            engine_or_url,
            sessions_table(sa.MetaData(), name=table, schema=db_schema),
            clock=clock,
            pool_size=pool_size,
            statement_timeout=statement_timeout,
            pool_timeout=pool_timeout,
        )
        self._sql = _Statements(self._rows, self._flavour)

    # -- a request's verbs

    def load(self, key: bytes) -> Loaded | None:
        def work(job: Job) -> Loaded | None:
            for now, *values in self._read(job, self._sql.load, the_key=key):
                return Loaded(self._row(COLUMNS, values), now)
            return None

        return self._db.run(work)

    def insert(self, row: PGSession, expiry: Expiry) -> PGSession | None:
        def work(job: Job) -> PGSession | None:
            found = self._read(job, self._sql.find, the_key=row.key)
            if any(key is not None for _, key in found):
                return None
            now = found[0][0]
            stored = row.but(
                created_on=now,
                modified_on=now,
                authenticated_on=None if row.user_key is None else now,
                renewed_on=None,
            )
            stored = _seen(stored, now, now, expiry)
            try:
                added = job.write(self._sql.insert, self._values(stored, COLUMNS))
            except IntegrityError:
                return None
            return stored if added else None

        return self._db.run(work)

    def update(
        self,
        row: PGSession,
        version: int,
        expiry: Expiry | None,
        *,
        login: bool = False,
        renew: bool = False,
        data_only: bool = False,
    ) -> PGSession | None:
        def change(now: datetime, old: Mapping[str, Any]) -> PGSession | None:
            if old["version"] != version:
                return None
            times = {name: old[name] for name in TIMES} | {"modified_on": now}
            if login:
                times["authenticated_on"] = now
            if renew:
                times["renewed_on"] = now
            new = row.but(**times)
            start = new.authenticated_on or new.created_on
            return new if expiry is None else _seen(new, now, start, expiry)

        if data_only and expiry is None:
            return self._swap(row.key, change, ("data", "version", "modified_on"))
        return self._swap(row.key, change, (*CONTENT, *TIMES[1:]))

    def touch(self, row: PGSession, expiry: Expiry) -> PGSession | None:
        def change(now: datetime, old: Mapping[str, Any]) -> PGSession | None:
            if (old["generation"], old["seen_on"]) != (row.generation, row.seen_on):
                return None
            return _seen(row, now, old["authenticated_on"] or old["created_on"], expiry)

        return self._swap(row.key, change, ("seen_on", "expires_on", "gc_after"))

    def delete(
        self,
        key: bytes,
        *,
        version: int | None = None,
        generation: int | None = None,
        user_key: str | None = None,
    ) -> PGSession | None:
        def work(job: Job) -> PGSession | None:
            for _ in range(_MOST_SWAPS):
                row = None
                for _, *values in self._read(job, self._sql.load_bare, the_key=key):
                    row = self._row(_WITHOUT_DATA, values)
                if (
                    row is None
                    or (version is not None and row.version != version)
                    or (generation is not None and generation < row.min_generation)
                    or (user_key is not None and row.user_key != user_key)
                ):
                    return None
                condition = self._as_read(key, row.version, row.seen_on)
                if self._write(job, self._sql.delete, condition):
                    return row
            raise ConflictError(_TOO_FAST)

        return self._db.run(work)

    def rewrite(self, row: PGSession, version: int) -> bool:
        def change(now: datetime, old: Mapping[str, Any]) -> PGSession | None:
            return row if old["version"] == version else None

        return self._swap(row.key, change, ("data", "version")) is not None

    def scan(self, after: bytes | None, limit: int) -> list[PGSession]:
        def work(job: Job) -> list[PGSession]:
            # Every key comes after the empty one.
            rows = self._read(job, self._sql.scan, after=after or b"", limit=limit)
            return [self._row(COLUMNS, values) for _, *values in rows]

        return self._db.run(work)

    def of_user(self, user_key: str) -> list[PGSession]:
        return self._db.run(partial(self._of_user, user_key=user_key))

    def users(self, after: str | None, limit: int) -> list[UserStats]:
        def work(job: Job) -> list[UserStats]:
            statement, values = self._sql.users, {"limit": limit}
            if after is not None:
                statement = statement.where(self._rows.c.user_key > sa.bindparam("after"))
                values["after"] = self._flavour.text_in(after)
            text, time = self._flavour.text_out, self._flavour.time_out
            found = job.read(statement, values | self._flavour.bind_now(job))
            return [UserStats(text(row[0]), row[1], time(row[2])) for row in found]

        return self._db.run(work)

    def stats(self) -> Stats:
        def work(job: Job) -> Stats:
            counts = job.read(self._sql.counts, self._flavour.bind_now(job))
            live, expired, oldest = counts[0]
            if oldest is not None:
                oldest = self._flavour.time_out(oldest)
            return Stats(live, expired, self._flavour.size(job, self._rows), oldest)

        return self._db.run(work)

    def delete_of_user(
        self, user_key: str, *, keep: bytes | None = None, newest: int = 0
    ) -> list[PGSession]:
        def work(job: Job) -> list[PGSession]:
            # Who waits for these rows finds those that are left.
            rows = self._of_user(job, user_key, hold=True)
            others = [row for row in rows if row.key != keep]
            spared = newest - (len(rows) - len(others))
            return self._delete(job, others[max(spared, 0) :])

        return self._db.in_transaction(work)

    @contextmanager
    def locked(self, key: bytes) -> Iterator[SQLAlchemyBackend]:
        with self._db.transaction() as held:
            # An UPDATE that changes nothing takes the row's lock in every database.
            held.run(lambda job: job.write(self._sql.lock, {"the_key": key}))
            yield self._inside(held)

    def sweep(self, limit: int, horizon: float) -> list[PGSession]:
        def work(job: Job, now: datetime) -> list[PGSession]:
            times = {"the_now": now, "until": now + timedelta(seconds=horizon)}
            values = {name: self._flavour.time_in(time) for name, time in times.items()}
            rows = job.read(self._sql.expired, {**values, "limit": limit})
            return self._delete(job, [self._row(_WITHOUT_DATA, row) for row in rows])

        return self._in_sweep(work)

    # -- the caller's transactions, schema and end

    def using(self, connection: Any) -> SQLAlchemyBackend:
        lent = Lent(connection, str(self._rows), self._dialect)
        self._flavour.check_connection(connection)
        return self._inside(lent)

    def tokens(self, table: str, db_schema: str | None = None) -> SQLAlchemyTokens:
        """Return where the data of tokens lives, in the same database over the same engine."""
        assert isinstance(self._db, Database)
        db_schema = self._rows.schema if db_schema is None else db_schema
        return SQLAlchemyTokens(self._db, table=table, db_schema=db_schema, clock=self._clock)

    # -- below the verbs

    def _swap(
        self,
        key: bytes,
        change: Callable[[datetime, Mapping[str, Any]], PGSession | None],
        names: Sequence[str],
    ) -> PGSession | None:
        """Store the columns ``names`` of what ``change`` makes of the live row, or of None nothing.

        ``change`` is given the time and the row's `_STAMPS`, and is asked again when the row has
        changed meanwhile.
        """

        def work(job: Job) -> PGSession | None:
            for _ in range(_MOST_SWAPS):
                found = self._read(job, self._sql.stamps, the_key=key)
                if not found:
                    return None
                now, *values = found[0]
                old = self._fields(_STAMPS, values)
                new = change(now, old)
                if new is None:
                    return None
                condition = self._as_read(key, old["version"], old["seen_on"])
                if self._write(job, self._sql.swap, self._values(new, names) | condition):
                    return new
            raise ConflictError(_TOO_FAST)

        return self._db.run(work)

    def _as_read(self, key: bytes, version: int, seen_on: datetime | None) -> dict[str, Any]:
        assert seen_on
        seen = self._flavour.time_in(seen_on)
        return {"the_key": key, "the_version": version, "the_seen": seen}

    def _of_user(self, job: Job, user_key: str, *, hold: bool = False) -> list[PGSession]:
        statement = self._sql.of_user.with_for_update() if hold else self._sql.of_user
        rows = self._read(job, statement, the_user=self._flavour.text_in(user_key))
        return [self._row(_WITHOUT_DATA, values) for _, *values in rows]

    def _delete(self, job: Job, rows: list[PGSession]) -> list[PGSession]:
        deleted = self._delete_keys(job, [row.key for row in rows])
        return [row for row in rows if row.key in deleted]

    def _values(self, row: PGSession, names: Sequence[str]) -> dict[str, Any]:
        flavour = self._flavour
        values = {name: getattr(row, name) for name in names}
        for name in values.keys() & TEXTS:
            if values[name] is not None:
                values[name] = flavour.text_in(values[name])
        for name in values.keys() & _TIMES:
            if values[name] is not None:
                values[name] = flavour.time_in(values[name])
        if "meta" in values:
            values["meta"] = flavour.meta_in(row.meta) if row.meta else None
        return values

    def _fields(self, names: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
        flavour = self._flavour
        fields = dict(zip(names, values, strict=True))
        for name in fields.keys() & TEXTS:
            if fields[name] is not None:
                fields[name] = flavour.text_out(fields[name])
        for name in fields.keys() & _TIMES:
            if fields[name] is not None:
                fields[name] = flavour.time_out(fields[name])
        if "meta" in fields:
            fields["meta"] = flavour.meta_out(fields["meta"]) if fields["meta"] else {}
        return fields

    def _row(self, names: Sequence[str], values: Sequence[Any]) -> PGSession:
        return PGSession(**{"data": b"", **self._fields(names, values)})


def schema_sql(url: str, table: str = "http_sessions", db_schema: str | None = None) -> str:
    """Return the SQL that makes the table in the database of a URL, without connecting to it."""
    return sql_of(sessions_table(sa.MetaData(), name=table, schema=db_schema), url)


class _Statements:
    """Every statement, for one table and one kind of database."""

    def __init__(self, rows: sa.Table, flavour: Flavour) -> None:
        c, now = rows.c, flavour.now
        columns = {name: flavour.column(c[name]) for name in COLUMNS}
        bare = [columns[name] for name in _WITHOUT_DATA]
        key = c.key == sa.bindparam("the_key")
        live = c.expires_on > now
        as_read = sa.and_(
            key,
            c.version == sa.bindparam("the_version"),
            c.seen_on == sa.bindparam("the_seen"),
            live,
        )
        at = sa.select(now.label("now_"))
        one = at.where(key, live)
        self.load = one.add_columns(*columns.values())
        self.load_bare = one.add_columns(*bare)
        self.stamps = one.add_columns(*(columns[name] for name in _STAMPS))
        taken = sa.select(c.key).where(key).scalar_subquery()
        self.find = at.add_columns(taken.label("taken"))
        self.insert = flavour.insert(rows).execution_options(preserve_rowcount=True)
        if hasattr(self.insert, "on_conflict_do_nothing"):
            # An error would end the caller's transaction.
            self.insert = self.insert.on_conflict_do_nothing(index_elements=[c.key])
        self.swap = sa.update(rows).where(as_read)
        self.delete = sa.delete(rows).where(as_read)
        self.lock = sa.update(rows).where(key).values(version=c.version)
        self.scan = (
            at.add_columns(*columns.values())
            .where(c.key > sa.bindparam("after"), live)
            .order_by(c.key)
            .limit(sa.bindparam("limit", type_=sa.Integer()))
        )
        newest = sa.func.coalesce(c.authenticated_on, c.created_on).desc(), c.key.desc()
        self.of_user = (
            at.add_columns(*bare)
            .where(c.user_key == sa.bindparam("the_user"), live)
            .order_by(*newest)
        )
        self.users = (
            sa.select(c.user_key, sa.func.count(), sa.func.max(c.seen_on))
            .where(c.user_key.is_not(None), live)
            .group_by(c.user_key)
            .order_by(c.user_key)
            .limit(sa.bindparam("limit", type_=sa.Integer()))
        )
        self.counts = sa.select(
            sa.func.count(sa.case((live, 1))),
            sa.func.count(sa.case((sa.not_(live), 1))),
            sa.func.min(sa.case((live, c.created_on))),
        )
        self.expired = (
            sa.select(*bare)
            .where(
                c.gc_after <= sa.bindparam("until", type_=c.gc_after.type),
                c.expires_on <= sa.bindparam("the_now", type_=c.expires_on.type),
            )
            .order_by(c.gc_after)
            .limit(sa.bindparam("limit", type_=sa.Integer()))
        )
        if flavour.holds:
            self.expired = self.expired.with_for_update(skip_locked=True)


def _seen(row: PGSession, now: datetime, start: datetime | None, expiry: Expiry) -> PGSession:
    expires_on, gc_after = expiry_times(now, start or now, expiry)
    return row.but(seen_on=now, expires_on=expires_on, gc_after=gc_after)
