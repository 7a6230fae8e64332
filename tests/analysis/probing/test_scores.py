"""Scores of margins: worked numbers, and that a resample is the score of what was drawn."""

import numpy as np
import pytest

from analysis.probing import scores as module
from analysis.probing.scores import scores, weighted


def test_by_hand():
    # predicted: 1 1 0 0 1; of 3 labelled 2 are found, of 2 others 1 is; F1 = 2 * 2 / (3 + 3).
    # Of 6 pairs of one of each, (3, 2, -1) are above (1, -2) in 2 + 2 + 1 cases
    margins = np.array([3.0, 2.0, -1.0, -2.0, 1.0])
    labels = np.array([1, 1, 1, 0, 0], dtype=bool)
    found = scores(margins, labels, np.arange(5), np.ones((3, 5)))
    assert found["accuracy"].value == pytest.approx(3 / 5)
    assert found["balanced_accuracy"].value == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found["f1"].value == pytest.approx(4 / 6)
    assert found["auroc"].value == pytest.approx(5 / 6)
    assert found["auroc"].interval == pytest.approx((5 / 6, 5 / 6))


def test_ties_count_half():
    # a latent that is silent on most: of 4 pairs 2 are above, 2 tied
    labels = np.array([1, 1, 0, 0], dtype=bool)
    assert weighted(np.array([1.0, 0, 0, 0]), labels, np.ones((1, 4)))["auroc"].tolist() == [0.75]
    assert weighted(np.zeros(4), labels, np.ones((1, 4)))["auroc"].tolist() == [0.5]


def test_a_resample_is_the_score_of_what_was_drawn(monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 30)  # in parts
    rng = np.random.default_rng(0)
    margins, labels, groups = rng.integers(-3, 4, 12) / 2, rng.random(12) < 0.5, np.repeat([0, 1, 2], 4)
    draws = np.array([[1.0, 1, 1], [2, 1, 0], [0, 0, 3], [1, 0, 2], [0, 2, 1]])
    found = weighted(margins, labels, draws[:, groups])
    for number, drawn in enumerate(draws):
        again = np.repeat(np.arange(12), drawn[groups].astype(int))
        plain = weighted(margins[again], labels[again], np.ones((1, len(again))))
        for name, value in plain.items():
            assert found[name][number] == pytest.approx(value[0], nan_ok=True), name
    whole = scores(margins, labels, groups, draws)
    assert whole["accuracy"].interval == pytest.approx(np.quantile(found["accuracy"], [0.025, 0.975]))


def test_documents_in_which_a_class_is_missing_have_no_area():
    labels = np.array([True, True, False])
    found = scores(np.array([1.0, 2.0, 0.0]), labels, np.array([0, 0, 1]), np.array([[2.0, 0], [1, 1], [1, 1]]))
    assert found["auroc"].interval == (1, 1), "of the resamples that have both"
