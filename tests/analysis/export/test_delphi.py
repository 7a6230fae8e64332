"""delphi's cache: the same tensors as delphi's own, one latent by hand, and what rows are where contexts are short."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from analysis.codes import Codes
from analysis.export import delphi
from analysis.export.delphi import Rows
from analysis.export.formats import export
from sae.errors import ConfigError, StoreError
from sae.tokens import TokenSplit
from tests.analysis.export.conftest import FIRINGS, PLAIN, build_run
from tests.analysis.stored import stored

GOLDEN = Path(__file__).parents[2] / "golden" / "delphi" / "mlp_out.1"


def firings(tensors: dict[str, Any]) -> dict[tuple[int, int, int], float]:
    """{(latent in the file, row, place): activation}."""
    keys = (tuple(int(i) for i in (latent, row, at)) for row, at, latent in tensors["locations"])
    return dict(zip(keys, tensors["activations"].tolist(), strict=True))


def test_a_file_holds_what_delphis_own_does(tmp_path):
    """The firings of tests/golden/make_delphi.py."""
    tokens = load_file(GOLDEN / "0_2.safetensors")["tokens"]
    starts = np.arange(0, 25, 8)
    split = TokenSplit("train", tokens.reshape(-1).astype(np.uint16), starts, starts, {})
    latents = [{1: 4.0, 7: 2.0, 19: 0.5}, {}, {2: 1.5, 9: 3.0}, {}, {}, {9: 0.25}]
    codes, _ = stored(tmp_path, split, latents, part_rows=10)
    rows = Rows.of(codes, split)
    for first in (0, 3):
        delphi._write_file(tmp_path, first, codes.block(first, first + 3), rows)
        ours, theirs = (load_file(folder / f"{first}_{first + 2}.safetensors") for folder in (tmp_path, GOLDEN))
        assert firings(ours) == firings(theirs)
        assert ours["tokens"].tolist() == theirs["tokens"].tolist()
        assert ours.keys() == theirs.keys()
        for name in ("locations", "activations"):
            assert (ours[name].dtype, ours[name].shape) == (theirs[name].dtype, theirs[name].shape)


def test_all_firings_of_whole_rows(run, tmp_path):
    """The last context is shorter than a row, and in none."""
    export(run, tmp_path / "delphi", "delphi")
    folder = tmp_path / "delphi" / "latents" / "mlp_out.1"
    assert sorted(path.name for path in folder.iterdir()) == ["0_3.safetensors", "config.json"]
    tensors = load_file(folder / "0_3.safetensors")
    assert tensors["tokens"].tolist() == [[0, 1, 3, 0, 2, 3, 0, 1], [4, 2, 3, 0, 1, 0, 1, 0]]
    assert firings(tensors) == {
        (latent, position // 8, position % 8): value
        for latent, own in enumerate(FIRINGS)
        for position, value in own.items()
        if position < 16
    }
    theirs, ours = (json.loads((path / "config.json").read_text()) for path in (GOLDEN, folder))
    assert theirs.keys() - ours.keys() == {"batch_size"}, "of the run that filled the cache"
    assert ours == {
        "cache_ctx_len": 8,
        "dataset_column": "text",
        "dataset_name": "",
        "dataset_repo": "embedded",
        "dataset_split": "train",
        "model_name": "org/Tiny_GPT",
        "n_splits": 1,
        "n_tokens": 16,
    }
    # nothing beside the hookpoints' folders, which is what delphi takes every entry for
    assert [path.name for path in folder.parent.iterdir()] == ["mlp_out.1"]


def test_labels_are_where_its_scorers_look(run, tmp_path):
    export(run, tmp_path / "delphi", "delphi", {"hookpoint": "h.1.mlp"})
    labels = {path.name: json.loads(path.read_text()) for path in (tmp_path / "delphi" / "explanations").iterdir()}
    assert labels == {"h.1.mlp_latent0.txt": "Fires on “dog”.", "h.1.mlp_latent3.txt": "Fires after “dog”."}
    assert (tmp_path / "delphi" / "latents" / "h.1.mlp" / "config.json").exists()


def test_files_of_a_block_of_latents(run, tmp_path, monkeypatch):
    monkeypatch.setattr(delphi, "MOST_LATENTS", 3)
    export(run, tmp_path / "delphi", "delphi")
    folder = tmp_path / "delphi" / "latents" / "mlp_out.1"
    second = load_file(folder / "3_3.safetensors")
    assert sorted(path.name for path in folder.glob("*.safetensors")) == ["0_2.safetensors", "3_3.safetensors"]
    assert firings(second) == {(0, 1, 5): 1.0, (0, 1, 7): 0.25}
    assert json.loads((folder / "config.json").read_text())["n_splits"] == 2


@pytest.mark.parametrize("n_kept", [30, 60, 1000])
def test_rows_of_short_contexts_are_their_tokens_one_behind_the_other(tmp_path, n_kept):
    """Every kept firing is at its token, but for those of the last tokens, fewer than a row."""
    rng = np.random.default_rng(0)
    starts = np.append(0, np.cumsum(rng.integers(2, 9, size=20)))
    split = TokenSplit("train", rng.integers(0, 99, starts[-1]).astype(np.uint16), starts, starts, {})
    latents = [{p: float(1 + p) for p in range(starts[-1])}]
    codes, _ = stored(tmp_path, split, latents, 1, 1 << 20, n_kept, part_rows=20)
    rows = Rows.of(codes, split)
    width = int(np.diff(starts).max())
    tensors = delphi._content(codes.block(0, 1), rows)
    row, at, _ = tensors["locations"].T.astype(int)
    positions = tensors["activations"].astype(int) - 1
    assert rows.tokens.shape[1] == width
    assert (rows.tokens[row, at] == split.tokens[positions]).all()
    assert (np.diff(row * width + at) > 0).all()
    kept = codes.positions()
    assert positions.tolist() == kept[: len(positions)].tolist()
    assert len(kept) - len(positions) < width


def test_values_are_kept_exactly(tmp_path):
    starts = np.array([0, 4])
    split = TokenSplit("train", np.zeros(4, np.uint16), starts, starts, {})
    for value, kind in ((1.0078125, np.float16), (98304.0, np.float32), (1e-7, np.float32)):
        codes, _ = stored(tmp_path / str(value), split, [{1: value, 2: 1.0}])
        tensors = delphi._content(codes.block(0, 1), Rows.of(codes, split))
        assert tensors["activations"].dtype == kind
        assert tensors["activations"].tolist() == codes.of(0)[1].tolist()


def test_numbers_that_do_not_fit_two_bytes():
    """A file of 65,537 latents, of which the last fires at the second token."""
    offsets = np.zeros(65538, np.int64)
    offsets[-1] = 1
    codes = Codes(offsets, np.array([1], np.int32), np.array([1.0], np.float32))
    tensors = delphi._content(codes, Rows(np.zeros((2, 2), np.uint16), np.array([0, 2]), np.array([0, 2])))
    assert tensors["locations"].dtype == np.uint32
    assert tensors["locations"].tolist() == [[0, 1, 65536]]


def test_documents_that_are_contexts_of_their_own(tmp_path, gpt2):
    """Of 8, 3, 8 and 1 tokens: two rows of 8 and 4 tokens in none."""
    run = build_run(tmp_path / "run", gpt2, PLAIN, packing="document")
    export(run, tmp_path / "delphi", "delphi")
    tensors = load_file(tmp_path / "delphi" / "latents" / "mlp_out.1" / "0_3.safetensors")
    assert tensors["tokens"].tolist() == [[0, 1, 3, 0, 2, 3, 0, 1], [4, 2, 3, 0, 1, 0, 1, 0]]
    assert {key: value for key, value in firings(tensors).items() if key[0] == 0} == {
        (0, 0, 1): 4.0,
        (0, 0, 7): 2.0,
        (0, 1, 4): 8.0,
        (0, 1, 6): 1.0,
    }


def test_a_cross_layer_transcoder_is_a_hookpoint_a_layer(layered, tmp_path):
    export(layered, tmp_path / "delphi", "delphi")
    second = load_file(tmp_path / "delphi" / "latents" / "mlp_in.1" / "0_1.safetensors")
    assert firings(second) == {(1, 1, 5): 1.0, (1, 1, 7): 0.25}
    assert (tmp_path / "delphi" / "explanations" / "mlp_in.1_latent1.txt").exists()
    with pytest.raises(ConfigError, match=r"hookpoint = 'h\.1': must be left out, the latents belong to several sites"):
        export(layered, tmp_path / "other", "delphi", {"hookpoint": "h.1"})


def test_a_split_of_which_nothing_was_kept(run, tmp_path):
    with pytest.raises(StoreError, match="no codes of the test split"):
        export(run, tmp_path / "delphi", "delphi", {"split": "test"})
    assert not (tmp_path / "delphi").exists()
