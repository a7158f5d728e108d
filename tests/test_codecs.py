from __future__ import annotations

import base64
import hashlib
import json
import os
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pgstore.codecs import (
    RowSealer,
    SecureCookie,
    codecs_from_pairs,
    decode_multi,
    decode_with_index,
    encode_multi,
    pairs,
    sealers_from_pairs,
)
from pgstore.errors import (
    ConfigurationError,
    CookieError,
    CookieExpired,
    CookieMalformed,
    CookieNotYetValid,
    CookieSignatureInvalid,
    CookieTooLong,
    RowError,
    SerializationError,
    UnknownTypeError,
)
from pgstore.serializers import TypedSerializer
from support.strategies import portrait, session_values

HASH_KEY = bytes(range(32))
BLOCK_KEY = bytes(range(32, 64))
OTHER_HASH_KEY = bytes(range(64, 96))
OTHER_BLOCK_KEY = bytes(range(96, 128))
NOW = 1_700_000_000
VALUE = {"user": 7, "cart": ("tea", {"milk"})}
ALPHABET = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"


@dataclass
class Clock:
    """A clock that stands still until it is moved."""

    now: float = NOW

    def __call__(self) -> float:
        return self.now


class Json:
    """Another serializer, with errors of its own."""

    def dumps(self, value: Any, /) -> bytes:
        return json.dumps(value).encode()

    def loads(self, data: bytes, /) -> Any:
        return json.loads(data)


KINDS: dict[str, dict[str, Any]] = {
    "signed, dated": {},
    "signed, undated": {"max_age": 0},
    "encrypted, dated": {"block_key": BLOCK_KEY},
    "encrypted, undated": {"block_key": BLOCK_KEY, "max_age": 0},
}


def cookie_codec(hash_key: bytes = HASH_KEY, **settings: Any) -> SecureCookie:
    return SecureCookie(hash_key, **{"clock": Clock(), **settings})


@pytest.fixture(params=KINDS)
def codec(request: pytest.FixtureRequest) -> SecureCookie:
    """Return a codec of each kind: signed or encrypted, with a date or without."""
    return cookie_codec(**KINDS[request.param])


def refusal(codec: SecureCookie, value: str, name: str = "sid") -> type[CookieError] | None:
    """Return the class of the error that ``value`` is refused with, None when it is not."""
    try:
        codec.decode(name, value)
    except CookieError as error:
        return type(error)
    return None


def from_base64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "===")


# -- what goes in comes out ------------------------------------------------------------------------


@given(st.sampled_from(sorted(KINDS)), session_values())
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
def test_a_value_comes_back_exactly(kind: str, value: Any) -> None:
    """Every kind of codec returns what it was given, to the last detail."""
    codec = cookie_codec(max_length=0, **KINDS[kind])
    assert portrait(codec.decode("sid", codec.encode("sid", value))) == portrait(value)


@pytest.mark.parametrize("length", [16, 24, 32])
def test_every_length_of_block_key_encrypts(length: int) -> None:
    """AES-128, -192 and -256 are chosen by the length of the block key."""
    codec = cookie_codec(block_key=BLOCK_KEY[:length])
    assert codec.decode("sid", codec.encode("sid", VALUE)) == VALUE


def test_a_value_is_text_that_no_cookie_has_to_quote(codec: SecureCookie) -> None:
    """An encoded value is base64url and dots, so that no browser or proxy changes it."""
    assert set(codec.encode("sid", VALUE)) <= {*ALPHABET, "."}


def test_signing_shows_the_value_and_encrypting_hides_it() -> None:
    """A block key keeps the value from the browser; without one it can be read there."""
    signed = cookie_codec().encode("sid", "plain text")
    encrypted = cookie_codec(block_key=BLOCK_KEY).encode("sid", "plain text")
    assert b"plain text" in from_base64(signed.split(".")[0])
    assert b"plain" not in from_base64(encrypted.split(".")[0])


def test_the_same_value_is_never_encrypted_to_the_same_text() -> None:
    """Each encryption has a nonce of its own: nobody sees that two values are equal."""
    codec = cookie_codec(block_key=BLOCK_KEY)
    assert len({codec.encode("sid", VALUE) for _ in range(50)}) == 50


def test_a_failing_random_source_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without random bytes nothing is encrypted, rather than under a nonce that anybody knows."""

    def fail(_: int) -> bytes:
        raise OSError("no random bytes")

    monkeypatch.setattr(os, "urandom", fail)
    with pytest.raises(OSError, match="no random bytes"):
        cookie_codec(block_key=BLOCK_KEY).encode("sid", VALUE)
    with pytest.raises(OSError, match="no random bytes"):
        RowSealer(HASH_KEY, BLOCK_KEY).seal(b"data", b"row")


def test_what_cannot_be_carried_is_not_encoded(codec: SecureCookie) -> None:
    """A value that the serializer refuses raises its error, with the path."""
    with pytest.raises(SerializationError, match=r'^value\["a"\] '):
        codec.encode("sid", {"a": object()})


# -- the wire format -------------------------------------------------------------------------------

# Browsers hold cookies and databases hold rows of these forms. To change one of these strings is to
# log everybody out: do not, without a way to read the old form too.
GOLDEN_COOKIES = {
    "signed, undated": (
        "gqR1c2VyB6RjYXJ0xw4CkqN0ZWHHBgORpG1pbGs.dhilTZ7JUSNO5eXgG5_KJz2nkloP-fSqbOmn9VzWfgo"
    ),
    "signed, dated": (
        "gqR1c2VyB6RjYXJ0xw4CkqN0ZWHHBgORpG1pbGs.ZVPxAA.csm6keHVW04ETRm72pyW7c1EC2RNgNMFOFs3wi-EdZU"
    ),
    "encrypted, undated": (
        "yMnKy8zNzs_Q0dLTN4udOmifUUMd1A4RtBCzhiLl4tN5MNLEA_-fU_kcP8NyUOzl7_oraWnfbsZm.66o"
        "s6C93oq2lW1yW5Ms5zAIg9a8a5aB0i86fvX_ZCWs"
    ),
    "encrypted, dated": (
        "yMnKy8zNzs_Q0dLTN4udOmifUUMd1A4RtBCzhiLl4tN5MNLEA_-fU_kcP8NyUOzl7_oraWnfbsZm.ZVP"
        "xAA.Fd4ec_jRIe-86VpWPqQ5ceGR9fwzx_XAZ0cFpRsNeqE"
    ),
}
GOLDEN_ROWS = {
    "signed": (
        (HASH_KEY,),
        "01434aaf80e0f1e2ef9a65f6091fca6213aeac91a349995e1c16e6b10f95c9736d64617461",
    ),
    "encrypted": (
        (HASH_KEY, BLOCK_KEY),
        "02c8c9cacbcccdcecfd0d1d2d3056214d20fd65e5dbefd565852fdf93d295c1d62",
    ),
}


@pytest.mark.parametrize("kind", GOLDEN_COOKIES)
def test_cookies_of_earlier_releases_are_read(kind: str) -> None:
    """The forms of a cookie are frozen: what was sent to a browser is read for ever."""
    codec = cookie_codec(**KINDS[kind])
    assert codec.decode("sid", GOLDEN_COOKIES[kind]) == VALUE


@pytest.mark.parametrize("kind", ["signed, undated", "signed, dated"])
def test_cookies_are_written_as_by_earlier_releases(kind: str) -> None:
    """The forms of a cookie are frozen: an older process of the same site reads what we write."""
    assert cookie_codec(**KINDS[kind]).encode("sid", VALUE) == GOLDEN_COOKIES[kind]


@pytest.mark.parametrize("kind", GOLDEN_ROWS)
def test_rows_of_earlier_releases_are_opened(kind: str) -> None:
    """The forms of a sealed row are frozen: what is in the database is read for ever."""
    keys, sealed = GOLDEN_ROWS[kind]
    assert RowSealer(*keys).open(bytes.fromhex(sealed), b"row") == b"data"


def test_rows_are_sealed_as_by_earlier_releases() -> None:
    """The form of a signed row is frozen: an older process of the same site opens it."""
    keys, sealed = GOLDEN_ROWS["signed"]
    assert RowSealer(*keys).seal(b"data", b"row").hex() == sealed


# -- what a client may send ------------------------------------------------------------------------


@given(st.sampled_from(sorted(KINDS)), st.text())
@example("signed, undated", "")
@example("encrypted, dated", ".")
@example("encrypted, dated", "..")
@example("signed, dated", "é.é")
@example("signed, dated", "\udce9.\udce9")
@example("signed, undated", "a.b\n")
def test_garbage_raises_nothing_but_cookie_errors(kind: str, value: str) -> None:
    """Any text that a client may send is refused as unsigned or malformed, never otherwise."""
    assert refusal(cookie_codec(**KINDS[kind]), value) in (CookieMalformed, CookieSignatureInvalid)


@pytest.mark.parametrize("value", ["", "no signature", "é.signature"])
def test_what_has_not_the_form_of_a_value_is_malformed(codec: SecureCookie, value: str) -> None:
    """A value that is empty, without a signature or not ASCII is told from a forged one."""
    assert refusal(codec, value) is CookieMalformed


def test_any_changed_character_is_noticed(codec: SecureCookie) -> None:
    """No character of a value can be replaced by another: of payload, date, signature or dots."""
    text = codec.encode("sid", VALUE)
    changed = [
        text[:place] + character + text[place + 1 :]
        for place in range(len(text))
        for character in [*string.printable, "é"]
        if character != text[place]
    ]
    refusals = {refusal(codec, value) for value in changed}
    assert refusals == {CookieSignatureInvalid, CookieMalformed}


def test_any_truncation_is_noticed(codec: SecureCookie) -> None:
    """No part of a value, from its beginning or to its end, is taken for a value."""
    text = codec.encode("sid", VALUE)
    parts = {text[:place] for place in range(len(text))} | {text[n:] for n in range(1, len(text))}
    assert None not in {refusal(codec, part) for part in parts}


def test_the_signature_of_another_value_does_not_fit(codec: SecureCookie) -> None:
    """Two cookies of the same name cannot lend each other their signatures."""
    one, other = codec.encode("sid", 1), codec.encode("sid", 2)
    mixed = one.rpartition(".")[0] + "." + other.rpartition(".")[2]
    assert refusal(codec, mixed) is CookieSignatureInvalid


def last_letter_plus(spare: int) -> Callable[[str], str]:
    """Change bits of the last letter that no byte uses: 43 letters hold 2 bits more than needed."""
    return lambda text: text[:-1] + ALPHABET[ALPHABET.index(text[-1]) ^ spare]


@pytest.mark.parametrize(
    "respell",
    [
        last_letter_plus(1),
        last_letter_plus(2),
        last_letter_plus(3),
        lambda text: text + "=",
        lambda text: text + "==",
        lambda text: text[:9] + "!" + text[9:],
        lambda text: text[:9] + "\n" + text[9:],
        lambda text: text + " ",
        lambda text: text.translate(str.maketrans("-_", "+/")),
    ],
)
def test_a_value_has_one_form_only(respell: Callable[[str], str]) -> None:
    """Another base64 text of the same signature is refused: a value cannot be sent in disguise."""
    codec = cookie_codec(max_age=0)
    signed, _, signature = GOLDEN_COOKIES["signed, undated"].rpartition(".")
    other = respell(signature)
    assert other != signature
    assert from_base64(other) == from_base64(signature)
    assert refusal(codec, f"{signed}.{other}") is CookieSignatureInvalid


def forbidden(*_: Any) -> Any:
    raise AssertionError("cryptography was used")


@pytest.mark.parametrize("size", [4097, 2**20])
def test_a_long_value_is_refused_before_any_cryptography(size: int) -> None:
    """A client cannot make the server hash a megabyte: over 4096 bytes only the length is read."""
    codec = cookie_codec(digest_method=forbidden)
    assert refusal(codec, "x." * (size // 2) + "x" * (size % 2)) is CookieTooLong
    with pytest.raises(AssertionError, match="cryptography was used"):
        codec.decode("sid", "x." * 2048)


@pytest.mark.parametrize("hash_key", [HASH_KEY, OTHER_HASH_KEY])
@pytest.mark.parametrize("block_key", [BLOCK_KEY, OTHER_BLOCK_KEY, BLOCK_KEY[:16], None])
@pytest.mark.parametrize("name", ["sid", "sid2", "SID", ""])
@pytest.mark.parametrize("max_age", [0, 60])
def test_a_value_is_bound_to_keys_and_name(
    hash_key: bytes, block_key: bytes | None, name: str, max_age: int
) -> None:
    """A value is read with both its keys and under its name only."""
    text = cookie_codec(block_key=BLOCK_KEY, max_age=max_age).encode("sid", VALUE)
    reader = cookie_codec(hash_key, block_key=block_key, max_age=max_age)
    right = (hash_key, block_key, name) == (HASH_KEY, BLOCK_KEY, "sid")
    # Without its block key a codec takes the ciphertext for what it has signed.
    wrong = CookieMalformed if block_key is None else CookieSignatureInvalid
    if (hash_key, name) != (HASH_KEY, "sid"):
        wrong = CookieSignatureInvalid
    assert refusal(reader, text, name) is (None if right else wrong)


@pytest.mark.parametrize("kind", ["signed", "encrypted"])
@pytest.mark.parametrize(("writes", "reads"), [("dated", "undated"), ("undated", "dated")])
def test_dated_and_undated_cannot_pose_as_one_another(kind: str, writes: str, reads: str) -> None:
    """A value without a date is not read where one is due, nor the reverse, with the same keys."""
    text = cookie_codec(**KINDS[f"{kind}, {writes}"]).encode("sid", VALUE)
    assert refusal(cookie_codec(**KINDS[f"{kind}, {reads}"]), text) is CookieSignatureInvalid


def test_each_purpose_has_a_key_of_its_own() -> None:
    """The same bytes are signed otherwise for each cookie, and for a row, by the same hash key."""
    undated = cookie_codec(max_age=0)
    texts = [undated.encode(name, VALUE) for name in ("sid", "other", "row signature")]
    (payload,) = {text.partition(".")[0] for text in texts}
    signatures = {from_base64(text.partition(".")[2]) for text in texts}
    rows = {RowSealer(HASH_KEY).seal(payload.encode(), c)[1:33] for c in (b"sid", b"cookie:sid")}
    assert len(signatures | rows) == 5


@pytest.mark.parametrize(
    "value", ["hunter2", "hunter2.hunter2", "é hunter2", "hunter2" * 1000, "..hunter2.."]
)
def test_an_error_shows_nothing_of_the_value(codec: SecureCookie, value: str) -> None:
    """What a client sent does not get into a log through an error's message."""
    with pytest.raises(CookieError) as caught:
        codec.decode("sid", value)
    assert "hunter2" not in f"{caught.value} {caught.value!r}"


# -- dates -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ages", "age", "expected"),
    [
        ({"max_age": 100}, 0, None),
        ({"max_age": 100}, 100, None),
        ({"max_age": 100}, 101, CookieExpired),
        ({"max_age": timedelta(minutes=1)}, 60, None),
        ({"max_age": timedelta(minutes=1)}, 61, CookieExpired),
        ({"max_age": 100, "min_age": 10}, 9, CookieNotYetValid),
        ({"max_age": 100, "min_age": timedelta(seconds=10)}, 10, None),
        ({"max_age": 100, "min_age": 10}, 101, CookieExpired),
        ({"max_age": 0, "min_age": 10}, 9, CookieNotYetValid),
        ({"max_age": 0, "min_age": 10}, 10**9, None),
        ({"max_age": 100}, -60, None),
        ({"max_age": 100}, -61, CookieNotYetValid),
        ({"max_age": 100, "min_age": 10}, -1, CookieNotYetValid),
        ({}, 30 * 24 * 3600, None),
        ({}, 30 * 24 * 3600 + 1, CookieExpired),
    ],
)
def test_a_value_is_good_between_its_ages(
    ages: dict[str, Any], age: float, expected: type[CookieError] | None
) -> None:
    """`max_age` and `min_age` bound a value's age; 60 seconds in the future are clock skew."""
    clock = Clock()
    codec = cookie_codec(clock=clock, **ages)
    text = codec.encode("sid", VALUE)
    clock.now += age
    assert refusal(codec, text) is expected


@pytest.mark.parametrize("age", [-(10**9), 0, 10**9])
def test_without_ages_a_value_has_no_date(age: float) -> None:
    """With `max_age=0` the clock counts for nothing: a wrong one logs nobody out."""
    clock = Clock()
    codec = cookie_codec(max_age=0, clock=clock)
    text = codec.encode("sid", VALUE)
    clock.now += age
    assert codec.decode("sid", text) == VALUE
    assert codec.encode("sid", VALUE) == text


@pytest.mark.parametrize("age", [-61, 101])
def test_a_date_that_is_refused_is_told(age: float) -> None:
    """The error about a date carries it, aware and in UTC."""
    clock = Clock()
    codec = cookie_codec(max_age=100, clock=clock)
    text = codec.encode("sid", VALUE)
    clock.now += age
    with pytest.raises((CookieExpired, CookieNotYetValid)) as caught:
        codec.decode("sid", text)
    assert caught.value.date == datetime.fromtimestamp(NOW, UTC)
    assert caught.value.date.tzinfo is UTC


def test_the_clock_is_the_systems_unless_it_is_given() -> None:
    """Without a clock of its own a codec takes the system's, for writing and for reading."""
    codec = SecureCookie(HASH_KEY, max_age=60)
    with time_machine.travel(NOW, tick=False) as traveller:
        text = codec.encode("sid", VALUE)
        assert text.split(".")[1] == GOLDEN_COOKIES["signed, dated"].split(".")[1]
        traveller.shift(60)
        assert refusal(codec, text) is None
        traveller.shift(1)
        assert refusal(codec, text) is CookieExpired


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_max_length_bounds_what_is_written_and_read(kind: str) -> None:
    """`max_length` is in bytes of text, the last one included, and holds both ways."""
    size = len(GOLDEN_COOKIES[kind])
    fits = cookie_codec(max_length=size, **KINDS[kind])
    short = cookie_codec(max_length=size - 1, **KINDS[kind])
    text = fits.encode("sid", VALUE)
    assert fits.decode("sid", text) == VALUE
    assert refusal(short, text) is CookieTooLong
    with pytest.raises(CookieTooLong, match=f"takes {size} bytes, and max_length is {size - 1}"):
        short.encode("sid", VALUE)


def test_max_length_0_is_no_limit() -> None:
    """`max_length=0` takes any length."""
    codec = cookie_codec(max_length=0)
    assert codec.decode("sid", codec.encode("sid", "x" * 10**6)) == "x" * 10**6


def test_a_digest_method_of_yours_signs() -> None:
    """`digest_method` replaces SHA-256; the two do not read one another."""
    sha256, sha512 = cookie_codec(), cookie_codec(digest_method=hashlib.sha512)
    text = sha512.encode("sid", VALUE)
    assert len(from_base64(text.rpartition(".")[2])) == 64
    assert sha512.decode("sid", text) == VALUE
    assert refusal(sha256, text) is CookieSignatureInvalid
    assert refusal(sha512, sha256.encode("sid", VALUE)) is CookieSignatureInvalid


def test_a_serializer_of_yours_carries_the_values() -> None:
    """`serializer` replaces the typed one: with JSON a tuple comes back as a list."""
    codec = cookie_codec(serializer=Json())
    text = codec.encode("sid", {"a": (1, 2)})
    assert from_base64(text.partition(".")[0]) == b'{"a": [1, 2]}'
    assert codec.decode("sid", text) == {"a": [1, 2]}


@pytest.mark.parametrize(
    ("writes", "reads"), [(TypedSerializer(), Json()), (Json(), TypedSerializer())]
)
def test_values_from_before_a_swap_of_serializers_are_malformed(writes: Any, reads: Any) -> None:
    """A signed value that the serializer cannot read is the client's error, whatever it raises."""
    text = cookie_codec(serializer=writes).encode("sid", {"hunter2": 7})
    with pytest.raises(CookieMalformed) as caught:
        cookie_codec(serializer=reads).decode("sid", text)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is not None


def test_a_type_that_is_registered_no_more_is_told() -> None:
    """A signed value of a type unknown here is refused with the type's tag."""
    registered = TypedSerializer()
    registered.register(Clock, "clock", dump=lambda clock: clock.now, load=Clock)
    text = cookie_codec(serializer=registered).encode("sid", Clock(5))
    with pytest.raises(CookieMalformed, match="'clock'") as caught:
        cookie_codec().decode("sid", text)
    assert isinstance(caught.value.__cause__, UnknownTypeError)


@pytest.mark.parametrize("maker", [SecureCookie, RowSealer, pairs])
@pytest.mark.parametrize(
    ("keys", "problems"),
    [
        ((b"hunter2",), ["a hash key wants 32 bytes or more, not 7 bytes"]),
        ((b"hunter2".ljust(31),), ["a hash key wants 32 bytes or more, not 31 bytes"]),
        ((b"",), ["a hash key wants 32 bytes or more, not 0 bytes"]),
        ((None,), ["a hash key wants 32 bytes or more, not NoneType"]),
        (("hunter2" * 5,), ["a hash key wants 32 bytes or more, not str"]),
        ((bytearray(32),), ["a hash key wants 32 bytes or more, not bytearray"]),
        ((HASH_KEY, b""), ["a block key wants 16, 24 or 32 bytes, or None, not 0 bytes"]),
        ((HASH_KEY, b"x" * 33), ["a block key wants 16, 24 or 32 bytes, or None, not 33 bytes"]),
        ((HASH_KEY, "hunter2" * 2), ["a block key wants 16, 24 or 32 bytes, or None, not str"]),
        (
            (b"hunter2", b"hunter2"),
            [
                "a hash key wants 32 bytes or more, not 7 bytes",
                "a block key wants 16, 24 or 32 bytes, or None, not 7 bytes",
            ],
        ),
    ],
)
def test_keys_that_do_not_fit(maker: Callable[..., Any], keys: Any, problems: list[str]) -> None:
    """Every problem of a key pair is named, with what would fit, and no key is shown."""
    with pytest.raises(ConfigurationError) as caught:
        maker(*keys)
    message = str(caught.value)
    assert message.removeprefix("key pair 1: ") == "; ".join(problems)
    assert "hunter2" not in message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_age": -1}, "max_age and min_age must be 0"),
        ({"min_age": timedelta(seconds=-1)}, "max_age and min_age must be 0"),
        ({"max_age": "60"}, "max_age must be seconds"),
        ({"min_age": None}, "min_age must be seconds"),
        ({"max_age": True}, "max_age must be seconds"),
        ({"max_age": float("nan")}, "max_age must be seconds"),
        ({"max_length": -1}, "max_length must be 0"),
        ({"max_length": 1.5}, "max_length must be 0"),
        ({"max_length": True}, "max_length must be 0"),
        ({"max_length": None}, "max_length must be 0"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    """A setting that does not fit is refused at construction, by name."""
    with pytest.raises(ConfigurationError, match=f"^{message}"):
        cookie_codec(**settings)


@pytest.mark.parametrize("thing", [SecureCookie, RowSealer])
@pytest.mark.parametrize(
    ("keys", "how"), [((HASH_KEY,), "signed"), ((HASH_KEY, BLOCK_KEY), "encrypted")]
)
def test_a_repr_shows_no_key(thing: Callable[..., Any], keys: tuple[bytes, ...], how: str) -> None:
    """The repr tells what a codec or sealer does, and nothing of its keys."""
    assert repr(thing(*keys)) == f"<{thing.__name__} {how}>"


# -- several key pairs -----------------------------------------------------------------------------


@pytest.mark.parametrize("make", [codecs_from_pairs, sealers_from_pairs])
@pytest.mark.parametrize(
    ("keys", "kinds"),
    [
        ((HASH_KEY,), ["signed"]),
        ((HASH_KEY, None), ["signed"]),
        ((HASH_KEY, BLOCK_KEY), ["encrypted"]),
        ((HASH_KEY, BLOCK_KEY, OTHER_HASH_KEY), ["encrypted", "signed"]),
        ((HASH_KEY, None, OTHER_HASH_KEY, OTHER_BLOCK_KEY), ["signed", "encrypted"]),
    ],
)
def test_keys_come_in_pairs(make: Callable[..., list[Any]], keys: Any, kinds: list[str]) -> None:
    """A block key may be None, or left out of the last pair: such a pair signs only."""
    assert [repr(made).split()[1].rstrip(">") for made in make(*keys)] == kinds


@pytest.mark.parametrize("make", [codecs_from_pairs, sealers_from_pairs])
def test_no_keys_at_all_are_refused(make: Callable[..., Any]) -> None:
    """Without a key there is nothing to sign with: the error says how to make one."""
    with pytest.raises(ConfigurationError, match=r"at least one hash key is needed.*keygen"):
        make()


@pytest.mark.parametrize("make", [codecs_from_pairs, sealers_from_pairs])
def test_every_bad_key_of_every_pair_is_named(make: Callable[..., Any]) -> None:
    """One error lists all that does not fit, by pair."""
    with pytest.raises(ConfigurationError) as caught:
        make(b"short", BLOCK_KEY, HASH_KEY, b"", None, None)
    assert str(caught.value) == (
        "key pair 1: a hash key wants 32 bytes or more, not 5 bytes; "
        "key pair 2: a block key wants 16, 24 or 32 bytes, or None, not 0 bytes; "
        "key pair 3: a hash key wants 32 bytes or more, not NoneType"
    )


def test_the_first_pair_writes_and_every_pair_reads() -> None:
    """A new pair goes in front: it signs at once, and what the old one signed stays good."""
    (old,) = codecs_from_pairs(HASH_KEY)
    rotated = codecs_from_pairs(OTHER_HASH_KEY, OTHER_BLOCK_KEY, HASH_KEY)
    before, after = old.encode("sid", "old"), encode_multi("sid", "new", rotated)
    assert decode_with_index("sid", before, rotated) == ("old", 1)
    assert decode_with_index("sid", after, rotated) == ("new", 0)
    assert refusal(old, after) is CookieSignatureInvalid


def test_settings_go_to_every_codec() -> None:
    """The settings of `codecs_from_pairs` hold for each of its codecs."""
    made = codecs_from_pairs(HASH_KEY, None, OTHER_HASH_KEY, max_length=5)
    assert [refusal(codec, "x" * 6) for codec in made] == [CookieTooLong, CookieTooLong]


def refusing_codecs(
    *keys: bytes, age: float = 0, **settings: Any
) -> tuple[str, list[SecureCookie]]:
    """Return a value that the last key signed ``age`` seconds ago, and a codec per key."""
    text = cookie_codec(keys[-1], clock=Clock(NOW - age), **settings).encode("sid", VALUE)
    return text, [cookie_codec(key, **settings) for key in keys]


THREE_KEYS = (OTHER_BLOCK_KEY, OTHER_HASH_KEY, HASH_KEY)


@pytest.mark.parametrize(
    ("age", "settings", "telling"),
    [
        (101, {"max_age": 100}, CookieExpired),
        (1, {"max_age": 0, "min_age": 2}, CookieNotYetValid),
        (-61, {"max_age": 100}, CookieNotYetValid),
    ],
)
def test_the_most_telling_refusal_is_raised(
    age: float, settings: dict[str, Any], telling: type[CookieError]
) -> None:
    """The codec that knows the signature says more than those that do not; all are in causes."""
    text, codecs = refusing_codecs(*THREE_KEYS, age=age, **settings)
    with pytest.raises(telling) as caught:
        decode_multi("sid", text, codecs)
    error = caught.value
    classes = [CookieSignatureInvalid, CookieSignatureInvalid, telling]
    assert [type(cause) for cause in error.causes] == classes
    assert str(error) == str(error.causes[2])
    assert error.date == error.causes[2].date == datetime.fromtimestamp(NOW - age, UTC)
    assert error not in error.causes


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("forged.signature", CookieSignatureInvalid),
        ("nothing", CookieMalformed),
        ("é.signature", CookieMalformed),
        ("x" * 4097, CookieTooLong),
    ],
)
def test_a_refusal_by_all_has_a_cause_per_codec(value: str, expected: type[CookieError]) -> None:
    """When no codec can read a value, each one's reason is told, in the order of the codecs."""
    codecs = [cookie_codec(key) for key in THREE_KEYS]
    with pytest.raises(CookieError) as caught:
        decode_multi("sid", value, codecs)
    assert type(caught.value) is expected
    assert [type(cause) for cause in caught.value.causes] == [expected] * 3


def test_a_codec_with_a_longer_limit_is_asked_too() -> None:
    """That one codec finds a value too long keeps none of the others from reading it."""
    short, long = cookie_codec(OTHER_HASH_KEY, max_length=10), cookie_codec()
    assert decode_multi("sid", long.encode("sid", VALUE), [short, long]) == VALUE


@pytest.mark.parametrize("use", [encode_multi, decode_multi])
def test_no_codecs_at_all_are_refused(use: Callable[..., Any]) -> None:
    """An empty list of codecs is a mistake of the caller, not a bad cookie."""
    with pytest.raises(ConfigurationError, match="at least one codec"):
        use("sid", "value", [])


# -- rows ------------------------------------------------------------------------------------------

SEALERS = {"signed": (HASH_KEY,), "encrypted": (HASH_KEY, BLOCK_KEY)}


@pytest.fixture(params=SEALERS)
def sealer(request: pytest.FixtureRequest) -> RowSealer:
    return RowSealer(*SEALERS[request.param])


def opens(sealer: RowSealer, sealed: bytes, context: bytes = b"row") -> bytes | None:
    """Return what a sealer opens, None when it refuses."""
    try:
        return sealer.open(sealed, context)
    except RowError:
        return None


@given(st.sampled_from(sorted(SEALERS)), st.binary(), st.binary())
def test_a_row_opens_as_it_was_sealed(kind: str, data: bytes, context: bytes) -> None:
    """Any bytes come back from under any context."""
    sealer = RowSealer(*SEALERS[kind])
    assert sealer.open(sealer.seal(data, context), context) == data


def damages(sealed: bytes) -> Iterator[bytes]:
    for place in range(len(sealed)):
        yield sealed[:place]
        for bit in range(8):
            yield sealed[:place] + bytes([sealed[place] ^ 1 << bit]) + sealed[place + 1 :]
    yield sealed + b"\0"


def test_any_damage_to_a_row_is_noticed(sealer: RowSealer) -> None:
    """A row that was cut at any length, prolonged, or changed in any bit is refused."""
    sealed = sealer.seal(b"the data of a session", b"row")
    assert {opens(sealer, damaged) for damaged in damages(sealed)} == {None}


@pytest.mark.parametrize("context", [b"", b"ro", b"row2", b"other"])
def test_a_row_is_bound_to_its_context(sealer: RowSealer, context: bytes) -> None:
    """Data that was copied over another row is refused."""
    assert opens(sealer, sealer.seal(b"data", b"row"), context) is None


@pytest.mark.parametrize(
    "keys",
    [
        (OTHER_HASH_KEY,),
        (HASH_KEY, OTHER_BLOCK_KEY),
        (OTHER_HASH_KEY, BLOCK_KEY),
        (HASH_KEY, BLOCK_KEY[:16]),
    ],
)
def test_a_row_is_bound_to_both_keys(sealer: RowSealer, keys: tuple[bytes, ...]) -> None:
    """A row opens with the very pair that sealed it: either key that is dropped closes it."""
    assert opens(RowSealer(*keys), sealer.seal(b"data", b"row")) is None


@pytest.mark.parametrize(("seals", "reads"), [("signed", "encrypted"), ("encrypted", "signed")])
@pytest.mark.parametrize("first", [b"\x00", b"\x01", b"\x02"])
def test_signed_and_encrypted_rows_cannot_pose_as_one_another(
    seals: str, reads: str, first: bytes
) -> None:
    """The format is bound: whatever its first byte is made to say, a row has one way to open."""
    sealed = RowSealer(*SEALERS[seals]).seal(b"data" * 20, b"row")
    assert opens(RowSealer(*SEALERS[reads]), first + sealed[1:]) is None


def test_a_sealed_row_is_readable_only_without_a_block_key() -> None:
    """A block key hides a row's data from who can read the database."""
    assert b"plain text" in RowSealer(HASH_KEY).seal(b"plain text", b"row")
    assert b"plain" not in RowSealer(HASH_KEY, BLOCK_KEY).seal(b"plain text", b"row")


def test_the_same_data_is_never_encrypted_to_the_same_bytes() -> None:
    """Each sealing has a nonce of its own: nobody sees that a session did not change."""
    sealer = RowSealer(HASH_KEY, BLOCK_KEY)
    assert len({sealer.seal(b"data", b"row") for _ in range(50)}) == 50
