"""JumpReLU: the straight-through gradients as the papers print them, and each penalty.

Example J, one row of width 1: pre-activations (.10, .52, .48, 1.00), threshold .5, bandwidth .1;
f = (0, .52, 0, 1). The decoder (.2, -.4, .6, .1) with bias 1.608 makes x_hat = -.108 + 1.608 = 1.5
of x = 1, so that the error .25 has the gradient 2 (x_hat - x) W_dec = (.2, -.4, .6, .1) for f.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae.architectures.configs import JumpReLUConfig, JumpReLUTanhConfig
from sae.architectures.jumprelu import JumpReLUSAE, firing_biases
from sae.dictionary import InputStats, Shape
from sae.scaling import SiteStats
from tests.reference import jumprelu as reference
from tests.reference import linear as dense
from tests.sae import checks
from tests.sae.checks import close, problems, step, total

ONE = torch.ones(1, 1)


def build(pre_acts: list[float], decoder: list[float], threshold: object, bias: float = 0.0, **choices) -> JumpReLUSAE:
    """A dictionary of width 1 without a pre-bias, whose pre-activations at x = 1 are `pre_acts`."""
    fields = {"sparsity_warmup": 0.0, "pre_bias": False, "decoder": "free", "n_latents": len(pre_acts)} | choices
    dictionary = JumpReLUSAE(JumpReLUConfig(**fields), Shape((1,)))
    columns = {"W_enc": torch.tensor(pre_acts)[:, None], "W_dec": torch.tensor(decoder)[:, None]}
    checks.set_weights(dictionary, **columns, b_dec=[bias], threshold=threshold)
    return dictionary


def example_j(**choices) -> JumpReLUSAE:
    fields = {"bandwidth": 0.1, "sparsity_coef": 0.03} | choices
    return build([0.10, 0.52, 0.48, 1.00], [0.2, -0.4, 0.6, 0.1], 0.5, bias=1.608, **fields)


# --- example J ---


def test_forward():
    out = example_j()(ONE, ONE, step())
    close(out.latents.dense(), [[0, 0.52, 0, 1.0]])
    close(out.recon, [[1.5]])
    close(out.terms["mse"], 0.25)
    close(out.terms["l0"], 0.06)
    assert out.latents.firing_counts().tolist() == [0, 1, 0, 1], "an entry just below its threshold has not fired"


def test_gradient_of_the_error():
    dictionary = example_j()
    dictionary(ONE, ONE, step()).terms["mse"].backward()
    # K = (0,1,1,0); df/dthreshold = -(.5 / .1) K = (0,-5,-5,0), times (.2,-.4,.6,.1)
    close(dictionary.threshold.grad, [0, 2.0, -3.0, 0])
    close(dictionary.b_enc.grad, [0, -0.4, 0, 0.1])  # df/dz = H(z - threshold) = (0,1,0,1)


def test_gradient_of_the_penalty_reaches_entries_just_below_the_threshold():
    dictionary = example_j()
    dictionary(ONE, ONE, step()).terms["l0"].backward()
    # dH/dthreshold = -(1 / .1) K = (0,-10,-10,0); (0,-10,0,0) if the step were taken of f instead of z
    close(dictionary.threshold.grad, [0, -0.3, -0.3, 0])
    assert dictionary.b_enc.grad is None or dictionary.b_enc.grad.abs().sum() == 0, "it moves thresholds only"


def test_gradient_of_the_loss():
    dictionary = example_j()
    total(dictionary(ONE, ONE, step())).backward()
    close(dictionary.threshold.grad, [0, 1.7, -3.3, 0])  # not times the threshold: it is no logarithm
    close(dictionary.b_enc.grad, [0, -0.4, 0, 0.1])


def test_no_gradient_beyond_the_window_and_at_its_edges():
    """Threshold 1/2, bandwidth 1/4: the window is (3/8, 5/8), both ends out; at the threshold a latent is off."""
    dictionary = build([0.375, 0.376, 0.5, 0.624, 0.625], [1.0] * 5, 0.5, bandwidth=0.25, sparsity_coef=1.0)
    out = dictionary(ONE, ONE, step(n_latents=5))
    close(out.latents.dense(), [[0, 0, 0, 0.624, 0.625]])
    out.terms["l0"].backward()
    close(dictionary.threshold.grad, [0, -4.0, -4.0, -4.0, 0])


def test_for_use_only_what_is_above_its_threshold_is_there():
    dictionary = example_j()
    trained = dictionary.encode(ONE)
    used = dictionary.eval().encode(ONE)
    assert used.indices.tolist() == [1, 3]
    assert torch.equal(used.dense(), trained.dense())


def test_a_negative_pre_activation_is_never_a_latent():
    """Thresholds of 0, and one that a step has pushed below 0."""
    dictionary = build([-0.2, -0.01, 0.3], [1.0] * 3, [0.0, -0.5, 0.0], bandwidth=0.1)
    for _ in range(2):
        latents = dictionary(ONE, ONE, step(n_latents=3)).latents
        close(latents.dense(), [[0, 0, 0.3]])
        assert latents.firing_counts().tolist() == [0, 0, 1]
        dictionary.eval()


def test_thresholds_do_not_fall_below_0():
    dictionary = example_j()
    checks.set_weights(dictionary, threshold=[-0.1, 0.0, 0.2, 0.5])
    dictionary.after_step(dictionary(ONE, ONE, step()))
    close(dictionary.threshold, [0, 0, 0.2, 0.5])


# --- Anthropic's example: pre (.3, .6, 2), threshold .5, bandwidth 2, decoder norms (1, .5, 2), K = (1,1,0) ---


def example_a(**choices) -> JumpReLUSAE:
    fields = {"bandwidth": 2.0, "penalty": "tanh", "sparsity_coef": 1.0, "preact_coef": 1.0} | choices
    return build([0.3, 0.6, 2.0], [1.0, 0.5, -2.0], 0.5, **fields)


def test_tanh_and_pre_activation_losses():
    out = example_a()(ONE, ONE, step(n_latents=3))
    close(out.latents.dense(), [[0, 0.6, 2]])
    assert list(out.terms) == ["mse", "tanh", "preact"]
    close(out.terms["tanh"], 1.833655)  # tanh(4 * .6 * .5 = 1.2) = .833655, tanh(16) = 1
    close(out.terms["preact"], 0.2)  # (.5 - .3) * 1; the others are above


@pytest.mark.parametrize(
    ("ste_to_input", "slopes"), [(False, [0, 1.0, 1.0]), (True, [0.25, 1.25, 1.0])], ids=["as printed", "to input"]
)
def test_gradient_of_each_latent(ste_to_input, slopes):
    dictionary = example_a(ste_to_input=ste_to_input)
    dictionary.encode(ONE).dense().sum().backward()
    close(dictionary.threshold.grad, [-0.25, -0.25, 0])  # -(.5 / 2) K
    close(dictionary.b_enc.grad, slopes)


def test_gradient_of_tanh():
    dictionary = example_a()
    dictionary(ONE, ONE, step(n_latents=3)).terms["tanh"].backward()
    # c norm (1 - tanh^2) = 4, 2 (1 - .833655^2) = .610039, 0: times df/dthreshold = (-.25,-.25,0) and df/dz = (0,1,1)
    close(dictionary.threshold.grad, [-1.0, -0.152510, 0])
    close(dictionary.b_enc.grad, [0, 0.610039, 0])
    # c f (1 - tanh^2) sign(W_dec) = (0, .732047, 0): the norm is not a constant
    close(dictionary.W_dec.grad, [[0], [0.732047], [0]])


def test_gradient_of_the_pre_activation_loss():
    dictionary = example_a()
    dictionary(ONE, ONE, step(n_latents=3)).terms["preact"].backward()
    close(dictionary.threshold.grad, [1.0, 0, 0])
    close(dictionary.b_enc.grad, [-1.0, 0, 0])  # up, towards the threshold
    close(dictionary.W_dec.grad, [[0.2], [0], [0]])


def test_only_the_sparsity_penalty_warms_up():
    dictionary = example_a(sparsity_warmup=1.0)
    terms = dictionary(ONE, ONE, step(n_latents=3, index=24, n_steps=100)).terms
    close(terms["tanh"], 1.833655 / 4)
    close(terms["preact"], 0.2)


# --- the quadratic penalty ---


def test_quadratic_penalty():
    """L0 of 3 with a target of 2: (2 / 2) (3 - 2)^2 = 1, whose slope for each H is 2 (2 / 2) (3 - 2) = 2."""
    fields = {"penalty": "quadratic", "target_l0": 2.0, "sparsity_coef": 1.0, "bandwidth": 0.25}
    dictionary = build([0.5625, 0.75, 1.0, 0.0], [1.0] * 4, 0.5, **fields)
    out = dictionary(ONE, ONE, step())
    close(out.terms["quadratic"], 1.0)
    out.terms["quadratic"].backward()
    close(dictionary.threshold.grad, [-8.0, 0, 0, 0])  # 2 * -(1 / .25), in the window


def test_quadratic_penalty_is_of_each_row():
    """Rows with L0 of 1 and 3 about a target of 2: 1, where the batch's mean L0 would give 0."""
    dictionary = JumpReLUSAE(
        JumpReLUConfig(n_latents=3, penalty="quadratic", target_l0=2.0, sparsity_coef=1.0, sparsity_warmup=0.0),
        Shape((2,)),
    )
    checks.set_weights(dictionary, W_enc=[[1.0, 1.0], [0.0, 1.0], [0.0, 1.0]], W_dec=[[1.0, 0.0]] * 3)
    rows = torch.eye(2)
    out = dictionary(rows, rows, step(n_latents=3))
    assert out.latents.dense().count_nonzero(dim=1).tolist() == [1, 3]
    close(out.terms["quadratic"], 1.0)


# --- against the dense formula ---


@pytest.mark.parametrize("ste_to_input", [False, True])
@pytest.mark.parametrize("penalty", ["l0", "tanh", "quadratic"])
@given(problem=problems())
@settings(max_examples=20)
def test_losses_and_gradients_are_the_dense_ones(monkeypatch, penalty, ste_to_input, problem):
    checks.either_way(monkeypatch, problem.seed)
    bandwidth = (0.25, 0.5, 2.0)[problem.seed % 3]
    cfg = JumpReLUConfig(
        penalty=penalty,
        bandwidth=bandwidth,
        ste_to_input=ste_to_input,
        preact_coef=0.1,
        tanh_scale=1.5,
        target_l0=2.0,
        sparsity_coef=0.3,
        sparsity_warmup=0.0,
        **(problem.choices),
    )
    dictionary, x, target, now = problem.build(JumpReLUSAE, cfg)
    p = checks.copies(dictionary)
    w = checks.linear(p, dictionary)
    out = dictionary(x, target, now)
    f = reference.latents(dense.pre_acts(x, w), p["threshold"], bandwidth)
    torch.testing.assert_close(out.latents.dense(), f, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(out.recon, dense.recon(x, f, w), rtol=1e-10, atol=1e-12)
    expected = reference.loss(x, target, w, p["threshold"], bandwidth, ste_to_input, 1.5, 2.0)
    terms = {"mse": expected["mse"], penalty: 0.3 * expected[penalty], "preact": 0.1 * expected["preact"]}
    checks.same_losses(dictionary, out, terms, p)


@given(problems(), st.sampled_from([0.25, 2.0, 8.0]))
def test_units_do_not_matter(problem, s):
    """Inputs, biases, thresholds and bandwidth times s: the same latents fire, s times as much; mse by s^2, l0 by 1,
    and thresholds' gradients by s and 1/s."""
    choices = {"sparsity_coef": 1.0, "sparsity_warmup": 0.0, **problem.choices}
    one, x, target, now = problem.build(JumpReLUSAE, JumpReLUConfig(bandwidth=0.5, **choices))
    other = JumpReLUSAE(JumpReLUConfig(bandwidth=0.5 * s, **choices), one.shape).double()
    other.load_state_dict(one.state_dict())
    checks.set_weights(other, **{name: s * one.get_parameter(name) for name in ("b_enc", "b_dec", "threshold")})
    first, second = one(x, target, now), other(s * x, s * target, now)
    torch.testing.assert_close(second.latents.dense(), s * first.latents.dense(), rtol=1e-12, atol=1e-12)
    assert torch.equal(second.latents.firing_counts(), first.latents.firing_counts())
    for name, power in (("mse", 2), ("l0", 0)):
        torch.testing.assert_close(second.terms[name], s**power * first.terms[name], rtol=1e-12, atol=1e-12)
        grads = [torch.autograd.grad(out.terms[name], d.threshold)[0] for out, d in ((first, one), (second, other))]
        torch.testing.assert_close(grads[1], s ** (power - 1) * grads[0], rtol=1e-10, atol=1e-12)


# --- before and in training ---


def test_recipes():
    scope, tanh = JumpReLUConfig(), JumpReLUTanhConfig()
    assert (scope.normalise, scope.threshold, scope.bandwidth, scope.sparsity_coef) == ("rms", 0.001, 0.001, 1e-3)
    assert (scope.recipe.lr, scope.recipe.betas) == (7e-5, (0.0, 0.999))
    assert (tanh.penalty, tanh.tanh_scale, tanh.bandwidth, tanh.threshold) == ("tanh", 4.0, 2.0, 0.1)
    assert (tanh.preact_coef, tanh.sparsity_warmup, tanh.normalise) == (3e-6, 1.0, "mean_norm")
    assert (tanh.pre_bias, tanh.decoder, tanh.recipe.lr) == (False, "free", 2e-4)
    assert (tanh.init_l0, tanh.init_norm, tanh.fits_encoder) == (0, 0.1, False)
    assert (tanh.ste_to_input, scope.ste_to_input) == (True, False)
    assert (scope.init_l0, scope.init_norm, scope.fits_encoder) == (0, 1.0, True)
    assert scope.recipe.decay == 0, "Gemma Scope's rate does not fall"


def test_thresholds_start_where_the_configuration_says():
    dictionary = JumpReLUSAE(JumpReLUConfig(n_latents=5, threshold=0.25), Shape((3,)))
    checks.fill(dictionary, torch.Generator().manual_seed(0))
    rows = torch.randn(20, 3, generator=torch.Generator().manual_seed(1))
    stats = (SiteStats(3, 1.0, 1.0),)
    dictionary.initialise(InputStats(stats, stats, rows, rows), torch.Generator().manual_seed(2))
    assert dictionary.threshold.tolist() == [0.25] * 5
    assert dictionary.threshold.dtype == torch.float32


def initialised_by_rate(**choices) -> tuple[JumpReLUSAE, torch.Tensor]:
    dictionary = JumpReLUSAE(JumpReLUTanhConfig(n_latents=50, **choices), Shape((8,)))
    rows = torch.randn(1000, 8, generator=torch.Generator().manual_seed(1)) + 3
    stats = (SiteStats(8, rows.norm(dim=1).mean().item(), rows.square().sum(1).mean().item()),)
    dictionary.initialise(InputStats(stats, stats, rows, rows), torch.Generator().manual_seed(2))
    return dictionary, rows


@pytest.mark.parametrize(("init_l0", "share"), [(5, 0.1), (10_000, 0.5)])
def test_the_first_weights_of_january(init_l0, share):
    """`W_dec ~ U(+-1/sqrt(d))`, `W_enc = (d / n) W_dec`, and biases by which latents fire on a share of the rows."""
    dictionary, rows = initialised_by_rate(init_l0=init_l0, init_decoder="random")
    W_dec = dictionary.W_dec
    assert 0.97 * 8**-0.5 < W_dec.abs().max() < 8**-0.5, "the largest of 400"
    torch.testing.assert_close(W_dec.var().item(), 1 / 24, rtol=0.1, atol=0)  # of U(-a, a) it is a^2 / 3
    torch.testing.assert_close(dictionary.W_enc, W_dec * 8 / 50)
    counts = dictionary.encode(rows).firing_counts()
    assert (counts - share * 1000).abs().max() <= 1, "the row at the threshold is on either side, by rounding"


def test_a_rate_of_less_than_a_row_is_a_row():
    x = torch.arange(10.0)[:, None]
    biases = firing_biases(x, torch.ones(3, 1), torch.full((3,), 0.5), rate=0.01)
    assert (x + biases > 0.5).sum(0).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("choices", "why"),
    [
        ({"decoder": "free", "fit_encoder": True}, "where fit_encoder = true, which sets it too"),
        ({"decoder": "free"}, "where init_decoder = data, which it would not be"),
        ({"init_decoder": "random"}, "where decoder = unit, or the first rows are not"),
    ],
)
def test_first_weights_that_contradict_each_other_are_refused(choices, why):
    with pytest.raises(ValueError, match=f"sae.init_l0 = 100: must be 0 {why}"):
        JumpReLUConfig(init_l0=100, **choices)


def test_without_a_first_l0_the_encoder_is_the_copy():
    dictionary, _ = initialised_by_rate()
    assert torch.equal(dictionary.W_enc, dictionary.W_dec)
    torch.testing.assert_close(dictionary.W_dec.norm(dim=1), torch.full((50,), 0.1))
    assert not dictionary.b_enc.any()


def test_a_reseeded_latent_has_the_first_threshold_again():
    """The one under which it died would keep it silent: pre .2 * 1 at its own row, threshold 5 before."""
    dictionary = JumpReLUSAE(JumpReLUConfig(n_latents=4, threshold=0.1, normalise="none"), Shape((2,)))
    checks.set_weights(dictionary, W_enc=checks.W, W_dec=checks.W, threshold=[0.3, 5.0, 0.3, 0.3])
    row = torch.tensor([[0.6, -0.8]])
    dictionary.reseed(torch.tensor([1]), row, row)
    close(dictionary.threshold, [0.3, 0.1, 0.3, 0.3])
    close(dictionary.eval().encode(row).dense()[0, 1], 0.2)
