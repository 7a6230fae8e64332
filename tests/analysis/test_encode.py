"""Codes: every firing of every latent, found again at its position."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analysis import encode
from analysis.codes import Codes, open_codes
from analysis.config import IndexConfig
from sae.architectures.configs import TopKConfig
from sae.architectures.topk import TopKSAE
from sae.dictionary import InputStats, Shape
from sae.errors import StoreError
from sae.scaling import SiteStats
from sae.stage import stage
from sae.store import Places

SITE, N = "mlp_out.1", 24


@pytest.fixture(scope="module")
def dictionary() -> TopKSAE:
    made = TopKSAE(TopKConfig(n_latents=N, k=4), Shape((16,)))
    rows = torch.randn(50, 16, generator=torch.Generator().manual_seed(1))
    stats = (SiteStats(16, 4.0, 16.0),)
    made.initialise(InputStats(stats, stats, rows, rows), torch.Generator().manual_seed(0))
    return made.eval()


def build(path, dictionary, activations, store, **choices):
    cfg = IndexConfig(**choices)
    return stage(path, {}, lambda out: encode.build(dictionary, N, activations, Places((SITE,)), store, cfg, out))


def dense(codes: Codes, n_tokens: int) -> np.ndarray:
    """`[n_tokens, n_latents]`, the activation of each latent on each token."""
    matrix = np.zeros((n_tokens, codes.n_latents), dtype=np.float32)
    for latent in range(codes.n_latents):
        positions, values = codes.of(latent)
        matrix[positions, latent] = values
    return matrix


def test_codes_hold_what_the_dictionary_gives_on_each_kept_position(
    tmp_path, dictionary, activation_store, token_store, monkeypatch
):
    monkeypatch.setattr(encode, "ROWS", 37)
    box = build(tmp_path / "c", dictionary, activation_store, token_store)
    for name in token_store.splits():
        split, rows = token_store.split(name), activation_store.split([SITE], name)
        codes = open_codes(box, name)
        expected = np.zeros((len(split.tokens), N), dtype=np.float32)
        with torch.no_grad():
            latents = dictionary.encode(rows.read(0, rows.n_rows)).dense().numpy()
        expected[split.kept_positions(1)] = latents
        np.testing.assert_allclose(dense(codes, len(split.tokens)), expected, rtol=1e-5, atol=1e-6)
        assert box.facts["n_rows"][name] == rows.n_rows
        assert codes.counts().tolist() == (expected > 0).sum(0).tolist()
        assert (codes.values > 0).all()
        assert (codes.positions.dtype, codes.values.dtype, codes.offsets.dtype) == (np.int32, np.float32, np.int64)
        for latent in range(N):
            assert (np.diff(codes.of(latent)[0]) > 0).all(), "positions ascend"
    assert {"n_latents": N, "skip_positions": 1}.items() <= box.facts.items()


def test_limits_take_the_first_kept_positions(tmp_path, dictionary, activation_store, token_store):
    whole = build(tmp_path / "whole", dictionary, activation_store, token_store)
    some = build(tmp_path / "some", dictionary, activation_store, token_store, tokens=45, label_tokens=20)
    assert some.facts["n_rows"] == {"train": 45, "fit": 20, "select": 20, "test": 20}
    for name, limit in some.facts["n_rows"].items():
        split = token_store.split(name)
        expected = dense(open_codes(whole, name), len(split.tokens))
        expected[split.kept_positions(1)[limit:]] = 0
        assert np.array_equal(dense(open_codes(some, name), len(split.tokens)), expected)


def test_a_killed_attempt_goes_on_with_what_is_missing(tmp_path, dictionary, activation_store, token_store):
    whole = build(tmp_path / "c", dictionary, activation_store, token_store)
    kept = (tmp_path / "c" / "train.safetensors").stat().st_mtime_ns
    (tmp_path / "c" / "manifest.json").unlink()
    (tmp_path / "c" / "test.safetensors").unlink()
    again = build(tmp_path / "c", dictionary, activation_store, token_store)
    assert again.digest == whole.digest
    assert (tmp_path / "c" / "train.safetensors").stat().st_mtime_ns == kept


def test_missing_codes_are_named(tmp_path, dictionary, activation_store, token_store):
    box = build(tmp_path / "c", dictionary, activation_store, token_store)
    with pytest.raises(StoreError) as caught:
        open_codes(box, "dev")
    assert str(caught.value) == f"{box.path / 'dev.safetensors'}: no codes of the dev split; run the index stage again"


def test_by_latent_by_hand():
    # position 3: latents 2 and 0; position 7: latent 2
    codes = encode.by_latent(
        np.array([2, 0, 2], np.int32), np.array([3, 3, 7], np.int32), np.array([0.5, 1.0, 2.0], np.float32), 4
    )
    assert codes.offsets.tolist() == [0, 1, 1, 3, 3]
    assert [part.tolist() for part in codes.of(2)] == [[3, 7], [0.5, 2.0]]
    assert [part.tolist() for part in codes.of(1)] == [[], []]
    assert codes.counts().tolist() == [1, 0, 2, 0]


@given(st.lists(st.lists(st.integers(0, 4), unique=True), max_size=8))
def test_by_latent_by_brute_force(rows):
    indices = np.array([i for row in rows for i in row], np.int32)
    positions = np.array([p for p, row in enumerate(rows) for _ in row], np.int32)
    values = np.arange(1, len(indices) + 1, dtype=np.float32)
    codes = encode.by_latent(indices, positions, values, 5)
    for latent in range(5):
        own = indices == latent
        found = [part.tolist() for part in codes.of(latent)]
        assert found == [positions[own].tolist(), values[own].tolist()]
