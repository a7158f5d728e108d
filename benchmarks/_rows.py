"""Tables of millions of rows, of which some are real sessions and the others look like them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import psycopg
from _common import KEYS, environ, say
from psycopg import sql
from werkzeug.datastructures import Headers

from pgstore import MemoryStore, PGSession

_DAY = 24 * 3600
_CHUNK = 1_000_000

# How to drop each index, and how to make it again.
_INDEXES = """
SELECT CASE
    WHEN conname IS NULL THEN format('DROP INDEX %%s', indexrelid::regclass)
    ELSE format('ALTER TABLE %%s DROP CONSTRAINT %%I', indrelid::regclass, conname)
END, CASE
    WHEN conname IS NULL THEN pg_get_indexdef(indexrelid)
    ELSE format('ALTER TABLE %%s ADD %%s', indrelid::regclass, pg_get_constraintdef(c.oid))
END
FROM pg_index LEFT JOIN pg_constraint c ON conindid = indexrelid
WHERE indrelid = %s::regclass
"""

# A key is the birth second in 5 bytes, and 11 random ones.
_INSERT = """
INSERT INTO {table} (key, name, generation, min_generation, secret_hash, data, version, max_age,
    ip, user_agent, created_on, modified_on, seen_on, expires_on, gc_after)
SELECT
    coalesce(real.key, decode(lpad(to_hex(birth::int8), 10, '0'), 'hex')
        || substring(sha256(int8send(number)) FOR 11)),
    'session', 0, 0, coalesce(real.secret_hash, sha256(int8send(number))),
    coalesce(real.data, %(data)s), coalesce(real.version, number), 2592000,
    %(ip)s, %(agent)s, born, born, seen, ends,
    date_bin('90 hours', ends, '2000-01-01 00:00:00+00') + interval '90 hours'
FROM generate_series(%(first)s::int8, %(last)s) AS number
    CROSS JOIN LATERAL (SELECT %(begin)s::float8 + number * %(step)s AS birth)
    CROSS JOIN LATERAL (SELECT to_timestamp(birth) AS born)
    CROSS JOIN LATERAL (SELECT CASE
        WHEN number %% %(every)s = 0 THEN now()
        WHEN %(backlog)s AND number %% 2 = 1 THEN born
        ELSE greatest(born, now() - interval '1 day' * (number %% 29)) END AS seen)
    CROSS JOIN LATERAL (SELECT seen + interval '30 days' AS ends)
    LEFT JOIN real USING (number)
"""


@dataclass(frozen=True)
class Crowd:
    """Rows for the table ``table``, of which every so many-th is a real session with ``values``.

    They lie in the order of their birth, which is spread over 30 days, and live for 30 days after
    their last visit. Of a ``backlog`` every other row has expired: it was born between 60 and 30
    days ago and never seen again. Otherwise all rows are live.
    """

    table: str
    rows: int
    every: int
    values: dict[str, Any]
    agent: str | None = None
    backlog: bool = False

    def settle(self, dsn: str) -> list[str]:
        """Fill the table, which a store has made; return the cookies of the real sessions."""
        table = sql.Identifier(self.table)
        with psycopg.connect(dsn, autocommit=True) as connection:
            found = connection.execute("SELECT extract(epoch FROM now())::float8").fetchone()
            assert found
            begin = found[0] - (60 if self.backlog else 30) * _DAY
            step = 30 * _DAY / self.rows
            births = {number: begin + number * step for number in range(0, self.rows, self.every)}
            cookies, real = self._sessions(births)
            # A table that is emptied in the transaction that fills it needs no WAL, where
            # wal_level is minimal.
            with connection.transaction():
                connection.execute(sql.SQL("TRUNCATE {}").format(table))
                indexes = connection.execute(_INDEXES, [self.table]).fetchall()
                for drop, _ in indexes:
                    connection.execute(drop)
                self._insert(connection, real, begin, step)
            for _, create in indexes:
                connection.execute(create)
            say(f"{self.table}: indexed")
            connection.execute(sql.SQL("VACUUM (ANALYZE) {}").format(table))
        return cookies

    def _insert(
        self,
        connection: psycopg.Connection,
        real: dict[int, PGSession],
        begin: float,
        step: float,
    ) -> None:
        connection.execute(
            "CREATE TEMPORARY TABLE real (number int8 PRIMARY KEY, key bytea, secret_hash bytea, "
            "data bytea, version int8) ON COMMIT DROP"
        )
        with connection.cursor().copy("COPY real FROM STDIN") as copy:
            for number, row in real.items():
                copy.write_row((number, row.key, row.secret_hash, row.data, row.version))
        connection.execute("ANALYZE real")
        like = real[0]
        insert = sql.SQL(_INSERT).format(table=sql.Identifier(self.table))
        for first in range(0, self.rows, _CHUNK):
            last = min(first + _CHUNK, self.rows) - 1
            values = {
                "first": first,
                "last": last,
                "begin": begin,
                "step": step,
                "every": self.every,
                "backlog": self.backlog,
                "data": like.data,
                "ip": like.ip,
                "agent": like.user_agent,
            }
            connection.execute(insert, values)
            say(f"{self.table}: {last + 1:,} rows")

    def _sessions(self, births: dict[int, float]) -> tuple[list[str], dict[int, PGSession]]:
        """Make sessions that were born then; return their cookies, and their rows by number."""
        cookies, numbers = [], {}
        request = environ()
        request["HTTP_USER_AGENT"] = self.agent
        with MemoryStore(*KEYS, table=self.table) as store:
            for number, birth in births.items():
                headers = Headers()
                with patch("time.time", lambda birth=birth: birth):
                    session = store.get(dict(request), "session")
                session.values.update(self.values)
                session.save(request, headers)
                cookies.append(headers["Set-Cookie"].partition(";")[0])
                numbers[session.handle] = number
            rows = store.backend.scan(None, len(births))
        return cookies, {numbers[row.handle]: row for row in rows}
