"""What a file does not say, the user does: `--set apply_b_dec_to_input=false`. Nothing is guessed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from sae.errors import ConfigError, FormatError
from sae.registry import nearest

FACTS = {
    "site": "the site that it reads",
    "target": "the site that it writes, for a transcoder",
    "model": "the network that it was trained on",
}
"""May be said of any file; none of them changes what is computed."""


class Answers:
    """The user's answers to what one file leaves open. Asking for one that is not there is the error."""

    def __init__(self, where: Path, given: Mapping[str, str]) -> None:
        self.where, self.given = where, dict(given)
        self.used: dict[str, str] = {}
        """Answers that have been asked for, with their values."""

    def choice(self, name: str, decides: str, valid: Sequence[str]) -> str:
        """One of the valid values.

        Args:
            decides: what hangs on it, as the rest of a sentence.
        """
        value = self._ask(name, decides, " or ".join(valid))
        if value not in valid:
            raise ConfigError(f"{name} = {value!r}: must be {' or '.join(valid)}; it decides {decides}")
        return value

    def flag(self, name: str, decides: str) -> bool:
        return self.choice(name, decides, ("true", "false")) == "true"

    def count(self, name: str, decides: str) -> int:
        value = self._ask(name, decides, "a whole number above 0")
        if not value.isdecimal() or int(value) == 0:
            raise ConfigError(f"{name} = {value!r}: must be a whole number above 0; it decides {decides}")
        return int(value)

    def factor(self, name: str, decides: str) -> float:
        value = self._ask(name, decides, "a number above 0")
        try:
            number = float(value)
        except ValueError:
            number = 0.0
        if not 0 < number < float("inf"):
            raise ConfigError(f"{name} = {value!r}: must be a number above 0; it decides {decides}")
        return number

    def fact(self, name: str) -> str | None:
        """One of `FACTS`, if the user has said it."""
        if name in self.given:
            self.used[name] = self.given[name]
        return self.given.get(name)

    def finish(self) -> None:
        """Raises: ConfigError: an answer to what the file says itself, or to no question at all."""
        for name in self.given.keys() - self.used.keys():
            hint = nearest(name, {*self.used, *FACTS} - {name})
            raise ConfigError(f"--set {name}={self.given[name]}: {self.where} leaves no {name} open; {hint}")

    def _ask(self, name: str, decides: str, valid: str) -> str:
        if name not in self.given:
            raise FormatError(
                f"{self.where}: {name}: cannot be known from the file; it decides {decides}; "
                f"answer with --set {name}=…, {valid}"
            )
        self.used[name] = self.given[name]
        return self.given[name]
