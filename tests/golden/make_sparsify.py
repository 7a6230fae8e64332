"""Golden checkpoints of EleutherAI's `sparsify`, written by its own `SparseCoder` and `Trainer`.

Package: eai-sparsify==1.3.3 (MIT), torch==2.13.0 CPU:

    python3 -m venv $PEERS/sparsify
    $PEERS/sparsify/bin/pip install torch==2.13.0 eai-sparsify==1.3.3
    export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 SPARSIFY_DISABLE_TRITON=1
    $PEERS/sparsify/bin/python tests/golden/make_sparsify.py

`<case>/cfg.json` + `sae.safetensors` are `SparseCoder.save_to_disk`'s. `run/` is a run folder of `Trainer` on a random
two-layer GPT-2 of width 6, one folder per hookpoint, without its optimizer_0.pt (9 kB). The package has no d_out: it
is always d_in.
"""

import json
import os
from pathlib import Path

import torch
from datasets import Dataset
from rows import D_IN, N_LATENTS, check_same, fill, generator, rows, save_expected
from sparsify import SparseCoder, SparseCoderConfig, TrainConfig, Trainer
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

ORIGIN = "eai-sparsify 1.3.3"
HERE = Path(__file__).parent / "sparsify"


def encode_dense(coder: SparseCoder, x: Tensor) -> Tensor:
    """The package gives its latents as values and indices; here they are scattered into [rows, n_latents]."""
    values, indices, _ = coder.encode(x)
    return torch.zeros(len(x), coder.num_latents, dtype=values.dtype).scatter_(1, indices, values)


def reconstruct(coder: SparseCoder, x: Tensor) -> Tensor:
    """encode, then decode and the skip, as a user of a loaded coder does (`forward` differs with multi_topk)."""
    values, indices, _ = coder.encode(x)
    out = coder.decode(values, indices)
    return out if coder.W_skip is None else out + x @ coder.W_skip.mT


def keep(folder: Path, coder: SparseCoder, seed: int) -> None:
    """Evaluates the folder's checkpoint in float32, as read back by the package, and compares it with `coder`."""
    again = SparseCoder.load_from_disk(folder).float()
    centre = None if coder.cfg.transcode else again.b_dec
    x = rows(lambda x: encode_dense(again, x), seed, centre)
    with torch.no_grad():
        latents, recon, forward = encode_dense(again, x), reconstruct(again, x), again(x)
        check_same((encode_dense(coder, x), reconstruct(coder, x)), (latents, recon), folder.name)
    more = {}
    if coder.cfg.multi_topk:
        dense = torch.zeros(len(x), again.num_latents)
        more = {
            "forward_latents": dense.scatter_(1, forward.latent_indices, forward.latent_acts),
            "forward_recon": forward.sae_out,
        }
    else:
        check_same((recon,), (forward.sae_out,), f"{folder.name} by forward")
    save_expected(folder, ORIGIN, x, latents, recon, **more)


def make_random() -> None:
    config = {"num_latents": N_LATENTS, "k": 4}
    cases = {
        "topk": SparseCoderConfig(**config),
        "topk_expansion": SparseCoderConfig(expansion_factor=2, k=4),  # num_latents 0: 2 * d_in = 12 latents
        "topk_early_cfg": SparseCoderConfig(expansion_factor=2, k=4),
        "topk_bfloat16": SparseCoderConfig(**config),
        "multi_topk": SparseCoderConfig(num_latents=N_LATENTS, k=2, multi_topk=True),
        "groupmax": SparseCoderConfig(num_latents=N_LATENTS, k=5, activation="groupmax"),
        "transcode": SparseCoderConfig(**config, transcode=True),
        "skip_transcode": SparseCoderConfig(**config, transcode=True, skip_connection=True),
        "skip_sae": SparseCoderConfig(**config, skip_connection=True),
    }
    for seed, (case, cfg) in enumerate(cases.items(), start=400):
        folder = HERE / case
        coder = SparseCoder(D_IN, cfg)
        fill(coder, seed)
        if case == "topk_bfloat16":
            coder.bfloat16()
        coder.save_to_disk(folder)
        if case == "topk_early_cfg":
            # by hand: the keys that cfg.json had in 2024, before activation, transcode and skip_connection
            kept = {"expansion_factor": 2, "normalize_decoder": True, "num_latents": 0, "k": 4, "d_in": D_IN}
            (folder / "cfg.json").write_text(json.dumps({**kept, "signed": False, "multi_topk": False}))
        keep(folder, coder.float(), seed)


def make_trained() -> None:
    """A few steps of `Trainer` on two hookpoints, with adam so that a learning-rate scheduler is kept too."""
    torch.manual_seed(0)
    network = GPT2LMHeadModel(
        GPT2Config(vocab_size=32, n_positions=16, n_embd=D_IN, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    )
    tokens = torch.randint(0, 32, (64, 16), generator=generator(2))
    data = Dataset.from_dict({"input_ids": tokens.tolist()}).with_format("torch")
    HERE.mkdir(parents=True, exist_ok=True)
    os.chdir(HERE)  # so that the config holds no path of this machine
    cfg = TrainConfig(
        SparseCoderConfig(num_latents=N_LATENTS, k=3),
        batch_size=4,
        hookpoints=["h.*.mlp"],
        optimizer="adam",
        lr=0.01,
        lr_warmup_steps=2,
        auxk_alpha=1 / 32,
        log_to_wandb=False,
        run_name="run",
        save_dir=".",
    )
    trainer = Trainer(cfg, data, network)
    trainer.fit()
    (HERE / "run" / "optimizer_0.pt").unlink()
    for i, (hookpoint, coder) in enumerate(trainer.saes.items()):
        keep(HERE / "run" / hookpoint, coder, 460 + i)


if __name__ == "__main__":
    make_random()
    make_trained()
