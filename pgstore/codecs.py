"""Codecs sign (and encrypt) what a browser holds; sealers do the same for what a row holds.

Both are made from the same key pairs, as gorilla's ``CodecsFromPairs`` does: the first pair writes,
every pair reads. Each purpose has a subkey of its own, so that nothing made for one can be used as
the other.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from itsdangerous import (
    BadSignature,
    BadTimeSignature,
    Signer,
    TimestampSigner,
    base64_encode,
    want_bytes,
)
from itsdangerous.signer import SigningAlgorithm

from .errors import (
    ConfigurationError,
    CookieError,
    CookieExpired,
    CookieMalformed,
    CookieNotYetValid,
    CookieSignatureInvalid,
    CookieTooLong,
    PGStoreError,
    RowError,
)
from .options import seconds
from .serializers import Serializer, TypedSerializer

__all__ = [
    "Codec",
    "KeyPair",
    "RowSealer",
    "Sealer",
    "SecureCookie",
    "codecs_from_pairs",
    "decode_multi",
    "encode_multi",
    "pairs",
    "sealers_from_pairs",
]

MAX_COOKIE_BYTES: Final = 4096
# Clocks of one site's machines may differ by so much before a value counts as from the future.
CLOCK_SKEW_SECONDS: Final = 60.0

_TO_BASE64: Final = bytes.maketrans(b"-_", b"+/")

KeyPair = tuple[bytes, bytes | None]


class Codec(Protocol):
    """Turns a value into a cookie's value and back; bound to the cookie's name."""

    def encode(self, name: str, value: Any) -> str:
        """Return the text for a cookie called ``name``."""

    def decode(self, name: str, value: str) -> Any:
        """Return what `encode` was given. Raises `CookieError` for what it did not make."""


class Sealer(Protocol):
    """Protects a row's data: bytes and a context in, bytes out.

    The context names the row; what was sealed under one context must not open under another.
    """

    def seal(self, data: bytes, context: bytes) -> bytes:
        """Return ``data`` in a form that cannot be changed or moved without notice."""

    def open(self, sealed: bytes, context: bytes) -> bytes:
        """Return what `seal` was given. Raises `RowError` for anything else."""


class SecureCookie:
    """A signed, optionally encrypted value that needs no storage: gorilla's securecookie.

    ``hash_key`` (32 bytes or more) signs with HMAC, SHA-256 unless ``digest_method`` says
    otherwise; ``block_key`` (16, 24 or 32 bytes, or None) encrypts with AES-GCM. `decode` refuses
    values older than ``max_age`` or younger than ``min_age`` (seconds or `timedelta`; 0 for no
    limit), and values from more than 60 seconds in the future, which allows for skew between the
    clocks of one site. With both ages 0 the value carries no date at all. ``max_length`` bounds the
    text in bytes, both ways.

    Thread-safe. Raises `ConfigurationError` for keys and limits that do not fit.
    """

    def __init__(
        self,
        hash_key: bytes,
        block_key: bytes | None = None,
        *,
        max_age: float | timedelta = 30 * 24 * 3600,
        min_age: float | timedelta = 0,
        max_length: int = MAX_COOKIE_BYTES,
        serializer: Serializer | None = None,
        digest_method: Callable[..., Any] = hashlib.sha256,
        clock: Callable[[], float] = time.time,
    ) -> None:
        hash_key, block_key = _check_pair(hash_key, block_key)
        self._max_age = seconds(max_age, "max_age")
        self._min_age = seconds(min_age, "min_age")
        if self._max_age < 0 or self._min_age < 0:
            raise ConfigurationError("max_age and min_age must be 0 (no limit) or more seconds")
        self._max_length = check_max_length(max_length)
        self._serializer = serializer if serializer is not None else TypedSerializer()
        self._digest_method = digest_method
        self._clock = clock
        self._dated = bool(self._max_age or self._min_age)
        self._hash_key = hash_key
        self._cipher = block_key and AESGCM(
            _subkey(block_key, b"cookie encryption", len(block_key))
        )
        # Names come from the application, never from a client, so this stays as small as their
        # number.
        self._signers: dict[str, Signer] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'encrypted' if self._cipher else 'signed'}>"

    def encode(self, name: str, value: Any) -> str:
        """Return the signed text of ``value`` for a cookie called ``name``.

        Raises `SerializationError` for a value that cannot be carried, `CookieTooLong` for a text
        over ``max_length`` bytes.
        """
        data = self._serializer.dumps(value)
        if self._cipher:
            nonce = os.urandom(12)
            data = nonce + self._cipher.encrypt(nonce, data, name.encode("utf-8"))
        payload = base64.urlsafe_b64encode(data).rstrip(b"=")
        text = self._signer(name).sign(payload).decode("ascii")
        self._check_length(text)
        return text

    def decode(self, name: str, value: str) -> Any:
        """Return the value that `encode` signed for a cookie called ``name``.

        Raises a `CookieError`: `CookieTooLong`, `CookieMalformed`, `CookieSignatureInvalid`,
        `CookieExpired` or `CookieNotYetValid`. Anything that a client may send is answered by one
        of these.
        """
        self._check_length(value)
        signer = self._signer(name)
        try:
            text = value.encode("ascii")
        except UnicodeEncodeError:
            raise CookieMalformed("the value is not ASCII") from None
        signed, separator, signature = text.rpartition(b".")
        if not separator:
            raise CookieMalformed("the value has no signature")
        # The text of the signature is compared, not its bytes: base64 has several texts for the
        # same bytes, and a value has one form only.
        if not hmac.compare_digest(signer.get_signature(signed), signature):
            raise CookieSignatureInvalid("the value was not signed for this name with this key")
        if isinstance(signer, TimestampSigner):
            signed = self._check_dates(signer, text)
        data = _decode_base64(signed)
        if self._cipher:
            try:
                data = self._cipher.decrypt(data[:12], data[12:], name.encode("utf-8"))
            except (InvalidTag, ValueError):
                # Only with a block key that was changed while the hash key stayed.
                raise CookieSignatureInvalid("the value was not encrypted with this key") from None
        try:
            return self._serializer.loads(data)
        except PGStoreError as error:
            raise CookieMalformed(f"the signed value cannot be read: {error}") from error
        except Exception as error:
            # From another serializer: perhaps the value was signed before the two were swapped.
            raise CookieMalformed(
                f"the signed value cannot be read ({type(error).__name__})"
            ) from error

    def _signer(self, name: str) -> Signer:
        signer = self._signers.get(name)
        if signer is None:
            # With and without a date are two purposes: one must not be read as the other.
            purpose = b"dated cookie:" if self._dated else b"cookie:"
            make = _ClockedSigner if self._dated else _Signer
            salt = purpose + name.encode("utf-8")
            key = _subkey(self._hash_key, salt, 32)
            algorithm = _HMAC(key, self._digest_method)
            signer = make(key, salt=salt, key_derivation="none", algorithm=algorithm)
            if isinstance(signer, _ClockedSigner):
                signer.clock = self._clock
            self._signers[name] = signer
        return signer

    def _check_length(self, text: str) -> None:
        if self._max_length and len(text) > self._max_length:
            raise CookieTooLong(
                f"the cookie's value takes {len(text)} bytes, and max_length is {self._max_length}"
            )

    def _check_dates(self, signer: TimestampSigner, text: bytes) -> bytes:
        try:
            signed, date = signer.unsign(text, return_timestamp=True)
        except (BadTimeSignature, BadSignature) as error:
            raise CookieMalformed("the value carries no readable date") from error
        age = self._clock() - date.timestamp()
        if self._max_age and age > self._max_age:
            raise CookieExpired(f"signed {age:.0f} s ago; max_age is {self._max_age:g} s", date)
        if self._min_age and age < self._min_age:
            raise CookieNotYetValid(f"signed {age:.0f} s ago; min_age is {self._min_age:g} s", date)
        if age < -CLOCK_SKEW_SECONDS:
            raise CookieNotYetValid(f"signed {-age:.0f} s in the future", date)
        return signed


class RowSealer:
    """Seals a row's data: authenticated always, encrypted when there is a block key.

    The sealed form is a format byte (1 signed, 2 encrypted) and either HMAC-SHA256 and the data, or
    nonce and AES-GCM ciphertext. The key is derived from the context, so each row has its own and
    random nonces cannot meet; it carries no age. Thread-safe.
    """

    _SIGNED, _ENCRYPTED = b"\x01", b"\x02"

    def __init__(self, hash_key: bytes, block_key: bytes | None = None) -> None:
        hash_key, block_key = _check_pair(hash_key, block_key)
        if block_key is None:
            self._format, self._key_bytes = self._SIGNED, 32
            key = _subkey(hash_key, b"row signature", 32)
        else:
            self._format, self._key_bytes = self._ENCRYPTED, len(block_key)
            # From both keys: either one being dropped makes the row unreadable.
            key = _subkey(hash_key + block_key, b"row encryption", 32)
        self._keyed = hmac.new(key, self._format, "sha256")

    def __repr__(self) -> str:
        how = "encrypted" if self._format == self._ENCRYPTED else "signed"
        return f"<{type(self).__name__} {how}>"

    def seal(self, data: bytes, context: bytes) -> bytes:
        """Return ``data`` sealed for the row that ``context`` names."""
        key = self._row_key(context)
        if self._format == self._SIGNED:
            return self._format + hmac.digest(key, data, "sha256") + data
        nonce = os.urandom(12)
        return self._format + nonce + AESGCM(key).encrypt(nonce, data, self._format)

    def open(self, sealed: bytes, context: bytes) -> bytes:
        """Return the data that was sealed for this context.

        Raises `RowError` when it was changed, truncated, sealed for another row or with another
        key.
        """
        if sealed[:1] == self._format:
            key = self._row_key(context)
            if self._format == self._SIGNED:
                data = sealed[33:]
                if hmac.compare_digest(hmac.digest(key, data, "sha256"), sealed[1:33]):
                    return data
            else:
                try:
                    return AESGCM(key).decrypt(sealed[1:13], sealed[13:], self._format)
                except (InvalidTag, ValueError):
                    pass
        raise RowError("the row's data was not sealed for this row with this key")

    def _row_key(self, context: bytes) -> bytes:
        mac = self._keyed.copy()
        mac.update(context)
        return mac.digest()[: self._key_bytes]


def pairs(*keys: bytes | None) -> list[KeyPair]:
    """Group keys as (hash key, block key) pairs; the last block key may be left out.

    Raises `ConfigurationError` for no keys at all, and for lengths that do not fit.
    """
    if not keys:
        raise ConfigurationError(
            "at least one hash key is needed: make one with generate_random_key(32) or "
            "'pgstore keygen'"
        )
    blocks = [*keys[1::2], None] if len(keys) % 2 else keys[1::2]
    found, problems = [], []
    for number, (key, block) in enumerate(zip(keys[::2], blocks, strict=True), 1):
        try:
            found.append(_check_pair(key, block))
        except ConfigurationError as problem:
            problems.append(f"key pair {number}: {problem}")
    if problems:
        raise ConfigurationError("; ".join(problems))
    return found


def codecs_from_pairs(*keys: bytes | None, **settings: Any) -> list[SecureCookie]:
    """Make one `SecureCookie` per pair of ``hash_key, block_key, old_hash_key, old_block_key, …``.

    The first pair signs, every pair verifies: put a new pair in front. (itsdangerous's own key
    lists have the newest last.) A block key may be None. ``settings`` are those of `SecureCookie`.
    """
    return [SecureCookie(key, block, **settings) for key, block in pairs(*keys)]


def sealers_from_pairs(*keys: bytes | None) -> list[RowSealer]:
    """Make one `RowSealer` per pair; the first seals, every one opens."""
    return [RowSealer(key, block) for key, block in pairs(*keys)]


def encode_multi(name: str, value: Any, codecs: Sequence[Codec]) -> str:
    """Encode with the first codec (gorilla's ``EncodeMulti``)."""
    return _some(codecs)[0].encode(name, value)


def decode_multi(name: str, value: str, codecs: Sequence[Codec]) -> Any:
    """Decode with the first codec that can (gorilla's ``DecodeMulti``).

    When none can, raises a `CookieError` whose ``causes`` hold one error per codec, of the class of
    the most telling one: the first that is not `CookieSignatureInvalid`, if there is one.
    """
    return decode_with_index(name, value, codecs)[0]


def decode_with_index(name: str, value: str, codecs: Sequence[Codec]) -> tuple[Any, int]:
    """Do as `decode_multi` does, and tell which codec it was: any but the first is an old key."""
    causes: list[CookieError] = []
    for index, codec in enumerate(_some(codecs)):
        try:
            return codec.decode(name, value), index
        except CookieError as error:
            causes.append(error)
    raise _most_telling(causes)


def _most_telling(causes: list[CookieError]) -> CookieError:
    # "Expired" under the key that signed it says more than "not mine" under all the others.
    cause = next((c for c in causes if not isinstance(c, CookieSignatureInvalid)), causes[0])
    # A copy, for an error that is among its own causes is a cycle that only the collector frees.
    error = type(cause).__new__(type(cause), *cause.args)
    error.__dict__.update(cause.__dict__, causes=tuple(causes))
    return error


def _some(codecs: Sequence[Codec]) -> Sequence[Codec]:
    if not codecs:
        raise ConfigurationError("at least one codec is needed")
    return codecs


def check_max_length(value: int) -> int:
    """Return a limit in bytes, 0 for none. Raises `ConfigurationError` for anything else."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigurationError(f"max_length must be 0 (no limit) or more bytes, not {value!r}")
    return value


def _check_pair(hash_key: bytes | None, block_key: bytes | None) -> KeyPair:
    problems = []
    if not isinstance(hash_key, bytes) or len(hash_key) < 32:
        problems.append(f"a hash key wants 32 bytes or more, not {_measure(hash_key)}")
    if block_key is not None and (
        not isinstance(block_key, bytes) or len(block_key) not in (16, 24, 32)
    ):
        problems.append(f"a block key wants 16, 24 or 32 bytes, or None, not {_measure(block_key)}")
    if problems:
        raise ConfigurationError("; ".join(problems))
    assert isinstance(hash_key, bytes)
    return hash_key, block_key


def _measure(key: object) -> str:
    """Describe a key that does not fit without showing it."""
    return f"{len(key)} bytes" if isinstance(key, bytes) else type(key).__name__


def _subkey(key: bytes, purpose: bytes, length: int) -> bytes:
    """Derive a purpose's own key from a random one (HKDF-Expand, RFC 5869)."""
    return HKDFExpand(SHA256(), length, b"pgstore 1 " + purpose).derive(key)


def _decode_base64(text: bytes) -> bytes:
    try:
        return binascii.a2b_base64(text.translate(_TO_BASE64) + b"=" * (-len(text) % 4))
    except binascii.Error:
        raise CookieMalformed("the signed value is not base64url") from None


class _HMAC(SigningAlgorithm):
    """HMAC with one key, which is worked in once and not for every signature."""

    def __init__(self, key: bytes, digest_method: Any) -> None:
        self._keyed = hmac.new(key, digestmod=digest_method)

    def get_signature(self, key: bytes, value: bytes) -> bytes:
        mac = self._keyed.copy()
        mac.update(value)
        return mac.digest()


class _Signer(Signer):
    """Signs with its algorithm's key: `SecureCookie` derives one for each name, once."""

    def get_signature(self, value: str | bytes) -> bytes:
        return base64_encode(self.algorithm.get_signature(b"", want_bytes(value)))


class _ClockedSigner(_Signer, TimestampSigner):
    """Signs with a clock that tests can move."""

    clock: Callable[[], float] = staticmethod(time.time)

    def get_timestamp(self) -> int:
        return int(self.clock())

    def timestamp_to_datetime(self, ts: int) -> datetime:
        return datetime.fromtimestamp(ts, UTC)
