"""SAELens (`sae-lens` on PyPI): its training classes in its trainer, its saved inference model for the test rows.

Penalties warm up as its documentation has it, L1 over 5 % of the steps and the tanh penalty over all of
them; its L0 penalty, of which it says nothing, over the 10 % of ours. The tanh JumpReLU has the settings
that its fields' comments name as Anthropic's. Everything else that is not named here is its default,
among it: inputs as they are (here of norm 28.6, sqrt(d) is 27.7), decoder rows that start with norm 0.1
and are free, clipping at 1.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.exchange import DEVICE, Batches, Codes, Found, Job, main

KNOBS = {
    "standard": "l1_coefficient",
    "topk": "k",
    "batchtopk": "k",
    "matryoshka_batchtopk": "k",
    "jumprelu": "l0_coefficient",
    "jumprelu_tanh": "l0_coefficient",
    "gated": "l1_coefficient",
    "matching_pursuit": "max_iterations",
}
"""What sets the L0 of each architecture; `jumprelu_tanh` is its `jumprelu` with another penalty."""
ANTHROPIC = {
    "jumprelu_sparsity_loss_mode": "tanh",
    "jumprelu_init_threshold": 0.1,
    "jumprelu_bandwidth": 2.0,
    "jumprelu_ste_to_input": True,
    "pre_act_loss_coefficient": 3e-6,
}


def settings(architecture: str, knob: float, prefixes: Sequence[int], steps: int) -> dict[str, Any]:
    """The fields of its training configuration that we set."""
    own: dict[str, Any] = {}
    if architecture in ("standard", "gated"):
        own["l1_warm_up_steps"] = steps // 20
    elif architecture == "jumprelu":
        own["l0_warm_up_steps"] = steps // 10
    elif architecture == "jumprelu_tanh":
        own |= {"l0_warm_up_steps": steps, **ANTHROPIC}
    elif architecture == "matryoshka_batchtopk":
        own["matryoshka_widths"] = list(prefixes)
    return {KNOBS[architecture]: knob, **own}


def train(job: Job) -> Found:
    from sae_lens import SAE  # pyright: ignore[reportMissingImports]
    from sae_lens.config import LoggingConfig, SAETrainerConfig  # pyright: ignore[reportMissingImports]
    from sae_lens.registry import get_sae_training_class  # pyright: ignore[reportMissingImports]
    from sae_lens.training.sae_trainer import SAETrainer  # pyright: ignore[reportMissingImports]

    build, configure = get_sae_training_class(job.architecture.removesuffix("_tanh"))
    sae = build(configure(d_in=job.d_in, d_sae=job.n_latents, device=DEVICE, **job.settings))
    cfg = SAETrainerConfig(
        total_training_samples=job.steps * job.batch,
        train_batch_size_samples=job.batch,
        lr=job.lr,
        lr_end=job.lr,
        lr_decay_steps=job.steps // 5,
        device=DEVICE,
        dead_feature_window=job.dead_rows // job.batch,
        autocast=job.mode == "autocast",
        logger=LoggingConfig(log_to_wandb=False),
    )
    SAETrainer(cfg, sae, iter(Batches(job))).fit()
    folder = Path(job.out) / "saelens"
    sae.save_inference_model(folder)
    used = SAE.load_from_disk(folder, device=DEVICE)
    return Found(lambda x: Codes.of(used.encode(x)), used, used.W_dec, used.b_dec)


def versions() -> Mapping[str, str]:
    import sae_lens  # pyright: ignore[reportMissingImports]

    return {"sae-lens": sae_lens.__version__, "torch": torch.__version__}


if __name__ == "__main__":
    main(train, versions)
