"""Logistic regression against cases that can be solved otherwise."""

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.sparse import csr_matrix
from scipy.special import expit

from analysis.probing.logistic import fit


@pytest.mark.parametrize("C", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("unit", [1.0, 1e-3, 50.0])
def test_one_column_of_two_values(C, unit):
    """x = 1 is labelled in 3 of 4 cases, x = -1 in 1 of 4: by symmetry b = 0, and w = C sum_i s_i x_i sigma(-s_i x_i w)
    = 2 C (3 sigma(-w) - sigma(w)). Columns of deviation 1 whatever their unit."""
    x = unit * np.array([1.0, 1, 1, 1, -1, -1, -1, -1])[:, None]
    labels = np.array([1, 1, 1, 0, 1, 0, 0, 0], dtype=bool)
    w = brentq(lambda w: w - 2 * C * (3 * expit(-w) - expit(w)), 0, 5)
    found = fit(x, labels, C)
    assert found.weights * unit == pytest.approx([w], rel=1e-5)
    assert found.bias == pytest.approx(0, abs=1e-6)
    assert found.margins(x)[[0, 4]] == pytest.approx([w, -w], rel=1e-5)


def test_without_a_penalty_to_speak_of_a_column_gives_the_classes_log_odds():
    # x = 1: 6 of 8 are labelled, x = 0: 2 of 8
    x = np.repeat([1.0, 0.0], 8)[:, None]
    labels = np.array([1] * 6 + [0] * 2 + [1] * 2 + [0] * 6, dtype=bool)
    found = fit(x, labels, C=1e8)
    assert found.bias == pytest.approx(np.log(2 / 6), rel=1e-3)
    assert found.weights[0] == pytest.approx(2 * np.log(3), rel=1e-3)


@pytest.mark.parametrize("is_sparse", [False, True])
def test_the_gradient_is_zero_there(is_sparse):
    rng = np.random.default_rng(0)
    x = rng.random((60, 5)) * (rng.random((60, 5)) < 0.4) * [1, 10, 0.1, 1, 0]
    labels = rng.random(60) < 0.3 + 0.4 * (x[:, 0] > 0)
    found = fit(csr_matrix(x) if is_sparse else x, labels)
    signs = np.where(labels, 1, -1)
    scale = np.where(x.std(0) > 0, x.std(0), 1)
    pulls = signs * expit(-signs * (x @ found.weights + found.bias))
    assert found.weights * scale == pytest.approx((x / scale).T @ pulls, abs=1e-4), "w = C sum s x sigma(-s margin)"
    assert pulls.sum() == pytest.approx(0, abs=1e-4)
    assert found.weights[-1] == 0, "of a column that is constant"


def test_a_sparse_matrix_gives_what_a_dense_one_gives():
    rng = np.random.default_rng(1)
    x = rng.random((40, 6)) * (rng.random((40, 6)) < 0.3)
    labels = np.arange(40) % 2 == 0
    dense, sparse = fit(x, labels), fit(csr_matrix(x), labels)
    assert sparse.weights == pytest.approx(dense.weights, abs=1e-5)
    assert sparse.margins(csr_matrix(x)) == pytest.approx(dense.margins(x), abs=1e-5)
