"""A causal language model of the Hugging Face hub, or of a folder, that answers in this process."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from analysis.chat.request import Message, Refusal, Reply, Request
from sae.errors import DataError
from sae.model import default_device, folder_digest, max_context
from sae.text import EMBEDDED


@dataclass(frozen=True)
class LocalModel:
    """A `Backend`: greedy, so that the same question has the same answer, up to the rounding of other batches.

    A model without a chat template is given the messages one below the other.
    """

    name: str
    """`embedded`, a folder, or a name on the hub."""
    max_tokens: int
    """Of a reply."""
    batch: int = 8
    revision: str | None = None
    device: torch.device = field(default_factory=default_device)

    @property
    def identity(self) -> Mapping[str, Any]:
        return self._identity

    @cached_property
    def _identity(self) -> Mapping[str, Any]:
        folder = self._folder
        known = {"files": folder_digest(folder)} if folder else {"revision": self.revision}
        return {"model": self.name, "max_tokens": self.max_tokens, **known}

    @property
    def _folder(self) -> Path | None:
        folder = EMBEDDED / "model" if self.name == "embedded" else Path(self.name)
        return folder if folder.is_dir() else None

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """(model, tokenizer), when the first question is asked that the cache does not know."""
        where = str(self._folder or self.name)
        logging.disable_progress_bar()
        try:
            tokenizer = AutoTokenizer.from_pretrained(where, revision=self.revision, padding_side="left")
            model = AutoModelForCausalLM.from_pretrained(
                where, revision=self.revision, use_safetensors=True, dtype="auto"
            )
        except (OSError, ValueError) as error:
            first_line = str(error).strip().splitlines()[0]
            raise DataError(f"analysis.llm.model = {self.name!r}: cannot be loaded: {first_line}") from None
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        cast(nn.Module, model).eval().to(self.device)
        return model, tokenizer

    def answer(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply | Refusal]]:
        model, tokenizer = self._loaded
        room = (max_context(model) or tokenizer.model_max_length) - self.max_tokens
        texts = [self._text(request.messages) for request in requests]
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        fitting = []
        for i, own in enumerate(ids):
            if len(own) <= room:
                fitting.append(i)
            else:
                yield i, Refusal(f"{len(own)} tokens, and the model has room for {max(room, 0)} and a reply")
        fitting.sort(key=lambda i: len(ids[i]))  # little padding
        for start in range(0, len(fitting), self.batch):
            own = fitting[start : start + self.batch]
            yield from zip(own, self._generate([ids[i] for i in own]), strict=True)

    @torch.no_grad()
    def _generate(self, ids: Sequence[Sequence[int]]) -> list[Reply]:
        model, tokenizer = self._loaded
        batch = tokenizer.pad({"input_ids": list(ids)}, return_tensors="pt").to(self.device)
        written = model.generate(
            **batch,
            max_new_tokens=self.max_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=tokenizer.pad_token_id,
        )[:, batch["input_ids"].shape[1] :]
        replies = []
        for own, new in zip(ids, written, strict=True):
            text = tokenizer.decode(new, skip_special_tokens=True)
            replies.append(Reply(text, len(own), int((new != tokenizer.pad_token_id).sum())))
        return replies

    def _text(self, messages: Sequence[Message]) -> str:
        """The prompt; what looks like a control token in a message, which may quote any text, is broken up."""
        _, tokenizer = self._loaded
        plain = [{"role": m.role, "content": _without(m.content, tokenizer.all_special_tokens)} for m in messages]
        if tokenizer.chat_template is None:
            return "\n\n".join(message["content"] for message in plain) + "\n\n"
        return tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)


def _without(text: str, special: Sequence[str]) -> str:
    for token in special:
        if token:
            text = text.replace(token, f"{token[:1]} {token[1:]}")
    return text
