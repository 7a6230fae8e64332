"""One row of the atlas for each latent: the label, its scores on the test split, and its nulls."""

from dataclasses import dataclass

from analysis.label.choose import Status


@dataclass(frozen=True)
class Scores:
    """A frozen label on every counted token of the test split."""

    n_predicted: int
    """Predicted firings."""
    n_true: int
    """Those of them at which the latent fires."""
    precision: float
    """Share of the predicted firings that are some."""
    recall: float
    """Share of the firings that are predicted."""
    f1: float
    """Harmonic mean of the two."""
    iou: float
    """True predictions over all that are predicted or fire."""
    auprc: float
    """Average precision over all tokens; those without a prediction are one last group."""
    pearson: float
    """Correlation of score and activation over all tokens."""


@dataclass(frozen=True)
class LabelRecord:
    """What is known of one latent. Scores are none where there is no label."""

    latent: int
    """Its number."""
    status: Status
    """`labelled`; `abstained`: no rule is good enough; `rare`: too few firings to say; `silent`:
    it fires in none of the three splits."""
    text: str | None
    """The sentence generated from the rule."""
    family: str | None
    """Families of its parts, joined by +."""
    n_atoms: int | None
    """Keys and filters of the rule."""
    rule: list | None
    """The parts of the rule, as JSON; see `Label`."""
    n_fit: int
    """Firings on the fit split."""
    n_select: int
    """Firings on the select split."""
    n_test: int
    """Firings on the test split."""
    select_f1: float | None
    """F1 of the best candidate when it was chosen, given or rejected."""
    scores: Scores | None
    """The label on the test split."""
    f1_low: float | None
    """2.5 % quantile of F1 when test documents are drawn anew."""
    f1_high: float | None
    """97.5 % quantile."""
    decile_recall: list[float] | None
    """Recall by tenths of the firings, weakest first."""
    shares: list[float] | None
    """Share of the select split's firings that each part of the rule covers; the sentence tells it."""
    beats_token: bool | None
    """Whether its F1 on the test split is above the single token's."""
    token_text: str | None
    """The best single token on the fit split."""
    token: Scores | None
    """That token as a label on the test split: the baseline."""
    token_set: Scores | None
    """The best set of tokens on the test split, a harder baseline."""
    other_latent: int | None
    """A labelled latent of nearly the same number of firings on the fit split."""
    other: Scores | None
    """Its label, scored on this latent."""
    shuffled_f1: float | None
    """Expected F1 when the label's predictions are put anywhere."""
    shuffled_auprc: float | None
    """Its expected average precision."""
    token_r2: float
    """Share of the activation's variance on the fit split that its token explains."""

    def nulls(self, metric: str) -> list[float]:
        """What the label must beat in `f1` or `auprc`: the best single token, the label of another latent that fires
        about as often, and its own predictions put anywhere."""
        chance = {"f1": self.shuffled_f1, "auprc": self.shuffled_auprc}[metric]
        known = [getattr(scores, metric) for scores in (self.token, self.other) if scores]
        return known if chance is None else [*known, chance]

    @property
    def beats_nulls(self) -> bool:
        """Whether there is a label, and its F1 on the test split is above that of every null."""
        return self.f1_margin > 0

    @property
    def f1_margin(self) -> float:
        """How far its F1 on the test split is above the best null's; 0 where there is no label."""
        return self.scores.f1 - max(self.nulls("f1")) if self.scores else 0.0

    @property
    def surely_beats_nulls(self) -> bool:
        """Whether even the lower end of its interval is."""
        return self.f1_low is not None and self.f1_low > max(self.nulls("f1"))

    @property
    def auprc_margin(self) -> float:
        """How far its AUPRC is above the best null's; 0 where there is no label."""
        return self.scores.auprc - max(self.nulls("auprc")) if self.scores else 0.0
