"""The schema of one table through SQLAlchemy: applied by many at once, and checked by column."""

from __future__ import annotations

import re
from typing import Final

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateIndex, CreateTable

from ..errors import BackendError, SchemaError
from ..sql import Schema, statements
from .sqlalchemy_engine import Database, Held, Job
from .sqlalchemy_errors import is_refused
from .sqlalchemy_tables import KNOWN, Flavour
from .sqlalchemy_urls import dialect_of

__all__ = ["TableSchema", "sql_of"]


class TableSchema:
    """How a table comes to be in one kind of database, and is told to be as it should.

    ``part`` names the schema files, as for `pgstore.sql.Schema`. Where there are none for the
    database, SQLAlchemy makes the table from its columns.
    """

    def __init__(self, table: sa.Table, flavour: Flavour, part: str | None = None) -> None:
        self._table = table
        self._flavour = flavour
        self._files = None if flavour.engine is None else Schema(flavour.engine, part)
        log = sa.table(
            f"{table.name}_schema",
            sa.column("version", sa.Integer),
            sa.column("oldest_code", sa.Integer),
            schema=table.schema,
        )
        self._versions = (
            sa.select(log.c.version, log.c.oldest_code).order_by(log.c.version.desc()).limit(1)
        )

    def apply(self, db: Database | Held) -> None:
        """Create or migrate the table. Raises as `Backend.apply_schema` does."""
        if not db.run(self._is_applied):
            with db.patient() as database:
                run = database.run if self._flavour.ddl_commits else database.in_transaction
                try:
                    run(self._apply)
                except SchemaError:
                    raise
                except BackendError as error:
                    raise self._not_applied(error) from error.__cause__
        self.check(db)

    def check(self, db: Database | Held) -> None:
        """Raise `SchemaError` for a table that is missing, too old, too new, or does not fit."""
        db.run(self._check)

    @property
    def _wanted(self) -> int:
        return self._files.version if self._files else 0

    def _state(self, job: Job) -> tuple[bool, int, int]:
        """Return whether the table exists, the version of its schema, and its oldest code."""
        inspector, schema = sa.inspect(job.connection), self._table.schema
        exists = inspector.has_table(self._table.name, schema=schema)
        if inspector.has_table(f"{self._table.name}_schema", schema=schema):
            for row in job.read(self._versions):
                return exists, row.version, row.oldest_code
        return exists, 0, 0

    def _is_applied(self, job: Job) -> bool:
        exists, version, _ = self._state(job)
        return exists and version >= self._wanted

    def _check(self, job: Job) -> None:
        exists, version, oldest_code = self._state(job)
        wanted = self._wanted
        if not exists:
            raise SchemaError(f"there is no table {self._table}: run 'pgstore schema apply'")
        if oldest_code > wanted:
            raise SchemaError(
                f"the table {self._table} has version {version} of its schema, which code older "
                f"than version {oldest_code} may not use; this is version {wanted}: update "
                "pgstore here"
            )
        if 0 < version < wanted:
            raise SchemaError(
                f"the table {self._table} has version {version} of its schema, and this code wants "
                f"{wanted}: run 'pgstore schema apply'"
            )
        self._check_columns(job)

    def _check_columns(self, job: Job) -> None:
        problems = _mismatches(job.connection, self._table)
        if problems:
            raise SchemaError(
                f"the table {self._table} is not as this code wants it: {'; '.join(problems)}"
            )

    def _apply(self, job: Job) -> None:
        with self._flavour.lead(job, "schema", self._table, wait=True):
            # Another process may have been faster.
            exists, version, _ = self._state(job)
            name, db_schema = self._table.name, self._table.schema
            if self._files is None:
                if not exists:
                    self._create(job)
                return
            if exists and version == 0:
                # Of somebody's own migrations, or of a maker that was killed half-way.
                self._check_columns(job)
                text = self._files.record(name, db_schema=db_schema)
            else:
                text = self._files.text(name, db_schema=db_schema, after=version)
            for statement in statements(text):
                job.run(statement)

    def _create(self, job: Job) -> None:
        try:
            self._table.create(job.connection)
        except DBAPIError:
            # No lock is known there that would keep others from making it meanwhile.
            if not self._state(job)[0]:
                raise

    def _not_applied(self, error: BackendError) -> BackendError:
        if is_refused(error.__cause__):
            return SchemaError(
                f"this account may not create or change the table {self._table}: run 'pgstore "
                "schema apply' as one that may, or give what 'pgstore schema print' shows to "
                "whoever may"
            )
        return SchemaError(f"the schema of {self._table} was not applied: {error}")


def sql_of(table: sa.Table, url: str, part: str | None = None) -> str:
    """Return the SQL that makes a table in the database of a URL, without connecting to it."""
    dialect = dialect_of(url)
    kind = KNOWN.get(dialect.name, Flavour)
    if kind.engine is not None:
        text = Schema(kind.engine, part).text(table.name, db_schema=table.schema)
        return text if kind.ddl_commits else f"BEGIN;\n\n{text}\nCOMMIT;\n"
    parts: list[sa.DDLElement] = [CreateTable(table), *map(CreateIndex, table.indexes)]
    return "".join(f"{str(part.compile(dialect=dialect)).strip()};\n" for part in parts)


def _mismatches(connection: sa.Connection, table: sa.Table) -> list[str]:
    """Compare a table that exists with ours and say what does not fit, column by column."""
    inspector, dialect = sa.inspect(connection), connection.dialect
    found = {c["name"]: c for c in inspector.get_columns(table.name, schema=table.schema)}
    problems = []
    for column in table.columns:
        have = found.pop(column.name, None)
        want = column.type.compile(dialect)
        if have is None:
            problems.append(f"there is no column {column.name} {want}")
            continue
        is_type = have["type"].compile(dialect)
        if not _fits(is_type, want, dialect.name):
            problems.append(f"column {column.name} is {is_type} and must be {want}")
        elif column.nullable and not have["nullable"]:
            problems.append(f"column {column.name} must allow NULL")
    problems += [
        f"column {name} is none of the store's, and has neither a default nor NULL"
        for name, other in found.items()
        if not other["nullable"]
        and other.get("default") is None
        and not any(other.get(name) for name in ("autoincrement", "identity", "computed"))
    ]
    key = inspector.get_pk_constraint(table.name, schema=table.schema)["constrained_columns"]
    wanted = [column.name for column in table.primary_key.columns]
    if key != wanted:
        problems.append(f"the primary key is ({', '.join(key)}) and must be ({', '.join(wanted)})")
    return problems


_SIZED: Final = re.compile(
    r"([A-Z][A-Z ]*?)(?:\((\d+)\))?( WITH TIME ZONE)?(?: UNSIGNED)?(?: COLLATE .*)?"
)
# In whose place another type will do, for it holds all that the first one does.
_WIDER: Final = {
    "INTEGER": {"BIGINT"},
    "BINARY": {"VARBINARY"},
    "VARBINARY": {"BLOB", "MEDIUMBLOB", "LONGBLOB"},
    "TEXT": {"VARCHAR"},
}


def _fits(have: str, want: str, dialect: str) -> bool:
    if dialect == "sqlite":
        return _affinity(have) == _affinity(want)
    if dialect not in ("postgresql", "mysql", "mariadb"):
        return True
    parts, wanted = _SIZED.fullmatch(have), _SIZED.fullmatch(want)
    assert wanted
    if not parts or parts[3] != wanted[3]:
        return False
    if parts[1] not in {wanted[1], *_WIDER.get(wanted[1], ())}:
        return False
    match wanted[1]:
        case "INTEGER" | "BIGINT":
            return True  # MySQL's number is a width for display
        case "TIMESTAMP":
            return parts[2] is None or int(parts[2]) >= 6
        case "TEXT":
            return parts[2] is None
        case "BINARY" if parts[1] == "BINARY":
            return parts[2] == wanted[2]
    return wanted[2] is None or "BLOB" in parts[1] or int(parts[2] or 0) >= int(wanted[2])


def _affinity(name: str) -> str:
    """Return what SQLite makes of a type's name. https://sqlite.org/datatype3.html section 3.1"""
    for affinity, parts in {"INTEGER": ("INT",), "TEXT": ("CHAR", "CLOB", "TEXT")}.items():
        if any(part in name for part in parts):
            return affinity
    return "BLOB" if "BLOB" in name else "OTHER"
