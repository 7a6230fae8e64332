"""What the atlas shows, as plain JSON values: an index of all latents, and their details in chunks.

Rows are latents in ascending order. The index holds what search, sorting and the first screen
need; a chunk holds everything else of `CHUNK` consecutive rows. Numbers are rounded to
`DIGITS` significant digits, and activations of an example are kept where they are not zero.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from analysis.export.order import STATUSES, exemplary, interesting_first
from sae.errors import StoreError
from sae.tokens import TokenSplit, TokenStore

CHUNK = 64
DIGITS = 3
N_SEARCH_TOKENS = 8
N_TRIGGERS = 10  # shown of a latent
SHOWN = ("top", "interval", "silent")
"""Kinds of examples that a page has."""
LATENT_COLUMNS = (
    *("latent", "n_fired", "density", "max_value", "mean_value", "histogram", "token_r2"),
    *("promoted_tokens", "promoted_logits", "suppressed_tokens", "suppressed_logits"),
    *("neighbours", "neighbour_cosines", "trigger_tokens", "trigger_counts", "trigger_rates"),
    *("next_tokens", "next_counts", "next_lifts", "cofiring", "cofiring_rates"),
)
EXAMPLE_COLUMNS = ("latent", "kind", "stratum", "rank", "split", "position", "value", "start", "stop", "values")
LABEL_COLUMNS = ("latent", "status")
SCORES = {
    **{name: ("scores", name) for name in ("precision", "recall", "f1", "auprc")},
    **{name: (name,) for name in ("f1_low", "f1_high", "decile_recall", "shuffled_f1", "beats_token")},
    **{name: (name,) for name in ("n_fit", "n_select", "n_test", "token_text", "other_latent")},
    **{f"{name}_f1": (name, "f1") for name in ("token", "token_set", "other")},
}
"""Where in `labels.parquet` each entry of the score card is; one that is missing, or null, is not shown."""
DOES = ("status", "text", "verb", "tokens", "kl", "other_latent", "removed", "added", "amount", "n_fit", "n_select")
"""What a page has of `effects.parquet`."""
SUMMARY = (
    *("l0", "fvu", "pca_fvu", "ce_recovered", "kl", "dead_fraction"),
    *("labelled_fraction", "beats_token_fraction", "median_f1", "median_token_f1"),
    *("does_fraction", "does_beats_nulls_fraction", "median_effect"),
)
"""Figures of the run that the first screen shows, where they are known."""


@dataclass(frozen=True, kw_only=True)
class AtlasInput:
    """Everything that a page shows, as the stages left it."""

    model: str
    site: str
    architecture: str
    k: int | None
    """Latents active at a token; none where the architecture does not fix it."""
    n_tokens: int
    """Tokens that the index was built from."""
    latents: pa.Table
    """`index/latents.parquet`, with `LATENT_COLUMNS`."""
    examples: pa.Table
    """`index/examples.parquet`, with `EXAMPLE_COLUMNS`."""
    labels: pa.Table
    """`labels/labels.parquet`, with `LABEL_COLUMNS` and as much of `family`, `text` and `SCORES` as there is."""
    effects: pa.Table | None = None
    """`effects/effects.parquet`, with `latent` and `DOES`; none where it was not measured what latents do."""
    tokens: TokenStore
    token_strings: Sequence[str]
    """The decoded text of each token id."""
    summary: Mapping[str, Any] = field(default_factory=dict)
    """Figures of the run: those of `SUMMARY` are shown, the rest is left alone."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    """Lines of the footer: what → which digest, licence or source."""


class Atlas:
    """The tables of an `AtlasInput`, joined by latent.

    Raises:
        StoreError: a table lacks a column.
    """

    def __init__(self, given: AtlasInput) -> None:
        _require(given.latents, LATENT_COLUMNS, "index/latents.parquet")
        _require(given.examples, EXAMPLE_COLUMNS, "index/examples.parquet")
        _require(given.labels, LABEL_COLUMNS, "labels/labels.parquet")
        self.given = given
        self.latents: list[dict[str, Any]] = given.latents.select(LATENT_COLUMNS).sort_by("latent").to_pylist()
        by_latent = {label["latent"]: label for label in given.labels.to_pylist()}
        self.labels = [_label(latent, by_latent.get(latent["latent"], {})) for latent in self.latents]
        self.does = _does(self.latents, given.effects)
        self.order = interesting_first(self.latents, self.labels)
        self._examples = _ordered(given.examples)
        owners = self._examples["latent"].to_numpy()
        ids = [latent["latent"] for latent in self.latents]
        self._bounds = np.searchsorted(owners, ids, "left"), np.searchsorted(owners, ids, "right")
        self._splits: dict[str, TokenSplit] = {}

    @property
    def n_chunks(self) -> int:
        return math.ceil(len(self.latents) / CHUNK)

    @property
    def n_examples(self) -> int:
        return self._examples.num_rows

    def index(self) -> dict[str, Any]:
        """What search, sorting and the first screen need."""
        given = self.given
        families = sorted({label["family"] for label in self.labels if label["family"]})
        return {
            "model": given.model,
            "site": given.site,
            "architecture": given.architecture,
            "k": given.k,
            "n_tokens": given.n_tokens,
            "summary": {name: rounded(given.summary.get(name)) for name in SUMMARY},
            "provenance": list(given.provenance.items()),
            "chunk": CHUNK,
            "tokens": list(given.token_strings),
            "statuses": STATUSES,
            "families": families,
            "columns": {
                **{
                    name: [rounded(latent[name]) for latent in self.latents]
                    for name in ("latent", "n_fired", "density", "max_value", "token_r2")
                },
                **{name: [label[name] for label in self.labels] for name in ("text", "f1", "token_f1", "auprc")},
                "does": [does.get("text") or "" for does in self.does],
                "status": [STATUSES.index(label["status"]) for label in self.labels],
                "family": [families.index(label["family"]) if label["family"] else -1 for label in self.labels],
                "triggers": [latent["trigger_tokens"][:N_SEARCH_TOKENS] for latent in self.latents],
            },
            "order": self.order,
            "exemplars": self._exemplars(),
        }

    def chunk(self, number: int) -> dict[str, Any]:
        """The details of rows `number * CHUNK` and on."""
        documents = _Documents()
        rows = range(number * CHUNK, min((number + 1) * CHUNK, len(self.latents)))
        return {"latents": [self._details(row, documents) for row in rows], "documents": documents.rows}

    def _details(self, row: int, documents: "_Documents") -> dict[str, Any]:
        latent = self.latents[row]
        begin, end = int(self._bounds[0][row]), int(self._bounds[1][row])
        names = self._examples["stratum"].slice(begin, end - begin).to_pylist()
        return {
            "latent": latent["latent"],
            "mean_value": rounded(latent["mean_value"]),
            "histogram": latent["histogram"],
            "promoted": [latent["promoted_tokens"], _rounded_all(latent["promoted_logits"])],
            "suppressed": [latent["suppressed_tokens"], _rounded_all(latent["suppressed_logits"])],
            "neighbours": [latent["neighbours"], _rounded_all(latent["neighbour_cosines"])],
            "triggers": [
                latent["trigger_tokens"][:N_TRIGGERS],
                latent["trigger_counts"][:N_TRIGGERS],
                _rounded_all(latent["trigger_rates"][:N_TRIGGERS]),
            ],
            "next": [latent["next_tokens"], latent["next_counts"], _rounded_all(latent["next_lifts"])],
            "cofiring": [latent["cofiring"], _rounded_all(latent["cofiring_rates"])],
            "scores": {name: self.labels[row][name] for name in SCORES},
            "does": self.does[row],
            "strata": [
                {"name": name, "n": names.count(name), **_range(name, latent["histogram"])}
                for name in dict.fromkeys(names)
            ],
            "examples": self._example_columns(begin, end, documents),
        }

    def _example_columns(self, begin: int, end: int, documents: "_Documents") -> dict[str, list]:
        """Examples `begin:end`, a list a column; `at` is the firing token's place in the window."""
        found: dict[str, list] = {
            name: [] for name in ("document", "position", "offset", "at", "value", "tokens", "where", "values")
        }
        for example in self._examples.slice(begin, end - begin).to_pylist():
            split = self._split(example["split"])
            position, start = example["position"], example["start"]
            document, offset = split.locate(np.array([position]))
            values = np.array(example["values"])
            where = np.flatnonzero(values)
            found["document"].append(documents.number(split, int(document[0])))
            found["position"].append(position)
            found["offset"].append(int(offset[0]))
            found["at"].append(position - start)
            found["value"].append(rounded(example["value"]))
            found["tokens"].append(split.tokens[start : example["stop"]].tolist())
            found["where"].append(where.tolist())
            found["values"].append(_rounded_all(values[where].tolist()))
        return found

    def _exemplars(self) -> list[dict[str, Any]]:
        """The latents of the first screen, each with its strongest example."""
        chosen = []
        for row in exemplary(self.order, self.labels, (self._bounds[1] > self._bounds[0]).tolist()):
            documents = _Documents()
            begin = int(self._bounds[0][row])
            examples = self._example_columns(begin, begin + 1, documents)
            chosen.append({"row": row, "examples": examples, "documents": documents.rows})
        return chosen

    def _split(self, name: str) -> TokenSplit:
        if name not in self._splits:
            self._splits[name] = self.given.tokens.split(name)
        return self._splits[name]


class _Documents:
    """Documents that examples come from, each named once: `[split, source, title, n_tokens]`."""

    def __init__(self) -> None:
        self.rows: list[list] = []
        self._numbers: dict[tuple[str, int], int] = {}

    def number(self, split: TokenSplit, document: int) -> int:
        key = (split.name, document)
        if key not in self._numbers:
            self._numbers[key] = len(self.rows)
            n_tokens = int(split.document_starts[document + 1] - split.document_starts[document])
            source, title = split.documents["source"][document], split.documents["title"][document]
            self.rows.append([split.name, source, title, n_tokens])
        return self._numbers[key]


def rounded(value: float | int | None) -> float | int | None:
    """A number with `DIGITS` significant digits (a whole number as it is); none for what is no number."""
    if value is None or isinstance(value, int):
        return value
    if not math.isfinite(value):
        return None
    short = float(f"{value:.{DIGITS}g}")
    return int(short) if short.is_integer() else short


def _rounded_all(values: Sequence[float | int | None]) -> list[float | int | None]:
    return [rounded(value) for value in values]


def _label(latent: Mapping[str, Any], label: Mapping[str, Any]) -> dict[str, Any]:
    unlabelled = "silent" if latent["n_fired"] == 0 else "unlabelled"
    return {
        "status": label.get("status") or unlabelled,
        "family": label.get("family") or "",
        "text": label.get("text") or "",
        **{name: _score(label, path) for name, path in SCORES.items()},
    }


def _does(latents: Sequence[Mapping[str, Any]], effects: pa.Table | None) -> list[dict[str, Any]]:
    """What each latent does; nothing where that is not known."""
    if effects is None:
        return [{} for _ in latents]
    _require(effects, ("latent", *DOES), "effects/effects.parquet")
    rows = {row.pop("latent"): row for row in effects.select(["latent", *DOES]).to_pylist()}
    return [_shortened(rows.get(latent["latent"], {})) for latent in latents]


def _shortened(record: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers rounded, at any depth."""
    return {
        name: _shortened(value) if isinstance(value, dict) else rounded(value) if isinstance(value, float) else value
        for name, value in record.items()
    }


def _score(label: Mapping[str, Any], path: Sequence[str]) -> Any:
    value: Any = label
    for name in path:
        value = value.get(name) if value is not None else None
    if isinstance(value, list):
        return _rounded_all(value)
    return value if isinstance(value, str) else rounded(value)


def _range(stratum: str, histogram: Sequence[int]) -> dict[str, Any]:
    """Of an interval such as `90-100%` of the maximum: its bounds and the share of firings in it."""
    match = re.fullmatch(r"(\d+)\s*[-–]\s*(\d+)\s*%", stratum)
    if not match:
        return {}
    low, high = int(match[1]) / 100, int(match[2]) / 100
    n_bins, total = len(histogram), sum(histogram)
    inside = sum(histogram[round(low * n_bins) : round(high * n_bins)])
    return {"low": low, "high": high, "share": rounded(inside / total) if total else 0}


def _ordered(examples: pa.Table) -> pa.Table:
    """Examples that are shown by latent, then `top` first, intervals from high to low, near misses, each by rank."""

    def place(stratum: str) -> tuple[int, float, str]:
        interval = _range(stratum, ())
        if stratum == "top":
            return 0, 0.0, stratum
        return (1, -interval["low"], stratum) if interval else (2, 0.0, stratum)

    examples = examples.filter(np.isin(examples["kind"].to_numpy(), SHOWN))
    names = sorted(set(examples["stratum"].to_pylist()), key=place)
    places = {name: number for number, name in enumerate(names)}
    order = pa.array([places[name] for name in examples["stratum"].to_pylist()], pa.int32())
    keyed = examples.select(EXAMPLE_COLUMNS).append_column("place", order)
    keys = [("latent", "ascending"), ("place", "ascending"), ("rank", "ascending")]
    return keyed.sort_by(keys).drop_columns("place").combine_chunks()


def _require(table: pa.Table, columns: Sequence[str], name: str) -> None:
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise StoreError(f"{name}: lacks {', '.join(missing)}; has {', '.join(table.column_names)}")
