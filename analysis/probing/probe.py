"""One task: which latents differ most between the classes, and what probes of a few of them are worth.

| probe        | learns from                                                                        |
|--------------|------------------------------------------------------------------------------------|
| `sae_top_k`  | the k latents whose means differ most between the classes, on `fit`                |
| `sae`        | all latents                                                                        |
| `llm_top_k`  | the k dimensions of the activations whose means differ most                        |
| `llm`        | all activations that the dictionary reads: what a probe can know without it        |
| `majority`   | nothing: it says the commoner class of `fit`                                       |

Latents and dimensions are chosen, and probes fitted, on `fit`; all are scored on `test`. The names are SAEBench's.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from analysis.probing import logistic
from analysis.probing.features import Features, features
from analysis.probing.logistic import Matrix
from analysis.probing.scores import scores
from analysis.probing.tasks import Examples, Task
from analysis.quality.figures import Figure
from analysis.score import resamples
from sae.dictionary import Dictionary
from sae.store import Pairs

log = logging.getLogger(__name__)
FEWEST = 50
"""Examples of a class, in each split, without which a task is left out."""


@dataclass(frozen=True)
class Settings:
    """How tasks are probed."""

    k: Sequence[int]
    n_examples: int
    """Of either class, in each split, at most."""
    n_resamples: int
    seed: int


@dataclass(frozen=True, eq=False)
class Result:
    """What became of one task."""

    name: str
    question: str
    level: str
    n_fit: int
    n_test: int
    n_documents: int
    """On which it was scored."""
    latents: list[int]
    """Those of the widest probe, the most telling first."""
    dimensions: list[int]
    scores: Mapping[str, Mapping[str, Figure]]
    """Probe → score → figure; none if the task was left out."""
    left_out: str | None = None
    """Why."""


def probe(
    dictionary: Dictionary, rows: Callable[[str], Pairs], tasks: Sequence[Task], settings: Settings
) -> list[Result]:
    """For each task, fit every probe on `fit` and score it on `test`.

    Args:
        rows: those of a split.
        tasks: whose stretches of rows are the same, or do not overlap; each is read and encoded once for all of them.
    """
    drawn = [_Drawn.of(task, settings) for task in tasks]
    ready = [own for own in drawn if own.lacking is None]
    if not ready:
        return [_left_out(own) for own in drawn]
    learnt = _Shared.of(dictionary, rows("fit"), [own.fit for own in ready])
    asked = _Shared.of(dictionary, rows("test"), [own.test for own in ready])
    return [_left_out(own) if own.lacking is not None else _probed(own, learnt, asked, settings) for own in drawn]


@dataclass(frozen=True, eq=False)
class _Drawn:
    """The examples of a task that are used."""

    task: Task
    fit: Examples
    test: Examples
    lacking: str | None
    """Why the task cannot be asked."""

    @classmethod
    def of(cls, task: Task, settings: Settings) -> "_Drawn":
        fit, test = (own.balanced(settings.n_examples, settings.seed) for own in (task.fit, task.test))
        few = [
            f"{own.n_of_each} examples of a class in {split}; at least {FEWEST} are needed"
            for split, own in (("fit", fit), ("test", test))
            if own.n_of_each < FEWEST
        ]
        return cls(task, fit, test, few[0] if few else None)

    def about(self) -> tuple[str, str, str, int, int, int]:
        """The first fields of a result."""
        n_documents = len(np.unique(self.test.groups))
        return (
            *(self.task.name, self.task.question, self.task.level),
            *(len(self.fit.labels), len(self.test.labels), n_documents),
        )


@dataclass(frozen=True, eq=False)
class _Shared:
    """Features of all stretches of some tasks on one split."""

    starts: np.ndarray
    found: Features

    @classmethod
    def of(cls, dictionary: Dictionary, pairs: Pairs, examples: Sequence[Examples]) -> "_Shared":
        starts, first = np.unique(np.concatenate([own.starts for own in examples]), return_index=True)
        stops = np.concatenate([own.stops for own in examples])[first]
        return cls(starts, features(dictionary, pairs, starts, stops))

    def pick(self, examples: Examples) -> Features:
        at = np.searchsorted(self.starts, examples.starts)
        return Features(self.found.latents[at], self.found.raw[at])


def _left_out(drawn: _Drawn) -> Result:
    return Result(*drawn.about(), [], [], {}, drawn.lacking)


def _probed(drawn: _Drawn, learnt: _Shared, asked: _Shared, settings: Settings) -> Result:
    log.info("eval: probing for %s", drawn.task.name)
    fit, test = drawn.fit, drawn.test
    known, new = learnt.pick(fit), asked.pick(test)
    telling = {side: most_telling(getattr(known, side), fit.labels, max(settings.k)) for side in ("latents", "raw")}
    draws = resamples(int(test.groups.max()) + 1, settings.n_resamples, settings.seed)
    margins = _margins(known, new, fit, telling, settings.k)
    scored = {name: scores(own, test.labels, test.groups, draws) for name, own in margins.items()}
    return Result(*drawn.about(), telling["latents"].tolist(), telling["raw"].tolist(), scored)


def most_telling(x: Matrix, labels: np.ndarray, k: int) -> np.ndarray:
    """The k columns whose means differ most between the classes, the first most; of equals the lower; none that does
    not differ."""
    means = [np.asarray(x[own].mean(axis=0)).ravel() for own in (np.flatnonzero(labels), np.flatnonzero(~labels))]
    difference = np.abs(means[0] - means[1])
    order = np.argsort(-difference, kind="stable")[:k]
    return order[difference[order] > 0]


def _margins(
    learnt: Features, asked: Features, fit: Examples, telling: Mapping[str, np.ndarray], ks: Sequence[int]
) -> dict[str, np.ndarray]:
    found = {}
    for side, name in (("latents", "sae"), ("raw", "llm")):
        x, new = getattr(learnt, side), getattr(asked, side)
        for k in sorted(set(ks)):
            columns = telling[side][:k]
            if len(columns):
                chosen = logistic.fit(_dense(x[:, columns]), fit.labels)
                found[f"{name}_top_{k}"] = chosen.margins(_dense(new[:, columns]))
            else:
                found[f"{name}_top_{k}"] = _guess(fit, new)
        found[name] = logistic.fit(x, fit.labels).margins(new)
    return {**found, "majority": _guess(fit, asked.raw)}


def _guess(fit: Examples, new: Any) -> np.ndarray:
    return np.full(new.shape[0], 2 * fit.labels.mean() - 1)


def _dense(x: Matrix) -> np.ndarray:
    return x.toarray() if isinstance(x, csr_matrix) else x
