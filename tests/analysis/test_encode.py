"""Codes: every firing of every latent, found again at its position; the same from one process or two, killed or not."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from analysis import encode
from analysis.codes import Codes, open_codes, packed, unpacked
from analysis.parts import plan
from analysis.summary import Summary
from sae.errors import StoreError
from tests import warm
from tests.analysis import encoding
from tests.analysis.encoding import PART_ROWS, SITE, N, build, make_dictionary


def dense(codes: Codes, n_tokens: int) -> np.ndarray:
    """`[n_tokens, n_latents]`, the activation of each latent on each token."""
    matrix = np.zeros((n_tokens, codes.n_latents), dtype=np.float32)
    for latent in range(codes.n_latents):
        positions, values = codes.of(latent)
        matrix[positions, latent] = values
    return matrix


def expected(activation_store, token_store, name: str) -> np.ndarray:
    """The same from the dictionary, as it is kept."""
    split, rows = token_store.split(name), activation_store.split([SITE], name)
    matrix = np.zeros((len(split.tokens), N), dtype=np.float32)
    with torch.no_grad():
        matrix[split.kept_positions(1)] = make_dictionary().encode(rows.read(0, rows.n_rows)).dense().numpy()
    return np.where(matrix > 0, unpacked(packed(matrix)), 0)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")}


def test_codes_hold_what_the_dictionary_gives_on_each_kept_position(
    tmp_path, activation_store, token_store, monkeypatch
):
    monkeypatch.setattr(encode, "ROWS", 37)
    monkeypatch.setattr(encode, "PART_ROWS", PART_ROWS)
    box = build(tmp_path / "c", activation_store, token_store)
    for name in token_store.splits():
        split = token_store.split(name)
        on_disk = open_codes(box, name)
        wanted = expected(activation_store, token_store, name)
        codes = on_disk.load()
        # a chunk's product may round otherwise, and a value then to its neighbour
        np.testing.assert_allclose(dense(codes, len(split.tokens)), wanted, rtol=2**-7, atol=1e-6)
        n_rows = len(split.kept_positions(1))
        assert {"n_rows": n_rows, "n_kept": n_rows, "n_tokens": len(split.tokens)}.items() <= box.facts["splits"][
            name
        ].items()
        assert codes.counts().tolist() == (wanted > 0).sum(0).tolist()
    train = dense(open_codes(box, "train").load(), len(token_store.split("train").tokens))
    summary = Summary.load(box.path / "summary.safetensors")
    assert summary.counts().tolist() == (train > 0).sum(0).tolist()
    assert summary.peaks().tolist() == train.max(0).tolist()
    assert summary.sum_of_values() == pytest.approx(train.astype(np.float64).sum(0), rel=1e-6)
    assert {"n_latents": N, "skip_positions": 1}.items() <= box.facts.items()


def test_limits_choose_contexts_from_all_over(tmp_path, activation_store, token_store):
    whole = build(tmp_path / "whole", activation_store, token_store)
    some = build(tmp_path / "some", activation_store, token_store, tokens=100, kept_tokens=60, label_tokens=40)
    for name, facts in some.facts["splits"].items():
        split = token_store.split(name)
        parts = plan(split, 1, *((100, 60) if name == "train" else (40, 40)))
        kept = np.concatenate([part.position_of(np.arange(part.n_rows)) for part in parts if part.is_kept])
        wanted = np.zeros((len(split.tokens), N), np.float32)
        wanted[kept] = dense(open_codes(whole, name).load(), len(split.tokens))[kept]
        found = dense(open_codes(some, name).load(), len(split.tokens))
        np.testing.assert_allclose(found, wanted, rtol=2**-7)
        assert facts["n_kept"] == len(kept)
        assert facts["n_rows"] == sum(part.n_rows for part in parts)
    counts = Summary.load(some.path / "summary.safetensors").n_rows
    assert 60 < counts == some.facts["splits"]["train"]["n_rows"] <= 100


def test_a_killed_attempt_goes_on_with_what_is_missing(tmp_path, activation_store, token_store, monkeypatch):
    """The first dies in its third part, with a summary of the first two on disk."""
    monkeypatch.setattr(encode, "PART_ROWS", PART_ROWS)
    monkeypatch.setattr(encode, "CHECKPOINT_SECONDS", 0.0)
    whole = build(tmp_path / "whole", activation_store, token_store, kept_tokens=150)
    add, added = Summary.add_part, []

    def dying(self, part, number, *others):
        if len(added) == 2:
            raise KeyboardInterrupt
        added.append(number)
        add(self, part, number, *others)

    monkeypatch.setattr(Summary, "add_part", dying)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "c", activation_store, token_store, kept_tokens=150)
    known = Summary.load(tmp_path / "c" / "summary-0.scratch")
    assert known.parts.tolist() == added
    again = []
    monkeypatch.setattr(
        Summary,
        "add_part",
        lambda self, part, number, *others: (again.append(number), add(self, part, number, *others))[0],
    )
    box = build(tmp_path / "c", activation_store, token_store, kept_tokens=150)
    assert box.digest == whole.digest
    assert len(again) > 1
    assert not set(again) & set(added)
    assert not list((tmp_path / "c").glob("*.scratch"))


def test_summaries_of_two_processes_that_were_killed_are_added_up(tmp_path, activation_store, token_store, monkeypatch):
    """And one that had been added to another already is not counted again."""
    monkeypatch.setattr(encode, "PART_ROWS", PART_ROWS)
    whole = build(tmp_path / "whole", activation_store, token_store)
    split, folder = token_store.split("train"), tmp_path / "whole"
    parts = plan(split, 1, 10**7, 10**7, PART_ROWS)
    pairs = activation_store.pairs(encoding.Places((SITE,)), "train")
    starts = np.append(0, np.cumsum(np.maximum(np.diff(split.context_starts) - 1, 0)))
    some = [Summary.empty(N, Summary.load(folder / "summary.safetensors").unit) for _ in range(3)]
    for number in range(4):
        codes = encode.encode(make_dictionary(), N, pairs, encode.runs(parts[number], starts))
        for summary in (some[number % 2], some[2]):
            summary.add_part(parts[number], number, codes, split)
    (folder / "manifest.json").unlink()
    (folder / "summary.safetensors").unlink()
    for name, summary in zip(("0", "1", "all"), some, strict=True):
        summary.save(folder / f"summary-{name}.scratch")
    assert build(folder, activation_store, token_store).digest == whole.digest


def test_parts_are_smaller_where_many_latents_are_active(tmp_path, activation_store, monkeypatch):
    """4 a token: 1,024 rows and no fewer; what was found first holds."""
    pairs = activation_store.pairs(encoding.Places((SITE,)), "train")

    def part_rows(name: str) -> int:
        (tmp_path / name).mkdir(exist_ok=True)
        return encode._scales(make_dictionary(), pairs, tmp_path / name)["part_rows"]

    assert part_rows("a") == 1 << 16
    monkeypatch.setattr(encode, "PART_ENTRIES", 1 << 15)
    assert part_rows("b") == 1 << 13
    monkeypatch.setattr(encode, "PART_ENTRIES", 1)
    assert part_rows("c") == 1024
    assert (part_rows("a"), part_rows("b")) == (1 << 16, 1 << 13)


@pytest.mark.parametrize("factor", [1.0, 64.0, 2.0**-20])
def test_the_unit_is_that_of_the_latents(tmp_path, activation_store, token_store, monkeypatch, factor):
    """Not that of the rows that the network gives."""
    louder = make_dictionary()
    louder.W_enc.data.mul_(factor)
    louder.b_enc.data.mul_(factor)
    monkeypatch.setattr(encoding, "make_dictionary", lambda: louder)
    box = build(tmp_path / "c", activation_store, token_store)
    summary, codes = Summary.load(box.path / "summary.safetensors"), open_codes(box, "train").load()
    values = codes.values.astype(np.float64)
    assert 2.0 ** (summary.unit - 1) < values.mean() < 2.0 ** (summary.unit + 1)
    assert values.max() < summary.edges()[-1]
    squares = np.bincount(codes.latents, weights=values**2, minlength=N)
    assert summary.sum_of_squares() == pytest.approx(squares, rel=1e-6)
    assert summary.sum_of_values() == pytest.approx(np.bincount(codes.latents, weights=values, minlength=N), rel=1e-6)


def test_scattered_contexts_are_encoded_whole(tmp_path, activation_store, token_store, monkeypatch):
    """In blocks that end within contexts, and begin with what the one before has left."""
    monkeypatch.setattr(encode, "ROWS", 7)
    box = build(tmp_path / "c", activation_store, token_store, tokens=300, kept_tokens=300, label_tokens=100)
    for name in ("train", "fit"):
        on_disk = open_codes(box, name)
        wanted = expected(activation_store, token_store, name)
        positions = on_disk.positions()
        assert len(np.flatnonzero(np.diff(positions) > 2)) > 0, "they are scattered"
        found = dense(on_disk.load(), len(wanted))
        np.testing.assert_allclose(found[positions], wanted[positions], rtol=2**-7)
        assert (found.sum(1) > 0).sum() == (wanted[positions].sum(1) > 0).sum()


def test_codes_that_were_lost_are_made_again(tmp_path, activation_store, token_store, monkeypatch):
    """Of a part that the summary knows; nothing is counted twice."""
    monkeypatch.setattr(encode, "PART_ROWS", PART_ROWS)
    whole = build(tmp_path / "whole", activation_store, token_store)
    add = Summary.add_part

    def dying(self, part, number, *others):
        if number == 5:
            raise KeyboardInterrupt
        add(self, part, number, *others)

    monkeypatch.setattr(Summary, "add_part", dying)
    monkeypatch.setattr(encode, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "c", activation_store, token_store)
    monkeypatch.setattr(Summary, "add_part", add)
    (tmp_path / "c" / "train-00001.safetensors").unlink()
    assert build(tmp_path / "c", activation_store, token_store).digest == whole.digest


def test_what_a_kill_after_the_manifest_left_goes(tmp_path, activation_store, token_store):
    whole = build(tmp_path / "c", activation_store, token_store)
    Summary.load(whole.path / "summary.safetensors").save(whole.path / "summary-0.scratch")
    assert build(tmp_path / "c", activation_store, token_store).digest == whole.digest
    assert not list(whole.path.glob("*.scratch"))


def test_label_codes_that_are_there_are_not_made_again(tmp_path, activation_store, token_store, monkeypatch):
    monkeypatch.setattr(encode, "PART_ROWS", PART_ROWS)
    whole = build(tmp_path / "c", activation_store, token_store)
    (whole.path / "manifest.json").unlink()
    (whole.path / "fit-00001.safetensors").unlink()
    calls, plain = [], encode.encode
    monkeypatch.setattr(encode, "encode", lambda *given: (calls.append(given[3]), plain(*given))[1])
    assert build(tmp_path / "c", activation_store, token_store).digest == whole.digest
    n_train = len(plan(token_store.split("train"), 1, 10**7, 10**7, PART_ROWS))
    assert len(calls) == n_train + 1, "the summary is gone, and one file"


def test_missing_codes_are_named(tmp_path, activation_store, token_store):
    box = build(tmp_path / "c", activation_store, token_store)
    with pytest.raises(StoreError) as caught:
        open_codes(box, "dev")
    assert str(caught.value) == f"{box.path}: no codes of the dev split; run the index stage again"


@pytest.mark.slow
def test_two_processes_make_the_bytes_of_one(tmp_path, activation_store, token_store, monkeypatch):
    monkeypatch.setattr(encode, "PART_ROWS", PART_ROWS)
    one = build(tmp_path / "one", activation_store, token_store, kept_tokens=150)
    assert sum(part.is_kept for part in plan(token_store.split("train"), 1, 10**7, 150, PART_ROWS)) > 1
    paths = [str(path) for path in (token_store.box.path, activation_store.box.path, tmp_path / "two")]
    warm.together(encoding.main, *paths)
    assert digests(tmp_path / "two") == digests(one.path)
    assert len(digests(one.path)) > 4
