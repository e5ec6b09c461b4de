"""Quantized models in the layouts of other tools: GPTQ, AWQ and compressed-tensors, as transformers and vLLM read them, and GGUF.

A linear is a module of its own there, so the packed one is divided again and its outputs go back into their order. Scales that
were folded into norms and biases are part of these tensors. Shape suffixes: I inputs, O outputs, G groups.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from llmctl.card.decoder_spec import DecoderSpec
from llmctl.checkpoint.convert import OF_CODES, complete_config, copy_other_files
from llmctl.checkpoint.formats.dtypes import STORAGE, cast
from llmctl.checkpoint.formats.safetensors import PlannedTensor, write_file
from llmctl.checkpoint.gguf.metadata import metadata_of
from llmctl.checkpoint.gguf.write import CODES, write_model
from llmctl.checkpoint.naming import HF, mappings_for
from llmctl.checkpoint.save import plan_tensors, shards_of, write_index
from llmctl.errors import CheckpointError, UnsupportedError
from llmctl.infer.packed.linear import BITS, codes_of, parts_of
from llmctl.infer.packed.model import Layer, Linear, Norm, PackedModel
from llmctl.infer.packed.pack import chunks, qkv_order
from llmctl.infer.quantize.settings import Settings
from llmctl.io.atomic import atomic_folder
from llmctl.io.gguf_files import LINK
from llmctl.io.json_object import read_json
from llmctl.quant.formats import awq, compressed, gptq
from llmctl.quant.formats.codes import WORD, Codes, whole_words
from llmctl.quant.formats.config import KEYS
from llmctl.quant.formats.gguf_blocks import GROUP

if TYPE_CHECKING:
    from llmctl.infer.model_source import ModelSource

SHARD = 5_000_000_000
DTYPE = "float16"
"""Of all other tensors, as those tools expect."""

OLD_CONFIG = "quantize_config.json"
GGUF, COMPRESSED = "gguf", "compressed-tensors"
WHOLE_GROUPS = ("awq", COMPRESSED)
"""Formats that have no group at the end with fewer inputs."""


def check(form: str, source: ModelSource, graph: DecoderSpec, settings: Settings) -> None:
    """Checks that a format can hold a model that is quantized so.

    Args:
        form: One of ``config.quantize.FORMATS`` but ``packed``.
        source: The model.
        graph: What the fused engine computes for it.
        settings: How it is quantized.

    Raises:
        UnsupportedError: It cannot; the message names what.
    """
    packed = "; write --format packed"
    if form == GGUF:
        metadata_of(source.plugin.card, source.dims)
        if settings.form == "asymmetric":
            raise UnsupportedError(f"--format {form} keeps codes without zero points; set quantize.asymmetric=false")
    elif settings.kv_bits != settings.bits and form != COMPRESSED:
        raise UnsupportedError(
            f"--format {form} has weights of one number of bits, and --qkv {settings.qkv} asks for another; write "
            f"--format {COMPRESSED} or packed"
        )
    if form == "awq" and settings.bits != 4:
        raise UnsupportedError(f"--format awq has 4 bits, and {settings.method} gives {settings.bits}{packed}")
    if graph.unit_head:
        raise UnsupportedError(
            f"--format {form}: the head of this model is normalized, which readers of it do not do{packed}"
        )
    mappings = {mapping.target: mapping for mapping in mappings_for(HF, source.plugin, source.dims)}
    linears = [row for row in source.plugin.card.expand(source.dims) if row.kind == "linear" and row.layer is not None]
    if form in WHOLE_GROUPS and settings.group:
        _check_groups(form, {row.shape[0]: mappings[row.name].source for row in linears}, settings.group)
    for tensor in linears:
        mapping = mappings[tensor.name]
        if not mapping.transpose or mapping.src_slice or mapping.dst_slice:
            raise UnsupportedError(
                f"--format {form} has one linear [out, in] for each weight, and {mapping.source} is stored in another way{packed}"
            )
        if tensor.slot == "qkv" and settings.q_bits != settings.kv_bits:
            raise UnsupportedError(
                f"--format {form} has one number of bits for {mapping.source}, which holds queries, keys and values, and "
                f"--qkv {settings.qkv} asks for two; leave it out, or write --format packed"
            )
        inputs, outputs = tensor.shape
        if reason := _unfit(form, inputs, outputs, settings):
            raise UnsupportedError(f"--format {form} cannot hold {mapping.source}: {reason}{packed}")


def write(
    form: str, target: Path, source: ModelSource, model: PackedModel, settings: Settings, files: Mapping[str, str], overwrite: bool
) -> int:  # fmt: skip
    """Writes the folder; returns the bytes of its weights.

    Args:
        form: As for ``check``.
        target: The folder.
        source: The float model.
        model: The quantized one.
        settings: How it was quantized.
        files: Name -> text of other files in the folder.
        overwrite: Replace a folder that holds something.

    Raises:
        CheckpointError: The folder cannot be written, or a value does not fit the format.
    """
    config = source.plugin.card
    state: dict[str, Any] = dict(source.state())
    linears: dict[str, Codes] = {}
    for index, layer in enumerate(model.layers):
        for name, values in _tensors(model.graph, index, layer):
            if isinstance(values, Codes):
                linears[name] = values
            elif name in state:
                state[name] = _Changed(values, state[name].dtype)
    if form == GGUF:
        return _gguf(target, source, state, linears, files, overwrite)
    mappings = mappings_for(HF, source.plugin, source.dims)
    planned = plan_tensors(state, [row for row in mappings if row.target not in linears], DTYPE)
    v2 = form == "gptq" and any((2 ** (codes.bits - 1) - codes.zeros_OG).min() < 1 for codes in linears.values())
    modules = {mapping.source.rpartition(".")[0]: linears[mapping.target] for mapping in mappings if mapping.target in linears}  # fmt: skip
    uneven = {codes.bits for codes in modules.values() if codes.zeros_OG.any()}
    for module, codes in modules.items():
        try:
            parts = _written(form, codes, settings, v2, codes.bits not in uneven)
        except ValueError as error:
            raise CheckpointError(f"{module} cannot be written as {form}: {error}") from None
        planned.update({f"{module}.{name}": _planned(values) for name, values in parts.items()})
    if form == COMPRESSED:
        scheme = _compressed_scheme(settings, modules, uneven, _ignored(source))
    else:
        scheme = _scheme(form, settings, not uneven, v2)
    with atomic_folder(target, overwrite) as work:
        copy_other_files(source.folder, work)
        for name in OF_CODES:
            (work / name).unlink(missing_ok=True)
        complete_config(work, DTYPE, config, source.dims, KEYS)
        described = read_json(work / "config.json", required=True)
        _write_json(work / "config.json", {**described, "quantization_config": scheme})
        if form == "gptq":
            _write_json(work / OLD_CONFIG, scheme)
        for name, text in files.items():
            (work / name).write_text(text, encoding="utf-8")
        shards = shards_of(planned, SHARD)
        for name, shard in shards.items():
            write_file(work / name, shard)
        if len(shards) > 1:
            write_index(work, shards)
    return sum(tensor.nbytes for tensor in planned.values())


@dataclass(frozen=True)
class _Changed:
    """A tensor of the card whose values are others than those stored, with the attributes that writers read."""

    values: NDArray[np.float32]
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.values.shape

    def numpy(self) -> NDArray[Any]:
        """The values in the stored type."""
        return cast(self.values, "float32", self.dtype).astype(STORAGE[self.dtype], copy=False)


def _tensors(graph: DecoderSpec, index: int, layer: Layer) -> Iterator[tuple[str, Codes | NDArray[np.float32]]]:
    """Names on the card and tensors of a layer: codes, and floats that may have changed."""
    slots = graph.layers[index]
    for slot, norm in (("ln", layer.norm), ("ffn_ln", layer.ffn_norm)):
        yield from _norm(slots, slot, norm)
    if layer.router is not None:
        yield slots["gate"][0], np.ascontiguousarray(layer.router.T)
    back = np.argsort(qkv_order(graph))
    yield from _linears(slots["qkv"], slots.get("qkv_bias", ()), layer.qkv, graph, back)
    yield from _linears(slots["out"], slots.get("out_bias", ()), layer.out, graph)
    for slot, parts in (("ffn1", layer.up), ("ffn2", layer.down)):
        biases = chunks(slots.get(f"{slot}_bias", ()), len(parts))
        for names, bias, linear in zip(chunks(slots[slot], len(parts)), biases, parts, strict=True):
            yield from _linears(names, bias, linear, graph)


def _norm(slots: Mapping[str, Sequence[str]], slot: str, norm: Norm) -> Iterator[tuple[str, NDArray[np.float32]]]:
    yield slots[slot][0], norm.weight
    if norm.bias is not None and f"{slot}_bias" in slots:
        yield slots[f"{slot}_bias"][0], norm.bias


def _linears(
    names: Sequence[str], biases: Sequence[str], linear: Linear, graph: DecoderSpec, back: NDArray[np.int64] | None = None
) -> Iterator[tuple[str, Codes | NDArray[np.float32]]]:  # fmt: skip
    """The weights that one packed linear joins, and their biases."""
    weights = parts_of(linear.weight)
    bits_O = np.concatenate([np.full(weight.outputs, BITS[weight.kind]) for weight in weights])
    arrays = [np.concatenate(part, axis=1) for part in zip(*map(codes_of, weights), strict=True)]
    bias = linear.bias
    if back is not None:
        arrays, bits_O = [array[:, back] for array in arrays], bits_O[back]
        bias = None if bias is None else bias[back]
    codes_IO, scales_GO, zeros_GO = arrays
    inputs, outputs = codes_IO.shape
    group_I = np.arange(inputs) // (weights[0].group or inputs)
    starts = _starts(names, outputs, graph)
    for name, start, stop in zip(names, starts, starts[1:], strict=False):
        part = slice(start, stop)
        parts = (np.ascontiguousarray(array[:, part].T) for array in (codes_IO, scales_GO, zeros_GO))
        codes_OI, scales_OG, zeros_OG = parts
        yield name, Codes(int(bits_O[start]), codes_OI.astype(np.int16), scales_OG, zeros_OG, group_I)
    if bias is not None and biases:
        for name, start, stop in zip(biases, starts, starts[1:], strict=False):
            yield name, np.ascontiguousarray(bias[start:stop])


def _starts(names: Sequence[str], outputs: int, graph: DecoderSpec) -> list[int]:
    """First output of each weight, and the end."""
    if len(names) == 3:
        queries, keys = graph.heads * graph.head_dim, graph.kv_heads * graph.head_dim
        return [0, queries, queries + keys, outputs]
    return [outputs * number // len(names) for number in range(len(names) + 1)]


def _check_groups(form: str, names: Mapping[int, str], group: int) -> None:
    """Checks that groups fill the inputs of all linears.

    Args:
        form: The format.
        names: Number of inputs -> a linear that has them.
        group: Inputs of a group.

    Raises:
        UnsupportedError: They do not.
    """
    odd = next((inputs for inputs in names if inputs % group), None)
    if odd is None:
        return
    fitting = [size for size in (128, 64, 32) if size < group and not any(inputs % size for inputs in names)]
    raise UnsupportedError(
        f"--format {form} cannot hold {names[odd]}: {odd} inputs are not a multiple of the group, {group}; choose "
        f"{f'--group {fitting[0]}' if fitting else '--group 0, a scale for each output'}, or write --format packed"
    )


def _unfit(form: str, inputs: int, outputs: int, settings: Settings) -> str:
    """Why a format cannot hold a weight; empty = it can."""
    if form == COMPRESSED:
        if settings.form == "asymmetric" and outputs % (WORD // settings.bits):
            return f"{outputs} outputs are not a multiple of {WORD // settings.bits}"
        return ""
    if form == GGUF:
        return f"{inputs} inputs are not a multiple of {GROUP}" if inputs % GROUP else ""
    if form == "gptq" and inputs % WORD:
        return f"{inputs} inputs are not a multiple of {WORD}"
    return whole_words(WORD, outputs, settings.bits)


def _gguf(
    target: Path,
    source: ModelSource,
    state: Mapping[str, Any],
    linears: Mapping[str, Codes],
    files: Mapping[str, str],
    overwrite: bool,
) -> int:
    """Writes the folder with a GGUF file; returns the bytes of the file."""
    with atomic_folder(target, overwrite) as work:
        write_model(work / LINK, source.folder, source.plugin.card, source.dims, state, CODES, linears)
        for name, text in files.items():
            (work / name).write_text(text, encoding="utf-8")
        return (work / LINK).stat().st_size


def _written(form: str, codes: Codes, settings: Settings, v2: bool, symmetric: bool) -> dict[str, NDArray[Any]]:
    if form == "gptq":
        return gptq.write(codes, v2)
    return awq.write(codes) if form == "awq" else compressed.write(codes, settings.method != "ptq-a8w8", symmetric)


def _scheme(form: str, settings: Settings, symmetric: bool, v2: bool) -> dict[str, Any]:
    """``quantization_config`` of gptq and awq."""
    group = settings.group or -1
    if form == "gptq":
        return {
            "quant_method": "gptq", "bits": settings.bits, "group_size": group, "desc_act": False, "sym": symmetric,
            "static_groups": True, "true_sequential": True, "checkpoint_format": "gptq_v2" if v2 else "gptq",
            "damp_percent": settings.damping or 0.01,
        }  # fmt: skip
    return {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm",
            "modules_to_not_convert": None}  # fmt: skip


def _compressed_scheme(
    settings: Settings, modules: Mapping[str, Codes], uneven: Collection[int], ignored: Sequence[str]
) -> dict[str, Any]:
    """``quantization_config`` of compressed-tensors: a config group for each number of bits.

    Args:
        settings: How the model was quantized.
        modules: Each quantized linear.
        uneven: Numbers of bits whose linears have zero points.
        ignored: Linears that stay floats.
    """
    targets: dict[int, list[str]] = {}
    for module, codes in modules.items():
        # The module in any layer: model.layers.0.self_attn.q_proj -> .self_attn.q_proj
        within = re.escape(re.split(r"\.\d+(?=\.)", module, maxsplit=1)[-1])
        rows = targets.setdefault(codes.bits, [])
        rows += [] if (row := f"re:.*{within}$") in rows else [row]
    if len(targets) == 1:
        # Beside modules that are named, readers that join several would take a class for all of the joined one.
        targets = {settings.bits: ["Linear"]}
    activations = None
    if settings.method == "ptq-a8w8":
        activations = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    groups = {}
    for number, (bits, rows) in enumerate(targets.items()):
        weights = {"num_bits": bits, "type": "int", "symmetric": bits not in uneven, "dynamic": False}
        weights |= {"strategy": "group", "group_size": settings.group} if settings.group else {"strategy": "channel"}
        groups[f"group_{number}"] = {
            "targets": rows, "weights": weights, "input_activations": activations, "output_activations": None,
        }  # fmt: skip
    return {
        "quant_method": COMPRESSED,
        "format": "pack-quantized" if activations is None else "int-quantized",
        "quantization_status": "compressed",
        "ignore": list(ignored),
        "config_groups": groups,
    }


def _ignored(source: ModelSource) -> list[str]:
    """Modules that stay floats though they are linears."""
    mappings = {mapping.target: mapping.source for mapping in mappings_for(HF, source.plugin, source.dims)}
    names = [
        mappings[tensor.name].rpartition(".")[0]
        for tensor in source.plugin.card.expand(source.dims)
        if tensor.slot in ("head", "gate", "project_in", "project_out")
    ]
    return names or ["lm_head"]


def _planned(values: NDArray[Any]) -> PlannedTensor:
    return PlannedTensor(values.shape, str(values.dtype), partial(_write_array, np.ascontiguousarray(values)))


def _write_array(values: NDArray[Any], stream: BinaryIO) -> None:
    stream.write(memoryview(values).cast("B"))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
