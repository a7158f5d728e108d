"""PostgreSQL's binary formats of a few types."""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta
from typing import Final

__all__ = ["boolean", "int4", "int8", "interval", "microseconds", "moment", "number", "text"]

_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_LATEST: Final = datetime.max.replace(tzinfo=UTC)


def int4(value: int) -> bytes:
    return value.to_bytes(4, "big", signed=True)


def int8(value: int) -> bytes:
    return value.to_bytes(8, "big", signed=True)


def boolean(value: bool) -> bytes:
    return b"\1" if value else b"\0"


def interval(seconds: float) -> bytes:
    """Encode as microseconds, no days, no months: a day of 24 hours whatever the time zone."""
    return struct.pack(">qii", round(seconds * 1_000_000), 0, 0)


def text(value: str | None) -> bytes | None:
    return None if value is None else value.encode("utf-8")


def number(value: bytes | None) -> int:
    return int.from_bytes(value or b"", "big", signed=True)


def moment(value: bytes | None) -> datetime:
    try:
        return _EPOCH + timedelta(microseconds=number(value))
    except OverflowError:  # infinity, or a year that Python does not know: an operator's "never"
        return _LATEST


def microseconds(time: datetime) -> bytes:
    """Encode a time, as `moment` decodes it."""
    return int8((time - _EPOCH) // _MICROSECOND)
