"""What the errors of SQLAlchemy and of its drivers mean here."""

from __future__ import annotations

from typing import Final

from sqlalchemy import exc

from ..errors import BackendError, SchemaError

__all__ = ["Busy", "cause", "code_of", "is_lost", "is_refused", "meaning", "met_another"]

# By SQLSTATE, MySQL's number or SQLite's name.
_MET_ANOTHER: Final = {"40001", "40P01", "1020", "1213"}
_MISSING: Final = {"42P01", "3F000", "42703", "1146", "1049", "1054"}
_BUSY: Final = {"SQLITE_BUSY", "SQLITE_LOCKED", "55P03", "1205"}
_REFUSED: Final = {"42501", "1142", "1044"}


class Busy(BackendError):
    """Another connection held a lock for too long. Nothing was done."""


def is_lost(error: BaseException) -> bool:
    """Tell whether the connection is gone, and with it the answer."""
    return isinstance(error, exc.DBAPIError) and error.connection_invalidated


def met_another(error: BaseException | None) -> bool:
    """Tell whether a statement was undone because it met another, and may be run again."""
    return code_of(error) in _MET_ANOTHER


def is_refused(error: BaseException | None) -> bool:
    """Tell whether the account has no right to what it wanted."""
    return code_of(error) in _REFUSED


def code_of(error: BaseException | None) -> str:
    """Return the database's own code for an error: SQLSTATE, MySQL's number, SQLite's name."""
    orig = error.orig if isinstance(error, exc.StatementError) else error
    first = orig.args[0] if orig is not None and orig.args else None
    if isinstance(first, int):  # MySQL's, which says more than its SQLSTATE
        return str(first)
    for name in ("sqlstate", "pgcode", "sqlite_errorname"):
        if isinstance(code := getattr(orig, name, None), str):
            return code
    return ""


def meaning(error: Exception, table: str, *, unknown: bool = False) -> BackendError:
    """Return what an error means here, without the statement's values."""
    code, text = code_of(error), _text(error)
    if code in _MISSING or text.startswith(("no such table", "no such column")):
        return SchemaError(
            f"there is no table {table} that this code can use ({text}): run 'pgstore schema apply'"
        )
    if code in _BUSY:
        return Busy(f"another connection held a lock for too long: {text}")
    if isinstance(error, exc.TimeoutError):
        return BackendError("no connection of the engine's became free in time")
    return BackendError(f"the database failed: {text}", outcome_unknown=unknown)


def _text(error: Exception) -> str:
    # SQLAlchemy's own text quotes the statement's values; so do the details of PostgreSQL's.
    orig = cause(error)
    if isinstance(orig, exc.SQLAlchemyError):
        return type(orig).__name__
    diagnosis = getattr(getattr(orig, "diag", None), "message_primary", None)
    parts = [part for part in orig.args if isinstance(part, str)]
    text = str(diagnosis or (parts[-1] if parts else "")).strip()
    first = text.splitlines()[0] if text else type(orig).__name__
    code = code_of(error)
    return f"{first} [{code}]" if code else first


def cause(error: Exception) -> BaseException:
    """Return what may be shown in a traceback: SQLAlchemy's own error would show the values."""
    orig = error.orig if isinstance(error, exc.StatementError) else None
    return error if orig is None else orig
