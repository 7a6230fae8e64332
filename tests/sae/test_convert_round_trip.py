"""Ours → theirs → ours, for every kind of dictionary and every format that can hold it."""

import json
from pathlib import Path

import pytest
import torch

from sae import convert, hub
from sae.convert import sidecar
from sae.errors import FormatError
from tests.sae import ours

HELD = [(form, name) for form, names in ours.HELD.items() for name in sorted(names)]
NOT_HELD = [(form, name) for form, names in ours.HELD.items() for name in sorted(set(ours.CASES) - names)]


def written(form: str, name: str, out: Path) -> Path:
    convert.write(ours.make(name), ours.FACTS, form, out)
    return out


def own_files(found: convert.Read, out: Path) -> list[bytes]:
    hub.save(found.dictionary, found.facts, out)
    return [path.read_bytes() for path in sorted(out.iterdir())]


def test_every_format_is_tried():
    assert set(ours.HELD) == set(convert.names()) - {"sae"}


@pytest.mark.parametrize(("form", "name"), HELD)
def test_there_and_back_is_exact(form, name, tmp_path):
    """Byte by byte: tensors, buffers of training, choices and facts."""
    back = convert.read(written(form, name, tmp_path / "theirs"))
    assert own_files(back, tmp_path / "back") == own_files(
        convert.Read(ours.make(name), ours.FACTS), tmp_path / "before"
    )
    assert not back.dictionary.training


@pytest.mark.parametrize(("form", "name"), HELD)
def test_without_the_sidecar_it_is_the_same_function(form, name, tmp_path):
    folder, x = written(form, name, tmp_path), ours.rows(name)
    answers = json.loads((folder / sidecar.JSON).read_text())["answers"]
    for file in (sidecar.JSON, sidecar.TENSORS):
        (folder / file).unlink()
    with torch.no_grad():
        (f, y), (latents, recon) = (
            d.reconstruct(x) for d in (convert.read(folder, answers).dictionary, ours.make(name))
        )
    scale = (
        0.37 if name == "matching_pursuit_scaled" else 1.0
    )  # its latents speak the rows' units, ours the dictionary's
    size = 1 + latents.dense().abs().max()
    torch.testing.assert_close(f.dense() * scale, latents.dense(), rtol=1e-5, atol=1e-6 * size.item())
    torch.testing.assert_close(y, recon, rtol=1e-5, atol=1e-5)
    assert 0.02 < (latents.dense() > 0).float().mean() < 0.9


@pytest.mark.parametrize(("form", "name"), NOT_HELD)
def test_what_a_format_cannot_hold_is_refused_and_nothing_written(form, name, tmp_path):
    with pytest.raises(FormatError, match="cannot be written"):
        written(form, name, tmp_path)
    assert not list(tmp_path.iterdir())
