"""Figures as tables and manifests have them: to six decimals, none where they are not known."""

from collections.abc import Iterable
from typing import Any

import numpy as np

N_DIGITS = 6


def rounded(value: Any) -> Any:
    """A JSON value with every number in it to six decimals; tuples are lists."""
    if isinstance(value, float):
        return round(value, N_DIGITS)
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(entry) for entry in value]
    return value


def median(values: Iterable[float | None]) -> float | None:
    """Of those that are known; none if none is."""
    known = [value for value in values if value is not None]
    return round(float(np.median(known)), N_DIGITS) if known else None
