"""Whether the peers' own packages compute from what we write what we compute ourselves. No test runs this.

    PYTHONPATH=. python tests/golden/check_written.py write DIR                 our environment
    python tests/golden/check_written.py read DIR FORMAT [CHECKOUT]             the package's environment

`write` makes one file or folder for every dictionary of `tests/sae/ours.py` and every format that can hold it,
`read` loads them with the package and prints the largest differences of latents and outputs, relative to
1 + |ours|, as a row of the table in docs/interchange.md. For `openai`, CHECKOUT is one of openai/sparse_autoencoder.
Environments and versions are those of the `make_*.py` scripts (README.md here).
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Reader = Callable[[Path], tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]]
"""A folder → how the package encodes rows, and what it makes of them."""


def write(out: Path) -> None:
    from sae import convert
    from tests.sae import ours

    for form, names in ours.HELD.items():
        for name in sorted(names):
            dictionary, x = ours.make(name), ours.rows(name)
            convert.write(dictionary, ours.FACTS, form, out / form / name)
            with torch.no_grad():
                latents, recon = dictionary.reconstruct(x)
            f = latents.dense()
            if name == "matching_pursuit_scaled":  # its latents are in the rows' units in SAELens
                f = f / dictionary.get_buffer("scaling.scale")
            save_file({"x": x, "latents": f, "recon": recon}, out / form / name / "ours.safetensors")


def saelens(folder: Path) -> tuple[Any, Any]:
    from sae_lens import SAE

    sae = SAE.load_from_disk(folder)
    return sae.encode, sae


def gemma_scope(folder: Path) -> tuple[Any, Any]:
    """SAELens' loader of the release, which takes sizes and kind from names on the hub: given here."""
    from sae_lens import SAE
    from sae_lens.loading import pretrained_sae_loaders as loaders

    is_second = folder.parent.name == "gemma_scope_2"
    file = next(folder.glob("params.*"))
    d_out = load_file(folder / "ours.safetensors")["recon"].shape[1]
    is_transcoder = "transcoder" in folder.name
    kind = "jumprelu_transcoder" if is_transcoder else "jumprelu"
    if is_second:
        loader, place = loaders.gemma_3_sae_huggingface_loader, "transcoder" if is_transcoder else "resid_post"
        kind = kind.replace("jumprelu_", "jumprelu_skip_") if "skip" in folder.name else kind
        repository, place = "google/gemma-scope-2-270m-pt", f"{place}/layer_5_width_16k"
    else:
        loader = (
            loaders.gemma_2_transcoder_huggingface_loader if is_transcoder else loaders.gemma_2_sae_huggingface_loader
        )
        repository, place = "google/gemma-scope-2b-pt-res", "layer_5/width_16k/average_l0_7"
    sizes = {"d_in": 6, "d_sae": 10, "architecture": kind} | ({"d_out": d_out} if is_transcoder else {})

    def download(repo_id: str, filename: str, **_: Any) -> str:  # noqa: ARG001
        return str(folder / Path(filename).name)

    def shapes(repo_id: str, filename: str) -> dict[str, list[int]]:  # noqa: ARG001
        return {name: list(value.shape) for name, value in load_file(file).items()}

    def convert(path: Any, device: str, cfg_overrides: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:  # noqa: ARG001
        cfg, state, _ = loader(repository, place, device=device, cfg_overrides=sizes)
        return {**cfg, **sizes}, state

    with (
        patch.object(loaders, "hf_hub_download", download),
        patch.object(loaders, "get_safetensors_tensor_shapes", shapes),
    ):
        sae = SAE.load_from_disk("", converter=convert)
    return sae.encode, sae


def dictionary_learning(folder: Path) -> tuple[Any, Any]:
    """`load_dictionary` rescales an AutoEncoder to unit decoder rows, which changes its latents: these by the class."""
    from dictionary_learning.dictionary import AutoEncoder
    from dictionary_learning.utils import load_dictionary

    loaded, _ = load_dictionary(str(folder), "cpu")
    by_class = (
        AutoEncoder.from_pretrained(folder / "ae.pt", normalize_decoder=False)
        if type(loaded) is AutoEncoder
        else loaded
    )
    return by_class.encode, loaded


def sparsify(folder: Path) -> tuple[Any, Any]:
    from sparsify import SparseCoder

    coder = SparseCoder.load_from_disk(folder)

    def encode(x: Tensor) -> Tensor:
        values, indices, _ = coder.encode(x)
        return torch.zeros(len(x), coder.num_latents).scatter_(1, indices, values)

    def decode(x: Tensor) -> Tensor:
        values, indices, _ = coder.encode(x)
        out = coder.decode(values, indices)
        return out if coder.W_skip is None else out + x @ coder.W_skip.mT

    return encode, decode


def openai(folder: Path, checkout: Path) -> tuple[Any, Any]:
    from make_openai import load_model_file

    state = torch.load(next(folder.glob("*.pt")), weights_only=True)
    model = load_model_file(checkout).Autoencoder.from_state_dict(state)
    return lambda x: model.encode(x)[0], lambda x: model(x)[2]


READERS: dict[str, Reader] = {
    "saelens": saelens,
    "gemma_scope": gemma_scope,
    "gemma_scope_2": gemma_scope,
    "dictionary_learning": dictionary_learning,
    "sparsify": sparsify,
}


def read(out: Path, form: str, checkout: Path | None) -> None:
    reader = READERS.get(form, lambda folder: openai(folder, checkout or Path()))
    worst, names = [0.0, 0.0], sorted(path for path in (out / form).iterdir() if path.is_dir())
    for folder in names:
        expected = load_file(folder / "ours.safetensors")
        encode, reconstruct = reader(folder)
        with torch.no_grad():
            found = encode(expected["x"]), reconstruct(expected["x"])
        for i, (theirs, ours) in enumerate(zip(found, (expected["latents"], expected["recon"]), strict=True)):
            is_number = theirs.isfinite()
            is_number[1:] = True  # a package may divide the row of zeros by its norm, and has NaN then
            error = ((theirs - ours).abs() / (1 + ours.abs()))[is_number].max().item()
            worst[i] = max(worst[i], error)
            if not error < 1e-5:
                print(f"{form} {folder.name}: {('latents', 'output')[i]} differ by {error:.1e}")  # noqa: T201
    print(f"| `{form}` | {len(names)} | {worst[0]:.0e} | {worst[1]:.0e} |")  # noqa: T201


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=("write", "read"))
    parser.add_argument("out", type=Path)
    parser.add_argument("form", nargs="?")
    parser.add_argument("checkout", nargs="?", type=Path)
    arguments = parser.parse_args()
    if arguments.mode == "write":
        write(arguments.out)
    else:
        read(arguments.out, arguments.form, arguments.checkout)


if __name__ == "__main__":
    main()
