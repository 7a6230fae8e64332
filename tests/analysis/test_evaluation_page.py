"""The page of an evaluation: what it shows, that no text can escape it, equal bytes, and what a browser draws."""

import copy
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from analysis.export import charts
from analysis.export.evaluation import body, export

HOSTILE = '</style><script>alert(1)</script>"&<img src=x>'
CHROMIUM = shutil.which("chromium")
SAMPLE = {
    **{"split": "test", "tokens": 900, "tokens_wanted": 1_000_000, "tokens_there": 900, "documents": 21},
    **{"resampled": "documents", "n_resampled": 21, "resamples": 1000},
}
CORE: dict[str, Any] = {
    "eval_config": {"tokens": 1_000_000},
    "eval_result_metrics": {
        "reconstruction_quality": {"fvu": 0.1234, "pca_fvu": 0.5, "cossim": 0.9, "mse": 123.456},
        "sparsity": {"l0": 24.0, "l1": 37.123},
        "shrinkage": {"l2_ratio": 0.9191},
        "model_performance_preservation": {"ce_loss_score_mean_ablation": None, "ce_loss_without_sae": 4.0},
        "model_behavior_preservation": {"kl_div_with_sae": 0.00012345},
        "misc_metrics": {"frac_alive": 1.0},
    },
    "eval_result_intervals": {"reconstruction_quality": {"fvu": [0.12, 0.1268]}},
    "eval_result_unstructured": {
        "density": {"n_silent": 3, "log10_edges": [-2.0, -1.0, 0.0], "n_latents": [5, 0]},
        "max_decoder_cosine_sim": {"edges": [-1.0, -0.5, 0.0, 0.5, 1.0], "counts": [0, 0, 7, 1]},
    },
    "sae_cfg_dict": {
        **{"type": "topk", "config": {"n_latents": 8, "k": 2}, "facts": {"model_digest": HOSTILE}, "model": HOSTILE},
        "places": {"inputs": [HOSTILE], "outputs": None},
    },
    "samples": {"rows": SAMPLE, "network": SAMPLE},
}


def score(value: float, low: float, high: float) -> dict[str, Any]:
    return {name: {"value": value, "interval": [low, high]} for name in ("accuracy", "auroc")}


PROBING = {
    "eval_result_unstructured": [
        {
            **{"dataset_name": HOSTILE, "question": HOSTILE, "latents": [7, 1, 2, 3], "dimensions": [0]},
            "scores": {
                "llm": score(0.95, 0.9, 1.0),
                "sae_top_20": score(0.9, 0.8, 0.95),
                "sae_top_1": score(0.75, 0.7, 0.8),
                "llm_top_1": score(0.6, 0.5, 0.7),
                "sae": score(0.94, 0.9, 0.97),
                "majority": score(0.5, 0.5, 0.5),
            },
        },
        {"dataset_name": HOSTILE, "left_out": "3 examples"},
    ]
}
NOT_MEANINGFUL = {"is_meaningful": False, "why_not": f"it cannot spell {HOSTILE}"}
MEANINGFUL = {
    "is_meaningful": True,
    "eval_result_details": [
        {
            **{"first_letter": "s", "probe_f1": 0.9, "num_probe_true_positives": 40, "split_latents": [4, 9]},
            **{"full_absorption_rate": 0.25, "mean_absorption_fraction": 0.3},
        }
    ],
    "eval_result_unstructured": {
        "over_all_words": {
            "full_absorption": {"value": 0.25, "interval": [0.2, 0.31]},
            "absorption_fraction": {"value": 0.3, "interval": [0.25, 0.36]},
        }
    },
}


def cells(page: str, first: str) -> list[str]:
    """Of the row that begins so, as text."""
    row = next(row for row in re.findall(r"<tr>(.*?)</tr>", page) if first in row)
    return [re.sub(r"<[^>]+>", " ", cell).strip() for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)]


def test_figures_and_their_intervals():
    page = body(CORE, PROBING, NOT_MEANINGFUL)
    assert cells(page, "Unexplained variance")[1:3] == ["0.123", "0.120 to 0.127"]
    assert cells(page, "Squared error")[1:3] == ["123.5", ""]
    assert cells(page, "Active latents")[1] == "24"
    assert cells(page, "KL divergence")[1] == "0.000123"
    assert cells(page, "recovered, against the mean")[1] == "–", "what is no number"
    assert "Explained variance, by token" not in page, "what was not measured"
    assert "1,000,000 tokens were asked for; the test documents have 900" in page
    assert "3 that never fire are not drawn" in page


def test_enough_text_needs_no_excuse():
    core = copy.deepcopy(CORE)
    core["samples"]["rows"] = {**SAMPLE, "tokens_wanted": 900}
    assert "were asked for" not in body(core, PROBING, None)


def test_probes_stand_by_width_latents_first():
    page = body(CORE, PROBING, None)
    table = page[page.index('class="probes"') :]
    assert re.findall(r"<th[^>]*>([^<]*)</th>", table)[:9] == [
        *("", "of so many latents", "of so many dimensions of the activations"),
        *("", "1", "20", "all", "1", "all"),
    ]
    row = cells(table, "0.750")
    assert [cell.split()[0] for cell in row[1:]] == ["0.750", "0.900", "0.940", "0.600", "0.950"]
    assert row[0].endswith("Latents 7, 1, 2")
    assert "was left out: 3 examples." in page


def test_absorption_or_why_not():
    assert "Not meaningful here: it cannot spell" in body(CORE, PROBING, NOT_MEANINGFUL)
    page = body(CORE, PROBING, MEANINGFUL)
    assert "absorbed in full 0.250 (0.200 to 0.310)" in page
    assert cells(page, "<td>s</td>") == ["s", "0.900", "40", "4, 9", "0.250", "0.300"]
    assert "first letters" not in body(CORE, PROBING, None)


def test_no_text_can_escape(tmp_path):
    export(CORE, PROBING, NOT_MEANINGFUL, tmp_path)
    page = (tmp_path / "eval.html").read_text()
    assert "<script" not in page and "<img" not in page
    assert page.count("</style>") == 1
    assert "http" not in page.replace("http://www.w3.org", ""), "nothing is loaded"


def test_equal_figures_give_equal_bytes(tmp_path):
    for name in ("a", "b"):
        export(CORE, PROBING, MEANINGFUL, tmp_path / name)
    assert (tmp_path / "a" / "eval.html").read_bytes() == (tmp_path / "b" / "eval.html").read_bytes()


def test_columns_are_as_tall_as_their_counts():
    chart = charts.columns([0.0, 0.5, 1.0], [10, 5], [(0.5, "half")], "t")
    tall = [float(found) for found in re.findall(r'<rect[^>]*height="([\d.]+)"', chart)]
    assert tall[0] == pytest.approx(2 * tall[1])
    at = [float(found) for found in re.findall(r'<rect[^>]* x="([\d.]+)"', chart)]
    assert float(re.findall(r'<text x="([\d.]+)"[^>]*>half', chart)[0]) == pytest.approx(at[1] - 0.5)


def test_points_lie_where_their_values_do():
    chart = charts.points([("a", [("", 0.5, (0.25, 0.75)), ("open", 1.0, None)])], 0.0, 1.0, (0.0, 1.0), "t")
    left, right = (float(found) for found in re.findall(r'class="grid" x1="([\d.]+)"', chart))
    assert [float(found) for found in re.findall(r'cx="([\d.]+)"', chart)] == pytest.approx([(left + right) / 2, right])
    low, high = re.findall(r'class="whisker " x1="([\d.]+)" x2="([\d.]+)"', chart)[0]
    assert float(high) - float(low) == pytest.approx((right - left) / 2)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_draws_it(tmp_path: Path):
    export(CORE, PROBING, MEANINGFUL, tmp_path)
    drawn = subprocess.run(
        [
            *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"),
            *("--dump-dom", (tmp_path / "eval.html").as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    assert "How good is this dictionary?" in drawn
    assert drawn.count("<svg") == 5, "two histograms, the points, and two marks of their key"
    assert "<script" not in drawn
