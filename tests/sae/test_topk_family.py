"""What TopK, BatchTopK, Matryoshka, Switch and matching pursuit promise alike."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from sae import architectures
from sae.architectures.configs import TopKConfig, configs
from sae.architectures.topk import TopKSAE
from sae.dictionary import Dictionary, Shape
from sae.weights import normalise_rows
from tests.sae import checks
from tests.sae.checks import X, close, step, total

CHOICES = {
    "topk": {"k": 2, "multi_coef": 0.125},
    "batchtopk": {"k": 2},
    "matryoshka": {"k": 2, "groups": (0.25, 0.25, 0.5)},
    "switch": {"k": 2, "n_experts": 2},
    "matching_pursuit": {"k": 3},
}


def build(name: str, **choices) -> tuple[Dictionary, Tensor]:
    """A random dictionary of 8 latents in float64, its decoder's rows of norm 1, and 20 rows for it."""
    cfg = configs.get(name)(n_latents=8, **CHOICES[name], **choices)
    dictionary = architectures.build(name, cfg, Shape((3,))).double()
    generator = torch.Generator().manual_seed(0)
    checks.fill(dictionary, generator)
    normalise_rows(dictionary.W_dec)
    return dictionary, torch.randn(20, 3, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", CHOICES)
def test_gradients_are_finite_differences(name):
    """Of every single parameter, through the whole loss; AuxK is left out, whose target is a constant to it."""
    dictionary, x = build(name)
    names, parameters = zip(*dictionary.named_parameters(), strict=True)

    def loss(*values: Tensor) -> Tensor:
        return total(functional_call(dictionary, dict(zip(names, values, strict=True)), (x, x, step(n_latents=8))))

    assert torch.autograd.gradcheck(loss, parameters, eps=1e-6, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("name", CHOICES)
def test_rows_are_unit_after_every_step(name):
    dictionary, x = build(name, **{} if name == "matching_pursuit" else {"decoder": "unit"})
    optimizer = torch.optim.Adam(dictionary.parameters(), lr=0.1)
    before = dictionary.W_dec.detach().clone()
    for _ in range(5):
        optimizer.zero_grad()
        out = dictionary(x, x, step(1, 3, n_latents=8))
        total(out).backward()
        dictionary.before_step()
        close((dictionary.W_dec.grad * dictionary.W_dec).sum(1), [0.0] * 8, atol=1e-12)
        optimizer.step()
        dictionary.after_step(out)
        close(dictionary.W_dec.norm(dim=1), [1.0] * 8, rtol=0, atol=1e-12)
    assert (dictionary.W_dec - before).norm() > 0.1


def test_the_part_of_a_gradient_along_its_row_is_removed():
    # example E, TopK with k = 2: gradient l0 (1.53,1.14), l2 (1.734,.612)
    dictionary = checks.example(TopKSAE, TopKConfig(n_latents=4, k=2, decoder="unit"))
    total(dictionary(X, X, step())).backward()
    dictionary.before_step()
    # l0 on (1,0) leaves (0,1.14); l2 . (.6,.8) = 1.53, leaves (.816,-.612)
    close(dictionary.W_dec.grad, [[0, 1.14], [0, 0], [0.816, -0.612], [0, 0]])
    close(dictionary.W_enc.grad, [[1.53, 1.02], [0, 0], [1.35, 0.9], [0, 0]])


@pytest.mark.parametrize("auxk", [1, 2, 6])
@pytest.mark.parametrize("choices", [{}, {"ghost_coef": 0.5}, {"decoder": "folded"}], ids=str)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_dead_latents_may_be_padded(auxk, choices, precision):
    """Two dead ones in room for seven learn what they learn in room for two."""
    found = []
    for room in (None, 7):
        dictionary, x = build("topk", auxk=auxk, **choices)
        dictionary, x = dictionary.float(), x.float()
        now = replace(step(1, 3, n_latents=8), room=room)
        with torch.autocast("cpu", precision, enabled=precision == torch.bfloat16):
            out = dictionary(x, x, now)
        total(out).backward()
        found.append([out.terms, {name: p.grad for name, p in dictionary.named_parameters()}])
    assert found[0][0]["auxk"] > 0
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def test_no_room_is_asked_for_where_none_can_be_dead():
    dictionary, x = build("topk")
    assert "auxk" not in dictionary(x, x, replace(step(1, 3, n_latents=8), room=0)).terms


def test_inputs_and_reconstructions_are_in_the_networks_units():
    """With scale s, x is encoded as s x by the same weights, and what comes out is divided by s."""
    unscaled, scaled = (checks.example(TopKSAE, TopKConfig(n_latents=4, k=2)) for _ in range(2))
    scaled.scaling.scale.fill_(4.0)
    latents, recon = scaled.reconstruct(X / 4)
    assert torch.equal(latents.dense(), unscaled.encode(X).dense())
    close(recon, [[3.02 / 4, 1.36 / 4], [1.1 / 4, 0.0]])
    assert torch.equal(scaled.decode(latents), recon)
    out = scaled(X / 4, X / 4, step())
    assert torch.equal(out.target, X)
    close(out.terms["mse"], 1.085)
    close(out.recon / 4, recon)
