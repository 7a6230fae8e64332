"""SAELens (`sae-lens` on PyPI): its training classes in its trainer, its saved inference model for the test rows.

Penalties warm up as its documentation has it, L1 over 5 % of the steps and the tanh penalty over all of
them; its L0 penalty, of which it says nothing, over the 10 % of ours. The tanh JumpReLU has the settings
that its fields' comments name as Anthropic's. Everything else that is not named here is its default,
among it: inputs as they are (here of norm 28.6, sqrt(d) is 27.7), decoder rows that start with norm 0.1
and are free, clipping at 1.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.exchange import DEVICE, Batches, Codes, Found, Job
from benchmarks.peers.harvesting import CONTEXTS, Harvest, HarvestJob
from benchmarks.peers.process import main

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


def harvester(job: HarvestJob) -> Harvest:
    """Its `CacheActivationsRunner`: float16 in Arrow files, all contexts of a call in one buffer and in their order.
    The runner loads models by the names of the hub; here it is handed one."""
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from sae_lens import cache_activations_runner as cached  # pyright: ignore[reportMissingImports]

    model = hooked(job.model)
    cached.load_model = lambda **_: model

    def harvest(tokens: torch.Tensor, folder: Path) -> Callable[[int], torch.Tensor]:
        bytes_of_rows = tokens.numel() * model.cfg.d_model * 2
        cfg = cached.CacheActivationsRunnerConfig(
            dataset_path="tokens",
            model_name="model",
            model_batch_size=CONTEXTS,
            hook_name=f"blocks.{job.layer}.hook_mlp_out",
            d_in=model.cfg.d_model,
            training_tokens=tokens.numel(),
            context_size=tokens.shape[1],
            new_cached_activations_path=str(folder),
            shuffle=False,
            dtype="float16",
            device=DEVICE,
            buffer_size_gb=bytes_of_rows / 1e9,
            prepend_bos=False,
            streaming=False,
            autocast_lm=job.mode == "autocast",
        )
        found = cached.CacheActivationsRunner(cfg, Dataset.from_dict({"tokens": tokens.tolist()})).run()
        column = found.with_format("torch")[cfg.hook_name]
        return lambda n: torch.cat(list(column[: -(-n // tokens.shape[1])]))[:n]

    return harvest


def hooked(folder: str) -> Any:
    """A GPT-2 in TransformerLens's form, with the weights that it has."""
    import transformer_lens  # pyright: ignore[reportMissingImports]
    from transformer_lens.pretrained.weight_conversions.gpt2 import (  # pyright: ignore[reportMissingImports]
        convert_gpt2_weights,
    )
    from transformers import AutoModelForCausalLM, AutoTokenizer

    plain = AutoModelForCausalLM.from_pretrained(folder)
    of = plain.config
    cfg = transformer_lens.HookedTransformerConfig(
        n_layers=of.n_layer,
        d_model=of.n_embd,
        n_ctx=of.n_positions,
        d_head=of.n_embd // of.n_head,
        n_heads=of.n_head,
        d_mlp=4 * of.n_embd,
        d_vocab=of.vocab_size,
        act_fn="gelu_new",
        eps=of.layer_norm_epsilon,
        normalization_type="LN",
        attention_dir="causal",
        device=DEVICE,
    )
    model = transformer_lens.HookedTransformer(cfg, tokenizer=AutoTokenizer.from_pretrained(folder))
    model.load_and_process_state_dict(
        convert_gpt2_weights(plain, cfg),
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    return model


def versions() -> Mapping[str, str]:
    import sae_lens  # pyright: ignore[reportMissingImports]

    return {"sae-lens": sae_lens.__version__, "torch": torch.__version__}


if __name__ == "__main__":
    main(versions, train, harvester)
