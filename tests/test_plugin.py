"""An architecture from outside the package, as `docs/plug-ins.md` tells it, through the whole flow."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from sae import architectures
from sae.architectures.configs import configs

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "docs/examples/group_max.py"
LOAD = """
from pathlib import Path
from sae import hub
from sae.errors import ConfigError
path = Path("runs/my/dictionary")
try:
    hub.load(path)
except ConfigError as error:
    print(error)
import group_max
dictionary = hub.load(path)
print(dictionary.encode(dictionary.b_dec.new_ones(3, dictionary.shape.d_in)).offsets.tolist())
"""


def sae(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "sae", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_the_page_shows_the_file_that_is_tested():
    page = (ROOT / "docs/plug-ins.md").read_text()
    shown = page.split("<!-- group_max -->\n```python\n")[1].split("```\n<!-- /group_max -->")[0]
    assert shown == EXAMPLE.read_text()
    code = [line for line in shown.split('"""', 2)[2].splitlines() if line.strip()]
    assert len(code) <= 35


@pytest.mark.slow
def test_a_plug_in_goes_from_text_to_labels(tmp_path):
    (tmp_path / "group_max.py").write_text(EXAMPLE.read_text())
    config = (ROOT / "configs/smoke.yaml").read_text()
    config = config.replace("sae:\n", "plugins: [group_max]\nsae:\n  type: group_max\n")
    (tmp_path / "my.yaml").write_text(config)
    done = sae("run", "my.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs/my"
    content = json.loads((run / "dictionary/dictionary.json").read_text())
    assert (content["type"], content["module"], content["config"]["k"]) == ("group_max", "group_max", 8)
    summary = json.loads((run / "summary.json").read_text())
    assert 4 < summary["l0"] <= 8
    assert summary["fvu"] < 0.6
    assert summary["ce_recovered"] > 0.5
    assert len(pq.read_table(run / "labels/labels.parquet")) == 256

    # loading imports nothing by itself: without the plug-in it says which one is missing
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert loaded.stdout.splitlines() == [
        "runs/my/dictionary/dictionary.json: type = 'group_max': comes from the plug-in group_max, which has not been "
        "imported",
        "[0, 8, 16, 24]",
    ], loaded.stderr


def test_group_max_keeps_the_largest_of_each_group(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    for registry in (architectures.architectures, configs):  # what is registered here is forgotten after the test
        monkeypatch.setattr(registry, "_things", dict(registry._things))
    from group_max import GroupMax

    monkeypatch.delitem(sys.modules, "group_max")

    latents = GroupMax(2)(torch.tensor([[1.0, 3.0, -2.0, -1.0], [5.0, 4.0, 0.5, 0.25]]))
    assert latents.dense().tolist() == [[0, 3, 0, 0], [5, 0, 0.5, 0]]
    assert latents.firing_counts().tolist() == [1, 1, 1, 0]


@pytest.mark.slow
def test_groups_of_unequal_size_are_refused_before_any_work(tmp_path):
    (tmp_path / "group_max.py").write_text(EXAMPLE.read_text())
    (tmp_path / "my.yaml").write_text("plugins: [group_max]\nsae: {type: group_max, n_latents: 4096, k: 24}\n")
    done = sae("run", "my.yaml", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "sae: my.yaml: sae.k = 24: must divide n_latents = 4096\n")
    assert not (tmp_path / "runs").exists()


def test_the_pages_second_block_imports_what_it_uses():
    """All but `x`, which is the reader's."""
    page = (ROOT / "docs/plug-ins.md").read_text()
    block = page.split("```python\n")[2].split("```")[0]
    nodes = list(ast.walk(ast.parse(block)))
    names = [node for node in nodes if isinstance(node, ast.Name)]
    made = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    made |= {alias.name for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names}
    assert {node.id for node in names} - made == {"x"}
