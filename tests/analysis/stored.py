"""Codes on disk, and their summary, from firings that a test writes down."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from analysis.codes import PartCodes, StoredCodes, packed, part_path
from analysis.encode import both_orders
from analysis.parts import Part, plan
from analysis.summary import Summary
from sae.tokens import TokenSplit

Firings = Sequence[Mapping[int, float]]
"""{position: value} of each latent."""


def split_of(lengths) -> TokenSplit:
    """Contexts of these lengths, of one token, each a document."""
    starts = np.append(0, np.cumsum(lengths)).astype(np.int64)
    return TokenSplit("train", np.zeros(starts[-1], np.uint16), starts, starts, {})


def part_codes(part: Part, firings: Firings) -> PartCodes:
    """What a dictionary would give on the rows of `part`."""
    rows = [
        sorted((latent, own[position]) for latent, own in enumerate(firings) if position in own)
        for position in part.position_of(np.arange(part.n_rows)).tolist()
    ]
    entries = [entry for row in rows for entry in row]
    latents = np.array([latent for latent, _ in entries], dtype=np.int32)
    values = packed(np.array([value for _, value in entries], dtype=np.float32))
    return both_orders(np.append(0, np.cumsum([len(row) for row in rows])), latents, values, len(firings))


def stored(
    path: Path,
    split: TokenSplit,
    firings: Firings,
    skip: int = 0,
    n_rows: int = 1 << 20,
    n_kept: int = 1 << 20,
    part_rows: int = 1 << 16,
) -> tuple[StoredCodes, Summary]:
    """As the encoder would leave them."""
    path.mkdir(parents=True, exist_ok=True)
    summary, paths = Summary.empty(len(firings), unit=0), []
    for number, part in enumerate(plan(split, skip, n_rows, n_kept, part_rows)):
        codes = part_codes(part, firings)
        if part.is_kept:
            paths.append(part_path(path, split.name, number))
            codes.write(paths[-1], part)
        summary.add_part(part, number, codes, split)
    return StoredCodes(paths, len(split.tokens)), summary
