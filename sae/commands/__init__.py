"""The commands of `sae`: one module each, with `add(commands)`; heavy imports stand inside the functions."""
