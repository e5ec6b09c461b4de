import json
import zlib

import pytest

from llmctl.errors import FileError
from llmctl.io.checksums import MANIFEST, crc32, find_damage, read_manifest, write_manifest
from llmctl.io.digest import sha256


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.bin").write_bytes(bytes(range(256)) * 3000)
    (tmp_path / "sub" / "empty").write_bytes(b"")
    write_manifest(tmp_path)
    return tmp_path


def test_the_checksum_is_that_of_zlib(folder):
    assert crc32(folder / "a.bin") == f"{zlib.crc32((folder / 'a.bin').read_bytes()):08x}"
    assert crc32(folder / "sub" / "empty") == "00000000"


def test_an_intact_folder_has_no_damage(folder):
    assert sorted(read_manifest(folder)) == ["a.bin", "sub/empty"]
    assert find_damage(folder) == []
    (folder / "notes.txt").write_text("added later")
    assert find_damage(folder) == []


@pytest.mark.parametrize("position", [0, 1, 123_456, 767_999])
@pytest.mark.parametrize("bit", [1, 64, 128])
def test_a_flipped_bit_is_found(folder, position, bit):
    content = bytearray((folder / "a.bin").read_bytes())
    content[position] ^= bit
    (folder / "a.bin").write_bytes(content)
    assert find_damage(folder) == ["the content of a.bin is not what was written (crc32 differs)"]


def test_every_damaged_file_is_listed(folder):
    (folder / "a.bin").write_bytes(b"short")
    (folder / "sub" / "empty").unlink()
    assert find_damage(folder) == ["a.bin has 5 bytes, 768000 were written", "sub/empty is missing"]


def test_hashes_of_other_writers_are_compared_too(folder):
    row = {"bytes": 768_000, "sha256": sha256(folder / "a.bin")}
    (folder / MANIFEST).write_text(json.dumps({"made_from": "x", "files": {"a.bin": row}}))
    assert find_damage(folder) == []
    (folder / MANIFEST).write_text(json.dumps({"files": {"a.bin": {**row, "sha256": "0" * 64}}}))
    assert find_damage(folder) == ["the content of a.bin is not what was written (sha256 differs)"]


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"files": []}', '{"files": {"a": 1}}', '{"files": {"a": {"bytes": 1}}}',
     '{"files": {"../a": {"bytes": 1, "crc32": "0"}}}', '{"files": {"/etc/passwd": {"bytes": 1, "crc32": "0"}}}'],
)  # fmt: skip
def test_a_damaged_manifest_is_an_error(folder, content):
    (folder / MANIFEST).write_text(content)
    with pytest.raises(FileError, match=MANIFEST):
        find_damage(folder)


def test_a_folder_without_a_manifest_has_no_rows(tmp_path):
    assert read_manifest(tmp_path) == {} and find_damage(tmp_path) == []
