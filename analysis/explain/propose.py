"""Labels that a language model proposes, from text of the fit split alone."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from analysis.chat.structured import Question
from analysis.config import LlmConfig, WindowConfig
from analysis.explain.prompts import LabelAnswer, Passage, explaining, quoted
from analysis.index.examples import INTERVALS
from analysis.parts import scrambled
from analysis.splits import FitView
from analysis.windows.grid import Fired, Grid
from analysis.windows.items import SAME_TRIGGER
from analysis.windows.sample import sample

LEVELS = 10  # of strength, in a prompt


def proposals(
    grid: Grid[FitView], latent: int, promoted: Sequence[str], draft: str | None, cfg: LlmConfig, windows: WindowConfig
) -> list[Question[LabelAnswer]]:
    """As many questions as candidates, each with other examples; none where the latent does not fire.

    Args:
        promoted: tokens that its direction makes more likely.
        draft: the sentence of its rule.
    """
    fired = grid.fired(latent)
    if len(fired.windows) == 0:
        return []
    silent = _silences(grid, latent, cfg, windows)
    return [
        explaining(_active(grid, fired, chosen, windows), silent, promoted, draft)
        for chosen in (chosen_windows(fired, latent, draw, cfg) for draw in range(cfg.candidates))
    ]


def chosen_windows(fired: Fired, latent: int, draw: int, cfg: LlmConfig) -> np.ndarray:
    """Which of the windows in which a latent fires are shown: of twice as many of the strongest some, and some of each
    interval of activation among the others, the strongest first."""
    by_strength = np.lexsort((fired.windows, -fired.values))
    priority = scrambled(fired.windows.astype(np.uint64) ^ scrambled(np.array([latent << 8 | draw])))
    strongest, rest = by_strength[: 2 * cfg.top], by_strength[2 * cfg.top :]
    chosen = [strongest[np.argsort(priority[strongest])[: cfg.top]]]
    shares = fired.values[rest] / fired.values.max()
    for low, high in INTERVALS:
        inside = rest[(shares > low) & (shares <= high)]
        chosen.append(inside[np.argsort(priority[inside])[: cfg.per_interval]])
    which = np.concatenate(chosen)
    return which[np.lexsort((fired.windows[which], -fired.values[which]))]


def _active(grid: Grid[FitView], fired: Fired, which: np.ndarray, cfg: WindowConfig) -> list[Passage]:
    marks, strongest = fired.marks(which, cfg.mark_share), fired.values.max()
    bounds = marks.offsets.tolist()
    passages = []
    for i, window in enumerate(fired.windows[which].tolist()):
        own = marks.flat[bounds[i] : bounds[i + 1]]
        values = fired.firing_values[np.searchsorted(fired.firing_positions, own)]
        levels = np.ceil(values / strongest * LEVELS).astype(int).tolist()
        tokens = [quoted(grid.view, position, position + 1) for position in own.tolist()]
        text = quoted(grid.view, int(grid.starts[window]), int(grid.stops[window]), set(own.tolist()))
        passages.append({"text": text, "strength": [list(pair) for pair in zip(tokens, levels, strict=True)]})
    return passages


def _silences(grid: Grid[FitView], latent: int, cfg: LlmConfig, windows: WindowConfig) -> list[Passage]:
    if cfg.silent == 0:
        return []
    items = sample(grid, latent, (), replace(windows, per_kind=cfg.silent))
    items = items.take(np.flatnonzero(items.kinds == SAME_TRIGGER))
    places = zip(items.starts.tolist(), items.stops.tolist(), items.marks.flat.tolist(), strict=True)
    return [
        {"text": quoted(grid.view, start, stop), "silent_on": quoted(grid.view, mark, mark + 1)}
        for start, stop, mark in places
    ]
