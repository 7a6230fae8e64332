"""What questions will cost, before any is asked."""

from collections.abc import Iterable
from dataclasses import dataclass

from analysis.chat.request import Request

CHARACTERS = 3
"""Of a token, at least on average: English has about four, so an estimate errs on the high side."""


@dataclass(frozen=True)
class Prices:
    """Dollars for a million tokens."""

    read: float
    written: float

    def cost(self, n_read: int, n_written: int) -> float:
        return (n_read * self.read + n_written * self.written) / 1e6


@dataclass(frozen=True)
class Estimate:
    """Of some requests."""

    n_requests: int
    n_read: int
    """Tokens."""
    n_written: int

    @classmethod
    def of(cls, requests: Iterable[Request], n_written: int) -> "Estimate":
        """Of these requests, if each reply has `n_written` tokens."""
        sizes = [tokens_of(request.text) for request in requests]
        return cls(len(sizes), sum(sizes), n_written * len(sizes))

    def __add__(self, other: "Estimate") -> "Estimate":
        return Estimate(
            self.n_requests + other.n_requests, self.n_read + other.n_read, self.n_written + other.n_written
        )

    def times(self, times: float) -> "Estimate":
        """As many such requests."""
        return Estimate(round(self.n_requests * times), round(self.n_read * times), round(self.n_written * times))

    def told(self, prices: Prices) -> str:
        """In words."""
        cost = prices.cost(self.n_read, self.n_written)
        return (
            f"about {self.n_requests:,} requests, {self.n_read:,} tokens to read and {self.n_written:,} to write: "
            f"${cost:.2f}"
        )


def tokens_of(text: str) -> int:
    """Tokens of a text, about."""
    return -(-len(text) // CHARACTERS)
