"""GGUF files by their names: which of them are the parts of one model, and which of several models is meant."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from llmctl.errors import CheckpointError
from llmctl.io.sizes import shown

ENDING, LINK = ".gguf", "model.gguf"
"""Of all such files; what the one in a model folder is called."""

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
"""The name that llama.cpp's ``gguf-split`` gives to a part."""

_TYPE = re.compile(r"(?:^|[-._])((?:UD-)?(?:I?Q|TQ|B?F|FP|MXFP|NVFP)\d\w*)$", re.IGNORECASE)
"""A quantization at the end of a name: Q4_K_M, IQ2_XXS, BF16, UD-Q4_K_XL."""

_NO_MODEL = ("mmproj", "imatrix")
"""In names of files that go with a model: projectors of pictures, matrices of importance."""


@dataclass(frozen=True)
class GgufModel:
    """A model among the files of a folder or repository.

    Attributes:
        files: Its file, or all its parts in their order, whether they are there or not.
        nbytes: Bytes of the files that are there.
    """

    files: tuple[str, ...]
    nbytes: int

    @property
    def name(self) -> str:
        """The file, or the first part."""
        return self.files[0]

    @property
    def stem(self) -> str:
        """The name without folder, number of the part and ending."""
        found = _PART.fullmatch(self.name)
        return PurePosixPath(found["stem"] if found else self.name.removesuffix(ENDING)).name

    @property
    def type(self) -> str:
        """The quantization that ends the name; empty = none."""
        found = _TYPE.search(self.stem)
        return found[1] if found else ""

    def is_meant(self, wanted: str) -> bool:
        """Whether a file name, or a quantization that ends the name, means this model."""
        if wanted.endswith(ENDING):
            return any(wanted in (file, PurePosixPath(file).name) for file in self.files)
        stem, end = self.stem.casefold(), wanted.casefold()
        return stem == end or stem.endswith((f"-{end}", f".{end}"))


def parts_of(name: str) -> tuple[str, ...]:
    """The files of the model that a file is a part of, in their order; the file alone if its name is not that of a part."""
    found = _PART.fullmatch(name)
    if not found or not 1 <= int(found["number"]) <= int(found["count"]):
        return (name,)
    return tuple(
        f"{found['stem']}-{number:05}-of-{found['count']}{ENDING}" for number in range(1, int(found["count"]) + 1)
    )


def models_of(sizes: Mapping[str, int]) -> list[GgufModel]:
    """The models among files, smallest first.

    Args:
        sizes: Name of a file, with or without a folder -> its bytes; files of other kinds are passed over.
    """
    names = [
        name
        for name in sizes
        if name.endswith(ENDING) and not any(word in PurePosixPath(name).name.lower() for word in _NO_MODEL)
    ]
    found = {parts: sum(sizes.get(part, 0) for part in parts) for parts in map(parts_of, names)}
    return sorted((GgufModel(*pair) for pair in found.items()), key=lambda model: (model.nbytes, model.name))


def chosen(models: Sequence[GgufModel], wanted: str, where: str, remedy: Callable[[str, str], str]) -> GgufModel:
    """The model that is meant.

    Args:
        models: One or more.
        wanted: A file name, or the quantization that ends one; empty = the only one.
        where: What holds them, for messages.
        remedy: What to do, by the name of a file and by a quantization, or the file where names do not differ in it.

    Raises:
        CheckpointError: None or several are meant; the message lists all.
    """
    exact = [model for model in models if wanted and model.type.casefold() == wanted.casefold()]
    meant = exact or [model for model in models if not wanted or model.is_meant(wanted)]
    if len(meant) == 1:
        return meant[0]
    if not wanted:
        problem = f"{where} holds {len(models)} models in GGUF"
    elif meant:
        problem = f"{wanted} means {len(meant)} models in GGUF of {where}"
    else:
        problem = f"{where} holds no model {wanted} in GGUF, but"
    listed = meant or models
    types = [model.type for model in models]
    example = next((model.type for model in listed if model.type and types.count(model.type) == 1), listed[0].name)
    rows = "".join(f"\n  {_row(model)}" for model in listed)
    raise CheckpointError(f"{problem}:{rows}\n{remedy(listed[0].name, example)}")


def _row(model: GgufModel) -> str:
    parts = f", {len(model.files)} parts" if len(model.files) > 1 else ""
    return f"{model.name} ({shown(model.nbytes)}{parts})"
