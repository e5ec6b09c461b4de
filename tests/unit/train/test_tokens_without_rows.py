"""An added token without an embedding row: training and chat work, and only a text that holds it is refused, by its place."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

import llmctl
from llmctl.data.encoded import Coder, encode
from llmctl.errors import DataError, TokenizerError
from llmctl.infer.backend import BatchBackend
from llmctl.infer.eager.layer import DynamicModel
from llmctl.infer.sampling import SamplingParams
from llmctl.infer.text.chat import Chat
from llmctl.infer.text.generator import TextGenerator
from llmctl.tokenizers import load
from llmctl.tokenizers.additions import NewToken, add_to_files

STARTER = Path(__file__).resolve().parents[3] / "plugins" / "llama" / "llmctl_llama" / "starter"


@pytest.fixture
def model(tmp_path):
    """The starter with a special token and a word beyond its rows."""
    folder = shutil.copytree(STARTER / "model", tmp_path / "model")
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    add_to_files(folder, [NewToken("<filler>", rows, special=True), NewToken("Blorp", rows + 1)])
    return folder


def config(folder, model, rows, **sections):
    """The configuration of one step on these rows."""
    file = folder / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": {"path": str(model)},
        "data": {"train": str(file), "max_length": 64},
        "train": {"max_steps": 1, "batch_size": 2},
        "output": {"dir": str(folder / "run"), "samples": 0},
        **sections,
    }


def test_training_takes_the_model_and_names_the_lines_that_hold_the_token(tmp_path, model):
    rows = [{"src": "Is it?", "tgt": "Yes"}, {"src": "Spelled <filler> is text", "tgt": "Yes"}]
    made = config(tmp_path, model, rows)
    made["data"]["src_length"] = 32
    with pytest.warns(UserWarning, match=r"none for <filler> .*, Blorp"):
        assert llmctl.finetune(made, quiet=True).state == "finished"
    made = config(tmp_path, model, [*rows, {"src": "A Blorp?", "tgt": "Yes"}, {"src": "Is it?", "tgt": "A Blorp"}])
    made["data"]["src_length"], made["output"]["dir"] = 32, str(tmp_path / "other")
    with pytest.raises(
        DataError, match=r"2 lines \(.*train\.jsonl:3, .*train\.jsonl:4\): .*'Blorp' with id .*model\.add_tokens"
    ):
        llmctl.finetune(made, quiet=True)


def test_the_token_gets_a_row_by_add_tokens(tmp_path, model):
    made = config(tmp_path, model, [{"src": "A Blorp?", "tgt": "Yes"}] * 2)
    made["data"]["src_length"], made["model"]["add_tokens"] = 32, ["Blorp"]
    run = llmctl.finetune(made, quiet=True)
    tokenizer = load(run.model, "none")
    rows = json.loads((run.model / "config.json").read_text())["vocab_size"]
    assert tokenizer.vocab_size <= rows and tokenizer.encode("Blorp") == load(model, "none").encode("Blorp")


def test_preferences_that_hold_the_token_are_named(tmp_path, model):
    row = {"src": ["A question"], "tgt": [], "response": ["A Blorp", "Yes"], "sort": [1, 0]}
    made = config(tmp_path, model, [row], dpo={})
    made["data"]["max_prompt_length"] = 16
    with pytest.raises(DataError, match=r"train\.jsonl:1: the text holds the token 'Blorp'"):
        llmctl.dpo(made, quiet=True)


def test_many_rows_that_cannot_be_encoded_are_counted():
    def fail(row):
        raise TokenizerError("no")

    rows = [SimpleNamespace(source=f"f:{i}") for i in range(12)]
    with pytest.raises(DataError, match=r"12 examples cannot be encoded:\n  12 lines \(f:0, f:1, f:2 ...\): no$"):
        encode(rows, Coder(fail, len, list))
    kept = SimpleNamespace(truncated=False)
    found = encode(rows, Coder(lambda row: None if row in rows[:2] else kept, lambda row: 3, list))
    assert (found.dropped, found.kept[0], found.parts([3, 9])) == (2, 2, [1, 9])


def test_a_chat_continues_after_a_message_with_the_token(model):
    layer, tokenizer = llmctl.load(STARTER / "model")
    lines, shown = iter(["Blorp", "Deny this: Tom lives in Rome."]), []
    odd = load(model, "auto")
    odd.limit_rows(tokenizer.vocab_size)
    backend = BatchBackend(DynamicModel(layer), odd.eos_ids, odd.pad_id, 1)
    generator = TextGenerator(backend, odd, 256)
    Chat(generator, SamplingParams(max_new_tokens=4), None, lambda: next(lines, None), shown.append).run()
    assert "the token 'Blorp' with id" in shown[0] and len(shown) > 1 and "".join(shown[1:]).strip()
