"""Optimisers: what is taken from where, what each does to a weight, and what they forget."""

import sys

import pytest
import torch
from torch import nn

from sae.architectures.configs import (
    BatchTopKConfig,
    JumpReLUConfig,
    ReLUAprilConfig,
    ReLUConfig,
    SwitchConfig,
    TopKConfig,
)
from sae.architectures.relu import ReLUSAE
from sae.architectures.topk import TopKSAE
from sae.dictionary import Shape
from sae.errors import ConfigError
from train import optim
from train.config import TrainConfig
from train.optim import Optimizer, Settings, SignSGD

NAMES = ["adam", "adam8bit", "muon", "schedule_free", "signum"]
PLAIN = Settings(lr=0.1, warmup=0.0, decay=0.0, betas=(0.9, 0.999), eps=1e-12)


def dictionary_of(n_latents: int = 256, d: int = 32) -> TopKSAE:
    """Random weights; its matrices have 8,192 entries, more than the 4,096 that 8-bit moments begin at."""
    dictionary = TopKSAE(TopKConfig(n_latents=n_latents, k=4), Shape((d,)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return dictionary


def push(
    dictionary: TopKSAE,
    optimizer: Optimizer,
    n_steps: int,
    first: int = 0,
    size: float = 1,
    divisor: float | None = None,
) -> None:
    """Steps on random gradients, `size` times as large, of which the optimiser divides."""
    for number in range(first, first + n_steps):
        generator = torch.Generator().manual_seed(number)
        for parameter in dictionary.parameters():
            parameter.grad = size * torch.randn(parameter.shape, generator=generator)
        optimizer.step(None if divisor is None else torch.tensor(divisor))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_divided_before_the_step(name):
    """By a power of two, so bits are the same; a step that is told of no divisor divides by none."""
    divided, own = dictionary_of(), dictionary_of()
    of_divided, of_own = (optim.build(each, name, PLAIN) for each in (divided, own))
    push(divided, of_divided, 3, size=4, divisor=4.0)
    push(own, of_own, 3)
    push(divided, of_divided, 1, first=3)
    push(own, of_own, 1, first=3)
    for parameter, other in zip(divided.parameters(), own.parameters(), strict=True):
        assert torch.equal(parameter, other)


# --- what is left open ---


@pytest.mark.parametrize(
    ("sae", "choice", "expected"),
    [
        # the architecture's paper
        (TopKConfig(n_latents=2**14), {}, Settings(2e-4, 0.0, 0.2, (0.9, 0.999), 6.25e-10)),
        (SwitchConfig(n_latents=2**12), {}, Settings(4e-4, 0.0, 0.2, (0.9, 0.999), 1e-8)),
        (BatchTopKConfig(), {}, Settings(3e-4, 0.0, 0.2, (0.9, 0.99), 1e-8)),
        (ReLUAprilConfig(), {}, Settings(5e-5, 0.0, 0.2, (0.9, 0.999), 1e-8)),
        (JumpReLUConfig(), {}, Settings(7e-5, 0.01, 0.0, (0.0, 0.999), 1e-8)),
        # the run's own word comes first, also where it is 0
        (
            JumpReLUConfig(),
            {"lr": 1e-3, "warmup": 0.0, "decay": 0.0, "betas": (0.8, 0.9), "eps": 1e-6},
            Settings(1e-3, 0.0, 0.0, (0.8, 0.9), 1e-6),
        ),
        # what the optimiser needs comes before the paper
        (JumpReLUConfig(), {"optimizer": "muon"}, Settings(7e-5, 0.01, 0.0, (0.0, 0.999), 1e-8)),
        (TopKConfig(n_latents=2**14), {"optimizer": "adam8bit"}, Settings(2e-4, 0.0, 0.2, (0.9, 0.999), 1e-8)),
        (JumpReLUConfig(), {"optimizer": "schedule_free"}, Settings(7e-5, 0.01, 0.0, (0.9, 0.999), 1e-8)),
        (JumpReLUConfig(n_latents=2**12), {"optimizer": "signum"}, Settings(1e-2, 0.01, 0.0, (0.95, 0.999), 1e-8)),
        (TopKConfig(), {"optimizer": "signum", "lr": 3e-3}, Settings(3e-3, 0.0, 0.0, (0.95, 0.999), 6.25e-10)),
    ],
)
def test_what_a_run_leaves_open(sae, choice, expected):
    assert optim.settings(TrainConfig(**choice), sae) == expected


# --- what each does ---


def one_weight(name: str, gradient: float, **changes) -> tuple[float, Optimizer, nn.Parameter]:
    weight = nn.Parameter(torch.tensor([2.0]))
    optimizer = optim._BUILDERS[name]([{"params": [weight], "unit": 1.0}], Settings(**{**vars(PLAIN), **changes}))
    weight.grad = torch.tensor([gradient])
    optimizer.step()
    return weight.item(), optimizer, weight


@pytest.mark.parametrize("name", ["adam", "adam8bit"])
def test_adams_first_step_is_the_learning_rate(name):
    assert one_weight(name, 0.3)[0] == pytest.approx(1.9, abs=1e-6)


@pytest.mark.parametrize("name", ["adam", "adam8bit", "muon", "schedule_free", "signum"])
def test_a_step_is_in_a_parameters_own_unit(name):
    """Each of these moves a bias by the learning rate first, whatever its gradient; here it is measured in 8."""
    dictionary = ReLUSAE(ReLUConfig(n_latents=50), Shape((4,)))
    dictionary.input_size = 8.0
    optimizer = optim.build(dictionary, name, PLAIN)
    with optimizer.averaged():
        before = {key: value.detach().clone() for key, value in dictionary.named_parameters()}
    for parameter in dictionary.parameters():
        parameter.grad = torch.full_like(parameter, 0.3)
    optimizer.step()
    moved = {key: (value - before[key]).abs().max().item() for key, value in dictionary.named_parameters()}
    assert moved["b_enc"] == pytest.approx(8 * moved["b_dec"], rel=1e-4)
    assert moved["b_dec"] == pytest.approx(PLAIN.lr, rel=1e-4)


def test_a_unit_of_no_parameter_is_refused():
    class Wrong(ReLUSAE):
        def units(self):
            return {"b_encoder": 2.0}

    with pytest.raises(KeyError, match="names \\['b_encoder'\\]: must be parameters"):
        optim.build(Wrong(ReLUConfig(n_latents=5), Shape((4,))), "adam", PLAIN)


def test_sign_sgd_by_hand():
    weight = nn.Parameter(torch.tensor([1.0, -1.0, 3.0]))
    weight.grad = torch.tensor([0.3, -2.0, 0.0])
    SignSGD([weight], {"lr": 0.1}).step()
    torch.testing.assert_close(weight.detach(), torch.tensor([0.9, -0.9, 3.0]))


@pytest.mark.parametrize("name", ["schedule_free", "signum"])
def test_the_average_by_hand(name):
    """Two equal gradients move the newest weight z to 1.9 and 1.8; both count alike in the average x = 1.85.
    Gradients are taken at y = beta x + (1 - beta) z, beta = 0.9."""
    first, optimizer, weight = one_weight(name, 0.3)
    assert first == pytest.approx(1.9, abs=1e-6)
    weight.grad = torch.tensor([0.3])
    optimizer.step()
    y = weight.detach().clone()
    assert y.item() == pytest.approx(0.9 * 1.85 + 0.1 * 1.8, abs=1e-6)
    with optimizer.averaged():
        assert weight.item() == pytest.approx(1.85, abs=1e-6)
    assert torch.equal(weight, y)


@pytest.mark.parametrize("name", NAMES)
def test_looking_at_the_average_changes_no_bit(name):
    seen, unseen = dictionary_of(), dictionary_of()
    for dictionary in (seen, unseen):
        optimizer = optim.build(dictionary, name, PLAIN)
        for number in range(4):
            push(dictionary, optimizer, 1, number)
            if dictionary is seen:
                with optimizer.averaged():
                    pass
    assert all(torch.equal(a, b) for a, b in zip(seen.parameters(), unseen.parameters(), strict=True))


def test_muon_moves_matrices_as_far_as_adam_and_makes_them_orthogonal():
    """The update of a matrix has a root mean square of 0.2 lr (Liu et al. 2025, §2.2); all its singular values
    are alike, within Newton-Schulz's 0.7 to 1.2. A vector's is Adam's, lr in each entry."""
    dictionary = dictionary_of()
    before = {name: p.detach().clone() for name, p in dictionary.named_parameters()}
    optimizer = optim.build(dictionary, "muon", PLAIN)
    push(dictionary, optimizer, 1)
    moved = {name: p.detach() - before[name] for name, p in dictionary.named_parameters()}
    for name in ("W_enc", "W_dec"):
        assert moved[name].square().mean().sqrt().item() == pytest.approx(0.02, rel=0.15)
        singular = torch.linalg.svdvals(moved[name])
        assert singular.max() / singular.min() < 2
    for name in ("b_enc", "b_dec"):
        torch.testing.assert_close(moved[name].abs(), torch.full_like(moved[name], 0.1), rtol=1e-4, atol=0)


def test_8_bit_moments_of_matrices():
    dictionary = dictionary_of()
    optimizer = optim.build(dictionary, "adam8bit", PLAIN)
    push(dictionary, optimizer, 20)
    state = optimizer.parts[0].state
    assert state[dictionary.W_enc]["state1"].dtype == state[dictionary.W_dec]["state2"].dtype == torch.uint8
    assert state[dictionary.b_enc]["state1"].dtype == torch.float32
    exact = dictionary_of()
    push(exact, optim.build(exact, "adam", PLAIN), 20)
    way, error = (exact.W_enc - dictionary_of().W_enc).norm(), (dictionary.W_enc - exact.W_enc).norm()
    assert error < 0.03 * way


@pytest.mark.parametrize("name", NAMES)
def test_the_learning_rate_reaches_every_parameter(name):
    dictionary = dictionary_of()
    optimizer = optim.build(dictionary, name, PLAIN)
    before = [p.detach().clone() for p in dictionary.parameters()]
    optimizer.set_lr(1e-9)
    push(dictionary, optimizer, 1)
    for parameter, old in zip(dictionary.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.detach(), old, rtol=0, atol=1e-6)


# --- what they forget ---


@pytest.mark.parametrize("name", NAMES)
def test_forgotten_rows_go_on_as_if_new_and_others_as_before(name):
    """Rows 3 and 7 are forgotten after 5 steps. Their next gradient is 0, so that what moves them is what is
    remembered: nothing (with Muon, whose matrices move as one, it is the momentum that is looked at)."""
    forgetful, other = dictionary_of(), dictionary_of()
    rows, optimizers = torch.tensor([3, 7]), []
    for dictionary in (forgetful, other):
        optimizers.append(optim.build(dictionary, name, PLAIN))
        push(dictionary, optimizers[-1], 5)
    for parameter in ("W_enc", "b_enc", "W_dec"):
        optimizers[0].forget(forgetful.get_parameter(parameter), rows)
    if name == "muon":
        forgotten, kept = (
            optimizer.parts[0].state[dictionary.W_enc]["momentum_buffer"]
            for optimizer, dictionary in zip(optimizers, (forgetful, other), strict=True)
        )
        assert not forgotten[rows].any()
        assert kept[rows].all()
        kept[rows] = 0
        assert torch.equal(forgotten, kept)
        return
    before = forgetful.W_enc.detach().clone()
    for dictionary, optimizer in zip((forgetful, other), optimizers, strict=True):
        for number, parameter in enumerate(dictionary.parameters()):
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.grad[rows] = 0
        optimizer.step()
    is_old = torch.ones(256, dtype=torch.bool)
    is_old[rows] = False
    for parameter in ("W_enc", "b_enc", "W_dec"):
        found, expected = forgetful.get_parameter(parameter), other.get_parameter(parameter)
        if name == "adam8bit":  # a block of 256 moments, 8 rows, shares its scale
            torch.testing.assert_close(found[is_old], expected[is_old], rtol=0, atol=1e-3)
        else:
            assert torch.equal(found[is_old], expected[is_old]), parameter
    torch.testing.assert_close(forgetful.W_enc[rows], before[rows], rtol=0, atol=1e-6)
    assert not torch.allclose(other.W_enc[rows], before[rows], rtol=0, atol=1e-3)
    with optimizers[0].averaged():
        torch.testing.assert_close(forgetful.W_enc[rows], before[rows], rtol=0, atol=1e-6)


def test_forgetting_before_the_first_step_is_nothing():
    dictionary = dictionary_of()
    optimizer = optim.build(dictionary, "adam", PLAIN)
    optimizer.forget(dictionary.W_enc, torch.tensor([0]))
    assert not optimizer.parts[0].state


# --- what is missing ---


@pytest.mark.parametrize(
    ("name", "package"), [("adam8bit", "bitsandbytes"), ("signum", "schedulefree"), ("schedule_free", "schedulefree")]
)
def test_a_missing_package_is_named(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError) as caught:
        optim.build(dictionary_of(), name, PLAIN)
    assert str(caught.value) == (
        f"train.optimizer = {name}: the package {package} is not installed: pip install sae-atlas[optim]"
    )
