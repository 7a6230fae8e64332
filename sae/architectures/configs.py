"""What can be chosen of each dictionary. Free of torch, so that a mistake is answered at once."""

from typing import Any

from sae.config import Natural, NonNegativeFloat, Positive, config
from sae.errors import ConfigError
from sae.registry import Registry

configs: Registry[type] = Registry("sae.type")


@configs.register("topk")
@config
class TopKConfig:
    """TopK with AuxK (Gao et al. 2024, arXiv:2406.04093)."""

    n_latents: Positive = 4096
    """Latents in the dictionary."""
    k: Positive = 32
    """Latents kept in each row."""
    auxk: Natural | None = None
    """Dead latents that reconstruct the residual; none means d_in / 2, 0 turns AuxK off."""
    auxk_coef: NonNegativeFloat = 1 / 32
    """Weight of the AuxK loss beside the normalised error (§A.2)."""

    def __post_init__(self) -> None:
        if self.k > self.n_latents:
            raise ValueError(f"sae.k = {self.k}: must be at most n_latents = {self.n_latents}")


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
