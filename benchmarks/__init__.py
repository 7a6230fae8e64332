"""Measurements, each a command that writes `docs/results/<name>.json`; the docs' tables are made from these."""
