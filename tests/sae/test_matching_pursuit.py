"""Matching pursuit: the specification's worked numbers, what each step takes, then the unrolled formula.

Example E is in `tests/sae/checks.py`; u = X - b_dec = [[1.5,1],[.6,-1]].

    row 0: l2 (1.7), r = (.48,-.36); l0 (.48), r = (0,-.36); no score is positive     ||r||^2: 3.25, .36, .1296
    row 1: l0 (.6), r = (0,-1); no score is positive                                  ||r||^2: 1.36, 1
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae.architectures import matching_pursuit
from sae.architectures.configs import MatchingPursuitConfig
from sae.architectures.matching_pursuit import MatchingPursuitSAE
from sae.config import parse
from sae.dictionary import Shape
from sae.errors import ConfigError
from sae.kernels import choice
from sae.weights import normalise_rows
from tests.reference import matching_pursuit as reference
from tests.sae import checks
from tests.sae.checks import X, close, step


def dictionary(k: int) -> MatchingPursuitSAE:
    one = MatchingPursuitSAE(MatchingPursuitConfig(n_latents=4, k=k), Shape((2,)))
    checks.set_weights(one, W_dec=checks.W, b_dec=[0.5, 0.0])
    return one


def problem(seed: int, batch: int, d: int, n_latents: int, k: int, is_unit: bool = True):
    """A random dictionary in float64 and rows for it."""
    one = MatchingPursuitSAE(MatchingPursuitConfig(n_latents=n_latents, k=k, normalise="none"), Shape((d,))).double()
    generator = torch.Generator().manual_seed(seed)
    checks.fill(one, generator)
    if is_unit:
        normalise_rows(one.W_dec)
    return one, torch.randn(batch, d, generator=generator, dtype=torch.float64)


sizes = given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 5), st.integers(1, 9), st.data())


# --- example E ---


@pytest.mark.parametrize(
    ("k", "latents", "error"),
    [
        (1, [[0, 0, 1.7, 0], [0.6, 0, 0, 0]], (0.36 + 1) / 2),
        (2, [[0.48, 0, 1.7, 0], [0.6, 0, 0, 0]], (0.1296 + 1) / 2),  # TopK with k = 2 leaves 1.17 of row 0
        (4, [[0.48, 0, 1.7, 0], [0.6, 0, 0, 0]], (0.1296 + 1) / 2),  # nothing more is taken
    ],
)
def test_forward(k, latents, error):
    out = dictionary(k)(X, X, step())
    close(out.latents.dense(), latents)
    close(out.terms["mse"], error)
    assert list(out.terms) == ["mse"]
    assert out.latents.firing_counts().sum() == (2 if k == 1 else 3)


def test_gradient():
    # k = 1: loss = mean of ||r||^2, r = u - <u,d> d, so that -dloss/db = 2/B sum r - 2/B sum <r,d> d = sum r
    one = dictionary(1)
    one(X, X, step()).terms["mse"].backward()
    close(one.b_dec.grad, [-0.48, 1.36])  # -((.48,-.36) + (0,-1))
    # dloss/dd = -2/B (<u,d> r + <r,d> u), <r,d> = 0: l2 -1.7 (.48,-.36), l0 -.6 (0,-1)
    close(one.W_dec.grad, [[0, 0.6], [0, 0], [-0.816, 0.612], [0, 0]])


def test_the_error_is_divided_by_the_variance_of_the_inputs():
    one = dictionary(2)
    one.variance.fill_(2.0)
    close(one(X, X, step()).terms["mse"], (0.1296 + 1) / 4)


def test_a_latent_that_is_taken_again_adds_to_its_first_entry():
    # u = (1,3): l1 1.8, r = (2.08,1.56); l0 2.08, r = (0,1.56), which l1 sees again: 1.248
    one = MatchingPursuitSAE(MatchingPursuitConfig(n_latents=3, k=3), Shape((2,)))
    checks.set_weights(one, W_dec=[[1.0, 0.0], [-0.6, 0.8], [0.0, -1.0]])
    latents = one.encode(torch.tensor([[1.0, 3.0]]))
    assert latents.indices.tolist() == [1, 0, 1]
    close(latents.values, [1.8 + 1.248, 2.08, 0])
    close(latents.pre_acts, [1.8, 2.08, 1.248])
    assert latents.firing_counts().tolist() == [1, 1, 0]
    assert latents.fired().indices.tolist() == [1, 0]


def test_a_row_stops_with_the_step_that_takes_nothing_new():
    # as above, one step more: u = (3,9): l1 5.4, r = (6.24,4.68); l0 6.24, r = (0,4.68); l1 3.744; then l0 again
    for stops, expected in ((False, [6.24 + 2.2464, 5.4 + 3.744]), (True, [6.24, 5.4 + 3.744])):
        cfg = MatchingPursuitConfig(n_latents=4, k=4, stop_on_repeat=stops)
        one = MatchingPursuitSAE(cfg, Shape((2,)))
        checks.set_weights(one, W_dec=[[1.0, 0.0], [-0.6, 0.8], [0.0, -1.0], [-1.0, 0.0]])
        close(one.encode(torch.tensor([[3.0, 9.0]])).dense()[:, :2], [expected])


@pytest.mark.parametrize(
    ("threshold", "latents", "left", "gradient"),
    [
        # r = u less l2 and l0; -2 r taken back through both: (I - d d^T) (0,-.36) = (.1728,-.1296)
        (0.59, [0.48, 0, 1.7, 0], [0, -0.36], [-0.3456, 0.2592]),
        # r = u less l2, which is at right angles to l2: the gradient is -2 r
        (0.61, [0, 0, 1.7, 0], [0.48, -0.36], [-0.96, 0.72]),
        (99, [0, 0, 1.7, 0], [0.48, -0.36], [-0.96, 0.72]),
    ],
)
def test_a_row_stops_when_little_is_left(threshold, latents, left, gradient):
    """After l2 a norm of 0.6 is left of row 0; the first step is always taken."""
    one = MatchingPursuitSAE(MatchingPursuitConfig(n_latents=4, k=4, residual_threshold=threshold), Shape((2,)))
    checks.set_weights(one, W_dec=checks.W, b_dec=[0.5, 0.0])
    out = one(X[:1], X[:1], step())
    close(out.latents.dense(), [latents])
    close(X[:1] - out.recon, [left])
    out.terms["mse"].backward()
    close(one.b_dec.grad, gradient)


# --- what a step takes ---


@sizes
def test_each_step_takes_the_square_of_its_score(seed, batch, d, n_latents, data):
    """||r||^2 falls by exactly <r,d>^2: the error with k steps is ||u||^2 less the squares of k scores."""
    k = data.draw(st.integers(1, 6).filter(lambda k: k <= n_latents))
    one, x = problem(seed, batch, d, n_latents, k)
    latents, recon = one.reconstruct(x)
    taken = latents.pre_acts.view(batch, k).relu().square()
    left = (x - one.b_dec).square().sum(1) - taken.sum(1)
    torch.testing.assert_close((x - recon).square().sum(1), left, rtol=1e-9, atol=1e-12)
    if k > 1:
        fewer, _ = problem(seed, batch, d, n_latents, k - 1)
        before = (x - fewer.reconstruct(x)[1]).square().sum(1)
        torch.testing.assert_close(before - taken[:, -1], left, rtol=1e-9, atol=1e-12)


@sizes
def test_the_choice_is_that_of_scoring_anew(seed, batch, d, n_latents, data):
    """Scores that the Gram matrix keeps up to date choose what the residual itself would, unit rows or not."""
    k = data.draw(st.integers(1, n_latents))
    one, x = problem(seed, batch, d, n_latents, k, is_unit=data.draw(st.booleans()))
    latents = one.encode(x)
    chosen, scores = latents.indices.view(batch, k), latents.pre_acts.view(batch, k)
    for row in range(batch):
        f, picks, _ = reference.pursue(x[row] - one.b_dec, one.W_dec, k)
        is_clear = scores[row] > 1e-9 * scores[row, 0]  # of nothing but rounding any may be taken
        steps = int(is_clear.int().cumprod(0).sum())
        assert chosen[row, :steps].tolist() == picks[:steps]
        torch.testing.assert_close(latents.dense()[row], f, rtol=1e-9, atol=1e-9)


def test_a_row_without_a_positive_score_has_nothing():
    one = dictionary(2)
    checks.set_weights(one, W_dec=[[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.8, 0.6]])
    out = one(-X.abs(), -X.abs(), step())  # u = (-2.5,-1) and (-1.6,-1)
    assert out.latents.values.abs().sum() == 0
    close(out.recon, [[0.5, 0], [0.5, 0]])
    out.terms["mse"].backward()
    assert one.W_dec.grad.abs().sum() == 0
    close(one.b_dec.grad, [2.5 + 1.6, 1 + 1.0])  # -2/B sum r


def test_a_row_at_the_bias_has_nothing():
    one = dictionary(3)
    row = torch.tensor([[0.5, 0.0]])
    assert one.encode(row).values.tolist() == [0, 0, 0]
    assert one(row, row, step()).terms["mse"] == 0


def test_no_rows():
    assert dictionary(2).encode(X[:0]).dense().shape == (0, 4)


def test_chunks_of_rows_do_not_show(monkeypatch):
    one, x = problem(0, 11, 4, 9, 3)
    whole = one.encode(x).dense()
    monkeypatch.setattr(matching_pursuit, "CHUNK_ROWS", 4)
    torch.testing.assert_close(one.encode(x).dense(), whole, rtol=1e-12, atol=1e-12)


def test_it_is_no_transcoder():
    with pytest.raises(ConfigError) as caught:
        MatchingPursuitSAE(MatchingPursuitConfig(), Shape((2,), (2,)))
    assert str(caught.value) == "sae.type = matching_pursuit: writes what it reads; leave train.target out"


# --- against the unrolled formula ---


@pytest.mark.parametrize("dense_share", [1.0, 0.0], ids=["sparse", "dense"])
@sizes
def test_loss_and_gradients_are_the_unrolled_ones(monkeypatch, dense_share, seed, batch, d, n_latents, data):
    monkeypatch.setattr(choice, "DENSE_SHARE", dense_share)
    k = data.draw(st.integers(1, n_latents))
    one, x = problem(seed, batch, d, n_latents, k, is_unit=data.draw(st.booleans()))
    x[: data.draw(st.integers(0, batch))] *= data.draw(st.sampled_from([0.0, 1.0, 10.0]))
    one.variance.fill_(3.0)
    p = checks.copies(one)
    out = one(x, x, step(n_latents=n_latents))
    f, error = reference.loss(x, p["W_dec"], p["b_dec"], k)
    torch.testing.assert_close(out.latents.dense(), f, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(out.terms["mse"], error / 3, rtol=1e-9, atol=1e-11)
    out.terms["mse"].backward()
    (error / 3).backward()
    for name, parameter in one.named_parameters():
        torch.testing.assert_close(
            parameter.grad, p[name].grad, rtol=1e-8, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_a_whitening_is_refused():
    with pytest.raises(ConfigError) as caught:
        parse(MatchingPursuitConfig, {"normalise": "whiten"}, "sae")
    assert str(caught.value) == ("sae.normalise = 'whiten': cannot be folded into a tied dictionary; choose another")
