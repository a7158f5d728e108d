"""Settings as one line of text, as the environment has them: a store's URL, and its keys."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any, Literal
from urllib.parse import unquote

from .codecs import pairs
from .errors import ConfigurationError
from .store import PGStore, SQLAlchemyStore, SQLiteStore, Store

__all__ = ["Engine", "engine_of", "format_keys", "open_store", "parse_keys", "sqlite_path"]

Engine = Literal["postgres", "sqlite", "sqlalchemy"]

_ENGINES: dict[str, Engine] = {
    "postgresql": "postgres",
    "postgres": "postgres",
    "sqlite": "sqlite",
}
# Those that SQLAlchemy brings itself; others are asked for.
_DIALECTS = {"mysql", "mariadb", "postgresql", "sqlite", "oracle", "mssql"}
_SPOKEN = (
    "postgresql://…, postgres://…, sqlite:///relative.db, sqlite:////absolute.db, "
    "mysql+pymysql://… and other URLs of SQLAlchemy's"
)


def open_store(url: str, *keys: bytes | None, **settings: Any) -> Store:
    """Make the store that a URL names.

    ``postgresql://`` and ``postgres://`` make a `PGStore`, ``sqlite:///relative.db`` and
    ``sqlite:////absolute.db`` a `SQLiteStore`, whose path may hold %-escapes, and SQLAlchemy's URLs
    (``mysql+pymysql://``, ``mariadb+pymysql://``, ``postgresql+psycopg://``, …) a
    `SQLAlchemyStore`. ``keys`` and ``settings`` are those of the store that is made.

    Raises `ConfigurationError` for another URL, and what the store raises. No message quotes the
    URL: it may hold a password.
    """
    engine = engine_of(url)
    if engine == "postgres":
        return PGStore(url, *keys, **settings)
    if engine == "sqlalchemy":
        return SQLAlchemyStore(url, *keys, **settings)
    if settings.pop("db_schema", None) is not None:
        raise ConfigurationError("db_schema is for PostgreSQL: SQLite has no schemas")
    return SQLiteStore(sqlite_path(url), *keys, **settings)


def engine_of(url: str) -> Engine:
    """Return which engine a URL is for, by its scheme. Raises as `open_store` does."""
    scheme, separator, _ = url.partition("://")
    # What is no scheme may be anything, a password too: it is not quoted.
    if not separator or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        raise ConfigurationError(f"the database is given by a URL: {_SPOKEN}")
    if scheme in _ENGINES:
        return _ENGINES[scheme]
    if scheme.partition("+")[0] in _DIALECTS or _is_dialect(scheme):
        return "sqlalchemy"
    raise ConfigurationError(f"no store speaks {scheme}://; those known are {_SPOKEN}")


def parse_keys(text: str, source: str = "PGSTORE_KEYS") -> list[bytes | None]:
    """Read the keys of a store from one line, in the order of `codecs_from_pairs`.

    The keys are base64url, separated by commas; an empty one or ``-`` is None. Raises
    `ConfigurationError` that begins with ``source`` and quotes no key.
    """
    if not text.strip():
        raise ConfigurationError(f"{source} holds no key: make a pair with 'pgstore keygen'")
    keys = [_parse_key(item.strip(), n, source) for n, item in enumerate(text.split(","), 1)]
    try:
        pairs(*keys)
    except ConfigurationError as error:
        raise ConfigurationError(f"{source}: {error}") from error
    return keys


def format_keys(*keys: bytes | None) -> str:
    """Return the line from which `parse_keys` reads these keys."""
    return ",".join(
        "-" if key is None else base64.urlsafe_b64encode(key).rstrip(b"=").decode() for key in keys
    )


def _parse_key(item: str, number: int, source: str) -> bytes | None:
    if item in ("", "-"):
        return None
    try:
        if re.fullmatch(r"[A-Za-z0-9_-]+={0,2}", item):
            digits = item.rstrip("=")
            return base64.urlsafe_b64decode(digits + "=" * (-len(digits) % 4))
    except binascii.Error:
        pass
    # Not chained: the cause would say nothing more, and this line cannot quote the key.
    raise ConfigurationError(f"{source}: key {number} is not base64url")


def _is_dialect(scheme: str) -> bool:
    try:
        from .backends.sqlalchemy_urls import dialect_of

        dialect_of(f"{scheme}://")
    except (ImportError, ConfigurationError):
        return False
    return True


def sqlite_path(url: str) -> str:
    """Return the path that a SQLite URL names. Raises `ConfigurationError` for another text."""
    rest = url.partition("://")[2]
    path = unquote(rest[1:])
    if not rest.startswith("/") or not path or "\0" in path:
        raise ConfigurationError(
            "a SQLite URL is sqlite:///relative.db or, with four slashes, sqlite:////absolute.db"
        )
    if "?" in rest:
        raise ConfigurationError("a SQLite URL takes no '?': write it as %3F in a file's name")
    return path
