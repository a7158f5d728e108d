"""The pages of ``pgstore demo``: a session, and what its row holds of it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any

from markupsafe import Markup

from .rows import Loaded, PGSession
from .session import Session

__all__ = ["COUNTER", "SECURITY_HEADERS", "page", "problem", "session_page"]

COUNTER = "counter"


def page(database: str, title: str, main: Markup) -> str:
    """Return a whole page with ``main`` in it. ``database`` is what it says that it runs on."""
    return _PAGE.format(title=title, style=Markup(_STYLE), database=database, main=main)  # noqa: S704


def problem(database: str, title: str, text: str) -> str:
    """Return the page for an error."""
    return page(database, title, _PROBLEM.format(title=title, text=text))


def session_page(database: str, session: Session, loaded: Loaded | None, flashes: list[Any]) -> str:
    """Return the page of a session. ``loaded`` is its row, None when it has none."""
    return page(database, "Your session", _main(session, loaded, flashes))


def _main(session: Session, loaded: Loaded | None, flashes: list[Any]) -> Markup:
    notices = [_FLASH.format(text=text) for text in flashes]
    if session.error is not None:
        notices.insert(0, _REFUSED.format(error=session.error))
    values = [
        _VALUE.format(name=name, value=value, type=type(value).__name__)
        for name, value in session.values.items()
    ]
    table = _ROWS.format(rows=_join(values)) if values else _NO_VALUES
    if loaded is None:
        life, row, off = _NEW, _NO_ROW, Markup(" disabled")
    else:
        times = loaded.row.created_on, session.expires_on
        life = _LIVE.format(*(_time(time, loaded.now) for time in times))
        cells = [_CELL.format(name=n, value=v, note=note) for n, v, note in _cells(*loaded)]
        row, off = _ROWS.format(rows=_join(cells)), Markup("")
    return _MAIN.format(
        notices=_join(notices),
        count=session.get(COUNTER, 0),
        life=life,
        values=table,
        row=row,
        off=off,
    )


def _cells(row: PGSession, now: datetime) -> Iterator[tuple[str, object, str]]:
    """Yield name, value and meaning of what the row holds; nothing of it that is secret."""
    encrypted = row.data[:1] == b"\2"  # the format byte of `pgstore.codecs.RowSealer`
    yield "key", row.handle, "the session's public handle"
    yield "name", row.name, "of the cookie"
    yield "generation", row.generation, "how often the secret was renewed"
    yield "secret_hash", _bytes(row.secret_hash), "SHA-256 of the secret; not shown"
    yield "data", _bytes(row.data), "encrypted" if encrypted else "signed, and readable there"
    yield "version", row.version, "random, new with every change"
    yield "user_key", row.user_key or "NULL", "nobody is logged in" if not row.user_key else ""
    age = _span(timedelta(seconds=row.max_age)) + " without a visit"
    yield "max_age", f"{row.max_age} s", age if row.max_age else "until the browser is closed"
    yield "ip", row.ip or "NULL", "at the first visit or login"
    yield "user_agent", row.user_agent or "NULL", ""
    for name in ("created_on", "modified_on", "seen_on", "expires_on", "gc_after"):
        yield name, _time(getattr(row, name), now), ""


def _bytes(data: bytes) -> str:
    return f"{len(data)} bytes"


def _time(time: datetime | None, now: datetime) -> Markup:
    assert time is not None
    left = time - now
    if abs(left) < timedelta(seconds=1):
        text = "just now"
    else:
        text = f"in {_span(left)}" if left > timedelta() else f"{_span(-left)} ago"
    return _TIME.format(iso=time.isoformat(timespec="seconds"), text=text)


def _span(span: timedelta) -> str:
    """Say a length of time in its largest unit."""
    seconds = int(span.total_seconds())
    size, unit = next((size, unit) for size, unit in _UNITS if seconds >= size or size == 1)
    count = seconds // size
    return f"{count} {unit}" if count == 1 else f"{count} {unit}s"


_UNITS = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def _join(parts: Iterable[Markup]) -> Markup:
    return Markup("\n").join(parts)


_STYLE = """
:root {
  color-scheme: light dark;
  --back: #f3f4f7; --card: #ffffff; --line: #d9dde5; --edge: #747f90;
  --text: #1a2230; --soft: #556072; --link: #1d5bb8; --on-link: #ffffff;
  --note: #e8f1ff; --warn: #fff2da; --risk: #b3261e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --back: #10141a; --card: #191f28; --line: #2e3744; --edge: #7f8b9d;
    --text: #e7ebf1; --soft: #a7b2c2; --link: #8db9ff; --on-link: #0c1a30;
    --note: #16294a; --warn: #3a2c10; --risk: #ff9a92;
  }
}
* { box-sizing: border-box; }
body { max-width: 68rem; margin: 0 auto; padding: 1.5rem 1.25rem 3rem; background: var(--back);
  color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
h1, h2, p { margin: 0; }
h1 { font-size: 1.5rem; }
h2 { margin-bottom: .75rem; font-size: 1.05rem; }
small, label { font-size: .875rem; }
small, label, th, .soft { color: var(--soft); }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 1rem; }
main, .cards, .notices { display: grid; gap: 1rem; align-items: start; }
main { margin-top: 1.25rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
.notices { grid-column: 1 / -1; gap: .5rem; }
.notices:empty { display: none; }
.notices p { padding: .6rem 1.25rem; border-radius: .5rem; background: var(--note);
  overflow-wrap: anywhere; }
.notices .warn { background: var(--warn); }
section { min-width: 0; padding: 1.1rem 1.25rem 1.25rem; background: var(--card);
  border: 1px solid var(--line); border-radius: .75rem; }
.count, .line { display: flex; flex-wrap: wrap; gap: .75rem; align-items: end; margin-top: 1rem; }
.count { align-items: center; justify-content: space-between; margin: 0 0 .75rem; }
output { font-size: 3.25rem; line-height: 1; font-weight: 650; font-variant-numeric: tabular-nums; }
table { width: 100%; border-collapse: collapse; }
th, td { padding: .4rem .75rem .4rem 0; border-top: 1px solid var(--line); text-align: left;
  vertical-align: top; overflow-wrap: anywhere; }
tr:first-child > * { border-top: 0; }
td:last-child { padding-right: 0; }
th { width: 30%; font-weight: 500; }
.row th { width: 1%; font: .875em/1.7 ui-monospace, monospace; white-space: nowrap; }
td small { margin-left: .3rem; }
td form { float: right; }
label { flex: 1 1 8rem; }
input { display: block; width: 100%; margin-top: .2rem; padding: .45rem .6rem; font: inherit;
  font-size: 1rem; color: var(--text); background: var(--card); border: 1px solid var(--edge);
  border-radius: .45rem; }
button { padding: .5rem 1rem; font: inherit; font-weight: 550; white-space: nowrap;
  color: var(--on-link); background: var(--link); border: 1px solid; border-color: var(--link);
  border-radius: .45rem; cursor: pointer; }
button:hover { filter: brightness(1.12); }
.quiet { color: var(--link); background: none; }
.risk { color: var(--risk); background: none; border-color: var(--risk); }
td button { padding: .05rem .6rem; font-size: .875rem; }
button:disabled { opacity: .5; filter: none; cursor: not-allowed; }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
a { color: var(--link); }
"""

_PAGE = Markup("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} | pgstore demo</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<header><h1>pgstore</h1><p class="soft">on {database}</p></header>
<main>
{main}
</main>
</body>
</html>
""")

_PROBLEM = Markup("""<section><h2>{title}</h2><p>{text}</p>
<p class="line"><a href="/">Back to your session</a></p></section>""")

_MAIN = Markup("""<div class="notices" role="status">{notices}</div>
<div class="cards">
<section aria-labelledby="session">
<h2 id="session">Your session</h2>
<form class="count" method="post" action="/count">
<output aria-label="counter">{count}</output>
<button>Count up</button>
</form>
{life}
<div class="line">
<form method="post" action="/renew"><button class="quiet"{off}>Renew the secret</button></form>
<form method="post" action="/delete"><button class="risk"{off}>Delete the session</button></form>
</div>
</section>
<section aria-labelledby="values">
<h2 id="values">Values</h2>
{values}
<form class="line" method="post" action="/set">
<label>Name <input name="name" required maxlength="60" autocomplete="off"></label>
<label>Value <input name="value" maxlength="1000" autocomplete="off"></label>
<button>Set</button>
</form>
</section>
<section aria-labelledby="flash">
<h2 id="flash">Flash message</h2>
<p class="soft">Shown once, on the next page, and gone from the row with that.</p>
<form class="line" method="post" action="/flash">
<label>Message <input name="text" value="Hello from the last request" maxlength="200"></label>
<button>Add</button>
</form>
</section>
</div>
<section class="row" aria-labelledby="row">
<h2 id="row">The row in the database</h2>
{row}
</section>""")

_TIME = Markup('<time datetime="{iso}" title="{iso}">{text}</time>')
_FLASH = Markup("<p>{text}</p>")
_REFUSED = Markup('<p class="warn">The cookie that came was not used: {error}.</p>')
_LIVE = Markup('<p class="soft">Begun {}, ends {} without a visit.</p>')
_NEW = Markup('<p class="soft">New: a row is made when there is something to keep.</p>')
_ROWS = Markup("<table>\n{rows}\n</table>")
_VALUE = Markup("""<tr><th scope="row">{name}</th><td>{value} <small>{type}</small></td>
<td><form method="post" action="/remove"><input type="hidden" name="name" value="{name}">
<button class="quiet" aria-label="Remove {name}">Remove</button></form></td></tr>""")
_CELL = Markup('<tr><th scope="row">{name}</th><td>{value} <small>{note}</small></td></tr>')
_NO_VALUES = Markup('<p class="soft">None yet.</p>')
_NO_ROW = Markup('<p class="soft">None: nothing was saved yet, and looking costs no row.</p>')

_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode("ascii")
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src data:; "
    f"style-src 'sha256-{_STYLE_HASH}'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    # Not no-referrer: browsers would then say "Origin: null" of the site's own forms.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
