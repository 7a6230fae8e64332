"""What is written of all tasks: SAEBench's `sparse_probing` record, and all that it has no place for beside it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis.probing.probe import Result

EVAL_TYPE_ID = "sparse_probing"


def record(results: Sequence[Result], config: Mapping[str, Any]) -> dict[str, Any]:
    """Accuracies by dataset and their means over datasets under SAEBench's names; every score of every task with its
    interval in `eval_result_unstructured`."""
    scored = [result for result in results if result.scores]
    details = [{"dataset_name": result.name, **_accuracies(result)} for result in scored]
    names = [name for name in details[0] if name != "dataset_name"] if details else []
    means = {name: float(np.mean([detail[name] for detail in details])) for name in names}
    return {
        "eval_type_id": EVAL_TYPE_ID,
        "eval_config": config,
        "eval_result_metrics": {
            side: {name: value for name, value in means.items() if name.startswith(f"{side}_")}
            for side in ("llm", "sae")
        },
        "eval_result_details": details,
        "eval_result_unstructured": [_all(result) for result in results],
    }


def _accuracies(result: Result) -> dict[str, float | None]:
    return {
        f"{probe}_test_accuracy": figures["accuracy"].value
        for probe, figures in result.scores.items()
        if probe != "majority"
    }


def _all(result: Result) -> dict[str, Any]:
    about = {
        "dataset_name": result.name,
        "question": result.question,
        "level": result.level,
        "n_fit": result.n_fit,
        "n_test": result.n_test,
        "n_test_documents": result.n_documents,
    }
    if result.left_out is not None:
        return {**about, "left_out": result.left_out}
    return {
        **about,
        "latents": result.latents,
        "dimensions": result.dimensions,
        "scores": {
            probe: {name: figure.plain() for name, figure in figures.items()}
            for probe, figures in result.scores.items()
        },
    }
