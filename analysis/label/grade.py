"""Frozen labels on the test split: each is run once, beside its nulls."""

from dataclasses import asdict

import numpy as np

from analysis.config import LabelConfig
from analysis.label.choose import Choice
from analysis.label.indexed import Indexed
from analysis.label.protocol import Label
from analysis.label.record import LabelRecord, Scores
from analysis.label.sentence import sentence, show
from analysis.nulls import density_neighbours, shuffled
from analysis.score import (
    average_precision,
    counts,
    f1_interval,
    hits,
    pearson,
    recall_by_decile,
    resamples,
    token_r2,
)
from analysis.splits import FitView, SelectView, TestView

Prediction = tuple[np.ndarray, np.ndarray]


def grade(
    choices: list[Choice], fit: Indexed[FitView], select: SelectView, test: Indexed[TestView], cfg: LabelConfig
) -> list[LabelRecord]:
    """The record of every latent, in order."""
    is_labelled = np.array([choice.label is not None for choice in choices])
    neighbours = density_neighbours(fit.view.codes.counts(), is_labelled)
    predictions = [choice.label.predict(test) if choice.label else None for choice in choices]
    draws = resamples(test.view.n_documents, cfg.resamples, cfg.seed)
    return [
        _record(latent, choice, predictions, int(neighbours[latent]), draws, fit, select, test)
        for latent, choice in enumerate(choices)
    ]


def score(prediction: Prediction, latent: int, test: Indexed[TestView]) -> Scores:
    """A prediction against the firings of `latent`."""
    positions, scores = prediction
    fired, values = test.view.firing(latent)
    found = counts(positions, fired)
    return Scores(
        n_predicted=found.n_predicted,
        n_true=found.n_true,
        precision=found.precision,
        recall=found.recall,
        f1=found.f1,
        iou=found.iou,
        auprc=average_precision(scores, hits(positions, fired), len(fired), test.n_valid),
        pearson=pearson(positions, scores, fired, values, test.n_valid),
    )


def _record(
    latent: int,
    choice: Choice,
    predictions: list[Prediction | None],
    neighbour: int,
    draws: np.ndarray,
    fit: Indexed[FitView],
    select: SelectView,
    test: Indexed[TestView],
) -> LabelRecord:
    """All that is known of a latent; long because each field is named on a line of its own."""
    fired, values = test.view.firing(latent)
    fit_fired, fit_values = fit.view.firing(latent)
    n_fit, n_select, n_test = len(fit_fired), len(select.firing(latent)[0]), len(fired)
    token = score(choice.token.predict(test), latent, test) if choice.token else None
    token_set = score(choice.token_set.predict(test), latent, test) if choice.token_set else None
    prediction, label = predictions[latent], choice.label
    own = score(prediction, latent, test) if prediction else None
    interval = f1_interval(prediction[0], fired, test.view.documents, draws) if prediction else (None, None)
    chance = shuffled(own.n_predicted, n_test, test.n_valid) if own else (None, None)
    other = predictions[neighbour] if prediction and neighbour >= 0 else None
    is_silent = n_fit + n_select + n_test == 0
    return LabelRecord(
        latent=latent,
        status="silent" if is_silent else choice.status,
        text=sentence(label, test.vocabulary, choice.shares) if label else None,
        family=label.family if label else None,
        n_atoms=label.n_atoms if label else None,
        rule=[asdict(part) for part in label.parts] if label else None,
        n_fit=n_fit,
        n_select=n_select,
        n_test=n_test,
        select_f1=choice.select_f1,
        scores=own,
        f1_low=interval[0],
        f1_high=interval[1],
        decile_recall=recall_by_decile(prediction[0], fired, values) if prediction else None,
        shares=list(choice.shares) if label else None,
        beats_token=own.f1 > token.f1 if own and token else None,
        token_text=_token_text(choice.token, test) if choice.token else None,
        token=token,
        token_set=token_set,
        other_latent=neighbour if other else None,
        other=score(other, latent, test) if other else None,
        shuffled_f1=chance[0],
        shuffled_auprc=chance[1],
        token_r2=token_r2(fit.view.tokens, fit_fired, fit_values, fit.token_counts),
    )


def _token_text(token: Label, test: Indexed[TestView]) -> str:
    return show(test.vocabulary.strings[token.parts[0].clauses[0].keys[0] - 1])
