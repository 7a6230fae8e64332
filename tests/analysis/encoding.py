"""A dictionary that encodes; and the program of each process of a team that does so together."""

from collections.abc import Sequence
from pathlib import Path

import torch

from analysis import encode
from analysis.config import IndexConfig
from sae.architectures.configs import TopKConfig
from sae.architectures.topk import TopKSAE
from sae.dictionary import InputStats, Shape
from sae.scaling import SiteStats
from sae.stage import Box, open_box, stages
from sae.store import ActivationStore, Places
from sae.tokens import TokenStore

SITE, N = "mlp_out.1", 24
PART_ROWS = 64  # of many parts


def make_dictionary() -> TopKSAE:
    made = TopKSAE(TopKConfig(n_latents=N, k=4), Shape((16,)))
    rows = torch.randn(50, 16, generator=torch.Generator().manual_seed(1))
    stats = (SiteStats(16, 4.0, 16.0),)
    made.initialise(InputStats(stats, stats, rows, rows), torch.Generator().manual_seed(0))
    return made.eval()


def build(path: Path, activations: ActivationStore, store: TokenStore, **choices) -> Box:
    cfg = IndexConfig(**choices)

    def make(paths):
        return [encode.build(make_dictionary(), N, activations, Places((SITE,)), store, cfg, paths[0])]

    return stages({path: {}}, make, is_shared=True)[0]


def main(arguments: Sequence[str]) -> None:
    """Of a process of its own: TOKENS ACTIVATIONS OUT."""
    encode.PART_ROWS = PART_ROWS
    token_box, activation_box, out = map(Path, arguments)
    build(out, ActivationStore(open_box(activation_box)), TokenStore(open_box(token_box)), kept_tokens=150)
