"""The command ``pgstore``: keys, the table, users' sessions, cleaning up, and a demo.

Exit codes: 0 done, 1 the database failed or the answer is no, 2 something is set wrongly, 130
interrupted. An error is one line on stderr, without the database's URL or a key in it.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Literal

from . import __version__
from .devices import format_sessions
from .errors import ConfigurationError, PGStoreError
from .ids import generate_random_key
from .options import Options
from .rows import check_table
from .sql import grants
from .store import Store
from .urls import engine_of, format_keys, open_store, parse_keys

__all__ = ["main"]

# A sweep looks as far ahead as the store's own sessions need (`Backend.sweep`). Whose sessions
# these are is not known here, so it looks as far as any may need, which those of this age do.
_LONG_LIVED = Options(max_age=366 * 24 * 3600)

_DSN_HELP = (
    "the database's URL: postgresql://…, sqlite:///relative.db, sqlite:////absolute.db, "
    "mysql+pymysql://… or another of SQLAlchemy's; by default $PGSTORE_DSN, which others on this "
    "machine cannot see in the list of processes"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with ``argv`` (by default that of the process) and return its exit code."""
    args = _parser().parse_args(argv)
    try:
        with _one_interrupt():
            return int(args.run(args))
    except ConfigurationError as error:
        return _fail(error, 2)
    except PGStoreError as error:
        return _fail(error, 1)
    except ImportError as error:
        if "psycopg" not in f"{error.name} {error}":
            raise
        return _fail("PostgreSQL wants psycopg with libpq: pip install 'pgstore[binary]'", 2)
    except KeyboardInterrupt:
        return 130


# -- the commands ----------------------------------------------------------------------------------


def _keygen(args: argparse.Namespace) -> int:
    print(format_keys(generate_random_key(32), None if args.no_block else generate_random_key(32)))
    print(
        "Keep it secret: as PGSTORE_KEYS in the environment, or in a file that only the service "
        "reads.\n"
        "To rotate, put the new pair in front (new,old), run 'pgstore reseal', and drop the old "
        "pair\nwhen max_age has passed since.",
        file=sys.stderr,
    )
    return 0


def _schema(args: argparse.Namespace) -> int:
    if args.action == "print":
        return _schema_print(args)
    if args.action == "grants":
        return _schema_grants(args)
    with _store(args) as store:
        if args.action == "apply":
            store.backend.apply_schema()
        else:
            store.backend.check_schema()
    print(f"the table {args.table} is as this version of pgstore wants it")
    return 0


def _schema_print(args: argparse.Namespace) -> int:
    engine = args.engine or engine_of(_dsn(args))
    if engine == "postgres":
        from .backends import postgres

        text = postgres.schema_sql(args.table, args.db_schema)
    elif engine in ("mysql", "sqlalchemy"):
        from .backends import sqlalchemy

        url = "mysql+pymysql://" if engine == "mysql" else _dsn(args)
        text = sqlalchemy.schema_sql(url, args.table, args.db_schema)
    else:
        from .backends import sqlite

        if args.db_schema is not None:
            raise ConfigurationError("--db-schema is for PostgreSQL: SQLite has no schemas")
        text = sqlite.schema_sql(args.table)
    print(text, end="")
    return 0


def _schema_grants(args: argparse.Namespace) -> int:
    if not args.role:
        raise ConfigurationError("grants needs --role NAME, the application's role")
    if args.db_schema is not None:
        check_table(args.db_schema, what="schema", longest=63)
    role = check_table(args.role, what="role", longest=63)
    table, engine = check_table(args.table), _grants_engine(args)
    print(grants(table, role, db_schema=args.db_schema, engine=engine), end="")
    return 0


def _grants_engine(args: argparse.Namespace) -> Literal["postgres", "mysql"]:
    """Return whose GRANTs are wanted: PostgreSQL's, unless the URL or ``--engine`` says more."""
    url = args.dsn or os.environ.get("PGSTORE_DSN", "")
    scheme = url.partition("://")[0].partition("+")[0]
    engine = args.engine or {"mysql": "mysql", "mariadb": "mysql", "sqlite": "sqlite"}.get(scheme)
    if engine == "sqlite":
        raise ConfigurationError("SQLite has no roles: the file's permissions are its rights")
    return "mysql" if engine == "mysql" else "postgres"


def _cleanup(args: argparse.Namespace) -> int:
    if not args.once and not args.interval > 0:
        raise ConfigurationError(
            "--interval must be more than 0 seconds; for one sweep, use --once"
        )
    with _store(args) as store:
        # The first sweep is now, and its failure ends the command: a wrong setting shows at once.
        deleted = store.delete_expired()
        if args.once:
            print(deleted)
            return 0
        print(f"deleted {deleted}", flush=True)
        try:
            for result in store.run_cleanup(Event(), args.interval):
                if result.error is None:
                    print(f"deleted {result.deleted}", flush=True)
                else:
                    _fail(f"{result.error} (the next sweep tries again)", 1)
        except KeyboardInterrupt:
            pass  # leaving the store waits for the batch that is under way
    return 0


def _sessions_list(args: argparse.Namespace) -> int:
    with _store(args) as store:
        print(format_sessions(store.sessions_of(args.user)), end="")
    return 0


def _sessions_revoke(args: argparse.Namespace) -> int:
    with _store(args) as store:
        if args.user is not None:
            ended = store.revoke_user(args.user)
        else:
            ended = int(store.revoke(args.handle))
    print(f"revoked {ended}")
    return 0 if ended or args.handle is None else 1


def _reseal(args: argparse.Namespace) -> int:
    with _store(args, *_keys(args)) as store:
        counts = store.reseal(check=args.check)
    print(", ".join(f"{state} {count}" for state, count in counts.items()))
    return 1 if args.check and counts["old"] else 0


def _demo(args: argparse.Namespace) -> int:
    from . import demo

    demo.run(url=args.dsn, data=args.data, host=args.host, port=args.port)
    return 0


# -- what they share -------------------------------------------------------------------------------


def _dsn(args: argparse.Namespace) -> str:
    dsn: str = args.dsn or os.environ.get("PGSTORE_DSN", "")
    if not dsn:
        other = (
            ", or --engine postgres|sqlite|mysql" if getattr(args, "action", "") == "print" else ""
        )
        raise ConfigurationError(f"no database: set PGSTORE_DSN to its URL, or give --dsn{other}")
    return dsn


def _keys(args: argparse.Namespace) -> list[bytes | None]:
    """Read the keys. They never come from the command line, which every process may read."""
    if args.keys_file is None:
        return parse_keys(os.environ.get("PGSTORE_KEYS", ""))
    try:
        text = args.keys_file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise ConfigurationError(f"{args.keys_file} cannot be read: {reason}") from error
    return parse_keys(text, str(args.keys_file))


def _store(args: argparse.Namespace, *keys: bytes | None) -> Store:
    """Open the store that the arguments name, with a key that opens nothing when none is needed."""
    # The libraries would log what is reported here anyway. Does nothing where logging is set up.
    logging.basicConfig(handlers=[logging.NullHandler()])
    return open_store(
        _dsn(args),
        *(keys or [generate_random_key(32)]),
        schema="off",
        options=_LONG_LIVED,
        table=args.table,
        db_schema=args.db_schema,
    )


def _fail(error: object, code: int) -> int:
    print("pgstore:", " ".join(str(error).split()), file=sys.stderr, flush=True)
    return code


@contextmanager
def _one_interrupt() -> Iterator[None]:
    """Make the first SIGINT or SIGTERM a KeyboardInterrupt, and let later ones pass.

    What is to be ended in order (a PostgreSQL server, a sweep) must not be interrupted in ending.
    """
    interrupted = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        if not interrupted:
            interrupted = True
            raise KeyboardInterrupt

    before = [(number, signal.signal(number, interrupt)) for number in _INTERRUPTS]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pgstore", description="Server-side sessions on PostgreSQL: maintenance and a demo."
    )
    parser.add_argument("--version", action="version", version=f"pgstore {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: object, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(run=run)
        return sub

    sub = command("keygen", _keygen, "print a new key pair, as PGSTORE_KEYS holds it")
    sub.add_argument("--no-block", action="store_true", help="sign only, encrypt nothing")

    sub = command("schema", _schema, "make, check or print the sessions' table, and its rights")
    sub.add_argument(
        "action",
        choices=["apply", "check", "print", "grants"],
        help="make or migrate the table; check it; print its SQL; print a role's GRANTs",
    )
    sub.add_argument("--role", metavar="NAME", help="the application's role, for 'grants'")
    _add_table(sub)
    sub.add_argument(
        "--engine",
        choices=["postgres", "sqlite", "mysql"],
        help="what 'print' and 'grants' print for, in place of the URL's engine",
    )

    sub = command("cleanup", _cleanup, "delete expired sessions, until it is stopped")
    _add_table(sub)
    sub.add_argument("--once", action="store_true", help="sweep once and print how many went")
    sub.add_argument(
        "--interval",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="about how long to wait between sweeps (default: 300)",
    )

    sub = command("sessions", None, "list or end the sessions of a user")
    actions = sub.add_subparsers(title="actions", metavar="ACTION", required=True)
    sub = actions.add_parser("list", help="list a user's live sessions, the newest login first")
    sub.set_defaults(run=_sessions_list)
    sub.add_argument("user", metavar="USER", help="the user key, exactly as the application has it")
    _add_table(sub)
    sub = actions.add_parser("revoke", help="end one session, or all of a user's")
    sub.set_defaults(run=_sessions_revoke)
    which = sub.add_mutually_exclusive_group(required=True)
    which.add_argument("--handle", help="as 'list' shows it; the exit code is 1 if there is none")
    which.add_argument("--user", help="all sessions of the user with this very key")
    _add_table(sub)

    sub = command("reseal", _reseal, "rewrite the rows that were sealed with old keys")
    _add_table(sub)
    sub.add_argument(
        "--check", action="store_true", help="only count; the exit code is 1 while there are any"
    )
    sub.add_argument(
        "--keys-file",
        type=Path,
        metavar="PATH",
        help="a file with the keys, one line as 'keygen' prints it; by default $PGSTORE_KEYS",
    )

    sub = command("demo", _demo, "run a small site that shows its visitor's session")
    sub.add_argument("--dsn", metavar="URL", help="a database of yours, instead of one of its own")
    sub.add_argument("--host", default="127.0.0.1", help="where to listen (default: 127.0.0.1)")
    sub.add_argument("--port", type=_port, default=8000, help="default: 8000; 0 for any free one")
    sub.add_argument(
        "--data",
        type=Path,
        default=Path(".pgstore-demo"),
        metavar="FOLDER",
        help="where its keys and its database are kept (default: .pgstore-demo)",
    )
    return parser


def _add_table(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dsn", metavar="URL", help=_DSN_HELP)
    parser.add_argument("--table", default="http_sessions", help="default: http_sessions")
    parser.add_argument(
        "--db-schema", metavar="NAME", help="the table's schema; in MySQL, its database"
    )


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError("a port is a number from 0 to 65535")
    return int(text)
