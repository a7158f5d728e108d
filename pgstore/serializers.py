"""Typed, safe serialization: values come back with the exact type that they went in with.

MessagePack carries what it knows (None, bool, int of 64 bits, float, str, bytes, list, dict); the
rest travels in extension types of ours. The numbers in `_Ext` are a wire format: rows hold them.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from decimal import Decimal
from enum import IntEnum
from typing import Any, Protocol
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack
from markupsafe import Markup

from .errors import ConfigurationError, RowError, SerializationError, UnknownTypeError

__all__ = ["PLAIN", "Serializer", "TypedSerializer"]

# Deep enough for any session, shallow enough for the recursion in tuples, sets and registered
# types.
_MAX_DEPTH = 64
# msgpack's own 256 KB would be allocated anew for every tuple.
_BUFFER_BYTES = 1024


class Serializer(Protocol):
    """Turns a value into bytes and back. `SecureCookie` takes any, a store a `TypedSerializer`."""

    def dumps(self, value: Any, /) -> bytes:
        """Return the value's bytes. Raises `SerializationError` for what it cannot carry."""

    def loads(self, data: bytes, /) -> Any:
        """Return the value of bytes that `dumps` made."""


class _Ext(IntEnum):
    INT = 1
    TUPLE = 2
    SET = 3
    FROZENSET = 4
    DATETIME = 5
    DATE = 6
    TIME = 7
    TIMEDELTA = 8
    UUID = 9
    DECIMAL = 10
    MARKUP = 11
    REGISTERED = 12


@dataclass(frozen=True, slots=True)
class _Registered:
    tag: str
    dump: Callable[[Any], Any]
    load: Callable[[Any], Any]


PLAIN = frozenset({type(None), bool, int, float, str, bytes})
_EXTENDED = frozenset({dt.datetime, dt.date, dt.time, dt.timedelta, UUID, Decimal, Markup})


class TypedSerializer:
    """Carries plain values, containers, times, and the types that you register.

    None, bool, int, float, str, bytes, list, tuple, dict, set, frozenset, datetime, date, time,
    timedelta, UUID, Decimal and Markup are carried as they are.

    Exact types only: a subclass is refused unless it is registered itself, because it would come
    back as something else. Time zones are `datetime.timezone` or `zoneinfo.ZoneInfo`. Equal sets
    have equal bytes in every process. Register types before the serializer is used; it may then be
    shared by threads.
    """

    def __init__(self) -> None:
        self._types: dict[type, _Registered] = {}
        self._tags: dict[str, _Registered] = {}

    def register(
        self, type_: type, tag: str, *, dump: Callable[[Any], Any], load: Callable[[Any], Any]
    ) -> None:
        """Carry values of ``type_``, that exact class, under ``tag``.

        ``dump`` turns a value into something that can be serialized, ``load`` turns that back. The
        tag is stored with every value: do not change it while rows hold it. Raises
        `ConfigurationError` when the type or the tag is taken, or cannot be used.
        """
        if not isinstance(type_, type) or type_ in PLAIN | _EXTENDED | _CONTAINERS:
            raise ConfigurationError(f"{type_!r} is not a class of yours, or is carried already")
        if type_ in _NATIVE:
            raise ConfigurationError(
                f"{type_.__qualname__} cannot be registered: msgpack packs it in a way of its own"
            )
        if not isinstance(tag, str) or not tag:
            raise ConfigurationError(f"a tag is a text of one letter or more, not {tag!r}")
        if type_ in self._types or tag in self._tags:
            raise ConfigurationError(
                f"{type_.__qualname__} or the tag {tag!r} is registered already"
            )
        self._types[type_] = self._tags[tag] = _Registered(tag, dump, load)

    def dumps(self, value: Any, /, path: str = "value", *, known: bytes | None = None) -> bytes:
        """Return the bytes of ``value``. ``path`` is what an error calls it.

        ``known`` may be the bytes of the value as it was: if it still has them, it is not looked
        through again.

        Raises `SerializationError` that names path and type of what cannot be carried, a cycle, or
        a nest of more than 64 levels.
        """
        try:
            if known is not None and self._packed(value, 0) == known:
                return known
            if not self._carries(value, 0):
                self._explain(value, path, ())
            return self._packed(value, 0)
        except (RecursionError, _Refused, msgpack.PackException, ValueError, OverflowError):
            self._explain(value, path, ())
            raise

    def loads(self, data: bytes, /) -> Any:
        """Return the value of bytes that `dumps` made.

        Raises `UnknownTypeError` when it holds a registered type that is not registered here,
        `RowError` when the bytes are not ours.
        """
        try:
            return msgpack.unpackb(
                data,
                ext_hook=self._unpack,
                strict_map_key=False,
                unicode_errors="surrogatepass",
            )
        except UnknownTypeError:
            raise
        except Exception as error:
            raise RowError(f"serialized data cannot be read ({type(error).__name__})") from error

    def loads_all(self, items: Collection[bytes]) -> list[Any]:
        """Return the values of several `dumps`, at little more than the cost of one `loads`."""
        values: list[Any] = self.loads(_array_header(len(items)) + b"".join(items))
        return values

    def _carries(self, value: Any, depth: int) -> bool:
        # msgpack would turn bytearray, memoryview and its own types into something else without a
        # word, and recurse into a cycle: look first.
        kind = type(value)
        if kind in PLAIN or kind in _EXTENDED:
            return True
        if depth >= _MAX_DEPTH:
            return False
        if kind is dict:
            for key, item in value.items():
                if type(key) not in PLAIN and not self._carries(key, depth + 1):
                    return False
                if type(item) not in PLAIN and not self._carries(item, depth + 1):
                    return False
            return True
        if kind in _CONTAINERS:
            for item in value:
                if type(item) not in PLAIN and not self._carries(item, depth + 1):
                    return False
            return True
        return kind in self._types

    def _pack(self, value: Any, depth: int) -> msgpack.ExtType:
        kind = type(value)
        if kind is int:
            size = value.bit_length() // 8 + 1
            return msgpack.ExtType(_Ext.INT, value.to_bytes(size, "big", signed=True))
        if kind is tuple:
            return msgpack.ExtType(_Ext.TUPLE, self._packed(list(value), depth + 1))
        if kind is set or kind is frozenset:
            # Iteration follows the hash seed; the encoded elements have an order of their own.
            items = sorted(self._packed(item, depth + 1) for item in value)
            code = _Ext.SET if kind is set else _Ext.FROZENSET
            return msgpack.ExtType(code, _array_header(len(items)) + b"".join(items))
        if kind is dt.datetime or kind is dt.time:
            code = _Ext.DATETIME if kind is dt.datetime else _Ext.TIME
            text = value.replace(tzinfo=None).isoformat()
            parts = [text, value.fold, _zone_out(value.tzinfo)]
            return msgpack.ExtType(code, self._packed(parts, depth))
        if kind is dt.date:
            return msgpack.ExtType(_Ext.DATE, value.isoformat().encode("ascii"))
        if kind is dt.timedelta:
            parts = [value.days, value.seconds, value.microseconds]
            return msgpack.ExtType(_Ext.TIMEDELTA, self._packed(parts, depth))
        if kind is UUID:
            return msgpack.ExtType(_Ext.UUID, value.bytes)
        if kind is Decimal:
            return msgpack.ExtType(_Ext.DECIMAL, str(value).encode("ascii"))
        if kind is Markup:
            return msgpack.ExtType(_Ext.MARKUP, str(value).encode("utf-8", "surrogatepass"))
        registered = self._types.get(kind)
        if registered is None:
            raise _Refused
        content = registered.dump(value)
        if not self._carries(content, depth + 1):
            raise _Refused
        return msgpack.ExtType(_Ext.REGISTERED, self._packed([registered.tag, content], depth + 1))

    def _packed(self, value: Any, depth: int) -> bytes:
        # ``depth`` counts extension types within another: each is a recursion here and in loads.
        if depth > _MAX_DEPTH:
            raise _Refused
        packed: bytes = msgpack.packb(
            value,
            default=lambda item: self._pack(item, depth),
            strict_types=True,
            unicode_errors="surrogatepass",
            buf_size=_BUFFER_BYTES,
        )
        return packed

    def _unpacked(self, data: bytes) -> Any:
        # Not `unpackb`, which keeps 40 KB on the C stack: a nest of tuples would overflow a
        # thread's.
        size = max(len(data), 1)
        unpacker = msgpack.Unpacker(
            ext_hook=self._unpack,
            strict_map_key=False,
            unicode_errors="surrogatepass",
            read_size=size,
            max_buffer_size=size,
        )
        unpacker.feed(data)
        value = unpacker.unpack()
        if unpacker.tell() != len(data):
            raise ValueError("data goes on after the value")
        return value

    def _unpack(self, code: int, data: bytes) -> Any:
        match code:
            case _Ext.INT:
                return int.from_bytes(data, "big", signed=True)
            case _Ext.TUPLE:
                return tuple(self._unpacked(data))
            case _Ext.SET:
                return set(self._unpacked(data))
            case _Ext.FROZENSET:
                return frozenset(self._unpacked(data))
            case _Ext.DATETIME:
                text, fold, zone = self._unpacked(data)
                return dt.datetime.fromisoformat(text).replace(fold=fold, tzinfo=_zone_in(zone))
            case _Ext.DATE:
                return dt.date.fromisoformat(data.decode("ascii"))
            case _Ext.TIME:
                text, fold, zone = self._unpacked(data)
                return dt.time.fromisoformat(text).replace(fold=fold, tzinfo=_zone_in(zone))
            case _Ext.TIMEDELTA:
                days, secs, micros = self._unpacked(data)
                return dt.timedelta(days=days, seconds=secs, microseconds=micros)
            case _Ext.UUID:
                return UUID(bytes=data)
            case _Ext.DECIMAL:
                return Decimal(data.decode("ascii"))
            case _Ext.MARKUP:
                return Markup(data.decode("utf-8", "surrogatepass"))  # noqa: S704 - it was one
            case _Ext.REGISTERED:
                tag, content = self._unpacked(data)
                registered = self._tags.get(tag)
                if registered is None:
                    raise UnknownTypeError(tag)
                return registered.load(content)
        raise RowError(f"serialized data holds extension type {code}, unknown to this release")

    def _explain(self, value: Any, path: str, parents: tuple[int, ...]) -> None:
        """Raise `SerializationError` for what cannot be carried: the slow twin of `_carries`."""
        kind = type(value)
        if kind in PLAIN:
            return
        if id(value) in parents:
            raise SerializationError(path, kind, "the value contains itself")
        if len(parents) >= _MAX_DEPTH and kind not in _EXTENDED:
            raise SerializationError(path, kind, f"nested more than {_MAX_DEPTH} levels deep")
        parents = (*parents, id(value))
        if kind is dict:
            for key, item in value.items():
                self._explain(key, f"{path}{{key {_show(key)}}}", parents)
                self._explain(item, f"{path}[{_show(key)}]", parents)
        elif kind is list or kind is tuple:
            for index, item in enumerate(value):
                self._explain(item, f"{path}[{index}]", parents)
        elif kind in _CONTAINERS:
            for item in value:
                self._explain(item, f"{path}{{element}}", parents)
        elif kind is dt.datetime or kind is dt.time:
            try:
                _zone_out(value.tzinfo)
            except _Refused:
                raise SerializationError(
                    path, kind, "its tzinfo must be datetime.timezone or a named zoneinfo.ZoneInfo"
                ) from None
        elif kind in self._types:
            content = self._types[kind].dump(value)
            self._explain(content, f"{path}.{self._types[kind].tag}", parents)
        elif kind not in _EXTENDED:
            raise SerializationError(path, kind, _hint(kind))


_CONTAINERS = frozenset({list, tuple, dict, set, frozenset})
# What msgpack packs in a way of its own, without asking.
_NATIVE = frozenset({bytearray, memoryview, msgpack.ExtType, msgpack.Timestamp})


class _Refused(Exception):
    """Something in a value cannot be carried; `_explain` says what."""


def _array_header(size: int) -> bytes:
    if size < 16:
        return bytes((0x90 | size,))
    header: bytes = msgpack.Packer().pack_array_header(size)
    return header


def _hint(kind: type) -> str:
    if kind in _NATIVE:
        return "this type is not carried; store something simpler"
    for base in kind.__mro__[1:]:
        if base in PLAIN | _EXTENDED | _CONTAINERS:
            return f"a subclass of {base.__name__} would come back as another type; register it"
    return "this type is not carried; register it, or store something simpler"


def _show(key: Hashable) -> str:
    """Name a key in a path: long ones are cut, and most are named by their type only."""
    if type(key) is str:
        return f'"{key if len(key) <= 40 else key[:39] + "…"}"'
    short = type(key) in (bool, type(None)) or (type(key) is int and key.bit_length() <= 64)
    return repr(key) if short else f"<{type(key).__name__}>"


def _zone_out(zone: dt.tzinfo | None) -> Any:
    if zone is None:
        return None
    if type(zone) is ZoneInfo and zone.key is not None:
        try:
            ZoneInfo(zone.key)  # from a file of one's own, a zone may have a name that nobody knows
        except (ValueError, OSError, KeyError):
            raise _Refused from None
        return zone.key
    if type(zone) is dt.timezone:
        offset = zone.utcoffset(None)
        name = zone.tzname(None)
        parts = [offset.days, offset.seconds, offset.microseconds]
        return parts if name == dt.timezone(offset).tzname(None) else [*parts, name]
    raise _Refused


def _zone_in(zone: Any) -> dt.tzinfo | None:
    if zone is None:
        return None
    if isinstance(zone, str):
        return ZoneInfo(zone)
    days, secs, micros, *name = zone
    offset = dt.timedelta(days=days, seconds=secs, microseconds=micros)
    return dt.timezone(offset, *name) if name or offset else dt.UTC
