"""Golden files of OpenAI's `sparse_autoencoder`, written by its own `Autoencoder`.

Package: github.com/openai/sparse_autoencoder at 4965b941e9eb590b00b253a2c406db1e1b193942 (MIT), not installed: only
its `sparse_autoencoder/model.py` is imported, which needs nothing but torch. Ran with torch 2.13.0, CPU:

    git clone https://github.com/openai/sparse_autoencoder $PEERS/openai
    git -C $PEERS/openai checkout 4965b94
    OMP_NUM_THREADS=1 $PEERS/sparsify/bin/python tests/golden/make_openai.py $PEERS/openai
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch
from rows import D_IN, N_LATENTS, check_same, fill, generator, rows, save_expected

ORIGIN = "openai/sparse_autoencoder 4965b94"
HERE = Path(__file__).parent / "openai"


def load_model_file(checkout: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("oai_model", checkout / "sparse_autoencoder" / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    oai = load_model_file(Path(sys.argv[1]))
    cases = {
        # v1, v4: ReLU on the inputs as they are
        "relu": (torch.nn.ReLU(), False),
        # v5: TopK on layer-normed inputs, as `state_dict` writes it today, with `activation.k` and
        # `activation.postact_fn` as entries of their own, which the strict `from_state_dict` then refuses
        "topk_layer_norm": (oai.TopK(k=4), True),
        # the same without those two entries, as `from_state_dict` accepts it
        "topk_layer_norm_strict": (oai.TopK(k=4), True),
        # not among the released ones, but written by the same code: signed values survive the selection
        "topk_identity": (oai.TopK(k=4, postact_fn=torch.nn.Identity()), True),
    }
    for seed, (case, (activation, normalize)) in enumerate(cases.items(), start=511):
        strict = case in ("relu", "topk_layer_norm_strict")
        model = oai.Autoencoder(N_LATENTS, D_IN, activation=activation, normalize=normalize)
        fill(model, seed)
        g = generator(seed)
        model.stats_last_nonzero.copy_(torch.randint(1, 1000, (N_LATENTS,), generator=g))
        model.latents_activation_frequency.copy_(torch.rand(N_LATENTS, generator=g))
        model.latents_mean_square.copy_(torch.rand(N_LATENTS, generator=g))
        folder = HERE / case
        folder.mkdir(parents=True, exist_ok=True)
        state = model.state_dict()
        if strict:
            for name in ("activation.k", "activation.postact_fn"):
                state.pop(name, None)
        torch.save(state, folder / "8.pt")  # a released file is called <layer>.pt

        again = oai.Autoencoder.from_state_dict(torch.load(folder / "8.pt", weights_only=True), strict=strict)
        # with layer norm no row is the centre: the bias is subtracted after it
        centre = None if normalize else model.pre_bias
        x = rows(lambda x, m=again: m.encode(x)[0], seed, centre)
        with torch.no_grad():
            before = model(x)
            pre_acts, latents, recon = again(x)
        check_same(before, (pre_acts, latents, recon), case)
        save_expected(folder, ORIGIN, x, latents, recon)


if __name__ == "__main__":
    main()
