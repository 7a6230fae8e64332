"""The obvious way with transformers alone: the whole model, a hook on the module, rows kept in memory as float16."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM

from benchmarks.peers.exchange import DEVICE
from benchmarks.peers.harvesting import CONTEXTS, Harvest, HarvestJob
from benchmarks.peers.process import main


def harvester(job: HarvestJob) -> Harvest:
    model = cast(nn.Module, AutoModelForCausalLM.from_pretrained(job.model)).eval().to(DEVICE)
    module = model.get_submodule(f"transformer.h.{job.layer}.mlp")

    @torch.no_grad()
    def run(tokens: torch.Tensor, _: Path) -> Callable[[int], torch.Tensor]:
        kept: list[torch.Tensor] = []
        hook = module.register_forward_hook(lambda _m, _i, out: kept.append(out.flatten(0, 1).half().cpu()))
        for batch in tokens.to(DEVICE).split(CONTEXTS):
            with torch.autocast(DEVICE, torch.bfloat16, enabled=job.mode == "autocast"):
                model(input_ids=batch)
        hook.remove()
        return lambda n: torch.cat(kept)[:n]

    return run


def versions() -> Mapping[str, str]:
    return {"transformers": transformers.__version__, "torch": torch.__version__}


if __name__ == "__main__":
    main(versions, harvester=harvester)
