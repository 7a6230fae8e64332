"""Batches of activations in a shuffled order that is a pure function of (seed, step).

Rows of a split are cut into runs of 4,096; an epoch shuffles the runs, loads a window of them at a time
into memory, as they are stored, and shuffles its rows. A batch therefore mixes rows from all over a
window, and a run that was killed goes on with exactly the batch that comes next, with nothing to restore.
A split that is one window is read once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae.store import ActivationSplit
from sae.team import ALONE, Team

RUN_ROWS = 4096


@dataclass(frozen=True)
class _Window:
    """Rows as they are stored, run by run, and the order in which they come."""

    number: int
    runs: Sequence[int]
    rows: Tensor
    order: Tensor


class Loader:
    """`batch(step)` of a split; batches of one window are read from disk once, and lie on `device`.

    Args:
        parts: the rows of each batch that are wanted, one behind the other; all of them, if not said.
        team: processes that ask for the same steps, each for its parts. Rows that are computed each computes its share
            of, and gets the others'.
    """

    def __init__(
        self,
        split: ActivationSplit,
        batch: int,
        window_rows: int,
        seed: int,
        device: torch.device | str = "cpu",
        parts: Sequence[slice] = (slice(None),),
        team: Team = ALONE,
    ) -> None:
        self.team = team if split.is_computed else ALONE
        self.split, self.batch_rows, self.seed, self.device = split, batch, seed, device
        self.parts = [range(*part.indices(batch)) for part in parts]
        self.runs_per_window = max(1, window_rows // RUN_ROWS)
        self.n_runs = -(-split.n_rows // RUN_ROWS)
        self.n_windows = -(-self.n_runs // self.runs_per_window)
        self._window: _Window | None = None

    def first(self, n: int) -> Float[Tensor, "n d"]:
        """The stream's first rows."""
        return self._stream(0, n)

    def batch(self, step: int) -> Float[Tensor, "batch d"]:
        """Rows `step * batch ...` of the endless shuffled stream."""
        first = step * self.batch_rows
        if self.team.size > 1:  # all need the same windows then, at the same time
            whole = self._stream(first, self.batch_rows)
            pieces = [whole[part.start : part.stop] for part in self.parts]
        else:
            pieces = [self._stream(first + part.start, len(part)) for part in self.parts]
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0]

    def _stream(self, at: int, needed: int) -> Tensor:
        parts = []
        while needed:
            epoch, row = divmod(at, self.split.n_rows)
            number, start = self._find(epoch, row)
            window = self._load(number)
            part = window.rows[window.order[start : start + needed]].float()
            parts.append(part)
            at, needed = at + len(part), needed - len(part)
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _runs(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, 10, epoch)).permutation(self.n_runs)

    def _find(self, epoch: int, row: int) -> tuple[int, int]:
        """(window since the first epoch, row in it) of a row of an epoch's stream."""
        sizes = np.minimum(RUN_ROWS, self.split.n_rows - self._runs(epoch) * RUN_ROWS)
        starts = np.arange(0, self.n_runs, self.runs_per_window)
        ends = np.cumsum(np.add.reduceat(sizes, starts))
        window = int(np.searchsorted(ends, row, side="right"))
        begin = int(ends[window - 1]) if window else 0
        return epoch * self.n_windows + window, row - begin

    def _load(self, number: int) -> _Window:
        if self._window is None or self._window.number != number:
            epoch, window = divmod(number, self.n_windows)
            first = window * self.runs_per_window
            runs = sorted(self._runs(epoch)[first : first + self.runs_per_window].tolist())
            rows = self._rows(runs)
            order = torch.from_numpy(np.random.default_rng((self.seed, 11, number)).permutation(len(rows)))
            self._window = _Window(number, runs, rows, order.to(self.device))
        return self._window

    def _rows(self, runs: Sequence[int]) -> Tensor:
        if self._window is not None and self._window.runs == runs:
            return self._window.rows
        self._window = None  # the old window goes before the new one comes
        bounds = [(run * RUN_ROWS, (run + 1) * RUN_ROWS) for run in runs]
        if self.team.size == 1:
            return torch.cat([part.to(self.device) for part in self.split.each(bounds)])
        size = -(-len(bounds) // self.team.size)
        own = bounds[self.team.rank * size : (self.team.rank + 1) * size] or [(0, 0)]
        rows = torch.cat([part.to(self.device) for part in self.split.each(own)])
        return self.team.joined(rows.view(torch.uint8)).view(rows.dtype)  # backends know bytes, if not every type
