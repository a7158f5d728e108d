"""Merge functions: what to do when two requests changed the same key of one session.

Give a store ``merge={"hits": merge.add}``. A merge function is called with ``(base, theirs,
ours)``: the value that this request loaded, the one that a faster request has stored meanwhile, and
this request's. `MISSING` stands for an absent key, and returning it removes the key. The function
may be called several times for one save, and must not change its arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

__all__ = ["MISSING", "MergeFunction", "add", "append", "union"]


class _Missing:
    __slots__ = ()

    def __repr__(self) -> str:
        return "MISSING"

    def __bool__(self) -> bool:
        return False


MISSING: Final = _Missing()
MergeFunction: TypeAlias = Callable[[Any, Any, Any], Any]


def add(base: Any, theirs: Any, ours: Any) -> Any:
    """Merge a number that both requests counted up or down: both differences count.

    An absent number counts as 0. A request that removed the key while another counted removes it.
    """
    if ours is MISSING:
        return MISSING
    return _or(theirs, 0) + (ours - _or(base, 0))


def append(base: Any, theirs: Any, ours: Any) -> Any:
    """Merge a list: theirs, less what this request took out, plus what it put in, at the end."""
    if ours is MISSING:
        return MISSING
    added = list(ours)
    removed = []
    for item in _or(base, []):
        if not _discard(added, item):
            removed.append(item)
    merged = list(_or(theirs, []))
    for item in removed:
        _discard(merged, item)
    return merged + added


def union(base: Any, theirs: Any, ours: Any) -> Any:
    """Merge a set or frozenset: theirs, less what this request took out, plus what it put in."""
    if ours is MISSING:
        return MISSING
    before = _or(base, frozenset())
    return type(ours)((_or(theirs, frozenset()) - (before - ours)) | (ours - before))


def _or(value: Any, default: Any) -> Any:
    return default if value is MISSING else value


def _discard(items: list[Any], item: Any) -> bool:
    if item in items:
        items.remove(item)
        return True
    return False
