from __future__ import annotations

import logging
import time
from typing import Any

import pytest
import time_machine
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.datastructures import Headers

from pgstore.cookies import HttpsCheck, clear_cookie, cookie_values, set_cookie, vary_on_cookie
from pgstore.options import Options

NOW = 1_700_000_000  # Tue, 14 Nov 2023 22:13:20 GMT

# -- the request's Cookie --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "values"),
    [
        ("", []),
        ("sid=a", ["a"]),
        ("sid=", [""]),
        ("sid=a; sid=b", ["a", "b"]),
        ("x=1; sid=a; y=2; sid=b", ["a", "b"]),
        ("sid=1;sid=2; sid=3 ;  sid=4; sid=5; sid=6", ["1", "2", "3", "4"]),
        ("sid = a ", ["a"]),
        ("\tsid=\ta\t", ["a"]),
        ("sid=a=b==", ["a=b=="]),
        ('sid="a"', ['"a"']),
        ("sid", []),
        ("=sid", []),
        (";;; ;sid=a;;", ["a"]),
        ("SID=a; sid2=b; xsid=c; sid.=d", []),
        ("sid=é\x80", ["é\x80"]),
    ],
)
def test_the_values_of_one_name_are_found(header: str, values: list[str]) -> None:
    """Up to four values of a name come in the browser's order, as it sent them, and no others."""
    assert list(cookie_values({"HTTP_COOKIE": header}, "sid")) == values


def test_a_request_without_cookies_has_no_values() -> None:
    """An environ without a Cookie header is no error."""
    assert list(cookie_values({}, "sid")) == []


@given(st.text(st.characters(max_codepoint=255)), st.text(min_size=1))
def test_any_header_can_be_read(header: str, name: str) -> None:
    """Whatever a client sends as Cookie, at most four values come out, and no error."""
    assert len(list(cookie_values({"HTTP_COOKIE": header}, name))) <= 4


@pytest.mark.parametrize(
    "unit", ["sid=x; ", "x=y; ", ";", "=", "sid", " "], ids=lambda unit: repr(unit)
)
def test_a_header_of_a_megabyte_is_read_quickly(unit: str) -> None:
    """Reading is linear in the header's length, whatever it repeats: no client slows a worker."""
    header = unit * (2**20 // len(unit))
    start = time.process_time()
    values = list(cookie_values({"HTTP_COOKIE": header}, "sid"))
    assert time.process_time() - start < 1
    assert values == (["x"] * 4 if unit == "sid=x; " else [])


# -- the response's Set-Cookie ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "max_age", "https", "expected"),
    [
        (
            {},
            60,
            True,
            "sid=v; Expires=Tue, 14 Nov 2023 22:14:20 GMT; Max-Age=60; Secure; HttpOnly; Path=/; "
            "SameSite=Lax",
        ),
        (
            {},
            60,
            False,
            "sid=v; Expires=Tue, 14 Nov 2023 22:14:20 GMT; Max-Age=60; HttpOnly; Path=/; "
            "SameSite=Lax",
        ),
        ({}, None, True, "sid=v; Secure; HttpOnly; Path=/; SameSite=Lax"),
        ({"secure": True}, None, False, "sid=v; Secure; HttpOnly; Path=/; SameSite=Lax"),
        ({"secure": False}, None, True, "sid=v; HttpOnly; Path=/; SameSite=Lax"),
        ({"http_only": False}, None, False, "sid=v; Path=/; SameSite=Lax"),
        ({"same_site": None}, None, False, "sid=v; HttpOnly; Path=/"),
        ({"same_site": "Strict"}, None, False, "sid=v; HttpOnly; Path=/; SameSite=Strict"),
        (
            {"domain": ".a.example", "path": "/a b"},
            None,
            False,
            "sid=v; Domain=a.example; HttpOnly; Path=/a%20b; SameSite=Lax",
        ),
        (
            {"secure": True, "same_site": "None", "partitioned": True},
            None,
            True,
            "sid=v; Secure; HttpOnly; Path=/; SameSite=None; Partitioned",
        ),
    ],
)
@time_machine.travel(NOW, tick=False)
def test_a_cookie_has_exactly_the_attributes_it_was_given(
    settings: dict[str, Any], max_age: int | None, https: bool, expected: str
) -> None:
    """Each option becomes its attribute, Secure follows the request when it is "auto"."""
    headers = Headers()
    set_cookie(headers, "sid", "v", Options(**settings), max_age, https=https)
    assert headers.getlist("Set-Cookie") == [expected]


@time_machine.travel(NOW, tick=False)
def test_a_cookie_is_cleared_with_the_attributes_it_was_set_with() -> None:
    """A browser forgets a cookie only by its own path and domain; the other attributes stay too."""
    options = Options(
        domain="a.example", path="/a", secure=True, same_site="None", partitioned=True
    )
    headers = Headers()
    clear_cookie(headers, "sid", options, https=True)
    assert headers.getlist("Set-Cookie") == [
        "sid=; Domain=a.example; Expires=Tue, 14 Nov 2023 22:13:20 GMT; Max-Age=0; Secure; "
        "HttpOnly; Path=/a; SameSite=None; Partitioned"
    ]


def test_a_cookie_replaces_its_earlier_self_and_no_other() -> None:
    """Of one name there is one Set-Cookie, the latest; the application's own cookies stay."""
    others = ["sid2=a; Path=/", "xsid=b", "SID=c", "theme=sid=d"]
    headers = Headers([("Set-Cookie", line) for line in others])
    for value in ("first", "second"):
        set_cookie(headers, "sid", value, Options(same_site=None), None, https=False)
    assert headers.getlist("Set-Cookie") == [*others, "sid=second; HttpOnly; Path=/"]


def test_a_cleared_cookie_replaces_the_one_that_was_set() -> None:
    """A session that was saved and then deleted in one request ends up forgotten."""
    headers = Headers()
    set_cookie(headers, "sid", "value", Options(), 60, https=False)
    clear_cookie(headers, "sid", Options(), https=False)
    assert [line.split(";")[0] for line in headers.getlist("Set-Cookie")] == ["sid="]


# -- caches ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], ["Cookie"]),
        (["Accept"], ["Accept, Cookie"]),
        (["Accept, Accept-Encoding"], ["Accept, Accept-Encoding, Cookie"]),
        (["Accept", "Origin"], ["Accept, Origin, Cookie"]),
        (["Cookie"], ["Cookie"]),
        (["Accept,cOOKIE"], ["Accept,cOOKIE"]),
        (["Accept", "Cookie"], ["Accept", "Cookie"]),
        (["*"], ["*"]),
        (["Accept, *"], ["Accept, *"]),
        (["Cookie2"], ["Cookie2, Cookie"]),
        ([" , "], ["Cookie"]),
    ],
)
def test_vary_names_cookie_once(before: list[str], after: list[str]) -> None:
    """`Vary: Cookie` is added to what the application says, unless that says so already."""
    headers = Headers([("Vary", line) for line in before])
    vary_on_cookie(headers)
    assert headers.getlist("Vary") == after
    vary_on_cookie(headers)
    assert headers.getlist("Vary") == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], "private, no-cache"),
        (["private, no-cache"], "private, no-cache"),
        (["no-store"], "private, no-cache, no-store"),
        (["max-age=60, must-revalidate"], "private, no-cache, max-age=60, must-revalidate"),
        (["public, max-age=60"], "private, no-cache, max-age=60"),
        (["PUBLIC", "S-MaxAge = 60", "no-transform"], "private, no-cache, no-transform"),
        (["s-maxage=60"], "private, no-cache"),
        (["public=oops"], "private, no-cache"),
        (['private="Set-Cookie"'], "private, no-cache"),
        (['no-cache="Set-Cookie, X-Id", no-store'], "private, no-cache, no-store"),
        (['ext="a, public", no-store'], 'private, no-cache, ext="a, public", no-store'),
        (['ext="a\\", b", public'], 'private, no-cache, ext="a\\", b"'),
        (['no-store, private="unclosed, x'], "private, no-cache, no-store, x"),
        (["publicity"], "private, no-cache, publicity"),
        ([" , ,"], "private, no-cache"),
    ],
)
def test_a_response_with_a_cookie_is_kept_private(before: list[str], after: str) -> None:
    """`private, no-cache` is merged with the application's Cache-Control, and never weakens it."""
    headers = Headers([("Cache-Control", line) for line in before])
    for _ in range(2):
        set_cookie(headers, "sid", "v", Options(), None, https=False)
        assert headers.getlist("Cache-Control") == [after]


def test_reading_a_session_leaves_caching_as_it_is() -> None:
    """Only a response that sets the cookie gets a Cache-Control."""
    headers = Headers([("Cache-Control", "public")])
    vary_on_cookie(headers)
    assert headers.getlist("Cache-Control") == ["public"]


# -- https -----------------------------------------------------------------------------------------

PLAIN = {"wsgi.url_scheme": "http"}
HIDDEN = {"wsgi.url_scheme": "http", "HTTP_X_FORWARDED_PROTO": " HTTPS"}
SECURE = {"wsgi.url_scheme": "https", "HTTP_X_FORWARDED_PROTO": "https"}


@pytest.mark.parametrize(
    ("environ", "https"),
    [
        (PLAIN, False),
        (HIDDEN, False),
        (SECURE, True),
        ({"wsgi.url_scheme": "https", "HTTP_X_FORWARDED_PROTO": "http"}, True),
        ({}, False),
    ],
)
def test_only_the_server_says_whether_it_is_https(environ: dict[str, str], https: bool) -> None:
    """`X-Forwarded-Proto` can be sent by anybody: it is not believed."""
    assert HttpsCheck()(environ, Options()) is https


@pytest.mark.parametrize(
    ("environ", "settings", "warnings"),
    [
        (HIDDEN, {}, 1),
        (HIDDEN, {"secure": True}, 0),
        (HIDDEN, {"secure": False}, 0),
        (PLAIN, {}, 0),
        (SECURE, {}, 0),
        ({**PLAIN, "HTTP_X_FORWARDED_PROTO": "http"}, {}, 0),
    ],
)
def test_a_proxy_that_hides_https_is_warned_of_once(
    caplog: pytest.LogCaptureFixture, environ: dict[str, str], settings: Any, warnings: int
) -> None:
    """Cookies that go out without Secure behind a TLS proxy are noticed, once per store."""
    check = HttpsCheck()
    for _ in range(3):
        check(environ, Options(**settings))
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * warnings
    assert all("ProxyFix" in record.getMessage() for record in caplog.records)
