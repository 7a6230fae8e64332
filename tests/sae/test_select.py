"""TopK as a definition: which pre-activations are kept, and that padding is nothing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae.select import TopK
from tests.reference import topk as reference


def test_by_hand():
    latents = TopK(2)(torch.tensor([[1.5, 1.0, 1.7, -1.5], [0.6, -1.0, -0.44, -0.6]]))
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


def test_of_equals_k_are_kept_each_once():
    latents = TopK(2)(torch.ones(3, 5))
    for row in latents.indices.view(3, 2).tolist():
        assert len(set(row)) == 2
    assert latents.dense().sum(dim=1).tolist() == [2.0, 2.0, 2.0]


def test_no_rows():
    latents = TopK(2)(torch.zeros(0, 5))
    assert latents.batch == 0
    assert latents.dense().shape == (0, 5)


@given(st.integers(0, 4), st.integers(1, 6), st.data())
def test_values_and_places_are_those_of_a_full_sort(batch, n_latents, data):
    k = data.draw(st.integers(1, n_latents))
    pre_acts = torch.randn(batch, n_latents, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 999))))
    latents = TopK(k)(pre_acts)
    expected = torch.where(reference.kept(pre_acts, k) & (pre_acts > 0), pre_acts, torch.zeros_like(pre_acts))
    assert torch.equal(latents.dense(), expected)
    at = latents.rows() * n_latents + latents.indices
    assert torch.equal(latents.pre_acts, pre_acts.flatten()[at])
