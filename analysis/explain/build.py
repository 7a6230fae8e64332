"""The `llm_labels` box: labels of a language model, their cost known before it is asked.

The answers lie outside the box, in one file for the run: a change of what is asked for asks for the difference only.
"""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from analysis.chat.cache import opened
from analysis.chat.client import Client
from analysis.chat.cost import Prices
from analysis.chat.endpoint import Endpoint, key_from
from analysis.chat.request import Backend
from analysis.chat.structured import Asker
from analysis.config import LlmConfig, WindowConfig
from analysis.explain.grade import grade_choices
from analysis.explain.labeller import Labeller
from analysis.explain.record import facts, write
from analysis.splits import TestView
from analysis.windows import record as windows_record
from sae.errors import ConfigError

log = logging.getLogger(__name__)


def build(
    labeller: Labeller, test: TestView, cfg: LlmConfig, windows: WindowConfig, answers: Path, out: Path
) -> dict[str, Any]:
    """Write `llm_labels.parquet` and `llm_windows.parquet`; returns the facts of the box.

    Args:
        answers: the cache's file.

    Raises:
        ConfigError: it would cost more than it may, or there is no key.
        DataError: the model cannot be reached.
    """
    backend = backend_of(cfg)
    log.info("%s", check_cost(labeller, cfg))
    with opened(answers) as cache:
        asker = Asker(Client(backend, cache, prices_of(cfg), cfg.max_cost))
        choices = labeller.label(asker)
        records, rows = grade_choices(choices, labeller.known, labeller.fit, test, asker, cfg, windows)
    write(records, out / "llm_labels.parquet")
    windows_record.write(rows, out / "llm_windows.parquet")
    return {
        **facts(records),
        "windows": windows_record.facts(rows, cfg.test_windows),
        "usage": {**asdict(asker.client.usage), **asdict(asker.failures)},
        "asked": dict(backend.identity),
    }


def check_cost(labeller: Labeller, cfg: LlmConfig) -> str:
    """What will be asked, and what it will cost, in words.

    Raises:
        ConfigError: more than `cfg.max_cost`.
    """
    prices, estimate = prices_of(cfg), labeller.estimate()
    told = estimate.told(prices)
    if prices.cost(estimate.n_read, estimate.n_written) > cfg.max_cost:
        raise ConfigError(
            f"analysis.llm.max_cost = {cfg.max_cost}: the estimate is {told}; raise it, or ask for less with "
            "analysis.llm.latents, candidates, test_windows or nulls"
        )
    return told


def prices_of(cfg: LlmConfig) -> Prices:
    return Prices(*(cfg.prices or (0.0, 0.0)))


def backend_of(cfg: LlmConfig) -> Backend:
    """Who is asked.

    Raises:
        ConfigError: nobody, or there is no key.
    """
    if cfg.backend == "none":
        raise ConfigError("analysis.llm.backend = 'none': must be openai or local, for labels of a language model")
    if cfg.backend == "local":
        from analysis.chat.local import LocalModel

        return LocalModel(cfg.model, cfg.max_tokens, cfg.concurrency, cfg.revision)
    ours = {"temperature": 0, "max_tokens": cfg.max_tokens}
    parameters = {name: value for name, value in {**ours, **cfg.extra}.items() if value is not None}
    return Endpoint(
        cfg.base_url.rstrip("/"),
        cfg.model,
        parameters,
        key_from(cfg.key_env),
        cfg.concurrency,
        cfg.attempts,
        cfg.timeout_seconds,
    )
