"""The recipes ``lora`` and ``prefix`` of every family, on a tiny model: what a user types, run in this process."""

import json
import sys
from pathlib import Path

import pytest

from llmctl import plugins, runtime
from llmctl.adapters import targets
from llmctl.adapters.folder import open_adapter
from llmctl.cli import main
from llmctl.testing.tiny import tiny_dims, write_model

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))
from tiny_tokenizers import write_json  # noqa: E402

FAMILIES = sorted({found.name for found in plugins.installed()})
CHANGES = {
    "qwen": {"double_ffn": 96},
    "opt": {"embed": 24},
    "qwen2_moe": {"expert_ffn": 24, "shared_ffn": 40, "top_k": 2},
}


def write_tokenizer(folder, plugin):
    """A tokenizer with the names that the family puts between prompt and answer; the settings that hold their ids."""
    from tokenizers import Tokenizer

    write_json(folder, add_bos_token=not plugin.card.tokens.bridge)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(list(plugin.card.tokens.bridge))
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = [tokenizer.token_to_id(name) for name in plugin.card.tokens.bridge]
    return {"vocab": 330, **dict(zip(("gmask", "bos"), ids, strict=False)), **({"mask": 9} if ids else {})}


@pytest.fixture
def model(request, tmp_path):
    """A folder with a tiny random model of the family, made from its card."""
    runtime.import_paddle("a model")
    plugin = plugins.load(request.param)
    changes = write_tokenizer(tmp_path / "model", plugin)
    dims = tiny_dims(plugin.card, {**CHANGES.get(request.param, {}), **changes})
    write_model(tmp_path / "model", plugin, dims, seed=1)
    return request.param, plugin, dims, tmp_path / "model"


@pytest.mark.parametrize("model", FAMILIES, indirect=True)
@pytest.mark.parametrize("recipe", ["lora", "prefix"])
def test_the_recipe_trains_an_adapter_of_every_linear_or_virtual_tokens(model, tmp_path, recipe):
    family, plugin, dims, folder = model
    changes = (
        {"method.virtual_tokens": 6, "train.grad_accumulation": 1, "train.batch_size": 8} if recipe == "prefix" else {}
    )
    (tmp_path / "train.jsonl").write_text('{"src": "hello", "tgt": "world"}\n{"src": "the quick", "tgt": "fox"}\n' * 4)
    settings = {"model.path": folder, "data.train": tmp_path / "train.jsonl", "data.src_length": 16, "data.max_length": 32,
                "train.max_steps": 3, "train.log_every": 1, "output.samples": 0, **changes}  # fmt: skip
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    with pytest.raises(SystemExit) as end:
        main(["--model", family, "finetune", "--recipe", recipe, "--output", str(tmp_path / "run"), *sets])
    assert end.value.code == 0
    opened = open_adapter(tmp_path / "run" / "model")
    assert opened.base == folder.resolve()
    if recipe == "prefix":
        assert opened.adapter.tokens == 6
    else:
        assert list(opened.adapter.parts) == list(targets.linears(plugin.card, dims))
        assert all(part.rank == 8 and part.b.any() for part in opened.adapter.parts.values())
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < rows[0]["loss"]
