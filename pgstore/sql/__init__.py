"""The numbered schema files. A released file is never edited: a change is a new file.

A file may begin with ``-- oldest-code: N``: the oldest schema version whose code works on the table
after it. Without that line it is the file's own number. File 0000 makes the table in which the
steps that were applied are recorded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.resources import files

__all__ = ["Schema", "Step", "grants"]


@dataclass(frozen=True, slots=True)
class Step:
    """One file: its text, with ``{table}`` and other names still open."""

    version: int
    oldest_code: int
    text: str


class Schema:
    """The schema files of one database engine."""

    def __init__(self, engine: str) -> None:
        found = []
        for file in files(__package__).joinpath(engine).iterdir():
            if match := re.fullmatch(r"(\d{4})_\w+\.sql", file.name):
                version, text = int(match[1]), file.read_text("utf-8")
                oldest = re.match(r"-- oldest-code: (\d+)\n", text)
                found.append(Step(version, int(oldest[1]) if oldest else version, text))
        self._log, *self.steps = sorted(found, key=lambda step: step.version)

    @property
    def version(self) -> int:
        """The version that this code wants."""
        return self.steps[-1].version

    def text(self, table: str, *, db_schema: str | None = None, after: int = 0) -> str:
        """Return the SQL that brings a table from version ``after``, 0 for none, to the newest.

        Both names are plain identifiers (`pgstore.rows.check_table`).
        """
        names = _names(table, db_schema)
        parts = [self._log.text.format(**names)]
        for step in self.steps:
            if step.version > after:
                parts.append(step.text.format(**names))
                parts.append(
                    f"INSERT INTO {names['log']} (version, oldest_code) "
                    f"VALUES ({step.version}, {step.oldest_code});\n"
                )
        return "\n".join(parts)


def grants(table: str, role: str, *, db_schema: str | None = None) -> str:
    """Return PostgreSQL's statements that give a role what an application needs on the table.

    All three names are plain identifiers. USAGE on the schema is among it when one is named.
    """
    text = files(__package__).joinpath("postgres", "grants.sql").read_text("utf-8")
    usage = "" if db_schema is None else f'GRANT USAGE ON SCHEMA "{db_schema}" TO "{role}";\n'
    return text.format(role=f'"{role}"', **_names(table, db_schema)) + usage


def _names(table: str, db_schema: str | None) -> dict[str, str]:
    prefix = "" if db_schema is None else f'"{db_schema}".'
    return {
        "table": f'{prefix}"{table}"',
        "log": f'{prefix}"{table}_schema"',
        "gc_index": f'"{table}_gc_after"',
        "user_index": f'"{table}_user_key"',
    }
