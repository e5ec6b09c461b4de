"""The small JSON files beside an adapter's tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmctl.errors import CheckpointError


def read(path: Path) -> Any:
    """The content of a file; whether it is an object is the caller's question.

    Raises:
        CheckpointError: It cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Writes an object, readable."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
