"""What AuxK costs while a share of the latents is dead: the same steps with none, a tenth, a quarter and half of them.

    python -m benchmarks.dead [rounds]

TopK, k = 32, batches of 4,096 rows of 768 numbers, 24,576 latents, of which those that are to be dead have an encoder a
thousand times smaller: none of them is among the k largest of a row, and half fire a little where AuxK looks. The
learning rate is so small that they stay so. Rounds alternate.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from accelerate import Accelerator

from benchmarks import results
from benchmarks.frameworks import ROOT
from benchmarks.peers.sae_atlas import SITE
from benchmarks.training import SPEED
from benchmarks.world import prepare
from sae import memory
from sae.architectures.configs import TopKConfig
from sae.stage import open_box
from sae.store import ActivationStore, Pairs, Places
from train.config import TrainConfig
from train.learner import Learner, Member
from train.loader import Loader

N_LATENTS, SHARES = 24_576, (0.0, 0.1, 0.25, 0.5)
STEPS, WARM_STEPS = 8, 2
EVER, NEVER = 1 << 40, 1 << 30  # rows of silence of the dead, and those that make a latent dead


@memory.reused()
def main(rounds: int = 5) -> None:
    folder = ROOT / "runs" / "training" / SPEED.digest
    prepare(SPEED, 0, folder)
    store = ActivationStore(open_box(folder / "data-0"))
    milliseconds: dict[float, list[float]] = {share: [] for share in SHARES}
    with tempfile.TemporaryDirectory() as out:
        for _ in range(rounds):
            for share in SHARES:
                milliseconds[share].append(1e3 * step_seconds(store, share, Path(out)))
    cases = [{"dead": share, "milliseconds": round(statistics.median(milliseconds[share]), 1)} for share in SHARES]
    sys.stderr.write(f"{cases}\n")
    results.save("dead", {"n_latents": N_LATENTS, "rounds": rounds, "cases": cases})


def step_seconds(store: ActivationStore, share: float, out: Path) -> float:
    """The median step of a dictionary of which a share is dead."""
    places, steps = Places((SITE,)), 1 << 20
    cfg = TrainConfig(tokens=SPEED.batch * steps, batch=SPEED.batch, dead_tokens=NEVER, lr=1e-9, tracker="none")
    member = Member(places, TopKConfig(n_latents=N_LATENTS, k=32), cfg, {}, out)
    split = store.split((SITE,), "train")
    learner, loader = Learner(member, store, steps, Accelerator(cpu=True)), Loader(split, SPEED.batch, 1 << 18, 0)
    learner.start(Pairs(split, (SITE,), places), loader.batch(0), 0)
    n_dead = round(share * N_LATENTS)
    with torch.no_grad():
        learner.dictionary.get_parameter("W_enc")[:n_dead] *= 1e-3
        learner.dictionary.get_parameter("b_enc")[:n_dead] = 0
    learner.progress.silent_tokens[:n_dead] = EVER
    learner.progress.step = steps // 2  # late enough that some can be dead
    seconds = []
    for step in range(STEPS):
        rows = loader.batch(step)
        started = time.perf_counter()
        learner.step(rows)
        seconds.append(time.perf_counter() - started)
    assert ("auxk" in learner.terms) == (n_dead > 0)
    assert int(learner.dead.sum()) == n_dead
    return statistics.median(seconds[WARM_STEPS:])


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
