"""`sae eval`: all that is known of how good a dictionary is, as one box.

    eval/eval.json            figures with intervals, under SAEBench's names (its `core` evaluation)
    eval/sparse_probing.json  what a few latents say of labels, beside their rivals
    eval/absorption.json      how far latents of words absorb the first letter, where the network knows it
    eval/latents.parquet      density and cosines of each latent
    eval/eval.html            the same as a page

The run's own dictionary, or one from elsewhere on the run's network, text and sites (`evals/<name>`). This file, like
`sae.run`, sees all three packages and imports inside its functions. Its parts are written down as they are finished, so
an evaluation that was killed goes on after the last of them.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae.config import to_json
from sae.errors import ConfigError, StoreError
from sae.files import digest_json, publish, read_json, sha256_file, write_json
from sae.run import Run
from sae.stage import SCRATCH, Box

if TYPE_CHECKING:
    import numpy as np

    from analysis.probing.asked import Asked
    from analysis.quality.sample import Sample
    from sae.dictionary import Dictionary
    from sae.store import Pairs

log = logging.getLogger(__name__)
VERSION = 2
"""Of the code behind the box, see `sae.run.VERSIONS`."""
HEADLINES = {
    "fvu": ("reconstruction_quality", "fvu"),
    "l0": ("sparsity", "l0"),
    "ce_recovered": ("model_performance_preservation", "ce_loss_score_mean_ablation"),
    "ce_recovered_zero": ("model_performance_preservation", "ce_loss_score"),
    "kl": ("model_behavior_preservation", "kl_div_with_sae"),
}
"""Facts of the box, by the name that the rest of a run gives them."""


def evaluate(run: Run, given: Path | None = None) -> Box:
    """The evaluation of the run's dictionary, or of the one in the folder `given`.

    Raises:
        ConfigError: that one does not fit the sites of the run.
        DataError: a file of labelled texts is missing or wrong.
        StoreError, FormatError: there is none, or as `sae.hub.load`.
    """
    from analysis.export.evaluation import assets_digest
    from analysis.probing import texts
    from sae import hub

    cfg = run.cfg.analysis.eval
    for file in cfg.probe_files:  # a mistake is told before any work
        texts.read(Path(file))
    folder = run.dictionary.path if given is None else hub.find(given)
    if folder is None:
        raise StoreError(
            f"--dictionary {given}: holds no {hub.JSON}; another package's becomes ours by: sae convert {given} "
            "--to sae --out DIR"
        )
    if given is None:
        digest, name = run.dictionary.digest, "eval"
    else:
        digest = digest_json({file: sha256_file(folder / file) for file in (hub.JSON, hub.TENSORS)})
        name = f"evals/{folder.resolve().name}-{digest[:8]}"
    evaluation = Evaluation(run, folder)
    if given is not None:
        _check_fits(evaluation.dictionary, run, folder)
    inputs = {
        "dictionary": digest,
        "activations": run.activations.digest,
        "places": to_json(run.cfg.places),
        "eval": to_json(cfg),
        "files": {file: sha256_file(Path(file)) for file in cfg.probe_files},
        "assets": assets_digest(),
        "version": VERSION,
    }
    return run.stage(name, inputs, evaluation.build)


@dataclass
class Evaluation:
    """The parts of one evaluation; each returns JSON."""

    run: Run
    folder: Path
    """Of the dictionary."""

    def build(self, out: Path) -> dict[str, Any]:
        """Write the box into `out`; returns its facts."""
        from analysis.export import evaluation as page
        from analysis.probing.record import record
        from analysis.quality import figures

        cfg = self.run.cfg.analysis.eval
        rows = _once(out, "rows", lambda: self.rows(out))
        network = _once(out, "network", self.network)
        probed = _once(out, "probing", lambda: record(self.asked.probe(), to_json(cfg)))
        absorbed = _once(out, "absorption", self.asked.absorption) if cfg.absorption else None
        found = {**network["figures"], **rows["figures"]}
        n_tokens = {
            "total_tokens_eval_reconstruction": network["sample"]["predictions"],
            "total_tokens_eval_sparsity_variance": rows["sample"]["rows"],
        }
        core = {
            "eval_type_id": "core",
            "eval_config": to_json(cfg),
            "eval_result_metrics": {**figures.values(found), "token_stats": n_tokens},
            "eval_result_intervals": figures.intervals(found),
            "eval_result_unstructured": rows["distributions"],
            "sae_cfg_dict": self.described(),
            "samples": {"rows": rows["sample"], "network": network["sample"]},
        }
        write_json(out / "eval.json", core)
        write_json(out / "sparse_probing.json", probed)
        if absorbed is not None:
            write_json(out / "absorption.json", absorbed)
        page.export(read_json(out / "eval.json"), probed, absorbed, out)
        metrics = core["eval_result_metrics"]
        return {
            **{name: metrics[category][figure] for name, (category, figure) in HEADLINES.items()},
            "dead_fraction": 1 - metrics["misc_metrics"]["frac_alive"],
            "tokens": rows["sample"]["tokens"],
            "tokens_wanted": rows["sample"]["tokens_wanted"],
            "spliced_tokens": network["sample"]["tokens"],
            "documents": rows["sample"]["documents"],
            "probing": probed["eval_result_metrics"]["sae"],
            **_told(absorbed),
        }

    @cached_property
    def dictionary(self) -> "Dictionary":
        from sae import hub

        return hub.load(self.folder).to(self.run.subject.device)

    @property
    def asked(self) -> "Asked":
        from analysis.probing.asked import Asked

        run, cfg = self.run, self.run.cfg
        return Asked(
            self.dictionary,
            run.subject,
            run.token_store,
            run.activation_store,
            *(cfg.places, cfg.data, cfg.harvest, cfg.analysis.eval),
        )

    def described(self) -> dict[str, Any]:
        """What is evaluated, and on what."""
        from sae import hub

        content = read_json(self.folder / hub.JSON)
        kept = {name: content.get(name) for name in ("type", "config", "shape", "facts")}
        return {**kept, "model": self.run.cfg.model.name, "places": to_json(self.run.cfg.places)}

    def pairs(self, split: str) -> "Pairs":
        return self.run.activation_store.pairs(self.run.cfg.places, split)

    def sample(self, split: str, n_tokens: int) -> "Sample":
        from analysis.quality.sample import sample

        return sample(self.run.token_store.split(split), self.run.activation_store.skip_positions, n_tokens)

    def rows(self, out: Path) -> dict[str, Any]:
        """What the dictionary makes of held-out rows, and how its directions lie."""
        import torch

        from analysis.quality import figures
        from analysis.quality.geometry import geometry, spread
        from analysis.score import resamples
        from sae.metrics import Reconstruction, density_histogram
        from train import evaluate

        cfg, store, places = self.run.cfg.analysis.eval, self.run.activation_store, self.run.cfg.places
        sample, device = self.sample("test", cfg.tokens), self.run.subject.device
        log.info("eval: %s", sample.describe())
        groups = torch.from_numpy(sample.groups[sample.split.kept_positions(store.skip_positions)])
        centre = torch.cat([store.mean(site) for site in places.written])
        found, test = Reconstruction(centre, sample.n_groups), self.pairs("test")
        evaluate.compare(self.dictionary, test, sample.bounds, found, device, groups)
        metrics = figures.of_rows(found, resamples(sample.n_groups, cfg.resamples, cfg.seed))
        k = max(1, round(metrics["sparsity"]["l0"].value or 0))
        pca_fvu = evaluate.pca_fvu(self.pairs("train"), test, k, bounds=sample.bounds)
        metrics["reconstruction_quality"]["pca_fvu"] = figures.Figure.of(pca_fvu)
        cosines, density = geometry(self.dictionary).columns(), found.density().numpy()
        means = {f"average_{name}": figures.Figure.of(own.mean()) for name, own in cosines.items()}
        metrics["misc_metrics"] = {**figures.of_densities(density), **means}
        _write_latents(out / "latents.parquet", density, cosines)
        return {
            "figures": figures.plain(metrics),
            "sample": {**sample.facts(), "rows": found.moments.n_rows, "resamples": cfg.resamples},
            "distributions": {
                "density": density_histogram(found.counts, found.moments.n_rows)._asdict(),
                **{name: spread(own) for name, own in cosines.items()},
            },
        }

    def network(self) -> dict[str, Any]:
        """What the network loses with the reconstruction in it."""
        import numpy as np
        import torch

        from analysis.quality import figures
        from analysis.score import resamples
        from train import evaluate

        cfg, store, places = self.run.cfg.analysis.eval, self.run.activation_store, self.run.cfg.places
        sample = self.sample("test", cfg.spliced_tokens)
        log.info("eval: in the network, %s", sample.describe())
        sums = evaluate.spliced(
            self.run.subject,
            self.dictionary,
            places,
            {site: store.mean(site) for site in places.written},
            sample.split,
            store.skip_positions,
            self.run.cfg.harvest.batch_tokens,
            np.arange(sample.split.n_contexts),
            torch.from_numpy(sample.groups),
        )
        draws = resamples(sample.n_groups, cfg.resamples, cfg.seed)
        return {
            "figures": figures.plain(figures.of_network(sums, draws)),
            "sample": {**sample.facts(), "predictions": int(sums.total()["tokens"]), "resamples": cfg.resamples},
        }


def _check_fits(dictionary: "Dictionary", run: Run, folder: Path) -> None:
    """See that a dictionary reads and writes as much as the run's sites give; say if it was made for others."""
    from sae import hub

    places, facts, shape = run.cfg.places, hub.facts(folder), dictionary.shape
    widths = {site: run.activation_store.stats(site).d for site in places.sites}
    sides = [("reads", shape.d_in, places.inputs)]
    if (shape.outputs is None) != (places.outputs is None):
        kinds = ("an autoencoder", "a transcoder")
        raise ConfigError(
            f"--dictionary {folder}: is {kinds[shape.outputs is not None]}, but the run's places are those of "
            f"{kinds[places.outputs is not None]}; set train.site and train.target to those that it was trained on"
        )
    if places.outputs is not None:
        sides.append(("writes", shape.d_out, places.outputs))
    for verb, d, sites in sides:
        wanted = sum(widths[site] for site in sites)
        if d != wanted:
            raise ConfigError(
                f"--dictionary {folder}: {verb} {d} numbers a token, but {', '.join(sites)} of "
                f"{run.cfg.model.name} gives {wanted}; choose the model and the sites that it was trained on"
            )
    for name, here in (("model", run.subject.name), ("inputs", list(places.inputs))):
        there = facts.get(name)
        if there is not None and there != here:
            log.warning("eval: the dictionary was trained on %s %s, and is measured on %s", name, there, here)


def _told(absorbed: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the facts say of absorption."""
    if absorbed is None:
        return {}
    if not absorbed["is_meaningful"]:
        return {"absorption": None, "absorption_why_not": absorbed["why_not"]}
    return {"absorption": absorbed["eval_result_metrics"]["mean"]["mean_full_absorption_score"]}


def _write_latents(path: Path, density: "np.ndarray", cosines: "Mapping[str, np.ndarray]") -> None:
    """A row a latent."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"latent": np.arange(len(density)), "feature_density": density, **cosines})
    publish(path, lambda temporary: pq.write_table(table, temporary))


def _once(out: Path, name: str, compute: Callable[[], Mapping[str, Any]]) -> Any:
    """A part, from what was written of it before a kill, or computed and written down; as JSON has it."""
    path = out / f"{name}{SCRATCH}"
    if not path.exists():
        write_json(path, compute())
    return read_json(path)
