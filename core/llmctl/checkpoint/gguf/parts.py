"""A model in one GGUF file, or in the parts that llama.cpp's ``gguf-split`` makes of one: metadata of the first, tensors of all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmctl.checkpoint.formats import gguf
from llmctl.checkpoint.formats.gguf import GgufFile, Stored
from llmctl.errors import CheckpointError
from llmctl.io.gguf_files import parts_of

NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"
"""Keys of a part: its number from 0, how many there are, and the tensors of all."""

LISTED = 3
"""Missing parts that a message names."""


def files_of(path: Path) -> list[Path]:
    """The files of the model that a file is, or is a part of, in their order.

    Raises:
        CheckpointError: A part is missing.
    """
    files = [path.with_name(name) for name in parts_of(path.name)]
    if absent := [file.name for file in files if not file.is_file()]:
        more = f" and {len(absent) - LISTED} more" if len(absent) > LISTED else ""
        raise CheckpointError(
            f"{path} is one of {len(files)} parts of a model, and {', '.join(absent[:LISTED])}{more} {'are' if absent[1:] else 'is'} not "
            f"in {path.parent}; put all parts into one folder"
        )
    return files


def read(path: Path) -> GgufFile:
    """Reads the headers of all files of a model.

    Args:
        path: Its file, or any of its parts.

    Raises:
        CheckpointError: A part is missing or of another model, or as ``formats.gguf.read``.
    """
    opened = [gguf.read(file) for file in files_of(path)]
    first = opened[0]
    count = first.metadata.get(COUNT) or 1
    if len(opened) == 1 and count > 1:
        raise CheckpointError(
            f"{path} is part {first.metadata.get(NUMBER, 0) + 1} of {count} of a model, and its name does not tell the names of the others; "
            f"call them NAME-{1:05}-of-{count:05}.gguf to NAME-{count:05}-of-{count:05}.gguf, or join them: gguf-split --merge"
        )
    if len(opened) == 1:
        return first
    _check(opened)
    tensors: dict[str, Stored] = {}
    for part in opened:
        if doubled := tensors.keys() & part.tensors.keys():
            raise CheckpointError(f"{part.path} and {tensors[min(doubled)].file} both hold the tensor {min(doubled)}")
        tensors |= part.tensors
    total = first.metadata.get(TENSORS, len(tensors))
    if len(tensors) != total:
        raise CheckpointError(
            f"{first.path} belongs to a model of {total} tensors, and its {len(opened)} parts hold {len(tensors)}; they are of different models"
        )
    return GgufFile(first.path, first.metadata, tensors)


def _check(opened: Sequence[GgufFile]) -> None:
    """Checks that parts are what their names say."""
    for number, part in enumerate(opened):
        stated = part.metadata.get(NUMBER), part.metadata.get(COUNT)
        if stated != (number, len(opened)):
            raise CheckpointError(
                f"{part.path} says of itself {NUMBER}={stated[0]} and {COUNT}={stated[1]}, and its name part {number + 1} of {len(opened)}; "
                "give it the name that it had"
            )
