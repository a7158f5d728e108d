"""Threads that save all the time, and note what was acknowledged: nothing of that may be lost."""

from __future__ import annotations

import threading
import time
from copy import copy
from dataclasses import dataclass
from typing import Self

from pgstore import BackendError, Store
from support.stores import Browser, Visit


@dataclass(frozen=True)
class Turn:
    """One turn of a writer: when it began and ended (monotonic), and the error that it met."""

    began: float
    ended: float
    error: BackendError | None

    @property
    def took(self) -> float:
        return self.ended - self.began


class Writers:
    """Run threads that count, each in a session of its own and all together in a shared one.

    The store needs ``merge={"hits": merge.add}``. A thread stops for good when it sees what it must
    not: another's session, an empty one, or an older state than was acknowledged.
    """

    def __init__(self, store: Store, count: int) -> None:
        self._store = store
        self._shared = Browser()
        with self._shared.visit(store) as session:
            session["hits"] = 0
        self._stop = threading.Event()
        self.writers = [Writer(store, number, self._shared, self._stop) for number in range(count)]

    def __enter__(self) -> Self:
        for writer in self.writers:
            writer.start()
        self.wait_for_turns()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        for writer in self.writers:
            writer.join()

    def wait_for_turns(self, *, timeout: float = 30.0) -> None:
        """Wait until every thread has ended a turn without an error that began after this call."""
        begin = time.monotonic()
        while not all(writer.well_since(begin) for writer in self.writers):
            self.check()
            assert time.monotonic() - begin < timeout, "a writer does not get through"
            time.sleep(0.005)

    def wait_for_errors(self, *, timeout: float = 30.0) -> None:
        """Wait until every thread has met an error after this call."""
        begin = time.monotonic()
        while not all(writer.failed_since(begin) for writer in self.writers):
            self.check()
            assert time.monotonic() - begin < timeout, "a writer meets no error"
            time.sleep(0.005)

    def turns(self, begin: float, end: float) -> list[Turn]:
        """Return the turns that began and ended between two times."""
        return [
            turn
            for writer in self.writers
            for turn in list(writer.turns)
            if begin <= turn.began and turn.ended <= end
        ]

    def back(self, down: float) -> float:
        """Return when the last of the threads had its first turn since ``down`` without error."""
        return max(
            min(t.ended for t in list(w.turns) if t.began >= down and t.error is None)
            for w in self.writers
        )

    @property
    def acknowledged(self) -> int:
        """How many saves have returned."""
        return sum(writer.saved + writer.hits for writer in self.writers)

    @property
    def unknown(self) -> int:
        """How many saves have raised with ``outcome_unknown``."""
        return sum(writer.unknown for writer in self.writers)

    def check(self) -> None:
        """Raise what a thread saw and must not see."""
        for writer in self.writers:
            if writer.failure is not None:
                raise writer.failure

    def check_all_is_there(self, store: Store | None = None) -> None:
        """Assert, after the end, that each save was done that returned, and no other one twice."""
        self.check()
        store = store or self._store
        for writer in self.writers:
            writer.look(Visit(writer.browser, store))
        hits = Visit(self._shared, store).session["hits"]
        sure = sum(writer.hits for writer in self.writers)
        unsure = sum(writer.unknown_hits for writer in self.writers)
        assert sure <= hits <= sure + unsure


class Writer(threading.Thread):
    """One thread of `Writers`. ``saved`` and ``hits`` count its saves that returned."""

    def __init__(self, store: Store, number: int, shared: Browser, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.browser = Browser()
        self.turns: list[Turn] = []
        self.saved = self.hits = self.unknown = self.unknown_hits = 0
        self.failure: BaseException | None = None
        self._store = store
        self._number = number
        self._shared = copy(shared)
        self._stop_event = stop
        self._acknowledged = self._tried = 0
        with self.browser.visit(store) as session:
            session["owner"], session["n"] = number, 0

    def well_since(self, begin: float) -> bool:
        return any(turn.began >= begin and turn.error is None for turn in self.turns[-3:])

    def failed_since(self, begin: float) -> bool:
        return any(turn.began >= begin and turn.error is not None for turn in self.turns[-3:])

    def look(self, visit: Visit) -> None:
        """Assert that the session is the writer's own, and as new as it has to be."""
        session = visit.session
        assert session.error is None
        assert session["owner"] == self._number
        assert self._acknowledged <= session["n"] <= self._tried

    def run(self) -> None:
        while not self._stop_event.is_set():
            began, error = time.monotonic(), None
            try:
                self._count_mine()
                self._count_ours()
            except BackendError as caught:
                error = caught
                self.unknown += caught.outcome_unknown
            except BaseException as failure:
                self.failure = failure
                return
            self.turns.append(Turn(began, time.monotonic(), error))
            self._stop_event.wait(0.02 if error else 0.001)

    def _count_mine(self) -> None:
        visit = Visit(self.browser, self._store)
        self.look(visit)
        self._tried = visit.session["n"] = visit.session["n"] + 1
        visit.save()
        self._acknowledged = self._tried
        self.saved += 1

    def _count_ours(self) -> None:
        visit = Visit(self._shared, self._store)
        visit.session["hits"] += 1
        try:
            visit.save()
        except BackendError as error:
            self.unknown_hits += error.outcome_unknown
            raise
        self.hits += 1
