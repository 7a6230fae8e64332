"""Selections as definitions: which pre-activations are kept, and that padding is nothing.

E is the specification's example, see `tests/sae/checks.py`: pre = [[1.5,1,1.7,-1.5],[.6,-1,-.44,-.6]].
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae import select
from sae.select import BatchTopK, JumpReLU, ReLU, TopK
from tests.reference import batchtopk as reference
from tests.reference import linear

E = torch.tensor([[1.5, 1.0, 1.7, -1.5], [0.6, -1.0, -0.44, -0.6]])


# --- TopK ---


def test_topk_by_hand():
    latents = TopK(2)(E)
    assert torch.equal(latents.dense(), torch.tensor([[1.5, 0, 1.7, 0], [0.6, 0, 0, 0]]))
    assert latents.offsets.tolist() == [0, 2, 4]
    assert sorted(latents.indices[2:].tolist()) == [0, 2], "padding is selected, at value 0"
    assert latents.firing_counts().tolist() == [2, 0, 1, 0]


@pytest.mark.parametrize("k", [1, 3])
def test_rows_of_negatives_fire_nothing(k):
    latents = TopK(k)(-torch.rand(4, 3) - 0.1)
    assert latents.values.tolist() == [0.0] * (4 * k)
    assert (latents.pre_acts < 0).all()


def test_all_latents_may_be_kept():
    pre_acts = torch.tensor([[1.0, -2.0, 3.0]])
    assert TopK(3)(pre_acts).dense().tolist() == [[1.0, 0.0, 3.0]]
    assert BatchTopK(3)(pre_acts).dense().tolist() == [[1.0, 0.0, 3.0]]


def test_of_equals_k_are_kept_each_once():
    latents = TopK(2)(torch.ones(3, 5))
    for row in latents.indices.view(3, 2).tolist():
        assert len(set(row)) == 2
    assert latents.dense().sum(dim=1).tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("choose", [TopK(2), BatchTopK(2), ReLU(), JumpReLU(torch.zeros(5))], ids=lambda s: repr(s)[:9])
def test_no_rows(choose):
    latents = choose(torch.zeros(0, 5))
    assert latents.batch == 0
    assert latents.dense().shape == (0, 5)


@given(st.integers(0, 4), st.integers(1, 6), st.data())
def test_topk_is_that_of_a_full_sort(batch, n_latents, data):
    k = data.draw(st.integers(1, n_latents))
    pre_acts = torch.randn(batch, n_latents, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 999))))
    latents = TopK(k)(pre_acts)
    assert torch.equal(latents.dense(), linear.active(pre_acts, linear.top(pre_acts, k)))
    at = latents.rows() * n_latents + latents.indices
    assert torch.equal(latents.pre_acts, pre_acts.flatten()[at])


# --- BatchTopK ---


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (1, [[1.5, 0, 1.7, 0], [0, 0, 0, 0]]),  # 2 entries, both of row 0
        (2, [[1.5, 1.0, 1.7, 0], [0.6, 0, 0, 0]]),  # 4 entries: a ReLU here
        (3, [[1.5, 1.0, 1.7, 0], [0.6, 0, 0, 0]]),  # 6 slots for the 4 positive ones
    ],
)
def test_batchtopk_by_hand(k, expected):
    latents = BatchTopK(k)(E)
    assert torch.equal(latents.dense(), torch.tensor(expected))
    assert (latents.values > 0).all(), "slots that nothing positive fills stay empty"


def test_of_equals_at_the_edge_the_earlier_rows_keep_theirs():
    # 4 slots: 3 and 2 are above the edge, 1.0 at five places has two
    pre_acts = torch.tensor([[0.0, 1.0, 3.0], [1.0, 2.0, 1.0], [1.0, 1.0, 0.5], [-1.0, -1.0, -1.0]])
    latents = BatchTopK(1)(pre_acts)
    assert latents.dense().tolist() == [[0, 1.0, 3.0], [1.0, 2.0, 0], [0, 0, 0], [0, 0, 0]]
    assert latents.offsets.tolist() == [0, 2, 4, 4, 4]


def test_a_batch_without_a_positive_one_keeps_nothing():
    latents = BatchTopK(2)(torch.tensor([[-1.0, 0.0], [-2.0, -0.5]]))
    assert latents.offsets.tolist() == [0, 0, 0], "0 is not positive"


@given(seed=st.integers(0, 10**6), n=st.integers(1, 300), data=st.data())
def test_of_equal_strengths_the_smallest_keys_are_kept(seed, n, data):
    generator = torch.Generator().manual_seed(seed)
    keys, wanted = torch.randperm(n, generator=generator), data.draw(st.integers(1, n))
    assert sorted(select._largest(torch.ones(n), keys, wanted).tolist()) == list(range(wanted))


@given(seed=st.integers(0, 10**6), n=st.integers(1, 300), data=st.data())
def test_a_gpus_choice_is_the_same(seed, n, data):
    """Equal strengths are taken in their order, which is that of the keys; others come with too few positive ones."""
    strengths = torch.randn(n, generator=torch.Generator().manual_seed(seed)).mul(4).round()
    wanted, keys = data.draw(st.integers(1, n)), 3 * torch.arange(n)
    for names in (None, keys):
        own, found = select._largest_on_gpu(strengths, names, wanted), select._largest(strengths, names, wanted)
        assert len(own) == wanted
        positive = own[strengths[own if names is None else own // 3] > 0]
        assert sorted(positive.tolist()) == sorted(found.tolist())


@pytest.mark.parametrize("choose", [BatchTopK(7), JumpReLU(torch.zeros(45)), ReLU()], ids=lambda s: repr(s)[:9])
def test_a_rows_entries_ascend(choose):
    """Matryoshka relies on it: its prefixes are stretches of each row."""
    latents = choose(torch.randn(47, 45, generator=torch.Generator().manual_seed(0)))
    at = latents.rows() * 45 + latents.indices
    assert (at.diff() > 0).all()
    assert len(at) > 300


def test_rows_in_another_order_keep_the_same():
    pre_acts = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    assert torch.equal(BatchTopK(3)(pre_acts[order]).dense(), BatchTopK(3)(pre_acts).dense()[order])


# of normal values, and of where the fast choice looks first: every 61st entry of the batch
ADVERSARIES = {
    "random": lambda values, _: values,
    "ties": lambda values, _: (2 * values).round(),
    "all equal": lambda values, _: torch.ones_like(values),
    "sample is largest": lambda values, sampled: values + 10 * sampled,  # too few exceed the guessed bound
    "sample is one value": lambda values, sampled: torch.where(sampled, 1.0, 0.1 * values),  # ties at that bound
    "sample is negative": lambda values, sampled: torch.where(sampled, -1.0, values),
    "only the sample is positive": lambda values, sampled: torch.where(sampled, 1.0, -1.0) * values.abs(),
    "few are positive": lambda values, _: torch.where(values > 2.3, values, -values.abs()),
    "one row": lambda values, _: values + 10 * (torch.arange(len(values)) == len(values) // 2)[:, None],
    "one latent": lambda values, _: values + 10 * (torch.arange(values.shape[1]) == 3),
    "heavy tail": lambda values, _: values**9,
    "sorted upwards": lambda values, _: values.flatten().sort().values.view_as(values),
    "denormal": lambda values, _: values * 1e-42,
}


def adversary(kind: str, batch: int, n_latents: int, seed: int) -> torch.Tensor:
    values = torch.randn(batch, n_latents, generator=torch.Generator().manual_seed(seed))
    return ADVERSARIES[kind](values, (torch.arange(values.numel()) % 61 == 0).view_as(values))


@pytest.mark.parametrize("k", [1, 7, 20, 45])
@pytest.mark.parametrize("kind", ADVERSARIES)
def test_the_fast_choice_is_that_of_a_full_sort(kind, k):
    pre_acts = adversary(kind, 47, 45, seed=k)
    latents = BatchTopK(k)(pre_acts)
    assert torch.equal(latents.dense(), linear.active(pre_acts, reference.kept(pre_acts, k)))
    assert (latents.values > 0).all()


@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 40), st.sampled_from(list(ADVERSARIES)), st.data())
def test_the_fast_choice_at_any_size(seed, batch, n_latents, kind, data):
    k = data.draw(st.integers(1, n_latents))
    pre_acts = adversary(kind, batch, n_latents, seed)
    assert torch.equal(BatchTopK(k)(pre_acts).dense(), linear.active(pre_acts, reference.kept(pre_acts, k)))


def test_the_guessed_bound_spares_most_of_the_work():
    """Of 200 000 entries that are mostly positive, the exact choice looks at a few times the 3200 it wants."""
    pre_acts = torch.rand(100, 2000, generator=torch.Generator().manual_seed(0))
    floor = select._lower_bound(pre_acts.flatten(), 32 * 100)
    assert 3200 < (pre_acts > floor).sum() < 4 * 3200


# --- a threshold for use ---


def test_a_threshold_keeps_what_exceeds_it():
    latents = JumpReLU(torch.full((4,), 1.5))(E)
    assert torch.equal(latents.dense(), torch.tensor([[0, 0, 1.7, 0], [0, 0, 0, 0]])), "1.5 itself does not"
    assert torch.equal(JumpReLU(torch.zeros(4))(E).dense(), E.relu()), "0 is a ReLU"
    assert torch.equal(JumpReLU(torch.full((4,), -2.0))(E).dense(), E.relu()), "no latent is ever negative"
