"""API keys: only their hashes are kept, and comparing takes the same time for every key."""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from llmctl.errors import FileError
from llmctl.serve.access.allowance import Allowance, Limits
from llmctl.serve.problems import Problem

HASHED = "sha256:"
CLASSES = ("user", "admin")
"""What a key may do; an admin's may change the server too."""


@dataclass(frozen=True)
class Key:
    """A key.

    Attributes:
        hash: SHA-256 of the key.
        name: How the log calls its holder; empty = not at all.
        kind: One of ``CLASSES``.
        limits: What it may use.
        allowance: What is left of that.
    """

    hash: bytes
    name: str = ""
    kind: str = "user"
    limits: Limits = Limits()
    allowance: Allowance = field(default_factory=lambda: Allowance(Limits()), compare=False)

    def check_admin(self) -> None:
        """Passes when the key may change the server.

        Raises:
            Problem: It may not.
        """
        if self.kind != "admin":
            raise Problem("this needs a key of the class admin; see the file of API keys", 403, code="not_admin")


ANYONE = Key(b"")
"""Who asks where no keys are needed."""

ASKING: ContextVar[Key] = ContextVar("asking", default=ANYONE)
"""The key of the request that is answered."""


class Keys:
    """Who may ask.

    Args:
        lines: Keys as a file has them (``read_keys``); none = everybody may.
        file: Where more are, which is read again by ``reload``.
        limits: What a key may use that says nothing of its own.

    Raises:
        FileError: The file cannot be read, or a line is wrong.
    """

    def __init__(self, lines: Iterable[str] = (), file: Path | None = None, limits: Limits | None = None) -> None:
        self._lines, self._file, self._limits = [*lines], file, limits or Limits()
        self._keys: Sequence[Key] = ()
        self.reload()

    def __bool__(self) -> bool:
        return bool(self._keys)

    def reload(self) -> None:
        """Reads the file again. Keys that stay go on with what they have left; after an error all stay as they were.

        Raises:
            FileError: The file cannot be read, or a line is wrong.
        """
        lines = [*self._lines, *(read_keys(self._file) if self._file else [])]
        before = {key: key.allowance for key in self._keys}
        found = [_key(line, self._limits) for line in lines]
        self._keys = [replace(key, allowance=before.get(key) or Allowance(key.limits)) for key in found]

    def check(self, authorization: str) -> Key:
        """The key that the header ``Authorization`` has.

        Args:
            authorization: Its value.

        Raises:
            Problem: It has none, or one that is not known.
        """
        if not self._keys:
            return ANYONE
        scheme, _, key = authorization.partition(" ")
        given = sha256(key.strip().encode()).digest()
        # All are compared, however early one fits.
        fitting = [one for one in self._keys if hmac.compare_digest(given, one.hash)]
        if scheme.lower() != "bearer" or not fitting:
            raise Problem(
                "the API key is missing or wrong; send it as `Authorization: Bearer KEY`",
                401, code="invalid_api_key", headers={"www-authenticate": "Bearer"},
            )  # fmt: skip
        return fitting[0]


def read_keys(path: Path) -> list[str]:
    """The lines of a file of keys; empty ones and those that begin with # are left out.

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


def _key(line: str, limits: Limits) -> Key:
    """The key of a line: the key or its hash, then maybe its class, a name and limits.

    Raises:
        FileError: Something else stands there.
    """
    key, *words = line.split()
    kind, name, own = "user", "", {}
    for word in words:
        option, _, value = word.partition("=")
        if word in CLASSES:
            kind = word
        elif option == "name" and re.fullmatch(r"[\w.@-]{1,64}", value):
            name = value
        elif option in Limits.names() and value.isascii() and value.isdigit():
            own[option] = int(value)
        else:
            raise FileError(
                f"an API key is followed by {word!r}; allowed are {', '.join(CLASSES)}, name=NAME and numbers for "
                f"{', '.join(f'{limit}=' for limit in Limits.names())}"
            )
    return Key(_hash(key), name, kind, replace(limits, **own))


def _hash(key: str) -> bytes:
    if not key.startswith(HASHED):
        return sha256(key.encode()).digest()
    digits = key.removeprefix(HASHED).lower()
    if not re.fullmatch("[0-9a-f]{64}", digits):
        raise FileError(f"an API key that begins with {HASHED} must go on with 64 hexadecimal digits")
    return bytes.fromhex(digits)
