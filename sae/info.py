"""What this installation has: versions, devices, architectures, formats, kernel backends."""

import platform
from importlib import metadata
from typing import Any

PACKAGES = ("torch", "transformers", "datasets", "safetensors", "accelerate", "numpy", "pyarrow")


def collect() -> dict[str, Any]:
    """The facts of `sae info`, as JSON values."""
    import torch

    from sae import architectures, convert, kernels
    from sae.model import default_device, resolve_precision

    device = default_device()
    devices = {"cpu": f"{torch.get_num_threads()} threads"}
    if device.type == "cuda":
        devices |= {f"cuda:{i}": torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    versions = {"sae": metadata.version("sae-atlas"), "python": platform.python_version()}
    return {
        "versions": versions | {name: metadata.version(name) for name in PACKAGES},
        "devices": devices,
        "precision": [resolve_precision("auto", device)],
        "architectures": architectures.names(),
        "formats": convert.names(),
        "backends": kernels.backends(),
    }
