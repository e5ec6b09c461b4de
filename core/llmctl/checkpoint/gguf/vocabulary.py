"""The tokenizer in the metadata of a GGUF file: as the files of a model folder, and back.

A vocabulary with scores becomes a sentencepiece model, one with merges a ``tokenizer.json``.
"""

from __future__ import annotations

import json
import struct
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llmctl import tokenizers
from llmctl.card.family import Family
from llmctl.errors import CheckpointError, UnsupportedError
from llmctl.io.json_object import read_json
from llmctl.tokenizers import JSON
from llmctl.tokenizers.special import CONFIG, TEMPLATE_KEY, Special

KEY = "tokenizer.ggml."
SCORED, MERGED = KINDS = ("llama", "gpt2")
NORMAL, UNKNOWN, CONTROL, WRITTEN, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Types of tokens, the same as those of sentencepiece."""

UNKNOWN_WORDS = "default"
"""The pre-tokenizer of files that do not tell theirs: that of the card."""

_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
WORDS = {
    "gpt-2": "",
    "smollm": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+",
    "tekken": rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
"""Pre-tokenizers that are no family's own -> the regular expression by which they split text into words; empty = that of byte-level
BPE itself. Single digits, then words as of BPE: https://huggingface.co/HuggingFaceTB/SmolLM2-135M/blob/main/tokenizer.json; words by
upper and lower case: the expression that llama.cpp quotes where it splits words."""

WHOLE_WORDS = ("tekken",)
"""Of these, as ``Gguf.whole_words``."""

ROLES = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
"""Role -> its name in keys."""


def files_of(path: Path, metadata: Mapping[str, Any], card: Family) -> dict[str, bytes]:
    """Name -> content of the tokenizer files of a folder; none if the file has no tokenizer.

    Raises:
        CheckpointError: The metadata contradict each other.
        UnsupportedError: It is a tokenizer of another kind.
    """
    kind = metadata.get(KEY + "model", "no_vocab")
    if kind == "no_vocab":
        return {}
    tokens, types = metadata.get(KEY + "tokens"), metadata.get(KEY + "token_type")
    if not isinstance(tokens, list) or (types is not None and len(types) != len(tokens)):
        raise CheckpointError(f"{path}: {KEY}tokens and {KEY}token_type do not fit each other")
    kinds = [NORMAL] * len(tokens) if types is None else [int(one) for one in types]
    if kind == SCORED:
        scores = metadata.get(KEY + "scores")
        if scores is None or len(scores) != len(tokens):
            raise CheckpointError(f"{path}: {KEY}scores are not as many as {KEY}tokens")
        metadata = _with_unknown(kinds, metadata)
        tokens = _named(tokens, metadata, card)
        held = tokens.index(card.tokens.appended[0]) if {*card.tokens.appended} & {*tokens} else len(tokens)
        main = {card.tokens.model: _sentencepiece(tokens[:held], [float(s) for s in scores], kinds, metadata)}
    elif kind == MERGED:
        main = {JSON: _merged(path, tokens, kinds, metadata, card)}
    else:
        raise UnsupportedError(
            f"{path} has a tokenizer of the kind {kind!r}; {SCORED} and {MERGED} are read. Use the model's checkpoint in Hugging Face's layout"
        )
    return {**main, CONFIG: json.dumps(_config(path, tokens, metadata, card), ensure_ascii=False).encode()}


def _with_unknown(kinds: list[int], metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """The metadata with the unknown token, which files may leave out; without one it is the first, as in llama.cpp."""
    name = f"{KEY}{ROLES['unk']}_token_id"
    number = metadata.get(name, next((number for number, kind in enumerate(kinds) if kind == UNKNOWN), 0))
    if UNKNOWN not in kinds and 0 <= number < len(kinds):
        kinds[number] = UNKNOWN
    return {**metadata, name: number}


def _named(tokens: list[str], metadata: Mapping[str, Any], card: Family) -> list[str]:
    """Tokens, those with a role by the card's names, where conversions wrote others."""
    numbers = {metadata.get(f"{KEY}{ROLES[role]}_token_id"): name for role, name in card.tokens.roles.items()}
    return [numbers.get(number, token) for number, token in enumerate(tokens)]


def _config(path: Path, tokens: list[str], metadata: Mapping[str, Any], card: Family) -> dict[str, Any]:
    """``tokenizer_config.json``."""
    found: dict[str, Any] = {}
    for role, name in ROLES.items():
        token = metadata.get(f"{KEY}{name}_token_id")
        if token is None:
            continue
        if not 0 <= token < len(tokens):
            raise CheckpointError(f"{path}: {KEY}{name}_token_id={token} is none of {len(tokens)} tokens")
        found[f"{role}_token"] = tokens[token]
    scored = metadata[KEY + "model"] == SCORED
    begun = scored or metadata.get(KEY + "pre") in _whole_words(card)
    if not card.tokens.prefix:
        found["add_bos_token"] = bool(metadata.get(KEY + "add_bos_token", begun))
        found["add_eos_token"] = bool(metadata.get(KEY + "add_eos_token", False))
    if optional := [token for token in card.tokens.optional if token in tokens]:
        found["additional_special_tokens"] = optional
    if scored:
        found["legacy"] = True
    if template := metadata.get("tokenizer.chat_template"):
        found[TEMPLATE_KEY] = template
    return found


def _merged(path: Path, tokens: list[str], kinds: list[int], metadata: Mapping[str, Any], card: Family) -> bytes:
    """``tokenizer.json`` of byte-level BPE."""
    merges, words = metadata.get(KEY + "merges"), str(metadata.get(KEY + "pre", UNKNOWN_WORDS))
    own = card.gguf.words if card.gguf else {}
    known = {UNKNOWN_WORDS: card.tokens.pattern, **WORDS, **own}
    if words == UNKNOWN_WORDS and len({card.tokens.pattern, *own.values()}) > 1:
        warnings.warn(
            f"{path} does not tell how it splits text into words, so it may be split otherwise than in training; use a newer file",
            UserWarning,
            stacklevel=2,
        )
    if words not in known:
        raise UnsupportedError(
            f"{path} splits text by {KEY}pre={words!r}, which is not read for {card.name}; read are {', '.join(known)}"
        )
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if (
        not isinstance(merges, list)
        or any(len(merge.split(" ")) != 2 for merge in merges)
        or len(vocabulary) < len(tokens)
    ):
        raise CheckpointError(f"{path}: {KEY}merges are no pairs of tokens, or a token is there twice")
    added = [
        dict(
            id=number,
            content=token,
            single_word=False,
            lstrip=False,
            rstrip=False,
            normalized=False,
            special=kind == CONTROL,
        )
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (CONTROL, WRITTEN)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    cut = {"type": "Split", "pattern": {"Regex": known[words]}, "behavior": "Isolated", "invert": False}
    split = [cut, {**byte_level, "use_regex": False}] if known[words] else [{**byte_level, "use_regex": True}]
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
        "fuse_unk": False, "byte_fallback": False, "ignore_merges": words in _whole_words(card),
        "vocab": vocabulary, "merges": [merge.split(" ") for merge in merges],
    }  # fmt: skip
    content = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": card.tokens.normal_form} if card.tokens.normal_form else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": split}, "post_processor": None,
        "decoder": {**byte_level, "use_regex": True}, "model": model,
    }  # fmt: skip
    return json.dumps(content, ensure_ascii=False).encode()


def _whole_words(card: Family) -> tuple[str, ...]:
    """Names of pre-tokenizers of whole words."""
    return (*WHOLE_WORDS, *(card.gguf.whole_words if card.gguf else ()))


def _sentencepiece(tokens: list[str], scores: list[float], kinds: list[int], metadata: Mapping[str, Any]) -> bytes:
    """A sentencepiece model (sentencepiece_model.proto) that merges pieces by their scores."""
    pieces = b"".join(
        _message(1, _message(1, token.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + _varint(kind))
        for token, score, kind in zip(tokens, scores, kinds, strict=False)
    )
    ids = {40: "unknown", 41: "bos", 42: "eos", 43: "padding"}
    numbers = b"".join(
        _varint(field << 3) + _varint(int(metadata.get(f"{KEY}{name}_token_id", -1)) & (2**64 - 1))
        for field, name in ids.items()
    )
    trainer = _varint(3 << 3) + _varint(2) + _varint(35 << 3) + _varint(int(BYTE in kinds)) + numbers
    prefix = bool(metadata.get(KEY + "add_space_prefix", True))
    tidy = bool(metadata.get(KEY + "remove_extra_whitespaces", False))
    normalizer = _message(1, b"identity") + b"".join(
        _varint(field << 3) + _varint(int(flag)) for field, flag in ((3, prefix), (4, tidy), (5, True))
    )
    return pieces + _message(2, trainer) + _message(3, normalizer)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def metadata_of(folder: Path, card: Family, rows: int) -> dict[str, Any]:
    """The metadata of a folder's tokenizer.

    Args:
        folder: The folder.
        card: The family.
        rows: Rows of the embeddings; ids without a token are filled with unused ones.

    Raises:
        UnsupportedError: llmctl cannot write this kind of tokenizer to GGUF.
    """
    if (folder / JSON).is_file():
        found = _of_json(folder, read_json(folder / JSON), card)
    elif (folder / card.tokens.model).is_file():
        found = _of_pieces(folder / card.tokens.model)
    else:
        raise UnsupportedError(
            f"{folder} has neither {JSON} nor {card.tokens.model}; other tokenizers are not written as GGUF"
        )
    tokens, kinds = found[KEY + "tokens"], found[KEY + "token_type"]
    if len(tokens) > rows:
        raise UnsupportedError(
            f"{folder}: the tokenizer has {len(tokens)} tokens, and the embeddings {rows} rows, which GGUF does not hold"
        )
    special = tokenizers.load(folder, card=card).special
    added = {token: (name, WRITTEN) for name, token in special.added.items()}
    added |= {token: (name, CONTROL) for name, token in special.ids.items()}
    for number in range(len(tokens), rows):
        name, kind = added.get(number, (f"[PAD{number}]", UNUSED))
        tokens.append(name)
        kinds.append(kind)
    if found[KEY + "model"] == SCORED:
        scores = found[KEY + "scores"]
        found[KEY + "scores"] = np.array([*scores, *[-1000.0] * (rows - len(scores))], np.float32)
    found[KEY + "token_type"] = np.array(kinds, np.int32)
    return {**found, **_roles(folder, special)}


def _roles(folder: Path, special: Special) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for role, name in ROLES.items():
        token = getattr(special, f"{role}_id")
        if token is not None:
            rows[f"{KEY}{name}_token_id"] = int(token)
    rows[KEY + "add_bos_token"] = special.bos_id is not None and special.prefix == (special.bos_id,)
    rows[KEY + "add_eos_token"] = special.eos_id is not None and special.suffix == (special.eos_id,)
    if special.prefix not in ((), (special.bos_id,)) or special.suffix not in ((), (special.eos_id,)):
        raise UnsupportedError(
            f"{folder}: texts begin or end with other tokens than bos and eos, which is not written as GGUF"
        )
    template = read_json(folder / CONFIG).get(TEMPLATE_KEY)
    file = folder / "chat_template.jinja"
    if file.is_file():
        template = file.read_text(encoding="utf-8")
    if isinstance(template, str):
        rows["tokenizer.chat_template"] = template
    return rows


def _of_json(folder: Path, content: Mapping[str, Any], card: Family) -> dict[str, Any]:
    """Of ``tokenizer.json``: byte-level BPE, or BPE of pieces with bytes, whose merges are in the order of its scores."""
    model = content.get("model") or {}
    if model.get("type") != "BPE":
        raise UnsupportedError(f"{folder / JSON}: a model of type {model.get('type')!r} is not written as GGUF")
    added = {row["id"]: row for row in content.get("added_tokens") or []}
    names = {number: token for token, number in model["vocab"].items()} | {
        number: row["content"] for number, row in added.items()
    }
    size = max(names) + 1
    kinds = [
        (CONTROL if added[n]["special"] else WRITTEN) if n in added else NORMAL if n in names else UNUSED
        for n in range(size)
    ]
    tokens = [names.get(number, f"[PAD{number}]") for number in range(size)]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    if not model.get("byte_fallback"):
        return {
            KEY + "model": MERGED, KEY + "pre": _words(folder, content, card), KEY + "tokens": tokens, KEY + "token_type": kinds,
            KEY + "merges": merges,
        }  # fmt: skip
    bytes_of = frozenset(f"<0x{value:02X}>" for value in range(256))
    unknown = model.get("unk_token")
    kinds = [
        BYTE if token in bytes_of else UNKNOWN if token == unknown else kind
        for token, kind in zip(tokens, kinds, strict=True)
    ]
    # Merges apply in their order, pieces by their scores: a piece has the rank of the first merge that makes it.
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", ""), rank)
    scores = [
        float(-ranks[token]) if token in ranks else 0.0 if kind != NORMAL else float(-len(merges))
        for token, kind in zip(tokens, kinds, strict=True)
    ]
    return {
        KEY + "model": SCORED, KEY + "tokens": tokens, KEY + "scores": scores, KEY + "token_type": kinds,
        KEY + "add_space_prefix": _spaced(content),
    }  # fmt: skip


def _spaced(content: Mapping[str, Any]) -> bool:
    """Whether a space is put before a text."""
    parts = json.dumps([content.get("normalizer"), content.get("pre_tokenizer")])
    return '"Prepend"' in parts or '"prepend_scheme": "always"' in parts or '"prepend_scheme": "first"' in parts


def _words(folder: Path, content: Mapping[str, Any], card: Family) -> str:
    """The name of the pre-tokenizer."""
    patterns = list(_patterns(content.get("pre_tokenizer")))
    known = WORDS | dict(card.gguf.words if card.gguf else {})
    for name, pattern in known.items():
        if patterns == ([pattern] if pattern else []):
            return name
    raise UnsupportedError(
        f"{folder / JSON} splits text by {patterns or 'no'} expression, for which GGUF has no name that is known for {card.name}"
    )


def _patterns(part: Any) -> Iterator[str]:
    """The regular expressions of a pre-tokenizer."""
    if isinstance(part, Mapping):
        if part.get("type") == "Split":
            pattern = part.get("pattern") or {}
            yield str(pattern.get("Regex", pattern.get("String")))
        elif part.get("type") == "Digits":
            yield "Digits"
        for one in part.get("pretokenizers") or ():
            yield from _patterns(one)


def _of_pieces(path: Path) -> dict[str, Any]:
    """Of a sentencepiece model."""
    from llmctl.errors import require

    library = require("sentencepiece", "run", path.name)
    inner = library.SentencePieceProcessor(model_file=str(path))
    size = inner.get_piece_size()
    kinds = [
        UNKNOWN
        if inner.is_unknown(i)
        else CONTROL
        if inner.is_control(i)
        else BYTE
        if inner.is_byte(i)
        else UNUSED
        if inner.is_unused(i)
        else NORMAL
        for i in range(size)
    ]
    spaced = inner.encode("a", out_type=str)[0].startswith("\u2581")
    return {
        KEY + "model": SCORED, KEY + "tokens": [inner.id_to_piece(i) for i in range(size)],
        KEY + "scores": [float(inner.get_score(i)) for i in range(size)], KEY + "token_type": kinds, KEY + "add_space_prefix": spaced,
    }  # fmt: skip
