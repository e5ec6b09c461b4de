"""What a run has finished, so that the next one continues: a hidden folder beside the output, with a file for each layer.

A layer's file appears complete or not at all. A journal is of one model, calibration and configuration; another's is not used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from llmctl.errors import DataError, FileError
from llmctl.infer.packed.stored import decode, encode
from llmctl.infer.quantize.folds import Fold
from llmctl.infer.quantize.quantizer import QuantizedLayer
from llmctl.io.atomic import atomic_file, explain_os_errors
from llmctl.io.json_object import parse_json
from llmctl.io.lock import try_flock

NAME = "journal.json"
GO_ON = "run the same command with --resume to continue"

VERSION = 2


@contextmanager
def open_journal(output: Path, identity: Mapping[str, Any], resume: bool) -> Iterator[Journal]:
    """The journal of an output folder; deleted when the block ends without an exception, or weights or inputs cannot be used.

    Args:
        output: The output folder.
        identity: What makes results equal: JSON.
        resume: Whether layers of an earlier run are used.

    Raises:
        FileError: Another process works on the same output, or the journal cannot be written.
    """
    # A link is replaced by the folder that is written, which appears beside it.
    path = Path(os.path.abspath(output))
    folder = path.with_name(f".{path.name}.quantizing")
    digest = hashlib.sha256(json.dumps(dict(identity), sort_keys=True).encode()).hexdigest()
    with explain_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
        try:
            if try_flock(handle) is False:
                raise FileError(f"another process is writing {output}; wait for it, or choose another folder")
            if not resume or _digest(folder) != digest:
                _empty(folder)
            with atomic_file(folder / NAME) as file:
                file.write_text(json.dumps({"version": VERSION, "digest": digest}) + "\n", encoding="utf-8")
            try:
                yield Journal(folder)
            except DataError:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            except FileError as error:
                raise FileError(f"{error}; layers that are done are kept: {GO_ON}") from error
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(handle)


class Journal:
    """Finished layers.

    Args:
        folder: Where they are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, index: int) -> QuantizedLayer | None:
        """A layer; None = it is not finished, or its file is damaged."""
        file = self._file(index)
        if not file.is_file():
            return None
        try:
            with np.load(file) as stored:
                about = parse_json(bytes(stored["about"]))
                arrays = [stored[f"array{number}"] for number in range(about["arrays"])]
            layer = decode(about["layer"], arrays)
            folds = [
                (stage, expert, Fold(arrays[scale], None if offset is None else arrays[offset]), as_factors)
                for stage, expert, scale, offset, as_factors in about["folds"]
            ]
        except (OSError, ValueError, LookupError, TypeError, zipfile.BadZipFile):
            return None
        return QuantizedLayer(layer, folds, about["rows"])

    def put(self, index: int, done: QuantizedLayer) -> None:
        """Keeps a layer."""
        arrays: list[Any] = []
        about: dict[str, Any] = {"layer": encode(done.layer, arrays), "folds": [], "rows": done.rows}
        for stage, expert, fold, as_factors in done.folds:
            arrays.append(fold.scale_I)
            row = [stage, expert, len(arrays) - 1, None, as_factors]
            if fold.offset_I is not None:
                arrays.append(fold.offset_I)
                row[3] = len(arrays) - 1
            about["folds"].append(row)
        about["arrays"] = len(arrays)
        text = np.frombuffer(json.dumps(about).encode(), np.uint8)
        with atomic_file(self._file(index)) as file, open(file, "wb") as stream:
            np.savez(stream, about=text, **{f"array{number}": array for number, array in enumerate(arrays)})

    def _file(self, index: int) -> Path:
        return self._folder / f"layer-{index:05d}.npz"


def _empty(folder: Path) -> None:
    """Removes what is in a folder, also what was being written when a run was killed."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _digest(folder: Path) -> str | None:
    try:
        found = parse_json((folder / NAME).read_bytes())
    except (OSError, ValueError):
        return None
    return found.get("digest") if isinstance(found, dict) and found.get("version") == VERSION else None
