"""The demo's site: as an app in this process, or as a process; and people who visit it."""

from __future__ import annotations

import html
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from werkzeug.test import Client as TestClient

from pgstore import Store
from pgstore.demo_site import create_app
from support.servers import Client


class Page(NamedTuple):
    """An answer: its status, its headers, and its text."""

    status: int
    headers: Any
    text: str

    @property
    def words(self) -> str:
        """The text as people see it, without tags."""
        text = re.sub(r"<[^>]*>", " ", self.text)
        return " ".join(html.unescape(text).split())

    def forms(self, action: str) -> list[dict[str, str]]:
        """Return the hidden fields of each form that goes to ``action``."""
        forms = re.findall(rf'<form[^>]* action="{action}">(.*?)</form>', self.text, re.DOTALL)
        hidden = r'<input type="hidden" name="(.*?)" value="(.*?)">'
        return [{k: html.unescape(v) for k, v in re.findall(hidden, form)} for form in forms]


class Visitor:
    """A browser on the site. Keeps the cookie, every page, and the token of the last form."""

    def __init__(self, request: Callable[..., Page]) -> None:
        self.request = request
        self.pages: list[Page] = []
        self.token = ""

    def open(self, path: str = "/", *, method: str = "GET", **form: str) -> Page:
        page = self.request(method, path, **form)
        self.pages.append(page)
        tokens = re.findall(r'name="csrf" value="(.*?)"', page.text)
        # One token on all forms of a page.
        assert len(set(tokens)) <= 1
        self.token = tokens[0] if tokens else self.token
        return page

    def look(self, path: str = "/") -> str:
        page = self.open(path)
        assert page.status == 200, page
        return page.words

    def post(self, path: str, **form: str) -> str:
        """Send a form, with its token, and return where that leads, or the status."""
        page = self.open(path, method="POST", csrf=self.token, **form)
        return page.headers["Location"] if page.status == 303 else str(page.status)

    def sign_in(self, name: str) -> None:
        self.look("/sign-in")
        assert self.post("/sign-in", name=name) == "/"
        self.look()

    @property
    def count(self) -> int:
        (number,) = re.findall(r"<output[^>]*>(\d+)</output>", self.open().text)
        return int(number)


class Browser(Visitor):
    """A visitor of the app in this process."""

    def __init__(self, store: Store, *, agent: str = "", address: str = "192.0.2.7") -> None:
        super().__init__(self._request)
        self.client = TestClient(create_app(store, database="<the test>"))
        self._environ = {"HTTP_USER_AGENT": agent, "REMOTE_ADDR": address}

    def _request(self, method: str, path: str, **form: str) -> Page:
        response = self.client.open(
            path,
            method=method,
            data=form or None,
            environ_overrides=self._environ,
            buffered=True,
        )
        return Page(response.status_code, response.headers, response.text)

    @property
    def cookie(self) -> str | None:
        cookie = self.client.get_cookie("pgstore_demo")
        return None if cookie is None else cookie.value


class Demo:
    """A demo that runs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self.process = process
        self.announced = process.stdout.readline()
        self.url = self.announced.partition(" ")[0]

    def visitor(self, cookies: dict[str, str] | None = None) -> tuple[Visitor, dict[str, str]]:
        """Return a new browser, and its cookies."""
        port = urlsplit(self.url).port
        assert port is not None
        client = Client(port)
        client.cookies.update(cookies or {})

        def request(method: str, path: str, **form: str) -> Page:
            return Page(*client.request(method, path, **form))

        return Visitor(request), client.cookies

    def stop(self, number: signal.Signals) -> tuple[int, str, str]:
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@contextmanager
def demo(*argv: str, code: str = "", cwd: Path | None = None) -> Iterator[Demo]:
    """Run the demo on a free port for the length of a block."""
    start = ["-c", f"{code}; from pgstore.cli import main; raise SystemExit(main())"]
    with subprocess.Popen(
        [sys.executable, *(start if code else ["-m", "pgstore"]), "demo", "--port", "0", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
    ) as process:
        try:
            yield Demo(process)
        finally:
            # As an operator would: what it started must be gone even when a test fails.
            process.terminate()
            process.wait(60)
