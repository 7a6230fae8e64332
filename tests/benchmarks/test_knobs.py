"""The search for equal L0, on laws whose answer is known."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.knobs import Knob, Try, nearest

COEFFICIENT, K = Knob(4.0, is_rising=False), Knob(20, is_rising=True, is_whole=True)


@pytest.mark.parametrize(
    ("tries", "wanted"),
    [
        ([], 4),
        ([(4, 40)], 8),  # L0 is taken to fall as 1 / coefficient: twice too large, so twice the coefficient
        ([(4, 4000)], 32),  # 200 times too large, but never more than 8 times as much
        ([(4, 0)], 0.5),
        ([(4, 40), (16, 10)], 8),  # on both sides: half-way in logarithms
        ([(1, 40), (4, 20 * 2**0.5)], 16),  # on one side: it fell by sqrt 2 over a factor of 4, and must again
        ([(4, 80), (8, 81)], 16),  # two that say that it rises are not believed: 4 times too large at 4
        ([(4, 40), (8, 41)], None),  # unless that has been tried
        ([(1, 200), (8, 190)], None),  # L0 follows no more
        ([(4, 80), (8, 79.9)], 64),  # nor a slope of almost 0: 4 times too large, at 1/4 a factor of 256, at most 8
    ],
)
def test_coefficients(tries, wanted):
    found = COEFFICIENT.next([Try(*pair) for pair in tries], 20)
    assert found == (wanted and pytest.approx(wanted, rel=1e-3))


@pytest.mark.parametrize(
    ("tries", "wanted"),
    [
        ([], 20),
        ([(20, 18)], 22),  # 20 * 20 / 18 = 22.2
        ([(20, 25), (16, 19)], 17),  # between them, where log L0 is that of 20: 16.7
        ([(20, 20.3)], None),  # 19.7 is 20 again
        ([(1, 80)], None),  # never below 1
    ],
)
def test_whole_numbers(tries, wanted):
    assert K.next([Try(*pair) for pair in tries], 20) == wanted


def test_neighbours_count_where_it_does_not_fall_evenly():
    """A bump: 0.3 → 3.0, 0.5 → 3.5, 1.6 → 0.6. The target 2 lies between the last two, whatever is nearest."""
    value = COEFFICIENT.next([Try(0.3, 3.0), Try(1.6, 0.6), Try(0.5, 3.5)], 2.0)
    assert value == pytest.approx(0.5 * 3.2 ** (math.log(3.5 / 2) / math.log(3.5 / 0.6)), rel=1e-3)  # 0.722


@given(st.floats(0.5, 3), st.floats(0.7, 600), st.booleans())
def test_a_power_law_is_met_in_few_tries(slope, factor, is_rising):
    """From an L0 up to a factor of 30 off."""
    knob, tries = Knob(1.0, is_rising), []
    for _ in range(7):
        value = knob.next(tries, 20)
        assert value is not None
        tries.append(Try(value, factor * value ** (slope if is_rising else -slope)))
        if abs(tries[-1].l0 - 20) <= 1:
            break
    assert abs(nearest(tries, 20).l0 - 20) <= 1


def test_nearest():
    assert nearest([Try(1, 30), Try(2, 19), Try(3, math.inf)], 20) == Try(2, 19)
