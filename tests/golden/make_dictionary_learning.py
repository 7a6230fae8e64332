"""Golden checkpoints of `dictionary_learning`, written by its own classes and by its `trainSAE`.

Package: dictionary-learning==0.1.0 (MIT), torch==2.13.0 CPU, without torchvision (its wheel breaks the import here):

    python3 -m venv $PEERS/dictionary_learning
    $PEERS/dictionary_learning/bin/pip install torch==2.13.0 dictionary-learning==0.1.0
    OMP_NUM_THREADS=1 $PEERS/dictionary_learning/bin/python tests/golden/make_dictionary_learning.py

`trainSAE` writes `trainer_<i>/config.json` and `ae.pt`. The cases with random weights are laid out the same way:
`ae.pt` as `trainSAE` saves it (`torch.save` of the state dict on the CPU) and the trainer's own `config`.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import torch
from dictionary_learning import ActivationBuffer, AutoEncoder, GatedAutoEncoder
from dictionary_learning.dictionary import AutoEncoderNew, Dictionary
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE, BatchTopKTrainer
from dictionary_learning.trainers.gdm import GatedSAETrainer
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE, MatryoshkaBatchTopKTrainer
from dictionary_learning.trainers.standard import StandardTrainer, StandardTrainerAprilUpdate
from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer
from dictionary_learning.training import trainSAE
from dictionary_learning.utils import load_dictionary
from rows import D_IN, N_LATENTS, check_same, fill, generator, rows, save_expected
from torch import Tensor

ORIGIN = "dictionary-learning 0.1.0"
HERE = Path(__file__).parent / "dictionary_learning"
K = 3
STEPS = 40
WHERE = {"layer": 3, "lm_name": "EleutherAI/pythia-70m-deduped", "submodule_name": "mlp_3", "device": "cpu"}
SIZE = {"steps": 10_000, "activation_dim": D_IN, "dict_size": N_LATENTS, "seed": 0}


class RandomBuffer(ActivationBuffer):
    """The package's buffer, filled with random activations instead of a network's; its `config` is its own."""

    def __init__(self) -> None:
        super().__init__(
            data=iter(()),
            model=SimpleNamespace(dtype=torch.float32),
            submodule=None,
            d_submodule=D_IN,
            n_ctxs=32,
            ctx_len=16,
            refresh_batch_size=8,
            out_batch_size=64,
        )
        self.generator = generator(1)
        self.mixing = torch.randn(D_IN, D_IN, generator=self.generator)

    def refresh(self) -> None:
        noise = torch.randn(self.activation_buffer_size, D_IN, generator=self.generator)
        self.activations = 3 * noise.abs() @ self.mixing + 1
        self.read = torch.zeros(len(self.activations), dtype=torch.bool)


def centre_of(dictionary: Dictionary) -> Tensor | None:
    match dictionary:
        case AutoEncoder():
            return dictionary.bias
        case GatedAutoEncoder():
            return dictionary.decoder_bias
        case AutoEncoderTopK() | BatchTopKSAE() | MatryoshkaBatchTopKSAE():
            return dictionary.b_dec
        case _:
            return None


def keep(folder: Path, dictionary: Dictionary, seed: int) -> None:
    """Evaluates the folder's checkpoint, as read back by the class itself, and compares it with `dictionary`.

    `load_dictionary` brings the decoder of an `AutoEncoder` to unit norm, and so rescales its latents: what it makes of
    the same rows is kept beside them.
    """
    again = type(dictionary)(D_IN, N_LATENTS, *extra_sizes(dictionary))
    again.load_state_dict(torch.load(folder / "ae.pt"))
    loaded, _ = load_dictionary(str(folder), "cpu")
    x = rows(again.encode, seed, centre_of(again))
    with torch.no_grad():
        latents, recon = again.encode(x), again(x)
        check_same((dictionary.encode(x), dictionary(x)), (latents, recon), folder.name)
        more = {"loaded_latents": loaded.encode(x)} if isinstance(loaded, AutoEncoder) else {}
        check_same((recon,), (loaded(x),), f"{folder.name} by load_dictionary", tolerance=1e-4)
    save_expected(folder, ORIGIN, x, latents, recon, **more)


def extra_sizes(dictionary: Dictionary) -> tuple[object, ...]:
    match dictionary:
        case MatryoshkaBatchTopKSAE():
            return int(dictionary.k), dictionary.group_sizes.tolist()
        case AutoEncoderTopK() | BatchTopKSAE():
            return (int(dictionary.k),)
        case _:
            return ()


def random_cases() -> dict[str, tuple[Dictionary, dict[str, object]]]:
    """Each class with the `config` of the trainer that makes it; `AutoEncoderNew` has none, so its config is bare."""
    auto = StandardTrainer(**SIZE, **WHERE)
    april = StandardTrainerAprilUpdate(**SIZE, **WHERE)
    gated = GatedSAETrainer(**SIZE, **WHERE)
    jump = JumpReluTrainer(**SIZE, **WHERE)
    topk = TopKTrainer(**SIZE, **WHERE, k=K)
    batch = BatchTopKTrainer(**SIZE, **WHERE, k=K)
    unset = BatchTopKTrainer(**SIZE, **WHERE, k=K)
    matryoshka = MatryoshkaBatchTopKTrainer(**SIZE, **WHERE, k=K, group_fractions=[0.2, 0.3, 0.5])
    new = AutoEncoderNew(D_IN, N_LATENTS)
    new_config = {"dict_class": "AutoEncoderNew", "activation_dim": D_IN, "dict_size": N_LATENTS, **WHERE}
    return {
        "auto_encoder": (auto.ae, auto.config),
        "auto_encoder_april": (april.ae, april.config),
        "auto_encoder_new": (new, new_config),
        "gated": (gated.ae, gated.config),
        "jumprelu": (jump.ae, jump.config),
        "topk": (topk.ae, topk.config),
        "batch_topk": (batch.ae, batch.config),
        "batch_topk_unset": (unset.ae, unset.config),
        "matryoshka": (matryoshka.ae, matryoshka.config),
    }


def make_random() -> None:
    for seed, (case, (dictionary, config)) in enumerate(random_cases().items(), start=200):
        folder = HERE / case
        folder.mkdir(parents=True, exist_ok=True)
        # StandardTrainer and the top-k family keep their decoders at unit norm, the others do not
        fill(dictionary, seed, unit_decoder=case in ("auto_encoder", "topk"))
        if case in ("topk", "batch_topk", "matryoshka"):
            dictionary.threshold.fill_(0.6180339887)
        torch.save({k: v.cpu() for k, v in dictionary.state_dict().items()}, folder / "ae.pt")
        written = {"trainer": config, "buffer": RandomBuffer().config}
        (folder / "config.json").write_text(json.dumps(written, indent=4))
        keep(folder, dictionary, seed)


def make_trained() -> None:
    """One run of `trainSAE` over all seven trainers, with its normalisation of activations on."""
    torch.manual_seed(0)
    fast = {**SIZE, **WHERE, "steps": STEPS, "lr": 0.02, "warmup_steps": 4}
    sparse = {**fast, "sparsity_warmup_steps": 8}
    top = {**fast, "k": K, "threshold_start_step": 10, "threshold_beta": 0.9}
    configs = [
        {**sparse, "trainer": StandardTrainer, "wandb_name": "StandardTrainer"},
        {**sparse, "trainer": StandardTrainerAprilUpdate, "wandb_name": "StandardTrainerAprilUpdate"},
        {**sparse, "trainer": GatedSAETrainer, "wandb_name": "GatedSAETrainer"},
        {**sparse, "trainer": JumpReluTrainer, "wandb_name": "JumpRelu", "bandwidth": 0.1, "target_l0": 3.0},
        {**top, "trainer": TopKTrainer, "wandb_name": "AutoEncoderTopK"},
        {**top, "trainer": BatchTopKTrainer, "wandb_name": "BatchTopKSAE"},
        {**top, "trainer": MatryoshkaBatchTopKTrainer, "wandb_name": "Matryoshka", "group_fractions": [0.5, 0.5]},
    ]
    run = HERE / "trained"
    trainSAE(
        data=RandomBuffer(),
        trainer_configs=configs,
        steps=STEPS,
        save_dir=str(run),
        save_steps=[20],
        normalize_activations=True,
        device="cpu",
    )
    for i, folder in enumerate(sorted(run.iterdir())):
        if i:  # one intermediate checkpoint is enough to keep
            for file in (folder / "checkpoints").iterdir():
                file.unlink()
            (folder / "checkpoints").rmdir()
        dictionary, _ = load_dictionary(str(folder), "cpu")
        dictionary.load_state_dict(torch.load(folder / "ae.pt"))  # undoes the rescaling of an AutoEncoder's decoder
        keep(folder, dictionary, 300 + i)


if __name__ == "__main__":
    make_random()
    make_trained()
