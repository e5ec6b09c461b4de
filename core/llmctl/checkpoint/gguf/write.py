"""A model as a GGUF file, which programs such as llama.cpp run: weights, configuration and tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.card.dims import Dims
from llmctl.card.family import Family, Tensor
from llmctl.checkpoint.formats import gguf
from llmctl.checkpoint.formats.dtypes import cast
from llmctl.checkpoint.formats.gguf import Planned
from llmctl.checkpoint.formats.tensor_info import CodedTensor
from llmctl.checkpoint.gguf import metadata, vocabulary
from llmctl.checkpoint.gguf.names import FREQUENCIES, gguf_name
from llmctl.checkpoint.gguf.tensors import heads_of
from llmctl.errors import CheckpointError, FileError, UnsupportedError
from llmctl.io.atomic import atomic_file
from llmctl.quant.formats.codes import Codes
from llmctl.quant.formats.gguf_blocks import BY_NAME, GROUP, TYPES, BlockType, encode, encode_codes

QUANTIZED = {"q8_0": "Q8_0", "q4_0": "Q4_0", "q4_1": "Q4_1"}
"""Types of weights in codes, as options spell them -> in GGUF."""

FLOAT_TYPES = {kind.dtype: kind for kind in TYPES.values() if kind.decode is None}
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "BF16": 32}
"""``general.file_type`` by the type of most weights."""

OUTSIDE = "Q8_0"
"""Of embeddings and head, if the weights of the layers are codes."""

CODES = "codes"
"""For ``dtype``: every matrix that has codes in the type that keeps them, others as beside codes."""


def write_model(
    target: Path,
    folder: Path,
    card: Family,
    dims: Dims,
    state: Mapping[str, Any],
    dtype: str = "keep",
    codes: Mapping[str, Codes] | None = None,
    overwrite: bool = False,
) -> str:
    """Writes a model, complete or not at all; returns the type of its layers' weights.

    Args:
        target: The file.
        folder: Where its tokenizer is.
        card: Its family.
        dims: Its dims.
        state: Name on the card -> tensor with ``dtype`` and ``numpy()``, in paddle's layout.
        dtype: Type of matrices: ``keep``, one of ``save.DTYPES``, or of ``QUANTIZED``, rounded to nearest; or ``CODES``.
        codes: Codes of matrices that were chosen already, by name on the card; they are kept as they are.
        overwrite: Replace a file.

    Raises:
        FileError: The file is there already.
        CheckpointError: A value is not finite or beyond the type.
        UnsupportedError: GGUF has no place for something of the model, which is named.
    """
    if target.exists() and not overwrite:
        raise FileError(f"{target} already exists; choose another file, or allow overwriting it")
    facts = metadata.metadata_of(card, dims) | vocabulary.metadata_of(folder, card, int(dims.vocab))
    tensors, kinds = {}, []
    for name, parts in _by_name(card, dims).items():
        planned = _planned(parts, card, dims, state, dtype, codes or {})
        tensors[name] = planned
        if len(planned.shape) > 1 and parts[0].layer is not None and parts[0].kind != "router":
            kinds.append(planned.type.name)
    divisors = metadata.frequencies(dims)
    if divisors is not None:
        tensors[FREQUENCIES] = Planned(divisors.shape, BY_NAME["F32"], lambda: divisors.view(np.uint8))
    most = max(set(kinds), key=kinds.count)
    facts |= {metadata.FILE_TYPE: FILE_TYPES[most], "general.quantization_version": 2, "general.name": target.stem}
    with atomic_file(target) as file:
        gguf.write(file, facts, tensors)
    return most


def _by_name(card: Family, dims: Dims) -> dict[str, list[Tensor]]:
    """Name in GGUF -> tensors of the card; several are the experts of a layer."""
    found: dict[str, list[Tensor]] = {}
    for tensor in card.expand(dims):
        found.setdefault(gguf_name(tensor, card), []).append(tensor)
    return found


def _planned(
    parts: Sequence[Tensor],
    card: Family,
    dims: Dims,
    state: Mapping[str, Any],
    dtype: str,
    codes: Mapping[str, Codes],
) -> Planned:
    first = parts[0]
    shape = first.shape[::-1] if first.transpose else first.shape
    whole = shape if first.expert is None else (len(parts), *shape)
    chosen = [codes.get(tensor.name) or _stored_codes(state[tensor.name]) for tensor in parts]
    kind = _kind(first, shape, state[first.name].dtype, dtype, chosen[0])
    blocks: list[Callable[[], NDArray[np.uint8]]] = []
    for tensor, one in zip(parts, chosen, strict=True):
        order = _order(shape[0], heads_of(tensor, card, dims))
        if one is not None and _keeps(one, kind):
            blocks.append(partial(_of_codes, one, kind, order))
        else:
            blocks.append(partial(_of_values, tensor, state[tensor.name], kind, order))
    return Planned(whole, kind, lambda: np.concatenate([one().reshape(-1) for one in blocks]))


def _kind(tensor: Tensor, shape: tuple[int, ...], stored: str, dtype: str, chosen: Codes | None) -> BlockType:
    """How a tensor is written."""
    if len(tensor.shape) == 1 or tensor.kind == "router":
        return BY_NAME["F32"]
    if chosen is not None and dtype in ("keep", CODES):
        kept = next((BY_NAME[name] for name in ("Q4_0", "Q8_0") if _keeps(chosen, BY_NAME[name])), None)
        if kept is None and dtype == CODES:
            raise UnsupportedError(
                f"{tensor.name}: GGUF keeps codes without zero points, in groups of a multiple of {GROUP} inputs with scales in float16"
            )
        return kept or BY_NAME["F16"]
    if dtype == CODES:
        dtype = "float16" if tensor.layer is not None or shape[-1] % GROUP else OUTSIDE.lower()
    name = QUANTIZED.get(dtype)
    if name is None:
        return FLOAT_TYPES[stored if dtype == "keep" else dtype]
    inputs = shape[-1]
    if inputs % GROUP:
        raise UnsupportedError(
            f"{tensor.name} has {inputs} inputs, and {name} holds rows of a multiple of {GROUP}; use float16"
        )
    return BY_NAME[name if tensor.layer is not None else OUTSIDE]


def _stored_codes(stored: Any) -> Codes | None:
    """The codes of a tensor of a quantized checkpoint."""
    sources: Sequence[Any] = getattr(stored, "sources", ())
    if len(sources) != 1 or not isinstance(sources[0][0], CodedTensor):
        return None
    info, mapping = sources[0]
    whole = mapping.src_slice is None and mapping.dst_slice is None
    return info.codes() if whole else None


def _keeps(codes: Codes, kind: BlockType) -> bool:
    """Whether a type holds codes as they are."""
    if (
        kind.name not in ("Q4_0", "Q8_0")
        or codes.group_size is None
        or codes.group_size % GROUP
        or codes.zeros_OG.any()
    ):
        return False
    halves = np.array_equal(codes.scales_OG.astype(np.float16).astype(np.float32), codes.scales_OG)
    fits = kind.name == "Q8_0" or (codes.codes_OI.min() >= -8 and codes.codes_OI.max() <= 7)
    return bool(halves and fits and codes.codes_OI.shape[-1] % GROUP == 0)


def _order(rows: int, heads: int) -> NDArray[np.int64] | None:
    """The row of Hugging Face's that each row of the file is; None = the same."""
    if not heads:
        return None
    width = rows // heads
    head, within = np.divmod(np.arange(rows), width)
    pair, half = np.divmod(within, 2)
    order: NDArray[np.int64] = head * width + half * (width // 2) + pair
    return order


def _of_codes(codes: Codes, kind: BlockType, order: NDArray[np.int64] | None) -> NDArray[np.uint8]:
    rows = slice(None) if order is None else order
    scales = codes.scales_OG[:, codes.group_I[::GROUP]]
    return encode_codes(codes.codes_OI[rows], scales[rows], kind.name)


def _of_values(tensor: Tensor, stored: Any, kind: BlockType, order: NDArray[np.int64] | None) -> NDArray[np.uint8]:
    values = stored.numpy()
    values = values.T if tensor.transpose else values
    values = values if order is None else values[order]
    try:
        if kind.decode is None:
            return np.ascontiguousarray(cast(values, stored.dtype, kind.dtype)).view(np.uint8)
        return encode(cast(values, stored.dtype, "float32"), kind.name)
    except ValueError as error:
        raise CheckpointError(f"{tensor.name} cannot be written as {kind.name}: {error}") from None
