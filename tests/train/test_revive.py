"""Resampling: when, from which rows, with what probability, and that weights and moments really change."""

import pytest
import torch
from accelerate import Accelerator
from torch.nn.functional import normalize

from sae.architectures.configs import (
    CrossLayerTranscoderConfig,
    MatchingPursuitConfig,
    ReLUConfig,
    SwitchConfig,
    TopKConfig,
)
from sae.architectures.relu import ReLUSAE
from sae.dictionary import Shape, Step
from sae.errors import ConfigError
from sae.store import Pairs, Places, StoredSplit
from tests.train.planted import N_FEATURES, D, X, choices, contents, member, planted, train
from train import optim, revive
from train.learner import Learner
from train.loader import Loader
from train.optim import Settings

N = 12
DEAD = torch.tensor([2, 5, 11])


def is_dead(*latents: int) -> torch.Tensor:
    mask = torch.zeros(N, dtype=torch.bool)
    mask[list(latents)] = True
    return mask


NOW = Step(6, 20, is_dead(*DEAD.tolist()))


@pytest.fixture
def pairs(store) -> Pairs:
    return store.pairs(X, "train")


def learning(optimizer: str = "adam", n_steps: int = 3):
    """A dictionary of 12 latents, random weights, and its optimiser after a few steps on random gradients."""
    dictionary = ReLUSAE(ReLUConfig(n_latents=N, normalise="none"), Shape((D,)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    built = optim.build(dictionary, optimizer, Settings(1e-2, 0.0, 0.0, (0.9, 0.999), 1e-8))
    for _ in range(n_steps):
        for parameter in dictionary.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        built.step()
    return dictionary, built


# --- when ---


def test_times_by_hand():
    """Every 1000 rows of a run of 20 steps of 256: before steps 4 (1024 rows) and 8 (2048); 12 is too late."""
    assert [step for step in range(20) if revive.is_due(step, 20, 256, 1000)] == [4, 8]


def test_never_and_at_every_step():
    assert not any(revive.is_due(step, 20, 256, 0) for step in range(20))
    assert [step for step in range(20) if revive.is_due(step, 20, 256, 100)] == list(range(1, 11))


# --- which rows ---


def test_a_sample_is_of_the_seed_and_the_step(pairs):
    first = revive.sample(pairs.split, 640, seed=0, step=6)
    assert torch.equal(first, revive.sample(pairs.split, 640, seed=0, step=6))
    assert not torch.equal(first, revive.sample(pairs.split, 640, seed=0, step=7))
    assert not torch.equal(first, revive.sample(pairs.split, 640, seed=1, step=6))


def test_a_sample_is_different_rows_of_the_split(pairs):
    rows = revive.sample(pairs.split, 640, seed=0, step=6)
    every = pairs.read(0, pairs.n_rows)[0]
    place = {tuple(row.tolist()): i for i, row in enumerate(every)}
    places = [place[tuple(row.tolist())] for row in rows]
    assert len(set(places)) == 640
    assert len({i // 2000 for i in places}) > 4, "from all over it"


def test_a_sample_larger_than_the_split_is_all_of_it(pairs):
    assert len(revive.sample(pairs.split, 10**6, seed=0, step=6)) == 20_000


def test_losses_by_the_formula(pairs):
    dictionary, _ = learning()
    x = pairs.read(0, 50)[0]
    W_enc, b_enc, W_dec, b_dec = (p.detach().double() for p in dictionary.parameters())
    latents = ((x.double() - b_dec) @ W_enc.T + b_enc).relu()
    expected = (latents @ W_dec + b_dec - x).square().sum(1)
    found = revive.row_losses(dictionary, x, x, NOW)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    assert dictionary.training


def test_rows_are_drawn_by_the_square_of_their_loss():
    """Losses 1, 2, 0, 3: probabilities 1/14, 4/14, 0, 9/14. Of 4000 draws the third decimal is noise:
    four standard errors are 0.03."""
    losses = torch.tensor([1.0, 2.0, 0.0, 3.0])
    drawn = torch.cat([revive.draw(losses, 1, seed=0, step=step) for step in range(4000)])
    shares = torch.bincount(drawn, minlength=4) / 4000
    torch.testing.assert_close(shares, torch.tensor([1.0, 4.0, 0.0, 9.0]) / 14, rtol=0, atol=0.03)
    assert shares[2] == 0


def test_no_two_latents_get_one_row():
    losses = torch.tensor([1.0, 2.0, 0.0, 3.0])
    assert sorted(revive.draw(losses, 3, seed=0, step=0).tolist()) == [0, 1, 3]
    assert len(revive.draw(losses, 9, seed=0, step=0)) == 3, "only three rows have a loss"
    assert len(revive.draw(torch.zeros(4), 9, seed=0, step=0)) == 0


# --- what changes ---


@pytest.mark.parametrize("name", ["adam", "muon", "schedule_free", "signum"])
def test_dead_rows_start_again_and_nothing_else_changes(pairs, name):
    """The decoder points at one of the rows, the encoder too, at a fifth of the mean norm of the nine others."""
    dictionary, optimizer = learning(name)
    before = {key: value.clone() for key, value in dictionary.state_dict().items()}
    state_before = {
        key: {slot: value.clone() for slot, value in part.state[parameter].items() if isinstance(value, torch.Tensor)}
        for part in optimizer.parts
        for key, parameter in dictionary.named_parameters()
        if parameter in part.state
    }
    found = revive.resample(dictionary, None, optimizer, pairs, NOW, 640, seed=0)
    assert torch.equal(found, DEAD)
    is_live = ~NOW.dead
    for key in ("W_enc", "b_enc", "W_dec"):
        value = dictionary.get_parameter(key)
        assert torch.equal(value[is_live], before[key][is_live]), key
        assert (value[DEAD] != before[key][DEAD]).all(), key
    assert torch.equal(dictionary.b_dec, before["b_dec"])
    assert torch.equal(dictionary.b_enc[DEAD], torch.zeros(3))
    size = 0.2 * before["W_enc"][is_live].norm(dim=1).mean()
    sample = revive.sample(pairs.split, 640, seed=0, step=6)
    towards = normalize(sample - dictionary.b_dec.detach(), dim=1)
    for latent in DEAD:
        cosines = towards @ dictionary.W_dec[latent].detach()
        assert cosines.max().item() == pytest.approx(1, abs=1e-5)
        torch.testing.assert_close(dictionary.W_enc[latent], size * dictionary.W_dec[latent], rtol=1e-4, atol=1e-5)
    for part in optimizer.parts:
        for key, parameter in dictionary.named_parameters():
            for slot, value in part.state.get(parameter, {}).items():
                old = state_before[key][slot]
                if key == "b_dec" or value.shape != parameter.shape:
                    assert torch.equal(value, old), (key, slot)
                    continue
                assert torch.equal(value[is_live], old[is_live]), (key, slot)
                assert torch.equal(value[DEAD], parameter[DEAD] if slot == "z" else torch.zeros_like(value[DEAD]))


def test_the_average_starts_again_too(pairs):
    dictionary, optimizer = learning()
    average, _ = learning(n_steps=0)
    before = average.W_enc.detach().clone()
    revive.resample(dictionary, average, optimizer, pairs, NOW, 640, seed=0)
    for key in ("W_enc", "b_enc", "W_dec"):
        assert torch.equal(average.get_parameter(key)[DEAD], dictionary.get_parameter(key)[DEAD])
    assert torch.equal(average.W_enc[~NOW.dead], before[~NOW.dead])


def test_without_dead_latents_nothing_is_read(pairs):
    dictionary, optimizer = learning()
    before = {key: value.clone() for key, value in dictionary.state_dict().items()}
    unreadable = Pairs(StoredSplit([[]], (D,)), pairs.sites, pairs.places)
    found = revive.resample(dictionary, None, optimizer, unreadable, Step(6, 20, is_dead()), 640, seed=0)
    assert len(found) == 0
    assert all(torch.equal(value, before[key]) for key, value in dictionary.state_dict().items())


# --- in a run ---


@pytest.mark.parametrize(
    ("places", "sae", "name"),
    [
        (X, MatchingPursuitConfig(n_latents=32, k=3), "matching_pursuit"),
        (Places(("x",), ("y",)), CrossLayerTranscoderConfig(n_latents=32), "cross_layer_transcoder"),
        (X, SwitchConfig(n_latents=32, k=3, n_experts=2), "switch"),
    ],
)
def test_what_cannot_be_resampled_is_refused(store, tmp_path, places, sae, name):
    with pytest.raises(ConfigError) as caught:
        train(store, tmp_path / "a", choices(resample_tokens=2560), sae, places)
    assert str(caught.value) == (
        f"train.resample_tokens = 2560: must be 0 with sae.type = {name}, whose latents cannot start again from a row"
    )
    assert contents(tmp_path / "a") == {}


def test_resampled_latents_count_as_alive_whether_they_fire_or_not(store, tmp_path):
    """Latents 5 to 8 are dead before the second step. Among the largest of 64 those that start again do not come in."""
    one = member(tmp_path / "a", choices(resample_tokens=256), TopKConfig(n_latents=64, k=1, auxk=0))
    pairs = store.pairs(X, "train")
    loader = Loader(pairs.split, 256, 4096, 0)
    learner = Learner(one, store, 40, Accelerator(cpu=True))
    learner.start(pairs, loader.batch(0), 0)
    learner.step(loader.batch(0))
    learner.progress.silent_tokens[5:9] = 2560
    learner.step(loader.batch(1))
    assert 256 in learner.progress.silent_tokens[5:9], "one at least has not fired"
    assert learner.progress.silent_tokens[5:9].max() == 256
    assert not learner.dead.any()


@pytest.mark.parametrize(("every", "n_steps"), [pytest.param(256 * 50, 400, marks=pytest.mark.slow), (0, 100)])
def test_latents_revive_and_learn_what_was_missing(store, tmp_path, every, n_steps):
    """Half the true features have a latent; the other half of the latents is silent, at a bias of -100. If at step 50
    of 400 they start again, at the end none is dead and every feature is known; if not, half are not."""
    cfg = choices(tokens=256 * n_steps, lr=1e-2, dead_tokens=256 * 50, resample_tokens=every)
    sae = ReLUConfig(n_latents=N_FEATURES, sparsity_coef=0.2, init_decoder="random")
    one = member(tmp_path / "a", cfg, sae)
    pairs = store.pairs(X, "train")
    loader = Loader(pairs.split, 256, 4096, 0)
    learner = Learner(one, store, n_steps, Accelerator(cpu=True))
    learner.start(pairs, loader.batch(0), 0)
    directions, dictionary = planted(1, 0)[1], learner.dictionary
    with torch.no_grad():
        dictionary.W_enc[:16] = dictionary.W_dec[:16] = directions[:16]
        dictionary.b_enc[16:] = -100
    for step in range(n_steps):
        learner.step(loader.batch(step))
        if step == 49:
            assert torch.equal(learner.dead.nonzero().flatten(), torch.arange(16, 32))
        if step == 50 and every:
            assert learner.progress.silent_tokens.max() <= 256, "they count as alive again"
    best = (directions @ dictionary.directions.detach().T).max(dim=1).values
    if every:
        assert not learner.dead.any()
        assert best.min() > 0.8
    else:
        assert torch.equal(learner.dead.nonzero().flatten(), torch.arange(16, 32))
        assert (best > 0.8).sum() < 16
