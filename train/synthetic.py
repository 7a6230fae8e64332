"""Activations made of known sparse features, so that what a dictionary finds can be marked right or wrong.

    x = sum over features i of a_i d_i + bias (+ noise)

The model is that of SynthSAEBench (Chanin & Garriga-Alonso 2026, arXiv:2602.14687, §3; the facts
as in `sae_lens.synthetic` 6.54.12):

- *Firing.* A Gaussian copula: feature i fires where `F_i . eps + sqrt(1 - |F_i|^2) eta_i` exceeds
  its 1 - p_i quantile, with factors eps common to the row and eta_i its own, all N(0, 1).
- *Magnitude.* `a_i = relu(mean_i + std_i N(0, 1))`; a feature of magnitude 0 has not fired.
- *Hierarchy.* A forest. A child can fire only where its parent does; of siblings that would fire,
  one is kept, each with the same chance; a child's magnitude is multiplied by `a_parent / mean_parent`.
- *Directions.* Unit vectors, pushed apart by some steps of Adam.

Drawn as it is written here, a batch would take `batch * n_features` normal numbers. They are not
drawn, nor are features ever dense: see `Synthetic._without_parent` and `_children`.

(Longer than most files: one model, with its configuration.)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize
from torch.special import ndtr, ndtri

from sae.config import Natural, NonNegativeFloat, Positive, PositiveFloat, Share, config, to_json
from sae.harvest import moments
from sae.latents import Latents
from sae.stage import stage
from sae.store import DTYPES, ActivationStore, StoredSplit, write_shard

CHUNK_ROWS = 256  # rows whose scores are computed together: they stay in the cache
RARE = 1 / 64  # chance below which firings are found by skips; 1/32 and 1/128 are slower
MAX_COMMON = 0.99  # share of a feature's variance that the common factors may have
PARAMETERS, SAMPLES = 20, 21  # purposes of random streams, beside the seed
STEP_ROWS, SHARD_STEPS = 4096, 32  # rows of a batch that is written to disk, and batches of a file


@config
class SyntheticConfig:
    """A world of features. The defaults are SynthSAEBench-16k, version 2 (its seed is 42)."""

    n_features: Positive = 16384
    """Features, the most frequent first."""
    d_in: Positive = 768
    """Dimensions of an activation."""
    p_max: Share = 0.4
    """Chance that the first feature fires."""
    p_min: Share = 5e-4
    """Chance that the last feature fires; those between follow `rank^-zipf`, stretched to these ends."""
    zipf: PositiveFloat = 0.5
    """Exponent of Zipf's law."""
    n_roots: Natural = 128
    """Trees, of which the first features are the roots; children follow breadth first. 0 means no
    hierarchy. Features beyond the trees are on their own."""
    branching: Positive = 4
    """Children of a feature that has any."""
    depth: Positive = 3
    """Generations below a root."""
    is_exclusive: bool = True
    """Of siblings at most one fires."""
    is_compensated: bool = True
    """A child's chance, where its parent fires, is `p / p_parent`, times 1 + the sum of that over its
    siblings if they exclude one another, and at most 1; else p. With exclusion this is the benchmark's
    own approximation, after which frequencies are not the p of Zipf's law."""
    is_scaled_by_parent: bool = True
    """A child's magnitude follows that of its parent (what is new in version 2)."""
    rank: Natural = 25
    """Common factors of the copula; 0 means that features fire independently."""
    correlation: NonNegativeFloat = 0.1
    """Standard deviation of the factors' loadings."""
    mean_magnitude: tuple[PositiveFloat, PositiveFloat] = (5.0, 4.0)
    """Mean magnitude of the first and the last feature, before the relu; linear between."""
    std_magnitude: tuple[NonNegativeFloat, NonNegativeFloat] = (0.5, 0.5)
    """m and s: a feature's standard deviation of magnitude is a draw of `|N(m, s^2)|`."""
    bias_norm: NonNegativeFloat = 0.5
    """Length of the bias."""
    orthogonal_steps: Natural = 100
    """Steps of Adam that push the directions apart; 0 leaves them random."""
    orthogonal_lr: PositiveFloat = 3e-4
    """Their learning rate."""
    noise: NonNegativeFloat = 0.0
    """Standard deviation of the isotropic noise on every dimension; not in the benchmark."""
    anisotropy: NonNegativeFloat = 0.0
    """Coordinate j = 1, 2, ... of every direction is multiplied by `j^-anisotropy` before it is made a
    unit vector: a few dimensions then carry most of the variance, as in networks. Not in the benchmark."""

    def __post_init__(self) -> None:
        if self.n_features < 2:
            raise ValueError(f"synthetic.n_features = {self.n_features}: must be at least 2")
        if not 0 < self.p_min < self.p_max:
            raise ValueError(f"synthetic.p_min = {self.p_min}: must be more than 0 and less than p_max = {self.p_max}")
        if self.n_tree > self.n_features:
            raise ValueError(
                f"synthetic.n_roots = {self.n_roots}: trees of branching {self.branching} and depth {self.depth} "
                f"have {self.n_tree} features; must be at most n_features = {self.n_features}"
            )

    @property
    def n_parents(self) -> int:
        """Features with children; they are the first."""
        return self.n_roots * sum(self.branching**level for level in range(self.depth))

    @property
    def n_tree(self) -> int:
        """Features in trees. The children of feature i are `n_roots + branching * i ...`."""
        return self.n_roots + self.branching * self.n_parents


SYNTH_SAE_BENCH_16K = SyntheticConfig()
"""The published benchmark: 34 features fire at a time, 25 of the 4,096 most frequent."""
SMALL = SyntheticConfig(
    n_features=64, d_in=32, p_max=0.3, p_min=0.01, zipf=1.0, n_roots=0, rank=0, orthogonal_steps=200, orthogonal_lr=0.01
)
"""For tests: twice as many features as dimensions, independent, learnt in seconds."""


@dataclass(frozen=True)
class SyntheticBatch:
    """Activations, and the features that they are made of."""

    x: Float[Tensor, "batch d_in"]
    features: Latents
    """Those that fire, in ascending order within a row; their values are the magnitudes a_i."""


class _Firings(NamedTuple):
    """Entries of a batch that fire, all with a magnitude above 0."""

    rows: np.ndarray
    features: np.ndarray
    values: np.ndarray


class Synthetic:
    """The world that `cfg` and a seed stand for: `sample(step, batch)` draws from it.

    To push the benchmark's directions apart takes 100 s on one thread; all else is a second.
    """

    def __init__(self, cfg: SyntheticConfig, seed: int) -> None:
        self.cfg, self.seed = cfg, seed
        rng = np.random.default_rng((seed, PARAMETERS))
        self.probabilities = _zipf(cfg)
        """`[n_features]`, float64: Zipf's p_i, the chance to fire of a feature without a parent."""
        self.given_parent = _given_parent(cfg, self.probabilities)
        """`[n_features]`, float64: chance to fire where the parent fires, before siblings exclude one another."""
        self.parents = _parents(cfg)
        """`[n_features]`: each feature's parent, or -1."""
        self.directions = _directions(cfg, rng)
        """`[n_features, d_in]`, unit rows."""
        bias = torch.from_numpy(rng.standard_normal(cfg.d_in, dtype=np.float32))
        self.bias = cfg.bias_norm * normalize(bias, dim=0)
        """`[d_in]`"""
        self.loadings = _loadings(cfg, rng)
        """`[n_features, rank]`: rows F_i of the copula."""
        self.means = torch.linspace(*cfg.mean_magnitude, cfg.n_features)
        """`[n_features]`: mean magnitudes, before the relu."""
        m, s = cfg.std_magnitude
        self.stds = torch.from_numpy(np.abs(m + s * rng.standard_normal(cfg.n_features, dtype=np.float32)))
        """`[n_features]`: their standard deviations."""
        self._scores = _scores(self.loadings, self.given_parent)

    def sample(self, step: int, batch: int) -> SyntheticBatch:
        """The batch of this step: a pure function of configuration, seed, step and size."""
        # 1,024 rows of the benchmark take 25 ms on one thread of an AMD EPYC, 40,000 rows/s (sae-lens: 760 rows/s)
        rng = np.random.default_rng((self.seed, SAMPLES, step))
        factors = rng.standard_normal((batch, self.cfg.rank + 1), dtype=np.float32)
        factors[:, -1] = 1  # meets the thresholds in the scores' last column
        levels = [self._without_parent(rng, factors)]
        for _ in range(self.cfg.depth):
            levels.append(self._children(rng, factors, levels[-1]))
        features = _latents(levels, batch, self.cfg.n_features)
        x = self.bias + embedding_bag(
            features.indices,
            self.directions,
            features.offsets,
            mode="sum",
            per_sample_weights=features.values,
            include_last_offset=True,
        )
        if self.cfg.noise:
            x += self.cfg.noise * torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32))
        return SyntheticBatch(x, features)

    def _without_parent(self, rng: np.random.Generator, factors: np.ndarray) -> _Firings:
        """Firings of the roots and of the features outside of trees.

        Given the factors, features fire independently, feature i with chance `P = Phi(z)`,
        `z = (F_i . eps + Phi^-1(p_i)) / sqrt(1 - |F_i|^2)`. Where P > RARE a uniform number is drawn.
        Elsewhere firings are thinned: every entry is a candidate with chance RARE, found by
        geometric skips, and a candidate fires with chance P / RARE. Both are exact; a uniform for
        every entry would take most of the time.
        """
        alone = np.flatnonzero(self.parents.numpy() < 0)
        scores = torch.from_numpy(self._scores[alone]).T
        limit = ndtri(torch.tensor(RARE)).item()
        rows, features = [], []
        for start in range(0, len(factors), CHUNK_ROWS):
            z = (torch.from_numpy(factors[start : start + CHUNK_ROWS]) @ scores).flatten().numpy()
            common = np.flatnonzero(z > limit)
            common = common[rng.random(len(common)) < _phi(z[common])]
            rare = _skips(rng, len(z), RARE)
            rare = rare[z[rare] <= limit]
            rare = rare[RARE * rng.random(len(rare)) < _phi(z[rare])]
            row, column = np.divmod(np.concatenate([common, rare]), len(alone))
            rows.append(start + row)
            features.append(alone[column])
        return self._with_magnitudes(rng, np.concatenate(rows), np.concatenate(features))

    def _children(self, rng: np.random.Generator, factors: np.ndarray, parents: _Firings) -> _Firings:
        """Firings of the children of `parents`. Those of other parents could not fire, and are not drawn."""
        cfg = self.cfg
        rows, features, values = (part[parents.features < cfg.n_parents] for part in parents)
        children = cfg.n_roots + cfg.branching * features[:, None] + np.arange(cfg.branching)
        z = np.einsum("nr,ncr->nc", factors[rows], self._scores[children])
        place, child = np.nonzero(rng.random(z.shape) < _phi(z))
        own = self._with_magnitudes(rng, place, children[place, child])
        if cfg.is_exclusive:
            own = _one_a_row(rng, own)
        if cfg.is_scaled_by_parent:
            scale = values / self.means.numpy()[features]
            own = own._replace(values=own.values * scale[own.rows])
        return own._replace(rows=rows[own.rows])

    def _with_magnitudes(self, rng: np.random.Generator, rows: np.ndarray, features: np.ndarray) -> _Firings:
        """Entries that pass the copula, less those whose magnitude is 0."""
        noise = rng.standard_normal(len(features), dtype=np.float32)
        values = self.means.numpy()[features] + self.stds.numpy()[features] * noise
        kept = values > 0
        return _Firings(rows[kept], features[kept], values[kept])


def store(
    synthetic: Synthetic, rows: Mapping[str, int], path: Path, dtype: str = "bfloat16", first_step: int = 0
) -> ActivationStore:
    """The box at `path` with activations for a trainer, as site `synthetic`; made only if it is not there yet.

    Splits take the steps one after another, STEP_ROWS rows a step: with `{"train": 8192, "select": 4096}`
    the rows of `train` are those of `sample(0, STEP_ROWS)` and `sample(1, STEP_ROWS)`, rounded to
    `dtype`, and those of `select` are `sample(2, STEP_ROWS)`.

    Args:
        rows: rows of each split; `train` is one of them.
        dtype: a name in `sae.store.DTYPES`.
        first_step: in the place of 0 above, for stores of one world that share no rows.

    Raises:
        StoreError: an activation does not fit `dtype`.
    """
    inputs = {"synthetic": to_json(synthetic.cfg), "seed": synthetic.seed, "rows": dict(rows), "dtype": dtype}
    inputs["first_step"] = first_step

    def build(out: Path) -> dict[str, Any]:
        splits, step = {}, first_step
        for name, n_rows in rows.items():
            splits[name] = _write(synthetic, step, n_rows, out / "synthetic", name, DTYPES[dtype])
            step += -(-n_rows // STEP_ROWS)
        train = StoredSplit.of([[(out / file, rows) for file, rows in splits["train"]]])
        facts = {"splits": splits, **moments(train)[0]}
        return {"sites": {"synthetic": facts}, "skip_positions": 0, "dtype": dtype}

    return ActivationStore(stage(path, inputs, build))


def _write(
    synthetic: Synthetic, first_step: int, n_rows: int, folder: Path, split: str, dtype: torch.dtype
) -> list[tuple[str, int]]:
    """Write the shards of a split that are not there yet; returns their names in the box and their rows."""
    shards = []
    for number, start in enumerate(range(0, n_rows, STEP_ROWS * SHARD_STEPS)):
        stop = min(start + STEP_ROWS * SHARD_STEPS, n_rows)
        path = folder / f"{split}-{number:05d}.safetensors"
        if not path.exists():
            steps = range(first_step + start // STEP_ROWS, first_step - (-stop // STEP_ROWS))
            x = torch.cat([synthetic.sample(step, STEP_ROWS).x for step in steps])
            write_shard(path, x[: stop - start], dtype)
        shards.append((f"{folder.name}/{path.name}", stop - start))
    return shards


def _zipf(cfg: SyntheticConfig) -> Float[Tensor, " n_features"]:
    raw = torch.arange(1, cfg.n_features + 1, dtype=torch.float64) ** -cfg.zipf
    return cfg.p_min + (cfg.p_max - cfg.p_min) * (raw - raw[-1]) / (raw[0] - raw[-1])


def _parents(cfg: SyntheticConfig) -> Int[Tensor, " n_features"]:
    parents = torch.full((cfg.n_features,), -1)
    parents[cfg.n_roots : cfg.n_tree] = torch.arange(cfg.n_parents).repeat_interleave(cfg.branching)
    return parents


def _given_parent(cfg: SyntheticConfig, p: Float[Tensor, " n_features"]) -> Float[Tensor, " n_features"]:
    given = p.clone()
    if cfg.is_compensated:
        chance = p[cfg.n_roots : cfg.n_tree].view(cfg.n_parents, cfg.branching) / p[: cfg.n_parents, None]
        if cfg.is_exclusive:
            chance = chance * (1 + chance.sum(1, keepdim=True) - chance)
        given[cfg.n_roots : cfg.n_tree] = chance.clamp(max=1).flatten()
    return given


def _directions(cfg: SyntheticConfig, rng: np.random.Generator) -> Float[Tensor, "n_features d_in"]:
    directions = normalize(torch.from_numpy(rng.standard_normal((cfg.n_features, cfg.d_in), dtype=np.float32)), dim=1)
    directions = orthogonalise(directions, cfg.orthogonal_steps, cfg.orthogonal_lr)
    return normalize(directions * torch.arange(1, cfg.d_in + 1) ** -cfg.anisotropy, dim=1)


def orthogonalise(directions: Float[Tensor, "n d"], steps: int, lr: float) -> Float[Tensor, "n d"]:
    """Unit rows after `steps` of Adam on `sum over i != j of (d_i . d_j)^2 + n sum over i of (|d_i|^2 - 1)^2`.

    The gradient is written out: it needs the d^2 numbers of D^T D where autograd on the sum would go
    through n^2 products.
    """
    rows = directions.clone()
    optimizer = torch.optim.Adam([rows], lr=lr)
    for _ in range(steps):
        squares = rows.square().sum(1, keepdim=True)
        rows.grad = 4 * (rows @ (rows.T @ rows) - squares * rows + len(rows) * (squares - 1) * rows)
        optimizer.step()
    return normalize(rows, dim=1)


def _loadings(cfg: SyntheticConfig, rng: np.random.Generator) -> Float[Tensor, "n_features rank"]:
    loadings = cfg.correlation * torch.from_numpy(rng.standard_normal((cfg.n_features, cfg.rank)))
    common = loadings.square().sum(1, keepdim=True)
    return torch.where(common > MAX_COMMON, loadings * (MAX_COMMON / common).sqrt(), loadings)


def _scores(loadings: Float[Tensor, "n_features rank"], p: Float[Tensor, " n_features"]) -> np.ndarray:
    """`[n_features, rank + 1]`, float32: a row times (eps, 1) is z, of which Phi is the chance to fire."""
    own = (1 - loadings.square().sum(1, keepdim=True)).sqrt()
    return (torch.cat([loadings, ndtri(p)[:, None]], dim=1) / own).float().numpy()


def _phi(z: np.ndarray) -> np.ndarray:
    """The normal distribution function, in float64."""
    return ndtr(torch.from_numpy(z).double()).numpy()


def _skips(rng: np.random.Generator, n: int, chance: float) -> np.ndarray:
    """Which of n trials succeed, each with the same chance: drawn as the distances between them."""
    found = [np.zeros(0, dtype=np.int64)]
    last = -1
    while last < n:
        expected = (n - last) * chance
        places = last + np.cumsum(rng.geometric(chance, int(expected + 4 * expected**0.5) + 1))
        found.append(places)
        last = int(places[-1])
    places = np.concatenate(found)
    return places[: np.searchsorted(places, n)]


def _one_a_row(rng: np.random.Generator, firings: _Firings) -> _Firings:
    """Of the firings in each row, which are in ascending order, one; each with the same chance."""
    starts = np.flatnonzero(np.diff(firings.rows, prepend=-1))
    n_rivals = np.diff(starts, append=len(firings.rows))
    winners = starts + (rng.random(len(starts)) * n_rivals).astype(np.int64)
    return _Firings(*(part[winners] for part in firings))


def _latents(levels: list[_Firings], batch: int, n_features: int) -> Latents:
    rows, features, values = (np.concatenate(parts) for parts in zip(*levels, strict=True))
    order = np.argsort(rows * n_features + features)
    offsets = np.concatenate([[0], np.bincount(rows, minlength=batch).cumsum()])
    magnitudes = torch.from_numpy(values[order])
    return Latents(magnitudes, torch.from_numpy(features[order]), torch.from_numpy(offsets), magnitudes, n_features)
