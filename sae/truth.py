"""Whether a dictionary has found features that are known: for data from `train.synthetic` and its like.

How well it reconstructs is another question, answered by `sae.metrics.Reconstruction`, whose
`explained_variance` and `l2_ratio` are what SynthSAEBench calls EV and shrinkage. A *feature* is a
true one here.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize

from sae.errors import DataError
from sae.latents import Latents

CLAIM = 0.5  # |cos| from which a latent is taken to stand for a feature
TILT = 0.1  # SAEBench's least cosine of an absorbing latent (Karvonen et al. 2025, arXiv:2503.09532)
BLOCK = 1024  # rows of cosines held at once


class Recovery:
    """Streaming comparison of a dictionary's latents with true features.

    Each latent is judged by its *best feature*, the one with the greatest |cos| to its decoder row,
    and each feature by its *best latent*. A latent is *live* if it has fired. It *claims* its best
    feature if it is live and that |cos| is at least 0.5; a feature is *learnt* if its best latent is
    live and as near.

    | figure              | definition                                                                     |
    |---------------------|--------------------------------------------------------------------------------|
    | `true_l0`           | mean number of features that fire                                              |
    | `mcc`               | mean |cos| of the one-to-one match of latents and features that maximises it   |
    | `mmcs_features`     | mean over features of the greatest cos to a latent                             |
    | `mmcs_latents`      | mean over latents of the greatest cos to a feature                             |
    | `uniqueness`        | distinct best features / latents                                               |
    | `precision`         | mean over latents: share of its firings in which its best feature fires        |
    | `recall`            | mean over latents: share of its best feature's firings in which it fires       |
    | `f1`                | mean over latents: harmonic mean of the two                                    |
    | `feature_f1`        | mean over features that fire: F1 of its best latent as its detector            |
    | `dead_fraction`     | share of latents that are not live                                             |
    | `learnt_fraction`   | share of features that are learnt                                              |
    | `split_fraction`    | of the features that are claimed, the share claimed by two latents or more     |
    | `slope`             | mean over learnt features: sum a f |w| / sum a^2 over the rows where both fire, |
    |                     | the feature with magnitude a, its best latent with value f and decoder row w;  |
    |                     | a line through 0, so that below 1 is shrinkage                                 |
    | `absorbed_fraction` | of the firings of learnt parents, the share that is absorbed                   |

    A parent's firing is *absorbed* in a row where its best latent is silent and another latent fires in
    its place: one whose best feature is a descendant that fires there too, and whose decoder row has
    taken up the parent's direction, its cos to the parent exceeding the descendant's own by 0.1 or more.
    It is the absorption of Chanin et al. 2024 (arXiv:2409.14507, §3) with truth in place of probes. The
    descendant's own cosine is taken off because true directions overlap by chance.

    A mean of nothing is 0. `mcc`, `uniqueness`, `precision`, `recall` and `f1` are those of SynthSAEBench
    (`sae_lens.synthetic.evals` 6.54.12), in which dead latents count, with F1 0. MCC: Song et al. 2025,
    arXiv:2505.20254. MMCS: Sharkey et al. 2022, "Taking features out of superposition", whose mean is that
    over features.
    """

    @torch.no_grad()
    def __init__(
        self,
        directions_true: Float[Tensor, "n_features d"],
        directions_latents: Float[Tensor, "n_latents d"],
        parents: Int[Tensor, " n_features"] | None = None,
    ) -> None:
        """
        Args:
            directions_latents: decoder rows in the data's units, `x_hat = f @ rows + bias`; where inputs
                are scaled, divided by the scale. Counts live on their device.
            parents: each feature's parent, or -1. None: there is no `absorbed_fraction`.
        """
        device = directions_latents.device
        self.true, self.decoder = directions_true.to(device), directions_latents.detach()
        self.norms = self.decoder.double().norm(dim=1)
        self.n_features, self.n_latents = len(self.true), len(self.decoder)
        self.best_feature, self.best_latent = nearest(self.decoder, self.true), nearest(self.true, self.decoder)
        self.parents = None if parents is None else parents.to(device)
        self.lineage = (
            [] if self.parents is None else _lineage(self.true, self.decoder, self.best_feature, self.parents)
        )
        self.n_rows = 0
        self.fired = torch.zeros(self.n_latents, dtype=torch.long, device=device)
        """Rows in which each latent fires."""
        self.hits = torch.zeros_like(self.fired)
        """Rows in which it and its best feature fire."""
        self.present = torch.zeros(self.n_features, dtype=torch.long, device=device)
        """Rows in which each feature fires."""
        self.found = torch.zeros_like(self.present)
        """Rows in which it and its best latent fire."""
        self.absorbed = torch.zeros_like(self.present)
        """Rows in which it is absorbed."""
        self.products = torch.zeros(self.n_features, dtype=torch.float64, device=device)
        """Sum of a f |w| over the rows of `found`."""
        self.squares = torch.zeros_like(self.products)
        """Sum of a^2 over them."""

    @torch.no_grad()
    def update(self, features: Latents, latents: Latents) -> None:
        """Add the rows of a batch.

        Raises:
            DataError: the two are not of the same rows, or not of these features and latents.
        """
        self._check(features, latents)
        truth, ours = _Entries.of(features, self.decoder.device), _Entries.of(latents, self.decoder.device)
        hit = truth.find(ours.rows, self.best_feature.which[ours.indices]) >= 0
        place = ours.find(truth.rows, self.best_latent.which[truth.indices])
        found = place >= 0
        self.n_rows += latents.batch
        self.fired += torch.bincount(ours.indices, minlength=self.n_latents)
        self.hits += torch.bincount(ours.indices[hit], minlength=self.n_latents)
        self.present += torch.bincount(truth.indices, minlength=self.n_features)
        self.found += torch.bincount(truth.indices[found], minlength=self.n_features)
        self.absorbed += self._absorbed(truth, ours, hit)
        which, a, f = truth.indices[found], truth.values[found], ours.values[place[found]]
        self.products.index_add_(0, which, a * f * self.norms[self.best_latent.which[which]])
        self.squares.index_add_(0, which, a * a)

    def _check(self, features: Latents, latents: Latents) -> None:
        if features.n_latents != self.n_features:
            raise DataError(f"features.n_latents = {features.n_latents}: must be {self.n_features}, the true features")
        if latents.n_latents != self.n_latents:
            raise DataError(f"latents.n_latents = {latents.n_latents}: must be {self.n_latents}, the decoder's rows")
        if features.batch != latents.batch:
            raise DataError(f"features.batch = {features.batch}: must be {latents.batch}, the rows of the latents")

    def _absorbed(self, truth: "_Entries", ours: "_Entries", hit: Bool[Tensor, " nnz"]) -> Int[Tensor, " n_features"]:
        """Rows in which each feature is absorbed, once each however many latents took its place."""
        lost = [self.present.new_zeros(0)]
        for ancestor, has_taken_up in self.lineage:
            chosen = hit & has_taken_up[ours.indices]
            rows, above = ours.rows[chosen], ancestor[ours.indices[chosen]]
            is_lost = (truth.find(rows, above) >= 0) & (ours.find(rows, self.best_latent.which[above]) < 0)
            lost.append((rows * self.n_features + above)[is_lost])
        return torch.bincount(torch.cat(lost).unique() % self.n_features, minlength=self.n_features)

    def per_latent(self) -> "Detection":
        """Each latent as a detector of its best feature."""
        return detection(self.hits, self.fired, self.present[self.best_feature.which])

    def per_feature(self) -> "Detection":
        """The best latent of each feature as its detector."""
        return detection(self.found, self.fired[self.best_latent.which], self.present)

    def result(self) -> dict[str, float]:
        """The figures above.

        Raises:
            DataError: there are no rows.
        """
        if self.n_rows == 0:
            raise DataError("recovery: 0 rows were compared: there must be at least one")
        is_live = self.fired > 0
        claims = is_live & (self.best_feature.size >= CLAIM)
        n_claims = torch.bincount(self.best_feature.which[claims], minlength=self.n_features)
        is_learnt = is_live[self.best_latent.which] & (self.best_latent.size >= CLAIM)
        per_latent = self.per_latent()
        figures = {
            "true_l0": self.present.sum().item() / self.n_rows,
            "mcc": mcc(self.true, self.decoder),
            "mmcs_features": _mean(self.best_latent.cosine),
            "mmcs_latents": _mean(self.best_feature.cosine),
            "uniqueness": len(self.best_feature.which.unique()) / self.n_latents,
            "precision": _mean(per_latent.precision),
            "recall": _mean(per_latent.recall),
            "f1": _mean(per_latent.f1),
            "feature_f1": _mean(self.per_feature().f1[self.present > 0]),
            "dead_fraction": _mean(~is_live),
            "learnt_fraction": _mean(is_learnt),
            "split_fraction": _mean(n_claims[n_claims > 0] > 1),
            "slope": _mean((self.products / self.squares)[is_learnt & (self.found > 0)]),
        }
        if self.parents is not None:
            learnt_parents = self.parents[self.parents >= 0].unique()
            learnt_parents = learnt_parents[is_learnt[learnt_parents]]
            n_absorbed, n_firings = (counts[learnt_parents].sum().item() for counts in (self.absorbed, self.present))
            figures["absorbed_fraction"] = n_absorbed / max(1, n_firings)
        return figures


class Nearest(NamedTuple):
    """The best match of each of n directions among some others; each field `[n]`."""

    which: Tensor
    """The other with the greatest |cos|; of equals, the first."""
    size: Tensor
    """That |cos|."""
    cosine: Tensor
    """The greatest cos, which may be to yet another."""


def nearest(directions: Float[Tensor, "n d"], others: Float[Tensor, "m d"]) -> Nearest:
    """The best match of each direction; the cosine with a row of zeros is 0."""
    unit, against = normalize(directions.float(), dim=1), normalize(others.float(), dim=1)
    blocks = []
    for rows in unit.split(BLOCK):
        cosines = rows @ against.T
        size = cosines.abs()
        which = size.argmax(1)
        blocks.append(Nearest(which, size.gather(1, which[:, None])[:, 0], cosines.amax(1)))
    return Nearest(*(torch.cat(parts) for parts in zip(*blocks, strict=True)))


def mcc(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> float:
    """Mean |cos| over the min(n, m) pairs of the one-to-one match that maximises it (Hungarian algorithm).

    4,096 latents against 16,384 features take 5 s, and the cosines of all pairs in memory.
    """
    cosines = (normalize(a.float(), dim=1) @ normalize(b.float(), dim=1).T).abs().cpu()
    matched = linear_sum_assignment(cosines.numpy(), maximize=True)
    return _mean(cosines[matched])


class Detection(NamedTuple):
    """How well firings tell the presence of something; each field `[n]`, float64, 0 where undefined."""

    precision: Tensor
    recall: Tensor
    f1: Tensor


def detection(hits: Int[Tensor, " n"], fired: Int[Tensor, " n"], present: Int[Tensor, " n"]) -> Detection:
    """From the rows in which a detector fires, in which the thing is present, and in which both are so."""
    precision, recall = hits / fired.clamp_min(1).double(), hits / present.clamp_min(1).double()
    return Detection(precision, recall, 2 * hits / (fired + present).clamp_min(1).double())


class _Entries(NamedTuple):
    """Firings of a batch, by row and then by index, so that one can be looked up."""

    rows: Tensor
    indices: Tensor
    values: Tensor
    """float64"""
    keys: Tensor
    """`rows * n + indices`, ascending."""
    n: int

    @classmethod
    def of(cls, latents: Latents, device: torch.device) -> "_Entries":
        fired = latents.fired()
        keys, order = (fired.rows() * fired.n_latents + fired.indices).to(device).sort()
        rows, indices = keys // fired.n_latents, keys % fired.n_latents
        return cls(rows, indices, fired.values.to(device)[order].double(), keys, fired.n_latents)

    def find(self, rows: Int[Tensor, " q"], indices: Int[Tensor, " q"]) -> Int[Tensor, " q"]:
        """Where the firing of `indices` in `rows` stands, or -1 if there is none."""
        if len(self.keys) == 0:
            return torch.full_like(rows, -1)
        wanted = rows * self.n + indices
        place = torch.searchsorted(self.keys, wanted).clamp(max=len(self.keys) - 1)
        return torch.where(self.keys[place] == wanted, place, -1)


def _lineage(
    true: Float[Tensor, "n_features d"],
    rows: Float[Tensor, "n_latents d"],
    best_feature: Nearest,
    parents: Int[Tensor, " n_features"],
) -> list[tuple[Tensor, Tensor]]:
    """For each generation above the latents' best features, nearest first: `[n_latents]`, the ancestor (or
    -1), and whether the latent has taken up its direction."""
    unit = normalize(true.float(), dim=1)
    excess = normalize(rows.float(), dim=1) - unit[best_feature.which]
    generations, ancestor = [], parents[best_feature.which]
    while (ancestor >= 0).any():
        tilt = (excess * unit[ancestor]).sum(1)
        generations.append((ancestor, (ancestor >= 0) & (tilt >= TILT)))
        ancestor = torch.where(ancestor >= 0, parents[ancestor], -1)
    return generations


def _mean(values: Tensor) -> float:
    """0 if there are none."""
    return values.double().mean().item() if len(values) else 0.0
