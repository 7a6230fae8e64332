"""The section of `docs/benchmarks.md` on planted features."""

from collections.abc import Iterable, Mapping
from typing import Any

from scipy.stats import binomtest

from benchmarks.markdown import table


def section(figures: Mapping[str, Any]) -> str:
    """Labels that are right, by kind of rule, with and without noise, and of the network."""
    kinds, network = figures["kinds"], figures["network"]
    rows = [
        [kind, f"{own['clean']['n']}", *(_share(own[name]["n_right"], own[name]["n"]) for name in ("clean", "noisy"))]
        for kind, own in kinds.items()
        if own["is_rule"]
    ]
    every = {name: _sum(own[name] for own in kinds.values() if own["is_rule"]) for name in ("clean", "noisy")}
    shares = [f"**{right(own['n_right'], own['n'])}**" for own in every.values()]
    rows.append(["**all**", f"{every['clean']['n']}", *shares])
    nothing = _sum(own["noisy"] for own in kinds.values() if not own["is_rule"])
    found = right(network["n_right"], network["n_latents"])
    lines = [
        "## Labels of planted features\n",
        "Rules of kinds that one would expect a labeller to know, drawn at random from the training text and planted",
        "as latents in the embedded text. A label is right if it predicts the rule itself on test documents, F1 ≥ .95;",
        "noisy latents miss a tenth of the firings and have as many anywhere. The rules of this table were drawn with",
        f"a seed ({figures['seed']}) that was not looked at while the labeller was made. Intervals: Wilson's, 95 %.\n",
        *table(("kind of rule", "rules", "right, clean", "right, noisy"), rows),
        "",
        f"Of {nothing['n']} latents that fire for no reason (anywhere, in stretches, in some documents)",
        f"{right(nothing['n_right'], nothing['n'])} get no label, which is right.\n",
        f"A network whose {network['n_features']} features are such rules by construction, of the kinds that one can",
        "know reading forwards, went through the whole pipeline: harvest, dictionary, codes, labels. There",
        f"{network['n_latents']} latents have found a feature (F1 ≥ .95, of {network['n_found']} features); of their",
        f"labels {found} are right.\n",
    ]
    return "\n".join(lines)


def right(k: int, n: int) -> str:
    """A share with Wilson's interval."""
    bounds = binomtest(k, n).proportion_ci(method="wilson")
    return f"{k / n:.1%} ({bounds.low:.1%} to {bounds.high:.1%})"


def _share(k: int, n: int) -> str:
    return f"{k / n:.0%}"


def _sum(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    own = list(parts)
    return {name: sum(part[name] for part in own) for name in ("n", "n_right")}
