"""One statement over one connection: sent at once, awaited with a deadline, never half-read.

This goes straight to libpq through `psycopg.Connection.pgconn`. It sends no BEGIN of its own
accord, whatever the connection's ``autocommit``, so a statement is one round trip and one
transaction; and a silent network cannot hold the caller, which no setting of libpq's can promise.
"""

from __future__ import annotations

import hashlib
import os
import select
import time
from collections.abc import Sequence
from types import BuiltinFunctionType
from typing import Any

import psycopg
from psycopg.pq import ConnStatus, DiagnosticField, ExecStatus, TransactionStatus
from psycopg.pq.abc import PGresult

__all__ = ["Lost", "Refused", "Statement", "Wire"]

_FINE = (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK, ExecStatus.EMPTY_QUERY)

# To wake a thread that sleeps takes 10 to 60 µs, as long as a server nearby takes to answer. So a
# wait begins awake, for so many seconds at most (docs/decisions/0009). A statement whose answers
# take longer is awaited asleep for up to 2**_MOST_DOUBT times, then tried again.
_AWAKE = 100e-6
_MOST_DOUBT = 7
# The wires of this process that have a statement under way.
_under_way: set[Wire] = set()
os.register_at_fork(after_in_child=_under_way.clear)

_NO_SUCH_STATEMENT = "26000"
_STATEMENT_EXISTS = "42P05"
# The function of the server's that refuses a plan which no longer fits its table. The message says
# so in the server's own language, and its SQLSTATE says less.
_STALE_PLAN = "RevalidateCachedQuery"


class Lost(Exception):
    """The connection broke or was late, and is closed; if ``sent``, the statement may have run."""

    def __init__(self, message: str, *, sent: bool, late: bool = False) -> None:
        super().__init__(message)
        self.sent = sent
        self.late = late


class Refused(Exception):
    """The server answered with an error: the statement did nothing."""

    def __init__(self, sqlstate: str, message: str, function: str = "") -> None:
        super().__init__(f"{message} [{sqlstate}]")
        self.sqlstate = sqlstate
        self.function = function


class Statement:
    """SQL text with ``$1, $2, …``, and the name under which a connection keeps it prepared.

    One that is not to be kept has no name, and is planned anew each time.
    """

    __slots__ = ("asleep", "doubt", "name", "text")

    def __init__(self, text: str, *, keep: bool = True) -> None:
        self.text = text.encode("ascii")
        # Named by its text: should the name exist already, it is this very statement.
        digest = hashlib.sha256(self.text).hexdigest()[:16]
        self.name = f"pgstore_{digest}".encode("ascii") if keep else b""
        # How much oftener its answer did not come soon than it did, and how many of the next ones
        # are awaited asleep for that. Threads may race on them, which does no harm.
        self.doubt = self.asleep = 0

    def __repr__(self) -> str:
        return f"<Statement {' '.join(self.text.decode('ascii').split())[:60]}…>"


class Wire:
    """A connection for as long as it is ours. Not for several threads at once.

    ``prepared`` says under which names the connection has statements on the server, by the names
    that they should have, and is added to. It is None for poolers, which give the server's side to
    another client after each transaction: nothing is prepared then. ``seconds`` bounds each
    statement.
    """

    __slots__ = (
        "_deadline",
        "_events",
        "_poll",
        "_poll_type",
        "_prepared",
        "_seconds",
        "_statement",
        "born",
        "connection",
        "resting_since",
    )

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        prepared: dict[bytes, bytes] | None,
        *,
        seconds: float,
    ) -> None:
        self.connection = connection
        self._prepared = prepared
        self._seconds = seconds
        self._deadline = 0.0
        self._poll: Any = None
        self._poll_type: Any = None
        self._events = 0
        self._statement: Statement | None = None
        self.born = self.resting_since = time.monotonic()

    def unprepared(self) -> Wire:
        """Return a wire on the same connection that prepares nothing."""
        return Wire(self.connection, None, seconds=self._seconds)

    def is_alive(self) -> bool:
        """Tell, without a round trip, whether the connection is still open on the other side."""
        pgconn = self.connection.pgconn
        if pgconn.status != ConnStatus.OK:
            return False
        while self._ready(select.POLLIN, 0):
            # A notice, or a farewell with the end of the stream behind it: read until nothing is
            # left.
            try:
                pgconn.consume_input()
            except psycopg.Error:
                return False
            if pgconn.status != ConnStatus.OK:
                return False
        return True

    def is_idle(self) -> bool:
        """Tell whether the connection is fit for the next user: open, and in no transaction."""
        return self.connection.pgconn.transaction_status == TransactionStatus.IDLE

    def execute(self, statement: Statement, params: Sequence[bytes | None]) -> PGresult:
        """Run one statement, parameters and results in binary, and return its result.

        Raises `Refused` for an error of the server's, `Lost` for a broken connection or a deadline
        that passed. Whatever interrupts the exchange, a KeyboardInterrupt or a greenlet's timeout
        too, closes the connection: the next user must not read this one's answer.
        """
        self._deadline = time.monotonic() + self._seconds
        pgconn = self.connection.pgconn
        formats = [1] * len(params)
        prepared = self._prepared
        if prepared is None or not statement.name:
            return self._exchange(
                pgconn.send_query_params,
                statement.text,
                params,
                None,
                formats,
                1,
                statement=statement,
            )
        name = prepared.get(statement.name)
        if name is None:
            name = self._prepare(statement, statement.name, prepared)
        try:
            return self._exchange(
                pgconn.send_query_prepared, name, params, formats, 1, statement=statement
            )
        except Refused as refused:
            if refused.sqlstate == _NO_SUCH_STATEMENT:  # DISCARD ALL
                prepared.clear()
                name = self._prepare(statement, statement.name, prepared)
            elif refused.function == _STALE_PLAN:
                # A migration has changed the table: plan it anew, under another name.
                name = self._prepare(statement, name + b"_", prepared)
            else:
                raise
        return self._exchange(pgconn.send_query_prepared, name, params, formats, 1)

    def script(self, text: str) -> None:
        """Run statements without parameters in one round trip."""
        self._deadline = time.monotonic() + self._seconds
        self._exchange(self.connection.pgconn.send_query, text.encode("utf-8"))

    def _prepare(self, statement: Statement, name: bytes, prepared: dict[bytes, bytes]) -> bytes:
        send = self.connection.pgconn.send_prepare
        try:
            self._exchange(send, name, statement.text, sent=False)
        except Refused as refused:
            if refused.sqlstate != _STATEMENT_EXISTS:
                raise
        prepared[statement.name] = name
        return name

    def _exchange(
        self, send: Any, *arguments: Any, sent: bool = True, statement: Statement | None = None
    ) -> PGresult:
        pgconn = self.connection.pgconn
        self._statement = statement
        try:
            _under_way.add(self)
            try:
                send(*arguments)
            except psycopg.Error as error:
                raise Lost(_reason(error), sent=False) from error
            results = self._receive(sent)
        except BaseException:
            self.connection.close()
            raise
        finally:
            _under_way.discard(self)
        for result in results:
            if result.status not in _FINE:
                if pgconn.status == ConnStatus.BAD:
                    self.connection.close()
                sqlstate = _field(result, DiagnosticField.SQLSTATE)
                message = _field(result, DiagnosticField.MESSAGE_PRIMARY)
                if not sqlstate or sqlstate[:2] == "08":
                    # libpq's own report of a lost connection.
                    self.connection.close()
                    raise Lost(message or "the connection was lost", sent=sent)
                # Only the primary message: detail and context may quote values.
                function = _field(result, DiagnosticField.SOURCE_FUNCTION)
                raise Refused(sqlstate, message, function)
        return results[-1]

    def _receive(self, sent: bool) -> list[PGresult]:
        pgconn = self.connection.pgconn
        results = []
        try:
            while pgconn.flush():
                self._wait(select.POLLIN | select.POLLOUT, sent)
                pgconn.consume_input()
            while True:
                while pgconn.is_busy():
                    self._wait(select.POLLIN, sent)
                    pgconn.consume_input()
                result = pgconn.get_result()
                if result is None:
                    break
                results.append(result)
        except psycopg.Error as error:
            raise Lost(_reason(error), sent=sent) from error
        if not results:
            raise Lost("the connection gave no result", sent=sent)
        return results

    def _wait(self, events: int, sent: bool) -> None:
        if self._is_soon(events):
            return
        left = self._deadline - time.monotonic()
        if left <= 0 or not self._ready(events, left * 1000):
            raise Lost("no answer from PostgreSQL within the time limit", sent=sent, late=True)

    def _is_soon(self, events: int) -> bool:
        """Wait for a moment without going to sleep; tell whether something came."""
        # Only for the first part of an answer: what is long is not soon.
        statement, self._statement = self._statement, None
        if statement is None or not isinstance(select.poll, BuiltinFunctionType):
            return False
        if statement.asleep > 0:
            statement.asleep -= 1
            return False
        end = time.monotonic() + _AWAKE
        # Several threads that stayed awake would take turns at the interpreter's lock.
        while len(_under_way) == 1:
            ready = self._ready(events, 0)
            if time.monotonic() > end:
                # Perhaps the answer has been there for long, and another process had the core, or
                # another thread the lock: who sleeps is served sooner then.
                statement.doubt = min(statement.doubt + 1, _MOST_DOUBT)
                statement.asleep = 2**statement.doubt
                return ready
            if ready:
                statement.doubt = max(statement.doubt - 1, 0)
                return True
            # Who else has something to do has the core: the server, too, when it shares it.
            os.sched_yield()
        return False

    def _ready(self, events: int, milliseconds: float) -> bool:
        # select.poll is looked up now, not at import: gevent may have replaced it since. A poll
        # object of gevent's is good for the event loop of one thread: it is not kept.
        if self._poll_type is not select.poll or not isinstance(select.poll, BuiltinFunctionType):
            self._poll, self._poll_type, self._events = select.poll(), select.poll, 0
        if self._events != events:
            self._poll.register(self.connection.pgconn.socket, events)
            self._events = events
        return bool(self._poll.poll(milliseconds))


def is_utf8(connection: psycopg.Connection[Any]) -> bool:
    """Tell whether text goes over a connection as it does here."""
    # A pooler reports it as the client wrote it.
    encoding = connection.pgconn.parameter_status(b"client_encoding") or b""
    return encoding.upper().replace(b"-", b"") in (b"UTF8", b"UNICODE")


def _reason(error: psycopg.Error) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _field(result: PGresult, field: DiagnosticField) -> str:
    value = result.error_field(field)
    return value.decode("utf-8", "replace") if value else ""
