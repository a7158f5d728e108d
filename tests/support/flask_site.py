"""A Flask app whose requests each run a function of the test, as its view."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse
from werkzeug.wrappers import Response

from pgstore import Store
from pgstore.ext.flask import FlaskSessions

View = Callable[[], Any]


class FlaskSite:
    """An app on ``store``, or without one on what ``config`` names.

    It is ``TESTING``, so that what a view raises reaches the test.
    """

    def __init__(self, store: Store | None = None, **config: Any) -> None:
        self.app = Flask("site")
        self.app.config.update({"TESTING": True} | config)
        self.sessions = FlaskSessions(self.app, store)
        self._views: dict[str, View] = {}
        self.app.add_url_rule("/<path:number>", "view", self._run, methods=["GET", "POST"])

    def browser(self) -> FlaskClient:
        return self.app.test_client()

    def visit(self, browser: FlaskClient, view: View, **settings: Any) -> TestResponse:
        """Send a request that this view answers; if what it returns is no answer, with no text."""
        path = f"/{id(view)}"
        self._views[path] = view
        return browser.get(path, **settings)

    def _run(self, number: str) -> Any:
        answer = self.app.ensure_sync(self._views[f"/{number}"])()
        return answer if isinstance(answer, str | tuple | Response | Iterator) else ""


def do(*steps: Callable[[], Any]) -> View:
    """Return a view that takes these steps, and answers with what the last one returns."""
    return lambda: [step() for step in steps][-1]


def attributes(response: TestResponse) -> set[str]:
    """Return the attributes of the one cookie that a response sets, in lower case."""
    (line,) = response.headers.getlist("Set-Cookie")
    return {part.strip().lower() for part in line.split(";")[1:]}


def max_age(response: TestResponse) -> int | None:
    """Return the Max-Age of the one cookie that a response sets; None for the browser's session."""
    (line,) = response.headers.getlist("Set-Cookie")
    found = re.search(r"Max-Age=(\d+)", line)
    assert ("Expires=" in line) == (found is not None)
    return None if found is None else int(found[1])
