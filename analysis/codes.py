"""The sparse activations of all latents over tokens, one file a split, ordered by latent.

`codes/<split>.safetensors` holds every non-zero activation: latent `l` owns entries
`offsets[l]:offsets[l+1]` of `positions` (ascending, into the split's tokens) and `values`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from safetensors.numpy import load_file

from sae.errors import StoreError
from sae.stage import Box


@dataclass(frozen=True)
class Codes:
    """All non-zero activations on one split, by latent."""

    offsets: np.ndarray
    """`[n_latents + 1]`, int64."""
    positions: np.ndarray
    """`[nnz]`, int32, ascending within a latent."""
    values: np.ndarray
    """`[nnz]`, float32, all > 0."""

    @property
    def n_latents(self) -> int:
        return len(self.offsets) - 1

    def of(self, latent: int) -> tuple[np.ndarray, np.ndarray]:
        """(positions, values) at which `latent` fires."""
        entries = slice(self.offsets[latent], self.offsets[latent + 1])
        return self.positions[entries], self.values[entries]

    def counts(self) -> np.ndarray:
        """Firings of each latent, `[n_latents]`."""
        return np.diff(self.offsets)


def open_codes(box: Box, split: str) -> Codes:
    """The codes of one split.

    Raises:
        StoreError: the box has none for it.
    """
    file = box.path / f"{split}.safetensors"
    if not file.exists():
        raise StoreError(f"{file}: no codes of the {split} split; run the index stage again")
    arrays: Mapping[str, np.ndarray] = load_file(file)
    return Codes(arrays["offsets"], arrays["positions"], arrays["values"])
