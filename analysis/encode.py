"""Activations → codes: every non-zero of every latent, ordered by latent, one file a split."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from tqdm import tqdm

from analysis.codes import Codes
from analysis.config import IndexConfig
from sae import memory
from sae.dictionary import Dictionary
from sae.files import publish
from sae.store import ActivationStore, Pairs, Places
from sae.tokens import TokenStore

ROWS = 8192  # rows encoded at a time


@memory.reused()
def build(
    dictionary: Dictionary,
    n_latents: int,
    activations: ActivationStore,
    places: Places,
    tokens: TokenStore,
    cfg: IndexConfig,
    out: Path,
) -> dict[str, Any]:
    """Write `<split>.safetensors` for every split into `out`; returns the facts of the box.

    A split's file that is there already is from a killed attempt with the same inputs, and whole.
    """
    n_rows = {}
    for name in tokens.splits():
        limit = cfg.tokens if name == "train" else cfg.label_tokens
        positions = tokens.split(name).kept_positions(activations.skip_positions)[:limit]
        n_rows[name] = len(positions)
        path = out / f"{name}.safetensors"
        if path.exists():
            continue
        codes = encode(dictionary, n_latents, activations.pairs(places, name), positions, f"index {name}")
        arrays = {"offsets": codes.offsets, "positions": codes.positions, "values": codes.values}
        publish(path, lambda temporary, arrays=arrays: save_file(arrays, temporary))
    return {"n_rows": n_rows, "n_latents": n_latents, "skip_positions": activations.skip_positions}


@torch.no_grad()
def encode(dictionary: Dictionary, n_latents: int, rows: Pairs, positions: np.ndarray, title: str = "encode") -> Codes:
    """Encode the first `len(positions)` rows, which lie at `positions`, and turn rows into latents."""
    device = dictionary.directions.device
    indices, values, where = [], [], []
    with tqdm(total=len(positions), unit="tok", unit_scale=True, desc=title, mininterval=1.0) as progress:
        for start in range(0, len(positions), ROWS):
            stop = min(start + ROWS, len(positions))
            latents = dictionary.encode(rows.read(start, stop)[0].to(device)).fired()
            indices.append(latents.indices.cpu().numpy().astype(np.int32))
            values.append(latents.values.cpu().numpy())
            where.append(positions[start:stop].astype(np.int32)[latents.rows().cpu().numpy()])
            progress.update(stop - start)
    return by_latent(np.concatenate(indices), np.concatenate(where), np.concatenate(values), n_latents)


def by_latent(indices: np.ndarray, positions: np.ndarray, values: np.ndarray, n_latents: int) -> Codes:
    """Entries in order of position → entries in order of latent, positions still ascending."""
    order = np.argsort(indices, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(indices, minlength=n_latents))])
    return Codes(offsets.astype(np.int64), positions[order], values[order].astype(np.float32))
