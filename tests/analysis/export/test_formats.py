"""Formats by name: which are there, what may be chosen, the same bytes each time; and the command."""

import csv
from pathlib import Path

import pytest

from analysis.export.formats import FORMATS, export
from sae.cli import main
from sae.commands import export as command
from sae.errors import ConfigError, StoreError
from sae.files import read_json

FOLDERS = [name for name, form in FORMATS.items() if not form.is_file]


def test_the_help_names_every_format() -> None:
    assert command.FORMATS.split(", ") == list(FORMATS)


@pytest.mark.parametrize("name", FOLDERS)
def test_equal_results_give_equal_bytes_and_say_what_they_are_from(run: Path, tmp_path: Path, name: str) -> None:
    files = []
    for out in (tmp_path / "1", tmp_path / "2"):
        export(run, out, name)
        files.append({path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()})
    assert files[0] == files[1]
    marker = read_json(tmp_path / "1" / "sae_export.json")
    assert marker["format"] == name
    assert marker["boxes"].keys() == set(FORMATS[name].boxes)


def test_csv_is_a_file_a_row_a_latent(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "features.csv")
    with (tmp_path / "features.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["latent"] for row in rows] == ["0", "1", "2", "3"]
    assert (rows[0]["n_fired"], rows[0]["text"], rows[0]["scores.f1"]) == ("4", "Fires on “dog”.", "0.6")
    export(run, tmp_path / "any.txt", "csv")
    assert (tmp_path / "any.txt").read_bytes() == (tmp_path / "features.csv").read_bytes()
    with pytest.raises(ConfigError, match="is a folder, csv is one file"):
        export(run, tmp_path, "csv")


def test_without_a_format_a_folder_gets_the_pages(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "pages")
    names = sorted(path.relative_to(tmp_path / "pages").as_posix() for path in (tmp_path / "pages").rglob("*.*"))
    assert names == ["data/index.js", "index.html", "sae_export.json"]


def test_mistakes_are_told_and_nothing_is_written(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    wrong = {
        ("neuropedia", ""): "format 'neuropedia' is unknown; did you mean neuronpedia?",
        ("parquet", "layer=3"): "parquet.layer: no such field; must be one of ",
        ("delphi", "hook=h.1"): "delphi.hook: no such field; did you mean hookpoint?",
        ("circuit-tracer", "layer=x"): "circuit-tracer.layer = 'x': must be a valid integer, unable to parse string as "
        "an integer",
        ("delphi", "split=all"): "delphi.split = 'all': must be 'train', 'fit', 'select' or 'test'",
    }
    for (name, setting), message in wrong.items():
        settings = dict([setting.split("=")]) if setting else {}
        with pytest.raises(ConfigError) as error:
            export(run, out, name, settings)
        assert str(error.value) == message
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", FORMATS)
def test_a_box_that_is_missing_is_told_before_any_work(run: Path, tmp_path: Path, name: str) -> None:
    for missing in FORMATS[name].boxes:
        half = tmp_path / missing
        half.mkdir()
        for box in FORMATS[name].boxes:
            if box != missing:
                (half / box).symlink_to(run / box)
        with pytest.raises(StoreError, match=f"{missing}: not finished"):
            export(half, half / "out", name)
        assert not (half / "out").exists()


def test_files_of_others_are_refused_before_any_work(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for name in FOLDERS:
        with pytest.raises(StoreError, match="holds files that were not exported from here"):
            export(run, tmp_path, name)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def sae(*arguments: str) -> int:
        return main(["export", "any.yaml", f"out={run}", "--to", str(tmp_path / "out"), *arguments])

    assert sae("--as", "neuronpedia", "--set", "model=gpt2-small", "--set", "release=r") == 0
    assert capsys.readouterr().out == f"written: {tmp_path / 'out'}\n"
    assert (tmp_path / "out" / "gpt2-small" / "1-mlp-out-topk-4" / "release.jsonl").exists()
    assert sae("--as", "parquet") == 0, "an export takes the place of another"
    assert (tmp_path / "out" / "latents.parquet").exists()
    assert sae("--as", "parquet", "--set", "layer") == 2
    assert capsys.readouterr().err == "sae: --set layer: must be field=value, such as layer=8\n"
