"""A folder is whole or not there, and what others wrote stays."""

from pathlib import Path

import pytest

from analysis.export.folder import publish_folder
from sae.errors import StoreError
from sae.files import read_json


def write(text: str):
    def fill(folder: Path):
        (folder / "deep").mkdir()
        (folder / "deep" / "file.txt").write_text(text)
        return {"format": "any"}

    return fill


def test_the_marker_names_each_file_with_its_checksum(tmp_path: Path) -> None:
    publish_folder(tmp_path / "out", write("abc"))
    assert read_json(tmp_path / "out" / "sae_export.json") == {
        "schema": 1,
        "format": "any",
        "files": {"deep/file.txt": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
    }
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["deep", "sae_export.json"]


def test_an_export_takes_the_place_of_a_former_one_and_of_an_empty_folder(tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    out.mkdir(parents=True)
    for text in ("first", "second"):
        publish_folder(out, write(text))
        assert (out / "deep" / "file.txt").read_text() == text
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def refusal(out: Path) -> str:
    before = {path: path.read_bytes() for path in out.parent.rglob("*") if path.is_file()}
    with pytest.raises(StoreError) as error:
        publish_folder(out, write("new"))
    assert {path: path.read_bytes() for path in out.parent.rglob("*") if path.is_file()} == before
    return str(error.value)


def test_nothing_that_was_not_exported_is_lost(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.tex").write_text("years of work")
    assert refusal(theirs) == (
        f"{theirs}: holds files that were not exported from here; name a new folder, or empty this one"
    )
    assert refusal(theirs / "thesis.tex") == f"{theirs / 'thesis.tex'}: is a file, must be a folder to write to"
    ours = tmp_path / "ours"
    publish_folder(ours, write("old"))
    (ours / "deep" / "notes.txt").write_text("mine")
    end = "and would be lost; move it away, or name a new folder"
    assert refusal(ours) == f"{ours / 'deep' / 'notes.txt'}: was not exported from here {end}"
    (ours / "deep" / "notes.txt").unlink()
    (ours / "deep" / "file.txt").write_text("mended")
    assert refusal(ours) == f"{ours / 'deep' / 'file.txt'}: has changed since it was exported {end}"


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    publish_folder(tmp_path / "out", write("old"))

    def fail(folder: Path):
        (folder / "half.txt").write_text("half")
        raise RuntimeError("no")

    for out in ("out", "new"):
        with pytest.raises(RuntimeError, match="no"):
            publish_folder(tmp_path / out, fail)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "deep" / "file.txt").read_text() == "old"


def test_a_file_that_comes_while_it_is_written_stays(tmp_path: Path) -> None:
    def slow(folder: Path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine.txt").write_text("mine")
        return write("new")(folder)

    with pytest.raises(StoreError, match="not exported from here"):
        publish_folder(tmp_path / "out", slow)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_kill_left_is_no_part_of_the_next(tmp_path: Path) -> None:
    for name in (".out.tmp", ".out.old"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "half.txt").write_text("half")
    publish_folder(tmp_path / "out", write("new"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["deep", "sae_export.json"]


def test_two_at_once_do_not_mix(tmp_path: Path) -> None:
    def again(folder: Path):
        with pytest.raises(StoreError, match="another process"):
            publish_folder(tmp_path / "out", write("other"))
        return write("one")(folder)

    publish_folder(tmp_path / "out", again)
    assert (tmp_path / "out" / "deep" / "file.txt").read_text() == "one"
