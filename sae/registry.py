"""Names for things that users choose by name: architectures, label families, formats, subjects."""

import difflib
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from sae.errors import ConfigError

T = TypeVar("T")


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names nearest to a mistaken one, as the end of an error message."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"must be one of {', '.join(known)}"


class Registry(Generic[T]):
    """A table from name to thing that explains itself when a name is not in it."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._things: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: enter the decorated thing under `name`.

        Raises:
            ConfigError: the name is taken.
        """

        def enter(thing: T) -> T:
            if name in self._things:
                raise ConfigError(f"{self.kind} {name!r} is registered twice; choose another name")
            self._things[name] = thing
            return thing

        return enter

    def get(self, name: str) -> T:
        """The thing called `name`.

        Raises:
            ConfigError: there is none; the message gives the nearest names.
        """
        if name not in self._things:
            known = nearest(name, self._things)
            raise ConfigError(f"{self.kind} {name!r} is unknown: {known} (a plug-in is named under `plugins`)")
        return self._things[name]

    def names(self) -> list[str]:
        return sorted(self._things)
