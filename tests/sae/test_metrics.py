"""Metrics: worked numbers, and that they do not depend on how rows are batched."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae.latents import Latents
from sae.metrics import Moments, Reconstruction, ce_recovered


def no_latents(n: int) -> Latents:
    nothing = torch.zeros(0)
    return Latents(nothing, nothing.long(), torch.zeros(n + 1, dtype=torch.long), nothing, 1)


def compare(x, recon, batch: int = 100) -> dict[str, float]:
    x, recon = torch.tensor(x, dtype=torch.float32), torch.tensor(recon, dtype=torch.float32)
    figures = Reconstruction()
    for a, b in zip(x.split(batch), recon.split(batch), strict=True):
        figures.update(a, b, no_latents(len(a)))
    return figures.result()


def test_a_constant_offset_is_not_explained():
    # rows (1,0), (3,2), x_hat = x + (1,1): errors 2 + 2, variance about (2,1) 2 + 2
    figures = compare([[1, 0], [3, 2]], [[2, 1], [4, 3]])
    assert figures["fvu"] == pytest.approx(1.0, rel=1e-12)
    # |(2,1)| / |(1,0)| = 2.236068, |(4,3)| / |(3,2)| = 5 / 3.605551 = 1.386750
    assert figures["l2_ratio"] == pytest.approx(1.811409, abs=1e-6)
    # cosines: 2/sqrt(5) = .894427, 18/(5 * 3.605551) = .998460
    assert figures["cosine"] == pytest.approx((0.894427 + 0.998460) / 2, abs=1e-6)


def test_half_the_offset_is_a_quarter():
    assert compare([[1, 0], [3, 2]], [[1.5, 0.5], [3.5, 2.5]])["fvu"] == pytest.approx(0.25, rel=1e-12)


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_variance_is_about_the_mean_of_all_rows(batch):
    # rows 0, 1, 10, 11 on a line: errors 4 * .25 = 1, variance 30.25 + 20.25 + 20.25 + 30.25 = 101;
    # the mean of the figures of two batches of two would be 1.0
    x = [[0, 0], [1, 0], [10, 0], [11, 0]]
    recon = [[0.5, 0], [1.5, 0], [10.5, 0], [11.5, 0]]
    assert compare(x, recon, batch)["fvu"] == pytest.approx(1 / 101, rel=1e-12)


def test_small_rows_count_for_little():
    # the mean over rows of 1 - error / variance would be .5
    x = [[1, 0], [-1, 0], [10, 0], [-10, 0]]
    figures = compare(x, [[0, 0], [0, 0], [10, 0], [-10, 0]])
    assert 1 - figures["fvu"] == pytest.approx(0.990099, abs=1e-6)
    assert figures["cosine"] == pytest.approx(0.5), "a zero reconstruction has cosine 0"


def test_exact_reconstruction():
    figures = compare([[1, 2], [3, 4]], [[1, 2], [3, 4]])
    assert figures == pytest.approx({"fvu": 0, "l0": 0, "cosine": 1, "l2_ratio": 1, "dead_fraction": 1})


def test_latents_are_counted_when_they_fire():
    figures = Reconstruction()
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    values = torch.tensor([1.0, 0.0, 2.0, 3.0])  # the second is selected, and does not fire
    latents = Latents(values, torch.tensor([0, 1, 0, 2]), torch.tensor([0, 2, 4]), values, 5)
    figures.update(x, x, latents)
    assert figures.result()["l0"] == 1.5
    assert figures.result()["dead_fraction"] == pytest.approx(3 / 5)
    figures.update(x, x, Latents(values, torch.tensor([1, 4, 0, 3]), torch.tensor([0, 2, 4]), values, 5))
    assert figures.result()["l0"] == 1.5
    assert figures.counts.tolist() == [3, 1, 1, 1, 0]
    assert figures.result()["dead_fraction"] == pytest.approx(1 / 5)


@given(st.integers(0, 10**6), st.integers(2, 12), st.lists(st.integers(1, 11), max_size=4))
def test_batches_do_not_matter(seed, n, cuts):
    generator = torch.Generator().manual_seed(seed)
    x, recon = 100 + torch.randn(n, 3, generator=generator), torch.randn(n, 3, generator=generator)
    whole, parts = Reconstruction(), Reconstruction()
    whole.update(x, recon, no_latents(n))
    bounds = [0, *sorted({cut for cut in cuts if cut < n}), n]
    for a, b in pairwise(bounds):
        parts.update(x[a:b], recon[a:b], no_latents(b - a))
    assert parts.result() == pytest.approx(whole.result(), rel=1e-8)
    x64 = x.double()
    expected = (x64 - recon.double()).square().sum() / (x64 - x64.mean(0)).square().sum()
    # x - recon is taken in float32 here: 100 has an error of 4e-6 there
    assert whole.result()["fvu"] == pytest.approx(expected.item(), rel=1e-6)


def test_moments():
    moments = Moments()
    for part in torch.tensor([[1.0, 0.0], [3.0, 2.0], [5.0, 4.0]]).split(2):
        moments.update(part)
    assert moments.mean.tolist() == [3.0, 2.0]
    assert moments.variance == pytest.approx(16.0)  # 4 + 4 + 0 + 0 + 4 + 4


def test_ce_recovered():
    assert ce_recovered(clean=3.0, spliced=3.0, ablated=5.0) == 1.0
    assert ce_recovered(clean=3.0, spliced=5.0, ablated=5.0) == 0.0
    assert ce_recovered(clean=3.0, spliced=3.5, ablated=5.0) == 0.75
    assert ce_recovered(clean=3.0, spliced=6.0, ablated=5.0) == -0.5
