from __future__ import annotations

import datetime as dt
import enum
import io
import math
import os
import random
import struct
import subprocess
import sys
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markupsafe import Markup

from pgstore.errors import ConfigurationError, RowError, SerializationError, UnknownTypeError
from pgstore.serializers import TypedSerializer
from support.strategies import exactly_equal, hashable_values, portrait, session_values

SECRET = "hunter2, a value that no message may show"
UTC = dt.UTC
BERLIN = ZoneInfo("Europe/Berlin")


class Money:
    """A class of the application: refused unless it is registered."""

    def __init__(self, amount: Any, currency: Any = "EUR") -> None:
        self.parts = (amount, currency)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Money) and self.parts == other.parts

    def __hash__(self) -> int:
        return hash(self.parts)


def dump_money(money: Money) -> Any:
    return list(money.parts)


def load_money(parts: Any) -> Money:
    return Money(*parts)


@pytest.fixture
def plain() -> TypedSerializer:
    return TypedSerializer()


@pytest.fixture
def serializer() -> TypedSerializer:
    """Return a serializer that knows `Money`."""
    serializer = TypedSerializer()
    serializer.register(Money, "money", dump=dump_money, load=load_money)
    return serializer


def there_and_back(serializer: TypedSerializer, value: Any) -> Any:
    return serializer.loads(serializer.dumps(value))


def nest(depth: int, wrap: Callable[[Any], Any], leaf: Any = None) -> Any:
    for _ in range(depth):
        leaf = wrap(leaf)
    return leaf


# -- round trips -----------------------------------------------------------------------------------


@given(session_values())
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_every_value_comes_back_exactly(value: Any) -> None:
    """Values of every carried type, nested at will, come back with the same type and bits."""
    assert portrait(there_and_back(TypedSerializer(), value)) == portrait(value)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        2**63 - 1,
        2**63,
        2**64 - 1,
        2**64,
        -(2**63),
        -(2**63) - 1,
        10**5000,
        0.1,
        -0.0,
        math.inf,
        math.nan,
        struct.unpack(">d", bytes.fromhex("fff8000000c0ffee"))[0],
        "",
        "naïve 🍵\0",
        "half a pair: \ud83c",
        b"\x00\xff",
        dt.datetime(1, 1, 1),
        dt.datetime.max.replace(tzinfo=UTC),
        dt.datetime(2024, 10, 27, 2, 30, fold=0, tzinfo=BERLIN),
        dt.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=BERLIN),
        dt.datetime(2024, 3, 31, 2, 30, tzinfo=BERLIN),  # skipped by the clocks
        dt.datetime(2024, 1, 1, fold=1),
        dt.datetime(2024, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=1), "CET, by hand")),
        dt.datetime(2024, 1, 1, tzinfo=dt.timezone(dt.timedelta(0), "GMT")),
        dt.datetime(2024, 1, 1, tzinfo=dt.timezone(dt.timedelta(microseconds=-1))),
        dt.time(23, 59, 59, 999999, tzinfo=BERLIN, fold=1),
        dt.time.min,
        dt.date.min,
        dt.date.max,
        dt.timedelta.min,
        dt.timedelta.max,
        dt.timedelta(microseconds=-1),
        UUID(int=0),
        UUID(int=2**128 - 1),
        Decimal("-0.00"),
        Decimal("1E+999999"),
        Decimal("Infinity"),
        Decimal("-NaN123"),
        Decimal("sNaN"),
        Markup("<b>safe</b>"),
        Markup("\udc80"),
        [],
        (),
        {},
        set(),
        frozenset(),
        {frozenset({1, (2, frozenset())}), (3,)},
        {(1, ("a",)): [{2.0: {b"x": ()}}], None: None, frozenset({1}): 1, dt.date.min: 2},
        {1: "int", "1": "str", b"1": "bytes", 1.5: "float", True + 1: "two"},
        {"b": 1, "a": 2},
    ],
    ids=lambda value: f"{type(value).__name__}",
)
def test_corner_cases_come_back_exactly(plain: TypedSerializer, value: Any) -> None:
    """The edge of each type's range comes back with the same type and bits."""
    assert portrait(there_and_back(plain, value)) == portrait(value)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (1, True),
        (1, 1.0),
        (0.0, -0.0),
        (math.nan, -math.nan),
        ([1], (1,)),
        ({1}, frozenset({1})),
        ({1}, {True}),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ("x", Markup("x")),
        (Decimal("1.0"), Decimal("1.00")),
        (dt.datetime(2024, 1, 1, tzinfo=UTC), dt.datetime(2024, 1, 1, tzinfo=ZoneInfo("UTC"))),
        (dt.datetime(2024, 1, 1), dt.datetime(2024, 1, 1, fold=1)),
        (dt.timezone(dt.timedelta(0), "GMT"), UTC),
    ],
)
def test_exactly_equal_tells_apart_what_looks_alike(a: Any, b: Any) -> None:
    """The comparison that the round trips rest on sees types, bits, order, fold and zone."""
    if isinstance(a, dt.tzinfo):
        a, b = dt.time(tzinfo=a), dt.time(tzinfo=b)
    assert exactly_equal(a, a)
    assert exactly_equal(a, b) is False


def test_what_is_loaded_shares_nothing_with_what_was_dumped(plain: TypedSerializer) -> None:
    """A loaded value is a copy: changing it changes no other session."""
    value = {"cart": [["tea"]]}
    data = plain.dumps(value)
    plain.loads(data)["cart"][0].append("milk")
    assert plain.loads(data) == value == {"cart": [["tea"]]}


# -- the bytes -------------------------------------------------------------------------------------

# Rows in people's databases hold these bytes. A change here makes every stored session unreadable:
# add a new extension type instead.
GOLDEN = [
    (None, "c0"),
    (True, "c3"),
    (7, "07"),
    (2**64, "c70901010000000000000000"),
    (-(2**63) - 1, "c70901ff7fffffffffffffff"),
    (1.5, "cb3ff8000000000000"),
    ("tea", "a3746561"),
    ("\ud800", "a3eda080"),
    (b"\x00", "c40100"),
    ([1], "9101"),
    ({"a": (1,)}, "81a161d5029101"),
    ((1,), "d5029101"),
    ({3, 1, 2}, "d60393010203"),
    (frozenset({"b", "a"}), "c7050492a161a162"),
    (
        dt.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=BERLIN),
        "c7240593b3323032342d31302d32375430323a33303a303001ad4575726f70652f4265726c696e",
    ),
    (dt.datetime(2024, 1, 1), "c7170593b3323032342d30312d30315430303a30303a303000c0"),
    (
        dt.datetime(2024, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=1), "CET")),
        "c7200593b3323032342d30312d30315430303a30303a3030009400cd0e1000a3434554",
    ),
    (dt.date(2024, 1, 1), "c70a06323032342d30312d3031"),
    (dt.time(1, 2, 3, tzinfo=UTC), "c70f0793a830313a30323a30330093000000"),
    (dt.timedelta(1, 2, 3), "d60893010203"),
    (UUID(int=1), "d80900000000000000000000000000000001"),
    (Decimal("1.50"), "d60a312e3530"),
    (Markup("<b>"), "c7030b3c623e"),
    (Money(5), "c70d0c92a56d6f6e65799205a3455552"),
]


@pytest.mark.parametrize(("value", "hexed"), GOLDEN, ids=lambda x: type(x).__name__)
def test_the_wire_format_is_frozen(serializer: TypedSerializer, value: Any, hexed: str) -> None:
    """What an earlier release has stored is read by this one, which stores the same bytes."""
    assert serializer.dumps(value).hex() == hexed
    assert exactly_equal(serializer.loads(bytes.fromhex(hexed)), value)


@given(st.lists(hashable_values(), max_size=8), st.randoms(use_true_random=False))
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
def test_equal_sets_have_equal_bytes(items: list[Any], shuffler: random.Random) -> None:
    """The order in which a set was filled does not show, so that it does not count as a change."""
    items = list(set(items))
    shuffled = shuffler.sample(items, len(items))
    dumps = TypedSerializer().dumps
    assert dumps(set(items)) == dumps(set(shuffled))
    assert dumps(frozenset(items)) == dumps(frozenset(shuffled))


SETS = """
import datetime as dt, uuid
from decimal import Decimal
from markupsafe import Markup
from pgstore.serializers import TypedSerializer
items = ["a", "b", "c", b"a", b"b", None, 1, 2.5, 2**70, dt.date(2024, 1, 1), dt.time(1),
    dt.datetime(2024, 1, 1, tzinfo=dt.UTC), dt.timedelta(1), uuid.UUID(int=5), Decimal("1.5"),
    Markup("m"), ("x", "y"), frozenset({"p", "q", frozenset({"r", "s"})})]
nested = {"k": {("z", letter) for letter in "uvw"}}
print(TypedSerializer().dumps([set(items), frozenset(items), nested]).hex())
"""


def test_sets_have_the_same_bytes_in_every_process() -> None:
    """The hash seed of a process does not show in the bytes of a set."""
    outputs = {
        subprocess.run(
            [sys.executable, "-c", SETS],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(outputs) == 1
    assert len(outputs.pop()) > 500


# -- what is refused -------------------------------------------------------------------------------

WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "itself": lambda inner: inner,
    "list": lambda inner: [inner],
    "tuple": lambda inner: (inner,),
    "dict": lambda inner: {"k": inner},
    "frozenset": lambda inner: frozenset({inner}),
}

REFUSED = SimpleNamespace()  # of a type that nobody carries


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (REFUSED, "values"),
        ({"cart": [0, 1, 2, REFUSED]}, 'values["cart"][3]'),
        ({"cart": (0, {"n": REFUSED})}, 'values["cart"][1]["n"]'),
        ({7: {None: {True: REFUSED}}}, "values[7][None][True]"),
        ({b"k": REFUSED}, "values[<bytes>]"),
        ({(1, 2): [REFUSED]}, "values[<tuple>][0]"),
        ({10**5000: REFUSED}, "values[<int>]"),
        ({"k" * 41: REFUSED}, f'values["{"k" * 39}…"]'),
        ({"a": {(1, (2, "x", Fraction(1, 2)))}}, 'values["a"]{element}[1][2]'),
        ({"a": frozenset({Fraction(1, 2)})}, 'values["a"]{element}'),
        ({Fraction(1, 2): 1}, "values{key <Fraction>}"),
        ({("a", Fraction(1, 2)): 1}, "values{key <tuple>}[1]"),
        ({"price": Money([REFUSED])}, 'values["price"].money[0][0]'),
    ],
)
def test_an_error_leads_to_the_value(serializer: TypedSerializer, value: Any, path: str) -> None:
    """What cannot be carried is named by its path and its type, as text and as attributes."""
    with pytest.raises(SerializationError) as caught:
        serializer.dumps(value, "values")
    assert caught.value.path == path
    assert caught.value.type in (SimpleNamespace, Fraction)
    assert str(caught.value).startswith(
        f"{path} ({caught.value.type.__module__}.{caught.value.type.__name__}): this type is not"
    )


def test_a_value_is_called_a_value_unless_its_path_is_given(plain: TypedSerializer) -> None:
    """Without a path, as in a `SecureCookie`, errors speak of ``value``."""
    with pytest.raises(SerializationError, match=r'^value\["a"\] '):
        plain.dumps({"a": REFUSED})


class Colour(enum.IntEnum):
    RED = 1


class Flags(enum.IntFlag):
    SET = 1


class Word(enum.StrEnum):
    YES = "yes"


Pair = namedtuple("Pair", "a b")


class Str(str):
    __slots__ = ()


class Bytes(bytes):
    pass


class Float(float):
    pass


class List(list):
    pass


class Set(set):
    pass


class FrozenSet(frozenset):
    pass


class DateTime(dt.datetime):
    pass


class Date(dt.date):
    pass


class Time(dt.time):
    pass


class TimeDelta(dt.timedelta):
    pass


class Uuid(UUID):
    pass


class Dec(Decimal):
    pass


class SafeString(Markup):
    pass


SUBCLASSES = [
    (Colour.RED, "int"),
    (Flags.SET, "int"),
    (Word.YES, "str"),
    (Pair(1, 2), "tuple"),
    (OrderedDict(a=1), "dict"),
    (defaultdict(list), "dict"),
    (Counter("a"), "dict"),
    (Str("x"), "str"),
    (Bytes(b"x"), "bytes"),
    (Float(1), "float"),
    (List([1]), "list"),
    (Set({1}), "set"),
    (FrozenSet({1}), "frozenset"),
    (DateTime(2024, 1, 1), "datetime"),
    (Date(2024, 1, 1), "date"),
    (Time(1), "time"),
    (TimeDelta(1), "timedelta"),
    (Uuid(int=1), "UUID"),
    (Dec(1), "Decimal"),
    (SafeString("x"), "Markup"),
]


@pytest.mark.parametrize(("value", "base"), SUBCLASSES, ids=lambda x: type(x).__name__)
def test_a_subclass_is_refused(plain: TypedSerializer, value: Any, base: str) -> None:
    """An instance of a subclass would come back as its base: it is refused, and the base told."""
    with pytest.raises(SerializationError, match=f"a subclass of {base} would come back as") as e:
        plain.dumps([value])
    assert (e.value.path, e.value.type) == ("value[0]", type(value))


@pytest.mark.parametrize(("value", "base"), SUBCLASSES, ids=lambda x: type(x).__name__)
def test_a_registered_subclass_comes_back_as_itself(
    plain: TypedSerializer, value: Any, base: str
) -> None:
    """A subclass that is registered is not mistaken for its base, even deep in a container."""
    plain.register(type(value), "it", dump=lambda _: None, load=lambda _: value)
    back = there_and_back(plain, [({"a": value},)])[0][0]["a"]
    assert (type(back), back) == (type(value), value)


@pytest.mark.parametrize(
    "value",
    [
        bytearray(b"x"),
        memoryview(b"x"),
        msgpack.ExtType(2, b"\x90"),
        msgpack.Timestamp(1),
        object(),
        object,
        1j,
        range(3),
        deque([1]),
        Fraction(1, 2),
        Ellipsis,
        len,
        iter([1]),
        {}.keys(),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("kind", ["itself", "list", "tuple", "dict"])
def test_what_is_not_carried_is_refused(plain: TypedSerializer, kind: str, value: Any) -> None:
    """Types that msgpack would take, or that look like carried ones, are refused all the same."""
    with pytest.raises(SerializationError, match="this type is not carried") as caught:
        plain.dumps(WRAPPERS[kind](value))
    assert caught.value.type is type(value)


class Zone(dt.tzinfo):
    def utcoffset(self, _: dt.datetime | None) -> dt.timedelta:
        return dt.timedelta(0)


class ZoneInfoSubclass(ZoneInfo):
    pass


def nameless_zone() -> ZoneInfo:
    """Return a `ZoneInfo` from a file: without a key there is nothing to find it again by."""
    counts = struct.pack(">4s16x6l", b"TZif", 0, 0, 0, 0, 1, 4)
    return ZoneInfo.from_file(io.BytesIO(counts + struct.pack(">lBB", 0, 0, 0) + b"UTC\0"))


@pytest.mark.parametrize(
    "zone", [Zone(), ZoneInfoSubclass("UTC"), nameless_zone()], ids=lambda zone: type(zone).__name__
)
@pytest.mark.parametrize("moment", [dt.datetime(2024, 1, 1), dt.time(1)], ids=["datetime", "time"])
def test_a_foreign_zone_is_refused(
    plain: TypedSerializer, moment: dt.datetime | dt.time, zone: dt.tzinfo
) -> None:
    """A tzinfo that could not be restored exactly is refused, and the message says which can."""
    with pytest.raises(SerializationError, match="tzinfo must be datetime"):
        plain.dumps([(moment.replace(tzinfo=zone),)])


def cycle_of_lists() -> Any:
    cycle: list[Any] = []
    cycle.append(cycle)
    return cycle


def cycle_through_a_dict_and_a_tuple() -> Any:
    cycle: dict[str, Any] = {}
    cycle["a"] = ([cycle],)
    return cycle


def cycle_through_a_registered_type() -> Any:
    money = Money(0)
    money.parts = ([money], "EUR")
    return money


@pytest.mark.parametrize("known", [None, b"\xc0"], ids=["new", "known"])
@pytest.mark.parametrize(
    ("value", "path"),
    [
        (cycle_of_lists(), "value[0]"),
        (cycle_through_a_dict_and_a_tuple(), 'value["a"][0][0]'),
        (cycle_through_a_registered_type(), "value.money[0][0]"),
    ],
)
def test_a_cycle_is_refused(
    serializer: TypedSerializer, value: Any, path: str, known: bytes | None
) -> None:
    """A value that contains itself is named, and neither hangs nor overflows the stack."""
    with pytest.raises(SerializationError, match="contains itself") as caught:
        serializer.dumps(value, known=known)
    assert caught.value.path == path


@given(session_values(), session_values())
@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_known_bytes_change_nothing(before: Any, value: Any) -> None:
    """Whatever a value was, its bytes are those that it has now."""
    serializer = TypedSerializer()
    assert serializer.dumps(value, known=serializer.dumps(before)) == serializer.dumps(value)
    assert serializer.dumps(value, known=serializer.dumps(value)) == serializer.dumps(value)


@pytest.mark.parametrize("value", [bytearray(b"x"), [object()], {"a": {1, 2.5, object()}}])
def test_what_cannot_be_carried_has_no_known_bytes(plain: TypedSerializer, value: Any) -> None:
    """A value that changed into one of another type is refused as ever."""
    with pytest.raises(SerializationError):
        plain.dumps(value, known=plain.dumps("before"))


def test_the_same_value_twice_is_no_cycle(plain: TypedSerializer) -> None:
    """A value may turn up in two places; it comes back as two equal ones."""
    shared = ["tea"]
    back = there_and_back(plain, [shared, shared])
    assert back == [["tea"], ["tea"]]
    assert back[0] is not back[1]


@pytest.mark.parametrize("leaf", [None, dt.date(2024, 1, 1)], ids=["plain", "date"])
@pytest.mark.parametrize("kind", ["list", "tuple", "dict", "frozenset"])
def test_64_levels_are_carried_and_65_are_not(plain: TypedSerializer, kind: str, leaf: Any) -> None:
    """The most levels of nesting are 64, whatever the containers are and whatever is inside."""
    deepest = nest(64, WRAPPERS[kind], leaf)
    assert there_and_back(plain, deepest) == deepest
    with pytest.raises(SerializationError, match="nested more than 64 levels deep"):
        plain.dumps(WRAPPERS[kind](deepest))


def test_registered_types_may_nest(serializer: TypedSerializer) -> None:
    """32 values of registered types in one another, each with a list, are 64 levels."""
    deepest = nest(32, Money)
    assert there_and_back(serializer, deepest) == deepest


@pytest.mark.parametrize("depth", [65, 10_000])
def test_registered_types_may_not_nest_without_end(serializer: TypedSerializer, depth: int) -> None:
    """Values of registered types are levels too, rather than an overflow of the stack."""
    with pytest.raises(SerializationError, match="nested more than 64 levels deep"):
        serializer.dumps(nest(depth, Money))


SMALL_STACK = """
import threading
from pgstore.serializers import TypedSerializer
serializer, deepest, back = TypedSerializer(), (), []
for _ in range(63):
    deepest = (deepest,)
threading.stack_size(256 * 1024)
thread = threading.Thread(target=lambda: back.append(serializer.loads(serializer.dumps(deepest))))
thread.start()
thread.join()
assert back == [deepest]
"""


def test_the_deepest_nest_fits_a_small_stack() -> None:
    """Threads of servers may have small stacks (1 MB on Alpine): no session overflows one."""
    done = subprocess.run([sys.executable, "-c", SMALL_STACK], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "value",
    [
        {"a": SECRET, "b": REFUSED},
        [SECRET, (SECRET, {SECRET, Fraction(1, 2)})],
        Str(SECRET),
        Money(SECRET, REFUSED),
        {(SECRET,): REFUSED, SECRET.encode(): 1},
        nest(65, WRAPPERS["list"], SECRET),
        [dt.datetime(2024, 1, 1, tzinfo=Zone()), SECRET],
    ],
)
def test_an_error_shows_no_value(serializer: TypedSerializer, value: Any) -> None:
    """Messages name paths and types; a session's values do not get into a log through them."""
    with pytest.raises(SerializationError) as caught:
        serializer.dumps(value)
    assert "hunter2" not in f"{caught.value} {caught.value!r}"


# -- registered types ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        Money(Decimal("9.99")),
        [Money(1), (Money(2), {"k": Money(3)})],
        {Money(1): {Money(2), "x"}, (Money(3),): frozenset({Money(4)})},
        Money(Money(Money(1)), {"deep": [Money(2)]}),
    ],
)
def test_a_registered_type_is_carried_anywhere(serializer: TypedSerializer, value: Any) -> None:
    """A registered type may hold, and be held by, anything: keys, sets and itself too."""
    assert there_and_back(serializer, value) == value


@pytest.mark.parametrize("value", [Money(1), [({"k": Money(1)},)], Money(Money(1))])
def test_an_unknown_tag_is_told(
    serializer: TypedSerializer, plain: TypedSerializer, value: Any
) -> None:
    """A type that is registered no more is an error that names the tag, however deep it lies."""
    with pytest.raises(UnknownTypeError, match="type 'money', not registered here") as caught:
        plain.loads(serializer.dumps(value))
    assert caught.value.tag == "money"


def test_a_load_that_fails_refuses_the_row(plain: TypedSerializer) -> None:
    """An application's own ``load`` that raises makes the row unreadable, not the request fail."""
    plain.register(Money, "money", dump=dump_money, load=lambda _: [][0])
    data = plain.dumps([Money(SECRET)])
    with pytest.raises(RowError) as caught:
        plain.loads(data)
    assert isinstance(caught.value.__cause__, IndexError)
    assert "hunter2" not in str(caught.value)


def test_what_a_dump_raises_is_passed_on(plain: TypedSerializer) -> None:
    """An application's own ``dump`` that raises shows its own error."""

    def broken(_: Money) -> Any:
        raise ValueError("cannot dump")

    plain.register(Money, "money", dump=broken, load=load_money)
    with pytest.raises(ValueError, match="cannot dump"):
        plain.dumps(Money(1))


@pytest.mark.parametrize(
    ("type_", "tag", "message"),
    [
        (Money, "other", "Money or the tag 'other' is registered already"),
        (Fraction, "money", "Fraction or the tag 'money' is registered already"),
        (Fraction, "", "a tag is a text"),
        (Fraction, None, "a tag is a text"),
        (Fraction, ["fraction"], "a tag is a text"),
        (Money(1), "m", "not a class"),
        ("Money", "m", "not a class"),
        (list, "l", "carried already"),
        (int, "i", "carried already"),
        (dt.datetime, "d", "carried already"),
        (Markup, "m", "carried already"),
        (bytearray, "b", "bytearray cannot be registered"),
        (memoryview, "m", "memoryview cannot be registered"),
        (msgpack.ExtType, "e", "ExtType cannot be registered"),
        (msgpack.Timestamp, "t", "Timestamp cannot be registered"),
    ],
)
def test_what_cannot_be_registered(
    serializer: TypedSerializer, type_: Any, tag: Any, message: str
) -> None:
    """A type or tag that is taken, or that would not come back as itself, is refused at once."""
    with pytest.raises(ConfigurationError, match=message):
        serializer.register(type_, tag, dump=dump_money, load=load_money)
    assert there_and_back(serializer, Money(1)) == Money(1)


# -- bytes that are not ours -----------------------------------------------------------------------


def loads_or_refuses(data: bytes) -> None:
    try:
        TypedSerializer().loads(data)
    except RowError:
        pass


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_garbage_raises_nothing_but_row_errors(data: bytes) -> None:
    """Whatever bytes a row holds, reading them either works or raises `RowError`."""
    loads_or_refuses(data)


@given(session_values(), st.data())
@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_damaged_bytes_raise_nothing_but_row_errors(value: Any, choose: st.DataObject) -> None:
    """Bytes of ours with one of them changed are read, or raise `RowError`, and nothing else."""
    data = bytearray(TypedSerializer().dumps(value))
    data[choose.draw(st.integers(0, len(data) - 1))] = choose.draw(st.integers(0, 255))
    loads_or_refuses(bytes(data))


def pieces(data: bytes) -> Iterator[bytes]:
    for size in range(len(data)):
        yield data[:size]
    yield data + b"\xc0"


@pytest.mark.parametrize(
    "data",
    [
        *pieces(bytes.fromhex("d60893010203")),
        b"\xc1",
        b"\xc7\x03\x02\x91\x01\xc0",  # a tuple with something after it
        b"\xd5\x02\x91\x91",  # a tuple whose list ends early
        b"\xd4\x02\x01",  # a tuple of no list
        b"\xd4\x63\x01",  # an extension type of a later release
        b"\xd6\x09\x01\x02\x03\x04",  # a UUID of four bytes
        b"\x81\x90\x01",  # a list as a key
        b"\xdd\xff\xff\xff\xff",  # four thousand million items
        b"\x91" * 2000 + b"\x01",
        b"\xc7\x11\x05\x93\xa1x\x00\xad../etc/passwd",
    ],
    ids=bytes.hex,
)
def test_bytes_that_are_not_ours_are_refused(plain: TypedSerializer, data: bytes) -> None:
    """Truncated, prolonged and malformed bytes are a `RowError`, without the bytes in its text."""
    with pytest.raises(RowError) as caught:
        plain.loads(data)
    assert "etc" not in str(caught.value)
