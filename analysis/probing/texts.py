"""Labelled texts of the user's own, as tasks: a CSV or JSON Lines file with `text`, `label` and, if it likes, `split`.

A text is one context, cut where the network's own contexts are; its latents are means over its tokens, as in SAEBench.
Without a `split` (`fit` or `test`) a hash of the text gives a fifth of them to `test`: equal texts never stand on both
sides. Of two labels there is one task, of more one for each: is it this one?
"""

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from analysis.probing.tasks import Examples, Task
from sae.config import DataConfig
from sae.errors import DataError
from sae.text import hashed_split
from sae.tokens import TokenSplit

COLUMNS = ("text", "label")
SPLITS = ("fit", "test")
SHARES = (0.0, 0.0, 0.2)  # of `hashed_split`: to test; the rest is fitted on
MOST_LABELS = 20  # of a file, the commonest


@dataclass(frozen=True)
class Labelled:
    """One text, or the texts of a split in order."""

    text: str
    label: str
    split: str


def read(path: Path) -> list[Labelled]:
    """The texts of a file.

    Raises:
        DataError: no such file, not of a known kind, a column is missing, or a line is wrong; the message says which.
    """
    readers = {".csv": _csv, ".jsonl": _jsonl}
    if path.suffix not in readers:
        raise DataError(f"analysis.eval.probe_files: {path}: must be a .csv or .jsonl file with text and label")
    try:
        found = [_checked(path, line, record) for line, record in readers[path.suffix](path)]
    except OSError as error:
        raise DataError(f"analysis.eval.probe_files: {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"analysis.eval.probe_files: {path}: not UTF-8 text") from None
    if len({each.label for each in found}) < 2:
        raise DataError(f"analysis.eval.probe_files: {path}: must hold texts of two labels at least")
    return found


def _csv(path: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        for record in reader:
            yield reader.line_num, record


def _jsonl(path: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise DataError(f"analysis.eval.probe_files: {path}, line {number}: no JSON: {error}") from None
            if not isinstance(record, dict):
                raise DataError(f"analysis.eval.probe_files: {path}, line {number}: must be an object")
            yield number, record


def _checked(path: Path, line: int, record: Mapping[str, object]) -> Labelled:
    where = f"analysis.eval.probe_files: {path}, line {line}"
    for column in COLUMNS:
        if record.get(column) is None:
            raise DataError(f"{where}: has no {column}; it has {', '.join(map(str, record))}")
    text, label = record["text"], record["label"]
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where}: text = {text!r}: must be text")
    split = record.get("split") or None
    if split is None:
        split = "test" if hashed_split(text, SHARES) == "test" else "fit"
    if split not in SPLITS:
        raise DataError(f"{where}: split = {split!r}: must be fit or test")
    return Labelled(text, str(label), str(split))


def tokens(texts: Sequence[Labelled], name: str, tokenizer: PreTrainedTokenizerBase, cfg: DataConfig) -> TokenSplit:
    """The texts of one split as contexts of their own, with a beginning-of-sequence token as the run has it; each is
    cut at `cfg.context` tokens."""
    bos = [] if cfg.bos == "none" else [tokenizer.bos_token_id]
    encoded = tokenizer([each.text for each in texts], add_special_tokens=False, verbose=False)["input_ids"]
    pieces = [np.array((bos + ids)[: cfg.context], dtype=np.uint32) for ids in encoded]  # type: ignore[operator]
    starts = np.append(0, np.cumsum([len(piece) for piece in pieces])).astype(np.int64)
    flat = np.concatenate(pieces) if pieces else np.zeros(0, np.uint32)
    return TokenSplit(name, flat, starts, starts, {})


def tasks(name: str, texts: Sequence[Labelled], splits: Mapping[str, TokenSplit], skip: int) -> list[Task]:
    """One for each label, or one in all of two labels (the greater is the true one).

    Args:
        name: of the file.
        splits: `tokens` of the texts of `fit` and of `test`.
    """
    counts = Counter(each.label for each in texts)
    chosen = sorted(sorted(counts, key=lambda label: (-counts[label], label))[:MOST_LABELS])
    known = chosen[1:] if len(chosen) == 2 else chosen
    stretches = {split: _stretches(found, skip) for split, found in splits.items()}
    result = []
    for label in known:
        own = {}
        for split, (starts, stops, numbers) in stretches.items():
            of = np.array([each.label for each in texts if each.split == split], dtype=object)[numbers]
            own[split] = Examples(starts, stops, (of == label).astype(bool), numbers)
        result.append(Task(f"{name}={label}", f"of texts in {name}: {label}?", "text", own["fit"], own["test"]))
    return result


def _stretches(split: TokenSplit, skip: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(first row, last row + 1, number) of each text that has rows."""
    bounds = split.row_starts(skip)
    numbers = np.flatnonzero(np.diff(bounds))
    return bounds[numbers], bounds[numbers + 1], numbers
