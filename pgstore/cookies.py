"""The headers of a session: reading Cookie, writing Set-Cookie, Vary and Cache-Control. No I/O."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from .options import Options

__all__ = ["Headers", "clear_cookie", "cookie_values", "set_cookie", "vary_on_cookie"]

_log = logging.getLogger("pgstore")

# The same name may come twice, from another path or domain. Each try costs a signature check.
_MOST_TRIES = 4
# RFC 9110 section 5.6: a comma within a quoted string, as in private="a, b", separates nothing.
_LIST_ITEM = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^,])+')


class Headers(Protocol):
    """The part of `werkzeug.datastructures.Headers` that is used here."""

    def add(self, key: str, value: str, /) -> None: ...
    def getlist(self, key: str) -> list[str]: ...
    def setlist(self, key: str, values: list[str]) -> None: ...


def cookie_values(environ: Mapping[str, Any], name: str) -> Iterator[str]:
    """Yield the first four values of the cookie called ``name``, as they came (RFC 6265 5.4)."""
    found = 0
    for pair in environ.get("HTTP_COOKIE", "").split(";"):
        key, separator, value = pair.partition("=")
        if separator and key.strip(" \t") == name:
            yield value.strip(" \t")
            found += 1
            if found == _MOST_TRIES:
                return


def set_cookie(
    headers: Headers, name: str, value: str, options: Options, max_age: int | None, *, https: bool
) -> None:
    """Put one Set-Cookie for ``name`` into ``headers``, and keep caches off the response.

    ``max_age`` in seconds goes out as Max-Age and Expires; None makes a cookie for the browser's
    session.
    """
    from werkzeug.http import dump_cookie  # werkzeug is slow to import; a request has paid for it

    text = dump_cookie(
        name,
        value,
        max_age=max_age,
        # Beside Max-Age, for clients that know only Expires. dump_cookie reckons it from Max-Age.
        path=options.path,
        domain=options.domain,
        secure=https if options.secure == "auto" else options.secure,
        httponly=options.http_only,
        samesite=options.same_site,
        partitioned=options.partitioned,
    )
    others = [line for line in headers.getlist("Set-Cookie") if not line.startswith(f"{name}=")]
    headers.setlist("Set-Cookie", [*others, text])
    _keep_private(headers)


def clear_cookie(headers: Headers, name: str, options: Options, *, https: bool) -> None:
    """Put a Set-Cookie into ``headers`` that makes the browser forget ``name``.

    Path, domain and the other attributes must be those that the cookie was set with.
    """
    set_cookie(headers, name, "", options, 0, https=https)


def vary_on_cookie(headers: Headers) -> None:
    """Add Cookie to Vary: what was made from a session is this browser's (RFC 9110 12.5.5)."""
    lines = headers.getlist("Vary")
    fields = _split(lines) if lines else []
    if "*" not in fields and "cookie" not in map(str.lower, fields):
        headers.setlist("Vary", [", ".join([*fields, "Cookie"])])


def _keep_private(headers: Headers) -> None:
    """Add ``private, no-cache`` to Cache-Control and drop what would weaken it (RFC 9111 5.2.2)."""
    directives = _split(headers.getlist("Cache-Control"))
    # private="field" and no-cache="field" speak of single fields only: the plain forms are
    # stronger.
    weaker = {"public", "s-maxage", "private", "no-cache"}
    kept = [d for d in directives if d.partition("=")[0].strip().lower() not in weaker]
    headers.setlist("Cache-Control", [", ".join(["private", "no-cache", *kept])])


def _split(lines: list[str]) -> list[str]:
    items = [item.strip() for line in lines for item in _LIST_ITEM.findall(line)]
    return [item for item in items if item]


class HttpsCheck:
    """Tells whether a request came by https, and warns once when a proxy seems to hide it."""

    def __init__(self) -> None:
        self._warned = False

    def __call__(self, environ: Mapping[str, Any], options: Options) -> bool:
        https = bool(environ.get("wsgi.url_scheme") == "https")
        if (
            not https
            and not self._warned
            and options.secure == "auto"
            and environ.get("HTTP_X_FORWARDED_PROTO", "").strip().lower() == "https"
        ):
            self._warned = True
            _log.warning(
                "X-Forwarded-Proto says https, but the WSGI server says http, so session cookies "
                "go out without "
                "Secure: wrap the application in werkzeug's ProxyFix, or set secure=True"
            )
        return https
