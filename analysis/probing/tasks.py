"""Labels that any text gives of itself: what a token is, what comes next, where it stands, where its text is from.

A task is two-way: it has *candidates*, and the label is true of some of them. From each split as many examples are
drawn of either class, so that a guess is right half the time; a hash decides which.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from analysis.codes import Codes, spread_out
from analysis.label.forms import PATTERNS
from analysis.label.places import Places
from analysis.parts import scrambled
from analysis.quality.sample import Sample
from analysis.splits import FitView, TestView, View

QUESTIONS: dict[str, str] = {
    "capitalised": "of beginnings of words: capitalised?",
    "number": "of all tokens: a number?",
    "sentence_start": "of capitalised words: at the start of a sentence?",
    "next_comma": "of all tokens: is a comma next?",
    "next_capitalised": "of all tokens: is a capitalised word next?",
    "in_quotes": "of all tokens: inside quotation marks?",
    "repeated_name": "of capitalised words within sentences: seen before in the context?",
}
"""Of tokens, which a probe sees one at a time."""
SOURCE = "source"
PASSAGE, SHORTEST = 128, 16  # rows of a passage, at most and at least


@dataclass(frozen=True, eq=False)
class Examples:
    """Stretches of rows of one split, ascending, with a label each."""

    starts: np.ndarray
    """`[n]`, int64: rows of the whole split."""
    stops: np.ndarray
    labels: np.ndarray
    """`[n]`, bool."""
    groups: np.ndarray
    """`[n]`, int64, from 0: what each is drawn with (its document)."""

    @property
    def n_of_each(self) -> int:
        """Examples of the class that has fewer."""
        return int(min(self.labels.sum(), (~self.labels).sum()))

    def balanced(self, n: int, seed: int) -> "Examples":
        """As many of either class, at most `n`; a hash of the rows decides which."""
        size, order = min(n, self.n_of_each), np.argsort(scrambled(self.starts + (seed << 40)), kind="stable")
        chosen = [order[self.labels[order] == label][:size] for label in (True, False)]
        kept = np.sort(np.concatenate(chosen))
        groups = np.unique(self.groups[kept], return_inverse=True)[1]
        return Examples(self.starts[kept], self.stops[kept], self.labels[kept], groups)


@dataclass(frozen=True, eq=False)
class Task:
    """A question with its examples on `fit`, from which probes learn, and on `test`, which they are scored on."""

    name: str
    question: str
    level: Literal["token", "text"]
    fit: Examples
    test: Examples


def token_tasks(names: Sequence[str], fit: Sample, test: Sample, strings: tuple[str, ...], skip: int) -> list[Task]:
    """Those of `QUESTIONS` with these names.

    Args:
        strings: text of each token.
        skip: positions at the beginning of a context that have no row.
    """
    names = [name for name in QUESTIONS if name in names]
    if not names:
        return []
    asked = [_asked(sample, kind, strings, skip) for sample, kind in ((fit, FitView), (test, TestView))]
    return [Task(name, QUESTIONS[name], "token", *(each[name] for each in asked)) for name in names]


def source_tasks(fit: Sample, test: Sample, sources: Sequence[Sequence[str]], skip: int) -> list[Task]:
    """For each source of documents: is a passage from it? None where all are from one.

    Args:
        sources: of every document of the whole fit split, and of the whole test split.
    """
    known = sorted(set(sources[0]) & set(sources[1]))
    if len(known) < 2:
        return []
    found = [_passages(sample, skip) for sample in (fit, test)]
    of_each = [np.array(own)[documents] for own, (_, _, documents) in zip(sources, found, strict=True)]
    tasks = []
    for source in known:
        own = [
            Examples(starts, stops, of == source, documents)
            for (starts, stops, documents), of in zip(found, of_each, strict=True)
        ]
        tasks.append(Task(f"{SOURCE}={source}", f"of passages: from {source}?", "text", *own))
    return tasks


def rows_of(sample: Sample) -> np.ndarray:
    """`[n_rows]`: the number in the whole split of each row of a sample."""
    bounds = np.array(sample.bounds).reshape(-1, 2)
    return spread_out(bounds[:, 0], bounds[:, 1] - bounds[:, 0])


def _asked(sample: Sample, kind: type[View], strings: tuple[str, ...], skip: int) -> dict[str, Examples]:
    no_codes = Codes(np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))
    view = kind.of(sample.split, no_codes, strings, skip)
    positions, rows = sample.split.kept_positions(skip), rows_of(sample)
    answers, examples = _answers(view, sample.documents), {}
    for name, (candidates, labels) in answers.items():
        is_one = candidates[positions]
        own, at = rows[is_one], positions[is_one]
        examples[name] = Examples(own, own + 1, labels[at], sample.groups[at])
    return examples


def _answers(view: View, documents: np.ndarray) -> Mapping[str, tuple[np.ndarray, np.ndarray]]:
    """(candidates, label), `[n]` bool each, of every question."""
    patterns = {name: re.compile(pattern) for name, _, pattern in PATTERNS}
    names = ("capitalised_word", "word_start", "number", "comma")
    of_token = {name: np.array([bool(patterns[name].fullmatch(text)) for text in view.strings]) for name in names}
    here = {name: table[view.tokens] for name, table in of_token.items()}
    has_next = np.append(documents[1:] == documents[:-1], False) & ~np.append(view.offsets[1:] == 0, True)
    after = {name: np.append(own[1:], False) for name, own in here.items()}
    places, every = Places.of(view), np.ones(len(view.tokens), dtype=bool)
    name, starts_sentence = here["capitalised_word"], places.holds("sentence<1")
    return {
        "capitalised": (here["word_start"], name),
        "number": (every, here["number"]),
        "sentence_start": (name, starts_sentence),
        "next_comma": (has_next, after["comma"]),
        "next_capitalised": (has_next, after["capitalised_word"]),
        "in_quotes": (every, places.holds("in_quotes")),
        "repeated_name": (name & ~starts_sentence, places.holds("repeated")),
    }


def _passages(sample: Sample, skip: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(starts, stops, document) of stretches of rows within one document and context, none longer than `PASSAGE`."""
    positions, rows = sample.split.kept_positions(skip), rows_of(sample)
    contexts, documents = sample.split.context_of(positions)[0], sample.documents[positions]
    begins = np.append(True, (np.diff(contexts) != 0) | (np.diff(documents) != 0))
    firsts = np.flatnonzero(begins)
    at = np.arange(len(rows)) - np.repeat(firsts, np.diff(np.append(firsts, len(rows))))
    firsts = np.flatnonzero(at % PASSAGE == 0)
    sizes = np.diff(np.append(firsts, len(rows)))
    firsts, sizes = firsts[sizes >= SHORTEST], sizes[sizes >= SHORTEST]
    return rows[firsts], rows[firsts] + sizes, documents[firsts]
