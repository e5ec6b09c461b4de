"""Sizes as people write them: ``2GB``, ``2GiB``, ``1.5 MB``, a number of bytes; where it makes sense, ``30%`` or ``0.3``."""

from __future__ import annotations

import re
from decimal import Decimal

from llmctl.errors import ConfigError

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
BYTES = "2GB, 1.5GiB, 500MB or a number of bytes"
_FORM = re.compile(r"\s*(\d+|\d*\.\d+)\s*([KMG]?I?B|%|)\s*", re.IGNORECASE | re.ASCII)


def parse_bytes(value: str | int, where: str = "") -> int:
    """The number of bytes.

    Args:
        value: A number with one of the units B, KB, MB, GB (powers of 1000), KiB, MiB, GiB (of 1024), or a whole number.
        where: What a message puts before the value, such as ``--memory `` or ``output.max_shard_bytes=``.

    Raises:
        ConfigError: It is no such size, or less than a byte.
    """
    size = _bytes(value)
    if size is None:
        raise ConfigError(f"{where}{value!r} is not a size; write {BYTES}")
    return size


def parse_bytes_or_share(value: str | int | float, where: str = "") -> int | float:
    """The number of bytes, as an int; or a share above 0 and up to 1, as a float.

    Args:
        value: As for ``parse_bytes``; or a percentage (``30%``), or a number between 0 and 1 with a point (``0.3``).
        where: As for ``parse_bytes``.

    Raises:
        ConfigError: It is neither.
    """
    size = _bytes(value)
    if size is not None:
        return size
    share = _share(value)
    if share is None:
        raise ConfigError(f"{where}{value!r} is not a size; write {BYTES}, or a share such as 30% or 0.3")
    return share


def shown(size: int) -> str:
    """A number of bytes as people write it."""
    for unit, factor, digits in (("GB", 1e9, 2), ("MB", 1e6, 1), ("kB", 1e3, 0)):
        if size >= factor:
            return f"{size / factor:,.{digits}f} {unit}"
    return f"{size} B"


def _bytes(value: str | int | float) -> int | None:
    found = _FORM.fullmatch(str(value))
    if not found or found[2] == "%" or ("." in found[1] and not found[2]):
        return None
    return int(Decimal(found[1]) * UNITS[found[2].upper()]) or None


def _share(value: str | int | float) -> float | None:
    found = _FORM.fullmatch(str(value))
    if not found or found[2] not in ("", "%"):
        return None
    share = float(found[1]) / (100 if found[2] else 1)
    return share if 0 < share <= 1 else None
