from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec

import hypothesis
import pytest

import pgstore
from pgstore.embedded import PostgresServer
from support.contract_report import ContractReport
from support.leaks import LeakWatch
from support.mariadb import MariaDBServer, fresh_database
from support.postgres import PostgresServers, fresh_schema, postgres_versions
from support.sqlalchemy_labs import MariaDBLab
from support.stores import Browser, Lab, MemoryLab, PostgresLab, SQLiteLab

# They have an extra of their own, pgstore[browser]: without it their conftest cannot be imported.
collect_ignore = [] if find_spec("playwright") else ["browser"]

pytest.register_assert_rewrite("pgstore.testing")

_leak_watch = LeakWatch()
_leak_watch.install()

# Each test says its own max_examples. Hypothesis loads a "ci" profile of its own where CI is set,
# which would try the same examples in every run.
hypothesis.settings.register_profile("dev", deadline=None)
hypothesis.settings.register_profile(
    "ci",
    deadline=None,
    derandomize=False,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(ContractReport())


def pytest_report_header() -> list[str]:
    return [
        f"pgstore: {os.path.dirname(pgstore.__file__)}",
        f"PostgreSQL: {', '.join(map(str, postgres_versions()))}",
    ]


@pytest.fixture(scope="session")
def leak_watch() -> LeakWatch:
    """Return what was logged and raised so far, and every secret that was made."""
    return _leak_watch


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServers]:
    """Return a function from a major version to its running server."""
    with PostgresServers() as servers:
        yield servers


@pytest.fixture(scope="session")
def pg_server(postgres: PostgresServers) -> PostgresServer:
    """Return the running server of the newest version."""
    return postgres()


@pytest.fixture
def pg_dsn(pg_server: PostgresServer) -> str:
    """Return the newest server's DSN; it names no schema."""
    return pg_server.dsn


@pytest.fixture
def pg_schema(pg_dsn: str) -> Iterator[str]:
    """Return the name of a new schema on the newest server."""
    with fresh_schema(pg_dsn) as name:
        yield name


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDBServer]:
    """Return a running MariaDB."""
    with MariaDBServer() as server:
        yield server


@pytest.fixture(params=["memory", "sqlite", "postgres", "mariadb"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Return a fresh storage of each kind, to make stores on."""
    lab: Lab
    if request.param == "memory":
        lab = MemoryLab()
    elif request.param == "sqlite":
        lab = SQLiteLab(request.getfixturevalue("tmp_path") / "sessions.db")
    else:
        lab = request.getfixturevalue("pg_lab" if request.param == "postgres" else "mariadb_lab")
    with lab:
        yield lab


@pytest.fixture
def pg_lab(pg_dsn: str, pg_schema: str) -> Iterator[PostgresLab]:
    """Return a fresh schema on the newest PostgreSQL, to make stores on."""
    with PostgresLab(pg_dsn, pg_schema) as lab:
        yield lab


@pytest.fixture
def mariadb_lab(mariadb: MariaDBServer) -> Iterator[MariaDBLab]:
    """Return a fresh database on MariaDB, to make stores on."""
    with fresh_database(mariadb) as name, MariaDBLab(mariadb, name) as lab:
        yield lab


@pytest.fixture
def browser() -> Browser:
    return Browser()
