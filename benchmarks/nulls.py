"""Labels of the embedded dictionary beside those of null models: the whole pipeline on what has learnt nothing.

python -m benchmarks.nulls [--runs runs/nulls] [--only dictionary random ...]

`dictionary` is the run of `configs/embedded.yaml` itself, in runs/embedded; the others live in folders of their own.
A unit that fires more often is easier to label, and neurons are fewer than latents and fire as much in all: hence a
dictionary of as many.
Live units are those that fire on the label splits. Intervals are of units drawn anew, 95 %.
"""

import argparse
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow.parquet as pq

from analysis.effects.record import Effect, EffectRecord
from analysis.label.record import LabelRecord, Scores
from benchmarks import results
from benchmarks.frameworks import ROOT
from sae.files import read_json
from sae.run import Run
from sae.run_config import load_config

CONFIG = ROOT / "configs" / "embedded.yaml"
NEURONS = "sae={type: topk, n_latents: 1024, k: 24, init_decoder: identity, init_bias: zero}"
SETTINGS: dict[str, tuple[str, ...]] = {
    "dictionary": (),
    "as many as neurons": ("sae.n_latents=1024",),
    "random": ("model.weights=random",),
    "neurons": ("harvest.sites=[mlp_act.3]", "train.tokens=0", NEURONS),
    "directions": ("train.tokens=0", "sae.init_decoder=random"),
}
RESAMPLES = 1000
R = TypeVar("R")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "nulls")
    parser.add_argument("--only", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    path = results.RESULTS / "nulls.json"
    figures: dict[str, Any] = read_json(path)["figures"] if path.exists() else {}
    for name in given.only:
        out = ROOT / "runs" / "embedded" if name == "dictionary" else given.runs / name.replace(" ", "-")
        run = Run(load_config(CONFIG, SETTINGS[name]), out)
        evaluation = run.evaluation.facts
        own = {"l0": round(evaluation["l0"], 1), "fvu": round(evaluation["fvu"], 4), "settings": SETTINGS[name]}
        figures[name] = {**own, **summed_up(records(run.labels.path / "labels.parquet"))}
        figures[name] |= done(effect_records(run.effects.path / "effects.parquet"))
        logging.info("%s: %s", name, figures[name])
        results.save("nulls", figures, path)


def records(path: Path) -> list[LabelRecord]:
    """The records of a labels box."""
    return _records(path, LabelRecord, Scores, ("scores", "token", "token_set", "other"))


def effect_records(path: Path) -> list[EffectRecord]:
    """The records of an effects box."""
    return _records(path, EffectRecord, Effect, ("removed", "added"))


def _records(path: Path, record: Callable[..., R], part: Callable[..., Any], parts: Sequence[str]) -> list[R]:
    """The rows of a table as records, of which some fields are records themselves, or none."""
    rows = pq.read_table(path).to_pylist()
    return [record(**{**row, **{name: part(**row[name]) if row[name] else None for name in parts}}) for row in rows]


def done(every: Sequence[EffectRecord]) -> dict[str, Any]:
    """Shares of live units that have a label of what they do, and one that beats its nulls: each with its interval."""
    live = [record for record in every if record.status != "silent"]
    return {
        "does": interval(np.array([record.status == "labelled" for record in live]), np.mean),
        "does_beats_nulls": interval(np.array([record.beats_nulls for record in live]), np.mean),
    }


def summed_up(every: Sequence[LabelRecord]) -> dict[str, Any]:
    """Shares of live units, and margins over them: each with its interval."""
    live = [record for record in every if record.status != "silent"]
    of_each = {
        "labelled": np.array([record.scores is not None for record in live]),
        "beats_nulls": np.array([record.beats_nulls for record in live]),
        "surely_beats_nulls": np.array([record.surely_beats_nulls for record in live]),
        "auprc_margin": np.array([record.auprc_margin for record in live]),
        "f1": np.array([record.scores.f1 if record.scores else 0.0 for record in live]),
    }
    shares = {name: interval(of_each[name], np.mean) for name in ("labelled", "beats_nulls", "surely_beats_nulls")}
    margins = {
        "median_auprc_margin": interval(of_each["auprc_margin"], np.median),
        "mean_auprc_margin": interval(of_each["auprc_margin"], np.mean),
        "median_f1": interval(of_each["f1"], np.median),
    }
    r2 = [record.token_r2 for record in live]
    return {"n_live": len(live), **shares, **margins, "median_token_r2": round(float(np.median(r2)), 4)}


def interval(of_units: np.ndarray, statistic: Callable[..., Any]) -> list[float]:
    """A statistic of the units, and the 2.5 % and 97.5 % quantiles of it when they are drawn anew."""
    random = np.random.default_rng(0)
    drawn = (statistic(random.choice(of_units, len(of_units))) for _ in range(RESAMPLES))
    low, high = np.quantile([float(each) for each in drawn], [0.025, 0.975])
    return [round(float(value), 4) for value in (statistic(of_units), low, high)]


if __name__ == "__main__":
    main()
