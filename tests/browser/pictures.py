"""Takes the pictures of the demo in docs/images. In tests/: python -m browser.pictures"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
from playwright.sync_api import Browser, Page, sync_playwright

from browser.chromium import launch
from browser.conftest import sign_in
from pgstore.embedded import PostgresServer
from support.site import demo

IMAGES = Path(__file__).parents[2] / "docs" / "images"
LAPTOP = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
DESK = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/140.0.0.0 Safari/537.36"
)
PHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 "
    "(KHTML, like Gecko) Version/18.1 Mobile/15E148 Safari/604.1"
)
# Who signed in from where, how long ago: on one machine, all come from 127.0.0.1 and just now.
EARLIER = {
    ("bob", PHONE): ("198.51.100.7", "26 minutes"),
    ("carol", DESK): ("2001:db8::c4", "5 days"),
    ("alice", LAPTOP): ("203.0.113.80", "3 days"),
    ("alice", PHONE): ("192.0.2.44", "2 hours"),
}
MOVED = """UPDATE pgstore_demo SET ip = %(ip)s, created_on = created_on - %(age)s::interval,
    authenticated_on = authenticated_on - %(age)s::interval, seen_on = seen_on - %(age)s::interval
    WHERE user_key = %(user)s AND user_agent = %(agent)s"""


def take(browser: Browser, url: str, dsn: str, scheme: str) -> None:
    def visit(name: str, agent: str) -> Page:
        page = browser.new_page(
            base_url=url,
            user_agent=agent,
            color_scheme=scheme,
            viewport={"width": 860, "height": 560},
        )
        page.goto("/")
        sign_in(page, name)
        return page

    def picture(page: Page, path: str, name: str) -> None:
        page.bring_to_front()
        page.goto(path)
        page.screenshot(path=IMAGES / f"demo-{name}-{scheme}.png")

    with psycopg.connect(dsn, autocommit=True) as connection:
        for (name, agent), (ip, age) in EARLIER.items():
            visit(name, agent)
            moved = {"user": name, "agent": agent, "ip": ip, "age": age}
            connection.execute(MOVED, moved)
    alice = visit("alice", DESK)
    for button in ("Count up", "Add tea", "Add honey", "Add tea"):
        with alice.expect_navigation():
            alice.get_by_role("button", name=button, exact=True).click()
    alice.goto("/")
    picture(alice, "/", "shop")
    picture(alice, "/devices", "devices")
    picture(visit("admin", LAPTOP), "/admin", "admin")


def main() -> None:
    with sync_playwright() as playwright:
        browser = launch(playwright)
        for scheme in ("light", "dark"):
            with (
                TemporaryDirectory() as folder,
                PostgresServer(Path(folder) / "postgres") as server,
                demo("--dsn", server.dsn, cwd=Path(folder)) as site,
            ):
                take(browser, site.url, server.dsn, scheme)
        browser.close()


if __name__ == "__main__":
    main()
