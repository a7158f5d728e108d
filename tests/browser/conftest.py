from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from browser.chromium import launch
from support.site import Demo, demo
from support.stores import PostgresLab


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """Return a running Chromium."""
    with sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()


@pytest.fixture
def site(pg_lab: PostgresLab, tmp_path: Path) -> Iterator[Demo]:
    """Return a demo that runs on PostgreSQL."""
    dsn = f"{pg_lab.dsn}?options=-c%20search_path%3D{pg_lab.schema}"
    with demo("--dsn", dsn, "--data", str(tmp_path)) as site:
        yield site


Visit = Callable[..., Page]


@pytest.fixture
def visit(chromium: Browser, site: Demo) -> Iterator[Visit]:
    """Return a function that opens the site in a browser of its own, signed in under a name.

    No page may load anything from elsewhere, or break its Content-Security-Policy.
    """
    contexts, complaints, hosts = [], [], set()

    def visit(name: str = "", **settings: object) -> Page:
        context = chromium.new_context(base_url=site.url, **settings)  # type: ignore[arg-type]
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
        page.goto("/")
        if name:
            sign_in(page, name)
        return page

    yield visit
    for context in contexts:
        context.close()
    # It says of every 403 and 404 that it is one.
    assert [text for text in complaints if "with a status of" not in text] == []
    assert hosts <= {urlsplit(site.url).netloc}


def sign_in(page: Page, name: str) -> None:
    page.get_by_label("Name").fill(name)
    with page.expect_navigation():
        page.get_by_role("main").get_by_role("button", name="Sign in").click()
