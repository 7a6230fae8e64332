"""SAEDashboard (`sae-dashboard` on PyPI): its `NeuronpediaRunner`, with that one's defaults, of which these matter
here: 32 contexts a forward pass, 128 latents at a time, activations of the model written to disk once and read again
for every further batch of latents.

The runner loads models, dictionaries and texts by the names of the hub; here it is handed them. A batch of latents is
a run of its own, whose time is that of going through all tokens and writing the batch's JSON; the first has
the model's forward passes in it.
"""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.dashboarding import DashboardJob, Dashboards, Stage
from benchmarks.peers.exchange import DEVICE
from benchmarks.peers.process import main
from benchmarks.peers.saelens import hooked

BATCH = 128
"""Latents that are worked on at a time."""


def dashboards(job: DashboardJob) -> Dashboards:
    from sae_lens import SAE  # pyright: ignore[reportMissingImports]

    model, dictionary = hooked(job.model), SAE.load_from_disk(job.dictionary, device=DEVICE)
    # the runner folds decoder norms into latents, which this SAELens refuses for a TopK that does not rank by them
    dictionary.fold_W_dec_norm = lambda: None

    def make(tokens: Tensor, folder: Path, stage: Stage) -> list[float]:
        runner = _runner(model, dictionary, f"blocks.{job.layer}.hook_mlp_out", tokens, folder)
        densities: list[float] = []
        for batch in range(job.batches):
            runner.activations_store = None  # a run lets go of it
            runner.cfg.start_batch = runner.cfg.end_batch = batch
            with stage(f"batch {batch}"):
                runner.run()
            content = json.loads(Path(runner.cfg.outputs_dir, f"batch-{batch}.json").read_text())
            densities += [feature["frac_nonzero"] for feature in content["features"]]
        return densities

    return make


def _runner(model: Any, dictionary: Any, hook_name: str, tokens: Tensor, folder: Path) -> Any:
    """A runner as its constructor leaves it, with the tokens where it looks for them."""
    from sae_dashboard.neuronpedia.neuronpedia_runner import (  # pyright: ignore[reportMissingImports]
        NeuronpediaRunner,
        NeuronpediaRunnerConfig,
    )

    runner = NeuronpediaRunner.__new__(NeuronpediaRunner)
    runner.cfg = NeuronpediaRunnerConfig(
        sae_set="set",
        sae_path="",
        outputs_dir=str(folder),
        n_prompts_total=len(tokens),
        n_tokens_in_prompt=tokens.shape[1],
        n_features_at_a_time=BATCH,
        sae_dtype="float32",
        model_dtype="float32",
        sae_device=DEVICE,
    )
    runner.sae, runner.model, runner.hook_name = dictionary, model, hook_name
    runner.model_id, runner.layer = "model", int(hook_name.split(".")[1])
    runner.cached_activations_dir = folder / "cached_activations"
    runner.vocab_dict = runner.get_vocab_dict()
    torch.save(tokens, folder / f"tokens_{len(tokens)}.pt")
    return runner


def versions() -> Mapping[str, str]:
    return {name: version(name) for name in ("sae-dashboard", "sae-lens", "transformer-lens", "torch")}


if __name__ == "__main__":
    main(versions, dashboards=dashboards)
