"""Datasets by name: ``dataset_info.json`` says which file a name is, and what its columns are called."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl.errors import LlmctlError
from llmctl.io.json_object import read_json

NAME = "dataset_info.json"
REMOTE = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}
"""Meaning of a column -> its name, in files of questions and answers."""
NAMES = {
    **ALPACA,
    "history": "history",
    "system": "system",
    "tools": "tools",
    "chosen": "chosen",
    "rejected": "rejected",
}
"""Meaning of a column -> our name."""
FOREIGN = ("images", "videos", "audios", "kto_tag")
TAGS = {
    "conversations": {"role_tag": "from", "content_tag": "value"},
    "messages": {"role_tag": "role", "content_tag": "content"},
}
"""Key of the messages in our formats -> keys of a message."""
SPEAKERS = {"user_tag": ("human", "user"), "assistant_tag": ("gpt", "assistant"), "observation_tag": ("observation", "tool"),
            "function_tag": ("function_call",), "system_tag": ("system", "developer")}  # fmt: skip
"""Tag -> the names of a speaker that are known."""


@dataclass(frozen=True)
class Datasets:
    """Datasets as ours.

    Attributes:
        files: Their files.
        columns: Entries of ``data.columns``.
        key: Key of the text in files for pretraining.
    """

    files: list[str]
    columns: list[str]
    key: str = "text"


def names_of(value: Any) -> list[str]:
    """The names in a text with commas, or in a list."""
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else []
    return [str(part).strip() for part in parts if str(part).strip()]


def read(value: Any, folder: Any) -> Datasets:
    """The datasets of ``dataset`` or ``eval_dataset``.

    Args:
        value: Names with commas between, or a list of them.
        folder: ``dataset_dir``.

    Raises:
        ValueError: A name is not in ``dataset_info.json``, is not a file, or its columns are none of ours.
    """
    where = Path(str(folder or "data"))
    names = names_of(value)
    try:
        info = read_json(where / NAME)
    except LlmctlError as error:
        raise ValueError(str(error)) from None
    if not info:
        raise ValueError(
            f"dataset={', '.join(names)}: there is no {where / NAME} here, which says what these names are; run in the folder "
            "in which LLaMA-Factory ran, or set dataset_dir"
        )
    rows = [_row(name, info, where) for name in names]
    columns = {tuple(_columns(name, row)) for name, row in zip(names, rows, strict=True)}
    if len(columns) > 1:
        raise ValueError(f"dataset={', '.join(names)}: their columns have different names; convert them one by one")
    keys = {str((row.get("columns") or {}).get("prompt", "text")) for row in rows}
    return Datasets([str(where / row["file_name"]) for row in rows], list(*columns), *sorted(keys)[:1])


def _row(name: str, info: Mapping[str, Any], where: Path) -> Mapping[str, Any]:
    row = info.get(name)
    if not isinstance(row, dict):
        known = ", ".join(list(info)[:8])
        raise ValueError(
            f"dataset={name} is not in {where / NAME}, which has {known}{', ...' if len(info) > 8 else ''}"
        )
    remote = next((key for key in REMOTE if row.get(key)), None)
    if remote:
        get = (
            f": hf download {row[remote]} --repo-type dataset --local-dir {where / name}" if remote == REMOTE[0] else ""
        )
        raise ValueError(
            f"dataset={name} is at {remote}={row[remote]!r}; download it{get}, and set file_name instead in {where / NAME}"
        )
    if not isinstance(row.get("file_name"), str):
        raise ValueError(f"dataset={name} has no file_name in {where / NAME}")
    if row.get("num_samples"):
        raise ValueError(
            f"dataset={name} has num_samples={row['num_samples']} in {where / NAME}; shorten or repeat the file"
        )
    return row


def _columns(name: str, row: Mapping[str, Any]) -> Iterable[str]:
    """Entries of ``data.columns``, for names that are not ours.

    Raises:
        ValueError: A column or speaker has no equivalent in llmctl.
    """
    given = dict(row.get("columns") or {})
    wrong = next((key for key in given if key in FOREIGN), None)
    if wrong:
        raise ValueError(f"dataset={name} has {wrong}, which llmctl does not train on")
    names = dict(NAMES)
    if row.get("formatting") == "sharegpt":
        tags = {"role_tag": "from", "content_tag": "value", **(row.get("tags") or {})}
        target = next((key for key, pair in TAGS.items() if all(tags[tag] == pair[tag] for tag in pair)), None)
        wrong = next((tag for tag, known in SPEAKERS.items() if tags.get(tag, known[0]) not in known), None)
        if target is None or wrong:
            shown = {tag: tags[tag] for tag in ("role_tag", "content_tag", *([wrong] if wrong else []))}
            raise ValueError(
                f"dataset={name} has the tags {shown}; rename these keys of its messages to from and value"
            )
        names["messages"] = target
        given.setdefault("messages", "conversations")
    return [f"{theirs}={names[key]}" for key, theirs in given.items() if key in names and theirs != names[key]]
