from __future__ import annotations

import base64
import hashlib
import os
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgstore.errors import ConfigurationError, CookieMalformed
from pgstore.ids import MAX_GENERATION, SessionId, generate_random_key, handle_of, key_of

NOW = 1_700_000_000
DATA = bytes(range(51))
# What the browser is given for DATA, and how a row is named in logs and device lists. To change
# these is to log everybody out.
GOLDEN_TEXT = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEy"
GOLDEN_HANDLE = "AAECAwQFBgcICQoLDA0ODw"
GOLDEN_SUCCESSOR = bytes.fromhex(
    "c8c9cacbcccdcecfd0d1d2d373b9d0a560723b269541dc9c59a8dab25e75"
    "711371ad4e7f778eaf30d55055b730876ed2afd1c5fe16c4822608d66441"
)

keys = st.binary(min_size=16, max_size=16)

# -- layout ----------------------------------------------------------------------------------------


def test_the_layout_is_frozen() -> None:
    """An id is 16 bytes of selector, 3 of generation, 32 of secret; its text is base64url."""
    id = SessionId.from_bytes(DATA)
    assert (id.selector, id.generation, id.secret) == (DATA[:16], 0x101112, DATA[19:])
    assert id.to_text() == GOLDEN_TEXT
    assert id.handle == GOLDEN_HANDLE
    assert id.secret_hash == hashlib.sha256(DATA[19:]).digest()


@given(st.binary(min_size=51, max_size=51))
def test_an_id_has_one_text(data: bytes) -> None:
    """Any 51 bytes are an id and come back; its text is 68 letters with no bit to spare."""
    id = SessionId.from_bytes(data)
    text = id.to_text()
    assert id.to_bytes() == data
    assert len(text) == 68
    assert base64.urlsafe_b64decode(text) == data


@pytest.mark.parametrize("size", [0, 1, 16, 50, 52, 1000])
def test_another_length_is_no_id(size: int) -> None:
    """A signed value that is not 51 bytes long is malformed; the message says the lengths only."""
    with pytest.raises(CookieMalformed, match=f"^an id has 51 bytes, not {size}$"):
        SessionId.from_bytes(b"x" * size)


# -- new ids ---------------------------------------------------------------------------------------


def test_new_ids_have_nothing_in_common_but_their_birth() -> None:
    """Selectors and secrets are random: a thousand ids of one second share only that second."""
    ids = [SessionId.new(NOW) for _ in range(1000)]
    assert {id.selector[:5] for id in ids} == {NOW.to_bytes(5, "big")}
    assert len({id.selector[5:] for id in ids}) == 1000
    assert len({id.secret for id in ids}) == 1000
    assert {(len(id.selector), id.generation, len(id.secret)) for id in ids} == {(16, 0, 32)}


@given(st.lists(st.floats(0, 2**40, exclude_max=True), min_size=2))
def test_ids_sort_by_the_second_of_their_birth(births: list[float]) -> None:
    """Younger selectors are greater, for 34,000 years: inserts land at one edge of the index."""
    births = sorted(set(map(int, births)))
    selectors = [SessionId.new(birth + 0.999).selector for birth in births]
    assert selectors == sorted(selectors)


@pytest.mark.parametrize("birth", [-1.0, 2.0**40, 2.0**80])
def test_an_absurd_clock_makes_ids_all_the_same(birth: float) -> None:
    """The birth is for locality only: a clock that is quite wrong stops nobody from coming in."""
    id = SessionId.new(birth)
    assert SessionId.from_bytes(id.to_bytes()) == id


def test_a_renewed_id_is_of_the_same_row() -> None:
    """Renewal keeps the selector, counts the generation up and makes a new secret."""
    id = SessionId.new(NOW)
    renewed = id.renewed(41)
    assert (renewed.selector, renewed.generation) == (id.selector, 42)
    assert renewed.secret != id.secret
    assert not renewed.proves(id.secret_hash)


def test_a_generation_cannot_overflow() -> None:
    """The last generation still fits; after it renewal is refused rather than started anew."""
    id = SessionId.new(NOW)
    last = id.renewed(MAX_GENERATION - 1)
    assert SessionId.from_bytes(last.to_bytes()) == last
    assert last.generation == MAX_GENERATION == 2**24 - 1
    with pytest.raises(ConfigurationError, match=r"start anew$"):
        last.renewed(MAX_GENERATION)


def test_an_unrelated_id_is_of_another_row() -> None:
    """An id that takes the place of another shares nothing with it but the second of its birth."""
    id = SessionId.new(NOW).renewed(5)
    other = id.unrelated()
    assert other.selector[:5] == id.selector[:5]
    assert other.selector[5:] != id.selector[5:]
    assert other.secret != id.secret
    assert other.generation == 0


# -- secrets ---------------------------------------------------------------------------------------


def test_only_the_right_secret_proves() -> None:
    """An id proves itself against the hash of its own secret, and against no other."""
    id = SessionId.from_bytes(DATA)
    assert id.proves(hashlib.sha256(DATA[19:]).digest())
    hashes = [b"", DATA[19:], SessionId.new(NOW).secret_hash, id.secret_hash[:-1]]
    assert [id.proves(other) for other in hashes] == [False] * len(hashes)


def test_a_secret_is_compared_in_constant_time() -> None:
    """`hmac.compare_digest` compares: it refuses what is not bytes, where ``==`` says False."""
    with pytest.raises(TypeError):
        SessionId.from_bytes(DATA).proves(None)


@pytest.mark.parametrize("show", [repr, str])
def test_an_id_shows_no_secret(show: Callable[[SessionId], str]) -> None:
    """Neither repr nor str of an id holds its secret, in any spelling: they may be logged."""
    id = SessionId.new(NOW)
    shown = show(id)
    assert "selector" in shown
    assert "secret" not in shown
    for spelling in (repr(id.secret)[2:-1], id.secret.hex(), id.to_text()[-42:]):
        assert spelling not in shown


@pytest.mark.parametrize(
    "make",
    [
        lambda: SessionId.new(NOW),
        lambda: SessionId.from_bytes(DATA).renewed(0),
        lambda: SessionId.from_bytes(DATA).unrelated(),
        lambda: SessionId.from_bytes(DATA).seal_successor(SessionId.from_bytes(DATA)),
        generate_random_key,
    ],
    ids=["new", "renewed", "unrelated", "sealed", "key"],
)
def test_a_failing_random_source_raises(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[], object]
) -> None:
    """Where the system has no random bytes there is no id and no key, rather than a weak one."""

    def fail(_: int) -> bytes:
        raise OSError("no random bytes")

    monkeypatch.setattr(os, "urandom", fail)
    monkeypatch.setattr(random, "_urandom", fail)  # the name under which `secrets` knows it
    with pytest.raises(OSError, match="no random bytes"):
        make()


# -- successors ------------------------------------------------------------------------------------


def test_a_successor_is_read_with_the_secret_before_it() -> None:
    """Who holds the secret that was renewed gets the new id from the row, and no server key."""
    id = SessionId.new(NOW)
    successor = id.renewed(41)
    assert id.open_successor(id.seal_successor(successor), 42) == successor


def test_a_sealed_successor_of_an_earlier_release_is_read() -> None:
    """The form in which a row keeps the next secret is frozen."""
    successor = SessionId.from_bytes(DATA).open_successor(GOLDEN_SUCCESSOR, 0x101113)
    assert successor == SessionId(DATA[:16], 0x101113, bytes(range(100, 132)))


@pytest.mark.parametrize(
    ("reader", "generation"),
    [
        (SessionId(DATA[:16], 0x101112, bytes(32)), 0x101113),
        (SessionId(bytes(16), 0x101112, DATA[19:]), 0x101113),
        (SessionId.from_bytes(DATA), 0x101112),
        (SessionId.from_bytes(DATA), 0x101114),
    ],
    ids=["secret", "selector", "older", "younger"],
)
def test_a_successor_is_bound_to_its_id(reader: SessionId, generation: int) -> None:
    """Another secret, another row or another generation reads nothing of it."""
    assert reader.open_successor(GOLDEN_SUCCESSOR, generation) is None


def test_any_damage_to_a_successor_is_noticed() -> None:
    """What was cut at any length, prolonged or changed in any byte is no successor."""
    damaged = [GOLDEN_SUCCESSOR[:size] for size in range(len(GOLDEN_SUCCESSOR))]
    for place, byte in enumerate(GOLDEN_SUCCESSOR):
        changed = bytes([byte ^ 1])
        damaged.append(GOLDEN_SUCCESSOR[:place] + changed + GOLDEN_SUCCESSOR[place + 1 :])
    damaged.append(GOLDEN_SUCCESSOR + b"x")
    id = SessionId.from_bytes(DATA)
    assert {id.open_successor(sealed, 0x101113) for sealed in damaged} == {None}


def test_a_sealed_successor_shows_nothing() -> None:
    """A copy of the database holds no secret, nor whether two are the same."""
    id = SessionId.new(NOW)
    successor = id.renewed(0)
    sealed = {id.seal_successor(successor) for _ in range(50)}
    assert len(sealed) == 50
    assert not any(successor.secret in each or id.secret in each for each in sealed)


# -- handles ---------------------------------------------------------------------------------------


@given(keys)
def test_a_handle_leads_back_to_its_key(key: bytes) -> None:
    """The public name of a row is 22 letters, and finds the row again."""
    handle = handle_of(key)
    assert len(handle) == 22
    assert key_of(handle) == key


@given(keys, st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"))
def test_a_row_has_one_handle(key: bytes, last: str) -> None:
    """Another text of the same bytes is no handle: two names cannot mean one session."""
    handle = handle_of(key)
    assert (key_of(handle[:-1] + last) == key) == (last == handle[-1])


@pytest.mark.parametrize(
    "text",
    [
        "",
        GOLDEN_HANDLE[:-1],
        GOLDEN_HANDLE + "==",
        GOLDEN_HANDLE + "\n",
        " " + GOLDEN_HANDLE,
        GOLDEN_HANDLE[:-1] + "x",
        GOLDEN_HANDLE[:-1] + "+",
        "é" * 21 + "A",
        GOLDEN_TEXT,
        None,
        GOLDEN_HANDLE.encode(),
    ],
)
def test_a_text_that_is_no_handle_has_no_key(text: str) -> None:
    """What is not in the one form of a handle finds nothing, and raises nothing."""
    assert key_of(text) is None


# -- keys ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [16, 32, 64])
def test_a_random_key_has_the_length_asked_for(length: int) -> None:
    """Keys are as long as they were asked to be, and never the same."""
    made = {generate_random_key(length) for _ in range(50)}
    assert {len(key) for key in made} == {length}
    assert len(made) == 50


def test_a_random_key_has_32_bytes_by_default() -> None:
    """Without a length a key fits as a hash key and as a block key."""
    assert len(generate_random_key()) == 32


@pytest.mark.parametrize("length", [15, 0, -1, 32.0, "32", None, True])
def test_a_weak_length_is_refused(length: int) -> None:
    """Fewer than 16 bytes are no key; what is not a number of bytes is refused too."""
    with pytest.raises(ConfigurationError, match="a random key wants at least 16 bytes"):
        generate_random_key(length)
