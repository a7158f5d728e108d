from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from itertools import islice
from threading import Event
from typing import Any

import pytest

from pgstore.backends.memory import MemoryBackend
from pgstore.cleanup import Cleaner, SweepResult
from pgstore.errors import BackendError, ConfigurationError
from pgstore.forks import in_forked_child
from pgstore.hooks import Hooks
from pgstore.options import Expiry
from pgstore.rows import PGSession

SOON = 0.001  # seconds between sweeps: the tests wait for sweeps, never for time
SOME_SECONDS = 10.0  # after which a test fails rather than hangs
BATCH = 100


class FakeBackend:
    """Sweeps so many rows as it is told to: each answer once, then 0. Exceptions are raised."""

    def __init__(self, *answers: Any) -> None:
        self.calls: list[tuple[int, float]] = []
        self._answers = iter(answers)
        self._swept = threading.Semaphore(0)

    def sweep(self, limit: int, horizon: float) -> list[Any]:
        self.calls.append((limit, horizon))
        answer = next(self._answers, 0)
        self._swept.release()
        if callable(answer):
            answer = answer()
        if isinstance(answer, Exception):
            raise answer
        return [object()] * answer

    def wait(self, sweeps: int = 1) -> None:
        """Wait for so many sweeps more."""
        for _ in range(sweeps):
            assert self._swept.acquire(timeout=SOME_SECONDS)


class FakeStop(Event):
    """A stop event on which no time is waited: it notes for how long it would have been."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.pauses.append(timeout)
        return self.is_set()


def cleaner_of(backend: Any) -> Cleaner:
    return Cleaner(backend, lambda: 42.0, Hooks())


def sweepers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "pgstore-cleanup"}


def join_sweepers() -> None:
    for thread in sweepers():
        thread.join(SOME_SECONDS)
    assert sweepers() == set()


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    join_sweepers()


# -- one sweep -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "deleted", "calls"),
    [
        ([0], 0, 1),
        ([7], 7, 1),
        ([BATCH - 1], BATCH - 1, 1),
        ([BATCH, BATCH, 3], 2 * BATCH + 3, 3),
        ([BATCH, 0], BATCH, 2),
    ],
)
def test_a_sweep_goes_on_until_a_batch_is_short(
    answers: list[int], deleted: int, calls: int
) -> None:
    """Batches follow one another until one is not full, or another process is found to be at it."""
    backend = FakeBackend(*answers)
    assert cleaner_of(backend).sweep() == deleted
    assert backend.calls == [(BATCH, 42.0)] * calls


def test_a_sweep_reads_the_horizon_anew() -> None:
    """How far the index is read follows the store's settings, batch by batch."""
    horizons = iter([1.0, 2.0, 3.0])
    backend = FakeBackend(BATCH, BATCH, 0)
    Cleaner(backend, lambda: next(horizons), Hooks()).sweep()
    assert backend.calls == [(BATCH, 1.0), (BATCH, 2.0), (BATCH, 3.0)]


def test_a_sweep_ends_early_when_it_is_stopped() -> None:
    """A stop that comes during a long sweep waits for one batch, not for all of them."""
    stop = Event()

    def full_batch_and_stop() -> int:
        stop.set()
        return BATCH

    backend = FakeBackend(BATCH, full_batch_and_stop, BATCH, BATCH)
    assert cleaner_of(backend).sweep(stop) == 2 * BATCH


def test_a_sweep_rests_as_long_as_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """After each full batch the requests have the database to themselves for as long as it took."""
    now = [100.0]

    def batch_of(seconds: float, rows: int) -> Any:
        def answer() -> int:
            now[0] += seconds
            return rows

        return answer

    monkeypatch.setattr("pgstore.cleanup.time.monotonic", lambda: now[0])
    stop = FakeStop()
    backend = FakeBackend(batch_of(0.25, BATCH), batch_of(4.0, BATCH), batch_of(1.0, 3))
    cleaner_of(backend).sweep(stop)
    assert stop.pauses == [0.25, 4.0]


def test_an_error_of_a_sweep_by_hand_is_raised() -> None:
    """`delete_expired` tells its caller that the storage failed."""
    with pytest.raises(BackendError, match="down"):
        cleaner_of(FakeBackend(BATCH, BackendError("down"))).sweep()


def test_expired_rows_go_and_live_ones_stay() -> None:
    """More expired rows than a batch holds are deleted by one sweep of a real backend."""
    now = [1_700_000_000.0]
    backend = MemoryBackend(clock=lambda: now[0])
    row = PGSession(
        key=b"",
        name="sid",
        generation=0,
        min_generation=0,
        secret_hash=bytes(32),
        data=b"",
        version=1,
        max_age=60,
    )
    for number in range(BATCH + 10):
        idle = 3600.0 if number % 2 else 60.0
        expiry = Expiry(idle=idle, lifetime=None, bucket=600.0)
        backend.insert(replace(row, key=number.to_bytes(16, "big")), expiry)
    now[0] += 1800
    cleaner = Cleaner(backend, lambda: 600.0, Hooks())
    assert cleaner.sweep() == (BATCH + 10) // 2
    assert cleaner.sweep() == 0
    assert len(backend.scan(None, 2 * BATCH)) == (BATCH + 10) // 2


# -- in the background -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "interval", [SOON, timedelta(milliseconds=1)], ids=["seconds", "timedelta"]
)
def test_a_cleanup_sweeps_again_and_again(interval: float | timedelta) -> None:
    """`start` sweeps in a daemon thread until it is stopped, and not once more."""
    backend = FakeBackend()
    cleaner = cleaner_of(backend)
    quit, done = cleaner.start(interval)
    backend.wait(3)
    (thread,) = sweepers()
    assert thread.daemon
    cleaner.stop(quit, done)
    swept = len(backend.calls)
    thread.join(SOME_SECONDS)
    assert (quit.is_set(), done.is_set(), sweepers()) == (True, True, set())
    assert len(backend.calls) == swept


@pytest.mark.parametrize("interval", [0, 0.0, timedelta(0)])
def test_an_interval_of_0_is_off(interval: float | timedelta) -> None:
    """With 0 no thread starts; the events are there all the same, and results end at once."""
    backend = FakeBackend()
    cleaner = cleaner_of(backend)
    quit, done = cleaner.start(interval)
    assert list(cleaner.run(Event(), interval)) == []
    assert (quit.is_set(), done.is_set(), sweepers()) == (False, True, set())
    cleaner.stop(quit, done)
    assert backend.calls == []


@pytest.mark.parametrize(
    "interval", [-1, -0.001, timedelta(seconds=-1), float("nan"), float("inf"), True, "5", None]
)
@pytest.mark.parametrize("background", ["start", "run"])
def test_an_interval_that_does_not_fit_is_refused(background: str, interval: Any) -> None:
    """A negative interval, or what is no number of seconds, raises at once and starts nothing."""
    cleaner = cleaner_of(FakeBackend())
    arguments = (interval,) if background == "start" else (Event(), interval)
    with pytest.raises(ConfigurationError, match=r"^interval must be "):
        getattr(cleaner, background)(*arguments)
    assert sweepers() == set()


def test_the_interval_has_jitter() -> None:
    """Processes that started at once drift apart: each pause is up to a tenth off, at random."""
    stop, backend = FakeStop(), FakeBackend()
    cleaner_of(backend).run(stop, 300)
    backend.wait(100)
    stop.set()
    join_sweepers()
    assert 270 <= min(stop.pauses) < 285
    assert 315 < max(stop.pauses) <= 330


def test_a_cleanup_goes_on_after_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """A failed sweep is logged, and tried again at the next interval."""
    caplog.set_level(logging.INFO, "pgstore")
    backend = FakeBackend(BackendError("down"), ZeroDivisionError("a bug"), 3, 0)
    cleaner = cleaner_of(backend)
    quit, done = cleaner.start(SOON)
    backend.wait(5)
    cleaner.stop(quit, done)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "deleting expired sessions failed, and is tried again: down"),
        ("WARNING", "deleting expired sessions failed, and is tried again: a bug"),
        ("INFO", "deleted 3 expired sessions"),
    ]


def test_stopping_again_is_no_error() -> None:
    """`stop` may be called any number of times (Go's `StopCleanup` hung at the second)."""
    cleaner = cleaner_of(FakeBackend())
    quit, done = cleaner.start(SOON)
    for _ in range(3):
        cleaner.stop(quit, done)
    assert done.is_set()


def test_many_threads_may_stop_one_cleanup() -> None:
    """`stop` may be called from any thread, by many at once, and returns in each."""
    cleaner = cleaner_of(FakeBackend())
    quit, done = cleaner.start(SOON)
    together = threading.Barrier(8)

    def stop() -> bool:
        together.wait(SOME_SECONDS)
        cleaner.stop(quit, done)
        return done.is_set()

    with ThreadPoolExecutor(8) as pool:
        stops = [pool.submit(stop) for _ in range(8)]
        assert [stop.result(SOME_SECONDS) for stop in stops] == [True] * 8


def test_stopping_waits_for_the_sweep_under_way() -> None:
    """`stop` waits for a batch to end, no other follows it, and the storage is left alone."""
    finish, order = Event(), []

    def slow() -> int:
        assert finish.wait(SOME_SECONDS)
        order.append("swept")
        return BATCH

    backend = FakeBackend(slow)
    cleaner = cleaner_of(backend)
    quit, done = cleaner.start(SOON)
    backend.wait()

    def stop() -> None:
        cleaner.stop(quit, done)
        order.append("stopped")

    stopper = threading.Thread(target=stop)
    stopper.start()
    assert quit.wait(SOME_SECONDS)
    assert not done.is_set()
    finish.set()
    stopper.join(SOME_SECONDS)
    assert order == ["swept", "stopped"]
    assert len(backend.calls) == 1


def test_closing_stops_everything_that_was_started() -> None:
    """`close` ends every cleanup and every run of its store, twice if need be."""
    backend, stop = FakeBackend(), Event()
    cleaner = cleaner_of(backend)
    events = [cleaner.start(SOON), cleaner.start(SOON)]
    results = cleaner.run(stop, SOON)
    backend.wait(9)
    cleaner.close()
    cleaner.close()
    assert [done.is_set() for _, done in events] == [True, True]
    assert stop.is_set()
    assert all(result == SweepResult() for result in results)


def test_a_cleanup_may_be_started_again() -> None:
    """After `stop` or `close` a new cleanup runs as the first did."""
    backend = FakeBackend()
    cleaner = cleaner_of(backend)
    for end in (cleaner.stop, lambda *_: cleaner.close()):
        quit, done = cleaner.start(SOON)
        backend.wait(2)
        end(quit, done)
        assert done.is_set()


def test_a_thread_that_cannot_start_leaves_nothing_to_wait_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the system gives no thread `start` raises, and `close` does not wait for it."""

    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    cleaner = cleaner_of(FakeBackend())
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            cleaner.start(SOON)
    closing = threading.Thread(target=cleaner.close, daemon=True)
    closing.start()
    closing.join(SOME_SECONDS)
    assert not closing.is_alive()


# -- with results ----------------------------------------------------------------------------------


def test_a_run_yields_a_result_per_sweep() -> None:
    """Each sweep's count or error comes in order, until the stop, after which it ends."""
    error, stop = BackendError("down"), Event()
    results = cleaner_of(FakeBackend(BATCH, 2, error, 0, 5)).run(stop, SOON)
    assert list(islice(results, 4)) == [
        SweepResult(deleted=BATCH + 2),
        SweepResult(error=error),
        SweepResult(),
        SweepResult(deleted=5),
    ]
    stop.set()
    assert {result.error for result in results} <= {None}


def test_a_run_that_is_stopped_before_it_starts_yields_nothing() -> None:
    """A stop that is set already means no sweep at all."""
    stop, backend = Event(), FakeBackend(7)
    stop.set()
    assert list(cleaner_of(backend).run(stop, SOON)) == []
    assert backend.calls == []


def test_a_run_that_nobody_reads_keeps_sweeping(caplog: pytest.LogCaptureFixture) -> None:
    """Without a reader sweeps go on and the oldest results go (Go's `RunCleanup` stalled)."""
    caplog.set_level(logging.INFO, "pgstore")
    stop, numbers = Event(), iter(range(1, 151))

    def count() -> int:
        number = next(numbers)
        if number == 150:
            stop.set()
        return 1 + number % 90  # never a whole batch

    results = cleaner_of(FakeBackend(*[count] * 150)).run(stop, SOON)
    join_sweepers()
    assert [result.deleted for result in results] == [1 + number % 90 for number in range(52, 151)]
    assert len(caplog.records) == 150


# -- forks -----------------------------------------------------------------------------------------

# Python 3.12 and later warn of any fork with threads about, for the sake of locks that a thread
# holds: those are what these tests are about.
forks = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"
)


def in_child(check: Callable[[], None]) -> None:
    """Fork, run ``check`` in the child, and fail unless it came to its end there."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(int(2 * SOME_SECONDS))  # what hangs is killed, and seen
        status = 1
        try:
            check()
            status = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            raise
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


class PipeBackend:
    """Tells of each sweep through a pipe: no lock that could be held at a fork.

    ``hold`` is a descriptor that a sweep reads from before it ends, to stay under way.
    """

    def __init__(self, hold: int | None = None) -> None:
        self._hold = hold
        self.renew()

    def renew(self) -> None:
        self._read, self._write = os.pipe()

    def sweep(self, limit: int, horizon: float) -> list[Any]:
        os.write(self._write, b".")
        if self._hold is not None:
            os.read(self._hold, 1)
        return []

    def wait(self) -> None:
        assert os.read(self._read, 1) == b"."


@forks
def test_a_cleanup_starts_anew_in_a_child() -> None:
    """In a forked child the cleanup goes on, ends there at a stop, and the parent's goes on too."""
    backend = PipeBackend()
    cleaner = cleaner_of(backend)
    quit, done = cleaner.start(SOON)
    backend.wait()

    def check() -> None:
        backend.renew()  # for the child's own sweeps
        backend.wait()
        assert len(sweepers()) == 1
        cleaner.stop(quit, done)
        cleaner.stop(quit, done)
        join_sweepers()

    in_child(check)
    assert not quit.is_set()
    backend.renew()
    backend.wait()
    cleaner.stop(quit, done)


@forks
def test_a_cleanup_starts_anew_in_a_childs_child() -> None:
    """A server that forks twice, as a daemon does, has its cleanup in the end."""
    backend = PipeBackend()
    cleaner = cleaner_of(backend)
    quit, done = cleaner.start(SOON)

    def check() -> None:
        backend.renew()
        backend.wait()
        cleaner.close()
        join_sweepers()

    in_child(lambda: in_child(check))
    cleaner.stop(quit, done)


@forks
def test_a_cleanup_that_was_stopped_stays_stopped_in_a_child() -> None:
    """A child of a process that has stopped its cleanup starts none, and may stop it again."""
    cleaner = cleaner_of(FakeBackend())
    quit, done = cleaner.start(SOON)
    cleaner.stop(quit, done)
    join_sweepers()

    def check() -> None:
        assert sweepers() == set()
        cleaner.stop(quit, done)

    in_child(check)


@forks
def test_a_cleanup_that_is_being_stopped_ends_in_a_child() -> None:
    """With a sweep under way at the fork that is not to be followed by another, none is."""
    held, release = os.pipe()
    backend = PipeBackend(held)
    cleaner = cleaner_of(backend)
    stop = Event()
    quit, done = cleaner.start(SOON)
    results = cleaner.run(stop, SOON)
    backend.wait()
    backend.wait()
    quit.set()
    stop.set()

    def check() -> None:
        cleaner.stop(quit, done)
        assert list(results) == []
        cleaner.close()
        join_sweepers()

    in_child(check)
    os.write(release, b"..")
    assert done.wait(SOME_SECONDS)
    assert list(results) == [SweepResult()]


@forks
def test_locks_that_are_held_at_a_fork_hold_up_no_child() -> None:
    """A thread that was using the events at the fork is not there to let go of them."""
    backend = PipeBackend()
    cleaner = cleaner_of(backend)
    quit, done = cleaner.start(SOON)
    backend.wait()

    def check() -> None:
        backend.renew()
        backend.wait()
        cleaner.stop(quit, done)

    # What `Event.set` and `Event.wait` hold for a moment.
    with quit._cond, done._cond:
        in_child(check)
    cleaner.stop(quit, done)


class Listener:
    def __init__(self) -> None:
        self.calls: list[int] = []

    def note(self) -> None:
        self.calls.append(os.getpid())


@forks
def test_a_method_is_called_in_every_child_while_its_object_lives() -> None:
    """`in_forked_child` runs in the child only, before anything else, and keeps nothing alive."""
    listener, gone = Listener(), Listener()
    calls_of_gone = gone.calls
    for each in (listener, gone):
        in_forked_child(each.note)
    del each, gone
    gc.collect()

    def check() -> None:
        assert listener.calls == [os.getpid()]
        assert calls_of_gone == []
        first = os.getpid()

        def check_again() -> None:
            assert listener.calls == [first, os.getpid()]

        in_child(check_again)

    in_child(check)
    assert listener.calls == []
