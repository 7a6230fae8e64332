"""A sweep as a user has it: one pass, a folder a dictionary, one table, whatever was killed meanwhile."""

import csv
import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from sae import hub
from sae.architectures.configs import JumpReLUConfig
from sae.run import Run
from sae.run_config import load_config
from sae.stage import SCRATCH
from sae.sweep import member, sweep
from sae.text import Document
from tests import warm

pytestmark = pytest.mark.slow
OUTSIDE = {"seconds.json", ".lock"}
CONFIG = """
model: {{name: {model}, precision: float32}}
data: {{source: {text}, txt_documents: paragraph, held_out: [0.15, 0.2, 0.2], context: 16}}
harvest: {{sites: [mlp_out.1, resid_post.0], dtype: float32}}
sae: {{n_latents: 32, k: 4}}
train:
  site: mlp_out.1
  tokens: 2000
  batch: 50
  evaluate_every: 20
  checkpoint_seconds: 0.05
  tracker: none
"""
GROWN = (
    "sweep=[{grid: {sae.k: [2, 4]}}, {sae: {type: jumprelu}, train.lr: 1e-3, name: jump}, {train.site: resid_post.0}]"
)
FIRST = "sweep=[{grid: {sae.k: [2, 4]}}]"


@pytest.fixture(scope="module")
def config(
    tmp_path_factory: pytest.TempPathFactory,
    gpt2: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    corpus: list[Document],
) -> Path:
    """A run of the tiny network on the tiny text."""
    folder = tmp_path_factory.mktemp("tiny")
    gpt2.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    text = "\n\n".join(f"{i}. {document.text}" for i, document in enumerate(corpus * 3))
    (folder / "text.txt").write_text(text)
    (folder / "tiny.yaml").write_text(CONFIG.format(model=folder / "model", text=folder / "text.txt"))
    return folder / "tiny.yaml"


@pytest.fixture(scope="module")
def finished(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose sweep is done."""
    run = Run(load_config(config, [GROWN]), tmp_path_factory.mktemp("finished"))
    sweep(run)
    return run


def digests(out: Path) -> dict[str, str]:
    """SHA-256 of every file but times and locks."""
    files = [file for file in sorted(out.rglob("*")) if file.is_file() and file.name not in OUTSIDE]
    return {file.relative_to(out).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_a_dictionary_of_the_sweep_is_that_of_the_single_run(finished: Run, config: Path, tmp_path: Path) -> None:
    singles = {
        "k=2": ["sae.k=2"],
        "jump": ["sae={type: jumprelu, n_latents: 32}", "train.lr=1e-3"],
        "site=resid_post.0": ["train.site=resid_post.0"],
    }
    base = Run(load_config(config), finished.out)
    for name, assignments in singles.items():
        cfg = load_config(config, assignments)
        single = Run(cfg, tmp_path / name, base)
        for box in ("dictionary", "evaluation"):
            assert digests(getattr(single, box).path) == digests(finished.out / "sweep" / name / box), (name, box)


def test_the_table_has_the_figures_of_the_evaluations(finished: Run) -> None:
    records = json.loads((finished.out / "sweep" / "table.json").read_text())
    names = ["k=2", "k=4", "jump", "site=resid_post.0"]
    assert [record["name"] for record in records] == names
    assert [record["type"] for record in records] == ["topk", "topk", "jumprelu", "topk"]
    assert [record["site"] for record in records] == ["mlp_out.1"] * 3 + ["resid_post.0"]
    for record in records:
        figures = json.loads((finished.out / "sweep" / record["name"] / "evaluation" / "evaluation.json").read_text())
        for figure in ("l0", "fvu", "explained_variance", "pca_fvu", "ce_recovered", "kl", "dead_fraction"):
            assert record[figure] == figures[figure]
        assert record["n_latents"] == 32
        assert record["steps"] == 40
    assert records[0]["l0"] <= 2 < records[1]["l0"] <= 4
    assert records[3]["is_on_front"], "it is alone at its site"
    with (finished.out / "sweep" / "table.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == names
    for plot in ("pareto.svg", "pareto.png"):
        assert (finished.out / "sweep" / plot).stat().st_size > 1000


def test_a_second_sweep_builds_nothing(finished: Run, caplog: pytest.LogCaptureFixture) -> None:
    before = digests(finished.out)
    with caplog.at_level(logging.INFO):
        rows = sweep(Run(finished.cfg, finished.out))
    assert len(rows) == 4
    assert "k=2/dictionary: up to date" in caplog.messages
    assert not [line for line in caplog.messages if line.endswith("building")]
    assert digests(finished.out) == before


def test_a_list_that_grows_trains_what_is_new(
    finished: Run, config: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sweep(Run(load_config(config, [FIRST]), tmp_path))
    caplog.clear()
    with caplog.at_level(logging.INFO):
        sweep(Run(load_config(config, [GROWN]), tmp_path))
    built = [line for line in caplog.messages if line.endswith("dictionary: building")]
    assert built == ["jump/dictionary: building", "site=resid_post.0/dictionary: building"]
    assert digests(tmp_path) == digests(finished.out)


def test_a_dictionary_of_the_sweep_is_analysed_where_it_lies(finished: Run) -> None:
    one = member(Run(finished.cfg, finished.out), "jump")
    assert hub.load(one.dictionary.path).cfg == JumpReLUConfig(n_latents=32)
    assert one.codes.path == finished.out / "sweep" / "jump" / "codes"
    assert sorted(path.name for path in finished.out.iterdir() if path.is_dir()) == ["activations", "sweep", "tokens"]


def start(config: Path, *arguments: str) -> warm.Command:
    return warm.start("sweep", str(config), *arguments)


def finish(command: warm.Command) -> None:
    done = command.finish()
    assert done.returncode == 0, done.stderr


def kill_when(command: warm.Command, is_time: Callable[[], bool]) -> None:
    command.wait_until(is_time)
    assert command.kill(), "it had ended before"


def test_a_killed_sweep_ends_with_the_same_bytes(config: Path, tmp_path: Path) -> None:
    long = ("train.tokens=10_000", "train.evaluate_every=0")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(config, GROWN, *long, f"out={whole}"))  # not in here: sums differ with the number of threads
    checkpoints = [killed / "sweep" / name / "dictionary" / f"checkpoint{SCRATCH}" for name in ("k=2", "k=4")]
    arguments = (*long, f"out={killed}")
    # the first two in the middle of their training; then two more beside them, which have to catch up
    kill_when(start(config, FIRST, *arguments), lambda: all(path.exists() for path in checkpoints))
    assert not list(killed.rglob("dictionary/manifest.json"))
    other = killed / "sweep" / "jump" / "dictionary" / f"checkpoint{SCRATCH}"
    kill_when(start(config, GROWN, *arguments), other.exists)
    assert all(path.exists() for path in checkpoints)
    kill_when(start(config, GROWN, *arguments), (killed / "sweep" / "k=4" / "evaluation" / "inputs.json").exists)
    assert not (killed / "sweep" / "table.csv").exists()
    finish(start(config, GROWN, *arguments))
    assert digests(killed) == digests(whole)
