"""Crosscoders: one code for several sites, whose decoder norms are summed over sites; with L1 and with BatchTopK.

Example C, two sites of width 2: a_0 = (1,0), a_1 = (0,2);
encoder l0: (1,0)|(0,.5), l1: (0,1)|(1,0), l2: (1,1)|(-1,0), so pre = (2,0,1);
decoder l0: (.6,0)|(0,.8), l1: (0,1)|(0,0), l2: (.3,.4)|(0,.5), so a^_0 = (1.5,.4), a^_1 = (0,2.1).
"""

import random
from dataclasses import dataclass

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sae.architectures.configs import CrosscoderBatchTopKConfig, CrosscoderConfig
from sae.architectures.crosscoder import BatchTopKCrosscoder, Crosscoder, site_norms, sizes
from sae.dictionary import SAE, InputStats, Shape
from sae.scaling import SiteStats
from tests.reference import crosscoder as reference
from tests.reference import linear as dense
from tests.sae import checks
from tests.sae.checks import close, step

ROW = torch.tensor([[1.0, 0.0, 0.0, 2.0]])
W_ENC = [[1.0, 0.0, 0.0, 0.5], [0.0, 1.0, 1.0, 0.0], [1.0, 1.0, -1.0, 0.0]]
W_DEC = [[0.6, 0.0, 0.0, 0.8], [0.0, 1.0, 0.0, 0.0], [0.3, 0.4, 0.0, 0.5]]


def example(**choices) -> Crosscoder:
    fields = {"sparsity_coef": 1.0, "sparsity_warmup": 0.0} | choices
    dictionary = Crosscoder(CrosscoderConfig(n_latents=3, **fields), Shape((2, 2)))
    checks.set_weights(dictionary, W_enc=W_ENC, W_dec=W_DEC)
    return dictionary


# --- example C ---


@pytest.mark.parametrize(
    ("norm", "of_each", "penalty"),
    [
        ("sum", [1.4, 1.0, 1.0], 3.8),  # .6 + .8, 1 + 0, .5 + .5; 2 * 1.4 + 1
        ("concatenated", [1.0, 1.0, 0.707107], 2.707107),
    ],
)
def test_loss(norm, of_each, penalty):
    dictionary = example(norm=norm)
    close(sizes(dictionary, norm), of_each)
    out = dictionary(ROW, ROW, step(n_latents=3))
    close(out.latents.dense(), [[2, 0, 1]])
    close(out.recon, [[1.5, 0.4, 0, 2.1]])
    close(out.terms["mse"], 0.42)  # .25 + .16 and .01
    close(out.terms["l1"], penalty)


def test_norms_of_each_site():
    close(site_norms(torch.tensor(W_DEC), Shape((2, 2))), [[0.6, 0.8], [1, 0], [0.5, 0.5]])
    close(site_norms(torch.tensor(W_DEC), Shape((1, 3))), [[0.6, 0.8], [0, 1], [0.3, 0.640312]])
    close(site_norms(torch.tensor(W_DEC), Shape((7,), (3, 1))), [[0.6, 0.8], [1, 0], [0.5, 0.5]])


def test_gradient_of_the_penalty():
    dictionary = example()
    dictionary(ROW, ROW, step(n_latents=3)).terms["l1"].backward()
    # f times the unit vector of each site: l0 2 (1,0)|(0,1), l2 (.6,.8)|(0,1)
    close(dictionary.W_dec.grad, [[2, 0, 0, 2], [0, 0, 0, 0], [0.6, 0.8, 0, 1]])
    close(dictionary.b_enc.grad, [1.4, 0, 1])
    assert torch.isfinite(dictionary.W_dec.grad).all(), "l1 writes nothing to site 1: its norm has no slope there"


# --- against the formula site by site ---


def split(matrix: Tensor, widths: list[int]) -> list[Tensor]:
    return list(matrix.split(widths, dim=-1))


def by_site(p: dict[str, Tensor], widths: list[int]) -> tuple[list[Tensor], Tensor, list[Tensor], list[Tensor]]:
    return split(p["W_enc"], widths), p["b_enc"], split(p["W_dec"], widths), split(p["b_dec"], widths)


@dataclass(frozen=True)
class Case:
    """Sizes and choices that follow from a seed."""

    widths: list[int]
    norm: str
    n: int
    k: int
    k_aux: int
    dead: list[int]
    x: Tensor


def case(seed: int) -> Case:
    draw = random.Random(seed)
    widths, n = [draw.randint(1, 3) for _ in range(draw.randint(1, 3))], draw.randint(1, 7)
    x = torch.randn(draw.randint(1, 4), sum(widths), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if draw.random() < 0.3:
        x[0] = 0
    dead = [i for i in range(n) if draw.random() < 0.4]
    norm = draw.choice(["sum", "concatenated"])
    return Case(widths, norm, n, draw.randint(1, n), draw.randint(1, 3), dead, x)


@given(st.integers(0, 10**6))
def test_losses_and_gradients_are_the_dense_ones(monkeypatch, seed):
    checks.either_way(monkeypatch, seed)
    c = case(seed)
    cfg = CrosscoderConfig(n_latents=c.n, norm=c.norm, sparsity_coef=0.3, sparsity_warmup=0.0)
    dictionary = Crosscoder(cfg, Shape(tuple(c.widths))).double()
    checks.fill(dictionary, torch.Generator().manual_seed(seed + 1))
    p = checks.copies(dictionary)
    expected = reference.loss(split(c.x, c.widths), *by_site(p, c.widths), c.norm)
    out = dictionary(c.x, c.x, step(n_latents=c.n))
    checks.same_losses(dictionary, out, expected | {"l1": 0.3 * expected["l1"]}, p)


@given(st.integers(0, 10**6))
@hypothesis.example(2048)  # AuxK chooses by what latents write too
def test_batchtopk_is_the_dense_one(monkeypatch, seed):
    """The error is divided by the variance, 2; AuxK of the dead is of all sites together."""
    checks.either_way(monkeypatch, seed)
    c = case(seed)
    cfg = CrosscoderBatchTopKConfig(n_latents=c.n, k=c.k, norm=c.norm, auxk=c.k_aux, auxk_coef=0.25)
    dictionary = BatchTopKCrosscoder(cfg, Shape(tuple(c.widths))).double()
    checks.fill(dictionary, torch.Generator().manual_seed(seed + 1))
    dictionary.variance.fill_(2.0)
    p, now = checks.copies(dictionary), step(*c.dead, n_latents=c.n)
    sites, (W_enc, b_enc, W_dec, b_dec) = split(c.x, c.widths), by_site(p, c.widths)
    f = reference.batchtopk_latents(sites, W_enc, b_enc, W_dec, c.norm, c.k)
    out = dictionary(c.x, c.x, now)
    torch.testing.assert_close(out.latents.dense(), f, rtol=1e-10, atol=1e-12)
    terms = {"mse": reference.error(f, sites, W_dec, b_dec) / 2}
    if c.dead:
        w, sizes = checks.linear(p, dictionary), reference.sizes(W_dec, c.norm).detach()
        terms["auxk"] = 0.25 * dense.auxk(c.x, c.x - dense.recon(c.x, f, w), w, now.dead, c.k_aux, sizes)
    checks.same_losses(dictionary, out, terms, p)


# --- BatchTopK: what is weighted, and in which unit the threshold is ---


def batchtopk(k: int, norm: str = "sum") -> BatchTopKCrosscoder:
    """Two sites of width 1; l0 writes (3,4), size 7; l1 writes (1,0), size 1; l2 (0,2), size 2."""
    cfg = CrosscoderBatchTopKConfig(n_latents=3, k=k, norm=norm, normalise="none", auxk_coef=0.0)
    dictionary = BatchTopKCrosscoder(cfg, Shape((1, 1)))
    checks.set_weights(
        dictionary, W_enc=[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], W_dec=[[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]]
    )
    return dictionary


ROWS = torch.tensor([[0.5, 4.0], [0.125, 1.0]])
"""f = [[.5,4,4.5],[.125,1,1.125]], f size = [[3.5,4,9],[.875,1,2.25]]."""


def test_the_batch_keeps_what_writes_most():
    out = batchtopk(k=2)(ROWS, ROWS, step(n_latents=3))
    # of f size the four largest are 9, 4, 3.5, 2.25; of f alone 4.5, 4, 1.125, 1
    close(out.latents.dense(), [[0.5, 4, 4.5], [0, 0, 1.125]])


@pytest.mark.parametrize(("norm", "kept"), [("sum", [0.5, 0, 3.5]), ("concatenated", [0, 3, 3.5])])
def test_by_which_size_the_batch_chooses(norm, kept):
    """f = (.5, 3, 3.5): times sums of norms (3.5, 3, 7), times norms of all together, 5, 1 and 2, (2.5, 3, 7)."""
    row = torch.tensor([[0.5, 3.0]])
    close(batchtopk(k=2, norm=norm)(row, row, step(n_latents=3)).latents.dense(), [kept])


def test_threshold_is_in_the_weighted_unit():
    dictionary = batchtopk(k=2)
    assert dictionary.eval().encode(ROWS).dense().count_nonzero() == 6, "a plain ReLU before any batch"
    dictionary.train()
    for _ in range(3):
        dictionary.after_step(dictionary(ROWS, ROWS, step(n_latents=3)))
    close(dictionary.threshold.value(), 2.25)  # the smallest f size that was kept, not the smallest f, .5
    dictionary.eval()
    close(dictionary.selection().threshold, [2.25 / 7, 2.25, 1.125])
    # what is above: 3.5, 4 and 9 of row 0; row 1's 2.25 is the threshold itself
    close(dictionary.encode(ROWS).dense(), [[0.5, 4, 4.5], [0, 0, 0]])
    close(dictionary.encode(ROWS[:1]).dense(), [[0.5, 4, 4.5]])
    close(dictionary.encode(torch.tensor([[0.33, 0.0]])).dense(), [[0.33, 0, 0]])  # 2.31, but l2's .66


def test_threshold_follows_the_decoder():
    """A latent whose decoder doubles needs half the activation."""
    dictionary = batchtopk(k=2)
    dictionary.after_step(dictionary(ROWS, ROWS, step(n_latents=3)))
    checks.set_weights(dictionary, W_dec=2 * dictionary.W_dec)
    close(dictionary.eval().selection().threshold, [2.25 / 14, 1.125, 0.5625])


def test_a_latent_that_writes_nothing_is_never_kept():
    dictionary = batchtopk(k=3)
    checks.set_weights(dictionary, W_dec=[[3.0, 4.0], [0.0, 0.0], [0.0, 2.0]])
    close(dictionary(ROWS, ROWS, step(n_latents=3)).latents.dense(), [[0.5, 0, 4.5], [0.125, 0, 1.125]])
    dictionary.after_step(dictionary(ROWS, ROWS, step(n_latents=3)))
    close(dictionary.eval().encode(ROWS).dense(), [[0.5, 0, 4.5], [0, 0, 1.125]])  # the threshold is .875


# --- units and first weights ---


def initialised(dictionary: SAE, seed: int = 0) -> tuple[SAE, Tensor]:
    """Sites of widths 3 and 2, the second a hundred times larger."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.cat([torch.randn(300, 3, generator=generator), 100 * torch.randn(300, 2, generator=generator)], dim=1)
    stats = tuple(
        SiteStats(part.shape[1], part.norm(dim=1).mean().item(), part.square().sum(1).mean().item())
        for part in rows.split([3, 2], dim=1)
    )
    dictionary.initialise(InputStats(stats, stats, rows, rows), generator)
    return dictionary, rows


def test_every_site_is_scaled_by_itself():
    dictionary, rows = initialised(Crosscoder(CrosscoderConfig(n_latents=8), Shape((3, 2))))
    out = dictionary(rows, rows, step(n_latents=8))
    for part, d in zip(out.x.split([3, 2], dim=1), (3, 2), strict=True):
        close(part.norm(dim=1).mean(), d**0.5)
    _, recon = dictionary.reconstruct(rows)
    close(dictionary.scaling.enter(recon), out.recon.detach())
    assert out.terms["mse"] < 20, "no site drowns the other: with one scalar it would be in thousands"


def test_first_weights():
    dictionary, _ = initialised(Crosscoder(CrosscoderConfig(n_latents=8), Shape((3, 2))))
    close(site_norms(dictionary.W_dec, dictionary.shape), torch.full((8, 2), 0.08))
    assert torch.equal(dictionary.W_enc, dictionary.W_dec)
    assert dictionary.b_dec.abs().sum() == 0
    for decoder, norm in (("free", 1.0), ("unit", 0.5**0.5)):  # of whole rows, two sites have a half each
        cfg = CrosscoderBatchTopKConfig(n_latents=8, k=2, decoder=decoder)
        with_topk, _ = initialised(BatchTopKCrosscoder(cfg, Shape((3, 2))))
        close(site_norms(with_topk.W_dec, with_topk.shape), torch.full((8, 2), norm))


@pytest.mark.parametrize("config", [CrosscoderConfig, CrosscoderBatchTopKConfig])
@pytest.mark.parametrize("normalise", ["whiten", "layer_norm", "row_norm"])
def test_normalisations_that_mix_sites_are_refused(config, normalise):
    with pytest.raises(ValueError, match=f"sae.normalise = '{normalise}': must be mean_norm, rms or none"):
        config(normalise=normalise)
