"""A site on `SessionMiddleware`, for a real server to run: it counts, in every shape of answer."""

from __future__ import annotations

import atexit
import io
import os
from collections.abc import Iterable, Iterator
from typing import Any

from werkzeug.wsgi import wrap_file

from pgstore import open_store, parse_keys
from pgstore.ext.wsgi import SessionMiddleware, login_required

store = open_store(os.environ["PGSTORE_DSN"], *parse_keys(os.environ["PGSTORE_KEYS"]))
atexit.register(store.close)


def count(environ: dict[str, Any]) -> bytes:
    session = environ["pgstore.session"]
    session["count"] = session.get("count", 0) + 1
    return b"%d" % session["count"]


def site(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    answer = {
        "/": at_once,
        "/stream": stream,
        "/write": write,
        "/file": file,
        "/login": login,
        "/private": login_required(store)(at_once),
        "/untouched": untouched,
    }[environ["PATH_INFO"]]
    return answer(environ, start_response)


def at_once(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    number = count(environ)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(number)))])
    return [number]


def stream(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield b""
    yield count(environ)
    yield b" and more"


def write(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    send = start_response("200 OK", [("Content-Type", "text/plain")])
    send(count(environ))
    return []


def file(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    number = count(environ)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(number)))])
    return wrap_file(environ, io.BytesIO(number))


def login(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    environ["pgstore.session"].login("alice")
    start_response("204 No Content", [])
    return []


def untouched(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "1")])
    return [b"."]


app = SessionMiddleware(site, store)
