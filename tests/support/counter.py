"""A WSGI app that counts visits, for a real server to run."""

from __future__ import annotations

import os

from werkzeug import Request, Response

from pgstore import open_store, parse_keys

store = open_store(os.environ["PGSTORE_DSN"], *parse_keys(os.environ["PGSTORE_KEYS"]))


@Request.application
def app(request: Request) -> Response:
    session = store.get(request, "sid")
    session["count"] = session.get("count", 0) + 1
    response = Response(f"{session['count']} {os.getpid()}")
    store.save(request, response, session)
    return response
