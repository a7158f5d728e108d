"""The memory backend against the contract, and what is its own."""

from __future__ import annotations

import signal
import threading
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pgstore.backends.memory import MemoryBackend
from pgstore.errors import ConfigurationError
from pgstore.rows import Expiry, PGSession
from pgstore.testing import NO_TIMES, BackendContract, in_fork


class TestMemoryBackend(BackendContract):
    on = "memory"

    @pytest.fixture(autouse=True)
    def _storage(self) -> None:
        self.storage = MemoryBackend()

    def make_backend(self) -> MemoryBackend:
        return self.storage

    def make_connection(self) -> None:
        return None

    def raw_rows(self) -> list[dict[str, Any]]:
        return [asdict(row) for row in self.storage._rows.values()]

    def raw_shift(self, seconds: float) -> None:
        for row in list(self.storage._rows.values()):
            times: dict[str, Any] = {
                name: time - timedelta(seconds=seconds)
                for name in NO_TIMES
                if (time := getattr(row, name)) is not None
            }
            self.storage._rows[row.key] = replace(row, **times)


ROW = PGSession(
    key=bytes(16),
    name="session",
    generation=0,
    min_generation=0,
    secret_hash=b"",
    data=b"",
    version=1,
    max_age=0,
)
EXPIRY = Expiry(idle=10.0, lifetime=None, bucket=600.0)


def test_row_ends_with_its_expiry() -> None:
    """A row is live up to its expiry, and not at it; the clock is the one that was given."""
    now = 1_000_000_000.0
    backend = MemoryBackend(clock=lambda: now)
    assert backend.insert(ROW, EXPIRY)
    now += 9.999999
    loaded = backend.load(ROW.key)
    assert loaded
    assert loaded.now == datetime(2001, 9, 9, 1, 46, 49, 999999, tzinfo=UTC)
    now = 1_000_000_010.0
    assert backend.load(ROW.key) is None


def test_second_sweep_leaves_it_to_the_first() -> None:
    """A sweep that meets another deletes nothing."""
    second: list[list[PGSession]] = []

    def clock() -> float:
        if sweeping:
            second.append(backend.sweep(10, 0.0))
        return 0.0

    sweeping = False
    backend = MemoryBackend(clock=clock)
    assert backend.insert(ROW, replace(EXPIRY, idle=-1.0))
    sweeping = True
    assert len(backend.sweep(10, 0.0)) == 1
    assert second == [[]]


def test_forked_child_is_not_locked_out() -> None:
    """A thread that held the lock at a fork holds it in the parent only."""
    backend = MemoryBackend()
    locked, forked = threading.Event(), threading.Event()

    def hold() -> None:
        with backend.locked(ROW.key):
            locked.set()
            assert forked.wait(60)

    def child() -> None:
        signal.alarm(10)
        backend.load(ROW.key)

    thread = threading.Thread(target=hold)
    thread.start()
    assert locked.wait(10)
    try:
        assert in_fork(child) == 0
    finally:
        forked.set()
        thread.join()


def test_table_is_checked() -> None:
    """A table's name that another backend would refuse is refused here too."""
    with pytest.raises(ConfigurationError, match="cannot be the table"):
        MemoryBackend("my sessions")
