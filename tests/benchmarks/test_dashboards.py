"""The dashboards benchmark without the peers: what is computed of a share, the table, and that ours does the job."""

from dataclasses import replace

import pytest

from benchmarks import dashboard_tables
from benchmarks.dashboards import (
    CASES,
    DELPHI,
    SAEDASHBOARD,
    SMOKE,
    Cost,
    all_batches,
    alone,
    contestants,
    continued,
    cost,
    difference,
    prepare,
    run,
)
from benchmarks.frameworks import OURS

ALL = [OURS, SAEDASHBOARD, DELPHI]


def stage(seconds: float) -> dict[str, float]:
    """One in which both cores are busy."""
    return {"seconds": seconds, "cpu_seconds": 2 * seconds}


def record(peak: int, densities: list[float], **seconds: float) -> dict:
    stages = {name.replace("_", " "): stage(of) for name, of in seconds.items()}
    return {"stages": stages, "peak_megabytes": peak, "densities": densities}


def ours() -> dict:
    return record(900, [0.1, 0.2, 0.0], activations=10.0, codes=20.0, index=5.0, encoding_alone=4.0)


def test_other_batches_last_as_long_as_those_measured():
    assert all_batches([30.0, 10.0, 12.0], 256) == 30 + 11
    assert all_batches([30.0, 10.0], 24_576) == 30 + 191 * 10
    assert all_batches([30.0, 10.0], 257) == 30 + 2 * 10, "a batch of one latent is one"
    assert all_batches([30.0], 100) == 30


def test_more_tokens_lie_on_the_line_through_those_measured():
    """2 s and 10 MB for each 1,000 tokens above 6 s and 100 MB."""
    costs = {1000: Cost(8, 16, 110), 4000: Cost(14, 28, 140)}
    assert continued(costs, 10_000) == Cost(26, 52, 200, is_measured=False)


def test_they_never_cost_more_than_in_proportion():
    """The line through both would have lost 2 s at 0 tokens."""
    costs = {1000: Cost(1, 2, 110), 4000: Cost(10, 20, 140)}
    found = continued(costs, 8000)
    assert (found.seconds, found.cpu_seconds) == (20, 40)
    assert found.megabytes == 180


def test_a_job_costs_its_stages_without_encoding_alone():
    assert cost(OURS, ours(), 3) == Cost(35, 70, 900)
    assert cost(OURS, ours(), 3, ("activations", "codes")) == Cost(30, 60, 900)
    both = record(500, [], batch_0=30.0, batch_1=10.0)
    assert cost(SAEDASHBOARD, both, 384) == Cost(50, 100, 500, is_measured=False)
    assert cost(SAEDASHBOARD, both, 256) == Cost(40, 80, 500)


def test_encoding_alone_is_of_a_share():
    assert alone(ours(), 1000) == 4
    assert alone(ours(), 1 << 20) == 4 * 8
    assert alone(ours(), 1 << 20, "cpu_seconds") == 8 * 8


def test_densities_are_compared_on_shared_tokens_where_ours_fire():
    wrong = record(1, [0.9, 0.9, 0.9], batch_0=1.0)
    theirs = record(1, [0.11, 0.2, 0.3], batch_0=1.0)
    measured = {OURS: {"200": ours(), "800": wrong}, SAEDASHBOARD: {"100": wrong, "200": theirs}}
    assert difference(measured, SAEDASHBOARD) == pytest.approx(0.05)  # the middle of 10 % and none


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_who_is_measured_on_what(case):
    few, many = case.shares
    assert contestants(case, few, ALL) == [SAEDASHBOARD, DELPHI]
    assert contestants(case, many, ALL) == ALL
    assert contestants(case, case.n_contexts, ALL) == [OURS]
    assert contestants(case, many, [DELPHI]) == [DELPHI]
    assert few % 32 == many % 32 == 0, "delphi leaves out what fills no batch"


def figures() -> dict:
    many = record(1200, [0.1, 0.2, 0.0], activations=40.0, codes=80.0, index=10.0, encoding_alone=60.0)
    measured = {
        OURS: {"200": ours(), "800": many},
        SAEDASHBOARD: {
            "100": record(600, [0.1, 0.2, 0.0], batch_0=12.0, batch_1=4.0),
            "200": record(700, [0.1, 0.2, 0.0], batch_0=20.0, batch_1=7.0),
        },
        DELPHI: {
            "100": record(1000, [0.1, 0.2, 0.0], cache=60.0, files=5.0),
            "200": record(2000, [0.1, 0.2, 0.0], cache=110.0, files=10.0),
        },
    }
    case = {"n_latents": 1280, "d_in": 64, "k": 8, "context": 16, "is_trained": False, "measured": measured}
    return {"cases": {"1,280 latents": case}}


def test_the_section_says_what_was_measured_and_what_was_computed():
    """SAEDashboard, 10 batches: 20 + 9 x 7 = 83 s on 200 tokens, 12 + 9 x 4 = 48 s on 100, so 83 + 600 x .35 = 293 s on
    800. delphi: 120 s and 65 s, so 120 + 600 x .55 = 450 s, and 10 MB a token more."""
    text = dashboard_tables.section(figures(), {"1,280 latents": "<sub>origin</sub>"})
    share = "2 of 10 batches"
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert rows == [
        "| sae-atlas | 200 | all | 35 | 70 | 6 | 1.0× | 1.0× | 900 MB |",
        f"| SAEDashboard | 200 | {share} | ≈ 83 | ≈ 166 | ≈ 2 | ≈ 2.4× | ≈ 2.4× | 700 MB |",
        "| sae-atlas, without the index | 200 | all | 30 | 60 | 7 | 1.0× | 1.0× | 900 MB |",
        "| delphi | 200 | all | 120 | 240 | 2 | 4.0× | 4.0× | 2,000 MB |",
        "| sae-atlas | 800 | all | 130 | 260 | 6 | 1.0× | 1.0× | 1,200 MB |",
        f"| SAEDashboard | 800 | {share} (100 and 200 tokens) | ≈ 293 | ≈ 586 | ≈ 3 | ≈ 2.3× | ≈ 2.3× | ≈ 1,300 MB |",
        "| sae-atlas, without the index | 800 | all | 120 | 240 | 7 | 1.0× | 1.0× | 1,200 MB |",
        "| delphi | 800 | all (100 and 200 tokens) | ≈ 450 | ≈ 900 | ≈ 2 | ≈ 3.8× | ≈ 3.8× | ≈ 8,000 MB |",
    ]
    assert "codes and index together 1.50 times that (1.50 by CPU seconds)." in text
    assert "delphi's cache grew by 1,000 MB from 100 to 200 tokens." in text
    assert "<sub>origin</sub>" in text


@pytest.mark.slow
def test_ours_does_the_job(tmp_path):
    """Every token has k latents, so densities of all latents add up to it."""
    case = replace(SMOKE["smoke"], n_latents=128)
    folder = tmp_path / "case"
    assert prepare(case, tmp_path, folder) == {
        "n_latents": 128,
        "d_in": 768,
        "k": 16,
        "context": 32,
        "is_trained": False,
    }
    found = run(case, OURS, 64, folder)
    assert list(found["stages"]) == ["activations", "codes", "index", "encoding alone"]
    assert sum(found["densities"]) == pytest.approx(16, abs=0.01)
    assert found["loaded_megabytes"] <= found["peak_megabytes"] < 10_000
    assert {path.name for path in folder.iterdir()} == {"model", "contexts.safetensors", "sae", "saelens", "sparsify"}
