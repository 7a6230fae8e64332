"""How the directions of a dictionary lie: how far latents repeat each other, and how far they write what they read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sae.dictionary import SAE, Dictionary
from sae.metrics import encoder_cosines, nearest_cosines

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
BINS = 40  # of cosines, from -1 to 1


@dataclass(frozen=True, eq=False)
class Geometry:
    """Cosines, one a latent."""

    max_decoder_cosine_sim: np.ndarray
    """With the most alike of the other decoder rows."""
    max_encoder_cosine_sim: np.ndarray | None
    """The same of encoder rows; None: it has no linear encoder."""
    encoder_decoder_cosine_sim: np.ndarray | None
    """Of what it reads with what it writes; None too of a transcoder, which reads elsewhere."""

    def columns(self) -> Mapping[str, np.ndarray]:
        """Those that are known, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


@torch.no_grad()
def geometry(dictionary: Dictionary) -> Geometry:
    """The cosines of a dictionary's rows."""
    decoder = dictionary.directions.detach()
    encoder = dictionary.W_enc.detach() if isinstance(dictionary, SAE) else None
    own = dictionary.shape.outputs is None and encoder is not None
    return Geometry(
        nearest_cosines(decoder).cpu().double().numpy(),
        None if encoder is None else nearest_cosines(encoder).cpu().double().numpy(),
        encoder_cosines(encoder, decoder).cpu().double().numpy() if own else None,  # type: ignore[arg-type]
    )


def spread(cosines: np.ndarray) -> dict[str, Any]:
    """Mean, quantiles and histogram of cosines `[n]`."""
    counts, edges = np.histogram(np.clip(cosines, -1, 1), bins=BINS, range=(-1, 1))  # a rounded 1 may be more
    found = np.quantile(cosines, QUANTILES).tolist()
    return {
        "mean": float(cosines.mean()),
        "quantiles": {f"{q:g}": value for q, value in zip(QUANTILES, found, strict=True)},
        "edges": [round(edge, 12) for edge in edges.tolist()],
        "counts": counts.tolist(),
    }
