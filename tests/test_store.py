"""What a handler sees: get, change, save, on every kind of store."""

from __future__ import annotations

import re
from copy import copy
from datetime import timedelta

import pytest
from werkzeug import Request, Response
from werkzeug.datastructures import Headers

from pgstore import (
    BackendError,
    ConfigurationError,
    MemoryStore,
    Options,
    Registry,
    SaveErrors,
    SerializationError,
    SessionGone,
    SessionTooLong,
    Store,
)
from pgstore.backends.memory import MemoryBackend
from support.stores import KEYS, Browser, Lab, Visit


def test_values_come_back_in_the_next_request(lab: Lab, browser: Browser) -> None:
    """What one request saves, the next one of the same browser finds."""
    store = lab.store()
    with browser.visit(store) as session:
        assert (session.is_new, session.error, session.created_on) == (True, None, None)
        session.values["foo"] = "bar"
        session["n"] = [1, {"deep": (2, 3)}]
    with browser.visit(store) as session:
        assert session.is_new is False
        assert session.values == {"foo": "bar", "n": [1, {"deep": (2, 3)}]}
        assert session.created_on is not None
        assert session.expires_on is not None


def test_a_session_is_a_small_mapping(browser: Browser) -> None:
    """Item access, ``in``, len, iteration, get, pop and clear work on the values."""
    session = Visit(browser, MemoryStore(*KEYS)).session
    session["a"], session["b"] = 1, 2
    assert ("a" in session, len(session), list(session)) == (True, 2, ["a", "b"])
    assert (session.get("a"), session.get("z"), session.get("z", 0)) == (1, None, 0)
    assert (session.pop("a"), session.pop("a", None)) == (1, None)
    with pytest.raises(KeyError):
        session.pop("a")
    del session["b"]
    assert session.values == {}
    session["c"] = 3
    session.clear()
    assert len(session) == 0


def test_requests_and_responses_of_werkzeug(browser: Browser) -> None:
    """A werkzeug Request and Response do as well as an environ and Headers."""
    store = MemoryStore(*KEYS)
    request, response = Request(browser.environ()), Response()
    session = store.get(request, "sid")
    session["x"] = 1
    session.save(request, response)
    browser.receive(response.headers)
    assert store.get(Request(browser.environ()), "sid").values == {"x": 1}


@pytest.mark.parametrize(("request_", "response"), [(object(), Headers()), (None, Headers())])
def test_what_is_no_request_is_the_callers_mistake(request_: object, response: Headers) -> None:
    """An object that is neither Request nor environ is a ConfigurationError."""
    with pytest.raises(ConfigurationError, match="WSGI environ"):
        MemoryStore(*KEYS).get(request_, "sid")


def test_what_is_no_response_is_the_callers_mistake(browser: Browser) -> None:
    """An object that takes no headers is a ConfigurationError, and nothing is written."""
    store = MemoryStore(*KEYS)
    visit = Visit(browser, store)
    visit.session["x"] = 1
    with pytest.raises(ConfigurationError, match="Response or Headers"):
        visit.session.save(visit.environ, [("Content-Type", "text/plain")])
    assert visit.session.is_new


def test_the_cookie(lab: Lab, browser: Browser) -> None:
    """The cookie is a short signed key with the default attributes, and caches are kept off."""
    visit = Visit(browser, lab.store(KEYS[0]))
    visit.session["x"] = 1
    headers = visit.save()
    (cookie,) = headers.getlist("Set-Cookie")
    assert re.fullmatch(
        r"sid=[\w-]{68}\.[\w-]{43}; Expires=\w{3}, [\w ]+ [\d:]{8} GMT; Max-Age=2592300; "
        r"HttpOnly; Path=/; SameSite=Lax",
        cookie,
    )
    assert headers["Vary"] == "Cookie"
    assert headers["Cache-Control"] == "private, no-cache"


def test_a_cookie_is_sent_only_when_the_browsers_copy_needs_it(lab: Lab, browser: Browser) -> None:
    """Saving a change, or nothing, sends no cookie again within the touch interval."""
    store = lab.store()
    with browser.visit(store) as session:
        session["x"] = 1
    for change in ({}, {"x": 2}):
        visit = Visit(browser, store)
        visit.session.values.update(change)
        headers = visit.save()
        assert "Set-Cookie" not in headers
        assert "Cache-Control" not in headers
        assert headers["Vary"] == "Cookie"


def test_an_empty_session_has_no_row(lab: Lab, browser: Browser) -> None:
    """Nothing is stored and nothing is sent for a session that stayed empty."""
    store = lab.store()
    assert "Set-Cookie" not in Visit(browser, store).save()
    assert lab.rows() == []


@pytest.mark.parametrize("how", ["values", "flash", "meta"])
def test_an_emptied_session_loses_its_row(lab: Lab, browser: Browser, how: str) -> None:
    """A session whose last content was removed is deleted; the cookie is left alone."""
    store = lab.store()
    with browser.visit(store) as session:
        if how == "values":
            session["x"] = 1
        elif how == "flash":
            session.add_flash("hello")
        else:
            session.meta["device"] = "phone"
            session["x"] = 1
    visit = Visit(browser, store)
    visit.session.values.clear()
    visit.session.meta.clear()
    visit.session.flashes()
    headers = visit.save()
    assert lab.rows() == []
    assert "Set-Cookie" not in headers
    assert visit.session.is_new


def test_metadata_is_kept(lab: Lab, browser: Browser) -> None:
    """Free string metadata is stored beside the values, and keeps a session alive by itself."""
    store = lab.store()
    with browser.visit(store) as session:
        session.meta["device"] = "Anna's phone\t👩‍💻 – büro\n"
    with browser.visit(store) as session:
        assert session.meta == {"device": "Anna's phone\t👩‍💻 – büro\n"}
        session.meta["device"] = "other"
    assert Visit(browser, store).session.meta == {"device": "other"}


@pytest.mark.parametrize("meta", [{"a": 1}, {1: "a"}, {"a": "nul\0"}, {"a": "\ud800"}])
def test_metadata_is_text(browser: Browser, meta: dict[str, str]) -> None:
    """Metadata that some database could not keep is refused, and nothing is written."""
    visit = Visit(browser, MemoryStore(*KEYS))
    visit.session.meta.update(meta)
    with pytest.raises(ConfigurationError, match=r"session\.meta"):
        visit.save()
    assert visit.session.is_new


def test_flashes(lab: Lab, browser: Browser) -> None:
    """Flash messages are shown once, in their order, by key."""
    store = lab.store()
    with browser.visit(store) as session:
        session.add_flash("saved")
        session.add_flash({"level": 1}, "errors")
        session.add_flash("sent")
    with browser.visit(store) as session:
        assert session.values == {}
        assert session.flashes() == ["saved", "sent"]
        assert session.flashes() == []
    with browser.visit(store) as session:
        assert session.flashes() == []
        assert session.flashes("errors") == [{"level": 1}]
    assert lab.rows() == []


def test_get_gives_one_session_per_request(lab: Lab, browser: Browser) -> None:
    """`get` returns the same object within a request, after a save too; `new` loads anew."""
    store = lab.store()
    with browser.visit(store) as session:
        session["x"] = 1
    environ = browser.environ()
    session = store.get(environ, "sid")
    session["x"] = 2
    assert store.get(environ, "sid") is session
    session.save(environ, Headers())
    assert store.get(environ, "sid") is session
    assert store.new(environ, "sid").values == {"x": 2}


def test_several_names_in_one_request(lab: Lab, browser: Browser) -> None:
    """Sessions of two names live side by side, in rows of their own."""
    store = lab.store()
    for name in ("a", "b"):
        with browser.visit(store, name) as session:
            session["name"] = name
    assert [Visit(browser, store, name).session["name"] for name in ("a", "b")] == ["a", "b"]
    assert sorted(row["name"] for row in lab.rows()) == ["a", "b"]


def test_a_row_serves_only_its_own_cookie_name(lab: Lab, browser: Browser) -> None:
    """A row's name is part of what it is: changed by hand, it is not found."""
    store = lab.store()
    with browser.visit(store) as session:
        session["x"] = 1
    lab.set(name="other")
    session = Visit(browser, store).session
    assert session.is_new
    assert "unknown" in str(session.error)


def test_two_stores_may_not_share_a_name_in_one_request(browser: Browser) -> None:
    """Two stores using one cookie name in one request is a ConfigurationError."""
    environ = browser.environ()
    MemoryStore(*KEYS).get(environ, "sid")
    with pytest.raises(ConfigurationError, match="a name of its own"):
        MemoryStore(*KEYS).get(environ, "sid")


def test_a_session_is_saved_by_its_own_store(browser: Browser) -> None:
    """Another store refuses to save it."""
    visit = Visit(browser, MemoryStore(*KEYS))
    with pytest.raises(ConfigurationError, match="another store"):
        MemoryStore(*KEYS).save(visit.environ, visit.headers, visit.session)


def test_the_second_save_in_one_request(lab: Lab, browser: Browser) -> None:
    """A second save updates the row that the first one made, and sends the cookie once."""
    store = lab.store()
    visit = Visit(browser, store)
    visit.session["x"] = 1
    visit.save()
    visit.session["y"] = 2
    headers = visit.save()
    assert len(headers.getlist("Set-Cookie")) == 1
    assert len(lab.rows()) == 1
    assert Visit(browser, store).session.values == {"x": 1, "y": 2}


def test_deleting(lab: Lab, browser: Browser) -> None:
    """`delete` ends row and cookie, with the attributes that setting used."""
    store = lab.store(options=Options(path="/app", domain="example.com", same_site="Strict"))
    with browser.visit(store) as session:
        session["x"] = 1
    visit = Visit(browser, store)
    visit.session.delete()
    assert visit.session.values == {}
    headers = visit.save()
    assert lab.rows() == []
    assert browser.cookies == {}
    (cookie,) = headers.getlist("Set-Cookie")
    assert cookie.startswith("sid=; Domain=example.com; Expires=")
    assert cookie.endswith("; Max-Age=0; HttpOnly; Path=/app; SameSite=Strict")


def test_a_negative_max_age_deletes(lab: Lab, browser: Browser) -> None:
    """``options.max_age = -1`` and a save delete row and cookie, as in gorilla."""
    store = lab.store()
    with browser.visit(store) as session:
        session["x"] = 1
    with browser.visit(store) as session:
        session.options.max_age = -1
    assert (lab.rows(), browser.cookies) == ([], {})
    # The next save of the same session is an ordinary one.
    session["y"] = 1
    environ, headers = browser.environ(), Headers()
    session.save(environ, headers)
    assert "Max-Age=2592300" in headers["Set-Cookie"]


def test_deleting_what_is_gone_is_no_error(lab: Lab, browser: Browser) -> None:
    """A delete after somebody else's delete clears the cookie, as it was told."""
    store = lab.store()
    with browser.visit(store) as session:
        session["x"] = 1
    other = copy(browser)
    with other.visit(store) as session:
        session.delete()
    with browser.visit(store) as session:
        session.delete()
    assert browser.cookies == {}


def test_deleting_twice_clears_with_the_first_attributes(lab: Lab, browser: Browser) -> None:
    """A session's own path is that of the cookie to clear, however often it is told to."""
    store = lab.store()
    visit = Visit(browser, store)
    visit.session.options.path = "/app"
    visit.session["x"] = 1
    visit.save()
    visit.session.delete()
    visit.session.logout()
    assert "; Path=/app;" in visit.save()["Set-Cookie"]
    assert browser.cookies == {}


def test_logging_in_after_a_delete_keeps_the_path(lab: Lab, browser: Browser) -> None:
    """The new cookie takes the old one's place."""
    visit = Visit(browser, lab.store())
    visit.session.options.path = "/app"
    visit.session["x"] = 1
    visit.save()
    visit.session.delete()
    visit.session.login("alice")
    assert "; Path=/app;" in visit.save()["Set-Cookie"]


def test_a_session_of_metadata_only_that_is_emptied(lab: Lab, browser: Browser) -> None:
    """Metadata is content: when it was all there was and it goes, the row goes."""
    store = lab.store()
    with browser.visit(store) as session:
        session.meta["device"] = "phone"
    with browser.visit(store) as session:
        session.meta.clear()
    assert lab.rows() == []


def test_max_age_as_a_timedelta(lab: Lab, browser: Browser) -> None:
    """A session's own max_age may be a timedelta."""
    visit = Visit(browser, lab.store())
    visit.session["x"] = 1
    visit.session.options.max_age = timedelta(hours=1)  # type: ignore[assignment]
    visit.save()
    assert lab.row()["max_age"] == 3600


def test_a_lowered_limit_spares_what_is_stored(lab: Lab, browser: Browser) -> None:
    """A long session can be read, touched and resealed; only a change is held to the limit."""
    with browser.visit(lab.store(*KEYS)) as session:
        session["x"] = "y" * 200
    store = lab.store(b"n" * 32, b"N" * 32, *KEYS, max_length=100)
    with browser.visit(store) as session:
        assert len(session["x"]) == 200
    visit = Visit(browser, lab.store(b"n" * 32, b"N" * 32, max_length=100))
    assert not visit.session.is_new
    visit.session["more"] = 1
    with pytest.raises(SessionTooLong):
        visit.save()


def test_saving_after_deleting_makes_a_new_session(lab: Lab, browser: Browser) -> None:
    """What is put in after a delete goes into a new row under a new id, in the same save or a later
    one.
    """
    store = lab.store()
    with browser.visit(store) as session:
        session["x"] = 1
    for saves_between in (0, 1):
        visit = Visit(browser, store)
        before = visit.session.handle
        visit.session.delete()
        for _ in range(saves_between):
            visit.save()
        visit.session.add_flash("bye")
        headers = visit.save()
        assert visit.session.handle != before
        assert len(headers.getlist("Set-Cookie")) == 1
        assert len(lab.rows()) == 1
        assert Visit(browser, store).session.handle == visit.session.handle


def test_what_follows_a_delete_is_checked_first(lab: Lab, browser: Browser) -> None:
    """When the new content cannot be stored, the old session is still there."""
    store = lab.store()
    with browser.visit(store) as session:
        session["x"] = 1
    visit = Visit(browser, store)
    visit.session.delete()
    visit.session["bad"] = object()
    with pytest.raises(SerializationError):
        visit.save()
    assert Visit(browser, store).session.values == {"x": 1}


def test_regenerate_gives_a_new_secret_to_the_same_row(lab: Lab, browser: Browser) -> None:
    """After `regenerate` the old cookie is dead and the new one leads to the same row."""
    store = lab.store()
    with browser.visit(store) as session:
        session["x"] = 1
    before = lab.row()
    thief = copy(browser)
    with browser.visit(store) as session:
        old = session.id
        session.regenerate()
        assert session.id != old
    after = lab.row()
    assert after["key"] == before["key"]
    assert (before["generation"], after["generation"]) == (0, 1)
    assert after["secret_hash"] != before["secret_hash"]
    assert Visit(browser, store).session.values == {"x": 1}
    stolen = Visit(thief, store).session
    assert (stolen.is_new, stolen.values) == (True, {})
    assert stolen.handle != session.handle
    assert "generation" in str(stolen.error)


def test_login_and_logout(lab: Lab, browser: Browser) -> None:
    """`login` renews the secret, ties the user and keeps values; `logout` ends the session."""
    store = lab.store()
    with browser.visit(store) as session:
        session["cart"] = ["tea"]
    anonymous = copy(browser)
    browser.agent = "Browser/2.0 \x07(evil)"
    with browser.visit(store) as session:
        assert session.authenticated_on is None
        session.login("älice")
    assert Visit(anonymous, store).session.is_new
    session = Visit(browser, store).session
    assert (session.user_key, session.values) == ("älice", {"cart": ["tea"]})
    assert session.authenticated_on is not None
    row = lab.row()
    assert (row["ip"], row["user_agent"]) == ("192.0.2.7", "Browser/2.0 (evil)")
    with browser.visit(store) as session:
        session.logout()
    assert (lab.rows(), browser.cookies) == ([], {})


def test_login_in_a_first_request(lab: Lab, browser: Browser) -> None:
    """A new session that logs in is stored with its user and the time of the proof."""
    store = lab.store()
    with browser.visit(store) as session:
        session.login("alice")
    session = Visit(browser, store).session
    assert session.user_key == "alice"
    assert session.authenticated_on == session.created_on


def test_another_users_values_are_cleared(lab: Lab, browser: Browser) -> None:
    """A login over another user's session takes nothing along; over one's own it does."""
    store = lab.store()
    with browser.visit(store) as session:
        session.login("alice")
        session["secret"] = 1
        session.meta["note"] = "alice's"
    with browser.visit(store) as session:
        session.login("alice")
        assert session.values == {"secret": 1}
    with browser.visit(store) as session:
        session.login("bob")
        session["mine"] = 2
    session = Visit(browser, store).session
    assert (session.user_key, session.values, session.meta) == ("bob", {"mine": 2}, {})


@pytest.mark.parametrize("user", ["", "a\0b", "x" * 256, "\ud800", 7, None, b"alice"])
def test_user_keys_that_do_not_fit(browser: Browser, user: str) -> None:
    """A user key that some database could not keep is the caller's mistake."""
    with pytest.raises(ConfigurationError, match="user key"):
        Visit(browser, MemoryStore(*KEYS)).session.login(user)


def test_data_over_max_length(lab: Lab, browser: Browser) -> None:
    """`SessionTooLong` tells both numbers, and the stored row is unchanged; 0 lifts the limit."""
    store = lab.store(max_length=100)
    with browser.visit(store) as session:
        session["x"] = "small"
    before = lab.row()
    visit = Visit(browser, store)
    visit.session["x"] = "y" * 200
    with pytest.raises(SessionTooLong) as caught:
        visit.save()
    assert caught.value.limit == 100
    assert caught.value.size > 200
    assert "Set-Cookie" not in visit.headers
    assert lab.row() == before
    store.max_length(0)
    visit.save()
    assert Visit(browser, store).session["x"] == "y" * 200


def test_a_value_that_cannot_be_serialized(lab: Lab, browser: Browser) -> None:
    """The error names path and type, and nothing is written."""
    store = lab.store()
    with browser.visit(store) as session:
        session["cart"] = [1, 2, 3]
    before = lab.row()
    visit = Visit(browser, store)
    visit.session["cart"].append(object())
    with pytest.raises(SerializationError, match=r'values\["cart"\]\[3\] \(builtins.object\)'):
        visit.save()
    assert lab.row() == before


def test_max_age_per_session(lab: Lab, browser: Browser) -> None:
    """A session's own max_age is kept in its row; the store's is for new sessions."""
    store = lab.store()
    with browser.visit(store) as session:
        session.options.max_age = 60
        session["x"] = 1
    assert lab.row()["max_age"] == 60
    visit = Visit(browser, store)
    assert visit.session.options.max_age == 60
    assert store.options.max_age == 2592000
    visit.session.options.max_age = 7200
    assert "Max-Age=7500" in visit.save()["Set-Cookie"]
    store.max_age(3600)
    assert Visit(browser, store).session.options.max_age == 7200
    assert Visit(Browser(), store).session.options.max_age == 3600


def test_session_options_are_checked_at_save(browser: Browser) -> None:
    """Attributes that do not fit are refused when the session is saved, and nothing is written."""
    visit = Visit(browser, MemoryStore(*KEYS))
    visit.session["x"] = 1
    visit.session.options.same_site = "None"
    with pytest.raises(ConfigurationError, match="needs secure=True"):
        visit.save()
    assert visit.session.is_new


@pytest.mark.parametrize(("scheme", "secure"), [("https", True), ("http", False)])
def test_secure_follows_the_request(browser: Browser, scheme: str, secure: bool) -> None:
    """By default the cookie is Secure when the request came by https."""
    visit = Visit(browser, MemoryStore(*KEYS), **{"wsgi.url_scheme": scheme})
    visit.session["x"] = 1
    assert ("; Secure" in visit.save()["Set-Cookie"]) is secure


def test_registry_saves_every_session(browser: Browser) -> None:
    """One that fails keeps no other from being saved; one error is raised as it is, several as a
    group.
    """
    store = MemoryStore(*KEYS)
    environ, headers = browser.environ(), Headers()
    for name in "abc":
        store.get(environ, name)[name] = 1
    store.get(environ, "b")["bad"] = object()
    with pytest.raises(SerializationError):
        Registry.of(environ).save(headers)
    store.get(environ, "a")["bad"] = object()
    store.get(environ, "c")["more"] = 2
    with pytest.raises(SaveErrors) as caught:
        Registry.of(environ).save(headers)
    assert [type(error) for error in caught.value.exceptions] == [SerializationError] * 2
    browser.receive(headers)
    assert [Visit(browser, store, name).session.values for name in "abc"] == [
        {"a": 1},
        {},
        {"c": 1, "more": 2},
    ]


def test_a_session_that_a_callback_gets(browser: Browser) -> None:
    """A callback may get another session of the request while the registry saves."""
    store = MemoryStore(*KEYS)
    environ, headers = browser.environ(), Headers()
    for name in "ab":
        store.get(environ, name)["x"] = 1
    Registry.of(environ).save(headers)
    store.on_deletion(lambda row, reason: store.get(environ, "c"))
    store.get(environ, "a").delete()
    store.get(environ, "b")["x"] = 2
    Registry.of(environ).save(headers)
    browser.receive(headers)
    assert [Visit(browser, store, name).session.values for name in "ab"] == [{}, {"x": 2}]


def test_old_key_pairs(lab: Lab, browser: Browser) -> None:
    """A session made with an old pair is read, and its next save reseals the row and re-signs the
    cookie.
    """
    old, new = KEYS, (b"n" * 32, b"N" * 16)
    with browser.visit(lab.store(*old)) as session:
        session["x"] = 1
    before = lab.row()
    both = lab.store(*new, *old)
    visit = Visit(browser, both)
    assert visit.session.values == {"x": 1}
    assert "Set-Cookie" in visit.save()
    after = lab.row()
    assert after["data"] != before["data"]
    assert after["expires_on"] == before["expires_on"]
    only_new = lab.store(*new)
    visit = Visit(browser, only_new)
    assert visit.session.values == {"x": 1}
    assert "Set-Cookie" not in visit.save()
    assert lab.row() == after


def test_reseal(lab: Lab) -> None:
    """`reseal` rewrites what an old pair sealed, moves no time, and counts what no key opens."""
    old, new = KEYS, (b"n" * 32, None)
    browsers = [Browser() for _ in range(5)]
    for each in browsers:
        with each.visit(lab.store(*old)) as session:
            session["x"] = 1
    with Browser().visit(lab.store(b"dropped key, 32 bytes or more ...")) as session:
        session["x"] = 1
    store = lab.store(*new, *old)
    with browsers[0].visit(store):
        pass
    times = [(row["seen_on"], row["expires_on"], row["modified_on"]) for row in lab.rows()]
    assert store.reseal(check=True, batch=2) == {"current": 1, "old": 4, "refused": 1}
    assert store.reseal(batch=2) == {"current": 1, "old": 4, "refused": 1}
    assert store.reseal() == {"current": 5, "old": 0, "refused": 1}
    assert [(r["seen_on"], r["expires_on"], r["modified_on"]) for r in lab.rows()] == times
    assert all(Visit(each, store).session.values == {"x": 1} for each in browsers)


def test_an_unknown_type_keeps_the_row(lab: Lab, browser: Browser) -> None:
    """A registered type that is missing on load is an error on the session; only `clear` saves over
    it.
    """
    from fractions import Fraction

    from pgstore import TypedSerializer
    from pgstore.errors import UnknownTypeError

    serializer = TypedSerializer()
    serializer.register(
        Fraction,
        "fraction",
        dump=lambda f: [f.numerator, f.denominator],
        load=lambda v: Fraction(*v),
    )
    knowing, ignorant = lab.store(serializer=serializer), lab.store()
    with browser.visit(knowing) as session:
        session["half"] = Fraction(1, 2)
        session["x"] = 1
    before = lab.row()
    visit = Visit(browser, ignorant)
    assert isinstance(visit.session.error, UnknownTypeError)
    assert (visit.session.values, visit.session.is_new) == ({}, False)
    visit.save()
    visit.session["y"] = 2
    with pytest.raises(UnknownTypeError):
        visit.save()
    assert lab.row() == before
    assert Visit(browser, knowing).session.values == {"half": Fraction(1, 2), "x": 1}
    visit.session.clear()
    visit.session["y"] = 2
    visit.save()
    assert Visit(browser, ignorant).session.values == {"y": 2}


def test_your_own_codecs_and_sealers(browser: Browser) -> None:
    """A store takes a Codec and a Sealer of the user's in place of its own."""

    class Hex:
        def encode(self, name: str, value: bytes) -> str:
            return value.hex()

        def decode(self, name: str, value: str) -> bytes:
            return bytes.fromhex(value)

    class Reverse:
        def seal(self, data: bytes, context: bytes) -> bytes:
            return data[::-1] + context

        def open(self, sealed: bytes, context: bytes) -> bytes:
            return sealed.removesuffix(context)[::-1]

    store = MemoryStore(codecs=[Hex()], sealers=[Reverse()])
    with browser.visit(store) as session:
        session["x"] = 1
    assert Visit(browser, store).session.values == {"x": 1}
    assert len(browser.cookies["sid"]) == 102


@pytest.mark.parametrize(
    ("keys", "settings", "message"),
    [
        ((), {}, "at least one hash key"),
        ((b"short",), {}, "a hash key wants 32 bytes or more, not 5 bytes"),
        ((b"x" * 32, b"x" * 5), {}, "a block key wants 16, 24 or 32 bytes, or None, not 5 bytes"),
        (KEYS, {"max_length": -1}, "max_length must be 0"),
        (KEYS, {"merge": {"hits": "add"}}, r"merge\['hits'\] must be a function"),
        (KEYS, {"schema": "create"}, "schema must be 'apply', 'check' or 'off'"),
        (KEYS, {"idle_timeout": -1}, "idle_timeout must be positive"),
        (KEYS, {"lifetime": "1h"}, "lifetime must be seconds"),
        (KEYS, {"touch_interval": 30, "idle_timeout": 60}, "less than half of the shortest"),
        (KEYS, {"codecs": []}, "at least one codec"),
        (KEYS, {"save_deadline": -1}, "save_deadline must be 0 to 3600"),
        (KEYS, {"save_deadline": float("inf")}, "save_deadline must be 0 to 3600"),
        (KEYS, {"table": "http.sessions"}, "schema goes into db_schema"),
    ],
)
def test_settings_that_do_not_fit(
    keys: tuple[bytes, ...], settings: dict[str, object], message: str
) -> None:
    """Each mistake in the settings is a ConfigurationError that says what fits."""
    with pytest.raises(ConfigurationError, match=message):
        MemoryStore(*keys, **settings)


@pytest.mark.parametrize(
    "name", ["", "a b", "a;b", "a=b", "a,b", "naïve", 'quo"te', "x" * 257, "tab\t", None, "(a)"]
)
def test_names_that_cannot_name_a_cookie(browser: Browser, name: str) -> None:
    """A cookie name that RFC 6265 forbids is the caller's mistake."""
    with pytest.raises(ConfigurationError, match="cannot name a cookie"):
        MemoryStore(*KEYS).get(browser.environ(), name)


def test_prefixed_names_are_held_to_their_rules(browser: Browser) -> None:
    """``__Host-`` needs secure=True, path / and no domain."""
    with pytest.raises(ConfigurationError, match="needs secure=True"):
        MemoryStore(*KEYS).get(browser.environ(), "__Host-sid")
    store = MemoryStore(*KEYS, options=Options(secure=True))
    with browser.visit(store, "__Host-sid") as session:
        session["x"] = 1
    assert Visit(browser, store, "__Host-sid").session["x"] == 1
    visit = Visit(browser, store, "__Host-sid")
    visit.session.options.path = "/app"
    with pytest.raises(ConfigurationError, match="path='/'"):
        visit.save()


def test_stores_are_context_managers(browser: Browser) -> None:
    """Leaving the block closes the backend, once or twice."""
    closed = []

    class Backend(MemoryBackend):
        def close(self) -> None:
            closed.append(True)

    with Store(Backend(), *KEYS) as store:
        assert store.backend.table == "http_sessions"
    store.close()
    assert closed == [True, True]


def test_an_outage_is_never_no_session(browser: Browser) -> None:
    """Storage that is down raises BackendError from get and save."""
    store = MemoryStore(*KEYS)
    with browser.visit(store) as session:
        session["x"] = 1

    def down(*args: object, **kwargs: object) -> None:
        raise BackendError("down")

    visit = Visit(browser, store)
    visit.session["x"] = 2
    store.backend.load = store.backend.update = down  # type: ignore[method-assign,assignment]
    with pytest.raises(BackendError):
        store.get(browser.environ(), "sid")
    with pytest.raises(BackendError):
        visit.save()
    assert "Set-Cookie" not in visit.headers


def test_no_secret_in_a_repr(lab: Lab, browser: Browser) -> None:
    """Store, session, row and id show neither the secret nor the values."""
    store = lab.store()
    with browser.visit(store) as session:
        session["password"] = "hunter2"
        session.login("alice@example.com")
    session = Visit(browser, store).session
    loaded = store.backend.scan(None, 1)[0]
    secret = session.id[26:]
    for shown in map(repr, (store, session, loaded, session._id, store.codecs, session._base)):
        assert "hunter2" not in shown
        assert secret not in shown
        assert session._id.secret_hash.hex() not in shown
        assert KEYS[0].decode() not in shown
        assert "alice" not in shown


def test_a_gone_session_says_so(lab: Lab, browser: Browser) -> None:
    """Saving a session that somebody ended raises SessionGone, and sets no cookie."""
    store = lab.store()
    with browser.visit(store) as session:
        session["x"] = 1
    slow = Visit(browser, store)
    with copy(browser).visit(store) as session:
        session.delete()
    slow.session["x"] = 2
    with pytest.raises(SessionGone) as caught:
        slow.save()
    assert caught.value.handle == slow.session.handle
    assert "Set-Cookie" not in slow.headers
    assert lab.rows() == []


@pytest.mark.parametrize("where", ["values", "flashes"])
def test_a_key_that_cannot_be_serialized(browser: Browser, where: str) -> None:
    """A key is named like a value is."""
    visit = Visit(browser, MemoryStore(*KEYS))
    if where == "values":
        visit.session["ok"], visit.session[object()] = 1, 2
    else:
        visit.session.add_flash("text", key=object())
    with pytest.raises(SerializationError, match=rf"^{where}.*\(builtins.object\)"):
        visit.save()
    assert visit.session.is_new
