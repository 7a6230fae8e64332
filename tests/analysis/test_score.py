import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.nulls import best_token, density_neighbours, shuffled
from analysis.score import (
    Counts,
    average_precision,
    counts,
    f1_interval,
    hits,
    pearson,
    recall_by_decile,
    resamples,
    token_r2,
)


def test_counts_by_hand():
    # predicted 1 3 5, firing 3 5 7 9: two hits; P = 2/3, R = 2/4, F1 = 4/7, IoU = 2/5
    found = counts(np.array([1, 3, 5]), np.array([3, 5, 7, 9]))
    assert (found.n_true, found.n_predicted, found.n_firings) == (2, 3, 4)
    assert found.precision == pytest.approx(2 / 3)
    assert found.recall == pytest.approx(1 / 2)
    assert found.f1 == pytest.approx(4 / 7)
    assert found.iou == pytest.approx(2 / 5)


def test_counts_of_nothing_are_zero():
    assert Counts(0, 0, 0).f1 == Counts(0, 0, 0).iou == Counts(0, 0, 5).precision == Counts(0, 5, 0).recall == 0.0
    assert hits(np.array([1, 2]), np.array([], dtype=int)).tolist() == [False, False]


def test_average_precision_with_ties_by_hand():
    # scores .9 | .5 .5 | none x 7; firings: the first, one of the tie, one without a score
    # recall steps 1/3 at P = 1/1, 1/3 at P = 2/3, 1/3 at P = 3/10
    scores, is_hit = np.array([0.5, 0.9, 0.5]), np.array([True, True, False])
    expected = (1 + 2 / 3 + 3 / 10) / 3
    assert average_precision(scores, is_hit, n_firings=3, n_valid=10) == pytest.approx(expected)
    assert average_precision(scores[[2, 1, 0]], is_hit[[2, 1, 0]], 3, 10) == pytest.approx(expected)


def test_average_precision_at_the_edges():
    none = np.array([])
    assert average_precision(none, none.astype(bool), n_firings=2, n_valid=8) == pytest.approx(2 / 8)
    assert average_precision(none, none.astype(bool), n_firings=0, n_valid=8) == 0.0
    assert average_precision(np.ones(2), np.ones(2, bool), n_firings=2, n_valid=8) == 1.0


def brute_force(scores: np.ndarray, labels: np.ndarray) -> float:
    """The mean over firings of precision at that firing's score."""
    precision = [labels[scores >= scores[i]].mean() for i in np.flatnonzero(labels)]
    return float(np.mean(precision)) if precision else 0.0


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=30))
def test_average_precision_is_the_mean_precision_at_each_firing(pairs):
    scores, labels = np.array([s / 4 for s, _ in pairs]), np.array([fires for _, fires in pairs])
    some = scores > 0
    sparse = average_precision(scores[some], labels[some], int(labels.sum()), len(labels))
    assert sparse == pytest.approx(brute_force(scores, labels), abs=1e-12)


@given(st.integers(0, 2**32 - 1))
def test_pearson_is_the_correlation_of_the_dense_vectors(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.random(40) * (rng.random(40) < 0.4), rng.random(40) * (rng.random(40) < 0.4)
    x[0] = y[1] = 0.5
    at, on = np.flatnonzero(x), np.flatnonzero(y)
    assert pearson(at, x[at], on, y[on], 40) == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-12)


def test_pearson_of_a_constant_is_zero():
    empty = np.array([], dtype=int)
    assert pearson(empty, np.array([]), np.array([3]), np.array([1.0]), 9) == 0.0


def test_recall_by_decile_by_hand():
    # 20 firings of value 1..20: two to a tenth; the label catches the strongest 3 only
    fired, values = np.arange(20), np.arange(1.0, 21.0)
    assert recall_by_decile(np.array([17, 18, 19]), fired, values) == [0.0] * 8 + [0.5, 1.0]
    assert recall_by_decile(np.array([0]), fired[:0], values[:0]) == [0.0] * 10


def test_interval_is_the_same_each_time_and_holds_the_score():
    rng = np.random.default_rng(0)
    documents = np.repeat(np.arange(20), 50)
    fired, predicted = np.flatnonzero(rng.random(1000) < 0.1), np.flatnonzero(rng.random(1000) < 0.1)
    predicted = np.union1d(predicted, fired[::2])
    draws = resamples(20, 200, seed=3)
    low, high = f1_interval(predicted, fired, documents, draws)
    assert (low, high) == f1_interval(predicted, fired, documents, resamples(20, 200, seed=3))
    assert low < counts(predicted, fired).f1 < high
    assert (draws.sum(axis=1) == 20).all()
    assert (resamples(20, 200, seed=4) != draws).any()


def test_interval_of_one_document_is_a_point():
    documents, draws = np.zeros(10, dtype=int), resamples(1, 50, seed=0)
    low, high = f1_interval(np.array([1, 2]), np.array([2, 3]), documents, draws)
    assert low == high == pytest.approx(0.5)


def test_token_r2_by_hand():
    # a = (2, 0, 0, 2) on tokens (0, 0, 1, 2): means 1, 0, 2; Var = 1, Var of means = (1+1+0+4)/4 - 1 = 0.5
    tokens = np.array([0, 0, 1, 2])
    r2 = token_r2(tokens, np.array([0, 3]), np.array([2.0, 2.0]), np.array([2, 1, 1, 0]))
    assert r2 == pytest.approx(0.5)
    assert token_r2(tokens, np.array([], dtype=int), np.array([]), np.array([2, 1, 1, 0])) == 0.0


def test_best_token_by_hand():
    # F1 with 10 firings: 2*4/(4+10) = .57, 2*6/(20+10) = .40; the lowest id wins a tie
    assert best_token(np.array([0, 4, 6, 4]), np.array([5, 4, 20, 4]), 10) == 1


def test_shuffled_f1_by_hand():
    # 10 predictions at density 20/100 meet 2 firings: F1 = 4/30, precision 0.2
    assert shuffled(10, 20, 100) == pytest.approx((4 / 30, 0.2))
    assert shuffled(0, 0, 0) == (0.0, 0.0)


def test_density_neighbour_is_the_next_labelled_one():
    counts_, labelled = np.array([5, 50, 7, 40, 9]), np.array([True, True, False, True, False])
    # by count: 0 (5), 2 (7), 4 (9), 3 (40), 1 (50); labelled 0, 3, 1
    assert density_neighbours(counts_, labelled).tolist() == [3, 3, 3, 1, 3]
    assert density_neighbours(counts_, np.zeros(5, dtype=bool)).tolist() == [-1] * 5
