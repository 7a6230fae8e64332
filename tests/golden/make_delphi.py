"""A golden cache of EleutherAI's `delphi`, written by its own `LatentCache`.

Package: eai-delphi==0.1.3 (Apache-2.0), torch==2.13.0 CPU; of its requirements those that its loader imports:

    python3 -m venv $PEERS/delphi
    $PEERS/delphi/bin/pip install torch==2.13.0 numpy safetensors jaxtyping asyncer orjson blobfile simple_parsing \
        transformers datasets faiss-cpu sentence-transformers
    $PEERS/delphi/bin/pip install --no-deps eai-delphi==0.1.3
    $PEERS/delphi/bin/python tests/golden/make_delphi.py

`delphi/mlp_out.1/` is what `save_splits` and `save_config` leave of the firings below, in two files of three latents.
"""

from pathlib import Path

import torch
from delphi.config import CacheConfig
from delphi.latents import LatentCache

HERE = Path(__file__).parent / "delphi"
TOKENS = [[0, 1, 2, 3, 4, 5, 6, 7], [7, 6, 5, 4, 3, 2, 1, 0], [1, 1, 2, 2, 3, 3, 4, 4]]
FIRINGS = [(0, 1, 0, 4.0), (0, 7, 0, 2.0), (2, 3, 0, 0.5), (0, 2, 2, 1.5), (1, 1, 2, 3.0), (1, 1, 5, 0.25)]
"""Row, place in it, latent, activation."""


def main() -> None:
    latents = torch.zeros(3, 8, 6)
    for row, place, latent, value in FIRINGS:
        latents[row, place, latent] = value
    cache = LatentCache(torch.nn.Linear(1, 1), {"mlp_out.1": lambda x: x}, batch_size=3)  # a network that is not run
    cache.width = 6
    cache.cache.add(latents, torch.tensor(TOKENS), 0, "mlp_out.1")
    cache.cache.save()
    HERE.mkdir(exist_ok=True)
    cache.save_splits(n_splits=2, save_dir=HERE)
    cfg = CacheConfig(dataset_repo="books", dataset_split="train", cache_ctx_len=8, n_tokens=24, n_splits=2)
    cache.save_config(HERE, cfg, "tiny")


if __name__ == "__main__":
    main()
