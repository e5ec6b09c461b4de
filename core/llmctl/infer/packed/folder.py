"""Packed models on disk: a folder that is mapped into memory, so that opening it reads little and copies nothing.

``packed.json`` describes the model and every array (offset, size, SHA-256), records what adapters are checked against
(``base``, by ``adapters.base_model.record`` from the floats that were packed) and holds a hash of itself; ``weights.packed``
holds the arrays, each at a multiple of ``ALIGNMENT`` bytes. The source's config.json and tokenizer are copied.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from llmctl import plugins
from llmctl.adapters import base_model as bases
from llmctl.adapters.folder import OpenedAdapter, ignored_keys
from llmctl.adapters.merge import replace_tokenizer
from llmctl.adapters.prefix import Prefix
from llmctl.card.dims import Dims
from llmctl.checkpoint.convert import OF_CODES, complete_config, copy_other_files
from llmctl.checkpoint.folder import PACKED
from llmctl.checkpoint.hf_config import read_config
from llmctl.checkpoint.quantized import without_scheme
from llmctl.errors import CheckpointError
from llmctl.infer.packed.adapters import merged_state
from llmctl.infer.packed.linear import LAYOUT
from llmctl.infer.packed.model import PackedModel
from llmctl.infer.packed.stored import decode, encode
from llmctl.infer.packed.validate import validate
from llmctl.io.atomic import atomic_folder
from llmctl.io.json_object import parse_json, write_json
from llmctl.io.typed import Count, check_type
from llmctl.quant.formats.config import KEYS

HEADER, WEIGHTS = PACKED, "weights.packed"
FORMAT = 2
"""Of the header; raised when an older reader would misread it."""

LAYOUTS = (1, 2, LAYOUT)
"""Layouts that are read: all of earlier ones is as it was."""

ALIGNMENT = 64
_REMEDY = "pack the model again"


class StoredArray(TypedDict):
    """Where an array is in the file."""

    dtype: Literal["<f4", "<f2", "<i4", "<u2", "|u1"]
    shape: list[Count]
    offset: Count
    sha256: str


class Header(TypedDict):
    """``packed.json`` without its hash."""

    format: int
    layout: int
    family: str
    card: str
    base: dict[str, Any]
    versions: dict[str, str]
    bytes: Count
    arrays: list[StoredArray]
    model: dict[str, Any]


def is_packed(folder: Path) -> bool:
    """Whether a folder holds a packed model."""
    return (folder / HEADER).is_file()


def save_packed(
    model: PackedModel,
    folder: Path,
    source: Path,
    plugin: Any,
    overwrite: bool = False,
    adapted: OpenedAdapter | None = None,
    files: Mapping[str, str] | None = None,
) -> None:
    """Writes a packed model, complete or not at all.

    Args:
        model: The model.
        folder: The folder to make.
        source: The checkpoint that it was packed from; config.json, the tokenizer and other small files are copied.
        plugin: Its family.
        overwrite: Replace a folder that holds something.
        adapted: The adapter that was merged, whose tokenizer replaces the checkpoint's.
        files: Name -> text of other files in the folder.

    Raises:
        CheckpointError: The folder is there already or cannot be written.
    """
    arrays: list[NDArray[Any]] = []
    tree = encode(model, arrays)
    with atomic_folder(folder, overwrite) as work:
        copy_other_files(source, work)
        for name in OF_CODES:
            (work / name).unlink(missing_ok=True)
        config, _ = without_scheme(source, read_config(source))
        dims = adapted.dims if adapted else plugin.card.dims_from_config(config, str(source / "config.json"))
        ignored = ignored_keys(adapted.adapter.record) if adapted else ()
        complete_config(work, "keep", plugin.card, dims, (*ignored, *KEYS))
        if adapted is not None and adapted.config_changes:
            write_json(work / "config.json", {**read_config(work), **adapted.config_changes})
        if adapted is not None:
            replace_tokenizer(adapted, work)
        for name, text in (files or {}).items():
            (work / name).write_text(text, encoding="utf-8")
        with open(work / WEIGHTS, "wb") as stream:
            rows = []
            for array in arrays:
                stream.write(b"\0" * (-stream.tell() % ALIGNMENT))
                rows.append(_row(array, stream.tell()))
                stream.write(np.ascontiguousarray(array).data)  # tofile does not say why it fails
            size = stream.tell()
        header = {
            "format": FORMAT,
            "layout": LAYOUT,
            "family": plugin.card.name,
            "card": plugin.card.hash(),
            "base": _base(source, plugin, dims, adapted),
            "versions": dict(plugins.versions(plugin)),
            "bytes": size,
            "arrays": rows,
            "model": tree,
        }
        text = json.dumps({**header, "sha256": _digest(header)}, separators=(",", ":"))
        (work / HEADER).write_text(text + "\n", encoding="utf-8")


def open_packed(folder: Path, verify: bool = False) -> PackedModel:
    """The model of a packed folder; its arrays are views of the mapped file.

    The header's hash and the size of the weights are always checked.

    Args:
        folder: The folder.
        verify: Whether every array is read and compared with its SHA-256.

    Raises:
        CheckpointError: The folder holds no packed model, one of another version, or a damaged one.
    """
    header = read_header(folder)
    file = folder / WEIGHTS
    size = file.stat().st_size if file.is_file() else -1
    if size != header["bytes"]:
        state = "is absent" if size < 0 else f"has {size} bytes, {HEADER} describes {header['bytes']}"
        raise CheckpointError(f"{file} {state}; it is truncated or belongs to another header: {_REMEDY}")
    try:
        mapped = np.memmap(file, np.uint8, "r") if size else np.zeros(0, np.uint8)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from None
    arrays = [_array(mapped, row, file) for row in header["arrays"]]
    if verify:
        for number, damaged in _damaged(arrays, header["arrays"]):
            raise CheckpointError(
                f"{file} is damaged: array {number} at byte {damaged['offset']} has another SHA-256; {_REMEDY}"
            )
    try:
        model = decode(header["model"], arrays)
        validate(model)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{folder / HEADER} does not describe a model ({error}): {_REMEDY}") from None
    return model  # type: ignore[no-any-return]


def read_header(folder: Path) -> Mapping[str, Any]:
    """The content of ``packed.json``, with version and hash checked.

    Raises:
        CheckpointError: It is absent, of another version, or damaged.
    """
    path = folder / HEADER
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no packed model: it has no {HEADER}")
    try:
        header = dict(parse_json(path.read_bytes()))
        noted = header.pop("sha256", None)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError):
        header, noted = {}, None
    if noted is None or noted != _digest(header):
        raise CheckpointError(
            f"{path} is damaged or was edited: its content does not have the hash that it names; {_REMEDY}"
        )
    found = header.get("format"), header.get("layout")
    if found not in [(FORMAT, layout) for layout in LAYOUTS]:
        raise CheckpointError(
            f"{path} has format {found[0]} with layout {found[1]}, this llmctl reads format {FORMAT} with layout "
            f"{', '.join(map(str, LAYOUTS[:-1]))} or {LAYOUTS[-1]}: {_REMEDY}"
        )
    try:
        check_type(header, Header)
    except ValueError as error:
        raise CheckpointError(f"{path} does not describe a model ({error}): {_REMEDY}") from None
    return header


def _base(source: Path, plugin: Any, dims: Dims, adapted: OpenedAdapter | None) -> dict[str, Any]:
    """Record of the packed weights, which tells whether an adapter was trained on them."""
    if adapted is None or adapted.scheme is not None or isinstance(adapted.adapter, Prefix):
        return bases.record(source, plugin, dims)
    return bases.record(source, plugin, dims, merged_state(adapted.source().state, adapted))


def _digest(header: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def _row(array: NDArray[Any], offset: int) -> dict[str, Any]:
    digest = hashlib.sha256(memoryview(array).cast("B") if array.size else b"").hexdigest()
    return {"dtype": array.dtype.str, "shape": list(array.shape), "offset": offset, "sha256": digest}


def _array(mapped: NDArray[np.uint8], row: Mapping[str, Any], file: Path) -> NDArray[Any]:
    dtype, shape, begin = np.dtype(row["dtype"]), tuple(row["shape"]), row["offset"]
    end = begin + prod(shape) * dtype.itemsize
    if begin % ALIGNMENT or end > len(mapped) or max(shape, default=0) > len(mapped):
        raise CheckpointError(f"{file}: an array at bytes {begin} to {end} is not within the file; {_REMEDY}")
    return np.asarray(mapped[begin:end]).view(dtype).reshape(shape)


def _damaged(arrays: list[NDArray[Any]], rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, (array, row) in enumerate(zip(arrays, rows, strict=True)):
        if _row(array, row["offset"]) != row:
            yield number, row
