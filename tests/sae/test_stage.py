"""Boxes: built once, resumed when killed, rebuilt when an input changes, never half-finished."""

import json

import pytest

from sae.errors import StoreError
from sae.files import write_text
from sae.stage import SCRATCH, Box, open_box, stage, verify


def builder(calls, text="content"):
    """A build function that notes its calls and writes one file in a folder."""

    def build(path):
        calls.append(sorted(p.name for p in path.iterdir() if p.name not in (".lock", "inputs.json")))
        write_text(path / "part" / "a.txt", text)
        return {"n": len(text)}

    return build


def test_a_finished_box_is_not_built_again(tmp_path):
    calls = []
    first = stage(tmp_path / "b", {"k": 1}, builder(calls))
    second = stage(tmp_path / "b", {"k": 1}, builder(calls))
    assert calls == [[]], "built once, in an empty folder"
    assert first == second == Box(tmp_path / "b", {"k": 1}, {"n": 7}, first.digest)


def test_other_inputs_rebuild_from_an_empty_folder(tmp_path):
    calls = []
    first = stage(tmp_path / "b", {"k": 1}, builder(calls))
    (tmp_path / "b" / "stray").mkdir()
    (tmp_path / "b" / "stray" / "file").write_text("x")
    second = stage(tmp_path / "b", {"k": 2}, builder(calls))
    assert calls == [[], []]
    assert second.inputs == {"k": 2}
    assert first.digest != second.digest, "the digest stands for the inputs too"
    assert not (tmp_path / "b" / "stray").exists()


def test_a_missing_or_shortened_file_is_noticed_without_reading_all(tmp_path):
    calls = []
    stage(tmp_path / "b", {}, builder(calls))
    (tmp_path / "b" / "part" / "a.txt").write_text("short")
    stage(tmp_path / "b", {}, builder(calls))
    (tmp_path / "b" / "part" / "a.txt").unlink()
    stage(tmp_path / "b", {}, builder(calls))
    assert len(calls) == 3


@pytest.mark.parametrize("killed_by", [RuntimeError, KeyboardInterrupt])
def test_a_killed_build_finds_its_files_again_if_the_inputs_are_the_same(tmp_path, killed_by):
    seen = []

    def dies(path):
        write_text(path / "first.txt", "1")
        raise killed_by

    with pytest.raises(killed_by):
        stage(tmp_path / "b", {"k": 1}, dies)
    with pytest.raises(StoreError) as caught:
        open_box(tmp_path / "b")
    assert str(caught.value) == f"{tmp_path / 'b'}: not finished (no manifest.json); run the stage that builds it"
    stage(tmp_path / "b", {"k": 1}, builder(seen))
    assert seen == [["first.txt"]]


def test_a_killed_build_is_cleared_away_if_the_inputs_differ(tmp_path):
    seen = []

    def dies(path):
        write_text(path / "first.txt", "1")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        stage(tmp_path / "b", {"k": 1}, dies)
    stage(tmp_path / "b", {"k": 2}, builder(seen))
    assert seen == [[]]


def test_manifests_of_equal_boxes_are_equal_bytes(tmp_path):
    one = stage(tmp_path / "one", {"a": 1, "b": [2]}, builder([]))
    two = stage(tmp_path / "two", {"b": [2], "a": 1}, builder([]))
    assert (one.path / "manifest.json").read_bytes() == (two.path / "manifest.json").read_bytes()
    assert one.digest == two.digest


def test_a_manifest_lists_every_file_with_checksum_and_size(tmp_path):
    def build(path):
        write_text(path / "part" / "a.txt", "abc")
        (path / "half.tmp").write_text("left by a killed writer")
        (path / "deep").mkdir()
        (path / "deep" / ".tmpoeh3XT").write_text("left by a killed safetensors")
        return {}

    stage(tmp_path / "b", {}, build)
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert manifest["files"] == {"part/a.txt": {"sha256": abc, "bytes": 3}}
    assert not (tmp_path / "b" / "half.tmp").exists()
    assert list((tmp_path / "b" / "deep").iterdir()) == []


def test_other_content_gives_another_digest(tmp_path):
    one = stage(tmp_path / "one", {}, builder([], "content"))
    two = stage(tmp_path / "two", {}, builder([], "tnetnoc"))
    assert one.digest != two.digest


def test_a_box_that_is_being_built_cannot_be_built_by_another(tmp_path):
    def build(path):
        with pytest.raises(StoreError) as caught:
            stage(path, {"k": 1}, builder([]))
        message = f"{path}: another process is building it; wait for it or choose another out=DIR"
        assert str(caught.value) == message
        return {}

    stage(tmp_path / "b", {"k": 1}, build)
    stage(tmp_path / "b", {"k": 2}, builder([]))  # the lock is gone


def test_verify_finds_a_flipped_byte_and_a_missing_file(tmp_path):
    box = stage(tmp_path / "b", {}, builder([]))
    verify(box)
    file = box.path / "part" / "a.txt"
    message = f"{file}: missing or damaged (checksum differs); run the stage that builds it again"
    flipped = bytearray(file.read_bytes())
    flipped[3] ^= 1
    file.write_bytes(flipped)
    with pytest.raises(StoreError) as caught:
        verify(box)
    assert str(caught.value) == message
    file.unlink()
    with pytest.raises(StoreError) as caught:
        verify(box)
    assert str(caught.value) == message


def test_a_damaged_file_is_not_taken_for_a_whole_one(tmp_path):
    """A builder that trusts the files it finds must not be handed a shortened one."""
    found = []

    def build(path):
        found.append(sorted(file.name for file in path.glob("*.txt")))
        for name in ("a.txt", "b.txt"):
            if not (path / name).exists():
                write_text(path / name, "whole")
        return {}

    stage(tmp_path / "b", {}, build)
    (tmp_path / "b" / "a.txt").write_text("wh")
    stage(tmp_path / "b", {}, build)
    assert found == [[], ["b.txt"]]
    assert (tmp_path / "b" / "a.txt").read_text() == "whole"


def test_a_folder_of_somebody_elses_files_is_left_alone(tmp_path):
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "mine.csv").write_text("years of work")
    with pytest.raises(StoreError) as caught:
        stage(tmp_path / "labels", {}, builder([]))
    assert str(caught.value) == (
        f"{tmp_path / 'labels'}: holds files that are no part of a run; move them away or choose another out=DIR"
    )
    assert (tmp_path / "labels" / "mine.csv").read_text() == "years of work"


def test_scratch_files_serve_a_resume_and_go_when_the_box_is_finished(tmp_path):
    def dies(path):
        write_text(path / f"checkpoint{SCRATCH}", "half way")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage(tmp_path / "b", {}, dies)
    assert (tmp_path / "b" / f"checkpoint{SCRATCH}").exists()
    box = stage(tmp_path / "b", {}, builder([]))
    assert not (tmp_path / "b" / f"checkpoint{SCRATCH}").exists()
    verify(box)


def test_a_box_of_another_schema_is_refused(tmp_path):
    box = stage(tmp_path / "b", {}, builder([]))
    manifest = box.path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(StoreError) as caught:
        open_box(box.path)
    assert str(caught.value) == f"{manifest}: schema 2, this version reads 1"
