"""Rows in this process's memory: for tests, for trying out, and to read what a backend does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from ..errors import ConfigurationError
from ..forks import in_forked_child
from ..rows import Expiry, Loaded, PGSession, Stats, UserStats, check_table, expiry_times
from .memory_tokens import MemoryTokens

__all__ = ["MemoryBackend"]


class MemoryBackend:
    """Keep rows in a dict: the reference implementation of `pgstore.rows.Backend`.

    Nothing outlives the process, and other processes see nothing: a forked child goes on with a
    copy of its own. ``clock`` stands for the database's clock and returns Unix seconds. ``locked``
    holds every row, not only the one that was asked for.
    """

    def __init__(
        self, table: str = "http_sessions", *, clock: Callable[[], float] = time.time
    ) -> None:
        self.table = check_table(table)
        self._clock = clock
        self._rows: dict[bytes, PGSession] = {}
        self._tokens: dict[str, MemoryTokens] = {}
        self._make_locks()
        # A fork copies a lock as it is, but not the thread that holds it and would release it.
        in_forked_child(self._make_locks)

    def load(self, key: bytes) -> Loaded | None:
        with self._lock:
            now = self._now()
            row = self._live(key, now)
            return None if row is None else Loaded(_copy(row), now)

    def insert(self, row: PGSession, expiry: Expiry) -> PGSession | None:
        with self._lock:
            if row.key in self._rows:
                return None
            now = self._now()
            expires_on, gc_after = expiry_times(now, now, expiry)
            return self._store(
                row.but(
                    created_on=now,
                    modified_on=now,
                    seen_on=now,
                    expires_on=expires_on,
                    gc_after=gc_after,
                    authenticated_on=None if row.user_key is None else now,
                    renewed_on=None,
                )
            )

    def update(
        self,
        row: PGSession,
        version: int,
        expiry: Expiry | None,
        *,
        login: bool = False,
        renew: bool = False,
        data_only: bool = False,
    ) -> PGSession | None:
        with self._lock:
            now = self._now()
            old = self._live(row.key, now)
            if old is None or old.version != version:
                return None
            new = row.but(
                created_on=old.created_on,
                modified_on=now,
                seen_on=old.seen_on,
                expires_on=old.expires_on,
                gc_after=old.gc_after,
                authenticated_on=now if login else old.authenticated_on,
                renewed_on=now if renew else old.renewed_on,
            )
            return self._store(new if expiry is None else _seen(new, now, expiry))

    def touch(self, row: PGSession, expiry: Expiry) -> PGSession | None:
        with self._lock:
            now = self._now()
            old = self._live(row.key, now)
            if old is None or (old.generation, old.seen_on) != (row.generation, row.seen_on):
                return None
            new = self._store(_seen(old, now, expiry))
            return row.but(seen_on=new.seen_on, expires_on=new.expires_on, gc_after=new.gc_after)

    def delete(
        self,
        key: bytes,
        *,
        version: int | None = None,
        generation: int | None = None,
        user_key: str | None = None,
    ) -> PGSession | None:
        with self._lock:
            row = self._live(key, self._now())
            if (
                row is None
                or (version is not None and row.version != version)
                or (generation is not None and generation < row.min_generation)
                or (user_key is not None and row.user_key != user_key)
            ):
                return None
            del self._rows[key]
            return row.but(data=b"")

    def rewrite(self, row: PGSession, version: int) -> bool:
        with self._lock:
            old = self._live(row.key, self._now())
            if old is None or old.version != version:
                return False
            self._store(old.but(data=row.data, version=row.version))
            return True

    def scan(self, after: bytes | None, limit: int) -> list[PGSession]:
        with self._lock:
            now = self._now()
            keys = sorted(key for key in self._rows if after is None or key > after)
            live = [_copy(row) for key in keys if (row := self._live(key, now))]
            return live[:limit]

    def of_user(self, user_key: str) -> list[PGSession]:
        with self._lock:
            now = self._now()
            rows = [
                _copy(row).but(data=b"")
                for key, row in self._rows.items()
                if row.user_key == user_key and self._live(key, now)
            ]
            return sorted(rows, key=_newness, reverse=True)

    def users(self, after: str | None, limit: int) -> list[UserStats]:
        with self._lock:
            now = self._now()
            seen: dict[str, list[datetime]] = {}
            for key, row in self._rows.items():
                if row.user_key is not None and row.seen_on and self._live(key, now):
                    seen.setdefault(row.user_key, []).append(row.seen_on)
        users = sorted(user for user in seen if after is None or user > after)
        return [UserStats(user, len(seen[user]), max(seen[user])) for user in users[:limit]]

    def delete_of_user(
        self, user_key: str, *, keep: bytes | None = None, newest: int = 0
    ) -> list[PGSession]:
        with self._lock:
            # A stable sort: the others keep their order.
            rows = sorted(self.of_user(user_key), key=lambda row: row.key != keep)
            rows = [row for row in rows[newest:] if row.key != keep]
            for row in rows:
                del self._rows[row.key]
            return rows

    @contextmanager
    def locked(self, key: bytes) -> Iterator[MemoryBackend]:
        with self._lock:
            before = self._rows.copy()
            try:
                yield self
            except BaseException:
                self._rows = before
                raise

    def using(self, connection: Any) -> MemoryBackend:
        """Raise `ConfigurationError`: there is no connection."""
        raise ConfigurationError("rows in memory are in no transaction: using() needs a database")

    def sweep(self, limit: int, horizon: float) -> list[PGSession]:
        if not self._sweeping.acquire(blocking=False):
            return []
        try:
            with self._lock:
                now = self._now()
                dead = [key for key in self._rows if self._live(key, now) is None][:limit]
                return [self._rows.pop(key).but(data=b"") for key in dead]
        finally:
            self._sweeping.release()

    def stats(self) -> Stats:
        with self._lock:
            now = self._now()
            begun = [row.created_on for key, row in self._rows.items() if self._live(key, now)]
            oldest = min((time for time in begun if time), default=None)
            return Stats(len(begun), len(self._rows) - len(begun), None, oldest)

    def tokens(self, table: str, db_schema: str | None = None) -> MemoryTokens:
        """Return where the data of tokens lives: with this object, by its clock."""
        return self._tokens.setdefault(table, MemoryTokens(table, clock=self._clock))

    def apply_schema(self) -> None:
        """Do nothing: there is no table."""

    def check_schema(self) -> None:
        """Do nothing: there is no table."""

    def close(self) -> None:
        """Do nothing: the rows live as long as this object."""

    def _make_locks(self) -> None:
        self._lock = threading.RLock()
        self._sweeping = threading.Lock()

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)

    def _live(self, key: bytes, now: datetime) -> PGSession | None:
        row = self._rows.get(key)
        return row if row and row.expires_on and row.expires_on > now else None

    def _store(self, row: PGSession) -> PGSession:
        self._rows[row.key] = _copy(row)
        return row


def _seen(row: PGSession, now: datetime, expiry: Expiry) -> PGSession:
    expires_on, gc_after = expiry_times(now, row.authenticated_on or row.created_on or now, expiry)
    return row.but(seen_on=now, expires_on=expires_on, gc_after=gc_after)


def _newness(row: PGSession) -> tuple[object, bytes]:
    return row.authenticated_on or row.created_on, row.key


def _copy(row: PGSession) -> PGSession:
    # Nobody changes a stored row through the mapping that was given or handed out.
    return row.but(meta=dict(row.meta))
