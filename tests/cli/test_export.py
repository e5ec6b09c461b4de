"""``llmctl export`` and ``llmctl generate`` on what it writes, in this process."""

import json
import shutil

import numpy as np
import pytest
from kit.model_cli import ASK, STARTER, llmctl

from llmctl import plugins, tokenizers
from llmctl.errors import DataError, UnsupportedError
from llmctl.testing.tiny import write_adapter


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "program"
    out, _ = llmctl("export", STARTER, "--output", folder)
    assert "compared on 3 prompts: logits differ by" in out and "up to 512 tokens" in out
    return folder


def test_a_program_answers_as_its_model_and_asks_for_no_plugin(program, tmp_path, monkeypatch):
    (tmp_path / "in.jsonl").write_text("".join(f'{{"src": "Ask about this: {n} kites."}}\n' for n in ("Two", "3 old")))
    file = ["--input", tmp_path / "in.jsonl", "--max-new-tokens", "8", "--sample", "--seed", "4"]
    expected = [llmctl("generate", STARTER, *words) for words in (ASK, file)]

    def nothing():
        raise AssertionError("a plugin was looked for")

    monkeypatch.setattr(plugins, "installed", nothing)
    assert [llmctl("generate", program, *words) for words in (ASK, file)] == expected
    assert llmctl("generate", program, "--engine", "static", *ASK)[0] == expected[0][0]
    assert {path.name for path in program.iterdir()} == {
        "config.json", "export.json", "generation_config.json", "program.json", "program.pdiparams", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip


def test_the_familys_chat_format_is_in_the_folder(program, monkeypatch):
    expected = tokenizers.load(STARTER, "family", plugins.load("llama").card)
    monkeypatch.setattr(plugins, "installed", lambda: [])
    from llmctl.infer.eager import exported
    from llmctl.tokenizers.conversation import Conversation

    found = tokenizers.load(program, "family", exported.read(program).wording)
    talk = Conversation((("Hello", None),), "Be brief.")
    assert found.chat_template.prompt(talk) == expected.chat_template.prompt(talk)


@pytest.mark.parametrize("name", [found.name for found in plugins.installed()])
def test_what_a_tokenizer_needs_of_a_card_survives_the_file(name):
    from llmctl.card.tokens import TokenFacts
    from llmctl.infer.eager.export import wording

    facts = plugins.load(name).card.tokens
    stored = json.loads(json.dumps(vars(wording(plugins.load(name)))["tokens"].__dict__))
    assert TokenFacts.from_json(stored) == facts


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["generate", "program", "--prompt", "a", "--engine", "dynamic"], "holds an exported program"),
        (["generate", "model", "--prompt", "a", "--engine", "static"], "make one: llmctl export model --output FOLDER"),
        (["generate", "program", "--prompt", "a", "--adapter", "model"], "takes no adapter"),
        (["generate", "program", "--prompt", "a", "--max-new-tokens", "600"], "over the 512 positions"),
        (["export", "model"], "missing option '--output'"),
        (["export", "model", "--output", "program"], "already exists; choose another folder, or add --overwrite"),
        (["export", "model", "--output", "model", "--overwrite"], "is the model itself"),
        (["export", "model", "--output", ".", "--overwrite"], "holds other things than an exported model"),
        (["export", "program", "--output", "new"], "name the model that it was made from"),
        (["export", "program/export.json", "--output", "new"], "is not a folder"),
        (["export", "model", "--output", "program/export.json", "--overwrite"], "is a file"),
        (["export", "model", "--output", "new", "--base", "model"], "are for adapters"),
        (["export", "model", "--output", "new", "--weights", "int8"], "--weights has no effect with --engine static"),
        (
            ["export", "model", "--output", "new", "--engine", "fused", "--group", "3"],
            "--group 3 must be a multiple of 32, or 0",
        ),
        (
            ["export", "model", "--output", "new", "--engine", "fused", "--group", "32"],
            "group=32 is for weights of int8 and int4",
        ),
    ],
)
def test_mistakes_are_refused_and_nothing_is_written(program, tmp_path, monkeypatch, words, part):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(STARTER)
    (tmp_path / "program").symlink_to(program)
    before = sorted(path.name for path in program.iterdir())
    assert part in llmctl(*words, code=2)[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "program"]
    assert sorted(path.name for path in program.iterdir()) == before


@pytest.mark.parametrize(
    ("name", "change", "part"),
    [
        ("program.pdiparams", lambda data: data[:-4] + b"\1\2\3\4", "is damaged"),
        ("program.pdiparams", lambda data: None, "has no program.pdiparams"),
        ("export.json", lambda data: data[:99], "is not what llmctl export writes"),
        ("export.json", lambda data: data.replace(b'"vocab": ', b'"vocab": 0.'), "does not have the hash"),
        ("export.json", lambda data: data.replace(b'"format": 2', b'"format": 9'), "written by another release"),
    ],
)
def test_a_damaged_program_is_refused(program, tmp_path, name, change, part):
    shutil.copytree(program, tmp_path / "p")
    changed = change((tmp_path / "p" / name).read_bytes())
    (tmp_path / "p" / name).unlink() if changed is None else (tmp_path / "p" / name).write_bytes(changed)
    assert part in llmctl("generate", tmp_path / "p", *ASK, code=2)[1]


def test_only_what_was_exported_is_replaced(program, tmp_path):
    shutil.copytree(STARTER, tmp_path / "models" / "starter")
    pack = ["export", tmp_path / "models" / "starter", "--engine", "fused", "--overwrite", "--output"]
    before = sorted(tmp_path.rglob("*"))
    for name in ("models", "."):
        assert "--overwrite would delete them" in llmctl(*pack, tmp_path / name, code=2)[1]
    assert sorted(tmp_path.rglob("*")) == before
    shutil.copytree(program, tmp_path / "old")
    llmctl(*pack, tmp_path / "old")
    assert (tmp_path / "old" / "packed.json").is_file() and not (tmp_path / "old" / "export.json").exists()
    (tmp_path / "old" / "checkpoint").mkdir()
    assert "--overwrite would delete them" in llmctl(*pack, tmp_path / "old", code=2)[1]


def test_damaged_weights_of_a_packed_folder_give_no_answer(tmp_path):
    packed = tmp_path / "packed"
    llmctl("export", STARTER, "--engine", "fused", "--output", packed)
    assert llmctl("generate", packed, *ASK)[0] == llmctl("generate", STARTER, *ASK)[0]
    with open(packed / "weights.packed", "r+b") as stream:
        stream.seek(500_000)
        stream.write(b"\1\2\3\4")
    assert "weights.packed is damaged" in llmctl("generate", packed, *ASK, code=2)[1]


def test_a_model_of_broken_numbers_is_no_program(tmp_path):
    shutil.copytree(STARTER, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    content = bytearray(file.read_bytes())
    size = int.from_bytes(content[:8], "little")
    norm = json.loads(content[8 : 8 + size])["model.norm.weight"]
    assert norm["dtype"] == "BF16"
    first = 8 + size + norm["data_offsets"][0]
    content[first : first + 2] = np.array([0x7FC0], "<u2").tobytes()
    file.write_bytes(content)
    assert "are not finite" in llmctl("export", tmp_path / "model", "--output", tmp_path / "p", code=2)[1]
    assert not (tmp_path / "p").exists()


def test_a_program_that_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    from llmctl.infer.eager import export

    original = export.StaticModel.logits
    monkeypatch.setattr(export.StaticModel, "logits", lambda self, *given: original(self, *given) + 0.5)
    err = llmctl("export", STARTER, "--output", tmp_path / "p", code=2)[1]
    assert "the program does not compute what the model does" in err and not list(tmp_path.iterdir())


def test_code_that_reads_values_cannot_be_a_program(tmp_path):
    import paddle

    from llmctl.card.tiny import tiny_dims
    from llmctl.infer.eager import trace
    from llmctl.nn.causal_lm import CausalLM
    from llmctl.testing.tiny import random_model

    plugin = plugins.load("llama")
    model = random_model(plugin, tiny_dims(plugin.card))
    signature = trace.signature_of(model, [3, 4, 5])

    class Reads(CausalLM):
        def hidden_states(self, ids, *rest):
            return super().hidden_states(ids * int(paddle.to_tensor(ids.numpy().max())), *rest)

    model.__class__ = Reads
    with pytest.raises(UnsupportedError, match="Reads cannot be exported as a program"):
        trace.save(model, signature, tmp_path)


def test_a_prompt_without_the_tokens_of_its_context_is_refused(tmp_path):
    from llmctl.card.tiny import tiny_dims
    from llmctl.infer.eager.export import export
    from llmctl.infer.eager.generate import generate
    from llmctl.infer.eager.program import StaticModel
    from llmctl.infer.sampling import SamplingParams
    from llmctl.testing.tiny import random_model

    plugin = plugins.load("chatglm")
    dims = tiny_dims(plugin.card, {"bos": 90, "gmask": 91, "mask": 92})
    export(random_model(plugin, dims), plugin, dims, [[5, 91, 90], [6, 5, 92, 90, 7]], tmp_path / "p")
    with pytest.raises(DataError, match="prompt 2 lacks the special tokens that mark the end of its prefix"):
        generate(StaticModel(tmp_path / "p"), [[5, 91, 90], [5, 6]], SamplingParams(max_new_tokens=2), [], 0)


def test_an_adapter_is_merged_into_what_is_exported(program, tmp_path):
    import paddle

    from llmctl.adapters.attach import load_adapted
    from llmctl.infer.eager.program import StaticModel
    from llmctl.quant.blockwise import CODES

    ids = np.array([[5, 9, 30, 200, 7]])
    base = StaticModel(program).logits(ids, np.ones_like(ids))
    for code in ("", sorted(CODES)[0]):
        adapter = write_adapter(tmp_path / f"adapter{code}", STARTER, 0, code)
        model, _ = load_adapted(adapter)
        model.eval()
        with paddle.no_grad():
            expected = model(paddle.to_tensor(ids)).numpy()
        llmctl("export", adapter, "--output", tmp_path / f"program{code}")
        found = StaticModel(tmp_path / f"program{code}").logits(ids, np.ones_like(ids))
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert np.abs(found - base).max() > 0.1
        llmctl("export", adapter, "--engine", "fused", "--output", tmp_path / f"packed{code}")
        answers = [llmctl("generate", tmp_path / f"{name}{code}", *ASK)[0] for name in ("adapter", "program", "packed")]
        assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize("weights", ["float32", "int8", "int4"])
def test_a_packed_folder_answers_as_the_model_packed_at_load(tmp_path, weights):
    out, _ = llmctl("export", STARTER, "--engine", "fused", "--weights", weights, "--output", tmp_path / "packed")
    assert f"packed as {weights}" in out
    expected = llmctl("generate", STARTER, "--weights", weights, *ASK)[0]
    assert llmctl("generate", tmp_path / "packed", *ASK)[0] == expected
    for words, part in (
        (["--weights", "int8"], "--weights has no effect on a packed model"),
        (["--engine", "dynamic"], "which only the fused engine runs"),
        (["--no-cache"], "--no-cache has no effect"),
        (["--base", "x"], "--base and --allow-other-base are for adapters"),
        (["--allow-other-base"], "--base and --allow-other-base are for adapters"),
        (["--adapter", "x"], "x does not exist; the folder of an adapter"),
        (["--max-new-tokens", "600"], "over the 512 positions"),
    ):
        assert part in llmctl("generate", tmp_path / "packed", *ASK, *words, code=2)[1]
    assert (
        "already exists"
        in llmctl(
            "export", STARTER, "--engine", "fused", "--weights", weights, "--output", tmp_path / "packed", code=2
        )[1]
    )
    data = bytearray((tmp_path / "packed" / "weights.packed").read_bytes())
    (tmp_path / "packed" / "weights.packed").write_bytes(data[:-64])
    assert "truncated" in llmctl("generate", tmp_path / "packed", *ASK, code=2)[1]
