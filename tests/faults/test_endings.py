"""Sessions that end, or change hands, while a slow request works on them: real requests in threads.

A slow request has loaded the session and changed it, and stops before its save. Meanwhile the same
browser, or another process, does something else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from werkzeug.test import Client, TestResponse

from pgstore.ids import SessionId
from support import crowd
from support.staged import Page, Site
from support.stores import Lab, SQLiteLab

HOUR = 3600
GRACE = 30
# A visit that comes so long after the one before is stamped, and its cookie sent again.
TOUCH = 301


@pytest.fixture(params=["sqlite", "postgres"])
def shared_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Return a fresh storage that other processes can reach, too."""
    if request.param == "postgres":
        yield request.getfixturevalue("pg_lab")
        return
    with SQLiteLab(request.getfixturevalue("tmp_path") / "sessions.db") as lab:
        yield lab


@pytest.fixture
def site(shared_lab: Lab) -> Site:
    return Site(shared_lab.store(rotate_every=HOUR, rotation_grace=GRACE))


@pytest.fixture
def browser(site: Site) -> Client:
    """Return a browser that has an anonymous session with n = 1."""
    browser = site.browser()

    def first(page: Page) -> None:
        page.session["n"] = 1
        page.save()

    assert cookies(site.visit(browser, first)) != []
    return browser


def cookies(response: TestResponse) -> list[str]:
    return response.headers.getlist("Set-Cookie")


def who(site: Site, browser: Client) -> tuple[str | None, dict[Any, Any]]:
    """Return the user and the values of the session that the browser has, as a request sees it."""
    seen: list[tuple[str | None, dict[Any, Any]]] = []
    site.visit(browser, lambda page: seen.append((page.session.user_key, page.session.values)))
    return seen[0]


# -- handlers


def slow_change(page: Page) -> None:
    page.session["slow"] = 1
    page.pause()
    page.save()


def slow_read(page: Page) -> None:
    assert page.session["n"] == 1
    page.pause()
    page.save()


def slow_logout(page: Page) -> None:
    page.session.logout()
    page.pause()
    page.save()


def slow_login(page: Page) -> None:
    page.session.login("bob")
    page.pause()
    page.save()


def logout(page: Page) -> None:
    page.session.logout()
    page.save()


def login(page: Page) -> None:
    page.session.login("alice")
    page.save()


def regenerate(page: Page) -> None:
    page.session.regenerate()
    page.save()


def change(page: Page) -> None:
    page.session["n"] = page.session["n"] + 1
    page.save()


def read(page: Page) -> None:
    page.save()


# -- logout


def test_a_logout_before_a_slow_save(shared_lab: Lab, site: Site, browser: Client) -> None:
    """A deleted session stays deleted, and the slow request's response sets no cookie."""
    with site.slow(browser, slow_change) as slow:
        assert "Max-Age=0" in cookies(site.visit(browser, logout))[0]
    assert (slow.response.status_code, slow.response.text) == (200, "gone")
    assert cookies(slow.response) == []
    assert shared_lab.rows() == []
    assert browser.get_cookie("sid") is None


def test_a_logout_after_a_slow_save(shared_lab: Lab, site: Site, browser: Client) -> None:
    """A logout that was loaded before another request's save ends the session all the same."""
    with site.slow(browser, slow_logout) as slow:
        assert site.visit(browser, change).text == "saved"
        assert len(shared_lab.rows()) == 1
    assert slow.response.text == "saved"
    assert shared_lab.rows() == []
    assert browser.get_cookie("sid") is None


@pytest.mark.parametrize("others", [1, 7])
def test_a_logout_and_saves_at_once(
    shared_lab: Lab, site: Site, browser: Client, others: int
) -> None:
    """Of requests that save at the same moment one logs out: in whatever order, the row is gone."""
    *saves, ended = site.at_once(browser, *[slow_change] * others, slow_logout)
    assert {each.text for each in saves} <= {"saved", "gone"}
    assert [cookie for each in saves for cookie in cookies(each)] == []
    assert "Max-Age=0" in cookies(ended)[0]
    assert shared_lab.rows() == []


def test_a_slow_request_that_only_reads(shared_lab: Lab, site: Site, browser: Client) -> None:
    """It has nothing to save: it answers, sets no cookie, and brings nothing back."""
    with site.slow(browser, slow_read) as slow:
        site.visit(browser, logout)
    assert (slow.response.text, cookies(slow.response)) == ("saved", [])
    assert shared_lab.rows() == []


def test_a_slow_request_that_is_due_to_be_touched(
    shared_lab: Lab, site: Site, browser: Client
) -> None:
    """A touch finds no row to touch: no cookie, and nothing is brought back."""
    shared_lab.pass_time(HOUR / 2)
    with site.slow(browser, slow_read) as slow:
        site.visit(browser, logout)
    assert (slow.response.text, cookies(slow.response)) == ("gone", [])
    assert shared_lab.rows() == []


@pytest.mark.parametrize("handler", [slow_change, slow_login])
def test_a_browser_that_logged_in_meanwhile(
    shared_lab: Lab, site: Site, browser: Client, handler: Any
) -> None:
    """Logout, then login as somebody: the end of a slow request disturbs neither the new cookie
    nor the new session.
    """
    with site.slow(browser, handler) as slow:
        site.visit(browser, logout)
        site.visit(browser, login)
        cookie = browser.get_cookie("sid")
    assert (slow.response.text, cookies(slow.response)) == ("gone", [])
    assert browser.get_cookie("sid") == cookie
    assert who(site, browser) == ("alice", {})
    assert len(shared_lab.rows()) == 1


def test_a_slow_logout_and_a_login_meanwhile(shared_lab: Lab, site: Site, browser: Client) -> None:
    """A logout ends the session that its request came with, and not the one that came after."""
    with site.slow(browser, slow_logout) as slow:
        site.visit(browser, logout)
        (cookie,) = cookies(site.visit(browser, login))
    assert slow.response.text == "saved"
    assert who(site, with_cookie(site, cookie)) == ("alice", {})


# -- revocation by another process, and expiry


def test_a_revocation_by_another_process(shared_lab: Lab, site: Site, browser: Client) -> None:
    """A row that another process deletes in mid-request stays deleted, and no cookie is set."""
    with site.slow(browser, slow_change) as slow:
        key = shared_lab.row()["key"]
        assert crowd.elsewhere(crowd.delete, crowd.maker(shared_lab), key) is True
    assert (slow.response.text, cookies(slow.response)) == ("gone", [])
    assert shared_lab.rows() == []
    # The browser still has the cookie: it leads nowhere, and no answer is given to it.
    assert browser.get_cookie("sid") is not None
    assert who(site, browser) == (None, {})
    assert cookies(site.visit(browser, read)) == []


def test_an_expiry_in_mid_request(shared_lab: Lab, site: Site, browser: Client) -> None:
    """A row that expires in mid-request is not revived, swept or not."""
    with site.slow(browser, slow_change) as slow:
        shared_lab.pass_time(31 * 24 * HOUR)
        before = shared_lab.row()
    assert (slow.response.text, cookies(slow.response)) == ("gone", [])
    assert shared_lab.row() == before
    assert who(site, browser) == (None, {})


def test_an_expiry_and_a_sweep_in_mid_request(shared_lab: Lab, site: Site, browser: Client) -> None:
    """The same when the row was swept away before the save."""
    with site.slow(browser, slow_change) as slow:
        shared_lab.pass_time(31 * 24 * HOUR)
        assert site.store.delete_expired() == 1
    assert (slow.response.text, cookies(slow.response)) == ("gone", [])
    assert shared_lab.rows() == []


# -- a new secret


@pytest.mark.parametrize(("renewal", "user"), [(login, "alice"), (regenerate, None)])
@pytest.mark.parametrize("handler", [slow_change, slow_logout, slow_login])
def test_a_regenerate_in_mid_request(
    shared_lab: Lab, site: Site, browser: Client, renewal: Any, user: str | None, handler: Any
) -> None:
    """What a request from before it changes, ends or takes over is not the renewed session."""
    with site.slow(browser, handler) as slow:
        assert cookies(site.visit(browser, renewal)) != []
        cookie, row = browser.get_cookie("sid"), shared_lab.row()
    assert (slow.response.text, cookies(slow.response)) == ("gone", [])
    assert browser.get_cookie("sid") == cookie
    assert shared_lab.row() == row
    assert who(site, browser) == (user, {"n": 1})


def test_two_logins_at_once(shared_lab: Lab, site: Site, browser: Client) -> None:
    """One wins and sets the cookie, the other is told that the session is gone, and sets none."""
    answers = site.at_once(browser, slow_login, slow_login)
    assert sorted(answer.text for answer in answers) == ["gone", "saved"]
    assert sorted(len(cookies(answer)) for answer in answers) == [0, 1]
    assert who(site, browser) == ("bob", {"n": 1})
    assert shared_lab.row()["generation"] == 1


def test_a_renewal_by_age_in_mid_request(shared_lab: Lab, site: Site, browser: Client) -> None:
    """A slow request of the generation before merges, and its cookie is the renewed one."""
    with site.slow(browser, slow_change) as slow:
        shared_lab.pass_time(HOUR + 1)
        assert cookies(site.visit(browser, change)) != []
        renewed = secret(site, browser)
        assert shared_lab.row()["generation"] == 1
    assert slow.response.text == "saved"
    assert len(cookies(slow.response)) == 1
    assert secret(site, browser) == renewed
    assert shared_lab.row()["generation"] == 1
    assert who(site, browser) == (None, {"n": 2, "slow": 1})


def test_a_renewal_by_age_and_a_very_slow_request(
    shared_lab: Lab, site: Site, browser: Client
) -> None:
    """After the grace its changes still count, but it knows no cookie to send, not even when the
    visit is stamped.
    """
    with site.slow(browser, slow_change) as slow:
        shared_lab.pass_time(HOUR + 1)
        site.visit(browser, change)
        cookie = browser.get_cookie("sid")
        shared_lab.pass_time(GRACE + TOUCH)
    assert (slow.response.text, cookies(slow.response)) == ("saved", [])
    assert browser.get_cookie("sid") == cookie
    assert who(site, browser) == (None, {"n": 2, "slow": 1})


def test_renewals_by_age_at_once(shared_lab: Lab, site: Site, browser: Client) -> None:
    """Many requests find the secret old at the same moment: it is renewed once, and whichever
    cookie the browser keeps is the one.
    """
    shared_lab.pass_time(HOUR + 1)
    answers = site.at_once(browser, *[slow_change] * 6)
    assert [answer.text for answer in answers] == ["saved"] * 6
    row = shared_lab.row()
    assert (row["generation"], row["min_generation"]) == (1, 0)
    assert who(site, browser) == (None, {"n": 1, "slow": 1})
    secrets = {secret(site, with_cookie(site, cookies(answer)[0])) for answer in answers}
    assert secrets == {secret(site, browser)}


def secret(site: Site, browser: Client) -> bytes:
    """Return the secret in the browser's cookie."""
    cookie = browser.get_cookie("sid")
    assert cookie
    return SessionId.from_bytes(site.store.codecs[0].decode("sid", cookie.value)).secret


def with_cookie(site: Site, line: str) -> Client:
    """Return another browser, with the cookie of a Set-Cookie line."""
    browser = site.browser()
    browser.set_cookie("sid", line.partition(";")[0].partition("=")[2])
    return browser


# -- several in one


def test_two_first_requests_at_once(shared_lab: Lab, site: Site) -> None:
    """Both make a session that is good; the browser keeps one of the two, and it works."""
    browser = site.browser()

    def first(number: int) -> Any:
        def handler(page: Page) -> None:
            assert page.session.is_new
            page.session["number"] = number
            page.pause()
            page.save()

        return handler

    answers = site.at_once(browser, first(0), first(1))
    assert len(shared_lab.rows()) == 2
    both = [who(site, with_cookie(site, *cookies(answer))) for answer in answers]
    assert both == [(None, {"number": 0}), (None, {"number": 1})]
    assert who(site, browser) in both


def test_a_second_save_with_another_request_between(
    shared_lab: Lab, site: Site, browser: Client
) -> None:
    """The second save of one request merges like the first, with what came between."""

    def twice(page: Page) -> None:
        page.session["first"] = 1
        page.save()
        page.pause()
        page.session["second"] = 2
        page.save()

    with site.slow(browser, twice) as slow:
        site.visit(browser, change)
    assert slow.response.text == "saved"
    assert who(site, browser) == (None, {"n": 2, "first": 1, "second": 2})
    assert len(shared_lab.rows()) == 1


def test_a_second_save_of_a_first_request(shared_lab: Lab, site: Site) -> None:
    """It updates the row that the first has inserted, and the browser gets one cookie."""
    browser = site.browser()

    def twice(page: Page) -> None:
        for number in range(2):
            page.session["x"] = number
            page.save()

    assert len(cookies(site.visit(browser, twice))) == 1
    assert who(site, browser) == (None, {"x": 1})
    assert len(shared_lab.rows()) == 1


def test_a_second_save_after_a_logout_between(shared_lab: Lab, site: Site, browser: Client) -> None:
    """A request that has saved, and saves again after the logout, brings nothing back."""

    def twice(page: Page) -> None:
        page.session["first"] = 1
        page.save()
        page.pause()
        page.session["second"] = 2
        page.save()

    with site.slow(browser, twice) as slow:
        site.visit(browser, logout)
    assert (slow.response.text, cookies(slow.response)) == ("gone", [])
    assert shared_lab.rows() == []


def test_a_save_after_a_delete(shared_lab: Lab, site: Site, browser: Client) -> None:
    """It makes a session with a new id, whose cookie is the only one that is sent."""
    (old,) = (row["key"] for row in shared_lab.rows())

    def anew(page: Page) -> None:
        page.session.delete()
        page.save()
        page.session["fresh"] = 1
        page.save()

    (cookie,) = cookies(site.visit(browser, anew))
    assert "Max-Age=0" not in cookie
    assert who(site, browser) == (None, {"fresh": 1})
    assert shared_lab.row()["key"] != old


def test_a_save_after_a_delete_against_a_slow_request(
    shared_lab: Lab, site: Site, browser: Client
) -> None:
    """What the slow request had does not turn up in the session that came after the delete."""

    def anew(page: Page) -> None:
        page.session.delete()
        page.session["fresh"] = 1
        page.save()

    with site.slow(browser, slow_change) as slow:
        site.visit(browser, anew)
    assert (slow.response.text, cookies(slow.response)) == ("gone", [])
    assert who(site, browser) == (None, {"fresh": 1})
    assert len(shared_lab.rows()) == 1


def test_a_get_after_a_save_in_one_request(shared_lab: Lab, site: Site, browser: Client) -> None:
    """It is the same session as before, with what the save has merged into it."""

    def again(page: Page) -> str:
        page.session["first"] = 1
        page.pause()
        page.save()
        assert page.get() is page.session
        return repr(sorted(page.get().values.items()))

    with site.slow(browser, again) as slow:
        site.visit(browser, change)
    assert slow.response.text == "[('first', 1), ('n', 2)]"


def test_a_get_after_a_delete_in_one_request(site: Site, browser: Client) -> None:
    """It is the emptied session, not the one that the request's cookie led to."""

    def again(page: Page) -> str:
        page.session.delete()
        page.save()
        return repr((page.get().is_new, page.get().values))

    assert site.visit(browser, again).text == "(True, {})"
