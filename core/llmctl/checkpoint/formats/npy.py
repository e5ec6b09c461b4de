"""Arrays of numpy's ``.npy`` files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.errors import CheckpointError


def read_npy(path: Path) -> NDArray[Any]:
    """The array in a file. Its header cannot ask for more memory than the file has bytes, nor for Python objects.

    Raises:
        CheckpointError: It cannot be read, is cut short, or is no array of numbers.
    """
    try:
        return np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    except Exception as error:
        # numpy reads headers with Python's own tokenizer, which raises errors of many kinds.
        raise CheckpointError(f"{path} cannot be read: {error}") from None
