"""The rows every golden checkpoint is evaluated on, and the file that keeps what its own package made of them.

Used by the `make_*.py` scripts beside it, inside a peer's environment; needs torch and safetensors only.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

D_IN, D_OUT, N_LATENTS, N_ROWS = 6, 5, 10, 7
CANDIDATES = 4096

WIDTHS = {"weight": 0.7, "bias": 0.4, "threshold": 0.5, "r_mag": 0.3}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fill(module: nn.Module, seed: int, unit_decoder: bool = False) -> None:
    """Gives every parameter of a peer's module random values of a size that leaves some latents on and some off.

    The rows of a decoder get norms between 0.4 and 2.5, so that a reader who rescales them shows. Thresholds are
    positive but for two: latent 0 has zero, latent 1 a negative one. Where there is a threshold, latent 2's encoder
    bias equals it, so that the row with x = the input's bias lies exactly on it.
    """
    g = generator(seed)
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            kind = next((k for k in ("threshold", "r_mag") if k in name), "weight" if parameter.ndim == 2 else "bias")
            parameter.copy_(torch.randn(parameter.shape, generator=g) * WIDTHS[kind])
            if name in ("W_dec", "decoder.weight"):
                dim = 1 if name == "W_dec" else 0  # decoder.weight is a Linear's, (d_in, n_latents)
                norms = torch.empty(parameter.shape[1 - dim]).uniform_(0.4, 2.5, generator=g)
                parameter.div_(parameter.norm(dim=dim, keepdim=True))
                if not unit_decoder:
                    parameter.mul_(norms.unsqueeze(dim))
        if "threshold" in parameters:
            threshold, b_enc = parameters["threshold"], parameters["b_enc"]
            threshold.abs_()
            threshold[0], threshold[1] = 0.0, -threshold[1]
            threshold[2] = b_enc[2].abs_()


def rows(encode: Callable[[Tensor], Tensor], seed: int, centre: Tensor | None = None, d_in: int = D_IN) -> Tensor:
    """Seven rows to encode.

    0 zeros; 1 `centre`, the bias that is subtracted from the input (or a small row if none is); 2 the row among
    `CANDIDATES` random ones with the fewest latents on but at least one, so that a top-k finds fewer than k above
    zero; 3 a row of norm about 250; 4 to 6 ordinary rows.
    """
    g = generator(seed + 1000)
    candidates = 2 * torch.randn(CANDIDATES, d_in, generator=g)
    with torch.no_grad():
        on = (encode(candidates) != 0).sum(dim=-1).float()
    sparse = candidates[on.masked_fill(on == 0, torch.inf).argmin()]
    x = 1.5 * torch.randn(N_ROWS, d_in, generator=g)
    x[0] = 0.0
    x[1] = 0.1 * x[1] if centre is None else centre.detach().float()
    x[2] = sparse
    x[3] *= 70
    return x


def save_expected(folder: Path, origin: str, x: Tensor, latents: Tensor, recon: Tensor, **more: Tensor) -> None:
    """Writes `expected.safetensors`, float32, with who computed it as the file's metadata."""
    tensors = {"x": x, "latents": latents, "recon": recon, **more}
    kept = {name: t.detach().to(torch.float32).contiguous().clone() for name, t in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(kept, folder / "expected.safetensors", metadata={"origin": origin})


def check_same(one: Iterable[Tensor], other: Iterable[Tensor], what: str, tolerance: float = 1e-5) -> None:
    """Raises if a peer's checkpoint, read back by the peer, is not the function that was saved."""
    for a, b in zip(one, other, strict=True):
        if not torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True):
            raise AssertionError(f"{what}: differs by {(a - b).abs().max().item():.3g} after saving and loading")
