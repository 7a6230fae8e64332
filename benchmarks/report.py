"""Results → tables: `docs/benchmarks.md`, and the marked parts of README.md, from `docs/results/*.json`.

python -m benchmarks.report
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.windows.items import KINDS
from benchmarks import architecture_table, dashboard_tables, ground_truth, ground_truth_tables, training
from benchmarks.markdown import table
from benchmarks.planted.section import section as planted_section
from benchmarks.results import RESULTS
from benchmarks.rounds import tables
from sae.files import write_text
from sae.run import VERSIONS
from train.loader import RUN_ROWS

MEMORY = {"peak_megabytes": ("peak memory", "{:,.0f} MB")}
ROOT = Path(__file__).parent.parent


def main() -> None:
    parts = ["# Benchmarks\n", _ABOUT]
    sections = (
        ("atlas", _atlas_section),
        ("training", _training_section),
        ("training_gpu", _training_section),
        ("width", _width_section),
        ("dead", _dead_section),
        ("harvest", _harvest_section),
        ("reading", _reading_section),
        ("index", _index_section),
        ("dashboards", _dashboards_section),
        ("ground_truth", _ground_truth_section),
        ("planted", planted_section),
    )
    for name, section in sections:
        path = RESULTS / f"{name}.json"
        if path.exists():
            result = json.loads(path.read_text())
            if text := section(result["figures"]):
                parts += [text, "" if "origins" in result["figures"] else _origin(result)]
    write_text(ROOT / "docs" / "benchmarks.md", "\n".join(parts))
    atlas = RESULTS / "atlas.json"
    if atlas.exists():
        _fill(ROOT / "README.md", "atlas", quality_table(json.loads(atlas.read_text())["figures"]))
    nulls = RESULTS / "nulls.json"
    if nulls.exists():
        _fill(ROOT / "README.md", "nulls", nulls_table(json.loads(nulls.read_text())["figures"]))
    windows = RESULTS / "windows.json"
    if windows.exists():
        _fill(ROOT / "docs" / "labels.md", "windows", windows_table(json.loads(windows.read_text())["figures"]))
    _fill(ROOT / "docs" / "architectures.md", "architectures", _architectures())


def quality_table(figures: dict[str, Any]) -> str:
    """What the embedded dictionary reaches on held-out documents."""
    rows = [
        ("unexplained variance (FVU), held-out documents", f"**{figures['fvu']:.3f}**"),
        ("the same of a PCA with as many active components", f"{figures['pca_fvu']:.3f}"),
        ("active latents a token (L0)", f"{figures['l0']:.1f}"),
        ("dead latents", f"{figures['dead_fraction']:.1%}"),
        ("cross-entropy recovered (against mean ablation)", f"{figures['ce_recovered']:.3f}"),
        ("KL from the clean model, nats a token", f"{figures['kl']:.3f}"),
        ("live latents with a label; the others are marked as abstained", f"{figures['labelled_fraction']:.0%}"),
        ("labels whose F1 there beats the best single token's", f"{figures['beats_token_fraction']:.0%}"),
        ("live latents whose label beats every null", f"{figures['beats_nulls_fraction']:.0%}"),
        ("live latents with a *does* label that beats its nulls", f"{figures['does_beats_nulls_fraction']:.0%}"),
        ("median F1 of the labels", f"{figures['median_f1']:.2f}"),
        ("median F1 of the best single tokens", f"{figures['median_token_f1']:.2f}"),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


UNITS = {
    "dictionary": "latents of the dictionary",
    "as many as neurons": "of one with as many as there are neurons",
    "neurons": "neurons of its layer, as many active a token",
    "directions": "random directions",
    "random": "latents of a dictionary of the network with random weights",
}


def nulls_table(figures: dict[str, Any]) -> str:
    """What labels are worth beside those of null models."""

    def share(found: Sequence[float]) -> str:
        return f"{found[0]:.0%} ({found[1]:.0%} to {found[2]:.0%})"

    def margin(found: Sequence[float]) -> str:
        return f"{found[0]:.2f} ({found[1]:.2f} to {found[2]:.2f})"

    rows = [
        [
            *(UNITS[name], f"{own['n_live']:,}", f"{own['l0'] / own['n_live']:.1%}", share(own["labelled"])),
            *(share(own["beats_nulls"]), margin(own["median_f1"]), margin(own["median_auprc_margin"])),
            share(own["does_beats_nulls"]),
        ]
        for name, own in ((name, figures[name]) for name in UNITS if name in figures)
    ]
    columns = (
        *("units", "live", "of tokens, a unit", "labelled", "label beats every null"),
        *("median F1", "median AUPRC margin", "does label beats its nulls"),
    )
    return "\n".join(table(columns, rows))


def windows_table(figures: dict[str, Any]) -> str:
    """What labels are worth on windows, by task and kind of silent windows."""
    rows = [
        [
            *(task, kind.replace("_", " "), f"{own['n_scored']:,}"),
            *(f"{own[f'median_{name}']:.2f}" for name in ("balanced_accuracy", "token", "other")),
            f"{own['median_margin']:+.2f}",
        ]
        for task in ("detection", "fuzzing")
        for kind, own in sorted(figures[task].items(), key=lambda item: KINDS.index(item[0]))
    ]
    columns = ("task", "silent windows", "labels", "label", "single token", "another latent's label", "above the best")
    return "\n".join(table(columns, rows))


def _atlas_section(figures: dict[str, Any]) -> str:
    lines = ["## The main job: `make atlas`, set-up excluded\n", "| stage | seconds |", "|---|---|"]
    lines += [f"| {name} | {figures['seconds'][name]:.1f} |" for name in VERSIONS if name in figures["seconds"]]
    lines += [
        f"| **all, with start-up** | **{figures['total_seconds']:.0f}** |",
        f"\nPeak memory {figures['peak_memory_bytes'] / 1e9:.2f} GB; "
        f"the atlas is {figures['atlas_bytes'] / 1e6:.0f} MB.\n",
        quality_table(figures),
        "",
    ]
    return "\n".join(lines)


def _training_section(figures: dict[str, Any]) -> str:
    where = "on a GPU, " if figures["batch"] == training.GPU.batch else ""
    lines = [
        f"## Training {where}beside SAELens, dictionary_learning and sparsify\n",
        f"Batches of {figures['batch']:,} rows of {figures['d_in']} numbers, Adam at {figures['lr']:g}; medians over",
        f"alternating rounds. FVU of {figures['test_rows']:,} other rows after as many steps as stand under a table:",
        "it says that the same is learnt, not how well.\n",
    ]
    lines += tables(figures["cases"], {**MEMORY, "fvu": ("FVU", "{:.3f}"), "l0": ("L0", "{:,.0f}")}, _origins(figures))
    if where:
        lines.append("Where the time goes, and what is left to gain: [a step on a GPU](decisions/gpu-step.md).\n")
    return "\n".join(lines)


def _width_section(figures: dict[str, Any]) -> str:
    lines = [
        "## Training, by width and by batch\n",
        f"TopK, k = {figures['k']}, rows of {figures['d_in']} numbers, products in {figures['precision']}. The floor",
        "is the encoder's product and the bytes of Adam, measured beside each step.\n",
        "![Milliseconds of a step against latents and against rows of a batch, beside the floor](width.png)\n",
    ]
    columns = ("latents", "batch", "ms", "product", "Adam's bytes", "step / floor", "not the product", "tokens/s")
    rows = []
    for point in (*figures["widths"], *figures["batches"]):
        step, product, adam = (point[f"{name}_seconds"] for name in ("step", "product", "adam"))
        milliseconds = [f"{1e3 * seconds:.0f}" for seconds in (step, product, adam)]
        shares = [f"{step / (product + adam):.2f}", f"{1 - product / step:.0%}"]
        sizes = [f"{point['n_latents']:,}", f"{point['batch']:,}"]
        rows.append([*sizes, *milliseconds, *shares, f"{point['tokens_per_second']:,}"])
    return "\n".join([*lines, *table(columns, rows), ""])


def _dead_section(figures: dict[str, Any]) -> str:
    alive = figures["cases"][0]["milliseconds"]
    lines = [
        "## Training while latents are dead\n",
        f"TopK, k = 32, {figures['n_latents']:,} latents; AuxK chooses 384 of the dead ones, twelve times as many",
        "as are active otherwise.\n",
    ]
    rows = [
        [f"{case['dead']:.0%}", f"{case['milliseconds']:.0f}", f"{case['milliseconds'] / alive - 1:.0%}"]
        for case in figures["cases"]
    ]
    return "\n".join([*lines, *table(("dead", "ms a step", "more than with none"), rows), ""])


def _harvest_section(figures: dict[str, Any]) -> str:
    lines = [
        "## Harvest beside SAELens, dictionary_learning and a plain hook\n",
        "One MLP's output as float16, of contexts of equal length; medians over alternating rounds. Ours writes",
        "safetensors with fsync, SAELens's runner Arrow files, the others keep rows in memory, dictionary_learning as",
        "float32; `transformers` is the whole model with a hook. The error is that of the first rows against the",
        "plain model in float32, relative.",
        "GPT-2 small has random weights here: speed does not depend on them.\n",
    ]
    return "\n".join([*lines, *tables(figures["cases"], {**MEMORY, "error": ("error", "{:.1%}")}, _origins(figures))])


def _reading_section(figures: dict[str, Any]) -> str:
    lines = [
        "## Reading activations back, shuffled\n",
        f"One epoch over {figures['rows']:,} rows of {figures['d']} bfloat16 numbers on disk, in batches of",
        f"{figures['batch']:,}; checksums are verified on the way. A batch has rows of so many of the",
        f"{figures['rows'] // RUN_ROWS} runs of {RUN_ROWS:,} neighbours that the text is cut into; a window has",
        "as many as it holds, taken from all over the text.\n",
    ]
    columns = ("window (`train.window_rows`)", "rows/s", "runs in a batch")
    rows = [[f"{case['window']:,}", f"{case['rows_per_second']:,}", f"{case['runs']:.0f}"] for case in figures["cases"]]
    return "\n".join([*lines, *table(columns, rows), ""])


def _index_section(figures: dict[str, Any]) -> str:
    lines = [
        "## The index\n",
        f"A TopK dictionary, k = {figures['k']}; *codes* has encoding in it, and writes the summary of all tokens and",
        "the firings of those that are kept; *index* makes the tables, with logits of GPT-2's vocabulary. What both",
        "cost beside encoding is in CPU seconds, those in which cores were busy; encoding alone is measured on",
        "131,072 rows. Memory is the largest resident set, of encoding alone and in all. It depends on latents and on",
        "kept tokens; rows of few numbers show in less time how it grows with tokens.\n",
    ]
    columns = (
        *("latents", "row", "tokens", "kept", "encoding alone", "codes", "index", "both / encoding", "bytes a firing"),
        *("memory, encoding", "memory"),
    )
    rows = []
    for case in figures["cases"]:
        alone, codes, index = (case[f"{name}_seconds"] for name in ("encode", "codes", "index"))
        rows.append(
            [
                *(f"{case[name]:,}" for name in ("n_latents", "d_in", "tokens", "kept_tokens")),
                *(f"{seconds:,.0f} s" for seconds in (alone, codes, index)),
                f"{(case['codes_cpu_seconds'] + case['index_cpu_seconds']) / case['encode_cpu_seconds']:.2f}",
                f"{case['bytes_a_firing']:.2f}",
                *(f"{case[name]:,} MB" for name in ("encode_peak_megabytes", "peak_megabytes")),
            ]
        )
    lines += [*table(columns, rows), ""]
    if "questions" in figures:
        rows = [
            [name, *(f"{times[of]:.1f}" for of in ("first", "p50", "p95"))]
            for name, times in figures["questions"].items()
        ]
        lines.append("Questions to the embedded run (`sae query`), milliseconds:\n")
        lines += [*table(("", "the first", "half of the others", "95% of them"), rows), ""]
    return "\n".join([*lines, *dict.fromkeys(_origins(figures).values())])


def _dashboards_section(figures: dict[str, Any]) -> str:
    return dashboard_tables.section(figures, _origins(figures))


def _ground_truth_section(figures: dict[str, Any]) -> str:
    return ground_truth_tables.section(ground_truth.plan_of(figures), figures["runs"], figures["sittings"])


def _architectures() -> str:
    """The table of docs/architectures.md, from whatever has been measured."""
    paths = [RESULTS / f"{name}.json" for name in ("ground_truth", "architectures")]
    return architecture_table.table(*(json.loads(p.read_text())["figures"] if p.exists() else None for p in paths))


def _origins(figures: dict[str, Any]) -> dict[str, str]:
    """Of each case."""
    return {name: _origin(of) for name, of in figures["origins"].items()}


def _origin(result: dict[str, Any]) -> str:
    hardware = result["hardware"]
    threads, cores = hardware["threads"], hardware["cores"]
    parts = [
        *([f"{result['steps']} steps"] if "steps" in result else []),
        *(f"`{result['command']}`", result["date"], hardware["cpu"]),
        f"{threads} threads" if threads == cores else f"{threads} threads on {cores} cores",
        f"torch {hardware['torch']}",
        *([hardware["gpu"]] if hardware["gpu"] else []),
        *([result["note"]] if "note" in result else []),
    ]
    return f"<sub>{', '.join(parts)}</sub>\n"


def _fill(path: Path, name: str, content: str) -> None:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->`."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    text = path.read_text(encoding="utf-8")
    assert pattern.search(text), f"{path} has no place for {name}"
    write_text(path, pattern.sub(lambda match: match[1] + content + "\n" + match[2], text))


_ABOUT = """Every table here is made from `docs/results/*.json` by `python -m benchmarks.report`, none is typed; under
each stands the command that measured it. Absolute speeds depend on the machine and on what else it does; ratios are of
alternating rounds in one run.
"""

if __name__ == "__main__":
    main()
