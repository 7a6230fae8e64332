"""The form that every format is translated through: one linear encoder, one linear decoder, no scalars.

`pre = (x - b_pre) W_enc^T + b_enc;  f = activation(pre);  y = f W_dec + b_dec (+ x W_skip^T)`,

with `b_pre = b_dec` where the pre-bias is on, and rows normalised one by one before and after where
`rows` says so. What one side has and the other has not is folded here, in float64.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sae import architectures
from sae.architectures.batchtopk import BatchTopKSAE
from sae.architectures.configs import configs
from sae.architectures.gated import GatedSAE
from sae.architectures.jumprelu import JumpReLUSAE
from sae.architectures.matryoshka import MatryoshkaSAE
from sae.architectures.p_anneal import PAnnealSAE
from sae.architectures.relu import ReLUSAE
from sae.architectures.topk import TopKSAE
from sae.config import parse
from sae.dictionary import SAE, Dictionary, Shape
from sae.errors import FormatError
from sae.scaling import Scaling

Rows = Literal["none", "layer_norm", "row_norm"]


@dataclass(frozen=True)
class ReLU:
    """Every positive pre-activation."""


@dataclass(frozen=True)
class TopK:
    """The k largest of a row, negative ones as 0."""

    k: int
    multi_coef: float = 0.0


@dataclass(frozen=True)
class Jump:
    """Those above a threshold of their own, and above 0."""

    threshold: Float[Tensor, " n_latents"]


@dataclass(frozen=True)
class Batch:
    """Those above one threshold, which stands for the largest k a row of a batch."""

    k: int
    threshold: float | None
    """None: it has not been learnt, and every positive one is kept."""
    widths: tuple[int, ...] | None = None
    """Of the nested dictionaries, the last of them all latents; None: there are none."""


@dataclass(frozen=True)
class Gate:
    """`1[pre > 0] ReLU(exp(r_mag) (pre - b_enc) + b_mag)`."""

    r_mag: Float[Tensor, " n_latents"]
    b_mag: Float[Tensor, " n_latents"]


Activation = ReLU | TopK | Jump | Batch | Gate


@dataclass(frozen=True)
class Plain:
    """A dictionary in the form above; tensors are float32 and oriented as ours are."""

    W_enc: Float[Tensor, "n_latents d_in"]
    b_enc: Float[Tensor, " n_latents"]
    W_dec: Float[Tensor, "n_latents d_out"]
    b_dec: Float[Tensor, " d_out"]
    activation: Activation
    pre_bias: bool
    rows: Rows = "none"
    is_transcoder: bool = False
    """It writes another site than it reads; rows are normalised before it, and not back after it."""
    W_skip: Float[Tensor, "d_out d_in"] | None = None

    @property
    def sizes(self) -> tuple[int, int, int]:
        """n_latents, d_in, d_out."""
        return self.W_enc.shape[0], self.W_enc.shape[1], self.W_dec.shape[1]

    def unscaled(self, into: float, out_of: float | None = None) -> "Plain":
        """For rows as they are, where this one takes `into x` and gives `out_of y`; latents stay the same."""
        out_of = into if out_of is None else out_of
        if into == out_of == 1:
            return self
        return replace(
            self,
            W_enc=_times(self.W_enc, into),
            W_dec=_times(self.W_dec, 1 / out_of),
            b_dec=_times(self.b_dec, 1 / out_of),
            W_skip=None if self.W_skip is None else _times(self.W_skip, into / out_of),
        )

    def unwhitened(self, mean: Tensor, matrix: Tensor, inverse: Tensor) -> "Plain":
        """For rows as they are, where this one takes `(x - mean) matrix` and its output `y inverse + mean`."""
        mean, matrix, inverse = mean.double(), matrix.double(), inverse.double()
        W_enc = self.W_enc.double() @ matrix.T
        plain = replace(
            self,
            W_enc=W_enc.float(),
            W_dec=(self.W_dec.double() @ inverse).float(),
            b_dec=(self.b_dec.double() @ inverse + mean).float(),
        )
        return plain if self.pre_bias else plain._shifted(-(W_enc @ mean))

    def unit(self) -> "Plain":
        """Decoder rows of norm 1, their norms in the encoder: latents become `f ||W_dec||`."""
        norms = self.W_dec.double().norm(dim=1).clamp_min(1e-8)
        return replace(
            self,
            W_enc=(self.W_enc.double() * norms[:, None]).float(),
            b_enc=(self.b_enc.double() * norms).float(),
            W_dec=(self.W_dec.double() / norms[:, None]).float(),
        )

    def with_pre_bias(self, wanted: bool) -> "Plain":
        """The same function with the pre-bias on or off: it moves from or to the biases behind the encoder."""
        if wanted == self.pre_bias:
            return self
        by = self.W_enc.double() @ self.b_dec.double()
        return replace(self._shifted(by if wanted else -by), pre_bias=wanted)

    def centred(self, by: Float[Tensor, " d_in"]) -> "Plain":
        """The same, of `x - by`."""
        return self._shifted(-(self.W_enc.double() @ by.double()))

    def _shifted(self, by: Tensor) -> "Plain":
        """With `by` added to every pre-activation."""
        b_enc, activation = (self.b_enc.double() + by).float(), self.activation
        if isinstance(activation, Gate):  # the magnitude is read off the gate without its bias
            shift = activation.r_mag.double().exp() * by
            activation = replace(activation, b_mag=(activation.b_mag.double() + shift).float())
        return replace(self, b_enc=b_enc, activation=activation)

    def thresholds(self) -> Float[Tensor, " n_latents"] | None:
        """A threshold for each latent, for formats that have nothing else; None where these cannot say it."""
        match self.activation:
            case ReLU():
                return torch.zeros_like(self.b_enc)
            case Jump(threshold):
                return threshold
            case Batch(threshold=threshold):
                return torch.full_like(self.b_enc, threshold or 0.0)
            case _:
                return None


def _times(tensor: Tensor, factor: float) -> Tensor:
    return (tensor.double() * factor).float()


# --- from and to our own ---

_REASONS = {
    "switch": "its router has no place in a peer's format",
    "matching_pursuit": "of the peers' formats only saelens has matching pursuit",
    "crosscoder": "no peer's format has a code for several sites",
    "crosscoder_batchtopk": "no peer's format has a code for several sites",
    "cross_layer_transcoder": "no peer's format has decoders for several sites",
}


def of(dictionary: Dictionary) -> Plain:
    """One of ours in plain form, its scalars folded.

    Raises:
        FormatError: its architecture has no counterpart in any peer's format.
    """
    name = architectures.name_of(dictionary.cfg)
    find = _ACTIVATIONS.get(type(dictionary))
    if find is None or not isinstance(dictionary, SAE):
        reason = _REASONS.get(name, "it is a plug-in's, which a peer's package does not know")
        raise FormatError(f"type = {name}: cannot be written; {reason}")
    check_one_site(dictionary)
    sae: SAE = dictionary.folded()  # type: ignore[assignment]
    rows: Rows = sae.cfg.normalise if sae.cfg.normalise in ("layer_norm", "row_norm") else "none"
    plain = Plain(
        W_enc=_copy(sae.W_enc),
        b_enc=_copy(sae.b_enc),
        W_dec=_copy(sae.W_dec),
        b_dec=_copy(sae.b_dec),
        activation=find(sae),
        pre_bias=sae.b_pre is not None,
        rows=rows,
        is_transcoder=sae.target_scaling is not None,
        W_skip=None if sae.W_skip is None else _copy(sae.W_skip),
    )
    return plain.unscaled(scalar(sae.scaling), scalar(sae.target_scaling or sae.scaling))


def check_one_site(dictionary: Dictionary) -> None:
    """Raises: FormatError: it reads or writes several sites."""
    if len(dictionary.shape.inputs) > 1 or len(dictionary.shape.outputs or (1,)) > 1:
        raise FormatError("cannot be written: it has several sites side by side, a peer's format has one")


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().float().clone()


def scalar(scaling: Scaling) -> float:
    """What the rows of the one site are multiplied by."""
    return float(scaling.scale[0])


def _batch(sae: Any) -> Batch:
    threshold = sae.threshold.value().item() if sae.threshold.weight > 0 else None
    return Batch(sae.cfg.k, threshold, sae.cfg.prefixes if isinstance(sae, MatryoshkaSAE) else None)


_ACTIVATIONS: dict[type, Any] = {
    ReLUSAE: lambda _: ReLU(),
    PAnnealSAE: lambda _: ReLU(),
    TopKSAE: lambda sae: TopK(sae.cfg.k, sae.cfg.multi_coef),
    BatchTopKSAE: _batch,
    MatryoshkaSAE: _batch,
    JumpReLUSAE: lambda sae: Jump(_copy(sae.threshold)),
    GatedSAE: lambda sae: Gate(_copy(sae.r_mag), _copy(sae.b_mag)),
}


def to_ours(plain: Plain, where: object) -> SAE:
    """One of ours that is the same function, in evaluation mode.

    Args:
        where: the file it comes from, for messages.

    Raises:
        ConfigError: a choice that is impossible, such as more latents kept than there are.
    """
    n_latents, d_in, d_out = plain.sizes
    name, choices, own = _parts(plain.activation, n_latents)
    common = {
        "n_latents": n_latents,
        "normalise": plain.rows,
        "pre_bias": plain.pre_bias,
        "decoder": "unit" if _has_unit_rows(plain.W_dec) else "free",
        "skip": plain.W_skip is not None,
    }
    cfg = parse(configs.get(name), common | choices, "sae", str(where))
    sae = architectures.build(name, cfg, Shape((d_in,), (d_out,) if plain.is_transcoder else None))
    assert isinstance(sae, SAE)
    tensors = {"W_enc": plain.W_enc, "b_enc": plain.b_enc, "W_dec": plain.W_dec, "b_dec": plain.b_dec} | own
    if plain.W_skip is not None:
        tensors["W_skip"] = plain.W_skip
    sae.load_state_dict(sae.state_dict() | tensors)
    return sae.eval()


def _parts(activation: Activation, n_latents: int) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """The architecture that has this activation, its choices, and the tensors that it alone has."""
    match activation:
        case ReLU():
            return "relu", {}, {}
        case TopK(k, multi_coef):
            return "topk", {"k": k, "multi_coef": multi_coef}, {}
        case Jump(threshold):
            return "jumprelu", {}, {"threshold": threshold}
        case Gate(r_mag, b_mag):
            return "gated", {}, {"r_mag": r_mag, "b_mag": b_mag}
        case Batch(k, threshold, widths):
            sums = {} if threshold is None else {"threshold.total": threshold, "threshold.weight": 1.0}
            own = {name: torch.tensor(value) for name, value in sums.items()}
            if widths is None:
                return "batchtopk", {"k": k}, own
            shares = [(end - start) / n_latents for start, end in zip((0, *widths), widths, strict=False)]
            return "matryoshka", {"k": k, "groups": shares}, own


def _has_unit_rows(W_dec: Tensor) -> bool:
    return bool(((W_dec.norm(dim=1) - 1).abs() < 1e-3).all())
