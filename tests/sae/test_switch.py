"""Switch: the specification's worked numbers, what a row may see, then the dense formula.

Example E is in `tests/sae/checks.py`; here W_router = 1, b_router = b_dec, experts {l0,l1} and {l2,l3}, k = 1.

    p = softmax(u) = [[.622459,.377541],[.832018,.167982]]: both rows go to expert 0
    f = [[1.5 * .622459,0,0,0],[.6 * .832018,0,0,0]]   x_hat = [[1.433689,0],[.999211,0]]
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae.architectures.configs import SwitchConfig
from sae.architectures.switch import SwitchSAE
from sae.dictionary import InputStats, Shape
from sae.kernels import choice
from sae.scaling import SiteStats
from tests.reference import switch as reference
from tests.sae import checks
from tests.sae.checks import X, close, k_sparse_problems, step


def dictionary(**choices) -> SwitchSAE:
    one = checks.example(SwitchSAE, SwitchConfig(n_latents=4, k=1, n_experts=2, **choices))
    checks.set_weights(one, W_router=torch.eye(2), b_router=[0.5, 0.0])
    return one


def test_forward():
    out = dictionary()(X, X, step())
    close(out.latents.dense(), [[0.933689, 0, 0, 0], [0.499211, 0, 0, 0]])  # l2 at 1.7 is another expert's
    close(out.latents.pre_acts, [1.5, 0.6])
    close(out.recon, [[1.433689, 0], [0.999211, 0]])
    close(out.terms["mse"], (1.320708 + 1.010158) / 2)
    # F = (1,0), P = (.727239,.272761): E sum F P = 2 * .727239. It stands beside a normalised error and so,
    # other than in the authors' sum over d, is not multiplied by d
    close(out.terms["balance"], 0.1 * 1.454478)
    assert list(out.terms) == ["mse", "balance"]


def test_the_router_learns_from_the_error():
    one = dictionary()
    one(X, X, step()).terms["mse"].backward()
    # residual [[-.566311,-1],[-.100789,1]]. Through the factor p: d/dlogit_0 = (residual . d0) pre p_0 p_1
    # = (-.566311 * 1.5 * .235004, -.100789 * .6 * .139764) = (-.199629,-.008452), logit_1 the opposite; times u
    close(one.W_router.grad, [[-0.304514, -0.191176], [0.304514, 0.191176]])
    close(one.b_router.grad, [0.208080, -0.208080])
    # through the latents: (residual . d0) p_0 = (-.352505,-.083859), times u
    close(one.W_enc.grad, [[-0.579073, -0.268647], [0, 0], [0, 0], [0, 0]])
    close(one.W_dec.grad, [[-0.579073, -0.434478], [0, 0], [0, 0], [0, 0]])


def test_the_router_learns_from_the_balance():
    one = dictionary(balance_coef=1.0)
    one(X, X, step()).terms["balance"].backward()
    # E F_0 / B = 1, d/dlogit_0 = p_0 p_1 = (.235004,.139764), times u
    close(one.W_router.grad, [[0.436364, 0.095239], [-0.436364, -0.095239]])
    assert one.W_enc.grad is None


def test_the_balance_of_experts_that_share_alike_is_1():
    one = dictionary(balance_coef=1.0)
    rows = torch.tensor([[1.5, 0.0], [0.5, 1.0]])  # u = (1,0) and (0,1): one row to each
    close(one(rows, rows, step()).terms["balance"], 1.0)
    checks.set_weights(one, W_router=torch.zeros(2, 2))  # all go to the first, none more likely than the others
    close(one(X, X, step()).terms["balance"], 1.0)


def test_the_router_starts_undecided_about_the_mean():
    cfg = SwitchConfig(n_latents=8, k=1, n_experts=4, init_bias="mean", normalise="none")
    one, x = SwitchSAE(cfg, Shape((3,))), torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) + 2
    site = SiteStats(3, mean_norm=1.0, mean_square=1.0)
    one.initialise(InputStats((site,), (site,), x, x), torch.Generator().manual_seed(0))
    torch.testing.assert_close(one.b_router, x.mean(0))
    torch.testing.assert_close(one._route(x.mean(0, keepdim=True)), torch.full((1, 4), 0.25))
    assert len(one._route(x).argmax(1).unique()) == 4


def test_an_expert_points_to_rows_that_are_sent_to_it():
    """Four clusters far apart: a latent's direction is near the rows of one, and its expert has that cluster."""
    centres = 10 * torch.eye(4)
    rows = centres.repeat(50, 1) + 0.1 * torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    one = SwitchSAE(SwitchConfig(n_latents=32, k=1, n_experts=4, normalise="none"), Shape((4,)))
    site = SiteStats(4, mean_norm=1.0, mean_square=1.0)
    one.initialise(InputStats((site,), (site,), rows, rows), torch.Generator().manual_seed(0))
    expert = one._route(rows).argmax(1)
    assert len(expert.unique()) > 1
    directions = torch.nn.functional.normalize(one.W_dec.detach(), dim=1)
    seen = torch.nn.functional.normalize(rows - one.b_dec, dim=1)
    owners = expert[(directions @ seen.T).argmax(1)]
    own = torch.arange(4).repeat_interleave(8)
    has_rows = torch.isin(own, expert)
    assert torch.equal(owners[has_rows], own[has_rows])


# --- rows ---


@given(st.integers(0, 10**6), st.integers(0, 12), st.integers(1, 4), st.integers(1, 3))
def test_a_row_has_latents_of_one_expert_only(seed, batch, n_experts, k):
    one = SwitchSAE(SwitchConfig(n_latents=3 * n_experts, k=k, n_experts=n_experts), Shape((2,))).double()
    generator = torch.Generator().manual_seed(seed)
    checks.fill(one, generator)
    x = torch.randn(batch, 2, generator=generator, dtype=torch.float64)
    latents = one.encode(x)
    expert = reference.route(x, one.W_router, one.b_router).argmax(1)
    assert torch.equal(latents.indices // 3, expert[latents.rows()])
    assert latents.offsets.tolist() == [k * i for i in range(batch + 1)]
    for i in range(batch):
        torch.testing.assert_close(one.encode(x[i : i + 1]).dense()[0], latents.dense()[i], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pre_bias", [True, False])
def test_the_router_is_folded_with_a_whitening(pre_bias):
    cfg = SwitchConfig(n_latents=12, k=2, n_experts=3, normalise="whiten", pre_bias=pre_bias)
    one, generator = SwitchSAE(cfg, Shape((4,))), torch.Generator().manual_seed(0)
    x = torch.randn(100, 4, generator=generator) @ torch.randn(4, 4, generator=generator) + 3
    site = SiteStats(4, mean_norm=1.0, mean_square=1.0)
    one.initialise(InputStats((site,), (site,), x, x), generator)
    checks.fill(one, generator)
    folded = one.eval().folded()
    assert folded.cfg.normalise == "none"
    (latents, recon), (folded_latents, folded_recon) = one.reconstruct(x), folded.reconstruct(x)
    assert len((latents.indices // 4).unique()) == 3, "all experts have rows"
    sizes = one.W_dec.norm(dim=1)  # by which they compete
    torch.testing.assert_close(folded_latents.dense(), latents.dense() * sizes, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(folded_recon, recon, rtol=1e-4, atol=1e-4)


def test_k_is_within_an_expert():
    with pytest.raises(ValueError, match=r"sae\.k = 3: must be at most the 2 latents of an expert"):
        SwitchConfig(n_latents=4, k=3, n_experts=2)
    with pytest.raises(ValueError, match=r"sae\.n_experts = 3: must divide n_latents = 4"):
        SwitchConfig(n_latents=4, k=1, n_experts=3)


# --- against the dense formula ---


@pytest.mark.parametrize("dense_share", [1.0, 0.0], ids=["sparse", "dense"])
@given(k_sparse_problems(), st.integers(1, 4), st.integers(1, 3), st.data())
def test_losses_and_gradients_are_the_dense_ones(monkeypatch, dense_share, problem, n_experts, size, data):
    monkeypatch.setattr(choice, "DENSE_SHARE", dense_share)
    n = n_experts * size
    k, k_aux = data.draw(st.integers(1, size)), data.draw(st.integers(1, n))
    choices = problem.choices | {"n_latents": n, "n_experts": n_experts, "k": k, "auxk": k_aux}
    cfg = SwitchConfig(**choices, balance_coef=0.5, auxk_coef=0.25)
    one, x, target, now = replace(problem, on_grid=False).build(SwitchSAE, cfg)
    one.variance.fill_(3.0)
    p = checks.copies(one)
    w, router = checks.linear(p, one), (p["W_router"], p["b_router"])
    out = one(x, target, now)
    torch.testing.assert_close(out.latents.dense(), reference.latents(x, w, *router, k), rtol=1e-10, atol=1e-12)
    expected = reference.loss(x, target, w, *router, k, now.dead, k_aux)
    factors = {"mse": 1 / 3, "auxk": 1 / 4, "balance": 1 / 2}
    assert ("auxk" in out.terms) == bool(now.dead.any())
    checks.same_losses(one, out, {name: factors[name] * expected[name] for name in out.terms}, p)
