"""SAELens (`sae-lens` on PyPI): its training classes in its trainer, its saved inference model for the test rows.

Everything that is not named in `settings` is SAELens' default, among it: inputs as they are, decoder
rows that start with norm 0.1 and are free, AuxK after 1,000 silent steps, clipping at 1.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.exchange import Batches, Codes, Found, Job, main

KNOBS = {
    "standard": "l1_coefficient",
    "topk": "k",
    "batchtopk": "k",
    "matryoshka_batchtopk": "k",
    "jumprelu": "l0_coefficient",
    "gated": "l1_coefficient",
    "matching_pursuit": "max_iterations",
}
"""What sets the L0 of each architecture."""


def settings(architecture: str, knob: float, prefixes: Sequence[int]) -> dict[str, Any]:
    """The fields of its training configuration that we set."""
    own = {"matryoshka_widths": list(prefixes)} if architecture == "matryoshka_batchtopk" else {}
    return {KNOBS[architecture]: knob, **own}


def train(job: Job) -> Found:
    from sae_lens import SAE  # pyright: ignore[reportMissingImports]
    from sae_lens.config import LoggingConfig, SAETrainerConfig  # pyright: ignore[reportMissingImports]
    from sae_lens.registry import get_sae_training_class  # pyright: ignore[reportMissingImports]
    from sae_lens.training.sae_trainer import SAETrainer  # pyright: ignore[reportMissingImports]

    build, configure = get_sae_training_class(job.architecture)
    sae = build(configure(d_in=job.d_in, d_sae=job.n_latents, **job.settings))
    cfg = SAETrainerConfig(
        total_training_samples=job.steps * job.batch,
        train_batch_size_samples=job.batch,
        lr=job.lr,
        lr_end=job.lr,
        lr_decay_steps=job.steps // 5,
        logger=LoggingConfig(log_to_wandb=False),
    )
    SAETrainer(cfg, sae, iter(Batches(job))).fit()
    folder = Path(job.out) / "saelens"
    sae.save_inference_model(folder)
    used = SAE.load_from_disk(folder)
    return Found(lambda x: Codes.of(used.encode(x)), used, used.W_dec, used.b_dec)


def versions() -> Mapping[str, str]:
    import sae_lens  # pyright: ignore[reportMissingImports]

    return {"sae-lens": sae_lens.__version__, "torch": torch.__version__}


if __name__ == "__main__":
    main(train, versions)
