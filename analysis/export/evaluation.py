"""An evaluation as one static page: `eval.html`, of the figures in `eval.json` and `sparse_probing.json`.

Everything is in the file: style, charts as SVG, no script. All text of the run (names of models, sites, labels) is
escaped. It computes nothing; equal figures give equal bytes.
"""

import hashlib
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.export import charts
from analysis.export.evaluation_text import CHARTS, OF_LATENTS, OF_NETWORK, OF_ROWS, Row
from sae.files import write_text

ASSETS = Path(__file__).parent / "assets"
NAMES = ("evaluation.html", "atlas.css", "evaluation.css")
MARKS = (("sae_top_1", "", "one latent"), ("sae_top_5", "faint", "five latents"), ("llm", "open", "all activations"))
"""The probes that are drawn: name, class, what it is."""
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def export(core: Mapping[str, Any], probing: Mapping[str, Any], absorbed: Mapping[str, Any] | None, out: Path) -> None:
    """Write `eval.html` into `out`.

    Args:
        core, probing: what is in `eval.json` and in `sparse_probing.json`.
        absorbed: what is in `absorption.json`; none: it was not asked for.
    """
    about = core["sae_cfg_dict"]
    text = (
        _asset("evaluation.html")
        .replace("{{title}}", html.escape(f"Evaluation: {about['type']}, {_places(about)} of {about['model']}"))
        .replace("{{style}}", _asset("atlas.css") + _asset("evaluation.css"))
        .replace("{{body}}", body(core, probing, absorbed))
    )
    write_text(out / "eval.html", text)


def assets_digest() -> str:
    """Stands for the page's own style and text."""
    code = (Path(__file__), ASSETS.parent / "charts.py", ASSETS.parent / "evaluation_text.py")
    texts = [*(_asset(name) for name in NAMES), *(path.read_text(encoding="utf-8") for path in code)]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def body(core: Mapping[str, Any], probing: Mapping[str, Any], absorbed: Mapping[str, Any] | None) -> str:
    """What stands between the page's head and its end."""
    sections = [
        _intro(core),
        _section("Reconstruction", _sampled(core["samples"]["rows"]), _table(core, OF_ROWS)),
        _section("In the network", _sampled(core["samples"]["network"]), _table(core, OF_NETWORK)),
        _section(
            "Latents",
            "Shares of latents are no means over tokens, and have no intervals.",
            _table(core, OF_LATENTS) + _distributions(core["eval_result_unstructured"]),
        ),
        _section("What a few latents say of labels", _PROBING, _probing(probing["eval_result_unstructured"])),
        _section("Absorption of first letters", _ABSORPTION, _absorption(absorbed)) if absorbed else "",
        _footer(core),
    ]
    return "\n".join(sections)


_PROBING = (
    "Each question is asked of as many examples that are so as of examples that are not: a guess is right half the "
    "time. Latents are chosen, by the difference of their means between the two, and logistic regressions fitted, on "
    "documents of the fit split; areas under the ROC curve (AUROC) are of test documents, with 95 % intervals."
)

_ABSORPTION = (
    "A latent for words that begin with s is of little use if it is silent on some of them because latents of those "
    "words write the letter too. Asked of words that a probe of all activations gets right, none of which it was "
    "fitted on; words stand where they stand in the text."
)


def _intro(core: Mapping[str, Any]) -> str:
    about, sample = core["sae_cfg_dict"], core["samples"]["rows"]
    n_latents = (about["config"] or {}).get("n_latents")
    width = f", {n_latents:,} latents" if isinstance(n_latents, int) else ""
    short = ""
    if sample["tokens_there"] < sample["tokens_wanted"]:
        short = (
            f'<p class="short">{sample["tokens_wanted"]:,} tokens were asked for; the test documents have '
            f"{sample['tokens_there']:,}, and all of them were taken. None is of a document that the dictionary was "
            "trained on.</p>"
        )
    tiles = (
        _tile(core, "reconstruction_quality", "fvu", "unexplained variance"),
        _tile(core, "sparsity", "l0", "active latents a token"),
        _tile(
            core, "model_performance_preservation", "ce_loss_score_mean_ablation", "loss recovered, against the mean"
        ),
        _tile(core, "model_behavior_preservation", "kl_div_with_sae", "KL, nats a token"),
        _tile(core, "misc_metrics", "frac_alive", "of latents live"),
    )
    return (
        f'<header class="intro"><h1>How good is this dictionary?</h1>'
        f'<p class="lead">{html.escape(about["type"])}{width}, at {html.escape(_places(about))} of '
        f"{html.escape(about['model'])}. Measured on {sample['tokens']:,} tokens of {sample['documents']:,} documents "
        f"that it was not trained on.</p>{short}"
        f'<div class="tiles">{"".join(tiles)}</div></header>'
    )


def _tile(core: Mapping[str, Any], category: str, name: str, text: str) -> str:
    value = core["eval_result_metrics"][category][name]
    bounds = core["eval_result_intervals"].get(category, {}).get(name)
    hint = f'<span class="hint">{_interval(bounds)}</span>' if bounds else ""
    return f'<div class="tile"><b>{_number(value)}</b><span class="name">{text}</span>{hint}</div>'


def _section(title: str, lead: str, content: str) -> str:
    return f"<section><h2>{title}</h2><p>{html.escape(lead)}</p>{content}</section>"


def _sampled(sample: Mapping[str, Any]) -> str:
    return (
        f"{sample['tokens']:,} tokens of the {sample['split']} split. Intervals are of 95 %, from "
        f"{sample['resamples']:,} resamples of {sample['n_resampled']:,} {sample['resampled']}."
    )


def _table(core: Mapping[str, Any], rows: Sequence[Row]) -> str:
    metrics, intervals = core["eval_result_metrics"], core["eval_result_intervals"]
    lines = []
    for category, name, called, hint in rows:
        if name in metrics[category]:
            bounds = intervals.get(category, {}).get(name)
            cells = (called, _number(metrics[category][name]), _interval(bounds) if bounds else "", hint)
            lines.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    head = "<tr><th></th><th>value</th><th>95 %</th><th></th></tr>"
    return f'<div class="scroll"><table class="figures">{head}{"".join(lines)}</table></div>'


def _distributions(found: Mapping[str, Any]) -> str:
    density = found["density"]
    edges = density["log10_edges"]
    ticks = [(edge, f"10{str(int(edge)).translate(RAISED)}" if edge else "1") for edge in edges if edge == int(edge)]
    silent = f"; {density['n_silent']:,} that never fire are not drawn"
    figures = [_figure(f"Share of tokens on which a latent fires{silent}", edges, density["n_latents"], ticks)]
    for name, title in CHARTS.items():
        if name in found:
            edges, counts = _trimmed(found[name]["edges"], found[name]["counts"])
            halves = [(edge, f"{edge:g}") for edge in edges if (2 * edge).is_integer()]
            figures.append(_figure(title, edges, counts, halves))
    return f'<div class="charts">{"".join(figures)}</div>'


def _figure(title: str, edges: Sequence[float], counts: Sequence[int], ticks: Sequence[tuple[float, str]]) -> str:
    chart = charts.columns(edges, counts, ticks, title)
    return f"<figure><figcaption>{html.escape(title)}</figcaption>{chart}</figure>"


def _trimmed(edges: Sequence[float], counts: Sequence[int]) -> tuple[Sequence[float], Sequence[int]]:
    """Without the empty bins below 0, if all there are."""
    n_below = sum(edge < 0 for edge in edges[:-1])
    return (edges, counts) if any(counts[:n_below]) else (edges[n_below:], counts[n_below:])


def _probing(tasks: Sequence[Mapping[str, Any]]) -> str:
    asked = [task for task in tasks if "scores" in task]
    left_out = "".join(
        f"<p>{html.escape(task['dataset_name'])} was left out: {html.escape(task['left_out'])}.</p>"
        for task in tasks
        if "left_out" in task
    )
    if not asked:
        return left_out or "<p>Nothing was asked.</p>"
    marks = [mark for mark in MARKS if mark[0] in asked[0]["scores"]]
    lines = [(task["dataset_name"], [_point(task, probe, kind) for probe, kind, _ in marks]) for task in asked]
    key = "".join(
        f'<span><svg viewBox="0 0 12 12" aria-hidden="true"><circle class="dot {kind}" cx="6" cy="6" r="4"/></svg>'
        f"{text}</span>"
        for _, kind, text in marks
    )
    chart = charts.points(lines, 0.4, 1.0, (0.5, 0.6, 0.7, 0.8, 0.9, 1.0), "AUROC of probes by question")
    accuracies = f"<details><summary>Accuracies</summary>{_probe_table(asked, 'accuracy')}</details>"
    return f'<div class="key">{key}</div>{chart}{_probe_table(asked, "auroc")}{accuracies}{left_out}'


def _point(task: Mapping[str, Any], probe: str, kind: str) -> charts.Point:
    score = task["scores"][probe]["auroc"]
    return kind, score["value"], None if score["interval"] is None else tuple(score["interval"])


def _probe_table(tasks: Sequence[Mapping[str, Any]], score: str) -> str:
    names = sorted((name for name in tasks[0]["scores"] if name != "majority"), key=_place)
    firsts = {next(name for name in names if name.startswith(side)) for side in ("sae", "llm")}
    opens = {name: ' class="group"' if name in firsts else "" for name in names}
    groups = "".join(
        f'<th class="group" colspan="{sum(name.startswith(side) for name in names)}">{text}</th>'
        for side, text in (("sae", "of so many latents"), ("llm", "of so many dimensions of the activations"))
    )
    head = "".join(f"<th{opens[name]}>{_width(name)}</th>" for name in names)
    lines = [
        f"<tr><td>{_question(task)}</td>"
        + "".join(f"<td{opens[name]}>{_score(task['scores'][name][score])}</td>" for name in names)
        + "</tr>"
        for task in tasks
    ]
    means = {name: sum(task["scores"][name][score]["value"] for task in tasks) / len(tasks) for name in names}
    mean = "".join(f"<td{opens[name]}>{value:.3f}</td>" for name, value in means.items())
    return (
        f'<div class="scroll"><table class="probes"><tr><th></th>{groups}</tr><tr><th></th>{head}</tr>'
        f'{"".join(lines)}<tr class="mean"><td>mean</td>{mean}</tr></table></div>'
    )


def _question(task: Mapping[str, Any]) -> str:
    latents = ", ".join(map(str, task["latents"][:3]))
    return f"{html.escape(task['dataset_name'])}<small>{html.escape(task['question'])} Latents {latents}</small>"


def _place(probe: str) -> tuple[bool, float]:
    """Latents first; sparse probes by width, then that of all."""
    return not probe.startswith("sae"), float(probe.split("_top_")[1]) if "_top_" in probe else float("inf")


def _width(probe: str) -> str:
    return probe.split("_top_")[1] if "_top_" in probe else "all"


def _score(score: Mapping[str, Any]) -> str:
    bounds = score["interval"]
    return f"{score['value']:.3f}" + (f"<small>{_interval(bounds, '.2f')}</small>" if bounds else "")


def _absorption(found: Mapping[str, Any]) -> str:
    if not found["is_meaningful"]:
        return f'<p class="short">Not meaningful here: {html.escape(found["why_not"])}.</p>'
    pooled = found["eval_result_unstructured"]["over_all_words"]
    of_all = "; ".join(
        f"{text} {_number(pooled[name]['value'])} ({_interval(pooled[name]['interval'])})"
        for name, text in (("full_absorption", "absorbed in full"), ("absorption_fraction", "mean absorbed fraction"))
    )
    lines = [
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in _letter(detail)) + "</tr>"
        for detail in found["eval_result_details"]
        if detail["full_absorption_rate"] is not None
    ]
    head = "".join(f"<th>{name}</th>" for name in ("", "probe F1", "words", "latents", "in full", "fraction"))
    table = f'<div class="scroll"><table><tr>{head}</tr>{"".join(lines)}</table></div>'
    return f"<p>Of all words, with 95 % intervals of words drawn anew: {of_all}.</p>{table}"


def _letter(detail: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        detail["first_letter"],
        _number(detail["probe_f1"]),
        f"{detail['num_probe_true_positives']:,}",
        ", ".join(map(str, detail["split_latents"])),
        _number(detail["full_absorption_rate"]),
        _number(detail["mean_absorption_fraction"]),
    )


def _footer(core: Mapping[str, Any]) -> str:
    about = core["sae_cfg_dict"]
    facts = {
        "Dictionary": _listed(about["config"] or {}),
        "Trained on": str((about["facts"] or {}).get("model_digest", "not told")),
        "Choices": _listed(core["eval_config"]),
    }
    rows = "".join(f"<div><dt>{name}</dt><dd>{html.escape(text)}</dd></div>" for name, text in facts.items())
    note = "What each figure is, and where others compute it otherwise: docs/evaluation.md."
    return f"<footer><dl>{rows}</dl>{note}</footer>"


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in sorted(values.items()))


def _places(about: Mapping[str, Any]) -> str:
    inputs, outputs = about["places"]["inputs"], about["places"]["outputs"]
    return ", ".join(inputs) + (f" → {', '.join(outputs)}" if outputs else "")


def _number(value: float | None) -> str:
    """Four significant digits, of shares three after the point."""
    if value is None:
        return "–"
    if abs(value) >= 1:
        return f"{value:.4g}" if value == int(value) else f"{value:#.4g}".rstrip(".")
    return f"{value:.3f}" if abs(value) >= 0.01 or value == 0 else f"{value:#.3g}"


def _interval(bounds: Sequence[float], form: str = "") -> str:
    low, high = (format(bound, form) if form else _number(bound) for bound in bounds)
    return f"{low} to {high}"


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")
