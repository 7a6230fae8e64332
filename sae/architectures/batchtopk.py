"""BatchTopK: keep the k largest pre-activations a row *on average*; one threshold for use.

Bussmann, Leask & Nanda 2024, "BatchTopK sparse autoencoders", arXiv:2412.06410.
"""

from sae.architectures import architectures
from sae.architectures.configs import BatchTopKConfig
from sae.threshold import ThresholdSAE


@architectures.register("batchtopk")
class BatchTopKSAE(ThresholdSAE):
    """`x_hat = BatchTopK((x - b_dec) W_enc^T + b_enc) W_dec + b_dec`."""

    folds = ("folded",)
    steps_are_alike = True
    can_divide = True
    cfg: BatchTopKConfig
