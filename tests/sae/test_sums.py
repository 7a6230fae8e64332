"""Sums by group: hand-computed, and that it does not matter how rows come."""

import numpy as np
import pytest
import torch

from sae.sums import Sums, interval


def test_sums_by_group_and_of_resamples():
    sums = Sums(3)
    sums.add({"a": torch.tensor([1.0, 2.0, 4.0]), "v": torch.eye(3)}, torch.tensor([0, 0, 2]))
    sums.add({"a": torch.tensor([8.0]), "v": torch.ones(1, 3)}, torch.tensor([2]))
    assert sums.by_group["a"].tolist() == [3, 0, 12]
    assert sums.by_group["v"].tolist() == [[1, 1, 0], [0, 0, 0], [1, 1, 2]]
    assert sums.total()["a"] == 15
    drawn = sums.resampled(np.array([[1.0, 1, 1], [2, 1, 0], [0, 3, 0]]))
    assert drawn["a"].tolist() == [15, 6, 0]
    assert drawn["v"].tolist() == [[2, 2, 2], [2, 2, 0], [0, 0, 0]]


def test_groups_that_are_not_side_by_side_are_added_up_too():
    sums = Sums(2)
    sums.add({"a": torch.tensor([1.0, 2.0, 4.0, 8.0])}, torch.tensor([1, 0, 1, 0]))
    assert sums.by_group["a"].tolist() == [10, 5]


def test_without_groups_all_is_one():
    sums = Sums()
    for part in torch.arange(10.0).split(3):
        sums.add({"a": part})
    assert sums.total()["a"] == 45


def test_no_rows_add_nothing():
    sums = Sums(2)
    sums.add({"a": torch.ones(1)}, torch.ones(1, dtype=torch.long))
    sums.add({"a": torch.zeros(0)}, torch.zeros(0, dtype=torch.long))
    assert sums.by_group["a"].tolist() == [0, 1]


def test_an_interval_is_of_quantiles_and_of_numbers():
    assert interval(np.arange(1001.0)) == pytest.approx((25, 975))
    assert interval(np.array([np.nan, 2.0, np.inf, 2.0])) == (2, 2)
    assert np.isnan(interval(np.array([np.nan]))).all()


def test_the_interval_of_a_mean_is_that_of_theory():
    """Of n documents with values 0 or 1, the mean of a resample is binomial: 0.5 ± 1.96 * 0.5 / sqrt(n)."""
    from analysis.score import resamples

    n = 400
    sums = Sums(n)
    sums.add({"a": torch.arange(n) % 2, "n": torch.ones(n)}, torch.arange(n))
    drawn = sums.resampled(resamples(n, 4000, seed=0))
    low, high = interval(drawn["a"] / drawn["n"])
    assert (low, high) == pytest.approx((0.5 - 0.049, 0.5 + 0.049), abs=0.003)
