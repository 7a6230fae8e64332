"""Units: what each normalisation means, the way back, sites by themselves, and a whitening that is folded away."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from sae import hub
from sae.architectures.batchtopk import BatchTopKSAE
from sae.architectures.configs import (
    BatchTopKConfig,
    GatedConfig,
    JumpReLUConfig,
    PAnnealConfig,
    ReLUConfig,
    TopKConfig,
)
from sae.architectures.gated import GatedSAE
from sae.architectures.jumprelu import JumpReLUSAE
from sae.architectures.p_anneal import PAnnealSAE
from sae.architectures.relu import ReLUSAE
from sae.architectures.topk import TopKSAE
from sae.dictionary import SAE, InputStats, Shape
from sae.scaling import Scaling, SiteStats
from tests.sae import checks
from tests.sae.checks import close, step

ROWS = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 1.0]])
"""Norms 5 and 1: mean norm 3, mean squared norm 13."""
STATS = SiteStats(3, 3.0, 13.0)


def rows(n: int, d: int, seed: int = 0) -> torch.Tensor:
    """Correlated rows off the origin, with variances from about 0.01 to 100."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator)
    return (torch.randn(n, d, generator=generator) * torch.logspace(-1, 1, d)) @ mix + 5 * mix[0]


def fitted(normalise: str, x: torch.Tensor) -> Scaling:
    scaling = Scaling(normalise, (x.shape[1],)).to(x.dtype)
    stats = SiteStats(x.shape[1], x.norm(dim=1).mean().item(), x.square().sum(1).mean().item())
    scaling.fit([stats], x)
    return scaling


# --- definitions ---


@pytest.mark.parametrize(
    ("normalise", "scale"),
    [("mean_norm", 3**0.5 / 3), ("rms", 13**-0.5), ("none", 1.0), ("whiten", 1.0), ("layer_norm", 1), ("row_norm", 1)],
)
def test_scalars(normalise, scale):
    assert STATS.scale(normalise) == pytest.approx(scale)


def test_scalar_normalisations():
    x = rows(500, 4)
    close(fitted("mean_norm", x).enter(x).norm(dim=1).mean(), 2.0)  # sqrt(d)
    close(fitted("rms", x).enter(x).square().sum(1).mean(), 1.0)
    assert torch.equal(fitted("none", x).enter(x), x)


def test_layer_norm():
    scaling = fitted("layer_norm", ROWS)
    found = scaling.rows(torch.tensor([[1.0, 2.0, 6.0]]))
    close(found.shift, [[3.0]])
    close(found.size, [[7**0.5]])  # unbiased: (4 + 1 + 9) / 2
    close(scaling.enter(torch.tensor([[1.0, 2.0, 6.0]]), found), [[-2 / 7**0.5, -1 / 7**0.5, 3 / 7**0.5]])


def test_layer_norm_of_an_even_row_divides_by_epsilon_and_comes_back_without_it():
    scaling = fitted("layer_norm", ROWS)
    x = torch.tensor([[2.0, 2.0, 2.0 + 3e-5]], dtype=torch.float64)
    found = scaling.rows(x)  # std 3e-5 / sqrt(3)
    size = 3e-5 / 3**0.5
    close(scaling.enter(x, found), [[-1e-5 / (size + 1e-5), -1e-5 / (size + 1e-5), 2e-5 / (size + 1e-5)]])
    close(scaling.leave(torch.ones(1, 3, dtype=torch.float64), found), [[2 + 1e-5 + size] * 3], rtol=1e-12, atol=0)


def test_row_norm():
    scaling = fitted("row_norm", ROWS)
    close(scaling.enter(ROWS, scaling.rows(ROWS)), [[3**0.5 * 0.6, 3**0.5 * 0.8, 0], [0, 0, 3**0.5]])


@pytest.mark.parametrize("normalise", ["layer_norm", "row_norm"])
def test_a_row_of_zeros_stays_one(normalise):
    zeros = torch.zeros(2, 3)
    scaling = fitted(normalise, ROWS)
    found = scaling.rows(zeros)
    assert torch.equal(scaling.enter(zeros, found), zeros)
    assert torch.equal(scaling.leave(zeros, found), zeros)


def test_whitening_gives_unit_covariance():
    x = rows(2000, 6)
    assert x.T.cov().diagonal().max() / x.T.cov().diagonal().min() > 3, "not white to begin with"
    scaling = fitted("whiten", x)
    white = scaling.enter(x)
    close(white.mean(0), torch.zeros(6), atol=1e-4)
    close(white.T.cov(), torch.eye(6), atol=1e-3)
    close(scaling.matrix, scaling.matrix.T)  # symmetric: the nearest to the identity of all whitenings (ZCA)
    close(scaling.matrix @ scaling.inverse, torch.eye(6), atol=1e-4)


def test_whitening_by_hand():
    # deviations +-(2,0), +-(0,1) from (10,20): variances 8/3 and 2/3
    x = torch.tensor([[12.0, 20.0], [8.0, 20.0], [10.0, 21.0], [10.0, 19.0]])
    scaling = fitted("whiten", x)
    close(scaling.mean, [10.0, 20.0])
    close(scaling.matrix, [[(3 / 8) ** 0.5, 0], [0, (3 / 2) ** 0.5]])
    close(scaling.enter(x[:1]), [[2 * (3 / 8) ** 0.5, 0]])


def test_whitening_leaves_a_direction_without_variance_finite():
    x = rows(100, 3)
    x[:, 2] = 7.0
    scaling = fitted("whiten", x)
    white = scaling.enter(x)
    assert torch.isfinite(white).all()
    close(white[:, 2].abs().max(), 0.0, atol=1e-3)
    close(scaling.leave(white), x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("normalise", ["mean_norm", "rms", "none", "whiten", "layer_norm", "row_norm"])
@given(seed=st.integers(0, 10**6), d=st.integers(2, 5), batch=st.integers(1, 4))
@settings(max_examples=10)
def test_there_and_back(normalise, seed, d, batch):
    scaling = fitted(normalise, rows(50, d, seed).double())
    x = rows(batch, d, seed + 1).double()
    found = scaling.rows(x)
    back = scaling.leave(scaling.enter(x, found), found)
    if normalise == "layer_norm":  # the way back leaves the 1e-5 out
        back = (back - found.shift) * (1 + 1e-5 / found.size) + found.shift
    close(back, x, rtol=1e-9, atol=1e-9)


def test_sites_have_a_scalar_each():
    scaling = Scaling("mean_norm", (1, 2))
    scaling.fit([SiteStats(1, 10.0, 0.0), SiteStats(2, 0.1, 0.0)], torch.zeros(0, 3))
    close(scaling.scale, [0.1, 10 * 2**0.5])
    close(scaling.enter(torch.tensor([[10.0, 0.1, 0.0]])), [[1.0, 2**0.5, 0.0]])
    close(scaling.leave(torch.tensor([[1.0, 2**0.5, 0.0]])), [[10.0, 0.1, 0.0]])


@pytest.mark.parametrize("normalise", ["layer_norm", "row_norm"])
def test_rows_come_back_in_their_own_units(normalise):
    """`reconstruct` knows each row's scale; `decode` alone cannot, and speaks the dictionary's units."""
    dictionary = TopKSAE(TopKConfig(n_latents=2, k=1, normalise=normalise), Shape((2,)))
    checks.set_weights(dictionary, W_enc=[[1.0, -1.0], [-1.0, 1.0]], W_dec=[[0.5, -0.5], [-0.5, 0.5]])
    x = torch.tensor([[30.0, -30.0], [-0.5, 0.5]])
    latents, recon = dictionary.reconstruct(x)
    close(recon, x, rtol=1e-4)
    close(dictionary.decode(latents).norm(dim=1), [2**0.5 if normalise == "row_norm" else 1.0] * 2, rtol=1e-4)


# --- folding a whitening ---

VARIANTS = {
    "relu, pre-bias": (ReLUSAE, ReLUConfig, {}, False),
    "relu": (ReLUSAE, ReLUConfig, {"pre_bias": False}, False),
    "p_anneal": (PAnnealSAE, PAnnealConfig, {}, False),
    "jumprelu, pre-bias": (JumpReLUSAE, JumpReLUConfig, {}, False),
    "jumprelu": (JumpReLUSAE, JumpReLUConfig, {"pre_bias": False}, False),
    "gated, pre-bias": (GatedSAE, GatedConfig, {}, False),
    "gated": (GatedSAE, GatedConfig, {"pre_bias": False}, False),
    "batchtopk": (BatchTopKSAE, BatchTopKConfig, {"k": 3, "decoder": "unit"}, False),
    "batchtopk by norm": (BatchTopKSAE, BatchTopKConfig, {"k": 3, "decoder": "folded"}, False),
    "relu transcoder": (ReLUSAE, ReLUConfig, {}, True),
    "gated transcoder with a skip": (GatedSAE, GatedConfig, {"skip": True}, True),
    "jumprelu transcoder with a skip": (JumpReLUSAE, JumpReLUConfig, {"skip": True}, True),
}


def whitened(name: str) -> tuple[SAE, torch.Tensor]:
    """A dictionary of random weights, in use, whose inputs (and outputs, of another width) are whitened."""
    cls, config, choices, is_transcoder = VARIANTS[name]
    x, y = rows(1000, 6), rows(1000, 4, seed=9)
    dictionary = cls(config(n_latents=12, normalise="whiten", **choices), Shape((6,), (4,) if is_transcoder else None))
    target, stats = (y if is_transcoder else x), ((SiteStats(6, 1.0, 1.0),), (SiteStats(4, 1.0, 1.0),))
    dictionary.initialise(InputStats(*stats, x, target), torch.Generator().manual_seed(1))
    checks.fill(dictionary, torch.Generator().manual_seed(2))
    if name.startswith("batchtopk"):
        dictionary.after_step(dictionary(x, x, step(n_latents=12)))
    return dictionary.eval(), x[:50]


@pytest.mark.parametrize("name", VARIANTS)
def test_folding_changes_nothing_but_the_weights(name):
    """Weights are folded in float32; compared in float64, as sums about a mean that is far from 0 lose more."""
    dictionary, x = whitened(name)
    folded = dictionary.folded()
    assert folded.cfg.normalise == "none"
    assert type(folded) is type(dictionary)
    assert not folded.training
    assert folded.W_enc.dtype == torch.float32
    dictionary, folded, x = dictionary.double(), folded.double(), x.double()
    (latents, recon), (f, y) = dictionary.reconstruct(x), folded.reconstruct(x)
    assert 0.2 < (latents.dense() > 0).double().mean() < 0.8, "the test is not of dictionaries that are silent"
    expected = latents.dense() if dictionary.sizes is None else latents.dense() * dictionary.sizes
    close(f.dense(), expected, rtol=0, atol=5e-6 * expected.max().item())
    close(y, recon, rtol=0, atol=5e-6 * recon.abs().max().item())
    if dictionary.W_skip is None:
        close(folded.decode(f), y.detach(), rtol=0, atol=1e-12)


def test_folding_twice_is_folding_once():
    folded = whitened("relu")[0].folded()
    assert folded.folded() is folded


def test_what_is_not_whitened_is_itself():
    dictionary = ReLUSAE(ReLUConfig(n_latents=4), Shape((2,)))
    assert dictionary.folded() is dictionary


def test_a_dictionary_in_training_stays_as_it_is():
    dictionary, _ = whitened("gated transcoder with a skip")
    before = {name: value.clone() for name, value in dictionary.state_dict().items()}
    assert dictionary.train().folded().training
    assert all(torch.equal(value, before[name]) for name, value in dictionary.state_dict().items())


@pytest.mark.parametrize("name", ["gated, pre-bias", "jumprelu transcoder with a skip"])
def test_a_saved_file_holds_no_whitening(name, tmp_path):
    dictionary, x = whitened(name)
    hub.save(dictionary, {}, tmp_path)
    names = set(load_file(tmp_path / "dictionary.safetensors"))
    assert not {n for n in names if n.rsplit(".", 1)[-1] in ("mean", "matrix", "inverse")}
    assert names >= {"W_enc", "b_enc", "W_dec", "b_dec", "scaling.scale"}
    loaded = hub.load(tmp_path)
    latents, recon = loaded.reconstruct(x)
    close(recon, dictionary.reconstruct(x)[1], rtol=1e-5, atol=1e-5 * recon.abs().max().item())
    assert len(latents.values) == len(dictionary.encode(x).values)


def test_a_checkpoint_holds_the_whitening():
    dictionary, x = whitened("relu")
    other = ReLUSAE(dictionary.cfg, dictionary.shape).eval()
    other.load_state_dict(dictionary.state_dict())
    assert torch.equal(other.reconstruct(x)[1], dictionary.reconstruct(x)[1])
