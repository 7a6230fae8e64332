"""p-annealing: the penalty f^p, how p falls, that the penalty does not jump, and that a resumed run is the same."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae.architectures.configs import PAnnealConfig
from sae.architectures.p_anneal import LINEAR, PAnnealSAE, power
from sae.config import parse
from sae.dictionary import Shape
from sae.errors import ConfigError
from tests.reference import linear as dense
from tests.reference import p_anneal as reference
from tests.reference import relu
from tests.sae import checks
from tests.sae.checks import X, close, problems, step, total


def example(**choices) -> PAnnealSAE:
    """Example E: f = [[1.5,1,1.7,0],[.6,0,0,0]]."""
    fields = {"sparsity_coef": 1.0, "sparsity_warmup": 0.0} | choices
    return checks.example(PAnnealSAE, PAnnealConfig(n_latents=4, **fields))


def penalty(dictionary: PAnnealSAE, index: int = 0, n_steps: int = 50) -> float:
    """The term at a step on example E, which then ends without a change of weights."""
    out = dictionary(X, X, step(index=index, n_steps=n_steps))
    dictionary.after_step(out)
    return out.terms["lp"].item()


# --- the penalty ---


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (1.0, 2.4),  # rows 4.2 and .6
        # rows sqrt(1.5) + 1 + sqrt(1.7) = 3.528585 and sqrt(.6) = .774597; with a root of 1/p, 12.450915 and .6
        (0.5, 2.151591),
    ],
)
def test_sum_of_powers(p, expected):
    dictionary = example()
    dictionary.p.fill_(p)
    close(dictionary(X, X, step()).terms["lp"], expected)


def test_gradient():
    dictionary = example()
    dictionary.p.fill_(0.5)
    dictionary(X, X, step()).terms["lp"].backward()
    # 1/2 f^(-1/2), halved for the mean over rows: .204124, .25, .191741 and, row 1, .322749
    close(dictionary.b_enc.grad, [0.526873, 0.25, 0.191741, 0])


@given(problems(), st.sampled_from([1.0, 0.6, 0.2]))
def test_losses_and_gradients_are_the_dense_ones(monkeypatch, problem, p):
    checks.either_way(monkeypatch, problem.seed)
    cfg = PAnnealConfig(sparsity_coef=0.3, sparsity_warmup=0.0, **problem.choices | {"decoder": "unit"})
    dictionary, x, target, now = problem.build(PAnnealSAE, cfg)
    dictionary.p.fill_(p)
    dictionary.ratio.fill_(1.5)
    found = checks.copies(dictionary)
    w = checks.linear(found, dictionary)
    out = dictionary(x, target, now)
    torch.testing.assert_close(out.recon, dense.recon(x, relu.latents(x, w), w), rtol=1e-10, atol=1e-12)
    expected = reference.loss(x, target, w, p)
    checks.same_losses(dictionary, out, {"mse": expected["mse"], "lp": 0.45 * expected["lp"]}, found)


def test_a_free_decoder_is_refused():
    """The penalty does not see the decoder's norms: a latent could halve itself and double its row for nothing."""
    with pytest.raises(ConfigError) as caught:
        parse(PAnnealConfig, {"decoder": "free"}, "sae")
    assert str(caught.value) == "sae.decoder = 'free': must be 'unit'"


@pytest.mark.parametrize("p", [0.9, 0.2, 0.01])
def test_slope_is_bounded_however_small_a_latent_is(p):
    """f^p has slope 2e35 at the smallest float32 for p = .2, and none that is finite for p = .01."""
    smallest = torch.finfo(torch.float32).smallest_normal * torch.finfo(torch.float32).eps
    values = torch.tensor([smallest, 1e-30, 1e-8, 0.99 * LINEAR, 1.01 * LINEAR, 1.0], requires_grad=True)
    powers = power(values, p)
    powers.sum().backward()
    close(powers[-2:], [(1.01 * LINEAR) ** p, 1.0])
    close(values.grad[:4], [LINEAR ** (p - 1)] * 4)  # the line to 0
    close(values.grad[4:], [p * (1.01 * LINEAR) ** (p - 1), p])
    assert (powers.diff() > 0).all(), "more is never cheaper"
    assert powers[4] / powers[3] < 1.03, "no jump where the line ends"


def test_a_latent_that_has_only_just_fired_does_not_rule_the_gradient():
    """pre = (1e-12, 1): f^.2 alone would give the first 5e8 times the other's gradient."""
    dictionary = PAnnealSAE(PAnnealConfig(n_latents=2, sparsity_coef=1.0, sparsity_warmup=0.0), Shape((1,)))
    checks.set_weights(dictionary, b_enc=[1e-12, 1.0])
    dictionary.p.fill_(0.2)
    dictionary(torch.zeros(1, 1), torch.zeros(1, 1), step(n_latents=2)).terms["lp"].backward()
    close(dictionary.b_enc.grad, [1e-4**-0.8, 0.2])  # 1585 and .2


# --- how p falls ---

FALLS = [14, 18, 21, 25, 29, 32, 36, 40, 43, 47]
"""Of 50 steps those after `10 + 40 j / 11`: 10 falls cut the last 80 % into 11 parts of equal length."""


def test_p_falls_to_its_end_in_equal_steps():
    dictionary, course = example(p_end=0.2, anneal_start=0.2, anneal_steps=10), []
    for index in range(50):
        penalty(dictionary, index)
        course.append(dictionary.p.item())
    assert course[:14] == [1.0] * 14
    assert [i for i in range(1, 50) if course[i] != course[i - 1]] == FALLS
    assert [course[i] for i in FALLS] == pytest.approx([0.92, 0.84, 0.76, 0.68, 0.6, 0.52, 0.44, 0.36, 0.28, 0.2])
    assert course[-1] == course[47]


def test_penalty_keeps_its_size_when_p_changes():
    """On rows that stay the same, p from 1 to .5 multiplies the coefficient by 4.8 / 4.303182 = 1.115454."""
    dictionary = example(p_end=0.5, anneal_start=0.5, anneal_steps=1)
    terms = [penalty(dictionary, index) for index in range(50)]
    assert dictionary.p == 0.5
    close(dictionary.ratio, 1.115454)
    assert terms == pytest.approx([2.4] * 50)


def test_many_changes_keep_the_size_too():
    dictionary = example(p_end=0.2, anneal_start=0.2, anneal_steps=10, sparsity_coef=3.0)
    assert [penalty(dictionary, index) for index in range(50)] == pytest.approx([7.2] * 50)
    # over all of them: sum f / sum f^.2 = 4.8 / (1.084472 + 1 + 1.111962 + .902880)
    close(dictionary.ratio, 1.170928)


def test_size_is_kept_on_the_mean_of_the_last_ten_batches():
    """Two old batches of scale 100, then ten of X: only the ten count. Then a change amid batches of two kinds."""
    dictionary = example(p_end=0.5, anneal_start=0.5, anneal_steps=1)
    for index, scale in enumerate([100.0] * 2 + [1.0] * 10):
        rows = (X - dictionary.b_dec) * scale + dictionary.b_dec
        dictionary.after_step(dictionary(rows.detach(), rows.detach(), step(index=index, n_steps=1000)))
    penalty(dictionary, 999, 1000)
    close(dictionary.ratio, 1.115454)

    mixed = example(p_end=0.5, anneal_start=0.5, anneal_steps=1)
    for index, scale in enumerate([4.0, 1.0]):
        rows = (X - mixed.b_dec) * scale + mixed.b_dec
        mixed.after_step(mixed(rows.detach(), rows.detach(), step(index=index, n_steps=1000)))
    penalty(mixed, 999, 1000)
    close(mixed.ratio, (4 * 4.8 + 4.8) / (2 * 4.303182 + 4.303182))  # 1.859091


def test_a_run_without_a_latent_goes_on():
    dictionary = example(p_end=0.2)
    checks.set_weights(dictionary, b_enc=[-9.0] * 4)
    assert [penalty(dictionary, index) for index in range(50)] == [0.0] * 50
    close(dictionary.p, 0.2)
    assert dictionary.ratio == 1


def test_an_end_of_1_is_never_reached_because_it_is_never_left():
    dictionary = example(p_end=1.0)
    assert [penalty(dictionary, index) for index in range(50)] == pytest.approx([2.4] * 50)
    assert (dictionary.p.item(), dictionary.ratio.item()) == (1.0, 1.0)


def test_an_end_above_1_is_refused():
    with pytest.raises(ValueError, match=r"sae\.p_end = 1\.5: must be at most 1, where p begins"):
        PAnnealConfig(p_end=1.5)


def test_parts_of_a_batch_take_one_step_of_p():
    """With accumulated gradients a step has several passes."""
    dictionary = example(p_end=0.2, anneal_steps=10)
    penalty(dictionary, 13)
    for _ in range(3):
        dictionary(X, X, step(index=14, n_steps=50))
    assert dictionary.p.item() == pytest.approx(0.92)


def test_a_pass_that_is_not_training_leaves_p_alone():
    """Resampling measures rows by one, between steps."""
    dictionary = example(p_end=0.2, anneal_steps=10)
    penalty(dictionary, 13)
    state = {name: value.clone() for name, value in dictionary.state_dict().items()}
    dictionary.eval()(X, X, step(index=14, n_steps=50))
    assert all(torch.equal(value, state[name]) for name, value in dictionary.state_dict().items())


# --- resuming ---


def trained(dictionary: PAnnealSAE, optimizer: torch.optim.Optimizer, first: int, last: int) -> list[float]:
    """Penalties of steps on rows that depend on the step alone."""
    terms = []
    for index in range(first, last):
        rows = torch.randn(16, 3, generator=torch.Generator().manual_seed(index))
        out = dictionary(rows, rows, step(n_latents=6, index=index, n_steps=50))
        total(out).backward()
        dictionary.before_step()
        optimizer.step()
        optimizer.zero_grad()
        dictionary.after_step(out)
        terms.append(out.terms["lp"].item())
    return terms


@pytest.mark.parametrize("stop", [14, 33])
def test_a_resumed_run_is_the_same_bit_for_bit(stop):
    def new() -> tuple[PAnnealSAE, torch.optim.Optimizer]:
        dictionary = PAnnealSAE(PAnnealConfig(n_latents=6, sparsity_coef=0.1), Shape((3,)))
        checks.fill(dictionary, torch.Generator().manual_seed(0))
        return dictionary, torch.optim.Adam(dictionary.parameters(), lr=0.01)

    whole, optimizer = new()
    expected = trained(whole, optimizer, 0, 50)
    killed, optimizer = new()
    trained(killed, optimizer, 0, stop)
    state, moments = killed.state_dict(), optimizer.state_dict()
    resumed, optimizer = new()
    resumed.load_state_dict(state)
    optimizer.load_state_dict(moments)
    assert trained(resumed, optimizer, stop, 50) == expected[stop:]
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items())
    assert whole.ratio != 1
