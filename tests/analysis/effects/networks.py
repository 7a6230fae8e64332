"""Networks whose output under an edit is known, for the views of the small town of texts."""

from types import SimpleNamespace

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from sae.architectures.configs import TopKConfig
from sae.architectures.topk import TopKSAE
from sae.dictionary import Shape
from sae.model import Subject


def subject_of(model: nn.Module) -> Subject:
    """Nothing here asks its tokenizer."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"?": 0}, unk_token="?")))
    return Subject("tiny", model.eval().requires_grad_(False), tokenizer, "", "float32", torch.device("cpu"))


def dictionary_of(directions: torch.Tensor, **choices) -> TopKSAE:
    """A dictionary with these decoder rows; its bias must not matter."""
    dictionary = TopKSAE(TopKConfig(n_latents=len(directions), k=1, **choices), Shape((directions.shape[1],)))
    with torch.no_grad():
        dictionary.W_dec.copy_(directions)
        dictionary.b_dec.copy_(torch.linspace(-1, 1, directions.shape[1]))
    return dictionary.eval()


def plain_rows(x: torch.Tensor) -> torch.Tensor:
    """Rows that are not normalised one by one."""
    return torch.ones(len(x), 1)


class Spelled(nn.Module):
    """Coordinate v of the stream is the logit of token v, so that a latent's direction names what it does.

    One more coordinate adds itself to the logit of token 0 after even tokens, and takes itself away after odd ones; the
    last says nothing. No token looks at another.
    """

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.stream = nn.Embedding(vocabulary, vocabulary + 2)
        with torch.no_grad():
            self.stream.weight.copy_(
                torch.randn(vocabulary, vocabulary + 2, generator=torch.Generator().manual_seed(0))
            )

    def forward(self, input_ids: torch.Tensor, attention_mask=None, position_ids=None) -> SimpleNamespace:  # noqa: ARG002
        x = self.stream(input_ids)
        fickle = x[..., self.vocabulary] * (1 - 2 * (input_ids % 2))
        logits = x[..., : self.vocabulary] + fickle[..., None] * nn.functional.one_hot(torch.tensor(0), self.vocabulary)
        return SimpleNamespace(logits=logits)


class SpelledAlone(Spelled):
    """The same, but that it takes token ids only: each edit needs a pass of its own."""

    def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
        return super().forward(input_ids)


def random_models(vocabulary: int) -> dict[str, nn.Module]:
    """Three families, with weights large enough to matter."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "initializer_range": 0.3,
    }
    gpt2 = {"n_positions": 128, "n_embd": 16, "n_layer": 3, "n_head": 2, "initializer_range": 0.3}
    return {
        "gpt2": GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, **gpt2)),
        "llama": LlamaForCausalLM(LlamaConfig(**sizes)),
        "neox": GPTNeoXForCausalLM(GPTNeoXConfig(**sizes)),
    }
