"""The training benchmark without the peers: what a round says of a contestant, and how rounds are summed up."""

from dataclasses import replace

import pytest

from benchmarks.frameworks import OURS, settings
from benchmarks.peers.sae_atlas import KNOBS
from benchmarks.report import _training_section
from benchmarks.rounds import summary
from benchmarks.training import CASES, TINY, main, run, with_case
from benchmarks.world import prepare
from sae.architectures.configs import configs
from sae.config import parse


def test_rounds_are_summed_up_by_medians():
    """A ratio is the median of the rounds' ratios, 2, 4 and 3, not the ratio of the medians, 30 / 10."""
    speeds = [(20, 10), (40, 10), (30, 10)]
    rounds = [
        {"sae-atlas": {"tokens_per_second": ours, "fvu": 0.5}, "SAELens": {"tokens_per_second": theirs, "fvu": 0.4}}
        for ours, theirs in speeds
    ]
    assert summary(rounds) == {
        "sae-atlas": {"tokens_per_second": 30, "fvu": 0.5, "sae-atlas is": 1.0},
        "SAELens": {"tokens_per_second": 10, "fvu": 0.4, "sae-atlas is": 3.0},
    }
    theirs = [{"SAELens": each["SAELens"]} for each in rounds]
    assert summary(theirs) == {"SAELens": {"tokens_per_second": 10, "fvu": 0.4}}


def test_the_section_has_a_row_for_each():
    own = {"tokens_per_second": 1234.0, "peak_megabytes": 512, "fvu": 0.25, "step_seconds": 0.1}
    figures = {"batch": 64, "d_in": 8, "lr": 1e-3, "test_rows": 100}
    hardware = {"cpu": "a CPU", "cores": 2, "threads": 2, "torch": "2", "gpu": None}
    origin = {"command": "bench", "date": "2026-01-31", "hardware": hardware, "steps": 24}
    origins = {
        "topk-24k": origin,
        "topk-6k": {**origin, "hardware": {**hardware, "cores": 16}, "steps": 12, "note": "stopped"},
    }
    cases = {name: [{"sae-atlas": own, "sparsify": own}] for name in origins}
    text = _training_section({**figures, "cases": cases, "origins": origins})
    assert "### topk-24k, 1 round\n" in text
    assert "| sparsify | 1,234 | 1.0× | 512 MB | 0.250 |" in text
    assert "<sub>24 steps, `bench`, 2026-01-31, a CPU, 2 threads, torch 2</sub>" in text
    assert "<sub>12 steps, `bench`, 2026-01-31, a CPU, 2 threads on 16 cores, torch 2, stopped</sub>" in text


def test_steps_that_leave_none_to_time_are_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["training", "--steps", "4"])
    with pytest.raises(SystemExit):
        main()
    assert "--steps: 4: must be more than the 4 that are not timed" in capsys.readouterr().err


def test_a_case_keeps_its_steps():
    """Beside cases that were measured before."""
    before = {"cases": {"topk-24k": [1]}, "origins": {"topk-24k": {"steps": 24}}}
    figures = with_case(before, "relu-24k", [2, 3], replace(TINY, tokens=256 * 6))
    assert figures["cases"] == {"topk-24k": [1], "relu-24k": [2, 3]}
    assert {name: origin["steps"] for name, origin in figures["origins"].items()} == {"topk-24k": 24, "relu-24k": 6}
    assert figures["origins"]["relu-24k"].keys() == {"command", "hardware", "date", "steps"}
    assert figures["batch"] == 256


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_ours_can_be_told_what_a_case_says(case):
    for one in case.contestants:
        if one.framework == OURS:
            knob = case.knob if one.knob is None else one.knob
            fields = settings(OURS, one.architecture, knob, case.n_latents, 1) | dict(one.others)
            fields.pop("recipe")
            sae = parse(configs.get(one.architecture), fields, "sae")
            chosen = {KNOBS[one.architecture]: knob, "n_latents": case.n_latents, **one.others}
            assert {name: getattr(sae, name) for name in chosen} == chosen


@pytest.mark.slow
def test_ours_is_timed_in_its_process(tmp_path):
    prepare(TINY, 0, tmp_path)
    case = CASES["topk-6k"]
    small = type(case)(case.name, 64, 4, case.contestants[:1])
    figures = run(small, small.contestants[0], TINY, tmp_path)
    assert 0 < figures["step_seconds"] < 10
    assert figures["tokens_per_second"] == pytest.approx(256 / figures["step_seconds"], rel=0.01)
    assert 100 < figures["peak_megabytes"] < 10_000
    assert 0 < figures["fvu"] < 1.5
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["data-0"]
