"""Writing a model folder in the Hugging Face layout: weights, configuration, tokenizer, generation defaults."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl.checkpoint import save_weights
from llmctl.checkpoint.build import CheckedModel
from llmctl.io.copying import copy_into
from llmctl.tokenizers import Tokenizer

GENERATION = "generation_config.json"


@dataclass(frozen=True)
class ModelWriter:
    """Writes the weights of a model, and the other files of a model folder.

    Attributes:
        source: The model that training started from; its config.json and generation defaults are written.
        tokenizer: Saved into the folder.
        max_shard_bytes: Largest weight file.
    """

    source: CheckedModel
    tokenizer: Tokenizer
    max_shard_bytes: int

    def write(self, folder: Path, state: Mapping[str, Any], dtype: str) -> None:
        """Writes the weights of a state in a dtype, and the other files, into an existing folder."""
        plugin, home = self.source.plugin, self.source.folder
        renames = plugin.hooks.weight_map(card=plugin.card, dims=self.source.dims, source="torch")
        save_weights(folder, state, renames, dtype=dtype, max_shard_bytes=self.max_shard_bytes)
        facts = plugin.card.recorded(self.source.config, self.source.dims)
        config = {**self.source.config, **facts, "torch_dtype": dtype}
        (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        self.tokenizer.save(folder)
        if home and (home / GENERATION).is_file():
            copy_into(home / GENERATION, folder)
        else:
            (folder / GENERATION).write_text(json.dumps(self._generation(), indent=2) + "\n", encoding="utf-8")

    def _generation(self) -> dict[str, Any]:
        named = {"bos_token_id": self.tokenizer.bos_id, "pad_token_id": self.tokenizer.pad_id}
        ends = list(self.tokenizer.eos_ids)
        named["eos_token_id"] = ends[0] if len(ends) == 1 else ends or None
        return {name: value for name, value in named.items() if value is not None}
