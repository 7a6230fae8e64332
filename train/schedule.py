"""The learning rate: its peak by the paper's rule, its course by two shares of the run."""


def peak_lr(n_latents: int, at_16k: float = 2e-4) -> float:
    """`at_16k / sqrt(n_latents / 2^14)`; 2e-4 is Adam's (Gao et al. 2024, Fig. 3)."""
    return at_16k / (n_latents / 2**14) ** 0.5


def lr_scale(step: int, n_steps: int, warmup: float, decay: float) -> float:
    """Share of the peak at `step`: linear from 0 over `warmup`, 1, linear to 0 over `decay`.

    Both ends are exclusive of 0, so that no step is wasted: the first step of a warm-up of w steps
    has 1/w, the last step of a decay of w steps has 1/w.
    """
    warmup_steps, decay_steps = warmup * n_steps, decay * n_steps
    rise = (step + 1) / warmup_steps if warmup_steps >= 1 else 1.0
    fall = (n_steps - step) / decay_steps if decay_steps >= 1 else 1.0
    return min(1.0, rise, fall)
