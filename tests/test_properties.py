"""Properties over all inputs: exact round trips through every backend, models of a session's life
and of requests that overlap.
"""

from __future__ import annotations

from copy import copy, deepcopy
from dataclasses import dataclass
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
from markupsafe import Markup

from pgstore import BackendError, SessionGone, Store, TypedSerializer, merge
from pgstore.session import Session
from support.stores import Browser, Lab, MemoryLab, Visit
from support.strategies import exactly_equal, hashable_values, portrait, session_values

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


@dataclass(unsafe_hash=True)
class Point:
    """A type of the application's own."""

    x: int


@dataclass
class Request:
    """A request under way, and the values that it was given, or has last saved."""

    visit: Visit
    base: dict[str, Any]


# Equal values of different types, of which every use is the same object; and some that can change
# in place, of which each use is another. None may be taken for an absent value.
CONSTANTS = [False, 0, 0.0, -0.0, "", b"", True, 1, 1.0, float("nan"), "a", b"a", Markup("a")]
MAKERS = [list, lambda: [1, [2]], lambda: (1,), dict, lambda: {1: {"x"}}, lambda: Point(1)]
VALUES = st.none() | st.sampled_from(CONSTANTS) | st.sampled_from(MAKERS).map(lambda make: make())
NAMES = st.sampled_from(["a", "b"])
LOST = st.sampled_from(["nothing", "answer", "statement"])


class Races(RuleBasedStateMachine):
    """Requests of one session that overlap, each saved as often as it likes, beside a plain dict.

    What a save applies to what is stored is what the request has changed since it was loaded, or
    last saved; hits are counted. The answer to a write may be lost, done or not.
    """

    lab: Lab
    requests = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        serializer = TypedSerializer()
        serializer.register(Point, "point", dump=lambda point: point.x, load=Point)
        self.store: Store = self.lab.store(
            merge={"hits": merge.add}, serializer=serializer, max_length=0, pool_size=1
        )
        self.browser = Browser()
        with self.browser.visit(self.store) as session:
            session.login("alice")  # an empty session of hers is not deleted
        self.stored: dict[str, Any] = {}

    @rule(target=requests)
    def begin(self) -> Request:
        return Request(Visit(copy(self.browser), self.store), deepcopy(self.stored))

    @rule(request=requests, values=st.dictionaries(NAMES, VALUES, min_size=1), lost=LOST)
    def put_and_save(self, request: Request, values: dict[str, Any], lost: str) -> None:
        request.visit.session.values.update(deepcopy(values))
        self.save(request, lost)

    @rule(request=requests, key=NAMES)
    def put_back(self, request: Request, key: str) -> None:
        if key in request.base:
            request.visit.session[key] = deepcopy(request.base[key])

    @rule(request=requests, key=NAMES, number=NUMBERS)
    def change_in_place(self, request: Request, key: str, number: int) -> None:
        match request.visit.session.get(key):
            case list() as items:
                items.append(number)
            case dict() as mapping:
                mapping[number] = number
            case Point() as point:
                point.x = number

    @rule(request=requests, key=NAMES)
    def remove(self, request: Request, key: str) -> None:
        request.visit.session.pop(key, None)

    @rule(request=requests, number=NUMBERS)
    def count(self, request: Request, number: int) -> None:
        request.visit.session["hits"] = request.visit.session.get("hits", 0) + number

    @rule(request=requests)
    def clear(self, request: Request) -> None:
        request.visit.session.clear()

    @rule(request=requests, place=NAMES)
    def change_metadata(self, request: Request, place: str) -> None:
        request.visit.session.meta["place"] = place

    @rule(request=requests, lost=LOST)
    def save(self, request: Request, lost: str) -> None:
        session, base = request.visit.session, request.base
        ours, stored = deepcopy(session.values), deepcopy(self.stored)
        before, after = exact(base), exact(ours)
        changed = {key for key in base | ours if before.get(key) != after.get(key)}
        for key in changed:
            if key not in ours:
                stored.pop(key, None)
            elif key == "hits":
                stored[key] = stored.get(key, 0) + ours[key] - base.get(key, 0)
            else:
                stored[key] = deepcopy(ours[key])
        version = version_of(session)
        self.lose(lost)
        try:
            request.visit.save()
        except BackendError as error:
            # Another request's write may have come after this one, and a hit must not count twice.
            newest = version_of(Visit(self.browser, self.store).session)
            if not (error.outcome_unknown and "hits" in changed and newest != version):
                raise
            return
        finally:
            vars(self.store.backend).pop("update", None)
        self.stored = stored
        if changed or exact(session.values) != after:
            assert exact(session.values) == exact(stored)
            request.base = deepcopy(stored)

    @rule()
    def pass_time(self) -> None:
        """Make a visit due to be stamped."""
        self.lab.pass_time(400)

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        assert exact(Visit(self.browser, self.store).session.values) == exact(self.stored)

    def lose(self, what: str) -> None:
        """Lose the next update, or the answer to it."""
        backend = self.store.backend
        update = backend.update

        def lossy(*args: Any, **more: Any) -> None:
            del vars(backend)["update"]
            if what == "answer":
                update(*args, **more)
            raise BackendError("lost", outcome_unknown=True)

        if what != "nothing":
            vars(backend)["update"] = lossy

    def teardown(self) -> None:
        for row in self.store.backend.scan(None, 100):
            self.store.backend.delete(row.key)
        self.store.close()


def version_of(session: Session) -> int:
    assert session._base is not None
    return session._base.row.version


def exact(values: dict[str, Any]) -> dict[str, Any]:
    """Return what is compared: every detail, but the order of the keys."""
    return {key: portrait(value) for key, value in values.items()}


@pytest.mark.filterwarnings("ignore::hypothesis.errors.NonInteractiveExampleWarning")
def test_overlapping_requests(lab: Lab) -> None:
    """Whatever overlapping requests change and save, in any order, each change counts once."""
    machine = type("Races", (Races,), {"lab": lab})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=100,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
