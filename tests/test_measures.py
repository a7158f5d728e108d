"""What costs the same on every machine, held to its bounds: pages, writes, updates in place, WAL.

Round trips and statements are counted in ``test_postgres.py``. How long things take is for the
benchmarks, which share their measures with these tests (``benchmarks/measures.py``).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from statistics import mean

import measures
import psycopg
import pytest
from measures import Site

from pgstore import Options, PGStore
from support.stores import KEYS, Browser, PostgresLab


@pytest.fixture
def site(pg_dsn: str, pg_schema: str) -> Iterator[Site]:
    """Return a store on a database whose clock can be moved."""
    with Site(pg_dsn, pg_schema) as site:
        yield site


def test_a_get_reads_one_row(site: Site) -> None:
    """Of 10,000 rows a get reads one, by the primary key: two pages of the index, one of the
    table.
    """
    counted = measures.gets(site, rows=10_000, visitors=100)
    assert (counted.table_scans, counted.index_scans, counted.rows_by_index) == (0, 100, 100)
    assert counted.table_pages == 100
    # Beside root and leaf, what each connection reads of the index once.
    assert counted.index_pages <= 220


def test_reading_writes_once_per_touch_interval(site: Site) -> None:
    """Read-only requests write nothing until touch_interval has passed, and then once."""
    within, after = measures.reads(site, 50)
    assert (within.updates, after.updates) == (0, 1)


def test_touches_inside_a_bucket_are_updated_in_place(site: Site) -> None:
    """Touching changes no indexed column within a bucket: every update is HOT, on full pages,
    too.
    """
    counted = measures.touches_in_a_bucket(site, visitors=30, touches=10)
    assert counted.updates == counted.updates_in_place == 300


def test_most_touches_of_mixed_visitors_are_updated_in_place(site: Site) -> None:
    """Over two weeks of hourly, daily and occasional visitors, 85 % of the updates are HOT."""
    counted = measures.mixed_visits(site, visitors=20, days=14)
    assert counted.updates > 500
    assert counted.updates_in_place / counted.updates >= 0.85


def test_a_touch_writes_little_wal(site: Site) -> None:
    """A touch of a 300-byte session takes 250 bytes of WAL, its commit and cleaning included."""
    assert mean(measures.wal_of_touches(site, 50)) <= 250


def test_a_sweep_waits_for_no_lock(pg_lab: PostgresLab) -> None:
    """Rows that others hold are passed over: a sweep gets through where no wait is allowed."""
    store = pg_lab.store(options=Options(max_age=60))
    for _ in range(20):
        with Browser().visit(store) as session:
            session["x"] = 1
    pg_lab.pass_time(3600)
    dsn = f"{pg_lab.dsn}?options=-c%20lock_timeout%3D1ms"
    with (
        psycopg.connect(pg_lab.dsn, options=f"-c search_path={pg_lab.schema}") as other,
        PGStore(dsn, *KEYS, db_schema=pg_lab.schema, schema="off") as sweeper,
    ):
        other.execute("SELECT FROM http_sessions ORDER BY key LIMIT 4 FOR UPDATE")
        other.execute("SELECT FROM http_sessions ORDER BY key DESC LIMIT 4 FOR KEY SHARE")
        assert sweeper.delete_expired() == 12
        assert sweeper.delete_expired() == 0
    assert store.delete_expired() == 8


def test_importing_loads_no_driver_and_no_framework() -> None:
    """`import pgstore` loads nothing that only some stores and some applications need."""
    # Measuring coverage imports some, too.
    code = (
        "import sys; before = {*sys.modules}; import pgstore; print(*sys.modules.keys() - before)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    assert "pgstore.store" in loaded
    others = {"psycopg", "psycopg_pool", "sqlite3", "sqlalchemy", "flask", "django", "ua_parser"}
    assert others & set(loaded) == set()
