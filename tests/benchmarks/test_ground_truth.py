"""The harness without the peers: what is run next, what is kept, and that truth is recognised."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks import architecture_table
from benchmarks.frameworks import ADAPTERS
from benchmarks.ground_truth import (
    FAMILIES,
    FRAMEWORKS,
    MAX_TRIES,
    OURS,
    Cell,
    Plan,
    cells,
    find,
    next_run,
    plan_of,
    record,
    recorded,
)
from benchmarks.ground_truth_tables import Mean, compare, section
from benchmarks.peers import sae_atlas
from benchmarks.peers.exchange import Batches, Codes, Job
from benchmarks.world import FULL, Scale, judge, prepare
from sae.architectures import names
from sae.stage import open_box
from sae.store import ActivationStore
from train.config import TrainConfig
from train.loader import Loader
from train.synthetic import SMALL, Synthetic

TINY = Scale(SMALL, n_latents=64, batch=64, tokens=64 * 12, test_rows=500)
PLAN = Plan(FULL, targets=(20.0, 25.0), tolerance=1.0, seeds=2, lr=1e-3)


def pretend(run: dict, l0: float | None = None) -> dict:
    """A finished run: k is met up to a tenth, other L0 is 60 / coefficient."""
    knob, field = run["knob"], ADAPTERS[run["framework"]].KNOBS[run["architecture"]]
    l0 = l0 or (0.99 * knob if field in ("k", "max_iterations", "target_l0") else 60 / knob)
    figures = {"l0": l0, "mcc": 0.5 + 0.1 * run["seed"], "f1": 0.25, "uniqueness": 1.0, "explained_variance": 0.75}
    return {**run, "figures": {**figures, "dead_fraction": 0.0}, "facts": {}}


def complete(plan: Plan) -> list[dict]:
    runs: list[dict] = []
    while (run := next_run(plan, runs)) is not None:
        runs.append(pretend(run))
        assert len(runs) < 1000
    return runs


# --- what is run next ---


def test_the_matrix_is_run_to_its_end():
    runs = complete(PLAN)
    for cell in cells(PLAN):
        run = find(PLAN, cell, runs)
        assert run is not None, cell
        assert abs(run["figures"]["l0"] - cell.target) <= 1
    tried = [run for run in runs if run["architecture"] == "relu_april" and run["seed"] == 0]
    assert [run["knob"] for run in tried] == [3.6, 3.0, 2.4]  # L0 of 17, 20 and 25
    again = [run for run in runs if run["architecture"] == "relu_april" and run["seed"] == 1]
    assert [run["knob"] for run in again] == [3.0, 2.4]


def test_frameworks_alternate():
    order = [cell.framework for cell in cells(PLAN)]
    longest = max(len(list(group)) for _, group in itertools.groupby(order))
    assert longest == 2  # switch is ours alone, and then comes relu
    assert set(order[:3]) == set(FRAMEWORKS) - {"SAELens"}  # as many sittings end in the middle, none is ahead


def test_what_has_been_run_is_not_run_again_and_what_has_changed_is():
    runs = complete(PLAN)
    assert next_run(PLAN, runs) is None
    more = next_run(replace(PLAN, seeds=3), runs)
    assert more is not None and (more["seed"], more["knob"]) == (2, find(PLAN, next(cells(PLAN)), runs)["knob"])
    other = next_run(replace(PLAN, lr=2e-3), runs)
    assert other is not None and (other["seed"], other["lr"]) == (0, 2e-3)
    stale = [
        {**run, "settings": {**run["settings"], "init_norm": 0.5}} if run["architecture"] == "topk" else run
        for run in runs
    ]
    changed = next_run(PLAN, stale)
    assert changed is not None and changed["architecture"] == "topk"


def test_a_target_that_cannot_be_met_ends():
    plan, runs = replace(PLAN, families=("relu",), frameworks=(OURS,), targets=(20.0,)), []
    while (run := next_run(plan, runs)) is not None:
        runs.append(pretend(run, l0=400 * run["knob"] ** -0.15))
    assert [run["seed"] for run in runs] == [0] * MAX_TRIES + [1]
    assert runs[-1]["knob"] == runs[-2]["knob"], "the nearest of them is kept"


def test_what_fails_is_left_out():
    failed = {(OURS, "relu"), ("dictionary_learning", "standard")}
    run = next_run(PLAN, [], failed)
    assert run is not None and (run["framework"], run["architecture"]) == (OURS, "relu_april")


# --- rows and truth ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("world")
    for seed in (0, 1):
        prepare(TINY, seed, path)
    return path


def job(folder: Path, out: Path, architecture: str = "topk", seed: int = 0) -> Job:
    knob = PLAN.knob(OURS, architecture, 2).next([], 2)
    names = {"data": f"data-{seed}", "order": f"order-{seed}.safetensors", "test": "test.safetensors"}
    return Job(
        architecture=architecture,
        settings=replace(PLAN, scale=TINY).settings(OURS, architecture, knob),
        seed=seed,
        d_in=SMALL.d_in,
        n_latents=TINY.n_latents,
        batch=TINY.batch,
        steps=TINY.steps,
        lr=1e-3,
        dead_rows=TINY.dead_rows,
        out=str(out),
        **{name: str(folder / file) for name, file in names.items()},
    )


def test_every_framework_reads_our_trainers_batches(folder, tmp_path):
    own = ActivationStore(open_box(folder / "data-1")).split(["synthetic"], "train")
    loader = Loader(own, TINY.batch, TrainConfig().window_rows, seed=1)
    batches = Batches(job(folder, tmp_path, seed=1))
    first = list(batches)
    assert len(first) == TINY.steps == 12
    assert all(torch.equal(batch, loader.batch(step)) for step, batch in enumerate(first))
    assert torch.equal(next(iter(batches)), first[0]), "a second pass starts anew"
    assert not torch.equal(next(iter(Batches(job(folder, tmp_path)))), first[0])


def test_seeds_share_a_world_and_no_rows(folder):
    world = Synthetic(SMALL, 42)
    shards = ("test", "data-0/synthetic/train-00000", "data-1/synthetic/train-00000")
    rows = [load_file(folder / f"{shard}.safetensors")["acts"].float() for shard in shards]
    assert torch.equal(load_file(folder / "truth.safetensors")["directions"], world.directions)
    assert torch.equal(rows[0], world.sample(0, 4096).x[: TINY.test_rows].bfloat16().float())
    sets = [{tuple(row) for row in x.tolist()} for x in rows]
    for a, b in itertools.combinations(sets, 2):
        assert len(a & b) < 0.05 * len(a)  # rows without a feature, which are the bias, and few of one feature


def hand_over(folder: Path, out: Path) -> tuple[Path, float]:
    """The true features as if a dictionary had found them, in another order and another scale."""
    truth, world = load_file(folder / "truth.safetensors"), Synthetic(SMALL, 42)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    found = {
        "values": truth["values"] / 2,
        "indices": order[truth["indices"]],
        "offsets": truth["offsets"],
        "directions": 2 * world.directions[order.argsort()],
        "bias": world.bias,
    }
    x = torch.cat([world.sample(0, 4096).x])[: TINY.test_rows]
    error = (x - x.bfloat16().float()).double().square().sum().item()
    save_file(found, out / "found.safetensors")
    return out / "found.safetensors", error


def test_the_truth_is_judged_to_be_true(folder, tmp_path):
    figures = judge(*hand_over(folder, tmp_path), folder)
    ones = ("mcc", "f1", "uniqueness", "precision", "recall")
    assert {name: figures[name] for name in ones} == dict.fromkeys(ones, 1.0)
    assert figures["explained_variance"] > 0.9999  # but for the rounding to bfloat16
    assert figures["l0"] == figures["true_l0"] == pytest.approx(1.74, abs=0.2)


def test_a_framework_that_says_another_error_is_refused(folder, tmp_path):
    path, error = hand_over(folder, tmp_path)
    with pytest.raises(AssertionError, match="by itself"):
        judge(path, 1.01 * error, folder)


def test_codes_are_the_positive_entries():
    codes = Codes.of(torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [3.0, -1.0, 4.0]]))
    assert codes.values.tolist() == [2, 3, 4]
    assert codes.indices.tolist() == [1, 0, 2]
    assert codes.counts.tolist() == [1, 0, 2]


@pytest.mark.parametrize("architecture", list(sae_atlas.KNOBS))
def test_ours_hands_over_what_it_reconstructs(folder, tmp_path, architecture):
    """Latents, directions and bias in the data's units add up to the dictionary's own reconstruction."""
    found = sae_atlas.train(job(folder, tmp_path, architecture))
    x = load_file(folder / "test.safetensors")["acts"].float()
    with torch.no_grad():
        codes, recon = found.encode(x), found.reconstruct(x)
        rows = torch.repeat_interleave(torch.arange(len(x)), codes.counts)
        dense = torch.zeros(len(x), TINY.n_latents).index_put((rows, codes.indices.long()), codes.values)
        torch.testing.assert_close(dense @ found.directions + found.bias, recon, rtol=1e-4, atol=1e-4)
    assert codes.counts.sum() > 0


# --- tables ---


def test_outcomes():
    """Errors 3 and 4 make 5 of the difference."""
    assert compare(Mean(10, 3), Mean(4, 4)) == "better"
    assert compare(Mean(10, 3), Mean(15, 4)) == "as good"
    assert compare(Mean(10, 3), Mean(15.1, 4)) == "worse"
    assert str(Mean.of([0.5, 0.6, 0.7])) == "0.600 ± 0.058"  # 0.1 / sqrt 3


def test_the_section_says_everything():
    text = section(PLAN, complete(PLAN))
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 * (1 + sum(len(names) for names in FAMILIES.values()) + 5)  # 5 were published
    assert "| topk | SAELens | 19.8 | **0.250 ± 0.000** | **0.550 ± 0.050** |" in text
    assert "| matryoshka | *published* | *25* | *0.879* | *0.793* | *0.999* | *0.779* |  |" in text
    assert "than a standard error of the difference in 0, within one in 64" in text
    assert "- SAELens gated: 2.4 → 25.0, 3 → 20.0, 5.5 → 10.9" in text


def test_what_is_not_at_one_l0_is_not_compared():
    plan = replace(PLAN, targets=(20.0,), families=("topk",), frameworks=(OURS, "SAELens"))
    runs = complete(plan)
    assert "Of 2 comparisons" in section(plan, runs)
    further = [{**r, "figures": {**r["figures"], "l0": 18.9 + 2.2 * (r["framework"] == OURS)}} for r in runs]
    assert "comparisons" not in section(plan, further), "18.9 and 21.1 are both near 20, but not near each other"
    assert "comparisons" not in section(replace(plan, seeds=1), runs), "one seed has no standard error"


def test_what_was_read_back_is_not_run_again(tmp_path):
    """What a run was told is compared with what JSON made of it."""
    plan = replace(PLAN, frameworks=(OURS,), families=("jumprelu",))
    run = next_run(plan, [])
    assert run is not None
    record(tmp_path / "found.json", plan, pretend(run, l0=20.0))
    again = next_run(plan, recorded(tmp_path / "found.json")["runs"])
    assert again is not None and again["target"] == 25.0


def test_a_sitting_for_one_target_does_not_hide_another(tmp_path):
    path, run = tmp_path / "found.json", {"framework": OURS, "seed": 0}
    for targets in ((20.0,), (25.0,), (20.0,)):
        record(path, replace(PLAN, targets=targets), run)
    assert plan_of(recorded(path)).targets == (20.0, 25.0)


def test_processes_share_the_results(tmp_path):
    path, run = tmp_path / "found.json", {"framework": OURS, "seed": 0}
    record(path, PLAN, run)
    record(path, PLAN, {**run, "seed": 1})
    found = recorded(path)
    assert [each["seed"] for each in found["runs"]] == [0, 1]
    assert len(found["sittings"]) == 1


def test_a_part_of_the_matrix_can_be_shown():
    one = next(iter(cells(PLAN)))
    assert one == Cell(20.0, 0, "relu", OURS)
    assert section(PLAN, []) == ""
    runs = [run for run in complete(PLAN) if run["architecture"] not in ("gated", "switch")]
    text = section(PLAN, runs)
    assert text.count("### L0") == 2
    assert "| topk |" in text
    assert "| gated |" not in text
    assert "| jumprelu_tanh | SAELens | 20.0 |" in text
    tanh = [run for run in runs if (run["architecture"], run["seed"]) == ("jumprelu_tanh", 1)]
    without_ours = [run for run in runs if run not in tanh or run["framework"] != OURS]
    assert "| jumprelu_tanh |" not in section(PLAN, without_ours)


def test_a_peer_that_has_not_been_run_on_every_seed_is_shown_but_not_judged():
    runs = complete(PLAN)
    first = [run for run in runs if (run["framework"], run["architecture"], run["seed"]) != ("SAELens", "topk", 1)]
    text = section(PLAN, first)
    assert "| topk | SAELens (1 of 2 seeds) | 19.8 | **0.250** | 0.500 |" in text
    assert "than a standard error of the difference in 0, within one in 60" in text
    assert "SAELens" in section(PLAN, runs).replace(text, "")


def test_a_target_that_only_ours_has_been_run_at_is_shown():
    plan = replace(PLAN, families=("topk",))
    runs = [run for run in complete(plan) if run["framework"] == OURS or run["target"] == 25.0]
    below, above = section(plan, runs).split("### L0 = 25")
    assert "| topk | SAELens |" in above
    assert "SAELens |" not in below.split("### L0 = 20")[1]
    others = [run for run in runs if run["target"] == 25.0]
    assert "### L0 = 20" not in section(plan, others)


def test_every_architecture_has_a_row_that_says_whose_it_is():
    lines = architecture_table.table(None, None).splitlines()[2:]
    assert len(lines) == len(names()) + 1  # a transcoder is any of them
    assert all(line.endswith("| – | – | – | – | – |") for line in lines)
    topk = "| `topk` | TopK with AuxK (Gao et al. 2024, arXiv:2406.04093) | [topk.py](../sae/architectures/topk.py) |"
    assert next(line for line in lines if "`topk` |" in line).startswith(topk)
    measured = {"cases": {"topk": {"fvu": 0.1444, "ce_recovered": 0.9, "l0": 23.96}}}
    figures = {"runs": complete(PLAN), "plan": {"targets": [20.0, 25.0], "tolerance": 1.0, "seeds": 2, "lr": 1e-3}}
    figures["plan"]["tokens"] = FULL.tokens
    row = next(line for line in architecture_table.table(figures, measured).splitlines() if "| `topk` |" in line)
    assert row == f"{topk} 0.250 ± 0.000 | 0.550 ± 0.050 | 0.144 | 0.900 | 24.0 |"
