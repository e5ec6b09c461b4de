"""Downloads what is read of a model, and nothing that is in the cache already."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from llmctl.errors import CheckpointError, FileError, LlmctlError
from llmctl.hub import files
from llmctl.hub.client import Client, Listing, Refused, Unreachable
from llmctl.hub.name import HubName
from llmctl.hub.watch import watched
from llmctl.io import gguf_files
from llmctl.io.gguf_files import GgufModel
from llmctl.io.progress import note
from llmctl.io.sizes import shown

MARGIN = 64 << 20
"""Bytes of a disk that a download leaves free."""


def download(client: Client, name: HubName, weights: bool = True) -> Path:
    """The folder of a model, or its file in GGUF, complete: from the cache, or downloaded.

    Args:
        client: The hub.
        name: The model.
        weights: False leaves the weights out, if they are not in GGUF.

    Raises:
        LlmctlError: There is no such model or revision, it may not be read, the hub cannot be reached, the model holds
            nothing that is read, or several models in GGUF, or the disk is full.
    """
    if client.offline or _is_commit(name.revision):
        with suppress(CheckpointError):
            if there := _cached(client, name, weights):
                return there
    try:
        return _download(client, name, weights)
    except (Unreachable, Refused) as error:
        if there := _cached(client, name, weights):
            warnings.warn(f"{error}. The copy of {name} in {there} is used", UserWarning, stacklevel=2)
            return there
        if isinstance(error, Refused):
            raise
        raise _elsewhere(client, name, error) from error


def _download(client: Client, name: HubName, weights: bool) -> Path:
    listing = client.listing(name)
    model = _gguf(name, listing.sizes, client.title)
    wanted = list(model.files) if model else _of_folder(client, name, listing, weights)
    if absent := [file for file in wanted if file not in listing.sizes]:
        raise CheckpointError(
            f"{name}: {files.index_of(listing.sizes) or wanted[0]} names files that are missing, "
            f"{len(absent)} in all: {', '.join(absent[:5])}"
        )
    folder = _fetched(client, name, listing, wanted)
    return folder / model.name if model else folder


def _of_folder(client: Client, name: HubName, listing: Listing, weights: bool) -> list[str]:
    """The files of a model folder that are read."""
    names = sorted(listing.sizes)
    wanted = files.small(names)
    if not any(file.endswith("config.json") for file in wanted if file != "generation_config.json"):
        raise CheckpointError(_nothing_read(client, name, names))
    if weights:
        chosen = files.weights(names, lambda it: (client.fetch(name, [it]) / it).read_bytes())
        if not chosen:
            raise CheckpointError(_nothing_read(client, name, names))
        wanted += chosen
    return wanted


def _gguf(name: HubName, sizes: Mapping[str, int], where: str) -> GgufModel | None:
    """The model in GGUF that a name means; None = the name means a folder.

    Raises:
        CheckpointError: It means none or several of those that are there.
    """
    models = gguf_files.models_of(sizes)
    if not name.choice and (not models or files.has_weights(sizes)):
        return None
    where = f"{name.repo} on {where}"
    if not models:
        raise CheckpointError(
            f"{where} has no GGUF file, so :{name.choice} cannot choose one; leave out :{name.choice}"
        )
    return gguf_files.chosen(
        models,
        name.choice,
        where,
        lambda file, choice: (
            f"Name one: {replace(name, choice=choice)}"
            + (f", or its file: {replace(name, choice=file)}" if file != choice else "")
        ),
    )


def _fetched(client: Client, name: HubName, listing: Listing, wanted: Sequence[str]) -> Path:
    """The folder with the files; those that are not in the cache are downloaded."""
    there = client.cached(replace(name, revision=listing.commit or name.revision))
    missing = [file for file in wanted if there is None or not (there / file).exists()]
    # Without a commit, the folder may be that of an earlier state of the branch; the library compares the files.
    if there and listing.commit and not missing and there == client.cached(name):
        return there
    if not missing:
        return client.fetch(name, wanted)
    size = _announce(client, name, listing, missing)
    with watched(f"downloading {name.repo} ({shown(size)})", size, client.store(name)):
        return client.fetch(name, wanted)


def _announce(client: Client, name: HubName, listing: Listing, missing: Sequence[str]) -> int:
    """Says what is downloaded, if there is room for it; returns its size in bytes."""
    size = sum(listing.sizes[file] for file in missing)
    free = _free(client.cache)
    if size + MARGIN > free:
        raise FileError(
            f"{name} needs {shown(size)} in {client.cache}, where {shown(free)} are free; free some, or set "
            f"{client.cache_variable} to a folder on another disk"
        )
    commit = f" at {listing.commit[:12]}" if listing.commit else ""
    note(
        f"downloading {name.repo}{commit} from {client.title}: {len(missing)} file{'s' * (len(missing) > 1)}, {shown(size)}, into {client.cache}"
    )
    return size


def _cached(client: Client, name: HubName, weights: bool) -> Path | None:
    """The folder of a model in the cache, or its file in GGUF, if it is complete; raises as ``_gguf`` where none is chosen."""
    folder = client.cached(name)
    if folder is None:
        return None
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    try:
        model = _gguf(name, sizes, str(folder))
    except CheckpointError:
        if name.choice:
            return None
        raise
    if model:
        return folder / model.name if all(file in sizes for file in model.files) else None
    names = [path for path in sizes if "/" not in path]
    try:
        wanted = files.weights(names, lambda index: (folder / index).read_bytes())
    except LlmctlError:
        return None
    complete = bool(wanted) and all((folder / file).exists() for file in wanted)
    return folder if complete or (not weights and files.small(names)) else None


def _elsewhere(client: Client, name: HubName, error: Unreachable) -> Unreachable:
    folder = name.repo.rpartition("/")[2]
    return Unreachable(
        f"{name} is neither a folder here nor complete in {client.cache}, and it cannot be downloaded: {error}. On a machine "
        f"with a connection run: {client.elsewhere(name, folder)}; then copy the folder {folder} here and give its path"
    )


def _nothing_read(client: Client, name: HubName, names: Sequence[str]) -> str:
    kinds = sorted({file.rpartition(".")[2] for file in names if "." in file.strip(".")})
    return (
        f"{name} on {client.title} holds no model that llmctl reads: it needs config.json and {files.MODELS[0]}, "
        f"{files.MODELS[1]}, {files.MODELS[2]} or shards with an index, or a GGUF file; there are {len(names)} files ({', '.join(kinds[:6])})"
    )


def _is_commit(revision: str) -> bool:
    return len(revision) == 40 and all(digit in "0123456789abcdef" for digit in revision)


def _free(folder: Path) -> int:
    """Free bytes of the disk that a folder is or will be on."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free
