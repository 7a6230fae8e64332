"""Figures as they are written."""

import pytest

from analysis.written import median, rounded


def test_every_number_in_a_value_is_rounded():
    value = {"a": 1 / 3, "b": (2 / 3, [1, None, True, "x"]), "c": {"d": 1e-7}}
    assert rounded(value) == {"a": 0.333333, "b": [0.666667, [1, None, True, "x"]], "c": {"d": 0.0}}


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1.0, None, 2.0], 1.5), ([1 / 3], 0.333333), ([3.0, 1.0, 2.0], 2.0), ([None], None), ([], None)],
)
def test_median_is_of_what_is_known(values, expected):
    assert median(values) == expected
