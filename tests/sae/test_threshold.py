"""The threshold for use: a mean of the batches' smallest latents, right from the first batch on."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae.select import BatchTopK, JumpReLU
from sae.threshold import BatchThreshold
from tests.reference import batchtopk as reference


def test_before_the_first_batch_it_is_a_relu():
    threshold = BatchThreshold(steps=100)
    assert threshold.value().item() == 0.0
    latents = threshold.eval().selection(k=1, n_latents=3)(torch.tensor([[1.0, -1.0, 0.2]]))
    assert latents.dense().tolist() == [[1.0, 0.0, pytest.approx(0.2)]]


def test_by_hand():
    threshold = BatchThreshold(steps=2)  # each batch counts half as much as the next
    threshold.update(torch.tensor([3.0, 1.0, 0.0]))
    assert threshold.value() == 1.0, "the first batch's; an average that starts at 0 would say .5"
    threshold.update(torch.tensor([2.0, 5.0]))
    assert threshold.value().item() == pytest.approx((0.5 * 1 + 2) / (0.5 + 1))
    threshold.update(torch.tensor([6.0]))
    assert threshold.value().item() == pytest.approx((0.25 * 1 + 0.5 * 2 + 6) / 1.75)


@pytest.mark.parametrize("steps", [1, 2, 100])
def test_it_has_no_bias_towards_its_start(steps):
    """SAELens's starts at 0 with weight .01: after 100 batches it has 63 % of the right value."""
    threshold = BatchThreshold(steps)
    for _ in range(120):
        threshold.update(torch.tensor([0.7, 0.9]))
        assert threshold.value().item() == pytest.approx(0.7, rel=1e-5)


@given(st.lists(st.floats(0.125, 100, width=32), min_size=1, max_size=30), st.integers(1, 10))
def test_a_running_mean_of_the_smallest(smallest, steps):
    threshold = BatchThreshold(steps)
    for value in smallest:
        threshold.update(torch.tensor([value, value + 1, 0.0]))
    assert threshold.value().item() == pytest.approx(reference.threshold(smallest, steps), rel=1e-5)


@pytest.mark.parametrize("values", [[], [0.0, 0.0]])
def test_a_batch_without_a_positive_latent_says_nothing(values):
    threshold = BatchThreshold(steps=3)
    threshold.update(torch.tensor([2.0]))
    threshold.update(torch.tensor(values))
    assert (threshold.total, threshold.weight) == (2.0, 1.0), "nor does it make the former ones older"


def test_it_goes_on_where_it_was_saved():
    one, other = BatchThreshold(steps=5), BatchThreshold(steps=5)
    one.update(torch.tensor([2.0]))
    other.load_state_dict(one.state_dict())
    for threshold in (one, other):
        threshold.update(torch.tensor([0.1]))
    assert one.value() == other.value() != 2.0


def test_the_batch_chooses_in_training_and_the_threshold_in_use():
    threshold = BatchThreshold(steps=5)
    threshold.update(torch.tensor([2.0]))
    assert threshold.selection(k=3, n_latents=4) == BatchTopK(3)
    used = threshold.eval().selection(k=3, n_latents=4)
    assert isinstance(used, JumpReLU)
    assert used.threshold.tolist() == [2.0] * 4
    assert used.bandwidth == 0
