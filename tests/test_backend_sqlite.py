"""The SQLite backend against the contract, in both journal modes, and what is its own."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pgstore.backends.sqlite import SQLiteBackend, schema_sql
from pgstore.errors import BackendError, ConfigurationError, SchemaError
from pgstore.rows import Expiry, PGSession
from pgstore.sql import Schema
from pgstore.testing import NO_TIMES, BackendContract, in_fork

ROW = PGSession(
    key=bytes(16),
    name="session",
    generation=0,
    min_generation=0,
    secret_hash=bytes(32),
    data=b"",
    version=0,
    max_age=0,
)
EXPIRY = Expiry(idle=3600.0, lifetime=None, bucket=600.0)

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


class TestSQLiteBackend(BackendContract):
    on = "SQLite"

    @pytest.fixture(autouse=True)
    def _storage(self, tmp_path: Path) -> None:
        self.path = tmp_path / "sessions.db"

    def make_backend(self) -> SQLiteBackend:
        return SQLiteBackend(self.path)

    def make_connection(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path)

    def raw_rows(self) -> list[dict[str, Any]]:
        with raw(self.path) as connection:
            connection.row_factory = sqlite3.Row
            rows = connection.execute("SELECT * FROM http_sessions").fetchall()
        return [{name: _value(name, row[name]) for name in row.keys()} for row in rows]  # noqa: SIM118

    def raw_shift(self, seconds: float) -> None:
        moves = ", ".join(f"{name} = {name} - {round(seconds * 1_000_000)}" for name in NO_TIMES)
        with raw(self.path) as connection:
            connection.execute(f"UPDATE http_sessions SET {moves}")


class TestSQLiteBackendWithoutWAL(TestSQLiteBackend):
    """A file that its operator made, in the journal mode of the operator's choice."""

    on = "SQLite, without WAL"

    @pytest.fixture(autouse=True)
    def _storage(self, tmp_path: Path) -> Iterator[None]:
        self.path = tmp_path / "sessions.db"
        with raw(self.path) as connection:
            connection.executescript(schema_sql())
            connection.execute("PRAGMA journal_mode = DELETE")
        yield
        assert journal_mode(self.path) == "delete"


def _value(name: str, value: Any) -> Any:
    if name in NO_TIMES and value is not None:
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=value)
    if name == "meta":
        return json.loads(value or "{}")
    return value


@contextmanager
def raw(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a connection of the test's own, in autocommit."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


def journal_mode(path: Path) -> str:
    with raw(path) as connection:
        return str(connection.execute("PRAGMA journal_mode").fetchone()[0])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


@pytest.fixture
def backend(path: Path) -> Iterator[SQLiteBackend]:
    backend = SQLiteBackend(path, busy_timeout=0.05)
    backend.apply_schema()
    yield backend
    backend.close()


def count_in_processes(count: int, function: Callable[[int], None]) -> int:
    """Run the function in so many forked processes at once; return how many succeeded."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(count)

    def target(number: int) -> None:
        barrier.wait(30)
        function(number)

    processes = [context.Process(target=target, args=(number,)) for number in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes].count(0)


# -- settings ------------------------------------------------------------------------------------


def test_memory_is_refused() -> None:
    """A database in memory is one per connection: the error names what to use."""
    with pytest.raises(ConfigurationError, match="MemoryStore"):
        SQLiteBackend(":memory:")


@pytest.mark.parametrize("path", ["", "file:sessions.db", b"sessions.db"])
def test_path_names_a_file(path: Any) -> None:
    """What SQLite would take for something else than a file's path is refused."""
    with pytest.raises(ConfigurationError, match="path must name a file"):
        SQLiteBackend(path)


@pytest.mark.parametrize("table", ["my sessions", "sqlite_sessions", 'a"; DROP TABLE users; --'])
def test_table_is_checked(table: str) -> None:
    """A table's name that SQLite would refuse or misread is refused at once."""
    with pytest.raises(ConfigurationError, match="cannot be the table"):
        SQLiteBackend("sessions.db", table=table)


@pytest.mark.parametrize("wait", [-1, 3601, float("nan"), "5"])
def test_busy_timeout_is_checked(wait: Any) -> None:
    """A busy timeout is a number of seconds within reason."""
    with pytest.raises(ConfigurationError, match="busy_timeout"):
        SQLiteBackend("sessions.db", busy_timeout=wait)


def test_path_may_be_strange(tmp_path: Path) -> None:
    """A path is taken as it is, whatever it would mean in a URI, and before the folder changes."""
    path = tmp_path / "a?b#c%20d é.db"
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        with closing(SQLiteBackend(path.name)) as backend:
            os.chdir(before)
            backend.apply_schema()
            assert backend.insert(ROW, EXPIRY)
    finally:
        os.chdir(before)
    assert os.listdir(tmp_path) == [path.name]


def test_clock_is_given(path: Path) -> None:
    """A row ends at its expiry by the clock that was given, and not before."""
    now = 1_000_000_000.0
    with closing(SQLiteBackend(path, clock=lambda: now)) as backend:
        backend.apply_schema()
        assert backend.insert(ROW, EXPIRY)
        now += 3599.999999
        loaded = backend.load(ROW.key)
        assert loaded
        assert loaded.now == datetime(2001, 9, 9, 2, 46, 39, 999999, tzinfo=UTC)
        now = 1_000_003_600.0
        assert backend.load(ROW.key) is None


def test_tables_are_apart(path: Path) -> None:
    """Two stores may have a table each in one file."""
    with closing(SQLiteBackend(path)) as one, closing(SQLiteBackend(path, table="Other")) as other:
        one.apply_schema()
        with pytest.raises(SchemaError):
            other.check_schema()
        other.apply_schema()
        assert one.insert(ROW, EXPIRY)
        assert other.load(ROW.key) is None


# -- schema --------------------------------------------------------------------------------------


def test_requests_make_no_file(path: Path) -> None:
    """A wrong path is an error that says what to run, not a new empty database."""
    with closing(SQLiteBackend(path)) as backend:
        with pytest.raises(SchemaError, match="run `pgstore schema apply`"):
            backend.load(ROW.key)
        with pytest.raises(SchemaError, match="run `pgstore schema apply`"):
            backend.check_schema()
    assert not path.exists()


def test_missing_table(path: Path) -> None:
    """A database without the table is an error that says what to run."""
    with raw(path) as connection:
        connection.execute("CREATE TABLE other (a)")
    with closing(SQLiteBackend(path)) as backend:
        with pytest.raises(SchemaError, match="run `pgstore schema apply`"):
            backend.load(ROW.key)
        with pytest.raises(SchemaError, match="run `pgstore schema apply`"):
            backend.check_schema()


def test_a_table_of_someone_else(path: Path) -> None:
    """A table that pgstore did not make is left alone."""
    with raw(path) as connection:
        connection.execute("CREATE TABLE http_sessions (a)")
        with closing(SQLiteBackend(path)) as backend, pytest.raises(SchemaError, match="choose"):
            backend.apply_schema()
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [
            ("http_sessions",)
        ]


def test_printed_schema_is_the_applied_one(path: Path, backend: SQLiteBackend) -> None:
    """What `pgstore schema print` shows makes the very database that `schema apply` makes."""
    printed = path.with_name("printed.db")
    with raw(printed) as connection:
        connection.executescript(schema_sql())
    query = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name"
    with raw(path) as one, raw(printed) as other:
        assert one.execute(query).fetchall() == other.execute(query).fetchall()
    assert journal_mode(path) == journal_mode(printed) == "wal"
    with closing(SQLiteBackend(printed)) as made_by_hand:
        made_by_hand.check_schema()


def test_table_too_new(path: Path, backend: SQLiteBackend) -> None:
    """A table that newer code has migrated is used as long as the migration allows."""
    with raw(path) as connection:
        later = Schema("sqlite").version + 1
        connection.execute(
            "INSERT INTO http_sessions_schema VALUES (?, ?, 0)", (later, Schema("sqlite").version)
        )
        backend.check_schema()
        backend.apply_schema()
        connection.execute("UPDATE http_sessions_schema SET oldest_code = version")
    with pytest.raises(SchemaError, match="upgrade pgstore"):
        backend.check_schema()
    with pytest.raises(SchemaError, match="upgrade pgstore"):
        backend.apply_schema()


def test_table_too_old(path: Path, backend: SQLiteBackend) -> None:
    """A table that lacks a migration is no table for this code."""
    with raw(path) as connection:
        connection.execute("UPDATE http_sessions_schema SET version = 0")
    with pytest.raises(SchemaError, match="run `pgstore schema apply`"):
        backend.check_schema()


def test_failed_migration_leaves_nothing(path: Path) -> None:
    """A migration that fails halfway is undone as a whole."""
    with raw(path) as connection:
        connection.execute("CREATE TABLE t (gc_after)")
        connection.execute("CREATE INDEX http_sessions_gc_after ON t (gc_after)")
        with closing(SQLiteBackend(path)) as backend, pytest.raises(SchemaError):
            backend.apply_schema()
        assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (2,)


def test_current_schema_needs_no_lock(path: Path, backend: SQLiteBackend) -> None:
    """A process that starts while another writes waits for nothing, and needs no right to write."""
    with raw(path) as connection:
        connection.execute("BEGIN IMMEDIATE")
        backend.apply_schema()
        connection.execute("ROLLBACK")


def test_applied_by_many_processes(path: Path) -> None:
    """Sixteen processes may start at once on no file at all."""
    for attempt in range(3):
        file = path.with_name(f"{attempt}.db")

        def start(number: int, file: Path = file) -> None:
            with closing(SQLiteBackend(file)) as backend:
                backend.apply_schema()
                assert backend.insert(replace(ROW, key=number.to_bytes(16, "big")), EXPIRY)

        assert count_in_processes(16, start) == 16
        with closing(SQLiteBackend(file)) as backend:
            assert len(backend.scan(None, 99)) == 16
        assert journal_mode(file) == "wal"


def test_nothing_is_null(path: Path, backend: SQLiteBackend) -> None:
    """What is not set is NULL for whoever looks into the table."""
    assert backend.insert(ROW, EXPIRY)
    with raw(path) as connection:
        connection.row_factory = sqlite3.Row
        row = connection.execute("SELECT * FROM http_sessions").fetchone()
    unset = {name for name in row.keys() if row[name] is None}  # noqa: SIM118
    optional = {"user_key", "ip", "user_agent", "meta", "previous_hash", "successor"}
    assert unset == optional | {"authenticated_on", "renewed_on"}


# -- processes and threads -----------------------------------------------------------------------


def test_no_write_is_lost_between_processes(path: Path, backend: SQLiteBackend) -> None:
    """Of many processes that count, each counts every time."""
    patient = SQLiteBackend(path, busy_timeout=30)
    assert patient.insert(replace(ROW, data=bytes(4)), EXPIRY)

    def count(number: int) -> None:
        for turn in range(25):
            while True:
                loaded = patient.load(ROW.key)
                assert loaded
                new = int.from_bytes(loaded.row.data, "big") + 1
                row = replace(
                    loaded.row,
                    data=new.to_bytes(4, "big"),
                    version=(number + 1) * 1000 + turn,
                )
                if patient.update(row, loaded.row.version, EXPIRY):
                    break

    assert count_in_processes(4, count) == 4
    loaded = patient.load(ROW.key)
    assert loaded
    assert int.from_bytes(loaded.row.data, "big") == 100
    patient.close()


@linux
def test_ended_threads_leave_no_connection(path: Path, backend: SQLiteBackend) -> None:
    """A server that starts a thread per request does not open a connection per request."""
    backend.load(ROW.key)
    before = len(open_files(path))
    for _ in range(20):
        thread = threading.Thread(target=backend.load, args=(ROW.key,))
        thread.start()
        thread.join()
    assert len(open_files(path)) == before > 0
    backend.close()
    assert open_files(path) == []


@linux
def test_connections_end_with_the_backend(path: Path, backend: SQLiteBackend) -> None:
    """A backend that nobody closed closes its connections when it is collected."""
    backend.close()
    forgotten = SQLiteBackend(path)
    forgotten.load(ROW.key)
    assert open_files(path)
    del forgotten
    gc.collect()
    assert open_files(path) == []


@linux
def test_close_during_a_transaction(path: Path, backend: SQLiteBackend) -> None:
    """What is in use when the backend is closed is closed when it is done."""
    assert backend.insert(ROW, EXPIRY)
    with backend.locked(ROW.key) as inside:
        backend.close()
        assert inside.update(replace(ROW, version=1), ROW.version, EXPIRY)
    assert open_files(path) == []
    with pytest.raises(BackendError, match="is closed"):
        backend.load(ROW.key)
    with closing(SQLiteBackend(path)) as other:
        loaded = other.load(ROW.key)
        assert loaded
        assert loaded.row.version == 1


def test_fork_inside_a_transaction(path: Path, backend: SQLiteBackend) -> None:
    """A child that is forked inside a transaction has no part in it, and cannot end it."""
    assert backend.insert(ROW, EXPIRY)

    def child() -> None:
        with pytest.raises(BackendError, match="cannot cross a fork"):
            inside.load(ROW.key)
        # Its own connection waits for the parent's transaction, like everybody's.
        with pytest.raises(BackendError, match="locked by another writer"):
            backend.delete(ROW.key)
        assert backend.load(ROW.key)

    parent = os.getpid()
    try:
        with backend.locked(ROW.key) as inside:
            assert inside.update(replace(ROW, version=1), ROW.version, EXPIRY)
            assert in_fork(child) == 0
            if pid := os.fork():
                assert os.waitpid(pid, 0)[1] == 0
        if os.getpid() != parent:
            os._exit(1)
    except BackendError:
        os._exit(os.getpid() == parent)
    loaded = backend.load(ROW.key)
    assert loaded
    assert loaded.row.version == 1


@linux
def test_child_never_closes_its_parents_connection(path: Path, backend: SQLiteBackend) -> None:
    """Not even the end of a forked child's interpreter closes what it has inherited.

    https://www.sqlite.org/howtocorrupt.html section 2.6
    """
    script = """
import gc, os, sqlite3, sys

class Watched(sqlite3.Connection):
    def __del__(self):
        os.write(1, b"parent's " if os.getpid() == parent else b"child's ")

plain = sqlite3.connect

def connect(name, *args, **kwargs):
    # Not those of a tool that watches this process.
    if "sessions.db" in os.fspath(name):
        kwargs["factory"] = Watched
    return plain(name, *args, **kwargs)

sqlite3.connect = connect
parent = os.getpid()
from pgstore.backends.sqlite import SQLiteBackend
backend = SQLiteBackend(sys.argv[1])
backend.load(b"")
if pid := os.fork():
    assert os.waitpid(pid, 0)[1] == 0
    backend.load(b"")
    backend.close()
elif sys.argv[2] == "close":
    backend.close()
else:
    backend.load(b"")
    del backend
    gc.collect()
"""
    for how, closed in (("close", "parent's "), ("use", "child's parent's ")):
        ran = subprocess.run(
            [sys.executable, "-W", "error", "-c", script, os.fspath(path), how],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ran.returncode, ran.stderr) == (0, "")
        assert ran.stdout == closed


def test_killed_writer(path: Path, backend: SQLiteBackend) -> None:
    """A process that is killed inside a transaction leaves the file as it was before it."""
    assert backend.insert(ROW, EXPIRY)
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        with backend.locked(ROW.key) as inside:
            inside.update(replace(ROW, version=1, data=bytes(100_000)), ROW.version, EXPIRY)
            os.write(send, b"!")
            signal.pause()
    os.read(receive, 1)
    with pytest.raises(BackendError, match="locked by another writer"):
        backend.delete(ROW.key)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(receive)
    os.close(send)
    assert backend.update(replace(ROW, version=2), ROW.version, EXPIRY)
    with raw(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


# -- locks ---------------------------------------------------------------------------------------


def test_busy(path: Path, backend: SQLiteBackend) -> None:
    """A writer that waits for too long is told so, has not written, and can try again."""
    with raw(path) as connection:
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(BackendError, match=r"locked by another writer for 0\.05 s") as caught:
            backend.insert(ROW, EXPIRY)
        assert not caught.value.outcome_unknown
        assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
        assert backend.load(ROW.key) is None
        connection.execute("ROLLBACK")
    assert backend.insert(ROW, EXPIRY)


@linux
def test_failed_begin_leaks_nothing(path: Path, backend: SQLiteBackend) -> None:
    """A transaction that could not begin leaves no connection and no lock behind."""
    with raw(path) as connection:
        connection.execute("BEGIN IMMEDIATE")
        before = len(open_files(path))
        for _ in range(5):
            with pytest.raises(BackendError), backend.locked(ROW.key):
                pytest.fail("the lock is not to be had")
            with pytest.raises(BackendError):
                backend.delete(ROW.key)
        assert len(open_files(path)) <= before
        connection.execute("ROLLBACK")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    assert backend.insert(ROW, EXPIRY)


def test_failed_commit_is_rolled_back(path: Path) -> None:
    """A commit that fails wrote nothing, and leaves nothing locked."""
    with raw(path) as connection:
        connection.executescript(schema_sql())
        # Without WAL a reader keeps a writer from committing.
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("BEGIN")
        connection.execute("SELECT * FROM http_sessions").fetchall()
        with closing(SQLiteBackend(path, busy_timeout=0.05)) as backend:
            with pytest.raises(BackendError) as caught, backend.locked(ROW.key) as inside:
                assert inside.insert(ROW, EXPIRY)
            assert not caught.value.outcome_unknown
            connection.execute("COMMIT")
            assert backend.load(ROW.key) is None
            assert backend.insert(ROW, EXPIRY)


def test_sweep_waits_for_nobody(path: Path, backend: SQLiteBackend) -> None:
    """A sweep that meets another one, or a long writer, leaves it to the next."""
    assert backend.insert(ROW, replace(EXPIRY, idle=-1.0))
    with raw(path) as connection:
        connection.execute("BEGIN IMMEDIATE")
        assert backend.sweep(10, 600.0) == []
        connection.execute("ROLLBACK")
    assert len(backend.sweep(10, 600.0)) == 1
    # The next statement on the connection has its patience again.
    with closing(SQLiteBackend(path, busy_timeout=7)) as patient:
        assert patient.sweep(10, 0.0) == []
        assert patient._source.run("PRAGMA busy_timeout") == [(7000,)]


def test_sweep_has_no_limit_of_variables(path: Path, backend: SQLiteBackend) -> None:
    """A batch may be larger than the number of values that a statement can take."""
    assert backend.insert(ROW, replace(EXPIRY, idle=-1.0))
    columns = ", ".join(field for field in ROW.__dataclass_fields__ if field != "key")
    with raw(path) as connection:
        connection.execute(
            f"""INSERT INTO http_sessions (key, {columns})
            WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 40000)
            SELECT CAST(printf('%016d', i) AS BLOB), {columns} FROM http_sessions, n"""
        )
    assert [len(backend.sweep(40_000, 600.0)) for _ in range(2)] == [40_000, 1]


def test_statements_use_the_indexes(path: Path, backend: SQLiteBackend) -> None:
    """No statement of a request or a sweep reads the whole table."""
    values = dict.fromkeys("key now until limit".split())  # noqa: SIM905
    with raw(path) as connection:
        for sql, index in (
            (backend._sql.load, "USING INDEX sqlite_autoindex_http_sessions_1 (key=?)"),
            (backend._sql.sweep, "USING INDEX http_sessions_gc_after (gc_after<?)"),
        ):
            plan = connection.execute(f"EXPLAIN QUERY PLAN {sql}", values).fetchall()
            assert any(index in step[3] for step in plan)
            assert not [step for step in plan if step[3].startswith("SCAN")]


# -- files ---------------------------------------------------------------------------------------


def test_wal(path: Path, backend: SQLiteBackend) -> None:
    """In WAL mode, which a new file is in, no commit waits for the disk; without it, each must."""
    assert journal_mode(path) == "wal"
    assert backend._source.run("PRAGMA synchronous") == [(1,)]  # NORMAL
    backend.close()
    with raw(path) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    with closing(SQLiteBackend(path)) as backend:
        backend.apply_schema()
        assert backend._source.run("PRAGMA synchronous") == [(2,)]  # FULL


def test_wal_is_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is written while it is to be switched to WAL is switched after that."""
    with raw(path) as connection:
        connection.execute("CREATE TABLE other (a)")
        connection.execute("BEGIN IMMEDIATE")
        waits: list[float] = []

        def sleep(seconds: float) -> None:
            waits.append(seconds)
            connection.execute("COMMIT")

        monkeypatch.setattr("pgstore.backends.sqlite.time.sleep", sleep)
        with closing(SQLiteBackend(path)) as backend:
            backend.apply_schema()
    assert len(waits) == 1
    assert journal_mode(path) == "wal"


@pytest.mark.parametrize("begin", ["BEGIN IMMEDIATE", "BEGIN; SELECT * FROM other"])
def test_wal_is_not_waited_for_without_end(path: Path, begin: str) -> None:
    """A file that others keep for longer than the busy timeout is left as it is."""
    with raw(path) as connection:
        connection.execute("CREATE TABLE other (a)")
        for statement in begin.split(";"):
            connection.execute(statement).fetchall()
        backend = SQLiteBackend(path, busy_timeout=0.05)
        with pytest.raises(BackendError, match="locked"):
            backend.apply_schema()
        connection.execute("COMMIT")
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("other",)]


def test_without_shared_memory(path: Path) -> None:
    """Where WAL cannot be had, the backend works with a rollback journal."""
    backend = SQLiteBackend(path)
    plain: Any = sqlite3.connect

    def connect(database: str, **settings: Any) -> Any:
        # SQLite's dot-file locks are for file systems without shared memory, and do without it.
        return plain(f"{database}&vfs=unix-dotfile", **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", connect)
        backend.apply_schema()
        assert backend.insert(ROW, EXPIRY)
        assert backend.load(ROW.key)
        backend.close()
    assert journal_mode(path) == "delete"


def test_not_a_database(path: Path) -> None:
    """A file that SQLite did not write is named as such, and is left alone."""
    text = b"not a database, but quite a few bytes of something else " * 100
    path.write_bytes(text)
    with closing(SQLiteBackend(path)) as backend:
        with pytest.raises(BackendError, match="is not a SQLite database"):
            backend.load(ROW.key)
        with pytest.raises(BackendError, match="is not a SQLite database"):
            backend.apply_schema()
    assert path.read_bytes() == text


def test_no_folder(tmp_path: Path) -> None:
    """A missing folder is named, and is not made."""
    with closing(SQLiteBackend(tmp_path / "missing" / "sessions.db")) as backend:
        with pytest.raises(BackendError, match="there is no folder"):
            backend.load(ROW.key)
        with pytest.raises(BackendError, match="there is no folder"):
            backend.apply_schema()
    assert os.listdir(tmp_path) == []


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    """A folder in the database's place is an error of the storage."""
    backend = SQLiteBackend(tmp_path)
    with pytest.raises(BackendError, match="cannot be opened"):
        backend.load(ROW.key)


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A folder with a database in it, as an account sees it that may read and not write them."""
    # Not tmp_path: another account may not enter it.
    folder = Path(tempfile.mkdtemp())
    with raw(folder / "sessions.db") as connection:
        connection.executescript(schema_sql())
        connection.execute("PRAGMA journal_mode = DELETE")
    (folder / "sessions.db").chmod(0o444)
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield folder / "sessions.db"
    if root:
        os.seteuid(0)
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_read_only_file(read_only: Path) -> None:
    """Without the right to write, an applied schema is enough to start, and writes say why not."""
    with closing(SQLiteBackend(read_only)) as backend:
        backend.apply_schema()
        assert backend.load(ROW.key) is None
        with pytest.raises(BackendError, match="is read-only"):
            backend.insert(ROW, EXPIRY)


def test_read_only_folder(read_only: Path) -> None:
    """Without the right to make a file, applying the schema says so."""
    backend = SQLiteBackend(read_only.with_name("other.db"))
    with pytest.raises(BackendError, match="must be able to write"):
        backend.apply_schema()


def test_deleted_file(path: Path, backend: SQLiteBackend) -> None:
    """A file that was deleted is not written to any more, nor silently made again."""
    assert backend.insert(ROW, EXPIRY)
    for file in path.parent.iterdir():
        file.unlink()
    with pytest.raises(SchemaError, match="there is no database"):
        backend.load(ROW.key)
    backend.apply_schema()
    assert backend.load(ROW.key) is None
    assert backend.insert(ROW, EXPIRY)


@pytest.mark.parametrize("how", ["use", "close"])
def test_replaced_file(path: Path, backend: SQLiteBackend, how: str) -> None:
    """When another file takes the place, it is used, and the end of the old one does it no harm."""
    assert backend.insert(ROW, EXPIRY)
    for file in path.parent.iterdir():
        file.unlink()
    with closing(SQLiteBackend(path)) as new:
        new.apply_schema()
        assert new.insert(replace(ROW, version=1), EXPIRY)
        if how == "use":
            loaded = backend.load(ROW.key)
            assert loaded
            assert loaded.row.version == 1
        else:
            backend.close()
        # The new file's journal goes by the name of the old one's.
        assert path.with_name("sessions.db-wal").exists()
        if sys.platform == "linux":
            assert not [file for file in open_files(path) if file.endswith("(deleted)")]
        assert new.delete(ROW.key, version=1)


def test_errors_hold_no_values(path: Path, backend: SQLiteBackend) -> None:
    """What SQLite says of a value goes into the cause at most, not into the message."""
    with raw(path) as connection:
        connection.execute(
            "CREATE TRIGGER t BEFORE INSERT ON http_sessions "
            "BEGIN SELECT RAISE(ABORT, 'alice is not welcome'); END"
        )
    with pytest.raises(BackendError) as caught:
        backend.insert(replace(ROW, user_key="alice"), EXPIRY)
    assert str(caught.value) == f"SQLite failed on {path} (SQLITE_CONSTRAINT_TRIGGER)"


def open_files(path: Path) -> list[str]:
    """Return what this process has open of the database and its journal, once for each time."""
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    files = [os.readlink(link) for link in links if os.path.lexists(link)]
    return [file for file in files if file.startswith(os.fspath(path))]
