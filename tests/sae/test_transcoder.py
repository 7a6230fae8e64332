"""Transcoders: any architecture with a target of its own, and a linear path beside the latents.

Example: x = (1,2), encoder of example E without biases, pre = (1,2,2.2,-1); TopK 1: f = (0,0,2.2,0);
decoder [[0,1],[1,0],[.5,-.5],[0,-1]], bias (.1,-.2), y = (1.5,-3).
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae.architectures.configs import GatedConfig, JumpReLUConfig, PAnnealConfig, ReLUConfig, SAEConfig, TopKConfig
from sae.architectures.gated import GatedSAE
from sae.architectures.jumprelu import JumpReLUSAE
from sae.architectures.p_anneal import PAnnealSAE
from sae.architectures.relu import ReLUSAE
from sae.architectures.topk import TopKSAE
from sae.dictionary import SAE, InputStats, Shape
from sae.errors import ConfigError
from sae.scaling import SiteStats
from tests.sae import checks
from tests.sae.checks import close, step, total

XS, YS = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.5, -3.0]])
W_DEC = [[0.0, 1.0], [1.0, 0.0], [0.5, -0.5], [0.0, -1.0]]
VARIANTS = {
    "relu": (ReLUSAE, ReLUConfig),
    "p_anneal": (PAnnealSAE, PAnnealConfig),
    "jumprelu": (JumpReLUSAE, JumpReLUConfig),
    "gated": (GatedSAE, GatedConfig),
    "topk": (TopKSAE, TopKConfig),
}


def example(skip: bool, **choices) -> TopKSAE:
    dictionary = TopKSAE(TopKConfig(n_latents=4, k=1, skip=skip, decoder="free", **choices), Shape((2,), (2,)))
    checks.set_weights(dictionary, W_enc=checks.W, W_dec=W_DEC, b_dec=[0.1, -0.2])
    if skip:
        checks.set_weights(dictionary, W_skip=[[0.5, 0.0], [0.0, -1.0]])
    return dictionary


def any_weights(name: str, shape: Shape, seed: int = 0, **choices) -> SAE:
    cls, config = VARIANTS[name]
    if name == "topk":
        choices["k"] = 2
    dictionary = cls(config(n_latents=6, normalise="none", **choices), shape)
    checks.fill(dictionary, torch.Generator().manual_seed(seed))
    return dictionary


def test_without_a_skip():
    out = example(skip=False)(XS, YS, step())
    close(out.latents.dense(), [[0, 0, 2.2, 0]])  # the output bias is not subtracted from the input
    close(out.recon, [[1.2, -1.3]])
    close(out.terms["mse"], 2.98)


def test_with_a_skip():
    dictionary = example(skip=True)
    out = dictionary(XS, YS, step())
    close(out.recon, [[1.7, -3.3]])
    close(out.terms["mse"], 0.13)
    total(out).backward()
    close(dictionary.W_skip.grad, [[0.4, 0.8], [-0.6, -1.2]])  # 2 (y_hat - y) x^T
    close(dictionary.b_dec.grad, [0.4, -0.6])  # 2 (y_hat - y): no part of it comes through the encoder


def test_reconstruction_has_the_skip_and_what_latents_say_has_not():
    dictionary = example(skip=True)
    latents, recon = dictionary.reconstruct(XS)
    close(recon, [[1.7, -3.3]])
    close(dictionary.decode(latents), [[1.2, -1.3]])


def test_auxk_is_of_the_output():
    """Dead l1, l3 of two rows; residual of the output, 1 of its 2 / 2 allowed latents a row."""
    dictionary = example(skip=True, auxk_coef=1.0)
    x, y = torch.tensor([[1.0, 2.0], [3.0, 1.0]]), torch.tensor([[1.5, -3.0], [0.0, 0.0]])
    out = dictionary(x, y, step(1, 3))
    # row 0: e = y - y_hat = (-.2,.3), l1 at 2 writes (2,0): (2.2,-.3) -> 4.93
    # row 1: f = l0 3, y_hat = (0,3) + (.1,-.2) + (1.5,-1) = (1.6,1.8), e = -that, l1 at 1: (2.6,1.8) -> 10
    # deviations of e from (-.9,-.75): (.7,1.05) twice -> 1.5925
    close(out.terms["auxk"], (4.93 + 10) / 2 / 1.5925)


@pytest.mark.parametrize("name", VARIANTS)
def test_with_its_input_as_target_it_is_the_autoencoder_without_a_pre_bias(name):
    plain = any_weights(name, Shape((3,)), pre_bias=False)
    transcoder = any_weights(name, Shape((3,), (3,)))
    state = plain.state_dict()
    transcoder.load_state_dict(state | {"target_scaling.scale": state["scaling.scale"]})
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    outs = plain(x, x, step(n_latents=6)), transcoder(x, x, step(n_latents=6))
    assert torch.equal(outs[0].recon, outs[1].recon)
    assert {k: v.item() for k, v in outs[0].terms.items()} == {k: v.item() for k, v in outs[1].terms.items()}
    for out in outs:
        total(out).backward()
    for parameter, other in zip(plain.parameters(), transcoder.parameters(), strict=True):
        assert (parameter.grad is None and other.grad is None) or torch.equal(parameter.grad, other.grad)


@pytest.mark.parametrize("name", VARIANTS)
def test_an_identity_beside_latents_that_write_nothing(name):
    dictionary = any_weights(name, Shape((3,), (3,)), skip=True)
    checks.set_weights(dictionary, W_dec=torch.zeros(6, 3), b_dec=[0.0] * 3, W_skip=torch.eye(3))
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    close(dictionary.reconstruct(x)[1], x)
    close(dictionary(x, x, step(n_latents=6)).terms["mse"], 0.0)


@pytest.mark.parametrize("name", VARIANTS)
@given(d_in=st.integers(1, 4), d_out=st.integers(1, 4), seed=st.integers(0, 99))
@settings(max_examples=8)
def test_both_sites_have_units_of_their_own(name, d_in, d_out, seed):
    """Inputs scaled by 4 and outputs by 1/2: what it does with x / 4 and 2 y is what it does with x and y unscaled."""
    plain = any_weights(name, Shape((d_in,), (d_out,)), seed, skip=True)
    scaled = any_weights(name, Shape((d_in,), (d_out,)), seed, skip=True)
    scaled.scaling.scale.fill_(4.0)
    scaled.target_scaling.scale.fill_(0.5)
    x, y = (torch.randn(3, d, generator=torch.Generator().manual_seed(seed)) for d in (d_in, d_out))
    now = step(n_latents=6)
    expected, found = plain(x, y, now), scaled(x / 4, 2 * y, now)
    assert torch.equal(found.latents.dense(), expected.latents.dense())
    assert [t.item() for t in found.terms.values()] == [t.item() for t in expected.terms.values()]
    close(scaled.reconstruct(x / 4)[1], 2 * plain.reconstruct(x)[1])


def test_rows_normalised_one_by_one_are_so_on_the_way_in_only():
    """Layer norm of x says nothing of how large y is."""
    dictionary = TopKSAE(TopKConfig(n_latents=2, k=1, normalise="row_norm"), Shape((2,), (2,)))
    checks.set_weights(dictionary, W_enc=torch.eye(2), W_dec=torch.eye(2))
    # (30, 40) becomes sqrt(2) (.6, .8); the output is not multiplied by 50 / sqrt(2)
    close(dictionary.reconstruct(torch.tensor([[30.0, 40.0]]))[1], [[0.0, 0.8 * 2**0.5]])


@pytest.mark.parametrize("choices", [{}, {"multi_coef": 1.0}])
def test_a_skip_reads_such_rows_as_they_are(choices):
    cfg = TopKConfig(n_latents=2, k=1, normalise="row_norm", skip=True, decoder="free", **choices)
    dictionary = TopKSAE(cfg, Shape((2,), (2,)))
    checks.set_weights(dictionary, W_enc=torch.eye(2), W_dec=2**-0.5 * torch.eye(2), W_skip=[[0.1, 0.0], [0.0, 0.0]])
    x, y = torch.tensor([[30.0, 40.0]]), torch.tensor([[3.0, 0.0]])
    close(dictionary.reconstruct(x)[1], [[3.0, 0.8]])
    out = dictionary(x, y, step(n_latents=2))
    close(out.recon, [[3.0, 0.8]])
    close(out.terms["mse"], 0.64)
    if choices:  # with both latents: (3.6, .8)
        close(out.terms["multi"], 0.36 + 0.64)


def test_the_gated_auxiliary_term_skips_alike():
    cfg = GatedConfig(n_latents=2, normalise="row_norm", skip=True, decoder="free")
    dictionary = GatedSAE(cfg, Shape((2,), (2,)))
    checks.set_weights(dictionary, W_enc=torch.eye(2), W_dec=2**-0.5 * torch.eye(2), W_skip=[[0.1, 0.0], [0.0, 0.0]])
    x, y = torch.tensor([[30.0, 40.0]]), torch.tensor([[3.6, 0.8]])
    close(dictionary(x, y, step(n_latents=2)).terms["aux"], 0.0)


def test_initialisation():
    """The mean input gives the mean output and no latent; encoder and decoder have directions of their own."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(400, 5, generator=generator) + 3, torch.randn(400, 2, generator=generator) - 7
    dictionary = ReLUSAE(ReLUConfig(n_latents=9, normalise="none", skip=True, fit_encoder=False), Shape((5,), (2,)))
    stats = (SiteStats(5, 1.0, 1.0),), (SiteStats(2, 1.0, 1.0),)
    dictionary.initialise(InputStats(*stats, x, y), generator)
    close(dictionary.b_dec, y.mean(0))
    close(dictionary.W_enc @ x.mean(0) + dictionary.b_enc, torch.zeros(9), atol=1e-5)
    close(dictionary.W_enc.norm(dim=1), torch.ones(9))
    close(dictionary.W_dec.norm(dim=1), torch.ones(9))
    close(dictionary.variance, y.var(dim=0, correction=0).sum())  # of the output
    assert dictionary.W_skip.abs().sum() == 0
    angles = torch.nn.functional.cosine_similarity(dictionary.W_enc[:, :2], dictionary.W_dec)
    assert angles.abs().min() < 0.9, "they are not copies"


@pytest.mark.parametrize("normalise", ["layer_norm", "row_norm"])
def test_what_is_written_is_scaled_where_rows_are_read_one_by_one(normalise):
    """An error in the network's units would drown a penalty in the dictionary's, or be drowned by it."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(400, 5, generator=generator), torch.randn(400, 2, generator=generator)
    errors = []
    for unit in (1, 1000):
        dictionary = ReLUSAE(ReLUConfig(n_latents=9, normalise=normalise), Shape((5,), (2,)))
        norms = (unit * y).norm(dim=1)
        stats = (SiteStats(5, 1.0, 1.0),), (SiteStats(2, norms.mean().item(), norms.square().mean().item()),)
        dictionary.initialise(InputStats(*stats, x, unit * y), torch.Generator().manual_seed(1))
        errors.append(dictionary(x, unit * y, step(n_latents=9)).terms["mse"].item())
    assert errors[1] == pytest.approx(errors[0], rel=1e-4)
    assert 1 < errors[0] < 10, "rows of norm sqrt(2)"


def test_an_autoencoder_has_no_skip():
    with pytest.raises(ConfigError) as caught:
        TopKSAE(TopKConfig(skip=True), Shape((2,)))
    assert str(caught.value) == (
        "sae.skip = true: must be false unless train.target names another site than train.site"
    )
    assert SAEConfig().skip is False
