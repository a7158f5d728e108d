"""What a client may send and what may stand in a row: a new session and a reason, never an
exception.
"""

from __future__ import annotations

import base64
from copy import copy
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from werkzeug.datastructures import Headers

from pgstore import CookieError, MemoryStore, RowError, SessionNotFound, Store
from pgstore.errors import CookieMalformed, CookieSignatureInvalid, CookieTooLong
from pgstore.ids import SessionId
from support.stores import KEYS, Browser, Lab, MemoryLab, PostgresLab, Visit


@pytest.fixture
def store(lab: Lab) -> Store:
    return lab.store()


@pytest.fixture
def known(store: Store, browser: Browser) -> Browser:
    """Return a browser that has a session."""
    with browser.visit(store) as session:
        session["x"] = 1
    return browser


def refused(store: Store, value: str, name: str = "sid") -> Any:
    """Visit with a cookie value; assert that it gets a new, working session and nothing is sent."""
    browser = Browser()
    browser.cookies[name] = value
    visit = Visit(browser, store, name)
    assert (visit.session.is_new, visit.session.values) == (True, {})
    headers = visit.save()
    assert "Set-Cookie" not in headers
    return visit.session.error


def signed(store: Store, id: SessionId, name: str = "sid") -> str:
    return store.codecs[0].encode(name, id.to_bytes())


@pytest.mark.parametrize(
    "value",
    ["", "garbage", "a.b", ".", "..", "a" * 112, "é" * 112, "=", "\x00", "%00", "a.b.c.d", "null"],
)
def test_garbage(store: Store, value: str) -> None:
    """Garbage of any form is a CookieError on the session."""
    assert isinstance(refused(store, value), CookieError)


def test_a_megabyte(store: Store) -> None:
    """A value over 4096 bytes is refused by its length alone."""
    assert isinstance(refused(store, "a" * 2**20), CookieTooLong)


def test_signed_for_another_name(store: Store, known: Browser) -> None:
    """The signature is bound to the cookie's name."""
    assert isinstance(refused(store, known.cookies["sid"], "other"), CookieSignatureInvalid)


def test_signed_with_an_unknown_key(store: Store, browser: Browser) -> None:
    """A key that the store was not given signs nothing."""
    with browser.visit(MemoryStore(b"another key of thirty-two bytes.", KEYS[1])) as session:
        session["x"] = 1
    assert isinstance(refused(store, browser.cookies["sid"]), CookieSignatureInvalid)


def test_truncated(store: Store, known: Browser) -> None:
    """Every proper prefix of a good cookie is refused."""
    value = known.cookies["sid"]
    for length in range(len(value)):
        assert isinstance(refused(store, value[:length]), CookieError)


def test_not_in_canonical_form(store: Store, known: Browser) -> None:
    """Another text that decodes to the same bytes is refused: a value has one form."""
    value = known.cookies["sid"]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    last = alphabet.index(value[-1])
    twins = [value[:-1] + alphabet[last ^ bit] for bit in (1, 2, 3)]
    pad = "=" * (-len(value.rpartition(".")[2]) % 4)
    decoded = {base64.urlsafe_b64decode(v.rpartition(".")[2] + pad) for v in [value, *twins]}
    assert len(decoded) == 1
    for twin in [*twins, value + "=", value[:5] + "\n" + value[5:], value[:-1] + "!" + value[-1]]:
        assert isinstance(refused(store, twin), CookieError)


def test_a_swapped_signature(store: Store, known: Browser) -> None:
    """The signature of one cookie does not fit another."""
    other = Browser()
    with other.visit(store) as session:
        session["x"] = 2
    payloads, signatures = zip(
        *(b.cookies["sid"].rpartition(".")[::2] for b in (known, other)), strict=True
    )
    assert isinstance(refused(store, f"{payloads[0]}.{signatures[1]}"), CookieSignatureInvalid)


def test_a_signed_value_that_is_no_id(store: Store) -> None:
    """Bytes of another length are refused even when the signature holds."""
    for size in (0, 50, 52):
        value = store.codecs[0].encode("sid", b"x" * size)
        assert isinstance(refused(store, value), CookieMalformed)


def test_an_id_that_was_never_issued(store: Store) -> None:
    """A well-signed id without a row is not adopted: the new session has an id of its own."""
    planted = SessionId.new(0)
    browser = Browser()
    browser.cookies["sid"] = signed(store, planted)
    visit = Visit(browser, store)
    assert isinstance(visit.session.error, SessionNotFound)
    assert visit.session.error.reason == "unknown"
    visit.session["x"] = 1
    visit.save()
    assert visit.session.handle != planted.handle
    assert [row.key for row in store.backend.scan(None, 9)] == [visit.session._id.selector]


def test_the_right_selector_with_a_wrong_secret(store: Store, known: Browser) -> None:
    """Who knows a handle knows no session."""
    row = store.backend.scan(None, 1)[0]
    error = refused(store, signed(store, SessionId(row.key, row.generation, b"\0" * 32)))
    assert (type(error), error.reason) == (SessionNotFound, "secret")


def test_an_older_generation(store: Store, known: Browser) -> None:
    """The cookie from before a `regenerate` is dead."""
    before = copy(known)
    with known.visit(store) as session:
        session.regenerate()
    error = refused(store, before.cookies["sid"])
    assert (type(error), error.reason) == (SessionNotFound, "generation")


def test_a_forged_generation(store: Store, known: Browser) -> None:
    """A generation that is yet to come is no better."""
    row = store.backend.scan(None, 1)[0]
    error = refused(store, signed(store, SessionId(row.key, 7, b"\0" * 32)))
    assert error.reason == "generation"


def test_the_same_name_twice(store: Store, known: Browser) -> None:
    """The first of four values that verifies counts; a good one in fifth place is not tried."""
    good = known.cookies["sid"]
    for place in range(5):
        values = ["bad.value"] * 6
        values[place] = good
        environ = known.environ(HTTP_COOKIE="; ".join(f"sid={v}" for v in values))
        assert store.get(environ, "sid").is_new is (place == 4)


@pytest.mark.parametrize(
    "header",
    ["", ";", "sid", "sid=", "=x", ";;sid;;", "a=b; c", "\xff\xfe=\xfd; sid=\xff", "sid=\x80"],
)
def test_odd_cookie_headers(store: Store, header: str) -> None:
    """A Cookie header of any form gives a new session."""
    assert store.get(Browser().environ(HTTP_COOKIE=header), "sid").is_new


@settings(max_examples=10_000)
@given(data=st.one_of(st.binary(max_size=200), st.text(max_size=120).map(lambda t: t.encode())))
def test_any_bytes_as_a_cookie(data: bytes) -> None:
    """Any byte string as a cookie gives a new session, and nothing is sent or stored."""
    text = data.decode("latin-1")
    headers = Headers()
    environ = Browser().environ(HTTP_COOKIE=f"sid={text}")
    session = _STORE.get(environ, "sid")
    session.save(environ, headers)
    assert session.is_new
    assert "Set-Cookie" not in headers


_STORE = MemoryStore(*KEYS)


@settings(max_examples=1000)
@given(place=st.integers(0, 1000), character=st.characters(max_codepoint=255))
def test_any_change_of_a_good_cookie(place: int, character: str) -> None:
    """A good cookie with any one character replaced gives a new session."""
    browser = Browser()
    with browser.visit(_STORE) as session:
        session["x"] = 1
    value = browser.cookies["sid"]
    place %= len(value)
    assume(character != value[place])
    browser.cookies["sid"] = value[:place] + character + value[place + 1 :]
    assert Visit(browser, _STORE).session.is_new


# -- rows


def refused_row(store: Store, browser: Browser) -> None:
    """Visit; assert that the row is refused, with a new session, and left alone."""
    visit = Visit(browser, store)
    assert isinstance(visit.session.error, RowError)
    assert (visit.session.is_new, visit.session.values) == (True, {})
    assert "Set-Cookie" not in visit.save()


def test_data_truncated(lab: Lab, store: Store, known: Browser) -> None:
    """Data that was cut at any place is refused, and so is none at all."""
    data = bytes(lab.row()["data"])
    for length in range(len(data)):
        lab.set(data=data[:length])
        refused_row(store, known)
    lab.set(data=data)
    assert Visit(known, store).session.values == {"x": 1}


def test_data_changed(lab: Lab, store: Store, known: Browser) -> None:
    """Data with any one bit flipped is refused, the format byte included."""
    data = bytes(lab.row()["data"])
    for place in range(len(data)):
        lab.set(data=data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        refused_row(store, known)


def test_a_row_swapped_with_anothers(lab: Lab, store: Store, known: Browser) -> None:
    """Data copied over from another row is refused."""
    data = lab.row()["data"]
    other = Browser()
    with other.visit(store) as session:
        session["x"] = 2
    lab.set(data=data)
    refused_row(store, other)
    assert Visit(known, store).session.values == {"x": 1}


@pytest.mark.parametrize(
    ("owner", "thief"), [("alice", "mallory"), ("alice", None), (None, "alice")]
)
def test_a_row_given_to_another_user(
    lab: Lab, store: Store, browser: Browser, owner: str | None, thief: str | None
) -> None:
    """A row whose user_key was changed by hand is refused."""
    with browser.visit(store) as session:
        session["x"] = 1
        if owner:
            session.login(owner)
    lab.set(user_key=thief)
    refused_row(store, browser)


def test_a_row_of_another_table(lab: Lab, browser: Browser) -> None:
    """Data is sealed for its table: moved into another, it is refused."""
    store = lab.store()
    with browser.visit(store) as session:
        session["x"] = 1
    elsewhere = MemoryStore(*KEYS, table="other_sessions")
    (row,) = store.backend.scan(None, 1)
    elsewhere.backend._rows[row.key] = row  # type: ignore[attr-defined]
    refused_row(elsewhere, browser)


def test_a_row_sealed_with_a_dropped_key(lab: Lab, known: Browser) -> None:
    """Without the key that sealed it, a row is refused, and there again with the key."""
    value = known.cookies["sid"]
    keeps_cookies_only = lab.store(
        codecs=lab.store().codecs, sealers=lab.store(b"n" * 32)._rules.sealers
    )
    refused_row(keeps_cookies_only, known)
    known.cookies["sid"] = value
    assert Visit(known, lab.store()).session.values == {"x": 1}


@pytest.mark.parametrize("meta", ["[1]", '"x"', "null", '{"a": 1}', "7"])
def test_metadata_changed_by_hand(lab: Lab, store: Store, known: Browser, meta: str) -> None:
    """Metadata that is no object of texts counts as none, and locks nobody out."""
    if not isinstance(lab, MemoryLab):  # which keeps no JSON
        lab.set(meta=meta)
    with known.visit(store) as session:
        assert (session.values, session.meta) == ({"x": 1}, {})
    assert store.reseal() == {"current": 1, "old": 0, "refused": 0}


def test_an_expiry_of_never(pg_lab: PostgresLab, browser: Browser) -> None:
    """An operator may set a session to expire never, or after the year 9999."""
    store = pg_lab.store(touch_interval=0)
    with browser.visit(store) as session:
        session["x"] = 1
    for never in ("infinity", "20000-01-01"):
        pg_lab.execute("UPDATE http_sessions SET expires_on = %s", [never])
        assert Visit(browser, store).session["x"] == 1
        assert store.reseal()["current"] == 1
    visit = Visit(browser, pg_lab.store(*KEYS[:0], *(b"n" * 32, None), *KEYS))
    assert "Set-Cookie" in visit.save()


def test_a_refused_row_is_logged_without_secrets(
    lab: Lab, store: Store, known: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    """The operator gets one warning with the handle, and nothing secret."""
    session = Visit(known, store).session
    lab.set(data=b"\x02 tampered")
    Visit(known, store)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert session.handle in record.getMessage()
    assert session.id not in record.getMessage()
    assert known.cookies["sid"] not in record.getMessage()
