"""circuit-tracer's features: read as its front-end reads them, and one latent by hand."""

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import pytest

from analysis.export.circuit_tracer import paired
from analysis.export.formats import export


def unpaired(number: int) -> tuple[int, int]:
    """As util.js has it."""
    width = int(((8 * number + 1) ** 0.5 - 1) // 2)
    latent = number - width * (width + 1) // 2
    return width - latent, latent


def load(out: Path, number: int) -> dict[str, Any]:
    """As `loadFeatureFromBinary` of init-feature-examples.js: a range of bytes, whose end is one too far."""
    layer, latent = unpaired(number)
    index = json.loads(gzip.decompress((out / "index.json.gz").read_bytes()))[str(layer)]
    start, end = index["offsets"][latent], index["offsets"][latent + 1]
    content = (out / index["filename"]).read_bytes()[start : end + 1]
    size = int.from_bytes(content[:4], "little")
    return json.loads(zlib.decompress(content[4 : 4 + size]))


@pytest.fixture(scope="module")
def out(run, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("exports") / "ct"
    export(run, out, "circuit-tracer")
    return out


def test_numbers_of_features():
    assert [paired(layer, latent) for layer, latent in ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1))] == [0, 1, 2, 3, 4]
    for layer, latent in ((0, 24575), (11, 131071), (3, 7)):
        assert unpaired(paired(layer, latent)) == (layer, latent)


def test_a_feature(out):
    feature = load(out, paired(1, 0))
    # eight bins an octave, each value at the lower end of its own: 1 to 1.125, 2 to 2.25, 4 to 4.5, 8 to 9
    percentiles = feature.pop("quantile_values")
    assert len(percentiles) == 100
    assert percentiles[9] == 1.05  # 10 of the first 25 %: 1 + 0.4 · 0.125
    assert percentiles[39] == 2.15  # 15 of the second
    assert percentiles[99] == 8, "never above the strongest"
    top, middle, *quantiles = feature.pop("examples_quantiles")
    assert feature == {
        "transcoder_id": "org/Tiny_GPT/mlp_out.1",
        "index": 0,
        "top_logits": ["\n", " dog"],
        "bottom_logits": [" cat", "the"],
        "act_min": 0,
        "act_max": 8,
        "histogram": [1 if i in (2, 5, 10, 19) else 0 for i in range(20)],
        "activation_frequency": 0.23529,
    }
    assert top == {
        "quantile_name": "Strongest",
        "examples": [
            {
                "tokens": [" cat", " “sat”", "the", " dog"],
                "tokens_acts_list": [0, 0, 0, 8],
                "train_token_ind": 3,
                "is_repeated_datapoint": False,
            },
            {
                "tokens": ["the", " dog", " “sat”", "the"],
                "tokens_acts_list": [0, 4, 0, 0],
                "train_token_ind": 1,
                "is_repeated_datapoint": False,
            },
        ],
    }
    assert middle["quantile_name"] == "10-30% of the maximum"
    assert [example["tokens_acts_list"] for example in middle["examples"]] == [[0, 0, 0, 2], [0, 8, 0, 1]]
    # two firings are not among the strongest; both have been shown in their interval
    assert [group["quantile_name"] for group in quantiles] == [
        "90-100% of firings by rank",
        "40-50% of firings by rank",
    ]
    assert all(example["is_repeated_datapoint"] for group in quantiles for example in group["examples"])


def test_a_dead_latent_has_a_record(out):
    feature = load(out, paired(1, 2))
    assert (feature["examples_quantiles"], feature["quantile_values"], feature["activation_frequency"]) == ([], [], 0)


def test_labels_stand_by_the_number_that_nodes_have(out):
    assert json.loads((out / "clerps.json").read_text()) == {
        str(paired(1, 0)): "Fires on “dog”.",
        str(paired(1, 3)): "Fires after “dog”.",
    }


def test_a_cross_layer_transcoder_is_a_file_a_layer(layered, tmp_path):
    export(layered, tmp_path / "ct", "circuit-tracer")
    assert load(tmp_path / "ct", paired(0, 0))["act_max"] == 8
    last = load(tmp_path / "ct", paired(1, 1))
    assert (last["index"], last["act_max"], last["transcoder_id"]) == (1, 1, "tiny/mlp_in.1")
    labels = json.loads((tmp_path / "ct" / "clerps.json").read_text())
    assert labels.keys() == {str(paired(0, 0)), str(paired(1, 1))}
