"""`sae windows` and `sae explain` on a run, with a server on this machine in the place of a language model."""

import json
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sae.cli import main
from tests import warm
from tests.analysis.chat.server import Answer, completion, said, serving
from tests.analysis.explain.oracle import described, kind_of, marked, passages

KEY = "sk-nobody-may-read-this"
ENV = {"SAE_TEST_KEY": KEY}
CONFIG = "configs/smoke.yaml"


def answer(prompt: str) -> str:
    """Labels a latent by its strongest token, and judges by whether the label's last word stands there."""
    kind = kind_of(prompt)
    if kind == "explain":
        return json.dumps({"label": f"the token {passages(prompt, 'Active:')[0]['strength'][0][0].strip() or 'space'}"})
    if kind == "intruder":
        return '{"intruder": 2}'
    word = described(prompt).split()[-1]
    texts = [each["text"] for each in passages(prompt)]
    shown = texts if kind == "detection" else ["".join(marked(text)) for text in texts]
    return json.dumps({"answers": [int(word in text) for text in shown]})


def script(body: Mapping[str, Any], _n: int) -> Answer:
    return completion(answer(body["messages"][0]["content"]))


def arguments(run: Path, url: str) -> list[str]:
    chosen = {"base_url": url, "model": "m", "backend": "openai", "key_env": "SAE_TEST_KEY", "prices": "[0,0]"}
    small = {"latents": 12, "select_windows": 3, "test_windows": 4, "intruders": 2, "concurrency": 1}
    fields = [f"analysis.llm.{name}={value}" for name, value in {**chosen, **small}.items()]
    return ["explain", CONFIG, f"out={run}", *fields]


def files_with(folder: Path, text: str) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and text.encode() in file.read_bytes()]


def test_mistakes_are_told_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = f"out={tmp_path / 'run'}"
    llm = ("analysis.llm.backend=openai", "analysis.llm.model=m", "analysis.llm.prices=[1,1]")
    refused = {
        (): "analysis.llm.backend = 'none': must be openai or local, for labels of a language model",
        ("analysis.llm.backend=openia",): (
            f"{CONFIG}: analysis.llm.backend = 'openia': must be 'none', 'openai' or 'local'"
        ),
        llm[:2]: (
            f"{CONFIG}: analysis.llm.prices = null: must be dollars for a million tokens read and written, such as "
            "[0.15, 0.6]; [0, 0] for a server of your own"
        ),
        (*llm, "analysis.llm.key_env=NO_SUCH_KEY"): (
            "analysis.llm.key_env = 'NO_SUCH_KEY': no such environment variable; set it to the key, or write "
            "key_env: null for a server that asks for none"
        ),
    }
    for fields, message in refused.items():
        assert main(["explain", str(warm.ROOT / CONFIG), out, *fields]) == 2
        assert capsys.readouterr().err == f"sae: {message.replace(CONFIG, str(warm.ROOT / CONFIG))}\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_labels_of_a_language_model_after_a_kill_and_what_a_run_shows_of_them(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    scored = warm.sae("windows", CONFIG, f"out={whole}")
    assert scored.returncode == 0, scored.stderr
    assert json.loads(scored.stdout)["detection"].keys() == {"random", "same_trigger", "neighbour"}
    rows = pq.read_table(whole / "windows" / "windows.parquet")
    assert (rows.num_rows, set(rows["latent"].to_pylist())) == (256 * 7, set(range(256)))
    shutil.copytree(whole, killed)
    with serving(script) as server:
        estimate = warm.sae(*arguments(whole, server.url), "--estimate", env=ENV)
        assert estimate.stdout.startswith("about ")
        assert server.bodies == []
        done = warm.sae(*arguments(whole, server.url), env=ENV)
        assert done.returncode == 0, done.stderr
        n_asked = len(server.bodies)
        assert json.loads(done.stdout)["usage"]["n_requests"] == n_asked > 50
        assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
        again = warm.sae(*arguments(whole, server.url), "analysis.llm.concurrency=3", env=ENV)
        assert "llm_labels: up to date" in again.stderr
        # the same from the start in another folder, and a kill while the answer to the 40th request is awaited
        reached, go_on = threading.Event(), threading.Event()

        def hold(body: Mapping[str, Any], n: int) -> Answer:
            if len(server.bodies) == n_asked + 40:
                reached.set()
                go_on.wait(60)
            return script(body, n)

        server.script = hold
        run = warm.Command(warm.run_sae, *arguments(killed, server.url), env=ENV)
        run.wait_until(reached.is_set)
        assert run.kill()
        go_on.set()
        server.script = script
        answered = len(server.answered)
        done = warm.sae(*arguments(killed, server.url), env=ENV)
        assert done.returncode == 0, done.stderr
        after = [said(body) for body in server.bodies[n_asked + 40 :]]
        assert len(after) == len(set(after)) == n_asked - 39  # the 40th again, and those after it
        assert answered >= n_asked + 39
    for name in ("manifest.json", "llm_labels.parquet", "llm_windows.parquet"):
        assert (whole / "llm_labels" / name).read_bytes() == (killed / "llm_labels" / name).read_bytes()
    assert not files_with(tmp_path, KEY)
    assert KEY not in done.stdout + done.stderr
    shown = warm.sae("query", CONFIG, f"out={whole}", "--latent", str(labelled(whole)))
    assert "   model says:  “the token" in shown.stdout
    assert "detection:" in shown.stdout


def labelled(run: Path) -> int:
    """A latent whose label the model gave."""
    rows = pq.read_table(run / "llm_labels" / "llm_labels.parquet").to_pylist()
    return next(row["latent"] for row in rows if row["source"] == "model")
