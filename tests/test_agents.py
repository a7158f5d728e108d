"""What a browser says of itself, as family and system."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from pgstore import Agent

FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"
SAFARI = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 "
    "(KHTML, like Gecko) Version/17.5 Mobile/15E148 Safari/604.1"
)


@pytest.mark.parametrize(
    ("text", "browser", "system", "shown"),
    [
        (FIREFOX, "Firefox", "Linux", "Firefox on Linux"),
        (SAFARI, "Mobile Safari", "iOS", "Mobile Safari on iOS"),
        ("curl/8.9.1", "curl", None, "curl"),
        ("Something (Windows NT 10.0)", None, "Windows", "unknown browser on Windows"),
        ("<script>", None, None, "unknown browser"),
        ("", None, None, "unknown browser"),
        (None, None, None, "unknown browser"),
    ],
)
def test_families(text: str | None, browser: str | None, system: str | None, shown: str) -> None:
    """An agent has a browser and a system where they are known, and a text to show."""
    agent = Agent(text)
    assert (agent.browser, agent.system, str(agent)) == (browser, system, shown)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ua-parser is not installed nothing is known of an agent, and nothing is raised."""
    missing: Any = None
    monkeypatch.setitem(sys.modules, "ua_parser", missing)
    agent = Agent(FIREFOX)
    assert (agent.browser, agent.system, str(agent)) == (None, None, "unknown browser")


def test_nothing_is_parsed_before_it_is_asked_for() -> None:
    """The library, slow to load, is imported by the first question only."""
    script = f"""
import sys
from pgstore import Agent
agent = Agent({FIREFOX!r})
assert "ua_parser" not in sys.modules
assert agent.browser == "Firefox"
assert "ua_parser" in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
