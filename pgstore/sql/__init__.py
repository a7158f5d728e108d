"""The numbered schema files. A released file is never edited: a change is a new file.

A file may begin with ``-- oldest-code: N``: the oldest schema version whose code works on the table
after it. Without that line it is the file's own number. File 0000 makes the table in which the
steps that were applied are recorded.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable

__all__ = ["Schema", "Step", "grants", "lock_number", "statements"]


@dataclass(frozen=True, slots=True)
class Step:
    """One file: its text, with ``{table}`` and other names still open."""

    version: int
    oldest_code: int
    text: str


class Schema:
    """The schema files of one table in one database engine: of the sessions', or of ``part``."""

    def __init__(self, engine: str, part: str | None = None) -> None:
        self._quote = "`" if engine == "mysql" else '"'
        folder = files(__package__).joinpath(engine)
        (self._log,) = (step for step in _steps_in(folder) if step.version == 0)
        found = _steps_in(folder if part is None else folder.joinpath(part))
        self.steps = [step for step in found if step.version > 0]

    @property
    def version(self) -> int:
        """The version that this code wants."""
        return self.steps[-1].version

    def text(self, table: str, *, db_schema: str | None = None, after: int = 0) -> str:
        """Return the SQL that brings a table from version ``after``, 0 for none, to the newest.

        Both names are plain identifiers (`pgstore.rows.check_table`).
        """
        names = _names(table, db_schema, self._quote)
        parts = [self._log.text.format(**names)]
        for step in self.steps:
            if step.version > after:
                parts += [step.text.format(**names), _record(step, names)]
        return "\n".join(parts)

    def record(self, table: str, *, db_schema: str | None = None) -> str:
        """Return the SQL that records the newest version of a table that was made without it."""
        names = _names(table, db_schema, self._quote)
        return "\n".join([self._log.text.format(**names), _record(self.steps[-1], names)])


def _steps_in(folder: Traversable) -> list[Step]:
    found = []
    for file in folder.iterdir():
        if match := re.fullmatch(r"(\d{4})_\w+\.sql", file.name):
            version, text = int(match[1]), file.read_text("utf-8")
            oldest = re.match(r"-- oldest-code: (\d+)\n", text)
            found.append(Step(version, int(oldest[1]) if oldest else version, text))
    return sorted(found, key=lambda step: step.version)


def grants(table: str, role: str, *, db_schema: str | None = None, engine: str = "postgres") -> str:
    """Return the statements that give a role what an application needs on the table.

    All three names are plain identifiers; ``engine`` is ``"postgres"`` or ``"mysql"``. In
    PostgreSQL, USAGE on the schema is among it when one is named.
    """
    text = files(__package__).joinpath(engine, "grants.sql").read_text("utf-8")
    if engine == "mysql":
        return text.format(role=f"`{role}`", **_names(table, db_schema, "`"))
    usage = "" if db_schema is None else f'GRANT USAGE ON SCHEMA "{db_schema}" TO "{role}";\n'
    return text.format(role=f'"{role}"', **_names(table, db_schema, '"')) + usage


def statements(text: str) -> list[str]:
    """Return the statements of a schema's text one by one, for drivers that take no more."""
    # Not at a semicolon in a comment.
    return [part.strip() for part in re.findall(r"((?:--.*|[^;])++);", text)]


def lock_number(purpose: str, table: str, db_schema: str | None) -> int:
    """Return the number of PostgreSQL's advisory lock on a table for ``purpose``."""
    text = f"pgstore {purpose} {db_schema or ''}.{table}"
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big", signed=True)


def _record(step: Step, names: dict[str, str]) -> str:
    return (
        f"INSERT INTO {names['log']} (version, oldest_code) "
        f"VALUES ({step.version}, {step.oldest_code});\n"
    )


def _names(table: str, db_schema: str | None, quote: str) -> dict[str, str]:
    def quoted(name: str) -> str:
        return f"{quote}{name}{quote}"

    prefix = "" if db_schema is None else f"{quoted(db_schema)}."
    return {
        "table": prefix + quoted(table),
        "log": prefix + quoted(f"{table}_schema"),
        "gc_index": quoted(f"{table}_gc_after"),
        "user_index": quoted(f"{table}_user_key"),
        "expiry_index": quoted(f"{table}_expires_on"),
    }
