"""Alternating rounds of contestants, by case: how they are summed up and shown."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.frameworks import OURS
from benchmarks.markdown import table


def summary(rounds: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Medians over the rounds of each contestant, and of each of ours over its speed (`sae-atlas is`)."""
    result = {}
    ours = [name for name in rounds[0] if name.split(",")[0] == OURS]
    for name in rounds[0]:
        own = [each[name] for each in rounds]
        result[name] = {metric: statistics.median(figures[metric] for figures in own) for metric in own[0]}
        for mine in ours:
            ratios = [each[mine]["tokens_per_second"] / each[name]["tokens_per_second"] for each in rounds]
            result[name][f"{mine} is"] = round(statistics.median(ratios), 2)
    return result


def tables(
    cases: Mapping[str, Sequence[Any]], others: Mapping[str, tuple[str, str]], origins: Mapping[str, str]
) -> list[str]:
    """A table of each case, the fastest first.

    Args:
        others: metrics beside speed, with their heads and how they are written; shown where all have them.
        origins: what is said under a case's table.
    """
    lines = []
    for name, rounds in cases.items():
        found = summary(rounds)
        ours = [key for key in next(iter(found.values())) if key.endswith(" is")]
        known = [metric for metric in others if all(metric in own for own in found.values())]
        rows = []
        for who, own in sorted(found.items(), key=lambda item: -item[1]["tokens_per_second"]):
            cells = [who, f"{own['tokens_per_second']:,.0f}", *(f"{own[key]:.1f}×" for key in ours)]
            rows.append([*cells, *(others[metric][1].format(own[metric]) for metric in known)])
        columns = ["", "tokens/s", *ours, *(others[metric][0] for metric in known)]
        lines += [
            f"### {name}, {len(rounds)} round{'s' * (len(rounds) != 1)}\n",
            *table(columns, rows),
            "",
            origins[name],
        ]
    return lines
