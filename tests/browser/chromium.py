"""The system's Chromium, for playwright, which can only download its own."""

from __future__ import annotations

import os
import shutil

import pytest
from playwright.sync_api import Browser, Playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome")


def launch(playwright: Playwright) -> Browser:
    """Start it without windows. Where there is none, skip, or fail in CI."""
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium found: install Debian's chromium")
        pytest.skip("no Chromium found: install Debian's chromium")
    return playwright.chromium.launch(
        executable_path=path,
        # Root has no sandbox, and a container a small /dev/shm.
        args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"],
        # As people have it: what the back button shows is a matter of it.
        ignore_default_args=["--disable-back-forward-cache"],
    )
