"""Training: it finds what was planted, revives the dead, and survives being killed."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sae import hub
from sae.architectures.configs import TopKConfig
from sae.architectures.topk import TopKSAE
from sae.dictionary import InputStats, Step
from sae.stage import SCRATCH
from sae.store import ActivationSplit
from train.config import TrainConfig
from train.trainer import Data, fit

ROOT = Path(__file__).parents[2]
D, N_FEATURES, K = 24, 32, 3


def planted(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """(rows, directions): each row is 3 of 32 unit directions in 24 dimensions, times 0.5 to 1.5, plus a constant."""
    directions = torch.nn.functional.normalize(torch.randn(N_FEATURES, D, generator=torch.Generator().manual_seed(99)))
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(n, N_FEATURES, generator=generator).topk(K, dim=1).indices
    sizes = 0.5 + torch.rand(n, K, generator=generator)
    codes = torch.zeros(n, N_FEATURES).scatter(1, chosen, sizes)
    return codes @ directions + 0.3, directions


def data_of(make_rows, rows: Tensor, held_out: Tensor) -> Data:
    r = rows.double()
    moments = {
        "mean": r.mean(0).tolist(),
        "mean_norm": r.norm(dim=1).mean().item(),
        "mean_square": r.square().sum(1).mean().item(),
    }
    return Data(make_rows(rows, shard_rows=5000), make_rows(held_out), moments)


@pytest.fixture(scope="module")
def data(make_rows) -> Data:
    return data_of(make_rows, planted(20_000, 1)[0], planted(2000, 2)[0])


def choices(**changes) -> TrainConfig:
    few = {"tokens": 256 * 40, "batch": 256, "lr": 3e-3, "tracker": "none", "window_rows": 4096, "evaluate_every": 20}
    return TrainConfig(**few | {"init_rows": 1024, "dead_tokens": 2560, "checkpoint_seconds": 1e6} | changes)


def train(data: Data, path: Path, cfg: TrainConfig, seed: int = 0, **sae) -> dict:
    path.mkdir(exist_ok=True)
    sae_cfg = TopKConfig(**{"n_latents": N_FEATURES, "k": K, **sae})
    return fit(data, "topk", sae_cfg, cfg, seed, {"site": "x"}, path, path.parent / "logs")


def contents(path: Path) -> dict[str, bytes]:
    """What a finished box would keep."""
    return {file.name: file.read_bytes() for file in path.iterdir() if file.suffix not in (SCRATCH, ".tmp")}


@pytest.mark.slow
def test_planted_features_are_found(data, tmp_path):
    facts = train(data, tmp_path / "a", choices(tokens=256 * 800, lr=1e-2, evaluate_every=0))
    _, directions = planted(1, 0)
    learnt = torch.nn.functional.normalize(hub.load(tmp_path / "a").directions.detach())
    best = (directions @ learnt.T).max(dim=1).values
    assert best.mean() > 0.95, f"mean over true features of the best cosine: {best.mean():.3f}"
    assert facts["fvu"] < 0.1


def test_loss_falls_and_the_curve_says_so(data, tmp_path):
    facts = train(data, tmp_path / "a", choices())
    curve = json.loads((tmp_path / "a" / "curve.json").read_text())
    assert [point["step"] for point in curve] == [20, 40]
    assert [point["tokens"] for point in curve] == [5120, 10240]
    assert curve[1]["fvu"] < curve[0]["fvu"] < 1
    assert curve[1]["loss/mse"] < curve[0]["loss/mse"]
    assert all(point["l0"] <= K for point in curve)
    last = curve[-1]
    assert facts == {"steps": 40, "lr": 3e-3, "n_dead": last["n_dead"], "fvu": last["fvu"]}
    assert sorted(contents(tmp_path / "a")) == ["curve.json", "dictionary.json", "dictionary.safetensors"]
    assert hub.facts(tmp_path / "a") == {"site": "x", "d_in": D}


def test_rows_of_the_saved_decoder_are_unit(data, tmp_path):
    train(data, tmp_path / "a", choices(tokens=256 * 3))
    norms = hub.load(tmp_path / "a").directions.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(N_FEATURES), rtol=0, atol=1e-6)


def test_the_rule_of_the_paper_is_used_where_no_rate_is_given(data, tmp_path):
    assert train(data, tmp_path / "a", choices(tokens=256, lr=None), n_latents=64)["lr"] == pytest.approx(3.2e-3)


def test_the_scale_gives_inputs_a_mean_norm_of_root_d(data, tmp_path):
    train(data, tmp_path / "a", choices(tokens=256))
    train(data, tmp_path / "b", choices(tokens=256, normalise="none"))
    rows, _ = planted(20_000, 1)
    loaded = hub.load(tmp_path / "a")
    assert (rows * loaded.scale).norm(dim=1).mean().item() == pytest.approx(D**0.5, rel=1e-5)
    scaled = (rows * loaded.scale).double()
    expected = (scaled - scaled.mean(0)).square().sum(1).mean().item()
    assert loaded.variance.item() == pytest.approx(expected, rel=1e-5)
    assert hub.load(tmp_path / "b").scale == 1.0


def test_a_latent_is_dead_after_the_window_and_alive_again_when_it_fires(data, tmp_path):
    """The window is 4 steps: nothing is dead at step 3; a useless latent is at step 4."""
    train(data, tmp_path / "a", choices(tokens=256 * 6, dead_tokens=1024, evaluate_every=1), n_latents=512, k=1, auxk=0)
    curve = json.loads((tmp_path / "a" / "curve.json").read_text())
    n_dead = [point["n_dead"] for point in curve]
    assert n_dead[:3] == [0, 0, 0]
    assert 0 < n_dead[3] < 512


def test_seeds_and_nothing_else_make_runs_differ(data, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(data, tmp_path / name, choices(tokens=256 * 5), seed)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a") != contents(tmp_path / "c")


def test_the_tracker_gets_the_curve(data, tmp_path):
    train(data, tmp_path / "a", choices(tokens=256 * 2, tracker="tensorboard"))
    assert list((tmp_path / "logs").rglob("events.out.tfevents.*"))
    assert sorted(contents(tmp_path / "a")) == ["curve.json", "dictionary.json", "dictionary.safetensors"]


# --- killed and resumed ---


class Unplugged(ActivationSplit):
    """Rows whose disk goes away at the n-th read."""

    def __init__(self, split: ActivationSplit, n: int) -> None:
        super().__init__(split.shards, split.d_in)
        object.__setattr__(self, "left", n)

    def read(self, start: int, stop: int):
        object.__setattr__(self, "left", self.left - 1)  # type: ignore[attr-defined]
        if self.left < 0:  # type: ignore[attr-defined]
            raise OSError("unplugged")
        return super().read(start, stop)


@pytest.mark.parametrize("n_reads", [1, 2, 4])
def test_a_run_that_fails_goes_on_to_the_same_bytes(data, tmp_path, n_reads):
    """20,000 rows are 5 windows of 16 steps, one read each, after one for the initial bias."""
    cfg = choices(tokens=256 * 60, checkpoint_seconds=1e-6)
    train(data, tmp_path / "whole", cfg)
    broken = Data(Unplugged(data.train, n_reads), data.held_out, data.moments)
    with pytest.raises(OSError, match="unplugged"):
        train(broken, tmp_path / "killed", cfg)
    state = tmp_path / "killed" / f"checkpoint{SCRATCH}"
    assert state.exists() == (n_reads > 1), "the first read is before the first step"
    assert "dictionary.json" not in contents(tmp_path / "killed")
    train(data, tmp_path / "killed", cfg)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from sae.architectures.configs import TopKConfig
from sae.store import ActivationSplit, Shard
from train.config import TrainConfig
from train.trainer import Data, fit

folder = Path(sys.argv[1])
rows = ActivationSplit([Shard(folder.parent / "rows.safetensors", 0, 4096)], 24)
moments = dict(mean=[0.0] * 24, mean_norm=4.9, mean_square=24.0)
cfg = TrainConfig(tokens=64 * 500, batch=64, lr=1e-3, tracker="none", evaluate_every=0, checkpoint_seconds=0.05)
folder.mkdir(exist_ok=True)
fit(Data(rows, rows, moments), "topk", TopKConfig(n_latents=32, k=3), cfg, 0, {}, folder, folder.parent / "logs")
"""


@pytest.mark.slow
def test_a_run_ended_by_sigkill_goes_on_to_the_same_bytes(tmp_path, make_rows):
    rows = make_rows(torch.randn(4096, 24, generator=torch.Generator().manual_seed(0)))
    (tmp_path / "rows.safetensors").write_bytes(rows.shards[0].path.read_bytes())

    def start(name: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path / name)], cwd=ROOT, stderr=subprocess.DEVNULL
        )

    assert start("whole").wait() == 0
    run, state = start("killed"), tmp_path / "killed" / f"checkpoint{SCRATCH}"
    while not state.exists() and run.poll() is None:
        time.sleep(0.005)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL, "it was killed before its end"
    assert not (tmp_path / "killed" / "dictionary.json").exists()
    assert start("killed").wait() == 0
    killed = contents(tmp_path / "killed")
    assert killed == contents(tmp_path / "whole")


# --- dead latents ---


@pytest.mark.parametrize(("auxk", "revived"), [(8, True), (0, False)])
def test_auxk_revives_planted_dead_latents(auxk, revived):
    """A third of the latents start with a bias that keeps them silent; only AuxK reaches them."""
    rows, _ = planted(4096, 1)
    dictionary = TopKSAE(TopKConfig(n_latents=48, k=K, auxk=auxk), D)
    stats = InputStats(scale=1.0, variance=K * 1.0, centre=rows.mean(0))
    dictionary.initialise(stats, torch.Generator().manual_seed(0))
    planted_dead = torch.arange(48) < 16
    with torch.no_grad():
        dictionary.b_enc[planted_dead] = -0.8
        dictionary.W_enc[planted_dead] *= 0.9
    optimizer = torch.optim.Adam(dictionary.parameters(), lr=1e-2)
    fired = torch.zeros(48, dtype=torch.long)
    for number in range(150):
        x = rows[(number * 256) % 4096 :][:256]
        out = dictionary(x, Step(number, planted_dead))
        torch.stack(list(out.terms.values())).sum().backward()
        dictionary.before_step()
        optimizer.step()
        optimizer.zero_grad()
        dictionary.after_step()
        fired += out.latents.firing_counts()
    n_revived = int((fired[planted_dead] > 0).sum())
    assert n_revived == 16 if revived else n_revived <= 4, f"{n_revived} of 16 have fired"
