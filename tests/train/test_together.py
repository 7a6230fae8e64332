"""Two processes on gloo learn what one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sae.architectures.configs import ReLUConfig, SwitchConfig, TopKConfig
from sae.errors import ConfigError
from sae.files import read_json
from sae.team import Team
from tests import warm
from tests.train import together
from tests.train.planted import choices, contents, member, planted
from tests.train.together import BESIDE, CASES, STEPS
from train.loader import Loader
from train.trainer import _parts, fit

ROOT = Path(__file__).parents[2]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


def launch(*arguments: str) -> str:
    """Two processes, as `accelerate launch` starts them on GPUs (on a CPU it starts one); what they say."""
    command = [sys.executable, *TORCHRUN, "-m", *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def store(make_store):
    (x, _), (held_out, _) = planted(8192, 0), planted(1024, 1)
    return make_store({"x": x, "y": x.flip(1)}, {"x": held_out, "y": held_out.flip(1)})


@pytest.fixture(scope="module")
def both(store, tmp_path_factory):
    """(what one process learnt, what two did): folders with one for each case."""
    out = tmp_path_factory.mktemp("together")
    together.learn(store, out / "one", STEPS)
    warm.together(together.main, str(store.box.path), str(out / "two"), str(STEPS))
    return out / "one", out / "two"


def check_equal(one: Path, two: Path) -> None:
    """The same weights and the same curve, up to the order in which sums are taken."""
    expected, found = (load_file(folder / "dictionary.safetensors") for folder in (one, two))
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")
    expected, found = (read_json(folder / "curve.json") for folder in (one, two))
    assert [point["step"] for point in found] == [8, 16]
    for alone, shared in zip(expected, found, strict=True):
        assert shared == pytest.approx(alone, rel=1e-4, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_batch_that_is_divided_is_the_same_step(both, name):
    one, two = both
    check_equal(one / name, two / name)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_each_process_has_its_part_of_the_latents(both, name):
    n_latents, parts = CASES[name][0].n_latents, 2 if "latents" in name else 1
    for rank in (0, 1):
        assert read_json(both[1] / f"{name} {rank}.json")["n_latents"] == n_latents // parts


@pytest.mark.slow
def test_rows_that_are_computed_are_computed_once(both):
    """Two windows of three runs, of which the first process has two; of single runs it has all, two for the first
    weights and five for 16 steps."""
    rows = {
        name: [read_json(both[1] / f"{name} {rank}.json")["n_read"] for rank in (0, 1)]
        for name in ("topk, computed", "latents: topk, computed")
    }
    (first, second), (every, none) = rows.values()
    assert (first, second) == (4000, 2000)
    assert (every, none) == (7000, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if "many dead" in name])
def test_dead_latents_learn_in_these_cases(both, name):
    last = read_json(both[1] / name / "curve.json")[-1]
    assert last["n_dead"] > together.learner.LEAST_ROOM
    assert last["loss/auxk"] > 0


@pytest.mark.slow
def test_dictionaries_beside_each_other_are_those_of_one_process(both):
    """Three of two processes: each learns its own, on whole batches, and both know what became of all."""
    one, two = both
    for k in BESIDE:
        assert contents(two / f"k={k}") == contents(one / f"k={k}")
    expected = read_json(one / "facts-0.json")
    assert [facts["steps"] for facts in expected] == [STEPS] * 3
    assert [read_json(two / f"facts-{rank}.json") for rank in (0, 1)] == [expected] * 2


@pytest.mark.slow
@pytest.mark.parametrize("first", ["one", "two"])
@pytest.mark.parametrize("name", ["the same at every step", "latents: the same at every step"])
def test_a_run_goes_on_with_another_number_of_processes(both, store, tmp_path, first, name):
    out = tmp_path / "out"

    def on(processes: str, steps: int) -> None:
        if processes == "one":
            together.learn(store, out, steps, [name])
        else:
            warm.together(together.main, str(store.box.path), str(out), str(steps), name)

    on(first, STEPS // 2)
    assert read_json(out / name / "curve.json")[-1]["step"] == STEPS // 2
    on("two" if first == "one" else "one", STEPS)
    check_equal(both[0] / name, out / name)


@pytest.mark.slow
def test_a_command_of_two_processes_builds_what_one_builds(tmp_path):
    """Shards are made by both, byte for byte; the first speaks and holds the run."""
    config = str(ROOT / "configs" / "smoke.yaml")
    alone = warm.sae("train", config, f"out={tmp_path / 'one'}", env={"OMP_NUM_THREADS": "1"})
    said = [json.loads(text) for text in (alone.stdout, launch("sae", "train", config, f"out={tmp_path / 'two'}"))]
    for box in ("tokens", "activations"):
        one, two = ((tmp_path / run / box / "manifest.json").read_bytes() for run in ("one", "two"))
        assert one == two
    assert len(list((tmp_path / "two" / "activations").rglob("*.safetensors"))) > 2
    assert said[1]["box"] == str(tmp_path / "two" / "dictionary")
    assert said[1]["steps"] == said[0]["steps"]
    assert said[1]["fvu"] == pytest.approx(said[0]["fvu"], rel=0.02)
    again = json.loads(warm.together(warm.run_sae, "train", config, f"out={tmp_path / 'two'}"))
    assert again == said[1], "all is there"
    other = json.loads(warm.together(warm.run_sae, "train", config, f"out={tmp_path / 'two'}", "train.divide=latents"))
    assert other == said[1], "who makes it does not say what is made"


class Second(Team):
    """One of three processes, that hears nothing of the others."""

    rank, size = 1, 3


@pytest.mark.parametrize(
    ("sae", "changes", "message"),
    [
        (
            SwitchConfig(n_latents=96, k=3, n_experts=2),
            {},
            r"train\.divide = latents: must be batch with sae.type = switch",
        ),
        (TopKConfig(n_latents=64), {}, r"sae\.n_latents = 64: must be a multiple of 3"),
        (TopKConfig(n_latents=96), {"optimizer": "muon"}, r"train\.optimizer = muon: must be adam where train.divide"),
        (TopKConfig(n_latents=96), {"ema": 0.9}, r"train\.ema = 0\.9: must be 0\.0 where"),
        (TopKConfig(n_latents=96), {"resample_tokens": 512}, r"train\.resample_tokens = 512: must be 0 where"),
        (ReLUConfig(n_latents=96, ghost_coef=0.1), {}, r"sae\.ghost_coef = 0\.1: must be 0\.0 where"),
    ],
)
def test_latents_that_cannot_be_divided_are_refused(store, tmp_path, monkeypatch, sae, changes, message):
    monkeypatch.setattr("train.trainer.current", Second)
    cfg = choices(divide="latents", **changes)
    with pytest.raises(ConfigError, match=message):
        fit([member(tmp_path / "a", cfg, sae)], store, 0, tmp_path / "logs")


def test_a_process_has_its_rows_of_what_is_divided():
    assert Second().own(torch.arange(12)).tolist() == [4, 5, 6, 7]


def test_a_process_has_its_share_of_each_part(make_store):
    rows = torch.arange(96.0)[:, None].expand(-1, 2).contiguous()
    split = make_store({"x": rows}, {"x": rows}).split(["x"], "train")
    cfg = choices(batch=24, accumulate=2)
    whole = Loader(split, 24, 4096, 0)
    own = Loader(split, 24, 4096, 0, parts=_parts(cfg, Second()))
    for step in (0, 3, 5):
        batch = whole.batch(step)
        assert torch.equal(own.batch(step), torch.cat([batch[4:8], batch[16:20]]))


def test_a_batch_that_cannot_be_divided_is_refused(store, tmp_path, monkeypatch):
    monkeypatch.setattr("train.trainer.current", Second)
    cfg = choices(batch=256, accumulate=2)
    with pytest.raises(ConfigError, match=r"train\.batch = 256: must be a multiple of 6.*3 processes in 2 parts"):
        fit([member(tmp_path / "a", cfg)], store, 0, tmp_path / "logs")
