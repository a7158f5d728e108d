"""The middleware under real servers, on a real PostgreSQL."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from support.servers import Client, serving
from support.stores import PostgresLab

GUNICORN = "-m gunicorn -b 127.0.0.1:{port} support.wsgi_site:app"
SERVERS = {
    "gunicorn-sync": f"{GUNICORN} -w 2",
    "gunicorn-gthread": f"{GUNICORN} -k gthread --threads 4",
    "gunicorn-gevent": f"{GUNICORN} -k gevent",
    "waitress": "-m waitress --listen 127.0.0.1:{port} support.wsgi_site:app",
    "werkzeug": "-m support.dev_server {port}",
}


@pytest.mark.parametrize("server", SERVERS)
def test_sessions_under_a_real_server(server: str, pg_lab: PostgresLab) -> None:
    """Every shape of answer counts, parallel visitors keep apart, and the guard guards."""
    dsn = f"{pg_lab.dsn}?options=-c%20search_path%3D{pg_lab.schema}"
    with serving(*SERVERS[server].split(), dsn=dsn) as port:
        client = Client(port)
        reply = client.get("/untouched")
        assert (reply.status, reply.headers["Vary"], client.cookies) == (200, None, {})
        texts = [client.get(path).text for path in ("/", "/stream", "/write", "/file", "/stream")]
        assert texts == ["1", "2 and more", "3", "4", "5 and more"]
        head = client.request("HEAD", "/stream")
        assert (head.status, head.headers["Vary"]) == (200, "Cookie")
        assert client.get("/private").status == 401
        cookies = dict(client.cookies)
        assert client.get("/login").status == 204
        assert client.cookies.keys() == cookies.keys() == {"session"}
        assert client.cookies != cookies
        assert client.get("/private").text == "7"

        def visit(number: int) -> list[str]:
            visitor = Client(port)
            return [visitor.get("/stream" if number % 2 else "/").text for _ in range(10)]

        with ThreadPoolExecutor(8) as visitors:
            for texts in visitors.map(visit, range(8)):
                assert [int(text.partition(" ")[0]) for text in texts] == list(range(1, 11))
    assert len(pg_lab.rows()) == 9
