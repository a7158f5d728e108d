"""The contracts of backends as test suites, for people who write one.

`BackendContract` is that of `pgstore.rows.Backend`, `TokenContract` that of
`pgstore.tokens.TokenBackend`.

Needs pytest. Subclass `BackendContract` in a test module, under a name that pytest collects:

    class TestMyBackend(BackendContract):
        @pytest.fixture(autouse=True)
        def _storage(self, tmp_path): ...  # an empty one for every test

        def make_backend(self): ...
        def make_connection(self): ...
        def raw_rows(self): ...
        def raw_shift(self, seconds): ...

``pytest.register_assert_rewrite("pgstore.testing")`` in conftest.py makes failures show values.
"""

from __future__ import annotations

import os
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final, TypeAlias, TypeVar

import pytest

from .errors import BackendError, ConfigurationError
from .rows import Backend, Expiry, PGSession, UserStats, check_table
from .tokens import TokenBackend

__all__ = ["BackendContract", "TokenContract"]

T = TypeVar("T")

EXPIRY: Final = Expiry(idle=3600.5, lifetime=None, bucket=600.0)
# Past every expiry here, and past its bucket.
AGES: Final = 30 * 24 * 3600.0

TIMES: Final = [f.name for f in fields(PGSession) if f.name.endswith(("_on", "gc_after"))]
NO_TIMES: Final[dict[str, Any]] = dict.fromkeys(TIMES)
STALE_TIMES: Final[dict[str, Any]] = dict.fromkeys(TIMES, datetime(2001, 1, 1, tzinfo=UTC))

BARE: Final = PGSession(
    key=bytes(range(16)),
    name="session",
    generation=0,
    min_generation=0,
    secret_hash=bytes(32),
    data=b"",
    version=0,
    max_age=0,
)
FULL: Final = PGSession(
    key=b"\xff\x00" * 8,
    name="__Host-séance",
    generation=2**24 - 1,
    min_generation=2**24 - 2,
    secret_hash=b"\x00hash\xff" * 5,
    data=b"\x00data'\"\\\xff",
    version=2**63 - 1,
    max_age=2**31 - 1,
    user_key="alicé '\"\\%_☃",
    ip="2001:db8::1",
    user_agent="Mozilla/5.0 (\U0001f36a)",
    meta={"device": "téléphone", "": "'\"\\"},
    previous_hash=b"\x00previous",
    successor=b"successor\x00",
)
# Which a collation, a padding or a normal form may take for one.
USERS: Final = ["alice", "Alice", "alicé", "alice\u0301", "alice ", " alice", ""]
LARGE: Final = replace(BARE, data=bytes(range(256)) * 4096)

Verb: TypeAlias = Callable[[Backend, PGSession], object]
VERBS: Final[dict[str, Verb]] = {
    "load": lambda backend, row: backend.load(row.key),
    "scan": lambda backend, row: backend.scan(None, 10),
    "update": lambda backend, row: backend.update(row, row.version, EXPIRY, login=True),
    "touch": lambda backend, row: backend.touch(row, EXPIRY),
    "delete": lambda backend, row: backend.delete(row.key, version=row.version),
    "rewrite": lambda backend, row: backend.rewrite(row, row.version),
}


def each(*verbs: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("verb", [VERBS[name] for name in verbs], ids=verbs)


class BackendContract:
    """Hold a backend to the text of `pgstore.rows.Backend`.

    A subclass supplies four hooks, and a storage that is empty for each test. Times are compared
    among themselves, never with this process's clock.
    """

    def make_backend(self) -> Backend:
        """Return a backend on the test's storage; this call does not apply the schema.

        All that one test makes share their rows. The tests close what they make.
        """
        raise NotImplementedError

    def make_connection(self) -> Any:
        """Return a new connection to the test's storage as `Backend.using` takes it.

        It begins a transaction by itself, and has ``commit()``, ``rollback()`` and ``close()``.
        None for a backend that has no connections.
        """
        raise NotImplementedError

    def raw_rows(self) -> list[dict[str, Any]]:
        """Read all rows without the backend: the fields of `PGSession`, in its types."""
        raise NotImplementedError

    def raw_shift(self, seconds: float) -> None:
        """Make all rows so much older without the backend: every time that is set moves back."""
        raise NotImplementedError

    @pytest.fixture
    def backend(self) -> Iterator[Backend]:
        backend = self.make_backend()
        backend.apply_schema()
        yield backend
        backend.close()

    def raw(self, key: bytes = BARE.key) -> dict[str, Any]:
        """Read the one row that is stored under the key, without the backend."""
        (row,) = (row for row in self.raw_rows() if row["key"] == key)
        return row

    # -- the table, and who uses it --------------------------------------------------------------

    def test_table(self, backend: Backend) -> None:
        """``table`` is the bare name, for which data is sealed."""
        assert check_table(backend.table) == backend.table

    def test_schema_applied_again(self, backend: Backend) -> None:
        """Applying a schema that is there changes no row, and the check is content with it."""
        add(backend, BARE)
        before = self.raw_rows()
        backend.apply_schema()
        backend.check_schema()
        assert self.raw_rows() == before

    def test_schema_applied_by_many(self) -> None:
        """Many may apply the schema to an empty storage at once."""
        backends = [self.make_backend() for _ in range(8)]
        at_once(8, lambda number: backends[number].apply_schema())
        add(backends[0], BARE)
        for backend in backends:
            backend.close()

    def test_backends_share_rows(self, backend: Backend) -> None:
        """What one backend wrote is there for others; closing one, and again, ends only that."""
        other = self.make_backend()
        row = add(other, FULL)
        assert load(backend, FULL.key) == row
        other.close()
        other.close()
        assert load(backend, FULL.key) == row

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")
    def test_forked_child(self, backend: Backend) -> None:
        """The child of a fork uses the backend, and its parent goes on undisturbed."""
        row = add(backend, BARE)

        def child() -> None:
            assert load(backend) == row
            assert backend.update(row, row.version, EXPIRY)
            backend.close()

        assert in_fork(child) == 0
        load(backend)
        assert backend.delete(row.key)

    # -- insert and load -------------------------------------------------------------------------

    @pytest.mark.parametrize("row", [BARE, FULL, LARGE], ids=["bare", "full", "large"])
    def test_columns_come_back(self, backend: Backend, row: PGSession) -> None:
        """Every column comes back as it was inserted, set or not, a megabyte of data too."""
        stored = add(backend, row)
        assert replace(stored, **NO_TIMES) == row
        assert load(backend, row.key) == stored
        assert self.raw(row.key) == asdict(stored)

    def test_user_keys_differ_by_any_byte(self, backend: Backend) -> None:
        """User keys that are nearly the same are different users, stored just as they came."""
        for number, user in enumerate(USERS):
            add(backend, replace(BARE, key=key(number), user_key=user))
        assert [row.user_key for row in backend.scan(None, 99)] == USERS
        assert [self.raw(key(number))["user_key"] for number in range(len(USERS))] == USERS
        for number, user in enumerate(USERS):
            assert [row.key for row in backend.of_user(user)] == [key(number)]
            others = [other for other in USERS if other != user]
            assert not any(backend.delete(key(number), user_key=other) for other in others)
        assert backend.delete_of_user("alice", newest=1) == []
        for left, user in reversed(list(enumerate(USERS))):
            assert [row.user_key for row in backend.delete_of_user(user)] == [user]
            assert len(self.raw_rows()) == left

    def test_stored_rows_are_apart(self, backend: Backend) -> None:
        """Changing a mapping that was given or handed out changes nothing that is stored."""
        meta = {"device": "phone"}
        given = add(backend, replace(BARE, meta=meta))
        for mapping in (meta, given.meta, load(backend).meta):
            mapping["device"] = "fridge"  # type: ignore[index]
        assert load(backend).meta == {"device": "phone"}

    def test_insert_stamps_times(self, backend: Backend) -> None:
        """A new row has times of its own; it has been authenticated if it comes with a user."""
        bare, full = (add(backend, replace(row, **STALE_TIMES)) for row in (BARE, FULL))
        for row in (bare, full):
            assert row.created_on == row.modified_on == row.seen_on != STALE_TIMES["seen_on"]
            assert row.renewed_on is None
            check_expiry(row, EXPIRY)
        assert (bare.authenticated_on, full.authenticated_on) == (None, full.created_on)

    def test_insert_with_lifetime(self, backend: Backend) -> None:
        """A new row ends at the earlier of idleness and lifetime."""
        for number, lifetime in enumerate((1800.5, 7200.0)):
            expiry = replace(EXPIRY, lifetime=lifetime)
            check_expiry(add(backend, replace(BARE, key=key(number)), expiry), expiry)

    @pytest.mark.parametrize("age", [0.0, AGES], ids=["live", "expired"])
    def test_insert_on_a_taken_key(self, backend: Backend, age: float) -> None:
        """An insert replaces no row, whether that is live or not."""
        add(backend, BARE)
        self.raw_shift(age)
        before = self.raw_rows()
        assert backend.insert(replace(FULL, key=BARE.key), EXPIRY) is None
        assert self.raw_rows() == before

    def test_concurrent_inserts(self, backend: Backend) -> None:
        """Of many inserts of one key, one gets through."""
        rows = at_once(8, lambda number: backend.insert(replace(BARE, version=number), EXPIRY))
        assert [row for row in rows if row] == [load(backend)]

    def test_load_tells_the_time(self, backend: Backend) -> None:
        """A load brings the database's time, aware and in UTC as the row's times are."""
        add(backend, BARE)
        loaded = backend.load(BARE.key)
        assert loaded
        row, now = loaded
        assert row.seen_on
        assert row.expires_on
        assert row.seen_on <= now < row.expires_on
        assert {time.utcoffset() for time in (now, row.seen_on, row.expires_on)} == {timedelta(0)}

    # -- rows that are not there, and other rows -------------------------------------------------

    @each(*VERBS)
    def test_absent(self, backend: Backend, verb: Verb) -> None:
        """An absent row is no error, and no verb makes one."""
        assert not verb(backend, replace(FULL, **STALE_TIMES))
        assert self.raw_rows() == []

    @each(*VERBS)
    def test_expired(self, backend: Backend, verb: Verb) -> None:
        """An expired row that was not swept yet is absent: no verb revives or changes it."""
        add(backend, FULL)
        self.raw_shift(3601)
        before = self.raw(FULL.key)
        assert not verb(backend, PGSession(**before))
        assert self.raw(FULL.key) == before

    @each(*VERBS)
    def test_one_key_only(self, backend: Backend, verb: Verb) -> None:
        """No verb changes a row that it does not address."""
        add(backend, BARE)
        row = add(backend, FULL)
        before = self.raw()
        assert verb(backend, row)
        assert self.raw() == before

    @each("update", "delete", "rewrite")
    def test_other_version(self, backend: Backend, verb: Verb) -> None:
        """A write that was worked out from another version than the stored one does nothing."""
        row = add(backend, replace(BARE, version=7))
        before = self.raw()
        for version in (6, 8, 0, 2**63 - 1):
            assert not verb(backend, replace(row, version=version, data=b"other"))
        assert self.raw() == before
        assert verb(backend, row)

    def test_concurrent_writes(self, backend: Backend) -> None:
        """Of many writes that know one version, one gets through."""
        row = add(backend, BARE)

        def write(number: int) -> object:
            new = replace(row, version=number + 1)
            if number % 3 == 0:
                return backend.update(new, row.version, EXPIRY)
            if number % 3 == 1:
                return backend.rewrite(new, row.version)
            return backend.delete(row.key, version=row.version)

        assert [bool(done) for done in at_once(9, write)].count(True) == 1

    # -- update ----------------------------------------------------------------------------------

    @pytest.mark.parametrize("rows", [(BARE, FULL), (FULL, BARE)], ids=["set", "cleared"])
    def test_update_stores_all_but_times(
        self, backend: Backend, rows: tuple[PGSession, PGSession]
    ) -> None:
        """An update stores every column, set or not, and moves what a visit and a change move."""
        old, new = rows[0], replace(rows[1], key=rows[0].key)
        add(backend, old)
        self.raw_shift(60)
        before = self.raw(old.key)
        row = backend.update(replace(new, **STALE_TIMES), old.version, EXPIRY)
        assert row
        assert replace(row, **NO_TIMES) == new
        assert row.modified_on == row.seen_on
        assert since(row.seen_on, before["seen_on"]) >= timedelta(seconds=60)
        check_expiry(row, EXPIRY)
        for name in ("created_on", "authenticated_on", "renewed_on"):
            assert getattr(row, name) == before[name]
        assert load(backend, old.key) == row
        assert self.raw(old.key) == asdict(row)

    def test_update_of_data_only(self, backend: Backend) -> None:
        """Told that only the data differs, an update stores the same as without being told."""
        old = add(backend, FULL)
        self.raw_shift(60)
        before = self.raw(old.key)
        new = load(backend, old.key).but(data=b"other", version=8)
        row = backend.update(new, old.version, None, data_only=True)
        assert row
        assert row.modified_on
        assert row.modified_on > before["modified_on"]
        expected = before | {"data": b"other", "version": 8, "modified_on": row.modified_on}
        assert self.raw(old.key) == asdict(row) == expected
        assert backend.update(new, old.version, None, data_only=True) is None

    @pytest.mark.parametrize("expiry", [EXPIRY, None], ids=["visit", "no-visit"])
    @pytest.mark.parametrize("login", [False, True], ids=["", "login"])
    @pytest.mark.parametrize("renew", [False, True], ids=["", "renew"])
    def test_update_stamps(
        self, backend: Backend, expiry: Expiry | None, login: bool, renew: bool
    ) -> None:
        """A change, a visit, a login and a renewal each make times of their own now."""
        first = add(backend, replace(BARE, user_key="alice"))
        assert backend.update(first, first.version, EXPIRY, renew=True)
        self.raw_shift(60)
        before = self.raw()
        row = backend.update(first, first.version, expiry, login=login, renew=renew)
        assert row
        assert since(row.modified_on, before["modified_on"]) >= timedelta(seconds=60)
        moved = {"modified_on": True, "seen_on": expiry, "authenticated_on": login}
        for name, now in {**moved, "renewed_on": renew, "created_on": False}.items():
            assert getattr(row, name) == (row.modified_on if now else before[name])
        for name in ("expires_on", "gc_after"):
            assert expiry or getattr(row, name) == before[name]
        assert self.raw() == asdict(row)

    def test_no_write_is_lost(self, backend: Backend) -> None:
        """Among many writers, each version is replaced once, and every write gets through."""
        add(backend, BARE)

        def writer(number: int) -> list[int]:
            replaced = []
            for version in range(number * 10 + 1, number * 10 + 11):
                done = None
                while done is None:
                    row = load(backend)
                    new = replace(row, version=version, data=row.data + b".")
                    done = backend.update(new, row.version, EXPIRY)
                replaced.append(row.version)
            return replaced

        versions = [version for versions in at_once(8, writer) for version in versions]
        assert sorted([*versions, load(backend).version]) == list(range(81))
        assert load(backend).data == b"." * 80

    # -- lifetime --------------------------------------------------------------------------------

    @pytest.mark.parametrize("visit", ["update", "touch"])
    @pytest.mark.parametrize("login", [False, True], ids=["created", "login"])
    def test_lifetime(self, backend: Backend, visit: str, login: bool) -> None:
        """However late it is visited, a row ends its lifetime after its creation, or its login."""
        row = add(backend, BARE)
        self.raw_shift(1000)
        expiries = [replace(EXPIRY, lifetime=lifetime) for lifetime in (4000.5, 8000.0, 500.0)]
        if login:
            first = backend.update(row, row.version, expiries[0], login=True)
            assert first
            check_expiry(first, expiries[0])
        self.raw_shift(501)
        for expiry in expiries:
            row = load(backend)
            moved = (
                backend.touch(row, expiry)
                if visit == "touch"
                else backend.update(row, row.version, expiry)
            )
            assert moved
            assert (moved.authenticated_on is not None) == login
            check_expiry(moved, expiry)
        # The last one was over before the visit.
        assert backend.load(row.key) is None

    # -- touch -----------------------------------------------------------------------------------

    def test_touch(self, backend: Backend) -> None:
        """A touch moves ``seen_on``, ``expires_on`` and ``gc_after``, and nothing else."""
        add(backend, FULL)
        self.raw_shift(1000)
        before = self.raw(FULL.key)
        row = backend.touch(PGSession(**before), EXPIRY)
        assert row
        assert since(row.seen_on, before["seen_on"]) >= timedelta(seconds=1000)
        check_expiry(row, EXPIRY)
        moved = {name: getattr(row, name) for name in ("seen_on", "expires_on", "gc_after")}
        assert self.raw(FULL.key) == before | moved == asdict(row)

    def test_touch_within_a_bucket(self, backend: Backend) -> None:
        """A touch that stays in its bucket leaves ``gc_after``, the time that is indexed."""
        # 30 years long: no test runs into the next one.
        expiry = replace(EXPIRY, bucket=30 * 365.25 * 24 * 3600)
        row = add(backend, BARE, expiry)
        touched = backend.touch(row, expiry)
        assert touched
        assert touched.gc_after == row.gc_after == self.raw()["gc_after"]

    def test_touch_by_one_who_is_late(self, backend: Backend) -> None:
        """A touch of a row that was seen or renewed meanwhile changes nothing."""
        row = add(backend, BARE)
        before = self.raw()
        seen_on = before["seen_on"] - timedelta(microseconds=1)
        for other in (replace(row, generation=1), replace(row, seen_on=seen_on)):
            assert backend.touch(other, EXPIRY) is None
        assert self.raw() == before
        assert backend.touch(row, EXPIRY)

    # -- delete, rewrite, scan -------------------------------------------------------------------

    def test_delete(self, backend: Backend) -> None:
        """A delete removes the row, and returns it as it was, without its data."""
        row = add(backend, FULL)
        assert backend.delete(FULL.key) == replace(row, data=b"")
        assert self.raw_rows() == []
        add(backend, FULL)

    @pytest.mark.parametrize("generation", [3, 4, 9])
    def test_delete_by_generation(self, backend: Backend, generation: int) -> None:
        """A delete that names a generation spares a row that does not count it as its own."""
        add(backend, replace(BARE, generation=4, min_generation=3))
        assert backend.delete(BARE.key, generation=2) is None
        assert backend.delete(BARE.key, generation=2, version=BARE.version) is None
        assert backend.delete(BARE.key, generation=generation, version=1) is None
        self.raw()
        assert backend.delete(BARE.key, generation=generation)

    def test_delete_by_user(self, backend: Backend) -> None:
        """A delete that names a user spares the rows of others, and those of nobody."""
        for user in (None, "Alice", "alice "):
            add(backend, replace(BARE, user_key=user))
            assert backend.delete(BARE.key, user_key="alice") is None
            assert backend.delete(BARE.key)
        add(backend, replace(BARE, user_key="alice"))
        assert backend.delete(BARE.key, user_key="alice")

    def test_of_user(self, backend: Backend) -> None:
        """A user's rows are the live ones with that very key, the newest login first."""
        assert backend.of_user("alice") == []
        add(backend, replace(FULL, key=key(9), user_key="alice"), replace(EXPIRY, idle=10.0))
        for number, user in enumerate(["alice", "Alice", "alicé", "alice ", "alice", None]):
            self.raw_shift(20)
            add(backend, replace(FULL, key=key(number), user_key=user))
        rows = backend.of_user("alice")
        assert [row.key for row in rows] == [key(4), key(0)]
        assert rows == [replace(PGSession(**self.raw(row.key)), data=b"") for row in rows]
        # A login counts, and not the creation.
        self.raw_shift(20)
        first = load(backend, key(0))
        assert backend.update(first, first.version, None, login=True)
        assert [row.key for row in backend.of_user("alice")] == [key(0), key(4)]

    @pytest.mark.parametrize(
        ("keep", "newest", "left"),
        [
            (None, 0, []),
            (1, 0, [1]),
            (None, 2, [3, 2]),
            (0, 1, [0]),
            (0, 2, [3, 0]),
            (3, 1, [3]),
            (7, 2, [3, 2]),
            (None, 9, [3, 2, 1, 0]),
        ],
    )
    def test_delete_of_user(
        self, backend: Backend, keep: int | None, newest: int, left: list[int]
    ) -> None:
        """A user's live rows go, but for the one to keep and the newest; nobody else's do.

        The one to keep is one of the newest, however old it is.
        """
        for number in range(4):
            add(backend, replace(FULL, key=key(number), user_key="alice"))
            self.raw_shift(20)
        others = [replace(BARE, key=key(8)), replace(BARE, key=key(9), user_key="Alice")]
        for row in others:
            add(backend, row)
        before = backend.of_user("alice")
        kept = None if keep is None else key(keep)
        deleted = backend.delete_of_user("alice", keep=kept, newest=newest)
        assert backend.of_user("alice") == [row for row in before if row not in deleted]
        assert [row.key for row in backend.of_user("alice")] == [key(number) for number in left]
        assert sorted(row.key for row in deleted) == sorted(
            row.key for row in before if row.key not in [key(number) for number in left]
        )
        assert all(self.raw(row.key) for row in others)

    def test_delete_of_user_spares_expired_rows(self, backend: Backend) -> None:
        """What has expired is left to the sweep."""
        add(backend, replace(BARE, user_key="alice"))
        self.raw_shift(AGES)
        assert backend.delete_of_user("alice") == []
        self.raw()

    def test_trims_at_once(self, backend: Backend) -> None:
        """Trims that keep different rows leave together what one of them would: no row too few."""
        for newest in (1, 2, 1, 2, 1, 2):
            for number in range(6):
                add(backend, replace(BARE, key=key(number), user_key="alice"))

            def trim(number: int, newest: int = newest) -> list[PGSession]:
                return backend.delete_of_user("alice", keep=key(number), newest=newest)

            ended = at_once(4, trim)
            left = backend.delete_of_user("alice")
            assert len(left) == newest
            # Each row is told of once.
            gone = [row.key for rows in [*ended, left] for row in rows]
            assert sorted(gone) == [key(number) for number in range(6)]

    def test_rewrite(self, backend: Backend) -> None:
        """A rewrite replaces data and version, and nothing else, not even a time."""
        add(backend, BARE)
        self.raw_shift(60)
        before = self.raw()
        assert backend.rewrite(replace(FULL, key=BARE.key), BARE.version) is True
        assert self.raw() == before | {"data": FULL.data, "version": FULL.version}

    def test_scan(self, backend: Backend) -> None:
        """A scan pages through the live rows in the order of their keys' bytes."""
        keys = [key(0), key(1), b"\x7f" * 16, b"\x80" * 16, b"\xff" * 16]
        for one in reversed(keys):
            add(backend, replace(FULL, key=one))
        add(backend, replace(BARE, key=key(2)), replace(EXPIRY, idle=10.0))
        self.raw_shift(20)
        found: list[PGSession] = []
        for size in (2, 2, 1, 0):
            page = backend.scan(found[-1].key if found else None, 2)
            assert len(page) == size
            found += page
        assert [asdict(row) for row in found] == [self.raw(one) for one in keys]

    def test_users(self, backend: Backend) -> None:
        """Users with live rows come in the order of their keys' bytes, each with its rows."""
        assert backend.users(None, 9) == []
        for number, user in enumerate([*USERS, None, "alice", "\U0001f600", "\uffee"]):
            add(backend, replace(BARE, key=key(number), user_key=user))
            self.raw_shift(20)
        add(backend, replace(BARE, key=key(20), user_key="bob"), replace(EXPIRY, idle=10.0))
        self.raw_shift(20)
        users = sorted([*USERS, "\U0001f600", "\uffee"], key=str.encode)
        found: list[UserStats] = []
        while page := backend.users(found[-1].user_key if found else None, 3):
            assert len(page) == min(3, len(users) - len(found))
            found += page
        for user, stats in zip(users, found, strict=True):
            seen = [row["seen_on"] for row in self.raw_rows() if row["user_key"] == user]
            assert stats == (user, len(seen), max(seen))
        assert [stats.sessions for stats in found if stats.user_key == "alice"] == [2]

    def test_stats(self, backend: Backend) -> None:
        """Live rows and expired ones are counted apart; the oldest is the oldest live one."""
        empty = backend.stats()
        assert (empty.live, empty.expired, empty.oldest) == (0, 0, None)
        assert empty.size is None or empty.size >= 0
        add(backend, replace(BARE, key=key(9)), replace(EXPIRY, idle=10.0))
        for number in range(3):
            self.raw_shift(20)
            add(backend, replace(BARE, key=key(number), user_key="alice", data=b"x" * 5000))
        stats = backend.stats()
        assert (stats.live, stats.expired) == (3, 1)
        assert stats.oldest == self.raw(key(0))["created_on"]
        assert (stats.size is None) == (empty.size is None)
        assert stats.size is None or stats.size > max(empty.size or 0, 15_000)

    # -- locked ----------------------------------------------------------------------------------

    @each("update", "touch", "delete", "rewrite")
    def test_locked_keeps_others_out(self, backend: Backend, verb: Verb) -> None:
        """What is loaded under the lock is what is replaced; others wait, and find it changed."""
        row = add(backend, BARE)
        started, finished = threading.Event(), threading.Event()

        def other() -> object:
            started.set()
            try:
                return verb(backend, row)
            finally:
                finished.set()

        with ThreadPoolExecutor(1) as thread:
            with backend.locked(row.key) as inside:
                waiting = thread.submit(other)
                assert started.wait(10)
                assert not finished.wait(0.1)
                assert load(inside) == row
                changed = replace(row, generation=1, version=1)
                stored = inside.update(changed, row.version, EXPIRY)
                assert stored
                assert load(inside) == stored
            assert not waiting.result(10)
        assert load(backend) == stored

    def test_locked_rolls_back(self, backend: Backend) -> None:
        """An exception undoes every write of the block, and leaves nothing locked."""
        rows = [add(backend, BARE), add(backend, FULL)]
        before = self.raw_rows()
        with suppress(ZeroDivisionError), backend.locked(BARE.key) as inside:
            assert inside.update(replace(BARE, version=1), BARE.version, EXPIRY)
            assert inside.delete(FULL.key)
            add(inside, replace(BARE, key=key(1)))
            raise ZeroDivisionError
        assert self.raw_rows() == before
        assert all(at_once(2, lambda number: backend.touch(rows[number], EXPIRY)))

    def test_locked_absent_row(self, backend: Backend) -> None:
        """Locking a row that is absent or has expired is no error."""
        add(backend, BARE)
        self.raw_shift(AGES)
        for absent in (BARE.key, FULL.key):
            with backend.locked(absent) as inside:
                assert inside.load(absent) is None

    # -- using -----------------------------------------------------------------------------------

    @pytest.fixture
    def connection(self, backend: Backend) -> Iterator[Any]:
        connection = self.make_connection()
        if connection is None:
            with pytest.raises(ConfigurationError):
                backend.using(object())
            pytest.skip("this backend has no connections")
        yield connection
        connection.close()

    def test_using_another_kind_of_connection(self, backend: Backend) -> None:
        """What is no connection of the backend's driver is refused at once."""
        for other in (None, object(), "dbname=app", self):
            with pytest.raises(ConfigurationError):
                backend.using(other)

    def test_using_commits_with_the_caller(self, backend: Backend, connection: Any) -> None:
        """What is done on the caller's connection is seen there, and by others when it commits."""
        add(backend, BARE)
        row = add(backend, FULL)
        before = self.raw_rows()
        inside = backend.using(connection)
        assert load(inside, FULL.key) == row
        changed = inside.update(replace(FULL, data=b"changed", version=1), FULL.version, EXPIRY)
        new = add(inside, replace(BARE, key=key(1)))
        assert inside.delete(BARE.key)
        assert load(inside, FULL.key) == changed
        assert load(inside, new.key) == new
        assert inside.load(BARE.key) is None
        assert self.raw_rows() == before
        connection.commit()
        assert load(backend, FULL.key) == changed
        assert load(backend, new.key) == new
        assert backend.load(BARE.key) is None

    def test_using_ends_no_transaction(self, backend: Backend, connection: Any) -> None:
        """Whatever verb is used, and in a lock, the caller's rollback undoes all of it."""
        for number in range(4):
            add(backend, replace(FULL, key=key(number), user_key="alice"))
        expired = add(backend, replace(BARE, key=key(9)), replace(EXPIRY, idle=10.0))
        self.raw_shift(20)
        before = self.raw_rows()
        inside = backend.using(connection)
        row = load(inside, key(0))
        assert inside.touch(row, EXPIRY)
        assert inside.rewrite(replace(row, version=1), row.version)
        assert len(inside.scan(None, 10)) == len(inside.of_user("alice")) == 4
        assert inside.delete_of_user("alice", newest=3)
        with inside.locked(key(3)) as locked:
            row = load(locked, key(3))
            assert locked.update(replace(row, version=2), row.version, EXPIRY)
        with suppress(ZeroDivisionError), inside.locked(key(3)):
            raise ZeroDivisionError
        assert len(inside.delete_of_user("alice", keep=key(3))) == 2
        swept = inside.sweep(10, EXPIRY.bucket)
        assert [row.key for row in swept] in ([], [expired.key])
        add(inside, replace(BARE, key=key(5)))
        assert self.raw_rows() == before
        connection.rollback()
        assert self.raw_rows() == before

    def test_using_is_one_transaction_from_its_first_verb(
        self, backend: Backend, connection: Any
    ) -> None:
        """Writes are not committed one by one, however often the caller commits in between."""
        inside = backend.using(connection)
        for number in range(2):
            assert inside.load(key(number)) is None
            add(inside, replace(BARE, key=key(number)))
            connection.rollback()
            assert self.raw_rows() == []
            add(inside, replace(BARE, key=key(number)))
            connection.commit()
            assert backend.delete(key(number))

    def test_using_keeps_a_lock(self, backend: Backend, connection: Any) -> None:
        """A row that was locked on the caller's connection is so until the caller's commit."""
        row = add(backend, BARE)
        inside = backend.using(connection)
        with inside.locked(row.key) as locked:
            changed = replace(load(locked), version=1)
        started = threading.Event()

        def other() -> object:
            started.set()
            return backend.update(replace(row, version=2), row.version, EXPIRY)

        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(other)
            assert started.wait(10)
            with suppress(TimeoutError):
                waiting.result(0.1)
            assert not waiting.done()
            assert inside.update(changed, row.version, EXPIRY)
            connection.commit()
            assert waiting.result(10) is None
        assert load(backend).version == 1

    def test_using_after_its_end(self, backend: Backend, connection: Any) -> None:
        """Closing what works on a connection leaves that as it is, and ends only that use."""
        inside = backend.using(connection)
        add(inside, BARE)
        inside.close()
        inside.close()
        with pytest.raises(BackendError):
            inside.load(BARE.key)
        connection.commit()
        load(backend)
        again = backend.using(connection)
        load(again)
        connection.close()
        with pytest.raises(BackendError):
            again.load(BARE.key)
        load(backend)

    # -- sweep -----------------------------------------------------------------------------------

    def test_sweep(self, backend: Backend) -> None:
        """A sweep with a horizon of one bucket deletes all that has expired, and nothing else."""
        add(backend, BARE, replace(EXPIRY, idle=10.0))
        add(backend, FULL)
        assert backend.sweep(10, EXPIRY.bucket) == []
        self.raw_shift(20)
        expected = replace(PGSession(**self.raw()), data=b"")
        assert backend.sweep(10, EXPIRY.bucket) == [expected]
        assert [row["key"] for row in self.raw_rows()] == [FULL.key]
        assert backend.sweep(10, EXPIRY.bucket) == []
        add(backend, BARE)

    def test_sweep_in_batches(self, backend: Backend) -> None:
        """A sweep deletes no more than it was told to."""
        for number in range(5):
            add(backend, replace(BARE, key=key(number)))
        self.raw_shift(AGES)
        assert [len(backend.sweep(2, 0.0)) for _ in range(4)] == [2, 2, 1, 0]

    def test_concurrent_sweeps(self, backend: Backend) -> None:
        """Sweeps that meet count no row twice; at least one of them works."""
        for number in range(20):
            add(backend, replace(BARE, key=key(number)))
        self.raw_shift(AGES)
        batches = at_once(4, lambda _: backend.sweep(5, 0.0))
        assert sum(len(batch) for batch in batches) == 20 - len(self.raw_rows()) > 0


class TokenContract:
    """Hold a backend to the text of `pgstore.tokens.TokenBackend`.

    A subclass supplies three hooks, and a storage that is empty for each test.
    """

    def make_backend(self) -> TokenBackend:
        """Return a backend on the test's storage; this call does not apply the schema.

        All that one test makes share their rows. The tests close what they make.
        """
        raise NotImplementedError

    def raw_rows(self) -> list[tuple[bytes, bytes, datetime]]:
        """Read all rows without the backend: key, data and expiry, in the order of their keys."""
        raise NotImplementedError

    def raw_shift(self, seconds: float) -> None:
        """Make all rows so much older without the backend: every expiry moves back."""
        raise NotImplementedError

    @pytest.fixture
    def backend(self) -> Iterator[TokenBackend]:
        backend = self.make_backend()
        backend.apply_schema()
        yield backend
        backend.close()

    def test_table(self, backend: TokenBackend) -> None:
        """``table`` is the bare name."""
        assert check_table(backend.table) == backend.table

    def test_schema_applied_again(self, backend: TokenBackend) -> None:
        """Applying a schema that is there changes no row, and the check is content with it."""
        backend.commit(HASHES[0], b"data", HOUR)
        before = self.raw_rows()
        backend.apply_schema()
        backend.check_schema()
        assert self.raw_rows() == before

    def test_schema_applied_by_many(self) -> None:
        """Many may apply the schema to an empty storage at once."""
        backends = [self.make_backend() for _ in range(8)]
        at_once(8, lambda number: backends[number].apply_schema())
        backends[0].commit(HASHES[0], b"data", HOUR)
        for backend in backends:
            backend.close()

    def test_backends_share_rows(self, backend: TokenBackend) -> None:
        """What one backend committed is there for others; closing one ends only that."""
        other = self.make_backend()
        other.commit(HASHES[0], b"data", HOUR)
        other.close()
        other.close()
        assert backend.find(HASHES[0]) == b"data"

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")
    def test_forked_child(self, backend: TokenBackend) -> None:
        """The child of a fork uses the backend, and its parent goes on undisturbed."""
        backend.commit(HASHES[0], b"data", HOUR)

        def child() -> None:
            assert backend.find(HASHES[0]) == b"data"
            backend.commit(HASHES[1], b"other", HOUR)
            backend.close()

        assert in_fork(child) == 0
        assert backend.find(HASHES[0]) == b"data"

    @pytest.mark.parametrize("data", [b"", b"\x00'\"\\\xff", bytes(range(256)) * 4096])
    def test_data_comes_back(self, backend: TokenBackend, data: bytes) -> None:
        """Any bytes come back as they went in, a megabyte too, and are kept as they are."""
        backend.commit(HASHES[0], data, HOUR)
        assert backend.find(HASHES[0]) == data
        assert [(key, kept) for key, kept, _ in self.raw_rows()] == [(HASHES[0], data)]

    def test_nothing_there(self, backend: TokenBackend) -> None:
        """A key without data is no error."""
        assert backend.find(HASHES[0]) is None
        backend.delete(HASHES[0])
        assert self.raw_rows() == []

    def test_keys_differ_by_any_byte(self, backend: TokenBackend) -> None:
        """Each key has data of its own."""
        for key in HASHES:
            backend.commit(key, key[::-1], HOUR)
        assert [backend.find(key) for key in HASHES] == [key[::-1] for key in HASHES]

    def test_commit_replaces_data_and_expiry(self, backend: TokenBackend) -> None:
        """A second commit leaves nothing of the first; the expiry moves in both directions."""
        ends = []
        for left in (1000.5, 5000.25, 10.125):
            backend.commit(HASHES[0], b"%f" % left, timedelta(seconds=left))
            ((_, data, expires_on),) = self.raw_rows()
            assert data == backend.find(HASHES[0]) == b"%f" % left
            ends.append(expires_on - timedelta(seconds=left))
        # So much before its end each was committed, one after the other.
        assert ends == sorted(ends)
        assert ends[-1] - ends[0] < timedelta(seconds=60)

    def test_commit_until(self, backend: TokenBackend) -> None:
        """An expiry that is given as a time is kept exactly."""
        backend.commit(HASHES[0], b"data", HOUR)
        for until in (
            datetime(2099, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
            datetime(2098, 7, 1, 2, 30, 0, 1, tzinfo=timezone(timedelta(hours=5, minutes=45))),
        ):
            backend.commit(HASHES[0], b"data", until)
            ((_, _, expires_on),) = self.raw_rows()
            assert expires_on == until
        assert backend.find(HASHES[0]) == b"data"
        backend.commit(HASHES[0], b"data", datetime(2001, 1, 1, tzinfo=UTC))
        assert backend.find(HASHES[0]) is None

    def test_expired(self, backend: TokenBackend) -> None:
        """What has expired is not found, though it was not swept; a commit makes it anew."""
        backend.commit(HASHES[0], b"data", HOUR)
        self.raw_shift(3599)
        assert backend.find(HASHES[0]) == b"data"
        self.raw_shift(2)
        assert backend.find(HASHES[0]) is None
        assert backend.page(None, 10) == []
        assert len(self.raw_rows()) == 1
        backend.commit(HASHES[0], b"new", HOUR)
        assert backend.find(HASHES[0]) == b"new"

    def test_delete(self, backend: TokenBackend) -> None:
        """A delete takes its row and no other; a commit after it brings the token back."""
        for key in HASHES[:2]:
            backend.commit(key, b"data", HOUR)
        backend.delete(HASHES[0])
        backend.delete(HASHES[0])
        assert [key for key, _, _ in self.raw_rows()] == [HASHES[1]]
        backend.commit(HASHES[0], b"again", HOUR)
        assert backend.find(HASHES[0]) == b"again"

    def test_page(self, backend: TokenBackend) -> None:
        """Pages bring the live rows in the order of their keys' bytes, each once."""
        backend.commit(bytes(31) + b"\x05", b"expired", timedelta(seconds=1))
        self.raw_shift(2)
        for key in reversed(HASHES):
            backend.commit(key, key[:3], HOUR)
        found: list[tuple[bytes, bytes]] = []
        for size in (2, 2, 1, 0):
            page = backend.page(found[-1][0] if found else None, 2)
            assert len(page) == size
            found += page
        assert found == [(key, key[:3]) for key in HASHES]

    def test_concurrent_commits(self, backend: TokenBackend) -> None:
        """Many commits of one token all succeed, and one of them is what stays."""
        at_once(8, lambda number: backend.commit(HASHES[0], b"%d" % number, HOUR))
        assert backend.find(HASHES[0]) in [b"%d" % number for number in range(8)]
        assert len(self.raw_rows()) == 1

    def test_sweep(self, backend: TokenBackend) -> None:
        """A sweep deletes what has expired, so much at a time, and nothing else."""
        for key in HASHES[:4]:
            backend.commit(key, b"data", timedelta(seconds=10))
        backend.commit(HASHES[4], b"data", HOUR)
        assert backend.sweep(10) == []
        self.raw_shift(20)
        swept: list[bytes] = []
        for size in (3, 1, 0):
            batch = backend.sweep(3)
            assert len(batch) == size
            swept += batch
        assert sorted(swept) == HASHES[:4]
        assert [key for key, _, _ in self.raw_rows()] == [HASHES[4]]

    def test_concurrent_sweeps(self, backend: TokenBackend) -> None:
        """Sweeps that meet count no row twice; at least one of them works."""
        for number in range(20):
            backend.commit(number.to_bytes(32, "big"), b"data", HOUR)
        self.raw_shift(4000)
        batches = at_once(4, lambda _: backend.sweep(5))
        swept = [key for batch in batches for key in batch]
        assert len(swept) == len(set(swept)) == 20 - len(self.raw_rows()) > 0


HOUR: Final = timedelta(hours=1)
# In the order of their bytes.
HASHES: Final = [bytes(32), bytes(31) + b"\x01", b"\x7f" * 32, b"\x80" * 32, b"\xff" * 32]


def add(backend: Backend, row: PGSession, expiry: Expiry = EXPIRY) -> PGSession:
    """Insert a row under a key that is free."""
    stored = backend.insert(row, expiry)
    assert stored
    return stored


def load(backend: Backend, key: bytes = BARE.key) -> PGSession:
    """Load a row that is there."""
    loaded = backend.load(key)
    assert loaded
    return loaded.row


def key(number: int) -> bytes:
    """Make a key; keys sort as their numbers do."""
    return number.to_bytes(16, "big")


def since(later: datetime | None, earlier: datetime | None) -> timedelta:
    """Return the time between two times that are set."""
    assert later
    assert earlier
    return later - earlier


def check_expiry(row: PGSession, expiry: Expiry) -> None:
    """Assert that the row ends when it should, and is swept within a bucket of its end."""
    start = row.authenticated_on or row.created_on
    assert row.seen_on
    assert start
    end = row.seen_on + timedelta(seconds=expiry.idle)
    if expiry.lifetime is not None:
        end = min(end, start + timedelta(seconds=expiry.lifetime))
    assert row.expires_on == end
    assert timedelta(0) <= since(row.gc_after, end) <= timedelta(seconds=expiry.bucket)


def at_once(count: int, function: Callable[[int], T]) -> list[T]:
    """Call the function in so many threads that start together; return what they returned."""
    barrier = threading.Barrier(count)

    def call(number: int) -> T:
        barrier.wait(10)
        return function(number)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(call, range(count)))


def in_fork(function: Callable[[], object]) -> int:
    """Call the function in a forked child; return the child's status, 1 if the function raised."""
    with warnings.catch_warnings():
        # Python 3.12 warns of a fork beside threads: what comes of it is what is tested.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:  # noqa: BLE001 - the child must not go on with the parent's tests
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
