"""What is asked, and what comes back."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from sae.files import digest_json


@dataclass(frozen=True)
class Message:
    """Instructions are the user's, too: not every model has a system that speaks."""

    role: Literal["user", "assistant"]
    content: str


@dataclass(frozen=True)
class Request:
    """One conversation that waits for the assistant's next message."""

    messages: tuple[Message, ...]

    @property
    def text(self) -> str:
        return "\n".join(message.content for message in self.messages)

    def to_json(self) -> list[dict[str, str]]:
        return [asdict(message) for message in self.messages]


@dataclass(frozen=True)
class Reply:
    text: str
    n_read: int
    """Tokens of the request, as the model counts them."""
    n_written: int
    """Tokens of the reply, those of hidden reasoning too."""


@dataclass(frozen=True)
class Refusal:
    """No reply, and asking again would not help: the request is too long, or is not allowed."""

    reason: str


@runtime_checkable
class Backend(Protocol):
    """Who answers."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """All that the reply to a request depends on, as JSON values: the model and how it is asked. No secrets."""
        ...

    def answer(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply | Refusal]]:
        """(index, what came back) of each request, in any order, each as soon as it is there.

        Raises:
            DataError: it cannot be reached, or does not take such requests.
        """
        ...


def key_of(request: Request, backend: Backend) -> str:
    """Stands for a request to this backend, whatever its secrets."""
    return digest_json({"backend": dict(backend.identity), "messages": request.to_json()})
