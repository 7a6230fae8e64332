"""sparsify (`eai-sparsify` on PyPI): its `SparseCoder`, in the step of its `Trainer` on stored rows.

Its trainer takes rows from a network's forward pass only, so that what it does with them (`trainer.py`,
the hook and the update) is done here: the mean of the first batch as `b_dec`, unit rows before each step,
its loss, the parallel gradient removed, Adam with the job's learning rate. TopK is all that it has.
Everything else is its default, among it: no AuxK, no clipping.
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.peers.exchange import DEVICE, Batches, Codes, Found, Job
from benchmarks.peers.process import main

KNOBS = {"topk": "k"}


def settings(architecture: str, knob: float, prefixes: Sequence[int], steps: int) -> dict[str, Any]:  # noqa: ARG001
    """The fields of its configuration that we set."""
    return {KNOBS[architecture]: knob}


def train(job: Job) -> Found:
    from sparsify import SparseCoder, SparseCoderConfig  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

    cfg = SparseCoderConfig(num_latents=job.n_latents, **job.settings)
    coder = SparseCoder(job.d_in, cfg, device=DEVICE, dtype=torch.float32)
    optimizer = torch.optim.Adam(coder.parameters(), lr=job.lr)
    start, decay = job.steps - job.steps // 5, max(1, job.steps // 5)
    schedule = LambdaLR(optimizer, lambda step: min(1.0, (job.steps - step) / decay) if step > start else 1.0)
    silent = torch.zeros(job.n_latents, dtype=torch.long, device=DEVICE)
    for step, rows in enumerate(Batches(job)):
        if step == 0:
            coder.b_dec.data = rows.mean(0)
        coder.set_decoder_norm_to_unit_norm()
        out = coder(x=rows, y=rows)
        fired = torch.zeros(job.n_latents, dtype=torch.bool, device=DEVICE)
        fired[out.latent_indices.flatten()] = True
        (out.fvu + out.multi_topk_fvu / 8).backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        silent += len(rows)
        silent[fired] = 0
    return Found(lambda x: _codes(coder.encode(x)), lambda x: coder(x).sae_out, coder.W_dec, coder.b_dec)


def _codes(found: Any) -> Codes:
    fired = found.top_acts > 0
    return Codes(found.top_acts[fired], found.top_indices[fired].int(), fired.sum(1))


def versions() -> Mapping[str, str]:
    return {"eai-sparsify": version("eai-sparsify"), "torch": torch.__version__}


if __name__ == "__main__":
    main(versions, train)
