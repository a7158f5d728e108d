"""A crowd: threads in several processes, all at work on one session, each save's cost noted.

What runs in another process is a function of this module, which that process can import.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier, Lock
from typing import Any

from pgstore import PGStore, SQLAlchemyStore, SQLiteStore, Store
from support.sqlalchemy_labs import MariaDBLab
from support.stores import KEYS, Browser, Lab, PostgresLab, SQLiteLab, Visit

# A fork would take the threads' locks of the test run with it.
_SPAWN = multiprocessing.get_context("spawn")
_PATIENCE = 240.0

MakeStore = Callable[[], Store]


def maker(lab: Lab, **settings: Any) -> MakeStore:
    """Return what makes a store on the lab's storage, in this process or in another."""
    if isinstance(lab, PostgresLab):
        return partial(PGStore, lab.dsn, *KEYS, db_schema=lab.schema, **settings)
    if isinstance(lab, MariaDBLab):
        return partial(SQLAlchemyStore, lab.url, *KEYS, **settings)
    assert isinstance(lab, SQLiteLab)
    return partial(SQLiteStore, lab.path, *KEYS, **settings)


def elsewhere(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of a module that can be imported, in a new process; return what it does."""
    receive, send = _SPAWN.Pipe(duplex=False)
    process = _SPAWN.Process(target=_answer, args=(send, function, arguments), daemon=True)
    process.start()
    send.close()
    return _outcome(process, receive)


def delete(make: MakeStore, key: bytes) -> bool:
    """Delete a row as an operator would who revokes a session; tell whether there was one."""
    with make() as store:
        return store.backend.delete(key) is not None


class Traced:
    """A backend that notes the verbs of each thread, one letter each.

    ``l`` load, ``i`` insert, ``u`` update, ``t`` touch, ``d`` delete; what is done under the row's
    lock is in brackets.
    """

    def __init__(self, backend: Any, notes: threading.local | None = None) -> None:
        self._backend = backend
        self._notes = notes if notes is not None else threading.local()

    def take(self) -> str:
        """Return what this thread has done since it last asked."""
        taken = getattr(self._notes, "text", "")
        self._notes.text = ""
        return taken

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._backend, name)
        if name not in ("load", "insert", "update", "touch", "delete"):
            return method

        def verb(*args: Any, **kwargs: Any) -> Any:
            self._note(name[0])
            return method(*args, **kwargs)

        return verb

    @contextmanager
    def locked(self, key: bytes) -> Iterator[Traced]:
        self._note("[")
        with self._backend.locked(key) as inside:
            yield Traced(inside, self._notes)
        self._note("]")

    def _note(self, letter: str) -> None:
        self._notes.text = getattr(self._notes, "text", "") + letter


@dataclass(frozen=True)
class Member:
    """One thread of the crowd, at its task."""

    store: Store
    browser: Browser
    number: int
    turns: int
    lock: Lock

    def visit(self) -> Visit:
        return Visit(copy(self.browser), self.store)

    def trace(self) -> str:
        backend = self.store.backend
        assert isinstance(backend, Traced)
        return backend.take()


Task = Callable[[Member], Any]


def run(
    make: MakeStore, browser: Browser, task: Task, *, processes: int, threads: int, turns: int
) -> list[Any]:
    """Let every thread of every process do its task, all from one start; return what each did."""
    barrier, lock = _SPAWN.Barrier(processes * threads), _SPAWN.Lock()
    crew = []
    for first in range(0, processes * threads, threads):
        receive, send = _SPAWN.Pipe(duplex=False)
        numbers = range(first, first + threads)
        arguments = (make, browser, task, numbers, turns, barrier, lock)
        process = _SPAWN.Process(target=_answer, args=(send, _work, arguments), daemon=True)
        process.start()
        send.close()
        crew.append((process, receive))
    return [result for process, receive in crew for result in _outcome(process, receive)]


def _work(
    make: MakeStore,
    browser: Browser,
    task: Task,
    numbers: range,
    turns: int,
    barrier: Barrier,
    lock: Lock,
) -> list[Any]:
    with make() as store:
        store._backend = Traced(store.backend)

        def member(number: int) -> Any:
            barrier.wait(_PATIENCE)
            return task(Member(store, browser, number, turns, lock))

        with ThreadPoolExecutor(len(numbers)) as pool:
            return list(pool.map(member, numbers))


def _answer(send: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        answer = True, function(*arguments)
    except BaseException:
        answer = False, traceback.format_exc()
    send.send(answer)


def _outcome(process: Any, receive: Connection) -> Any:
    try:
        done, result = receive.recv() if receive.poll(_PATIENCE) else (False, "no answer in time")
    except EOFError:
        done, result = False, "the process died"
    if not done:
        process.terminate()
    process.join()
    receive.close()
    assert done, result
    return result


# -- tasks ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """What `write` did: a trace for each save, and when the last one was stored, and what."""

    traces: list[str]
    modified_on: datetime
    last: tuple[int, int]


def write(member: Member) -> Written:
    """In each turn set a bit of the thread's own, count to ``hits``, and overwrite ``last``.

    The bit lies in a list in a dict, and is set there in place.
    """
    traces, me = [], f"thread {member.number}"
    for turn in range(member.turns):
        visit = member.visit()
        own = visit.session.values.setdefault(me, {"turns": [0]})
        assert own["turns"][0] == (1 << turn) - 1, "the thread's own writes are all there"
        own["turns"][0] |= 1 << turn
        visit.session["hits"] += 1
        visit.session["last"] = member.number, turn
        visit.save()
        assert visit.session["last"] == (member.number, turn), "the later save wins"
        traces.append(member.trace())
    assert visit.session._base
    modified_on = visit.session._base.row.modified_on
    assert modified_on
    return Written(traces, modified_on, (member.number, member.turns - 1))


@dataclass(frozen=True)
class Shown:
    """One request that took messages: the list that it was given, as it was after the save; when
    that was (monotonic, one clock for all processes of a machine); and how many messages the list
    held before the save.
    """

    messages: list[Any]
    saved: float
    in_hand: int


def flash(member: Member) -> list[Shown]:
    """In each turn show what messages there are, and add one, in one request."""
    return [_show(member, add=(member.number, turn)) for turn in range(member.turns)]


def flash_in_turn(member: Member) -> list[Shown]:
    """In each turn add a message beside all others, and show what there is while nobody else
    does.
    """
    shown = []
    for turn in range(member.turns):
        adding = member.visit()
        adding.session.add_flash((member.number, turn))
        adding.save()
        with member.lock:
            shown.append(_show(member))
    return shown


def _show(member: Member, *, add: Any = None) -> Shown:
    visit = member.visit()
    messages = visit.session.flashes()
    in_hand = len(messages)
    if add is not None:
        visit.session.add_flash(add)
    visit.save()
    return Shown(messages, time.monotonic(), in_hand)
