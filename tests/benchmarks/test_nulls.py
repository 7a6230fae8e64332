"""The table of null models: shares and margins by hand, their intervals, and that every model can be asked for."""

from dataclasses import replace

import numpy as np
import pytest

from analysis.effects import tables
from analysis.effects.record import Effect, EffectRecord
from analysis.label.fit import write
from analysis.label.record import LabelRecord, Scores
from benchmarks.nulls import CONFIG, SETTINGS, done, effect_records, interval, records, summed_up
from benchmarks.report import nulls_table
from sae.run_config import load_config


def record(status: str, **known) -> LabelRecord:
    """One of which nothing is known but this."""
    empty = dict.fromkeys(LabelRecord.__annotations__)
    return LabelRecord(
        **{**empty, "latent": 0, "n_fit": 9, "n_select": 9, "n_test": 9, "token_r2": 0.5, "status": status, **known}
    )


def scores(f1: float, auprc: float) -> Scores:
    return Scores(n_predicted=1, n_true=1, precision=f1, recall=f1, f1=f1, iou=f1, auprc=auprc, pearson=f1)


def known() -> list[LabelRecord]:
    """A label that surely beats its nulls, one that does, one that does not; two without, of which one is silent."""
    nulls = {"token": scores(0.3, 0.2), "other": scores(0.0, 0.0), "shuffled_f1": 0.1, "shuffled_auprc": 0.1}
    sure = record("labelled", scores=scores(0.8, 0.7), f1_low=0.6, f1_high=0.9, token_r2=0.1, **nulls)
    less = replace(sure, scores=scores(0.4, 0.3), f1_low=0.2)
    worse = replace(sure, scores=scores(0.3, 0.2), f1_low=0.2)
    return [sure, less, worse, record("abstained"), record("silent")]


def test_units_are_summed_up_by_hand():
    found = summed_up(known())
    assert found["n_live"] == 4
    assert [found[name][0] for name in ("labelled", "beats_nulls", "surely_beats_nulls")] == [0.75, 0.5, 0.25]
    assert found["median_auprc_margin"][0] == pytest.approx(0.05)  # of .5, .1, 0 and 0
    assert found["mean_auprc_margin"][0] == pytest.approx(0.15)
    assert found["median_f1"][0] == pytest.approx(0.35)  # of .8, .4, .3 and 0
    assert found["median_token_r2"] == 0.1


def test_records_are_read_as_they_were_written(tmp_path):
    write(known(), tmp_path)
    assert records(tmp_path / "labels.parquet") == known()


def effect(latent: int, status: str, removed: float | None = None, added: float | None = None) -> EffectRecord:
    """One whose label is measured to do so much, where chance does 0.1."""
    nothing = dict.fromkeys(EffectRecord.__annotations__)

    def of(nats: float | None) -> Effect | None:
        return (
            None
            if nats is None
            else Effect(n=9, nats=nats, low=None, high=None, right=1.0, percentile=1.0, other_label=0.0, chance=0.1)
        )

    known = {"latent": latent, "status": status, "removed": of(removed), "added": of(added)}
    return EffectRecord(**{**nothing, "n_fit": 9, "n_select": 9, **known})


def known_effects() -> list[EffectRecord]:
    """A label that beats its nulls both ways, one that does so one way only; two without, of which one is silent."""
    both, once = effect(0, "labelled", 0.3, 0.2), effect(1, "labelled", 0.3, 0.05)
    return [both, once, effect(2, "abstained"), effect(3, "silent")]


def test_what_units_do_is_summed_up_by_hand():
    found = done(known_effects())
    assert (found["does"][0], found["does_beats_nulls"][0]) == (0.6667, 0.3333)


def test_records_of_effects_are_read_as_they_were_written(tmp_path):
    tables.write(known_effects(), tmp_path)
    assert effect_records(tmp_path / "effects.parquet") == known_effects()


def test_an_interval_is_that_of_the_mean():
    """Of 400 coins its half-width is 1.96 sqrt(.25 / 400) = .049."""
    coins = np.arange(400) % 2 == 0
    share, low, high = interval(coins, np.mean)
    assert share == 0.5
    assert (0.5 - low, high - 0.5) == pytest.approx((0.049, 0.049), abs=0.01)
    assert interval(np.ones(9), np.median) == [1, 1, 1]


def test_the_table_has_a_row_for_each_model():
    own = {"l0": 2.0, **summed_up(known()), **done(known_effects())}
    text = nulls_table({"random": own, "dictionary": own})
    lines = text.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "latents of the dictionary",
        "latents of a dictionary of the network with random weights",
    ]
    assert "| 4 | 50.0% | 75% (" in lines[2]
    assert "| 33% (" in lines[2]


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_every_model_is_a_run_that_can_be_asked_for(settings):
    assert load_config(CONFIG, settings).sae.n_latents in (1024, 4096)
