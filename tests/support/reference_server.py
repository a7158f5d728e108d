"""One request after another through Python's reference server, with `wsgiref.validate` around."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from wsgiref.handlers import SimpleHandler
from wsgiref.validate import validator

from werkzeug.datastructures import Headers

from support.stores import Browser

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


@dataclass
class Answer:
    """What went over the wire, the errors that reached the server, and what it said of them."""

    status: int
    headers: Headers
    body: bytes
    chunks: list[bytes]
    errors: list[object]
    complaints: str

    @property
    def cookies(self) -> list[str]:
        return self.headers.getlist("Set-Cookie")


def ask(
    app: WSGIApplication,
    browser: Browser | None = None,
    path: str = "/",
    method: str = "GET",
    *,
    validate: bool = True,
    complaints: bool = False,
) -> Answer:
    """Send one request and let the browser have the answer.

    What the server complains of fails the test, unless it is asked for.
    """
    handler = _Handler(browser or Browser(), path, method)
    handler.run(validator(app) if validate else app)
    answer = handler.answer()
    if browser is not None:
        browser.receive(answer.headers)
    assert complaints or not answer.complaints, answer.complaints
    return answer


class _Handler(SimpleHandler):
    os_environ: dict[str, str] = {}  # noqa: RUF012 - as in the base class
    origin_server = False

    def __init__(self, browser: Browser, path: str, method: str) -> None:
        environ = browser.environ(
            REQUEST_METHOD=method,
            SCRIPT_NAME="",
            PATH_INFO=path,
            QUERY_STRING="",
            SERVER_NAME="localhost",
            SERVER_PORT="80",
            SERVER_PROTOCOL="HTTP/1.1",
        )
        self._chunks: list[bytes] = []
        self._head = 0
        self._errors: list[object] = []
        self._complaints = io.StringIO()
        super().__init__(io.BytesIO(), io.BytesIO(), self._complaints, environ)

    def _write(self, data: bytes) -> None:
        self._chunks.append(data)

    def send_headers(self) -> None:
        super().send_headers()
        self._head = len(self._chunks)

    def log_exception(self, exc_info: Any) -> None:
        self._errors.append(exc_info[1])
        super().log_exception(exc_info)

    def answer(self) -> Answer:
        head, chunks = self._chunks[: self._head], self._chunks[self._head :]
        lines = b"".join(head).decode("latin-1").splitlines()
        found = re.fullmatch(r"Status: (\d+) .*", lines[0])
        assert found, lines
        headers = Headers(line.partition(": ")[::2] for line in lines[1:] if line)
        body = b"".join(chunks)
        status, complaints = int(found[1]), self._complaints.getvalue()
        return Answer(status, headers, body, chunks, self._errors, complaints)


class Spy:
    """A backend that counts what it is asked."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self._backend, name)
        if not callable(verb):
            return verb

        def ask(*arguments: Any, **settings: Any) -> Any:
            self.asked.append(name)
            return verb(*arguments, **settings)

        return ask
