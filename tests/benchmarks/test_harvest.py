"""The harvest benchmark without the peers: what a round says of a contestant, and that its rows are the model's."""

import pytest

from benchmarks.harvest import CONTESTANTS, Case, prepare, run
from benchmarks.report import _harvest_section


def test_the_section_has_a_row_for_each():
    own = {"tokens_per_second": 1234.0, "peak_megabytes": 512, "error": 0.00651}
    other = {**own, "tokens_per_second": 617.0}
    origin = {
        "command": "bench",
        "date": "2026-01-31",
        "hardware": {"cpu": "a CPU", "cores": 2, "threads": 2, "torch": "2", "gpu": ""},
    }
    cases = {"embedded": [{"sae-atlas": own, "SAELens, autocast": other}]}
    text = _harvest_section({"cases": cases, "origins": {"embedded": origin}})
    assert "### embedded, 1 round\n" in text
    assert "| SAELens, autocast | 617 | 2.0× | 512 MB | 0.7% |" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sae-atlas", "transformers"])
def test_rows_are_those_of_the_model(name, tmp_path):
    case = Case("embedded", 3, 64, 24)
    job = prepare(case, tmp_path)
    one = next(one for one in CONTESTANTS if one.name == name)
    figures = run(case, one, job, tmp_path)
    assert figures["error"] < 0.01
    assert figures["error"] > 0, "they are float16"
    assert figures["tokens_per_second"] > 100
    assert 100 < figures["peak_megabytes"] < 10_000
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["embedded"]
