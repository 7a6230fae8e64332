"""Golden checkpoints of SAELens from training runs of a few steps: its `SAETrainer` and its language-model runner.

Package, environment and variables as in `make_saelens.py`, and after it:

    $PEERS/saelens/bin/python tests/golden/make_saelens_trained.py

`standard_scaled/` and `jumprelu_whitened/` are checkpoint folders of `SAETrainer`, `run/` is all that the runner leaves
for batch top-k. `trainer_state.pt` (6 kB, the optimiser) is kept in one of the six folders only.
"""

import os
from pathlib import Path

import torch
from datasets import Dataset
from make_saelens import HERE, ORIGIN, centre_of, inference_of, keep, keep_training
from rows import D_IN, N_LATENTS, check_same, generator, rows, save_expected
from sae_lens import (
    BatchTopKTrainingSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TrainingSAE,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.sae_trainer import SAETrainer
from transformer_lens import HookedTransformer, HookedTransformerConfig

MIDDLE, FINAL = "1344", "final_2560"  # the folders of a run of 40 steps of 64 rows with one checkpoint in between


def random_batches(seed: int):
    """Batches of 64 correlated rows with a mean and a norm far from sqrt(d_in)."""
    g = generator(seed)
    mixing = torch.randn(D_IN, D_IN, generator=g)
    while True:
        yield 4 * torch.randn(64, D_IN, generator=g).abs() @ mixing + 1


def train(sae: TrainingSAE, folder: Path, seed: int) -> None:
    """`SAETrainer` for 40 steps with one checkpoint in the middle and one at the end."""
    cfg = SAETrainerConfig(
        total_training_samples=40 * 64,
        train_batch_size_samples=64,
        lr=0.01,
        lr_end=0.001,
        n_checkpoints=1,
        checkpoint_path=str(folder),
        save_final_checkpoint=True,
        n_batches_for_norm_estimate=20,
        logger=LoggingConfig(log_to_wandb=False),
    )
    SAETrainer(cfg=cfg, sae=sae, data_provider=random_batches(seed)).fit()


def make_trained() -> None:
    """Two runs of `SAETrainer`, each with a checkpoint whose normalisation is not yet folded into its weights."""
    torch.manual_seed(0)
    common = {"d_in": D_IN, "d_sae": N_LATENTS}
    standard = StandardTrainingSAEConfig(**common, l1_coefficient=0.5, normalize_activations="expected_average_only_in")
    jumprelu = JumpReLUTrainingSAEConfig(
        **common,
        l0_coefficient=0.2,
        jumprelu_bandwidth=0.5,
        jumprelu_init_threshold=0.1,
        normalize_activations="covariance_whitening",
        apply_b_dec_to_input=False,
    )
    cases = {"standard_scaled": StandardTrainingSAE(standard), "jumprelu_whitened": JumpReLUTrainingSAE(jumprelu)}
    for seed, (case, sae) in enumerate(cases.items(), start=170):
        train(sae, HERE / case, seed)
        for name in (MIDDLE, FINAL):
            (HERE / case / name / "trainer_state.pt").unlink()
        keep_middle(HERE / case / MIDDLE, seed)
        keep_training(HERE / case / FINAL, seed, inference=HERE / case / "inference")


def keep_middle(folder: Path, seed: int) -> None:
    """Evaluates a checkpoint from the middle of a run.

    `latents` and `recon` are those of its inference save after SAELens has folded its normalisation into the weights,
    on activations as they are. `unfolded_latents` are those of its inference save as it is, on the rows as the run's
    `ActivationScaler` gives them. The two differ where latents are rescaled by the decoder's norms (batch top-k):
    folding a factor divides the decoder, and with it the latents, by that factor.
    """
    scaler = ActivationScaler()
    scaler.load(folder / "activation_scaler.json")
    training = TrainingSAE.load_from_disk(folder)
    unfolded = inference_of(training)
    if scaler.scaling_factor is not None:
        training.fold_activation_norm_scaling_factor(scaler.scaling_factor)
    if scaler.whitening is not None:
        w = scaler.whitening
        training.fold_activation_whitening(w.mean, w.matrix, w.inverse_matrix)
    sae = inference_of(training)
    x = rows(sae.encode, seed, centre_of(sae))
    with torch.no_grad():
        latents, recon = sae.encode(x), sae(x)
        unfolded_latents = unfolded.encode(scaler.scale(x))
        check_same((recon,), (scaler.unscale(unfolded(scaler.scale(x))),), f"{folder}, folded", tolerance=1e-3)
    save_expected(folder, ORIGIN, x, latents, recon, unfolded_latents=unfolded_latents)


def make_run() -> None:
    """The language-model runner on a random one-layer network: batch top-k, scaled inputs."""
    torch.manual_seed(1)
    HERE.mkdir(parents=True, exist_ok=True)
    os.chdir(HERE)  # so that the configs hold no path of this machine
    network = HookedTransformer(
        HookedTransformerConfig(
            n_layers=1, d_model=D_IN, n_ctx=16, d_head=3, n_heads=2, d_vocab=32, act_fn="gelu", device="cpu", seed=1
        )
    )
    for parameter in network.parameters():
        parameter.data.mul_(1.5)  # its outputs then are of the size of the rows
    tokens = torch.randint(0, 32, (256, 16), generator=generator(3))
    sae = BatchTopKTrainingSAEConfig(
        d_in=D_IN, d_sae=N_LATENTS, k=3, topk_threshold_lr=0.1, normalize_activations="expected_average_only_in"
    )
    cfg = LanguageModelSAERunnerConfig(
        sae=sae,
        model_name="random-1l",
        hook_name="blocks.0.hook_mlp_out",
        dataset_path="random-tokens",
        context_size=16,
        n_batches_in_buffer=8,
        training_tokens=40 * 64,
        store_batch_size_prompts=4,
        train_batch_size_tokens=64,
        prepend_bos=False,
        lr=0.01,
        n_batches_for_norm_estimate=10,
        n_checkpoints=1,
        checkpoint_path="run",
        save_final_checkpoint=True,
        output_path="run/output",
        logger=LoggingConfig(log_to_wandb=False, wandb_id="checkpoints"),
    )
    data = Dataset.from_dict({"input_ids": tokens.tolist()})
    LanguageModelSAETrainingRunner(cfg, override_dataset=data, override_model=network).run()
    checkpoints = HERE / "run" / "checkpoints"
    (checkpoints / FINAL / "trainer_state.pt").unlink()
    keep_middle(checkpoints / MIDDLE, 180)
    keep_training(checkpoints / FINAL, 180)
    keep(HERE / "run" / "output", inference_of(TrainingSAE.load_from_disk(checkpoints / FINAL)), 180)


if __name__ == "__main__":
    make_trained()
    make_run()
