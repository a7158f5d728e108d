from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from pgstore import (
    ConfigurationError,
    Options,
    PGStore,
    SQLAlchemyStore,
    SQLiteStore,
    Store,
    __version__,
)
from pgstore.cli import _one_interrupt, main
from pgstore.sql import statements
from pgstore.urls import engine_of, format_keys, open_store, parse_keys
from support.sqlalchemy_labs import MariaDBLab
from support.stores import KEYS, Browser, Lab, PostgresLab, SQLiteLab

OLD, NEW = (b"o" * 32, b"o" * 16), (b"n" * 32, b"n" * 32)
DAY = 24 * 3600
# Nobody listens on port 1.
DOWN = "postgresql://me:sesame@127.0.0.1:1/db"


@dataclass
class Place:
    """A database, as the command line names it, and a view of what is in it."""

    options: list[str]
    lab: Lab

    def store(self, *keys: bytes | None, max_age: int = DAY) -> Store:
        return self.lab.store(*(keys or KEYS), options=Options(max_age=max_age))

    def add(self, *keys: bytes | None, max_age: int = DAY) -> None:
        with Browser().visit(self.store(*keys, max_age=max_age)) as session:
            session["a"] = 1


@dataclass
class Done:
    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGSTORE_DSN", "PGSTORE_KEYS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*argv: str) -> Done:
        try:
            code = main(argv)
        except SystemExit as end:  # argparse's
            code = int(end.code or 0)
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture(params=["postgres", "sqlite", "mariadb"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Return an empty database of each kind."""
    lab: Lab
    if request.param == "postgres":
        dsn, schema = (request.getfixturevalue(name) for name in ("pg_dsn", "pg_schema"))
        lab = PostgresLab(dsn, schema)
        options = ["--dsn", dsn, "--db-schema", schema]
    elif request.param == "mariadb":
        lab = request.getfixturevalue("mariadb_lab")
        options = ["--dsn", lab.url]
    else:
        lab = SQLiteLab(tmp_path / "sessions.db")
        options = ["--dsn", f"sqlite:///{tmp_path}/sessions.db"]
    with lab:
        yield Place(options, lab)


# -- URLs ------------------------------------------------------------------------------------------


def test_the_scheme_of_a_url_chooses_the_store(tmp_path: Path, pg_dsn: str, pg_schema: str) -> None:
    for scheme in ("postgresql", "postgres"):
        url = f"{scheme}://{pg_dsn.partition('://')[2]}"
        with open_store(url, *KEYS, db_schema=pg_schema) as store:
            assert type(store) is PGStore
    with open_store(f"sqlite:///{tmp_path}/a%20b.db", *KEYS) as store:
        assert type(store) is SQLiteStore
    assert (tmp_path / "a b.db").exists()


def test_three_slashes_are_a_relative_path_and_four_an_absolute_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with open_store("sqlite:///near.db", *KEYS) as store, Browser().visit(store) as session:
        session["a"] = 1
    with open_store(f"sqlite:///{tmp_path}/near.db", *KEYS) as store:
        assert store.reseal(check=True)["current"] == 1


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mongodb://me:sesame@host/db", "no store speaks mongodb://.*postgresql://.*sqlite:///"),
        ("mysql://me:sesame@host/db", r"MySQLdb is not installed: .*pgstore\[mysql\]"),
        ("mysql+nobody://me:sesame@host/db", r"no dialect for mysql\+nobody://"),
        ("mysql+pymysql://me:sesame@host:port/db", "no URL of SQLAlchemy's"),
        ("POSTGRESQL://me:sesame@host/db", "no store speaks POSTGRESQL://"),
        ("me:sesame@host/db", "given by a URL: postgresql://"),
        ("me:sesame@postgresql://", "given by a URL: postgresql://"),
        ("sesame", "given by a URL: postgresql://"),
        ("postgresql://me:x@sesame@host/db", "write @ as %40"),
        ("postgresql://me:12/sesame@host/db", "/ as %2F"),
        ("postgresql://me:%sesame@host/db", "cannot be parsed"),
        ("sqlite://sesame.db", "four slashes"),
        ("sqlite:///", "four slashes"),
        ("sqlite:///sesame%00", "four slashes"),
        ("sqlite:///sesame.db?mode=ro", "takes no '\\?'"),
    ],
)
def test_a_bad_url_is_explained_and_never_quoted(url: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        open_store(url, *KEYS)
    assert "sesame" not in str(caught.value)


def test_urls_of_sqlalchemys_make_its_store(mariadb_lab: MariaDBLab, pg_lab: PostgresLab) -> None:
    of_pg = pg_lab.dsn.partition("://")[2]
    for url, schema in (
        (mariadb_lab.url, None),
        (mariadb_lab.url.replace("mysql+", "mariadb+"), None),
        (f"postgresql+psycopg://{of_pg}", pg_lab.schema),
    ):
        with open_store(url, *KEYS, db_schema=schema) as store:
            assert type(store) is SQLAlchemyStore
            with Browser().visit(store) as session:
                session["a"] = 1
    assert (len(mariadb_lab.rows()), len(pg_lab.rows())) == (2, 1)


def test_sqlite_has_no_schemas(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="SQLite has no schemas"):
        open_store(f"sqlite:///{tmp_path}/a.db", *KEYS, db_schema="app")
    assert engine_of("sqlite:///a.db") == "sqlite"


# -- keys ------------------------------------------------------------------------------------------


def test_keygen_prints_one_new_pair_and_its_advice_elsewhere(run: Run) -> None:
    first, second = run("keygen"), run("keygen")
    hash_key, block_key = parse_keys(first.out)
    assert hash_key is not None
    assert block_key is not None
    assert (first.code, len(hash_key), len(block_key)) == (0, 32, 32)
    assert first.out.count("\n") == 1
    assert first.out != second.out
    assert "in front" in first.err
    assert first.out.strip() not in first.err


def test_keygen_can_leave_out_the_block_key(run: Run) -> None:
    hash_key, block_key = parse_keys(run("keygen", "--no-block").out)
    assert hash_key is not None
    assert len(hash_key) == 32
    assert block_key is None


def test_lines_of_keygen_joined_by_a_comma_are_several_pairs(run: Run) -> None:
    new, old = run("keygen", "--no-block").out.strip(), run("keygen").out.strip()
    assert parse_keys(f"{new},{old}") == [*parse_keys(new), *parse_keys(old)]


def test_keys_come_back_as_they_were_written() -> None:
    keys = [bytes(range(200, 232)), None, *KEYS]
    assert parse_keys(format_keys(*keys)) == keys
    assert parse_keys(" " + format_keys(*keys).replace(",", " ,\n").replace("-,", ",")) == keys
    assert parse_keys("c2VzYW1l" * 6 + "eA==") == [b"sesame" * 6 + b"x"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "PGSTORE_KEYS holds no key"),
        ("c2VzYW1l", "PGSTORE_KEYS: .*a hash key wants 32 bytes or more, not 6 bytes"),
        ("c2VzYW1l" * 6 + ",c2VzYW1l", "PGSTORE_KEYS: .*a block key wants 16, 24 or 32"),
        (",c2VzYW1l", "PGSTORE_KEYS: .*a hash key wants"),
        ("c2VzYW1l" * 6 + ",-,c2VzYW1l c2VzYW1l", "PGSTORE_KEYS: key 3 is not base64url"),
        ("c2VzYW1l+" * 6, "PGSTORE_KEYS: key 1 is not base64url"),
        ("c2VzYW1lx", "PGSTORE_KEYS: key 1 is not base64url"),
    ],
)
def test_bad_keys_are_explained_and_never_quoted(
    text: str, message: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGSTORE_KEYS", text)
    done = run("reseal", "--dsn", "sqlite:///nothing.db")
    assert done.code == 2
    assert re.match(f"pgstore: {message}", done.err)
    assert "sesame" not in done.err
    assert "c2VzYW1l" not in done.err


# -- schema ----------------------------------------------------------------------------------------


def test_apply_makes_the_table_that_check_wants(place: Place, run: Run) -> None:
    missing = run("schema", "check", *place.options)
    assert missing.code == 1
    assert "schema apply" in missing.err
    for action in ("apply", "check", "apply"):
        done = run("schema", action, *place.options)
        assert done == Done(
            0, "the table http_sessions is as this version of pgstore wants it\n", ""
        )
    place.add()
    assert len(place.lab.rows()) == 1


def test_what_print_writes_makes_the_table_that_check_wants(place: Place, run: Run) -> None:
    printed = run("schema", "print", "--table", "visits", *place.options)
    assert (printed.code, printed.err) == (0, "")
    if isinstance(place.lab, PostgresLab):
        with psycopg.connect(place.lab.dsn, autocommit=True) as connection:
            connection.execute(printed.out)  # type: ignore[call-overload]
    elif isinstance(place.lab, MariaDBLab):
        for statement in statements(printed.out):
            place.lab.execute(statement)
    else:
        assert isinstance(place.lab, SQLiteLab)
        with closing(sqlite3.connect(place.lab.path)) as connection:
            connection.executescript(printed.out)
    assert run("schema", "check", "--table", "visits", *place.options).code == 0


def test_grants_are_printed_for_a_role(run: Run) -> None:
    done = run(
        "schema", "grants", "--role", "shop_app", "--table", "sessions", "--db-schema", "web"
    )
    assert done.code == 0
    assert 'GRANT SELECT, INSERT, DELETE ON "web"."sessions" TO "shop_app";' in done.out
    assert 'GRANT USAGE ON SCHEMA "web" TO "shop_app";' in done.out
    assert "USAGE" not in run("schema", "grants", "--role", "shop_app").out
    for options in (["--engine", "mysql"], ["--dsn", "mariadb+pymysql://host/shop"]):
        done = run("schema", "grants", "--role", "shop_app", *options)
        assert "ON `http_sessions` TO `shop_app`;" in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "grants needs --role NAME"),
        (["--role", 'x"; DROP TABLE y'], "cannot be the role"),
        (["--role", "app", "--table", "a.b"], "cannot be the table"),
        (["--role", "app", "--db-schema", "a b"], "cannot be the schema"),
        (["--role", "app", "--dsn", "sqlite:///a.db"], "SQLite has no roles"),
    ],
)
def test_grants_that_cannot_be_printed(run: Run, arguments: list[str], message: str) -> None:
    done = run("schema", "grants", *arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err


@pytest.mark.parametrize("port", ["x", "-1", "65536", "8e3", ""])
def test_a_port_is_a_number(run: Run, port: str) -> None:
    done = run("demo", f"--port={port}")
    assert done.code == 2
    assert "a port is a number from 0 to 65535" in done.err


def test_print_needs_the_engine_and_no_database(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for engine, dsn, its_own in (
        ("postgres", DOWN, "timestamptz"),
        ("sqlite", "sqlite:////no/such/folder/a.db", "PRAGMA"),
        ("mysql", "mysql+pymysql://me:sesame@127.0.0.1:1/db", "DATETIME(6)"),
    ):
        by_name = run("schema", "print", "--engine", engine)
        assert by_name.code == 0
        assert its_own in by_name.out
        assert run("schema", "print", "--dsn", dsn) == by_name
        # The engine is said for this once, and the URL may be there for other commands.
        monkeypatch.setenv("PGSTORE_DSN", "mysql://")
        assert run("schema", "print", "--engine", engine) == by_name
        monkeypatch.delenv("PGSTORE_DSN")
    done = run("schema", "print", "--engine", "sqlite", "--db-schema", "app")
    assert done == Done(2, "", "pgstore: --db-schema is for PostgreSQL: SQLite has no schemas\n")


# -- cleanup ---------------------------------------------------------------------------------------


def test_cleanup_once_deletes_what_has_expired_and_says_how_much(place: Place, run: Run) -> None:
    run("schema", "apply", *place.options)
    for _ in range(3):
        place.add(max_age=3600)
    place.lab.pass_time(2 * 3600)
    place.add()
    assert run("cleanup", "--once", *place.options) == Done(0, "3\n", "")
    assert run("cleanup", "--once", *place.options) == Done(0, "0\n", "")
    assert len(place.lab.rows()) == 1


def test_cleanup_finds_expired_sessions_of_any_age(place: Place, run: Run) -> None:
    run("schema", "apply", *place.options)
    # Of seven days in a row, at least one is as far from the end of its seven-day bucket as can be.
    for day in range(7):
        max_age = (365 + day) * DAY
        place.add(max_age=max_age)
        place.lab.pass_time(max_age + 301)
        assert run("cleanup", "--once", *place.options).out == "1\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_cleanup_sweeps_until_a_signal_and_ends_in_order(
    place: Place, run: Run, number: signal.Signals
) -> None:
    run("schema", "apply", *place.options)
    place.add()
    place.lab.pass_time(2 * DAY)
    with process("cleanup", "--interval", "0.2", *place.options) as cleaner:
        assert line(cleaner) == "deleted 1\n"
        assert line(cleaner) == "deleted 0\n"
        place.add()
        place.lab.pass_time(2 * DAY)
        while (text := line(cleaner)) == "deleted 0\n":
            pass
        assert text == "deleted 1\n"
        cleaner.send_signal(number)
        out, err = cleaner.communicate(timeout=30)
    assert (cleaner.returncode, err) == (0, "")
    assert set(out.splitlines()) <= {"deleted 0"}


def test_cleanup_goes_on_after_a_failed_sweep(tmp_path: Path, run: Run) -> None:
    dsn = f"sqlite:///{tmp_path}/a.db"
    run("schema", "apply", "--dsn", dsn)
    with process("cleanup", "--interval", "0.2", "--dsn", dsn) as cleaner:
        assert line(cleaner) == "deleted 0\n"
        (tmp_path / "a.db").rename(tmp_path / "b.db")
        assert cleaner.stderr is not None
        error = cleaner.stderr.readline()
        (tmp_path / "b.db").rename(tmp_path / "a.db")
        assert error.startswith("pgstore: ")
        assert error.endswith("(the next sweep tries again)\n")
        # One may have been on its way to us when the file went.
        assert [line(cleaner) for _ in range(3)] == ["deleted 0\n"] * 3
        cleaner.terminate()
        cleaner.communicate(timeout=30)
    assert cleaner.returncode == 0


@pytest.mark.parametrize("interval", ["0", "-1", "nan"])
def test_an_interval_is_more_than_nothing(interval: str, run: Run) -> None:
    done = run("cleanup", "--interval", interval, "--dsn", "sqlite:///nothing.db")
    assert done.code == 2
    assert "--interval must be more than 0" in done.err


def test_cleanup_without_its_table_ends_at_once(place: Place, run: Run) -> None:
    done = run("cleanup", *place.options)
    assert (done.code, done.out) == (1, "")
    assert "schema apply" in done.err


# -- sessions ------------------------------------------------------------------------------------


def sign_in(place: Place, user: str, **client: str) -> str:
    with Browser(**client).visit(place.store()) as session:
        session.login(user)
        session.meta["device"] = "phone\x1b[31m"
    return session.handle


def test_a_users_sessions_are_listed(place: Place, run: Run) -> None:
    """One line for each, the newest first, with nothing in it that steers a terminal."""
    agent = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"
    old = sign_in(place, "alice", agent=agent)
    place.lab.pass_time(3600)
    new = sign_in(place, "alice", address="2001:db8::1", agent="Something\x1b[2J/1")
    sign_in(place, "Alice")
    place.lab.set(ip="10.0.0.1\x1b[2J")
    done = run("sessions", "list", "alice", *place.options)
    assert (done.code, done.err) == (0, "")
    title, first, second = done.out.splitlines()
    assert title.split("  ")[0] == "HANDLE"
    line = r"{}(  [\d-]{{10}} \d\d:\d\d){{3}}  10\.0\.0\.1\?\[2J  {} +device=phone\?\[31m"
    assert re.fullmatch(line.format(new, r"Something\[2J/1"), first)
    assert re.fullmatch(line.format(old, "Firefox on Linux"), second)
    (title,) = run("sessions", "list", "bob", *place.options).out.splitlines()
    assert title.startswith("HANDLE")


def test_a_session_is_revoked_by_its_handle(place: Place, run: Run) -> None:
    """The exit code tells whether there was one."""
    handle, other = sign_in(place, "alice"), sign_in(place, "alice")
    codes = [run("sessions", "revoke", "--handle", handle, *place.options).code for _ in range(2)]
    assert codes == [0, 1]
    assert [one.handle for one in place.store().sessions_of("alice")] == [other]


def test_a_users_sessions_are_revoked(place: Place, run: Run) -> None:
    """All of them; and it is no error when there are none."""
    for user in ("alice", "alice", "Alice"):
        sign_in(place, user)
    for expected in (2, 0):
        done = run("sessions", "revoke", "--user", "alice", *place.options)
        assert (done.code, done.out) == (0, f"revoked {expected}\n")
    assert len(place.lab.rows()) == 1
    assert run("sessions", "revoke", "--user", "", *place.options).code == 2
    assert run("sessions", "revoke", *place.options).code == 2


# -- reseal ----------------------------------------------------------------------------------------


def test_reseal_rewrites_what_old_keys_sealed(
    place: Place, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("schema", "apply", *place.options)
    place.add(*OLD)
    place.add(*OLD)
    place.add(*NEW)
    place.add(b"x" * 32)
    monkeypatch.setenv("PGSTORE_KEYS", format_keys(*NEW, *OLD))
    before = place.lab.rows()
    assert run("reseal", "--check", *place.options) == Done(1, "current 1, old 2, refused 1\n", "")
    assert place.lab.rows() == before
    assert run("reseal", *place.options) == Done(0, "current 1, old 2, refused 1\n", "")
    assert run("reseal", "--check", *place.options) == Done(0, "current 3, old 0, refused 1\n", "")
    monkeypatch.setenv("PGSTORE_KEYS", format_keys(*NEW))
    assert run("reseal", "--check", *place.options) == Done(0, "current 3, old 0, refused 1\n", "")


def test_keys_may_come_from_a_file(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    dsn = f"sqlite:///{tmp_path}/a.db"
    with open_store(dsn, *NEW) as store, Browser().visit(store) as session:
        session["a"] = 1
    keys = tmp_path / "keys"
    keys.write_text(format_keys(*NEW) + "\n")
    monkeypatch.setenv("PGSTORE_KEYS", "the file is what counts")
    done = run("reseal", "--check", "--dsn", dsn, "--keys-file", str(keys))
    assert done == Done(0, "current 1, old 0, refused 0\n", "")
    keys.write_bytes(b"\xff")
    for path, message in ((keys, "not text"), (tmp_path, "Is a directory")):
        done = run("reseal", "--dsn", dsn, "--keys-file", str(path))
        assert done == Done(2, "", f"pgstore: {path} cannot be read: {message}\n")


# -- the rest --------------------------------------------------------------------------------------


COMMANDS = [
    ["schema", "apply"],
    ["schema", "check"],
    ["cleanup", "--once"],
    ["cleanup"],
    ["reseal"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_database_that_is_down_is_one_line_and_no_password(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGSTORE_DSN", DOWN)
    monkeypatch.setenv("PGSTORE_KEYS", format_keys(*KEYS))
    with process(*command) as failing:
        out, err = failing.communicate(timeout=60)
    assert (failing.returncode, out) == (1, "")
    assert re.fullmatch("pgstore: PostgreSQL cannot be reached: .*\n", err)
    assert "sesame" not in err


@pytest.mark.parametrize("command", [*COMMANDS, ["schema", "print"]], ids=" ".join)
def test_every_command_says_when_it_is_told_no_database(
    command: list[str], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGSTORE_KEYS", format_keys(*KEYS))
    done = run(*command)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("pgstore: no database: set PGSTORE_DSN to its URL, or give --dsn")


def test_a_missing_libpq_is_said_with_its_remedy() -> None:
    with process("schema", "print", "--engine", "postgres", PSYCOPG_IMPL="none") as failing:
        out, err = failing.communicate(timeout=60)
    assert (failing.returncode, out) == (2, "")
    assert err == "pgstore: PostgreSQL wants psycopg with libpq: pip install 'pgstore[binary]'\n"


def test_python_m_pgstore_is_the_command() -> None:
    with process("--version") as version:
        out, err = version.communicate(timeout=60)
    assert (version.returncode, out, err) == (0, f"pgstore {__version__}\n", "")


def test_a_command_is_needed(run: Run) -> None:
    done = run()
    assert done.code == 2
    assert "COMMAND" in done.err
    assert run("demo", "--port", "65536").code == 2


def test_an_interrupt_ends_a_command_without_a_traceback(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PGSTORE_KEYS", format_keys(*KEYS))
    monkeypatch.setattr(Store, "reseal", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert run("reseal", "--dsn", f"sqlite:///{tmp_path}/a.db") == Done(130, "", "")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_only_the_first_interrupt_interrupts() -> None:
    with _one_interrupt():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)


@contextmanager
def process(*argv: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Run the command as a process of its own for the length of a block."""
    with subprocess.Popen(
        [sys.executable, "-m", "pgstore", *argv],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()
