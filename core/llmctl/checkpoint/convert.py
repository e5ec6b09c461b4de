"""Converts a model folder to another layout or data type, tensor by tensor, without building a model.

Memory: one tensor, or a complete .pdparams file where that is the source. The target is written atomically; an interrupted
conversion keeps finished shards in a hidden working folder next to the target and continues from there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl import plugins
from llmctl.card.dims import Dims
from llmctl.card.family import Family
from llmctl.card.weight_map import WeightMapping
from llmctl.checkpoint import paddlenlp_scales, slices
from llmctl.checkpoint.folder import WeightFolder, open_folder
from llmctl.checkpoint.formats import pdparams, torch_bin
from llmctl.checkpoint.formats.dtypes import FLOATS, STORAGE, finite
from llmctl.checkpoint.formats.safetensors import PlannedTensor, write_file
from llmctl.checkpoint.hf_config import with_paddlenlp_scaling
from llmctl.checkpoint.load import Expected, check_weights, group_by_target
from llmctl.checkpoint.merge_ranks import read_ranks
from llmctl.checkpoint.naming import NATIVE, detect_layout, mappings_for
from llmctl.checkpoint.quantized import OLD
from llmctl.checkpoint.save import plan_shards, write_index
from llmctl.errors import CheckpointError, LlmctlError
from llmctl.io.atomic import publish_folder, remove_leftovers
from llmctl.io.checksums import MANIFEST, find_damage
from llmctl.io.copying import copy_into
from llmctl.io.digest import sha256
from llmctl.io.json_object import read_json, write_json
from llmctl.io.lock import try_flock
from llmctl.io.written import Manifest, read_written
from llmctl.quant.formats.config import KEYS

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".pdparams", ".gguf", ".msgpack", ".h5", ".index.json")
RECORDINGS = ("golden.npz", "case.json")
"""Test recordings in a model folder, which are not copied."""

OF_CODES = (*OLD, paddlenlp_scales.WEIGHTS, paddlenlp_scales.INPUTS)
"""Files that say how weights are quantized, which a folder of floats does not have."""

Progress = Callable[[int], None]
"""Called with the number of bytes processed since the last call."""


@dataclass(frozen=True)
class LazyTensor:
    """Lazy view of a stored tensor, with what writers use: ``shape``, ``dtype``, ``numpy()``."""

    shape: tuple[int, ...]
    dtype: str
    sources: Sequence[slices.MappedTensor]

    def numpy(self) -> NDArray[Any]:
        """Reads the values, in the stored data type and the layout of the card."""
        values = np.empty(self.shape, STORAGE[self.dtype])
        slices.fill(values, self.sources, self.dtype)
        return values


@dataclass(frozen=True)
class SourceModel:
    """An opened and checked model folder: it has all tensors of the card, and no others."""

    folder: WeightFolder
    plugin: plugins.Plugin
    dims: Dims
    layout: str
    state: Mapping[str, LazyTensor]


def open_source(path: Path, plugin: plugins.Plugin, dims: Dims, opened: WeightFolder | None = None) -> SourceModel:
    """Opens a model folder and checks names, shapes and data types of all tensors.

    Args:
        path: The folder.
        plugin: Its family.
        dims: Its dims.
        opened: Its weights, where they are opened already.

    Raises:
        CheckpointError: The folder also holds an adapter, or its tensors are not exactly those of the card.
    """
    ranks = pdparams.shards(path) if path.is_dir() and opened is None else []
    folder = opened or (WeightFolder(path, read_ranks(ranks, plugin, dims)) if ranks else open_folder(path))
    layout, mappings = detect_layout(folder.tensors, plugin, dims)
    shapes = {tensor.name: tensor.shape for tensor in plugin.card.expand(dims)}
    expected = {r.target: Expected(shapes[r.target], _dtype(folder, r)) for r in mappings}
    check_weights(folder, expected, mappings, ignored=plugin.card.ignored_tensors)
    state = {
        name: _stored(name, shapes[name], sources)
        for name, sources in group_by_target(folder.tensors, mappings).items()
    }
    return SourceModel(folder, plugin, dims, layout, state)


def _stored(name: str, shape: tuple[int, ...], sources: Sequence[slices.MappedTensor]) -> LazyTensor:
    dtypes = sorted({info.dtype for info, _ in sources})
    if len(dtypes) > 1:
        names = ", ".join(mapping.source for _, mapping in sources)
        raise CheckpointError(
            f"{name} is stored in {names}, which have the data types {' and '.join(dtypes)}; they must have the same"
        )
    return LazyTensor(shape, dtypes[0], sources)


def verify(source: SourceModel, progress: Progress | None = None) -> list[str]:
    """Reads every tensor; returns the names of those with values that are not finite.

    Raises:
        CheckpointError: A file is truncated, differs from the manifest of the folder, or a record of torch's zip has another
            checksum.
    """
    if problems := find_damage(source.folder.path):
        raise CheckpointError(
            f"{source.folder.path} is damaged or was changed: {'; '.join(problems)}; write the model again, or delete "
            f"{MANIFEST} if the change is intended"
        )
    torch_bin.check_crc({info.file for info in source.folder.tensors.values()})
    not_finite = []
    for name, tensor in source.state.items():
        values = tensor.numpy()
        if tensor.dtype in FLOATS and not finite(values, tensor.dtype).all():
            not_finite.append(name)
        if progress:
            progress(values.nbytes)
    return not_finite


def convert(
    source: SourceModel,
    target: Path,
    layout: str,
    dtype: str = "keep",
    max_shard_bytes: int = 5_000_000_000,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> bool:
    """Writes the folder ``target``; returns False if it already is the result of the same conversion.

    Args:
        source: The model folder.
        target: Folder to write.
        layout: ``"hf"`` or ``"native"``.
        dtype: Data type of floating-point weights: ``"keep"`` or one of ``save.DTYPES``.
        max_shard_bytes: Maximum size of a weight file, unless a single tensor is larger.
        overwrite: Replace a target with other content.
        progress: Called with the number of bytes written.

    Raises:
        CheckpointError: The target has other content, is the source, or cannot be written; or a record of torch's zip in the
            source is damaged.
    """
    made_from = _fingerprint(source, layout, dtype, max_shard_bytes)
    if target.resolve() == source.folder.path.resolve():
        raise CheckpointError(f"{target} is both source and target; choose another target")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        if _made_from(target) == made_from:
            _remove_working_folders(target)
            return False
        if not overwrite:
            raise CheckpointError(
                f"{target} already exists and is not this conversion; choose another folder or --overwrite"
            )
    mappings = mappings_for(layout, source.plugin, source.dims)
    shards = plan_shards(source.state, mappings, dtype, max_shard_bytes)
    torch_bin.check_crc({info.file for info in source.folder.tensors.values()})
    with _working_folder(target, made_from) as work:
        hashes = {}
        for name, tensors in shards.items():
            hashes[name] = _write_shard(work, name, tensors, progress, "np" if layout == NATIVE else "pt")
        if len(shards) > 1:
            hashes[write_index(work, shards)] = ""
        _write_other_files(source, work, layout, dtype, made_from, hashes)
        publish_folder(work, target)
    _remove_working_folders(target)
    return True


def _dtype(folder: WeightFolder, mapping: WeightMapping) -> str:
    info = folder.tensors.get(mapping.source)
    return info.dtype if info else "float32"


def _fingerprint(source: SourceModel, layout: str, dtype: str, max_shard_bytes: int) -> str:
    weights = {info.file for info in source.folder.tensors.values()}
    files = sorted({*weights, *_other_files(source.folder.path)})
    stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    config = (source.folder.path / "config.json").read_bytes()
    content = repr((stamps, config, source.plugin.card.hash(), layout, dtype, max_shard_bytes))
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _made_from(target: Path) -> str | None:
    """The fingerprint in the manifest of a folder, if its files have the recorded sizes; else None."""
    try:
        manifest = read_written(target / MANIFEST, Manifest, "", required=True)
        rows = manifest.get("files", {}).items()
        complete = all((target / name).stat().st_size == row["bytes"] for name, row in rows)
        return str(manifest["made_from"]) if complete else None
    except (OSError, KeyError, ValueError, LlmctlError):
        return None


@contextmanager
def _working_folder(target: Path, made_from: str) -> Iterator[Path]:
    """A working folder next to the target, which a later run of the same conversion continues."""
    work = target.with_name(f"{_working_name(target)}{made_from[:12]}")
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = os.open(work, os.O_RDONLY)
        try:
            if try_flock(lock) is False:
                raise CheckpointError(f"another process is writing {target}; wait for it to finish")
            _keep_finished_shards(work)
            yield work
        finally:
            os.close(lock)
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {error.strerror}; finished files are kept in {work}") from error


def _keep_finished_shards(work: Path) -> None:
    """Removes all but finished shards: an interrupted exchange may have left the target's previous content here."""
    digests = [file for file in work.glob(".*.sha256") if file.is_file()]
    kept = {name for file in digests for name in (file.name, file.name[1:].removesuffix(".sha256"))}
    for path in work.iterdir():
        if path.name in kept:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _remove_working_folders(target: Path) -> None:
    remove_leftovers(target.parent, _working_name(target))


def _working_name(target: Path) -> str:
    return f".{target.name}.converting-"


def _write_shard(
    work: Path, name: str, tensors: Mapping[str, PlannedTensor], progress: Progress | None, form: str
) -> str:
    """Writes a safetensors file, unless an earlier run finished it; returns its SHA-256. ``form``: ``pt`` or ``np``."""
    digest_file, partial = work / f".{name}.sha256", work / f".{name}.partial"
    size = sum(tensor.nbytes for tensor in tensors.values())
    if not (_is_digest(digest_file) and (work / name).is_file()):
        write_file(partial, tensors, progress, form)
        os.replace(partial, work / name)
        digest_file.write_text(sha256(work / name), encoding="ascii")
    elif progress:
        progress(size)
    return digest_file.read_text(encoding="ascii")


def _is_digest(file: Path) -> bool:
    return file.is_file() and re.fullmatch(rb"[0-9a-f]{64}", file.read_bytes()) is not None


def _write_other_files(
    source: SourceModel, work: Path, layout: str, dtype: str, made_from: str, hashes: Mapping[str, str]
) -> None:
    """Copies configuration, tokenizer and other small files, then writes the manifest."""
    copy_other_files(source.folder.path, work)
    for name in OF_CODES:
        (work / name).unlink(missing_ok=True)  # what is written are floats
    complete_config(work, dtype, source.plugin.card, source.dims, KEYS)
    config = read_json(work / "config.json", required=True)
    if (scaled := with_paddlenlp_scaling(config)) != config:
        write_json(work / "config.json", scaled)
    for digest_file in work.glob(".*.sha256"):
        digest_file.unlink()
    files = {name: {"bytes": (work / name).stat().st_size, "sha256": known or sha256(work / name)}
             for name, known in hashes.items()}  # fmt: skip
    manifest = {
        "layout": layout,
        "dtype": dtype,
        "family": source.plugin.card.name,
        "card": source.plugin.card.hash(),
        "versions": dict(plugins.versions(source.plugin)),
        "tensors": len(source.state),
        "parameters": source.plugin.card.count(source.dims),
        "made_from": made_from,
        "files": files,
    }
    (work / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def copy_other_files(source: Path, target: Path) -> None:
    """Copies the files of a model folder that are not weights."""
    for file in _other_files(source):
        copy_into(file, target)


def complete_config(target: Path, dtype: str, card: Family, dims: Dims, ignored: Sequence[str] = ()) -> None:
    """Updates a copied config.json: sets ``dtype`` unless it is ``keep``, adds the card's ``recorded`` fields, drops ignored keys."""
    config = read_json(target / "config.json", required=True)
    facts = card.recorded(config, dims)
    if dtype != "keep":
        facts["dtype" if "dtype" in config else "torch_dtype"] = dtype
    kept = {key: value for key, value in config.items() if key not in ignored}
    if facts or len(kept) < len(config):
        write_json(target / "config.json", {**kept, **facts})


def _other_files(source: Path) -> list[Path]:
    """The files of a model folder that are not weights."""
    skipped = {MANIFEST, *(RECORDINGS if (source / RECORDINGS[0]).is_file() else ())}
    return [
        file
        for file in source.iterdir()
        if file.is_file()
        and not file.name.endswith(WEIGHTS)
        and not file.name.startswith(".")
        and file.name not in skipped
    ]


def shown(names: Sequence[str], limit: int = 10) -> str:
    """The first names of a list, and the number of the others."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
