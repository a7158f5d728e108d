"""Hypothesis strategies for what a session may hold, and a comparison that overlooks nothing."""

from __future__ import annotations

import datetime as dt
import struct
from collections import Counter
from collections.abc import Hashable
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from markupsafe import Markup

_DAY = dt.timedelta(days=1)
_TICK = dt.timedelta(microseconds=1)


def session_values() -> SearchStrategy[Any]:
    """Give values of every type that `TypedSerializer` carries, nested in one another."""
    return st.recursive(_scalars(), _containers_of, max_leaves=12)


def hashable_values() -> SearchStrategy[Any]:
    """Give the values that may be a dict's key or an element of a set."""
    return st.recursive(
        _scalars().filter(_is_hashable),
        lambda inner: st.lists(inner, max_size=4).map(tuple) | st.frozensets(inner, max_size=4),
        max_leaves=6,
    )


def exactly_equal(a: object, b: object) -> bool:
    """Tell whether two values are the same to the last detail: types, bits, order, fold and zone.

    The order of a dict counts, that of a set does not; a NaN equals a NaN of the same bits.
    """
    return portrait(a) == portrait(b)


def portrait(value: object) -> Hashable:
    """Return what `exactly_equal` compares: a failed assertion shows where two values differ."""
    detail: Hashable
    match value:
        case float():
            detail = struct.pack(">d", value)
        case list() | tuple():
            detail = tuple(map(portrait, value))
        case dict():
            detail = tuple((portrait(key), portrait(item)) for key, item in value.items())
        case set() | frozenset():
            detail = frozenset(Counter(map(portrait, value)).items())
        case dt.datetime() | dt.time():
            local = value.replace(tzinfo=None).isoformat()
            detail = local, value.fold, _zone_portrait(value.tzinfo)
        case Decimal():
            detail = value.as_tuple()
        case Hashable():
            detail = value
        case _:
            raise TypeError(f"cannot compare {type(value).__name__} exactly")
    return type(value), detail


def _zone_portrait(zone: dt.tzinfo | None) -> Hashable:
    if zone is None:
        return None
    if isinstance(zone, ZoneInfo):
        return ZoneInfo, zone.key
    return type(zone), zone.utcoffset(None), zone.tzname(None)


def _scalars() -> SearchStrategy[Any]:
    text = st.text(st.characters())  # lone surrogates too
    return st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.sampled_from([63, 64, 1000]).map(lambda bits: 2**bits).flatmap(_around),
        st.floats(),
        text,
        st.binary(),
        _moments(st.datetimes()),
        _moments(st.times()),
        st.dates(),
        st.timedeltas(),
        st.uuids(),
        st.decimals(),
        text.map(Markup),
    )


def _around(number: int) -> SearchStrategy[int]:
    return st.sampled_from([number - 1, number, -number, -number - 1])


def _moments(naive: SearchStrategy[Any]) -> SearchStrategy[Any]:
    """Give datetimes or times with and without a zone, on both sides of a fold."""
    offsets = st.timedeltas(_TICK - _DAY, _DAY - _TICK)
    zones = st.one_of(
        st.none(),
        offsets.map(dt.timezone),
        st.builds(dt.timezone, offsets, st.text()),
        st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu"]).map(
            ZoneInfo
        ),
    )
    return st.builds(
        lambda moment, zone, fold: moment.replace(tzinfo=zone, fold=fold),
        naive,
        zones,
        st.integers(0, 1),
    )


def _containers_of(inner: SearchStrategy[Any]) -> SearchStrategy[Any]:
    hashable = hashable_values()
    return st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(hashable, inner, max_size=4),
        st.sets(hashable, max_size=4),
        st.frozensets(hashable, max_size=4),
    )


def _is_hashable(value: object) -> bool:
    return not (isinstance(value, Decimal) and value.is_snan())
