"""What exports read of a run: by blocks, checked, and by the layer that latents belong to."""

import json

import numpy as np
import pytest

from analysis.export import results as results_module
from analysis.export.results import Group, Results, short, shorts
from sae.errors import ConfigError, StoreError
from tests.analysis.export.conftest import FIRINGS, PLAIN, build_run

KINDS = ("top", "interval", "quantile", "silent")


def test_latents_come_in_order_with_label_and_examples(results):
    latents = list(results.latents(0, 4, KINDS))
    assert [latent.row["latent"] for latent in latents] == [0, 1, 2, 3]
    assert [latent.label["text"] for latent in latents] == ["Fires on “dog”.", None, None, "Fires after “dog”."]
    assert not latents[2].examples
    first = latents[0].examples[0]
    assert (first.kind, first.stratum, first.split, first.position, first.at) == ("top", "top", "train", 12, 3)
    assert first.tokens == [2, 3, 0, 1]
    assert first.values.tolist() == [0, 0, 0, 8]
    for latent in latents:
        for example in latent.examples:
            assert example.values[example.at] == FIRINGS[latent.row["latent"]].get(example.position, 0)


def test_kinds_that_are_not_asked_for_are_left_out(results):
    (latent,) = results.latents(0, 1, ("interval",))
    assert [(example.stratum, example.position) for example in latent.examples] == [("10-30%", 7), ("10-30%", 14)]


def test_what_is_read_does_not_depend_on_the_block(run, results, monkeypatch):
    def told(results, first, last):
        return [
            (latent.row, latent.label, [(e.position, e.tokens, e.values.tolist()) for e in latent.examples])
            for latent in results.latents(first, last, KINDS)
        ]

    whole = told(results, 0, 4)
    assert told(results, 1, 3) == whole[1:3]
    monkeypatch.setattr(results_module, "BLOCK", 1)
    assert told(Results(run), 0, 4) == whole


def test_a_box_is_checked_before_it_is_read(tmp_path, gpt2):
    run = build_run(tmp_path, gpt2, PLAIN)
    labels = run / "labels" / "labels.parquet"
    content = bytearray(labels.read_bytes())
    content[len(content) // 2] ^= 1
    labels.write_bytes(content)
    results = Results(run)
    with pytest.raises(StoreError, match=r"labels\.parquet: missing or damaged"):
        next(results.latents(0, 1, KINDS))
    (run / "atlas" / "manifest.json").unlink()
    with pytest.raises(StoreError, match="not finished"):
        results.box("atlas")
    assert list(results.digests) == ["index", "tokens"]


def test_a_dictionary_of_a_sweep_has_the_tokens_of_its_run(tmp_path, run):
    (tmp_path / "tokens").symlink_to(run / "tokens")
    member = tmp_path / "sweep" / "k=2"
    member.mkdir(parents=True)
    for name in ("index", "labels", "dictionary"):
        (member / name).symlink_to(run / name)
    assert Results(member).split("train").tokens.tolist()[:4] == [0, 1, 3, 0]


def test_groups_and_their_layers(run, layered):
    assert Results(run).groups == [Group(("mlp_out.1",), 1, 0, 4)]
    assert Results(run).layers(7) == [7]
    several = Results(layered)
    assert several.groups == [Group(("mlp_in.0",), 0, 0, 2), Group(("mlp_in.1",), 1, 2, 4)]
    assert several.layers() == [0, 1]
    with pytest.raises(ConfigError, match="layer = 7: must be left out, the latents belong to 2 layers"):
        several.layers(7)
    for sites in (["mlp_out.1", "mlp_out.2"], ["lm_head:in"]):
        facts = {"type": "topk", "facts": {"inputs": sites, "model": "tiny"}}
        results = Results(run)
        results.__dict__["dictionary"] = json.loads(json.dumps(facts))
        with pytest.raises(ConfigError, match=r"layer: the sites .* do not name one; say it with --set layer=…"):
            results.layers()
        assert results.layers(3) == [3]


def test_numbers_have_five_digits():
    assert short(1 / 3) == 0.33333
    assert short(123456.0) == 123460.0
    assert shorts(np.array([0, 1 / 3, 2], np.float32)) == [0.0, 0.33333, 2.0]
