"""A model folder from a base and its adapter, tensor by tensor: W + scale * A B, columns set to their lengths for DoRA.

Sums are taken in float32 or better and rounded once. Over a quantised base it is the base as it was in training,
dequantised, that the adapter is added to. Memory: the adapter and a few copies of one tensor. No model is built.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from llmctl import plugins, tokenizers
from llmctl.adapters import targets
from llmctl.adapters.adapter import Adapter, Part
from llmctl.adapters.folder import RECORD, Opened, tokenizer_folder
from llmctl.checkpoint import convert
from llmctl.checkpoint.convert import Progress, Stored
from llmctl.checkpoint.formats.dtypes import cast
from llmctl.checkpoint.formats.safetensors import write_file
from llmctl.checkpoint.naming import HF, renames_for
from llmctl.checkpoint.save import KEEP, plan_shards, write_index
from llmctl.errors import CheckpointError
from llmctl.io.atomic import atomic_folder
from llmctl.quant.blockwise import round_trip
from llmctl.tokenizers.base import FILES


@dataclass(frozen=True)
class Merged:
    """A linear's weight with its adapter; quacks as much like an array as writing needs.

    Attributes:
        stored: The base's weight.
        part: The adapter; None = none.
        dtype: Of the result.
        code: What the base was quantised with in training; empty = it was not.
    """

    stored: Stored
    part: Part | None
    dtype: str
    code: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """[in, out]."""
        return self.stored.shape

    def numpy(self) -> NDArray[Any]:
        """The values in the storage of the dtype."""
        compute = "float64" if self.stored.dtype == "float64" else "float32"
        weight = cast(self.stored.numpy(), self.stored.dtype, compute)
        if self.code:
            weight = round_trip(weight, self.code)
        if self.part is not None:
            weight = self.part.merged(weight)
        try:
            return cast(weight, compute, self.dtype)
        except ValueError as error:
            name = self.stored.sources[0][1].target
            raise CheckpointError(f"{name}: {error}; merge with --dtype float32 or bfloat16") from None


def merge(
    opened: Opened,
    output: Path,
    dtype: str = KEEP,
    max_shard_bytes: int = 5_000_000_000,
    progress: Progress | None = None,
) -> int:
    """Writes a model folder that needs no adapter; returns the number of layers that the adapter changed.

    Args:
        opened: The adapter and its base.
        output: The folder to make.
        dtype: Of floats: ``"keep"`` or one of ``save.DTYPES``.
        max_shard_bytes: A file holds no more data than this, unless a single tensor is larger.
        progress: Told of bytes written.

    Raises:
        CheckpointError: The adapter is a prefix, the folder is there already or cannot be written, or a value does not fit
            into the dtype.
    """
    if not isinstance(opened.adapter, Adapter):
        raise CheckpointError(
            f"{opened.folder} holds a prefix, which cannot be merged: it is keys and values before the text, and no "
            "weights of the model could stand for them. Use it as it is, e.g. llmctl generate"
        )
    source = convert.open_source(opened.base, opened.plugin, opened.dims)
    state: dict[str, Any] = dict(source.state)
    parts = opened.adapter.parts
    changed = targets.linears(opened.plugin.card, opened.dims) if opened.quantised else parts
    for path in changed:
        stored, part = source.state[path + ".weight"], parts.get(path)
        kept = stored.dtype if dtype == KEEP else dtype
        state[path + ".weight"] = Merged(stored, part, kept, opened.quantised)
    shards = plan_shards(state, renames_for(HF, opened.plugin, opened.dims), dtype, max_shard_bytes)
    with atomic_folder(output) as work:
        for name, tensors in shards.items():
            write_file(work / name, tensors, progress)
        if len(shards) > 1:
            write_index(work, shards)
        convert.copy_rest(opened.base, work, dtype)
        put_tokenizer(opened, work)
        (work / RECORD).write_text(json.dumps(_record(opened, dtype, len(parts)), indent=2) + "\n", encoding="utf-8")
    return len(parts)


def put_tokenizer(opened: Opened, work: Path) -> None:
    """Puts the adapter's tokenizer and chat template, where it has them, in place of the base's: it was trained with these."""
    folder = tokenizer_folder(opened.folder, opened.base)
    if folder == opened.base:
        return
    for path in [
        path for pattern in (*FILES, "tokenizer_config.json", "chat_template.*") for path in work.glob(pattern)
    ]:
        path.unlink()
    tokenizers.load(folder, card=opened.plugin.card).save(work)


def _record(opened: Opened, dtype: str, layers: int) -> dict[str, Any]:
    return {
        "merged": {"base": str(opened.base.resolve()), "adapter": str(opened.folder.resolve()), "dtype": dtype},
        "layers": layers,
        "dequantised_from": opened.quantised or None,
        "card_hash": opened.plugin.card.hash(),
        "versions": dict(plugins.versions(opened.plugin)),
    }
