"""Engines of SQLAlchemy's that are made from a URL."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.pool import NullPool

from ..errors import ConfigurationError

__all__ = ["dialect_of", "make_engine"]

_EXTRAS: Final = {"pymysql": "mysql", "psycopg": "binary"}


def dialect_of(url: str) -> sa.Dialect:
    """Return the dialect of a URL, whose driver need not be installed."""
    with _url_errors(url):
        return sa.make_url(url).get_dialect()()


def make_engine(text: str, size: int, seconds: float, wait: float) -> sa.Engine:
    """Make an engine of up to ``size`` connections, in autocommit.

    ``seconds`` bounds a statement where the driver can do that, ``wait`` the wait for a connection.
    Raises `ConfigurationError`.
    """
    with _url_errors(text):
        url = sa.make_url(text)
        dialect = url.get_dialect()
        settings: dict[str, Any] = {
            "hide_parameters": True,
            "connect_args": _limits(url, dialect, seconds),
        }
        if dialect.name == "sqlite":
            # Opening a file costs little, and no connection can cross a fork.
            settings["poolclass"] = NullPool
        else:
            settings |= {
                "isolation_level": "AUTOCOMMIT",
                "skip_autocommit_rollback": True,
                "pool_size": size,
                "max_overflow": 0,
                "pool_timeout": wait,
            }
        return sa.create_engine(url, **settings)


@contextmanager
def _url_errors(text: str) -> Iterator[None]:
    """Turn what SQLAlchemy says of a URL into what would fit, without quoting the URL."""
    try:
        yield
    except exc.NoSuchModuleError:
        scheme = re.match(r"[\w+.-]+(?=://)", text)
        raise ConfigurationError(
            f"SQLAlchemy knows no dialect for {scheme[0] if scheme else 'this'}://: use "
            "mysql+pymysql://…, mariadb+pymysql://… or postgresql+psycopg://…, or install the "
            "package that brings the dialect"
        ) from None
    except ImportError as error:
        name = str(error.name or "").partition(".")[0]
        hint = f"pip install 'pgstore[{_EXTRAS[name]}]'" if name in _EXTRAS else f"install {name}"
        if name == "MySQLdb":
            hint = "write mysql+pymysql://… and pip install 'pgstore[mysql]'"
        raise ConfigurationError(f"the URL's driver {name} is not installed: {hint}") from error
    except (exc.ArgumentError, ValueError, TypeError):
        raise ConfigurationError(
            "this is no URL of SQLAlchemy's: write dialect+driver://user:password@host/database, "
            "with user and password percent-encoded"
        ) from None


def _limits(url: sa.URL, dialect: type[sa.Dialect], seconds: float) -> dict[str, Any]:
    """Return what bounds connecting and statements with a driver; what the URL says goes first."""
    limits: dict[str, Any] = {}
    if dialect.driver == "pymysql":
        limits = {"connect_timeout": 5, "read_timeout": seconds, "write_timeout": seconds}
    elif dialect.driver in ("psycopg", "psycopg2"):
        # No limit for a server that is slow, but one for a network that is silent.
        limits = {
            "connect_timeout": 5,
            "keepalives_idle": max(1, round(seconds)),
            "keepalives_interval": 1,
            "keepalives_count": 3,
            "tcp_user_timeout": round(seconds * 1000),
        }
    elif dialect.name == "sqlite":
        limits = {"timeout": seconds}
    if dialect.driver == "psycopg":
        # A pooler gives the server's side of a connection to other clients.
        limits["prepare_threshold"] = None
    return {name: value for name, value in limits.items() if name not in url.query}
