"""The demo's site in a real browser, on a real PostgreSQL."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from support.site import Demo

Visit = Callable[..., Page]

CONTRASTS = Path(__file__).with_name("contrasts.js").read_text("utf-8")
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"


def press(page: Page, name: str, *, inside: Literal["main", "banner"] = "main") -> None:
    button = page.get_by_role(inside).get_by_role("button", name=name, exact=True)
    with page.expect_navigation():
        button.click()


def follow(page: Page, name: str) -> None:
    with page.expect_navigation():
        page.get_by_role("link", name=name, exact=True).click()


def heading(page: Page) -> str:
    """Return what the page is called; each has one name."""
    (name,) = page.get_by_role("heading", level=1).all_inner_texts()
    return name


def path(page: Page) -> str:
    return "/" + page.url.split("/", 3)[3]


def messages(page: Page) -> Locator:
    return page.locator(".messages[role=status]")


def counter(page: Page) -> Locator:
    return page.get_by_role("status", name="Counter")


def cookie(page: Page) -> Any:
    (cookie,) = page.context.cookies()
    return cookie


# -- users and their devices -----------------------------------------------------------------------


def test_two_browsers_see_and_end_each_other(visit: Visit) -> None:
    """Each sees both devices; one signs the other out, whose next click lands on the sign-in page.

    Whatever it clicks: a link, or a button.
    """
    one = visit("alice")
    clicks: list[Callable[[Page], None]] = [
        lambda page: press(page, "Count up"),
        lambda page: follow(page, "Your devices"),
        lambda page: press(page, "Sign out", inside="banner"),
    ]
    for click in clicks:
        two = visit("alice", user_agent=FIREFOX)
        for page, other in ((one, "Firefox on Linux"), (two, "HeadlessChrome on Linux")):
            page.goto("/devices")
            devices = page.get_by_role("main").get_by_role("listitem")
            expect(devices).to_have_count(2)
            own = devices.filter(has_text="This device")
            expect(own).to_have_count(1)
            expect(own).not_to_contain_text(other)
            expect(devices.filter(has_text=other)).to_have_count(1)
        two.goto("/")
        press(one, "Sign out Firefox on Linux")
        expect(messages(one)).to_have_text("That device is signed out.")
        expect(one.get_by_role("main").get_by_role("listitem")).to_have_count(1)
        click(two)
        assert (path(two), heading(two)) == ("/sign-in", "Sign in")
        expect(two.locator("body")).not_to_contain_text("alice")
    press(one, "Sign out everywhere")
    assert path(one) == "/sign-in"


def test_the_others_are_signed_out_at_once(visit: Visit) -> None:
    """And this one stays, with all that it had."""
    others = [visit("alice"), visit("alice")]
    one = visit("alice")
    press(one, "Count up")
    follow(one, "Your devices")
    press(one, "Sign out all other devices")
    expect(messages(one)).to_have_text("Signed out on 2 other devices.")
    follow(one, "Shop")
    expect(messages(one)).to_have_count(0)
    expect(counter(one)).to_have_text("1")
    for other in others:
        follow(other, "Your devices")
        assert path(other) == "/sign-in"


def test_the_administrator_sees_who_is_there(visit: Visit) -> None:
    """Whoever signs in as admin, which the sign-in page says."""
    expect(visit().get_by_role("main")).to_contain_text("Whoever comes as admin sees")
    alice = visit("alice")
    expect(alice.get_by_role("link", name="Administration")).to_have_count(0)
    admin = visit("admin")
    follow(admin, "Administration")
    users = admin.get_by_role("row").filter(has=admin.get_by_role("rowheader"))
    assert users.get_by_role("rowheader").all_inner_texts() == ["admin", "alice"]
    terms = admin.get_by_role("term").all_inner_texts()
    shown = admin.get_by_role("definition").all_inner_texts()
    health = dict(zip(terms, shown, strict=True))
    # The third is the first visitor's, who has only seen the sign-in page.
    assert (health["Live sessions"], health["Expired, to be swept"]) == ("3", "0")
    assert re.fullmatch(r"[\d.]+ kB", health["Size of the table"])
    assert re.fullmatch(r"just now|\d+ seconds? ago", health["Oldest session"])
    press(admin, "Sign out alice")
    press(alice, "Count up")
    assert path(alice) == "/sign-in"


# -- the cookie ------------------------------------------------------------------------------------


def test_the_cookie_is_for_http_only_and_changes_at_sign_in(visit: Visit) -> None:
    """HttpOnly, SameSite=Lax, for the whole site, and unseen by scripts."""
    page = visit()
    before = cookie(page)
    page.get_by_label("Name").fill("alice")
    press(page, "Sign in")
    after = cookie(page)
    for one in (before, after):
        assert (one["name"], one["path"]) == ("pgstore_demo", "/")
        assert (one["httpOnly"], one["sameSite"]) == (True, "Lax")
    assert after["value"] != before["value"]
    assert (before["expires"], after["expires"] > 0) == (-1, True)
    assert page.evaluate("document.cookie") == ""
    press(page, "Sign out", inside="banner")
    assert cookie(page)["value"] not in (before["value"], after["value"])


def test_the_cookie_of_before_opens_nothing(visit: Visit) -> None:
    """A planted cookie is dead when its victim has signed in, and a stolen one at signing out."""
    page, thief = visit(), visit()
    planted = cookie(page)
    page.get_by_label("Name").fill("alice")
    press(page, "Sign in")
    stolen = cookie(page)
    press(page, "Sign out", inside="banner")
    for value in (planted, stolen):
        thief.context.clear_cookies()
        thief.context.add_cookies([value])
        thief.goto("/")
        assert path(thief) == "/sign-in"


def test_no_page_holds_a_cookie(visit: Visit) -> None:
    """Neither the value nor its parts are in any page, whoever looks, before or after."""
    texts: list[str] = []
    secrets: set[str] = set()

    def look(page: Page, *paths: str) -> None:
        for target in paths or (path(page),):
            page.goto(target)
            texts.append(page.content())
            secrets.update(part for c in page.context.cookies() for part in c["value"].split("."))

    page = visit()
    look(page, "/sign-in")
    page.get_by_label("Name").fill("alice")
    press(page, "Sign in")
    press(page, "Add tea")
    press(page, "Count up")
    look(visit("alice"), "/", "/devices")
    look(page, "/static/style.css", "/nothing", "/admin", "/devices", "/")
    press(page, "Sign out", inside="banner")
    look(page)
    look(visit("admin"), "/admin", "/devices")
    assert len(secrets) >= 10
    assert all(len(secret) > 20 for secret in secrets)
    assert [secret for secret in secrets for text in texts if secret in text] == []


def test_the_back_button_after_signing_out_shows_nothing_private(visit: Visit) -> None:
    """Pages are asked for again (Cache-Control: no-store), and lead to the sign-in page."""
    page = visit("alice")
    press(page, "Count up")
    follow(page, "Your devices")
    follow(page, "Shop")
    press(page, "Sign out", inside="banner")
    assert path(page) == "/sign-in"
    for _ in range(5):
        page.go_back()
        expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
        assert "alice" not in page.content()


# -- forms -----------------------------------------------------------------------------------------


def test_a_form_without_its_token_is_refused(visit: Visit) -> None:
    """Taken out of the page, it is missed; nothing is changed."""
    page = visit("alice")
    page.locator("input[name=csrf]").evaluate_all("fields => fields.forEach(f => f.remove())")
    press(page, "Count up")
    assert heading(page) == "Forbidden"
    follow(page, "Back to the start")
    expect(counter(page)).to_have_text("0")


@pytest.mark.parametrize("host", ["127.0.0.1:9", "localhost:9", "evil.example"])
def test_another_sites_form_changes_nothing(site: Demo, visit: Visit, host: str) -> None:
    """SameSite keeps the cookie from another site's, and the token keeps another port's out."""
    form = f"""<form method="post" action="{site.url}devices/sign-out-all">
        <button>Win a prize</button></form>"""

    def evil(route: Route) -> None:
        route.fulfill(body=form, content_type="text/html")

    page = visit("alice")
    tab = page.context.new_page()
    tab.route(f"http://{host}/", evil)
    tab.goto(f"http://{host}/")
    with tab.expect_navigation():
        tab.get_by_role("button", name="Win a prize").click()
    # Without the cookie it is nobody's form; the page that it leads to is asked for with it again.
    assert heading(tab) == ("Forbidden" if host.startswith("127") else "Shop")
    page.reload()
    assert heading(page) == "Shop"


def test_it_works_without_javascript(visit: Visit) -> None:
    """All of it: signing in, counting, the cart, messages, devices, signing out."""
    page = visit("alice", java_script_enabled=False)
    expect(messages(page)).to_have_text("Welcome, alice.")
    press(page, "Count up")
    expect(messages(page)).to_have_count(0)
    press(page, "Count up")
    expect(counter(page)).to_have_text("2")
    press(page, "Add tea")
    press(page, "Add honey")
    cart = page.get_by_role("main").get_by_role("listitem")
    expect(cart).to_have_text([re.compile("^Tea"), re.compile("^Honey")])
    press(page, "Remove one tea")
    expect(cart).to_have_text([re.compile("^Honey")])
    follow(page, "Your devices")
    press(page, "Sign out HeadlessChrome on Linux")
    assert (path(page), heading(page)) == ("/sign-in", "Sign in")
    expect(messages(page)).to_have_text("You are signed out.")


# -- how it looks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 960])
def test_contrast_is_what_wcag_asks_for(visit: Visit, scheme: str, width: int) -> None:
    """WCAG 2.2 AA: 4.5 for text, 3 for large text, borders of what can be used, and the focus.

    By the colours that the browser computes, for every text and control of every page. The two
    schemes differ, and no page is wider than its window, down to 320 pixels (1.4.10).
    """
    settings = {"color_scheme": scheme, "viewport": {"width": width, "height": 800}}
    backgrounds = set()

    def check(page: Page) -> None:
        found = page.evaluate(CONTRASTS)
        assert len(found["checked"]) > 5
        assert found["poor"] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        backgrounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    page = visit(**settings)
    check(page)
    page.get_by_label("Name").fill("  ")
    press(page, "Sign in")
    expect(messages(page)).to_contain_text("cannot be a name")
    check(page)
    visit("w" * 60)
    page.get_by_label("Name").fill("admin")
    press(page, "Sign in")
    press(page, "Add tea")
    check(page)
    visit("admin", user_agent=FIREFOX)
    for target in ("/devices", "/admin", "/nothing"):
        page.goto(target)
        check(page)
    (background,) = backgrounds
    brightness = sum(map(int, re.findall(r"\d+", background)[:3])) / 3
    assert (brightness > 128) == (scheme == "light")


def test_every_control_has_a_name_of_its_own(visit: Visit) -> None:
    """For who cannot see the page: what a button does is in its name, not in its place."""
    visit("alice", user_agent=FIREFOX)
    page = visit("alice")
    press(page, "Add tea")
    press(page, "Add milk")
    for target in ("/", "/devices"):
        page.goto(target)
        names = [
            button.get_attribute("aria-label") or button.inner_text()
            for button in page.get_by_role("button").all()
        ]
        assert "" not in names
        assert len(set(names)) == len(names)
        assert page.locator("html").get_attribute("lang") == "en"


def test_the_site_is_used_by_keyboard(visit: Visit) -> None:
    """Tab reaches the name and the button, and the one that has the focus shows it."""
    page = visit()
    for _ in range(2):
        page.keyboard.press("Tab")
    page.keyboard.type("alice")
    outline = "getComputedStyle(document.activeElement).outline"
    assert "3px" in page.evaluate(outline)
    page.keyboard.press("Tab")
    assert "3px" in page.evaluate(outline)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Shop")
