"""One run: one frozen description → nine boxes in one folder.

    tokens → activations → dictionary → evaluation
                                      → codes → index   ┐
                                              → labels  ┼→ atlas
                                              → effects ┘

Each box is built by one function from the boxes before it, skipped if its inputs have not
changed, resumed if it was killed. `summary.json` gathers the run's figures.
"""

import logging
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sae.config import to_json
from sae.errors import ConfigError, DataError
from sae.files import read_json, write_json
from sae.run_config import RunConfig
from sae.stage import Box, stages

if TYPE_CHECKING:
    from analysis.splits import View
    from sae.model import Subject
    from sae.store import ActivationStore
    from sae.tokens import TokenStore

log = logging.getLogger(__name__)
V = TypeVar("V", bound="View")
VERSIONS = {
    "tokens": 1,
    "activations": 2,
    "dictionary": 9,
    "evaluation": 3,
    "codes": 2,
    "index": 2,
    "labels": 4,
    "effects": 1,
    "atlas": 1,
}
"""The boxes of a run, in order, and the version of the code behind each: raised by hand when it gives other
results from the same inputs, so that boxes made before are made again."""
HOW = ("tracker", "checkpoint_seconds", "divide")
"""Fields of `train` that do not say what is learnt: a run goes on, or is done, with others too."""
FIGURES = (
    *("n_rows", "fvu", "pca_fvu", "explained_variance", "explained_variance_legacy", "normalised_mse"),
    *("l0", "dead_fraction", "dense_fraction_1pct", "dense_fraction_10pct", "cosine", "l2_ratio", "relative_bias"),
    *("ce", "ce_recovered", "ce_recovered_zero", "kl", "kl_recovered"),
)
"""What the summary tells of an evaluation."""


@dataclass
class Run:
    """The boxes of one run, each built at most once when it is asked for."""

    cfg: RunConfig
    out: Path
    base: "Run | None" = None
    """The run whose network, tokens and activations this one takes, being of its sweep."""
    seconds: dict[str, float] = field(default_factory=dict)

    def _stage(
        self, name: str, inputs: Mapping[str, Any], build: Callable[[Path], Mapping[str, Any]], is_shared: bool = False
    ) -> Box:
        return self.stage(name, {**inputs, "version": VERSIONS[name]}, build, is_shared)

    def stage(
        self, name: str, inputs: Mapping[str, Any], build: Callable[[Path], Mapping[str, Any]], is_shared: bool = False
    ) -> Box:
        """A box of this run's folder, one that the run is finished without too."""
        return _stages([self], name, [inputs], lambda paths: [build(paths[0])], is_shared)[0]

    @cached_property
    def subject(self) -> "Subject":
        from sae.model import load

        return load(self.cfg.model) if self.base is None else self.base.subject

    @cached_property
    def tokens(self) -> Box:
        from sae import model, text, tokens
        from sae.sites import resolve

        if self.base is not None:
            return self.base.tokens
        inputs = {
            "data": to_json(self.cfg.data),
            "text": text.source_digest(self.cfg.data),
            "model": self.subject.digest,
        }
        for site in self.cfg.harvest.sites:  # a wrong name is told before any work
            resolve(self.subject.model, site)
        limit = model.max_context(self.subject.model)
        if limit is not None and self.cfg.data.context > limit:
            raise ConfigError(f"data.context = {self.cfg.data.context}: must be at most the model's {limit} positions")
        cfg = self.cfg.data
        box = self._stage(
            "tokens", inputs, lambda out: tokens.build(text.documents(cfg), self.subject.tokenizer, cfg, out)
        )
        counts = box.facts["n_documents"]
        missing = [name for name, count in counts.items() if count == 0]
        if missing:
            raise DataError(
                f"data: none of the {sum(counts.values())} documents is in the split {missing[0]!r}; give more "
                "documents, larger shares in data.held_out, a data.split_column, or, for one long text, "
                "data.txt_documents=paragraph"
            )
        return box

    @cached_property
    def token_store(self) -> "TokenStore":
        from sae.tokens import TokenStore

        return TokenStore(self.tokens)

    @cached_property
    def activations(self) -> Box:
        from sae.harvest import harvest

        if self.base is not None:
            return self.base.activations
        cfg, subject = self.cfg.harvest, self.subject
        inputs = {
            "tokens": self.tokens.digest,
            "model": subject.digest,
            "name": subject.name,
            "precision": subject.precision,
            "harvest": to_json(cfg),
        }
        store = self.token_store
        return self._stage(
            "activations",
            inputs,
            lambda out: harvest(subject.model, cfg.sites, store, out, cfg, subject.autocast),
            is_shared=True,
        )

    @cached_property
    def activation_store(self) -> "ActivationStore":
        from sae.harvest import ComputedSplit
        from sae.store import ActivationStore

        if self.base is not None:
            return self.base.activation_store
        subject, tokens, cfg = self.subject, self.token_store, self.cfg.harvest

        def compute(sites: Sequence[str], split: str) -> ComputedSplit:
            return ComputedSplit(subject.model, sites, tokens.split(split), cfg, subject.autocast)

        return ActivationStore(self.activations, compute)

    @cached_property
    def dictionary(self) -> Box:
        return dictionaries([self])[0]

    @cached_property
    def evaluation(self) -> Box:
        cfg = self.cfg.analysis.index
        inputs = {"dictionary": self.dictionary.digest, "tokens": cfg.evaluation_tokens}
        return self._stage("evaluation", inputs, self._evaluate)

    def _evaluate(self, out: Path) -> dict[str, Any]:
        """Held-out figures of the dictionary on the test documents, and its linear rival's."""
        import torch

        from sae import hub
        from sae.metrics import density_histogram
        from train import evaluate

        store, places = self.activation_store, self.cfg.places
        dictionary = hub.load(self.dictionary.path).to(self.subject.device)
        test, train = store.pairs(places, "test"), store.pairs(places, "train")
        means = {site: store.mean(site) for site in places.written}
        centre = torch.cat(list(means.values()))
        result = evaluate.reconstruct(dictionary, test, self.subject.device, centre=centre)
        figures: dict[str, Any] = result.result()
        figures["pca_fvu"] = evaluate.pca_fvu(train, test, max(1, round(figures["l0"])))
        figures |= evaluate.splice(
            self.subject,
            dictionary,
            places,
            means,
            self.token_store.split("test"),
            store.skip_positions,
            self.cfg.analysis.index.evaluation_tokens,
            self.cfg.harvest.batch_tokens,
        )
        density = density_histogram(result.counts, result.moments.n_rows)._asdict()
        write_json(out / "evaluation.json", {**figures, "density": density})
        return figures

    @cached_property
    def codes(self) -> Box:
        from analysis import encode
        from sae import hub

        cfg = self.cfg.analysis.index
        inputs = {"dictionary": self.dictionary.digest, "limits": [cfg.tokens, cfg.kept_tokens, cfg.label_tokens]}
        store, n_latents = self.activation_store, self.cfg.sae.n_latents
        return self._stage(
            "codes",
            inputs,
            lambda out: encode.build(
                hub.load(self.dictionary.path).to(self.subject.device),
                n_latents,
                store,
                self.cfg.places,
                self.token_store,
                cfg,
                out,
            ),
            is_shared=True,
        )

    @cached_property
    def index(self) -> Box:
        from analysis.codes import open_codes
        from analysis.index.build import build
        from analysis.splits import token_strings
        from analysis.summary import Summary
        from sae import hub
        from sae.sites import resolve, writes_residual

        cfg, codes = self.cfg.analysis.index, self.codes
        written = [resolve(self.subject.model, site) for site in self.cfg.places.written]
        is_residual = len(written) == 1 and writes_residual(self.subject.model, written[0])
        upstream = ("tokens", "kept_tokens", "label_tokens", "evaluation_tokens")
        inputs = {"codes": codes.digest, "index": {k: v for k, v in to_json(cfg).items() if k not in upstream}}
        return self._stage(
            "index",
            inputs,
            lambda out: build(
                open_codes(codes, "train"),
                Summary.load(codes.path / "summary.safetensors"),
                hub.load(self.dictionary.path).directions.detach(),
                self.subject.model if is_residual else None,
                self.token_store.split("train"),
                token_strings(self.subject.tokenizer),
                cfg,
                out,
            ),
        )

    @cached_property
    def labels(self) -> Box:
        cfg, codes = self.cfg.analysis.label, self.codes
        inputs = {"codes": codes.digest, "label": to_json(cfg)}
        return self._stage("labels", inputs, self._label)

    def _label(self, out: Path) -> Mapping[str, Any]:
        from analysis.label.fit import labels, vocabulary_of, write
        from analysis.label.kinds import embedding
        from analysis.splits import FitView, SelectView, TestView

        fit, select, test = self.view(FitView), self.view(SelectView), self.view(TestView)
        vocabulary = vocabulary_of(fit, embedding(self.subject.model))
        return write(labels(fit, select, test, self.cfg.analysis.label, vocabulary), out, vocabulary.kinds)

    @cached_property
    def effects(self) -> Box:
        inputs = {"codes": self.codes.digest, "effects": to_json(self.cfg.analysis.effects)}
        return self._stage("effects", inputs, self._intervene)

    def _intervene(self, out: Path) -> Mapping[str, Any]:
        from analysis.effects.fit import effects
        from analysis.effects.tables import write
        from analysis.splits import FitView, SelectView, TestView
        from sae import hub

        fit, select, test = self.view(FitView), self.view(SelectView), self.view(TestView)
        dictionary = hub.load(self.dictionary.path).to(self.subject.device)
        written, cfg = self.cfg.places.written, self.cfg.analysis.effects
        records, why_not = effects(fit, select, test, self.subject, dictionary, written, cfg)
        if why_not is not None:
            log.warning(f"effects: not available because {why_not}")
        return write(records, out, why_not)

    def view(self, kind: type[V]) -> V:
        """The split that `kind` stands for, with the codes of its tokens."""
        from analysis.codes import open_codes
        from analysis.splits import token_strings

        name = kind.__name__.removesuffix("View").lower()
        codes, strings = open_codes(self.codes, name), token_strings(self.subject.tokenizer)
        skip = self.codes.facts["skip_positions"]
        return kind.of(self.token_store.split(name), codes.load(), strings, skip, codes.positions())

    @cached_property
    def atlas(self) -> Box:
        from analysis.export.html import assets_digest

        boxes = {name: getattr(self, name).digest for name in ("index", "labels", "effects", "evaluation")}
        inputs = {**boxes, "assets": assets_digest()}
        return self._stage("atlas", inputs, self._export)

    def _export(self, out: Path) -> Mapping[str, Any]:
        import pyarrow.parquet as pq

        from analysis.export import html
        from analysis.export.atlas import AtlasInput
        from analysis.splits import token_strings

        atlas = AtlasInput(
            model=self.cfg.model.name,
            site=", ".join(self.cfg.places.written),
            architecture=self.cfg.sae_type,
            k=to_json(self.cfg.sae).get("k"),
            n_tokens=self.index.facts["n_tokens"],
            latents=pq.read_table(self.index.path / "latents.parquet"),
            examples=pq.read_table(self.index.path / "examples.parquet"),
            labels=pq.read_table(self.labels.path / "labels.parquet"),
            effects=pq.read_table(self.effects.path / "effects.parquet"),
            tokens=self.token_store,
            token_strings=token_strings(self.subject.tokenizer),
            summary=self.figures(),
            provenance=self._provenance(),
        )
        return html.export(atlas, out)

    def _provenance(self) -> dict[str, str]:
        lines = {"Model": self.subject.digest, "Dictionary": f"sha256:{self.dictionary.digest}"}
        if self.cfg.data.source == "embedded":
            lines["Text"] = "Wikipedia (CC BY-SA 4.0), King James Bible, Shakespeare, Austen (public domain)"
        return lines

    def figures(self) -> dict[str, Any]:
        """The figures of the run that do not depend on the machine's speed."""
        figures = {name: self.evaluation.facts[name] for name in FIGURES}
        return {**figures, **self.labels.facts, **self.effects.facts}

    def finish(self) -> dict[str, Any]:
        """Build whatever is missing, write `summary.json`, and return it."""
        from sae.team import current

        for name in VERSIONS:
            getattr(self, name)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        path = self.out / "summary.json"
        former = read_json(path)["peak_memory_bytes"] if path.exists() else 0
        summary = {**self.figures(), "seconds": self.seconds, "peak_memory_bytes": max(peak, former)}
        if current().is_main:
            write_json(path, summary)
        return summary


def dictionaries(runs: Sequence[Run]) -> list[Box]:
    """The dictionaries of runs that share their activations, learnt from one stream of batches."""
    from sae.model import resolve_precision
    from train.learner import Member
    from train.trainer import fit

    first = runs[0]
    facts = {"model": first.subject.name, "model_digest": first.subject.digest}
    members = {}
    for run in runs:
        out, name = run.out / "dictionary", run.out.name if run.base else ""
        members[out] = Member(run.cfg.places, run.cfg.sae, run.cfg.train, facts, out, name)
    inputs = [
        {
            "activations": run.activations.digest,
            "type": run.cfg.sae_type,
            "sae": to_json(run.cfg.sae),
            "train": {k: v for k, v in to_json(run.cfg.train).items() if k not in HOW}
            | {"precision": resolve_precision(run.cfg.train.precision, first.subject.device)},
            "seed": run.cfg.seed,
            "version": VERSIONS["dictionary"],
        }
        for run in runs
    ]
    store, logs = first.activation_store, (first.base or first).out / "logs"
    return _stages(
        runs,
        "dictionary",
        inputs,
        lambda paths: fit([members[path] for path in paths], store, first.cfg.seed, logs),
        is_shared=True,
    )


def _stages(
    runs: Sequence[Run],
    name: str,
    inputs: Sequence[Mapping[str, Any]],
    build: Callable[[Sequence[Path]], Sequence[Mapping[str, Any]]],
    is_shared: bool = False,
) -> list[Box]:
    """Build or skip a box of each run; the time of those that were built is kept beside them."""
    from sae.team import current

    started, built = time.monotonic(), []

    def timed(paths: Sequence[Path]) -> Sequence[Mapping[str, Any]]:
        built.extend(paths)
        return build(paths)

    boxes = stages({run.out / name: each for run, each in zip(runs, inputs, strict=True)}, timed, is_shared)
    for run in runs:
        times = run.out / "seconds.json"
        recorded = read_json(times) if times.exists() else {}
        if run.out / name in built and current().is_main:
            recorded[name] = round(time.monotonic() - started, 2)
            write_json(times, recorded)
        run.seconds[name] = recorded.get(name, 0.0)
    return boxes
