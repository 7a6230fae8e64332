"""What can be chosen of a training run."""

from typing import Annotated, Literal

from pydantic import Field

from sae.config import Natural, Positive, PositiveFloat, Share, config

Decay = Annotated[float, Field(ge=0, lt=1)]
Tracker = Literal[
    "none", "tensorboard", "wandb", "comet_ml", "aim", "mlflow", "clearml", "dvclive", "swanlab", "trackio"
]


@config
class TrainConfig:
    """How a dictionary is learnt. Defaults follow Gao et al. 2024 where they say."""

    site: str | None = None
    """Site whose activations are learnt; may be left out where one is harvested."""
    tokens: Positive = 10_000_000
    """Rows to train on, with repetition where fewer are harvested."""
    batch: Positive = 4096
    """Rows of a step."""
    lr: PositiveFloat | None = None
    """Peak learning rate; none means 2e-4 / sqrt(n_latents / 2^14) (Gao et al. 2024, Fig. 3)."""
    warmup: Share = 0.0
    """Share of the steps over which the learning rate rises linearly."""
    decay: Share = 0.2
    """Share of the steps, at the end, over which it falls linearly to 0."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Adam's decay rates."""
    eps: PositiveFloat = 6.25e-10
    """Adam's epsilon."""
    clip: PositiveFloat | None = 1.0
    """Largest global norm of the gradient; none means no clipping."""
    dead_tokens: Positive | None = None
    """A latent is dead when it has not fired for so many rows; none means a tenth of `tokens`, at most
    the paper's 10 million."""
    normalise: Literal["mean_norm", "none"] = "mean_norm"
    """`mean_norm`: inputs are scaled so that their mean norm is sqrt(d_in)."""
    init_rows: Positive = 32768
    """Rows from which the initial decoder bias (their geometric median) is computed."""
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
