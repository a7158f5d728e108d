"""Callbacks for sessions that ended (sessionup's ``OnDeletion``)."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from typing import Literal, TypeAlias

from .forks import in_forked_child
from .rows import PGSession

__all__ = ["DeletionCallback", "HeldHooks", "Hooks", "Reason", "Unsubscribe"]

_log = logging.getLogger("pgstore")

Reason: TypeAlias = Literal["deleted", "revoked", "expired", "replayed", "evicted"]
DeletionCallback: TypeAlias = Callable[[PGSession, Reason], object]


class Hooks:
    """The callbacks of one store. Thread-safe; a callback may subscribe and unsubscribe."""

    def __init__(self) -> None:
        # Replaced whole and never changed, so that it can be iterated without a lock.
        self._subscriptions: tuple[Unsubscribe, ...] = ()
        self._lock = threading.Lock()

    def subscribe(self, callback: DeletionCallback) -> Unsubscribe:
        """Call ``callback(row, reason)`` for each session that ends from now on."""
        subscription = Unsubscribe(self, callback)
        with self._lock:
            self._subscriptions = (*self._subscriptions, subscription)
        return subscription

    @property
    def is_heard(self) -> bool:
        """Whether anybody has subscribed."""
        return bool(self._subscriptions)

    def fire(self, rows: Iterable[PGSession], reason: Reason) -> None:
        """Tell every subscriber of rows that were deleted; one that raises stops nobody."""
        for row in rows:
            for subscription in self._subscriptions:
                subscription._call(row, reason)

    def _remove(self, subscription: Unsubscribe) -> None:
        with self._lock:
            self._subscriptions = tuple(s for s in self._subscriptions if s is not subscription)


class HeldHooks(Hooks):
    """Stands for ``hooks`` inside a transaction, whose commit nobody here can see.

    It keeps what was deleted there, for `release`.
    """

    def __init__(self, hooks: Hooks) -> None:
        super().__init__()
        self._hooks = hooks
        self._held: dict[bytes, tuple[PGSession, Reason]] = {}

    def subscribe(self, callback: DeletionCallback) -> Unsubscribe:
        return self._hooks.subscribe(callback)

    @property
    def is_heard(self) -> bool:
        return self._hooks.is_heard

    def fire(self, rows: Iterable[PGSession], reason: Reason) -> None:
        # By key: what was deleted, rolled back to a savepoint and deleted again, ends once.
        self._held.update((row.key, (row, reason)) for row in rows)

    def release(self, is_there: Callable[[bytes], bool]) -> int:
        """Tell of what is really gone, and return how many rows are still there.

        ``is_there`` looks for a live row by its key. It is not asked when nobody would hear.
        """
        kept = 0
        for key, (row, reason) in self._held.items() if self.is_heard else ():
            if is_there(key):
                kept += 1
            else:
                self._hooks.fire([row], reason)
        return kept


class Unsubscribe:
    """Ends a subscription when it is called; again is no error.

    With ``wait=True`` it returns when no call of the callback is under way in another thread.
    Inside the callback itself it does not wait for itself.
    """

    def __init__(self, hooks: Hooks, callback: DeletionCallback) -> None:
        self._hooks = hooks
        self._callback = callback
        self._ended = False
        self._start_anew()
        in_forked_child(self._start_anew)

    def _start_anew(self) -> None:
        # In a forked child, too: the parent's threads did not come along.
        self._running: list[int] = []
        self._waiting: set[int] = set()
        self._changed = threading.Condition()

    def __call__(self, *, wait: bool = False) -> None:
        self._hooks._remove(self)
        me = threading.get_ident()
        with self._changed:
            self._ended = True
            if wait:
                # Two calls that wait for each other's end would wait for ever.
                self._waiting.add(me)
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting.issuperset(self._running))
                self._waiting.discard(me)

    def _call(self, row: PGSession, reason: Reason) -> None:
        me = threading.get_ident()
        with self._changed:
            if self._ended:
                return
            self._running.append(me)
        try:
            self._callback(row, reason)
        except Exception:  # noqa: BLE001 - logged with its traceback; it stops nobody
            _log.exception("a callback for the end of session %s failed", row.handle)
        finally:
            with self._changed:
                self._running.remove(me)
                self._changed.notify_all()
