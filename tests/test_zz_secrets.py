"""The last of the tests: nothing secret was logged or raised by any of those before."""

from __future__ import annotations

import logging

import pytest

from pgstore import MemoryStore, PGStoreError
from support.leaks import LeakWatch
from support.stores import KEYS, Browser, Visit


def test_the_watch_sees(leak_watch: LeakWatch) -> None:
    """A secret, an id or a signature that is logged or raised is found."""
    browser = Browser()
    with browser.visit(MemoryStore(*KEYS)) as session:
        session["x"] = 1
    session = Visit(browser, MemoryStore(*KEYS)).session
    secret, signature = session._id.secret, browser.cookies["sid"]
    with browser.visit(MemoryStore(*KEYS)) as session:
        session["x"] = 1
    watch = LeakWatch()
    watch.secrets = leak_watch.secrets
    for text in (session.id, session._id.secret.hex(), signature):
        watch.texts = {f"could not save {text}: sorry"}
        assert watch.leaks() != []
    watch.texts = {f"could not save {session.handle}: sorry", f"{session!r} {session._id!r}"}
    assert watch.leaks() == []
    assert secret.hex() not in str(watch.texts)
    before = len(leak_watch.texts)
    logging.getLogger("pgstore").debug("a line of the test %s", id(watch))
    with pytest.raises(PGStoreError):
        raise PGStoreError(f"an error of the test {id(watch)}")
    assert len(leak_watch.texts) == before + 2


def test_nothing_secret_was_logged_or_raised(leak_watch: LeakWatch) -> None:
    """No secret, id or signature of this whole run is in a log line or an error."""
    assert leak_watch.leaks() == []
    assert not any(
        form in text
        for text in leak_watch.texts
        for key in KEYS
        for form in (key.decode(), key.hex())
    )
