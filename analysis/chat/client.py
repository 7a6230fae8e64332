"""Asks a backend what the cache does not know, and keeps count."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm

from analysis.chat.cache import Cache
from analysis.chat.cost import Prices
from analysis.chat.request import Backend, Refusal, Reply, Request, key_of
from sae.errors import ConfigError, DataError

log = logging.getLogger(__name__)
CHUNK = 64
"""Requests between two looks at what has been spent."""


@dataclass
class Usage:
    """Of all different requests so far, whether the cache knew them or not."""

    n_requests: int = 0
    n_refused: int = 0
    n_read: int = 0
    n_written: int = 0


class Client:
    """One backend behind one cache.

    Args:
        max_cost: dollars, at most; what the cache knows was paid for, and counts.
    """

    def __init__(self, backend: Backend, cache: Cache, prices: Prices, max_cost: float) -> None:
        self._backend, self._cache, self._prices, self._max_cost = backend, cache, prices, max_cost
        self._known: dict[str, Reply | Refusal] = {}
        self.usage = Usage()

    def ask(self, requests: Sequence[Request], what: str = "asking") -> list[Reply | Refusal]:
        """What came back for each. Equal requests are one.

        Raises:
            ConfigError: more has been spent than `max_cost`.
            DataError: the backend cannot be reached, or refuses the first request that it is ever asked.
        """
        keys = [key_of(request, self._backend) for request in requests]
        unknown = {key: request for key, request in zip(keys, requests, strict=True) if key not in self._known}
        for key in unknown:
            if (reply := self._cache.get(key)) is not None:
                self._enter(key, reply)
        left = [key for key in unknown if key not in self._known]
        self._check_budget()
        with tqdm(total=len(left), desc=what, unit="req", mininterval=1.0, disable=not left) as progress:
            for start in range(0, len(left), CHUNK):
                chunk = left[start : start + CHUNK]
                for index, found in self._backend.answer([unknown[key] for key in chunk]):
                    if isinstance(found, Reply):
                        self._cache.put(chunk[index], unknown[chunk[index]], found)
                    elif self.usage.n_requests == self.usage.n_refused:
                        raise DataError(f"analysis.llm: the model refuses what it is asked: {found.reason}")
                    self._enter(chunk[index], found)
                    progress.update()
                self._check_budget()
        return [self._known[key] for key in keys]

    def _enter(self, key: str, found: Reply | Refusal) -> None:
        self._known[key] = found
        self.usage.n_requests += 1
        if isinstance(found, Reply):
            self.usage.n_read += found.n_read
            self.usage.n_written += found.n_written
        else:
            self.usage.n_refused += 1

    def _check_budget(self) -> None:
        spent = self._prices.cost(self.usage.n_read, self.usage.n_written)
        if spent > self._max_cost:
            raise ConfigError(
                f"analysis.llm.max_cost = {self._max_cost}: ${spent:.2f} have been spent; "
                "raise it to go on, what has been answered is kept"
            )
