"""A small WSGI site on a store, and requests to it that stop where a test wants them to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from werkzeug import Request, Response
from werkzeug.test import Client, TestResponse

from pgstore import SessionGone, Store
from pgstore.session import Session

_PATIENCE = 30.0


class Page:
    """One request in its handler, which works on ``session`` and calls `save` itself."""

    def __init__(self, site: Site, request: Request) -> None:
        self.site = site
        self.request = request
        self.response = Response("saved")
        self.session = self.get()

    def get(self) -> Session:
        return self.site.store.get(self.request, "sid")

    def save(self) -> None:
        self.session.save(self.request, self.response)

    def pause(self) -> None:
        """Wait here until the test lets the request go on."""
        self.site.pause()


Handler = Callable[[Page], Any]


class Site:
    """A WSGI app. A handler that meets `SessionGone` lets its response go out, saying "gone"."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._handlers: dict[str, Handler] = {}
        self._arrived = threading.Event()
        self._go_on = threading.Event()
        self._meeting: threading.Barrier | None = None

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        page = Page(self, Request(environ))
        try:
            text = self._handlers[page.request.path](page)
        except SessionGone:
            text = "gone"
        if text is not None:
            page.response.set_data(str(text))
        return page.response(environ, start_response)

    def browser(self) -> Client:
        """Return a browser: it keeps cookies, and may have several requests under way."""
        return Client(self)

    def visit(self, browser: Client, handler: Handler) -> TestResponse:
        """Send a request that this handler answers, and return the response."""
        path = f"/{id(handler)}"
        self._handlers[path] = handler
        return browser.get(path)

    def pause(self) -> None:
        if self._meeting is not None:
            self._meeting.wait(_PATIENCE)
            return
        self._arrived.set()
        assert self._go_on.wait(_PATIENCE)

    @contextmanager
    def slow(self, browser: Client, handler: Handler) -> Iterator[Slow]:
        """Send a request in a thread of its own; the block runs while its handler pauses."""
        self._arrived.clear()
        self._go_on.clear()
        slow = Slow(partial(self.visit, browser, handler))
        try:
            assert self._arrived.wait(_PATIENCE)
            yield slow
        finally:
            self._go_on.set()
            slow.join()

    def at_once(self, browser: Client, *handlers: Handler) -> list[TestResponse]:
        """Send so many requests, each of which meets the others when its handler pauses."""
        self._meeting = threading.Barrier(len(handlers))
        requests = [Slow(partial(self.visit, browser, handler)) for handler in handlers]
        try:
            return [request.response for request in requests]
        finally:
            self._meeting = None


class Slow:
    """A request in a thread of its own."""

    def __init__(self, send: Callable[[], TestResponse]) -> None:
        self._response: TestResponse | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(send,), daemon=True)
        self._thread.start()

    @property
    def response(self) -> TestResponse:
        """Wait for the response and return it; raise what the request raised."""
        self.join()
        if self._error is not None:
            raise self._error
        assert self._response is not None
        return self._response

    def join(self) -> None:
        self._thread.join(_PATIENCE)
        assert not self._thread.is_alive()

    def _run(self, send: Callable[[], TestResponse]) -> None:
        try:
            self._response = send()
        except BaseException as error:
            self._error = error
