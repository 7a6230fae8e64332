"""The benchmark of the index in small: what it says of a dictionary, rows and tokens."""

import pytest

from benchmarks import index


@pytest.mark.slow
def test_it_measures_every_stage(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "FOLDER", tmp_path)
    found = index.measure(64, 64, 3000, 1500)
    assert (found["n_latents"], found["d_in"], found["tokens"]) == (64, 64, 3000)
    assert found["kept_tokens"] == 1408, "eleven contexts of 128"
    for stage in ("encode", "codes", "index"):
        assert found[f"{stage}_seconds"] > 0
        assert found[f"{stage}_cpu_seconds"] > 0
    assert found["peak_megabytes"] >= found["encode_peak_megabytes"] > 100
    assert [path.name for path in tmp_path.iterdir()] == ["rows-64.safetensors"]
