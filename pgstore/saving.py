"""One save: write what the plan says, and when another was faster or the answer was lost, go on."""

from __future__ import annotations

import time
from typing import TypeGuard

from . import plan
from .errors import BackendError, ConflictError, SessionGone
from .hooks import Hooks
from .rows import Backend, Loaded, PGSession
from .session import Session

__all__ = ["Saving"]

# What was stored and its row; or what to try next (None: nothing) and None.
_Outcome = tuple[plan.Write | None, PGSession | None]


class Saving:
    """The writing of one `Store.save`."""

    _RACES_BEFORE_LOCK = 3

    def __init__(
        self,
        rules: plan.Rules,
        backend: Backend,
        session: Session,
        hooks: Hooks,
        ip: str | None,
        agent: str | None,
    ) -> None:
        self._rules = rules
        self._backend = backend
        self._session = session
        self._hooks = hooks
        self._client = (ip, agent)
        self._sent: plan.Write | None = None
        # Whether a login was stored.
        self.logged_in = False
        # Set while the write under way may have been done by an earlier try.
        self._unsure: BackendError | None = None

    def run(self, seconds: float) -> bool:
        """Write what there is to write. Tells whether the browser's cookie is to be sent again."""
        deadline = time.monotonic() + seconds
        send = self._catch_up()
        write, tries = self._decide(), 0
        while write is not None:
            write, row = self._try(write, locked=tries >= self._RACES_BEFORE_LOCK)
            if write is None:
                return send
            if row is not None:
                self._settle(write, row)
                if isinstance(write, plan.Delete):
                    self._hooks.fire([row], "deleted")
                return send or plan.sends_cookie(write)
            if time.monotonic() > deadline:
                if self._unsure is not None:
                    raise self._unsure
                raise ConflictError(
                    f"other writers of session {self._session.handle} were faster for "
                    f"{seconds:g} s; nothing was written"
                )
            tries += 1
        return send

    def _catch_up(self) -> bool:
        """Find out about a write of an earlier save of this request, of which no answer came."""
        write = self._session._unanswered
        if not isinstance(write, plan.Insert | plan.Update):
            return False
        self._sent = write
        loaded = self._backend.load(write.row.key)
        if self._is_ours(loaded):
            self._settle(write, loaded.row)
            return plan.sends_cookie(write)
        if isinstance(write, plan.Insert):
            # Stored and revoked, or never stored: as in `_look`.
            if write.row.user_key is not None:
                raise SessionGone(write.row.handle)
        elif not self._may_repeat(write, loaded):
            raise BackendError(
                "another writer came after a write whose answer was lost", outcome_unknown=True
            )
        self._session._unanswered = None
        return False

    def _try(self, write: plan.Write, *, locked: bool) -> _Outcome:
        try:
            if locked and not isinstance(write, plan.Insert):
                return self._send_locked(write)
            row = self._send(self._backend, write)
        except BackendError as error:
            if not error.outcome_unknown:
                if self._unsure is None:
                    raise
                # This try did nothing, but the one before may still arrive.
                self._session._unanswered = self._sent
                raise self._unsure from error
            self._unsure = error
            return self._look(error)
        if row is not None:
            return write, row
        # It found no such row. Was it a write sent again, the first one may have arrived after all.
        return self._overtaken(write) if self._unsure is None else self._look(self._unsure)

    def _settle(self, write: plan.Write, row: PGSession) -> None:
        self.logged_in = self.logged_in or plan.is_login(write)
        plan.settle(self._session, write, row)

    def _decide(self) -> plan.Write | None:
        return plan.decide(self._rules, self._session, *self._client)

    def _send(self, backend: Backend, write: plan.Write) -> PGSession | None:
        self._sent = write
        match write:
            case plan.Insert(row, expiry):
                return backend.insert(row, expiry)
            case plan.Update(row, version, expiry, _, login, renew, data_only):
                return backend.update(
                    row, version, expiry, login=login, renew=renew, data_only=data_only
                )
            case plan.Touch(row, expiry):
                return backend.touch(row, expiry)
            case plan.Delete(row):
                return backend.delete(row.key, version=row.version)
        raise AssertionError(write)

    def _is_ours(self, loaded: Loaded | None) -> TypeGuard[Loaded]:
        """Tell whether the row is as the last write of this save wanted it: then it was done.

        No earlier write can still arrive once another was decided on: the version that it was to
        replace is gone.
        """
        match self._sent:
            case plan.Insert(row) | plan.Update(row):
                return loaded is not None and loaded.row.version == row.version
        return False

    def _may_repeat(self, write: plan.Write, loaded: Loaded | None) -> bool:
        """Tell whether a write that may have been done can be applied to what is there now.

        When another writer came after it, or instead of it, plain keys can be set twice, but a
        counter must not count twice.
        """
        if not isinstance(write, plan.Update) or loaded is None:
            return True
        same = loaded.row.version == write.version
        return same or plan.mergeable(self._rules, self._session, write)

    def _send_locked(self, write: plan.Write) -> _Outcome:
        """Load and write under the row's lock, so that nobody can be faster."""
        key = self._session._id.selector
        with self._backend.locked(key) as backend:
            loaded = backend.load(key)
            if self._is_ours(loaded):
                return write, loaded.row
            if self._unsure is not None and not self._may_repeat(write, loaded):
                raise self._unsure
            plan.rebase(self._rules, self._session, loaded)
            again = self._decide()
            return again, None if again is None else self._send(backend, again)

    def _overtaken(self, write: plan.Write) -> _Outcome:
        """The write found no such row: look, and decide again on what there is."""
        loaded = self._backend.load(self._session._id.selector)
        if self._is_ours(loaded):
            return write, loaded.row  # an earlier try of ours, of which no answer came
        if isinstance(write, plan.Delete) and loaded is None:
            # Another request has emptied the session, too, and shown its messages.
            plan.take_back(self._session)
        if isinstance(write, plan.Insert):
            self._session._id = self._session._id.unrelated()  # the key is taken
        else:
            plan.rebase(self._rules, self._session, loaded)
        return self._decide(), None

    def _look(self, error: BackendError) -> _Outcome:
        """The answer to a write was lost: find out from the row whether it was done."""
        write = self._sent
        assert write is not None
        try:
            loaded = self._backend.load(self._session._id.selector)
        except BackendError as blind:
            self._session._unanswered = write
            raise error from blind
        if self._is_ours(loaded):
            return write, loaded.row
        match write:
            case plan.Insert(row):
                # Nobody knows an anonymous id yet, so nobody can have deleted its row. One with a
                # user may have been stored and revoked: it must not come back.
                if row.user_key is None and loaded is None:
                    return write, None
                raise error
            case plan.Update(_, version) if loaded is not None:
                # Again under the same version number: should the first one still arrive, it is
                # seen to be ours.
                if loaded.row.version == version:
                    return write, None
                if not self._may_repeat(write, loaded):
                    raise error
            case plan.Touch(row) if loaded is not None:
                # Stamped by us, or by another request: at the worst the cookie goes out twice.
                same = loaded.row.generation == row.generation
                if same and loaded.row.seen_on != row.seen_on:
                    return write, loaded.row
            case plan.Delete(row) if loaded is None:
                return write, row.but(data=b"")
        self._unsure = None
        plan.rebase(self._rules, self._session, loaded)
        return self._decide(), None
