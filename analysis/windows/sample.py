"""Which windows a latent's label is asked about: the same ones for every label and every judge.

All choices are by a hash of the latent and the window, without replacement within a kind. What there are too few of is
not made up for; whoever scores counts.
"""

from collections.abc import Sequence

import numpy as np

from analysis.codes import ranks_within, spread_out
from analysis.config import WindowConfig
from analysis.index.tables import Lists
from analysis.label.indexed import V
from analysis.parts import scrambled
from analysis.score import hits
from analysis.windows.grid import Fired, Grid
from analysis.windows.items import ELSEWHERE, FIRES, NEIGHBOUR, RANDOM, SAME_TRIGGER, Items

N_TENTHS = 10


def sample(grid: Grid[V], latent: int, neighbours: Sequence[int], cfg: WindowConfig) -> Items:
    """Items of all kinds, in the order of `KINDS`; at most `cfg.per_kind` of each.

    Args:
        neighbours: other latents, the nearest first.
    """
    fired = grid.fired(latent)
    n = cfg.per_kind if len(fired.windows) else 0  # without a true item the others would decide nothing
    silent = np.ones(grid.n_windows, dtype=bool)
    silent[fired.windows] = False
    chosen = spread_over_strength(fired, latent, n)
    true_marks = fired.marks(chosen, cfg.mark_share)
    n_marks = np.diff(true_marks.offsets)
    blocks = [
        (FIRES, fired.windows[chosen], true_marks),
        (RANDOM, *_random(grid, latent, silent, n_marks, n)),
        (SAME_TRIGGER, *_same_trigger(grid, latent, silent, fired.peaks[chosen], n)),
        (NEIGHBOUR, *_neighbour(grid, latent, silent, neighbours, n, cfg.mark_share)),
        (ELSEWHERE, *_elsewhere(grid, latent, fired.windows[chosen], n_marks)),
    ]
    windows = np.concatenate([own for _, own, _ in blocks])
    kinds = np.repeat([kind for kind, _, _ in blocks], [len(own) for _, own, _ in blocks]).astype(np.int8)
    sizes = np.concatenate([np.diff(marks.offsets) for _, _, marks in blocks])
    marks = Lists.of_sizes(sizes, np.concatenate([marks.flat for _, _, marks in blocks]))
    return Items(windows, grid.starts[windows], grid.stops[windows], kinds, marks)


def spread_over_strength(fired: Fired, latent: int, n: int) -> np.ndarray:
    """Up to n of the windows in which a latent fires, as even as can be from tenths by their strongest firing, `[<= n]`
    ascending indices."""
    order = np.lexsort((fired.windows, fired.values))
    tenth = np.empty(len(order), dtype=np.int64)
    tenth[order] = np.arange(len(order)) * N_TENTHS // max(len(order), 1)
    priority = _priority(latent, FIRES, fired.windows)
    by_tenth = np.lexsort((priority, tenth))
    turn = np.empty_like(tenth)
    turn[by_tenth] = ranks_within(tenth[by_tenth], N_TENTHS)
    return np.sort(np.lexsort((priority, turn))[:n])


def _priority(latent: int, kind: int, numbers: np.ndarray) -> np.ndarray:
    """A hash by which the items of one kind are drawn, `uint64`; the smallest are taken."""
    purpose = scrambled(np.array([latent << 4 | kind], dtype=np.int64))
    return scrambled(numbers.astype(np.uint64) ^ purpose)


def _first(priority: np.ndarray, n: int) -> np.ndarray:
    """The n of smallest hash, the smallest first."""
    few = np.argpartition(priority, n)[:n] if n < len(priority) else np.arange(len(priority))
    return few[np.argsort(priority[few])]


def _random(grid: Grid[V], latent: int, silent: np.ndarray, n_marks: np.ndarray, n: int) -> tuple[np.ndarray, Lists]:
    """Any windows without a firing, with as many tokens marked as in the true items in turn."""
    candidates = np.flatnonzero(silent)
    windows = candidates[_first(_priority(latent, RANDOM, candidates), n)]
    return _marked_anywhere(grid, latent, windows, np.resize(n_marks, len(windows)))


def _elsewhere(grid: Grid[V], latent: int, windows: np.ndarray, n_marks: np.ndarray) -> tuple[np.ndarray, Lists]:
    """The true items with as many tokens marked at which the latent is silent; none where it fires on all."""
    return _marked_anywhere(grid, latent, windows, n_marks)


def _marked_anywhere(grid: Grid[V], latent: int, windows: np.ndarray, n_marks: np.ndarray) -> tuple[np.ndarray, Lists]:
    """Windows with some tokens marked, of those that count and at which the latent is silent; or all, if there are
    fewer. Windows that have none are left out."""
    sizes = grid.stops[windows] - grid.starts[windows]
    owners, positions = np.repeat(np.arange(len(windows)), sizes), spread_out(grid.starts[windows], sizes)
    free = grid.view.valid[positions] & ~hits(positions, grid.view.firing(latent)[0])
    owners, positions = owners[free], positions[free]
    order = np.lexsort((_priority(latent, ELSEWHERE, positions), owners))
    taken = order[ranks_within(owners[order], len(windows)) < n_marks[owners[order]]]
    taken = np.sort(taken)
    counts = np.bincount(owners[taken], minlength=len(windows))
    return windows[counts > 0], Lists.of_sizes(counts[counts > 0], positions[taken])


def _same_trigger(
    grid: Grid[V], latent: int, silent: np.ndarray, peaks: np.ndarray, n: int
) -> tuple[np.ndarray, Lists]:
    """For each true item a window without a firing that has the token it peaks at; where a token has too few, others of
    these tokens stand in. The token is marked."""
    tokens, wanted = np.unique(grid.view.tokens[peaks], return_counts=True)
    owners, places = grid.places.of(tokens)
    windows = grid.of[places]
    kept = np.flatnonzero(silent[windows])
    kept = kept[_first(_priority(latent, SAME_TRIGGER, places[kept]), len(kept))]
    kept = kept[np.sort(np.unique(windows[kept], return_index=True)[1])]  # a window once, at its first place
    by_token = np.argsort(owners[kept], kind="stable")
    rank = np.empty(len(kept), dtype=np.int64)
    rank[by_token] = ranks_within(owners[kept][by_token], len(tokens))
    is_stand_in = rank >= wanted[owners[kept]]
    taken = kept[np.argsort(is_stand_in, kind="stable")[:n]]
    return windows[taken], Lists.of_sizes(np.ones(len(taken), dtype=np.int64), places[taken])


def _neighbour(
    grid: Grid[V], latent: int, silent: np.ndarray, neighbours: Sequence[int], n: int, mark_share: float
) -> tuple[np.ndarray, Lists]:
    """Windows without a firing in which the nearest latent fires; where there are too few, the next nearest. What the
    neighbour fires on is marked."""
    free = silent.copy()
    windows, marks = [], []
    for neighbour in neighbours:
        left = n - sum(map(len, windows))
        if left == 0:
            break
        fired = grid.fired(neighbour)
        candidates = np.flatnonzero(free[fired.windows])
        taken = candidates[_first(_priority(latent, NEIGHBOUR, fired.windows[candidates]), left)]
        windows.append(fired.windows[taken])
        marks.append(fired.marks(taken, mark_share))
        free[windows[-1]] = False
    if not windows:
        return _nothing()
    sizes = np.concatenate([np.diff(own.offsets) for own in marks])
    return np.concatenate(windows), Lists.of_sizes(sizes, np.concatenate([own.flat for own in marks]))


def _nothing() -> tuple[np.ndarray, Lists]:
    none = np.zeros(0, dtype=np.int64)
    return none, Lists.of_sizes(none, none)
