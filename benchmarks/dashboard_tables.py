"""Results of `benchmarks.dashboards` → its section of docs/benchmarks.md."""

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.dashboards import DELPHI, SAEDASHBOARD, Cost, alone, continued, cost, difference
from benchmarks.frameworks import OURS
from benchmarks.markdown import table
from benchmarks.peers.saedashboard import BATCH

ABOUT = """## Dashboards beside SAEDashboard and delphi

From tokens, a network and a dictionary to what is shown of each latent: the same for all, one process each, imports and
loading left out, the network in float32. Ours makes activations, codes and the index on disk. SAEDashboard
(`NeuronpediaRunner`, its defaults) makes JSON, 128 latents at a time, and goes through all tokens for each such batch:
**two of its batches were measured, the others are taken to last as long as the second**. delphi's cache keeps firings
only, so its rows stand under ours without the index. Where numbers of tokens are in brackets, a peer was measured on
those and is **continued along the line through them**, or in proportion where that is less. ≈ stands before all that is
so computed. CPU seconds are those in which cores were busy.
"""
COLUMNS = (
    *("", "tokens", "measured", "seconds", "CPU seconds", "tokens/s", "sae-atlas is", "by CPU seconds"),
    "peak memory",
)


def section(figures: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    """A table of each case, and what it is made of.

    Args:
        origins: what is said under a case's table.
    """
    lines = [ABOUT]
    for name, case in sorted(figures["cases"].items(), key=lambda item: item[1]["n_latents"]):
        lines += [
            f"### {name}, {_about(case)}\n",
            *table(COLUMNS, _rows(case)),
            "",
            *(f"- {part}" for part in _parts(case)),
            "",
            origins[name],
        ]
    return "\n".join(lines)


def _about(case: Mapping[str, Any]) -> str:
    whose = (
        "the embedded network and dictionary"
        if case["is_trained"]
        else f"first weights; a network of one layer, {case['d_in']} wide, random weights, tokens by Zipf's law"
    )
    return f"k = {case['k']}, contexts of {case['context']}: {whose}"


def _rows(case: Mapping[str, Any]) -> Iterator[list[str]]:
    n_latents, measured = case["n_latents"], case["measured"]
    for tokens in sorted(map(int, measured[OURS])):
        ours = measured[OURS][str(tokens)]
        for peer, name, stages in (
            (SAEDASHBOARD, OURS, ()),
            (DELPHI, f"{OURS}, without the index", ("activations", "codes")),
        ):
            own = cost(OURS, ours, n_latents, stages)
            yield _row(name, tokens, "all", own, own)
            if peer in measured:
                yield _row(peer, tokens, *_peer(peer, measured[peer], n_latents, tokens), own)


def _peer(peer: str, records: Mapping[str, Any], n_latents: int, tokens: int) -> tuple[str, Cost]:
    """What was measured of it, and what the job takes it."""
    costs = {int(n): cost(peer, record, n_latents) for n, record in records.items()}
    n_batches, n_measured = -(-n_latents // BATCH), min(len(record["stages"]) for record in records.values())
    share = f"{n_measured} of {n_batches} batches" if peer == SAEDASHBOARD else "all"
    if tokens in costs:
        return share, costs[tokens]
    return f"{share} ({' and '.join(f'{n:,}' for n in sorted(costs))} tokens)", continued(costs, tokens)


def _row(name: str, tokens: int, share: str, found: Cost, ours: Cost) -> list[str]:
    about, about_memory = "" if found.is_measured else "≈ ", "" if "(" not in share else "≈ "
    return [
        *(name, f"{tokens:,}", share),
        *(f"{about}{each:,.0f}" for each in (found.seconds, found.cpu_seconds, tokens / found.seconds)),
        *(f"{about}{_times(each)}" for each in (found.seconds / ours.seconds, found.cpu_seconds / ours.cpu_seconds)),
        f"{about_memory}{found.megabytes:,.0f} MB",
    ]


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}×" if ratio >= 10 else f"{ratio:.1f}×"


def _parts(case: Mapping[str, Any]) -> Iterator[str]:
    """Sentences about the stages, for the most tokens that each was measured on."""
    measured = case["measured"]
    tokens = max(map(int, measured[OURS]))
    ours = measured[OURS][str(tokens)]
    stages = ours["stages"]
    share, busy_share = (
        f"{(stages['codes'][kind] + stages['index'][kind]) / alone(ours, tokens, kind):.2f}"
        for kind in ("seconds", "cpu_seconds")
    )
    yield (
        f"sae-atlas on {tokens:,} tokens: activations {_seconds(stages['activations'])}, codes "
        f"{_seconds(stages['codes'])}, index {_seconds(stages['index'])}. Encoding the rows and keeping nothing takes "
        f"{alone(ours, tokens):,.0f} s; codes and index together {share} times that ({busy_share} by CPU seconds)."
    )
    if SAEDASHBOARD in measured:
        most = max(measured[SAEDASHBOARD], key=int)
        first, *others = measured[SAEDASHBOARD][most]["stages"].values()
        if others:
            yield (
                f"SAEDashboard on {int(most):,} tokens: the first batch, with the network's forward passes, whose "
                f"activations it writes to disk, {_seconds(first)}; another, which reads them, {_seconds(others[0])}."
            )
    if DELPHI in measured:
        few, many = sorted(measured[DELPHI], key=int)
        grown = measured[DELPHI][many]["peak_megabytes"] - measured[DELPHI][few]["peak_megabytes"]
        yield f"delphi's cache grew by {grown:,.0f} MB from {int(few):,} to {int(many):,} tokens."
    peers = [name for name in (SAEDASHBOARD, DELPHI) if name in measured]
    if peers:
        said = ", ".join(f"{name} {difference(measured, name):.1%}" for name in peers)
        yield f"All speak of the same latents: how often they fire differs from ours by (median, relative) {said}."


def _seconds(stage: Mapping[str, float]) -> str:
    return f"{stage['seconds']:,.0f} s"
