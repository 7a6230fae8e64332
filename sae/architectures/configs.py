"""What can be chosen of each dictionary. Free of torch, so that a mistake is answered at once.

A name stands for a recipe: a class with its paper's defaults. Two recipes may build one class.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from sae.config import Natural, NonNegativeFloat, Positive, PositiveFloat, Share, config
from sae.errors import ConfigError
from sae.registry import Registry

configs: Registry[type] = Registry("sae.type")
Normalise = Literal["mean_norm", "rms", "none", "whiten", "layer_norm", "row_norm"]
InitBias = Literal["geometric_median", "mean", "zero"]
InitDecoder = Literal["data", "random", "identity"]
DecoderNorm = Literal["unit", "free", "folded"]
UnitOrFree = Literal["unit", "free"]


@dataclass(frozen=True)
class Recipe:
    """How an architecture's paper trains it: what `train` takes where it names no value of its own."""

    lr: float | None = None
    """None: 2e-4 / sqrt(n_latents / 2^14) (Gao et al. 2024, Fig. 3)."""
    warmup: float = 0.0
    decay: float = 0.2
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8


@config
class DictionaryConfig:
    """What every dictionary has in common."""

    recipe: ClassVar[Recipe] = Recipe()

    n_latents: Positive = 4096
    """Latents in the dictionary."""
    normalise: Normalise = "mean_norm"
    """`mean_norm`: inputs are scaled so that their mean norm is sqrt(d). `rms`: so that their mean
    squared norm is 1. `whiten`: unit covariance, folded into the weights on saving. `layer_norm`,
    `row_norm`: each row by itself. `none`: as they are."""


@config
class SAEConfig(DictionaryConfig):
    """What every dictionary with one linear encoder and decoder has in common."""

    pre_bias: bool = True
    """Subtract `b_dec` from the input; a transcoder never does."""
    decoder: DecoderNorm = "unit"
    """`unit`: rows of the decoder have norm 1 after every step, and no gradient along themselves. `free`: any norm."""
    init_decoder: InitDecoder = "data"
    """Where the decoder's rows point before training. `data`: each to a row of the data, with some noise, which finds
    more features in as many steps. `random`: anywhere, as in the paper. `identity`: each latent to one number of the
    row, a neuron of `mlp_act.i`; with train.tokens = 0 neurons themselves are what is indexed and labelled."""
    init_norm: PositiveFloat = 1.0
    """Norm of the decoder's rows before training, to be left out where decoder = unit; the encoder starts as their
    copy, but for its size (`fit_encoder`) and in transcoders."""
    init_bias: InitBias = "geometric_median"
    """Where `b_dec` starts; a transcoder's starts at the mean."""
    fit_encoder: bool | None = None
    """Scale the encoder before training so that the first reconstructions have the right size (as Gao et al. 2024 do
    in their code on random inputs); not for transcoders whose directions are random. None: where decoder = unit."""
    skip: bool = False
    """A linear path from input to output beside the latents; for transcoders."""
    auxk: Natural | None = None
    """Dead latents that reconstruct the residual; none means d / 2, 0 turns AuxK off."""
    auxk_coef: NonNegativeFloat = 0.0
    """Weight of the AuxK loss beside the normalised error (Gao et al. 2024, §A.2); 0 turns it off."""
    ghost_coef: NonNegativeFloat = 0.0
    """Weight of ghost gradients for dead latents beside the error; 0 turns them off."""

    def __post_init__(self) -> None:
        if self.decoder == "unit" and self.init_norm != type(self).init_norm:
            raise ValueError(
                f"sae.init_norm = {self.init_norm}: must be left out where decoder = unit, whose rows have norm 1"
            )

    @property
    def fits_encoder(self) -> bool:
        """Whether the encoder is scaled before training; `fit_encoder`, or what follows from the decoder."""
        if self.fit_encoder is None:
            return self.decoder == "unit" and self.init_decoder != "identity"
        return self.fit_encoder


def check_k(k: int, n_latents: int) -> None:
    """Raises: ValueError: more latents are to be kept than there are."""
    if k > n_latents:
        raise ValueError(f"sae.k = {k}: must be at most n_latents = {n_latents}")


@config
class KSparseConfig(SAEConfig):
    """A dictionary whose rows keep k latents; dead ones learn by AuxK."""

    k: Positive = 32
    """Latents kept in each row."""
    decoder: DecoderNorm = "folded"
    """`unit`: rows of the decoder have norm 1 after every step, as in the paper. `folded`: any norm while they learn;
    latents compete by what they write, activation times norm, and after training the encoder takes up the norms:
    dictionaries of the same kind, found sooner. `free`: any norm, and latents compete by their activations."""
    init_norm: PositiveFloat = 0.1
    """Norm of the decoder's rows before training, to be left out where decoder = unit; the encoder starts as their
    copy."""
    auxk_coef: NonNegativeFloat = 1 / 32
    """Weight of the AuxK loss beside the normalised error; 0 turns it off."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_k(self.k, self.n_latents)


@configs.register("topk")
@config
class TopKConfig(KSparseConfig):
    """TopK with AuxK (Gao et al. 2024, arXiv:2406.04093)."""

    recipe: ClassVar[Recipe] = Recipe(eps=6.25e-10)

    multi_coef: NonNegativeFloat = 0.0
    """Weight of the error with 4 k latents (Multi-TopK, §A.3; 1/8 in the paper), which keeps a dictionary good at
    other k; 0 turns it off."""


@configs.register("batchtopk")
@config
class BatchTopKConfig(KSparseConfig):
    """BatchTopK with AuxK (Bussmann et al. 2024, arXiv:2412.06410)."""

    recipe: ClassVar[Recipe] = Recipe(lr=3e-4, betas=(0.9, 0.99))

    k: Positive = 32
    """Latents kept in a row on average."""
    threshold_steps: Positive = 100
    """Steps over which the threshold for inference is averaged."""


@configs.register("matryoshka")
@config
class MatryoshkaConfig(BatchTopKConfig):
    """Matryoshka BatchTopK: nested dictionaries (Bussmann et al. 2025, arXiv:2503.17547)."""

    recipe: ClassVar[Recipe] = Recipe(lr=3e-4)

    groups: tuple[PositiveFloat, ...] = (1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
    """Shares of the latents in each group; the first g groups are the g-th nested dictionary."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if abs(sum(self.groups) - 1) > 1e-6:
            raise ValueError(f"sae.groups = {list(self.groups)}: must sum to 1, they sum to {sum(self.groups):g}")
        sizes = [end - start for start, end in zip((0, *self.prefixes), self.prefixes, strict=False)]
        if min(sizes) < 1:
            raise ValueError(f"sae.groups = {list(self.groups)}: a group of {self.n_latents} latents would be empty")

    @property
    def prefixes(self) -> tuple[int, ...]:
        """Widths of the nested dictionaries, the last of them all latents."""
        total, ends = 0.0, []
        for share in self.groups:
            total += share
            ends.append(round(total * self.n_latents))
        return tuple(ends)


@config
class PenaltyConfig(SAEConfig):
    """A dictionary whose sparsity comes from a penalty."""

    decoder: UnitOrFree = "unit"
    """`unit`: rows of the decoder have norm 1 after every step, and no gradient along themselves. `free`: any norm."""
    sparsity_coef: NonNegativeFloat = 5.0
    """Weight of the sparsity penalty at full strength, in the paper's units."""
    sparsity_warmup: Share = 0.05
    """Share of the steps over which that weight rises linearly from 0."""


@configs.register("relu")
@config
class ReLUConfig(PenaltyConfig):
    """ReLU with an L1 penalty, unit decoder (Bricken et al. 2023, "Towards Monosemanticity")."""

    recipe: ClassVar[Recipe] = Recipe(lr=3e-4)


@configs.register("relu_april")
@config
class ReLUAprilConfig(ReLUConfig):
    """ReLU with L1 weighted by decoder norms, which are free (Conerly et al. 2024, Transformer Circuits,
    "Update on how we train SAEs", April)."""

    recipe: ClassVar[Recipe] = Recipe(lr=5e-5)

    pre_bias: bool = False
    """Subtract `b_dec` from the input; a transcoder never does."""
    decoder: UnitOrFree = "free"
    """`unit`: rows of the decoder have norm 1 after every step, and no gradient along themselves. `free`: any norm."""
    init_norm: PositiveFloat = 0.1
    """Norm of the decoder's rows before training, to be left out where decoder = unit; the encoder starts as their
    copy."""
    init_bias: InitBias = "zero"
    """Where `b_dec` starts; a transcoder's starts at the mean."""


@configs.register("p_anneal")
@config
class PAnnealConfig(PenaltyConfig):
    """ReLU with an Lp^p penalty whose p falls from 1 (Karvonen et al. 2024, arXiv:2408.00113)."""

    recipe: ClassVar[Recipe] = Recipe(lr=3e-4)

    decoder: Literal["unit"] = "unit"
    """Rows of the decoder have norm 1 after every step, or latents would escape the penalty by shrinking."""
    p_end: PositiveFloat = 0.2
    """The last p."""
    anneal_start: Share = 0.2
    """Share of the steps after which p begins to fall."""
    anneal_steps: Positive = 10
    """Equal steps in which it falls, spread over the rest of the run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.p_end > 1:
            raise ValueError(f"sae.p_end = {self.p_end}: must be at most 1, where p begins")


@configs.register("jumprelu")
@config
class JumpReLUConfig(PenaltyConfig):
    """JumpReLU with an L0 penalty (Rajamanoharan et al. 2024, arXiv:2407.14435; settings of Gemma Scope,
    arXiv:2408.05147). Thresholds and bandwidth are in units of inputs with mean squared norm 1."""

    recipe: ClassVar[Recipe] = Recipe(lr=7e-5, warmup=0.01, decay=0.0, betas=(0.0, 0.999))

    normalise: Normalise = "rms"
    """As for every dictionary; thresholds and bandwidth below are in its units."""
    init_bias: InitBias = "zero"
    """Where `b_dec` starts; a transcoder's starts at the mean."""
    sparsity_coef: NonNegativeFloat = 1e-3
    """Weight of the sparsity penalty; 1e-3 gave L0 of about 27 in the paper's figures."""
    sparsity_warmup: Share = 0.1
    """Share of the steps over which that weight rises linearly from 0."""
    threshold: PositiveFloat = 0.001
    """Where every latent's threshold starts."""
    bandwidth: PositiveFloat = 0.001
    """Width of the window around a threshold through which it learns."""
    penalty: Literal["l0", "tanh", "quadratic"] = "l0"
    """`l0`: number of active latents. `tanh`: sum of tanh(c f ||W_dec||) (Conerly et al. 2025).
    `quadratic`: (2 / target) (L0 - target)^2 of each row (Gemma Scope 2)."""
    tanh_scale: PositiveFloat = 4.0
    """c of the tanh penalty."""
    target_l0: PositiveFloat = 32.0
    """Target of the quadratic penalty."""
    preact_coef: NonNegativeFloat = 0.0
    """Weight of `sum ReLU(threshold - pre) ||W_dec||`, which keeps latents from dying (Conerly et al. 2025)."""
    ste_to_input: bool = False
    """Let the straight-through gradient of the threshold reach the pre-activations too."""
    init_l0: Natural = 0
    """Latents of a row that fire before training, at most half of all, by their biases; the matrices are then uniform,
    the encoder a copy of the decoder times `d / n_latents` (10,000 in Conerly et al. 2025). 0: as in every
    dictionary."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_l0 and self.fit_encoder:
            raise ValueError(f"sae.init_l0 = {self.init_l0}: must be 0 where fit_encoder = true, which sets it too")
        if self.init_l0 and self.init_decoder != "random":
            raise ValueError(
                f"sae.init_l0 = {self.init_l0}: must be 0 where init_decoder = data, which it would not be"
            )
        if self.init_l0 and self.decoder == "unit":
            raise ValueError(f"sae.init_l0 = {self.init_l0}: must be 0 where decoder = unit, or the first rows are not")


@configs.register("jumprelu_tanh")
@config
class JumpReLUTanhConfig(JumpReLUConfig):
    """JumpReLU with a tanh penalty (Conerly et al. 2025, Transformer Circuits, January update)."""

    recipe: ClassVar[Recipe] = Recipe(lr=2e-4)

    normalise: Normalise = "mean_norm"
    """As for every dictionary; thresholds and bandwidth below are in its units."""
    pre_bias: bool = False
    """Subtract `b_dec` from the input; a transcoder never does."""
    decoder: UnitOrFree = "free"
    """`unit`: rows of the decoder have norm 1 after every step, and no gradient along themselves. `free`: any norm."""
    sparsity_coef: NonNegativeFloat = 10.0
    """Weight of the sparsity penalty at full strength."""
    sparsity_warmup: Share = 1.0
    """Share of the steps over which that weight rises linearly from 0."""
    threshold: PositiveFloat = 0.1
    """Where every latent's threshold starts."""
    bandwidth: PositiveFloat = 2.0
    """Width of the window around a threshold through which it learns."""
    init_norm: PositiveFloat = 0.1
    """Norm of the decoder's rows before training, to be left out where decoder = unit; the encoder starts as their
    copy."""
    penalty: Literal["l0", "tanh", "quadratic"] = "tanh"
    """`l0`: number of active latents. `tanh`: sum of tanh(c f ||W_dec||). `quadratic`: (2 / target) (L0 - target)^2
    of each row (Gemma Scope 2)."""
    preact_coef: NonNegativeFloat = 3e-6
    """Weight of `sum ReLU(threshold - pre) ||W_dec||`, which keeps latents from dying."""
    ste_to_input: bool = True
    """Let the straight-through gradient of the threshold reach the pre-activations too ("all parameters")."""


@configs.register("gated")
@config
class GatedConfig(PenaltyConfig):
    """Gated SAE (Rajamanoharan et al. 2024, arXiv:2404.16014)."""

    recipe: ClassVar[Recipe] = Recipe(lr=3e-4, betas=(0.0, 0.999))


@configs.register("switch")
@config
class SwitchConfig(KSparseConfig):
    """Switch SAE: each row is encoded by one expert (Mudide et al. 2024, arXiv:2410.08201)."""

    auxk_coef: NonNegativeFloat = 0.0
    """Weight of the AuxK loss beside the normalised error; 0 turns it off, as in the paper."""
    n_experts: Positive = 16
    """Experts that share the latents evenly; a row costs 1 / n_experts of the encoder."""
    balance_coef: NonNegativeFloat = 0.1
    """Weight of the load-balancing loss beside the normalised error; with the paper's 0.01 all rows go to a third of
    the experts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_latents % self.n_experts:
            raise ValueError(f"sae.n_experts = {self.n_experts}: must divide n_latents = {self.n_latents}")
        if self.k > self.n_latents // self.n_experts:
            raise ValueError(
                f"sae.k = {self.k}: must be at most the {self.n_latents // self.n_experts} latents of an expert"
            )


@configs.register("matching_pursuit")
@config
class MatchingPursuitConfig(DictionaryConfig):
    """Matching pursuit: a tied dictionary, latents chosen one after another (Costa et al. 2025, arXiv:2506.03093)."""

    recipe: ClassVar[Recipe] = Recipe(lr=3e-4)

    k: Positive = 32
    """Pursuit steps, and so the largest number of latents of a row."""
    residual_threshold: NonNegativeFloat = 0.0
    """A row stops once the norm of what is left is below it, in the dictionary's units; 0 turns it off."""
    stop_on_repeat: bool = False
    """A row stops with the first step that takes no new latent."""
    init_decoder: InitDecoder = "data"
    """Where rows point before training: `data`, each to a row of the data, with some noise, or `random`."""
    init_bias: InitBias = "geometric_median"
    """Where `b_dec` starts."""

    def __post_init__(self) -> None:
        if self.normalise == "whiten":
            raise ValueError("sae.normalise = 'whiten': cannot be folded into a tied dictionary; choose another")
        check_k(self.k, self.n_latents)


def check_by_site(normalise: str) -> None:
    """Raises: ValueError: a normalisation that would mix sites, or, whitening, change what decoder norms mean."""
    if normalise not in ("mean_norm", "rms", "none"):
        raise ValueError(f"sae.normalise = {normalise!r}: must be mean_norm, rms or none, a scalar for each site")


@configs.register("crosscoder")
@config
class CrosscoderConfig(ReLUAprilConfig):
    """One code for several sites or models, ReLU with L1 (Lindsey et al. 2024, "Sparse Crosscoders")."""

    sparsity_coef: NonNegativeFloat = 2.0
    """Weight of the sparsity penalty at full strength, in the paper's units."""
    init_norm: PositiveFloat = 0.08
    """Norm of each site's decoder rows before training, to be left out where decoder = unit; the encoder starts as
    their copy."""
    norm: Literal["sum", "concatenated"] = "sum"
    """A latent's size in the penalty: the sum of its decoder norms over sites, which makes latents of few
    sites cheap, or the norm of all of them together, an ordinary dictionary on stacked sites."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_by_site(self.normalise)


@configs.register("crosscoder_batchtopk")
@config
class CrosscoderBatchTopKConfig(BatchTopKConfig):
    """One code for several sites or models, BatchTopK (Minder et al. 2025, arXiv:2504.02922)."""

    recipe: ClassVar[Recipe] = Recipe()

    pre_bias: bool = False
    """Subtract `b_dec` from the input."""
    decoder: UnitOrFree = "free"
    """`unit`: rows of the decoder have norm 1 after every step, and no gradient along themselves. `free`: any norm."""
    init_norm: PositiveFloat = 1.0
    """Norm of each site's decoder rows before training, to be left out where decoder = unit, whose sites share a norm
    of 1; the encoder starts as their copy."""
    fit_encoder: bool | None = True
    """Scale the encoder before training so that the first reconstructions have the right size."""
    norm: Literal["sum", "concatenated"] = "sum"
    """What a latent's activation is weighted with when the batch chooses, as in `crosscoder`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_by_site(self.normalise)


@configs.register("cross_layer_transcoder")
@config
class CrossLayerTranscoderConfig(DictionaryConfig):
    """Cross-layer transcoder: a layer's latents write to it and to all later ones (Ameisen et al. 2025,
    "Circuit Tracing: Revealing Computational Graphs in Language Models", Appendix)."""

    recipe: ClassVar[Recipe] = Recipe(lr=2e-4)

    sparsity_coef: NonNegativeFloat = 10.0
    """Weight of the tanh penalty at full strength."""
    sparsity_warmup: Share = 1.0
    """Share of the steps over which that weight rises linearly from 0."""
    tanh_scale: PositiveFloat = 4.0
    """c of the penalty `sum tanh(c f ||W_dec||)`, over a latent's decoders for all layers together."""
    threshold: PositiveFloat = 0.1
    """Where every latent's threshold starts."""
    bandwidth: PositiveFloat = 2.0
    """Width of the window around a threshold through which it learns."""
    preact_coef: NonNegativeFloat = 3e-6
    """Weight of `sum ReLU(threshold - pre) ||W_dec||`, which keeps latents from dying."""
    ste_to_input: bool = True
    """Let the straight-through gradient of the threshold reach the pre-activations too ("all parameters", Conerly et
    al. 2025)."""
    init_decoder: InitDecoder = "data"
    """Where rows point before training: `data`, each layer's latents to rows of the data, reading a row there and
    writing what it becomes from there on, with some noise, or `random`."""
    init_norm: PositiveFloat = 0.3
    """Norm of a latent's two rows before training; the decoder's is that of all it writes to together."""
    init_l0: Natural = 0
    """The paper's start (10,000 there): latents of a row that fire before training, at most half of all, by their
    biases; rows are then uniform, whatever `init_decoder` and `init_norm` say. 0: the mean input makes no latent."""

    def __post_init__(self) -> None:
        # init_l0 beside init_decoder = data is not refused: older files have the first and not the second
        check_by_site(self.normalise)


def split_type(section: Any) -> tuple[str, dict[str, Any]]:
    """The `type` of a `sae:` section and its other fields.

    Raises:
        ConfigError: the section is no mapping, or `type` is not a name.
    """
    if not isinstance(section, dict):
        raise ConfigError(f"sae = {section!r}: must be a mapping of fields to values")
    name = section.get("type", "topk")
    if not isinstance(name, str):
        raise ConfigError(f"sae.type = {name!r}: must be the name of an architecture: {', '.join(configs.names())}")
    return name, {key: value for key, value in section.items() if key != "type"}
