"""delphi (`eai-delphi` on PyPI): its `LatentCache` in the order of its `populate_cache`, with its defaults: 32
contexts a batch, five files. That caches every firing; what is shown of a latent it makes from these files when it
explains it, which is no part of this. The statistics that it prints are left out.

Its program wants a GPU and asks for a compiled encoder, of which it calls a part that is not compiled; here it is not.
It runs all layers of the model.
"""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel

from benchmarks.peers.dashboarding import DashboardJob, Dashboards, Stage
from benchmarks.peers.exchange import DEVICE
from benchmarks.peers.process import main


def dashboards(job: DashboardJob) -> Dashboards:
    from delphi.config import CacheConfig  # pyright: ignore[reportMissingImports]
    from delphi.latents.cache import LatentCache  # pyright: ignore[reportMissingImports]
    from delphi.sparse_coders.load_sparsify import load_sparsify_hooks  # pyright: ignore[reportMissingImports]

    model = AutoModel.from_pretrained(job.model, dtype=torch.float32).eval().to(DEVICE)
    module, cfg = f"h.{job.layer}.mlp", CacheConfig()
    encoders, transcodes = load_sparsify_hooks(model, job.dictionary, [module])

    def make(tokens: Tensor, folder: Path, stage: Stage) -> list[float]:
        cache = LatentCache(model, encoders, batch_size=cfg.batch_size, transcode=transcodes, log_path=folder)
        with stage("cache"):
            cache.run(tokens.numel(), tokens)
        with stage("files"):
            cache.save_splits(n_splits=cfg.n_splits, save_dir=folder)
        return (cache.hookpoint_firing_counts[module] / tokens.numel()).tolist()

    return make


def versions() -> Mapping[str, str]:
    return {name: version(name) for name in ("eai-delphi", "eai-sparsify", "transformers", "torch")}


if __name__ == "__main__":
    main(versions, dashboards=dashboards)
