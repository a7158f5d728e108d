"""A program under gevent: a request that `gevent.Timeout` gives up, and the requests after it.

It says what it does on its standard output, a line each, and waits for a line when it must.
"""

from __future__ import annotations

import sys

import gevent  # type: ignore[import-untyped]
from gevent import monkey

monkey.patch_all()

from pgstore import PGStore  # noqa: E402
from support.stores import KEYS, Browser, Visit  # noqa: E402


def main(dsn: str, schema: str) -> None:
    store = PGStore(
        dsn, *KEYS, db_schema=schema, pool_size=1, statement_timeout=30.0, pool_timeout=30.0
    )
    with store:
        browsers = [Browser(), Browser()]
        for number, browser in enumerate(browsers):
            with browser.visit(store) as session:
                session["owner"] = number
            say(session._id.selector.hex())
        wait()
        ticks: list[None] = []
        ticking = gevent.spawn(tick, ticks)
        before = len(ticks)
        try:
            with gevent.Timeout(1.0):
                Visit(browsers[0], store)
            say("answered")
        except gevent.Timeout:
            say("given up")
        say("others ran" if len(ticks) - before > 10 else "others stood still")
        ticking.kill()
        wait()
        for browser in reversed(browsers):
            say(str(Visit(browser, store).session["owner"]))


def tick(ticks: list[None]) -> None:
    while True:
        gevent.sleep(0.01)
        ticks.append(None)


def say(text: str) -> None:
    print(text, flush=True)


def wait() -> None:
    sys.stdin.readline()


if __name__ == "__main__":
    main(*sys.argv[1:])
