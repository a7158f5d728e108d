"""Session layers: what a request takes longer with sessions than without, for each kind of session.

Each kind is in a process of its own, which calls the site through WSGI: with its sessions, and then
without. A controller has them take turns.
"""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection

import _servers
from _common import Effort, Missing, Report, differences, environ, interleave, ratios, say
from _sites import KINDS, App, Servers

_SPAWN = multiprocessing.get_context("spawn")
_VISITORS = 50


def compare(effort: Effort, title: str, page: str, targets: Mapping[str, float | None]) -> Report:
    """Measure the layers of a page; ``targets`` are ours divided by theirs at most, by kind."""
    report = Report(title)
    rounds = effort.pick(full=40, quick=6, smoke=1)
    requests = effort.pick(full=200, quick=100, smoke=5)
    with ExitStack() as stack:
        servers = stack.enter_context(_running(report))
        workers: dict[str, _Worker] = {}
        for kind in ("pgstore", *targets):
            missing = KINDS[kind].missing(servers)
            if missing is None:
                say(f"starting {kind}")
                workers[kind] = stack.enter_context(_Worker(kind, servers, page))
            else:
                report.left_out.append(f"{kind}: {missing}")
        times = interleave(
            {
                (kind, sessions): worker.round(sessions, requests)
                for kind, worker in workers.items()
                for sessions in (True, False)
            },
            rounds,
        )
    layers = {kind: differences(times[kind, True], times[kind, False]) for kind in workers}
    report.draw(layers)
    for kind, target in targets.items():
        if kind in layers:
            report.add(title, kind, ratios(layers["pgstore"], layers[kind]), at_most=target)
    return report


@contextmanager
def _running(report: Report) -> Iterator[Servers]:
    """Run PostgreSQL, on a disk and with its defaults but one, and Redis if there is one."""
    with ExitStack() as stack:
        # The one that this is about: nobody waits for the disk at a commit, as nobody does at a
        # write to Redis.
        server = stack.enter_context(_servers.postgres(durable=True, synchronous_commit="off"))
        report.about |= _servers.about(server)
        port = 0
        try:
            port, version = stack.enter_context(_servers.redis())
            report.about["redis-server"] = version
        except Missing:
            pass
        yield Servers(server.port or 0, port)


class _Worker:
    """A process that serves one kind."""

    def __init__(self, kind: str, servers: Servers, page: str) -> None:
        self._pipe, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(
            target=_serve, args=(theirs, kind, servers, page), daemon=True
        )
        self._process.start()
        theirs.close()
        self._pipe.recv()  # it is ready

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._pipe.close()
        self._process.join()

    def round(self, sessions: bool, requests: int) -> Callable[[], float]:
        """Return what measures a request, in microseconds."""

        def measure() -> float:
            self._pipe.send((sessions, requests))
            return float(self._pipe.recv())

        return measure


def _serve(pipe: Connection, kind: str, servers: Servers, page: str) -> None:
    base = KINDS[kind].base
    sites = {True: KINDS[kind].make(servers), False: KINDS[base].make(servers)}
    cookies = []
    for _ in range(_VISITORS):
        _, cookie = _request(sites[True], "/new", None)
        assert cookie is not None
        cookies.append(cookie)
        counts = [_request(sites[True], "/write", cookie)[0] for _ in range(2)]
        assert counts == ["1742 1", "1742 2"], f"{kind} does not keep what is written: {counts}"
    turn = itertools.cycle(cookies)
    pipe.send("ready")
    while True:
        try:
            sessions, requests = pipe.recv()
        except EOFError:
            break
        site = sites[sessions]
        start = time.perf_counter()
        for cookie in itertools.islice(turn, requests):
            _request(site, page, cookie)
        pipe.send((time.perf_counter() - start) / requests * 1e6)


def _request(site: App, page: str, cookie: str | None) -> tuple[str, str | None]:
    """Do one request; return the body, and the cookie that is set."""
    answer: list[tuple[str, list[tuple[str, str]]]] = []
    body = site(
        environ(cookie) | {"PATH_INFO": page},
        lambda status, headers, exc_info=None: answer.append((status, headers)),
    )
    text = b"".join(body).decode("utf-8")
    getattr(body, "close", lambda: None)()
    status, headers = answer[0]
    assert status.startswith("200"), status
    for name, value in headers:
        if name == "Set-Cookie":
            return text, value.partition(";")[0]
    return text, None
