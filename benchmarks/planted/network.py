"""A network whose features are known: its weights are written, not learnt.

It reads its tokens forwards and knows, at each, which of its features hold: rules (`rules.py`) on the token, on the two
before it, and on what it has counted up to there. What it passes on, the site `stream:out`, is

    x = sum over features f that hold of a_f d_f + background

with unit directions d_f, more of them than dimensions, lognormal magnitudes a_f, and a small vector that depends on the
tokens in no simple way. Importing this makes it one that a run can name (`plugins`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import CausalLMOutput

from analysis.splits import token_strings
from benchmarks.planted.counters import NAMES, Marks, counts, recently
from benchmarks.planted.rules import Rule, Text

SITE = "stream:out"
OFFSETS = (0, -1, -2)
COUNTS = (*NAMES, *(f"{name}_before" for name in NAMES))
MIX = 1 << 14
"""Entries of the tables that magnitudes and background are looked up in, by a hash of the tokens."""
CONTEXTS = 64
"""Read at once."""
SPREAD = 0.25
"""Standard deviation of the logarithm of a magnitude."""
BACKGROUND = 0.02
"""Standard deviation of the background in each dimension, beside directions of length 1 and magnitudes around 1."""


class PlantedConfig(PretrainedConfig):
    model_type = "planted"

    def __init__(
        self,
        vocab_size: int = 2,
        hidden_size: int = 1,
        n_features: int = 1,
        n_conditions: int = 1,
        n_bounds: int = 0,
        marker: int = 0,
        max_position_embeddings: int = 256,
        **others: Any,
    ) -> None:
        self.vocab_size, self.hidden_size, self.n_features = vocab_size, hidden_size, n_features
        self.n_conditions, self.n_bounds, self.marker = n_conditions, n_bounds, marker
        self.max_position_embeddings = max_position_embeddings
        super().__init__(**others)


class Features(nn.Module):
    """Which features hold, and how strongly: `[contexts, width, n_features]`."""

    allowed: Tensor
    """`[offsets, vocabulary, n_conditions]`, bool: whether a condition lets a token stand there."""
    bounds: Tensor
    """`[n_bounds, 4]`: (condition, count, low, high)."""
    words: Tensor
    """`[vocabulary, n_conditions]`, bool: words of which one must be among the last `reach` tokens."""
    reach: Tensor
    """`[n_conditions]`; 0: a condition asks for no words."""
    owner: Tensor
    """`[n_conditions]`: the feature that a condition is one of."""
    marks: Tensor
    """`[9, vocabulary]`: `Marks`, in their order."""
    sizes: Tensor
    """`[n_features]`: typical magnitudes."""
    mix: Tensor
    """`[MIX]`: standard normal numbers."""

    def __init__(self, cfg: PlantedConfig) -> None:
        super().__init__()
        self.n_features = cfg.n_features
        v, c = cfg.vocab_size, cfg.n_conditions
        for name, shape, kind in (
            ("allowed", (len(OFFSETS), v, c), torch.bool),
            ("bounds", (cfg.n_bounds, 4), torch.long),
            ("words", (v, c), torch.bool),
            ("reach", (c,), torch.long),
            ("owner", (c,), torch.long),
            ("marks", (len(Marks._fields), v), torch.long),
            ("sizes", (cfg.n_features,), torch.float32),
            ("mix", (MIX,), torch.float32),
        ):
            self.register_buffer(name, torch.zeros(shape, dtype=kind))

    def holds(self, tokens: Int[Tensor, "contexts width"]) -> Bool[Tensor, "contexts width n_features"]:
        """Which features hold; none at the first position of a context."""
        held = self.allowed[0][tokens]
        for table, offset in zip(self.allowed[1:], OFFSETS[1:], strict=True):
            held[:, -offset:] &= table[tokens[:, :offset]]
            held[:, :-offset] &= table.all(dim=0)  # before the context stands nothing: only what asks nothing of it
        known = counts(tokens, Marks(*(row if name == "brackets" else row > 0 for name, row in self._marks())))
        for condition, count, low, high in self.bounds.tolist():
            value = known[COUNTS[count]]
            held[..., condition] &= (value >= low) & (value < high)
        for condition in self.reach.nonzero()[:, 0].tolist():
            held[..., condition] &= recently(self.words[:, condition][tokens]) < self.reach[condition]
        held[:, 0] = False
        features = held.new_zeros(*tokens.shape, self.n_features, dtype=torch.float32)
        return features.index_add_(2, self.owner, held.float()) > 0

    def _marks(self) -> list[tuple[str, Tensor]]:
        return list(zip(Marks._fields, self.marks, strict=True))

    def forward(self, tokens: Int[Tensor, "contexts width"]) -> Float[Tensor, "contexts width n_features"]:
        at = self.holds(tokens).nonzero(as_tuple=True)
        salt = hashed(tokens)[at[:2]] + 7919 * at[2]
        acts = torch.zeros(*tokens.shape, self.n_features)
        acts[at] = self.sizes[at[2]] * torch.exp(SPREAD * self.mix[salt % MIX])
        return acts


def hashed(tokens: Int[Tensor, "contexts width"]) -> Int[Tensor, "contexts width"]:
    """A number for each token and the one before it."""
    before = torch.cat([torch.zeros_like(tokens[:, :1]), tokens[:, :-1]], dim=1)
    return tokens * 40503 + before * 30011


class PlantedModel(PreTrainedModel):
    """Features → directions → stream → logits, in which every feature promotes a token of its own."""

    config_class = PlantedConfig
    main_input_name = "input_ids"

    def __init__(self, config: PlantedConfig) -> None:
        super().__init__(config)
        self.features = Features(config)
        self.background = nn.Embedding(MIX, config.hidden_size)
        self.write = nn.Linear(config.n_features, config.hidden_size, bias=False)
        self.stream = nn.Identity()
        self.head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """All weights are written by `build`."""

    def get_input_embeddings(self) -> nn.Module:
        return nn.Embedding.from_pretrained(self.head.weight)

    def forward(self, input_ids: Int[Tensor, "contexts width"], **_: object) -> CausalLMOutput:
        x = self.write(self.features(input_ids)) + self.background(hashed(input_ids) % MIX)
        return CausalLMOutput(logits=self.head(self.stream(x)))


AutoConfig.register("planted", PlantedConfig)
AutoModelForCausalLM.register(PlantedConfig, PlantedModel)


@torch.no_grad()
def build(rules: Sequence[Rule], tokenizer: PreTrainedTokenizerBase, d_model: int, seed: int) -> PlantedModel:
    """The network whose features are `rules`, all of them causal.

    Directions and magnitudes are drawn: unit vectors anywhere, typical magnitudes lognormal around 1.
    """
    strings = token_strings(tokenizer)
    conditions = [(number, each) for number, rule in enumerate(rules) for each in rule.conditions]
    bounds = [
        (at, COUNTS.index(name), low, high)
        for at, (_, each) in enumerate(conditions)
        for name, low, high in each.bounds
    ]
    cfg = PlantedConfig(
        vocab_size=len(strings),
        hidden_size=d_model,
        n_features=len(rules),
        n_conditions=len(conditions),
        n_bounds=len(bounds),
        marker=marker_of(tokenizer),
    )
    model, generator = PlantedModel(cfg), torch.Generator().manual_seed(seed)
    own, anything = model.features, np.ones(len(strings), dtype=bool)
    for at, (number, each) in enumerate(conditions):
        assert each.is_causal and min(each.tokens, default=0) >= min(OFFSETS)
        own.owner[at] = number
        for place, offset in enumerate(OFFSETS):
            own.allowed[place, :, at] = torch.from_numpy(each.tokens.get(offset, anything))
        if each.soon is not None:
            own.words[:, at], own.reach[at] = torch.from_numpy(each.soon[0]), each.soon[1]
    own.bounds.copy_(torch.tensor(bounds, dtype=torch.long).view(-1, 4))
    own.marks.copy_(torch.stack([row.long() for row in Marks.of(strings, cfg.marker)]))
    own.sizes.copy_(torch.exp(SPREAD * torch.randn(len(rules), generator=generator)))
    own.mix.copy_(torch.randn(MIX, generator=generator))
    directions = nn.functional.normalize(torch.randn(len(rules), d_model, generator=generator), dim=1)
    model.write.weight.copy_(directions.T)
    model.background.weight.copy_(BACKGROUND * torch.randn(MIX, d_model, generator=generator))
    model.head.weight.zero_().index_add_(0, torch.randperm(len(strings), generator=generator)[: len(rules)], directions)
    model.head.bias.zero_()
    return model.eval()


def marker_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that begins a document."""
    marker = tokenizer.bos_token_id
    assert isinstance(marker, int)
    return marker


def save(model: PlantedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """As a folder that a run can name."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@torch.no_grad()
def firings(model: PlantedModel, text: Text) -> np.ndarray:
    """Which features hold at each position, `[n, n_features]`, bool."""
    held = [model.features.holds(part).numpy() for part in text.grid.split(CONTEXTS)]
    return np.concatenate(held)[text.is_token]
