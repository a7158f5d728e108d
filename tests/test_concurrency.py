"""Parallel requests on one session: nothing lost, nothing revived. Races are staged."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import pytest

from pgstore import BackendError, ConflictError, SessionGone, Store, TypedSerializer, merge
from pgstore.backends.memory import MemoryBackend
from pgstore.errors import UnknownTypeError
from support.stores import KEYS, Browser, Lab, Visit


@pytest.fixture
def known(lab: Lab, browser: Browser) -> Browser:
    """Return a browser that has a session with n = 10."""
    with browser.visit(lab.store()) as session:
        session["n"] = 10
    return browser


def values(lab: Lab, browser: Browser) -> dict[Any, Any]:
    return Visit(browser, lab.store()).session.values


def test_different_keys_both_win(lab: Lab, known: Browser) -> None:
    """Two requests that set different keys lose neither."""
    store = lab.store()
    first, second = Visit(known, store), Visit(known, store)
    first.session["a"] = 1
    second.session["b"] = 2
    first.save()
    second.save()
    assert second.session.values == {"n": 10, "a": 1, "b": 2}
    assert values(lab, known) == {"n": 10, "a": 1, "b": 2}


def test_setting_and_deleting(lab: Lab, known: Browser) -> None:
    """A deleted key stays deleted beside another request's change, whoever comes first."""
    store = lab.store()
    for order in (1, -1):
        with known.visit(store) as session:
            session["gone"] = 1
        first, second = visits = (Visit(known, store), Visit(known, store))
        del first.session["gone"]
        second.session["kept"] = order
        for visit in visits[::order]:
            visit.save()
        assert values(lab, known) == {"n": 10, "kept": order}


def test_the_later_one_wins_for_the_same_key(lab: Lab, known: Browser) -> None:
    """Without a merge function the last save of a key counts, and every other key survives."""
    store = lab.store()
    first, second = Visit(known, store), Visit(known, store)
    first.session["n"], first.session["a"] = 1, 1
    second.session["n"] = 2
    first.save()
    second.save()
    assert values(lab, known) == {"n": 2, "a": 1}


def test_changes_in_place_count(lab: Lab, known: Browser) -> None:
    """A change deep inside a nested list is a change of its key, and of no other."""
    store = lab.store()
    with known.visit(store) as session:
        session["a"], session["b"] = [{"deep": [1]}], [{"deep": [1]}]
    first, second = Visit(known, store), Visit(known, store)
    first.session["a"][0]["deep"].append(2)
    second.session["b"][0]["deep"].append(3)
    first.save()
    second.save()
    assert values(lab, known) == {"n": 10, "a": [{"deep": [1, 2]}], "b": [{"deep": [1, 3]}]}


def test_none_is_a_value(lab: Lab, known: Browser) -> None:
    """A key that is set to None is stored so, on top of another request's change and of a save of
    its own, too.
    """
    store = lab.store()
    first, second = Visit(known, store), Visit(known, store)
    first.session["a"] = 1
    second.session["n"] = None
    first.save()
    second.save()
    assert values(lab, known) == {"n": None, "a": 1}
    second.session["n"] = 11
    second.save()
    second.session["n"] = None
    second.save()
    assert values(lab, known) == {"n": None, "a": 1}


def test_a_handlers_objects_stay_its_own(lab: Lab, known: Browser) -> None:
    """After a save that merged, objects that the handler still holds can be changed and saved
    again.
    """
    store = lab.store()
    with known.visit(store) as session:
        session["cart"] = ["tea"]
    slow = Visit(known, store)
    cart = slow.session["cart"]
    cart.append("milk")
    with known.visit(store) as session:
        session["other"] = 1
    slow.save()
    cart.append("sugar")
    slow.save()
    assert values(lab, known) == {"n": 10, "cart": ["tea", "milk", "sugar"], "other": 1}


def test_merge_functions(lab: Lab, known: Browser) -> None:
    """Keys with a merge function lose nothing of either request."""
    store = lab.store(merge={"n": merge.add, "log": merge.append, "tags": merge.union})
    first, second = Visit(known, store), Visit(known, store)
    for visit, name in ((first, "a"), (second, "b")):
        visit.session["n"] += 5
        visit.session["log"] = [name]
        visit.session["tags"] = {name}
    first.save()
    second.save()
    assert values(lab, known) == {"n": 20, "log": ["a", "b"], "tags": {"a", "b"}}


def test_a_merge_function_of_ones_own(lab: Lab, known: Browser) -> None:
    """It is called with (base, theirs, ours), MISSING for an absent key, and may remove the key."""
    calls = []

    def keep(base: Any, theirs: Any, ours: Any) -> Any:
        calls.append((base, theirs, ours))
        return merge.MISSING

    store = lab.store(merge={"n": keep, "new": keep})
    first, second = Visit(known, store), Visit(known, store)
    first.session["n"], first.session["new"] = 11, "theirs"
    second.session["n"], second.session["new"], second.session["x"] = 12, "ours", 1
    first.save()
    second.save()
    assert sorted(calls, key=str) == [(10, 11, 12), (merge.MISSING, "theirs", "ours")]
    assert values(lab, known) == {"x": 1}


def test_a_merge_function_is_asked_only_when_both_changed(lab: Lab, known: Browser) -> None:
    """A key that only one of two requests changed needs no merging."""

    def never(base: Any, theirs: Any, ours: Any) -> Any:
        raise AssertionError("nothing to merge")

    store = lab.store(merge={"n": never, "a": never})
    first, second = Visit(known, store), Visit(known, store)
    first.session["a"] = 1
    second.session["n"] = 11
    first.save()
    second.save()
    assert values(lab, known) == {"n": 11, "a": 1}


def test_flashes_merge_by_themselves(lab: Lab, known: Browser) -> None:
    """What one request consumed is gone, what both added is there, equal messages included."""
    store = lab.store()
    with known.visit(store) as session:
        session.add_flash("saved")
    first, second = Visit(known, store), Visit(known, store)
    assert first.session.flashes() == ["saved"]
    first.session.add_flash("saved")
    second.session.add_flash("saved")
    first.save()
    second.save()
    assert Visit(known, store).session.flashes() == ["saved", "saved"]


def test_flashes_keep_their_order(lab: Lab, known: Browser) -> None:
    """What was stored first is shown first, whichever request lost the race."""
    store = lab.store()
    first, second = Visit(known, store), Visit(known, store)
    first.session.add_flash("first")
    second.session.add_flash("second")
    first.save()
    second.save()
    assert Visit(known, store).session.flashes() == ["first", "second"]


def test_metadata_merges(lab: Lab, known: Browser) -> None:
    """Metadata merges key by key, too."""
    store = lab.store()
    first, second = Visit(known, store), Visit(known, store)
    first.session.meta["a"] = "1"
    second.session.meta["b"] = "2"
    first.save()
    second.save()
    assert Visit(known, store).session.meta == {"a": "1", "b": "2"}


def test_max_age_merges(lab: Lab, known: Browser) -> None:
    """One request's max_age is not undone by another's change of a value."""
    store = lab.store()
    first, second = Visit(known, store), Visit(known, store)
    first.session.options.max_age = 7200
    second.session.options.path = "/"
    second.session["x"] = 1
    first.save()
    second.save()
    assert lab.row()["max_age"] == 7200


def test_an_emptied_session_that_another_request_filled(lab: Lab, known: Browser) -> None:
    """A session is deleted for being empty only if nobody else has put something in."""
    store = lab.store()
    first, second = Visit(known, store), Visit(known, store)
    first.session["x"] = 1
    second.session.clear()
    first.save()
    second.save()
    assert values(lab, known) == {"x": 1}


def test_logout_against_a_slow_request(lab: Lab, known: Browser) -> None:
    """In both orders the session stays deleted, and a login meanwhile is not disturbed."""
    store = lab.store()
    slow = Visit(copy(known), store)
    with known.visit(store) as session:
        session.logout()
    with known.visit(store) as session:
        session.login("alice")
    slow.session["n"] = 11
    for _ in range(2):
        with pytest.raises(SessionGone):
            slow.save()
    assert "Set-Cookie" not in slow.headers
    assert Visit(known, store).session.user_key == "alice"
    assert len(lab.rows()) == 1

    slow = Visit(copy(known), store)
    slow.session["n"] = 11
    slow.save()
    with known.visit(store) as session:
        session.logout()
    assert lab.rows() == []


def test_an_anonymous_request_does_not_write_into_a_login(lab: Lab, known: Browser) -> None:
    """What a request with the cookie from before the login wants to save is not stored."""
    store = lab.store()
    slow = Visit(copy(known), store)
    with known.visit(store) as session:
        session.login("alice")
    slow.session["planted"] = 1
    with pytest.raises(SessionGone):
        slow.save()
    slow = Visit(copy(known), store)
    assert values(lab, known) == {"n": 10}


def test_an_anonymous_request_does_not_end_a_login(lab: Lab, known: Browser) -> None:
    """A delete by a request from before the login ends nothing and clears no cookie."""
    store = lab.store()
    slow = Visit(copy(known), store)
    with known.visit(store) as session:
        session.login("alice")
    slow.session.delete()
    with pytest.raises(SessionGone):
        slow.save()
    assert "Set-Cookie" not in slow.headers
    # Not by saving once more, either.
    assert "Set-Cookie" not in slow.save()
    assert Visit(known, store).session.user_key == "alice"


def test_login_takes_nothing_of_a_slow_request_of_another_user(lab: Lab, browser: Browser) -> None:
    """When bob's session becomes alice's, what bob's slow request stored meanwhile is not hers."""
    store = lab.store()
    with browser.visit(store) as session:
        session.login("bob")
        session["bobs"] = 1
    login, slow = Visit(browser, store), Visit(copy(browser), store)
    login.session.login("alice")
    login.session["mine"] = 1
    slow.session["bobs too"] = 2
    slow.session.meta["bobs"] = "device"
    slow.save()
    login.save()
    session = Visit(browser, store).session
    assert (session.user_key, session.values, session.meta) == ("alice", {"mine": 1}, {})


def test_two_logins_at_once(lab: Lab, known: Browser) -> None:
    """One of two requests that regenerate wins; the other gets SessionGone and sends no cookie."""
    store = lab.store()
    first, second = Visit(copy(known), store), Visit(copy(known), store)
    first.session.login("alice")
    second.session.login("bob")
    first.save()
    with pytest.raises(SessionGone):
        second.save()
    assert "Set-Cookie" not in second.headers
    assert Visit(first.browser, store).session.user_key == "alice"


def test_regenerate_survives_a_change_by_another_request(lab: Lab, known: Browser) -> None:
    """A regenerate that loses the race for the row's version merges and tries again."""
    store = lab.store()
    login, other = Visit(known, store), Visit(copy(known), store)
    login.session.login("alice")
    other.session["x"] = 1
    other.save()
    login.save()
    session = Visit(known, store).session
    assert (session.user_key, session.values) == ("alice", {"n": 10, "x": 1})
    assert Visit(other.browser, store).session.is_new


def test_two_first_requests(lab: Lab, browser: Browser) -> None:
    """Two first requests of one browser make two valid sessions, of which it keeps one."""
    store = lab.store()
    first, second = Visit(browser, store), Visit(browser, store)
    first.session["x"], second.session["x"] = 1, 2
    first.save()
    second.save()
    assert len(lab.rows()) == 2
    assert values(lab, browser) == {"x": 2}


def test_eight_threads_count_exactly(lab: Lab, known: Browser) -> None:
    """A counter with merge.add loses no increment; every thread's own key is there at the end."""
    store = lab.store(merge={"n": merge.add})
    barrier = threading.Barrier(8)
    failures: list[BaseException] = []

    def count(number: int) -> None:
        try:
            barrier.wait(10)
            for turn in range(25):
                with copy(known).visit(store) as session:
                    session["n"] += 1
                    session[f"thread {number}"] = turn
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=count, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert values(lab, known) == {"n": 210, **{f"thread {number}": 24 for number in range(8)}}


# -- lost races, staged


class Racing(MemoryBackend):
    """Lets another writer be faster: before the first ``losses`` updates, ``rival`` runs."""

    def __init__(self) -> None:
        super().__init__()
        self.losses = 0
        self.rival: Any = None
        self.locks = 0
        self.loads = 0

    def load(self, key: bytes) -> Any:
        self.loads += 1
        return super().load(key)

    def update(self, *args: Any, **kwargs: Any) -> Any:
        if self.losses > 0:
            self.losses -= 1
            rival, self.rival = self.rival, None
            rival()
            self.rival = rival
        return super().update(*args, **kwargs)

    @contextmanager
    def locked(self, key: bytes) -> Iterator[Racing]:
        self.locks += 1
        losses, self.losses = self.losses, 0  # nobody is faster than the holder of the lock
        with super().locked(key):
            yield self
        self.losses = losses


@pytest.mark.parametrize(("losses", "locks"), [(0, 0), (1, 0), (2, 0), (3, 1), (100, 1)])
def test_every_writer_gets_through(losses: int, locks: int) -> None:
    """A lost race costs one more load and update; after several the row's lock ends it."""
    backend = Racing()
    store, browser = Store(backend, *KEYS, merge={"n": merge.add}), Browser()
    with browser.visit(store) as session:
        session["n"] = 0
    rivals = []

    def rival() -> None:
        losses, backend.losses = backend.losses, 0
        with copy(browser).visit(store) as session:
            session["n"] += 1
        rivals.append(session)
        backend.losses = losses

    visit = Visit(browser, store)
    visit.session["n"] += 1
    backend.losses, backend.rival, backend.loads = losses, rival, 0
    visit.save()
    backend.losses = 0
    assert backend.locks == locks
    assert Visit(browser, store).session["n"] == 1 + len(rivals)


def test_conflict_error_when_the_deadline_passes() -> None:
    """Other writers being faster until the deadline is a ConflictError, with nothing written."""
    backend = Racing()
    store, browser = Store(backend, *KEYS, save_deadline=0), Browser()
    with browser.visit(store) as session:
        session["n"] = 0
    visit = Visit(browser, store)
    visit.session["ours"] = 1

    def rival() -> None:
        losses, backend.losses = backend.losses, 0
        with copy(browser).visit(store) as session:
            session["n"] += 1
        backend.losses = losses

    backend.losses, backend.rival = 100, rival
    with pytest.raises(ConflictError):
        visit.save()
    backend.losses = 0
    assert Visit(browser, store).session.values == {"n": 1}


# -- lost answers


class Lossy(MemoryBackend):
    """Loses the next write, or the answer to it, and then runs ``meanwhile``."""

    def __init__(self) -> None:
        super().__init__()
        self.lose: str | None = None
        self.meanwhile: Any = None

    def _lossy(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        lose, self.lose = self.lose, None
        result = method(*args, **kwargs) if lose in (None, "answer") else None
        if lose is None:
            return result
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile:
            meanwhile()
        raise BackendError("connection lost", outcome_unknown=True)

    def insert(self, *args: Any, **kwargs: Any) -> Any:
        return self._lossy(super().insert, *args, **kwargs)

    def update(self, *args: Any, **kwargs: Any) -> Any:
        return self._lossy(super().update, *args, **kwargs)

    def touch(self, *args: Any, **kwargs: Any) -> Any:
        return self._lossy(super().touch, *args, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> Any:
        return self._lossy(super().delete, *args, **kwargs)


@pytest.fixture
def lossy() -> Lossy:
    return Lossy()


@pytest.fixture
def store(lossy: Lossy) -> Store:
    return Store(lossy, *KEYS, merge={"hits": merge.add})


LOST = pytest.mark.parametrize("lost", ["answer", "request"])


@LOST
def test_a_first_insert_without_an_answer(lossy: Lossy, store: Store, lost: str) -> None:
    """It is stored once, whether the insert or only its answer was lost."""
    browser = Browser()
    visit = Visit(browser, store)
    visit.session["x"] = 1
    lossy.lose = lost
    visit.save()
    assert len(lossy.scan(None, 9)) == 1
    assert Visit(browser, store).session.values == {"x": 1}


@LOST
def test_an_update_without_an_answer(lossy: Lossy, store: Store, lost: str) -> None:
    """It is stored once: a counter is not counted twice."""
    browser = Browser()
    with browser.visit(store) as session:
        session["hits"] = 1
    visit = Visit(browser, store)
    visit.session["hits"] += 1
    lossy.lose = lost
    visit.save()
    assert Visit(browser, store).session.values == {"hits": 2}


@LOST
def test_an_update_without_an_answer_and_another_writer(
    lossy: Lossy, store: Store, lost: str
) -> None:
    """Superseded: plain keys are applied again; a counter is not counted twice."""
    browser = Browser()
    with browser.visit(store) as session:
        session["hits"], session["x"] = 1, 1

    def other() -> None:
        with copy(browser).visit(store) as session:
            session["other"] = 1

    plain = Visit(browser, store)
    plain.session["x"] = 2
    lossy.lose, lossy.meanwhile = lost, other
    plain.save()
    assert Visit(browser, store).session.values == {"hits": 1, "x": 2, "other": 1}

    counting = Visit(browser, store)
    counting.session["hits"] += 1
    lossy.lose = lost

    def another() -> None:
        with copy(browser).visit(store) as session:
            session["other"] = 2

    lossy.meanwhile = another
    with pytest.raises(BackendError) as caught:
        counting.save()
    assert caught.value.outcome_unknown
    assert Visit(browser, store).session["hits"] == (2 if lost == "answer" else 1)


@LOST
def test_a_write_without_an_answer_and_a_logout(lossy: Lossy, store: Store, lost: str) -> None:
    """A row that vanished meanwhile is not inserted again."""
    browser = Browser()
    with browser.visit(store) as session:
        session["x"] = 1
    visit = Visit(browser, store)
    visit.session["x"] = 2

    def logout() -> None:
        with copy(browser).visit(store) as session:
            session.logout()

    lossy.lose, lossy.meanwhile = lost, logout
    with pytest.raises(SessionGone):
        visit.save()
    assert lossy.scan(None, 9) == []


@LOST
def test_a_login_insert_without_an_answer_that_may_have_been_revoked(
    lossy: Lossy, store: Store, lost: str
) -> None:
    """A new session with a user may have been revoked meanwhile: it must not come back."""
    visit = Visit(Browser(), store)
    visit.session.login("alice")

    def revoke() -> None:
        for row in lossy.scan(None, 9):
            lossy.delete(row.key)

    lossy.lose, lossy.meanwhile = lost, revoke
    with pytest.raises(BackendError) as caught:
        visit.save()
    assert caught.value.outcome_unknown
    assert lossy.scan(None, 9) == []


@LOST
@pytest.mark.parametrize("explicit", [True, False])
def test_a_delete_without_an_answer(lossy: Lossy, store: Store, lost: str, explicit: bool) -> None:
    """It ends deleted, by `delete` or by being emptied."""
    browser = Browser()
    with browser.visit(store) as session:
        session["x"] = 1
    visit = Visit(browser, store)
    if explicit:
        visit.session.delete()
    else:
        visit.session.clear()
    lossy.lose = lost
    visit.save()
    assert lossy.scan(None, 9) == []
    assert ("sid" in browser.cookies) is not explicit


@LOST
def test_a_login_without_an_answer(lossy: Lossy, store: Store, lost: str) -> None:
    """The cookie that is sent is the one whose secret was stored."""
    browser = Browser()
    with browser.visit(store) as session:
        session["x"] = 1
    visit = Visit(browser, store)
    visit.session.login("alice")
    lossy.lose = lost
    visit.save()
    assert Visit(browser, store).session.user_key == "alice"


def blind(lossy: Lossy, visit: Visit) -> None:
    """Save; the answer is lost, and so is the look at what became of it."""
    load = lossy.load

    def down(key: bytes) -> None:
        raise BackendError("down")

    lossy.lose = lossy.lose or "answer"
    lossy.load = down  # type: ignore[method-assign,assignment]
    with pytest.raises(BackendError) as caught:
        visit.save()
    lossy.load = load  # type: ignore[method-assign]
    assert caught.value.outcome_unknown
    assert "Set-Cookie" not in visit.headers


@LOST
def test_saving_again_after_an_unknown_outcome(lossy: Lossy, store: Store, lost: str) -> None:
    """The next save of the request finds out first: a counter is counted once."""
    browser = Browser()
    with browser.visit(store) as session:
        session["hits"] = 1
    visit = Visit(browser, store)
    visit.session["hits"] += 1
    lossy.lose = lost
    blind(lossy, visit)
    visit.session["more"] = 1
    visit.save()
    assert Visit(browser, store).session.values == {"hits": 2, "more": 1}


@LOST
def test_a_first_insert_again_after_an_unknown_outcome(
    lossy: Lossy, store: Store, lost: str
) -> None:
    """One row is made, and the cookie of it is sent."""
    visit = Visit(Browser(), store)
    visit.session["x"] = 1
    lossy.lose = lost
    blind(lossy, visit)
    visit.session["x"] = 2
    visit.save()
    assert len(lossy.scan(None, 9)) == 1
    assert Visit(visit.browser, store).session["x"] == 2


@LOST
def test_a_first_login_again_after_an_unknown_outcome(
    lossy: Lossy, store: Store, lost: str
) -> None:
    """There is never a second session of the user that nobody has the cookie of."""
    visit = Visit(Browser(), store)
    visit.session.login("alice")
    lossy.lose = lost
    blind(lossy, visit)
    if lost == "answer":
        visit.save()
        assert Visit(visit.browser, store).session.user_key == "alice"
        assert len(store.sessions_of("alice")) == 1
    else:
        with pytest.raises(SessionGone):
            visit.save()
        assert store.sessions_of("alice") == []


def test_saving_again_after_another_writer_came(lossy: Lossy, store: Store) -> None:
    """When nobody can tell any more, a counter is still not counted twice."""
    browser = Browser()
    with browser.visit(store) as session:
        session["hits"] = 1
    visit = Visit(browser, store)
    visit.session["hits"] += 1
    blind(lossy, visit)
    with copy(browser).visit(store) as session:
        session["other"] = 1
    with pytest.raises(BackendError) as caught:
        visit.save()
    assert caught.value.outcome_unknown
    assert Visit(browser, store).session["hits"] == 2


def test_an_insert_whose_answers_are_all_lost(lossy: Lossy, browser: Browser) -> None:
    """Trying ends with the error that says so."""

    def lost(*args: Any, **kwargs: Any) -> None:
        raise BackendError("lost", outcome_unknown=True)

    lossy.insert = lost  # type: ignore[method-assign]
    visit = Visit(browser, Store(lossy, *KEYS, save_deadline=0.01))
    visit.session["x"] = 1
    with pytest.raises(BackendError, match="lost"):
        visit.save()


@LOST
def test_a_touch_without_an_answer(lossy: Lossy, lost: str) -> None:
    """Whenever the visit was stamped, the cookie is sent."""
    store, browser = Store(lossy, *KEYS, touch_interval=0), Browser()
    with browser.visit(store) as session:
        session["x"] = 1
    visit = Visit(browser, store)
    lossy.lose = lost
    assert "Set-Cookie" in visit.save()


def test_a_message_is_not_added_again(lossy: Lossy, store: Store) -> None:
    """One that was stored, shown and consumed before the look does not come back."""
    browser = Browser()
    with browser.visit(store) as session:
        session["x"] = 1
    visit = Visit(browser, store)
    visit.session.add_flash("saved")
    shown: list[Any] = []

    def other() -> None:
        with copy(browser).visit(store) as session:
            shown.extend(session.flashes())

    lossy.lose, lossy.meanwhile = "answer", other
    with pytest.raises(BackendError):
        visit.save()
    assert shown == ["saved"]
    assert Visit(browser, store).session.flashes() == []


def test_a_hook_gets_no_data_when_the_answer_was_lost(lossy: Lossy, store: Store) -> None:
    """The row of an emptied session is without its data, whatever was lost."""
    rows: list[Any] = []
    store.on_deletion(lambda row, reason: rows.append(row))
    browser = Browser()
    with browser.visit(store) as session:
        session["x"] = 1
    lossy.lose = "answer"
    with browser.visit(store) as session:
        session.clear()
    assert [row.data for row in rows] == [b""]


def test_two_requests_that_empty_a_session(lab: Lab, browser: Browser) -> None:
    """The message is shown once; for the slower one the session is gone."""
    store = lab.store()
    with browser.visit(store) as session:
        session.add_flash("hi")
    visits = [Visit(copy(browser), store) for _ in range(2)]
    shown = [visit.session.flashes() for visit in visits]
    visits[0].save()
    with pytest.raises(SessionGone):
        visits[1].save()
    assert shown == [["hi"], []]
    assert lab.rows() == []


def test_when_looking_fails_too(lossy: Lossy, store: Store) -> None:
    """The error that is raised says that the outcome is unknown."""
    browser = Browser()
    with browser.visit(store) as session:
        session["x"] = 1
    visit = Visit(browser, store)
    visit.session["x"] = 2

    def down(key: bytes) -> None:
        raise BackendError("down")

    lossy.lose = "answer"
    lossy.load = down  # type: ignore[method-assign,assignment]
    with pytest.raises(BackendError) as caught:
        visit.save()
    assert caught.value.outcome_unknown
    assert "Set-Cookie" not in visit.headers


# -- data that this process cannot read


class Point:
    def __init__(self, x: int) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and other.x == self.x

    def __hash__(self) -> int:
        return hash(self.x)


@pytest.fixture
def knowing(lab: Lab) -> Store:
    """Return a store that knows a type which the others do not."""
    serializer = TypedSerializer()
    serializer.register(Point, "point", dump=lambda point: point.x, load=Point)
    return lab.store(serializer=serializer)


@pytest.mark.parametrize("as_key", [False, True])
def test_an_unknown_type_that_arrives_in_mid_request(
    lab: Lab, known: Browser, knowing: Store, as_key: bool
) -> None:
    """A save that would have to merge with an unknown type raises, and writes nothing."""
    slow = Visit(copy(known), lab.store())
    with known.visit(knowing) as session:
        session[Point(1) if as_key else "point"] = Point(1)
    before = lab.row()
    slow.session["n"] = 11
    for _ in range(2):
        with pytest.raises(UnknownTypeError):
            slow.save()
    assert lab.row() == before


@pytest.mark.parametrize("as_key", [False, True])
def test_clearing_an_unknown_type_against_another_writer(
    lab: Lab, known: Browser, knowing: Store, as_key: bool
) -> None:
    """An explicit clear stores over what another writer added meanwhile, readable or not."""
    with known.visit(knowing) as session:
        session[Point(1) if as_key else "point"] = Point(1)
    cleared = Visit(copy(known), lab.store())
    assert isinstance(cleared.session.error, UnknownTypeError)
    cleared.session.clear()
    cleared.session["x"] = 1
    with known.visit(knowing) as session:
        session["more"] = Point(2)
    cleared.save()
    assert values(lab, known) == {"x": 1}


def test_each_flash_is_shown_once(lab: Lab, known: Browser) -> None:
    """Of two requests that consume a message at once, the save of the slower one takes it back."""
    store = lab.store()
    with known.visit(store) as session:
        session.add_flash("saved")
        session.add_flash("saved")
        session.add_flash("other", "errors")
    first, second = Visit(known, store), Visit(known, store)
    shown = [visit.session.flashes() for visit in (first, second)]
    errors = second.session.flashes("errors")
    assert shown == [["saved", "saved"], ["saved", "saved"]]
    first.session.add_flash("new")
    first.save()
    second.save()
    assert shown == [["saved", "saved"], []]
    assert errors == ["other"]
    assert Visit(known, store).session.flashes() == ["new"]
