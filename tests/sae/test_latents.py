"""Latents: the sparse form and the dense one say the same."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from sae.latents import Entries, Latents

# Three rows: l2 fires and l0 was selected without firing; nothing; l1 and l2 fire.
EXAMPLE = Latents(
    values=torch.tensor([1.5, 0.0, 2.0, 0.5]),
    indices=torch.tensor([2, 0, 1, 2]),
    offsets=torch.tensor([0, 2, 2, 4]),
    pre_acts=torch.tensor([1.5, -0.3, 2.0, 0.5]),
    n_latents=4,
)


def test_the_example_by_hand():
    assert EXAMPLE.batch == 3
    assert EXAMPLE.rows().tolist() == [0, 0, 2, 2]
    assert EXAMPLE.dense().tolist() == [[0, 0, 1.5, 0], [0, 0, 0, 0], [0, 2.0, 0.5, 0]]
    assert EXAMPLE.firing_counts().tolist() == [0, 1, 2, 0], "selected at 0 is not fired"


def test_fired_drops_what_was_only_selected():
    fired = EXAMPLE.fired()
    assert fired.values.tolist() == [1.5, 2.0, 0.5]
    assert fired.indices.tolist() == [2, 1, 2]
    assert fired.offsets.tolist() == [0, 1, 1, 3]
    assert fired.pre_acts.tolist() == [1.5, 2.0, 0.5]
    assert torch.equal(fired.dense(), EXAMPLE.dense())


def test_a_subset_keeps_rows_in_place():
    kept = EXAMPLE.subset(torch.tensor([False, True, True, False]))
    assert kept.indices.tolist() == [0, 1]
    assert kept.offsets.tolist() == [0, 1, 1, 2]
    assert (kept.values.tolist(), kept.n_latents) == ([0.0, 2.0], 4)
    assert EXAMPLE.subset(torch.zeros(4, dtype=torch.bool)).offsets.tolist() == [0, 0, 0, 0]


def test_rows_of_entries_and_their_order_by_latent():
    entries = Entries(torch.tensor([3, 1, 1, 0, 3]), torch.tensor([0, 2, 2, 5]))
    assert entries.rows.tolist() == [0, 0, 2, 2, 2]
    assert [side.tolist() for side in entries.by_latent] == [[0, 1, 1, 3, 3], [3, 1, 2, 0, 4]]
    many = Entries(torch.arange(5000) % 3, torch.arange(5001))
    assert many.by_latent[1].view(-1)[:1667].tolist() == list(range(0, 5000, 3)), "those of one latent by row"
    assert Entries(torch.tensor([], dtype=torch.long), torch.tensor([0])).rows.tolist() == []


@st.composite
def sparse(draw):
    """Any latents of up to 4 rows and 5 latents; values may be 0 or negative, rows may be empty."""
    n_latents = draw(st.integers(1, 5))
    rows = draw(st.lists(st.lists(st.integers(0, n_latents - 1), unique=True), max_size=4))
    flat = [index for row in rows for index in row]
    values = draw(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=len(flat), max_size=len(flat)))
    offsets = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)
    return (
        Latents(
            torch.tensor(values, dtype=torch.float32),
            torch.tensor(flat, dtype=torch.long),
            offsets,
            torch.tensor(values),
            n_latents,
        ),
        rows,
        values,
    )


@given(sparse())
def test_dense_rows_and_counts_by_brute_force(example):
    latents, rows, values = example
    dense, at = [[0.0] * latents.n_latents for _ in rows], 0
    for number, row in enumerate(rows):
        for index in row:
            dense[number][index] = values[at]
            at += 1
    assert latents.dense().tolist() == dense
    assert latents.rows().tolist() == [number for number, row in enumerate(rows) for _ in row]
    fired = latents.fired()
    assert fired.dense().tolist() == [[max(value, 0.0) for value in row] for row in dense]
    assert fired.batch == latents.batch
    counts = [sum(row[i] > 0 for row in dense) for i in range(latents.n_latents)]
    assert latents.firing_counts().tolist() == fired.firing_counts().tolist() == counts


@given(sparse(), st.data())
def test_a_subset_and_the_rest_are_the_whole(example, data):
    latents, _, values = example
    drawn = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    kept = torch.tensor(drawn, dtype=torch.bool)
    one, other = latents.subset(kept), latents.subset(~kept)
    assert torch.equal(one.dense() + other.dense(), latents.dense())
    assert torch.equal(one.offsets + other.offsets, latents.offsets)
    assert len(one.values) == int(kept.sum())


def test_a_latent_twice_in_a_row_adds_up():
    twice = Latents(torch.tensor([1.0, 0.5]), torch.tensor([1, 1]), torch.tensor([0, 2]), torch.zeros(2), 3)
    assert twice.dense().tolist() == [[0, 1.5, 0]]


def test_dense_and_subset_pass_gradients_and_fired_does_not():
    values = torch.tensor([1.0, 2.0], requires_grad=True)
    latents = Latents(values, torch.tensor([1, 0]), torch.tensor([0, 1, 2]), values, 2)
    (latents.dense() * torch.tensor([[0.0, 3.0], [5.0, 0.0]])).sum().backward()
    assert values.grad.tolist() == [3.0, 5.0]
    values.grad = None
    latents.subset(torch.tensor([False, True])).values.sum().backward()
    assert values.grad.tolist() == [0.0, 1.0]
    assert not latents.fired().values.requires_grad
