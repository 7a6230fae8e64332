"""A published dictionary: its page in full, the folder that it is read from, what goes to the hub and what does not."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from sae import hub
from sae.architectures.configs import JumpReLUConfig, TopKConfig
from sae.architectures.jumprelu import JumpReLUSAE
from sae.architectures.topk import TopKSAE
from sae.card import card
from sae.dictionary import Shape
from sae.errors import StoreError
from tests.sae import checks
from tests.sae.checks import X

FIGURES = {"l0": 12.345678, "fvu": 0.25, "n_rows": 4096, "dead_fraction": 0.0, "seconds": 3.0}
FACTS = {"inputs": ["mlp_in.3"], "outputs": ["mlp_out.3"], "model": "openai-community/gpt2"}


def dictionary() -> TopKSAE:
    return checks.example(TopKSAE, TopKConfig(n_latents=4, k=2))


@pytest.fixture
def published(tmp_path: Path) -> Path:
    hub.save_pretrained(dictionary(), {"inputs": ["mlp_out.3"], "model": "gpt2"}, tmp_path, FIGURES)
    return tmp_path


# --- the page ---


def test_the_page_in_full():
    one = JumpReLUSAE(JumpReLUConfig(n_latents=4, threshold=0.5), Shape((2,), (3,)))
    content, _ = hub.describe(one, FACTS)
    content["config"] = {"n_latents": 4, "threshold": 0.5, "skip": False, "normalise": "rms"}
    assert card(content, FIGURES).splitlines() == [
        "---",
        "library_name: sae-atlas",
        "tags: [sparse-autoencoder, interpretability, sae-atlas]",
        'base_model: "openai-community/gpt2"',
        "---",
        "",
        "# 4 features of openai-community/gpt2",
        "",
        "JumpReLU with an L0 penalty (Rajamanoharan et al. 2024, arXiv:2407.14435; settings of Gemma Scope, "
        "arXiv:2408.05147). Thresholds and bandwidth are in units of inputs with mean squared norm 1. "
        "It reads `mlp_in.3` and writes `mlp_out.3`.",
        "",
        "```python",
        "from sae import hub",
        "",
        'dictionary = hub.from_pretrained("<this repository>")',
        "latents, recon = dictionary.reconstruct(x)  # x: [batch, d_in], in the network's own units",
        "```",
        "",
        "| measured on held-out text | |",
        "|---|---|",
        "| L0, mean active latents of a row | 12.35 |",
        "| FVU, unexplained share of the variance | 0.25 |",
        "| latents that never fire | 0 |",
        "| rows measured on | 4096 |",
        "",
        "| choice | |",
        "|---|---|",
        "| type | jumprelu |",
        "| n_latents | 4 |",
        "| threshold | 0.5 |",
        "| skip | false |",
        '| normalise | "rms" |',
    ]


def test_the_page_says_how_it_was_trained():
    """Choices of the training, and those that are no longer what they were."""
    content, _ = hub.describe(dictionary().folded(), {})
    content["facts"]["trained"] = {
        "sae": {**content["config"], "decoder": "folded"},
        "train": {"tokens": 1000, "lr": None, "betas": [0.9, 0.999], "optimizer": "adam"},
    }
    assert '| decoder | "unit" |' in card(content, None)
    assert card(content, None).split("| trained with | |")[1].splitlines() == [
        "",
        "|---|---|",
        '| decoder | "folded" |',
        "| tokens | 1000 |",
        "| betas | [0.9, 0.999] |",
        '| optimizer | "adam" |',
    ]


def test_a_page_of_what_is_not_known():
    """No network, no site, nothing measured: a dictionary that has been converted may have none of them."""
    content, _ = hub.describe(dictionary(), {})
    lines = card(content, None).splitlines()
    assert "# 4 features of a network" in lines
    assert not any(line.startswith("base_model") for line in lines)
    assert any(line.endswith("It reads activations and reconstructs it.") for line in lines)
    assert "| measured on held-out text | |" not in lines


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("/home/me/models/my-gpt", "my-gpt"),
        ("./my-gpt/", "my-gpt"),
        ("../models/my-gpt", "my-gpt"),
        ("runs/subject/model", "model"),
        ("here/my-gpt", "my-gpt"),
        ("embedded", "embedded"),
    ],
)
def test_what_is_not_on_the_hub_is_no_base_model(model, name, tmp_path, monkeypatch):
    """A folder gives away nothing but its own name, even if it looks like a repository."""
    (tmp_path / "here/my-gpt").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    content, _ = hub.describe(dictionary(), {"model": model})
    lines = card(content, None).splitlines()
    assert not [line for line in lines if line.startswith("base_model")]
    assert f"# 4 features of {name}" in lines


@pytest.mark.parametrize("model", ["gpt2", "EleutherAI/pythia-70m-deduped", "google/gemma-2-2b"])
def test_what_is_on_the_hub_is(model):
    content, _ = hub.describe(dictionary(), {"model": model})
    assert f'base_model: "{model}"' in card(content, None).splitlines()


# --- a folder ---


def test_a_folder_there_and_back(published):
    assert sorted(path.name for path in published.iterdir()) == [
        "README.md",
        "dictionary.json",
        "dictionary.safetensors",
    ]
    assert "| FVU, unexplained share of the variance | 0.25 |" in (published / "README.md").read_text()
    for name in (published, str(published)):
        loaded = hub.from_pretrained(name)
        assert torch.equal(loaded.reconstruct(X)[1], dictionary().reconstruct(X)[1])


# --- the hub ---


class Api:
    """Stands in for huggingface_hub.HfApi, and remembers what it was asked."""

    calls: list[tuple[str, Any]]

    def __init__(self, token: str | None = None) -> None:
        Api.calls = [("token", token)]

    def create_repo(self, repository: str, **choices: Any) -> None:
        Api.calls.append((repository, choices))

    def upload_folder(self, **choices: Any) -> str:
        Api.calls.append(("upload", choices))
        return "https://huggingface.co/me/it/commit/1"


def test_what_is_sent_to_the_hub(published, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    (published / "curve.json").write_text("[]")  # a run's own files are not sent
    address = hub.push_to_hub(published, "me/it", private=True, token="secret")
    assert address == "https://huggingface.co/me/it/commit/1"
    assert Api.calls == [
        ("token", "secret"),
        ("me/it", {"private": True, "exist_ok": True}),
        (
            "upload",
            {
                "repo_id": "me/it",
                "folder_path": published,
                "allow_patterns": ["dictionary.json", "dictionary.safetensors", "README.md"],
            },
        ),
    ]


def test_a_folder_without_a_dictionary_is_not_sent(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    Api.calls = []
    with pytest.raises(StoreError, match=r"dictionary\.json: no such file"):
        hub.push_to_hub(tmp_path, "me/it")
    assert Api.calls == []


def test_a_repository_is_read_at_its_revision(published, monkeypatch):
    asked = []

    def snapshot_download(name: str, **choices: Any) -> str:
        asked.append((name, choices))
        return str(published)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    loaded = hub.from_pretrained("me/it", revision="v2")
    assert torch.equal(loaded.reconstruct(X)[1], dictionary().reconstruct(X)[1])
    patterns = ["*dictionary.json", "*dictionary.safetensors", "*README.md"]
    assert asked == [("me/it", {"revision": "v2", "allow_patterns": patterns})]


def test_a_repository_that_cannot_be_reached_is_named():
    """Tests have no network: huggingface_hub says so itself."""
    with pytest.raises(StoreError) as caught:
        hub.from_pretrained("nobody/nothing")
    assert str(caught.value).startswith("nobody/nothing: no such folder, and not to be had from the hub: ")
