"""The model in a folder: a checkpoint, an adapter with its base, or a checkpoint with an adapter on it.

Files are checked without paddle; layers are loaded on request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmctl.checkpoint.locate import locate
from llmctl.errors import ConfigError
from llmctl.infer.options import EngineOptions

if TYPE_CHECKING:
    from llmctl.adapters.folder import OpenedAdapter
    from llmctl.card.dims import Dims
    from llmctl.plugins import Plugin
    from llmctl.quant.formats.scheme import Scheme


@dataclass(frozen=True)
class ModelSource:
    """A model that was checked, not loaded.

    Attributes:
        folder: Folder of the checkpoint; for an adapter, that of its base.
        plugin: Its family.
        dims: Its dims.
        adapted: The adapter, or None.
        scheme: How the checkpoint is quantized; None = it holds floats.
    """

    folder: Path
    plugin: Plugin
    dims: Dims
    adapted: OpenedAdapter | None
    scheme: Scheme | None = None

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer is: with the adapter that was trained with it, or with the model."""
        from llmctl.adapters.folder import tokenizer_folder

        return tokenizer_folder(self.adapted.folder, self.folder) if self.adapted else self.folder

    def state(self) -> Mapping[str, Any]:
        """The checkpoint's tensors under the names of the card, each with ``dtype`` and ``numpy()``: floats, also those of codes.

        Raises:
            CheckpointError: Its tensors are not those of the card.
        """
        from llmctl.checkpoint.convert import open_source
        from llmctl.checkpoint.quantized import open_weights

        card = self.plugin.card
        weights = None if self.scheme is None else open_weights(self.folder, card, self.dims)
        return open_source(self.folder, self.plugin, self.dims, weights).state

    def layer(self, merged: bool = False, codes: bool = True) -> Any:
        """The layer with its adapter.

        Args:
            merged: A low-rank adapter becomes part of the weights, unless these are codes.
            codes: Whether codes of a checkpoint stay codes; False makes floats of them.
        """
        if self.adapted is not None:
            from llmctl.adapters.attach import adapted_model, merged_model

            return (merged_model if merged else adapted_model)(self.adapted, codes=codes)
        from llmctl.checkpoint.build import load_model

        return load_model(self.folder, self.plugin.card.name, codes=codes)[0]


def open_model(folder: Path, family: str, options: EngineOptions) -> ModelSource:
    """The model in a folder, with the adapter for every prompt that the options name.

    Args:
        folder: A checkpoint or an adapter, or a name on a hub.
        family: Name of a family, or ``"auto"``.
        options: ``adapter``, ``base`` and ``allow_other_base`` are read; adapters by name are not.

    Raises:
        LlmctlError: A folder is not what it should be, or options contradict each other.
    """
    from llmctl import plugins
    from llmctl.adapters.folder import is_adapter, open_adapter
    from llmctl.checkpoint.hf_config import read_config
    from llmctl.checkpoint.quantized import without_scheme

    folder = locate(folder)
    adapter = options.single_adapter
    allow_other_base = options.allow_other_base and not options.named_adapters
    if is_adapter(folder):
        if adapter:
            raise ConfigError(
                f"{folder} holds an adapter itself; leave out {options.spell('adapter')}, or name a model's folder"
            )
        opened = open_adapter(folder, locate(options.base) if options.base else None, family, allow_other_base)
        return ModelSource(opened.base, opened.plugin, opened.dims, opened, opened.scheme)
    if options.base or (allow_other_base and not adapter):
        raise ConfigError(
            f"{options.spell('base')} and {options.spell('allow_other_base')} are for adapters; {folder} holds none"
        )
    if adapter:
        opened = open_adapter(adapter, folder, family, allow_other_base)
        return ModelSource(opened.base, opened.plugin, opened.dims, opened, opened.scheme)
    config = read_config(folder)
    where = str(folder / "config.json")
    plugin = plugins.resolve(family, config, where)
    config, scheme = without_scheme(folder, config)
    return ModelSource(folder, plugin, plugin.card.dims_from_config(config, where), None, scheme)
