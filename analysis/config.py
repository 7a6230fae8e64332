"""What can be chosen of the analysis."""

from typing import Annotated, Literal, get_args

from pydantic import Field

from sae.config import Natural, Positive, PositiveFloat, Share, config

TOP, WINDOW = 20, 64  # strongest examples of a latent, and tokens around each of which its activation is known


@config
class IndexConfig:
    """What is kept of each latent's behaviour."""

    tokens: Positive = 10_000_000
    """Training tokens that are indexed, at most; contexts from all over the text."""
    kept_tokens: Annotated[int, Field(gt=0, le=1 << 27, strict=True)] = 2_000_000
    """Of how many of them every firing is kept, on disk: intervals, near misses and what latents have in common are
    of these; counts and the strongest examples of all."""
    label_tokens: Positive = 1_000_000
    """Tokens of each of the label splits that are encoded, at most."""
    top_examples: Annotated[int, Field(gt=0, le=TOP, strict=True)] = 8
    """Strongest examples shown of a latent, each of another context."""
    interval_examples: Positive = 3
    """Examples drawn from each interval of activation below them."""
    quantile_examples: Natural = 1
    """Examples drawn from each tenth of its firings, by rank."""
    silent_examples: Natural = 3
    """Near misses: places of its commonest tokens where it is silent."""
    window: Annotated[int, Field(gt=0, le=WINDOW, strict=True)] = 32
    """Tokens of an example's window; three quarters of it lie before the firing token."""
    logits: Positive = 10
    """Promoted and suppressed tokens kept."""
    neighbours: Positive = 8
    """Nearest latents by decoder cosine kept."""
    evaluation_tokens: Positive = 65_536
    """Held-out tokens on which the reconstruction is spliced into the network."""


Family = Literal["token", "form", "context", "place", "topic", "next", "combination", "kind"]


@config
class LabelConfig:
    """How labels are found without a language model; see `analysis/label`."""

    families: tuple[Family, ...] = ("token", "form", "context", "place", "topic", "next", "combination", "kind")
    """Families of rules that are tried; among equals the first in this order wins."""
    min_fit: Positive = 20
    """Firings on the fit split that a latent needs to be labelled; below it is `rare`."""
    min_select: Positive = 8
    """Firings on the select split that it needs."""
    atom_cost: PositiveFloat = 2.0
    """Firings that each key of a rule must earn beyond its false alarms: a discount against luck."""
    atom_share: Share = 0.01
    """The same as a share of the latent's firings, where that is more: long lists are no label."""
    length_cost: Share = 0.005
    """F1 that a rule must gain for each doubling of its length; 0: length does not matter."""
    luck_cost: Share = 0.5
    """Hits on the select split that a rule must gain for each doubling of its length."""
    margin: Share = 0.01
    """What a label must be worth (F1 less these costs, on the select split) beyond the best single
    token, else that is the label; and an alternative beyond the label without it."""
    min_f1: Share = 0.2
    """What a label must be worth to be given at all."""
    max_parts: Positive = 2
    """Alternatives (A or B) of one label, at most."""
    resamples: Positive = 200
    """Bootstrap samples of documents behind the interval of F1."""
    seed: Natural = 0


Question = Literal[
    "capitalised", "number", "sentence_start", "next_comma", "next_capitalised", "in_quotes", "repeated_name", "source"
]


@config
class EvalConfig:
    """How `sae eval` measures a dictionary."""

    tokens: Positive = 1_000_000
    """Tokens of test documents on which rows are compared with their reconstructions, at most; contexts from all over
    the text. Never of documents that were trained on: what there is less, is said."""
    spliced_tokens: Positive = 1_000_000
    """The same of those on which the reconstruction is spliced into the network; each goes through it four times."""
    resamples: Positive = 1000
    """Bootstrap samples of documents behind each 95 % interval."""
    probes: tuple[Question, ...] = get_args(Question)
    """Questions that the text itself answers, of tokens and (`source`) of passages, for k-sparse probing."""
    probe_files: tuple[str, ...] = ()
    """Labelled texts of one's own to probe for: .csv or .jsonl files with `text`, `label` and, if they like, `split`
    (`fit` or `test`)."""
    probe_k: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 2, 5, 20)
    """Of how many latents, and dimensions of the activations, sparse probes are."""
    probe_examples: Positive = 2000
    """Examples of either class of a question, for fitting and for scoring, at most."""
    absorption: bool = True
    """Whether first letters are asked for, to see how far latents absorb them; no figure is given where the network
    does not know them."""
    seed: Natural = 0


@config
class AnalysisConfig:
    """How features are indexed and labelled, and a dictionary measured."""

    index: IndexConfig = IndexConfig()
    label: LabelConfig = LabelConfig()
    eval: EvalConfig = EvalConfig()
