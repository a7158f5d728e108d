"""Sessions for any WSGI application: a middleware, and a guard for what needs a login (PEP 3333).

from pgstore.ext.wsgi import SessionMiddleware

app = SessionMiddleware(app, store)
environ["pgstore.session"]["cart"] = ["tea"]      # in the application
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from werkzeug import Response
from werkzeug.datastructures import Headers
from werkzeug.local import LocalProxy
from werkzeug.wsgi import ClosingIterator

from .. import plan
from ..cookies import vary_on_cookie
from ..errors import BackendError, PGStoreError, SessionGone
from ..options import check_cookie_name
from ..session import Registry, Session
from ..store import Store

if TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["SessionMiddleware", "login_required"]

_log = logging.getLogger("pgstore")

_KEY = "pgstore.session"


class SessionMiddleware:
    """Give an application its visitor's `Session` as ``environ["pgstore.session"]``.

    The session is loaded when it is first used; in a request that does not use it there is no
    query, no cookie and no Vary. It is saved once, when the response begins: before the first chunk
    that is not empty leaves, or at the end of a response without one. What a streaming application
    changes after that is lost, which is logged once.

    - ``name`` is the cookie's.
    - ``save_on_error``: save for responses with a status of 500 and above, too.

    `BackendError`, whether the application let it through or the save raised it, is logged in one
    line and answered with a plain 503, unless the response has begun. `SessionGone` lets the
    response go out without a cookie. What else `Store.save` raises goes to the server.

    Raises `ConfigurationError` for a name that cannot name a cookie. The store stays yours.
    """

    def __init__(
        self,
        app: WSGIApplication,
        store: Store,
        name: str = "session",
        *,
        save_on_error: bool = False,
    ) -> None:
        check_cookie_name(name, store.options)
        self._app = app
        self._store = store
        self._name = name
        self._save_on_error = save_on_error
        self._warned = False

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        exchange = _Exchange(self, environ, start_response)
        environ[_KEY] = _LazySession(exchange)
        iterable: Iterable[bytes] = ()
        try:
            iterable = self._app(environ, exchange.start_response)
        except BackendError as error:
            exchange.fail(error)
        close = getattr(iterable, "close", None)
        if _is_whole(iterable, environ):
            # Handed on as it is: servers ask a list for its length, and send a file by themselves.
            try:
                exchange.begin()
            except BaseException:
                if close is not None:
                    close()
                raise
            if exchange.apology is None:
                return iterable
        return ClosingIterator(exchange.chunks(iterable), close)


def login_required(
    store: Store, name: str = "session", *, reject: WSGIApplication | None = None
) -> Callable[[WSGIApplication], WSGIApplication]:
    """Return a decorator that lets only requests of logged-in users reach a WSGI application.

    Others are answered by ``reject``, by default with a plain 401. Stands inside or outside a
    `SessionMiddleware` with the same store and name, or around an application that saves its
    sessions itself. `BackendError` is passed on when the session cannot be loaded.
    """
    refuse = _unauthorized if reject is None else reject

    def guard(app: WSGIApplication) -> WSGIApplication:
        def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            def start(
                status: str, headers: list[tuple[str, str]], exc_info: OptExcInfo | None = None, /
            ) -> Callable[[bytes], object]:
                return start_response(status, _varying(headers).to_wsgi_list(), exc_info)

            allowed = store.get(environ, name).user_key is not None
            return (app if allowed else refuse)(environ, start)

        return guarded

    return guard


class _Exchange:
    """One request and its response, whose status and headers are held back until it begins."""

    def __init__(
        self,
        middleware: SessionMiddleware,
        environ: WSGIEnvironment,
        start_response: StartResponse,
    ) -> None:
        self.apology: list[bytes] | None = None
        self._middleware = middleware
        self._environ = environ
        self._start_response = start_response
        # Made now, so that the sessions of a copy that the application makes are seen here.
        self._registry = Registry.of(environ)
        self._held: tuple[str, list[tuple[str, str]]] | None = None
        self._begun = False
        self._watched = False
        self._write: Callable[[bytes], object] | None = None

    # -- what the application calls

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: OptExcInfo | None = None, /
    ) -> Callable[[bytes], object]:
        try:
            if exc_info is None and self._held is not None:
                raise AssertionError("start_response was called again, without exc_info")
            if self._begun and self.apology is None:
                # The server raises the error when the headers have been sent.
                self._write = self._start_response(status, headers, exc_info)
            self._held = status, headers
        finally:
            exc_info = None  # no circle of references through the traceback
        return self.write

    def write(self, data: bytes) -> None:
        if data:
            self.begin()
        if self._write is not None:
            self._write(data)

    def session(self) -> Session:
        """Return the session, loading it the first time."""
        return self._registry.get(self._middleware._store, self._middleware._name)

    def loaded(self) -> Session | None:
        """Return the session if anything has used it."""
        return self._registry.known(self._middleware._name)

    # -- what the server gets

    def chunks(self, iterable: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the response's body."""
        try:
            for chunk in iterable:
                if chunk:
                    self.begin()
                if self.apology is not None:
                    break
                # PEP 3333 wants an empty chunk passed on, but only after start_response, which
                # waits for the save; no server does anything with one.
                if chunk or self._begun:
                    yield chunk
            self.begin()
        except BackendError as error:
            self.fail(error)
        if self.apology is not None:
            yield from self.apology
        elif self._watched and not self._middleware._warned:
            self._warn_of_lost_changes()

    def begin(self) -> None:
        """Save the session if it was used, and start the response, both once."""
        if self._begun or self._held is None:
            return
        self._begun = True
        status, headers = self._held
        self._watched = self._middleware._save_on_error or not status.startswith("5")
        session = self.loaded()
        if session is not None:
            changed = _varying(headers)
            if self._watched:
                try:
                    self._middleware._store.save(self._environ, changed, session)
                except SessionGone:
                    self._watched = False
                except BackendError as error:
                    self._apologize(error)
                    return
            headers = changed.to_wsgi_list()
        self._write = self._start_response(status, headers)

    def fail(self, error: BackendError) -> None:
        """Answer for an error of the storage that the application let through.

        Raises it when the response has begun.
        """
        if self.apology is None:
            if self._begun:
                raise error
            self._begun = True
            self._apologize(error)

    def _apologize(self, error: BackendError) -> None:
        _log.error("answered with 503, for the sessions' storage failed: %s", error)
        response = Response("The service is not available at the moment.\n", 503)
        response.headers["Cache-Control"] = "no-store"
        self.apology = list(response(self._environ, self._start_response))

    def _warn_of_lost_changes(self) -> None:
        session = self.loaded()
        if session is None:
            return
        try:
            write = plan.decide(self._middleware._store._rules, session, None, None)
        except PGStoreError:
            pass  # it could not be saved, either
        else:
            if write is None or isinstance(write, plan.Touch):
                return
        self._middleware._warned = True
        _log.warning(
            "session %s was changed after its response had begun, which is lost: change it before "
            "the first chunk (said once)",
            session.handle,
        )


class _LazySession(LocalProxy[Session]):
    """Everything that the `Session` is, loaded when it is used; printing it does not use it."""

    __slots__ = ("_exchange",)

    def __init__(self, exchange: _Exchange) -> None:
        super().__init__(exchange.session)
        object.__setattr__(self, "_exchange", exchange)

    def __repr__(self) -> str:
        exchange: _Exchange = object.__getattribute__(self, "_exchange")
        session = exchange.loaded()
        return "<Session, not loaded>" if session is None else repr(session)


def _varying(headers: list[tuple[str, str]]) -> Headers:
    changed = Headers(headers)
    vary_on_cookie(changed)
    return changed


def _is_whole(iterable: Iterable[bytes], environ: WSGIEnvironment) -> bool:
    """Tell whether nothing of the application runs any more while this is sent."""
    wrapper: Any = environ.get("wsgi.file_wrapper")
    kinds = (list, tuple, wrapper) if isinstance(wrapper, type) else (list, tuple)
    return isinstance(iterable, kinds)


def _unauthorized(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    response = Response("Sign in first.\n", 401)
    return response(environ, start_response)
