"""The page that explains a published dictionary: a Hugging Face model card, made from its files."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae.architectures.configs import configs

FIGURES = {
    "l0": "L0, mean active latents of a row",
    "fvu": "FVU, unexplained share of the variance",
    "explained_variance": "explained variance",
    "ce_recovered": "cross-entropy recovered (against mean ablation)",
    "kl": "KL divergence from the clean network, nats",
    "dead_fraction": "latents that never fire",
    "n_rows": "rows measured on",
}
HUB_NAME = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*", re.ASCII)
"""`gpt2`, `owner/repository`."""


def is_on_hub(model: str | None) -> bool:
    """Whether a network's name is that of a repository on the hub: no folder, and not the embedded one."""
    is_name = model is not None and model != "embedded" and HUB_NAME.fullmatch(model) is not None
    return is_name and not Path(model or "").is_dir()


def card(content: Mapping[str, Any], figures: Mapping[str, Any] | None) -> str:
    """Markdown with a YAML header.

    Args:
        content: what `dictionary.json` holds.
        figures: an evaluation; those that are known by name are shown.
    """
    facts, config = content["facts"], content["config"]
    about = " ".join((configs.get(content["type"]).__doc__ or "").split())
    model = facts.get("model")
    # of a folder its own name: where it lies on somebody's machine is nobody's business
    name = model if model is None or is_on_hub(model) else Path(model).name
    header = ["library_name: sae-atlas", "tags: [sparse-autoencoder, interpretability, sae-atlas]"]
    if is_on_hub(model):
        header.append(f"base_model: {json.dumps(model)}")
    reads = ", ".join(f"`{site}`" for site in facts.get("inputs", [])) or "activations"
    writes = ", ".join(f"`{site}`" for site in facts.get("outputs") or [])
    lines = [
        "---",
        *header,
        "---",
        "",
        f"# {config['n_latents']} features of {name or 'a network'}",
        "",
        f"{about} It reads {reads}" + (f" and writes {writes}." if writes else " and reconstructs it."),
        "",
        "```python",
        "from sae import hub",
        "",
        'dictionary = hub.from_pretrained("<this repository>")',
        "latents, recon = dictionary.reconstruct(x)  # x: [batch, d_in], in the network's own units",
        "```",
    ]
    known = [(text, figures[name]) for name, text in FIGURES.items() if figures is not None and name in figures]
    if known:
        lines += ["", "| measured on held-out text | |", "|---|---|"]
        lines += [
            f"| {text} | {value:.4g} |" if isinstance(value, float) else f"| {text} | {value} |"
            for text, value in known
        ]
    lines += ["", "| choice | |", "|---|---|", f"| type | {content['type']} |"]
    lines += [f"| {name} | {json.dumps(value)} |" for name, value in config.items()]
    trained = facts.get("trained", {"sae": {}, "train": {}})
    other = {name: value for name, value in trained["sae"].items() if value != config.get(name)}
    told = {name: value for name, value in {**other, **trained["train"]}.items() if value is not None}
    if told:
        lines += ["", "| trained with | |", "|---|---|"]
        lines += [f"| {name} | {json.dumps(value)} |" for name, value in told.items()]
    return "\n".join(lines) + "\n"
