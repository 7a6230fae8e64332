"""Golden files laid out like Gemma Scope's and Gemma Scope 2's: no package of theirs writes them, numpy does it here.

`params.npz`, `params.safetensors` and `config.json` are made by hand from the published layout. The outputs are those
of SAELens' own loaders for the two releases, `gemma_2_sae_huggingface_loader`, `gemma_2_transcoder_huggingface_loader`
and `gemma_3_sae_huggingface_loader`, with their download replaced by the file here; a formula in numpy checks them.
Package: sae-lens==6.54.12 (MIT), torch==2.13.0 CPU, environment as in `make_saelens.py`:

    OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $PEERS/saelens/bin/python tests/golden/make_gemma_scope.py
"""

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from rows import D_IN, D_OUT, N_LATENTS, check_same, rows, save_expected
from sae_lens import SAE
from sae_lens.loading import pretrained_sae_loaders as loaders
from safetensors.numpy import load_file, save_file
from torch import Tensor

ORIGIN = "layout of Gemma Scope by numpy, outputs by the loaders of sae-lens 6.54.12"
HERE = Path(__file__).parent / "gemma_scope"

CASES = {
    # case: repository, folder in it, d_out
    "residual": ("google/gemma-scope-2b-pt-res", "layer_5/width_16k/average_l0_7", D_IN),
    "transcoder": ("google/gemma-scope-2b-pt-transcoders", "layer_5/width_16k/average_l0_7", D_OUT),
    "residual_2": ("google/gemma-scope-2-270m-pt", "resid_post/layer_5_width_16k_l0_small", D_IN),
    "transcoder_2": ("google/gemma-scope-2-270m-pt", "transcoder/layer_5_width_16k_l0_small", D_OUT),
    "transcoder_2_affine": ("google/gemma-scope-2-270m-pt", "transcoder/layer_5_width_16k_l0_small_affine", D_OUT),
}


def random_parameters(seed: int, d_out: int) -> dict[str, np.ndarray]:
    g = np.random.default_rng(seed)
    params = {
        "W_enc": 0.7 * g.standard_normal((D_IN, N_LATENTS)),
        "W_dec": 0.7 * g.standard_normal((N_LATENTS, d_out)),
        "b_enc": 0.4 * g.standard_normal(N_LATENTS),
        "b_dec": 0.4 * g.standard_normal(d_out),
        "threshold": 0.5 * np.abs(g.standard_normal(N_LATENTS)),
    }
    # as in rows.fill: one threshold at zero, and a bias that lies exactly on its threshold
    params["threshold"][0] = 0.0
    params["threshold"][2] = params["b_enc"][2] = abs(params["b_enc"][2])
    return {name: value.astype(np.float32) for name, value in params.items()}


def write(case: str, folder: str, d_out: int, seed: int) -> None:
    path = HERE / case / folder
    path.mkdir(parents=True, exist_ok=True)
    params = random_parameters(seed, d_out)
    if not case.endswith(("_2", "_affine")):
        np.savez(path / "params.npz", **params)
        return
    lower = {name.replace("W_", "w_"): value for name, value in params.items()}
    config: dict[str, Any] = {"architecture": "jump_relu", "model_name": "gemma-v3-270m-pt"}
    if case == "residual_2":
        config["hf_hook_point_in"] = "model.layers.5.output"
    else:
        config["hf_hook_point_in"] = "model.layers.5.pre_feedforward_layernorm.output"
        config["hf_hook_point_out"] = "model.layers.5.post_feedforward_layernorm.output"
        config["affine_connection"] = case == "transcoder_2_affine"
    if case == "transcoder_2_affine":
        g = np.random.default_rng(seed + 1)
        lower["affine_skip_connection"] = 0.5 * g.standard_normal((D_IN, d_out)).astype(np.float32)
    save_file(lower, path / "params.safetensors")
    (path / "config.json").write_text(json.dumps(config))


def load(case: str, repository: str, folder: str, d_out: int) -> SAE:
    """SAELens' loader on the local file. The sizes it would take from the names of model and folder are overridden."""
    loader = {
        "residual": loaders.gemma_2_sae_huggingface_loader,
        "transcoder": loaders.gemma_2_transcoder_huggingface_loader,
    }.get(case, loaders.gemma_3_sae_huggingface_loader)
    sizes = {"d_in": D_IN, "d_sae": N_LATENTS} | ({} if case.startswith("residual") else {"d_out": d_out})

    def download(repo_id: str, filename: str, subfolder: str = "", **_: Any) -> str:  # noqa: ARG001
        return str(HERE / case / subfolder / filename)

    def shapes(repo_id: str, filename: str) -> dict[str, list[int]]:
        return {name: list(value.shape) for name, value in load_file(download(repo_id, filename)).items()}

    def convert(path: Any, device: str, cfg_overrides: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:  # noqa: ARG001
        cfg, state, _ = loader(repository, folder, device=device, cfg_overrides=sizes)
        return {**cfg, **sizes}, state  # the transcoders' loader takes no overrides

    with (
        patch.object(loaders, "hf_hub_download", download),
        patch.object(loaders, "get_safetensors_tensor_shapes", shapes),
    ):
        return SAE.load_from_disk("", converter=convert)


def by_formula(folder: Path, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """f = h where h > threshold and h > 0, h = x W_enc + b_enc; y = f W_dec + b_dec (+ x skip), in float64."""
    files = [*folder.glob("params.npz")]
    raw = dict(np.load(files[0])) if files else load_file(folder / "params.safetensors")
    p = {name.lower(): value.astype(np.float64) for name, value in raw.items()}
    h = x @ p["w_enc"] + p["b_enc"]
    f = np.where((h > p["threshold"]) & (h > 0), h, 0.0)
    return f, f @ p["w_dec"] + p["b_dec"] + x @ p.get("affine_skip_connection", np.zeros((D_IN, p["b_dec"].size)))


def main() -> None:
    for seed, (case, (repository, folder, d_out)) in enumerate(CASES.items(), start=600):
        write(case, folder, d_out, seed)
        sae = load(case, repository, folder, d_out)
        x = rows(sae.encode, seed)
        with torch.no_grad():
            latents, recon = sae.encode(x), sae(x)
        check_same(
            (latents, recon),
            (torch.from_numpy(a).float() for a in by_formula(HERE / case / folder, x.double().numpy())),
            f"{case} by formula",
            tolerance=1e-4,
        )
        save_expected(HERE / case, ORIGIN, x, latents, recon)


if __name__ == "__main__":
    main()
