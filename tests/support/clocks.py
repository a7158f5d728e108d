"""A second node of a site whose clock is wrong, in a process of its own."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import time_machine

from support.crowd import MakeStore, elsewhere
from support.stores import Browser, Visit


@dataclass(frozen=True)
class Seen:
    """What a node found in a session, and which cookie the browser has after it."""

    values: dict[Any, Any]
    is_new: bool
    error: str | None
    handle: str
    browser: Browser
    headers: list[str]


def visit(
    make: MakeStore, browser: Browser, *, change: Any = None, login: str | None = None
) -> Seen:
    """Send a node a request which changes ``n``, or logs in, or only reads; and save."""
    with make() as store:
        request = Visit(browser, store)
        values = dict(request.session.values)
        if change is not None:
            request.session["n"] = change
        if login is not None:
            request.session.login(login)
        is_new, error = request.session.is_new, request.session.error
        headers = request.save()
        return Seen(
            values,
            is_new,
            None if error is None else str(error),
            request.session.handle,
            browser,
            headers.getlist("Set-Cookie"),
        )


def visit_wrong_node(clock: timedelta, make: MakeStore, browser: Browser, **what: Any) -> Seen:
    """Send the request to a node whose clock is so much fast, in another process."""
    seen = elsewhere(_visit_by, clock, make, browser, what)
    assert isinstance(seen, Seen)
    return seen


def _visit_by(clock: timedelta, make: MakeStore, browser: Browser, what: dict[str, Any]) -> Seen:
    with time_machine.travel(time.time() + clock.total_seconds(), tick=True):
        return visit(make, browser, **what)


def sweep(clock: timedelta, make: MakeStore) -> int:
    """Sweep by that clock, which is that of this process from now on; return how many went."""
    with time_machine.travel(time.time() + clock.total_seconds(), tick=True), make() as store:
        return store.delete_expired()
