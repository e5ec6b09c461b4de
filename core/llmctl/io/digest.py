"""Hashes of files."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path


def sha256(file: Path) -> str:
    """SHA-256 of the content of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


SAMPLES, SAMPLE = 256, 4096
"""Places of a large file that are read, and bytes at each."""


def sample_of_files(folder: Path) -> str:
    """SHA-256 of the names and sizes of a folder's files and of samples of their contents, in hexadecimal.

    Reads up to 1 MiB of each file, so that it takes no longer for large models. Hidden files and Markdown do not count.
    """
    digest = hashlib.sha256()
    files = (file for file in sorted(folder.iterdir()) if file.is_file())
    for file in (file for file in files if not file.name.startswith(".") and file.suffix != ".md"):
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as stream:
            if size <= SAMPLES * SAMPLE:
                digest.update(stream.read())
                continue
            for index in range(SAMPLES):
                stream.seek(index * (size - SAMPLE) // (SAMPLES - 1))
                digest.update(stream.read(SAMPLE))
    return digest.hexdigest()


def sha256_of_files(folder: Path, suffixes: Collection[str]) -> str:
    """SHA-256 of the names and contents of the files in a folder that have one of some suffixes, in hexadecimal."""
    files = sorted(file for file in folder.iterdir() if file.suffix in suffixes and file.is_file())
    return hashlib.sha256("".join(f"{file.name}\0{sha256(file)}\n" for file in files).encode()).hexdigest()
