"""Golden checkpoints of SAELens, written by its own classes.

Package: sae-lens==6.54.12 (MIT), torch==2.13.0 CPU:

    python3 -m venv $PEERS/saelens
    $PEERS/saelens/bin/pip install torch==2.13.0 sae-lens==6.54.12
    export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONHASHSEED=0
    $PEERS/saelens/bin/python tests/golden/make_saelens.py

`<case>/` is what `save_model` writes. A case `<case>_inference` beside it is `save_inference_model` of the same object;
PYTHONHASHSEED because that writes the keys of cfg.json in the order of a set. Checkpoints of training runs are made by
`make_saelens_trained.py`.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rows import D_IN, D_OUT, N_LATENTS, check_same, fill, generator, rows, save_expected
from sae_lens import (
    SAE,
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    TrainingSAE,
)
from sae_lens.registry import get_sae_class
from sae_lens.saes.sae import SAEMetadata
from torch import Tensor

ORIGIN = "sae-lens 6.54.12"
HERE = Path(__file__).parent / "saelens"
THRESHOLD = 0.6180339887  # of batch top-k; a float64 that no float32 equals

METADATA = {
    "model_name": "gpt2-small",
    "model_class_name": "HookedTransformer",
    "hook_name": "blocks.5.hook_mlp_out",
    "hook_head_index": None,
    "context_size": 128,
    "prepend_bos": True,
    "dataset_path": "Skylion007/openwebtext",
    "neuronpedia_id": "gpt2-small/5-mlp-test",
}
TRANSCODER_METADATA = {
    **METADATA,
    "hook_name": "blocks.5.ln2.hook_normalized",
    "hook_name_out": "blocks.5.hook_mlp_out",
}

SAES: dict[str, tuple[str, dict[str, Any]]] = {
    "standard": ("standard", {}),
    "standard_no_b_dec": ("standard", {"apply_b_dec_to_input": False}),
    "standard_layer_norm": ("standard", {"normalize_activations": "layer_norm"}),
    "standard_constant_norm": ("standard", {"normalize_activations": "constant_norm_rescale"}),
    "standard_bfloat16": ("standard", {"dtype": "bfloat16"}),
    "standard_hook_z": ("standard", {"reshape_activations": "hook_z"}),
    "gated": ("gated", {}),
    "gated_no_b_dec": ("gated", {"apply_b_dec_to_input": False}),
    "topk": ("topk", {"k": 4}),
    "topk_rescale": ("topk", {"k": 4, "rescale_acts_by_decoder_norm": True}),
    "topk_layer_norm": ("topk", {"k": 4, "normalize_activations": "layer_norm"}),
    "abstopk": ("abstopk", {"k": 4}),
    "abstopk_rescale": ("abstopk", {"k": 4, "rescale_acts_by_decoder_norm": True}),
    "jumprelu": ("jumprelu", {"apply_b_dec_to_input": False}),
    "jumprelu_b_dec": ("jumprelu", {}),
    "matching_pursuit": ("matching_pursuit", {"residual_threshold": 0.3, "max_iterations": 5}),
    "matching_pursuit_no_b_dec": (
        "matching_pursuit",
        {"residual_threshold": 0.0, "stop_on_duplicate_support": False, "apply_b_dec_to_input": False},
    ),
    "transcoder": ("transcoder", {}),
    "skip_transcoder": ("skip_transcoder", {}),
    "skip_transcoder_layer_norm": ("skip_transcoder", {"normalize_activations": "layer_norm"}),
    "jumprelu_transcoder": ("jumprelu_transcoder", {}),
    "jumprelu_skip_transcoder": ("jumprelu_skip_transcoder", {}),
}


def centre_of(sae: SAE) -> Tensor | None:
    return sae.b_dec if sae.cfg.apply_b_dec_to_input and sae.cfg.normalize_activations == "none" else None


def keep(folder: Path, sae: SAE, seed: int, **load: Any) -> None:
    """Evaluates the folder's checkpoint, as read back by `SAE.load_from_disk`, and compares it with `sae`.

    A hook_z SAE takes [..., heads, d_head]; it is given the rows as two heads of three, and its rows are kept flat.
    """
    again = SAE.load_from_disk(folder, **load)
    heads = (2, D_IN // 2) if again.hook_z_reshaping_mode else (D_IN,)
    x = rows(lambda x: again.encode(x.unflatten(-1, heads)), seed, centre_of(again))
    with torch.no_grad():
        # an SAE in hook_z mode fixes its shape at the first call; encode and forward share it
        latents, recon = again.encode(x.unflatten(-1, heads)), again(x.unflatten(-1, heads))
        if not load:
            check_same((sae.encode(x.unflatten(-1, heads)),), (latents,), folder.name)
            check_same((sae(x.unflatten(-1, heads)),), (recon,), folder.name)
    save_expected(folder, ORIGIN, x, latents, recon.flatten(1))


def make_saes() -> None:
    for seed, (case, (architecture, own)) in enumerate(SAES.items(), start=100):
        sae_class, config_class = get_sae_class(architecture)
        transcodes = "transcoder" in architecture
        metadata = dict(TRANSCODER_METADATA if transcodes else METADATA)
        if case == "standard_hook_z":
            metadata["hook_name"] = "blocks.5.attn.hook_z"
        fields = {"d_out": D_OUT, "apply_b_dec_to_input": False, **own} if transcodes else own
        sae = sae_class(config_class(d_in=D_IN, d_sae=N_LATENTS, metadata=SAEMetadata(**metadata), **fields))
        fill(sae, seed)
        if architecture == "matching_pursuit":  # values times rows of norm above sqrt(2) would diverge
            sae.W_dec.data *= 0.9 / sae.W_dec.data.norm(dim=-1, keepdim=True)
            sae.W_dec.data *= torch.linspace(0.8, 1.2, N_LATENTS)[:, None]
        sae.save_model(HERE / case)
        load = {"dtype": "float32"} if case == "standard_bfloat16" else {}
        keep(HERE / case, sae, seed, **load)


def make_temporal() -> None:
    """Rows 0 to 6 are one sequence: its latents depend on the rows before. `recon` is `forward`'s, from both codes."""
    sae_class, config_class = get_sae_class("temporal")
    cfg = config_class(
        d_in=D_IN, d_sae=N_LATENTS, n_heads=1, bottleneck_factor=2, kval_topk=3, metadata=SAEMetadata(**METADATA)
    )
    sae = sae_class(cfg)
    fill(sae, 140)
    sae.save_model(HERE / "temporal")
    again = SAE.load_from_disk(HERE / "temporal")
    x = 3 * torch.randn(7, D_IN, generator=generator(140))
    with torch.no_grad():
        latents, recon = again.encode(x[None])[0], again(x[None])[0]
        check_same((sae(x[None])[0],), (recon,), "temporal")
    save_expected(HERE / "temporal", ORIGIN, x, latents, recon)


def make_batch_topk() -> None:
    """Training checkpoints and their inference saves.

    `latents`, `recon` of both are the inference save's, a threshold. `batch_latents`, `batch_recon` are the training
    class's own: the largest k * 7 of all seven rows together.
    """
    common = {"d_in": D_IN, "d_sae": N_LATENTS, "k": 3.5}
    batch, matryoshka = BatchTopKTrainingSAEConfig, MatryoshkaBatchTopKTrainingSAEConfig
    plain = {"rescale_acts_by_decoder_norm": False}
    cases = {
        "batchtopk": BatchTopKTrainingSAE(batch(**common)),
        "batchtopk_no_rescale": BatchTopKTrainingSAE(batch(**common, **plain)),
        "matryoshka": MatryoshkaBatchTopKTrainingSAE(matryoshka(**common, matryoshka_widths=[2, 5, 10])),
    }
    for seed, (case, sae) in enumerate(cases.items(), start=150):
        for key, value in METADATA.items():
            sae.cfg.metadata[key] = value
        fill(sae, seed)
        sae.topk_threshold.fill_(THRESHOLD)
        sae.save_model(HERE / case)
        keep_training(HERE / case, seed, inference=HERE / f"{case}_inference")


def inference_of(training: TrainingSAE, folder: Path | None = None) -> SAE:
    """A training object's inference save, read back; kept in `folder` if one is given."""
    with TemporaryDirectory() as scratch:
        training.save_inference_model(folder or scratch)
        return SAE.load_from_disk(folder or scratch)


def keep_training(folder: Path, seed: int, inference: Path | None = None) -> None:
    """Evaluates the inference save of a training checkpoint, for the checkpoint and for the folder `inference`."""
    training = TrainingSAE.load_from_disk(folder)
    sae = inference_of(training, inference)
    x = rows(sae.encode, seed, centre_of(sae))
    more = {}
    with torch.no_grad():
        latents, recon = sae.encode(x), sae(x)
        if isinstance(training, BatchTopKTrainingSAE):
            more = {"batch_latents": training.encode(x), "batch_recon": training(x)}
        else:
            check_same((training.encode(x), training(x)), (latents, recon), f"{folder}, inference save")
    save_expected(folder, ORIGIN, x, latents, recon, **more)
    if inference is not None:
        save_expected(inference, ORIGIN, x, latents, recon)


def make_pre_6() -> None:
    """By hand: the cfg.json of the OpenAI v5 copies on the hub, as published before SAELens 6, read by SAELens."""
    folder = HERE / "pre_6_topk_layer_norm"
    sae_class, config_class = get_sae_class("topk")
    sae = sae_class(config_class(d_in=D_IN, d_sae=N_LATENTS, k=4, normalize_activations="layer_norm"))
    fill(sae, 160)
    sae.save_model(folder)
    cfg = {
        "architecture": "standard",
        "d_in": D_IN,
        "d_sae": N_LATENTS,
        "dtype": "torch.float32",
        "device": "cpu",
        "model_name": "gpt2-small",
        "hook_name": "blocks.0.hook_resid_mid",
        "hook_layer": 0,
        "hook_head_index": None,
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 4},
        "apply_b_dec_to_input": True,
        "finetuning_scaling_factor": False,
        "sae_lens_training_version": None,
        "prepend_bos": False,
        "dataset_path": "Skylion007/openwebtext",
        "context_size": 64,
        "normalize_activations": "layer_norm",
    }
    (folder / "cfg.json").write_text(json.dumps(cfg))
    keep(folder, sae, 160)


if __name__ == "__main__":
    make_saes()
    make_temporal()
    make_batch_topk()
    make_pre_6()
