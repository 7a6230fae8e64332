"""What can be chosen of a training run."""

from typing import Annotated, Literal

from pydantic import Field

from sae.config import Natural, Positive, PositiveFloat, Precision, Share, config

Decay = Annotated[float, Field(ge=0, lt=1)]
OptimizerName = Literal["adam", "adam8bit", "muon", "signum", "schedule_free"]
AVERAGING: tuple[OptimizerName, ...] = ("signum", "schedule_free")
"""Optimisers that give an average of the weights, in the place of a decay of the learning rate."""
Tracker = Literal[
    "none", "tensorboard", "wandb", "comet_ml", "aim", "mlflow", "clearml", "dvclive", "swanlab", "trackio"
]


@config
class TrainConfig:
    """How a dictionary is learnt."""

    site: str | tuple[str, ...] | None = None
    """Site whose activations are read, or several, side by side; may be left out where one is harvested."""
    target: str | tuple[str, ...] | None = None
    """Site whose activations are written, for a transcoder; none means that what is read is reconstructed."""
    tokens: Natural = 10_000_000
    """Rows to train on, with repetition where fewer are harvested. 0: nothing is learnt, and the dictionary is that of
    the first weights: a null, with sae.init_decoder = random, or neurons, with identity."""
    batch: Positive = 4096
    """Rows of a step."""
    accumulate: Positive = 1
    """Parts that a batch is computed in, one after another, to save memory. What looks at a whole batch (BatchTopK,
    the variance that AuxK is divided by) looks at a part."""
    divide: Literal["batch", "latents"] = "batch"
    """What several processes share: `batch`, the dictionaries if there are enough, otherwise the rows of each batch;
    `latents`, those of every dictionary, where no device holds one alone. The latter: not with every architecture,
    with `adam`, and without `ema` and `resample_tokens`."""
    precision: Precision = "auto"
    """Precision of the dense products: `auto` is bfloat16 where it is native, else float32, and float32 for JumpReLU,
    whose thresholds learn from a window that bfloat16 does not resolve. Weights, sums, losses and the values of few
    latents are always float32."""
    optimizer: OptimizerName = "adam"
    """`adam8bit` keeps its moments in 8 bits; `muon` orthogonalises the matrices' updates; `schedule_free` is Adam
    that averages the weights in the place of a decay of the learning rate; `signum` does so too, and steps by the
    gradient's sign. Each but `adam` and `muon` needs the extra `optim`."""
    lr: PositiveFloat | None = None
    """Peak learning rate; none means the one of the architecture's paper (Gao et al. 2024, Fig. 3, if none), for
    `signum` 5e-3 / sqrt(n_latents / 2^14)."""
    warmup: Share | None = None
    """Share of the steps over which the learning rate rises linearly; none means as in the paper."""
    decay: Share | None = None
    """Share of the steps, at the end, over which it falls linearly to 0; none means as in the paper, or 0 for
    `signum` and `schedule_free`, which must have none."""
    betas: tuple[Decay, Decay] | None = None
    """Adam's decay rates; none means as in the paper. Of `signum` and `schedule_free` the first is the share of the
    average in the weights that gradients are taken at; none means 0.95 and 0.9."""
    eps: PositiveFloat | None = None
    """Adam's epsilon; none means as in the paper."""
    ema: Decay = 0.0
    """Decay of an exponential moving average of the weights, which is what is evaluated and saved; 0 means none."""
    resample_tokens: Natural = 0
    """Rows between resamplings of dead latents (Bricken et al. 2023), in the first half of the run; 0 means never.
    Made for a sparsity penalty: a new latent is a fifth of the others in size, and seldom among the k largest."""
    clip: PositiveFloat | None = 1.0
    """Largest global norm of the gradient; none means no clipping."""
    dead_tokens: Positive | None = None
    """A latent is dead when it has not fired for so many rows; none means a tenth of `tokens`, at most
    the paper's 10 million."""
    init_rows: Positive = 32768
    """Rows from which first directions, initial biases, a whitening and the variance of the target are taken, and among
    which dead latents are resampled."""
    window_rows: Positive = 1 << 18
    """Rows that are shuffled together in memory."""
    evaluate_every: Natural = 250
    """Steps between evaluations on held-out rows; 0 means only at the end."""
    evaluate_rows: Positive = 32768
    """Held-out rows of an evaluation during training."""
    checkpoint_seconds: PositiveFloat = 60.0
    """Seconds between checkpoints."""
    tracker: Tracker = "tensorboard"
    """Where curves are sent; all but `tensorboard` must be installed."""

    def __post_init__(self) -> None:
        if self.accumulate > self.batch:
            raise ValueError(f"train.accumulate = {self.accumulate}: must be at most batch = {self.batch}")
        if self.optimizer not in AVERAGING:
            return
        if self.decay:
            raise ValueError(
                f"train.decay = {self.decay}: must be 0 where optimizer = {self.optimizer}, which averages instead"
            )
        if self.ema:
            raise ValueError(
                f"train.ema = {self.ema}: must be 0 where optimizer = {self.optimizer}, which averages already"
            )
        if self.betas is not None and self.betas[0] == 0:
            raise ValueError(
                f"train.betas = {list(self.betas)}: the first must be more than 0 where optimizer = {self.optimizer}"
            )
