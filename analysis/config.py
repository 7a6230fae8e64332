"""What can be chosen of the analysis."""

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import Field

from sae.config import Natural, NonNegativeFloat, Positive, PositiveFloat, Share, config

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


Family = Literal["token", "form", "affix", "context", "place", "topic", "next", "combination", "recent", "kind"]


@config
class LabelConfig:
    """How labels are found without a language model; see `analysis/label`."""

    families: tuple[Family, ...] = get_args(Family)
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
class WindowConfig:
    """How labels are scored on windows of held-out text, as others score them; see `analysis/windows`."""

    width: Positive = 32
    """Tokens of a window; contexts are cut into windows side by side."""
    per_kind: Positive = 50
    """Windows at which a latent fires, spread over tenths by strength; and windows at which it is silent, of each
    kind: random, same trigger, neighbour."""
    mark_share: Share = 0.3
    """Firings that are marked for fuzzing, as a share of the window's strongest."""
    resamples: Positive = 200
    """Bootstrap samples of documents behind the interval of balanced accuracy."""
    seed: Natural = 0


@config
class LlmConfig:
    """Labels of a language model, by the protocol of the rules: `sae explain`; see `analysis/explain`."""

    backend: Literal["none", "openai", "local"] = "none"
    """Who is asked. `openai`: a server that speaks OpenAI's chat completions, anybody's; `local`: a causal language
    model of the Hugging Face hub, in this process."""
    model: str = ""
    """The model's name at the server, or on the hub, or its folder."""
    revision: str | None = None
    """Commit or branch on the hub, of a local model; none means the main branch."""
    base_url: str = "https://api.openai.com/v1"
    """The server's address, up to and without /chat/completions."""
    key_env: str | None = "OPENAI_API_KEY"
    """Name of the environment variable with the server's key; none for a server that asks for none."""
    prices: tuple[NonNegativeFloat, NonNegativeFloat] | None = None
    """Dollars for a million tokens that the server reads, and that it writes. [0, 0] for a server of one's own."""
    max_cost: PositiveFloat = 1.0
    """Dollars, at most: by an estimate before anything is asked, and by the server's own counts after that."""
    max_tokens: Positive = 1000
    """Of one answer."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of a request, such as {seed: 0}; null takes one of ours (temperature, max_tokens) away."""
    concurrency: Positive = 8
    """Requests in flight at a time; of a local model, in a batch."""
    timeout_seconds: PositiveFloat = 120.0
    """Of one attempt."""
    attempts: Positive = 6
    """Before the run gives up on a server that is too busy, broken or silent."""
    latents: Positive | tuple[Natural, ...] = 50
    """Which are labelled: a list, or how many, drawn by a hash from all."""
    candidates: Positive = 3
    """Labels that the model proposes, each from other examples; the best on the select split is kept."""
    draft: bool = True
    """Whether the rule's sentence is shown to the model, and competes with what it proposes."""
    top: Positive = 8
    """Examples from among the strongest in a prompt."""
    per_interval: Positive = 2
    """Examples of each interval of activation."""
    silent: Natural = 5
    """Examples of the same tokens where the latent is silent."""
    select_windows: Positive = 10
    """Windows of each kind by which a label is chosen."""
    test_windows: Positive = 20
    """Windows of each kind on which it is scored."""
    nulls: bool = True
    """Whether the label of another latent is judged on the same windows; it doubles what scoring costs."""
    intruders: Natural = 5
    """Tests of the intruder a latent and kind of silent windows."""
    per_prompt: Positive = 5
    """Windows of one request, when they are judged."""
    min_score: Share = 0.6
    """Balanced accuracy on the select split, mean over the kinds of silent windows, that a label needs to be given."""

    def __post_init__(self) -> None:
        if self.backend == "none":
            return
        if not self.model:
            raise ValueError(f"analysis.llm.model = {self.model!r}: must name the model that is asked")
        if self.backend == "openai":
            parts = urlsplit(self.base_url)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
                raise ValueError(
                    f"analysis.llm.base_url = {self.base_url!r}: must be an address such as https://api.openai.com/v1"
                )
            if parts.username is not None or parts.password is not None:
                raise ValueError("analysis.llm.base_url: must hold no password; see analysis.llm.key_env")
            if self.prices is None:
                raise ValueError(
                    "analysis.llm.prices = null: must be dollars for a million tokens read and written, such as "
                    "[0.15, 0.6]; [0, 0] for a server of your own"
                )


HOW_ASKED = frozenset({"key_env", "prices", "max_cost", "concurrency", "timeout_seconds", "attempts"})
"""Fields of `LlmConfig` that do not say what is asked."""


@config
class EffectsConfig:
    """How it is measured what a latent does to the network's output; see `analysis/effects`."""

    firings: Natural = 10
    """Firings of a latent in each of the label splits at which it is taken away, each in another context, and as many
    places where it is silent at which it is added; 0: effects are not measured."""
    tokens: Positive = 40_960
    """Tokens of each split within which they lie, at most; contexts from all over it."""
    lengths: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 3, 10)
    """How many tokens a label may name."""
    controls: Positive = 4
    """Tokens of like frequency that each named one is compared with."""
    min_firings: Positive = 4
    """Firings that a latent needs on the fit split and on the select split; below it is `rare`."""
    random: Natural = 256
    """Random directions, each in the place of a latent and as long as its own, whose labels are found and scored in the
    same way. 0: nothing is compared with them."""
    chance: Share = 0.95
    """The share of the random directions that a label must stand above, for its size."""
    min_effect: PositiveFloat = 0.01
    """Nats by which a label's tokens must change on the select split, beyond their controls."""
    certainty: PositiveFloat = 3.0
    """Standard errors that this must be above 0."""
    resamples: Positive = 200
    """Bootstrap samples of documents behind the intervals."""
    seed: Natural = 0


@config
class AnalysisConfig:
    """How features are indexed and labelled, and a dictionary measured."""

    index: IndexConfig = IndexConfig()
    label: LabelConfig = LabelConfig()
    eval: EvalConfig = EvalConfig()
    windows: WindowConfig = WindowConfig()
    llm: LlmConfig = LlmConfig()
    effects: EffectsConfig = EffectsConfig()
