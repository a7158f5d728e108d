"""The floor: the statements that a store sends, recorded, and sent again with nothing around them.

They are taken from the wire (PostgreSQL) or from the connection (SQLite), with their parameters, so
that the floor is what the store of today sends, whatever that is.
"""

from __future__ import annotations

import itertools
import socket
import sqlite3
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psycopg
from _common import KEYS, PAYLOAD, Effort, Report, environ, interleave, ratios, timed
from _servers import sharing_a_core
from psycopg.pq import ExecStatus
from werkzeug.datastructures import Headers

from pgstore import PGStore, SQLiteStore, Store
from pgstore.embedded import PostgresServer

Run = Callable[[], None]


@dataclass(frozen=True)
class Sent:
    """One statement and its parameters, by position or by name."""

    text: str
    values: Mapping[Any, Any]
    formats: tuple[int, ...] = ()
    result_format: int = 0


def new_visitor(store: Store) -> str:
    """Store a session with the usual payload; return its cookie."""
    request, headers = environ(), Headers()
    session = store.get(request, "session")
    session.values.update(PAYLOAD)
    session.save(request, headers)
    return headers["Set-Cookie"].partition(";")[0]


def get(store: Store, cookie: str) -> None:
    """Do what a read-only request does."""
    assert not store.get(environ(cookie), "session").is_new


def get_and_save(store: Store, cookie: str) -> None:
    """Do what a request does that changes its session."""
    request = environ(cookie)
    session = store.get(request, "session")
    session["n"] += 1
    session.save(request, Headers())


def beside_floor(
    report: Report, effort: Effort, what: str, ours: Run, against: str, floor: Run
) -> None:
    """Measure what the store does beside its floor, on two cores and on one."""
    calls = effort.pick(full=200, quick=200, smoke=5)
    measures = {"pgstore": timed(ours, calls), "floor": timed(floor, calls)}
    for name in list(measures):
        measures[f"{name}, sharing a core"] = sharing_a_core(measures[name])
    times = interleave(measures, effort.pick(full=100, quick=20, smoke=1))
    report.draw(times)
    report.add(what, against, ratios(times["pgstore"], times["floor"]), at_most=1.4)
    shared = (times[f"{name}, sharing a core"] for name in ("pgstore", "floor"))
    report.add(what, f"{against}, sharing a core", ratios(*shared))


@contextmanager
def postgres_floor(server: PostgresServer) -> Iterator[tuple[Run, Run]]:
    """Give the bare statements of `get` and of `get_and_save`, through libpq alone."""
    with _Proxy(server.port or 0) as proxy:
        dsn = f"host=127.0.0.1 port={proxy.port} user=postgres dbname=postgres"
        with PGStore(f"{dsn} sslmode=disable gssencmode=disable", *KEYS) as store:
            read, write = _record(store, proxy.take)
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        pgconn = connection.pgconn
        names: dict[str, bytes] = {}

        def bare(sent: Sent) -> Run:
            if sent.text not in names:
                names[sent.text] = f"floor_{len(names)}".encode("ascii")
                done = pgconn.prepare(names[sent.text], sent.text.encode("utf-8"))
                assert done.status == ExecStatus.COMMAND_OK, done.error_message
            name = names[sent.text]
            values, formats = list(sent.values.values()), list(sent.formats)

            def run() -> None:
                result = pgconn.exec_prepared(name, values, formats, sent.result_format)
                assert result.status == ExecStatus.TUPLES_OK
                assert result.ntuples == 1

            return run

        yield _floors(bare, read, write)


@contextmanager
def sqlite_floor(path: Path) -> Iterator[tuple[Run, Run]]:
    """Give the bare statements of `get` and of `get_and_save`, through `sqlite3` alone."""
    taken: list[Sent] = []

    class Recording(sqlite3.Connection):
        def execute(self, text: str, values: Any = (), /) -> sqlite3.Cursor:
            taken.append(Sent(text, dict(values)))
            return super().execute(text, values)

    def take() -> list[Sent]:
        found = taken.copy()
        taken.clear()
        return found

    connect = sqlite3.connect
    recording = partial(connect, factory=Recording)
    with patch("sqlite3.connect", recording), SQLiteStore(path, *KEYS) as store:
        read, write = _record(store, take)
    connection = connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA synchronous = NORMAL")  # as the store says

        def bare(sent: Sent) -> Run:
            def run() -> None:
                assert len(connection.execute(sent.text, sent.values).fetchall()) == 1

            return run

        yield _floors(bare, read, write)
    finally:
        connection.close()


def _record(store: Store, take: Callable[[], list[Sent]]) -> tuple[Sent, tuple[Sent, Sent]]:
    """Return the statement of a get; and two updates, each of which undoes the other's version."""
    cookie = new_visitor(store)
    get_and_save(store, cookie)  # connects, and prepares what a connection keeps
    take()
    get(store, cookie)
    (read,) = take()
    get_and_save(store, cookie)
    _, first = take()
    get_and_save(store, cookie)
    _, second = take()
    # The row's version is the one value that a save wrote and the next one asks for.
    (new, old) = next(
        (new, old)
        for new, wrote in first.values.items()
        for old, asked in second.values.items()
        if new != old and wrote == asked and wrote != first.values[old]
    )
    back = replace(
        second,
        values={**second.values, new: second.values[old], old: second.values[new]},
    )
    return read, (back, second)


def _floors(bare: Callable[[Sent], Run], read: Sent, write: tuple[Sent, Sent]) -> tuple[Run, Run]:
    select, updates = bare(read), itertools.cycle([bare(each) for each in write])

    def select_and_update() -> None:
        select()
        next(updates)()

    return select, select_and_update


class _Proxy:
    """Forwards one client at a time to PostgreSQL and keeps what it asked for."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._asked = bytearray()
        self._texts: dict[bytes, str] = {}
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> _Proxy:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def take(self) -> list[Sent]:
        """Return the statements that were sent since this was last called."""
        found, place = [], 0
        asked, self._asked = bytes(self._asked), bytearray()
        while place < len(asked):
            kind = asked[place : place + 1]
            if kind == b"\0":  # the first message has no kind, and is shorter than 16 MiB
                place += struct.unpack_from(">i", asked, place)[0]
                continue
            (length,) = struct.unpack_from(">i", asked, place + 1)
            body = asked[place + 5 : place + 1 + length]
            place += 1 + length
            if kind == b"P":
                name, text, _ = body.split(b"\0", 2)
                self._texts[name] = text.decode("utf-8")
            elif kind == b"B":
                found.append(self._bound(body))
        return found

    def _bound(self, body: bytes) -> Sent:
        _, name, rest = body.split(b"\0", 2)
        numbers = struct.Struct(">h")
        (count,) = numbers.unpack_from(rest)
        formats = struct.unpack_from(f">{count}h", rest, 2)
        place = 2 + 2 * count
        (count,) = numbers.unpack_from(rest, place)
        place += 2
        values: dict[int, bytes | None] = {}
        for number in range(count):
            (length,) = struct.unpack_from(">i", rest, place)
            place += 4
            values[number] = None if length < 0 else rest[place : place + length]
            place += max(length, 0)
        (result_format,) = numbers.unpack_from(rest, place + 2)
        if len(formats) == 1:
            formats *= len(values)
        return Sent(self._texts[name], values, formats, result_format)

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, socket.create_connection(("127.0.0.1", self._target)) as server:
                back = threading.Thread(target=self._forward, args=(server, client, None))
                back.start()
                self._forward(client, server, self._asked)
                back.join()

    def _forward(
        self, source: socket.socket, target: socket.socket, copy: bytearray | None
    ) -> None:
        while data := source.recv(65536):
            if copy is not None:
                self._asked += data
            target.sendall(data)
        try:
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass
