"""A server that speaks OpenAI's chat completions: OpenAI's own, vLLM, llama.cpp, Ollama, OpenRouter and others."""

import http.client
import json
import math
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from analysis.chat.cost import tokens_of
from analysis.chat.request import Refusal, Reply, Request
from sae.errors import ConfigError, DataError

RETRIED = frozenset({408, 409, 425, 429})
"""States that pass by, as do those from 500 up."""
REFUSED = frozenset({400, 413, 422})
"""States that are about this one request: too long, or not allowed."""
MAX_BYTES = 1 << 24
MAX_WAIT_SECONDS = 60.0
MAX_SHOWN = 300  # characters of a server's message


class _Passing(Exception):
    """A failure after which the same request may succeed."""

    def __init__(self, reason: str, wait_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to whomever it names; it is an error like others."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:  # noqa: ARG002
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def key_from(variable: str | None) -> str | None:
    """The secret in an environment variable; none if none is named.

    Raises:
        ConfigError: there is no such variable, or nothing in it.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(
            f"analysis.llm.key_env = {variable!r}: no such environment variable; set it to the key, "
            "or write key_env: null for a server that asks for none"
        )
    if not key.isascii() or not key.isprintable():
        raise ConfigError(f"analysis.llm.key_env = {variable!r}: must be printable ASCII")
    return key


@dataclass(frozen=True)
class Endpoint:
    """A `Backend` over HTTP; so many requests are in flight at a time."""

    base_url: str
    """Up to and without `/chat/completions`."""
    model: str
    parameters: Mapping[str, Any]
    """What is sent beside model and messages."""
    key: str | None = field(repr=False)
    concurrency: int = 8
    attempts: int = 6
    timeout_seconds: float = 120.0
    first_wait_seconds: float = 1.0
    """Before the second attempt, if the server does not say; doubled before each further one."""

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"url": self.base_url, "model": self.model, "parameters": dict(self.parameters)}

    def answer(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply | Refusal]]:
        """After a failure nothing more is sent, and what is in flight is awaited, for it may have to be paid."""
        is_over, failure = threading.Event(), None
        left, flying = list(enumerate(requests))[::-1], {}
        with ThreadPoolExecutor(self.concurrency) as pool:
            try:
                while flying or (left and failure is None):
                    while left and failure is None and len(flying) < self.concurrency:
                        index, request = left.pop()
                        flying[pool.submit(self._ask, request, is_over)] = index
                    for future in wait(flying, return_when=FIRST_COMPLETED).done:
                        index = flying.pop(future)
                        if future.exception() is None:
                            yield index, future.result()
                        else:
                            failure = failure or future.exception()
                            is_over.set()
            finally:
                is_over.set()
        if failure is not None:
            raise failure

    def _ask(self, request: Request, is_over: threading.Event) -> Reply | Refusal:
        body = json.dumps({"model": self.model, "messages": request.to_json(), **self.parameters}).encode()
        reason = ""
        for attempt in range(self.attempts):
            try:
                return self._post(body, request)
            except _Passing as error:
                reason = str(error)
                asked = self.first_wait_seconds * 2**attempt if error.wait_seconds is None else error.wait_seconds
            if attempt + 1 < self.attempts and is_over.wait(min(asked, MAX_WAIT_SECONDS)):
                break
        raise DataError(
            f"{self.base_url}: gave up after {self.attempts} attempts: {reason}; run the same command to go on"
        )

    def _post(self, body: bytes, request: Request) -> Reply | Refusal:
        headers = {"Content-Type": "application/json", "User-Agent": "sae-atlas"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        post = urllib.request.Request(f"{self.base_url}/chat/completions", body, headers, method="POST")
        try:
            with _OPENER.open(post, timeout=self.timeout_seconds) as response:
                return self._read(response.read(MAX_BYTES), request)
        except urllib.error.HTTPError as error:
            with error:
                return self._refused(error)
        except urllib.error.URLError as error:
            raise _Passing(self._clean(str(error.reason))) from None
        except (OSError, http.client.HTTPException) as error:
            raise _Passing(self._clean(str(error) or type(error).__name__)) from None

    def _refused(self, error: urllib.error.HTTPError) -> Refusal:
        try:
            said = self._clean(error.read(MAX_BYTES).decode(errors="replace"))
        except (OSError, http.client.HTTPException):
            said = ""
        reason = f"HTTP {error.code} {said}".strip()
        if error.code in RETRIED or error.code >= 500:
            raise _Passing(reason, _seconds(error.headers.get("Retry-After")))
        if error.code in REFUSED:
            return Refusal(reason)
        raise DataError(f"{self.base_url}: {reason}; see analysis.llm.base_url, model and key_env")

    def _read(self, raw: bytes, request: Request) -> Reply:
        """The text of the first choice, and the tokens that the server counts; about, where it counts none."""
        try:
            value = json.loads(raw)
            text = value["choices"][0]["message"].get("content") or ""
            usage = value.get("usage") or {}
            read, written = usage.get("prompt_tokens"), usage.get("completion_tokens")
            text = text.replace(self.key, "***") if self.key else text  # of a server that echoes what it gets
        except (ValueError, LookupError, TypeError, AttributeError):
            raise _Passing("its answer is none of a chat completion") from None
        return Reply(
            text,
            read if isinstance(read, int) else tokens_of(request.text),
            written if isinstance(written, int) else tokens_of(text),
        )

    def _clean(self, text: str) -> str:
        """What may be shown of a server's message: never the key, and nothing that a terminal would obey."""
        if self.key is not None:
            text = text.replace(self.key, "***")
        return "".join(c if c.isprintable() else " " for c in text[:MAX_SHOWN])


def _seconds(text: str | None) -> float | None:
    """Of a Retry-After header; a date is passed over."""
    try:
        seconds = float(text or "")
    except ValueError:
        return None
    return seconds if 0 <= seconds < math.inf else None
