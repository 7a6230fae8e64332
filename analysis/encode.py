"""Activations → codes: what every latent does on every token, a part of a split at a time.

    codes/<split>-00000.safetensors   the codes of a part (`analysis/codes.py`)
    codes/summary.safetensors         of all latents over all parts of the train split (`analysis/summary.py`)

Processes that were started together share the parts. After a kill they go on: each has written down its summary from
time to time, and only what is in none is encoded again.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from tqdm import tqdm

from analysis.codes import PartCodes, packed, part_path
from analysis.config import IndexConfig
from analysis.parts import PART_ROWS, Part, plan, runs
from analysis.summary import Summary
from sae import memory
from sae.dictionary import Dictionary
from sae.files import read_json, write_json
from sae.stage import SCRATCH
from sae.store import ActivationStore, Pairs, Places
from sae.team import current
from sae.tokens import TokenSplit, TokenStore

ROWS = 8192  # rows encoded at a time
PART_ENTRIES = 1 << 24  # firings of a part, about, at most: a part is sorted in memory
SUMMARISED = "train"
"""The split that the index is about; labels are fitted, chosen and scored on the others."""
CHECKPOINT_SECONDS = 60.0
SAMPLE_ROWS, LEAST_ROWS = 1024, 1024


@memory.reused()
def build(
    dictionary: Dictionary,
    n_latents: int,
    activations: ActivationStore,
    places: Places,
    tokens: TokenStore,
    cfg: IndexConfig,
    out: Path,
) -> dict[str, Any]:
    """Write the codes of every split and the summary of `train` into `out`; returns the facts of the box."""
    facts: dict[str, Any] = {}
    scales = _scales(dictionary, activations.pairs(places, SUMMARISED), out)
    for name in tokens.splits():
        split, skip = tokens.split(name), activations.skip_positions
        is_summarised = name == SUMMARISED
        limits = (cfg.tokens, cfg.kept_tokens) if is_summarised else (cfg.label_tokens, cfg.label_tokens)
        parts = plan(split, skip, *limits, scales["part_rows"])
        task = Task(dictionary, n_latents, activations.pairs(places, name), split, skip, parts)
        if is_summarised:
            summarise(task, Summary.empty(n_latents, scales["unit"]), out)
        else:
            keep(task, out)
        kept = [part for part in task.parts if part.is_kept]
        facts[name] = {
            "n_rows": sum(part.n_rows for part in task.parts),
            "n_kept": sum(part.n_rows for part in kept),
            "kept_parts": len(kept),
            "n_tokens": len(split.tokens),
        }
    return {"splits": facts, "n_latents": n_latents, "skip_positions": activations.skip_positions}


@dataclass(frozen=True, eq=False)
class Task:
    """The encoding of one split."""

    dictionary: Dictionary
    n_latents: int
    rows: Pairs
    split: TokenSplit
    skip: int
    """Positions at the beginning of a context that have no row."""
    parts: list[Part]

    def own(self, done: Sequence[int]) -> list[int]:
        """The numbers of the parts that are left to this process; all must be told the same of what is done."""
        left = [number for number in range(len(self.parts)) if number not in set(done)]
        return left[current().rank :: current().size]

    def codes(self, numbers: list[int]) -> Iterator[tuple[int, Part, PartCodes]]:
        """Encode some parts, one after the other."""
        first_rows = self.split.row_starts(self.skip)
        total = sum(self.parts[number].n_rows for number in numbers)
        title, is_hidden = f"index {self.split.name}", not current().is_main
        with tqdm(total=total, unit="tok", unit_scale=True, desc=title, mininterval=1.0, disable=is_hidden) as progress:
            for number in numbers:
                part = self.parts[number]
                yield number, part, encode(self.dictionary, self.n_latents, self.rows, runs(part, first_rows))
                progress.update(part.n_rows)


def keep(task: Task, out: Path) -> None:
    """Write the codes of all parts."""
    done = [n for n in range(len(task.parts)) if part_path(out, task.split.name, n).exists()]
    for number, part, codes in task.codes(task.own(current().told(done))):
        codes.write(part_path(out, task.split.name, number), part)


def summarise(task: Task, empty: Summary, out: Path) -> None:
    """Write the codes of those parts that are kept, and the summary of all; `empty` is that of none."""
    team, name = current(), task.split.name
    known, lost = team.told(_known(task, out) if team.is_main else ([], []))
    mine, path, saved = empty, out / f"summary-{team.rank}{SCRATCH}", time.monotonic()
    for number, part, codes in task.codes(task.own([n for n in known if n not in lost])):
        if part.is_kept:
            codes.write(part_path(out, name, number), part)
        if number not in lost:
            mine.add_part(part, number, codes, task.split)
        if time.monotonic() - saved > CHECKPOINT_SECONDS:
            mine.save(path)
            saved = time.monotonic()
    if len(mine.parts):
        mine.save(path)
    team.wait()
    if team.is_main:
        (_gathered(out) or empty).save(out / "summary.safetensors")


def _known(task: Task, out: Path) -> tuple[list[int], list[int]]:
    """The parts that former processes have summed up, now in one file; and those of them whose codes are not there."""
    total = _gathered(out)
    if total is None:
        return [], []
    together = out / f"summary-all{SCRATCH}"
    total.save(together)
    for path in _summaries(out):
        if path != together:
            path.unlink()
    known = total.parts.tolist()
    return known, [n for n in known if task.parts[n].is_kept and not part_path(out, task.split.name, n).exists()]


def _summaries(out: Path) -> list[Path]:
    return sorted(out.glob(f"summary-*{SCRATCH}"))


def _gathered(out: Path) -> Summary | None:
    """All that processes have written down, added up; of two that know the same parts (a kill came between adding
    them up and removing them) the one that knows more."""
    total = None
    for path in sorted(_summaries(out), key=lambda path: -len(Summary.parts_of(path))):
        if total is None:
            total = Summary.load(path)
        elif not np.isin(Summary.parts_of(path), total.parts).any():
            total.merge(Summary.load(path))
    return total


@torch.no_grad()
def encode(dictionary: Dictionary, n_latents: int, rows: Pairs, bounds: list[tuple[int, int]]) -> PartCodes:
    """The codes of the rows within some bounds, one behind the other."""
    device = dictionary.directions.device
    sizes, latents, values = [], [], []
    for block, _ in rows.blocks(bounds, ROWS):
        found = dictionary.encode(block.to(device)).fired()
        codes = packed(found.values.cpu().numpy())
        sizes.append(found.offsets.diff().cpu().numpy())
        latents.append(found.indices.cpu().numpy().astype(np.int32))
        values.append(codes)
    offsets = np.append(0, np.cumsum(np.concatenate(sizes)))
    return both_orders(offsets, np.concatenate(latents), np.concatenate(values), n_latents)


def both_orders(row_offsets: np.ndarray, latents: np.ndarray, values: np.ndarray, n_latents: int) -> PartCodes:
    """Entries by row → by latent too.

    Args:
        row_offsets: `[n_rows + 1]`, int64: row r owns entries `row_offsets[r]:row_offsets[r + 1]`.
        latents: `[nnz]`, int32, each once in a row.
        values: `[nnz]`, uint16, see `packed`.
    """
    n_rows = len(row_offsets) - 1
    matrix = csr_matrix((values, latents, row_offsets), shape=(n_rows, n_latents)).tocsc()
    rows = np.repeat(np.arange(n_rows), np.diff(row_offsets))
    strongest_first = np.sort(rows << 40 | (0xFFFF - values.astype(np.int64)) << 24 | latents) & 0xFFFFFF
    return PartCodes(matrix.indptr.astype(np.int64), matrix.indices, matrix.data, row_offsets, strongest_first)


def _scales(dictionary: Dictionary, rows: Pairs, out: Path) -> dict[str, int]:
    """Rows of a part, fewer where many latents are active, and the power of 2 that activations are about as large as:
    of the first rows. Another device might round otherwise; what was found first holds for all that build the box."""
    team, path = current(), out / f"scales{SCRATCH}"
    if team.is_main and not path.exists():
        with torch.no_grad():
            sample = rows.read(0, min(SAMPLE_ROWS, rows.n_rows))[0].to(dictionary.directions.device)
            values = dictionary.encode(sample).fired().values.double()
        part_rows, l0 = PART_ROWS, len(values) / len(sample)
        while part_rows * l0 > PART_ENTRIES and part_rows > LEAST_ROWS:
            part_rows //= 2
        unit = round(np.log2(values.mean().item())) if len(values) else 0
        write_json(path, {"part_rows": part_rows, "unit": unit})
    return team.told(read_json(path) if team.is_main else {})
