"""Files without a name: nothing is left of them, however the process ends, and no folder must be writable."""

from __future__ import annotations

import os
import tempfile
from typing import IO


def nameless_file(content: bytes = b"") -> IO[bytes]:
    """An open file, in memory where the system can do that (Linux), that is read from its start.

    Args:
        content: What it holds.
    """
    if hasattr(os, "memfd_create"):
        file: IO[bytes] = open(os.memfd_create("llmctl"), "w+b")  # noqa: SIM115 - the caller closes it
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115
    file.write(content)
    file.seek(0)
    return file
