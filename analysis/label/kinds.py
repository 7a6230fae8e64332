"""Kinds of tokens: groups of those that lie close together in the network's own embedding.

Wide kinds hold narrower ones, these hold folds (`folds_of`), so that a rule may name a whole kind, or parts of it. The
groups are Ward's (1963, "Hierarchical grouping to optimize an objective function"): each step joins the two whose
union adds least to the squared distances within groups. No text but the fit split's counts is looked at.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int
from scipy.cluster.hierarchy import fcluster, linkage
from torch import nn

from sae.files import publish

LEVELS = {"wide": 64, "kind": 16, "narrow": 4}
"""Folds to a group, on average, the widest first."""
MAX_FOLDS = 4096
"""Folds that are grouped, the commonest; memory grows with their square. Others join the nearest narrow kind."""


@dataclass(frozen=True, eq=False)
class Kinds:
    """The kinds of a vocabulary at each of `LEVELS`."""

    of: dict[str, np.ndarray]
    """By level `[vocabulary]`, int64: the commonest token of the kind stands for it."""
    counts: np.ndarray
    """`[vocabulary]`: how often each token stands in the fit split."""

    def members(self, level: str, kind: int) -> np.ndarray:
        """The tokens of a kind, the commonest first."""
        tokens = np.flatnonzero(self.of[level] == kind)
        return tokens[np.argsort(-self.counts[tokens], kind="stable")]


def kinds_of(
    embedding: Float[np.ndarray, "rows d"],
    folds: Int[np.ndarray, " vocabulary"],
    counts: Int[np.ndarray, " vocabulary"],
) -> Kinds | None:
    """The kinds of a vocabulary; none if fewer than two folds stand in the text.

    Args:
        embedding: a row for each token id, and maybe some that stand for none.
        folds: what counts as one word, see `folds_of`.
        counts: how often each token stands in the fit split.
    """
    heads, fold = np.unique(folds, return_inverse=True)
    n_uses = np.bincount(fold, weights=counts)
    rows = np.zeros((len(heads), embedding.shape[1]))
    np.add.at(rows, fold, embedding[: len(folds)])
    rows /= np.bincount(fold)[:, None]
    common = np.argsort(-n_uses, kind="stable")[: min(MAX_FOLDS, int((n_uses > 0).sum()))]
    if len(common) < 2:
        return None
    rows -= rows[common].mean(axis=0)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    tree = linkage(rows[common], "ward")
    groups = {name: fcluster(tree, max(1, len(common) // size), "maxclust") - 1 for name, size in LEVELS.items()}
    narrow = groups["narrow"]
    centres = np.zeros((narrow.max() + 1, rows.shape[1]))
    np.add.at(centres, narrow, rows[common])
    centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)
    nearest = np.argmax(rows @ centres.T, axis=1)
    nearest[common] = narrow
    of = {}
    for name, group in groups.items():
        above = np.zeros(len(centres), dtype=np.int64)
        above[narrow] = group  # kinds of a level hold narrow ones whole
        of[name] = _by_commonest(above[nearest][fold], counts)
    return Kinds(of, counts)


def write(kinds: Kinds, path: Path) -> None:
    """Publish a table of `token` and its kind at each level."""
    groups = pa.table({"token": np.arange(len(kinds.counts)), **kinds.of})
    publish(path, lambda temporary: pq.write_table(groups, temporary))


def read(path: Path, counts: Int[np.ndarray, " vocabulary"]) -> Kinds:
    """What `write` wrote; `counts` as for `kinds_of`."""
    groups = pq.read_table(path)
    return Kinds({level: groups[level].to_numpy() for level in LEVELS}, counts)


def embedding(model: nn.Module) -> Float[np.ndarray, "rows d"] | None:
    """The row that a network reads for each token id; none if it has no such table."""
    table = getattr(model, "get_input_embeddings", lambda: None)()
    return None if table is None else table.weight.detach().float().cpu().numpy()


def _by_commonest(groups: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Each group's commonest token in the place of its number."""
    order = np.argsort(-counts, kind="stable")
    numbers, first = np.unique(groups[order], return_index=True)
    heads = np.zeros(numbers.max() + 1, dtype=np.int64)
    heads[numbers] = order[first]
    return heads[groups]
