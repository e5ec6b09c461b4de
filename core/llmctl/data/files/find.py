"""The files of a split: in folders of a hub, of ``datasets``, of shards, or with a file for each split."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl.data.files.contents import COMPRESSED, SUFFIXES, check_regular, suffix_of
from llmctl.errors import DataError, FileError
from llmctl.io.json_object import read_json

HELD_OUT = ("dev", "validation", "valid", "val", "eval", "test")
"""Words in names of files and folders that are not to train on."""
SPLITS = {"train": ("train", "training"), "dev": HELD_OUT}
"""Split -> names that it has in folders, the best first."""
METADATA = ("dataset_info.json", "state.json", "dataset_dict.json", "dataset_infos.json")
"""What `datasets` writes next to its data."""
SHOWN = 3


@dataclass(frozen=True)
class Files:
    """Files of a split.

    Attributes:
        files: The files, in order.
        left_out: Files beside them that belong to another split.
    """

    files: Sequence[Path]
    left_out: Sequence[Path] = ()


def note_of(left_out: Sequence[Path], way_out: str = "name it in data.dev to evaluate on it") -> str | None:
    """A note on files that were left out, and what to do if they were meant; None if there are none."""
    names = ", ".join(str(path) for path in left_out[:SHOWN])
    more = f" and {len(left_out) - SHOWN} more" if len(left_out) > SHOWN else ""
    return f"not trained on: {names}{more}; {way_out}" if left_out else None


def find_files(path: Path, split: str, optional: bool = False) -> Files:
    """The files of a split: a file itself, or those of a folder.

    A folder is one of ``datasets``, or has ``train.jsonl``, shards ``train-*`` in it or in ``data``, or folders named after
    splits. Where nothing is named after ``train``, all its files are to train on but those with a word of ``HELD_OUT``.

    Args:
        path: The file or folder.
        split: ``"train"`` or ``"dev"``.
        optional: Whether there may be none; then only files named ``dev`` count.

    Raises:
        DataError: There is none, or it is a pipe or a device.
    """
    if path.is_file():
        return Files([path])
    check_regular(path)
    names = SPLITS[split][:1] if optional else SPLITS[split]
    found = _of_datasets(path, split, names, optional) or _of_folder(path, names)
    if found is None and split == "train":
        inside = [*_data_files(path), *_data_files(path / "data")]
        found = _divided(inside) if _divided(inside).files else None
    if found is None and not optional:
        what = "does not exist" if not path.exists() else (
            f"has no {split} data: looked for {split}.jsonl, {split}-* and {split}/*, also in data/, of the types "
            f"{', '.join(_types())}{_inside(path)}"
        )  # fmt: skip
        raise DataError(f"{path} {what}")
    return found or Files([])


def _inside(path: Path) -> str:
    """Folders of a folder that have data, such as the configurations of a dataset on a hub."""
    if not path.is_dir():
        return ""
    found = sorted(folder.name for folder in path.iterdir() if _data_files(folder) or _data_files(folder / "train"))
    return f"; it has the folders {', '.join(found[:8])}, name one" if found else ""


def _of_datasets(path: Path, split: str, names: Sequence[str], optional: bool) -> Files | None:
    """What ``save_to_disk`` wrote: a dataset, or a dictionary of them."""
    if (path / "state.json").is_file():
        return Files(_named(path)) if split == "train" else None
    if not (path / "dataset_dict.json").is_file():
        return None
    splits = _inner(path / "dataset_dict.json", _read(path / "dataset_dict.json", "splits"))
    folders = {name: path / name for name in splits}
    chosen = next((name for name in names if name in folders), None)
    if chosen is None:
        if optional:
            return None
        raise DataError(
            f"{path} has no split {split}; it has {', '.join(folders) or 'none'}. Name the folder of one, such as "
            f"{path / next(iter(folders), split)}"
        )
    return Files(_named(folders[chosen]), [folder for name, folder in folders.items() if name != chosen])


def _named(folder: Path) -> list[Path]:
    rows = _read(folder / "state.json", "_data_files")
    names = [row.get("filename") if isinstance(row, dict) else row for row in rows]
    files = [folder / name for name in _inner(folder / "state.json", names)]
    absent = next((file for file in files if not file.is_file()), None)
    if absent is not None:
        raise DataError(f"{absent} is missing, which {folder / 'state.json'} names; copy the whole folder")
    return files


def _inner(path: Path, names: Sequence[Any]) -> list[str]:
    """Names in a file that are those of something in its folder."""
    outside = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if outside:
        raise DataError(f"{path} names {outside[0]!r}, which is not in its folder")
    return list(names)


def _read(path: Path, key: str) -> list[Any]:
    try:
        found = read_json(path, required=True).get(key)
    except FileError:
        found = None
    if not isinstance(found, list) or not found:
        raise DataError(f"{path} has no {key}, so this folder of datasets is incomplete; write or download it again")
    return found


def _of_folder(path: Path, names: Sequence[str]) -> Files | None:
    """Files in a folder or its folder ``data`` that are named after a split, or are in a folder with its name."""
    for name in names:
        for folder in (path, path / "data"):
            found = [file for file in _data_files(folder) if _words(file)[:1] == [name]]
            found += _data_files(folder / name)
            if found:
                beside = _divided([file for file in _data_files(folder) if file not in found]).left_out
                folders = [folder / word for word in HELD_OUT if word != name and (folder / word).is_dir()]
                return Files(found, [*beside, *folders] if name not in HELD_OUT else [])
    return None


def _divided(files: Sequence[Path]) -> Files:
    held_out = [file for file in files if set(_words(file)).intersection(HELD_OUT)]
    return Files([file for file in files if file not in held_out], held_out)


def _words(file: Path) -> list[str]:
    return [word for word in re.split(r"[^a-z]+", file.name.lower()) if word]


def _data_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if _is_data(file))


def _is_data(file: Path) -> bool:
    return (
        file.is_file()
        and SUFFIXES.get(suffix_of(file), "text") != "text"
        and file.name not in METADATA
        and not file.name.startswith((".", "_"))
    )


def _types() -> Iterator[str]:
    yield from (suffix for suffix, kind in SUFFIXES.items() if kind != "text")
    yield from (f".jsonl{suffix}" for suffix in COMPRESSED.values())
