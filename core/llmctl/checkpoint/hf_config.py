"""Reads ``config.json`` of a model folder, with the key names of transformers 4 whichever release wrote it.

That is ``torch_dtype``, ``rope_theta`` and ``rope_scaling``. The card of the family gives the values their meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmctl.card.rope import TRAINED
from llmctl.errors import CheckpointError
from llmctl.io.json_object import read_json

NAME = "config.json"
WITHOUT_TRAINED = (None, "default", "linear", "dynamic")
"""Kinds of RoPE scaling that do not read the trained length."""
PADDLENLP_SCALING = {"linear": "linear", "dynamic_ntk": "dynamic"}
"""Kinds of RoPE scaling in PaddleNLP's files -> in Hugging Face's."""
RENAMED = {"su": "longrope"}
"""Kinds of RoPE scaling by their names in the first files."""


def read_config(folder: str | Path) -> dict[str, Any]:
    """Reads ``config.json``; ``architectures`` is a non-empty list of strings.

    Raises:
        CheckpointError: The file is missing, names no architecture or contradicts itself.
        FileError: The file is not a JSON object.
    """
    path = Path(folder) / NAME
    if not path.is_file():
        parent = path.parent
        what = f"has no {NAME}" if parent.is_dir() else "is not a folder" if parent.exists() else "does not exist"
        raise CheckpointError(f"{folder} {what}; a model folder holds {NAME}, weights and tokenizer files")
    config = read_json(path, required=True)
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f'{path} names no architecture; it needs "architectures": ["SomethingForCausalLM"]')
    return normalize(config, str(path))


def normalize(config: dict[str, Any], where: str = NAME) -> dict[str, Any]:
    """A copy with ``dtype`` and ``rope_parameters`` renamed to the keys of transformers 4.

    Raises:
        CheckpointError: Old and new keys are both present and differ, or ``rope_parameters`` differ between layers.
    """
    result = dict(config)
    if "dtype" in result:
        _set(result, "torch_dtype", result.pop("dtype"), where)
    if result.get("rope_parameters") is not None:
        parameters = _rope_parameters(result.pop("rope_parameters"), where)
        for key in ("rope_theta", "partial_rotary_factor"):
            if key in parameters:
                _set(result, key, parameters.pop(key), where)
        _set(result, "rope_scaling", _scaling(parameters), where)
    result.pop("rope_parameters", None)
    _read_paddlenlp_scaling(result, where)
    if "rope_scaling" in result:
        result["rope_scaling"] = _with_trained_length(_scaling(result["rope_scaling"]), result.pop(TRAINED, None))
    return result


def _read_paddlenlp_scaling(config: dict[str, Any], where: str) -> None:
    """Renames PaddleNLP's ``rope_scaling_type`` and ``rope_scaling_factor``; other kinds stay, and no card knows them."""
    kind = config.get("rope_scaling_type")
    if "rope_scaling_type" in config and (kind is None or kind in PADDLENLP_SCALING):
        factor = config.pop("rope_scaling_factor", 1.0)
        del config["rope_scaling_type"]
        if kind is not None:
            _set(config, "rope_scaling", {"rope_type": PADDLENLP_SCALING[kind], "factor": factor}, where)


def with_paddlenlp_scaling(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json whose RoPE scaling transformers and PaddleNLP read: ``linear`` and ``dynamic`` in both spellings."""
    read = dict(config)
    _read_paddlenlp_scaling(read, NAME)
    scaling = _scaling(read.get("rope_scaling"))
    kinds = {there: here for here, there in PADDLENLP_SCALING.items()}
    if not isinstance(scaling, dict) or scaling.get("rope_type") not in kinds:
        return dict(config)
    both = {"rope_scaling_type": kinds[scaling["rope_type"]], "rope_scaling_factor": scaling.get("factor", 1.0)}
    return {**config, "rope_scaling": scaling, **both}


def _rope_parameters(parameters: Any, where: str) -> dict[str, Any]:
    if not isinstance(parameters, dict):
        raise CheckpointError(f"{where}: rope_parameters={parameters!r} is not an object")
    if any(isinstance(value, dict) for value in parameters.values()):
        raise CheckpointError(f"{where}: rope_parameters that differ between kinds of layers are not supported")
    return dict(parameters)


def _scaling(scaling: Any) -> Any:
    """RoPE scaling with its kind under ``rope_type``; None if there is none."""
    if not isinstance(scaling, dict):
        return scaling
    kind = scaling.get("rope_type", scaling.get("type"))
    kind = RENAMED.get(kind, kind) if isinstance(kind, str) else kind
    options = {key: value for key, value in scaling.items() if key not in ("rope_type", "type")}
    if kind in ("default", None) and not options:
        return None
    return {"rope_type": kind, **options} if kind is not None else options


def _with_trained_length(scaling: Any, trained: Any) -> Any:
    """RoPE scaling with the trained length that is outside of the object (Phi-3); there it has priority, as in transformers.

    Other kinds of scaling do not read it.
    """
    if trained is None or not isinstance(scaling, dict) or scaling.get("rope_type") in WITHOUT_TRAINED:
        return scaling
    return {**scaling, TRAINED: trained}


def _set(config: dict[str, Any], key: str, value: Any, where: str) -> None:
    known = config.get(key)
    if key == "rope_scaling":
        known = _scaling(known)
    if known is not None and known != value:
        raise CheckpointError(
            f"{where} has {key} twice, under the old and the new key, with different values: {known!r} and {value!r}"
        )
    config[key] = value
