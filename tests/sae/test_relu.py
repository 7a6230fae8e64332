"""ReLU with L1, with unit decoder rows (2023) and with free ones whose norms weight the penalty (April 2024)."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from sae.architectures.configs import ReLUAprilConfig, ReLUConfig, configs
from sae.architectures.relu import ReLUSAE
from sae.dictionary import Shape
from tests.reference import linear as dense
from tests.reference import relu as reference
from tests.sae import checks
from tests.sae.checks import X, close, problems, step, total


def example(**choices) -> ReLUSAE:
    fields = {"sparsity_coef": 0.1, "sparsity_warmup": 0.0} | choices
    return checks.example(ReLUSAE, ReLUConfig(n_latents=4, **fields))


# --- example E: f = [[1.5,1,1.7,0],[.6,0,0,0]], x_hat = [[3.02,2.36],[1.1,0]] ---


def test_loss():
    out = example()(X, X, step())
    close(out.latents.dense(), [[1.5, 1, 1.7, 0], [0.6, 0, 0, 0]])
    close(out.recon, [[3.02, 2.36], [1.1, 0.0]])
    close(out.terms["mse"], 1.945)  # rows 1.02^2 + 1.36^2 = 2.89 and 1
    close(out.terms["l1"], 0.24)  # sums of f: 4.2 and .6
    close(total(out), 2.185)
    assert list(out.terms) == ["mse", "l1"]


def test_gradient():
    dictionary = example()
    total(dictionary(X, X, step())).backward()
    # residual r = [[1.02,1.36],[0,1]]; d/dpre = r . row of W + .1 / 2 where f > 0
    # = [[1.02,1.36,1.7,0],[0,0,0,0]] + .05 of [[1,1,1,0],[1,0,0,0]] = [[1.07,1.41,1.75,0],[.05,0,0,0]]
    close(dictionary.b_enc.grad, [1.12, 1.41, 1.75, 0])
    close(dictionary.W_enc.grad, [[1.635, 1.02], [2.115, 1.41], [2.625, 1.75], [0, 0]])
    # as output bias (1.02, 2.36), as pre-bias -(1.07+.05+.6*1.75, 1.41+.8*1.75) = -(2.17, 2.81)
    close(dictionary.b_dec.grad, [-1.15, -0.45])


def test_gradient_of_the_decoder():
    dictionary = example(sparsity_coef=0.0)
    total(dictionary(X, X, step())).backward()
    close(dictionary.W_dec.grad, [[1.53, 2.64], [1.02, 1.36], [1.734, 2.312], [0, 0]])  # f^T r
    dictionary.before_step()
    # l0 (1.53, 2.64) without its part along (1,0); l2 (1.734, 2.312) = 2.89 (.6, .8) is all along its row
    close(dictionary.W_dec.grad, [[0, 2.64], [1.02, 0], [0, 0], [0, 0]])


def test_the_penalty_gives_unit_rows_no_gradient_that_is_left():
    """It pulls rows along themselves; without the projection it would: mean f = (1.05, .5, .85, 0) times the rows."""
    dictionary = example()
    dictionary(X, X, step()).terms["l1"].backward()
    close(dictionary.W_dec.grad, [[0.105, 0], [0, 0.05], [0.051, 0.068], [0, 0]])
    dictionary.before_step()
    close(dictionary.W_dec.grad, torch.zeros(4, 2))


def test_free_rows_weight_the_penalty_by_their_norms():
    dictionary = example(decoder="free", sparsity_coef=1.0)
    checks.set_weights(dictionary, W_dec=checks.W * torch.tensor([[2.0], [1.0], [1.0], [0.5]]))
    term = dictionary(X, X, step()).terms["l1"]
    close(term, 3.45)  # rows 2*1.5 + 1 + 1.7 = 5.7 and 2*.6 = 1.2
    term.backward()
    # the norm is not a constant: mean f times the unit row
    close(dictionary.W_dec.grad, [[1.05, 0], [0, 0.5], [0.51, 0.68], [0, 0]])
    close(dictionary.b_enc.grad, [2, 0.5, 0.5, 0])  # norm / 2 for each of its rows
    before = dictionary.W_dec.grad.clone()
    dictionary.before_step()
    assert torch.equal(dictionary.W_dec.grad, before), "free rows keep their gradient"
    dictionary.after_step(dictionary(X, X, step()))
    close(dictionary.W_dec.norm(dim=1), [2, 1, 1, 0.5])


def test_sparsity_coefficient_rises_over_its_share_of_the_run():
    # 5 % of 200 steps are 10: a tenth at the first step, all of it at the tenth and after
    dictionary = example(sparsity_warmup=0.05)
    terms = [dictionary(X, X, step(index=i, n_steps=200)).terms["l1"].item() for i in (0, 4, 9, 10, 199)]
    assert terms == pytest.approx([0.024, 0.12, 0.24, 0.24, 0.24])
    short = dictionary(X, X, step(index=0, n_steps=10)).terms["l1"].item()
    assert short == pytest.approx(0.24), "half a step is no warm-up"


def test_recipes():
    april, bricken = ReLUAprilConfig(), ReLUConfig()
    assert (bricken.pre_bias, bricken.decoder, bricken.init_norm) == (True, "unit", 1.0)
    assert (april.pre_bias, april.decoder, april.init_norm, april.init_bias) == (False, "free", 0.1, "zero")
    assert (april.sparsity_coef, april.sparsity_warmup, april.normalise) == (5.0, 0.05, "mean_norm")
    assert (april.recipe.lr, april.recipe.decay, april.recipe.betas) == (5e-5, 0.2, (0.9, 0.999))
    assert {"relu", "relu_april"} <= set(configs.names())


# --- against the dense formula ---


@given(problems())
def test_losses_and_gradients_are_the_dense_ones(monkeypatch, problem):
    checks.either_way(monkeypatch, problem.seed)
    cfg = ReLUConfig(sparsity_coef=0.3, sparsity_warmup=0.0, **problem.choices)
    dictionary, x, target, now = problem.build(ReLUSAE, cfg)
    p = checks.copies(dictionary)
    w = checks.linear(p, dictionary)
    out = dictionary(x, target, now)
    f = reference.latents(x, w)
    torch.testing.assert_close(out.latents.dense(), f, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(out.recon, dense.recon(x, f, w), rtol=1e-10, atol=1e-12)
    expected = reference.loss(x, target, w)
    checks.same_losses(dictionary, out, {"mse": expected["mse"], "l1": 0.3 * expected["l1"]}, p)


@given(problems(), st.integers(1, 4))
def test_revival_terms_are_the_dense_ones(problem, k_aux):
    """AuxK beside an error that is not divided by the variance (3.0) is multiplied by it; ghost gradients."""
    assume(not problem.on_grid)  # where ghosts may write exactly nothing
    choices = problem.choices | {"auxk": k_aux, "auxk_coef": 0.2, "ghost_coef": 0.7}
    dictionary, x, target, now = problem.build(ReLUSAE, ReLUConfig(sparsity_coef=0.0, **choices))
    dictionary.variance.fill_(3.0)
    p = checks.copies(dictionary)
    w = checks.linear(p, dictionary)
    out = dictionary(x, target, now)
    expected, residual = reference.loss(x, target, w), target - dense.recon(x, reference.latents(x, w), w)
    terms = {"mse": expected["mse"]}
    if now.dead.any():
        terms["auxk"] = 0.2 * 3.0 * dense.auxk(x, residual, w, now.dead, k_aux)
        terms["ghost"] = 0.7 * reference.ghost(x, residual, w, now.dead, expected["mse"])
    checks.same_losses(dictionary, out, terms | {"l1": 0 * expected["l1"]}, p)


@pytest.mark.parametrize("batch", [1, 3])
def test_rows_without_a_positive_latent_are_the_bias(batch):
    dictionary = example()
    checks.set_weights(dictionary, b_enc=[-9.0] * 4)
    out = dictionary(X[:1].expand(batch, 2), X[:1].expand(batch, 2), step())
    close(out.recon, [[0.5, 0.0]] * batch)
    assert out.terms["l1"] == 0
    total(out).backward()
    close(dictionary.b_dec.grad, [-3.0, -2.0])  # 2 (b - x) = 2 (-1.5, -1), whatever the batch
    assert all(p.grad.abs().sum() == 0 for p in (dictionary.W_enc, dictionary.b_enc, dictionary.W_dec))


def test_no_pre_bias():
    # pre = X W^T = [[2,1,2,-2],[1.1,-1,-.14,-1.1]]; row 0: 2 (1,0) + (0,1) + 2 (.6,.8) + (.5,0) = (3.7,2.6)
    dictionary = ReLUSAE(ReLUConfig(n_latents=4, pre_bias=False, sparsity_coef=0.0), Shape((2,)))
    checks.set_weights(dictionary, W_enc=checks.W, W_dec=checks.W, b_dec=[0.5, 0.0])
    out = dictionary(X, X, step())
    close(out.latents.dense(), [[2, 1, 2, 0], [1.1, 0, 0, 0]])
    close(out.recon, [[3.7, 2.6], [1.6, 0.0]])
    total(out).backward()
    close(dictionary.b_dec.grad, [2.2, 2.6])  # as output bias only: residuals (1.7, 1.6) and (.5, 1)
