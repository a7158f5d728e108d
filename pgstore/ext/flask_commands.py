"""The commands ``flask sessions …``, on the sessions of the app that ``flask`` is run for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from flask import current_app
from flask.cli import AppGroup

from ..devices import format_sessions
from ..errors import PGStoreError
from ..store import Store
from .flask_settings import open_store_of

if TYPE_CHECKING:
    from .flask import FlaskSessions

__all__ = ["commands"]

commands = AppGroup("sessions", help="List and end sessions, and look after their table.")


@commands.command("list")
@click.argument("user")
def _list(user: str) -> None:
    """List the live sessions of USER, the newest sign-in first."""
    with _store() as store:
        click.echo(format_sessions(store.sessions_of(user)), nl=False)


@commands.command("revoke")
@click.option("--handle", help="The one with this handle, as 'list' shows it.")
@click.option("--user", help="All sessions of this user.")
def _revoke(handle: str | None, user: str | None) -> None:
    """End sessions at once. The exit code is 1 if there is none with the handle."""
    if (handle is None) == (user is None):
        raise click.UsageError("Give either --handle or --user.")
    with _store() as store:
        ended = store.revoke(handle or "") if user is None else store.revoke_user(user)
    click.echo(f"revoked {ended:d}")
    if not ended and user is None:
        raise SystemExit(1)


@commands.command("cleanup")
def _cleanup() -> None:
    """Delete expired sessions, and print how many."""
    with _store() as store:
        click.echo(store.delete_expired())


@commands.command("schema")
@click.option("--check", is_flag=True, help="Only look whether the table fits.")
def _schema(check: bool) -> None:
    """Make or migrate the sessions' table."""
    with _store(schema="off") as store:
        if check:
            store.backend.check_schema()
        else:
            store.backend.apply_schema()
        click.echo(f"the table {store.backend.table} is as this version of pgstore wants it")


@contextmanager
def _store(**settings: Any) -> Iterator[Store]:
    """Give the app's store, and make its errors those of a command."""
    sessions: FlaskSessions = current_app.extensions["pgstore"]
    try:
        if sessions._given is not None:
            yield sessions._given
        else:
            with open_store_of(current_app, **settings) as store:
                yield store
    except PGStoreError as error:
        raise click.ClickException(" ".join(str(error).split())) from error
