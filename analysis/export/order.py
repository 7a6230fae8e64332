"""Which features a reader should meet first."""

from collections.abc import Mapping, Sequence

STATUSES = ("labelled", "abstained", "unlabelled", "rare", "silent")
N_EXEMPLARS = 6
SHORT_TEXT = 80
"""Characters of a label that can be taken in at a glance."""
MODERATE_DENSITY = (1e-4, 2e-2)


def interesting_first(latents: Sequence[Mapping], labels: Sequence[Mapping]) -> list[int]:
    """Rows by what teaches most: labelled, far above the single-token baseline, of moderate density."""

    def key(row: int) -> tuple:
        label, density = labels[row], latents[row]["density"]
        margin = (label["f1"] or 0.0) - (label["token_f1"] or 0.0)
        low, high = MODERATE_DENSITY
        extreme = 0.0 if low <= density <= high else 0.25
        return STATUSES.index(label["status"]), extreme - margin, -(label["f1"] or 0.0), row

    return sorted(range(len(latents)), key=key)


def exemplary(order: Sequence[int], labels: Sequence[Mapping], has_example: Sequence[bool]) -> list[int]:
    """The first rows of `order` that are labelled, scored and have an example: short labels first, then a family at
    a time."""
    fit = [
        row
        for row in order
        if labels[row]["status"] == "labelled" and labels[row]["f1"] is not None and has_example[row]
    ]
    fit.sort(key=lambda row: len(labels[row]["text"]) > SHORT_TEXT)
    distinct = _first_of(fit, [labels[row]["text"] for row in fit])
    leaders = _first_of(distinct, [labels[row]["family"] for row in distinct])
    taken = set(leaders)
    return [*leaders, *(row for row in distinct if row not in taken)][:N_EXEMPLARS]


def _first_of(rows: Sequence[int], keys: Sequence[str]) -> list[int]:
    """Rows whose key no earlier row has."""
    first = dict(zip(reversed(keys), reversed(rows), strict=True))
    return [row for row, key in zip(rows, keys, strict=True) if first[key] == row]
