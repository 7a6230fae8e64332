"""What named tokens are compared with: tokens that are about as common in the text, always the same."""

import numpy as np

from analysis.parts import scrambled


class Controls:
    """The matched controls of any token.

    Tokens are ranked by how often they occur. Of those within half of `reach` ranks of a token, on either side, the
    first few in the order of a hash are its controls, whatever the latent.

    Args:
        counts: `[vocabulary]`, occurrences on the fit split.
        n: controls of a token.
        n_named: tokens that may not be among them, at most.
    """

    def __init__(self, counts: np.ndarray, n: int, n_named: int) -> None:
        self.n, self.reach = n, reach(n, n_named)
        self._order = np.lexsort((np.arange(len(counts)), counts))
        self._ranks = np.argsort(self._order)

    def of(self, tokens: np.ndarray, named: np.ndarray) -> np.ndarray:
        """The controls `[m, n]` of `tokens [m]`, none of which is among `named`."""
        near = self._near(tokens)
        is_named = np.isin(near, named)
        first = np.argsort(is_named, axis=1, kind="stable")[:, : self.n]
        return np.take_along_axis(near, first, axis=1)

    def _near(self, tokens: np.ndarray) -> np.ndarray:
        """`[m, reach]`: those of like frequency, in the order of the hash."""
        ranks = self._ranks[tokens][:, None]
        starts = np.clip(ranks - self.reach // 2, 0, len(self._order) - 1 - self.reach)
        within = starts + np.arange(self.reach)
        near = self._order[within + (within >= ranks)]  # but the token itself
        order = np.argsort(scrambled(tokens[:, None].astype(np.int64) << 32 | near), axis=1, kind="stable")
        return np.take_along_axis(near, order, axis=1)


def reach(n: int, n_named: int) -> int:
    """Tokens that are looked at for `n` controls, none of which is among `n_named`; a vocabulary must have more."""
    return 2 * n + n_named
