"""A row that a backend returned behaves like any other value, whatever it has decoded so far."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from typing import Any

import pytest

from pgstore import PGSession, Store
from support.stores import Browser, Lab


@pytest.fixture
def load(lab: Lab, browser: Browser) -> Callable[[], PGSession]:
    """Return what loads a row anew."""
    store: Store = lab.store()
    with browser.visit(store) as session:
        session["x"] = 1
        session.meta["device"] = "phone"
        session.login("alice")
    key = session._id.selector

    def load() -> PGSession:
        loaded = store.backend.load(key)
        assert loaded
        return loaded.row

    return load


def columns(row: PGSession) -> dict[str, Any]:
    return {field.name: getattr(row, field.name) for field in fields(PGSession)}


@pytest.mark.parametrize(
    "same",
    [
        copy.copy,
        copy.deepcopy,
        lambda row: pickle.loads(pickle.dumps(row)),
        lambda row: PGSession(**asdict(row)),
        lambda row: row.but(),
        replace,
    ],
    ids=["copy", "deepcopy", "pickle", "asdict", "but", "replace"],
)
def test_a_copy_has_every_column(
    load: Callable[[], PGSession], same: Callable[[PGSession], PGSession]
) -> None:
    """A copy is equal, and is so before and after its columns have been looked at."""
    row = load()
    twin = same(row)
    assert twin == load()
    assert columns(twin) == columns(row) == columns(load())
    assert same(row) == twin


def test_any_column_makes_rows_differ(load: Callable[[], PGSession]) -> None:
    """Rows are equal when all of their columns are; a changed one leaves the others as they are."""
    for field in fields(PGSession):
        row = load()
        changed = row.but(**{field.name: "another"})
        assert changed != row
        assert columns(changed) == columns(load()) | {field.name: "another"}
        assert row == load()


def test_a_deep_copy_shares_nothing(load: Callable[[], PGSession]) -> None:
    """Not even the metadata, which is a dict."""
    row = load()
    twin = copy.deepcopy(row)
    assert isinstance(twin.meta, dict)
    twin.meta["device"] = "tablet"
    assert row.meta == {"device": "phone"}
