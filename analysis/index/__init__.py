"""Codes and their summary → one row a latent, and examples: what pages and queries read."""
