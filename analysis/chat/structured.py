"""Answers of a given form: JSON that is read, checked, and asked for once more where it is wrong."""

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from analysis.chat.client import Client
from analysis.chat.request import Message, Reply, Request

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
M = TypeVar("M", bound=BaseModel)
MAX_ECHOED = 2000  # characters of a wrong answer that are shown to its author


@dataclass(frozen=True)
class Question(Generic[T]):
    """A request, and how its answer is read."""

    request: Request
    read: Callable[[str], T]
    """Raises ValueError with what is wrong with a reply, in words that its author can use."""


@dataclass
class Failures:
    """Of all questions so far."""

    n_repaired: int = 0
    """Answers that were right the second time."""
    n_failed: int = 0
    """Questions without an answer."""


class Asker:
    """Puts questions to a client, and keeps count of what goes wrong."""

    def __init__(self, client: Client) -> None:
        self.client, self.failures = client, Failures()

    def ask(self, questions: Sequence[Question[T]], what: str) -> list[T | None]:
        """The answer to each; none where there is none, even when asked again.

        Args:
            what: is being done, for whoever waits.
        """
        answers: list[T | None] = [None] * len(questions)
        again: dict[int, Request] = {}
        replies = self.client.ask([question.request for question in questions], what)
        for i, (question, reply) in enumerate(zip(questions, replies, strict=True)):
            if isinstance(reply, Reply):
                try:
                    answers[i] = question.read(reply.text)
                except ValueError as error:
                    again[i] = _repair(question.request, reply, error)
            else:
                self.failures.n_failed += 1
        for i, reply in zip(again, self.client.ask(list(again.values()), f"{what} again"), strict=True):
            try:
                if not isinstance(reply, Reply):
                    raise ValueError(reply.reason)
                answers[i] = questions[i].read(reply.text)
                self.failures.n_repaired += 1
            except ValueError:
                self.failures.n_failed += 1
        return answers

    def ask_all(self, groups: Mapping[K, Sequence[Question[T]]], what: str) -> dict[K, list[T | None]]:
        """The same for groups of questions, all of which are asked at once."""
        answers = iter(self.ask([question for own in groups.values() for question in own], what))
        return {key: list(islice(answers, len(own))) for key, own in groups.items()}


def _repair(request: Request, reply: Reply, error: ValueError) -> Request:
    wrong = Message("assistant", reply.text[:MAX_ECHOED])
    complaint = Message("user", f"This cannot be read: {error}. Answer again, with one JSON object and nothing else.")
    return Request((*request.messages, wrong, complaint))


def read_json(model: type[M], text: str) -> M:
    """The first JSON object in a reply, checked; what stands before or after it (a fence, a remark, thoughts) is passed
    over.

    Raises:
        ValueError: there is none, or it is not of this form.
    """
    text = text.rpartition("</think>")[2]
    start = text.find("{")
    if start < 0:
        raise ValueError("there is no JSON object in it")
    try:
        value: Any = json.JSONDecoder().raw_decode(text[start:])[0]
    except (ValueError, RecursionError):
        raise ValueError("its JSON is malformed") from None
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the object"
        raise ValueError(f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}") from None
