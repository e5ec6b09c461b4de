"""A model folder into another layout or dtype, tensor by tensor: no model is built, neither paddle nor torch is needed.

Memory: one tensor, or paddle's files where they are the source. The target appears complete or not at all; an
interrupted run keeps its finished shards in a working folder beside the target and goes on from there.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
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
from llmctl.card.weight_map import WeightMapping
from llmctl.checkpoint import slices
from llmctl.checkpoint.folder import WeightFolder, open_folder
from llmctl.checkpoint.formats import pdparams, torch_bin
from llmctl.checkpoint.formats.dtypes import FLOATS, STORAGE, widen
from llmctl.checkpoint.formats.safetensors import Planned, write_file
from llmctl.checkpoint.load import Expected, by_target, check_weights
from llmctl.checkpoint.merge_ranks import read_ranks
from llmctl.checkpoint.naming import NATIVE, recognise, renames_for
from llmctl.checkpoint.save import plan_shards, write_index
from llmctl.errors import CheckpointError, LlmctlError
from llmctl.io.atomic import remove_leftovers
from llmctl.io.copying import copy_into
from llmctl.io.digest import sha256
from llmctl.io.json_object import read_json, write_json

MANIFEST = "manifest.json"
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".pdparams", ".gguf", ".msgpack", ".h5", ".index.json")
RECORDINGS = ("golden.npz", "case.json")
"""What tests keep beside the weights of a model: of no use in another folder."""

Progress = Callable[[int], None]
"""Called with the bytes that have been dealt with since the last call."""


@dataclass(frozen=True)
class Stored:
    """A tensor of the card that lies in files; quacks as much like an array as writing needs."""

    shape: tuple[int, ...]
    dtype: str
    sources: Sequence[slices.Source]

    def numpy(self) -> NDArray[Any]:
        """The values in the storage of the stored dtype, in the card's layout."""
        values = np.empty(self.shape, STORAGE[self.dtype])
        slices.fill(values, self.sources, self.dtype)
        return values


@dataclass(frozen=True)
class Source:
    """A folder that was opened and checked: every tensor of the card is in it, and nothing else."""

    folder: WeightFolder
    plugin: plugins.Plugin
    dims: Dims
    layout: str
    state: Mapping[str, Stored]


def open_source(path: Path, plugin: plugins.Plugin, dims: Dims) -> Source:
    """Opens a folder and checks names, shapes and dtypes of all its tensors.

    Raises:
        CheckpointError: It holds an adapter too, or its tensors are not exactly the card's.
    """
    ranks = pdparams.shards(path) if path.is_dir() else []
    folder = WeightFolder(path, read_ranks(ranks, plugin, dims)) if ranks else open_folder(path)
    layout, renames = recognise(folder.tensors, plugin, dims)
    shapes = {tensor.name: tensor.shape for tensor in plugin.card.expand(dims)}
    expected = {r.target: Expected(shapes[r.target], _dtype(folder, r)) for r in renames}
    check_weights(folder, expected, renames, ignored=plugin.card.ignored_tensors)
    state = {name: _stored(name, shapes[name], sources) for name, sources in by_target(folder.tensors, renames).items()}
    return Source(folder, plugin, dims, layout, state)


def _stored(name: str, shape: tuple[int, ...], sources: Sequence[slices.Source]) -> Stored:
    dtypes = sorted({info.dtype for info, _ in sources})
    if len(dtypes) > 1:
        held = ", ".join(rename.source for _, rename in sources)
        raise CheckpointError(
            f"{name} is made of {held}, which are stored as {' and '.join(dtypes)}; they must be alike"
        )
    return Stored(shape, dtypes[0], sources)


def verify(source: Source, progress: Progress | None = None) -> list[str]:
    """Reads every tensor; the names of those that hold values that are not finite.

    Raises:
        CheckpointError: A file ends early, is not the one that the folder's manifest describes, or a record of torch's zip
            has another checksum than it should.
    """
    for name, row in _manifest(source.folder.path).items():
        if (file := source.folder.path / name).is_file() and sha256(file) != row["sha256"]:
            raise CheckpointError(
                f"{file} is damaged or was changed: its SHA-256 is not that in {MANIFEST}; convert the model again, or "
                f"remove {MANIFEST} if the change is meant"
            )
    torch_bin.check_crc({info.file for info in source.folder.tensors.values()})
    odd = []
    for name, tensor in source.state.items():
        values = tensor.numpy()
        wide = widen(values) if tensor.dtype == "bfloat16" else values
        if tensor.dtype in FLOATS and not np.isfinite(wide).all():
            odd.append(name)
        if progress:
            progress(values.nbytes)
    return odd


def convert(
    source: Source,
    target: Path,
    layout: str,
    dtype: str = "keep",
    max_shard_bytes: int = 5_000_000_000,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> bool:
    """Writes the folder ``target``; False if it is there already, made from the same source in the same way.

    Args:
        source: What to convert.
        target: The folder to make.
        layout: ``"hf"`` or ``"native"``.
        dtype: Of floats: ``"keep"`` or one of ``save.DTYPES``.
        max_shard_bytes: A file holds no more data than this, unless a single tensor is larger.
        overwrite: Replace a target that is something else.
        progress: Told of bytes written.

    Raises:
        CheckpointError: The target is something else, lies where the source is, or cannot be written; or a record of
            torch's zip in the source is damaged.
    """
    made_from = _fingerprint(source, layout, dtype, max_shard_bytes)
    if target.resolve() == source.folder.path.resolve():
        raise CheckpointError(f"{target} is the folder to convert; choose another target")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        if _made_from(target) == made_from:
            return False
        if not overwrite:
            raise CheckpointError(
                f"{target} already exists and is not this conversion; choose another folder or --overwrite"
            )
    renames = renames_for(layout, source.plugin, source.dims)
    shards = plan_shards(source.state, renames, dtype, max_shard_bytes)
    torch_bin.check_crc({info.file for info in source.folder.tensors.values()})
    with _working_folder(target, made_from) as work:
        hashes = {}
        for name, tensors in shards.items():
            hashes[name] = _write_shard(work, name, tensors, progress, "np" if layout == NATIVE else "pt")
        if len(shards) > 1:
            hashes[write_index(work, shards)] = ""
        _write_rest(source, work, layout, dtype, made_from, hashes)
        _replace(work, target)
    return True


def _dtype(folder: WeightFolder, rename: WeightMapping) -> str:
    info = folder.tensors.get(rename.source)
    return info.dtype if info else "float32"


def _fingerprint(source: Source, layout: str, dtype: str, max_shard_bytes: int) -> str:
    weights = {info.file for info in source.folder.tensors.values()}
    files = sorted({*weights, *_rest(source.folder.path)})
    stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    config = (source.folder.path / "config.json").read_bytes()
    content = repr((stamps, config, source.plugin.card.hash(), layout, dtype, max_shard_bytes))
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _made_from(target: Path) -> str | None:
    """The fingerprint in the manifest of a folder whose files are as long as it says."""
    try:
        whole = all((target / name).stat().st_size == row["bytes"] for name, row in _manifest(target).items())
        return str(read_json(target / MANIFEST)["made_from"]) if whole else None
    except (OSError, KeyError, LlmctlError):
        return None


def _manifest(folder: Path) -> Mapping[str, Mapping[str, Any]]:
    """Size and hash of each file that a conversion wrote; empty where no conversion made the folder."""
    files = read_json(folder / MANIFEST).get("files")
    rows = files.items() if isinstance(files, dict) else ()
    return {name: row for name, row in rows if isinstance(row, dict) and {"bytes", "sha256"} <= row.keys()}


@contextmanager
def _working_folder(target: Path, made_from: str) -> Iterator[Path]:
    """A folder beside the target that a later run with the same aim finds again."""
    work = target.with_name(f".{target.name}.converting-{made_from[:12]}")
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = os.open(work, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield work
        except BlockingIOError:
            raise CheckpointError(f"another process is writing {target} now; wait for it to end") from None
        finally:
            os.close(lock)
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {error.strerror}; what is finished stays in {work}") from error


def _write_shard(work: Path, name: str, tensors: Mapping[str, Planned], progress: Progress | None, form: str) -> str:
    """Writes one file unless it is there, whole, from an earlier run; its SHA-256."""
    note, partial = work / f".{name}.sha256", work / f".{name}.partial"
    size = sum(tensor.nbytes for tensor in tensors.values())
    if not (note.is_file() and (work / name).is_file()):
        write_file(partial, tensors, progress, form)
        os.replace(partial, work / name)
        note.write_text(sha256(work / name), encoding="ascii")
    elif progress:
        progress(size)
    return note.read_text(encoding="ascii")


def _write_rest(source: Source, work: Path, layout: str, dtype: str, made_from: str, hashes: Mapping[str, str]) -> None:
    """Configuration, tokenizer and other small files as they are, and the manifest last."""
    copy_rest(source.folder.path, work, dtype)
    for note in work.glob(".*.sha256"):
        note.unlink()
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


def copy_rest(source: Path, target: Path, dtype: str) -> None:
    """Copies what a model folder holds beside its weights; config.json names the dtype unless that is kept."""
    for file in _rest(source):
        copy_into(file, target)
    if dtype != "keep":
        config = read_json(target / "config.json", required=True)
        config[("dtype" if "dtype" in config else "torch_dtype")] = dtype
        write_json(target / "config.json", config)


def _rest(source: Path) -> list[Path]:
    """The files beside the weights of a model folder that belong to the model."""
    left = {MANIFEST, *(RECORDINGS if (source / RECORDINGS[0]).is_file() else ())}
    return [
        file
        for file in source.iterdir()
        if file.is_file()
        and not file.name.endswith(WEIGHTS)
        and not file.name.startswith(".")
        and file.name not in left
    ]


def _replace(work: Path, target: Path) -> None:
    if target.exists():
        old = target.with_name(f".{target.name}.replaced")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(target, old)
        os.replace(work, target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(work, target)
    remove_leftovers(target.parent, f".{target.name}.converting-")


def shown(names: Sequence[str], limit: int = 10) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
