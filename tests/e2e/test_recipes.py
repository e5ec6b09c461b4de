"""Every recipe of every family trains a tiny model, by the command in its header; those of quantize on three families."""

import json
import re
import shlex
import shutil

import numpy as np
import pytest
from kit.tiny_tokenizers import write_json

from llmctl import plugins, runtime
from llmctl.adapters import targets
from llmctl.adapters.folder import open_adapter
from llmctl.card import capabilities, support
from llmctl.card.tiny import tiny_dims
from llmctl.cli import main
from llmctl.commands.recipe import PLACEHOLDERS, recipes
from llmctl.infer.packed.folder import open_packed
from llmctl.testing.tiny import write_model

FAMILIES = sorted({found.name for found in plugins.installed()})
CHANGES = {
    "qwen": {"double_ffn": 96},
    "opt": {"embed": 24},
    "qwen2_moe": {"expert_ffn": 24, "shared_ffn": 40, "top_k": 2},
}
RECIPES = {
    "sft": ("finetune", "sft"),
    "lora": ("finetune", "lora", "qlora"),
    "prefix-tuning": ("finetune", "prefix"),
    "dpo": ("dpo", "full", "lora"),
    "pretrain": ("pretrain", "small"),
    "quantize": ("quantize", "int4", "int8"),
}
"""What a family has for each method that it does not refuse: the command and its recipes."""

TEXTS = {"data.src_length": 16, "data.max_length": 32, "train.max_steps": 3, "train.batch_size": 8,
         "train.learning_rate": 1e-3}  # fmt: skip
PAIRS = {"data.max_prompt_length": 24, "data.max_length": 60, "train.max_steps": 4, "train.batch_size": 8,
         "train.learning_rate": 1e-3}  # fmt: skip
CORPUS = {"data.seq_length": 16, "train.max_steps": 4, "train.batch_size": 4, "train.warmup_steps": 0,
          "train.eval_iters": 0, "train.test_iters": 0}  # fmt: skip
QUICK = {"finetune": TEXTS, "dpo": PAIRS, "pretrain": CORPUS}


def recipes_of(family):
    """Command and name of all recipes that the family is to have."""
    card = plugins.load(family).card
    offered = (method for method in RECIPES if not isinstance(support.state(card, method), capabilities.Unsupported))
    return [(command, name) for method in offered for command, *names in (RECIPES[method],) for name in names]


CASES = [(family, *recipe) for family in FAMILIES for recipe in recipes_of(family) if recipe[0] in QUICK]


def write_tokenizer(folder, plugin):
    """A tokenizer with the names that the family puts between prompt and answer; the settings that hold their ids."""
    from tokenizers import Tokenizer

    write_json(folder, add_bos_token=not plugin.card.tokens.bridge)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(list(plugin.card.tokens.bridge))
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = [tokenizer.token_to_id(name) for name in plugin.card.tokens.bridge]
    return {"vocab": 330, **dict(zip(("gmask", "bos"), ids, strict=False)), **({"mask": 9} if ids else {})}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders with a tiny random model of each family, made from its card when it is first asked for."""
    made = {}

    def get(family):
        if family not in made:
            runtime.import_paddle("a model")
            plugin, folder = plugins.load(family), tmp_path_factory.mktemp(family)
            changes = write_tokenizer(folder, plugin)
            dims = tiny_dims(plugin.card, {**CHANGES.get(family, {}), **changes})
            write_model(folder, plugin, dims, seed=1)
            made[family] = plugin, dims, folder
        return made[family]

    return get


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """What stands for the names in capitals of the commands."""
    from llmctl.data.corpus.indexed import new_corpus

    folder = tmp_path_factory.mktemp("data")
    lines = [{"src": "hello", "tgt": "world"}, {"src": "the quick", "tgt": "fox"}]
    pairs = [{"src": [line["src"]], "tgt": [], "response": [line["tgt"], "token"], "sort": [1, 0]} for line in lines]
    for name, rows in (("train", lines), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 4))
    with new_corpus(folder / "corpus", np.uint16) as writer:
        writer.add(np.arange(1600) % 20, np.full(40, 40))
    return {"TRAIN.jsonl": folder / "train.jsonl", "PAIRS.jsonl": folder / "pairs.jsonl", "PREFIX": folder / "corpus"}


@pytest.fixture
def output(tmp_path):
    """Where a run writes; deleted afterwards, since all of them together are large."""
    yield tmp_path / "run"
    shutil.rmtree(tmp_path / "run", ignore_errors=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_has_a_recipe_for_everything_that_it_can_do(family):
    plugin = plugins.load(family)
    found = {(command, name) for command in PLACEHOLDERS for name in recipes(plugin, command)}
    assert found - {("finetune", plugin.card.starter)} == set(recipes_of(family))


def words_of(plugin, command, name, places):
    """The command in a recipe's header after the family, with what stands for the names in capitals."""
    header = recipes(plugin, command)[name].header()
    program, option, shown, *words = shlex.split(re.search("^Run with: (.*)", header, re.MULTILINE)[1])
    assert [program, option, shown, *words[:3]] == ["llmctl", "--model", plugin.card.name, command, "--recipe", name]
    return [re.sub("[A-Z]+(.jsonl)?$", lambda found: str(places[found[0]]), word) for word in words]


@pytest.mark.parametrize(("family", "name", "kinds"), [
    ("llama", "int4", ("int4+int8", "int4")), ("mixtral", "int4", ("int4+int8", "int4")), ("bloom", "int8", ("int8", "int8")),
])  # fmt: skip
def test_the_command_of_a_recipe_quantizes_as_it_says(models, output, family, name, kinds):
    plugin, _, folder = models(family)
    text = output.parent / "text.txt"
    text.write_text("hello world the quick fox token\n" * 200)
    words = words_of(plugin, "quantize", name, {"TRAIN.jsonl": text, "MODEL": folder, "RUN": output})
    with pytest.raises(SystemExit) as end:
        main(["--model", family, *words, "--max-kl", "100", "--tokens", "64", "--window", "16"])
    assert end.value.code == 0
    layer = open_packed(output).layers[0]
    assert (layer.qkv.weight.kind, layer.down[0].weight.kind) == kinds


@pytest.mark.parametrize(("family", "command", "name"), CASES, ids=["-".join(case) for case in CASES])
def test_the_command_of_a_recipe_trains_what_it_says(models, stand_ins, output, family, command, name):
    plugin, dims, folder = models(family)
    words = words_of(plugin, command, name, {**stand_ins, "MODEL": folder, "FOLDER": folder, "RUN": output})
    settings = {"train.grad_accumulation": 1, "train.log_every": 1, "output.samples": 0, **QUICK[command]}
    if name == "prefix":
        settings |= {"method.virtual_tokens": 6, "train.learning_rate": 3e-2}
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    with pytest.raises(SystemExit) as end:
        main(["--model", family, *words, "--output", str(output), *sets])
    assert end.value.code == 0
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0]
    if command == "dpo":
        assert rows[0]["rewards/margins"] == pytest.approx(0, abs=1e-3) and rows[-1]["rewards/margins"] > 0
    if "lora" not in name and name != "prefix":
        assert (output / "model" / "model.safetensors").is_file()
        return
    opened = open_adapter(output / "model")
    assert opened.base == folder.resolve()
    if name == "prefix":
        assert opened.adapter.tokens == 6
    else:
        assert list(opened.adapter.layers) == list(targets.linears(plugin.card, dims))
        assert all(part.rank == (16 if name == "qlora" else 8) for part in opened.adapter.layers.values())
        assert all(part.b.any() for part in opened.adapter.layers.values())


@pytest.mark.parametrize(
    ("command", "known"), [("finetune", "lora, prefix, qlora, sft"), ("dpo", "full, lora"), ("quantize", "int4, int8")]
)
def test_a_recipe_that_is_not_there_is_answered_with_those_that_are(capsys, command, known):
    with pytest.raises(SystemExit) as end:
        main(["--model", "opt", command, "--recipe", "lra"])
    assert end.value.code == 2 and f"recipe 'lra'; it has {known}" in " ".join(capsys.readouterr().err.split())
