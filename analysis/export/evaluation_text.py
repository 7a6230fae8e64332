"""What the page of an evaluation calls each figure, and what it says of it."""

Row = tuple[str, str, str, str]
"""Category, name, what it is called, what it means."""
OF_ROWS: tuple[Row, ...] = (
    ("reconstruction_quality", "fvu", "Unexplained variance (FVU)", "Σ‖x − x̂‖² / Σ‖x − mean‖²: 0 is perfect"),
    ("reconstruction_quality", "pca_fvu", "the same of a PCA", "with as many components as latents are active"),
    ("reconstruction_quality", "cossim", "Cosine", "of activation and reconstruction, mean over tokens"),
    ("reconstruction_quality", "mse", "Squared error", "‖x − x̂‖² summed over dimensions, mean over tokens"),
    (
        "reconstruction_quality",
        "explained_variance_legacy",
        "Explained variance, by token",
        "mean over tokens of 1 − ‖x − x̂‖² / ‖x − mean‖², as older papers have it; small rows count like large ones",
    ),
    ("sparsity", "l0", "Active latents (L0)", "mean number of latents above 0 on a token"),
    ("sparsity", "l1", "Sum of activations (L1)", "mean over tokens, in the network's units"),
    ("shrinkage", "l2_ratio", "Norm ratio", "‖x̂‖ / ‖x‖, mean over tokens: below 1 for any reconstruction with errors"),
    (
        "shrinkage",
        "relative_reconstruction_bias",
        "Relative bias",
        "Σ‖x̂‖² / Σ x·x̂: 1 if unbiased, less if reconstructions are shrunk",
    ),
    ("shrinkage", "l2_norm_in", "Norm of activations", "‖x‖, mean over tokens"),
    ("shrinkage", "l2_norm_out", "Norm of reconstructions", "‖x̂‖, mean over tokens"),
)
OF_NETWORK: tuple[Row, ...] = (
    ("model_performance_preservation", "ce_loss_without_sae", "Loss of the network", "nats a token, as it is"),
    (
        "model_performance_preservation",
        "ce_loss_with_sae",
        "with the reconstruction",
        "in the place of what is written",
    ),
    ("model_performance_preservation", "ce_loss_added", "what that adds", "the difference, of the same tokens"),
    (
        "model_performance_preservation",
        "ce_loss_with_mean_ablation",
        "with the mean",
        "the site always writes its mean",
    ),
    ("model_performance_preservation", "ce_loss_with_ablation", "with zero", "the site writes nothing"),
    (
        "model_performance_preservation",
        "ce_loss_score_mean_ablation",
        "Loss recovered, against the mean",
        "(mean − reconstruction) / (mean − as it is): 1 loses nothing; the strict one",
    ),
    (
        "model_performance_preservation",
        "ce_loss_score",
        "Loss recovered, against zero",
        "the same against zero: what most papers, and SAEBench, report",
    ),
    ("model_behavior_preservation", "kl_div_with_sae", "KL divergence", "of the next token, from the network as it is"),
    (
        "model_behavior_preservation",
        "kl_div_score_mean_ablation",
        "KL recovered, against the mean",
        "1 − KL / KL with the mean",
    ),
    ("model_behavior_preservation", "kl_div_score", "KL recovered, against zero", "1 − KL / KL with zero"),
)
OF_LATENTS: tuple[Row, ...] = (
    ("misc_metrics", "frac_alive", "Live latents", "share that fires at least once on the measured tokens"),
    ("misc_metrics", "freq_over_1_percent", "Dense latents, 1 %", "share that fires on more than 1 % of tokens"),
    ("misc_metrics", "freq_over_10_percent", "Dense latents, 10 %", "the same, more than 10 %"),
    (
        "misc_metrics",
        "normalized_freq_over_10_percent",
        "of all firings",
        "share of all firings that is theirs: how much of the code they are",
    ),
    (
        "misc_metrics",
        "average_max_decoder_cosine_sim",
        "Nearest decoder row",
        "cosine with the most alike of the others, mean over latents: near 1 where latents repeat each other",
    ),
    ("misc_metrics", "average_max_encoder_cosine_sim", "Nearest encoder row", "the same of what latents read"),
    (
        "misc_metrics",
        "average_encoder_decoder_cosine_sim",
        "Encoder and decoder",
        "cosine of what a latent reads with what it writes, mean over latents",
    ),
)
CHARTS = {
    "max_decoder_cosine_sim": "Cosine with the most alike of the other decoder rows",
    "encoder_decoder_cosine_sim": "Cosine of what a latent reads with what it writes",
}
"""Distributions over latents that are drawn, by name."""
