"""What a team learns, and what one process does of the same: the cases, and the program of each process."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from sae.architectures.configs import (
    BatchTopKConfig,
    CrosscoderBatchTopKConfig,
    CrosscoderConfig,
    GatedConfig,
    JumpReLUConfig,
    JumpReLUTanhConfig,
    MatryoshkaConfig,
    PAnnealConfig,
    ReLUConfig,
    SwitchConfig,
    TopKConfig,
)
from sae.files import write_json
from sae.stage import open_box
from sae.store import ActivationSplit, ActivationStore, Places, StoredSplit
from sae.team import current
from tests.train.planted import X_AND_Y, X_TO_Y, K, X, choices, member
from train import learner, loader, trainer
from train.learner import Learner
from train.trainer import fit

BATCH, STEPS = 256, 16
BESIDE = (1, 2, 3)
FEW = {"n_latents": 64}
LATENTS = {"divide": "latents"}
SOON = {"dead_tokens": BATCH * 4, "clip": 0.5}
MANY = TopKConfig(n_latents=512, k=1, init_decoder="random", auxk_coef=1.0)
"""Most of these die."""
CASES: dict[str, tuple[Any, Places, dict[str, Any]]] = {
    "topk": (TopKConfig(**FEW, k=K), X, SOON),
    "topk, computed": (TopKConfig(**FEW, k=K), X, {**SOON, "accumulate": 2, "window_rows": 3000}),
    "latents: topk, computed": (TopKConfig(**FEW, k=K), X, {**SOON, **LATENTS, "window_rows": 1000}),
    "topk accumulated": (TopKConfig(**FEW, k=K), X, {**SOON, "accumulate": 2}),
    "topk, many dead": (MANY, X, SOON),
    "topk averaged": (TopKConfig(**FEW, k=K), X, {"ema": 0.9, "resample_tokens": BATCH * 4, **SOON}),
    "batchtopk": (BatchTopKConfig(**FEW, k=K), X_TO_Y, SOON),
    "batchtopk, few for a row": (BatchTopKConfig(**FEW, k=1), X, SOON),
    "matryoshka": (MatryoshkaConfig(**FEW, k=K), X, SOON),
    "crosscoder_batchtopk": (CrosscoderBatchTopKConfig(**FEW, k=K), X_AND_Y, SOON),
    "relu, ghosts": (ReLUConfig(n_latents=256, sparsity_coef=3.0, ghost_coef=0.1), X, {**SOON, "dead_tokens": BATCH}),
    "jumprelu": (JumpReLUConfig(**FEW), X, SOON),
    "gated": (GatedConfig(**FEW), X, SOON),
    "p_anneal": (PAnnealConfig(**FEW, anneal_start=0.0, p_end=0.8, sparsity_coef=0.1), X, SOON),
    "switch": (SwitchConfig(**FEW, k=K, n_experts=2), X, SOON),
    "latents: topk": (TopKConfig(**FEW, k=K, multi_coef=0.1), X, {**SOON, **LATENTS}),
    "latents: topk, many dead": (MANY, X, {**SOON, **LATENTS}),
    "latents: matryoshka, many dead": (MatryoshkaConfig(n_latents=512, k=1, auxk_coef=1.0), X, {**SOON, **LATENTS}),
    "latents: topk, unit rows": (TopKConfig(**FEW, k=K, decoder="unit"), X, {**SOON, **LATENTS, "accumulate": 2}),
    "latents: topk, whitened": (TopKConfig(**FEW, k=40, normalise="whiten"), X_TO_Y, {**SOON, **LATENTS}),
    "latents: batchtopk": (BatchTopKConfig(**FEW, k=K), X, {**SOON, **LATENTS}),
    "latents: batchtopk, few for a row": (BatchTopKConfig(**FEW, k=1), X_TO_Y, {**SOON, **LATENTS}),
    "latents: matryoshka": (MatryoshkaConfig(**FEW, k=K, groups=(0.25, 0.5, 0.25)), X, {**SOON, **LATENTS}),
    "latents: crosscoder": (CrosscoderConfig(**FEW), X_AND_Y, {**SOON, **LATENTS}),
    "latents: crosscoder_batchtopk": (CrosscoderBatchTopKConfig(**FEW, k=K), X_AND_Y, {**SOON, **LATENTS}),
    "latents: relu": (ReLUConfig(n_latents=256, sparsity_coef=3.0), X, {**SOON, **LATENTS}),
    "latents: jumprelu": (JumpReLUConfig(**FEW), X, {**SOON, **LATENTS}),
    "latents: jumprelu, quadratic": (
        JumpReLUConfig(**FEW, penalty="quadratic", target_l0=5.0, bandwidth=0.1, threshold=0.1),
        X,
        {**SOON, **LATENTS},
    ),
    "latents: jumprelu, tanh": (JumpReLUTanhConfig(**FEW), X, {**SOON, **LATENTS}),
    "latents: gated": (GatedConfig(**FEW), X, {**SOON, **LATENTS}),
    "latents: the same at every step": (TopKConfig(**FEW, k=K), X, {"warmup": 0.0, "decay": 0.0, **SOON, **LATENTS}),
    "the same at every step": (TopKConfig(**FEW, k=K), X, {"warmup": 0.0, "decay": 0.0, **SOON}),
}


class Dear(StoredSplit):
    """Rows that are shared out as computed ones are, in bfloat16 as most are, and counted."""

    is_computed = True
    n_read: ClassVar[int] = 0

    def each(self, bounds: Sequence[tuple[int, int]]) -> Iterator[Tensor]:
        for part in super().each(bounds):
            Dear.n_read += len(part)
            yield part.bfloat16()


class Computing(ActivationStore):
    """A store of which the train split is dear."""

    def split(self, sites: Sequence[str], split: str) -> ActivationSplit:
        whole = super().split(sites, split)
        assert isinstance(whole, StoredSplit)
        return Dear(whole.columns, whole.widths) if split == "train" else whole


def learn(store: ActivationStore, out: Path, steps: int, names: Sequence[str] = ()) -> None:
    """Each case by itself into a folder of its own, then three dictionaries beside each other; or one case alone. Runs
    are short, so that batches reach over windows, and processes have unequal shares of one, or none."""
    former, loader.RUN_ROWS = loader.RUN_ROWS, 1000
    try:
        _learn(store, out, steps, names)
    finally:
        loader.RUN_ROWS = former


def _learn(store: ActivationStore, out: Path, steps: int, names: Sequence[str]) -> None:
    for name in names or CASES:
        sae, places, changes = CASES[name]
        cfg = choices(tokens=BATCH * steps, batch=BATCH, evaluate_every=8, **changes)
        Dear.n_read = 0
        of = Computing(store.box) if "computed" in name else store
        fit([member(out / name, cfg, sae, places)], of, 0, out / "logs")
    if not names:
        cfg = choices(tokens=BATCH * steps, batch=BATCH, evaluate_every=8)
        beside = [member(out / f"k={k}", cfg, TopKConfig(**FEW, k=k)) for k in BESIDE]
        write_json(out / f"facts-{current().rank}.json", fit(beside, store, 0, out / "logs"))


class Noted(Learner):
    """One that notes how many latents its process has, and how many dear rows it has read."""

    def finish(self) -> dict[str, Any]:
        out, own = self.member.out, len(self.dictionary.directions)
        write_json(out.with_name(f"{out.name} {current().rank}.json"), {"n_latents": own, "n_read": Dear.n_read})
        return super().finish()


def main(arguments: Sequence[str]) -> None:
    """Of a process of its own: STORE OUT STEPS [case ...]."""
    trainer.Learner = Noted  # type: ignore[misc]
    learner.LEAST_ROOM = 2  # or few latents would be padded to all
    store, out, steps, *names = arguments
    learn(ActivationStore(open_box(Path(store))), Path(out), int(steps), names)
    current().leave()
