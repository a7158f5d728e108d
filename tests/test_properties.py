"""Properties over all inputs: exact round trips through every backend, and a model of a session's
life.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from pgstore import SessionGone, Store
from support.stores import Browser, Lab, MemoryLab, Visit
from support.strategies import exactly_equal, hashable_values, session_values

# The lab is made once for all examples of a test: each example has a browser of its own.
shared = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=150,
)


@pytest.fixture
def store(lab: Lab) -> Store:
    return lab.store(max_length=0)


@shared
@given(values=st.dictionaries(hashable_values(), session_values(), max_size=4))
def test_values_come_back_exactly(store: Store, values: dict[Any, Any]) -> None:
    """Whatever is allowed comes back exactly, through serializer, sealer and backend."""
    browser = Browser()
    with browser.visit(store) as session:
        session.values.update(values)
    visit = Visit(browser, store)
    assert exactly_equal(visit.session.values, values)
    # What was loaded and not changed is not written again.
    if values:
        before = store.backend.load(visit.session._id.selector)
        visit.save()
        after = store.backend.load(visit.session._id.selector)
        assert before and after and after.row == before.row


@shared
@given(messages=st.lists(session_values(), max_size=5))
def test_flashes_come_back_exactly(messages: list[Any]) -> None:
    """Flash messages come back with their exact types, in their order."""
    store, browser = MemoryLab().store(max_length=0), Browser()
    with browser.visit(store) as session:
        for message in messages:
            session.add_flash(message)
    assert exactly_equal(Visit(browser, store).session.flashes(), messages)


KEYS = st.sampled_from(["a", "b", "c"])
NUMBERS = st.integers(0, 5)
IDLE = 1000
# No sum of these that one example reaches is IDLE itself.
STEPS = st.sampled_from([7, 300, IDLE + 7])


class Life(RuleBasedStateMachine):
    """Requests of several browsers that get, change, save, delete and expire, beside a plain dict.

    A slow request is one that has loaded its session and is saved later, by whichever rule comes
    first. What the model knows of a session is its values, or None once it has ended.
    """

    lab: Lab
    requests = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        self.store: Store = self.lab.store(idle_timeout=IDLE, touch_interval=0, pool_size=1)
        self.browser = Browser()
        self.model: dict[str, int] | None = None
        self.handle: str | None = None
        self.idle = 0
        self.slow = 0

    @rule(key=KEYS, number=NUMBERS)
    def change(self, key: str, number: int) -> None:
        with self.browser.visit(self.store) as session:
            self.look(session)
            session[key] = number
        self.model = {**(self.model or {}), key: number}
        self.handle, self.idle = session.handle, 0

    @rule(key=KEYS)
    def remove(self, key: str) -> None:
        with self.browser.visit(self.store) as session:
            self.look(session)
            session.pop(key, None)
        self.idle = 0
        if self.model is not None:
            self.model.pop(key, None)
            self.model = self.model or None

    @rule()
    def read(self) -> None:
        with self.browser.visit(self.store) as session:
            self.look(session)
        self.idle = 0

    @rule()
    def regenerate(self) -> None:
        before = copy(self.browser)
        with self.browser.visit(self.store) as session:
            self.look(session)
            session.regenerate()
        self.idle = 0
        if self.model is not None:
            assert Visit(before, self.store).session.is_new

    @rule()
    def delete(self) -> None:
        with self.browser.visit(self.store) as session:
            session.delete()
        self.model = None
        assert "sid" not in self.browser.cookies

    @rule(seconds=STEPS)
    def pass_time(self, seconds: int) -> None:
        self.lab.pass_time(seconds)
        self.idle += seconds
        if self.idle > IDLE:
            self.model = None

    @rule()
    def sweep(self) -> None:
        self.store.delete_expired()

    @rule(target=requests, key=KEYS)
    def begin_slow(self, key: str) -> Any:
        # A number that no other request sets: what is set to the value that it has is no change.
        self.slow += 1
        number = 100 + self.slow
        visit = Visit(copy(self.browser), self.store)
        if visit.session.is_new:
            return multiple()
        visit.session[key] = number
        return visit, visit.session.handle, key, number

    @rule(request=consumes(requests))
    def end_slow(self, request: Any) -> None:
        visit, handle, key, number = request
        try:
            visit.save()
        except SessionGone:
            assert "Set-Cookie" not in visit.headers
            return
        # Saved: then it was the live session, and nothing else of it changed.
        assert self.model is not None
        assert handle == self.handle
        self.model[key] = number
        self.idle = 0

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        self.look(Visit(self.browser, self.store).session)

    def look(self, session: Any) -> None:
        assert session.values == (self.model or {})
        assert session.is_new is (self.model is None)

    def teardown(self) -> None:
        for row in self.store.backend.scan(None, 100):
            self.store.backend.delete(row.key)
        self.store.close()


@pytest.mark.filterwarnings("ignore::hypothesis.errors.NonInteractiveExampleWarning")
def test_a_sessions_life(lab: Lab) -> None:
    """Get, change, save, delete and expire, in any order, agree with a plain dict."""
    machine = type("Life", (Life,), {"lab": lab})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
