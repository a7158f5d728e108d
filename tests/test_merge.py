from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgstore.merge import MISSING, add, append, union

numbers = st.integers()
lists = st.lists(st.integers(0, 5), max_size=6)
sets = st.sets(st.integers(0, 5))

# A function, and the values that it merges.
KINDS = [(add, numbers), (append, lists), (union, sets)]


@pytest.mark.parametrize(
    ("base", "theirs", "ours", "merged"),
    [
        (1, 3, 2, 4),
        (1, 0, 2, 1),
        (1.5, 2.5, 1.0, 2.0),
        (Decimal("1.10"), Decimal("1.20"), Decimal("1.30"), Decimal("1.40")),
        (MISSING, MISSING, 2, 2),
        (MISSING, 3, 2, 5),
        (1, MISSING, 2, 1),
        (1, 3, MISSING, MISSING),
        (1, MISSING, MISSING, MISSING),
        (MISSING, 3, MISSING, MISSING),
        (MISSING, MISSING, MISSING, MISSING),
    ],
)
def test_add_counts_both_differences(base: Any, theirs: Any, ours: Any, merged: Any) -> None:
    """`add` applies our difference to theirs; an absent number is 0, and removing it wins."""
    assert add(base, theirs, ours) == merged


@pytest.mark.parametrize(
    ("base", "theirs", "ours", "merged"),
    [
        (["a"], ["a", "b"], ["a", "c"], ["a", "b", "c"]),
        (["a", "b"], ["a", "b", "c"], ["b"], ["b", "c"]),
        (["a", "b"], ["a"], ["a", "b", "c"], ["a", "c"]),
        (["a", "b"], ["b"], ["a"], []),
        (["a", "b"], ["b"], ["b"], ["b"]),
        (["a"], ["a"], ["a", "a"], ["a", "a"]),
        (["a", "a"], ["a", "a", "b"], ["a"], ["a", "b"]),
        ([{"x": 1}], [{"x": 1}], [{"x": 1}, {"x": 2}], [{"x": 1}, {"x": 2}]),
        (MISSING, MISSING, ["c"], ["c"]),
        (MISSING, ["b"], ["c"], ["b", "c"]),
        (["a"], MISSING, ["a", "c"], ["c"]),
        (["a"], ["a", "b"], MISSING, MISSING),
        (["a"], MISSING, MISSING, MISSING),
        (MISSING, ["b"], MISSING, MISSING),
        (MISSING, MISSING, MISSING, MISSING),
    ],
)
def test_append_keeps_both_additions(base: Any, theirs: Any, ours: Any, merged: Any) -> None:
    """`append` takes out of theirs what we took out, and puts what we put in at the end."""
    assert append(base, theirs, ours) == merged


@pytest.mark.parametrize("kind", [set, frozenset])
@pytest.mark.parametrize(
    ("base", "theirs", "ours", "merged"),
    [
        ("a", "ab", "ac", "abc"),
        ("ab", "abc", "b", "bc"),
        ("ab", "a", "abc", "ac"),
        ("ab", "b", "a", ""),
        (MISSING, MISSING, "c", "c"),
        (MISSING, "b", "c", "bc"),
        ("a", MISSING, "ac", "c"),
        ("a", "ab", MISSING, MISSING),
        ("a", MISSING, MISSING, MISSING),
        (MISSING, "b", MISSING, MISSING),
        (MISSING, MISSING, MISSING, MISSING),
    ],
)
def test_union_keeps_both_additions(
    kind: Callable[[str], Any], base: Any, theirs: Any, ours: Any, merged: Any
) -> None:
    """`union` takes out of theirs what we took out and puts in what we put in; the type is ours."""
    base, theirs, ours, expected = (
        value if value is MISSING else kind(value) for value in (base, theirs, ours, merged)
    )
    result = union(base, theirs, ours)
    assert (type(result), result) == (type(expected), expected)


def test_union_takes_sets_of_different_kinds() -> None:
    """A key that was a frozenset before, and there, may be a set here."""
    merged = union(frozenset("a"), frozenset("ab"), set("ac"))
    assert (type(merged), merged) == (set, set("abc"))


@pytest.mark.parametrize(("merge", "values"), KINDS)
@given(st.data())
def test_a_merge_with_no_change_is_the_other_side(
    merge: Callable[..., Any], values: Any, choose: st.DataObject
) -> None:
    """Where we changed nothing theirs stays, and where they changed nothing ours counts."""
    base, changed = choose.draw(values), choose.draw(values)
    assert merge(base, changed, base) == changed
    # A list's order is theirs: what counts of ours is what is in it.
    assert unordered(merge(base, base, changed)) == unordered(changed)


@pytest.mark.parametrize(("merge", "values"), [(add, numbers), (union, sets)])
@given(st.data())
def test_it_does_not_matter_who_was_faster(
    merge: Callable[..., Any], values: Any, choose: st.DataObject
) -> None:
    """Numbers and sets come out the same whichever request was stored first."""
    base, one, other = (choose.draw(values) for _ in range(3))
    assert merge(base, one, other) == merge(base, other, one)


@given(lists, lists, lists)
def test_no_addition_to_a_list_is_lost(base: list[int], one: list[int], other: list[int]) -> None:
    """Two requests that append to one list: both additions are there, ours at the end."""
    assert append(base, base + one, base + other) == base + one + other


@given(lists, lists, lists)
def test_append_counts_every_item(base: list[int], theirs: list[int], ours: list[int]) -> None:
    """Item by item: as many as theirs has, less those we took out, plus those we put in."""
    had, have = Counter(base), Counter(ours)
    expected = (Counter(theirs) - (had - have)) + (have - had)
    assert Counter(append(base, theirs, ours)) == expected


@pytest.mark.parametrize(("merge", "values"), KINDS)
@given(st.data())
def test_a_merge_changes_none_of_its_arguments(
    merge: Callable[..., Any], values: Any, choose: st.DataObject
) -> None:
    """A merge may be called again for the same save: what it was given is as it was."""
    arguments = [choose.draw(values | st.just(MISSING)) for _ in range(3)]
    before = [
        argument if argument is MISSING else copy.deepcopy(argument) for argument in arguments
    ]
    first = merge(*arguments)
    assert arguments == before
    assert merge(*arguments) == first


def test_missing_is_falsy_and_says_its_name() -> None:
    """`MISSING` can be tested like None, and a traceback shows what it is."""
    assert not MISSING
    assert repr(MISSING) == "MISSING"


def unordered(value: Any) -> Any:
    return Counter(value) if isinstance(value, list) else value
