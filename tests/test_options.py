from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, fields, replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgstore import MemoryStore
from pgstore.errors import ConfigurationError
from pgstore.options import Expiry, Lifetimes, Options, check_cookie_name

DAY = 24 * 3600
LONGEST = 2**31 - 1

# -- cookie attributes -----------------------------------------------------------------------------


def test_the_defaults_are_the_safe_ones() -> None:
    """Without a word: path /, 30 days, HttpOnly, SameSite=Lax, Secure when the request is."""
    assert Options() == Options(
        path="/",
        domain=None,
        max_age=30 * DAY,
        secure="auto",
        http_only=True,
        same_site="Lax",
        partitioned=False,
        persistent=True,
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"path": "/app;"},
        {"path": "app"},
        {"path": ""},
        {"path": "/a\nb"},
        {"path": "/a\x7f"},
        {"path": None},
        {"domain": ""},
        {"domain": "a.example; Secure"},
        {"domain": "https://a.example"},
        {"domain": "a.example:8000"},
        {"domain": "a.example, b.example"},
        {"domain": "a..example"},
        {"domain": "a.example\n"},
        {"domain": "bücher.example"},
        {"domain": "a" * 64 + ".example"},
        {"domain": b"a.example"},
        {"max_age": 1.5},
        {"max_age": "60"},
        {"max_age": True},
        {"max_age": None},
        {"max_age": LONGEST + 1},
        {"secure": "yes"},
        {"secure": 1},
        {"secure": None},
        {"http_only": 1},
        {"http_only": "yes"},
        {"same_site": "lax"},
        {"same_site": ""},
        {"same_site": True},
        {"partitioned": 1},
        {"persistent": 0},
    ],
    ids=str,
)
def test_an_attribute_that_does_not_fit_is_refused(settings: dict[str, Any]) -> None:
    """Each attribute is checked at construction; the error names it and what it was."""
    ((name, value),) = settings.items()
    with pytest.raises(ConfigurationError, match=f"^{name} must ") as caught:
        Options(**settings)
    assert str(caught.value).endswith(f"not {value!r}")


@pytest.mark.parametrize(
    "settings",
    [
        {"path": "/app/über uns"},
        {"domain": "a.example"},
        {"domain": ".a.example"},
        {"domain": "localhost"},
        {"domain": "my_host.xn--bcher-kva.example"},
        {"max_age": 0},
        {"max_age": -1},
        {"max_age": LONGEST},
        {"secure": False},
        {"http_only": False},
        {"same_site": None},
        {"same_site": "Strict"},
        {"same_site": "None", "secure": True},
        {"partitioned": True, "secure": True},
    ],
    ids=str,
)
def test_an_attribute_that_fits_is_kept(settings: dict[str, Any]) -> None:
    """What the RFC and the browsers allow can be said, and is not changed."""
    options = Options(**settings)
    assert {name: getattr(options, name) for name in settings} == settings


@pytest.mark.parametrize("secure", [False, "auto"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"same_site": "None"}, "same_site='None' needs secure=True"),
        ({"partitioned": True}, "partitioned needs secure=True"),
    ],
)
def test_what_browsers_want_secure_is_held_to_it(
    settings: dict[str, Any], message: str, secure: Any
) -> None:
    """SameSite=None and Partitioned without a certain Secure would be dropped by browsers."""
    with pytest.raises(
        ConfigurationError, match=f"^{message}: browsers drop the cookie otherwise$"
    ):
        Options(secure=secure, **settings)


def test_every_violation_is_reported_together() -> None:
    """One error lists all that does not fit, so that a setting is mended in one go."""
    with pytest.raises(ConfigurationError) as caught:
        Options(
            path="app",
            domain="",
            max_age="x",
            secure=2,
            http_only=None,
            same_site="None",
            partitioned=True,
            persistent="yes",
        )
    subjects = [problem.split()[0] for problem in str(caught.value).split("; ")]
    assert subjects == [
        "path",
        # The text about the path quotes a semicolon of its own, but never with a space behind it.
        "domain",
        "max_age",
        "secure",
        "http_only",
        "same_site='None'",
        "partitioned",
        "persistent",
    ]


@pytest.mark.parametrize(
    ("given_age", "kept"),
    [(timedelta(days=1), DAY), (timedelta(0), 0), (timedelta(seconds=-1), -1)],
)
def test_max_age_may_be_a_timedelta(given_age: timedelta, kept: int) -> None:
    """A `timedelta` becomes whole seconds."""
    assert Options(max_age=given_age).max_age == kept
    assert type(replace(Options(), max_age=given_age).max_age) is int


def test_a_timedelta_beyond_all_bounds_is_refused() -> None:
    """`max_age` ends at 68 years, which is what a row can keep."""
    with pytest.raises(ConfigurationError, match=f"^max_age must be at most {LONGEST} seconds"):
        Options(max_age=timedelta.max)


def test_options_cannot_be_changed() -> None:
    """A store's options are shared by all its requests: they are derived from, not written to."""
    with pytest.raises(FrozenInstanceError):
        Options().path = "/app"


def test_a_sessions_options_are_its_own() -> None:
    """Changing the options of one session changes neither its store's nor another session's."""
    with MemoryStore(bytes(32), options=Options(path="/app")) as store:
        one, other = store.new({}, "sid"), store.new({}, "sid")
        one.options.path = "/admin"
        one.options.max_age = -1
        assert store.options == Options(path="/app")
        assert other.options.freeze() == Options(path="/app")
        assert one.options.freeze() == Options(path="/admin", max_age=-1)


def test_a_sessions_options_are_checked_when_they_are_used() -> None:
    """A session's own attributes are held to the same rules as the store's, all at once."""
    options = Options().thaw()
    options.path, options.domain = "app", ""
    with pytest.raises(ConfigurationError, match=r"^path must .*; domain must "):
        options.freeze()


def test_thawing_and_freezing_keep_everything() -> None:
    """A session's copy of the options says what the store's do."""
    options = Options(
        path="/a",
        domain="a.example",
        max_age=5,
        secure=True,
        http_only=False,
        same_site="None",
        partitioned=True,
        persistent=False,
    )
    assert options.thaw().freeze() == options


# -- the cookie's name -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a b",
        "a=b",
        "a;b",
        "a,b",
        "a\tb",
        'a"b',
        "a/b",
        "a[0]",
        "a:b",
        "a@b",
        "a\\b",
        "é",
        "a\n",
    ],
)
def test_a_name_that_is_no_token_is_refused(name: str) -> None:
    """RFC 6265 section 4.1.1: a cookie's name has no separators, spaces, controls or umlauts."""
    with pytest.raises(
        ConfigurationError, match="cannot name a cookie: use 1 to 256 of the letters"
    ):
        check_cookie_name(name, Options())


@pytest.mark.parametrize("name", ["x" * 257, b"sid", None, 7])
def test_a_name_that_is_too_long_or_no_text_is_refused(name: Any) -> None:
    """A cookie's name is a text of at most 256 letters."""
    with pytest.raises(ConfigurationError, match="cannot name a cookie"):
        check_cookie_name(name, Options())


@pytest.mark.parametrize("name", ["s", "session-id.2", "!#$%&'*+-.^_`|~", "x" * 256, "__host"])
def test_a_token_is_a_name(name: str) -> None:
    """Every token of RFC 6265 may name a cookie, with any attributes."""
    check_cookie_name(name, Options(domain="a.example", path="/a", secure=False))


@pytest.mark.parametrize(
    ("name", "settings", "problems"),
    [
        ("__Host-sid", {"secure": True}, []),
        ("__Host-sid", {}, ["needs secure=True"]),
        ("__Host-sid", {"secure": True, "path": "/a"}, ["needs path='/'"]),
        ("__Host-sid", {"secure": True, "domain": "a.example"}, ["must have no domain"]),
        (
            "__host-sid",
            {"secure": False, "path": "/a", "domain": "a.example"},
            ["needs secure=True", "needs path='/'", "must have no domain"],
        ),
        ("__Secure-sid", {"secure": True, "path": "/a", "domain": "a.example"}, []),
        ("__Secure-sid", {}, ["needs secure=True"]),
        ("__SECURE-sid", {"secure": False}, ["needs secure=True"]),
    ],
)
def test_the_prefixes_of_names_are_held_to_their_rules(
    name: str, settings: dict[str, Any], problems: list[str]
) -> None:
    """RFC 6265bis section 4.1.3: a browser drops a prefixed cookie that breaks its promise."""
    try:
        check_cookie_name(name, Options(**settings))
    except ConfigurationError as error:
        message = str(error)
    else:
        message = ""
    assert message == "; ".join(f"a cookie named {name} {problem}" for problem in problems)


# -- lifetimes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("idle_timeout", "lifetime", "max_age", "ttl"),
    [
        (None, None, 3600, 3600),
        (None, None, 0, DAY),  # a cookie of the browser's session, and nothing else set
        (None, None, -1, DAY),
        (600, None, 3600, 600),
        (7200, None, 3600, 3600),
        (600, None, 0, 600),
        (2 * DAY, None, 0, 2 * DAY),
        (None, 7200, 0, 7200),
        (None, 1800, 3600, 1800),
        (1200, 1800, 3600, 1200),
        (1800, 1200, 3600, 1200),
        (1800, 1200, 300, 300),
        (timedelta(minutes=5), timedelta(hours=1), 3600, 300),
        (0.5, None, 3600, 0.5),
    ],
)
def test_a_session_lives_to_the_earliest_of_its_limits(
    idle_timeout: Any, lifetime: Any, max_age: int, ttl: float
) -> None:
    """`max_age`, `idle_timeout` and `lifetime` hold together; with none set it is 24 hours."""
    lifetimes = Lifetimes(idle_timeout=idle_timeout, lifetime=lifetime)
    assert lifetimes.time_to_live(max_age) == ttl


@pytest.mark.parametrize(
    ("touch_interval", "max_age", "after"),
    [
        (None, 30 * DAY, 300),
        (None, 3000, 300),
        (None, 2999, 299.9),
        (None, 60, 6),
        (None, 0, 300),
        (0, 60, 0),
        (29, 60, 29),
        (timedelta(hours=1), 30 * DAY, 3600),
        (30, 60, 6),  # a session with a max_age of its own, too short for the store's interval
        (3600, 60, 6),
    ],
)
def test_a_session_is_touched_in_good_time(touch_interval: Any, max_age: int, after: float) -> None:
    """By default the smaller of 300 s and a tenth of the time to live; never half of it or more."""
    assert Lifetimes(touch_interval=touch_interval).touch_after(max_age) == pytest.approx(after)


@pytest.mark.parametrize(
    ("settings", "max_age", "expiry"),
    [
        ({}, 30 * DAY, Expiry(idle=30 * DAY + 300, lifetime=None, bucket=30 * DAY / 8)),
        ({}, 0, Expiry(idle=DAY + 300, lifetime=None, bucket=10800)),
        ({}, 60, Expiry(idle=66, lifetime=None, bucket=600)),
        ({}, 365 * DAY, Expiry(idle=365 * DAY + 300, lifetime=None, bucket=7 * DAY)),
        (
            {"idle_timeout": 7200, "lifetime": DAY, "touch_interval": 60},
            30 * DAY,
            Expiry(idle=7260, lifetime=DAY, bucket=900),
        ),
    ],
)
def test_the_expiry_is_a_touch_further_out(
    settings: dict[str, Any], max_age: int, expiry: Expiry
) -> None:
    """A visit that writes nothing costs its visitor no time; the lifetime is never stretched."""
    assert Lifetimes(**settings).expiry(max_age) == expiry


limits = st.none() | st.floats(0.001, LONGEST)


@given(limits, limits, limits, st.integers(0, LONGEST))
def test_lifetimes_fit_together(
    idle: float | None, lifetime: float | None, touch: float | None, max_age: int
) -> None:
    """Whatever is set, touches come more than twice in a life, and buckets keep their bounds."""
    lifetimes = Lifetimes(idle_timeout=idle, lifetime=lifetime, touch_interval=touch)
    ttl, expiry = lifetimes.time_to_live(max_age), lifetimes.expiry(max_age)
    assert 0 < lifetimes.touch_after(max_age) < ttl / 2
    assert ttl < expiry.idle < ttl * 1.5
    assert 600 <= expiry.bucket <= 7 * DAY
    assert expiry.lifetime == lifetime


@pytest.mark.parametrize(
    ("settings", "max_age", "fits"),
    [
        ({"touch_interval": 29.9}, 60, True),
        ({"touch_interval": 30}, 60, False),
        ({"touch_interval": 31, "idle_timeout": 60}, 30 * DAY, False),
        ({"touch_interval": DAY / 2}, 0, False),
        ({"touch_interval": DAY / 2 - 1}, 0, True),
        ({"touch_interval": 0, "lifetime": 1}, 0, True),
        ({"idle_timeout": 1}, 30 * DAY, True),
    ],
)
def test_a_touch_interval_of_half_a_life_is_refused(
    settings: dict[str, Any], max_age: int, fits: bool
) -> None:
    """Touches that come too seldom would let a visited session end: the error has both numbers."""
    lifetimes = Lifetimes(**settings)
    if fits:
        lifetimes.check(max_age)
        return
    with pytest.raises(ConfigurationError) as caught:
        lifetimes.check(max_age)
    assert str(caught.value) == (
        f"touch_interval ({settings['touch_interval']:g} s) must be less than half of the shortest "
        f"time to live ({lifetimes.time_to_live(max_age):g} s)"
    )


@pytest.mark.parametrize("name", [field.name for field in fields(Lifetimes)])
@pytest.mark.parametrize(
    "value", [-1, -0.001, timedelta(seconds=-1), LONGEST + 1, math.inf, math.nan, "60", True]
)
def test_a_lifetime_that_does_not_fit_is_refused(name: str, value: Any) -> None:
    """A lifetime is a positive number of seconds, or a `timedelta`, of at most 68 years."""
    with pytest.raises(ConfigurationError, match=f"^{name} must be "):
        Lifetimes(**{name: value})


@pytest.mark.parametrize("name", ["idle_timeout", "lifetime", "rotate_every"])
def test_a_session_cannot_live_for_no_time(name: str) -> None:
    """A limit of 0 is refused: None is how to set none."""
    with pytest.raises(ConfigurationError, match=f"^{name} must be positive.* or None: 0"):
        Lifetimes(**{name: 0})


@pytest.mark.parametrize(
    ("settings", "fits"),
    [
        ({}, True),
        ({"rotate_every": timedelta(minutes=15)}, True),
        ({"rotate_every": 30.1}, True),
        ({"rotate_every": 30}, False),
        ({"rotate_every": 60, "rotation_grace": 60}, False),
        ({"rotate_every": 1, "rotation_grace": 0}, True),
        ({"rotation_grace": timedelta(minutes=1)}, True),
    ],
)
def test_a_grace_ends_before_the_next_renewal(settings: dict[str, Any], fits: bool) -> None:
    """`rotation_grace` is shorter than `rotate_every`: at most one secret before is still good."""
    if fits:
        Lifetimes(**settings)
        return
    with pytest.raises(
        ConfigurationError, match=r"^rotation_grace must be less than rotate_every$"
    ):
        Lifetimes(**settings)


def test_every_bad_lifetime_is_reported_together() -> None:
    """One error lists all lifetimes that do not fit, of the wrong kind or out of range."""
    with pytest.raises(ConfigurationError) as caught:
        Lifetimes(idle_timeout="x", lifetime=-1, touch_interval=math.inf)
    subjects = [problem.split()[0] for problem in str(caught.value).split("; ")]
    assert subjects == ["idle_timeout", "lifetime", "touch_interval"]
