"""The contract of `pgstore.rows.Backend` as a test suite, for people who write a backend.

Needs pytest. Subclass `BackendContract` in a test module, with a name that pytest collects:

    class TestMyBackend(BackendContract):
        @pytest.fixture(autouse=True)
        def _database(self, tmp_path): ...        # fresh and empty for every test

        def make_backend(self): ...
        def raw_rows(self): ...
        def raw_shift(self, seconds): ...

For failures that show values, say ``pytest.register_assert_rewrite("pgstore.testing")`` in conftest.py.
"""

from __future__ import annotations

import itertools
import os
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import pytest

from .options import Expiry
from .rows import Backend, PGSession, check_table

__all__ = ["BackendContract"]

T = TypeVar("T")

HOUR: Final = timedelta(hours=1)
NOW: Final = timedelta(0)
EXPIRY: Final = Expiry(idle=3600.0, lifetime=None, bucket=600.0)
# Far enough to be past every expiry here, and every bucket.
AGES: Final = 30 * 24 * 3600.0

LONG_AGO: Final = datetime(2001, 1, 1, tzinfo=UTC)
TIMES: Final = dict.fromkeys(
    (
        "created_on",
        "modified_on",
        "seen_on",
        "expires_on",
        "gc_after",
        "authenticated_on",
        "renewed_on",
    )
)
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

VERBS: Final[dict[str, Callable[[Backend, PGSession], object]]] = {
    "load": lambda backend, row: backend.load(row.key),
    "update": lambda backend, row: backend.update(row, row.version, EXPIRY, login=True),
    "touch": lambda backend, row: backend.touch(row, EXPIRY),
    "delete": lambda backend, row: backend.delete(row.key),
    "rewrite": lambda backend, row: backend.rewrite(row, row.version),
    "scan": lambda backend, row: backend.scan(None, 10),
}
each_verb = pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS.keys())


class BackendContract:
    """Hold a backend to the text of `pgstore.rows.Backend`.

    A subclass supplies three hooks; each test gets a fresh storage from the subclass's own fixture.
    Times are compared among themselves, never with this process's clock.
    """

    def make_backend(self) -> Backend:
        """Return a backend on the test's storage, its schema not applied by this call.

        All that one test makes share their rows. The tests close what they make.
        """
        raise NotImplementedError

    def raw_rows(self) -> list[dict[str, Any]]:
        """Read all rows without the backend: the fields of `PGSession` by name, in its types."""
        raise NotImplementedError

    def raw_shift(self, seconds: float) -> None:
        """Make all rows so much older, without the backend: every time that is set moves back."""
        raise NotImplementedError

    @pytest.fixture
    def backend(self) -> Iterator[Backend]:
        backend = self.make_backend()
        backend.apply_schema()
        yield backend
        backend.close()

    def raw(self, key: bytes = BARE.key) -> dict[str, Any]:
        """Return the one row that is stored under the key, without the backend."""
        (row,) = [row for row in self.raw_rows() if row["key"] == key]
        return row

    # -- the table -------------------------------------------------------------------------------

    def test_has_a_table(self, backend: Backend) -> None:
        """``table`` is the bare name that data is sealed for."""
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
        assert add(backends[0], BARE)
        for backend in backends:
            backend.close()

    def test_backends_share_rows(self, backend: Backend) -> None:
        """What one backend wrote is there for another when the verb returns."""
        other = self.make_backend()
        row = add(backend, FULL)
        assert load(other, FULL.key) == row
        assert other.delete(FULL.key)
        assert backend.load(FULL.key) is None
        other.close()

    def test_closes_twice(self, backend: Backend) -> None:
        """Closing again does nothing, and ends no other backend's work."""
        add(backend, BARE)
        other = self.make_backend()
        load(other)
        other.close()
        other.close()
        assert load(backend)

    def test_works_in_a_forked_child(self, backend: Backend) -> None:
        """A child of a fork uses the backend, and its parent goes on undisturbed."""
        row = add(backend, BARE)

        def child() -> None:
            assert load(backend) == row
            assert backend.update(row, row.version, EXPIRY)
            backend.close()

        assert in_fork(child) == 0
        assert load(backend)
        assert backend.delete(row.key)

    # -- insert and load -------------------------------------------------------------------------

    @pytest.mark.parametrize("row", [BARE, FULL], ids=["bare", "full"])
    def test_every_column_comes_back(self, backend: Backend, row: PGSession) -> None:
        """What was inserted is stored and loaded exactly, set or not."""
        stored = add(backend, row)
        assert replace(stored, **TIMES) == row
        assert load(backend, row.key) == stored
        assert self.raw(row.key) == asdict(stored)

    def test_large_data(self, backend: Backend) -> None:
        """A megabyte of data comes back."""
        data = bytes(range(256)) * 4096
        add(backend, replace(BARE, data=data))
        assert load(backend).data == data == self.raw()["data"]

    def test_user_keys_differ_by_any_byte(self, backend: Backend) -> None:
        """User keys that a collation or padding could take for one are kept apart, as they came."""
        users = ["alice", "Alice", "alicé", "alice\u0301", "alice ", " alice", ""]
        for number, user in enumerate(users):
            add(backend, replace(BARE, key=key(number), user_key=user))
        assert [row.user_key for row in backend.scan(None, 99)] == users
        assert {row["key"]: row["user_key"] for row in self.raw_rows()} == {
            key(number): user for number, user in enumerate(users)
        }

    def test_stored_rows_are_the_backends_own(self, backend: Backend) -> None:
        """Changing a mapping that was given or handed out changes nothing that is stored."""
        meta = {"device": "phone"}
        given = add(backend, replace(BARE, meta=meta))
        for mapping in (meta, given.meta, load(backend).meta):
            mapping["device"] = "fridge"  # type: ignore[index]
        assert load(backend).meta == self.raw()["meta"] == {"device": "phone"}

    def test_insert_stamps_times(self, backend: Backend) -> None:
        """A new row's times are now by the database's clock; those that it came with count nothing."""
        stale: dict[str, Any] = dict.fromkeys(TIMES, LONG_AGO)
        row = add(backend, replace(BARE, **stale))
        assert row.created_on == row.modified_on == row.seen_on != LONG_AGO
        assert (row.authenticated_on, row.renewed_on) == (None, None)
        self.check_expiry(row, HOUR, EXPIRY)

    def test_insert_with_user_stamps_login(self, backend: Backend) -> None:
        """A row that is inserted with a user has been authenticated now."""
        row = add(backend, replace(BARE, user_key="alice"))
        assert row.authenticated_on == row.created_on

    def test_insert_with_lifetime(self, backend: Backend) -> None:
        """A new row ends at the earlier of idleness and lifetime."""
        for number, lifetime in enumerate((1800.5, 7200.0)):
            expiry = replace(EXPIRY, lifetime=lifetime)
            row = add(backend, replace(BARE, key=key(number)), expiry)
            self.check_expiry(row, timedelta(seconds=min(lifetime, 3600)), expiry)

    def test_insert_on_a_taken_key(self, backend: Backend) -> None:
        """An insert replaces no row, neither a live one nor one that has expired."""
        add(backend, BARE)
        other = replace(FULL, key=BARE.key)
        for shift in (0.0, AGES):
            self.raw_shift(shift)
            before = self.raw_rows()
            assert backend.insert(other, EXPIRY) is None
            assert self.raw_rows() == before

    def test_concurrent_inserts(self, backend: Backend) -> None:
        """Of many inserts of one key, one gets through."""
        rows = at_once(8, lambda number: backend.insert(replace(BARE, version=number), EXPIRY))
        (winner,) = [row for row in rows if row is not None]
        assert load(backend) == winner

    def test_load_tells_the_time(self, backend: Backend) -> None:
        """A load brings the database's time, aware and in UTC as the row's are."""
        add(backend, BARE)
        loaded = backend.load(BARE.key)
        assert loaded
        assert since(loaded.now, loaded.row.seen_on) >= NOW
        assert since(loaded.row.expires_on, loaded.now) <= HOUR
        for time in (loaded.now, loaded.row.created_on, loaded.row.gc_after):
            assert time
            assert time.utcoffset() == NOW

    # -- rows that are not there -----------------------------------------------------------------

    @each_verb
    def test_absent(self, backend: Backend, verb: Callable[[Backend, PGSession], object]) -> None:
        """An absent row is no error, and no verb makes one."""
        assert not verb(backend, FULL)
        assert self.raw_rows() == []

    @each_verb
    def test_expired(self, backend: Backend, verb: Callable[[Backend, PGSession], object]) -> None:
        """An expired row that was not swept yet is absent for every verb, which leaves it as it is."""
        add(backend, FULL)
        self.raw_shift(3601)
        before = self.raw(FULL.key)
        assert not verb(backend, PGSession(**before))
        assert self.raw(FULL.key) == before

    @each_verb
    def test_one_key_only(
        self, backend: Backend, verb: Callable[[Backend, PGSession], object]
    ) -> None:
        """No verb touches a row other than the one that it addresses."""
        add(backend, BARE)
        row = add(backend, FULL)
        before = self.raw()
        assert verb(backend, row)
        assert self.raw() == before

    # -- update ----------------------------------------------------------------------------------

    def test_update_stores_all_but_times(self, backend: Backend) -> None:
        """An update stores every column, and moves what a visit and a change move."""
        add(backend, BARE)
        self.raw_shift(60)
        before = self.raw()
        stale: dict[str, Any] = dict.fromkeys(TIMES, LONG_AGO)
        row = backend.update(replace(FULL, key=BARE.key, **stale), BARE.version, EXPIRY)
        assert row
        assert replace(row, **TIMES) == replace(FULL, key=BARE.key)
        assert row.created_on == before["created_on"]
        assert row.modified_on == row.seen_on
        assert since(row.seen_on, before["seen_on"]) >= timedelta(seconds=60)
        assert (row.authenticated_on, row.renewed_on) == (None, None)
        self.check_expiry(row, HOUR, EXPIRY)
        assert load(backend) == row
        assert self.raw() == asdict(row)

    def test_update_clears_columns(self, backend: Backend) -> None:
        """A column that is not set any more is not kept."""
        row = add(backend, FULL)
        bare = backend.update(replace(BARE, key=FULL.key), FULL.version, EXPIRY)
        assert bare
        assert replace(bare, **TIMES) == replace(BARE, key=FULL.key)
        assert bare.authenticated_on == row.authenticated_on
        assert self.raw(FULL.key) == asdict(bare)

    def test_update_of_another_version(self, backend: Backend) -> None:
        """An update that was not worked out from the stored version changes nothing."""
        add(backend, replace(BARE, version=7))
        before = self.raw()
        for version in (6, 8, 0, 2**63 - 1):
            assert backend.update(replace(BARE, version=version), version, EXPIRY) is None
        assert self.raw() == before

    @pytest.mark.parametrize("login", [False, True])
    @pytest.mark.parametrize("renew", [False, True])
    def test_update_stamps(self, backend: Backend, login: bool, renew: bool) -> None:
        """``login`` and ``renew`` stamp their own time with now, and nothing else does."""
        first = add(backend, replace(BARE, user_key="alice"))
        second = backend.update(first, first.version, EXPIRY, renew=True)
        assert second
        assert second.renewed_on == second.modified_on
        self.raw_shift(60)
        before = self.raw()
        third = backend.update(second, second.version, EXPIRY, login=login, renew=renew)
        assert third
        assert third.authenticated_on == (
            third.modified_on if login else before["authenticated_on"]
        )
        assert third.renewed_on == (third.modified_on if renew else before["renewed_on"])
        assert self.raw() == asdict(third)

    @pytest.mark.parametrize("verb", ["update", "touch"])
    @pytest.mark.parametrize("user", [None, "alice"])
    def test_lifetime(self, backend: Backend, verb: str, user: str | None) -> None:
        """A row ends its lifetime after its creation or login, however late it is visited."""
        add(backend, replace(BARE, user_key=user))
        for expiry in (replace(EXPIRY, lifetime=4000.0), replace(EXPIRY, lifetime=90000.0)):
            self.raw_shift(1000)
            row = load(backend)
            moved = (
                backend.update(row, row.version, expiry)
                if verb == "update"
                else backend.touch(row, expiry)
            )
            assert moved
            assert moved.created_on == row.created_on
            end = timedelta(seconds=3000) if expiry.lifetime == 4000.0 else HOUR
            expected = min(since(row.created_on, moved.seen_on) + timedelta(seconds=4000), HOUR)
            assert end
            self.check_expiry(moved, expected if expiry.lifetime == 4000.0 else HOUR, expiry)

    # -- helpers ---------------------------------------------------------------------------------

    def check_expiry(self, row: PGSession, live: timedelta, expiry: Expiry) -> None:
        """Assert that the row ends so long after its visit, and is swept within a bucket of it."""
        assert since(row.expires_on, row.seen_on) == live
        assert NOW <= since(row.gc_after, row.expires_on) <= timedelta(seconds=expiry.bucket)


def add(backend: Backend, row: PGSession, expiry: Expiry = EXPIRY) -> PGSession:
    stored = backend.insert(row, expiry)
    assert stored
    return stored
