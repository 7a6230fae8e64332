"""Dictionaries of equal L0: which value of a knob (k, a penalty's coefficient) to try next."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

SLOPE = 1.0  # of log L0 over log knob, until two tries tell it
LEAST_SLOPE = 0.25  # below, two tries that are almost equal would send the third one anywhere
NO_SLOPE = 0.1  # below, over the largest step, L0 follows the knob no more
LARGEST_STEP = 8.0  # factor between a try and the next
LEAST_L0 = 0.01  # stands for 0, which has no logarithm


@dataclass(frozen=True)
class Try:
    knob: float
    l0: float


@dataclass(frozen=True)
class Knob:
    """How an architecture's L0 is set."""

    first: float
    """Value that is tried first."""
    is_rising: bool
    """Whether L0 rises with it."""
    is_whole: bool = False

    def next(self, tries: Sequence[Try], target: float) -> float | None:
        """The value to try after `tries`; None if L0 follows no more, or a value would be tried again.

        L0 is taken for a power of the knob. Between two neighbouring tries on both sides of the target it
        is interpolated; on one side only, it is extrapolated from the two nearest, or from one with a
        slope of 1, by a factor of 8 at most.
        """
        value = self._next(tries, target) if tries else self.first
        if value is None:
            return None
        value = max(1, round(value)) if self.is_whole else float(f"{value:.4g}")
        return None if any(tried.knob == value for tried in tries) else value

    def _next(self, tries: Sequence[Try], target: float) -> float | None:
        points = sorted((math.log(tried.knob), _gap(tried, target)) for tried in tries)
        around = [pair for pair in itertools.pairwise(points) if pair[0][1] * pair[1][1] <= 0]
        if around:
            (left, above), (right, below) = min(around, key=lambda pair: abs(pair[0][1]) + abs(pair[1][1]))
            return math.exp(left + (right - left) * above / (above - below))
        (at, gap), *others = sorted(points, key=lambda point: abs(point[1]))
        slope = SLOPE if self.is_rising else -SLOPE
        if others:
            step = others[0][0] - at
            seen = (others[0][1] - gap) / step
            if abs(seen) < NO_SLOPE and abs(step) > 0.99 * math.log(LARGEST_STEP):
                return None
            if seen * slope > 0:
                slope = math.copysign(max(abs(seen), LEAST_SLOPE), slope)
        limit = math.log(LARGEST_STEP)
        return math.exp(at + min(limit, max(-limit, -gap / slope)))


def _gap(tried: Try, target: float) -> float:
    """`log(L0 / target)`."""
    return math.log(max(tried.l0, LEAST_L0) / target)


def nearest(tries: Sequence[Try], target: float) -> Try:
    """The try with L0 nearest to the target."""
    return min(tries, key=lambda tried: abs(tried.l0 - target))
