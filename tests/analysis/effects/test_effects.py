"""Latents whose effect on the output is known: the label names it, and its score is the closed form."""

import inspect
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from analysis.config import EffectsConfig
from analysis.effects import choose as choosing
from analysis.effects import sample
from analysis.effects.fit import effects
from analysis.effects.tables import facts, write
from sae.errors import DataError
from tests.analysis.conftest import STRINGS
from tests.analysis.effects.networks import Spelled, dictionary_of, subject_of

V = len(STRINGS)
CFG = EffectsConfig(firings=6, lengths=(1, 3), controls=3, resamples=50, random=40)
N = 10
PROMOTES, SUPPRESSES, FICKLE, NOTHING, SILENT, RARE, SECOND, *RANDOM = range(N)
LABELLED = (PROMOTES, SUPPRESSES, SECOND)


def directions(ids) -> torch.Tensor:
    """Coordinate v is the logit of token v; one more counts by the parity of the token, the last not at all. Three
    latents say nothing in particular."""
    made = torch.zeros(N, V + 2)
    made[RANDOM] = torch.randn(3, V + 2, generator=torch.Generator().manual_seed(5)) / (V + 2) ** 0.5
    made[PROMOTES, ids[" dog"]] = 0.5
    made[SUPPRESSES, [ids[" court"], ids[" judge"], ids[" statute"]]] = -1.0
    made[FICKLE, V] = 1.0
    made[NOTHING, V + 1] = 1.0
    made[SILENT, ids[" town"]] = made[RARE, ids[" town"]] = 1.0
    made[SECOND, ids[" man"]] = 1.0
    return made


def fires(tokens: np.ndarray) -> list[np.ndarray]:
    rng = np.random.default_rng(len(tokens))
    at = np.arange(len(tokens))
    often = [rng.random(len(tokens)) < 0.05 for _ in range(8)]
    return [*often[:4], at < 0, (at > 5) & (at < 50), *often[4:]]


@pytest.fixture(scope="module")
def views(town):
    return town(fires)


@pytest.fixture(scope="module")
def spelled(ids):
    return subject_of(Spelled(V)), dictionary_of(directions(ids)), ["stream:out"]


@pytest.fixture(scope="module")
def records(views, spelled):
    found, why_not = effects(*views, *spelled, CFG)
    assert why_not is None
    return found


def test_every_latent_has_a_record(records):
    assert [record.latent for record in records] == list(range(N))
    expected = ["labelled", "labelled", "abstained", "abstained", "silent", "rare", "labelled", *["abstained"] * 3]
    assert [record.status for record in records] == expected
    for record in records:
        has_label = record.status == "labelled"
        assert [value is not None for value in (record.text, record.tokens, record.removed, record.added)] == [
            has_label
        ] * 4
    assert records[SILENT].kl is records[RARE].kl is None


def test_labels_name_what_the_directions_spell(records, ids):
    assert records[PROMOTES].tokens == [ids[" dog"]]
    assert (records[PROMOTES].verb, records[PROMOTES].source) == ("promotes", "measured")
    assert sorted(records[SUPPRESSES].tokens) == sorted([ids[" court"], ids[" judge"], ids[" statute"]])
    assert records[SUPPRESSES].verb == "suppresses"
    assert records[PROMOTES].text == f"Promotes “dog” (+{records[PROMOTES].removed.nats:.2g} nats)."
    assert records[SUPPRESSES].text.startswith("Suppresses “")
    assert records[SUPPRESSES].text.endswith(f" (−{records[SUPPRESSES].removed.nats:.2g} nats).")


def test_effects_are_the_closed_form(records, views):
    """A logit that rises by `a` more than those of the controls: their log-probabilities differ by `a` more, whatever
    the others do. So the effect of taking away is the mean activation, times the direction's entry; that of adding, the
    median activation on the fit split."""
    fit, _, test = views
    places = sample.firings(test, sample.chosen_contexts(test, CFG.tokens), CFG.firings)
    for latent, entry in zip(LABELLED, (0.5, 1.0, 1.0), strict=True):
        record, own = records[latent], places.latents == latent
        assert record.removed.n == record.added.n == 6
        assert record.removed.nats == pytest.approx(entry * places.values[own].mean(), abs=1e-4)
        assert record.removed.low <= record.removed.nats <= record.removed.high
        assert record.amount == pytest.approx(np.median(fit.firing(latent)[1]))
        assert record.added.nats == pytest.approx(entry * record.amount, abs=1e-4)
        assert record.added.low == pytest.approx(record.added.high, abs=1e-4), "it is the same everywhere"
        assert record.removed.right == record.added.right == 1.0
    assert records[PROMOTES].removed.percentile == 1.0
    # three tokens on top of V - 1 others: places V - 1, V - 2, V - 3, or, tied, the last of them
    assert records[SUPPRESSES].removed.percentile == pytest.approx(1 - 2 / (V - 1), abs=1.1 / (V - 1))


def test_nulls_are_of_another_label_and_of_random_directions(records):
    """The other label's tokens have nothing to do with the latent. In 60 dimensions the largest entries of a direction
    of norm 1 are some .3: a third of what the latents here have for their size, .58 and more."""
    for latent in LABELLED:
        record = records[latent]
        assert record.other_latent in set(LABELLED) - {latent}
        for effect in (record.removed, record.added):
            assert effect.other_label == pytest.approx(0, abs=1e-4)
            assert 0.2 < effect.chance / effect.nats < 0.8
        assert record.beats_nulls
        assert record.surely_beats_nulls


def test_without_random_directions_all_that_is_reliable_is_labelled(views, spelled, records):
    found, _ = effects(*views, *spelled, replace(CFG, random=0))
    for latent in (*LABELLED, *RANDOM):
        assert found[latent].status == "labelled"
        assert found[latent].removed.chance is None
    assert found[FICKLE].status == found[NOTHING].status == "abstained"
    assert found[SECOND].removed.nats == pytest.approx(records[SECOND].removed.nats)


def test_kl_is_the_closed_form(records, views, spelled):
    """KL(p ‖ q) of the same logits but one, in float64."""
    subject, dictionary, _ = spelled
    _, select, _ = views
    places = sample.firings(select, sample.chosen_contexts(select, CFG.tokens), CFG.firings)
    own = places.latents == PROMOTES
    logits = subject.model.stream(torch.from_numpy(select.tokens[places.positions[own]])).double()
    logits[:, 0] += logits[:, V] * (1 - 2 * torch.from_numpy(select.tokens[places.positions[own]] % 2))
    without = logits - torch.from_numpy(places.values[own]).double()[:, None] * dictionary.W_dec[PROMOTES].double()
    p, q = (values[:, :V].log_softmax(1) for values in (logits, without))
    assert records[PROMOTES].kl == pytest.approx((p.exp() * (p - q)).sum(1).mean().item(), rel=1e-3)
    assert records[NOTHING].kl == pytest.approx(0, abs=1e-5)
    assert records[FICKLE].kl > 0.01, "it does something, but not to a token reliably"


def test_facts_count_the_living(records):
    found = facts(records)
    assert found["n_does_by_status"] == {"labelled": 3, "abstained": 5, "rare": 1, "silent": 1, "unmeasured": 0}
    assert found["n_does_by_verb"] == {"promotes": 2, "suppresses": 1}
    assert found["does_fraction"] == found["does_beats_nulls_fraction"] == pytest.approx(3 / 9, abs=1e-6)
    assert found["median_effect"] == round(sorted(r.removed.nats for r in records if r.removed)[1], 6)


def test_the_test_split_has_no_part_in_labels(records, views, spelled):
    """Not by signature: what chooses is not given it. And not in fact: on other test documents labels are the same."""
    given = [str(parameter.annotation) for parameter in inspect.signature(choosing.choose).parameters.values()]
    assert "FitView" in given[0]
    assert not any("TestView" in annotation for annotation in given)
    fit, select, test = views
    other = replace(test, tokens=np.roll(test.tokens, 7))
    found, _ = effects(fit, select, other, *spelled, CFG)
    for now, before in zip(found, records, strict=True):
        assert (now.tokens, now.verb, now.select_effect, now.kl) == (
            before.tokens,
            before.verb,
            before.select_effect,
            before.kl,
        )


def test_a_document_in_two_splits_is_refused(views, spelled):
    fit, select, test = views
    leaking = replace(test, tokens=np.concatenate([select.tokens[:96], test.tokens[96:]]))
    with pytest.raises(DataError, match="document 0 of test is document 0 of select"):
        effects(fit, select, leaking, *spelled, CFG)


def test_equal_inputs_give_equal_bytes(views, spelled, records, tmp_path):
    for name, made in (("a", records), ("b", effects(*views, *spelled, CFG)[0])):
        (tmp_path / name).mkdir()
        write(made, tmp_path / name)
    assert (tmp_path / "a/effects.parquet").read_bytes() == (tmp_path / "b/effects.parquet").read_bytes()
    rows = pq.read_table(tmp_path / "a/effects.parquet").to_pylist()
    assert [row["latent"] for row in rows] == list(range(N))
    assert rows[PROMOTES]["removed"]["nats"] == round(records[PROMOTES].removed.nats, 6)
    assert rows[FICKLE]["removed"] is None


def test_blocks_of_latents_change_nothing(views, spelled, records, monkeypatch):
    monkeypatch.setattr(choosing, "MAX_SUMS", 3 * V)
    found, _ = effects(*views, *spelled, CFG)
    assert [record.tokens for record in found] == [record.tokens for record in records]
    assert found[PROMOTES] == records[PROMOTES]


@pytest.mark.parametrize(
    ("changes", "written", "why"),
    [
        ({"firings": 0}, ["stream:out"], "analysis.effects.firings = 0"),
        (
            {},
            ["stream:out", "stream:out"],
            "the dictionary writes to several sites (stream:out, stream:out), one after the other",
        ),
        ({"lengths": (1, 15)}, ["stream:out"], f"a vocabulary of {V} tokens leaves no controls: must be more than 66"),
    ],
)
def test_what_cannot_be_measured_is_said(views, spelled, changes, written, why, tmp_path):
    found, why_not = effects(*views, *spelled[:2], written, replace(CFG, **changes))
    assert why_not == why
    assert [(record.latent, record.status) for record in found] == [(latent, "unmeasured") for latent in range(N)]
    told = write(found, tmp_path, why_not)
    assert told["effects_not_available"] == why
    assert told["does_fraction"] is told["median_effect"] is None


def test_without_a_latent_that_fires_often_there_is_nothing_to_measure(town, spelled, tmp_path):
    """All are dead, or rare, as after a training that failed: a result like others."""
    at = np.arange
    rare = town(lambda tokens: [(at(len(tokens)) > 5) & (at(len(tokens)) < 50), *[at(len(tokens)) < 0] * (N - 1)])
    found, why_not = effects(*rare, *spelled, CFG)
    assert why_not is None
    assert [record.status for record in found] == ["rare", *["silent"] * (N - 1)]
    told = write(found, tmp_path)
    assert told["does_fraction"] == 0
    assert told["median_kl"] is None


def test_a_gpt2_whose_last_layer_spells(views, ids):
    """With the final norm before the unembedding, and edits as copies in one pass: the lens finds the token, and the
    effect is that of the norm's formula in float64."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=V, n_positions=128, n_embd=64, n_layer=2, n_head=2, tie_word_embeddings=False)
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        model.lm_head.weight.copy_(torch.eye(V, 64))
        model.transformer.wte.weight.mul_(20)
    made = torch.randn(N, 64, generator=torch.Generator().manual_seed(2)) / 8
    made[PROMOTES] = torch.eye(64)[ids[" dog"]]
    made[SUPPRESSES] = -2 * torch.eye(64)[ids[" cat"]]
    subject, dictionary = subject_of(model), dictionary_of(made)
    found, why_not = effects(*views, subject, dictionary, ["resid_post.1"], replace(CFG, lengths=(1,)))
    assert why_not is None
    assert [(found[latent].source, found[latent].verb) for latent in (PROMOTES, SUPPRESSES)] == [
        ("lens", "promotes"),
        ("lens", "suppresses"),
    ]
    assert (found[PROMOTES].tokens, found[SUPPRESSES].tokens) == ([ids[" dog"]], [ids[" cat"]])
    _, _, test = views
    places = sample.firings(test, sample.chosen_contexts(test, CFG.tokens), CFG.firings)
    own = places.latents == PROMOTES
    nats = []
    for position, value in zip(places.positions[own], places.values[own], strict=True):
        start = position - test.offsets[position]
        found_states = {}
        handle = model.transformer.h[1].register_forward_hook(
            lambda _m, _a, out, kept=found_states: kept.update(x=(out[0] if isinstance(out, tuple) else out)[0, -1])
        )
        model(input_ids=torch.from_numpy(test.tokens[start : position + 1])[None])
        handle.remove()
        x = found_states["x"].double()
        logits = []
        for stream in (x, x - float(value) * made[PROMOTES].double()):
            centred = stream - stream.mean()
            logits.append((centred / (centred.square().mean() + 1e-5).sqrt())[:V])
        nats.append((logits[0] - logits[1])[ids[" dog"]].item())
    # of all other coordinates the norm changes only the scale, so controls move little
    assert found[PROMOTES].removed.nats == pytest.approx(np.mean(nats), rel=0.05)
    assert found[PROMOTES].removed.percentile == 1.0
