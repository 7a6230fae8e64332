"""BatchTopK: keep the k largest pre-activations a row *on average*; one threshold for use.

Bussmann, Leask & Nanda 2024, "BatchTopK sparse autoencoders", arXiv:2412.06410.
"""

from sae.architectures import architectures
from sae.architectures.configs import BatchTopKConfig
from sae.dictionary import SAE, Forward, Shape
from sae.select import Selection
from sae.threshold import BatchThreshold


@architectures.register("batchtopk")
class BatchTopKSAE(SAE):
    """`x_hat = BatchTopK((x - b_dec) W_enc^T + b_enc) W_dec + b_dec`."""

    is_normalised = True
    folds = ("folded",)
    cfg: BatchTopKConfig

    def __init__(self, cfg: BatchTopKConfig, shape: Shape) -> None:
        super().__init__(cfg, shape)
        self.threshold = BatchThreshold(cfg.threshold_steps)

    def selection(self) -> Selection:
        return self.threshold.selection(self.cfg.k, self.cfg.n_latents, self.sizes, self.team)

    def after_step(self, out: Forward) -> None:
        super().after_step(out)
        self.threshold.update(out.strengths, self.team)
