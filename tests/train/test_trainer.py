"""Training: it finds what was planted, one or several at a time, and survives being killed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from sae import hub
from sae.architectures.configs import (
    CrosscoderBatchTopKConfig,
    CrossLayerTranscoderConfig,
    MatchingPursuitConfig,
    TopKConfig,
)
from sae.config import parse
from sae.errors import ConfigError
from sae.stage import SCRATCH, Box
from sae.store import ActivationStore, Places, StoredSplit
from tests import warm
from tests.train.planted import (
    N_FEATURES,
    X_AND_Y,
    X_TO_Y,
    D,
    K,
    X,
    choices,
    contents,
    member,
    planted,
    train,
    train_alone,
)
from train.config import TrainConfig
from train.trainer import fit


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked_shapes")
def test_planted_features_are_found(store, tmp_path):
    facts = train(store, tmp_path / "a", choices(tokens=256 * 800, lr=1e-2, evaluate_every=0))
    _, directions = planted(1, 0)
    learnt = torch.nn.functional.normalize(hub.load(tmp_path / "a").directions.detach())
    best = (directions @ learnt.T).max(dim=1).values
    assert best.mean() > 0.95, f"mean over true features of the best cosine: {best.mean():.3f}"
    assert facts["fvu"] < 0.1


def test_loss_falls_and_the_curve_says_so(store, tmp_path):
    facts = train(store, tmp_path / "a", choices())
    curve = json.loads((tmp_path / "a" / "curve.json").read_text())
    assert [point["step"] for point in curve] == [20, 40]
    assert [point["tokens"] for point in curve] == [5120, 10240]
    assert curve[1]["fvu"] < curve[0]["fvu"] < 1
    assert curve[1]["loss/mse"] < curve[0]["loss/mse"]
    assert all(point["l0"] <= K for point in curve)
    last = curve[-1]
    assert facts == {"steps": 40, "lr": 3e-3, "n_dead": last["n_dead"], "fvu": last["fvu"]}
    assert sorted(contents(tmp_path / "a")) == ["curve.json", "dictionary.json", "dictionary.safetensors"]


def test_of_no_tokens_nothing_is_learnt(store, tmp_path):
    """The first weights are the dictionary: here of neurons, of which three are kept."""
    sae = TopKConfig(n_latents=D, k=3, init_decoder="identity", init_bias="zero")
    facts = train(store, tmp_path / "d", choices(tokens=0), sae)
    assert facts["steps"] == 0
    dictionary = hub.load(tmp_path / "d")
    torch.testing.assert_close(dictionary.W_enc, torch.eye(D))
    x = store.split(["x"], "select").read(0, 50)
    largest = x.topk(3, dim=1)
    expected = torch.zeros_like(x).scatter(1, largest.indices, largest.values.clamp_min(0))
    torch.testing.assert_close(dictionary.reconstruct(x)[1], expected)
    [point] = json.loads((tmp_path / "d" / "curve.json").read_text())
    assert (point["step"], point["tokens"], point["fvu"]) == (0, 0, facts["fvu"])
    assert point["l0"] <= 3


def test_what_was_chosen_travels_with_the_dictionary(store, tmp_path):
    sae, cfg = TopKConfig(n_latents=N_FEATURES, k=K, init_norm=0.3), choices(tokens=1024)
    train(store, tmp_path / "a", cfg, sae)
    facts = hub.facts(tmp_path / "a")
    trained = facts.pop("trained")
    assert facts == {"model": "none", "inputs": ["x"], "outputs": None}
    assert parse(TopKConfig, trained["sae"], "sae") == sae
    paper = {"warmup": 0.0, "decay": 0.2, "betas": (0.9, 0.999), "eps": 6.25e-10}
    assert parse(TrainConfig, trained["train"], "train") == replace(cfg, **paper)
    saved = hub.load(tmp_path / "a").cfg
    assert (trained["sae"]["decoder"], saved.decoder, saved.init_norm) == ("folded", "unit", 0.1)


def test_rows_of_the_saved_decoder_are_unit(store, tmp_path):
    train(store, tmp_path / "a", choices(tokens=256 * 3))
    norms = hub.load(tmp_path / "a").directions.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(N_FEATURES), rtol=0, atol=1e-6)


def test_a_latent_is_dead_after_the_window_and_alive_again_when_it_fires(store, tmp_path):
    """The window is 4 steps: nothing is dead at step 3; a useless latent is at step 4."""
    cfg = choices(tokens=256 * 6, dead_tokens=1024, evaluate_every=1)
    train(store, tmp_path / "a", cfg, TopKConfig(n_latents=512, k=1, auxk=0))
    curve = json.loads((tmp_path / "a" / "curve.json").read_text())
    n_dead = [point["n_dead"] for point in curve]
    assert n_dead[:3] == [0, 0, 0]
    assert 0 < n_dead[3] < 512


def test_seeds_and_nothing_else_make_runs_differ(store, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(store, tmp_path / name, choices(tokens=256 * 5), seed=seed)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a") != contents(tmp_path / "c")


def test_the_tracker_gets_the_curve(store, tmp_path):
    train(store, tmp_path / "a", choices(tokens=256 * 2, tracker="tensorboard"))
    assert list((tmp_path / "logs").rglob("events.out.tfevents.*"))
    assert sorted(contents(tmp_path / "a")) == ["curve.json", "dictionary.json", "dictionary.safetensors"]


# --- other shapes, the same loop ---


@pytest.mark.parametrize(
    ("places", "sae", "widths"),
    [
        (X_TO_Y, TopKConfig(n_latents=64, k=K), (24, 20)),
        (X_TO_Y, TopKConfig(n_latents=64, k=K, skip=True), (24, 20)),
        (X_AND_Y, CrosscoderBatchTopKConfig(n_latents=64, k=K), (44, 44)),
        (Places(("x", "y"), ("y", "x")), CrossLayerTranscoderConfig(n_latents=64, sparsity_coef=0.1), (44, 44)),
        (X, MatchingPursuitConfig(n_latents=64, k=K), (24, 24)),
    ],
    ids=["transcoder", "skip", "crosscoder", "cross-layer", "matching pursuit"],
)
def test_every_shape_trains_through_the_same_loop(store, tmp_path, places, sae, widths):
    facts = train(store, tmp_path / "a", choices(), sae, places)
    curve = json.loads((tmp_path / "a" / "curve.json").read_text())
    assert curve[1]["fvu"] < curve[0]["fvu"]
    assert facts["fvu"] < 0.9
    shape = hub.load(tmp_path / "a").shape
    assert (shape.d_in, shape.d_out) == widths
    outputs = places.outputs and list(places.outputs)
    facts = hub.facts(tmp_path / "a")
    del facts["trained"]
    assert facts == {"model": "none", "inputs": list(places.inputs), "outputs": outputs}


# --- several dictionaries of one stream ---


def pair(folder: Path) -> list:
    """A dictionary of x, and beside it a transcoder that differs in everything that may differ."""
    other = {"lr": 1e-3, "optimizer": "muon", "evaluate_every": 7, "ema": 0.9, "accumulate": 2}
    cfg = choices(**other, dead_tokens=1024, resample_tokens=1024)
    return [member(folder / "a", choices()), member(folder / "b", cfg, TopKConfig(n_latents=256, k=1), X_TO_Y)]


@pytest.fixture(scope="module")
def alone(store, tmp_path_factory) -> dict[str, dict[str, bytes]]:
    """The files of both members, each trained by itself."""
    folder = tmp_path_factory.mktemp("alone")
    for one in pair(folder):
        fit([one], store, 0, folder / "logs")
    return {name: contents(folder / name) for name in ("a", "b")}


@pytest.mark.slow
def test_a_sweep_is_its_members_byte_for_byte(store, tmp_path, alone):
    facts = fit(pair(tmp_path), store, 0, tmp_path / "logs")
    assert {name: contents(tmp_path / name) for name in ("a", "b")} == alone
    assert [one["lr"] for one in facts] == [3e-3, 1e-3]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("tokens", 2560, "train.tokens = 10240, 2560: must be"),
        ("batch", 128, "train.batch = 256, 128: must be"),
        ("window_rows", 8192, "train.window_rows = 4096, 8192: must be"),
        ("init_rows", 512, "train.init_rows = 1024, 512: must be"),
        ("tracker", "tensorboard", "train.tracker = none, tensorboard: must be"),
    ],
)
def test_members_must_share_the_stream(store, tmp_path, field, value, message):
    members = [member(tmp_path / "a", choices()), member(tmp_path / "b", choices(**{field: value}))]
    with pytest.raises(ConfigError) as caught:
        fit(members, store, 0, tmp_path / "logs")
    assert str(caught.value) == f"{message} the same for all dictionaries that learn from one stream"
    assert contents(tmp_path / "a") == {}


# --- killed and resumed ---


class Unplugged(StoredSplit):
    """Rows whose disk goes away after n reads of more than a sample's 64."""

    def __init__(self, split: StoredSplit, n: int) -> None:
        super().__init__(split.columns, split.widths)
        object.__setattr__(self, "left", n)

    def stored(self, start: int, stop: int):
        object.__setattr__(self, "left", self.left - (stop - start > 64))  # type: ignore[attr-defined]
        if self.left < 0:  # type: ignore[attr-defined]
            raise OSError("unplugged")
        return super().stored(start, stop)


class Failing(ActivationStore):
    """A store whose train split goes away after n reads."""

    def __init__(self, box: Box, n: int) -> None:
        super().__init__(box)
        self.n = n

    def split(self, sites, split: str) -> StoredSplit:
        whole = super().split(sites, split)
        return Unplugged(whole, self.n) if split == "train" else whole


@pytest.mark.parametrize("n_reads", [0, 1, 3])
def test_a_run_that_fails_goes_on_to_the_same_bytes(store, tmp_path, n_reads):
    """20,000 rows are 5 windows of at most 16 steps, one read each; the initial bias is of the first."""
    cfg = choices(tokens=256 * 60, checkpoint_seconds=1e-6)
    train(store, tmp_path / "whole", cfg)
    with pytest.raises(OSError, match="unplugged"):
        train(Failing(store.box, n_reads), tmp_path / "killed", cfg)
    state = tmp_path / "killed" / f"checkpoint{SCRATCH}"
    assert state.exists() == (n_reads > 0), "the first read is before the first step"
    assert "dictionary.json" not in contents(tmp_path / "killed")
    train(store, tmp_path / "killed", cfg)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_members_at_different_steps_go_on_to_the_same_bytes(store, tmp_path, alone):
    """The first stops after two windows, 30 steps; the second after one, 16 steps, in which it has resampled."""
    for one, n_reads, step in zip(pair(tmp_path), (2, 1), ("30", "16"), strict=True):
        eager = replace(one, train=replace(one.train, checkpoint_seconds=1e-6))
        with pytest.raises(OSError, match="unplugged"):
            fit([eager], Failing(store.box, n_reads), 0, tmp_path / "logs")
        with safe_open(one.out / f"checkpoint{SCRATCH}", framework="pt") as file:
            assert file.metadata()["step"] == step
    fit(pair(tmp_path), store, 0, tmp_path / "logs")
    assert {name: contents(tmp_path / name) for name in ("a", "b")} == alone


@pytest.mark.slow
def test_a_run_ended_by_sigkill_goes_on_to_the_same_bytes(tmp_path, store):
    long = {"tokens": 64 * 250, "batch": 64, "evaluate_every": 0, "checkpoint_seconds": 0.05}

    def start(name: str) -> warm.Command:
        arguments = str(store.box.path), str(tmp_path / name), json.dumps(long)
        return warm.Command(train_alone, *arguments, env={"OMP_NUM_THREADS": "1"})

    train(store, tmp_path / "whole", choices(**long))
    run, state = start("killed"), tmp_path / "killed" / f"checkpoint{SCRATCH}"
    run.wait_until(state.exists)
    assert run.kill(), "it was killed before its end"
    assert not (tmp_path / "killed" / "dictionary.json").exists()
    assert start("killed").finish().returncode == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
