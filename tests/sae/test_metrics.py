"""Metrics: worked numbers, and that they do not depend on how rows are batched.

The worked numbers were computed by hand or with numpy. "Not" in a comment gives the figure of a
definition in use elsewhere, which ours must not return.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from sae.errors import DataError
from sae.latents import Latents
from sae.metrics import (
    Moments,
    Reconstruction,
    ce_recovered,
    density_histogram,
    encoder_cosines,
    kl_divergence,
    kl_recovered,
    nearest_cosines,
    splice_figures,
)

BATCHES = pytest.mark.parametrize("batch", [1, 2, 3, 4])


def no_latents(n: int) -> Latents:
    nothing = torch.zeros(0)
    return Latents(nothing, nothing.long(), torch.zeros(n + 1, dtype=torch.long), nothing, 1)


def sparse(dense: Tensor) -> Latents:
    """Every entry selected, those of value 0 or less too."""
    n, n_latents = dense.shape
    offsets, indices = torch.arange(n + 1) * n_latents, torch.arange(n_latents).repeat(n)
    return Latents(dense.flatten(), indices, offsets, dense.flatten(), n_latents)


def compare(x, recon, batch: int = 100, centre=None) -> dict[str, int | float]:
    x, recon = torch.tensor(x, dtype=torch.float32), torch.tensor(recon, dtype=torch.float32)
    figures = Reconstruction(None if centre is None else torch.tensor(centre))
    for a, b in zip(x.split(batch), recon.split(batch), strict=True):
        figures.update(a, b, no_latents(len(a)))
    return figures.result()


# --- reconstruction: worked numbers ---


@BATCHES
def test_a_constant_offset_is_not_explained(batch):
    # rows (1,0), (3,2), x_hat = x + (1,1): errors 2 + 2, variance about (2,1) 2 + 2.
    # Not EV 1, which is 1 - Var(x - x_hat) / Var(x): blind to an offset
    figures = compare([[1, 0], [3, 2]], [[2, 1], [4, 3]], batch)
    assert figures["fvu"] == pytest.approx(1.0, rel=1e-12)
    assert figures["explained_variance"] == pytest.approx(0.0, abs=1e-12)
    # errors 4 of squares 1 + 13
    assert figures["normalised_mse"] == pytest.approx(4 / 14, rel=1e-12)
    # |x_hat|^2 is 5 + 25, x . x_hat is 2 + 18.
    # Not the mean of the batches of one: (5 / 2 + 25 / 18) / 2 = 1.944444; nor the l2_ratio
    assert figures["relative_bias"] == pytest.approx(1.5, rel=1e-12)
    # |(2,1)| / |(1,0)| = 2.236068, |(4,3)| / |(3,2)| = 5 / 3.605551 = 1.386750
    assert figures["l2_ratio"] == pytest.approx(1.811409, abs=1e-6)
    # cosines: 2/sqrt(5) = .894427, 18/(5 * 3.605551) = .998460
    assert figures["cosine"] == pytest.approx((0.894427 + 0.998460) / 2, abs=1e-6)


@BATCHES
def test_half_the_offset_is_a_quarter(batch):
    # Not EV 1.095238, of the variance E|x|^2 - (E|x|^2 / d)^2 = 7 - 3.5^2 = -5.25 of SAEBench, 1 + .5 / 5.25
    figures = compare([[1, 0], [3, 2]], [[1.5, 0.5], [3.5, 2.5]], batch)
    assert figures["fvu"] == pytest.approx(0.25, rel=1e-12)
    assert figures["explained_variance"] == pytest.approx(0.75, rel=1e-12)


@BATCHES
def test_variance_is_about_the_mean_of_all_rows(batch):
    # rows 0, 1, 10, 11 on a line: errors 4 * .25 = 1, variance 30.25 + 20.25 + 20.25 + 30.25 = 101.
    # Not 1.0, the mean of the figures of two batches of two, with a variance of .5 each
    x = [[0, 0], [1, 0], [10, 0], [11, 0]]
    recon = [[0.5, 0], [1.5, 0], [10.5, 0], [11.5, 0]]
    figures = compare(x, recon, batch)
    assert figures["fvu"] == pytest.approx(1 / 101, rel=1e-12)
    assert figures["fvu"] == pytest.approx(0.00990099, abs=1e-8)
    # |x_hat| / |x| is 1.5, 1.05, 1.045455 in the rows that are not 0
    assert figures["l2_ratio"] == pytest.approx((1.5 + 1.05 + 11.5 / 11) / 3, rel=1e-12)


@BATCHES
def test_small_rows_count_for_little_but_in_the_legacy_figure(batch):
    # errors 1 + 1 of a variance of 1 + 1 + 100 + 100
    x = [[1, 0], [-1, 0], [10, 0], [-10, 0]]
    figures = compare(x, [[0, 0], [0, 0], [10, 0], [-10, 0]], batch, centre=[0.0, 0.0])
    assert figures["explained_variance"] == pytest.approx(0.990099, abs=1e-6)
    # mean of 0, 0, 1, 1; not of 1 - 1 / variance of the batch, which would depend on it
    assert figures["explained_variance_legacy"] == pytest.approx(0.5, rel=1e-12)
    assert figures["cosine"] == pytest.approx(0.5), "a zero reconstruction has cosine 0"


@pytest.mark.parametrize("gain", [0.8, 1.0, 1.2])
@BATCHES
def test_the_relative_bias_is_the_gain(batch, gain):
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    figures = Reconstruction()
    for rows in x.split(batch):
        figures.update(rows, gain * rows, no_latents(len(rows)))
    assert figures.result()["relative_bias"] == pytest.approx(gain, rel=1e-12)
    assert figures.result()["l2_ratio"] == pytest.approx(gain, rel=1e-12)
    assert figures.result()["normalised_mse"] == pytest.approx((1 - gain) ** 2, rel=1e-12)


def test_an_unbiased_reconstruction_loses_the_norm_that_it_misses():
    # keeping one of two coordinates: gamma is 1, so |x_hat|^2 = |x|^2 - |x - x_hat|^2, although norms are smaller
    figures = compare([[3, 4], [1, 0], [5, 12]], [[3, 0], [1, 0], [0, 12]])
    assert figures["relative_bias"] == 1
    assert 1 - figures["normalised_mse"] == pytest.approx((9 + 1 + 144) / (25 + 1 + 169), rel=1e-12)
    assert figures["l2_ratio"] == pytest.approx((3 / 5 + 1 + 12 / 13) / 3, rel=1e-12)


def test_exact_reconstruction():
    expected = {
        **{"n_rows": 2, "fvu": 0, "explained_variance": 1, "explained_variance_legacy": 1, "normalised_mse": 0},
        **{"cosine": 1, "l2_ratio": 1, "relative_bias": 1, "l0": 0},
        **{"dead_fraction": 1, "dense_fraction_1pct": 0, "dense_fraction_10pct": 0},
    }
    assert compare([[1, 2], [3, 4]], [[1, 2], [3, 4]], centre=[0.0, 0.0]) == pytest.approx(expected)


def test_without_a_centre_there_is_no_legacy_figure():
    assert "explained_variance_legacy" not in compare([[1, 2]], [[1, 2]])


# --- reconstruction: nothing to divide by ---


def test_no_rows_have_no_figures():
    figures = Reconstruction()
    with pytest.raises(DataError, match=r"^reconstruction: 0 rows were compared: there must be at least one$"):
        figures.result()
    figures.update(torch.zeros(0, 2), torch.zeros(0, 2), no_latents(0))
    with pytest.raises(DataError, match="0 rows"):
        figures.result()


def test_an_empty_batch_changes_nothing():
    x = torch.tensor([[1.0, 0.0], [3.0, 2.0]])
    figures = Reconstruction()
    for rows in (x[:0], x[:1], x[:0], x[1:]):
        figures.update(rows, rows + 1, no_latents(len(rows)))
    assert figures.result() == compare(x.tolist(), (x + 1).tolist())


@BATCHES
def test_rows_without_variance(batch):
    x = [[0.1, 1e4]] * 7
    assert compare(x, x, batch)["fvu"] == 0
    figures = compare(x, [[0.1, 1e4 + 1]] * 7, batch, centre=[0.0, 1e4])
    assert figures["fvu"] == math.inf
    assert figures["explained_variance"] == -math.inf
    # |x - centre|^2 is .01, an error of 1 is 100 times that
    assert figures["explained_variance_legacy"] == pytest.approx(-99, rel=1e-6)


def test_rows_at_the_centre_are_left_out_of_the_legacy_figure():
    # the second and third explain 1 - 1 / 1 and 1 - 0 / 4
    figures = compare([[1, 1], [2, 1], [3, 1]], [[5, 5], [1, 1], [3, 1]], centre=[1.0, 1.0])
    assert figures["explained_variance_legacy"] == 0.5
    assert compare([[1, 1]], [[5, 5]], centre=[1.0, 1.0])["explained_variance_legacy"] == 0


def test_zero_rows_and_zero_reconstructions():
    figures = compare([[0, 0], [3, 4]], [[1, 0], [3, 4]])
    assert figures["cosine"] == 0.5
    assert figures["l2_ratio"] == 1, "of the second row alone"
    figures = compare([[0, 0]], [[0, 0]])
    assert {figures[name] for name in ("fvu", "normalised_mse", "cosine", "l2_ratio", "relative_bias")} == {0}
    assert compare([[0, 0]], [[1, 0]])["normalised_mse"] == math.inf
    assert compare([[1, 0], [2, 1]], [[0, 0], [0, 0]])["relative_bias"] == 0, "the limit of a small gain"


def test_what_is_not_a_number_is_not_hidden():
    figures = compare([[1, 0], [2, 1]], [[math.nan, 0], [2, 1]], centre=[0.0, 0.0])
    names = ("fvu", "explained_variance_legacy", "normalised_mse", "cosine", "l2_ratio", "relative_bias")
    assert all(math.isnan(figures[name]) for name in names)


# --- latents ---


def test_latents_are_counted_when_they_fire():
    figures = Reconstruction()
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    # the second is selected, and does not fire; nor does the fourth, which is negative.
    # Not 2.5, the entries that are selected, nor 2, those that are not 0
    values = torch.tensor([1.0, 0.0, 2.0, -1.0, 3.0])
    offsets = torch.tensor([0, 2, 5])
    figures.update(x, x, Latents(values, torch.tensor([0, 1, 0, 3, 2]), offsets, values, 5))
    assert figures.result()["l0"] == 1.5
    assert figures.result()["dead_fraction"] == pytest.approx(3 / 5)
    figures.update(x, x, Latents(values, torch.tensor([1, 4, 0, 2, 3]), offsets, values, 5))
    assert figures.result()["l0"] == 1.5
    assert figures.counts.tolist() == [3, 1, 1, 1, 0]
    assert figures.result()["dead_fraction"] == pytest.approx(1 / 5)
    assert figures.result()["n_rows"] == 4
    assert figures.density().tolist() == [0.75, 0.25, 0.25, 0.25, 0]


@pytest.mark.parametrize("batch", [7, 100, 200])
def test_dense_latents_fire_on_more_than_a_share(batch):
    # of 200 rows, latents fire on 0, 2 (1 %), 3, 20 (10 %), 21, 200
    n_fired = torch.tensor([0, 2, 3, 20, 21, 200])
    dense = (torch.arange(200)[:, None] < n_fired).float()
    figures = Reconstruction()
    for rows in dense.split(batch):
        figures.update(rows, rows, sparse(rows))
    assert figures.counts.tolist() == n_fired.tolist()
    assert figures.result()["l0"] == pytest.approx(246 / 200)
    assert figures.result()["dead_fraction"] == pytest.approx(1 / 6)
    assert figures.result()["dense_fraction_1pct"] == pytest.approx(4 / 6)
    assert figures.result()["dense_fraction_10pct"] == pytest.approx(2 / 6)


def test_silent_latents_have_a_bin_of_their_own():
    # of 1000 rows: 10^-3, 10^-2 and 10^-1 lie on an edge and belong above it, 999 and 1000 are in the last bin.
    # Not log10(0 + 1e-8) = -8, shown as a mode
    found = density_histogram(torch.tensor([0, 1, 9, 10, 99, 100, 999, 1000, 0]), 1000, bins_per_decade=1)
    assert found.n_silent == 2
    assert found.log10_edges == [-3, -2, -1, 0]
    assert found.n_latents == [2, 2, 3]


def test_quarters_of_a_decade():
    # log10 of .1, .2, .5, 1 is -1, -.699, -.301, 0
    found = density_histogram(torch.tensor([1, 2, 5, 10]), 10)
    assert found.log10_edges == [-1, -0.75, -0.5, -0.25, 0]
    assert found.n_latents == [1, 1, 1, 1]


@pytest.mark.parametrize(("n_rows", "decades"), [(1, 1), (2, 1), (10, 1), (11, 2), (100, 2), (101, 3), (10**7, 7)])
def test_every_latent_is_in_a_bin(n_rows, decades):
    counts = torch.tensor([0, 1, max(1, n_rows // 2), n_rows])
    found = density_histogram(counts, n_rows)
    assert found.log10_edges[0] == -decades
    assert len(found.n_latents) == 4 * decades == len(found.log10_edges) - 1
    assert (found.n_silent, sum(found.n_latents)) == (1, 3)


def test_a_power_of_ten_is_on_its_edge():
    for n_decades in range(1, 13):
        counts = 10 ** torch.arange(n_decades)
        for part in (counts, *counts.split(1)):  # a logarithm of many numbers may round otherwise than that of one
            found = density_histogram(part, 10**n_decades, bins_per_decade=1)
            assert found.n_latents == [int(count in part) for count in counts]


def test_no_rows_have_no_density():
    with pytest.raises(DataError, match=r"^density: 0 rows were counted: there must be at least one$"):
        density_histogram(torch.zeros(3, dtype=torch.long), 0)


# --- batches do not matter ---

CUTS = st.lists(st.integers(0, 12), max_size=5)


def parts(n: int, cuts: list[int]) -> list[slice]:
    """The n rows in order, cut into batches, of which some are empty."""
    return [slice(a, b) for a, b in pairwise([0, *sorted(min(cut, n) for cut in cuts), n])]


@given(st.integers(0, 10**6), st.integers(2, 12), CUTS, st.sampled_from([0.0, 100.0, 1e4]))
def test_batches_do_not_matter(seed, n, cuts, offset):
    generator = torch.Generator().manual_seed(seed)
    x, recon = (offset + torch.randn(n, 3, generator=generator) for _ in range(2))
    dense = torch.randn(n, 5, generator=generator)
    centre = x.double().mean(0)
    whole, split = Reconstruction(centre), Reconstruction(centre)
    whole.update(x, recon, sparse(dense))
    for part in parts(n, cuts):
        split.update(x[part], recon[part], sparse(dense[part]))
    assert split.result() == pytest.approx(whole.result(), rel=1e-9)
    assert split.counts.tolist() == whole.counts.tolist() == (dense > 0).sum(0).tolist()
    assert whole.result() == pytest.approx(plainly(x.double(), recon.double(), dense), rel=1e-9)


def plainly(x: Tensor, recon: Tensor, dense: Tensor) -> dict[str, int | float]:
    """Every figure from all rows at once."""
    error, variance = (x - recon).square().sum(1), (x - x.mean(0)).square().sum(1)
    density = (dense > 0).double().mean(0)
    figures = {
        "fvu": error.sum() / variance.sum(),
        "explained_variance": 1 - error.sum() / variance.sum(),
        "explained_variance_legacy": (1 - error / variance).mean(),
        "normalised_mse": error.sum() / x.square().sum(),
        "cosine": torch.cosine_similarity(x, recon).mean(),
        "l2_ratio": (recon.norm(dim=1) / x.norm(dim=1)).mean(),
        "relative_bias": recon.square().sum() / (x * recon).sum(),
        "l0": density.sum(),
        "dead_fraction": (density == 0).double().mean(),
        "dense_fraction_1pct": (density > 0.01).double().mean(),
        "dense_fraction_10pct": (density > 0.1).double().mean(),
    }
    return {"n_rows": len(x)} | {name: value.item() for name, value in figures.items()}


# --- moments ---


@BATCHES
def test_moments(batch):
    moments = Moments()
    for part in torch.tensor([[1.0, 0.0], [3.0, 2.0], [5.0, 4.0]]).split(batch):
        moments.update(part)
    assert moments.n_rows == 3
    assert moments.mean.tolist() == [3.0, 2.0]
    assert moments.variance == pytest.approx(16.0)  # 4 + 4 + 0 + 0 + 4 + 4


def test_moments_of_no_rows():
    moments = Moments()
    moments.update(torch.zeros(0, 3))
    assert (moments.n_rows, moments.mean.tolist(), moments.variance) == (0, [], 0.0)


@pytest.mark.parametrize("batch", [1, 7, 64, 1000])
def test_rows_far_from_zero_keep_their_variance(batch):
    # sum x^2 is 1e11 here, of which a float64 keeps 1e-5; the variance is 1e-5 in all: nothing would be left
    noise = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = 1e4 + 1e-4 * noise
    moments = Moments()
    for rows in x.split(batch):
        moments.update(rows)
    exact = (x - 1e4) - (x - 1e4).mean()  # x - 1e4 is without rounding
    assert moments.variance == pytest.approx(exact.square().sum().item(), rel=1e-6)
    assert moments.mean.item() == pytest.approx(1e4 + (x - 1e4).mean().item(), abs=1e-11)
    naive = x.square().sum() - x.sum().square() / len(x)
    assert naive.item() != pytest.approx(exact.square().sum().item(), rel=0.01)


@pytest.mark.parametrize("n", range(1, 12))
def test_equal_rows_have_no_variance(n):
    # .1 + .1 + .1 is .30000000000000004, of which a third is more than .1
    x = torch.full((n, 1), 0.1, dtype=torch.float64)
    moments = Moments()
    for rows in (x, x[:1], x):
        moments.update(rows)
    assert (moments.mean.item(), moments.variance) == (0.1, 0.0)


def test_rows_are_moved_by_a_number_and_vary_as_before():
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
    noisy = 1e4 + x  # as float32, in steps of 2^-10
    moments, moved = Moments(), Moments()
    for rows in noisy.split(8):
        moments.update(rows)
        moved.update(rows - 1e4)
    assert moments.variance == pytest.approx(moved.variance, rel=1e-12)


def test_the_first_row_may_lie_far_from_the_others():
    # as the first position of a context does: 3000 against 1. Variance 3000^2 * 999 / 1000, and 999 ones of 0
    moments = Moments()
    moments.update(torch.cat([torch.full((1, 1), 3000.0), torch.zeros(999, 1)]))
    assert moments.variance == pytest.approx(3000**2 * 0.999, rel=1e-12)


@given(st.integers(0, 10**6), st.integers(1, 12), CUTS)
def test_moments_whatever_the_batches(seed, n, cuts):
    x = 1e4 + torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    moments = Moments()
    for part in parts(n, cuts):
        moments.update(x[part])
    assert moments.n_rows == n
    torch.testing.assert_close(moments.mean, x.mean(0), rtol=1e-14, atol=0)
    assert moments.variance == pytest.approx((x - x.mean(0)).square().sum().item(), rel=1e-9, abs=1e-20)


# --- in the network ---


def test_ce_recovered():
    assert ce_recovered(clean=3.0, spliced=3.0, ablated=5.0) == 1.0
    assert ce_recovered(clean=3.0, spliced=5.0, ablated=5.0) == 0.0
    assert ce_recovered(clean=3.0, spliced=3.5, ablated=5.0) == 0.75
    assert ce_recovered(clean=3.0, spliced=6.0, ablated=5.0) == -0.5
    with pytest.raises(ZeroDivisionError):
        ce_recovered(clean=3.0, spliced=3.5, ablated=3.0)


def test_a_ratio_of_sums_is_no_mean_of_ratios():
    # two batches of as many tokens, (clean, spliced, ablated) = (3, 3.5, 4) and (3, 3, 5): not the mean of .5 and 1
    assert ce_recovered(clean=6.0, spliced=6.5, ablated=9.0) == pytest.approx(2.5 / 3)


def test_a_small_denominator_shows_in_a_small_loss():
    # GPT-2's second attention output by zero ablation: a score of .933 of .028 nats
    assert ce_recovered(clean=3.599, spliced=3.627 - 0.933 * 0.028, ablated=3.627) == pytest.approx(0.933)


def test_kl_recovered():
    assert kl_recovered(spliced=0.0, ablated=2.0) == 1.0
    assert kl_recovered(spliced=0.5, ablated=2.0) == 0.75
    assert kl_recovered(spliced=3.0, ablated=2.0) == -0.5


def test_kl_by_hand():
    # p = (.5, .25, .25), q = (.25, .25, .5): .5 log 2 - .25 log 2 = .173287. Not the cross-entropy,
    # .5 log 4 + .25 log 4 + .25 log 2 = 1.213008
    p, q = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.25, 0.25, 0.5]]).log()
    assert kl_divergence(p, q).item() == pytest.approx(0.25 * math.log(2), rel=1e-6)
    assert kl_divergence(p, p).item() == 0


def test_kl_is_finite_where_a_softmax_underflows():
    # logits (0, 200) and (200, 0): p is (e^-200, 1), which float32 has as (0, 1). Not NaN, of 0 * (log 0 - log 1)
    clean, changed = torch.tensor([[0.0, 200.0]]).log_softmax(-1), torch.tensor([[200.0, 0.0]]).log_softmax(-1)
    assert clean.softmax(-1).log().isinf().any()
    assert kl_divergence(clean, changed).item() == pytest.approx(200)


def test_kl_of_impossible_tokens():
    masked = torch.tensor([[-math.inf, 0.0, 0.0]]).log_softmax(-1)
    possible = torch.zeros(1, 3).log_softmax(-1)
    assert kl_divergence(masked, masked).item() == 0
    assert kl_divergence(masked, possible).item() == pytest.approx(math.log(1.5))
    assert kl_divergence(possible, masked).item() == math.inf
    assert kl_divergence(torch.full((1, 3), math.nan), possible).isnan().all()


@given(st.integers(0, 10**6))
def test_kl_is_cross_entropy_less_entropy(seed):
    generator = torch.Generator().manual_seed(seed)
    logits, others = (4 * torch.randn(2, 3, 11, generator=generator) for _ in range(2))
    found = kl_divergence(logits.log_softmax(-1), others.log_softmax(-1))
    p = logits.double().softmax(-1).flatten(0, 1)
    expected = [cross_entropy(of.double().flatten(0, 1), p, reduction="none") for of in (others, logits)]
    assert found.shape == (2, 3)
    assert (found >= -1e-6).all()
    torch.testing.assert_close(found.flatten(), expected[0] - expected[1], rtol=1e-5, atol=1e-5)


# --- directions ---


@pytest.mark.parametrize("block", [1, 2, 3, 1024])
def test_nearest_cosines(block):
    rows = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.6, 0.8], [-3.0, 0.0]])
    # 0 and 2: .6; 1 and 2: .8; 3 and 1: 0
    assert nearest_cosines(rows, block=block).tolist() == pytest.approx([0.6, 0.8, 0.8, 0.0])


def test_nearest_cosines_of_few_or_zero_rows():
    assert nearest_cosines(torch.tensor([[1.0, 0.0]])).tolist() == [-1.0]
    assert nearest_cosines(torch.tensor([[1.0, 0.0], [0.0, 0.0]])).tolist() == [0.0, 0.0]


@given(st.integers(0, 10**6), st.integers(2, 9), st.integers(1, 10))
def test_nearest_cosines_whatever_the_block(seed, n, block):
    rows = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
    all_pairs = torch.cosine_similarity(rows[:, None].double(), rows[None].double(), dim=2)
    expected = all_pairs.masked_fill(torch.eye(n, dtype=torch.bool), -1).amax(1)
    torch.testing.assert_close(nearest_cosines(rows, block=block).double(), expected, rtol=0, atol=1e-6)


def test_encoder_cosines():
    W_enc, W_dec = (
        torch.tensor([[2.0, 0.0], [3.0, 4.0], [0.0, 0.0]]),
        torch.tensor([[-1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]),
    )
    assert encoder_cosines(W_enc, W_dec).tolist() == pytest.approx([-1.0, 0.6, 0.0])


# --- resamples of documents ---


def test_a_resample_is_the_figure_of_the_rows_that_were_drawn():
    """Documents of 3, 1 and 4 rows, drawn (1, 1, 1), (2, 0, 1) and (0, 3, 0) times: figures of those rows, repeated."""
    generator = torch.Generator().manual_seed(3)
    x, recon = (5 + torch.randn(8, 4, generator=generator) for _ in range(2))
    dense, documents = torch.randn(8, 6, generator=generator), torch.tensor([0, 0, 0, 1, 2, 2, 2, 2])
    centre = torch.full((4,), 5.0, dtype=torch.float64)
    figures = Reconstruction(centre, n_groups=3)
    for part in (slice(0, 2), slice(2, 8)):
        figures.update(x[part], recon[part], sparse(dense[part]), documents[part])
    draws = np.array([[1.0, 1, 1], [2, 0, 1], [0, 3, 0]])
    found = figures.resampled(draws)
    for number, drawn in enumerate(draws):
        again = Reconstruction(centre)
        for document, times in enumerate(drawn):
            own = documents == document
            for _ in range(int(times)):
                again.update(x[own], recon[own], sparse(dense[own]))
        for name, value in again.ratios().items():
            if number == 2 and name in ("fvu", "explained_variance"):
                continue  # one row three times has no variance
            assert found[name][number] == pytest.approx(value, rel=1e-9), name
    assert {name: values[0] for name, values in found.items()} == pytest.approx(figures.ratios(), rel=1e-12)


def test_sizes_by_hand():
    # errors 25 + 0; norms 5, 13 and 0, 13; latents 2 + 1 in the first row, 3 in the second
    figures = Reconstruction()
    x, recon = torch.tensor([[3.0, 4.0], [5.0, 12.0]]), torch.tensor([[0.0, 0.0], [5.0, 12.0]])
    figures.update(x, recon, sparse(torch.tensor([[2.0, 1.0], [0.0, 3.0]])))
    sizes = {name: figures.ratios()[name] for name in ("mse", "l1", "l2_norm_in", "l2_norm_out")}
    assert sizes == {"mse": 12.5, "l1": 3.0, "l2_norm_in": 9.0, "l2_norm_out": 6.5}


def test_figures_of_a_spliced_network_by_hand():
    sums = {"tokens": 4.0, "clean": 8.0, "spliced": 10.0, "mean_ablated": 16.0, "zero_ablated": 28.0}
    sums |= {"kl_spliced": 1.0, "kl_mean_ablated": 4.0, "kl_zero_ablated": 8.0}
    figures = splice_figures(sums)
    assert figures["ce"] == {"clean": 2, "spliced": 2.5, "mean_ablated": 4, "zero_ablated": 7}
    assert (figures["kl"], figures["kl_mean_ablated"], figures["kl_recovered"]) == (0.25, 1, 0.75)
    assert (figures["ce_recovered"], figures["ce_recovered_zero"]) == (0.75, 0.9)
    drawn = splice_figures({name: np.array([value, 2 * value]) for name, value in sums.items()})
    assert drawn["ce_recovered"].tolist() == [0.75, 0.75]
