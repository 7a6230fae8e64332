"""The command line as a script meets it: exit codes, messages, what is on standard output."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import warm

ROOT = Path(__file__).parent.parent


def sae(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sae", *arguments], capture_output=True, text=True, cwd=cwd, check=False
    )


def test_help_teaches_with_examples_and_imports_nothing_heavy() -> None:
    code = "import sys; from sae.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    heavy = "sys.exit([m for m in ('torch', 'transformers', 'datasets', 'pydantic') if m in sys.modules] or 0)"
    done = subprocess.run([sys.executable, "-c", code + heavy], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "sae run configs/embedded.yaml sae.k=32 train.lr=3e-4 out=runs/k32" in done.stdout
    for command in (
        "run",
        "harvest",
        "train",
        "index",
        "label",
        "effects",
        "eval",
        "browse",
        "export",
        "info",
        "config",
        "sweep",
        "query",
        "windows",
        "explain",
    ):
        assert f"    {command} " in done.stdout


def test_user_errors_exit_with_2_and_one_line() -> None:
    done = sae("run", "configs/smoke.yaml", "sae.k=9000")
    assert done.returncode == 2
    assert done.stderr == "sae: configs/smoke.yaml: sae.k = 9000: must be at most n_latents = 256\n"
    done = sae("train", "configs/nowhere.yaml")
    assert done.returncode == 2
    assert done.stderr == "sae: configs/nowhere.yaml: no such configuration file\n"


@pytest.mark.slow
def test_mistakes_about_a_sweep_are_told_before_any_work(tmp_path: Path) -> None:
    out = f"out={tmp_path / 'run'}"
    refused = {
        ("sweep", "configs/smoke.yaml"): "sweep: must list the dictionaries, such as [{sae.k: 16}, {sae.k: 32}]",
        ("sweep", "configs/smoke.yaml", "sweep=[{}, {sae.k: 2}]"): (
            "configs/smoke.yaml: sweep[0]: changes nothing; give it a name, or leave it out"
        ),
        ("run", "configs/sweep.yaml", "member=k=9"): (
            "member = 'k=9': no such dictionary in the sweep; did you mean k=8 or k=64 or k=32?"
        ),
    }
    for arguments, message in refused.items():
        done = sae(*arguments, out)
        assert (done.returncode, done.stderr) == (2, f"sae: {message}\n")
    assert not (tmp_path / "run" / "tokens").exists()


@pytest.mark.slow
def test_mistakes_about_an_evaluation_are_told_at_once(tmp_path: Path) -> None:
    out = f"out={tmp_path / 'run'}"
    refused = {
        ("analysis.eval.tokens=0",): ("configs/smoke.yaml: analysis.eval.tokens = 0: must be greater than 0"),
        ("analysis.eval.probes=[rhyme]",): (
            "configs/smoke.yaml: analysis.eval.probes.0 = 'rhyme': must be 'capitalised', 'number', 'sentence_start', "
            "'next_comma', 'next_capitalised', 'in_quotes', 'repeated_name' or 'source'"
        ),
        ("--dictionary", str(tmp_path)): (
            f"--dictionary {tmp_path}: holds no dictionary.json; another package's becomes ours by: sae convert "
            f"{tmp_path} --to sae --out DIR"
        ),
    }
    for arguments, message in refused.items():
        done = sae("eval", "configs/smoke.yaml", out, *arguments)
        assert (done.returncode, done.stderr) == (2, f"sae: {message}\n")
    assert not (tmp_path / "run" / "tokens").exists()


def test_config_prints_one_dictionary_of_a_sweep() -> None:
    said = sae("config", "configs/sweep.yaml", "member=batchtopk,k=16").stdout
    assert "  type: batchtopk\n" in said
    assert "\n  k: 16\n" in said
    assert said.endswith("\nsweep: []\n")


@pytest.mark.slow
def test_info_lists_what_scripts_rely_on() -> None:
    done = sae("info", "--json")
    facts = json.loads(done.stdout)
    assert {"architectures", "formats", "backends", "versions", "devices"} <= set(facts)
    assert "topk" in facts["architectures"]
    assert facts["backends"][-1] == "torch"


def test_config_prints_values_under_their_help() -> None:
    lines = sae("config", "configs/smoke.yaml", "sae.k=4").stdout.splitlines()
    at = lines.index("  k: 4")
    assert lines[at - 1].startswith("  # Latents kept in each row.")


def test_python_m_sae_ignores_a_users_own_train_py(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("raise SystemExit('the wrong train was imported')")
    (tmp_path / "run.yaml").write_text("model: {name: nowhere}\n")
    done = sae("config", "run.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'name: "nowhere"' in done.stdout


@pytest.mark.slow
def test_whole_run_and_a_second_that_does_no_work(tmp_path: Path) -> None:
    out = f"out={tmp_path / 'run'}"
    done = sae("run", "configs/smoke.yaml", out)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    figures = {"fvu", "pca_fvu", "l0", "dead_fraction", "ce_recovered", "kl", "labelled_fraction"}
    assert figures | {"seconds", "peak_memory_bytes"} <= set(summary)
    assert summary["l0"] <= 8
    assert 0 < summary["fvu"] < 1
    began = time.time()
    again = warm.sae("run", "configs/smoke.yaml", out)
    assert "building" not in again.stderr
    boxes = [path for path in (tmp_path / "run").glob("*/") if path.name != "logs"]
    assert len(boxes) == 9
    newest = max(file.stat().st_mtime for box in boxes for file in box.rglob("*") if file.name != ".lock")
    assert newest < began
    # a change downstream leaves what is upstream of it alone
    changed = warm.sae("index", "configs/smoke.yaml", out, "analysis.index.window=16")
    assert [line for line in changed.stderr.splitlines() if line.endswith("building")] == ["index: building"]
    csv = tmp_path / "features.csv"
    assert warm.sae("export", "configs/smoke.yaml", out, "--to", str(csv)).returncode == 0
    assert csv.read_text().splitlines()[0].startswith("latent,n_fired,density")
    assert len(csv.read_text().splitlines()) >= 257
    check_queries(out)


def check_queries(out: str) -> None:
    """As a table, in words, as JSON; and mistakes in one line."""

    def ask(*question: str) -> subprocess.CompletedProcess[str]:
        return warm.sae("query", "configs/smoke.yaml", out, *question)

    lines = ask("--token", " the", "--top", "3").stdout.splitlines()
    assert lines[0].split() == ["latent", "f1", "rate", "share", "label"]
    assert len(lines) == 4
    best = int(lines[1].split()[0])
    assert ask("--latent", str(best)).stdout.startswith(f"{best}: ")
    view = json.loads(ask("--latent", str(best), "--json").stdout)
    assert " the" in {entry["text"] for entry in view["triggers"]}
    assert json.loads(ask("--overlap", str(best), str(best)).stdout)["jaccard"] == 1
    assert len(ask("--near", str(best), "--top", "2").stdout.splitlines()) == 3
    assert len(json.loads(ask("--near-encoder", str(best), "--json").stdout)) == 20
    assert ask("--label", "xylophone").stdout == "nothing\n"
    assert ask("--next", " the").returncode == 0
    assert ask("--sql", "select count(*) as n from latents").stdout == "n\n256\n"
    wrong = ask("--token", "the cat")
    assert (wrong.returncode, wrong.stderr) == (
        2,
        "sae: token 'the cat': is none of this model's; longer words are several tokens\n",
    )
    assert ask().returncode == 2


@pytest.mark.slow
def test_a_run_that_keeps_no_activations_to_train_on_learns_the_same(tmp_path: Path) -> None:
    for name, choice in (("kept", "true"), ("computed", "false")):
        done = warm.sae("index", "configs/smoke.yaml", f"out={tmp_path / name}", f"harvest.keep_train={choice}")
        assert done.returncode == 0, done.stderr
    kept, computed = tmp_path / "kept", tmp_path / "computed"
    for file in ("dictionary/dictionary.safetensors", "dictionary/curve.json", "index/latents.parquet"):
        assert (computed / file).read_bytes() == (kept / file).read_bytes(), file
    sizes = [sum(file.stat().st_size for file in (run / "activations").rglob("*")) for run in (kept, computed)]
    assert sizes[1] < sizes[0] / 4
    assert not list((computed / "activations").rglob("train-*"))
