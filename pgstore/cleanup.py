"""Deleting expired rows: in batches, one process at a time, in the background when asked."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from queue import SimpleQueue
from threading import Event
from typing import Protocol

from .errors import BackendError, ConfigurationError
from .forks import in_forked_child
from .hooks import Hooks
from .options import seconds
from .rows import PGSession

__all__ = ["Cleaner", "SweepResult"]

_log = logging.getLogger("pgstore")

# Small, so that no request waits long for a core that deletes.
_BATCH_ROWS = 100
# So that many processes that were started at once do not sweep at once for ever.
_JITTER = 0.1
_RESULTS_KEPT = 100


@dataclass(frozen=True, slots=True)
class SweepResult:
    """What one sweep did: ``deleted`` rows, or the ``error`` that ended it."""

    deleted: int = 0
    error: Exception | None = None


class Sweepable(Protocol):
    """What a `Cleaner` sweeps: a `Backend`, or another table."""

    def sweep(self, limit: int, horizon: float) -> list[PGSession]: ...


class Cleaner:
    """The sweeps of one store.

    ``what`` is what the log calls the rows.
    ``horizon`` gives how far ahead of now, in seconds, the index is read (see `Backend.sweep`).
    Threads are daemons; they are started by `start` and `run` only.
    """

    def __init__(
        self,
        backend: Sweepable,
        horizon: Callable[[], float],
        hooks: Hooks,
        *,
        what: str = "sessions",
    ) -> None:
        self._what = what
        self._backend = backend
        self._hooks = hooks
        self._horizon = horizon
        self._loops: list[_Loop] = []
        self._closed = False
        self._hooked = False

    def sweep(self, stop: Event | None = None) -> int:
        """Delete what has expired, batch after batch, and return the count.

        Rests after each batch for as long as it took: the requests have half of the database at
        least. Ends early when ``stop`` is set, and at once when another process is at it. Raises
        `BackendError`.
        """
        total = 0
        stop = stop or Event()
        while not stop.is_set():
            begin = time.monotonic()
            deleted = self._backend.sweep(_BATCH_ROWS, self._horizon())
            took = time.monotonic() - begin
            total += len(deleted)
            self._hooks.fire(deleted, "expired")
            if len(deleted) < _BATCH_ROWS:
                break
            stop.wait(took)
        return total

    def start(self, interval: float | timedelta) -> tuple[Event, Event]:
        """Start sweeping in the background; see `Store.cleanup`."""
        quit, done = Event(), Event()
        pause = _check_interval(interval)
        if pause == 0:
            done.set()
        else:
            self._launch(_Loop(self, quit, done, pause, self._log))
        return quit, done

    def stop(self, quit: Event, done: Event) -> None:
        """Set ``quit`` and wait for ``done``; see `Store.stop_cleanup`."""
        quit.set()
        # A callback for an expired session runs in the thread that would be waited for.
        if not any(loop.done is done and loop.is_current() for loop in self._loops):
            done.wait()

    def run(self, stop: Event, interval: float | timedelta) -> Iterator[SweepResult]:
        """Sweep until ``stop`` is set, yielding a result per sweep; see `Store.run_cleanup`."""
        pause = _check_interval(interval)
        results = _Results(self._log)
        if pause == 0:
            results.put(None)
        else:
            self._launch(_Loop(self, stop, Event(), pause, results.put))
        return results.take()

    def close(self) -> None:
        """Stop everything that was started, and wait for it. Nothing is started afterwards."""
        self._closed = True
        for loop in list(self._loops):
            self.stop(loop.quit, loop.done)

    def _log(self, result: SweepResult | None) -> None:
        if result is None:
            return
        if result.error is not None:
            _log.warning(
                "deleting expired %s failed, and is tried again: %s", self._what, result.error
            )
        elif result.deleted:
            _log.info("deleted %d expired %s", result.deleted, self._what)

    def _launch(self, loop: _Loop) -> None:
        if self._closed:
            raise BackendError("the store is closed")
        if not self._hooked:
            self._hooked = True
            in_forked_child(self._restart_in_child)
        loop.start()  # first: `close` would wait for ever for one that could not start
        self._loops.append(loop)

    def _restart_in_child(self) -> None:
        for loop in self._loops:
            # A thread of the parent may have held their locks at the fork, and no thread came
            # along.
            for event in (loop.quit, loop.done):
                is_set = event.is_set()
                Event.__init__(event)
                if is_set:
                    event.set()
            if not loop.done.is_set():
                loop.start()


class _Loop:
    """One background thread: reports each sweep until ``quit``, then None, and sets ``done``."""

    def __init__(
        self,
        cleaner: Cleaner,
        quit: Event,
        done: Event,
        pause: float,
        report: Callable[[SweepResult | None], None],
    ) -> None:
        self.quit, self.done = quit, done
        self._cleaner = cleaner
        self._pause = pause
        self._report = report
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="pgstore-cleanup", daemon=True)
        self._thread.start()

    def is_current(self) -> bool:
        """Tell whether this is the thread that asks."""
        return threading.current_thread() is self._thread

    def _run(self) -> None:
        try:
            while not self.quit.wait(self._pause * _jitter()):
                try:
                    result = SweepResult(deleted=self._cleaner.sweep(self.quit))
                except Exception as error:  # noqa: BLE001 - reported; sweeping goes on
                    result = SweepResult(error=error)
                self._report(result)
        finally:
            self._report(None)
            self.done.set()


class _Results:
    """Holds the latest results for a reader who may never come."""

    def __init__(self, log: Callable[[SweepResult | None], None]) -> None:
        self._log = log
        self._queue: SimpleQueue[SweepResult | None] = SimpleQueue()

    def put(self, result: SweepResult | None) -> None:
        self._log(result)
        if self._queue.qsize() >= _RESULTS_KEPT:
            self._queue.get()
        self._queue.put(result)

    def take(self) -> Iterator[SweepResult]:
        while (result := self._queue.get()) is not None:
            yield result


def _jitter() -> float:
    return random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - no secret


def _check_interval(interval: float | timedelta) -> float:
    pause = seconds(interval, "interval")
    if pause < 0 or pause > threading.TIMEOUT_MAX:
        raise ConfigurationError(f"interval must be 0 (off) or more seconds, not {pause:g}")
    return pause
