"""Latents by token: on which tokens each fires, and which follow.

The counts of one latent on each token are all that a label by token is judged by, and the variance that tokens explain
is exact: nothing is sampled but the tokens that are kept.
"""

from dataclasses import dataclass

import numpy as np

from analysis.codes import Codes, best_of_each, packed, unpacked
from analysis.index.tables import Columns, Lists

N_TRIGGERS, N_NEXT = 20, 10


@dataclass(frozen=True, eq=False)
class Tally:
    """Every (latent, token) that occurs among some firings, by latent and then by token."""

    latents: np.ndarray
    """`[m]`, from 0."""
    tokens: np.ndarray
    """`[m]`."""
    counts: np.ndarray
    """`[m]`: firings."""
    sums: np.ndarray
    """`[m]`, float64: of activations."""

    @classmethod
    def of(cls, latents: np.ndarray, tokens: np.ndarray, values: np.ndarray) -> "Tally":
        """Of firings: the latent, the token and the activation of each, in any order."""
        keys = np.sort(latents.astype(np.int64) << 40 | tokens.astype(np.int64) << 16 | packed(values))
        begins = np.flatnonzero(np.diff(keys >> 16, prepend=-1))
        sums = np.add.reduceat(unpacked(keys & 0xFFFF).astype(np.float64), begins) if len(begins) else np.zeros(0)
        firsts = keys[begins]
        return cls(firsts >> 40, firsts >> 16 & 0xFFFFFF, np.diff(np.append(begins, len(keys))), sums)

    def best(self, merit: np.ndarray, n_latents: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(pairs, how many of each latent): the k of each of greatest merit, > 0; of equals the lower token."""
        return best_of_each(self.latents, merit, self.tokens, n_latents, k)


def token_columns(codes: Codes, tokens: np.ndarray, token_counts: np.ndarray) -> Columns:
    """`token_r2` and what latents fire on.

    Args:
        tokens: of each position of the split.
        token_counts: `[vocabulary]`: how often each occurs among the kept positions.
    """
    pairs = Tally.of(codes.latents, tokens[codes.positions], codes.values)
    n = codes.n_latents
    often = pairs.counts > 1  # most pairs occur once, and are needed for latents only that have few others
    has_enough = np.bincount(pairs.latents[often], minlength=n) >= N_TRIGGERS
    best, sizes = pairs.best(np.where(often | ~has_enough[pairs.latents], pairs.counts, 0), n, N_TRIGGERS)
    totals = np.bincount(pairs.latents, weights=pairs.sums, minlength=n)
    lists = {
        "trigger_tokens": pairs.tokens[best],
        "trigger_counts": pairs.counts[best],
        "trigger_rates": pairs.counts[best] / token_counts[pairs.tokens[best]],
        "trigger_masses": pairs.sums[best] / totals[pairs.latents[best]],
    }
    return {
        "token_r2": _token_r2(pairs, codes, token_counts),
        **{name: Lists.of_sizes(sizes, flat) for name, flat in lists.items()},
    }


def _token_r2(pairs: Tally, codes: Codes, token_counts: np.ndarray) -> np.ndarray:
    """Var(E[a | token]) / Var(a) over the kept positions; NaN where a latent does not vary."""
    n, n_rows, latents = codes.n_latents, token_counts.sum(), codes.latents
    values = codes.values.astype(np.float64)
    means = np.bincount(latents, weights=values, minlength=n) / n_rows
    variance = np.bincount(latents, weights=values * values, minlength=n) / n_rows - means**2
    squares = np.square(pairs.sums) / token_counts[pairs.tokens]
    between = np.bincount(pairs.latents, weights=squares, minlength=n) / n_rows - means**2
    return np.divide(between, variance, out=np.full(n, np.nan), where=variance > 0)


def next_columns(codes: Codes, tokens: np.ndarray, is_last: np.ndarray, next_counts: np.ndarray) -> Columns:
    """What follows where latents fire: the tokens that tell most, by count times the logarithm of their lift.

    Args:
        tokens, is_last: of each position of the split: the token, and whether its context ends there.
        next_counts: `[vocabulary]`: how often each follows a kept position.
    """
    has = ~is_last[codes.positions]
    pairs = Tally.of(codes.latents[has], tokens[codes.positions[has] + 1], codes.values[has])
    n = codes.n_latents
    firings = np.bincount(codes.latents[has], minlength=n)
    lifts = (pairs.counts / firings[pairs.latents]) / (next_counts[pairs.tokens] / next_counts.sum())
    best, sizes = pairs.best(np.where(pairs.counts > 1, pairs.counts * np.log(lifts), 0), n, N_NEXT)
    lists = {"next_tokens": pairs.tokens[best], "next_counts": pairs.counts[best], "next_lifts": lifts[best]}
    return {name: Lists.of_sizes(sizes, flat) for name, flat in lists.items()}
