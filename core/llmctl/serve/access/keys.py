"""API keys: only their hashes are kept, and comparing takes the same time for every key."""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from llmctl.errors import FileError
from llmctl.serve.problems import Problem

HASHED = "sha256:"


class Keys:
    """Who may ask.

    Args:
        keys: The keys, as they are or as ``sha256:`` and their hash in hexadecimal; none = everybody may.

    Raises:
        FileError: A hash is none.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._hashes = [_hash(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def check(self, authorization: str) -> None:
        """Passes when the header ``Authorization`` has a key.

        Args:
            authorization: Its value.

        Raises:
            Problem: It has none, or one that is not known.
        """
        if not self._hashes:
            return
        scheme, _, key = authorization.partition(" ")
        given = sha256(key.strip().encode()).digest()
        known = [hmac.compare_digest(given, one) for one in self._hashes]
        if scheme.lower() != "bearer" or not any(known):
            raise Problem(
                "the API key is missing or wrong; send it as `Authorization: Bearer KEY`",
                401, code="invalid_api_key", headers={"www-authenticate": "Bearer"},
            )  # fmt: skip


def read_keys(path: Path) -> list[str]:
    """The keys in a file, one a line; empty lines and those that begin with # are left out.

    Raises:
        FileError: The file cannot be read or has no key.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"the file of API keys {path} cannot be read: {error}") from None
    keys = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    if not keys:
        raise FileError(f"the file of API keys {path} has no key; write one a line")
    return keys


def _hash(key: str) -> bytes:
    if not key.startswith(HASHED):
        return sha256(key.encode()).digest()
    digits = key.removeprefix(HASHED).lower()
    if not re.fullmatch("[0-9a-f]{64}", digits):
        raise FileError(f"an API key that begins with {HASHED} must go on with 64 hexadecimal digits")
    return bytes.fromhex(digits)
