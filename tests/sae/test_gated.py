"""Gated: its two paths, a decoder that the auxiliary task cannot move, and its form as a JumpReLU.

On example E with r_mag = (0, ln 2, 0, 0), b_gate = (-.2, -1.2, 0, 0), b_mag = (0, .1, -.5, 0):

    gate = [[1.3,-.2,1.7,-1.5],[.4,-2.2,-.44,-.6]]    magnitude = [[1.5,2.1,1.2,-1.5],[.6,-1.9,-.94,-.6]]
    f = [[1.5,0,1.2,0],[.6,0,0,0]] (l1 has a magnitude of 2.1 but its gate is shut)   x_hat = [[2.72,.96],[1.1,0]]
"""

import math

import torch
from hypothesis import given

from sae.architectures.configs import GatedConfig
from sae.architectures.gated import GatedSAE
from tests.reference import gated as reference
from tests.reference import linear as dense
from tests.sae import checks
from tests.sae.checks import X, close, problems, step, total


def example(**choices) -> GatedSAE:
    fields = {"sparsity_coef": 0.1, "sparsity_warmup": 0.0} | choices
    dictionary = checks.example(GatedSAE, GatedConfig(n_latents=4, **fields))
    checks.set_weights(dictionary, r_mag=[0, math.log(2), 0, 0], b_enc=[-0.2, -1.2, 0, 0], b_mag=[0, 0.1, -0.5, 0])
    return dictionary


def test_loss():
    out = example()(X, X, step())
    close(out.latents.dense(), [[1.5, 0, 1.2, 0], [0.6, 0, 0, 0]])
    close(out.recon, [[2.72, 0.96], [1.1, 0]])
    assert list(out.terms) == ["mse", "l1", "aux"]
    close(out.terms["mse"], 0.76)  # rows .52 and 1
    close(out.terms["l1"], 0.17)  # gates 1.3 + 1.7 = 3 and .4
    close(out.terms["aux"], 0.921)  # ReLU(gate) decoded: [[2.82,1.36],[.9,0]], rows .802 and 1.04
    close(total(out), 1.851)


def test_gradient_of_the_error_goes_through_the_magnitudes():
    dictionary = example()
    dictionary(X, X, step()).terms["mse"].backward()
    # residual r = [[.72,-.04],[0,1]]; d/df = r . row of W = (.72, ., .4, .), (0, ...) where f > 0
    close(dictionary.b_mag.grad, [0.72, 0, 0.4, 0])
    # times the gate without its bias: 1.5 and 1.7
    close(dictionary.r_mag.grad, [1.08, 0, 0.68, 0])
    close(dictionary.b_enc.grad, [0, 0, 0, 0])  # the gate's bias is not in it, nor is whether it is open
    close(dictionary.W_enc.grad, [[1.08, 0.72], [0, 0], [0.6, 0.4], [0, 0]])


def test_gradient_of_the_auxiliary_terms_goes_through_the_gates():
    dictionary = example()
    out = dictionary(X, X, step())
    (out.terms["l1"] + out.terms["aux"]).backward()
    # r = [[.82,.36],[-.2,1]]; d/dgate = r . row of W + .05 = (.87, ., .83, .) and (-.15, ...)
    close(dictionary.b_enc.grad, [0.72, 0, 0.83, 0])
    close(dictionary.W_enc.grad, [[1.215, 1.02], [0, 0], [1.245, 0.83], [0, 0]])
    # the decoder's bias as pre-bias only: -(.87 - .15 + .83 * .6, .83 * .8)
    close(dictionary.b_dec.grad, [-1.218, -0.664])
    for name in ("W_dec", "r_mag", "b_mag"):
        grad = dictionary.get_parameter(name).grad
        assert grad is None or grad.abs().sum() == 0, name


def test_decoder_learns_from_the_error_alone():
    grads = []
    for names in (["mse"], ["mse", "l1", "aux"]):
        dictionary = example()
        out = dictionary(X, X, step())
        torch.stack([out.terms[name] for name in names]).sum().backward()
        grads.append(dictionary.W_dec.grad)
    assert torch.equal(*grads)
    close(grads[0], [[1.08, 0.54], [0, 0], [0.864, -0.048], [0, 0]])  # f^T r: l0 1.5 (.72,-.04) + .6 (0,1)


def test_a_free_decoders_norms_weight_the_penalty_as_constants():
    """So that a latent cannot escape by a small gate and a long row."""
    dictionary = example(decoder="free", sparsity_coef=1.0)
    checks.set_weights(dictionary, W_dec=checks.W * torch.tensor([[2.0], [1.0], [1.0], [1.0]]))
    term = dictionary(X, X, step()).terms["l1"]
    close(term, 2.55)  # rows 2 * 1.3 + 1.7 = 4.3 and 2 * .4
    term.backward()
    assert dictionary.W_dec.grad is None or dictionary.W_dec.grad.abs().sum() == 0


def test_it_is_a_jumprelu():
    """Thresholds b_mag - exp(r_mag) b_gate = (.2, 2.5, -.5, 0) on the magnitudes."""
    dictionary = example()
    close(dictionary.b_mag - dictionary.r_mag.exp() * dictionary.b_enc, [0.2, 2.5, -0.5, 0])
    p = checks.copies(dictionary)
    w = checks.linear(p, dictionary)
    f = reference.latents_as_jumprelu(X, w, p["r_mag"], p["b_mag"])
    close(f, [[1.5, 0, 1.2, 0], [0.6, 0, 0, 0]])


@given(problems())
def test_losses_and_gradients_are_the_dense_ones(monkeypatch, problem):
    checks.either_way(monkeypatch, problem.seed)
    cfg = GatedConfig(sparsity_coef=0.3, sparsity_warmup=0.0, **problem.choices)
    dictionary, x, target, now = problem.build(GatedSAE, cfg)
    p = checks.copies(dictionary)
    w = checks.linear(p, dictionary)
    out = dictionary(x, target, now)
    f = reference.latents(x, w, p["r_mag"], p["b_mag"])
    torch.testing.assert_close(out.latents.dense(), f, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(out.recon, dense.recon(x, f, w), rtol=1e-10, atol=1e-12)
    expected = reference.loss(x, target, w, p["r_mag"], p["b_mag"])
    checks.same_losses(dictionary, out, expected | {"l1": 0.3 * expected["l1"]}, p)


@given(problems())
def test_any_is_a_jumprelu(problem):
    dictionary, x, _, _ = problem.build(GatedSAE, GatedConfig(**problem.choices))
    p = checks.copies(dictionary)
    gates = dense.pre_acts(x, checks.linear(p, dictionary))
    f = reference.latents_as_jumprelu(x, checks.linear(p, dictionary), p["r_mag"], p["b_mag"])
    is_at_edge = gates.abs() < 1e-9  # where the two forms may round to different sides
    found = dictionary.encode(x).dense()
    torch.testing.assert_close(found.masked_fill(is_at_edge, 0), f.masked_fill(is_at_edge, 0), rtol=1e-9, atol=1e-9)


def test_a_reseeded_latent_has_no_magnitude_of_its_own_left():
    """A bias of -5 would keep it silent with its gate open: gate and value .2 at its own row."""
    dictionary = example(normalise="none")
    checks.set_weights(dictionary, b_mag=[0, -5.0, 0, 0], r_mag=[0, -3.0, 0.5, 0])
    row = torch.tensor([[0.5, -1.0]])
    dictionary.reseed(torch.tensor([1]), row, row)
    close(dictionary.encode(row).dense()[0, 1], 0.2)  # (row - b_dec) = (0,-1), encoder .2 (0,-1)
    close(dictionary.r_mag, [0, 0, 0.5, 0])
