"""Files: a reader of a final name never sees half a file."""

import hashlib
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae.errors import StoreError
from sae.files import digest_json, publish, read_json, sha256_file, write_json, write_text

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def test_a_writer_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a" / "b.txt"
    write_text(path, "old")

    def fail(temporary):
        temporary.write_text("half of the ne")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        publish(path, fail)
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir() if p != path] == ["b.txt.tmp"], "the rest is marked as such"
    write_text(path, "new")
    assert path.read_text() == "new"
    assert [p.name for p in path.parent.iterdir()] == ["b.txt"], "and is overwritten by the next attempt"


def test_the_final_name_appears_only_when_the_writer_is_done(tmp_path):
    path = tmp_path / "b.txt"

    def write(temporary):
        temporary.write_text("x")
        assert not path.exists()

    publish(path, write)
    assert path.read_text() == "x"


def test_a_writer_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        publish(tmp_path / "b.txt", lambda _: None)
    assert not (tmp_path / "b.txt").exists()


def test_files_can_be_read_by_others_where_the_umask_allows(tmp_path):
    def private(temporary):
        temporary.write_text("x")
        temporary.chmod(0o600)

    publish(tmp_path / "b.txt", private)
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "b.txt").stat().st_mode & 0o777 == 0o666 & ~umask


@settings(max_examples=15)  # each waits for the disk
@given(JSON)
def test_json_round_trip(tmp_path, value):
    write_json(tmp_path / "v.json", value)
    assert read_json(tmp_path / "v.json") == value


def test_json_bytes_depend_on_the_value_only(tmp_path):
    write_json(tmp_path / "1.json", {"b": 1, "a": "é"})
    write_json(tmp_path / "2.json", {"a": "é", "b": 1})
    assert (tmp_path / "1.json").read_bytes() == '{\n "a": "é",\n "b": 1\n}\n'.encode()
    assert (tmp_path / "2.json").read_bytes() == (tmp_path / "1.json").read_bytes()


def test_nan_is_no_json(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "v.json", float("nan"))
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest_json({"x": float("inf")})


def test_reading_says_what_is_wrong(tmp_path):
    path = tmp_path / "v.json"
    with pytest.raises(StoreError) as caught:
        read_json(path)
    assert str(caught.value) == f"{path}: no such file"
    path.write_text("{")
    with pytest.raises(StoreError, match=r"v\.json: not valid JSON \("):
        read_json(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StoreError, match=r"v\.json: not valid JSON \("):
        read_json(path)


def test_digests_are_sha256(tmp_path):
    # FIPS 180-4's example: the digest of "abc"
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_file(tmp_path / "abc") == abc
    big = os.urandom(3 << 20)  # more than one block
    (tmp_path / "big").write_bytes(big)
    assert sha256_file(tmp_path / "big") == hashlib.sha256(big).hexdigest()
    assert digest_json({"b": [1, "é"], "a": None}) == hashlib.sha256('{"a":null,"b":[1,"é"]}'.encode()).hexdigest()


@given(st.dictionaries(st.text(max_size=4), JSON, max_size=4))
def test_digest_ignores_the_order_of_keys(value):
    assert digest_json(value) == digest_json(dict(reversed(value.items())))
    assert digest_json(value) == digest_json(json.loads(json.dumps(value)))
