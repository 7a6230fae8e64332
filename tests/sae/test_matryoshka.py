"""Matryoshka: the specification's worked numbers, nested prefixes, then the dense formula.

Example E is in `tests/sae/checks.py`. With l1 held down by a bias of -1, the 4 slots of k = 2 go to the
3 positive pre-activations of f = [[1.5,0,1.7,0],[.6,0,0,0]], and prefixes are l0 l1 and all four:

    of l0 l1: x_hat = [[2,0],[1.1,0]], row errors [1,1]     of all: [[3.02,1.36],[1.1,0]], [1.17,1]
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae.architectures.batchtopk import BatchTopKSAE
from sae.architectures.configs import BatchTopKConfig, MatryoshkaConfig
from sae.architectures.matryoshka import MatryoshkaSAE
from sae.kernels import choice
from tests.reference import matryoshka as reference
from tests.sae import checks
from tests.sae.checks import X, close, k_sparse_problems, step, total


def dictionary(*groups: float, **choices) -> MatryoshkaSAE:
    fields = {"n_latents": 4, "k": 2, "groups": groups} | choices
    one = checks.example(MatryoshkaSAE, MatryoshkaConfig(**fields))
    checks.set_weights(one, b_enc=[0.0, -1.0, 0.0, 0.0])
    return one


def test_the_loss_is_the_sum_of_the_prefixes_errors():
    out = dictionary(0.5, 0.5)(X, X, step())
    assert list(out.terms) == ["mse", "mse_2"]
    close(out.terms["mse"], 1.085)
    close(out.terms["mse_2"], 1.0)
    # a sum, and no prefix of b_dec alone; others: the mean 1.0425, dictionary_learning .52125, the authors' .731667
    close(total(out), 2.085)


def test_gradient():
    one = dictionary(0.5, 0.5)
    total(one(X, X, step())).backward()
    # residuals: of all [[1.02,.36],[0,1]] as in TopK, of the prefix [[0,-1],[0,1]]
    # W_dec l0: all (1.53,1.14), prefix 1.5*(0,-1) + .6*(0,1) = (0,-.9); l2 is in no shorter prefix
    close(one.W_dec.grad, [[1.53, 0.24], [0, 0], [1.734, 0.612], [0, 0]])
    # the prefix's residuals are orthogonal to l0: the encoder's are TopK's
    close(one.W_enc.grad, [[1.53, 1.02], [0, 0], [1.35, 0.9], [0, 0]])
    close(one.b_dec.grad, [-0.54, 0.64])  # the prefix adds its mean residual, (0,0)


def test_errors_are_divided_by_the_variance_of_the_inputs():
    one = dictionary(0.5, 0.5)
    one.variance.fill_(2.0)
    close(total(one(X, X, step())), 2.085 / 2)


def test_prefixes_are_cumulative():
    # l0 | l1 | l2 l3: prefixes of 1 and 2 are the same here, l1 being silent
    terms = dictionary(0.25, 0.25, 0.5)(X, X, step()).terms
    assert list(terms) == ["mse", "mse_2", "mse_1"]
    close(torch.stack(list(terms.values())), [1.085, 1.0, 1.0])


@pytest.mark.parametrize(("prefix", "touched"), [("mse_1", 1), ("mse_2", 2), ("mse", 4)])
def test_a_prefix_teaches_its_own_latents_only(prefix, touched):
    one = dictionary(0.25, 0.25, 0.5, k=4)
    checks.set_weights(one, b_enc=[3.0] * 4)  # every latent fires in both rows
    one(X, X, step()).terms[prefix].backward()
    for matrix in (one.W_enc, one.W_dec):
        assert (matrix.grad.norm(dim=1) > 0).tolist() == [i < touched for i in range(4)]


def test_of_the_papers_groups():
    assert MatryoshkaConfig(n_latents=4096).prefixes == (256, 512, 1024, 2048, 4096)
    assert MatryoshkaConfig(n_latents=10, k=1, groups=(1 / 3, 1 / 3, 1 / 3)).prefixes == (3, 7, 10)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ((0.5, 0.25), r"sae\.groups = \[0\.5, 0\.25\]: must sum to 1, they sum to 0\.75"),
        ((0.1, 0.9), r"sae\.groups = \[0\.1, 0\.9\]: a group of 4 latents would be empty"),
        ((), r"sae\.groups = \[\]: must sum to 1, they sum to 0"),
    ],
)
def test_groups_that_are_none(groups, message):
    with pytest.raises(ValueError, match=message):
        MatryoshkaConfig(n_latents=4, k=2, groups=groups)


# --- against BatchTopK and the dense formula ---


@pytest.mark.parametrize("dense_share", [1.0, 0.0], ids=["sparse", "dense"])
@given(k_sparse_problems(), st.data())
def test_one_group_is_batchtopk_exactly(monkeypatch, dense_share, problem, data):
    monkeypatch.setattr(choice, "DENSE_SHARE", dense_share)
    choices = problem.choices | {"k": data.draw(st.integers(1, problem.choices["n_latents"])), "auxk": 2}
    one, x, target, now = problem.build(MatryoshkaSAE, MatryoshkaConfig(**choices, groups=(1.0,)))
    other, *_ = problem.build(BatchTopKSAE, BatchTopKConfig(**choices))
    outs = one(x, target, now), other(x, target, now)
    for of, out in zip((one, other), outs, strict=True):
        total(out).backward()
        of.after_step(out)
    assert {name: term.item() for name, term in outs[0].terms.items()} == {
        name: term.item() for name, term in outs[1].terms.items()
    }
    for (name, parameter), same in zip(one.named_parameters(), other.parameters(), strict=True):
        assert (parameter.grad is None) == (same.grad is None), name
        assert parameter.grad is None or torch.equal(parameter.grad, same.grad), name
    state = other.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in one.state_dict().items()), "and the threshold"


@pytest.mark.parametrize("dense_share", [1.0, 0.0], ids=["sparse", "dense"])
@given(k_sparse_problems(), st.integers(2, 9), st.data())
def test_losses_and_gradients_are_the_dense_ones(monkeypatch, dense_share, problem, n, data):
    monkeypatch.setattr(choice, "DENSE_SHARE", dense_share)
    ends = [*sorted(data.draw(st.sets(st.integers(1, n - 1), max_size=3))), n]
    groups = tuple((end - start) / n for start, end in zip([0, *ends[:-1]], ends, strict=True))
    k, k_aux = (data.draw(st.integers(1, n)) for _ in range(2))
    choices = problem.choices | {"n_latents": n, "k": k, "groups": groups, "auxk": k_aux, "auxk_coef": 0.25}
    cfg = MatryoshkaConfig(**choices)
    assert cfg.prefixes == tuple(ends)
    one, x, target, now = replace(problem, on_grid=False).build(MatryoshkaSAE, cfg)
    one.variance.fill_(3.0)
    p = checks.copies(one)
    out = one(x, target, now)
    expected = reference.loss(x, target, checks.linear(p, one), k, cfg.prefixes, now.dead, k_aux)
    if not now.dead.any():
        expected.pop("auxk")
    scaled = {name: value / (4 if name == "auxk" else 3) for name, value in expected.items()}
    checks.same_losses(one, out, scaled, p)
