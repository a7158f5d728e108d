"""Doing something in a forked child before anything else runs there."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable

__all__ = ["in_forked_child"]


def in_forked_child(method: Callable[[], None]) -> None:
    """Call a bound method in every child that is forked while its object lives.

    It runs in `os.fork` itself, when the child has one thread. Locks that other threads of the
    parent held are still held there: make new ones.
    """
    reference = weakref.WeakMethod(method)

    def call() -> None:
        living = reference()
        if living is not None:
            living()

    os.register_at_fork(after_in_child=call)
