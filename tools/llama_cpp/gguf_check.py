"""Whether GGUF files that llama.cpp's own conversion makes of models are read as these models: every tensor, bit for bit.

    python tools/llama_cpp/gguf_check.py SOURCE --python PYTHON FOLDER...

SOURCE is a copy of llama.cpp (its source is in `pip download --no-binary :all: llama-cpp-python`), PYTHON that of an environment
with torch, transformers and sentencepiece, FOLDER a model in float32 in the layout of Hugging Face. Files are made without a
vocabulary, which small models do not have. Prints a row for each folder, and ends with 1 if a tensor differs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FAMILIES = ("baichuan", "bloom", "chatglm", "gpt2", "llama", "mistral", "qwen")
"""Modules of llama.cpp's conversion."""


def convert(source: str, folder: str, file: str) -> None:
    """Writes a file by llama.cpp's script: runs in its environment, without llmctl."""
    import importlib

    sys.path.insert(0, source)
    script: Any = importlib.import_module("convert_hf_to_gguf")
    model: Any = importlib.import_module("conversion.base").TextModel
    modules: dict[str, Any] = {name: importlib.import_module(f"conversion.{name}") for name in FAMILIES}

    def no_vocabulary(self: Any) -> None:
        self.gguf_writer.add_tokenizer_model("no_vocab")
        self.gguf_writer.add_vocab_size(self.hparams.get("padded_vocab_size") or self.hparams["vocab_size"])

    def everywhere(cls: Any) -> None:
        cls.set_vocab = no_vocabulary
        for below in cls.__subclasses__():
            everywhere(below)

    # Of 2026-11: calls itself without end for tensors other than W_pack.
    packed = modules["baichuan"].BaichuanModel
    unpack = packed.modify_tensors

    def of_baichuan(self: Any, values: Any, name: str, layer: int | None) -> Any:
        yield from (unpack if name.endswith("W_pack.weight") else model.modify_tensors)(self, values, name, layer)

    packed.modify_tensors = of_baichuan
    everywhere(model)
    sys.argv = ["convert_hf_to_gguf", folder, "--outtype", "f32", "--outfile", file]
    script.main()


def compare(source: Path, python: str, folder: Path) -> tuple[bool, str]:
    """Whether all tensors of a model are equal, and a row that says so, or why the file is not made or read."""
    from llmctl.errors import LlmctlError

    with tempfile.TemporaryDirectory() as work:
        file = Path(work) / f"{folder.name}.gguf"
        os.environ["XDG_CACHE_HOME"] = work
        made = subprocess.run(
            [python, __file__, "--convert", str(source.resolve()), str(folder.resolve()), str(file)],
            capture_output=True,
            text=True,
        )
        if made.returncode or not file.is_file():
            return False, f"{folder.name}  not converted: {(made.stderr.strip().splitlines() or ['?'])[-1]}"
        try:
            (family, found), (_, wanted) = _tensors(file), _tensors(folder)
        except LlmctlError as error:
            return False, f"{folder.name}  refused: {error}"
    different = [name for name, value in wanted.items() if name not in found or (found[name] != value).any()]
    told = f"{len(different)} differ, such as {different[0]}" if different else "equal"
    return not different, f"{folder.name}  {family}, {len(wanted)} tensors: {told}"


def _tensors(path: Path) -> tuple[str, dict[str, Any]]:
    """Family and tensors of a model, by the card's names."""
    from llmctl.checkpoint.convert import open_source
    from llmctl.infer.model_source import open_model
    from llmctl.infer.options import EngineOptions

    model = open_model(path, "auto", EngineOptions())
    state = open_source(model.folder, model.plugin, model.dims).state
    return model.plugin.card.name, {name: state[name].numpy() for name in state}


def main() -> int:
    """Compares the folders of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--python", required=True)
    given = parser.parse_args()
    rows = [compare(given.source, given.python, folder) for folder in given.folders]
    print("\n".join(row for _, row in rows))
    return 0 if all(equal for equal, _ in rows) else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--convert"]:
        convert(*sys.argv[2:])
    else:
        sys.exit(main())
