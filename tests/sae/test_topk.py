"""TopK with AuxK and Multi-TopK: the specification's worked numbers, then the dense formula.

Example E is in `tests/sae/checks.py`. With k = 2 the ReLU after the choice matters in row 1:

    f = [[1.5,0,1.7,0],[.6,0,-.44 -> 0,0]]   x_hat = [[3.02,1.36],[1.1,0]]   row errors [1.17,1]

Errors of this family are divided by the dictionary's `variance`, which is 1 until it has seen data: the
numbers below are plain sums over d, means over rows, unless a test sets it.
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae.architectures.configs import TopKConfig
from sae.architectures.topk import TopKSAE
from sae.dictionary import Shape
from sae.kernels import choice
from tests.reference import topk as reference
from tests.sae import checks
from tests.sae.checks import X, close, k_sparse_problems, step, total


def dictionary(**choices) -> TopKSAE:
    return checks.example(TopKSAE, TopKConfig(n_latents=4, k=2, **choices))


def auxk(of: TopKSAE, *dead: int) -> torch.Tensor:
    """The AuxK term without its weight of 1/32."""
    return of(X, X, step(*dead)).terms["auxk"] * 32


def test_forward():
    out = dictionary()(X, X, step())
    close(out.latents.dense(), [[1.5, 0, 1.7, 0], [0.6, 0, 0, 0]])
    assert out.latents.firing_counts().tolist() == [2, 0, 1, 0], "selected at 0 is not fired"
    close(out.recon, [[3.02, 1.36], [1.1, 0.0]])
    close(out.terms["mse"], 1.085)  # mean of the row errors 1.17 and 1
    assert list(out.terms) == ["mse"], "without dead latents there is no other term"


def test_the_error_is_divided_by_the_variance_of_the_inputs():
    one = dictionary()
    one.variance.fill_(1.2025)  # squared distance of each row of X from their mean (1.55, 0)
    # 2.17 / 2.405, the FVU of this batch. OpenAI's loss.py, a mean of ratios of rows, would say .343244
    close(one(X, X, step()).terms["mse"], 0.902287)


def test_gradient():
    one = dictionary()
    one(X, X, step()).terms["mse"].backward()
    # residual x_hat - x = [[1.02,.36],[0,1]]; d/dpre = residual . row of W_dec = [[1.02,0,.9,0],[0,0,0,0]]:
    # in row 1 the residual is orthogonal to l0, and l2 is padding. Were padding to learn, as in sparsify's
    # kernel, it would get .8, and l2 of W_enc [1.83,.1].
    close(one.W_enc.grad, [[1.53, 1.02], [0, 0], [1.35, 0.9], [0, 0]])
    close(one.b_enc.grad, [1.02, 0, 0.9, 0])
    # f^T residual: l0 1.5*(1.02,.36) + .6*(0,1), l2 1.7*(1.02,.36)
    close(one.W_dec.grad, [[1.53, 1.14], [0, 0], [1.734, 0.612], [0, 0]])
    # as output bias (1.02,1.36), as pre-bias -(1.02*(1,0) + .9*(.6,.8)) = -(1.56,.72)
    close(one.b_dec.grad, [-0.54, 0.64])


# --- AuxK ---


def test_auxk():
    # dead l1, l3, k_aux = d/2 = 1. e = [[-1.02,-.36],[0,-1]]; z: row 0 l1 = 1, row 1 l3 = -.6 -> 0
    # e_hat = [[0,1],[0,0]]: rows 2.89 and 1, mean 1.945; variance of e .3625; 1.945 / .3625
    # (sparsify divides by the variance of x, 1.617464; SAELens by nothing and keeps -.6, 2.125)
    one = dictionary()
    value = auxk(one, 1, 3)
    close(value, 5.365517)
    value.backward()
    # d/dpre[0,l1] = (e_hat - e)_1 / .3625 = 1.36 / .3625 = 3.751724, all others 0
    close(one.W_enc.grad, [[0, 0], [5.627586, 3.751724], [0, 0], [0, 0]])
    close(one.b_enc.grad, [0, 3.751724, 0, 0])
    close(one.b_dec.grad, [0, -3.751724])  # through the pre-bias; no bias is added to e_hat
    close(one.W_dec.grad, [[0, 0], [2.813793, 3.751724], [0, 0], [0, 0]])  # the residual is a constant


def test_auxk_does_not_depend_on_the_variance_of_the_inputs():
    one = dictionary()
    one.variance.fill_(7.0)
    close(auxk(one, 1, 3), 5.365517)


def test_auxk_weight():
    close(dictionary(auxk_coef=0.5)(X, X, step(1, 3)).terms["auxk"], 5.365517 / 2)


@pytest.mark.parametrize("dead", [(1,), (1, 3)])
def test_auxk_with_no_more_dead_latents_than_it_may_use(dead):
    # all the dead are used: l1 alone gives the same e_hat; l3 at -.6 adds nothing
    one = dictionary(auxk=2)
    value = auxk(one, *dead)
    close(value, 5.365517)
    value.backward()
    close(one.W_enc.grad, [[0, 0], [5.627586, 3.751724], [0, 0], [0, 0]])


def test_auxk_where_no_dead_latent_is_positive():
    # l3 has pre-activations -1.5 and -.6: z = 0, so ||e||^2 / Var(e) = 1.085 / .3625, and nothing moves
    one = dictionary()
    value = auxk(one, 3)
    close(value, 2.993103)
    value.backward()
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in one.parameters())


@pytest.mark.parametrize("choices", [{"auxk": 0}, {"auxk_coef": 0}])
def test_auxk_can_be_turned_off(choices):
    assert list(dictionary(**choices)(X, X, step(1, 3)).terms) == ["mse"]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("copies", [1, 7])
def test_a_residual_without_variance_has_no_auxk(seed, copies):
    """Not even where the mean of equal rows is not quite equal to them."""
    one = dictionary()
    rows = torch.randn(1, 2, generator=torch.Generator().manual_seed(seed)).repeat(copies, 1)
    out = one(rows, rows, step(1, 3))
    assert out.terms["auxk"] == 0
    total(out).backward()
    assert all(torch.isfinite(p.grad).all() for p in one.parameters())


def test_dead_latents_compete_by_what_they_write():
    # dead l0, l1 = (0,3), k_aux = 1: of 1.5 and 3 * 1 row 0 takes l1, row 1 takes l0; e_hat = [[0,3],[.6,0]].
    # The row's own latents are l1 and l0 too: e = [[1.5,-2],[0,-1]], e_hat - e = [[-1.5,5],[.6,1]], mean 14.305;
    # e's mean (.75,-1.5), variance .75^2 + .5^2 = .8125. By activations row 0 would take l0: 2.68 / .8125
    one = checks.example(TopKSAE, TopKConfig(n_latents=4, k=1, auxk=1, decoder="folded"))
    checks.set_weights(one, W_dec=[[1.0, 0], [0, 3], [0.6, 0.8], [-1, 0]])
    close(auxk(one, 0, 1), 14.305 / 0.8125)


# --- Multi-TopK ---


def test_multi_topk():
    # 4 k = 8 of 4 latents: a ReLU. x_hat = [[3.02,2.36],[1.1,0]], row errors 2.89 and 1, mean 1.945
    one = dictionary(multi_coef=1 / 8)
    out = one(X, X, step())
    assert list(out.terms) == ["mse", "multi"]
    close(out.terms["multi"] * 8, 1.945)
    close(out.latents.dense(), [[1.5, 0, 1.7, 0], [0.6, 0, 0, 0]])  # what is returned has k latents
    (out.terms["multi"] * 8).backward()
    # residual [[1.02,1.36],[0,1]]; d/dpre row 0 = (1.02, 1.36, .612 + 1.088, -), times u = (1.5,1)
    close(one.W_enc.grad, [[1.53, 1.02], [2.04, 1.36], [2.55, 1.7], [0, 0]])
    close(one.W_dec.grad, [[1.53, 2.64], [1.02, 1.36], [1.734, 2.312], [0, 0]])


def test_the_wider_choice_competes_by_what_it_writes():
    # pre = (5,4,3,2,1), norms (1,1,1,1,9): 4 k = 4 leaves out l3, so x_hat = (5,4,3,0,9), error 2^2 + 8^2;
    # by activations it would leave out the last, error 1
    one = TopKSAE(TopKConfig(n_latents=5, k=1, multi_coef=1.0, decoder="folded"), Shape((5,)))
    checks.set_weights(one, W_enc=torch.eye(5), W_dec=torch.diag(torch.tensor([1.0, 1, 1, 1, 9])))
    x = torch.tensor([[5.0, 4, 3, 2, 1]])
    close(one(x, x, step(n_latents=5)).terms["multi"], 68.0)


# --- against the dense formula ---


@pytest.mark.parametrize("dense_share", [1.0, 0.0], ids=["sparse", "dense"])
@given(k_sparse_problems(), st.booleans(), st.data())
def test_losses_and_gradients_are_the_dense_ones(monkeypatch, dense_share, problem, is_multi, data):
    monkeypatch.setattr(choice, "DENSE_SHARE", dense_share)
    problem = replace(problem, on_grid=False)  # which of equals TopK keeps is not promised
    k, k_aux = (data.draw(st.integers(1, problem.choices["n_latents"])) for _ in range(2))
    cfg = TopKConfig(**problem.choices, k=k, auxk=k_aux, auxk_coef=0.25, multi_coef=0.5 * is_multi)
    one, x, target, now = problem.build(TopKSAE, cfg)
    one.variance.fill_(3.0)
    p = checks.copies(one)
    w = checks.linear(p, one)
    out = one(x, target, now)
    torch.testing.assert_close(out.latents.dense(), reference.latents(x, w, k), rtol=1e-10, atol=1e-12)
    expected = reference.loss(x, target, w, k, now.dead, k_aux)
    factors = {"mse": 1 / 3, "auxk": 1 / 4, "multi": 0.5 / 3}
    assert ("auxk" in out.terms, "multi" in out.terms) == (bool(now.dead.any()), is_multi)
    checks.same_losses(one, out, {name: factors[name] * expected[name] for name in out.terms}, p)
    used = one.eval().encode(x)
    assert torch.equal(used.dense(), out.latents.dense()), "it works as it was trained"
