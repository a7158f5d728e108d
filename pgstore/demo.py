"""The site of ``pgstore demo``: it shows its visitor the session, and what its row holds."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from werkzeug import Request, Response
from werkzeug.exceptions import Forbidden, HTTPException
from werkzeug.routing import Map, Rule
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.utils import redirect

from . import merge
from .demo_page import COUNTER, SECURITY_HEADERS, problem, session_page
from .embedded import PostgresServer, UnreachableError, find_binaries
from .errors import BackendError, ConfigurationError, SessionGone, SessionTooLong
from .ids import generate_random_key, key_of
from .session import Registry, Session
from .store import Store
from .urls import engine_of, format_keys, open_store, parse_keys

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["create_app", "run"]

_log = logging.getLogger("pgstore")

_COOKIE = "pgstore_demo"
# A table of its own: in a database of the user's, the sessions of a real site may be next to it.
_TABLE = "pgstore_demo"

_NAMES = {
    "postgresql": "PostgreSQL",
    "postgres": "PostgreSQL",
    "sqlite": "SQLite",
    "mysql": "MySQL",
    "mariadb": "MariaDB",
}


def create_app(store: Store, *, database: str = "its store") -> WSGIApplication:
    """Return the site as a WSGI application on ``store``, which stays the caller's to close.

    ``database`` is what the page says it runs on.
    """
    return _Site(store, database)


def run(
    *,
    url: str | None = None,
    data: Path = Path(".pgstore-demo"),
    host: str = "127.0.0.1",
    port: int = 8000,
) -> None:
    """Serve the site until KeyboardInterrupt, which is not passed on.

    Without the ``url`` of a database it runs on a PostgreSQL of its own where there are binaries
    for one (`pgstore.embedded`), else on SQLite. That database and the keys are kept in the folder
    ``data``, so that sessions outlive a restart. ``port`` 0 is any free one; the address is
    printed.

    Raises `ConfigurationError` when it cannot listen there or use the folder, and what the database
    raises.
    """
    keys = _keys_in(data)
    with _listen(host, port) as listener, _database(url, data) as (url, database):
        store = open_store(url, *keys, table=_TABLE, merge={COUNTER: merge.add})
        with store:
            store.cleanup()
            app = create_app(store, database=database)
            server = make_server(
                host, port, app, threaded=True, request_handler=_Handler, fd=listener.fileno()
            )
            shown = f"[{host}]" if ":" in host else host
            print(f"http://{shown}:{server.port}/ on {database}; Ctrl-C ends it", flush=True)
            server.serve_forever()


# -- the site --------------------------------------------------------------------------------------


class _Request(Request):
    max_content_length = max_form_memory_size = 16 * 1024


class _Site:
    def __init__(self, store: Store, database: str) -> None:
        self._store = store
        self._database = database

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request = _Request(environ)
        try:
            response = self._answer(request)
        except HTTPException as error:
            headers = error.get_headers(environ)
            response = self._problem(error.code or 500, error.name, error.description or "")
            response.headers.extend(h for h in headers if h[0] == "Allow")
        except SessionGone:
            # Another request ended the session, or renewed it: look again with the newest cookie.
            response = redirect("/", 303)
        except SessionTooLong as error:
            response = self._problem(413, "Too much for one session", str(error))
        except BackendError as error:
            _log.warning("the demo's database failed: %s", error)
            text = "The database does not answer. Nothing is known about your session: try again."
            response = self._problem(503, "Service unavailable", text)
            response.headers["Retry-After"] = "5"
        response.headers.extend(SECURITY_HEADERS)
        return response(environ, start_response)

    def _answer(self, request: Request) -> Response:
        action, _ = _ROUTES.bind_to_environ(request.environ).match()
        if action is None:
            return self._show(request)
        _check_origin(request)
        action(self._store.get(request, _COOKIE), request.form)
        response = redirect("/", 303)
        Registry.of(request).save(response)
        return response

    def _show(self, request: Request) -> Response:
        session = self._store.get(request, _COOKIE)
        # Showing a message consumes it; HEAD shows nothing.
        flashes = session.flashes() if request.method == "GET" else []
        response = Response(content_type="text/html; charset=utf-8")
        response.headers["Cache-Control"] = "no-store"
        Registry.of(request).save(response)
        loaded = None
        if not session.is_new:
            key = key_of(session.handle)
            assert key is not None
            loaded = self._store.backend.load(key)
        response.set_data(session_page(self._database, session, loaded, flashes))
        return response

    def _problem(self, status: int, title: str, text: str) -> Response:
        html = problem(self._database, title, text)
        return Response(html, status, content_type="text/html; charset=utf-8")


def _check_origin(request: Request) -> None:
    """Refuse a form that another site made the browser send.

    No token in the forms, for it would have to be kept in a session: every visitor who only looks,
    and every crawler, would get a row. Browsers say by themselves, in Origin, where a POST comes
    from (Fetch standard, 3.2). SameSite=Lax alone would let the other ports of this host pass.
    """
    if request.headers.get("Origin", "").partition("://")[2] != request.host:
        raise Forbidden("This form was not sent from this site's own page.")


# -- what its buttons do ---------------------------------------------------------------------------


def _count(session: Session, form: Any) -> None:
    session[COUNTER] = session.get(COUNTER, 0) + 1


def _set(session: Session, form: Any) -> None:
    name, value = form["name"].strip(), form["value"]
    if name in ("", COUNTER):
        session.add_flash("A value needs a name, and “counter” is taken.")
    else:
        session[name] = value


def _remove(session: Session, form: Any) -> None:
    session.pop(form["name"], None)


def _flash(session: Session, form: Any) -> None:
    session.add_flash(form["text"].strip() or "An empty message.")


def _renew(session: Session, form: Any) -> None:
    if not session.is_new:
        session.regenerate()
        session.add_flash("Same row, new secret: the cookie so far opens nothing any more.")


def _delete(session: Session, form: Any) -> None:
    session.delete()


_ROUTES = Map(
    [
        Rule("/", endpoint=None, methods=["GET"]),
        *(
            Rule(f"/{action.__name__[1:]}", endpoint=action, methods=["POST"])
            for action in (_count, _set, _remove, _flash, _renew, _delete)
        ),
    ],
    strict_slashes=False,
    merge_slashes=False,
)


# -- running it ------------------------------------------------------------------------------------


class _Handler(WSGIRequestHandler):
    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Say nothing: the page shows what happens."""


@contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    """Take the port before a database is started, so that one that is taken shows at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on port {port} of {host}: {error.strerror}"
        ) from error
    with listener:
        yield listener


@contextmanager
def _database(url: str | None, data: Path) -> Iterator[tuple[str, str]]:
    """Give the URL of the database and its name for people, and stop it if it was started here."""
    if url is not None:
        engine_of(url)
        scheme = re.split("[+:]", url)[0]
        yield url, f"{_NAMES.get(scheme, scheme)}, a database of yours"
    elif find_binaries():
        server = PostgresServer(data / "postgres")
        try:
            server.start()
        except UnreachableError as error:
            yield _sqlite(data, str(error))
            return
        with server:
            yield server.dsn, f"PostgreSQL {server.version} in {data}"
    else:
        yield _sqlite(data, "no PostgreSQL found")


def _sqlite(data: Path, why: str) -> tuple[str, str]:
    path = (data / "sessions.db").resolve()
    return f"sqlite:///{quote(str(path))}", f"SQLite in {data} ({why})"


def _keys_in(data: Path) -> list[bytes | None]:
    """Return the keys that the folder keeps, made by the first run."""
    path = data / "keys"
    try:
        data.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _write_private(path, format_keys(generate_random_key(32), generate_random_key(32)))
        return parse_keys(path.read_text("ascii"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be used: {error}") from error


def _write_private(path: Path, text: str) -> None:
    """Write a file for the owner only, whole or not at all."""
    draft = path.with_suffix(f".{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text + "\n")
    draft.replace(path)
