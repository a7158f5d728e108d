"""The settings of a Flask app: the store that they name, its keys, and how long sessions live."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ..errors import ConfigurationError
from ..options import Options
from ..store import Store
from ..urls import open_store, parse_keys

if TYPE_CHECKING:
    from flask import Flask

__all__ = ["lifetime_of", "open_store_of", "secrets_of"]


def open_store_of(app: Flask, **settings: Any) -> Store:
    """Open the store that an app's settings name; ``settings`` go before ``PGSTORE_SETTINGS``.

    Raises `ConfigurationError` when they name none, and what `open_store` raises.
    """
    url = app.config.get("PGSTORE_URL")
    if not url:
        raise ConfigurationError(
            "no database: give FlaskSessions a store, or set PGSTORE_URL in the app's config"
        )
    keys = _keys(app)
    if not keys:
        raise ConfigurationError("no key: set SECRET_KEY or PGSTORE_KEYS in the app's config")
    defaults = {"options": Options(max_age=lifetime_of(app))}
    own = app.config.get("PGSTORE_SETTINGS") or {}
    return open_store(url, *keys, **{**defaults, **own, **settings})


def _keys(app: Flask) -> list[bytes | None]:
    if text := app.config.get("PGSTORE_KEYS"):
        return parse_keys(text)
    return [
        HKDF(SHA256(), 32, None, b"pgstore.ext.flask " + purpose).derive(secret)
        for secret in secrets_of(app)
        for purpose in (b"hash key", b"block key")
    ]


def secrets_of(app: Flask) -> tuple[bytes, ...]:
    """Return ``SECRET_KEY`` and its fallbacks, the newest first."""
    if not app.secret_key:
        return ()
    fallbacks = app.config.get("SECRET_KEY_FALLBACKS") or []
    if isinstance(fallbacks, str | bytes):
        # Each of its letters would be a key.
        raise ConfigurationError("SECRET_KEY_FALLBACKS must be a list of keys")
    secrets = [secret for secret in (app.secret_key, *fallbacks) if secret]
    if not all(isinstance(secret, str | bytes) for secret in secrets):
        raise ConfigurationError("SECRET_KEY and its fallbacks must be text or bytes")
    return tuple(s.encode("utf-8", "surrogatepass") if isinstance(s, str) else s for s in secrets)


def lifetime_of(app: Flask) -> int:
    """Return how long a session lives without a visit, in whole seconds."""
    lifetime = int(app.permanent_session_lifetime.total_seconds())
    if lifetime < 1:
        raise ConfigurationError("PERMANENT_SESSION_LIFETIME must be a second or more")
    return lifetime
