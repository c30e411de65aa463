"""A dict that never changes: it can list its differences from each dict that it was made from, and misses none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugin.policy.frozen import FrozenDict
from tests.pure.strategies import examples

VALUES = [object() for _ in range(3)]
_change = st.tuples(
    st.dictionaries(st.integers(0, 5), st.sampled_from(VALUES), max_size=3), st.sets(st.integers(0, 5), max_size=3)
)


@given(st.dictionaries(st.integers(0, 5), st.sampled_from(VALUES)), st.lists(_change, max_size=12))
@examples(300)
def test_no_difference_is_missed(start: dict[int, object], changes: list[tuple[dict[int, object], set[int]]]) -> None:
    """No difference between any two of the dicts is missed after any sequence of changes, also if those in between no
    longer exist."""
    made = [FrozenDict(start)]
    for more, less in changes:
        made.append(made[-1].replace(more, less))
        wanted = {**{k: v for k, v in made[-2].items() if k not in less}, **more}
        assert made[-1] == wanted
    for before in (*made, FrozenDict(made[0])):
        for after in made:
            real = {k for k in {*before, *after} if before.get(k) is not after.get(k)}
            assert real <= after.differing(before)
    assert {k for k in made[-1] if made[0].get(k) is not made[-1][k]} <= made[-1].differing(made[0])


def test_one_change_is_one_key() -> None:
    """In a dict of ten thousand, one key that is added, changed or removed is the only difference; a change without
    effect gives the same dict."""
    many = FrozenDict(dict.fromkeys(range(10000), VALUES[0]))
    assert many.put(7, VALUES[1]).differing(many) == {7}
    assert many.drop([7]).differing(many) == {7}
    assert many.put(-1, VALUES[1]).drop([8]).differing(many) == {-1, 8}
    assert many.put(7, VALUES[0]) is many.drop([-1]) is many


def test_it_never_changes() -> None:
    """A frozen dict cannot be changed, so that a reader needs no lock."""
    known = FrozenDict({1: 2})
    for change in (
        lambda: known.__setitem__(1, 3),
        lambda: known.pop(1),
        lambda: known.update({1: 3}),
        known.clear,
        lambda: known.__delitem__(1),
        lambda: known.setdefault(2, 2),
        known.popitem,
        lambda: known.__ior__({2: 2}),
    ):
        with pytest.raises(TypeError):
            change()
    assert known == {1: 2}
