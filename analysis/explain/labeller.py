"""From fit text to proposals, from select text to one label or none: nothing here has seen the test split."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from analysis.chat.cost import Estimate
from analysis.chat.structured import Asker, Question
from analysis.config import LlmConfig, WindowConfig
from analysis.explain.judge import answers, questions
from analysis.explain.prompts import JudgeAnswer, LabelAnswer
from analysis.explain.propose import proposals
from analysis.explain.record import Candidate, Choice, Status
from analysis.label.known import Known
from analysis.parts import in_hash_order
from analysis.splits import FitView, SelectView, check_disjoint
from analysis.windows.grid import Grid
from analysis.windows.items import Items
from analysis.windows.sample import sample
from analysis.windows.score import score
from sae.errors import ConfigError

LABEL_TOKENS, ENTRY_TOKENS = 60, 4  # of an answer, about: a label, and one entry of a list
PLACEHOLDER = "x" * 120  # as long as labels are, about


class Labeller:
    """Labels of some latents by a language model.

    Raises:
        DataError: a document is in both splits.
        ConfigError: one of the latents does not exist.
    """

    def __init__(self, fit: FitView, select: SelectView, known: Known, cfg: LlmConfig, windows: WindowConfig) -> None:
        check_disjoint(fit, select)
        self.fit, self.known, self._cfg, self._windows = fit, known, cfg, windows
        self._fit, self._select = Grid.cut(fit, windows.width), Grid.cut(select, windows.width)
        self.latents = asked_for(cfg.latents, known.n_latents)
        self._able = [latent for latent in self.latents if known.statuses[latent] not in ("rare", "silent")]
        self._draws = np.ones((1, select.n_documents))

    def estimate(self) -> Estimate:
        """Of all that will be asked, on the test split too: as if its windows were like those of the select split."""
        cfg, n = self._cfg, self._cfg.per_prompt
        proposing = Estimate.of((each.request for own in self._proposals.values() for each in own), LABEL_TOKENS)
        judging = Estimate.of(
            (each.request for own in self._items for each in self._judged(own, PLACEHOLDER)), n * ENTRY_TOKENS
        )
        labels = 1 + cfg.nulls
        tested = (4 + 5) * cfg.test_windows * labels + 3 * n * cfg.intruders  # items of detection, fuzzing, intruders
        return proposing + judging.times(cfg.candidates + cfg.draft + tested / (4 * cfg.select_windows))

    def label(self, asker: Asker) -> dict[int, Choice]:
        """The frozen outcome for each latent."""
        proposed = asker.ask_all(self._proposals, "proposing")
        texts = {latent: self._texts(latent, own) for latent, own in proposed.items()}
        questions = {(latent, text): self._judged(latent, text) for latent, own in texts.items() for text in own}
        judged = asker.ask_all(questions, "choosing")
        choices = {latent: Choice(self._status(latent), None, (), 0) for latent in self.latents}
        for latent, own in texts.items():
            candidates = tuple(self._candidate(latent, text, judged[latent, text]) for text in own)
            choices[latent] = self._choose(candidates, proposed[latent])
        return choices

    @cached_property
    def _proposals(self) -> dict[int, list[Question[LabelAnswer]]]:
        cfg, known = self._cfg, self.known
        return {
            latent: proposals(
                self._fit,
                latent,
                known.promoted[latent],
                known.sentences[latent] if cfg.draft else None,
                cfg,
                self._windows,
            )
            for latent in self._able
        }

    @cached_property
    def _items(self) -> dict[int, Items]:
        windows = replace(self._windows, per_kind=self._cfg.select_windows)
        return {
            latent: sample(self._select, latent, self.known.neighbours[latent], windows).of("detection")
            for latent in self._able
        }

    def _judged(self, latent: int, text: str) -> list[Question[JudgeAnswer]]:
        return questions(text, self._items[latent], "detection", self._select, self._cfg.per_prompt)

    def _texts(self, latent: int, proposed: Sequence[LabelAnswer | None]) -> list[str]:
        """Different texts, the rule's sentence first: what is no better than it does not replace it."""
        sentence = self.known.sentences[latent] if self._cfg.draft else None
        texts = [sentence, *(answer.label for answer in proposed if answer is not None)]
        return list(dict.fromkeys(text for text in texts if text is not None))

    def _candidate(self, latent: int, text: str, replies: Sequence[JudgeAnswer | None]) -> Candidate:
        items = self._items[latent]
        found = answers(items, replies, self._cfg.per_prompt)
        by_kind = score(items, found, "detection", self._select.documents(items.windows), self._draws)
        known = [each.balanced_accuracy for each in by_kind.values() if each.balanced_accuracy is not None]
        source = "rule" if text == self.known.sentences[latent] else "model"
        return Candidate(text, source, float(np.mean(known)) if known else None)

    def _choose(self, candidates: tuple[Candidate, ...], proposed: Sequence[LabelAnswer | None]) -> Choice:
        n_unread = sum(answer is None for answer in proposed)
        judged = [one for one in candidates if one.score is not None]
        best = max(judged, key=lambda one: one.score or 0.0, default=None)
        if best is not None and (best.score or 0.0) >= self._cfg.min_score:
            return Choice("labelled", best, candidates, n_unread)
        is_failed = not judged and (candidates or n_unread == len(proposed))
        return Choice("failed" if is_failed else "abstained", None, candidates, n_unread)

    def _status(self, latent: int) -> Status:
        return "silent" if self.known.statuses[latent] == "silent" else "rare"


def asked_for(latents: int | tuple[int, ...], n_latents: int) -> list[int]:
    """The latents that a configuration asks for, ascending.

    Raises:
        ConfigError: one of them does not exist.
    """
    if isinstance(latents, int):
        return sorted(in_hash_order(np.arange(n_latents))[:latents].tolist())
    for latent in latents:
        if latent >= n_latents:
            raise ConfigError(f"analysis.llm.latents: {latent} is none; must be from 0 to {n_latents - 1}")
    return sorted(set(latents))
