"""What dictionaries with one encoder and decoder share: their steps, and how the dead are revived."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae import architectures
from sae.architectures.batchtopk import BatchTopKSAE
from sae.architectures.configs import (
    BatchTopKConfig,
    CrosscoderBatchTopKConfig,
    CrosscoderConfig,
    CrossLayerTranscoderConfig,
    GatedConfig,
    JumpReLUConfig,
    MatryoshkaConfig,
    PAnnealConfig,
    ReLUConfig,
    SAEConfig,
    SwitchConfig,
    TopKConfig,
    configs,
)
from sae.architectures.cross_layer_transcoder import CrossLayerTranscoder
from sae.architectures.crosscoder import BatchTopKCrosscoder, Crosscoder
from sae.architectures.gated import GatedSAE
from sae.architectures.jumprelu import JumpReLUSAE
from sae.architectures.matryoshka import MatryoshkaSAE
from sae.architectures.p_anneal import PAnnealSAE
from sae.architectures.relu import ReLUSAE
from sae.architectures.switch import SwitchSAE
from sae.architectures.topk import TopKSAE
from sae.config import parse
from sae.dictionary import SAE, Dictionary, InputStats, Shape, Step
from sae.errors import ConfigError
from sae.scaling import SiteStats
from sae.select import ReLU
from sae.weights import normalise_rows, remove_parallel_gradient
from tests.sae import checks
from tests.sae.checks import X, close, step, total


def relu(**choices) -> ReLUSAE:
    """Example E: f = [[1.5,1,1.7,0],[.6,0,0,0]], residual e = x - x_hat = [[-1.02,-1.36],[0,-1]], l3 never fires."""
    return checks.example(ReLUSAE, ReLUConfig(n_latents=4, sparsity_coef=0.0, **choices))


# --- the pre-bias, and the decoder's rows ---


def test_pre_bias_is_the_output_bias_itself():
    dictionary = relu()
    assert dictionary.b_pre is dictionary.b_dec
    assert relu(pre_bias=False).b_pre is None
    cfg = ReLUConfig(n_latents=4, pre_bias=True)
    assert ReLUSAE(cfg, Shape((2,), (2,))).b_pre is None, "a transcoder's output bias belongs to another site"


@pytest.mark.parametrize("decoder", ["unit", "free"])
def test_rows_through_steps_of_adam(decoder):
    """Projecting the gradient is not enough: Adam's update has a part along the row again."""
    dictionary = relu(decoder=decoder)
    optimizer = torch.optim.Adam(dictionary.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        out = dictionary(X, X, step())
        total(out).backward()
        dictionary.before_step()
        along = (dictionary.W_dec.grad * dictionary.W_dec).sum(1)
        assert (along.abs().max() < 1e-6) == (decoder == "unit")
        optimizer.step()
        assert (dictionary.W_dec.norm(dim=1) - 1).abs().max() > 1e-3
        dictionary.after_step(out)
        if decoder == "unit":
            close(dictionary.W_dec.norm(dim=1), [1.0] * 4, atol=1e-6)


def test_no_gradient_is_no_error():
    matrix = torch.nn.Parameter(torch.eye(2))
    remove_parallel_gradient(matrix)
    assert matrix.grad is None
    assert torch.equal(matrix, torch.eye(2))


def test_a_zero_row_stays_zero():
    matrix = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    normalise_rows(matrix)
    close(matrix, [[0.6, 0.8], [0.0, 0.0]])


# --- AuxK beside an error that is not normalised ---


def test_auxk_has_the_weight_that_it_has_beside_a_normalised_error():
    """Both terms times the variance of the inputs, 1.2025: Gao's 1/32 means the same for every architecture."""
    dictionary = relu(auxk_coef=1 / 32)
    dictionary.variance.fill_(1.2025)
    terms = dictionary(X, X, step(1, 3)).terms
    # dead l1, l3; one of them a row: row 0 l1 at 1 writes (0,1), row 1 none.
    # e = [[-1.02,-1.36],[0,-1]]: rows 1.02^2 + 2.36^2 = 6.61 and 1; deviations +-(.51,.18): .2925
    close(terms["auxk"], 1.2025 / 32 * 3.805 / 0.2925)
    normalised = checks.example(TopKSAE, TopKConfig(n_latents=4, k=4, auxk=1))  # keeps all that is positive
    normalised.variance.fill_(1.2025)
    beside = normalised(X, X, step(1, 3)).terms
    close(beside["mse"], 1.945 / 1.2025)
    close(terms["auxk"] / terms["mse"], (beside["auxk"] / beside["mse"]).item())


def test_auxk_teaches_dead_latents_and_no_others():
    dictionary = relu(auxk_coef=1.0)
    dictionary(X, X, step(1, 3)).terms["auxk"].backward()
    # d/dpre[0,l1] = (e_hat - e)_1 / .2925 = 2.36 / .2925 = 8.068376
    close(dictionary.b_enc.grad, [0, 8.068376, 0, 0])
    close(dictionary.W_enc.grad, [[0, 0], [12.102564, 8.068376], [0, 0], [0, 0]])  # times (1.5,1)
    close(dictionary.W_dec.grad, [[0, 0], [3.487179, 8.068376], [0, 0], [0, 0]])  # (1.02,2.36) / .2925
    close(dictionary.b_dec.grad, [0, -8.068376])  # through the pre-bias only


@pytest.mark.parametrize("dead", [(), (3,), (0, 1, 2, 3)])
@pytest.mark.parametrize("rows", [X, X[:1]], ids=["two rows", "one row"])
def test_revival_is_finite(dead, rows):
    dictionary = relu(auxk_coef=1.0, auxk=3, ghost_coef=1.0)
    out = dictionary(rows, rows, step(*dead))
    assert list(out.terms) == (["mse", "auxk", "ghost", "l1"] if dead else ["mse", "l1"])
    total(out).backward()
    assert math.isfinite(total(out).item())
    assert all(torch.isfinite(p.grad).all() for p in dictionary.parameters())


# --- ghost gradients ---


def test_ghost_gradients():
    dictionary = relu(ghost_coef=1.0)
    out = dictionary(X, X, step(3))
    # the dead l3 writes (-1,0) exp(pre): scaled to half of |e| = 1.7 and 1, (-.85,0) and (-.5,0)
    # errors .17^2 + 1.36^2 = 1.8785 and .25 + 1: mean 1.56425, scaled to the error of 1.945
    close(out.terms["ghost"], 1.945)
    out.terms["ghost"].backward()
    # d/dpre = (scaled - e) . scaled * 2/2 * 1.945/1.56425: .17 * -.85 = -.1445 and -.5 * -.5 = .25
    scale = 1.945 / 1.56425
    close(dictionary.b_enc.grad, [0, 0, 0, scale * (-0.1445 + 0.25)])
    close(dictionary.W_enc.grad[3], [scale * (-0.1445 * 1.5 + 0.25 * 0.6), scale * (-0.1445 - 0.25)])
    assert dictionary.W_enc.grad[:3].abs().sum() == 0


def test_ghosts_far_from_firing_neither_vanish_nor_overflow():
    """exp(-1000) is 0 in float32 and exp(1000) infinite; where the others do not fire, a factor changes nothing."""
    found = []
    for bias in (0.0, -1000.0, 1000.0):
        cfg = JumpReLUConfig(n_latents=4, ghost_coef=1.0, pre_bias=False)
        dictionary = checks.example(JumpReLUSAE, cfg)
        checks.set_weights(dictionary, b_enc=[0, 0, 0, bias], threshold=[0.1, 0.1, 0.1, 1e4])
        term = dictionary(X, X, step(3)).terms["ghost"]
        term.backward()
        found.append([term, dictionary.W_dec.grad[3], dictionary.W_enc.grad[3]])
    assert found[0][0] > 1
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-4)


# --- reseeding (Bricken et al. 2023) ---


def test_reseeding():
    dictionary = relu(normalise="none")
    checks.set_weights(dictionary, W_enc=[[3.0, 0.0], [9.0, 9.0], [0.0, 1.0], [9.0, 9.0]], b_enc=[1.0, 2.0, 3.0, 4.0])
    rows = torch.tensor([[3.5, 4.0], [0.5, -2.0]])  # less b_dec: (3,4) and (0,-2)
    dictionary.reseed(torch.tensor([1, 3]), rows, rows)
    close(dictionary.W_dec, [[1, 0], [0.6, 0.8], [0.6, 0.8], [0, -1]])
    # a fifth of the others' mean norm, (3 + 1) / 2: .4
    close(dictionary.W_enc, [[3, 0], [0.24, 0.32], [0, 1], [0, -0.4]])
    close(dictionary.b_enc, [1, 0, 3, 0])


def test_reseeded_latents_write_as_much_as_the_others():
    dictionary = relu(normalise="none", decoder="free")
    checks.set_weights(dictionary, W_dec=[[4.0, 0.0], [9.0, 9.0], [0.0, 2.0], [9.0, 9.0]])
    rows = torch.tensor([[3.5, 4.0], [0.5, -2.0]])
    dictionary.reseed(torch.tensor([1, 3]), rows, rows)
    close(dictionary.W_dec, [[4, 0], [1.8, 2.4], [0, 2], [0, -3]])


def test_reseeded_latents_fire_at_their_rows():
    dictionary = relu(normalise="none")
    rows = torch.tensor([[-4.0, 2.0], [0.5, -3.0]])
    dictionary.reseed(torch.tensor([3, 1]), rows, rows)
    f = dictionary.encode(rows).dense()
    close(f[0, 3], 0.2 * (4.5**2 + 2**2) ** 0.5)
    close(f[1, 1], 0.6)


def test_reseeding_in_the_networks_units():
    """Inputs scaled by 2: the row (1.75, 2) is (3.5, 4) to the dictionary."""
    dictionary = relu()
    dictionary.scaling.scale.fill_(2.0)
    dictionary.reseed(torch.tensor([1]), torch.tensor([[1.75, 2.0]]), torch.tensor([[1.75, 2.0]]))
    close(dictionary.W_dec[1], [0.6, 0.8])
    close(dictionary.W_enc[1], [0.12, 0.16])


def test_a_transcoders_latent_reads_the_input_and_writes_the_target():
    dictionary = ReLUSAE(ReLUConfig(n_latents=4, normalise="none"), Shape((2,), (2,)))
    checks.set_weights(dictionary, W_enc=checks.W, W_dec=checks.W, b_dec=[0.5, 0.0])
    dictionary.reseed(torch.tensor([0]), torch.tensor([[0.0, 5.0]]), torch.tensor([[-2.5, 4.0]]))
    close(dictionary.W_enc[0], [0, 0.2])  # its own direction, not less any bias
    close(dictionary.W_dec[0], [-0.6, 0.8])  # (-3,4)


def test_reseeding_of_all_latents():
    """Without others to take a size from it is 1."""
    dictionary = relu(normalise="none")
    rows = torch.tensor([[1.5, 0.0]] * 4)
    dictionary.reseed(torch.arange(4), rows, rows)
    close(dictionary.W_enc, [[0.2, 0]] * 4)


def test_reseeding_of_none():
    dictionary = relu()
    before = dictionary.W_enc.clone()
    dictionary.reseed(torch.zeros(0, dtype=torch.long), torch.zeros(0, 2), torch.zeros(0, 2))
    assert torch.equal(dictionary.W_enc, before)


@pytest.mark.parametrize(
    ("kind", "choices", "first"),
    [
        (GatedSAE, GatedConfig(n_latents=4), {"r_mag": 0.0, "b_mag": 0.0}),
        (JumpReLUSAE, JumpReLUConfig(n_latents=4), {"threshold": 0.001}),
    ],
)
def test_reseeding_of_what_a_variant_adds(kind, choices, first):
    """A latent that died of its threshold or its magnitude's bias would stay dead if these stayed."""
    dictionary = kind(choices, Shape((2,)))
    with torch.no_grad():
        for p in dictionary.parameters():
            p.fill_(2.0)
    dictionary.reseed(torch.tensor([1]), torch.ones(1, 2), torch.ones(1, 2))
    for name, value in first.items():
        close(dictionary.get_parameter(name), [2.0, value, 2.0, 2.0])
        assert name in dictionary.per_latent


# --- gradients of every architecture, by finite differences ---

PENALTY = {"sparsity_coef": 0.3, "sparsity_warmup": 0.0}
PLAIN, OTHER, SITES = Shape((3,)), Shape((3,), (2,)), Shape((2, 1))
FREE = ("W_enc", "b_enc", "W_dec", "b_dec")
CASES: dict[str, tuple[type[Dictionary], object, Shape, tuple[str, ...]]] = {
    "relu": (ReLUSAE, ReLUConfig(n_latents=6, **PENALTY), PLAIN, FREE),
    "relu without pre-bias": (ReLUSAE, ReLUConfig(n_latents=6, pre_bias=False, **PENALTY), PLAIN, FREE),
    "relu transcoder": (ReLUSAE, ReLUConfig(n_latents=6, skip=True, **PENALTY), OTHER, (*FREE, "W_skip")),
    "topk": (TopKSAE, TopKConfig(n_latents=6, k=2, multi_coef=0.5), PLAIN, FREE),
    "batchtopk": (BatchTopKSAE, BatchTopKConfig(n_latents=6, k=2), PLAIN, FREE),
    "p_anneal": (PAnnealSAE, PAnnealConfig(n_latents=6, **PENALTY), PLAIN, FREE),
    # the threshold's gradient is no derivative
    "jumprelu": (JumpReLUSAE, JumpReLUConfig(n_latents=6, preact_coef=0.1, **PENALTY), PLAIN, FREE),
    "jumprelu, tanh": (JumpReLUSAE, JumpReLUConfig(n_latents=6, penalty="tanh", **PENALTY), PLAIN, FREE),
    # the decoder's is of one term only
    "gated": (
        GatedSAE,
        GatedConfig(n_latents=6, pre_bias=False, **PENALTY),
        PLAIN,
        ("W_enc", "b_enc", "r_mag", "b_mag"),
    ),
    "crosscoder": (Crosscoder, CrosscoderConfig(n_latents=6, **PENALTY), SITES, FREE),
    "crosscoder_batchtopk": (BatchTopKCrosscoder, CrosscoderBatchTopKConfig(n_latents=6, k=2), SITES, FREE),
    "cross_layer_transcoder": (
        CrossLayerTranscoder,
        CrossLayerTranscoderConfig(n_latents=6, preact_coef=0.1, ste_to_input=False, **PENALTY),
        Shape((2, 3), (3, 2)),
        ("W_enc.0", "W_enc.1", "b_enc", "W_dec.0", "W_dec.1", "b_dec"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_gradient_is_the_slope_of_the_loss(name):
    cls, cfg, shape, names = CASES[name]
    dictionary: Dictionary = cls(cfg, shape).double()
    generator = torch.Generator().manual_seed(3)
    checks.fill(dictionary, generator)
    if name == "p_anneal":
        dictionary.p.fill_(0.5)
    x = torch.randn(4, shape.d_in, generator=generator, dtype=torch.float64)
    target = x if shape.outputs is None else torch.randn(4, shape.d_out, generator=generator, dtype=torch.float64)

    def loss() -> Tensor:
        return total(dictionary(x, target, step(n_latents=6)))

    loss().backward()
    for which in names:
        parameter = dictionary.get_parameter(which)
        way = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        here, values = parameter.detach().clone(), []
        for side in (1e-6, -1e-6):
            checks.set_weights(dictionary, **{which: here + side * way})
            values.append(loss().item())
        checks.set_weights(dictionary, **{which: here})
        slope = (values[0] - values[1]) / 2e-6
        assert (parameter.grad * way).sum().item() == pytest.approx(slope, rel=1e-6, abs=1e-8), which


# --- rows, and the steps of a run ---


@pytest.mark.parametrize("name", ["relu", "jumprelu", "gated", "crosscoder", "batchtopk", "crosscoder_batchtopk"])
@given(seed=st.integers(0, 10**6))
@settings(max_examples=5)
def test_for_use_a_rows_latents_do_not_depend_on_the_others(seed, name):
    cls, cfg, shape, _ = CASES[name]
    dictionary: SAE = cls(cfg, shape).double()
    checks.fill(dictionary, torch.Generator().manual_seed(seed))
    rows = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    dictionary.after_step(dictionary(rows, rows, step(n_latents=6)))
    dictionary.eval()
    together = dictionary.encode(rows).dense()
    alone = torch.cat([dictionary.encode(row[None]).dense() for row in rows])
    torch.testing.assert_close(alone, together, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, [1, 1, 1]), (0.1, [0.1, 0.6, 1]), (1.0, [0.01, 0.06, 0.8]), (0.001, [1, 1, 1])],
)
def test_warming(share, expected):
    dead = torch.zeros(1, dtype=torch.bool)
    assert [Step(i, 100, dead).warm(share) for i in (0, 5, 79)] == pytest.approx(expected)


# --- after training: rows of norm 1 ---

FREELY = {"n_latents": 12, "decoder": "free", "pre_bias": False}


@pytest.mark.parametrize(
    ("cls", "cfg"),
    [
        (ReLUSAE, ReLUConfig(**FREELY)),
        (JumpReLUSAE, JumpReLUConfig(**FREELY)),
        (GatedSAE, GatedConfig(**FREELY)),
        (TopKSAE, TopKConfig(n_latents=12, decoder="folded", k=3)),
        (BatchTopKSAE, BatchTopKConfig(n_latents=12, decoder="folded", k=3)),
        (MatryoshkaSAE, MatryoshkaConfig(n_latents=12, decoder="folded", k=3, groups=(0.5, 0.5))),
        (SwitchSAE, SwitchConfig(n_latents=12, decoder="folded", k=3, n_experts=2)),
    ],
    ids=["relu", "jumprelu", "gated", "topk", "batchtopk", "matryoshka", "switch"],
)
@pytest.mark.parametrize("training", [True, False])
def test_unit_rows_give_the_same_output(cls, cfg, training):
    dictionary = cls(cfg, Shape((4,))).double().train(training)
    checks.fill(dictionary, torch.Generator().manual_seed(0))
    with torch.no_grad():
        dictionary.W_dec[3] = 0
    before = {name: value.clone() for name, value in dictionary.state_dict().items()}
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    unit = dictionary.with_unit_rows()
    norms = dictionary.W_dec.norm(dim=1)
    close(unit.W_dec.norm(dim=1), (norms > 0).double(), atol=1e-12)
    (f, recon), (g, again) = dictionary.reconstruct(x), unit.reconstruct(x)
    close(again, recon, rtol=0, atol=1e-12)
    norms[3] = float(cfg.decoder == "free")
    close(g.dense(), f.dense() * norms, rtol=0, atol=1e-12)
    assert (f.dense() > 0).sum() > 50
    assert (unit.cfg.decoder, unit.sizes) == ("unit" if cfg.decoder == "folded" else "free", None)
    assert all(torch.equal(value, before[name]) for name, value in dictionary.state_dict().items())


@pytest.mark.parametrize(
    "dictionary",
    [ReLUSAE(ReLUConfig(n_latents=4), Shape((2,))), TopKSAE(TopKConfig(n_latents=4, k=2, decoder="free"), Shape((2,)))],
    ids=["unit rows", "latents that compete in size"],
)
def test_other_dictionaries_keep_their_rows(dictionary):
    assert dictionary.with_unit_rows() is dictionary


def test_latents_compete_by_what_they_write():
    """Pre-activations (1, 2, 2.2, -1) of a row; norms 4, 1, .5, 1: the first writes most."""
    dictionary = checks.example(TopKSAE, TopKConfig(n_latents=4, k=1, decoder="folded"))
    checks.set_weights(dictionary, W_dec=[[4.0, 0], [0, 1], [0.3, 0.4], [0, 1]])
    first = dictionary.encode(X[:1])
    assert first.indices.tolist() == [0]
    out = dictionary(X[:1], X[:1], checks.step())
    assert out.strengths.tolist() == pytest.approx([4 * first.values.item()])
    checks.set_weights(dictionary, W_dec=checks.W)
    assert out.strengths.tolist() == pytest.approx([4 * first.values.item()]), "as they competed, not as they would now"
    unit = checks.example(TopKSAE, TopKConfig(n_latents=4, k=1, decoder="free"))
    assert unit.encode(X[:1]).indices.tolist() == [2]


@pytest.mark.parametrize(
    "name", ["relu", "relu_april", "jumprelu", "jumprelu_tanh", "gated", "crosscoder", "crosscoder_batchtopk"]
)
def test_where_latents_do_not_compete_by_norm_nothing_is_folded(name):
    with pytest.raises(ConfigError, match=r"^sae\.decoder = 'folded': must be 'unit' or 'free'$"):
        parse(configs.get(name), {"decoder": "folded"}, "sae")


def test_a_plug_in_must_know_how_to_fold():
    class Own(SAE):
        is_normalised = True

        def selection(self):
            return ReLU()

    with pytest.raises(ConfigError, match=r"^sae\.decoder = 'folded': must be unit or free, Own does not fold$"):
        Own(SAEConfig(n_latents=4, decoder="folded"), Shape((2,)))


@pytest.mark.parametrize("name", ["relu", "jumprelu", "gated"])
def test_rows_that_a_whitening_has_stretched_are_unit_again(name):
    """What is saved: unit rows, unwhitened, then unit again."""
    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 1.0, 0.5, 0.2])
    dictionary = architectures.build(name, configs.get(name)(n_latents=12, normalise="whiten"), Shape((4,)))
    stats = (SiteStats(4, 1.0, 1.0),)
    dictionary.initialise(InputStats(stats, stats, x, x), torch.Generator().manual_seed(1))
    dictionary.eval()
    unwhitened = dictionary.folded()
    assert unwhitened.W_dec.norm(dim=1).std() > 0.1
    saved = unwhitened.with_unit_rows()
    close(saved.W_dec.norm(dim=1), torch.ones(12))
    (f, recon), (g, again) = dictionary.reconstruct(x), saved.reconstruct(x)
    close(again, recon, rtol=0, atol=1e-4)
    close(g.dense(), f.dense() * unwhitened.W_dec.norm(dim=1), rtol=0, atol=1e-4)
    assert (f.dense() > 0).any()
