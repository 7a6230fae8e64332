"""BatchTopK: the specification's worked numbers, rows in training and in use, then the dense formula.

Example E is in `tests/sae/checks.py`; pre = [[1.5,1,1.7,-1.5],[.6,-1,-.44,-.6]].
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae import hub
from sae.architectures.batchtopk import BatchTopKSAE
from sae.architectures.configs import BatchTopKConfig
from sae.dictionary import Shape, Step
from sae.kernels import choice
from tests.reference import batchtopk as reference
from tests.sae import checks
from tests.sae.checks import X, close, k_sparse_problems, step


def dictionary(k: int, **choices) -> BatchTopKSAE:
    return checks.example(BatchTopKSAE, BatchTopKConfig(n_latents=4, k=k, **choices))


def trained(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[BatchTopKSAE, torch.Tensor]:
    """A random dictionary in evaluation mode whose threshold has seen a batch, and that batch."""
    one = BatchTopKSAE(BatchTopKConfig(n_latents=12, k=2, decoder="free"), Shape((5,))).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    checks.fill(one, generator)
    x = torch.randn(20, 5, generator=generator, dtype=dtype)
    one.after_step(one(x, x, step(n_latents=12)))
    return one.eval(), x


# --- example E ---


def test_one_latent_a_row_on_average():
    # 2 entries for both rows: 1.7 and 1.5, both of row 0; row 1 is empty, x_hat = b_dec = (.5,0)
    one = dictionary(k=1)
    out = one(X, X, step())
    close(out.latents.dense(), [[1.5, 0, 1.7, 0], [0, 0, 0, 0]])
    assert out.latents.offsets.tolist() == [0, 2, 2]
    close(out.terms["mse"], 1.265)  # mean of the row errors 1.17 and 1.36
    one.after_step(out)
    one.eval()
    close(one.encode(X).dense(), [[0, 0, 1.7, 0], [0, 0, 0, 0]])  # above the smallest kept, 1.5, is only 1.7
    assert one.threshold.value() == 1.5


@pytest.mark.parametrize("k", [2, 3, 4])
def test_where_there_are_no_more_positive_ones_than_slots(k):
    # 4 entries are positive: with 4 slots or more it is a ReLU. x_hat = [[3.02,2.36],[1.1,0]]
    one = dictionary(k=k)
    out = one(X, X, step())
    close(out.latents.dense(), [[1.5, 1, 1.7, 0], [0.6, 0, 0, 0]])
    assert out.latents.firing_counts().sum() == 4
    close(out.terms["mse"], 1.945)  # row errors 2.89 and 1
    out.terms["mse"].backward()
    # residual [[1.02,1.36],[0,1]]; d/dpre row 0 = (1.02, 1.36, .612 + 1.088, 0), row 1 = 0; times u = (1.5,1)
    close(one.W_enc.grad, [[1.53, 1.02], [2.04, 1.36], [2.55, 1.7], [0, 0]])
    close(one.b_enc.grad, [1.02, 1.36, 1.7, 0])
    close(one.W_dec.grad, [[1.53, 2.64], [1.02, 1.36], [1.734, 2.312], [0, 0]])
    one.after_step(out)
    assert one.threshold.value().item() == pytest.approx(0.6)


def test_auxk():
    # e = [[-1.02,-.36],[.6,-1]] (row 1 is empty), dead l1, k_aux = d/2 = 1: z = (1,0), e_hat = [[0,1],[0,0]]
    # rows 1.02^2 + 1.36^2 = 2.89 and 1.36, mean 2.125; e's mean (-.21,-.68), its variance .81^2 + .32^2 = .7585
    term = dictionary(k=1)(X, X, step(1)).terms["auxk"]
    close(term * 32, 2.125 / 0.7585)


# --- rows ---


def test_in_training_rows_compete():
    one = dictionary(k=1)
    alone = one(X[1:], X[1:], step())
    close(alone.latents.dense(), [[0.6, 0, 0, 0]])  # beside row 0 it is empty


def test_in_training_rows_may_come_in_any_order():
    one, x = trained()
    one.train()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    step_ = Step(0, 1, torch.arange(12) < 4)
    out, shuffled = one(x, x, step_), one(x[order], x[order], step_)
    torch.testing.assert_close(shuffled.latents.dense(), out.latents.dense()[order], rtol=1e-12, atol=1e-12)
    for name, term in out.terms.items():
        torch.testing.assert_close(shuffled.terms[name], term, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_in_use_rows_are_independent(seed):
    one, x = trained(seed)
    together = one.encode(x).dense()
    for i in range(len(x)):
        torch.testing.assert_close(one.encode(x[i : i + 1]).dense()[0], together[i], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one.encode(100 * x[:1]).dense()[0], one.encode(100 * x).dense()[0])


# --- the threshold ---


def test_before_any_step_it_is_used_as_a_relu():
    one = dictionary(k=1).eval()
    close(one.encode(X).dense(), [[1.5, 1, 1.7, 0], [0.6, 0, 0, 0]])


def test_the_threshold_learns_from_steps_only():
    one = dictionary(k=1)
    one(X, X, step())
    one.eval().encode(X)
    assert one.threshold.value() == 0
    one.train().after_step(one(X, X, step()))
    assert one.threshold.value() == 1.5
    one.after_step(one(X[1:], X[1:], step()))  # its smallest is .6
    assert one.threshold.value().item() == pytest.approx((0.99 * 1.5 + 0.6) / 1.99)


def test_what_is_used_keeps_what_was_kept_in_training():
    """One batch: all that the batch kept but the smallest itself, which does not exceed the threshold."""
    one, x = trained(dtype=torch.float32)
    used = one.encode(x)
    assert len(used.values) == 2 * 20 - 1
    one.train()
    kept = one(x, x, step(n_latents=12)).latents
    assert kept.values.min() == one.threshold.value()


def test_the_threshold_is_saved(tmp_path):
    one, x = trained(dtype=torch.float32)
    hub.save(one, {}, tmp_path)
    loaded = hub.load(tmp_path)
    assert loaded.threshold.value() == one.threshold.value() > 0.1
    assert torch.equal(loaded.encode(x).dense(), one.encode(x).dense())


def test_the_threshold_learns_nothing_from_gradients():
    one = dictionary(k=1)
    assert [name for name, _ in one.named_parameters()] == ["W_enc", "b_enc", "W_dec", "b_dec"]
    one.after_step(one(X, X, step()))
    assert not one.threshold.value().requires_grad


# --- against the dense formula ---


@pytest.mark.parametrize("dense_share", [1.0, 0.0], ids=["sparse", "dense"])
@given(k_sparse_problems(), st.data())
def test_losses_and_gradients_are_the_dense_ones(monkeypatch, dense_share, problem, data):
    """On the grid many are equal at the edge, and the earlier ones are kept; which AuxK keeps is not promised."""
    monkeypatch.setattr(choice, "DENSE_SHARE", dense_share)
    k, k_aux = (data.draw(st.integers(1, problem.choices["n_latents"])) for _ in range(2))
    choices = problem.choices | ({"decoder": "free", "auxk_coef": 0.0} if problem.on_grid else {"auxk_coef": 0.25})
    one, x, target, now = replace(problem, choices=choices).build(
        BatchTopKSAE, BatchTopKConfig(**choices, k=k, auxk=k_aux)
    )
    one.variance.fill_(3.0)
    p = checks.copies(one)
    w = checks.linear(p, one)
    out = one(x, target, now)
    f = reference.latents(x, w, k).detach()
    torch.testing.assert_close(out.latents.dense(), f, rtol=1e-10, atol=1e-12)
    expected = reference.loss(x, target, w, k, now.dead, k_aux)
    assert ("auxk" in out.terms) == (bool(now.dead.any()) and not problem.on_grid)
    factors = {"mse": 1 / 3, "auxk": 1 / 4}
    checks.same_losses(one, out, {name: factors[name] * expected[name] for name in out.terms}, p)
    checks.set_weights(one, W_dec=3 * one.W_dec)  # the optimiser's step: what competed did so before it
    one.after_step(out)
    competed = f * (w.W_dec.detach().norm(dim=1) if w.is_folded else 1)
    assert one.threshold.value().item() == (pytest.approx(competed[f > 0].min().item()) if (f > 0).any() else 0)
