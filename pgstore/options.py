"""Cookie attributes and lifetimes: what a store is told once, and a session may change."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Literal

from .errors import ConfigurationError

__all__ = ["Expiry", "Lifetimes", "Options", "SessionOptions", "check_cookie_name"]

SameSite = Literal["Strict", "Lax", "None"]

MONTH = 30 * 24 * 3600
DAY = 24 * 3600

# A row keeps max_age in a 32-bit column. 68 years is long enough for a session.
_LONGEST = 2**31 - 1
# RFC 6265 section 4.1.1: a cookie name is a token of RFC 2616.
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
# Host names, and the underscores and the leading dot that are met in practice. Each label is short
# enough for IDNA, through which werkzeug sends the domain.
_HOST = re.compile(r"\.?[\w-]{1,63}(?:\.[\w-]{1,63})*", re.ASCII)


def seconds(value: float | timedelta, name: str) -> float:
    """Turn a setting in seconds or a `timedelta` into seconds.

    Raises `ConfigurationError`, naming the setting, for anything else.
    """
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise ConfigurationError(f"{name} must be seconds (a number) or a timedelta, not {value!r}")
    return value


def _reject(problems: list[str]) -> None:
    if problems:
        raise ConfigurationError("; ".join(problems))


@dataclass(slots=True, kw_only=True)
class SessionOptions:
    """The cookie attributes of one session: the session's own copy, yours to change before `save`.

    They are checked when the session is saved. ``max_age`` is kept in the row, so that it is still
    the session's own at the next request; a negative one deletes the session, as in gorilla. The
    other attributes are not kept: they hold for the Set-Cookie of this request.
    """

    path: str
    domain: str | None
    max_age: int
    secure: bool | Literal["auto"]
    http_only: bool
    same_site: SameSite | None
    partitioned: bool
    persistent: bool

    def freeze(self) -> Options:
        """Return these attributes as checked, immutable `Options`.

        Raises `ConfigurationError` that lists everything that does not fit.
        """
        return Options(**{field.name: getattr(self, field.name) for field in fields(self)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The cookie attributes that a store gives its sessions (RFC 6265bis section 4.1).

    ``path`` and ``domain`` say where the browser sends the cookie; without a domain, to this host
    only. ``max_age`` is in whole seconds: how long cookie and row live without a visit. 0 makes a
    cookie that the browser forgets when it closes; a negative one deletes. ``secure`` is ``"auto"``
    by default: on when the request came by https. ``http_only`` hides the cookie from scripts.
    ``same_site`` is ``"Strict"``, ``"Lax"``, ``"None"`` or None (not sent). ``partitioned`` asks
    for a cookie per top-level site (CHIPS). Without ``persistent`` the browser forgets the cookie
    when it closes, while the row still lives for ``max_age``.

    Raises `ConfigurationError` that lists everything that does not fit. Derive another with
    `dataclasses.replace`.
    """

    path: str = "/"
    domain: str | None = None
    max_age: int = MONTH
    secure: bool | Literal["auto"] = "auto"
    http_only: bool = True
    same_site: SameSite | None = "Lax"
    partitioned: bool = False
    persistent: bool = True

    def __post_init__(self) -> None:
        problems = []
        if not isinstance(self.path, str) or not re.fullmatch(r"/[^\x00-\x1f\x7f;]*", self.path):
            problems.append(
                f"path must start with '/' and hold no ';' or control, not {self.path!r}"
            )
        if self.domain is not None and not (
            isinstance(self.domain, str) and _HOST.fullmatch(self.domain)
        ):
            problems.append(f"domain must be a host name or None, not {self.domain!r}")
        if isinstance(self.max_age, timedelta):
            object.__setattr__(self, "max_age", math.floor(self.max_age.total_seconds()))
        if isinstance(self.max_age, bool) or not isinstance(self.max_age, int):
            problems.append(f"max_age must be whole seconds or a timedelta, not {self.max_age!r}")
        elif self.max_age > _LONGEST:
            problems.append(f"max_age must be at most {_LONGEST} seconds, not {self.max_age}")
        if self.secure is not True and self.secure is not False and self.secure != "auto":
            problems.append(f"secure must be True, False or 'auto', not {self.secure!r}")
        if not isinstance(self.http_only, bool):
            problems.append(f"http_only must be True or False, not {self.http_only!r}")
        if self.same_site not in ("Strict", "Lax", "None", None):
            problems.append(
                f"same_site must be 'Strict', 'Lax', 'None' or None, not {self.same_site!r}"
            )
        if self.same_site == "None" and self.secure is not True:
            problems.append(
                "same_site='None' needs secure=True: browsers drop the cookie otherwise"
            )
        if not isinstance(self.partitioned, bool):
            problems.append(f"partitioned must be True or False, not {self.partitioned!r}")
        elif self.partitioned and self.secure is not True:
            problems.append("partitioned needs secure=True: browsers drop the cookie otherwise")
        if not isinstance(self.persistent, bool):
            problems.append(f"persistent must be True or False, not {self.persistent!r}")
        _reject(problems)

    def thaw(self) -> SessionOptions:
        """Return a mutable copy, for one session."""
        return SessionOptions(**{field.name: getattr(self, field.name) for field in fields(self)})


def check_cookie_name(name: str, options: Options) -> None:
    """Raise `ConfigurationError` unless a cookie may be called ``name`` with these attributes.

    The name must be a token (RFC 6265 section 4.1.1). ``__Host-`` wants secure, path ``/`` and no
    domain, ``__Secure-`` wants secure (RFC 6265bis section 4.1.3); browsers compare both prefixes
    without regard to case.
    """
    if not isinstance(name, str) or not _TOKEN.fullmatch(name) or len(name) > 256:
        raise ConfigurationError(
            f"{name!r} cannot name a cookie: use 1 to 256 of the letters, digits and "
            f"!#$%&'*+-.^_`|~ of ASCII (RFC 6265 section 4.1.1)"
        )
    prefix = name.lower()
    problems = []
    if prefix.startswith(("__host-", "__secure-")) and options.secure is not True:
        problems.append(f"a cookie named {name} needs secure=True")
    if prefix.startswith("__host-"):
        if options.path != "/":
            problems.append(f"a cookie named {name} needs path='/'")
        if options.domain is not None:
            problems.append(f"a cookie named {name} must have no domain")
    _reject(problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expiry:
    """How far a row's expiry is set, all in seconds; a backend adds its database's clock.

    The row ends at the earlier of now + ``idle`` and, unless ``lifetime`` is None, its start +
    ``lifetime``, where the start is ``authenticated_on``, or ``created_on`` without it.
    ``gc_after`` is that end rounded up to a multiple of ``bucket``.
    """

    idle: float
    lifetime: float | None
    bucket: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetimes:
    """How long rows live, in seconds or `timedelta`; None means not set.

    ``idle_timeout`` ends a session that was not visited for so long; ``lifetime`` ends it so long
    after its creation or login, however busy it is (OWASP ASVS 5.0, 7.3). ``touch_interval`` is how
    often a session that is only read is written to move its expiry: by default the smaller of 300
    seconds and a tenth of the shortest time to live.

    ``rotate_every`` renews a session's secret by itself when it has that age; None never does. For
    ``rotation_grace`` afterwards, requests that still carry the secret before reach the session.
    """

    idle_timeout: float | None = None
    lifetime: float | None = None
    touch_interval: float | None = None
    rotate_every: float | None = None
    rotation_grace: float = 30.0

    def __post_init__(self) -> None:
        problems = []
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if value is None and name != "rotation_grace":
                continue
            try:
                value = seconds(value, name)
            except ConfigurationError as problem:
                problems.append(str(problem))
                continue
            object.__setattr__(self, name, value)
            may_be_0 = name in ("touch_interval", "rotation_grace")
            if value < 0 or (value == 0 and not may_be_0) or value > _LONGEST:
                problems.append(f"{name} must be positive, at most {_LONGEST} s, or None: {value}")
        if not problems and self.rotation_grace >= (self.rotate_every or _LONGEST):
            problems.append("rotation_grace must be less than rotate_every")
        _reject(problems)

    def check(self, max_age: int) -> None:
        """Raise `ConfigurationError` when touches would come too seldom to keep a session alive."""
        ttl = self.time_to_live(max_age)
        if self.touch_interval is not None and self.touch_interval >= ttl / 2:
            raise ConfigurationError(
                f"touch_interval ({self.touch_interval:g} s) must be less than half of the "
                f"shortest time to live ({ttl:g} s)"
            )

    def time_to_live(self, max_age: int) -> float:
        """Return the seconds that a session of this ``max_age`` lives without a visit."""
        limits = filter(None, (max(max_age, 0), self.idle_timeout, self.lifetime))
        return min(limits, default=DAY)

    def touch_after(self, max_age: int) -> float:
        """Return the seconds after which a session that is only read is written once."""
        ttl = self.time_to_live(max_age)
        interval = self.touch_interval
        # A session may have a max_age of its own, shorter than the store's.
        return interval if interval is not None and interval < ttl / 2 else min(300.0, ttl / 10)

    def expiry(self, max_age: int) -> Expiry:
        """Return how far to set the expiry of a row with this ``max_age``.

        It reaches one touch interval further than the time to live: a visit within the interval
        moves nothing, and the visitor must not lose that time.
        """
        ttl = self.time_to_live(max_age)
        return Expiry(
            idle=ttl + self.touch_after(max_age),
            lifetime=self.lifetime,
            bucket=min(max(ttl / 8, 600.0), 7.0 * DAY),
        )
