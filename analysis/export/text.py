"""A latent as lines of text, for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.export.atlas import SHOWN

N_LISTED = 8
DOES_NOTES = {
    "abstained": "No measurable effect on single tokens.",
    "rare": "Fires too seldom for its effect on the output to be told.",
}


def describe(view: Mapping[str, Any]) -> str:
    """What `Index.view` knows, at a glance: examples with their token in «», control characters made visible."""
    label = view["label"]
    lines = [f"{view['latent']}: {_visible(label['text'] or label['status'])}"]
    if label["scores"]:
        low, high, token = label["f1_low"], label["f1_high"], label["token"]
        lines.append(
            f"   F1 on held-out text {label['scores']['f1']:.2f} ({low:.2f} to {high:.2f}); "
            f"best single token {token['f1'] if token else 0:.2f}"
        )
    lines += [_on_windows(view["windows"]), *_language_model(view["llm"])]
    lines += _does(view["does"]) if view["does"] else []
    if not view["n_fired"]:
        return "\n".join(line for line in [*lines, "   never fires"] if line)
    lines += [
        f"   fires {view['n_fired']:,} times, on 1 in {1 / view['density']:,.0f} tokens; "
        f"up to {view['max_value']:.3g}, on average {view['mean_value']:.3g}",
        _listed("fires on", [f"{_shown(e['text'])} {e['rate']:.0%}" for e in view["triggers"]]),
        _listed("followed by", [f"{_shown(e['text'])} {e['lift']:.3g}×" for e in view["followers"]]),
        _listed("promotes", [_shown(e["text"]) for e in view["promoted"]]),
        _listed("suppresses", [_shown(e["text"]) for e in view["suppressed"]]),
        _listed("fires with", [f"{e['latent']} {e['rate']:.0%}" for e in view["cofiring"]]),
        _listed("points like", [f"{e['latent']} {e['cosine']:.2f}" for e in view["neighbours"]]),
    ]
    for kind in SHOWN:
        for example in view["examples"]:
            if example["kind"] == kind:
                before, token, after = _parts(example["tokens"], example["position"] - example["start"])
                lines.append(f"{example['stratum']:>9} {example['value']:>6.3g}  {before}«{token}»{after}")
    return "\n".join(line for line in lines if line)


def _on_windows(rows: Sequence[Mapping[str, Any]]) -> str:
    """Detection, against each kind of silent windows."""
    scores = [
        f"{row['balanced_accuracy']:.2f} {row['negatives'].replace('_', ' ')}"
        for row in rows
        if row["task"] == "detection" and row["balanced_accuracy"] is not None
    ]
    return _listed("detection", scores)


def _language_model(row: Mapping[str, Any] | None) -> list[str]:
    """What it says of the latent, if it was asked."""
    if row is None:
        return []
    said = _shown(row["text"]) if row["text"] else row["status"]
    return [_listed("model says", [said + (" (the rule's words)" if row["source"] == "rule" else "")])]


def _does(record: Mapping[str, Any]) -> list[str]:
    """What the latent does to the output, and how far that was tested."""
    if record["text"] is None:
        return [f"   {DOES_NOTES[record['status']]}"] if record["status"] in DOES_NOTES else []
    lines = [f"   {_visible(record['text'])}"]
    for name, words in (("removed", "taken away where it fires"), ("added", "added where it is silent")):
        effect = record[name]
        if effect:
            low, high = effect["low"], effect["high"]
            interval = "" if low is None else f" ({low:.2f} to {high:.2f})"
            nulls = ", ".join(
                f"{null} {effect[key]:.2f}"
                for key, null in (("other_label", "another's label"), ("chance", "random directions"))
                if effect[key] is not None
            )
            lines.append(f"      {words}: {effect['nats']:.2f} nats{interval}{nulls and '; ' + nulls}")
    return lines


def _parts(tokens: Sequence[str], at: int) -> tuple[str, str, str]:
    """What is before a token with the space that it begins with, the token, and what is after it, on one line."""
    before, token = "".join(tokens[:at]), tokens[at]
    space = token[: len(token) - len(token.lstrip(" "))]
    return _visible(before + space), _visible(token[len(space) :]), _visible("".join(tokens[at + 1 :]))


def _listed(name: str, entries: Sequence[str]) -> str:
    return f"   {name + ':':<13}{', '.join(entries[:N_LISTED])}" if entries else ""


def _shown(text: str) -> str:
    return f"“{_visible(text)}”"


def _visible(text: str) -> str:
    """On one line, and nothing that a terminal would obey."""
    return "".join("⏎" if c == "\n" else c if c.isprintable() else "·" for c in text)
