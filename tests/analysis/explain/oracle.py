"""Models whose answers a test writes down: they read what they are told, and nothing else."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from analysis.chat.request import Refusal, Reply, Request

Say = Callable[[str], str]
"""The answer to a prompt."""


class Oracle:
    """A `Backend` that answers by a function, and remembers what it was asked."""

    def __init__(self, say: Say) -> None:
        self.say, self.prompts = say, []

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"model": "oracle"}

    def answer(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply | Refusal]]:
        for i, request in enumerate(requests):
            self.prompts.append(request.text)
            yield i, Reply(self.say(request.text), len(request.text) // 4, 10)


def kind_of(prompt: str) -> str:
    if "Active:\n" in prompt:
        return "explain"
    if '{"intruder": n}' in prompt:
        return "intruder"
    return "fuzzing" if "between << and >>" in prompt else "detection"


def passages(prompt: str, title: str = "Passages:") -> list[dict[str, Any]]:
    """The JSON lines under a title."""
    lines = prompt.split(f"{title}\n")[1].split("\n\n", maxsplit=1)[0].splitlines()
    return [json.loads(line) for line in lines]


def described(prompt: str) -> str:
    (line,) = (line for line in prompt.splitlines() if line.startswith("Description: "))
    return json.loads(line.removeprefix("Description: "))


def marked(text: str) -> list[str]:
    return re.findall("<<(.*?)>>", text, re.DOTALL)


def only(word: str, text: str) -> bool:
    """Whether nothing else is marked."""
    return all(own.replace(word, "") == "" for own in marked(text))


def knowing(labels: Sequence[str | None]) -> Say:
    """One that proposes these in turn, and judges a label "has X" by whether the token " X" stands there."""
    turn = iter(range(10**9))

    def say(prompt: str) -> str:
        kind = kind_of(prompt)
        if kind == "explain":
            return json.dumps({"label": labels[next(turn) % len(labels)]})
        if kind == "intruder":
            return json.dumps({"intruder": 1})
        word = described(prompt).removeprefix("has")
        if kind == "detection":
            return json.dumps({"answers": [int(word in each["text"]) for each in passages(prompt)]})
        return json.dumps({"answers": [only(word, each["text"]) for each in passages(prompt)]})

    return say
