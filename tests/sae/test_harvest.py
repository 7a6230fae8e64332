"""Harvest: every stored row is what a plain forward pass of its context computes."""

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from sae import harvest as module
from sae.config import HarvestConfig
from sae.errors import ConfigError, DataError, StoreError
from sae.harvest import ComputedSplit, harvest
from sae.stage import stage
from sae.store import ActivationStore, spread

SITES = ("mlp_out.1", "resid_post.0", "mlp_act.2")


def cfg(**choices) -> HarvestConfig:
    return HarvestConfig(**{"sites": SITES, "dtype": "float32", "shard_rows": 100, "batch_tokens": 256, **choices})


def run(path, model, store, choices) -> ActivationStore:
    return ActivationStore(stage(path, {}, lambda out: harvest(model, choices.sites, store, out, choices)))


def plain(model, split, skip) -> dict[str, torch.Tensor]:
    """Rows of `SITES`, one context at a time, from whole forward passes with hooks of the test's own."""
    rows = {site: [] for site in SITES}
    blocks = model.transformer.h
    hooks = [
        blocks[1].mlp.register_forward_hook(lambda _m, _x, out: rows["mlp_out.1"].append(out[0, skip:])),
        blocks[1].register_forward_pre_hook(lambda _m, x: rows["resid_post.0"].append(x[0][0, skip:])),
        blocks[2].mlp.act.register_forward_hook(lambda _m, _x, out: rows["mlp_act.2"].append(out[0, skip:])),
    ]
    for a, b in zip(split.context_starts[:-1], split.context_starts[1:], strict=True):
        model(input_ids=torch.from_numpy(split.tokens[a:b].astype(np.int64))[None])
    for hook in hooks:
        hook.remove()
    return {site: torch.cat(parts) for site, parts in rows.items()}


@pytest.mark.parametrize(("packing", "skip"), [("packed", 1), ("document", 0), ("document", 3)])
def test_every_row_equals_a_plain_forward_pass(tmp_path, gpt2, make_tokens, packing, skip):
    tokens = make_tokens(packing=packing)
    store = run(tmp_path / "a", gpt2, tokens, cfg(skip_positions=skip))
    assert store.sites() == sorted(SITES)
    assert store.skip_positions == skip
    for name in tokens.splits():
        split = tokens.split(name)
        expected = plain(gpt2, split, skip)
        for site in SITES:
            rows = store.split([site], name)
            assert rows.n_rows == len(split.kept_positions(skip))
            torch.testing.assert_close(rows.read(0, rows.n_rows), expected[site], rtol=1e-5, atol=1e-5)


def test_shards_hold_whole_contexts_and_no_more_rows_than_asked_for(tmp_path, gpt2, token_store):
    store = run(tmp_path / "a", gpt2, token_store, cfg())
    shards = store.split(["mlp_out.1"], "train").columns[0]
    assert len(shards) > 2
    assert all(shard.rows <= 100 for shard in shards)
    assert all(shard.rows % 15 == 0 for shard in shards[:-1]), "16 tokens a context, the first left out"
    assert [shard.start for shard in shards] == list(np.cumsum([0, *(shard.rows for shard in shards[:-1])]))


def test_a_context_larger_than_a_shard_gets_one_of_its_own(tmp_path, gpt2, token_store):
    store = run(tmp_path / "a", gpt2, token_store, cfg(shard_rows=1, sites=("mlp_out.1",)))
    split = token_store.split("train")
    assert len(store.split(["mlp_out.1"], "train").columns[0]) == split.n_contexts


def test_contexts_too_short_to_keep_anything_have_no_rows(tmp_path, gpt2, make_tokens):
    tokens = make_tokens(packing="document", context=7)
    split = tokens.split("train")
    assert (np.diff(split.context_starts) <= 3).any(), "the example has some"
    store = run(tmp_path / "a", gpt2, tokens, cfg(skip_positions=3))
    rows = store.split(["mlp_out.1"], "train")
    assert rows.n_rows == len(split.kept_positions(3))
    expected = plain(gpt2, split, 3)["mlp_out.1"]
    torch.testing.assert_close(rows.read(0, rows.n_rows), expected, rtol=1e-5, atol=1e-5)


def test_nothing_left_to_train_on_is_an_error(tmp_path, gpt2, make_tokens):
    tokens = make_tokens(packing="document", context=3)
    with pytest.raises(DataError) as caught:
        run(tmp_path / "a", gpt2, tokens, cfg(skip_positions=3))
    message = "harvest.skip_positions = 3: no context of the train split is longer; nothing is left to train on"
    assert str(caught.value) == message


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_moments_are_those_of_the_stored_rows(tmp_path, gpt2, token_store, dtype):
    store = run(tmp_path / "a", gpt2, token_store, cfg(dtype=dtype))
    for site in SITES:
        facts = store.box.facts["sites"][site]
        split = store.split([site], "train")
        rows = split.read(0, split.n_rows).double().numpy()
        assert facts["rows"] == len(rows)
        assert facts["d_in"] == rows.shape[1] == (64 if site == "mlp_act.2" else 16)
        np.testing.assert_allclose(facts["mean"], rows.mean(0), rtol=1e-12, atol=1e-15)
        assert facts["mean_norm"] == pytest.approx(np.linalg.norm(rows, axis=1).mean(), rel=1e-12)
        assert facts["mean_square"] == pytest.approx((rows**2).sum(1).mean(), rel=1e-12)


def test_stored_values_are_rounded_once(tmp_path, gpt2, token_store):
    exact = run(tmp_path / "exact", gpt2, token_store, cfg()).split(["mlp_out.1"], "test")
    stored = run(tmp_path / "half", gpt2, token_store, cfg(dtype="bfloat16")).split(["mlp_out.1"], "test")
    n = exact.n_rows
    assert torch.equal(stored.read(0, n), exact.read(0, n).bfloat16().float())


class Toy(nn.Module):
    """Any module that takes input_ids: an embedding, then a linear layer."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.embed = nn.Embedding(300, 8)
        self.linear = nn.Linear(8, 8, bias=False)
        nn.init.constant_(self.embed.weight, 1.0)
        nn.init.eye_(self.linear.weight)
        self.linear.weight.data *= scale

    def forward(self, input_ids):
        return self.linear(self.embed(input_ids)).sum(-1)


def test_any_module_can_be_harvested(tmp_path, token_store):
    store = run(tmp_path / "a", Toy(2.0), token_store, cfg(sites=("linear:out", "embed:out")))
    rows = store.split(["linear:out"], "train")
    assert torch.equal(rows.read(0, rows.n_rows), torch.full((rows.n_rows, 8), 2.0))
    assert {path.name for path in (tmp_path / "a").iterdir() if path.is_dir()} == {"linear-out", "embed-out"}


def test_a_site_of_another_shape_is_refused(tmp_path, token_store):
    class Flat(Toy):
        def forward(self, input_ids):
            return self.linear(self.embed(input_ids).flatten(0, 1))

    with pytest.raises(ConfigError) as caught:
        run(tmp_path / "a", Flat(), token_store, cfg(sites=("linear:out",), batch_tokens=32))
    assert str(caught.value) == "site 'linear:out': gives (32, 8), must be [batch, positions, d]"


def test_values_beyond_float16_are_refused_with_a_remedy(tmp_path, token_store):
    with pytest.raises(StoreError) as caught:
        run(tmp_path / "a", Toy(1e5), token_store, cfg(sites=("linear:out",), dtype="float16"))
    path = tmp_path / "a" / "linear-out" / "train-00000.safetensors"
    assert str(caught.value) == (
        f"{path}: an activation of size 100000 is not finite in torch.float16; use harvest.dtype=bfloat16 or float32"
    )


def test_a_killed_harvest_makes_only_what_is_missing_and_the_same_bytes(tmp_path, gpt2, token_store, count_calls):
    whole = run(tmp_path / "a", gpt2, token_store, cfg(batch_tokens=64))
    files = {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    missing = tmp_path / "a" / "mlp_out.1" / "train-00001.safetensors"
    missing.unlink()
    (tmp_path / "a" / "manifest.json").unlink()
    (tmp_path / "a" / "mlp_out.1" / "train-00001.safetensors.tmp").write_bytes(b"half a shard")
    calls = count_calls(gpt2.transformer.wte)
    again = run(tmp_path / "a", gpt2, token_store, cfg(batch_tokens=64))
    assert len(calls) == 2, "6 contexts of 16 tokens, 4 at a time"
    assert {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()} == files
    assert again.box.digest == whole.box.digest


def test_rows_are_in_order_of_position(tmp_path, gpt2, make_tokens):
    """Contexts are batched by length; the rows must not be."""
    tokens = make_tokens(packing="document")
    store = run(tmp_path / "a", gpt2, tokens, cfg(sites=("transformer.wte:out",)))
    split = tokens.split("train")
    ids = torch.from_numpy(split.tokens[split.kept_positions(1)].astype(np.int64))
    rows = store.split(["transformer.wte:out"], "train")
    assert torch.equal(rows.read(0, rows.n_rows), gpt2.transformer.wte(ids))


def test_files_hold_the_type_that_was_asked_for(tmp_path, gpt2, token_store):
    run(tmp_path / "a", gpt2, token_store, cfg(dtype="bfloat16"))
    with safe_open(tmp_path / "a" / "mlp_out.1" / "train-00000.safetensors", framework="pt") as file:
        assert file.get_tensor("acts").dtype == torch.bfloat16


# --- not kept ---


@pytest.mark.parametrize(("packing", "skip"), [("packed", 1), ("document", 0), ("document", 3)])
@pytest.mark.parametrize("shard_rows", [20, 1000])
def test_computed_rows_are_the_stored_ones(tmp_path, gpt2, make_tokens, packing, skip, shard_rows):
    """Any stretches, in any order, that begin and end within contexts or hold nothing; some together, or each alone."""
    tokens, choices = make_tokens(packing=packing, context=7), cfg(skip_positions=skip, shard_rows=shard_rows)
    store = run(tmp_path / "a", gpt2, tokens, choices)
    stored = store.split(SITES, "train")
    computed = ComputedSplit(gpt2, SITES, tokens.split("train"), choices)
    n = stored.n_rows
    assert (computed.n_rows, computed.widths) == (n, stored.widths)
    bounds = [(40, 60), (0, 1), (5, 5), (n - 3, n + 9), (12, 45), (n, n + 1)]
    for (start, stop), found in zip(bounds, computed.each(bounds), strict=True):
        torch.testing.assert_close(found, stored.stored(start, stop), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(computed.read(0, n), stored.read(0, n), rtol=1e-5, atol=1e-5)


def test_what_is_not_kept_takes_no_disk_and_is_computed_when_it_is_read(tmp_path, gpt2, token_store):
    choices = cfg(keep_train=False, dtype="bfloat16")
    kept = run(tmp_path / "a", gpt2, token_store, cfg(dtype="bfloat16"))
    box = run(tmp_path / "b", gpt2, token_store, choices).box
    store = ActivationStore(box, lambda sites, split: ComputedSplit(gpt2, sites, token_store.split(split), choices))
    assert not list(box.path.rglob("train-*"))
    assert {path.parent.name for path in box.path.rglob("test-*")} == set(SITES)
    for site in SITES:
        facts, others = (each.facts["sites"][site] for each in (box, kept.box))
        assert {k: v for k, v in facts.items() if k != "splits"} == {k: v for k, v in others.items() if k != "splits"}
        for name in ("train", "test"):
            rows, same = store.split([site], name), kept.split([site], name)
            assert rows.stored(0, 20).dtype == torch.bfloat16
            assert torch.equal(rows.read(0, rows.n_rows), same.read(0, same.n_rows))
    with pytest.raises(StoreError) as caught:
        ActivationStore(box).split(["mlp_out.1"], "train")
    assert str(caught.value) == (
        f"{box.path}: activations on train are not kept (harvest.keep_train = false), and no model is here to compute "
        "them; harvest again with harvest.keep_train=true"
    )
    with pytest.raises(StoreError, match=r"no activations of mlp_out\.9 on train; harvested"):
        store.split(["mlp_out.9"], "train")


def test_computed_values_beyond_float16_are_refused_too(token_store):
    choices = cfg(sites=("linear:out",), dtype="float16")
    rows = ComputedSplit(Toy(1e5), choices.sites, token_store.split("train"), choices)
    with pytest.raises(
        StoreError, match=r"^train, rows 3:9: an activation of size 100000 is not finite in torch\.float16"
    ):
        rows.read(3, 9)


def test_moments_are_of_rows_from_all_over_a_long_split(monkeypatch, tmp_path, gpt2, token_store):
    monkeypatch.setattr("sae.store.STRETCH_ROWS", 10)
    monkeypatch.setattr(module, "STATS_ROWS", 40)
    assert spread(95, 40) == [(0, 10), (30, 40), (60, 70), (90, 95)]
    assert spread(25, 40) == [(0, 10), (10, 20), (20, 25)]
    store = run(tmp_path / "a", gpt2, token_store, cfg())
    split, facts = store.split(["mlp_out.1"], "train"), store.box.facts["sites"]["mlp_out.1"]
    rows = torch.cat([split.read(start, stop) for start, stop in spread(split.n_rows, 40)]).double()
    assert facts["rows"] == len(rows) < split.n_rows
    assert facts["mean_square"] == pytest.approx(float(rows.square().sum(1).mean()), rel=1e-12)
    np.testing.assert_allclose(facts["mean"], rows.mean(0).numpy(), rtol=1e-12, atol=1e-15)
