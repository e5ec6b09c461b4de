"""Writing a model folder as Hugging Face lays it out: weights, configuration, tokenizer, generation defaults."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl import plugins
from llmctl.card.dims import Dims
from llmctl.checkpoint import read_config, save_weights

GENERATION = "generation_config.json"


@dataclass(frozen=True)
class ModelWriter:
    """What a model folder is made of besides the weights.

    Attributes:
        plugin: The family; its names are those of the written tensors.
        dims: The model's dims.
        source: The folder that the model came from, whose defaults for generation are carried over; None = a new model.
        tokenizer: Saved into the folder.
        max_shard_bytes: Largest weight file.
        config: Content of ``config.json``; None = that of ``source``.
    """

    plugin: plugins.Plugin
    dims: Dims
    source: Path | None
    tokenizer: Any
    max_shard_bytes: int
    config: Mapping[str, Any] | None = None

    def write(self, folder: Path, model: Any, dtype: str) -> None:
        """Writes a layer's weights in a type, and everything beside them, into an existing folder."""
        renames = self.plugin.hooks.weight_map(card=self.plugin.card, dims=self.dims, source="torch")
        save_weights(folder, model, renames, dtype=dtype, max_shard_bytes=self.max_shard_bytes)
        assert self.source or self.config, "a model's configuration comes from somewhere"
        config = {**(self.config or read_config(self.source)), "torch_dtype": dtype}
        (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        self.tokenizer.save(folder)
        if self.source and (self.source / GENERATION).is_file():
            shutil.copyfile(self.source / GENERATION, folder / GENERATION)
        else:
            (folder / GENERATION).write_text(json.dumps(self._generation(), indent=2) + "\n", encoding="utf-8")

    def _generation(self) -> dict[str, Any]:
        named = {"bos_token_id": self.tokenizer.bos_id, "pad_token_id": self.tokenizer.pad_id}
        ends = list(self.tokenizer.eos_ids)
        named["eos_token_id"] = ends[0] if len(ends) == 1 else ends or None
        return {name: value for name, value in named.items() if value is not None}
