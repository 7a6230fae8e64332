"""Cross-layer transcoder: what is written where, its penalty, and its latents joined and taken apart.

Example X, two layers of width 2 with a latent each: x_0 = (1,0), x_1 = (0,2); encoders (1,1) and
(0,.5), so both latents are 1; W_0->0 = (.6,0), W_0->1 = (0,.8), W_1->1 = (0,1), so y^_0 = (.6,0)
and y^_1 = (0,1.8); y = ((1,0),(0,1.5)).
"""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from sae import hub
from sae.architectures.configs import CrossLayerTranscoderConfig
from sae.architectures.cross_layer_transcoder import CrossLayerTranscoder, join
from sae.dictionary import InputStats, Shape
from sae.errors import ConfigError
from sae.latents import Latents
from sae.scaling import SiteStats
from sae.select import ReLU
from sae.weights import geometric_median
from tests.reference import cross_layer_transcoder as reference
from tests.sae import checks
from tests.sae.checks import close, step

ROW = torch.tensor([[1.0, 0.0, 0.0, 2.0]])
TARGET = torch.tensor([[1.0, 0.0, 0.0, 1.5]])


def build(n_latents: int, inputs: tuple[int, ...], outputs: tuple[int, ...], **choices) -> CrossLayerTranscoder:
    fields = {"sparsity_coef": 1.0, "sparsity_warmup": 0.0} | choices
    cfg = CrossLayerTranscoderConfig(n_latents=n_latents, **fields)
    return CrossLayerTranscoder(cfg, Shape(inputs, outputs))


def example(**choices) -> CrossLayerTranscoder:
    dictionary = build(2, (2, 2), (2, 2), **choices)
    values = {"W_enc.0": [[1.0, 1.0]], "W_enc.1": [[0.0, 0.5]], "W_dec.0": [[0.6, 0, 0, 0.8]], "W_dec.1": [[0.0, 1.0]]}
    checks.set_weights(dictionary, **values)
    return dictionary


# --- example X ---


@pytest.mark.parametrize(("c", "penalty"), [(1.0, 1.523188), (4.0, 1.998659)])
def test_loss(c, penalty):
    out = example(tanh_scale=c)(ROW, TARGET, step(n_latents=2))
    close(out.latents.dense(), [[1, 1]])
    close(out.recon, [[0.6, 0, 0, 1.8]])
    close(out.terms["mse"], 0.25)  # .16 + .09
    close(out.terms["tanh"], penalty)  # norms of all that a latent writes: sqrt(.36 + .64) = 1, and 1; not .6 + .8


def test_pre_activation_loss():
    dictionary = example(preact_coef=1.0)
    checks.set_weights(dictionary, threshold=[1.5, 0.1], **{"W_dec.0": [[1.2, 0, 0, 1.6]]})
    out = dictionary(ROW, TARGET, step(n_latents=2))
    close(out.terms["preact"], 1.0)  # (1.5 - 1) * 2
    close(out.latents.dense(), [[0, 1]])
    assert list(example(preact_coef=0.0)(ROW, TARGET, step(n_latents=2)).terms) == ["mse", "tanh"]


def test_the_penalty_warms_up_over_the_whole_run():
    dictionary = example(sparsity_warmup=1.0, sparsity_coef=10.0)
    close(dictionary(ROW, TARGET, step(n_latents=2, index=24, n_steps=100)).terms["tanh"], 10 * 1.998659 / 4)


def test_directions_are_all_that_a_latent_writes():
    close(example().directions, [[0.6, 0, 0, 0.8], [0, 0, 0, 1]])


# --- what depends on what ---


def random_one(seed: int, inputs: list[int], outputs: list[int], size: int, **choices) -> CrossLayerTranscoder:
    dictionary = build(size * len(inputs), tuple(inputs), tuple(outputs), normalise="none", **choices).double()
    checks.fill(dictionary, torch.Generator().manual_seed(seed))
    return dictionary


SEEDS = st.integers(0, 10**6)


def sizes(seed: int) -> tuple[list[int], list[int], int, int]:
    """Widths in and out of 1 to 4 layers, latents of each, and rows of a batch."""
    draw = random.Random(seed)
    n_layers = draw.randint(1, 4)
    inputs, outputs = ([draw.randint(1, 3) for _ in range(n_layers)] for _ in range(2))
    return inputs, outputs, draw.randint(1, 3), draw.randint(1, 4)


def numbers(seed: int, batch: int, widths: list[int]) -> Tensor:
    return torch.randn(batch, sum(widths), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(SEEDS)
@settings(max_examples=20)
def test_a_latent_writes_to_its_layer_and_later_ones_only(seed):
    inputs, outputs, size, _ = sizes(seed)
    dictionary = random_one(seed, inputs, outputs, size)
    for layer in range(len(inputs)):
        own = dictionary.directions[layer * size : (layer + 1) * size]
        earlier = sum(outputs[:layer])
        assert own[:, :earlier].abs().sum() == 0
        assert (own[:, earlier:] != 0).all()
    x = numbers(seed, 2, inputs).requires_grad_()
    y = dictionary.reconstruct(x)[1]
    for layer in range(len(inputs)):
        until = sum(outputs[: layer + 1])
        (grad,) = torch.autograd.grad(y[:, :until].sum(), x, retain_graph=True)
        assert grad[:, sum(inputs[: layer + 1]) :].abs().sum() == 0, "a later layer has been read"


@given(SEEDS)
@settings(max_examples=20)
def test_losses_and_gradients_are_the_dense_ones(monkeypatch, seed):
    checks.either_way(monkeypatch, seed)
    inputs, outputs, size, batch = sizes(seed)
    on_grid, bandwidth = seed % 3 == 0, (0.5, 2.0)[seed % 5 % 2]
    to_input = seed // 2 % 2 == 0
    choices = {"bandwidth": bandwidth, "tanh_scale": 1.5, "sparsity_coef": 0.3, "preact_coef": 0.2}
    dictionary = random_one(seed, inputs, outputs, size, ste_to_input=to_input, **choices)
    checks.fill(dictionary, torch.Generator().manual_seed(seed), on_grid)
    x, y = numbers(seed + 1, batch, inputs), numbers(seed + 2, batch, outputs)
    x = (4 * x).round() / 4 if on_grid else x
    x[0] = 0
    p, n_layers = checks.copies(dictionary), len(inputs)
    expected = reference.loss(
        list(x.split(inputs, dim=1)),
        list(y.split(outputs, dim=1)),
        [p[f"W_enc.{layer}"] for layer in range(n_layers)],
        list(p["b_enc"].split(size)),
        [list(p[f"W_dec.{layer}"].split(outputs[layer:], dim=1)) for layer in range(n_layers)],
        list(p["b_dec"].split(outputs)),
        list(p["threshold"].split(size)),
        bandwidth,
        to_input,
        1.5,
    )
    out = dictionary(x, y, step(n_latents=size * n_layers))
    terms = {"mse": expected["mse"], "tanh": 0.3 * expected["tanh"], "preact": 0.2 * expected["preact"]}
    checks.same_losses(dictionary, out, terms, p)


@given(SEEDS)
@settings(max_examples=20)
def test_encode_is_the_dense_one_and_decode_gives_the_reconstruction(monkeypatch, seed):
    checks.either_way(monkeypatch, seed)
    inputs, outputs, size, batch = sizes(seed)
    dictionary = random_one(seed, inputs, outputs, size)
    dictionary.scaling.scale.copy_(torch.linspace(0.5, 2, len(inputs)))
    dictionary.target_scaling.scale.copy_(torch.linspace(3, 0.25, len(inputs)))
    x, y = numbers(seed + 1, batch, inputs), numbers(seed + 2, batch, outputs)
    x[0] = 0
    trained = dictionary(x, y, step(n_latents=size * len(inputs)))
    dictionary.eval()
    latents = dictionary.encode(x)
    z = reference.pre_acts(
        list(dictionary.scaling.enter(x).split(inputs, dim=1)),
        list(dictionary.W_enc),
        list(dictionary.b_enc.split(size)),
    )
    f = torch.cat(reference.latents(z, list(dictionary.threshold.split(size)), 1.0, False), dim=1)
    torch.testing.assert_close(latents.dense(), f, rtol=1e-10, atol=1e-12)
    assert (latents.values > 0).all(), "for use nothing but what has fired"
    out = dictionary(x, y, step(n_latents=size * len(inputs)))
    recon = dictionary.target_scaling.leave(out.recon)
    torch.testing.assert_close(dictionary.decode(latents), recon, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(dictionary.reconstruct(x)[1], recon, rtol=1e-10, atol=1e-12)
    # training keeps entries about the threshold, which change nothing
    torch.testing.assert_close(dictionary.target_scaling.leave(trained.recon), recon, rtol=1e-10, atol=1e-12)
    written = f @ dictionary.directions + dictionary.b_dec
    torch.testing.assert_close(out.recon, written, rtol=1e-10, atol=1e-12)


# --- latents of several layers ---


def some_latents(seed: int, batch: int, n: int) -> Latents:
    return ReLU()(torch.randn(batch, n, generator=torch.Generator().manual_seed(seed)))


def test_join_by_hand():
    one = Latents(torch.tensor([1.0, 2.0]), torch.tensor([1, 0]), torch.tensor([0, 1, 2]), torch.tensor([1.0, 2.0]), 2)
    two = Latents(torch.tensor([3.0, 4.0]), torch.tensor([2, 0]), torch.tensor([0, 2, 2]), torch.tensor([3.0, 4.0]), 3)
    joined = join([one, two])
    assert joined.dense().tolist() == [[0, 1, 4, 0, 3], [2, 0, 0, 0, 0]]
    assert joined.offsets.tolist() == [0, 3, 4]
    assert joined.indices.tolist() == [1, 4, 2, 0]
    assert joined.pre_acts.tolist() == [1, 3, 4, 2]
    assert joined.n_latents == 5


@given(st.integers(0, 10**6), st.integers(0, 4), st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_joined_latents_can_be_taken_apart(seed, batch, widths):
    parts = [some_latents(seed + i, batch, n) for i, n in enumerate(widths)]
    joined = join(parts)
    assert torch.equal(joined.dense(), torch.cat([part.dense() for part in parts], dim=1))
    start = 0
    for part in parts:
        own = joined.subset((joined.indices >= start) & (joined.indices < start + part.n_latents))
        assert torch.equal(own.offsets, part.offsets)
        assert torch.equal(own.indices - start, part.indices)
        assert torch.equal(own.values, part.values)
        assert torch.equal(own.pre_acts, part.pre_acts)
        start += part.n_latents


def test_decode_of_some_latents_is_what_they_write():
    """What an ablation does: without layer 0's latent, only what layer 1 writes is left."""
    dictionary = example().eval()
    latents = dictionary.encode(ROW)
    close(dictionary.decode(latents.subset(latents.indices == 1)), [[0, 0, 0, 1]])
    close(dictionary.decode(latents.subset(latents.indices == 0)), [[0.6, 0, 0, 0.8]])


# --- first weights, files, refusals ---


SITES = (
    (SiteStats(2, 1.0, 1.0), SiteStats(3, 2.0, 4.0)),  # norms 1 and 2 of widths 2 and 3 in
    (SiteStats(2, 5.0, 25.0), SiteStats(2, 10.0, 1.0)),  # 5 and 10 of width 2 out
)


def started(**choices) -> tuple[CrossLayerTranscoder, Tensor, Tensor]:
    """One of 20 latents a layer with its first weights, and the sample that they were made from."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(200, 5, generator=generator) - 2, 10 * torch.randn(200, 4, generator=generator) + 3
    dictionary = build(40, (2, 3), (2, 2), normalise="mean_norm", threshold=0.25, **choices)
    dictionary.initialise(InputStats(*SITES, x, y), generator)
    return dictionary, x, y


@pytest.mark.parametrize("choices", [{}, {"init_decoder": "random"}, {"init_l0": 10_000}])
def test_first_units_biases_and_thresholds(choices):
    dictionary, _, y = started(**choices)
    close(dictionary.scaling.scale, [2**0.5, 3**0.5 / 2])
    close(dictionary.target_scaling.scale, [2**0.5 / 5, 2**0.5 / 10])
    close(dictionary.b_dec / dictionary.target_scaling.columns(), y.mean(0))  # with no latent, the mean output
    assert dictionary.threshold.tolist() == [0.25] * 40
    assert [tuple(W.shape) for W in dictionary.W_dec] == [(20, 4), (20, 2)]


@pytest.mark.parametrize("kind", ["data", "random"])
def test_first_rows_have_one_norm_and_the_mean_input_makes_no_latent(kind):
    dictionary, x, _ = started(init_decoder=kind, init_norm=0.7)
    for matrix in (*dictionary.W_enc, *dictionary.W_dec):
        close(matrix.norm(dim=1), [0.7] * 20)
    pre_acts = reference.pre_acts(
        list(dictionary.scaling.enter(x.mean(0, keepdim=True)).split([2, 3], dim=1)),
        list(dictionary.W_enc),
        list(dictionary.b_enc.split(20)),
    )
    close(torch.cat(pre_acts, dim=1), torch.zeros(1, 40), atol=1e-5)


@pytest.mark.parametrize("kind", ["data", "random"])
def test_first_rows_read_a_row_where_the_layer_is_and_write_what_it_becomes_from_there_on(monkeypatch, kind):
    monkeypatch.setattr("sae.weights.NOISE", 0.0)
    dictionary, x, y = started(init_decoder=kind)
    inputs = list(dictionary.scaling.enter(x).split([2, 3], dim=1))
    target = dictionary.target_scaling.enter(y)
    rows = []
    for layer, (W_enc, W_dec) in enumerate(zip(dictionary.W_enc, dictionary.W_dec, strict=True)):
        read, written = inputs[layer], target[:, 2 * layer :]
        likeness = normalize(read - geometric_median(read), dim=1) @ normalize(W_enc, dim=1).T
        likeness += normalize(written - geometric_median(written), dim=1) @ normalize(W_dec, dim=1).T
        if kind == "random":
            assert likeness.amax(0).min() < 1.9
            return
        close(likeness.amax(0), [2.0] * 20, atol=1e-4)  # on both sides the same row
        rows.append(likeness.argmax(0).tolist())
    assert [len(set(own)) for own in rows] == [20, 20], "no row twice"
    assert rows[0] != rows[1], "each layer has rows of its own"


@pytest.mark.parametrize("choices", [{}, {"init_decoder": "random"}, {"init_l0": 10_000}])
def test_a_seed_sets_all_of_the_start(choices):
    first = started(**choices)[0].state_dict()
    torch.manual_seed(7)
    second = started(**choices)[0].state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_first_weights_of_the_paper():
    dictionary, x, _ = started(init_l0=10_000)
    for matrices, bound in ((dictionary.W_enc, 20**-0.5), (dictionary.W_dec, 4**-0.5)):
        for matrix in matrices:
            assert 0.9 * bound < matrix.abs().max().item() <= bound
    assert (dictionary.encode(x).firing_counts() - 100).abs().max() <= 1  # 10,000 of 40 are half of them


def test_recipe():
    cfg = CrossLayerTranscoderConfig()
    assert (cfg.ste_to_input, cfg.init_decoder, cfg.init_norm, cfg.init_l0) == (True, "data", 0.3, 0)
    assert (cfg.tanh_scale, cfg.bandwidth, cfg.threshold) == (4.0, 2.0, 0.1)
    assert (cfg.sparsity_coef, cfg.sparsity_warmup, cfg.preact_coef) == (10.0, 1.0, 3e-6)
    assert (cfg.normalise, cfg.recipe.lr) == ("mean_norm", 2e-4)


def test_thresholds_do_not_fall_below_0():
    dictionary = example()
    checks.set_weights(dictionary, threshold=[-0.5, 0.3])
    dictionary.after_step(dictionary(ROW, TARGET, step(n_latents=2)))
    close(dictionary.threshold, [0, 0.3])


def test_what_is_loaded_is_what_was_saved(tmp_path):
    dictionary = example()
    dictionary.scaling.scale.copy_(torch.tensor([2.0, 3.0]))
    hub.save(dictionary, {}, tmp_path)
    loaded = hub.load(tmp_path)
    assert torch.equal(loaded.reconstruct(ROW)[1], dictionary.eval().reconstruct(ROW)[1])
    assert loaded.shape == dictionary.shape


def test_shapes_that_it_cannot_have():
    message = "sae.type = cross_layer_transcoder: needs as many sites in train.target as in train.site, in order"
    for shape in (Shape((2, 2)), Shape((2, 2), (2,))):
        with pytest.raises(ConfigError) as caught:
            CrossLayerTranscoder(CrossLayerTranscoderConfig(n_latents=4), shape)
        assert str(caught.value) == message
    with pytest.raises(ConfigError, match=r"sae\.n_latents = 5: must be a multiple of the 2 layers"):
        build(5, (2, 2), (2, 2))


@pytest.mark.parametrize("normalise", ["whiten", "layer_norm", "row_norm"])
def test_normalisations_that_mix_layers_are_refused(normalise):
    with pytest.raises(ValueError, match=f"sae.normalise = '{normalise}': must be mean_norm, rms or none"):
        CrossLayerTranscoderConfig(normalise=normalise)
