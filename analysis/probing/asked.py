"""All that a dictionary is asked: questions of the run's own text, labelled texts of the user's, first letters."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.config import EvalConfig
from analysis.probing import texts
from analysis.probing.absorption import absorption, words_of
from analysis.probing.probe import Result, Settings, probe
from analysis.probing.tasks import SOURCE, source_tasks, token_tasks
from analysis.quality.sample import Sample, sample
from analysis.splits import token_strings
from sae.config import DataConfig, HarvestConfig
from sae.dictionary import Dictionary
from sae.harvest import ComputedSplit
from sae.model import Subject
from sae.store import ActivationStore, Pairs, Places
from sae.tokens import TokenStore

log = logging.getLogger(__name__)
TOKENS = 1 << 19  # of each split, among which examples are looked for


@dataclass(frozen=True, eq=False)
class Asked:
    """A dictionary, and what questions can be asked of."""

    dictionary: Dictionary
    subject: Subject
    tokens: TokenStore
    activations: ActivationStore
    places: Places
    data: DataConfig
    harvest: HarvestConfig
    cfg: EvalConfig

    def probe(self) -> list[Result]:
        """What became of every task."""
        cfg, skip = self.cfg, self.activations.skip_positions
        settings = Settings(cfg.probe_k, cfg.probe_examples, cfg.resamples, cfg.seed)
        fit, test = self._sample("fit"), self._sample("test")
        asked = token_tasks(cfg.probes, fit, test, token_strings(self.subject.tokenizer), skip)
        results = probe(self.dictionary, self._rows, asked, settings)
        if SOURCE in cfg.probes:
            sources = [self.tokens.split(split).documents["source"] for split in ("fit", "test")]
            results += probe(self.dictionary, self._rows, source_tasks(fit, test, sources, skip), settings)
        for file in cfg.probe_files:
            results += self._probe_file(Path(file), settings)
        return results

    def absorption(self) -> dict[str, Any]:
        """How far latents of words absorb the first letter."""
        log.info("eval: first letters")
        strings, skip, seed = token_strings(self.subject.tokenizer), self.activations.skip_positions, self.cfg.seed
        words = {
            split: words_of(self._sample(split), strings, skip, seed, split == "test") for split in ("fit", "test")
        }
        rows = {split: self._rows(split) for split in words}
        return absorption(self.dictionary, rows, words, self.cfg.resamples, seed)

    def _probe_file(self, file: Path, settings: Settings) -> list[Result]:
        labelled, tokenizer = texts.read(file), self.subject.tokenizer
        splits = {
            split: texts.tokens([each for each in labelled if each.split == split], split, tokenizer, self.data)
            for split in texts.SPLITS
        }

        def rows(split: str) -> Pairs:
            model, autocast = self.subject.model, self.subject.autocast
            computed = ComputedSplit(model, self.places.sites, splits[split], self.harvest, autocast)
            return Pairs(computed, self.places.sites, self.places)

        tasks = texts.tasks(file.stem, labelled, splits, self.activations.skip_positions)
        return probe(self.dictionary, rows, tasks, settings)

    def _sample(self, split: str) -> Sample:
        return sample(self.tokens.split(split), self.activations.skip_positions, TOKENS)

    def _rows(self, split: str) -> Pairs:
        return self.activations.pairs(self.places, split)
