"""Store.iterate: every live session, for maintenance jobs."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import pytest

from pgstore import ConfigurationError
from pgstore.ids import key_of
from support.stores import KEYS, Browser, Lab


def fill(lab: Lab, count: int, **settings: Any) -> list[str]:
    """Make sessions that know their number, and return their handles in the order of their keys."""
    store = lab.store(**settings)
    handles = []
    for number in range(count):
        with Browser().visit(store) as session:
            session["n"] = number
            session["list"] = [{"deep": number}]
            session.add_flash("unseen")
            session.meta["device"] = f"phone {number}"
            if number % 2:
                session.login(f"user {number}")
        handles.append(session.handle)
    return sorted(handles, key=lambda handle: key_of(handle) or b"")


@pytest.mark.parametrize("batch", [1, 3, 7, 500])
def test_every_live_session_is_yielded_once(lab: Lab, batch: int) -> None:
    """With its values decoded, its user, its times and its metadata; expired ones are not."""
    fill(lab, 2)
    lab.pass_time(40 * 24 * 3600)
    handles = fill(lab, 7)
    store = lab.store()
    found = list(store.iterate(batch=batch))
    assert [one.handle for one in found] == handles
    for one in found:
        n = one.values["n"]
        assert one.values == {"n": n, "list": [{"deep": n}]}
        assert one.name == "sid"
        assert one.user_key == (f"user {n}" if n % 2 else None)
        assert one.meta == {"device": f"phone {n}"}
        assert one.created_on <= one.seen_on < one.expires_on
        assert (one.authenticated_on is not None) == bool(n % 2)
    assert sorted(one.values["n"] for one in found) == list(range(7))


def test_what_is_yielded_is_read_only(lab: Lab) -> None:
    """It cannot be assigned to, holds no secret, and shows neither user nor values in a repr."""
    fill(lab, 2)
    for one in lab.store().iterate():
        with pytest.raises(dataclasses.FrozenInstanceError):
            one.values = {}  # type: ignore[misc]
        assert not {"secret_hash", "data", "version"} & {f.name for f in dataclasses.fields(one)}
        assert "deep" not in repr(one)
        assert "user 1" not in repr(one)


def test_sessions_come_and_go_meanwhile(lab: Lab) -> None:
    """Nothing is held open between two sessions: any of them may be deleted, and others made."""
    handles = fill(lab, 6)
    store = lab.store()
    seen = []
    for one in store.iterate(batch=2):
        seen.append(one.handle)
        # The second one is gone when it is yielded: it was read together with the first.
        assert store.revoke(one.handle) == (one.handle != handles[1])
        if len(seen) == 1:
            assert store.revoke(handles[1])
            assert store.revoke(handles[4])
            fill(lab, 2)
    assert set(handles) - set(seen) == {handles[4]}
    assert len(seen) == len(set(seen)) in range(5, 8)


def test_sessions_that_cannot_be_read_are_passed_over(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    """One that was sealed with a key that nobody has is logged by its handle, and left alone."""
    (lost,) = fill(lab, 1)
    store = lab.store(b"another hash key that is 32 long", None)
    with Browser().visit(store) as session:
        session["n"] = 1
    with caplog.at_level(logging.WARNING, "pgstore"):
        assert [one.handle for one in store.iterate()] == [session.handle]
    assert f"session {lost} was passed over" in caplog.text
    assert len(lab.rows()) == 2


def test_a_value_of_an_unknown_type(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    """A session with a value that this process cannot decode is passed over, too."""
    from pgstore import TypedSerializer

    class Point:
        pass

    serializer = TypedSerializer()
    serializer.register(Point, "point", dump=lambda point: b"", load=lambda data: Point())
    with Browser().visit(lab.store(serializer=serializer)) as session:
        session["point"] = Point()
    assert list(lab.store(*KEYS).iterate()) == []
    assert "'point'" in caplog.text


@pytest.mark.parametrize("batch", [0, -1, 1.5, True, None])
def test_batches_that_do_not_fit(lab: Lab, batch: Any) -> None:
    """They are refused by the call, not by the first session."""
    with pytest.raises(ConfigurationError, match="batch must be 1 or more rows"):
        lab.store().iterate(batch=batch)
