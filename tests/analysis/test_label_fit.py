import json
from dataclasses import asdict, replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from analysis.config import LabelConfig
from analysis.label.choose import choose
from analysis.label.columns import Vocabulary
from analysis.label.fit import facts, labels, write
from analysis.label.grade import grade
from analysis.label.indexed import Indexed
from analysis.splits import FitView
from sae.tokens import TokenSplit

CFG = LabelConfig(resamples=50)


def latents(ids):
    """A token, a pair, noise, silence, a rarity, and a token with noise in it."""

    def fires(tokens: np.ndarray) -> list[np.ndarray]:
        rng = np.random.default_rng(len(tokens))
        town = tokens == ids[" town"]
        of = (tokens == ids[" of"]) & (np.roll(tokens, 1) == ids[" University"])
        never = np.zeros(len(tokens), dtype=bool)
        noise = rng.random(len(tokens)) < 0.03
        return [town, of, noise, never, town & (np.cumsum(town) < 5), town | (rng.random(len(tokens)) < 0.005)]

    return fires


@pytest.fixture(scope="module")
def views(town, ids):
    return town(latents(ids))


@pytest.fixture(scope="module")
def records(views):
    return labels(*views, CFG)


def test_every_latent_has_a_record(records):
    assert [r.latent for r in records] == list(range(6))
    assert [r.status for r in records] == ["labelled", "labelled", "abstained", "silent", "rare", "labelled"]
    assert [r.text is None for r in records] == [r.scores is None for r in records] == [r.rule is None for r in records]


def test_a_single_token_does_not_beat_itself(records):
    assert records[0].scores.f1 == records[0].token.f1 == records[0].token_set.f1 == 1.0
    assert records[0].beats_token is False
    assert records[0].token_text == "\u201ctown\u201d"
    assert records[0].token_r2 > 0.9


def test_a_pair_beats_its_token(records):
    pair = records[1]
    assert pair.beats_token is True
    assert (pair.scores.f1, pair.scores.auprc, pair.decile_recall) == (1.0, 1.0, [1.0] * 10)
    assert pair.token.precision < 0.8
    assert (pair.f1_low, pair.f1_high, pair.shares) == (1.0, 1.0, [1.0])
    assert pair.rule[0]["clauses"][0]["column"] == "pair"


def test_scores_of_a_noisy_latent_by_hand(records, views, ids):
    _, _, test = views
    fired, _ = test.firing(5)
    n_town = int((test.valid & (test.tokens == ids[" town"])).sum())
    noisy = records[5]
    assert noisy.text == "Fires on \u201ctown\u201d."
    assert noisy.scores.n_true == noisy.scores.n_predicted == n_town
    assert noisy.scores.f1 == pytest.approx(2 * n_town / (n_town + len(fired)))
    assert noisy.f1_low < noisy.scores.f1 < noisy.f1_high
    # all but the label's hits are found at the last, at the density of the whole
    density = len(fired) / test.valid.sum()
    recall = n_town / len(fired)
    assert noisy.scores.auprc == pytest.approx(recall + (1 - recall) * density)


def test_nulls_stand_far_below(records):
    for record in (records[0], records[1]):
        assert record.other_latent in {0, 1, 5}
        assert record.other_latent != record.latent
        assert record.shuffled_f1 < 0.1
    assert records[1].other.f1 < 0.1
    assert records[2].other is None


def test_a_label_that_knows_nothing_of_the_firings_scores_as_chance_does(views):
    """The noise is given the label of the first latent, which has nothing to do with it: chance has it meet seven
    firings, of which 2.6 are the spread, .011 of F1."""
    vocabulary = Vocabulary.of(views[0].strings)
    fit, select, test = (Indexed(view, vocabulary) for view in views)
    choices = [choose(fit, select, latent, CFG) for latent in range(fit.view.n_latents)]
    choices[2] = replace(choices[2], status="labelled", label=choices[0].label)
    planted = grade(choices, fit, select.view, test, CFG)[2]
    assert planted.scores.f1 == pytest.approx(planted.shuffled_f1, abs=0.03)
    assert planted.scores.auprc == pytest.approx(planted.shuffled_auprc, abs=0.03)
    assert planted.f1_low < planted.shuffled_f1 < planted.f1_high
    assert abs(planted.scores.pearson) < 0.04


def test_facts_count_the_living(records):
    found = facts(records)
    assert found["n_by_status"] == {"labelled": 3, "abstained": 1, "rare": 1, "silent": 1}
    assert found["n_live"] == 5
    assert found["labelled_fraction"] == 3 / 5
    assert found["beats_token_fraction"] == pytest.approx(1 / 3, abs=1e-6)
    # one label that beats its token and two latents without a label, of five
    assert found["beats_token_or_abstained_fraction"] == 3 / 5
    assert facts([])["median_f1"] is None


def test_labels_are_counted_that_beat_every_null(records):
    """Five are alive, three of them labelled, with F1 .5 and AUPRC .6. Against the first the other latent's label wins,
    against the second, by AUPRC, chance does, and only the third's interval lies above every null."""
    own = replace(records[0].scores, f1=0.5, auprc=0.6)

    def against(token: float, other: float | None, chance: float, low: float):
        record = replace(records[0], scores=own, f1_low=low, shuffled_f1=chance, shuffled_auprc=chance + 0.2)
        low_scores = replace(own, f1=token, auprc=token)
        return replace(record, token=low_scores, other=None if other is None else replace(own, f1=other, auprc=other))

    made = [against(0.1, 0.5, 0.0, 0.45), against(0.48, None, 0.45, 0.47), against(0.3, 0.2, 0.1, 0.31)]
    assert [record.beats_nulls for record in made] == [False, True, True]
    assert [record.surely_beats_nulls for record in made] == [False, False, True]
    assert [record.auprc_margin for record in made] == pytest.approx([0.1, -0.05, 0.3])
    unlabelled = [record for record in records if record.scores is None]
    assert {record.auprc_margin for record in unlabelled} == {0.0}
    assert not any(record.beats_nulls or record.surely_beats_nulls for record in unlabelled)
    found = facts([*made, *unlabelled])
    assert len(unlabelled) == 3, "one of which is silent"
    assert (found["beats_nulls_fraction"], found["surely_beats_nulls_fraction"]) == (0.4, 0.2)
    assert found["median_auprc_margin"] == 0
    # F1 less the best null's: 0, .02 and .2
    assert found["beats_nulls_by_margin"] == {"0.1": 0.2, "0.2": 0.2, "0.3": 0, "0.4": 0, "0.5": 0}
    assert facts(made)["median_auprc_margin"] == pytest.approx(0.1)


def test_equal_inputs_give_equal_bytes(views, records, tmp_path):
    write(records, tmp_path / "a")
    write(labels(*views, CFG), tmp_path / "b")
    for name in ("labels.json", "labels.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    rows = json.loads((tmp_path / "a" / "labels.json").read_text(encoding="utf-8"))
    table = pq.read_table(tmp_path / "a" / "labels.parquet").to_pylist()
    assert [row | {"rule": None} for row in table] == [row | {"rule": None} for row in rows]
    assert json.loads(table[1]["rule"]) == rows[1]["rule"]
    assert set(rows[0]) == set(asdict(records[0]))


def test_the_order_of_documents_does_not_matter(views):
    fit, select, _ = views
    vocabulary = Vocabulary.of(fit.strings)
    n, length = fit.n_documents, int(fit.document_starts[1])
    order = np.random.default_rng(0).permutation(n)
    new_place = np.argsort(order)
    positions = new_place[fit.codes.positions // length] * length + fit.codes.positions % length
    latent = np.repeat(np.arange(fit.n_latents), fit.codes.counts())
    sort = np.lexsort((positions, latent))
    codes = replace(fit.codes, positions=positions[sort].astype(np.int32), values=fit.codes.values[sort])
    tokens = fit.tokens.reshape(n, length)[order].reshape(-1)
    split = TokenSplit("fit", tokens, fit.document_starts, fit.document_starts, {})
    moved = FitView.of(split, codes, fit.strings, skip_positions=1)
    indexed = [Indexed(view, vocabulary) for view in (fit, moved, select)]
    for latent in (0, 1, 2, 5):
        assert choose(indexed[0], indexed[2], latent, CFG) == choose(indexed[1], indexed[2], latent, CFG)
