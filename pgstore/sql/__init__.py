"""The numbered schema files. A released file is never edited: a change is a new file.

A file may begin with ``-- oldest-code: N``: the oldest schema version whose code works on the table
after it. Without that line it is the file's own number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.resources import files

__all__ = ["Migration", "migrations"]


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of a schema, its text with ``{table}`` and other names still open."""

    version: int
    oldest_code: int
    text: str


def migrations(engine: str) -> list[Migration]:
    """Return the steps of an engine's schema, the oldest first. The last one's version is what this
    code wants.
    """
    found = []
    for file in files(__package__).joinpath(engine).iterdir():
        if match := re.fullmatch(r"(\d{4})_\w+\.sql", file.name):
            version, text = int(match[1]), file.read_text("utf-8")
            oldest = re.match(r"-- oldest-code: (\d+)\n", text)
            found.append(Migration(version, int(oldest[1]) if oldest else version, text))
    return sorted(found, key=lambda step: step.version)
