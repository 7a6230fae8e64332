"""What every latent does: proposed from the lens and the fit split, chosen on another, scored once on a third.

    records, why_not = effects(fit, select, test, subject, dictionary, written, cfg)

Every latent has a record, whatever becomes of it: `labelled`, `abstained`, `rare`, `silent`, or, all of them,
`unmeasured`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from analysis import lens
from analysis.config import EffectsConfig
from analysis.effects import sample
from analysis.effects.choose import Chosen, choose
from analysis.effects.controls import Controls, reach
from analysis.effects.grade import Labels, grade
from analysis.effects.intervene import Network
from analysis.effects.record import Effect, EffectRecord, Status
from analysis.effects.sentence import sentence
from analysis.effects.units import Lens, Units
from analysis.nulls import density_neighbours
from analysis.splits import FitView, SelectView, TestView, check_disjoint
from sae import memory
from sae.dictionary import Dictionary
from sae.errors import ConfigError
from sae.model import Subject
from sae.sites import Site, resolve, writes_residual


@memory.reused()
@torch.no_grad()
def effects(
    fit: FitView,
    select: SelectView,
    test: TestView,
    subject: Subject,
    dictionary: Dictionary,
    written: Sequence[str],
    cfg: EffectsConfig,
) -> tuple[list[EffectRecord], str | None]:
    """(one record a latent, in order; why effects could not be measured, or none). All labels are frozen before the
    test split is looked at.

    Args:
        written: the sites that the dictionary writes.

    Raises:
        DataError: a document is in two of the splits.
    """
    check_disjoint(fit, select, test)
    n = fit.n_latents
    on_fit, on_select = (sample.firings(v, sample.chosen_contexts(v, cfg.tokens), cfg.firings) for v in (fit, select))
    counts = np.stack([on_fit.counts(n), on_select.counts(n)])
    is_measured = counts.min(axis=0) >= cfg.min_firings
    try:
        site = _site(len(fit.strings), subject, written, cfg)
        units = Units.of(dictionary.written(), is_measured, cfg.random, cfg.seed)
        network = Network(subject, site, units.directions, dictionary.row_sizes)
    except ConfigError as error:
        return [_record(latent, "unmeasured") for latent in range(n)], str(error)
    controls = Controls(np.bincount(fit.tokens[fit.valid], minlength=len(fit.strings)), cfg.controls, _n_named(cfg))
    places = [each.only(is_measured).shared(units.stands_for, n) for each in (on_fit, on_select)]
    chosen = choose((fit, places[0]), (select, places[1]), network, units, _lens(subject, site), controls, cfg)
    labels = Labels.of(chosen, n, density_neighbours(fit.codes.counts(), chosen.is_labelled(n)))
    amounts = np.array([np.median(fit.firing(i)[1]) if is_measured[i] else 0 for i in range(n)], dtype=np.float32)
    found = grade(labels, chosen, amounts, test, network, units, cfg)
    is_silent = np.stack([view.codes.counts() for view in (fit, select, test)]).sum(axis=0) == 0
    return _records(chosen, labels, counts, is_silent, amounts, found, test), None


def _site(vocabulary: int, subject: Subject, written: Sequence[str], cfg: EffectsConfig) -> Site:
    """The site that is edited.

    Raises:
        ConfigError: effects cannot be measured; the message says why.
    """
    if cfg.firings == 0:
        raise ConfigError("analysis.effects.firings = 0")
    if len(written) > 1:
        raise ConfigError(f"the dictionary writes to several sites ({', '.join(written)}), one after the other")
    needed = reach(cfg.controls, _n_named(cfg))
    if vocabulary <= needed:
        raise ConfigError(f"a vocabulary of {vocabulary} tokens leaves no controls: must be more than {needed}")
    return resolve(subject.model, written[0])


def _n_named(cfg: EffectsConfig) -> int:
    """Tokens that are candidates of a latent, at most: promoted and suppressed, by lens and measured."""
    return 4 * max(cfg.lengths)


def _lens(subject: Subject, site: Site) -> Lens | None:
    """The logit lens, where the site writes into the residual stream of a network whose final norm is known."""
    try:
        lens.final_norm(subject.model)
    except ConfigError:
        return None
    if not writes_residual(subject.model, site):
        return None
    return lambda directions: lens.logit_effects(directions, subject.model)


def _records(
    chosen: Chosen,
    labels: Labels,
    counts: np.ndarray,
    is_silent: np.ndarray,
    amounts: np.ndarray,
    found: Mapping[str, Mapping[int, Effect]],
    test: TestView,
) -> list[EffectRecord]:
    """One a latent.

    Args:
        counts: `[2, n_latents]`: places on the fit and on the select split.
    """
    rows, n = {number: row for row, number in enumerate(chosen.numbers.tolist())}, counts.shape[1]
    label_rows = {latent: row for row, latent in enumerate(labels.latents.tolist())}
    records = []
    for latent in range(n):
        known: dict[str, Any] = {"n_fit": int(counts[0, latent]), "n_select": int(counts[1, latent])}
        if latent not in rows:
            records.append(_record(latent, "silent" if is_silent[latent] else "rare", **known))
            continue
        row = rows[latent]
        known |= {"select_effect": float(chosen.effects[row]), "kl": float(chosen.kl[row])}
        if latent not in label_rows:
            records.append(_record(latent, "abstained", **known))
            continue
        of_it = {name: found[name].get(latent) for name in found}
        said = _said(label_rows[latent], chosen, labels, of_it["removed"], test)
        records.append(_record(latent, "labelled", **known, **of_it, **said, amount=float(amounts[latent])))
    return records


def _said(row: int, chosen: Chosen, labels: Labels, removed: Effect | None, test: TestView) -> dict[str, Any]:
    """What a label says."""
    kind, tokens, other = chosen.kinds[labels.kinds[row]], labels.tokens(row), int(labels.others[row])
    return {
        "text": sentence(kind, tokens, test.strings, removed.nats if removed else None),
        "verb": kind.verb,
        "tokens": tokens,
        "source": kind.source,
        "other_latent": None if other == row else int(labels.latents[other]),
    }


def _record(latent: int, status: Status, **known: Any) -> EffectRecord:
    """A record in which all that is not known is none."""
    nothing = dict.fromkeys(field.name for field in fields(EffectRecord))
    return EffectRecord(**{**nothing, "n_fit": 0, "n_select": 0, **known, "latent": latent, "status": status})
