"""Whether a few latents say what a label says: k-sparse probing, beside what their rivals say.

Gurnee et al. 2023 (arXiv:2305.01610); SAEBench (Karvonen et al. 2025, arXiv:2503.09532), `sparse_probing`; that a probe
of all activations is often better: Kantamneni et al. 2025 (arXiv:2502.16681).
"""
