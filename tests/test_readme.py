"""The README's examples, executed as they are printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from werkzeug.datastructures import Headers
from werkzeug.test import Client

from pgstore.urls import format_keys
from support.stores import KEYS, PostgresLab

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
_BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
EXAMPLES = [block for block in _BLOCKS if "import Flask" not in block]
(FLASK_EXAMPLE,) = set(_BLOCKS) - set(EXAMPLES)
# Of a link, and of a picture.
_TARGET = r"""(?:\]\(|src(?:set)?=")([^)"#:]+)[)"]"""


@pytest.fixture
def handler(pg_lab: PostgresLab, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the names that the README's first example defines."""
    dsn = f"{pg_lab.dsn}?options=-c%20search_path%3D{pg_lab.schema}"
    monkeypatch.setenv("PGSTORE_DSN", dsn)
    monkeypatch.setenv("PGSTORE_KEYS", format_keys(*KEYS))
    names: dict[str, Any] = {"__name__": "example", "dsn": dsn, "keys": KEYS}
    exec(compile(EXAMPLES[0], "README.md", "exec"), names)
    pg_lab._stores.append(names["store"])
    return names


def test_the_handler(handler: dict[str, Any], pg_lab: PostgresLab) -> None:
    """The first example is a WSGI application that counts visits in a real PostgreSQL."""
    client = Client(handler["app"])
    assert [client.get("/").text for _ in range(3)] == [
        f"visit number {number}\n" for number in (1, 2, 3)
    ]
    assert Client(handler["app"]).get("/").text == "visit number 1\n"
    assert len(pg_lab.rows()) == 2


def test_the_middleware(handler: dict[str, Any], pg_lab: PostgresLab) -> None:
    """The second example is a WSGI application that counts visits, too."""
    exec(compile(EXAMPLES[1], "README.md", "exec"), handler)
    client = Client(handler["hello"])
    assert [client.get("/").text for _ in range(2)] == ["visit number 1\n", "visit number 2\n"]
    assert len(pg_lab.rows()) == 1


def test_the_bearer_tokens(handler: dict[str, Any], pg_lab: PostgresLab) -> None:
    """The API with bearer tokens signs in, counts calls, and signs out, in about 30 lines."""
    (example,) = (example for example in EXAMPLES if "TokenStore" in example)
    assert len(example.splitlines()) <= 32
    exec(compile(example, "README.md", "exec"), handler)
    client = Client(handler["api"])

    def call(path: str, token: str | None, **form: str) -> tuple[int, str, str | None]:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        response = client.post(path, headers=headers, data=form)
        return response.status_code, response.text, response.headers.get("X-Session-Token")

    with handler["tokens"]:
        status, text, alice = call("/sign-in", None, user="alice")
        assert (status, text) == (200, "alice, call 1\n")
        assert call("/", alice) == (200, "alice, call 2\n", alice)
        _, _, bob = call("/sign-in", None, user="bob")
        assert call("/", bob) == (200, "bob, call 2\n", bob)
        for stranger in (None, "", "guessed"):
            assert call("/", stranger) == (401, "sign in first\n", None)
        (stored,) = pg_lab._raw.execute("SELECT count(*) FROM http_tokens").fetchone() or ()
        assert stored == 2
        assert call("/sign-out", alice) == (200, "bye\n", None)
        assert call("/", alice) == (401, "sign in first\n", None)
        assert call("/", bob) == (200, "bob, call 3\n", bob)


def test_the_other_examples(handler: dict[str, Any], pg_lab: PostgresLab) -> None:
    """The other examples run as they are printed, with the names of the text."""
    request: dict[str, Any] = {"wsgi.url_scheme": "http"}
    response = Headers()
    names = handler | {"request": request, "response": response, "handle": "A" * 22}
    names["new_hash"] = "…"
    pg_lab.execute("CREATE TABLE accounts (name text, password text)")
    pg_lab.execute("CREATE TABLE audit (name text, what text)")
    for example in EXAMPLES[1:]:
        exec(compile(example, "README.md", "exec"), names)
        if names["store"] not in pg_lab._stores:
            pg_lab._stores.append(names["store"])
    names["tokens"].close()
    assert "session=;" in response["Set-Cookie"]
    with pg_lab.connect() as connection:
        audit = connection.execute("SELECT * FROM audit").fetchall()
    assert audit == [("alice", "password changed")]
    assert pg_lab.rows() == []


def test_the_flask_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Flask example is, in under 40 lines, a login with a device list that signs out."""
    assert len(FLASK_EXAMPLE.splitlines()) < 40
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PGSTORE_DSN", raising=False)
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(FLASK_EXAMPLE, "README.md", "exec"), names)
    app, sessions = names["app"], names["sessions"]
    here, there, other = (app.test_client() for _ in range(3))
    agents = [
        "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
        "curl/8",
        "x",
    ]

    def handles(page: str) -> list[str]:
        return re.findall(r'value="([\w-]{22})"', page)

    try:
        assert handles(here.get("/").text) == []
        for client, user, agent in zip(
            (here, there, other), ("alice", "alice", "bob"), agents, strict=True
        ):
            client.post("/sign-in", data={"user": user}, headers={"User-Agent": agent})
        page = there.get("/").text
        assert "Welcome." in page
        assert "Welcome." not in there.get("/").text
        assert "Firefox on Linux, 127.0.0.1" in page
        assert page.count("(this one)") == 1
        mine, theirs = handles(page)
        assert other.post("/sign-out", data={"handle": mine}).status_code == 403
        assert there.post("/sign-out", data={"handle": theirs}).status_code == 302
        assert handles(here.get("/").text) == []
        assert handles(there.get("/").text) == [mine]
        assert here.post("/sign-out", data={"handle": mine}).status_code == 302
        there.post("/sign-out", data={"handle": mine})
        assert handles(there.get("/").text) == []
        assert len(handles(other.get("/").text)) == 1
    finally:
        with app.app_context():
            sessions.store.close()


def test_the_two_commands() -> None:
    """The README has the two commands of a first visit, and CI runs the second one as it stands."""
    commands = re.findall(r"^    (python3 -m venv .*)$", README, re.MULTILINE)
    assert len(commands) == 2
    assert commands[0].endswith("&& .venv/bin/pgstore demo")
    assert commands[1] in (ROOT / ".ci" / "run").read_text("utf-8")


def test_links_lead_somewhere() -> None:
    """Every relative link in README and docs names a file that exists."""
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(_TARGET, page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
