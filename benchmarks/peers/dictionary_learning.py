"""dictionary_learning (`dictionary-learning` on PyPI): its trainers in its `trainSAE`, its loader for the test rows.

Its defaults are for runs of 100,000 steps and more, so it is used as in its authors' demonstration, with
which they reproduce SAE Bench's dictionaries (github.com/adamkarvonen/dictionary_learning_demo, commit
1436674): inputs of mean squared norm 1, p from 1 to 0.2 with the penalty `Lp^p`. Its counts of steps are
kept as shares of its 244,140: learning rates warm up over 1,000, penalties over 5,000, p begins to fall
after 10,000. Thresholds for use are averaged from the run's middle on, if that is before step 1,000.
Everything else that is not named here is its default.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.exchange import DEVICE, Batches, Codes, Found, Job
from benchmarks.peers.harvesting import CONTEXTS, Harvest, HarvestJob
from benchmarks.peers.process import main

KNOBS = {
    "standard": "l1_penalty",
    "standard_april": "l1_penalty",
    "topk": "k",
    "batch_topk": "k",
    "matryoshka": "k",
    "jumprelu": "target_l0",
    "gated": "l1_penalty",
    "p_anneal": "initial_sparsity_penalty",
}
"""What sets the L0 of each architecture."""
STEPS, WARMUP_STEPS, PENALTY_WARMUP_STEPS, ANNEAL_START = 244_140, 1000, 5000, 10_000  # of the demonstration


def settings(architecture: str, knob: float, prefixes: Sequence[int], steps: int) -> dict[str, Any]:
    """The arguments of its trainer that we set."""
    chosen: dict[str, Any] = {
        KNOBS[architecture]: knob,
        "warmup_steps": _share(WARMUP_STEPS, steps),
        "decay_start": steps - steps // 5,
    }
    if architecture in ("topk", "batch_topk", "matryoshka"):
        chosen["threshold_start_step"] = min(1000, steps // 2)
    else:
        chosen["sparsity_warmup_steps"] = _share(PENALTY_WARMUP_STEPS, steps)
    if architecture == "matryoshka":
        widths = [end - start for start, end in zip((0, *prefixes), prefixes, strict=False)]
        chosen["group_fractions"] = [width / prefixes[-1] for width in widths]
    if architecture == "p_anneal":
        chosen |= {"anneal_start": _share(ANNEAL_START, steps), "p_end": 0.2, "sparsity_function": "Lp^p"}
    return chosen


def _share(count: int, steps: int) -> int:
    return max(1, round(count * steps / STEPS))


def train(job: Job) -> Found:
    from dictionary_learning.training import trainSAE  # pyright: ignore[reportMissingImports]
    from dictionary_learning.utils import load_dictionary  # pyright: ignore[reportMissingImports]

    config = {
        **job.settings,
        "trainer": _with_dead_rows(_trainer(job.architecture), job.dead_rows),
        "steps": job.steps,
        "activation_dim": job.d_in,
        "dict_size": job.n_latents,
        "lr": job.lr,
        "seed": job.seed,
        "device": DEVICE,
        "layer": 0,
        "lm_name": "synthetic",
        "submodule_name": "synthetic",
    }
    folder = Path(job.out) / "dictionary_learning"
    is_autocast = job.mode == "autocast"
    # its own `autocast_dtype` is for CUDA
    with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
        trainSAE(
            data=Batches(job),
            trainer_configs=[config],
            steps=job.steps,
            save_dir=str(folder),
            normalize_activations=True,
            device=DEVICE,
            autocast_dtype=torch.bfloat16 if is_autocast else torch.float32,
        )
    used, _ = load_dictionary(str(folder / "trainer_0"), DEVICE)
    decoder, bias = _decoder(used)
    return Found(lambda x: Codes.of(used.encode(x)), used, decoder, bias)


def _trainer(architecture: str) -> type:
    from dictionary_learning.trainers import (  # pyright: ignore[reportMissingImports]
        batch_top_k,
        gdm,
        jumprelu,
        matryoshka_batch_top_k,
        p_anneal,
        standard,
        top_k,
    )

    return {
        "standard": standard.StandardTrainer,
        "standard_april": standard.StandardTrainerAprilUpdate,
        "topk": top_k.TopKTrainer,
        "batch_topk": batch_top_k.BatchTopKTrainer,
        "matryoshka": matryoshka_batch_top_k.MatryoshkaBatchTopKTrainer,
        "jumprelu": jumprelu.JumpReluTrainer,
        "gated": gdm.GatedSAETrainer,
        "p_anneal": p_anneal.PAnnealTrainer,
    }[architecture]


def _with_dead_rows(trainer: type, dead_rows: int) -> type:
    """The trainer with another window of silence, where it has one: no argument sets it."""

    class Trainer(trainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            if hasattr(self, "dead_feature_threshold"):
                self.dead_feature_threshold = dead_rows

    return Trainer


def _decoder(used: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What each latent writes, a row each, and the bias: three classes, three names."""
    names = dict(used.named_parameters())
    directions = names["W_dec"] if "W_dec" in names else names["decoder.weight"].T
    bias = next(names[name] for name in ("b_dec", "bias", "decoder_bias") if name in names)
    return directions, bias


def harvester(job: HarvestJob) -> Harvest:
    """Its `ActivationBuffer`, filled once: it keeps rows in memory and writes none."""
    from dictionary_learning.buffer import ActivationBuffer  # pyright: ignore[reportMissingImports]
    from nnsight import LanguageModel  # pyright: ignore[reportMissingImports]

    model = LanguageModel(job.model, tokenizer=_numbers(job.model), device_map=DEVICE, dispatch=True)
    module = model.transformer.h[job.layer].mlp

    def harvest(tokens: torch.Tensor, _: Path) -> Callable[[int], torch.Tensor]:
        n, context = tokens.shape
        buffer = ActivationBuffer(
            iter([" ".join(map(str, context)) for context in tokens.tolist()]),
            model,
            module,
            d_submodule=model.config.n_embd,
            n_ctxs=n,
            ctx_len=context,
            refresh_batch_size=CONTEXTS,
            device=DEVICE,
        )
        buffer.refresh()
        return lambda n: buffer.activations[:n]

    return harvest


def _numbers(folder: str) -> Any:
    """A tokenizer of numbers: the buffer reads text only."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, PreTrainedTokenizerFast

    words = [str(i) for i in range(AutoConfig.from_pretrained(folder).vocab_size)] + ["padding"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="padding"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="padding")


def versions() -> Mapping[str, str]:
    return {"dictionary-learning": version("dictionary-learning"), "torch": torch.__version__}


if __name__ == "__main__":
    main(versions, train, harvester)
