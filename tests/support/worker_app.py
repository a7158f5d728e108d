"""A WSGI app that tells who answers: its process, its connection, and whose session it is.

It uses its store while it is imported, so that with ``gunicorn --preload`` the parent of the
workers has connections and a cleaner of its own.
"""

from __future__ import annotations

import os
import threading

from werkzeug import Request, Response

from pgstore import PGStore, parse_keys

store = PGStore(
    os.environ["PGSTORE_DSN"],
    *parse_keys(os.environ["PGSTORE_KEYS"]),
    db_schema=os.environ["PGSTORE_SCHEMA"],
    pool_size=int(os.environ["PGSTORE_POOL_SIZE"]),
    statement_timeout=30.0,
    pool_timeout=30.0,
)


def backend_pid() -> int:
    """Return the server process behind the connection that the next request would have."""
    pool = store.backend._pool  # type: ignore[attr-defined]
    wire = pool.get()
    try:
        pid: int = wire.connection.info.backend_pid
        return pid
    finally:
        pool.put(wire)


parent_backend = backend_pid()
quit, done = store.cleanup(0.1)


@Request.application
def app(request: Request) -> Response:
    if request.path == "/about":
        about = {
            "process": os.getpid(),
            "backend": backend_pid(),
            "parent's backend": parent_backend,
            "sweeps": any(t.name == "pgstore-cleanup" for t in threading.enumerate()),
        }
        return Response(repr(about))
    if request.path == "/stop":
        store.stop_cleanup(quit, done)
        return Response(repr(done.is_set()))
    session = store.get(request, "sid")
    session["owner"] = session.get("owner", request.args.get("name"))
    session["count"] = session.get("count", 0) + 1
    response = Response(repr((session["owner"], session["count"])))
    if "read-only" not in request.args:
        store.save(request, response, session)
    return response
