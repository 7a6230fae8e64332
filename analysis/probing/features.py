"""What a dictionary and the network say of some stretches of text: means over the rows of each."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_matrix, csr_matrix

from analysis.codes import spread_out
from sae.dictionary import Dictionary
from sae.store import Pairs

WINDOW = 8192  # rows that are read at a time


@dataclass(frozen=True, eq=False)
class Features:
    """Of n stretches."""

    latents: csr_matrix
    """`[n, n_latents]`, float64."""
    raw: np.ndarray
    """`[n, d_in]`, float32: what the dictionary reads."""


@torch.no_grad()
def features(dictionary: Dictionary, pairs: Pairs, starts: np.ndarray, stops: np.ndarray) -> Features:
    """Mean latents and mean activations of the stretches of rows `starts[i]:stops[i]`; none is empty, each begins
    where the one before it ends or later."""
    device, n_latents = dictionary.directions.device, len(dictionary.directions)
    sizes = stops - starts
    rows, stretches = spread_out(starts, sizes), np.repeat(np.arange(len(starts)), sizes)
    raw, parts = None, list[coo_matrix]()
    for begin in range(int(starts[0]) // WINDOW * WINDOW, int(stops[-1]), WINDOW):
        first, last = np.searchsorted(rows, [begin, begin + WINDOW])
        if first == last:
            continue
        window = pairs.read(begin, min(begin + WINDOW, pairs.n_rows))[0]
        x = window[torch.from_numpy(rows[first:last] - begin)]
        found = dictionary.encode(x.to(device)).fired()
        active = csr_matrix(
            (found.values.double().cpu().numpy(), found.indices.cpu().numpy(), found.offsets.cpu().numpy()),
            shape=(last - first, n_latents),
        )
        own = stretches[first:last]
        mean = csr_matrix((1 / sizes[own], (own - own[0], np.arange(len(own)))))
        pooled = coo_matrix(mean @ active)
        parts.append(coo_matrix((pooled.data, (pooled.row + own[0], pooled.col)), shape=(len(starts), n_latents)))
        raw = np.zeros((len(starts), x.shape[1]), dtype=np.float32) if raw is None else raw
        raw[own[0] : own[-1] + 1] += mean @ x.double().numpy()
    assert raw is not None
    return Features(_added_up(parts), raw)


def _added_up(parts: list[coo_matrix]) -> csr_matrix:
    """A stretch that reaches over two windows is in both."""
    data, rows, columns = (np.concatenate([getattr(part, name) for part in parts]) for name in ("data", "row", "col"))
    return csr_matrix((data, (rows, columns)), shape=parts[0].shape)
