"""What every test may use: a tiny network, its tokenizer, a tiny text, and boxes made from them."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything reads it: no test uses a network
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads of a command that wait leave the processor to others
if os.access("/dev/shm", os.W_OK):  # boxes wait for the disk (fsync); in memory that is nothing
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", "/dev/shm")

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is defined, Triton's own among them

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from sae import tokens
from sae.config import DataConfig, HarvestConfig
from sae.harvest import harvest
from sae.model import Subject
from sae.stage import Box, stage
from sae.store import ActivationSplit, ActivationStore, write_shard
from sae.text import Document
from sae.tokens import TokenStore

settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("repeatable")
torch.set_num_threads(1)  # everything here is tiny

VOCABULARY = 300
CONTEXT = 16
SENTENCES = (
    "The cat sat on the mat.",
    "A dog barked at the cat, and the cat ran away.",
    "In the beginning was the word.",
    "It was the best of times, it was the worst of times.",
    "Numbers such as 12 and 345 are tokens too.",
    "Naïve café: déjà vu!",
)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 300 entries; token 0 is `<s>`, its beginning of sequence."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(SENTENCES * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<s>")


@pytest.fixture(scope="session")
def gpt2() -> GPT2LMHeadModel:
    """A random GPT-2: 3 layers of width 16, 2 heads, 32 positions; weights large enough to matter."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=32,
        n_embd=16,
        n_layer=3,
        n_head=2,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def subject(gpt2: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast) -> Subject:
    return Subject("tiny", gpt2, tokenizer, "sha256:tiny", "float32", torch.device("cpu"))


@pytest.fixture(scope="session")
def corpus() -> list[Document]:
    """24 documents of 3 to 6 sentences; every split has some."""
    splits = ("train", "train", "train", "fit", "select", "test")
    return [
        Document(
            id=f"d{i}",
            source=f"s{i % 2}",
            title=f"Title {i}",
            text=" ".join(SENTENCES[(i + j) % len(SENTENCES)] for j in range(3 + i % 4)),
            split=splits[i % len(splits)],
        )
        for i in range(24)
    ]


@pytest.fixture(scope="session")
def make_box(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable[[Path], Mapping[str, Any]]], Box]:
    """`make_box(build)`: a finished box in a new folder."""

    def make(build: Callable[[Path], Mapping[str, Any]]) -> Box:
        return stage(tmp_path_factory.mktemp("box") / "box", {}, build)

    return make


@pytest.fixture(scope="session")
def make_tokens(make_box: Any, tokenizer: PreTrainedTokenizerFast, corpus: list[Document]) -> Callable[..., TokenStore]:
    """`make_tokens(packing="document", ...)`: the corpus as a token store."""

    def make(**choices: Any) -> TokenStore:
        cfg = DataConfig(**{"context": CONTEXT, **choices})
        return TokenStore(make_box(lambda out: tokens.build(corpus, tokenizer, cfg, out)))

    return make


@pytest.fixture(scope="session")
def token_store(make_tokens: Callable[..., TokenStore]) -> TokenStore:
    return make_tokens()


@pytest.fixture(scope="session")
def activation_store(make_box: Any, gpt2: GPT2LMHeadModel, token_store: TokenStore) -> ActivationStore:
    """Activations of two sites of the tiny network on the tiny text, in float32."""
    cfg = HarvestConfig(sites=("mlp_out.1", "resid_post.0"), dtype="float32", shard_rows=100, batch_tokens=64)
    return ActivationStore(make_box(lambda out: harvest(gpt2, cfg.sites, token_store, out, cfg)))


@pytest.fixture(scope="session")
def make_rows(make_box: Any) -> Callable[..., ActivationSplit]:
    """`make_rows(tensor, shard_rows=100)`: any rows as the activations of site `x` on `train`."""

    def make(rows: torch.Tensor, shard_rows: int = 1 << 20) -> ActivationSplit:
        def build(out: Path) -> Mapping[str, Any]:
            shards = []
            for i, part in enumerate(rows.split(shard_rows)):
                write_shard(out / f"{i}.safetensors", part, torch.float32)
                shards.append([f"{i}.safetensors", len(part)])
            site = {"d_in": rows.shape[1], "splits": {"train": shards}}
            return {"sites": {"x": site}, "skip_positions": 0, "dtype": "float32"}

        return ActivationStore(make_box(build)).split(["x"], "train")

    return make


@pytest.fixture
def count_calls() -> Iterator[Callable[[torch.nn.Module], list[int]]]:
    """`calls = count_calls(module)`: `len(calls)` is how often the module has run since."""
    handles = []

    def watch(module: torch.nn.Module) -> list[int]:
        calls: list[int] = []
        handles.append(module.register_forward_hook(lambda *_: calls.append(1)))
        return calls

    yield watch
    for handle in handles:
        handle.remove()
