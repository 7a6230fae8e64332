"""Questions to a finished run: what a latent is, and which latents have to do with a token, a word or another latent.

    index = Index(Path("runs/embedded"))
    index.view(12)                    # all that is known of one latent
    index.by_token(" dog")            # latents by the token that they fire on
    index.search("king queen")        # labels by their words

What a question needs is read from the run's files, and tables of the size of the kept tokens or of the dictionary's
matrices are held from the first question that needs them.
"""

import sqlite3
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import safe_open

from analysis.codes import StoredCodes, open_codes
from analysis.index.tables import Table
from analysis.score import correlation, hits
from sae.errors import ConfigError
from sae.stage import open_box
from sae.tokens import TokenSplit, TokenStore, folder_of

MOST_PLACES = 4096  # occurrences of a token that are looked at, from all over the kept text
Hit = dict[str, Any]
"""A latent that answers a question, with its label and what it is told by."""


class Index:
    """The index, labels and codes of a run.

    Args:
        run: the folder of a run, or of a dictionary of its sweep.

    Raises:
        StoreError: the index or the labels are not finished.
    """

    def __init__(self, run: Path) -> None:
        self.run = run.resolve()
        labels = open_box(self.run / "labels")
        self._index, self._labels = open_box(self.run / "index").path, labels.path
        self._windows = self._of_labels("windows", labels.digest)
        self._llm_labels = self._of_labels("llm_labels", labels.digest)
        self._latents = Table(self._index / "latents.parquet")
        self._examples = Table(self._index / "examples.parquet")
        self._label_rows = Table(self._labels / "labels.parquet")
        self._effects = self._of_codes("effects", labels.inputs.get("codes"))
        self._effect_rows = Table(self._effects / "effects.parquet") if self._effects else None
        tokens = pq.read_table(self._index / "tokens.parquet")
        self.strings: list[str] = tokens["text"].to_pylist()
        self._splits: dict[str, TokenSplit] = {}

    @property
    def n_latents(self) -> int:
        return self._latents.n_rows

    # --- one latent ---

    def view(self, latent: int) -> dict[str, Any]:
        """All that is known of a latent, as JSON values: its row of the index, with the text of tokens and the labels
        of companions, its label's record, its examples with their tokens; where they have been made, `does`, the record
        of what it does to the output, `windows`, the label's scores on windows, and `llm`, a language model's label.

        Raises:
            ConfigError: there is no such latent.
        """
        self._check(latent)
        row = self._latents.rows(latent)[0]
        for name, columns in _LISTS.items():
            lists = {short: row.pop(column) for short, column in columns.items()}
            row[name] = [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]
            for entry in row[name]:
                if "token" in entry:
                    entry["text"] = self.strings[entry["token"]]
                else:
                    entry["label"] = self._texts[entry["latent"]]
        examples = [{**example, **self._text(example)} for example in self._examples.rows(latent)]
        windows = self._windows.rows(latent) if self._windows else []
        llm = self._llm_labels.rows(latent) if self._llm_labels else []
        label = self._label_rows.rows(latent)[0]
        does = self._effect_rows.rows(latent)[0] if self._effect_rows else None
        asked = {"windows": windows, "llm": llm[0] if llm else None}
        return {**row, "label": label, "does": does, **asked, "examples": examples}

    def _of_codes(self, name: str, digest: str | None) -> Path | None:
        """The folder of a box that may be missing, if it is finished and of these codes."""
        if not (self.run / name / "manifest.json").exists():
            return None
        box = open_box(self.run / name)
        return box.path if box.inputs.get("codes") == digest else None

    def _of_labels(self, name: str, digest: str) -> Table | None:
        """The table of a box that is made on demand, if it has been, and of these labels."""
        if not (self.run / name / "manifest.json").exists():
            return None
        box = open_box(self.run / name)
        return Table(box.path / f"{name}.parquet") if box.inputs["labels"] == digest else None

    def _text(self, example: Mapping[str, Any]) -> dict[str, Any]:
        split = self._split(example["split"])
        document, offset = split.locate(np.array([example["position"]]))
        ids = split.tokens[example["start"] : example["stop"]].tolist()
        names = {name: column[int(document[0])] for name, column in split.documents.items()}
        return {"document": {**names, "offset": int(offset[0])}, "tokens": [self.strings[token] for token in ids]}

    def _split(self, name: str) -> TokenSplit:
        if name not in self._splits:
            self._splits[name] = self._store.split(name)
        return self._splits[name]

    def _check(self, *latents: int) -> None:
        for latent in latents:
            if not 0 <= latent < self.n_latents:
                raise ConfigError(f"latent {latent}: must be from 0 to {self.n_latents - 1}")

    # --- latents by what they do ---

    def by_token(self, text: str, k: int = 20) -> list[Hit]:
        """The latents that say most of a token: by F1 of "fires on it" over the kept tokens, of which up to 4,096 are
        looked at, from all over. `rate` is the share of its occurrences on which the latent fires, `share` that of the
        latent's firings that are on it.

        Raises:
            ConfigError: no token has this text.
        """
        split, positions = self._split("train"), self._kept
        where = positions[split.tokens[positions] == self.token(text)]
        if len(where) == 0:
            return []
        looked = where[np.linspace(0, len(where) - 1, min(len(where), MOST_PLACES)).astype(np.int64)]
        _, latents = self.codes.latents_at(looked)
        rates = np.bincount(latents, minlength=self.n_latents) / len(looked)
        counts = np.minimum(rates * len(where), self._counts)  # of a sample it is not exact
        f1 = 2 * counts / (len(where) + self._counts)
        best = _best(f1, k)
        shares = counts / np.maximum(self._counts, 1)
        return [self._hit(i, f1=float(f1[i]), rate=float(rates[i]), share=float(shares[i])) for i in best]

    def by_next_token(self, text: str, k: int = 20) -> list[Hit]:
        """The latents whose direction promotes a token most, among those that each promotes most; `lift` says how
        much more often it does follow, where that is known.

        Raises:
            ConfigError: no token has this text, or the latents write no logits.
        """
        token = self.token(text)
        if not len(self._latents.columns("promoted_tokens")["promoted_tokens"].combine_chunks().values):
            raise ConfigError("the latents of this run do not write into the residual stream, and promote no tokens")
        logits = self._listed("promoted_tokens", "promoted_logits", token)
        lifts = self._listed("next_tokens", "next_lifts", token)
        return [self._hit(i, logit=float(logits[i]), lift=float(lifts[i]) or None) for i in _best(logits, k)]

    def _listed(self, tokens: str, values: str, token: int) -> np.ndarray:
        """What each latent's list has for a token; 0 where it is not on it."""
        table = self._latents.columns(tokens, values)
        lists, numbers = (table[name].combine_chunks() for name in (tokens, values))
        owners = np.repeat(np.arange(len(lists)), np.diff(lists.offsets.to_numpy()))
        found = np.flatnonzero(lists.values.to_numpy() == token)
        result = np.zeros(len(lists))
        result[owners[found]] = numbers.values.to_numpy()[found]
        return result

    def search(self, words: str, k: int = 20) -> list[Hit]:
        """The labels that have all of some words, in any order; a word may end in `*`. The most telling first.

        Raises:
            ConfigError: nothing is asked for.
        """
        asked = [word for word in "".join(c if c.isalnum() or c == "*" else " " for c in words).split() if word != "*"]
        if not asked:
            raise ConfigError(f"words {words!r}: must have a letter or a digit")
        query = " ".join(f'"{word.rstrip("*")}"' + "*" * word.endswith("*") for word in asked)
        found = self._words.execute(
            "select rowid from labels where labels match ? order by rank, rowid limit ?", (query, k)
        )
        return [self._hit(latent) for (latent,) in found.fetchall()]

    def nearest(self, latent: int, by: str = "decoder", k: int = 20) -> list[Hit]:
        """The latents whose decoder or encoder directions point the same way, by cosine.

        Raises:
            ConfigError: there is no such latent, or no such matrix.
        """
        self._check(latent)
        cosines = self._unit(by) @ self._unit(by)[latent]
        cosines[latent] = -np.inf
        order = np.argsort(-cosines, kind="stable")[: min(k, self.n_latents - 1)]
        return [self._hit(i, cosine=float(cosines[i])) for i in order.tolist()]

    def _unit(self, by: str) -> np.ndarray:
        names = {"decoder": "W_dec", "encoder": "W_enc"}
        if by not in names:
            raise ConfigError(f"by {by!r}: must be decoder or encoder")
        if by not in self._directions:
            with safe_open(
                open_box(self.run / "dictionary").path / "dictionary.safetensors", framework="numpy"
            ) as file:
                if names[by] not in file.keys():  # noqa: SIM118 - is no mapping
                    raise ConfigError(f"by {by!r}: this dictionary has no one matrix {names[by]}")
                matrix = file.get_tensor(names[by])
            self._directions[by] = matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)
        return self._directions[by]

    def overlap(self, latent: int, other: int) -> dict[str, Any]:
        """How far two latents fire on the same of the kept tokens.

        Raises:
            ConfigError: there is no such latent.
        """
        self._check(latent, other)
        (at, values), (at_other, others) = self.codes.of(latent), self.codes.of(other)
        n, n_both = len(self._kept), int(hits(at, at_other).sum())
        one, two, together = (count / n for count in (len(at), len(at_other), n_both))
        npmi = float(np.log(together / (one * two)) / -np.log(together)) if 0 < together < 1 else None
        return {
            "n_tokens": n,
            "n_fired": len(at),
            "n_fired_other": len(at_other),
            "n_both": n_both,
            "jaccard": n_both / max(1, len(at) + len(at_other) - n_both),
            "npmi": npmi,
            "correlation": correlation(at, values, at_other, others, n),
        }

    def sql(self, query: str) -> pa.Table:
        """What a query in DuckDB's SQL gives, of the tables `latents`, `examples`, `labels`, `effects` and `tokens`.

        Raises:
            ConfigError: DuckDB is not installed, or does not understand the query.
        """
        try:
            import duckdb
        except ImportError:
            raise ConfigError("SQL needs DuckDB: pip install 'sae-atlas[query]'") from None
        boxes = {"latents": self._index, "examples": self._index, "tokens": self._index, "labels": self._labels}
        if self._effects:
            boxes["effects"] = self._effects
        with duckdb.connect() as connection:
            for name, box in boxes.items():
                connection.read_parquet(str(box / f"{name}.parquet")).create_view(name)
            try:
                found = connection.sql(query)
            except duckdb.Error as error:
                raise ConfigError(f"sql: {str(error).splitlines()[0]}") from None
            if found is None:
                raise ConfigError(f"sql: {query!r} gives no table; ask with select")
            return found.to_arrow_table()

    def token(self, text: str) -> int:
        """The id of the token with this text, with its leading space if it has one; of several the lowest.

        Raises:
            ConfigError: there is none.
        """
        if text not in self._ids:
            near = [
                other for other in (f" {text}", text.strip(), text.lower(), text.capitalize()) if other in self._ids
            ]
            hint = f"; did you mean {near[0]!r}?" if near else "; longer words are several tokens"
            raise ConfigError(f"token {text!r}: is none of this model's{hint}")
        return self._ids[text]

    def _hit(self, latent: int, **told_by: float | None) -> Hit:
        return {"latent": latent, **told_by, "label": self._texts[latent]}

    # --- what is held ---

    @cached_property
    def codes(self) -> StoredCodes:
        """Of the train split."""
        return open_codes(open_box(self.run / "codes"), "train")

    @cached_property
    def _kept(self) -> np.ndarray:
        return self.codes.positions()

    @cached_property
    def _counts(self) -> np.ndarray:
        return self.codes.counts()

    @cached_property
    def _store(self) -> TokenStore:
        return TokenStore(open_box(folder_of(self.run)))

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {text: token for token, text in reversed(list(enumerate(self.strings)))}

    @cached_property
    def _texts(self) -> list[str | None]:
        return self._label_rows.columns("text")["text"].to_pylist()

    @cached_property
    def _directions(self) -> dict[str, np.ndarray]:
        return {}

    @cached_property
    def _words(self) -> sqlite3.Connection:
        connection = sqlite3.connect(":memory:", check_same_thread=False)
        connection.execute("create virtual table labels using fts5(text, tokenize='porter unicode61')")
        rows = ((latent, text) for latent, text in enumerate(self._texts) if text)
        connection.executemany("insert into labels(rowid, text) values (?, ?)", rows)
        return connection


_LISTS = {
    "triggers": {
        "token": "trigger_tokens",
        "count": "trigger_counts",
        "rate": "trigger_rates",
        "mass": "trigger_masses",
    },
    "followers": {"token": "next_tokens", "count": "next_counts", "lift": "next_lifts"},
    "promoted": {"token": "promoted_tokens", "logit": "promoted_logits"},
    "suppressed": {"token": "suppressed_tokens", "logit": "suppressed_logits"},
    "cofiring": {"latent": "cofiring", "rate": "cofiring_rates", "lift": "cofiring_lifts"},
    "neighbours": {"latent": "neighbours", "cosine": "neighbour_cosines"},
}
"""Lists of a latent's row that belong together, and what each is called in its view."""


def _best(merit: np.ndarray, k: int) -> Sequence[int]:
    """The k of greatest merit, > 0; of equals the lower."""
    order = np.argsort(-merit, kind="stable")[:k]
    return order[merit[order] > 0].tolist()
