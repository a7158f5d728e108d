"""Data under tokens in this process's memory: for tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from ..forks import in_forked_child
from ..rows import check_table

__all__ = ["MemoryTokens"]


class MemoryTokens:
    """Keep data in a dict: the reference implementation of `TokenBackend`.

    A forked child goes on with a copy of its own. ``clock`` returns Unix seconds.
    """

    def __init__(
        self, table: str = "http_tokens", *, clock: Callable[[], float] = time.time
    ) -> None:
        self.table = check_table(table)
        self._clock = clock
        self._rows: dict[bytes, tuple[bytes, datetime]] = {}
        self._make_lock()
        in_forked_child(self._make_lock)

    def find(self, key: bytes) -> bytes | None:
        with self._lock:
            data, expires_on = self._rows.get(key, (b"", None))
            return data if expires_on is not None and expires_on > self._now() else None

    def commit(self, key: bytes, data: bytes, expiry: timedelta | datetime) -> None:
        with self._lock:
            expires_on = expiry if isinstance(expiry, datetime) else self._now() + expiry
            self._rows[key] = (data, expires_on)

    def delete(self, key: bytes) -> None:
        with self._lock:
            self._rows.pop(key, None)

    def page(self, after: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        with self._lock:
            now = self._now()
            return [
                (key, data)
                for key, (data, expires_on) in sorted(self._rows.items())
                if expires_on > now and (after is None or key > after)
            ][:limit]

    def sweep(self, limit: int) -> list[bytes]:
        with self._lock:
            now = self._now()
            dead = [key for key, (_, expires_on) in self._rows.items() if expires_on <= now]
            for key in dead[:limit]:
                del self._rows[key]
            return dead[:limit]

    def apply_schema(self) -> None:
        """Do nothing: there is no table."""

    def check_schema(self) -> None:
        """Do nothing: there is no table."""

    def close(self) -> None:
        """Do nothing: the data lives as long as this object."""

    def _make_lock(self) -> None:
        self._lock = threading.Lock()

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)
