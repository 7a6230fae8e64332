"""Ours, as `sae train` does it; everything that is not named in `settings` is the architecture's default."""

from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.numpy import save_file

from analysis import encode
from analysis.codes import open_codes
from analysis.config import IndexConfig
from analysis.index import build as index
from analysis.splits import token_strings
from analysis.summary import Summary
from benchmarks.peers.dashboarding import DashboardJob, Dashboards, Stage
from benchmarks.peers.exchange import DEVICE, Codes, Found, Job, mark
from benchmarks.peers.harvesting import Harvest, HarvestJob
from benchmarks.peers.process import main
from sae import hub, memory
from sae.architectures.configs import configs
from sae.config import HarvestConfig, ModelConfig, Precision, parse, to_json
from sae.harvest import harvest
from sae.latents import Latents
from sae.model import load
from sae.stage import open_box, stage
from sae.store import ActivationStore, Places
from sae.tokens import TokenStore
from train import trainer
from train.config import TrainConfig
from train.learner import Member
from train.loader import Loader

SITE = "synthetic"
KNOBS = {
    "relu": "sparsity_coef",
    "relu_april": "sparsity_coef",
    "topk": "k",
    "batchtopk": "k",
    "matryoshka": "k",
    "jumprelu": "sparsity_coef",
    "jumprelu_tanh": "sparsity_coef",
    "gated": "sparsity_coef",
    "p_anneal": "sparsity_coef",
    "switch": "k",
    "matching_pursuit": "k",
}
"""What sets the L0 of each architecture."""
PLAIN = "plain torch"
"""A mode: without compiled kernels."""
ALONE, ALONE_ROWS = "encoding alone", 1 << 17
"""A stage: so many of the rows are read and encoded, and nothing is kept of it."""
PRECISIONS: dict[str, Precision] = {"": "auto", PLAIN: "auto", "float32": "float32", "autocast": "bfloat16"}


def settings(architecture: str, knob: float, n_latents: int) -> dict[str, Any]:
    """All of its configuration, so that a changed default is seen."""
    chosen = {KNOBS[architecture]: knob, "n_latents": n_latents}
    if architecture == "switch" and n_latents < 256:  # an expert of fewer than 16 latents is none
        chosen["n_experts"] = n_latents // 16
    sae = parse(configs.get(architecture), chosen, "sae")
    # the recipe stands beside the fields, so that a changed one is seen
    return {**to_json(sae), "recipe": to_json(sae.recipe)}


def train_config(job: Job) -> TrainConfig:
    """`sae train`'s, but for what all frameworks share, and without evaluations on the way."""
    return TrainConfig(
        tokens=job.steps * job.batch,
        batch=job.batch,
        lr=job.lr,
        decay=0.2,
        dead_tokens=job.dead_rows,
        precision=PRECISIONS[job.mode],
        evaluate_every=0,
        tracker="none",
    )


class _Marked(Loader):
    """A loader that tells when each step asks for its batch."""

    def batch(self, step: int) -> torch.Tensor:
        mark()
        return super().batch(step)


def train(job: Job) -> Found:
    fields = {key: value for key, value in job.settings.items() if key != "recipe"}
    sae = parse(configs.get(job.architecture), fields, "sae")
    out = Path(job.out) / "dictionary"
    out.mkdir(parents=True, exist_ok=True)
    store = ActivationStore(open_box(Path(job.data)))
    trainer.Loader = _Marked  # type: ignore[misc]
    trainer.fit([Member(Places((SITE,)), sae, train_config(job), {}, out)], store, job.seed, Path(job.out) / "logs")
    used = hub.load(out).eval().to(DEVICE)
    with torch.no_grad():
        directions, bias = _in_units_of_the_data(used)
    return Found(lambda x: _codes(used.encode(x)), lambda x: used.reconstruct(x)[1], directions, bias)


def _in_units_of_the_data(used: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What a latent of 1 adds to the output, and the output without any."""
    return used.scaling.leave(used.directions), used.scaling.leave(used.b_dec[None])[0]


def _codes(latents: Latents) -> Codes:
    fired = latents.fired()
    return Codes(fired.values, fired.indices.int(), fired.offsets.diff())


def harvester(job: HarvestJob) -> Harvest:
    """As `sae harvest` does it, to sharded safetensors."""
    subject = load(ModelConfig(name=job.model))
    cfg = HarvestConfig(sites=(f"mlp_out.{job.layer}",), skip_positions=0, dtype="float16")

    def run(tokens: torch.Tensor, folder: Path) -> Callable[[int], torch.Tensor]:
        out = folder / "activations"
        box = _store(tokens, folder)
        stage(out, {}, lambda path: harvest(subject.model, cfg.sites, box, path, cfg, subject.autocast))
        store = ActivationStore(open_box(out))
        return lambda n: store.split(cfg.sites, "train").stored(0, n)

    return run


def _store(tokens: torch.Tensor, folder: Path) -> TokenStore:
    """Contexts as a box of tokens, a document each."""

    def build(path: Path) -> dict[str, Any]:
        starts = np.arange(0, tokens.numel() + 1, tokens.shape[1])
        ids = tokens.numpy().astype(np.uint16).ravel()
        save_file({"tokens": ids, "document_starts": starts, "context_starts": starts}, path / "train.safetensors")
        rows = [{"split": "train", "id": str(i), "source": "random", "title": ""} for i in range(len(tokens))]
        pq.write_table(pa.Table.from_pylist(rows), path / "documents.parquet")
        return {"vocabulary": 1 << 16}

    stage(folder / "tokens", {}, build)
    return TokenStore(open_box(folder / "tokens"))


def dashboards(job: DashboardJob) -> Dashboards:
    """As `sae harvest` and `sae index` do it, the network in float32 as the others run it, rows on disk in bfloat16;
    then the first rows are encoded once more, to nothing."""
    subject = load(ModelConfig(name=job.model, precision="float32"))
    dictionary = hub.load(Path(job.dictionary)).to(subject.device)
    site, n_latents = f"mlp_out.{job.layer}", dictionary.cfg.n_latents
    harvesting, indexing = HarvestConfig(sites=(site,), skip_positions=0), IndexConfig()

    def make(tokens: torch.Tensor, folder: Path, stage_of: Stage) -> list[float]:
        box = _store(tokens, folder)
        with stage_of("activations"):
            out = folder / "activations"
            stage(out, {}, lambda path: harvest(subject.model, (site,), box, path, harvesting, subject.autocast))
            rows = ActivationStore(open_box(out))
        with stage_of("codes"):
            codes = stage(
                folder / "codes",
                {},
                lambda path: encode.build(dictionary, n_latents, rows, Places((site,)), box, indexing, path),
            )
        with stage_of("index"):
            summary = Summary.load(codes.path / "summary.safetensors")
            stored, strings = open_codes(codes, "train"), token_strings(subject.tokenizer)
            directions, split = dictionary.directions.detach(), box.split("train")
            stage(
                folder / "index",
                {},
                lambda path: index.build(stored, summary, directions, subject.model, split, strings, indexing, path),
            )
        with stage_of(ALONE), torch.no_grad(), memory.reused():
            pairs = rows.pairs(Places((site,)), "train")
            n_rows = min(pairs.n_rows, ALONE_ROWS)
            for start in range(0, n_rows, encode.ROWS):
                dictionary.encode(pairs.read(start, min(start + encode.ROWS, n_rows))[0]).fired()
        return (summary.counts() / summary.n_rows).tolist()

    return make


def versions() -> Mapping[str, str]:
    try:
        own = version("sae-atlas")
    except PackageNotFoundError:
        own = "of this checkout"
    return {"sae-atlas": own, "torch": torch.__version__}


if __name__ == "__main__":
    main(versions, train, harvester, dashboards)
