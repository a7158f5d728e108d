"""The programs in examples/, each run as it says, by the server that it names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.servers import Client, serving
from support.site import Page, Visitor

EXAMPLES = Path(__file__).parents[1] / "examples"


@contextmanager
def example(name: str) -> Iterator[Client]:
    with serving(str(EXAMPLES / name)) as port:
        yield Client(port)


def test_every_example_is_run_and_listed() -> None:
    """Each program has a test here and a line in the folder's README."""
    here, page = Path(__file__).read_text("utf-8"), (EXAMPLES / "README.md").read_text("utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert f'example("{path.name}")' in here
        assert f"&& python examples/{path.name}`" in page
        assert path.read_text("utf-8").count(f"&& python examples/{path.name}\n") == 1


def test_bottle() -> None:
    """The counter survives signing in, which renews the cookie, and not signing out."""
    with example("bottle_app.py") as client:
        assert "Page views: 1" in client.get("/").text
        cookie = client.cookies["session"]
        reply = client.post("/login", user="<alice>")
        assert (reply.status, reply.text) == (303, "")
        assert client.cookies["session"] != cookie
        page = client.get("/").text
        assert "Hello &lt;alice&gt;." in page
        assert "Page views: 2" in page
        assert client.post("/logout").status == 303
        assert client.cookies == {}
        assert "Page views: 1" in client.get("/").text


def test_falcon() -> None:
    """The cart is kept, and can be ordered by a user only."""
    with example("falcon_app.py") as client:
        assert client.get("/cart").headers["Vary"] == "Cookie"
        assert client.cookies == {}
        assert client.request("PUT", "/cart", data={"tea": 2}).status == 204
        assert client.request("PUT", "/cart", data={"milk": 1}).status == 204
        assert client.post("/orders").status == 401
        assert client.request("POST", "/login", data={"user": "alice"}).status == 204
        order = {"user": "alice", "ordered": {"tea": 2, "milk": 1}}
        assert json.loads(client.post("/orders").text) == order
        assert json.loads(client.get("/cart").text) == {}
        assert client.request("DELETE", "/login").status == 204
        assert client.cookies == {}


def test_flask() -> None:
    """It is the demo's site: signing in, counting, and the device that one is."""
    with example("flask_app.py") as client:
        visitor = Visitor(lambda *args, **form: Page(*client.request(*args, **form)))
        visitor.sign_in("alice")
        assert visitor.post("/count") == "/"
        assert visitor.count == 1
        assert "This device" in visitor.look("/devices")


def test_pyramid() -> None:
    """Pyramid's own identity and permissions come from the session."""
    with example("pyramid_app.py") as client:
        assert client.get("/").text == "guest: 1 views\n"
        assert client.get("/account").status == 403
        assert client.post("/login", user="alice").status == 303
        assert client.get("/").text == "alice: 2 views\n"
        assert client.get("/account").text == "The account of alice\n"
        assert client.post("/logout").status == 303
        assert client.get("/account").status == 403
        assert client.cookies == {}
