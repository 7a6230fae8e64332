"""`sae eval`: the box as a whole on a tiny run, another's dictionary, kills, and equal bytes."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from analysis.probing import probe
from sae import evaluation, hub
from sae.architectures.configs import TopKConfig
from sae.architectures.topk import TopKSAE
from sae.dictionary import InputStats, Shape
from sae.errors import ConfigError, DataError, StoreError
from sae.files import read_json
from sae.run import Run
from sae.run_config import load_config
from sae.scaling import SiteStats
from sae.stage import Box, verify
from train import evaluate

CONFIG = """
model: {name: tiny}
data: {context: 16}
harvest: {sites: [mlp_out.1, resid_post.0], batch_tokens: 64}
sae: {n_latents: 32, k: 4}
train: {site: mlp_out.1}
analysis: {eval: {resamples: 50, probes: [capitalised, next_comma, source], probe_k: [1, 2]}}
"""
SAEBENCH = {
    "model_behavior_preservation": "kl_div_score kl_div_with_ablation kl_div_with_sae",
    "model_performance_preservation": "ce_loss_score ce_loss_with_ablation ce_loss_with_sae ce_loss_without_sae",
    "reconstruction_quality": "explained_variance explained_variance_legacy mse cossim",
    "shrinkage": "l2_norm_in l2_norm_out l2_ratio relative_reconstruction_bias",
    "sparsity": "l0 l1",
    "token_stats": "total_tokens_eval_reconstruction total_tokens_eval_sparsity_variance",
    "misc_metrics": "freq_over_1_percent freq_over_10_percent normalized_freq_over_1_percent "
    "normalized_freq_over_10_percent average_max_encoder_cosine_sim average_max_decoder_cosine_sim frac_alive",
}
"""Categories and required names of `eval_output_schema_core.json` in SAEBench."""


def topk(d: int, seed: int = 0, n_latents: int = 32) -> TopKSAE:
    result = TopKSAE(TopKConfig(n_latents=n_latents, k=4), Shape((d,)))
    x = torch.randn(200, d, generator=torch.Generator().manual_seed(seed))
    site = (SiteStats(d, mean_norm=4.0, mean_square=16.0),)
    result.initialise(InputStats(site, site, x, x), torch.Generator().manual_seed(seed))
    return result.eval()


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """So little text as the tests' is enough to ask questions of."""
    monkeypatch.setattr(probe, "FEWEST", 2)


@pytest.fixture
def make_run(
    tmp_path: Path, make_box: Any, subject: Any, token_store: Any, activation_store: Any
) -> Callable[..., Run]:
    """`make_run("name", "section.field=value", ...)`: a run whose boxes up to the dictionary are there."""
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG)
    facts = {"model": "tiny", "inputs": ["mlp_out.1"], "outputs": None}

    def make(name: str, *assignments: str) -> Run:
        run = Run(load_config(path, assignments), tmp_path / name)
        run.subject, run.token_store, run.activation_store = subject, token_store, activation_store
        run.tokens, run.activations = token_store.box, activation_store.box
        run.dictionary = make_box(lambda out: hub.save(topk(16), facts, out) or {})
        return run

    return make


def content(box: Box) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in box.path.iterdir() if path.name != ".lock"}


@pytest.mark.usefixtures("few")
def test_all_of_it(make_run):
    run = make_run("run")
    box = evaluation.evaluate(run)
    verify(box)
    core, probing = (read_json(box.path / name) for name in ("eval.json", "sparse_probing.json"))
    assert core["eval_type_id"] == "core"
    for category, names in SAEBENCH.items():
        assert set(names.split()) <= set(core["eval_result_metrics"][category]), category
    for category in ("reconstruction_quality", "model_performance_preservation"):
        for name, (low, high) in core["eval_result_intervals"][category].items():
            assert low <= high, name
    test = run.token_store.split("test")
    assert core["samples"]["rows"]["tokens"] == core["samples"]["rows"]["tokens_there"] == len(test.tokens)
    assert core["samples"]["rows"]["tokens_wanted"] == 1_000_000
    assert box.facts["tokens"] == len(test.tokens)
    # the same figures as the quick evaluation has
    pairs = run.activation_store.pairs(run.cfg.places, "test")
    rows = evaluate.reconstruct(hub.load(run.dictionary.path), pairs, torch.device("cpu")).result()
    assert box.facts["fvu"] == pytest.approx(rows["fvu"], rel=1e-9)
    assert box.facts["dead_fraction"] == pytest.approx(rows["dead_fraction"])
    assert core["eval_result_metrics"]["shrinkage"]["relative_reconstruction_bias"] == pytest.approx(
        rows["relative_bias"], rel=1e-9
    )
    latents = pq.read_table(box.path / "latents.parquet")
    assert latents.num_rows == 32
    assert (latents["feature_density"].to_numpy() == 0).mean() == pytest.approx(rows["dead_fraction"])
    assert [detail["dataset_name"] for detail in probing["eval_result_details"]] == ["next_comma"]
    assert "left_out" in probing["eval_result_unstructured"][0], "few words here begin with a capital"
    assert "How good is this dictionary?" in (box.path / "eval.html").read_text()


def test_losses_are_those_of_the_quick_evaluation(make_run):
    run = make_run("run", "analysis.eval.probes=[]")
    metrics = read_json(evaluation.evaluate(run).path / "eval.json")["eval_result_metrics"]
    split, store = run.token_store.split("test"), run.activation_store
    means = {"mlp_out.1": store.mean("mlp_out.1")}
    n_full = len(split.tokens) // 16 * 16
    spliced = evaluate.splice(run.subject, topk(16), run.cfg.places, means, split, 1, 10_000, 64)
    assert spliced["tokens"] == n_full // 16 * 15
    # only the last context is shorter: of the same tokens, losses are the same
    counted = metrics["token_stats"]["total_tokens_eval_reconstruction"]
    assert 0 < counted - spliced["tokens"] < 16
    assert metrics["model_performance_preservation"]["ce_loss_without_sae"] == pytest.approx(
        spliced["ce"]["clean"], rel=0.02
    )


@pytest.mark.usefixtures("few")
def test_equal_inputs_give_equal_bytes_and_nothing_is_done_twice(make_run, monkeypatch):
    run = make_run("one")
    first = evaluation.evaluate(run)
    second = evaluation.evaluate(make_run("two"))
    assert content(first) == content(second)
    monkeypatch.setattr(evaluation.Evaluation, "build", lambda *_: pytest.fail("was built again"))
    assert evaluation.evaluate(run).digest == first.digest


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_one_that_was_killed_goes_on(make_run, monkeypatch):
    whole = content(evaluation.evaluate(make_run("whole")))
    run = make_run("run")
    with monkeypatch.context() as patched:
        patched.setattr(evaluation.Evaluation, "network", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            evaluation.evaluate(run)
    monkeypatch.setattr(evaluation.Evaluation, "rows", lambda *_: pytest.fail("rows were compared again"))
    assert content(evaluation.evaluate(run)) == whole


def test_less_text_than_was_asked_for_is_taken_and_said(make_run, caplog):
    caplog.set_level("INFO", logger="sae")
    box = evaluation.evaluate(make_run("run", "analysis.eval.probes=[]"))
    n = box.facts["tokens"]
    assert (
        f"eval: {n:,} held-out tokens of 4 documents: all that there are; 1,000,000 were asked for" in caplog.messages
    )
    assert "1,000,000 tokens were asked for; the test documents have" in (box.path / "eval.html").read_text()
    some = evaluation.evaluate(make_run("some", "analysis.eval.probes=[]", "analysis.eval.tokens=40"))
    assert some.facts["tokens"] <= 40
    assert "were asked for" not in (some.path / "eval.html").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_anothers_dictionary(make_run, tmp_path, caplog):
    run, other = make_run("run"), tmp_path / "theirs"
    hub.save(topk(16, seed=1), {"model": "gpt2", "inputs": ["mlp_out.8"]}, other)
    box = evaluation.evaluate(run, other)
    assert re.fullmatch(r"theirs-[0-9a-f]{8}", box.path.name)
    assert box.path.parent == run.out / "evals"
    assert box.facts["fvu"] != evaluation.evaluate(run).facts["fvu"]
    assert "eval: the dictionary was trained on model gpt2, and is measured on tiny" in caplog.messages
    assert (
        "eval: the dictionary was trained on inputs ['mlp_out.8'], and is measured on ['mlp_out.1']" in caplog.messages
    )
    same = evaluation.evaluate(run, run.dictionary.path)
    own = evaluation.evaluate(run)
    assert content(same)["eval.json"] == content(own)["eval.json"]


def test_a_dictionary_that_does_not_fit_is_refused(make_run, tmp_path):
    run = make_run("run")
    hub.save(topk(24), {}, tmp_path / "wide")
    message = f"--dictionary {tmp_path / 'wide'}: reads 24 numbers a token, but mlp_out.1 of tiny gives 16"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}; choose the model and the sites"):
        evaluation.evaluate(run, tmp_path / "wide")
    transcoder = TopKSAE(TopKConfig(n_latents=32, k=4, pre_bias=False), Shape((16,), (16,)))
    hub.save(transcoder, {}, tmp_path / "transcoder")
    with pytest.raises(ConfigError, match=r"is a transcoder, but the run's places are those of an autoencoder"):
        evaluation.evaluate(run, tmp_path / "transcoder")
    with pytest.raises(StoreError, match=r"nothing: holds no dictionary\.json"):
        evaluation.evaluate(run, tmp_path / "nothing")
    assert not (run.out / "evals").exists()


@pytest.mark.usefixtures("few")
def test_labelled_texts_of_ones_own(make_run, tmp_path):
    lines = [
        {"text": f"{animal} sat on the mat {i}", "label": animal, "split": ("fit", "test")[i % 2]}
        for i in range(20)
        for animal in ("The cat", "A dog")
    ]
    file = tmp_path / "animals.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    box = evaluation.evaluate(make_run("run", "analysis.eval.probes=[]", f"analysis.eval.probe_files=[{file}]"))
    task = read_json(box.path / "sparse_probing.json")["eval_result_unstructured"][0]
    assert (task["dataset_name"], task["n_fit"], task["n_test"]) == ("animals=The cat", 20, 20)
    assert task["scores"]["llm"]["accuracy"]["value"] == 1
    with pytest.raises(DataError, match=r"gone\.csv: No such file or directory$"):
        evaluation.evaluate(make_run("gone", "analysis.eval.probe_files=[gone.csv]"))
