"""What a dictionary is before its first step: directions, sizes and biases, from a sample of the data."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae import architectures
from sae.architectures.configs import GatedConfig, ReLUConfig, TopKConfig, configs
from sae.architectures.gated import GatedSAE
from sae.architectures.relu import ReLUSAE
from sae.architectures.topk import TopKSAE
from sae.config import parse
from sae.dictionary import InputStats, Shape
from sae.errors import ConfigError
from sae.scaling import SiteStats
from sae.weights import centre, first_directions, geometric_median
from tests.sae.checks import close


def initialised(seed: int = 7, **choices) -> tuple[ReLUSAE, Tensor]:
    """A dictionary of 50 latents and the rows that it was told of, whose mean norm is said to be 4, so that s = .5."""
    dictionary = ReLUSAE(ReLUConfig(n_latents=50, **choices), Shape((4,)))
    rows = torch.randn(101, 4, generator=torch.Generator().manual_seed(1)) ** 3 + 2
    stats = (SiteStats(4, 4.0, 25.0),)
    dictionary.initialise(InputStats(stats, stats, rows, rows), torch.Generator().manual_seed(seed))
    return dictionary, rows


def test_the_first_reconstructions_have_the_right_size():
    """No other size of the encoder would reconstruct the held-out rows better: there the error's slope is 0."""
    dictionary, rows = initialised()
    rows = rows[:50]
    x = dictionary.scaling.enter(rows)
    recon = dictionary.scaling.enter(dictionary.reconstruct(rows)[1]) - dictionary.b_dec
    residual = x - dictionary.b_dec - recon
    assert abs((residual * recon).sum()) < 1e-5 * recon.square().sum()
    gains = dictionary.W_enc / dictionary.W_dec
    torch.testing.assert_close(gains, gains[:1, :1].expand_as(gains))
    assert 0 < gains[0, 0] < 0.5, "half of 50 latents fire on each of 4 dimensions"


@pytest.mark.parametrize("norm", [1.0, 0.1])
def test_the_encoder_is_a_copy_of_random_directions_of_one_norm(norm):
    dictionary, _ = initialised(decoder="free", init_norm=norm, fit_encoder=False, init_decoder="random")
    close(dictionary.W_dec.norm(dim=1), torch.full((50,), norm))
    assert torch.equal(dictionary.W_enc, dictionary.W_dec)
    assert dictionary.W_enc.data_ptr() != dictionary.W_dec.data_ptr()
    assert dictionary.b_enc.abs().sum() == 0
    close(dictionary.W_dec.mean(0) / norm, [0.0] * 4, atol=0.25)  # no direction is preferred: sd 1 / sqrt(4 * 50) = .07
    assert dictionary.W_enc.requires_grad


def directions(*sides: Tensor, count: int, seed: int = 7) -> list[Tensor]:
    return first_directions(sides, count, "data", torch.Generator().manual_seed(seed))


def test_directions_are_those_of_rows_with_noise():
    """A sum of a unit vector and half as long a one has a cosine of 1 / sqrt(1.25) with the first, where both are
    orthogonal, as they nearly are in 900 dimensions."""
    rows = torch.randn(60, 900, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 61)[:, None] + 9
    (found,) = directions(rows, count=50)
    close(found.norm(dim=1), torch.ones(50))
    cosines, own = (found @ normalize(rows - geometric_median(rows), dim=1).T).max(dim=1)
    close(cosines, torch.full((50,), 1.25**-0.5), atol=0.06)
    assert len(own.unique()) == 50, "no row is taken twice before every row was"


def test_directions_do_not_follow_outliers():
    """One row of a thousand is huge: the mean lies far towards it, so that from there all others lie the other way."""
    rows = torch.randn(1000, 50, generator=torch.Generator().manual_seed(1))
    rows[0, 0] = 1e5
    (found,) = directions(rows, count=500)
    assert abs(found[:, 0].mean()) < 0.05


@pytest.mark.parametrize("rows", [torch.ones(1, 3), torch.zeros(5, 3), torch.eye(3)[:2]])
def test_too_few_rows_are_taken_again_and_no_two_latents_are_the_same(rows):
    (found,) = directions(rows, count=7)
    close(found.norm(dim=1), torch.ones(7))
    assert (found @ found.T - torch.eye(7)).max() < 0.999


@pytest.mark.parametrize("cls", [ReLUSAE, GatedSAE])
def test_a_latent_of_a_transcoder_reads_a_row_and_writes_its_target(cls):
    cfg = {ReLUSAE: ReLUConfig, GatedSAE: GatedConfig}[cls]
    dictionary = cls(cfg(n_latents=300, normalise="none"), Shape((500,), (400,)))
    x = torch.randn(200, 500, generator=torch.Generator().manual_seed(1)) + 3
    target = torch.randn(200, 400, generator=torch.Generator().manual_seed(2))
    stats = InputStats((SiteStats(500, 1.0, 1.0),), (SiteStats(400, 1.0, 1.0),), x, target)
    dictionary.initialise(stats, torch.Generator().manual_seed(7))
    read = (dictionary.W_enc @ normalize(x - x.mean(0), dim=1).T).argmax(dim=1)
    written = (dictionary.W_dec @ normalize(target - target.mean(0), dim=1).T).argmax(dim=1)
    assert torch.equal(read, written)
    assert read.bincount().tolist() == [0] * 100 + [3] * 100, "the first half is held out"
    recon = dictionary.reconstruct(x[:100])[1] - dictionary.b_dec
    residual = target[:100] - dictionary.b_dec - recon
    assert recon.square().sum() > 0
    assert abs((residual * recon).sum()) < 1e-4 * recon.square().sum(), "there the encoder's size is fitted"
    close(dictionary.reconstruct(x.mean(0)[None])[1][0], dictionary.b_dec, atol=1e-4)  # the mean gives no latent


def test_random_directions_of_a_transcoder_have_no_size_to_fit():
    dictionary = ReLUSAE(ReLUConfig(n_latents=300, normalise="none", init_decoder="random"), Shape((50,), (40,)))
    x, y = torch.randn(200, 50), torch.randn(200, 40)
    stats = InputStats((SiteStats(50, 1.0, 1.0),), (SiteStats(40, 1.0, 1.0),), x, y)
    dictionary.initialise(stats, torch.Generator().manual_seed(7))
    close(dictionary.W_enc.norm(dim=1), torch.ones(300))


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("topk", {"k": 2}),
        ("switch", {"k": 2}),
        ("matching_pursuit", {"k": 2}),
        ("gated", {}),
        ("crosscoder", {}),
        ("crosscoder_batchtopk", {"k": 2}),
    ],
)
def test_the_start_can_be_chosen(name, choices):
    """From rows that lie along 4 axes, directions do; random ones do not."""
    along = {}
    for kind in ("data", "random"):
        cfg = parse(configs.get(name), {"n_latents": 64, "init_decoder": kind, **choices}, "sae")
        dictionary = architectures.build(name, cfg, Shape((40, 40)))
        rows = torch.zeros(500, 80)
        rows[torch.arange(500), torch.arange(500) % 4 + 40 * (torch.arange(500) % 2)] = 5.0
        stats = (SiteStats(40, 1.0, 1.0),) * 2
        dictionary.initialise(InputStats(stats, stats, rows, rows), torch.Generator().manual_seed(7))
        along[kind] = normalize(dictionary.directions, dim=1).abs().amax(1).mean()
    assert along["data"] > 0.5
    assert along["random"] < 0.45


def test_first_weights_are_a_function_of_the_seed():
    first, again, other = (initialised(seed)[0].W_dec for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("kind", ["geometric_median", "mean", "zero"])
def test_output_bias(kind):
    dictionary, rows = initialised(init_bias=kind)
    scaled = 0.5 * rows.double()
    if kind == "zero":
        assert dictionary.b_dec.tolist() == [0.0] * 4
    elif kind == "mean":
        close(dictionary.b_dec.double(), scaled.mean(0))
    else:  # unit vectors towards the rows cancel
        pull = torch.nn.functional.normalize(scaled - dictionary.b_dec.double(), dim=1).mean(0)
        assert pull.norm() < 1e-4
        assert (scaled.mean(0) - dictionary.b_dec).norm() > 0.1, "it is not the mean"


def test_centres_by_hand():
    points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [5.0, 0.0]])
    close(centre(points, "mean"), [2.0, 0.0])
    close(centre(points, "geometric_median"), [1.0, 0.0], atol=1e-3)
    close(centre(points, "zero"), [0.0, 0.0])


def test_variance_is_that_of_what_is_to_be_written():
    dictionary, rows = initialised()
    scaled = 0.5 * rows
    close(dictionary.variance, (scaled - scaled.mean(0)).square().sum(1).mean())
    close(dictionary.scaling.scale, [0.5])


def test_unit_rows_start_as_such():
    dictionary, _ = initialised(decoder="unit")
    close(dictionary.W_dec.norm(dim=1), torch.ones(50))


@pytest.mark.parametrize("name", ["relu", "relu_april", "topk", "crosscoder_batchtopk"])
def test_a_norm_for_rows_that_are_unit_is_refused(name):
    with pytest.raises(ConfigError, match=r"sae\.init_norm = 0\.3: must be left out where decoder = unit"):
        parse(configs.get(name), {"decoder": "unit", "init_norm": 0.3}, "sae")
    parse(configs.get(name), {"decoder": "free", "init_norm": 0.3}, "sae")


@pytest.mark.parametrize(
    ("name", "choices", "fits"),
    [
        ("topk", {}, False),
        ("topk", {"decoder": "unit"}, True),
        ("topk", {"fit_encoder": True}, True),
        ("relu", {}, True),
        ("relu", {"fit_encoder": False}, False),
        ("relu_april", {}, False),
        ("gated", {"decoder": "free"}, False),
        ("crosscoder_batchtopk", {}, True),
    ],
)
def test_the_encoder_is_fitted_where_rows_are_unit(name, choices, fits):
    assert configs.get(name)(**choices).fits_encoder == fits


# --- the geometric median ---


def line(*places: float) -> Tensor:
    return torch.tensor([[x, 0.0] for x in places])


@pytest.mark.parametrize(
    ("points", "median"),
    [
        (torch.tensor([[0.0, 0], [0, 2], [2, 0], [2, 2]]), [1.0, 1.0]),  # a square: its centre
        (torch.tensor([[0.0, 0], [0, 2], [2, 0], [2, 2], [1, 1]]), [1.0, 1.0]),  # a point on the first guess
        (line(0, 1, 100), [1.0, 0.0]),  # on a line: the median
        (line(0, 0, 0, 2, 8), [0.0, 0.0]),  # whose mean, 2, is another of the points
        (line(3, 3, 3), [3.0, 0.0]),
        (line(5), [5.0, 0.0]),
        # corners of an equilateral triangle: its centre
        (torch.tensor([[0.0, 0], [2, 0], [1, 3**0.5]]), [1.0, 3**-0.5]),
    ],
)
def test_geometric_median(points, median):
    close(geometric_median(points), median, rtol=0, atol=2e-4)


def test_geometric_median_is_where_no_step_is_an_improvement():
    points = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)) ** 3
    median = geometric_median(points).double()
    pull = torch.nn.functional.normalize(points.double() - median, dim=1).mean(0)
    assert pull.norm() < 1e-4, "unit vectors towards the points cancel"


def test_latents_may_be_the_numbers_of_a_row():
    """Then nothing is fitted or shifted: the two largest of each row, as they are, and the rest is 0. While a decoder
    is free its rows have the norm that they start with, and its latents compete by what they write."""
    cfg = TopKConfig(n_latents=4, k=2, init_decoder="identity", init_bias="zero")
    dictionary = TopKSAE(cfg, Shape((4,)))
    rows = torch.randn(64, 4, generator=torch.Generator().manual_seed(1)) + 1
    stats = (SiteStats(4, 4.0, 25.0),)
    dictionary.initialise(InputStats(stats, stats, rows, rows), torch.Generator().manual_seed(0))
    _, recon = dictionary.reconstruct(rows)
    largest = rows.topk(2, dim=1)
    expected = torch.zeros_like(rows).scatter(1, largest.indices, largest.values.clamp_min(0))
    close(recon, expected)
    saved = dictionary.folded()
    close(saved.encode(rows).dense(), 0.5 * expected)  # in units of the rows' size
    close(saved.W_dec, torch.eye(4))


@pytest.mark.parametrize("n_latents", [3, 5])
def test_numbers_of_a_row_must_be_as_many_as_latents(n_latents):
    with pytest.raises(ConfigError) as caught:
        first_directions([torch.randn(9, 4)], n_latents, "identity", torch.Generator())
    assert str(caught.value) == (
        f"sae.n_latents = {n_latents}: must be 4, the width of the site, with sae.init_decoder = identity"
    )
