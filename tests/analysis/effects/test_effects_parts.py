"""Where latents are taken away, what tokens are compared with, how a label is chosen and said."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from analysis.config import EffectsConfig
from analysis.effects.choose import _judged, means
from analysis.effects.controls import Controls, reach
from analysis.effects.named import Kind, Named, every_kind
from analysis.effects.record import Effect, EffectRecord
from analysis.effects.sample import Places, chosen_contexts, firings, silences
from analysis.effects.sentence import sentence
from analysis.effects.units import Units
from sae.architectures.configs import MatchingPursuitConfig, TopKConfig
from sae.architectures.matching_pursuit import MatchingPursuitSAE
from sae.architectures.topk import TopKSAE
from sae.dictionary import Shape
from tests.analysis.effects.networks import dictionary_of

LENGTH = 96


@pytest.fixture(scope="module")
def views(town):
    """A latent that fires often, one in a single context, one never, one always."""

    def fires(tokens: np.ndarray) -> list[np.ndarray]:
        at = np.arange(len(tokens))
        rng = np.random.default_rng(len(tokens))
        return [rng.random(len(tokens)) < 0.1, (at >= 10) & (at < 20), at < 0, at >= 0]

    return town(fires)


def test_contexts_are_chosen_by_hash_and_whole(views):
    fit, _, _ = views
    contexts = chosen_contexts(fit, 10 * LENGTH)
    assert set(contexts[::LENGTH].tolist()) == {-1}, "the first of a context does not count"
    inside = contexts.reshape(-1, LENGTH)[:, 1:]
    assert (inside == inside[:, :1]).all()
    assert sorted(set(inside[:, 0].tolist())) == [-1, *range(10)]
    more = chosen_contexts(fit, 20 * LENGTH)
    assert (more[contexts >= 0] == contexts[contexts >= 0]).all(), "more contexts are those and others"
    assert (chosen_contexts(fit, 1)[1:] >= 0).sum() == LENGTH - 1, "one at least"


def test_firings_lie_in_contexts_of_their_own(views):
    fit, _, _ = views
    contexts = chosen_contexts(fit, 40 * LENGTH)
    places = firings(fit, contexts, 12)
    assert places.counts(4).tolist() == [12, int((contexts[10:20] >= 0).any()), 0, 12]
    for latent in (0, 3):
        own = places.latents == latent
        at, values = fit.firing(latent)
        where = np.searchsorted(at, places.positions[own])
        assert (at[where] == places.positions[own]).all()
        assert (values[where] == places.values[own]).all()
        assert len(set(contexts[places.positions[own]].tolist())) == 12
        assert (contexts[places.positions[own]] >= 0).all()
    assert len(set((places.positions % LENGTH).tolist())) > 10, "all over the context"
    again = firings(fit, contexts, 5)
    subset = set(zip(again.latents.tolist(), again.positions.tolist(), strict=True))
    assert subset <= set(zip(places.latents.tolist(), places.positions.tolist(), strict=True))


def test_silences_are_silent(views):
    fit, _, _ = views
    contexts = chosen_contexts(fit, 40 * LENGTH)
    places = silences(fit, contexts, np.array([0, 2, 3]), 9)
    assert places.counts(4).tolist() == [9, 0, 9, 0], "one that always fires is never silent"
    assert not np.isin(places.positions[places.latents == 0], fit.firing(0)[0]).any()
    assert (contexts[places.positions] >= 0).all()
    assert len(set(places.positions[places.latents == 2].tolist())) == 9


def test_controls_are_as_common_and_not_named():
    """Ranks by hand: token t occurs 1000 - t times, so that its neighbours by frequency are those by number."""
    counts = 1000 - np.arange(200)
    controls = Controls(counts, n=3, n_named=6)
    assert controls.reach == reach(3, 6) == 12
    named = np.array([100, 101, 102, 99, 98, 97])
    found = controls.of(named, named)
    assert found.shape == (6, 3)
    assert not np.isin(found, named).any()
    assert (np.abs(found - named[:, None]) <= 7).all()
    assert all(len(set(row)) == 3 for row in found.tolist())
    alone = controls.of(np.array([100]), np.array([100]))[0].tolist()
    kept = [token for token in alone if token not in named]
    assert found[0].tolist()[: len(kept)] == kept, "what is not named stays"
    for edge in (0, 199):
        near = controls.of(np.array([edge]), np.array([edge]))
        assert (np.abs(near - edge) <= 12).all()
        assert edge not in near


def test_a_margin_is_the_change_beyond_that_of_controls():
    change = torch.tensor([[5.0, 1.0, 2.0, 4.0], [0.0, 1.0, 0.0, -1.0]])
    named = Named(np.array([[0], [3]]), np.array([[[1, 2]], [[0, 1]]]))
    assert named.margins(change, np.array([0, 1])).tolist() == [[3.5], [-1.5]]
    assert named.margins(change, np.array([1, 1])).tolist() == [[1.0], [-1.5]]


def test_every_kind_has_columns_of_its_own():
    kinds = every_kind(["lens", "measured"], (1, 3))
    assert [(kind.verb, kind.source, kind.start, kind.stop) for kind in kinds] == [
        ("promotes", "lens", 0, 1),
        ("promotes", "lens", 0, 3),
        ("suppresses", "lens", 3, 4),
        ("suppresses", "lens", 3, 6),
        ("promotes", "measured", 6, 7),
        ("promotes", "measured", 6, 9),
        ("suppresses", "measured", 9, 10),
        ("suppresses", "measured", 9, 12),
    ]
    margins = np.array([[0, 0, 0, -1, -2, -6, *range(6)]], dtype=np.float32)
    assert [kind.values(margins).item() for kind in kinds] == [0, 0, 1, 3, 0, 1, -3, -4]


def test_means_and_errors_by_owner():
    """[1, 3]: mean 2, deviation sqrt 2, of two 1; one value has no error that is known."""
    found, errors = means(np.array([[1.0], [3.0], [5.0]]), np.array([0, 0, 1]), 2)
    assert found.tolist() == [[2.0], [5.0]]
    assert errors.tolist() == [[pytest.approx(1.0)], [np.inf]]


CFG = EffectsConfig(min_effect=0.01, certainty=2.0, chance=0.5)
"""What half of the random directions stay below: their median."""


def judged(effects, sizes, errors=0.0, n_random=3, **changes):
    effects = np.array(effects, dtype=float)
    is_random = np.arange(len(effects)) >= len(effects) - n_random
    best, given = _judged(
        effects, np.full(effects.shape, errors), np.array(sizes, float), is_random, replace(CFG, **changes)
    )
    return best.tolist(), given.tolist()


def test_the_candidate_that_stands_highest_above_random_ones_is_best():
    """Of the first kind random directions of size 1 have .4 (the median), of the second .1. A latent of size 2 with
    [1.2, .5] stands at 1.2 / .8 = 1.5 and at .5 / .2 = 2.5; the random ones' best stand at 1, 1.25 and 2."""
    random = [[0.4, 0.1], [0.5, 0.1], [0.2, 0.2]]
    assert judged([[1.2, 0.5], *random], [2, 1, 1, 1])[0][0] == 1
    assert judged([[1.2, 0.5], *random], [2, 1, 1, 1])[1] == [True, False, False, True]
    # above the middle of the random ones' best, 1.25, and no less
    assert judged([[1.2, 0.24], *random], [2, 1, 1, 1])[1][0]
    assert not judged([[0.9, 0.24], *random], [2, 1, 1, 1])[1][0]
    # as large, it would have to do more
    assert not judged([[1.2, 0.5], *random], [6, 1, 1, 1])[1][0]


def test_weak_and_unreliable_effects_abstain():
    random = [[0.001, 0.001]] * 3
    assert judged([[0.02, 0.0], *random], [1, 1, 1, 1])[1][0]
    assert not judged([[0.009, 0.0], *random], [1, 1, 1, 1])[1][0], "less than the least"
    assert not judged([[0.02, 0.0], *random], [1, 1, 1, 1], errors=0.011)[1][0], "not two errors above 0"
    assert not judged([[-0.2, -0.1], *random], [1, 1, 1, 1])[1][0], "every candidate goes the wrong way"
    assert judged([[0.02, 0.0]], [1], n_random=0) == ([0], [True])


def test_random_directions_are_as_long_as_the_latents_for_which_they_stand():
    latents = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    measured = np.array([True, False, True, True, True])
    units = Units.of(latents, measured, 3, seed=0)
    assert (units.n, units.n_latents, len(units.stands_for)) == (8, 5, 3)
    assert set(units.stands_for.tolist()) <= {0, 2, 3, 4}
    assert units.stands_for.tolist() == sorted(units.stands_for.tolist())
    assert units.norms[5:] == pytest.approx(units.stands_for + 1.0)
    assert torch.equal(units.directions[:5], latents)
    assert torch.equal(Units.of(latents, measured, 3, seed=0).directions, units.directions)
    assert not torch.equal(Units.of(latents, measured, 3, seed=1).directions, units.directions)
    several = Units.of(latents, measured, 8, seed=0)
    assert several.stands_for.tolist() == [0, 0, 2, 2, 3, 3, 4, 4]
    assert not torch.equal(several.directions[5], several.directions[6])
    assert Units.of(latents, np.zeros(5, dtype=bool), 8, seed=0).n == 5


def test_random_directions_have_the_places_of_their_latents():
    places = Places(np.array([0, 0, 2, 3]), np.array([5, 9, 7, 8]), np.array([1, 2, 3, 4], np.float32))
    shared = places.shared(np.array([0, 3]), 4)
    assert shared.latents.tolist() == [0, 0, 2, 3, 4, 4, 5]
    assert shared.positions.tolist() == [5, 9, 7, 8, 5, 9, 8]
    assert shared.values.tolist() == [1, 2, 3, 4, 1, 2, 4]
    assert shared.only(np.array([False, False, True, False, True, False])).positions.tolist() == [7, 5, 9]


def test_sentences_say_how_far():
    strings = [" York", "City", "ies", "\n", " York"]
    up, down = Kind(1, "lens", 0, 2), Kind(-1, "lens", 2, 4)
    assert sentence(up, [0, 1], strings, 0.8234) == "Promotes “York”, “City” (+0.82 nats)."
    assert sentence(down, [2, 3], strings, 0.0312) == "Suppresses “-ies”, line break (−0.031 nats)."
    assert sentence(up, [0, 4], strings, -0.1) == "Promotes “York” (−0.1 nats)."
    assert sentence(up, [0], strings, None) == "Promotes “York”."


def effect(nats: float, low: float | None = None, label: float | None = 0.1, chance: float | None = 0.2) -> Effect:
    return Effect(9, nats, low, nats + 1, 1.0, 0.9, label, chance)


@pytest.mark.parametrize(
    ("removed", "added", "beats", "surely"),
    [
        (effect(0.5, 0.3), effect(0.6, 0.25), True, True),
        (effect(0.5, 0.3), effect(0.6, 0.15), True, False),
        (effect(0.5, None), effect(0.6, 0.25), True, False),
        (effect(0.5, 0.3), effect(0.15, 0.1), False, False),  # random directions do as much
        (effect(0.5, 0.3), None, False, False),  # it is never silent
        (effect(-0.1, -0.2, -0.4, -0.5), effect(0.6, 0.25), False, False),  # below 0 is no effect
        (effect(0.5, 0.3, None, None), effect(0.6, 0.25, None, None), True, True),  # the only label
    ],
)
def test_both_interventions_must_beat_their_nulls(removed, added, beats, surely):
    whole = {"text": "", "verb": "promotes", "tokens": [1], "source": "lens", "select_effect": 1.0, "kl": 0.1}
    counts = {"latent": 0, "status": "labelled", "n_fit": 9, "n_select": 9, "other_latent": 1, "amount": 1.0}
    record = EffectRecord(**whole, **counts, removed=removed, added=added)
    assert (record.beats_nulls, record.surely_beats_nulls) == (beats, surely)


@pytest.mark.parametrize("normalise", ["none", "mean_norm", "rms", "layer_norm", "row_norm"])
@pytest.mark.parametrize("kind", ["sae", "matching_pursuit"])
def test_what_a_latent_writes_is_what_reconstructions_lose_without_it(kind, normalise):
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(1)) * 3 + 1
    directions = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    if kind == "sae":
        dictionary = dictionary_of(directions, normalise=normalise)
        dictionary.W_enc.data.copy_(directions)
    else:
        dictionary = MatchingPursuitSAE(MatchingPursuitConfig(n_latents=5, k=1, normalise=normalise), Shape((8,)))
        dictionary.W_dec.data.copy_(torch.nn.functional.normalize(directions))
    dictionary.scaling.scale.fill_(0.5 if normalise in ("mean_norm", "rms") else 1.0)
    with torch.no_grad():
        latents, recon = dictionary.reconstruct(x)
        added = latents.values[:, None] * dictionary.written()[latents.indices] * dictionary.row_sizes(x)
        silent = dictionary.scaling.leave(dictionary.b_dec.expand(6, 8), dictionary.scaling.rows(x))
    torch.testing.assert_close(recon - added, silent, rtol=1e-4, atol=1e-5)
    assert added.abs().max() > 0.1


def test_a_transcoder_writes_in_the_units_of_its_target():
    dictionary = TopKSAE(TopKConfig(n_latents=3, k=1), Shape((4,), (6,)))
    dictionary.W_dec.data.copy_(torch.arange(18.0).view(3, 6))
    dictionary.target_scaling.scale.fill_(0.5)
    torch.testing.assert_close(dictionary.written(), 2 * torch.arange(18.0).view(3, 6))
    assert dictionary.row_sizes(torch.ones(2, 6)).tolist() == [[1.0], [1.0]]
