"""The page that explains a published dictionary: a Hugging Face model card, made from its files."""

import json
from collections.abc import Mapping
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


def card(content: Mapping[str, Any], figures: Mapping[str, Any] | None) -> str:
    """Markdown with a YAML header.

    Args:
        content: what `dictionary.json` holds.
        figures: an evaluation; those that are known by name are shown.
    """
    facts, config = content["facts"], content["config"]
    about = " ".join((configs.get(content["type"]).__doc__ or "").split())
    model = facts.get("model")
    header = ["library_name: sae-atlas", "tags: [sparse-autoencoder, interpretability, sae-atlas]"]
    if model is not None:
        header.append(f"base_model: {json.dumps(model)}")
    reads = ", ".join(f"`{site}`" for site in facts.get("inputs", [])) or "activations"
    writes = ", ".join(f"`{site}`" for site in facts.get("outputs") or [])
    lines = [
        "---",
        *header,
        "---",
        "",
        f"# {config['n_latents']} features of {model or 'a network'}",
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
    return "\n".join(lines) + "\n"
