"""Names of tokens in vocabularies, and the bytes that they stand for."""

from __future__ import annotations

import re

from llmctl.io.json_object import parse_json

SPACE = "\u2581"
"""Stands for a space in vocabularies of sentencepiece's kind."""

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def bytes_of(name: str, byte_level: bool) -> bytes:
    """The bytes of a token that is not added.

    Args:
        name: Its name in the vocabulary.
        byte_level: Whether each character stands for a byte; else it is text, where ``<0xNN>`` is a byte.
    """
    if byte_level and all(character in BYTES for character in name):
        return bytes(BYTES[character] for character in name)
    byte = BYTE.fullmatch(name)
    return bytes([int(byte[1], 16)]) if byte else name.replace(SPACE, " ").encode()


def is_byte_level(tokenizer_json: str) -> bool:
    """Whether the decoder of a ``tokenizer.json`` reads characters as bytes."""
    decoder = parse_json(tokenizer_json).get("decoder") or {}
    parts = [decoder, *(decoder.get("decoders") or [])]
    return any(part.get("type") == "ByteLevel" for part in parts)


def characters() -> list[str]:
    """The character that represents each byte in ByteLevel's vocabularies: itself where it can be seen, else 256 on."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    unseen = (byte for byte in range(256) if byte not in seen)
    shown = {**{byte: chr(byte) for byte in seen}, **{byte: chr(256 + i) for i, byte in enumerate(unseen)}}
    return [shown[byte] for byte in range(256)]


CHARACTERS = characters()

BYTES = {character: byte for byte, character in enumerate(CHARACTERS)}
