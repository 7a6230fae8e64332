"""What tests of architectures share: example E, random problems, and how one is held against its dense formula.

Example E: latents l0..l3, encoder and decoder rows alike, pre-bias (.5, 0), two rows.

    W = [[1,0],[0,1],[.6,.8],[-1,0]]    b_dec = (.5,0)    X = [[2,1],[1.1,-1]]
    u = X - b_dec = [[1.5,1],[.6,-1]]   pre = [[1.5,1,1.7,-1.5],[.6,-1,-.44,-.6]]
"""

import random
from dataclasses import dataclass, replace
from typing import TypeVar

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from sae.dictionary import SAE, Dictionary, Forward, Shape, Step
from sae.kernels import choice
from tests.reference.linear import Weights

AnySAE = TypeVar("AnySAE", bound=SAE)

X = torch.tensor([[2.0, 1.0], [1.1, -1.0]])
W = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [-1.0, 0.0]])


def step(*dead: int, n_latents: int = 4, index: int = 0, n_steps: int = 1) -> Step:
    mask = torch.zeros(n_latents, dtype=torch.bool)
    mask[list(dead)] = True
    return Step(index, n_steps, mask)


def close(actual: Tensor, expected: object, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=rtol, atol=atol)


def total(out: Forward) -> Tensor:
    """The loss that is minimised."""
    return torch.stack(list(out.terms.values())).sum()


def set_weights(dictionary: torch.nn.Module, **values: object) -> None:
    with torch.no_grad():
        for name, value in values.items():
            dictionary.get_parameter(name).copy_(torch.as_tensor(value))


def example(cls: type[AnySAE], cfg: object) -> AnySAE:
    """Example E; `cfg` has 4 latents."""
    dictionary = cls(cfg, Shape((2,)))
    set_weights(dictionary, W_enc=W, W_dec=W, b_dec=[0.5, 0.0])
    return dictionary


# --- random problems ---


@dataclass(frozen=True)
class Problem:
    """A small random dictionary and a batch for it."""

    seed: int
    batch: int
    d_in: int
    d_out: int | None
    """None: it writes what it reads."""
    choices: dict[str, object]
    """Fields of its configuration."""
    on_grid: bool
    """All numbers are multiples of 1/4, so that pre-activations and thresholds are often exactly equal."""
    rows: str
    """`random`; `zero`: the first row is 0; `silent`: it has no positive pre-activation; `all silent`: none has."""

    def build(self, cls: type[AnySAE], cfg: object) -> tuple[AnySAE, Tensor, Tensor, Step]:
        """The dictionary in float64, a batch, its target, and a step at which some latents are dead."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = Shape((self.d_in,), self.d_out and (self.d_out,))
        dictionary = cls(cfg, shape).double()
        fill(dictionary, generator, self.on_grid)
        if self.choices["decoder"] == "unit":
            set_weights(
                dictionary, W_dec=dictionary.W_dec / dictionary.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12)
            )
        x = self._draw(generator, shape.d_in)
        target = x if shape.outputs is None else self._draw(generator, shape.d_out)
        if self.rows == "zero":
            x[0] = 0
        if self.rows in ("silent", "all silent"):
            set_weights(dictionary, b_enc=-dictionary.b_enc.abs())
            x[: None if self.rows == "all silent" else 1] = 0 if dictionary.b_pre is None else dictionary.b_dec.detach()
        dead = torch.rand(dictionary.cfg.n_latents, generator=generator) < 0.4
        return dictionary, x, target, Step(0, 1, dead)

    def _draw(self, generator: torch.Generator, d: int) -> Tensor:
        x = torch.randn(self.batch, d, generator=generator, dtype=torch.float64)
        return (x * 4).round() / 4 if self.on_grid else x


def fill(dictionary: torch.nn.Module, generator: torch.Generator, on_grid: bool = False) -> None:
    """Random weights; thresholds are not negative."""
    with torch.no_grad():
        for name, parameter in dictionary.named_parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            values = (values * 4).round() / 4 if on_grid else values
            parameter.copy_(values.abs() if name == "threshold" else values)


def problem(seed: int) -> Problem:
    """Autoencoders with and without a pre-bias, transcoders with and without a skip; choices of `SAEConfig`.

    All of it follows from the seed: hypothesis prefers what is simple, and so would hardly ever combine two choices.
    """
    draw = random.Random(seed)
    kind = draw.choice(["plain", "pre_bias", "transcoder", "skip"])
    d_in, d_out = draw.randint(1, 4), draw.randint(1, 4) if kind in ("transcoder", "skip") else None
    choices = {
        "n_latents": draw.randint(1, 8),
        "pre_bias": kind == "pre_bias",
        "decoder": draw.choice(["unit", "free"]),
        "skip": kind == "skip",
        "normalise": "none",
    }
    rows = draw.choice(["random", "random", "random", "zero", "silent", "all silent"])
    return Problem(seed, draw.randint(1, 5), d_in, d_out, choices, draw.random() < 0.5, rows)


def problems() -> st.SearchStrategy[Problem]:
    return st.integers(0, 10**6).map(problem)


def k_sparse_problems() -> st.SearchStrategy[Problem]:
    """Half of them with a decoder that is folded, and not on the grid, where strengths are equal but for rounding."""

    def with_folded(drawn: Problem) -> Problem:
        choices = drawn.choices | {"decoder": "folded"}
        return replace(drawn, choices=choices, on_grid=False) if drawn.seed % 2 else drawn

    return problems().map(with_folded)


# --- against the dense formula ---


def either_way(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """By seed, the kernels' sums over entries, their dense products for lists of entries, or whole matrices."""
    monkeypatch.setattr(choice, "DENSE_SHARE", float(seed % 3 == 0))
    monkeypatch.setattr(choice, "WIDE_SHARE", -1.0 if seed % 3 == 2 else 1.0)


def copies(dictionary: Dictionary) -> dict[str, Tensor]:
    """The parameters, for a reference to find gradients of."""
    return {name: p.detach().clone().requires_grad_() for name, p in dictionary.named_parameters()}


def linear(p: dict[str, Tensor], dictionary: SAE) -> Weights:
    """Copied parameters as the reference takes them."""
    b_pre = p["b_dec"] if dictionary.cfg.pre_bias and dictionary.shape.outputs is None else None
    is_folded = dictionary.cfg.decoder == "folded"
    return Weights(p["W_enc"], p["b_enc"], p["W_dec"], p["b_dec"], b_pre, p.get("W_skip"), is_folded)


def same_losses(dictionary: Dictionary, out: Forward, expected: dict[str, Tensor], p: dict[str, Tensor]) -> None:
    """Every term, and the gradient of their sum for every parameter, as it is when the optimiser sees it."""
    assert list(out.terms) == list(expected)
    for name, term in expected.items():
        torch.testing.assert_close(
            out.terms[name], term, rtol=1e-9, atol=1e-11, msg=lambda text, n=name: f"{n}: {text}"
        )
    total(out).backward()
    torch.stack(list(expected.values())).sum().backward()
    dictionary.before_step()
    if isinstance(dictionary, SAE) and dictionary.cfg.decoder == "unit":
        along = (p["W_dec"].grad * p["W_dec"]).sum(1, keepdim=True)
        p["W_dec"].grad = (p["W_dec"].grad - along * p["W_dec"]).detach()
    for name, parameter in dictionary.named_parameters():
        found, right = (torch.zeros_like(q) if q.grad is None else q.grad for q in (parameter, p[name]))
        torch.testing.assert_close(found, right, rtol=1e-8, atol=1e-9, msg=lambda text, n=name: f"{n}: {text}")
