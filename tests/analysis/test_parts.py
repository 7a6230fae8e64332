"""Parts: which contexts are encoded, by which hash, and that nothing is left out or taken twice."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.parts import in_hash_order, n_within, plan, runs, scrambled
from tests.analysis.stored import split_of


def kept_of(part) -> list[int]:
    return part.position_of(np.arange(part.n_rows)).tolist()


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.integers(0, 2), st.integers(1, 30), st.data())
def test_parts_have_every_chosen_context_once(lengths, skip, part_rows, data):
    split = split_of([*lengths, 9])
    total = len(split.kept_positions(skip))
    n_rows = data.draw(st.integers(9, total + 5))
    n_kept = data.draw(st.integers(9, total + 5))
    parts = plan(split, skip, n_rows, n_kept, part_rows)
    contexts = np.concatenate([part.contexts for part in parts])
    assert len(set(contexts.tolist())) == len(contexts)
    positions = np.concatenate([kept_of(part) for part in parts])
    assert np.isin(positions, split.kept_positions(skip)).all()
    assert len(positions) == len(set(positions.tolist())) <= n_rows
    if n_rows >= total:
        assert sorted(positions.tolist()) == split.kept_positions(skip).tolist()
    assert sum(part.n_rows for part in parts if part.is_kept) <= n_kept
    for part in parts:
        assert (np.diff(part.contexts) > 0).all()
        assert part.n_rows <= part_rows or len(part.contexts) == 1
        rows = np.arange(part.n_rows)
        assert part.row_of(part.position_of(rows)).tolist() == rows.tolist()
    # those of the smallest hash are encoded, and of those again those of the smallest are kept
    hashes = scrambled(np.arange(split.n_contexts))
    left = set(range(split.n_contexts)) - set(contexts.tolist())
    left -= {i for i in left if np.diff(split.context_starts)[i] <= skip}
    kept = np.concatenate([np.zeros(0, int), *(part.contexts for part in parts if part.is_kept)])
    rest = sorted(set(contexts.tolist()) - set(kept.tolist()))
    assert all(hashes[contexts].max() < hashes[i] for i in left)
    assert all(hashes[kept].max() < hashes[i] for i in rest)


def test_what_is_kept_of_a_part_follows_the_same_order_however_much_is_encoded():
    split = split_of([4] * 50)
    few, many = plan(split, 1, 30, 60), plan(split, 1, 1000, 60)
    assert set(few[0].contexts.tolist()) < set(many[0].contexts.tolist())
    assert [part.is_kept for part in many] == [True, False]


def test_a_context_longer_than_a_part_is_one():
    parts = plan(split_of([10, 2, 2]), 0, 100, 100, part_rows=4)
    assert sorted((part.contexts.tolist(), part.n_rows) for part in parts) == [([0], 10), ([1, 2], 4)]


@pytest.mark.parametrize(
    ("contexts", "expected"), [([0, 1, 2], [(0, 9)]), ([0, 2, 3], [(0, 3), (6, 12)]), ([1], [(3, 6)])]
)
def test_neighbouring_contexts_are_read_together(contexts, expected):
    split = split_of([4] * 4)
    part = next(part for part in plan(split, 1, 100, 100))
    own = type(part)(np.array(contexts), np.arange(len(contexts) + 1) * 3, 4 * np.array(contexts) + 1, True)
    assert runs(own, np.arange(5) * 3) == expected


def test_the_order_of_the_hash_is_of_each_number_by_itself():
    order = in_hash_order(np.arange(100))
    assert sorted(order.tolist()) == list(range(100)) != order.tolist()
    assert in_hash_order(np.arange(0, 100, 3)).tolist() == [n for n in order.tolist() if n % 3 == 0]


@pytest.mark.parametrize(("most", "expected"), [(10, 2), (11, 2), (13, 3), (99, 3), (3, 1)])
def test_how_many_are_within_a_limit(most, expected):
    assert n_within(np.array([4, 6, 3]), most) == expected
