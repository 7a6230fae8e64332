"""Many dictionaries at once: one network, its tokens and activations, and a run for each dictionary.

    sweep/<name>/dictionary, sweep/<name>/evaluation        as in any run
    sweep/table.csv, table.json, pareto.svg, pareto.png     all of them beside each other

All dictionaries learn from one stream of batches. One that is finished is left alone, so a list
may grow; one that is chosen is analysed like any other run (`member`).
"""

import logging
from typing import TYPE_CHECKING

from sae.errors import ConfigError
from sae.run import Run, dictionaries

if TYPE_CHECKING:
    from train.pareto import Row

log = logging.getLogger(__name__)


def member(run: Run, name: str) -> Run:
    """The run of one dictionary of the sweep, on the network, tokens and activations of `run`.

    Raises:
        ConfigError: the sweep has none of that name.
    """
    return Run(run.cfg.member(name), run.out / "sweep" / name, run)


def sweep(run: Run) -> "list[Row]":
    """Train and evaluate whatever is missing, write the table and the plot; returns the table.

    Raises:
        ConfigError: the configuration lists no dictionaries.
    """
    from sae.team import current
    from train import pareto

    names = [each.name for each in run.cfg.sweep]
    if not names:
        raise ConfigError("sweep: must list the dictionaries, such as [{sae.k: 16}, {sae.k: 32}]")
    runs = [member(run, name) for name in names]
    for each, box in zip(runs, dictionaries(runs), strict=True):
        each.dictionary = box
    rows = []
    for name, each in zip(names, runs, strict=True):
        log.info("%s", name)
        rows.append(_row(name, each))
    rows = pareto.mark_front(rows)
    if current().is_main:
        pareto.write(rows, run.out / "sweep")
    return rows


def _row(name: str, run: Run) -> "Row":
    from train.pareto import Row

    places, figures = run.cfg.places, run.evaluation.facts
    site = ", ".join(places.inputs) + (f" → {', '.join(places.outputs)}" if places.outputs else "")
    return Row(
        name=name,
        type=run.cfg.sae_type,
        site=site,
        n_latents=run.cfg.sae.n_latents,
        l0=figures["l0"],
        fvu=figures["fvu"],
        explained_variance=figures["explained_variance"],
        pca_fvu=figures["pca_fvu"],
        ce_recovered=figures["ce_recovered"],
        kl=figures["kl"],
        dead_fraction=figures["dead_fraction"],
        steps=run.dictionary.facts["steps"],
        is_on_front=False,
    )
