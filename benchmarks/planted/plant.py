"""Latents that fire where a rule says, and the marks that their labels get.

A rule is planted twice: as it is, and with a tenth of its firings dropped and as many put anywhere. A label is right if
it predicts the rule itself, not the firings, on documents that it was not made from: F1 of at least `RIGHT`. Beside
rules stand latents that fire for no reason, whose only right answer is no label.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.codes import Codes
from analysis.config import LabelConfig
from analysis.label.choose import choose
from analysis.label.columns import Vocabulary
from analysis.label.grade import grade
from analysis.label.indexed import Indexed
from analysis.label.record import LabelRecord
from analysis.score import counts
from analysis.splits import FitView, SelectView, TestView
from benchmarks.planted.kinds import KINDS, rules
from benchmarks.planted.rules import Rule, Text

RIGHT = 0.95
"""F1 with the rule from which a label is right."""
VIEWS = {"fit": FitView, "select": SelectView, "test": TestView}
LEAST = {"fit": 100, "select": 40, "test": 40}
"""Firings of a rule on each split: from fewer its parameters cannot be told."""
MOST = 0.5
"""Share of the text on which a rule holds, at most."""
NOISE = 0.1
"""Share of the firings that are dropped of noisy latents; as many others are put anywhere."""
SPREAD = 0.5
"""Standard deviation of the logarithm of activations."""


@dataclass(frozen=True, eq=False)
class Planted:
    """One latent, by split: where it fires, and where its rule holds."""

    kind: str
    text: str
    is_noisy: bool
    fires: Mapping[str, np.ndarray]
    """`[n]`, bool."""
    rule: Mapping[str, np.ndarray] | None
    """`[n]`, bool; none: there is nothing to be said of it."""


@dataclass(frozen=True)
class Mark:
    """What the label of one planted latent is worth."""

    kind: str
    planted: str
    is_noisy: bool
    status: str
    label: str | None
    is_right: bool
    f1: float
    """Against the rule, on test documents; 0 without a label."""
    reported: float | None
    """The label's own test score: F1 against the firings."""
    low: float | None
    high: float | None
    """Its 95 % interval."""
    ceiling: float | None
    """F1 of the rule itself against the firings."""


def plant(texts: Mapping[str, Text], n_each: int, seed: int, kinds: Sequence[str] = tuple(KINDS)) -> list[Planted]:
    """Rules of each kind, clean and noisy, and as many latents of each kind of nothing.

    Args:
        texts: by split; rules are drawn from `train`.
    """
    known = {name: texts[name] for name in VIEWS}
    held: dict[str, dict[str, np.ndarray]] = {}

    def is_wanted(rule: Rule) -> bool:
        held[rule.text] = {name: text.holds(rule) for name, text in known.items()}
        return is_told(held[rule.text], MOST)

    planted = []
    for number, rule in enumerate(rules(texts["train"], n_each, seed, is_wanted, kinds)):
        where, rng = held[rule.text], np.random.default_rng([seed, 1, number])
        noisy = {name: _noisy(mask, known[name].counted, rng) for name, mask in where.items()}
        planted += [
            Planted(rule.kind, rule.text, False, where, where),
            Planted(rule.kind, rule.text, True, noisy, where),
        ]
    for kind, draw in enumerate(NOTHING):
        for number in range(n_each):
            rng = np.random.default_rng([seed, 2, kind, number])
            density = float(np.exp(rng.uniform(np.log(0.002), np.log(0.1))))
            fires = {name: NOTHING[draw](text, density, rng) & text.counted for name, text in known.items()}
            planted.append(Planted(draw, f"{density:.1%} of the text", True, fires, None))
    return planted


def is_told(holds: Mapping[str, np.ndarray], most: float) -> bool:
    """Whether a rule that holds there, by split, does so often enough to be told, and on `most` of the text or less."""
    return all(mask.sum() >= LEAST[name] and mask.mean() <= most for name, mask in holds.items())


def _noisy(holds: np.ndarray, counted: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    fires = holds & (rng.random(len(holds)) >= NOISE)
    strays = rng.choice(np.flatnonzero(counted & ~holds), int(NOISE * holds.sum()), replace=False)
    fires[strays] = True
    return fires


def _positions(text: Text, density: float, rng: np.random.Generator) -> np.ndarray:
    return rng.random(len(text.split.tokens)) < density


def _stretches(text: Text, density: float, rng: np.random.Generator) -> np.ndarray:
    """Of 10 to 60 tokens each."""
    n = len(text.split.tokens)
    lengths = rng.integers(10, 61, size=int(np.ceil(density * n / 35)))
    steps = np.zeros(n + 61, dtype=np.int64)
    starts = rng.integers(n, size=len(lengths))
    np.add.at(steps, starts, 1)
    np.add.at(steps, starts + lengths, -1)
    return np.cumsum(steps)[:n] > 0


def _documents(text: Text, density: float, rng: np.random.Generator) -> np.ndarray:
    """Half of the tokens of some documents."""
    sizes = np.diff(text.split.document_starts)
    chosen = rng.random(len(sizes)) < 2 * density
    return np.repeat(chosen, sizes) & (rng.random(int(sizes.sum())) < 0.5)


NOTHING: dict[str, Callable[[Text, float, np.random.Generator], np.ndarray]] = {
    "positions at random": _positions,
    "stretches at random": _stretches,
    "documents at random": _documents,
}


def mark(planted: Sequence[Planted], texts: Mapping[str, Text], cfg: LabelConfig) -> list[Mark]:
    """Label the latents as a run does, and compare each label with what was planted."""
    strings = tuple(texts["fit"].strings)
    vocabulary = Vocabulary.of(strings)

    def view(name: str, kind: type) -> Indexed:
        codes = codes_of([latent.fires[name] for latent in planted], len(name))
        return Indexed(kind.of(texts[name].split, codes, strings, 1), vocabulary)

    fit, select, test = (view(name, kind) for name, kind in VIEWS.items())
    choices = [choose(fit, select, latent, cfg) for latent in range(len(planted))]
    records = grade(choices, fit, select.view, test, cfg)
    marks = []
    for latent, choice, record in zip(planted, choices, records, strict=True):
        predicted = choice.label.predict(test)[0] if choice.label else None
        marks.append(_mark(latent, predicted, record))
    return marks


def _mark(latent: Planted, predicted: np.ndarray | None, record: LabelRecord) -> Mark:
    f1 = ceiling = None
    if latent.rule is not None:
        truth, fired = np.flatnonzero(latent.rule["test"]), np.flatnonzero(latent.fires["test"])
        f1 = 0.0 if predicted is None else counts(predicted, truth).f1
        ceiling = counts(truth, fired).f1
    return Mark(
        kind=latent.kind,
        planted=latent.text,
        is_noisy=latent.is_noisy,
        status=record.status,
        label=record.text,
        is_right=predicted is None if f1 is None else f1 >= RIGHT,
        f1=f1 or 0.0,
        reported=record.scores.f1 if record.scores else None,
        low=record.f1_low,
        high=record.f1_high,
        ceiling=ceiling,
    )


def codes_of(fires: Sequence[np.ndarray], seed: int) -> Codes:
    """Codes from masks, one a latent; activations are lognormal."""
    positions = [np.flatnonzero(mask) for mask in fires]
    offsets = np.concatenate([[0], np.cumsum([len(own) for own in positions])])
    values = np.random.default_rng(seed).lognormal(0, SPREAD, offsets[-1])
    return Codes(offsets, np.concatenate(positions).astype(np.int32), values.astype(np.float32))
