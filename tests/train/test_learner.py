"""One dictionary in training: parts of a batch, lower precision, the average of the weights, warm-ups, clipping."""

from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sae import architectures, hub, kernels
from sae.architectures.configs import (
    BatchTopKConfig,
    CrosscoderBatchTopKConfig,
    CrosscoderConfig,
    CrossLayerTranscoderConfig,
    GatedConfig,
    JumpReLUConfig,
    JumpReLUTanhConfig,
    MatchingPursuitConfig,
    MatryoshkaConfig,
    PAnnealConfig,
    ReLUAprilConfig,
    ReLUConfig,
    SwitchConfig,
    TopKConfig,
    configs,
)
from sae.errors import DataError
from sae.store import Places
from tests.train.planted import N_FEATURES, X_AND_Y, X_TO_Y, D, K, X, choices, contents, member, train
from train.learner import Learner, dead_window, room_for
from train.loader import Loader
from train.optim import Optimizer

ACROSS = Places(("x", "y"), ("y", "x"))


def learner_of(store, out, cfg, sae=None, places=X, n_steps: int = 40) -> tuple[Learner, Loader]:
    """A learner before its first step, and the rows that it would get."""
    pairs = store.pairs(places, "train")
    loader = Loader(pairs.split, cfg.batch, cfg.window_rows, 0)
    learner = Learner(member(out, cfg, sae, places), store, n_steps, Accelerator(cpu=True))
    learner.start(pairs, Loader(pairs.split, 1024, cfg.window_rows, 0).batch(0), 0)
    return learner, loader


def weights(learner: Learner) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in learner.dictionary.named_parameters()}


def gradients(store, out, cfg, sae, places=X) -> dict[str, Tensor]:
    """What one step takes off the weights: with SGD at rate 1, the gradient that has reached the optimiser."""
    learner, loader = learner_of(store, out, cfg, sae, places)
    learner.optimizer = Optimizer(
        torch.optim.SGD([{"params": list(learner.dictionary.parameters()), "unit": 1.0}], lr=1.0)
    )
    before = weights(learner)
    learner.step(loader.batch(0))
    return {name: before[name] - value for name, value in weights(learner).items()}


RECORDED = {"n_latents": 64, "k": K, "init_decoder": "random", "auxk": 8}

# --- in parts ---

FREE = {"n_latents": 64, "decoder": "free"}  # rows that are not brought back to norm 1 after the step


@pytest.mark.parametrize(
    ("sae", "places"),
    [
        (TopKConfig(**FREE, k=K), X),
        (TopKConfig(**FREE, k=K, multi_coef=0.125), X),
        (ReLUConfig(**FREE), X),
        (JumpReLUConfig(**FREE, bandwidth=0.1), X),
        (JumpReLUTanhConfig(**FREE), X),
        (GatedConfig(**FREE), X),
        (TopKConfig(**FREE, k=K, skip=True), X_TO_Y),
        (CrosscoderConfig(n_latents=64), X_AND_Y),
        (CrossLayerTranscoderConfig(n_latents=64), ACROSS),
    ],
    ids=lambda value: type(value).__name__,
)
def test_parts_give_the_gradient_of_the_whole_batch(store, tmp_path, sae, places):
    """256 rows in 3 parts of 86, 86 and 84. The clipped gradient has a norm of at most 1, float32 an error of 6e-8."""
    whole = gradients(store, tmp_path / "a", choices(lr=1.0), sae, places)
    parts = gradients(store, tmp_path / "b", choices(lr=1.0, accumulate=3), sae, places)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=0, atol=1e-6, msg=lambda text, name=name: name + text)
    assert max(gradient.abs().max() for gradient in whole.values()) > 1e-3


def test_terms_are_means_over_all_parts(store, tmp_path):
    terms = []
    for parts in (1, 3):
        learner, loader = learner_of(store, tmp_path / str(parts), choices(accumulate=parts), ReLUConfig(n_latents=64))
        learner.step(loader.batch(0))
        terms.append({name: term.item() for name, term in learner.terms.items()})
    assert terms[1] == pytest.approx(terms[0], rel=1e-5)
    assert set(terms[0]) == {"mse", "l1"}


def test_latents_that_fire_in_any_part_are_alive(store, tmp_path):
    silent = []
    for parts in (1, 8):
        sae = TopKConfig(n_latents=64, k=K, init_decoder="random")  # some of which never fire
        learner, loader = learner_of(store, tmp_path / str(parts), choices(batch=64, accumulate=parts), sae)
        learner.step(loader.batch(0))
        silent.append(learner.progress.silent_tokens)
    assert torch.equal(*silent)
    assert set(silent[0].tolist()) == {0, 64}


# --- in bfloat16 ---

HALF = {"precision": "bfloat16"}


@pytest.mark.parametrize(
    ("sae", "places", "choice"),
    [
        (TopKConfig(n_latents=128, k=K), X, {}),  # 2 % of the latents: sums over entries
        (TopKConfig(n_latents=32, k=K), X, {}),  # 9 %: dense products
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (BatchTopKConfig(n_latents=128, k=K), X, {}),
                (ReLUConfig(n_latents=64, sparsity_coef=0.5), X, {}),
                (JumpReLUConfig(n_latents=64, sparsity_coef=0.01, bandwidth=0.05), X, {}),
                (TopKConfig(n_latents=64, k=K, skip=True), X_TO_Y, {}),
                (TopKConfig(n_latents=128, k=K), X, {"optimizer": "muon", "ema": 0.9, "accumulate": 2}),
            )
        ),
    ],
    ids=["sparse", "dense", "batchtopk", "relu", "jumprelu", "skip", "muon"],
)
def test_bfloat16_reconstructs_as_well(store, tmp_path, sae, places, choice):
    whole = train(store, tmp_path / "a", choices(**choice), sae, places)["fvu"]
    half = train(store, tmp_path / "b", choices(**choice, **HALF), sae, places)["fvu"]
    assert half == pytest.approx(whole, rel=0.02)
    assert half != whole


SMALL = {"n_latents": 64}
EVERY = [
    (TopKConfig(**SMALL, k=K, multi_coef=0.125, ghost_coef=1.0), X),
    (BatchTopKConfig(**SMALL, k=K), X),
    (MatryoshkaConfig(**SMALL, k=K), X),
    (ReLUConfig(**SMALL), X),
    (ReLUAprilConfig(**SMALL), X),
    (ReLUAprilConfig(**SMALL, normalise="whiten"), X),
    (PAnnealConfig(**SMALL), X),
    (JumpReLUConfig(**SMALL), X),
    (JumpReLUTanhConfig(**SMALL), X),
    (GatedConfig(**SMALL), X),
    (SwitchConfig(**SMALL, k=K, n_experts=4), X),
    (MatchingPursuitConfig(**SMALL, k=K), X),
    (TopKConfig(**SMALL, k=K, skip=True), X_TO_Y),
    (CrosscoderConfig(**SMALL), X_AND_Y),
    (CrosscoderBatchTopKConfig(**SMALL, k=K), X_AND_Y),
    (CrossLayerTranscoderConfig(**SMALL), ACROSS),
]


def test_every_built_in_architecture_is_in_the_list():
    built_in = {name for name in configs.names() if configs.get(name).__module__ == TopKConfig.__module__}
    assert {architectures.name_of(sae) for sae, _ in EVERY} == built_in


@pytest.mark.parametrize(("sae", "places"), EVERY, ids=lambda value: type(value).__name__)
def test_weights_state_and_losses_stay_in_float32(store, tmp_path, sae, places):
    """Every architecture takes two steps, the second with all but a few latents dead."""
    cfg = choices(ema=0.9, dead_tokens=1, **HALF)
    learner, loader = learner_of(store, tmp_path / "a", cfg, sae, places)
    kinds = {}
    learner.dictionary.register_forward_hook(
        lambda _module, _args, out: kinds.update({name: term.dtype for name, term in out.terms.items()})
    )
    for step in range(2):
        learner.step(loader.batch(step))
    assert set(kinds.values()) == {torch.float32}, kinds
    average = learner.average
    assert average is not None
    held = {**learner.dictionary.state_dict(), **{f"average {k}": v for k, v in average.module.state_dict().items()}}
    for i, slots in enumerate(learner.optimizer.parts[0].state.values()):
        held |= {f"{i} {slot}": value for slot, value in slots.items()}
    low = {name: value.dtype for name, value in held.items() if value.dtype not in (torch.float32, torch.float64)}
    assert low == {}
    assert all(torch.isfinite(value).all() for value in held.values())


# --- averages ---


def test_the_average_by_hand(store, tmp_path):
    """After three steps, decay 0.5: w1/4 + w2/4 + w3/2, begun with the first weights that were learnt. What is used
    has its decoder rows brought back to norm 1."""
    sae = TopKConfig(n_latents=N_FEATURES, k=K, decoder="unit")
    learner, loader = learner_of(store, tmp_path / "a", choices(ema=0.5), sae)
    learnt = []
    for step in range(3):
        learner.step(loader.batch(step))
        learnt.append(weights(learner))
    with learner.used() as used:
        found = {name: value.detach().clone() for name, value in used.named_parameters()}
    for name, value in found.items():
        expected = learnt[0][name] / 4 + learnt[1][name] / 4 + learnt[2][name] / 2
        if name == "W_dec":
            assert expected.norm(dim=1).min() < 0.99995
            expected = torch.nn.functional.normalize(expected, dim=1)
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["adam", "schedule_free", "signum"])
def test_what_is_measured_is_what_is_saved(store, tmp_path, optimizer):
    choice = {"ema": 0.9} if optimizer == "adam" else {"optimizer": optimizer}
    learner, loader = learner_of(store, tmp_path / "a", choices(**choice))
    for step in range(5):
        learner.step(loader.batch(step))
    before = weights(learner)
    point = learner.measure()
    learner.finish()
    assert all(torch.equal(value, before[name]) for name, value in weights(learner).items())
    saved = hub.load(tmp_path / "a")
    assert not torch.equal(saved.directions, learner.dictionary.directions)
    torch.testing.assert_close(saved.directions.norm(dim=1), torch.ones(N_FEATURES), rtol=0, atol=1e-6)
    x = store.split(["x"], "select").read(0, 2000)
    error = (saved.reconstruct(x)[1].detach().double() - x).square().sum()
    assert point["fvu"] == pytest.approx((error / (x.double() - x.double().mean(0)).square().sum()).item(), rel=1e-5)


@pytest.mark.parametrize("optimizer", ["adam", "adam8bit", "muon", "schedule_free", "signum"])
def test_every_optimiser_learns(store, tmp_path, optimizer):
    cfg = choices(optimizer=optimizer, lr=1e-2)
    assert train(store, tmp_path / "a", cfg, TopKConfig(n_latents=192, k=K))["fvu"] < 0.5


# --- schedules, limits ---


def test_a_penalty_warms_up_over_its_share(store, tmp_path):
    """40 steps, all of them warm-up: the first step's penalty is a fortieth of the full one; `relu` says it."""
    terms = []
    for share in (1.0, 0.0):
        sae = ReLUConfig(n_latents=64, sparsity_warmup=share)
        learner, loader = learner_of(store, tmp_path / str(share), choices(), sae)
        learner.step(loader.batch(0))
        terms.append(learner.terms)
    assert (terms[0]["l1"] / terms[1]["l1"]).item() == pytest.approx(1 / 40, rel=1e-6)
    assert torch.equal(terms[0]["mse"], terms[1]["mse"])


@pytest.mark.parametrize(
    ("sae", "coef"),
    [
        (TopKConfig(n_latents=64, k=K), None),
        (ReLUConfig(n_latents=64, sparsity_coef=0.5), 0.5),
        (GatedConfig(n_latents=64, sparsity_coef=0.5), 0.5),
        (SwitchConfig(n_latents=64, k=K, n_experts=2), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_learnt_does_not_depend_on_the_units(store, tmp_path, sae, coef):
    """Rows of norm 1 instead of sqrt(d), and what a config says in that unit: the same reconstructions in the
    network's units. Clipping, and Adam's epsilon, know of no unit."""
    found = []
    ratio = store.stats("x").mean_norm / D**0.5 / store.stats("x").mean_square ** 0.5
    for normalise, unit in (("mean_norm", 1.0), ("rms", ratio)):
        own = replace(sae, normalise=normalise, **({"sparsity_coef": unit * coef} if coef else {}))
        cfg = choices(tokens=256 * 20, clip=None, eps=1e-20)
        learner, loader = learner_of(store, tmp_path / normalise, cfg, own)
        for step in range(20):
            learner.step(loader.batch(step))
        x, _ = learner.pairs.pick(loader.batch(20))
        found.append(learner.dictionary.reconstruct(x)[1].detach())
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=2e-3 * found[0].abs().max().item())


@pytest.mark.parametrize("normalise", ["mean_norm", "whiten"])
def test_a_free_decoder_is_saved_with_unit_rows(store, tmp_path, normalise):
    sae = ReLUAprilConfig(n_latents=64, normalise=normalise)
    learner, loader = learner_of(store, tmp_path / "a", choices(tokens=256 * 3), sae)
    for step in range(3):
        learner.step(loader.batch(step))
    learner.measure()
    learner.finish()
    x, _ = learner.pairs.pick(loader.batch(3))
    saved = hub.load(tmp_path / "a")
    torch.testing.assert_close(saved.directions.norm(dim=1), torch.ones(64))
    expected = learner.dictionary.eval().reconstruct(x)[1]
    torch.testing.assert_close(saved.reconstruct(x)[1], expected, rtol=0, atol=1e-4)


def test_the_rate_of_each_step(store, tmp_path):
    """10 steps, 2 of warm-up, 5 of decay, a peak of 0.1."""
    cfg, rates = choices(warmup=0.2, decay=0.5, lr=0.1), []
    learner, loader = learner_of(store, tmp_path / "a", cfg, n_steps=10)
    for step in range(10):
        learner.step(loader.batch(step))
        rates.append(learner.optimizer.parts[0].param_groups[0]["lr"])
    assert rates == pytest.approx([0.05, 0.1, 0.1, 0.1, 0.1, 0.1, 0.08, 0.06, 0.04, 0.02])


def test_a_gradient_that_is_small_enough_is_left_as_it_is(store, tmp_path):
    clipped, free = (
        gradients(store, tmp_path / str(clip), choices(lr=1.0, clip=clip), ReLUAprilConfig(n_latents=64))
        for clip in (1e6, None)
    )
    for name, gradient in free.items():
        assert torch.equal(clipped[name], gradient), name


@pytest.mark.parametrize(("clip", "norm"), [(1e-2, 1e-2), (None, None)])
def test_the_gradient_is_clipped_to_a_norm(store, tmp_path, clip, norm):
    found = gradients(store, tmp_path / "a", choices(lr=1.0, clip=clip), ReLUAprilConfig(n_latents=64))
    total = torch.cat([gradient.flatten() for gradient in found.values()]).norm().item()
    assert total == pytest.approx(norm, rel=1e-3) if norm else total > 1


def test_a_loss_that_is_not_finite_is_told(store, tmp_path):
    learner, loader = learner_of(store, tmp_path / "a", choices(lr=1e30, clip=None), ReLUAprilConfig(n_latents=64))
    for step in range(2):
        learner.step(loader.batch(step))
    with pytest.raises(DataError) as caught:
        learner.measure()
    assert str(caught.value) == "the loss is not finite at step 2: lower train.lr, or set train.clip"


def test_a_site_of_zeros_is_refused(make_store, tmp_path):
    rows = {"x": torch.randn(300, 4), "y": torch.zeros(300, 4)}
    with pytest.raises(DataError) as caught:
        train(make_store(rows, rows), tmp_path / "a", choices(), CrosscoderConfig(n_latents=8), X_AND_Y)
    assert str(caught.value) == "the activations of y are all zero: choose another site"


def test_rows_that_do_not_vary_are_refused(make_store, tmp_path):
    same = {"x": torch.ones(300, 4)}
    with pytest.raises(DataError) as caught:
        train(make_store(same, same), tmp_path / "a", choices())
    assert str(caught.value) == "the activations do not vary: every row is the same; choose another site"


@pytest.mark.parametrize(
    ("choice", "window"),
    [({"dead_tokens": 7}, 7), ({"tokens": 500}, 50), ({"tokens": 10**9}, 10**7), ({"tokens": 5}, 1)],
)
def test_the_dead_window(choice, window):
    assert dead_window(choices(**{"dead_tokens": None} | choice)) == window


# --- killed and resumed ---


@pytest.mark.parametrize(
    "optimizer",
    ["adam", *(pytest.param(name, marks=pytest.mark.slow) for name in ("adam8bit", "muon", "schedule_free", "signum"))],
)
def test_all_of_it_goes_on_to_the_same_bytes(store, tmp_path, optimizer):
    """Stopped after 5, 6 and 13 of 20 steps, with everything on: an average, parts, resampling every third step."""
    choice = {"ema": 0.0 if optimizer in ("schedule_free", "signum") else 0.9, "accumulate": 2, "resample_tokens": 768}
    cfg = choices(tokens=256 * 20, optimizer=optimizer, dead_tokens=512, evaluate_every=4, **choice, **HALF)
    sae = BatchTopKConfig(n_latents=192, k=2, init_decoder="random")  # some of which never fire
    train(store, tmp_path / "whole", cfg, sae)
    learner, loader = learner_of(store, tmp_path / "parts", cfg, sae, n_steps=20)
    n_resampled = 0
    for step in range(20):
        if step in (5, 6, 13):
            learner.save()
            learner, loader = learner_of(store, tmp_path / "parts", cfg, sae, n_steps=20)
        dead = learner.dead.sum()
        learner.step(loader.batch(step))
        n_resampled += int(dead - learner.dead.sum() > 20)
        if step % 4 == 3:
            learner.measure()
    learner.finish()
    assert n_resampled > 0
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_room_for_dead_latents_is_a_power_of_two():
    assert [room_for(n, 1000) for n in (0, 1, 64, 65, 512, 513, 1000)] == [0, 64, 64, 128, 512, 1000, 1000]
    assert room_for(3, 40) == 40


def test_none_is_dead_before_the_window_has_passed(store, tmp_path):
    learner, _ = learner_of(store, tmp_path, choices(batch=64, dead_tokens=128), TopKConfig(n_latents=64, k=K))
    rooms = []
    for learner.progress.step in range(4):
        rooms.append(learner._room())
    assert rooms == [0, 0, None, None]


class Ops(TorchDispatchMode):
    """The names of torch's operations, as they are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is not torch.ops.aten.repeat_interleave.Tensor or "output_size" not in (kwargs or {}):
            self.names.add(func.__name__.split(".")[0])
        indices = args[1] if func.__name__.startswith("index") and isinstance(args[1], list) else []
        if any(index is not None and index.dtype == torch.bool for index in indices):
            self.names.add("nonzero")  # as many as are true
        return func(*args, **(kwargs or {}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sae", "places", "errors"),
    [
        (TopKConfig(**RECORDED, multi_coef=0.1), X, {"mse", "multi"}),
        (BatchTopKConfig(**RECORDED), X, {"mse"}),
        (MatryoshkaConfig(**RECORDED, groups=(0.25, 0.75)), X, {"mse", "mse_16"}),
        (CrosscoderBatchTopKConfig(**RECORDED), X_AND_Y, {"mse"}),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, set) else "",
)
def test_a_step_that_is_recorded_neither_asks_for_a_value_nor_brings_one(
    store, tmp_path, monkeypatch, sae, places, errors
):
    """On a GPU each would end the recording: sizes that depend on values, values read, tensors made from lists."""
    forbidden = {"_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "bincount", "repeat_interleave"}
    learner, loader = learner_of(store, tmp_path, choices(precision="bfloat16"), sae, places)
    triton = pytest.importorskip("sae.kernels.triton")
    learner.step(loader.batch(0))  # the first makes what the optimiser keeps
    monkeypatch.setattr(kernels, "_kernels", lambda _: triton.Triton())
    learner.progress.silent_tokens += dead_window(learner.cfg)
    with Ops() as ops:
        terms = learner._update(loader.batch(1)[:4], 64)
    assert errors | {"auxk"} == set(terms)
    assert learner.dictionary.steps_are_alike
    assert sorted(ops.names & forbidden) == []
    assert "_fused_adam_" in ops.names
    with Ops() as ops:  # the names are torch's own
        torch.tensor([1, 0]).nonzero()[0].item()
    assert len(ops.names & forbidden) == 3
