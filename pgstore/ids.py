"""Session ids: a selector that finds the row, a generation, and a secret that proves the bearer.

    bytes  0 … 15   selector    birth second (5, big endian), random (11)
    bytes 16 … 18   generation  big endian, counts the renewals of the secret
    bytes 19 … 50   secret      random

51 bytes are 68 characters of base64url with no bit to spare, so that every id has one text.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from .errors import ConfigurationError, CookieMalformed

__all__ = ["SessionId", "generate_random_key", "handle_of", "key_of"]

SELECTOR_BYTES = 16
SECRET_BYTES = 32
MAX_GENERATION = 2**24 - 1

_ID_BYTES = SELECTOR_BYTES + 3 + SECRET_BYTES
_HANDLE = re.compile(r"[A-Za-z0-9_-]{21}[AQgw]")


def generate_random_key(length: int = 32) -> bytes:
    """Return ``length`` random bytes from the operating system, for use as a key.

    A failing source raises what `os.urandom` raises: unlike securecookie's ``GenerateRandomKey``,
    there is no empty key to overlook.
    """
    if not isinstance(length, int) or length < 16:
        raise ConfigurationError(f"a random key wants at least 16 bytes, not {length!r}")
    return secrets.token_bytes(length)


@dataclass(frozen=True, slots=True)
class SessionId:
    """One bearer's proof. Its secret is shown neither by repr nor by str."""

    selector: bytes
    generation: int
    secret: bytes = field(repr=False)

    @classmethod
    def new(cls, birth_seconds: float) -> SessionId:
        """Make a new id; the birth time, in Unix seconds, only keeps neighbours in time close."""
        birth = (int(birth_seconds) & 0xFF_FFFF_FFFF).to_bytes(5, "big")
        return cls(birth + secrets.token_bytes(SELECTOR_BYTES - 5), 0, _new_secret())

    @classmethod
    def from_bytes(cls, data: bytes) -> SessionId:
        """Read an id from its 51 bytes. Raises `CookieMalformed` for another length."""
        if len(data) != _ID_BYTES:
            raise CookieMalformed(f"an id has {_ID_BYTES} bytes, not {len(data)}")
        end = SELECTOR_BYTES + 3
        return cls(
            data[:SELECTOR_BYTES], int.from_bytes(data[SELECTOR_BYTES:end], "big"), data[end:]
        )

    def to_bytes(self) -> bytes:
        """Return the 51 bytes that `from_bytes` reads."""
        return self.selector + self.generation.to_bytes(3, "big") + self.secret

    def to_text(self) -> str:
        """Return the id as 68 characters of base64url. It is the bearer's secret: do not log it."""
        return base64.urlsafe_b64encode(self.to_bytes()).decode("ascii")

    def renewed(self, after: int) -> SessionId:
        """Return an id for the same row with a new secret and the generation after ``after``."""
        if after >= MAX_GENERATION:
            raise ConfigurationError(
                f"a session's secret can be renewed {MAX_GENERATION} times: "
                "delete it and start anew"
            )
        return SessionId(self.selector, after + 1, _new_secret())

    def seal_successor(self, successor: SessionId) -> bytes:
        """Encrypt the id that follows this one, so that only who has this one's secret can read it.

        No key of the server's is in it: keys may rotate, and a copy of the database reads nothing.
        """
        nonce = secrets.token_bytes(12)
        cipher = AESGCM(self._successor_key())
        return nonce + cipher.encrypt(nonce, successor.secret, _head(self, successor.generation))

    def open_successor(self, sealed: bytes, generation: int) -> SessionId | None:
        """Return the id of ``generation`` that `seal_successor` sealed for this one, or None."""
        cipher = AESGCM(self._successor_key())
        try:
            secret = cipher.decrypt(sealed[:12], sealed[12:], _head(self, generation))
        except (InvalidTag, ValueError):
            return None
        return SessionId(self.selector, generation, secret)

    def _successor_key(self) -> bytes:
        return hmac.digest(self.secret, b"pgstore 1 successor", "sha256")

    def unrelated(self) -> SessionId:
        """Return a new id for a row of its own, born when this one was."""
        return SessionId(
            self.selector[:5] + secrets.token_bytes(SELECTOR_BYTES - 5), 0, _new_secret()
        )

    @property
    def handle(self) -> str:
        """The row's public name: the selector as 22 characters of base64url."""
        return handle_of(self.selector)

    @property
    def secret_hash(self) -> bytes:
        """SHA-256 of the secret, all that a row keeps of it."""
        return hashlib.sha256(self.secret).digest()

    def proves(self, secret_hash: bytes) -> bool:
        """Tell, in constant time, whether this secret is the one behind the hash."""
        return hmac.compare_digest(self.secret_hash, secret_hash)


def handle_of(key: bytes) -> str:
    """Return the public handle of a row's key."""
    return base64.urlsafe_b64encode(key).rstrip(b"=").decode("ascii")


def key_of(handle: str) -> bytes | None:
    """Return the row's key for a handle, or None for a text that is no handle."""
    if not isinstance(handle, str) or not _HANDLE.fullmatch(handle):
        return None
    return base64.urlsafe_b64decode(handle + "==")


def _head(id: SessionId, generation: int) -> bytes:
    return id.selector + generation.to_bytes(3, "big")


def _new_secret() -> bytes:
    return secrets.token_bytes(SECRET_BYTES)
