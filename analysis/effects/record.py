"""One row for each latent: what it does, how far that holds on the test split, and what it must beat."""

from dataclasses import dataclass
from typing import Literal

from analysis.effects.named import Source

Status = Literal["labelled", "abstained", "rare", "silent", "unmeasured"]


@dataclass(frozen=True)
class Effect:
    """A frozen label under one kind of intervention, on the test split.

    Nats are of the mean change of the named tokens' log-probability, less that of their controls; what is positive is
    as the label says.
    """

    n: int
    """Places."""
    nats: float
    low: float | None
    """2.5 % quantile when documents are drawn anew; none where the places are of few documents."""
    high: float | None
    """97.5 % quantile."""
    right: float
    """Share of the places where it is above 0."""
    percentile: float
    """Mean place of a named token among all, by change: 1 where none changes more."""
    other_label: float | None
    """The same with the tokens of another latent's label: would any label do?"""
    chance: float | None
    """What random directions of its size reach with labels of their own, of the same kind and found in the same way:
    the 95 % quantile (`analysis.effects.chance`) of some. Any direction promotes something."""

    @property
    def null(self) -> float:
        """What it must be above."""
        return max(0.0, self.other_label or 0.0, self.chance or 0.0)


@dataclass(frozen=True)
class EffectRecord:
    """What is known of one latent. Where there is no label, what follows it is none."""

    latent: int
    status: Status
    """`labelled`; `abstained`: no tokens change reliably, and more than random directions change some; `rare`: too few
    firings to say; `silent`: it fires in none of the three splits; `unmeasured`: the manifest says why."""
    text: str | None
    """The sentence."""
    verb: Literal["promotes", "suppresses"] | None
    tokens: list[int] | None
    """The named tokens, the most affected first."""
    source: Source | None
    """How they were found: by the logit `lens`, or `measured` on the fit split."""
    n_fit: int
    """Firings on the fit split at which it could be taken away, each in another context."""
    n_select: int
    select_effect: float | None
    """Nats of the best candidate when it was chosen, given or rejected."""
    kl: float | None
    """Nats by which the whole next-token distribution changes when it is taken away: mean KL divergence on the select
    split."""
    other_latent: int | None
    """The other latent of the nulls: a labelled one of nearly the same number of firings on the fit split."""
    removed: Effect | None
    """It is taken away where it fires."""
    added: Effect | None
    """It is added where it is silent."""
    amount: float | None
    """As how much activation: its median on the fit split."""

    @property
    def effects(self) -> list[Effect]:
        return [effect for effect in (self.removed, self.added) if effect]

    @property
    def beats_nulls(self) -> bool:
        """Whether there is a label, and both taking the latent away and adding it move its tokens more than the nulls
        do."""
        return len(self.effects) == 2 and all(effect.nats > effect.null for effect in self.effects)

    @property
    def surely_beats_nulls(self) -> bool:
        """Whether even the lower ends of both intervals are above them."""
        return len(self.effects) == 2 and all(
            effect.low is not None and effect.low > effect.null for effect in self.effects
        )
