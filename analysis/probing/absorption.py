"""Feature absorption on first letters: a latent for "begins with s", silent on `short`, whose own latent says it.

After Chanin et al. 2024 (arXiv:2409.14507) and SAEBench's `absorption_first_letter`. A probe of all activations tells
whether a word begins with a letter. Its *split latents* are the few that tell it best: one more is taken as long as a
sparse probe gains `JUMP` in F1. On words that the probe gets right,

    full absorption:  all split latents are silent, and the latent that writes most along the probe's direction p is
                      aligned with it (cosine at least `ALIGNED`) and writes at least `SHARE` of x . p
    fraction:         of what split latents and up to `MOST_ABSORBERS` others (cosine at least `ALIGNED_FRACTION`)
                      write along p, the part of the others; 0 where those write less than `SHARE` of x . p

Theirs are words in few-shot prompts; here they are words where they stand in the text, of which a fifth (by a hash) are
only tested on. A network that does not know how words are spelt has nothing to absorb: letters whose probe does not
reach `LEAST_F1` on words it has not seen are left out, and if few are left the figures are not given.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from string import ascii_lowercase
from typing import Any

import numpy as np

from analysis.parts import scrambled
from analysis.probing import logistic
from analysis.probing.features import Features, features
from analysis.probing.probe import most_telling
from analysis.probing.scores import weighted
from analysis.probing.tasks import rows_of
from analysis.quality.sample import Sample
from analysis.score import resamples
from sae.dictionary import Dictionary
from sae.store import Pairs
from sae.sums import interval
from sae.text import hash64

EVAL_TYPE_ID = "absorption_first_letter"
LEAST_F1, JUMP, MOST_SPLIT = 0.6, 0.03, 10
ALIGNED, ALIGNED_FRACTION, SHARE, MOST_ABSORBERS = 0.025, 0.1, 0.4, 3
FEWEST_LETTERS = 10
"""Whose probes must know them."""
OCCURRENCES, MOST_ROWS = 8, 8000  # of a word, and of words in all, in each split


@dataclass(frozen=True, eq=False)
class Words:
    """Words where they stand in a split: a row each, ascending."""

    rows: np.ndarray
    """`[n]`, int64: of the whole split."""
    words: np.ndarray
    """`[n]`, int64: the same number for the same word, from 0."""
    letters: np.ndarray
    """`[n]`: the first letter of each, lower case."""


def words_of(sample: Sample, strings: tuple[str, ...], skip: int, seed: int, is_test: bool) -> Words:
    """Tokens of a sample that begin a word, of the words that are kept for testing or of the others; by a hash
    `OCCURRENCES` of each word at most.

    Args:
        strings: text of each token.
        skip: positions at the beginning of a context that have no row.
    """
    folded = [text[1:].lower() if re.fullmatch(" [A-Za-z]{2,}", text) else "" for text in strings]
    numbers = {word: number for number, word in enumerate(sorted({word for word in folded if word}))}
    asked = np.array([numbers[word] if word and (hash64(word) % 5 == 0) == is_test else -1 for word in folded])
    positions, rows = sample.split.kept_positions(skip), rows_of(sample)
    words = asked[sample.split.tokens[positions]]
    rows, words = rows[words >= 0], words[words >= 0]
    order = np.argsort(scrambled(rows + (seed << 40)), kind="stable")
    by_word = order[np.argsort(words[order], kind="stable")]
    firsts = np.searchsorted(words[by_word], words[by_word], side="left")
    few = by_word[np.arange(len(by_word)) - firsts < OCCURRENCES]
    kept = np.sort(few[np.argsort(scrambled(rows[few] + (seed << 40)), kind="stable")][:MOST_ROWS])
    names = np.array([word[0] for word in numbers], dtype="U1")
    return Words(rows[kept], words[kept], names[words[kept]])


def absorption(
    dictionary: Dictionary,
    rows: Mapping[str, Pairs],
    words: Mapping[str, Words],
    n_resamples: int,
    seed: int,
) -> dict[str, Any]:
    """SAEBench's record, with `is_meaningful`, and why not.

    Args:
        rows, words: of the splits `fit` and `test`.
    """
    if dictionary.shape.outputs is not None:
        return _record([], "a transcoder writes elsewhere than where the probe reads")
    if not all(len(words[split].rows) for split in ("fit", "test")):
        return _record([], "no words that begin with a space and a letter are tokens of this network")
    found = {
        split: features(dictionary, rows[split], words[split].rows, words[split].rows + 1) for split in ("fit", "test")
    }
    is_it = {letter: {split: own.letters == letter for split, own in words.items()} for letter in ascii_lowercase}
    there = [letter for letter, of in is_it.items() if all(own.any() and not own.all() for own in of.values())]
    letters = [_spelt(letter, found, is_it[letter]) for letter in there]
    n_known = sum(letter.is_known for letter in letters)
    if n_known < FEWEST_LETTERS:
        why = (
            f"a probe of all activations knows the first letter of words it has not seen, with an F1 of {LEAST_F1} at "
            f"least, for {n_known} of {len(letters)} letters (the best has "
            f"{max((letter.f1 for letter in letters), default=0.0):.2f}); {FEWEST_LETTERS} are needed"
        )
        return _record(letters, why)
    asked = [
        _absorbed(letter, dictionary, found, is_it[letter.letter]) if letter.is_known else letter for letter in letters
    ]
    return _record(asked, None, _pooled(asked, words["test"].words, n_resamples, seed))


@dataclass(frozen=True, eq=False)
class Letter:
    """What became of one letter."""

    letter: str
    direction: np.ndarray
    """`[d]`, of norm 1: of the probe of all activations."""
    f1: float
    """Of that probe, on words it has not seen."""
    right: np.ndarray
    """`[n]`: the test words with this letter that the probe gets right."""
    split: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Its latents."""
    is_absorbed: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    """`[n]`, of a letter that is known."""
    fractions: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @property
    def is_known(self) -> bool:
        return self.f1 >= LEAST_F1 and len(self.right) > 0

    def detail(self) -> dict[str, Any]:
        """Under SAEBench's names."""
        is_asked = len(self.is_absorbed) > 0
        return {
            "first_letter": self.letter,
            "probe_f1": self.f1,
            "num_probe_true_positives": len(self.right),
            "num_split_features": len(self.split),
            "split_latents": self.split.tolist(),
            "num_full_absorption": int(self.is_absorbed.sum()),
            "full_absorption_rate": float(self.is_absorbed.mean()) if is_asked else None,
            "mean_absorption_fraction": float(self.fractions.mean()) if is_asked else None,
        }


def _spelt(letter: str, found: Mapping[str, Features], is_it: Mapping[str, np.ndarray]) -> Letter:
    """How far a probe of all activations knows a letter."""
    probe = logistic.fit(found["fit"].raw, is_it["fit"])
    margins = probe.margins(found["test"].raw)
    direction = probe.weights / max(float(np.linalg.norm(probe.weights)), 1e-12)
    return Letter(letter, direction, _f1(margins, is_it["test"]), np.flatnonzero((margins > 0) & is_it["test"]))


def _absorbed(
    letter: Letter, dictionary: Dictionary, found: Mapping[str, Features], is_it: Mapping[str, np.ndarray]
) -> Letter:
    split, asked = _split_latents(found, is_it), found["test"]
    full, fractions = absorbed(
        dictionary, letter.direction, split, asked.latents[letter.right], asked.raw[letter.right]
    )
    return replace(letter, split=split, is_absorbed=full, fractions=fractions)


def absorbed(
    dictionary: Dictionary, direction: np.ndarray, split: np.ndarray, latents: logistic.csr_matrix, x: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(whether it is absorbed in full, absorbed fraction) of each of n words.

    Args:
        direction: `[d]`, of norm 1.
        split: the letter's own latents.
        latents, x: `[n, n_latents]`, `[n, d]`.
    """
    decoder = dictionary.directions.detach().double().cpu().numpy()
    along = decoder @ direction
    cosines = along / np.maximum(np.linalg.norm(decoder, axis=1), 1e-12)
    others = np.ones(len(along), dtype=bool)
    others[split] = False
    full, fractions = np.zeros(len(x), dtype=bool), np.zeros(len(x))
    for number, whole in enumerate(x.astype(np.float64) @ direction):
        values = latents[[number]].toarray()[0]
        written = values * along
        own = written[split].sum()
        is_silent = not (values[split] > 0).any()
        top = int(np.argmax(written))
        full[number] = is_silent and whole > 0 and cosines[top] >= ALIGNED and written[top] >= SHARE * whole
        absorbers = written[others & (cosines >= ALIGNED_FRACTION) & (written > 0)]
        most = np.sort(absorbers)[::-1][:MOST_ABSORBERS].sum()
        if whole > 0 and own < whole and most >= SHARE * whole:
            part = min(most, whole - own)
            fractions[number] = 1.0 if own <= 0 else part / (part + own)
    return full, fractions


def _split_latents(found: Mapping[str, Features], is_it: Mapping[str, np.ndarray]) -> np.ndarray:
    """The fewest most telling latents to which one more would add no more than `JUMP`; one at least, if any differs."""
    telling = most_telling(found["fit"].latents, is_it["fit"], MOST_SPLIT)
    best, n = -1.0, 0
    for k in range(1, len(telling) + 1):
        x, new = (found[split].latents[:, telling[:k]].toarray() for split in ("fit", "test"))
        f1 = _f1(logistic.fit(x, is_it["fit"]).margins(new), is_it["test"])
        if f1 <= best + JUMP and k > 1:
            break
        best, n = f1, k
    return telling[:n]


def _f1(margins: np.ndarray, labels: np.ndarray) -> float:
    return float(weighted(margins, labels, np.ones((1, len(labels))))["f1"][0])


def _pooled(letters: Sequence[Letter], words: np.ndarray, n_resamples: int, seed: int) -> dict[str, Any]:
    """Rates over the words of all letters together, with intervals of words drawn anew.

    Args:
        words: of the test words, the number of each.
    """
    known = [letter for letter in letters if letter.is_known]
    own, n_words = words[np.concatenate([letter.right for letter in known])], int(words.max()) + 1
    draws, n = resamples(n_words, n_resamples, seed), np.bincount(own, minlength=n_words)
    rates = {}
    for name, values in (("full_absorption", "is_absorbed"), ("absorption_fraction", "fractions")):
        sums = np.bincount(own, np.concatenate([getattr(letter, values) for letter in known]), n_words)
        with np.errstate(divide="ignore", invalid="ignore"):
            low, high = interval((draws @ sums) / (draws @ n))
        rates[name] = {"value": float(sums.sum() / n.sum()), "interval": [low, high]}
    return rates


def _record(letters: Sequence[Letter], why_not: str | None, pooled: Mapping[str, Any] | None = None) -> dict[str, Any]:
    details = [letter.detail() for letter in letters]
    known = [detail for detail in details if detail["full_absorption_rate"] is not None]
    means: dict[str, float] = {}
    if why_not is None:
        for name, column in (
            ("absorption_fraction_score", "mean_absorption_fraction"),
            ("full_absorption_score", "full_absorption_rate"),
            ("num_split_features", "num_split_features"),
        ):
            own = np.array([detail[column] for detail in known], dtype=float)
            means |= {f"mean_{name}": float(own.mean()), f"std_dev_{name}": float(own.std())}
    return {
        "eval_type_id": EVAL_TYPE_ID,
        "is_meaningful": why_not is None,
        "why_not": why_not,
        "eval_result_metrics": {"mean": means},
        "eval_result_details": details,
        "eval_result_unstructured": {"over_all_words": pooled},
    }
