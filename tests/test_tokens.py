"""The token level: every backend against its contract, and TokenStore on each of them."""

from __future__ import annotations

import hashlib
import math
import random
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psycopg
import psycopg_pool
import pytest
import sqlalchemy as sa

from pgstore import BackendError, ConfigurationError, SchemaError, Store, TokenStore
from pgstore.backends.memory import MemoryBackend
from pgstore.backends.memory_tokens import MemoryTokens
from pgstore.backends.postgres_tokens import PostgresTokens
from pgstore.backends.sqlalchemy_tokens import SQLAlchemyTokens, tokens_table
from pgstore.backends.sqlite_tokens import SQLiteTokens
from pgstore.testing import HASHES, HOUR, TokenContract, in_fork
from pgstore.tokens import TokenBackend
from support.contract import own_pool
from support.fault_proxy import FaultProxy
from support.mariadb import MariaDBServer, fresh_database
from support.postgres import NEWEST, PostgresServers, fresh_schema, postgres_versions
from support.sqlalchemy_labs import (
    MariaDBLab,
    OtherLab,
)
from support.stores import KEYS, Lab, PostgresLab

UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class TestMemoryTokens(TokenContract):
    on = "memory"

    @pytest.fixture(autouse=True)
    def _storage(self) -> None:
        self.storage = MemoryTokens()

    def make_backend(self) -> TokenBackend:
        return self.storage

    def raw_rows(self) -> list[tuple[bytes, bytes, datetime]]:
        return [(key, *row) for key, row in sorted(self.storage._rows.items())]

    def raw_shift(self, seconds: float) -> None:
        step = timedelta(seconds=seconds)
        rows = self.storage._rows.items()
        self.storage._rows = {key: (data, expiry - step) for key, (data, expiry) in rows}


class TestSQLiteTokens(TokenContract):
    on = "SQLite"

    @pytest.fixture(autouse=True)
    def _storage(self, tmp_path: Path) -> None:
        self.path = tmp_path / "tokens.db"

    def make_backend(self) -> TokenBackend:
        return SQLiteTokens(self.path)

    def raw_rows(self) -> list[tuple[bytes, bytes, datetime]]:
        with closing(sqlite3.connect(self.path)) as connection:
            found = connection.execute("SELECT * FROM http_tokens ORDER BY token_hash").fetchall()
        return [(key, data, UNIX_EPOCH + timedelta(microseconds=us)) for key, data, us in found]

    def raw_shift(self, seconds: float) -> None:
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute(
                "UPDATE http_tokens SET expires_on = expires_on - ?", [round(seconds * 1e6)]
            )


class TestSQLiteTokensThroughSQLAlchemy(TestSQLiteTokens):
    on = "SQLAlchemy on SQLite"

    def make_backend(self) -> TokenBackend:
        return SQLAlchemyTokens(f"sqlite:///{self.path}", statement_timeout=30.0)


class PostgresTokensContract(TokenContract):
    version = NEWEST

    @pytest.fixture(autouse=True)
    def _storage(self, postgres: PostgresServers) -> Iterator[None]:
        dsn = postgres(self.version).dsn
        with fresh_schema(dsn) as schema, PostgresLab(dsn, schema) as self.lab:
            yield

    def make_backend(self) -> TokenBackend:
        return PostgresTokens(own_pool(self.lab.dsn), db_schema=self.lab.schema)

    def raw_rows(self) -> list[tuple[bytes, bytes, datetime]]:
        found = self.lab._raw.execute("SELECT * FROM http_tokens ORDER BY token_hash").fetchall()
        return [(key, data, expires_on) for key, data, expires_on in found]

    def raw_shift(self, seconds: float) -> None:
        self.lab.execute(
            "UPDATE http_tokens SET expires_on = expires_on - %s", [timedelta(seconds=seconds)]
        )


class PostgresTokensThroughSQLAlchemy(PostgresTokensContract):
    def make_backend(self) -> TokenBackend:
        url = self.lab.dsn.replace("postgresql://", "postgresql+psycopg://")
        return SQLAlchemyTokens(url, db_schema=self.lab.schema, pool_size=8)


for _version in postgres_versions():
    for _base in (PostgresTokensContract, PostgresTokensThroughSQLAlchemy):
        _through = "ThroughSQLAlchemy" if _base is PostgresTokensThroughSQLAlchemy else ""
        _name = f"TestPostgreSQL{_version or ''}Tokens{_through}"
        _on = f"{'SQLAlchemy on ' if _through else ''}PostgreSQL {_version or ''}".strip()
        globals()[_name] = type(_name, (_base,), {"version": _version, "on": _on})


class TestUnknownDialectTokens(PostgresTokensContract):
    """A dialect that is not known by its name, and has no upsert that is known."""

    on = "SQLAlchemy on a dialect that is not known"

    def make_backend(self) -> TokenBackend:
        lab = OtherLab(self.lab.dsn, self.lab.schema)
        with lab:
            return SQLAlchemyTokens(
                lab.url, db_schema=lab.schema, clock=lab.clock, pool_size=8, pool_timeout=30.0
            )

    def raw_rows(self) -> list[tuple[bytes, bytes, datetime]]:
        return [
            (key, data, UNIX_EPOCH + timedelta(microseconds=micros))  # type: ignore[arg-type]
            for key, data, micros in super().raw_rows()
        ]

    def raw_shift(self, seconds: float) -> None:
        self.lab.execute(
            "UPDATE http_tokens SET expires_on = expires_on - %s", [round(seconds * 1e6)]
        )


class TestMariaDBTokens(TokenContract):
    on = "SQLAlchemy on MariaDB"

    @pytest.fixture(autouse=True)
    def _storage(self, mariadb: MariaDBServer) -> Iterator[None]:
        with fresh_database(mariadb) as name, MariaDBLab(mariadb, name) as self.lab:
            yield

    def make_backend(self) -> TokenBackend:
        return SQLAlchemyTokens(self.lab.url, pool_size=8, statement_timeout=30.0)

    def raw_rows(self) -> list[tuple[bytes, bytes, datetime]]:
        found = self.lab.execute("SELECT * FROM http_tokens ORDER BY token_hash")
        return [
            (row["token_hash"], row["data"], row["expires_on"].replace(tzinfo=UTC)) for row in found
        ]

    def raw_shift(self, seconds: float) -> None:
        self.lab.execute(
            "UPDATE http_tokens SET expires_on = expires_on - INTERVAL %s MICROSECOND",
            [round(seconds * 1e6)],
        )


# -- TokenStore ------------------------------------------------------------------------------------

Make = Callable[..., TokenStore]


@pytest.fixture
def make(lab: Lab) -> Iterator[Make]:
    """Return what makes token stores beside a session store of each kind, with no cleanup."""
    store = lab.store()
    made = []

    def make(**settings: Any) -> TokenStore:
        made.append(TokenStore(store, **{"cleanup_interval": 0, **settings}))
        return made[-1]

    yield make
    for tokens in made:
        tokens.close()


def test_a_tokens_life(make: Make) -> None:
    """Committed, found, replaced, found by others, deleted, committed again."""
    tokens = make()
    assert tokens.find("token") is None
    tokens.commit("token", b"one", 60)
    assert tokens.find("token") == make().find("token") == b"one"
    tokens.commit("token", b"two", timedelta(minutes=1))
    tokens.commit("other", b"three", datetime.now(UTC) + timedelta(minutes=1))
    assert (tokens.find("token"), tokens.find("other")) == (b"two", b"three")
    tokens.delete("token")
    tokens.delete("token")
    assert (tokens.find("token"), tokens.find("other")) == (None, b"three")
    tokens.commit("token", bytearray(b"back"), 60.5)
    assert tokens.find("token") == b"back"


@pytest.mark.parametrize(
    "token", ["", "a", "ä" * 5000, "a\x00b", b"", b"\xff\x00", secrets.token_urlsafe()]
)
def test_any_text_or_bytes_is_a_token(make: Make, token: str | bytes) -> None:
    """Text counts as its UTF-8; nothing but the hash of it is kept, and its handle is public."""
    tokens = make()
    raw = token.encode() if isinstance(token, str) else token
    tokens.commit(token, b"data", 60)
    assert tokens.find(token) == tokens.find(raw) == b"data"
    assert tokens.find(raw + b" ") is None
    assert list(tokens.all()) == [(tokens.handle(token), b"data")]
    (page,) = tokens.backend.page(None, 9)
    assert page == (hashlib.sha256(raw).digest(), b"data")


@pytest.mark.parametrize("token", [None, 7, ["a"], "\ud800"])
def test_what_is_no_token(make: Make, token: Any) -> None:
    """It is refused, and not quoted: it may be half of a real one."""
    tokens = make()
    for call in (tokens.find, tokens.delete, tokens.handle):
        with pytest.raises(ConfigurationError, match="a token must be bytes, or text"):
            call(token)
    with pytest.raises(ConfigurationError):
        tokens.commit(token, b"data", 60)


@pytest.mark.parametrize(
    ("expiry", "message"),
    [
        (datetime(2099, 1, 1), "must be aware"),
        (math.nan, "must be seconds"),
        (math.inf, "at most"),
        (-1, "more than 0"),
        (0, "more than 0"),
        (timedelta(seconds=-1), "more than 0"),
        (2**31, "at most"),
        (True, "must be seconds"),
        ("60", "must be seconds"),
        (None, "must be seconds"),
    ],
)
def test_expiries_that_do_not_fit(expiry: Any, message: str) -> None:
    """Nothing is committed with a time that means nothing."""
    with TokenStore(MemoryTokens(), cleanup_interval=0) as tokens:
        with pytest.raises(ConfigurationError, match=message):
            tokens.commit("token", b"data", expiry)
        with pytest.raises(ConfigurationError, match="data must be bytes"):
            tokens.commit("token", "data", 60)  # type: ignore[arg-type]
        assert tokens.find("token") is None


@pytest.mark.parametrize(
    "expiry",
    [
        datetime.min.replace(tzinfo=timezone(timedelta(hours=14))),
        datetime.min.replace(tzinfo=UTC),
        datetime(1999, 1, 1, tzinfo=UTC),
    ],
)
def test_an_expiry_that_is_past(make: Make, expiry: datetime) -> None:
    """It takes away what there was, in every database."""
    tokens = make()
    tokens.commit("token", b"data", 60)
    tokens.commit("token", b"data", expiry)
    assert tokens.find("token") is None
    assert tokens.delete_expired() == 1


@pytest.mark.parametrize(
    "expiry",
    [
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-12))),
        datetime.max.replace(tzinfo=UTC),
        2**31 - 1,
    ],
)
def test_an_expiry_that_is_far_away(make: Make, expiry: Any) -> None:
    """As far as Python knows years."""
    tokens = make()
    tokens.commit("token", b"data", expiry)
    assert tokens.find("token") == b"data"
    assert tokens.delete_expired() == 0


def test_all_in_pages(make: Make) -> None:
    """Every live token once, however many a page holds, while others come and go."""
    tokens = make()
    names = [f"token {number}" for number in range(7)]
    for name in names:
        tokens.commit(name, name.encode(), 60)
    expected = sorted((tokens.handle(name), name.encode()) for name in names)
    for batch in (1, 3, 7, 500):
        assert sorted(tokens.all(batch=batch)) == expected
    seen = []
    for handle, _ in tokens.all(batch=2):
        seen.append(handle)
        for name in names:
            tokens.delete(name)
    assert len(seen) == 2
    for batch in (0, 1.5, True):
        with pytest.raises(ConfigurationError, match="batch must be 1 or more"):
            tokens.all(batch=batch)  # type: ignore[arg-type]


def test_all_holds_no_more_than_a_page() -> None:
    """A million rows do not fill memory: each page is asked for when it is needed."""

    class Endless(MemoryTokens):
        pages = 0

        def page(self, after: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
            self.pages += 1
            return [(bytes([number]) * 32, b"") for number in range(limit)]

    backend = Endless()
    with TokenStore(backend, cleanup_interval=0) as tokens:
        found = tokens.all(batch=10)
        for _ in range(25):
            next(found)
    assert backend.pages == 3


def test_a_table_of_its_own(lab: Lab, make: Make) -> None:
    """Tokens and sessions are apart, and so are two tables of tokens."""
    tokens, others = make(), make(table="other_tokens")
    tokens.commit("token", b"data", 60)
    assert others.find("token") is None
    assert tokens.backend.table == "http_tokens"
    assert lab.rows() == []


# -- cleanup


def test_cleanup_runs_by_itself(make: Make) -> None:
    """With an interval, expired data is deleted in the background."""
    swept = threading.Event()

    class Watched(MemoryTokens):
        def sweep(self, limit: int) -> list[bytes]:
            swept.set()
            return super().sweep(limit)

    backend = Watched()
    backend.commit(HASHES[0], b"data", datetime(2001, 1, 1, tzinfo=UTC))
    with TokenStore(backend, cleanup_interval=0.01) as tokens:
        assert swept.wait(10)
        tokens.stop_cleanup()
    assert backend._rows == {}


@pytest.mark.parametrize("interval", [0, 0.01, 300.0, timedelta(hours=1)])
def test_stopping_the_cleanup(make: Make, interval: Any) -> None:
    """Any number of times, before the first sweep, without any, and after the store's end."""
    before = threading.active_count()
    tokens = make(cleanup_interval=interval)
    assert threading.active_count() == before + (1 if interval else 0)
    for _ in range(3):
        tokens.stop_cleanup()
    assert threading.active_count() == before
    tokens.commit("token", b"data", 60)
    assert tokens.find("token") == b"data"
    tokens.close()
    tokens.stop_cleanup()
    tokens.close()


@pytest.mark.parametrize("interval", [-1, math.nan, math.inf, "1", None])
def test_cleanup_intervals_that_do_not_fit(interval: Any) -> None:
    """They raise at construction."""
    with pytest.raises(ConfigurationError, match="interval must be"):
        TokenStore(MemoryTokens(), cleanup_interval=interval)


def test_the_cleanup_crosses_a_fork() -> None:
    """It starts anew in the child, and can be stopped there."""
    with TokenStore(MemoryTokens(), cleanup_interval=60) as tokens:

        def child() -> None:
            assert threading.active_count() == 2
            tokens.stop_cleanup()
            assert threading.active_count() == 1

        assert in_fork(child) == 0


def test_a_failing_sweep_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """And it is tried again."""
    again = threading.Event()

    class Failing(MemoryTokens):
        sweeps = 0

        def sweep(self, limit: int) -> list[bytes]:
            self.sweeps += 1
            if self.sweeps > 1:
                again.set()
            raise BackendError("down")

    with TokenStore(Failing(), cleanup_interval=0.01):
        assert again.wait(10)
    assert "deleting expired tokens failed, and is tried again: down" in caplog.text


# -- where it lives


def test_on_a_url(
    tmp_path: Path, pg_lab: PostgresLab, mariadb_lab: MariaDBLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every URL that open_store takes, with its settings; the store closes what it opened."""
    for url, settings in (
        (f"sqlite:///{tmp_path}/tokens.db", {"busy_timeout": 1.0}),
        (pg_lab.dsn, {"db_schema": pg_lab.schema, "pool_size": 2, "pooler": "transaction"}),
        (mariadb_lab.url, {"pool_size": 2}),
    ):
        with TokenStore(url, **settings) as tokens:
            tokens.commit("token", b"data", 60)
            assert tokens.find("token") == b"data"
        with pytest.raises(BackendError, match="closed"):
            tokens.find("token")


def test_beside_a_store_over_its_connections(pg_lab: PostgresLab) -> None:
    """Its pool and its schema are shared, and stay the store's."""
    store = pg_lab.store(pool_size=1)
    with TokenStore(store, cleanup_interval=0) as tokens:
        assert tokens.backend._pool is store.backend._pool  # type: ignore[attr-defined]
        tokens.commit("token", b"data", 60)
        assert in_fork(lambda: tokens.find("token")) == 0
        assert tokens.find("token") == b"data"
    assert store.sessions_of("alice") == []
    assert pg_lab._raw.execute("SELECT count(*) FROM http_tokens").fetchone() == (1,)


def test_beside_a_store_on_mariadb(mariadb_lab: MariaDBLab) -> None:
    """Its engine is shared, and stays the store's."""
    store = mariadb_lab.store(pool_size=1)
    with TokenStore(store, cleanup_interval=0) as tokens:
        tokens.commit("token", b"data", 60)
        assert tokens.find("token") == b"data"
    assert store.sessions_of("alice") == []
    # They end with it.
    store.close()
    with pytest.raises(BackendError, match="closed"):
        tokens.find("token")


def test_on_a_pool_of_ones_own(pg_lab: PostgresLab) -> None:
    """It is used as it is, and not closed."""
    with psycopg_pool.ConnectionPool(pg_lab.dsn, min_size=1, max_size=2, open=True) as pool:
        for number in range(2):
            with TokenStore(pool, db_schema=pg_lab.schema, cleanup_interval=0) as tokens:
                tokens.commit("token", b"%d" % number, 60)
                assert tokens.find("token") == b"%d" % number
        with pool.connection() as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_on_an_engine_of_ones_own(mariadb_lab: MariaDBLab) -> None:
    """It is used as it is, and not disposed of."""
    engine = sa.create_engine(mariadb_lab.url)
    for number in range(2):
        with TokenStore(engine, cleanup_interval=0) as tokens:
            tokens.commit("token", b"%d" % number, 60)
            assert tokens.find("token") == b"%d" % number
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT 1")) == 1
    engine.dispose()


def test_what_will_not_do(tmp_path: Path, pg_lab: PostgresLab) -> None:
    """It is refused at once, with what would do."""
    for where in (None, object(), 7, psycopg, pg_lab):
        with pytest.raises(ConfigurationError, match="TokenStore wants a URL, a Store"):
            TokenStore(where)  # type: ignore[arg-type]
    for url in ("mongodb://me:sesame@host/db", "sesame"):
        with pytest.raises(ConfigurationError) as caught:
            TokenStore(url)
        assert "sesame" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="SQLite has no schemas"):
        TokenStore(f"sqlite:///{tmp_path}/a.db", db_schema="app")
    with pytest.raises(ConfigurationError, match="schema must be"):
        TokenStore(MemoryTokens(), schema="maybe")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="pool_size: a store has its own"):
        TokenStore(pg_lab.store(), pool_size=3)
    with pytest.raises(ConfigurationError, match="pool_size: a backend has its own"):
        TokenStore(MemoryTokens(), pool_size=3)

    class Foreign(MemoryBackend):
        tokens = None  # type: ignore[assignment]

    with pytest.raises(ConfigurationError, match="Foreign keeps no tokens"):
        TokenStore(Store(Foreign(), *KEYS))


def test_a_missing_table(make: Make, lab: Lab) -> None:
    """With schema="check" it raises at construction; nothing is left open."""
    if type(lab).__name__ == "MemoryLab":
        make(schema="check")
        return
    with pytest.raises(SchemaError, match="schema apply"):
        make(schema="check")
    make()
    make(schema="check").commit("token", b"data", 60)


def test_a_table_of_the_callers_metadata(mariadb_lab: MariaDBLab) -> None:
    """tokens_table() makes what the store wants, for Alembic."""
    metadata = sa.MetaData()
    tokens_table(metadata)
    engine = sa.create_engine(mariadb_lab.url)
    metadata.create_all(engine)
    with TokenStore(engine, schema="check", cleanup_interval=0) as tokens:
        tokens.commit("token", b"data", 60)
    made = mariadb_lab.execute("SHOW CREATE TABLE http_tokens")[0]["Create Table"]
    mariadb_lab.execute("DROP TABLE http_tokens")
    TokenStore(engine, cleanup_interval=0).close()
    assert mariadb_lab.execute("SHOW CREATE TABLE http_tokens")[0]["Create Table"] == made
    engine.dispose()


# -- outages


def test_an_outage_is_an_error(pg_lab: PostgresLab, mariadb_lab: MariaDBLab) -> None:
    """Never "no such token"; and as soon as the server is back, the same store works."""
    for dsn, settings in ((pg_lab.dsn, {"db_schema": pg_lab.schema}), (mariadb_lab.url, {})):
        port = int(dsn.rpartition(":")[2].partition("/")[0])
        with (
            FaultProxy("127.0.0.1", port) as proxy,
            TokenStore(
                dsn.replace(f":{port}/", f":{proxy.port}/"), cleanup_interval=0, **settings
            ) as tokens,
        ):
            tokens.commit("token", b"data", 60)
            proxy.kill()
            # A connection that has died is replaced.
            assert tokens.find("token") == b"data"
            proxy.kill()
            tokens.commit("token", b"more", 60)
            proxy.kill()
            tokens.delete("token")
            tokens.commit("token", b"data", 60)
            proxy.stop_listening()
            proxy.kill()
            calls: list[Callable[[], object]] = [
                lambda: tokens.find("token"),
                lambda: tokens.commit("token", b"new", 60),
                lambda: tokens.delete("token"),
                lambda: list(tokens.all()),
                tokens.delete_expired,
            ]
            for call in calls:
                with pytest.raises(BackendError):
                    call()
            proxy.start_listening()
            assert tokens.find("token") == b"data"


def test_a_commit_without_an_answer(pg_lab: PostgresLab, mariadb_lab: MariaDBLab) -> None:
    """It may have been done, and says so; doing it again is harmless."""
    for dsn, settings in ((pg_lab.dsn, {"db_schema": pg_lab.schema}), (mariadb_lab.url, {})):
        port = int(dsn.rpartition(":")[2].partition("/")[0])
        with (
            FaultProxy("127.0.0.1", port) as proxy,
            TokenStore(
                dsn.replace(f":{port}/", f":{proxy.port}/"), cleanup_interval=0, **settings
            ) as tokens,
        ):
            tokens.commit("token", b"old", 60)
            marker = secrets.token_bytes(16)
            # As it goes over the wire: in binary, or in hexadecimal.
            proxy.lose_reply_to = marker if "mysql" not in dsn else marker.hex().encode()
            with pytest.raises(BackendError) as caught:
                tokens.commit("token", marker, 60)
            assert proxy.lose_reply_to is None
            assert caught.value.outcome_unknown
            assert tokens.find("token") == marker
            tokens.commit("token", marker, 60)
            assert tokens.find("token") == marker


def test_any_order_of_calls_agrees_with_a_dict(make: Make) -> None:
    """Commits, deletes, finds and expiries of a few tokens, as a plain dict would do them."""
    tokens, model, dice = make(), {}, random.Random(7)
    names = ["a", "b", b"b", "c"]
    for _ in range(120):
        name, data = dice.choice(names), dice.randbytes(dice.randrange(40))
        key = name.encode() if isinstance(name, str) else name
        match dice.randrange(4):
            case 0:
                tokens.commit(name, data, dice.choice([60, HOUR]))
                model[key] = data
            case 1:
                tokens.commit(name, data, datetime(2001, 1, 1, tzinfo=UTC))
                model.pop(key, None)
            case 2:
                tokens.delete(name)
                model.pop(key, None)
            case 3:
                tokens.delete_expired()
        assert tokens.find(name) == model.get(key)
        assert dict(tokens.all()) == {tokens.handle(key): data for key, data in model.items()}
