"""Recipes: core's for every family that supports what they do, a family's own instead of core's where it differs."""

from pathlib import Path

import pytest
import yaml

from llmctl import plugins
from llmctl.commands.recipe import CORE, METHODS, PLACEHOLDERS, Recipe, recipes

ROOT = Path(__file__).resolve().parents[2]
FILES = [*CORE.rglob("*.yaml"), *ROOT.glob("plugins/*/llmctl_*/recipes/**/*.yaml")]


def content(path):
    return path.stem, yaml.safe_load(path.read_text(encoding="utf-8"))


def test_no_two_packages_and_no_two_files_of_core_hold_the_same_recipe():
    for paths in ([*CORE.rglob("*.yaml")], [path for path in FILES if not path.is_relative_to(CORE)]):
        contents = [content(path) for path in paths]
        assert len(contents) > 10
        assert not [one for number, one in enumerate(contents) if one in contents[:number]]


@pytest.mark.parametrize("family", sorted({found.name for found in plugins.installed()}))
def test_a_recipe_of_a_package_differs_from_the_one_of_core_that_it_replaces(family):
    plugin = plugins.load(family)
    for command in PLACEHOLDERS:
        for name, recipe in recipes(plugin, command).items():
            replaced = CORE / ("" if command == "finetune" else command) / f"{name}.yaml"
            if not recipe.path.is_relative_to(CORE) and replaced.is_file():
                assert recipe.content() != Recipe(name, command, plugin.card, replaced).content(), recipe.path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_says_what_it_is_for_and_leaves_the_command_to_core(path):
    first, *_ = path.read_text(encoding="utf-8").splitlines()
    assert first.startswith("# ") and len(first) > 30
    assert "Run with" not in path.read_text(encoding="utf-8")


def test_every_recipe_of_core_says_which_methods_it_needs():
    names = {path.relative_to(CORE).with_suffix("").as_posix().removeprefix("moe/") for path in CORE.rglob("*.yaml")}
    assert names == set(METHODS)


def test_a_family_from_outside_has_the_recipes_of_what_it_supports(fakes):
    fakes("third_party")
    plugin = plugins.load("parrot")
    assert {command: list(recipes(plugin, command)) for command in PLACEHOLDERS} == {
        "finetune": ["sft"],
        "dpo": ["full"],
        "pretrain": ["small"],
        "quantize": [],
    }
    changes = recipes(plugin, "pretrain")["small"].content()["model"]["changes"]
    assert changes == ["n_layer=6", "n_embd=288", "n_inner=768", "n_positions=1024"]
    header = recipes(plugin)["sft"].header()
    assert header.endswith(
        "Run with: llmctl --model parrot finetune --recipe sft --set model.path=MODEL --set data.train=TRAIN.jsonl "
        "--output RUN"
    )


def test_a_recipe_of_the_package_replaces_that_of_core():
    own, other = (recipes(plugins.load(family))["sft"] for family in ("gpt3", "opt"))
    assert own.content()["data"]["max_length"] == 1024 and other.content()["data"]["max_length"] == 2048
    assert other.path.is_relative_to(CORE) and not own.path.is_relative_to(CORE)


def test_mixtures_of_experts_have_recipes_of_their_own():
    rates = {family: recipes(plugins.load(family))["lora"].content()["train"]["learning_rate"]
             for family in ("mixtral", "qwen2_moe", "mistral")}  # fmt: skip
    assert rates == {"mixtral": 1e-4, "qwen2_moe": 1e-4, "mistral": 2e-4}


def test_a_recipe_of_one_of_several_families_is_not_of_the_others():
    experts, dense = (recipes(plugins.load(family), "pretrain")["small"] for family in ("mixtral", "mistral"))
    assert "num_local_experts=4" in experts.content()["model"]["changes"]
    assert dense.path.is_relative_to(CORE)
    assert "starter" in recipes(plugins.load("llama")) and "starter" not in recipes(plugins.load("baichuan"))


def test_a_shown_recipe_begins_with_the_commands_that_run_it(run_llmctl):
    first, command, copy, *_ = run_llmctl(
        "--model", "opt", "dpo", "--recipe", "lora", "--print-config"
    ).stdout.splitlines()
    assert first.startswith("# DPO with LoRA: ")
    assert command == (
        "# Run with: llmctl --model opt dpo --recipe lora --set model.path=MODEL --set data.train=PAIRS.jsonl --output RUN"
    )
    assert copy == "# Or, with this file: llmctl --model opt dpo CONFIG"
    shown = run_llmctl("--model", "llama", "finetune", "--print-config").stdout.splitlines()
    assert shown[1] == "# Run with: llmctl --model llama finetune"
    plain = run_llmctl("--model", "opt", "finetune", "--print-config").stdout.splitlines()
    assert plain[0] == "# Run with: llmctl --model opt finetune CONFIG"


def test_models_lists_the_recipes_of_a_family(run_llmctl):
    lines = run_llmctl("models", "chatglm").stdout.splitlines()
    assert "llmctl --model chatglm finetune --recipe lora|prefix|qlora|sft" in lines
    assert not [line for line in lines if "pretrain" in line]


def test_a_configuration_of_quantize_names_the_family_or_the_folder(run_llmctl, tmp_path):
    of_family = run_llmctl("--model", "opt", "quantize", "--recipe", "int4", "--print-config").stdout
    assert of_family.splitlines()[1] == (
        "# Run with: llmctl --model opt quantize --recipe int4 --set model.path=MODEL --set calibration.file=TRAIN.jsonl --output RUN"
    )
    data = yaml.safe_load(of_family)
    assert data["model"] == {"path": "", "family": "opt"} and data["quantize"]["qkv"] == "mixed"
    own = yaml.safe_load(
        run_llmctl("quantize", str(tmp_path), "--recipe", "int8", "--group", "32", "--print-config").stdout
    )
    assert own["model"] == {"path": str(tmp_path), "family": "auto"}
    assert (own["quantize"]["method"], own["quantize"]["group"]) == ("ptq-a8w8", 32)
    both = run_llmctl("quantize", "--recipe", "int4", "--config", "x.yaml")
    assert both.returncode == 2 and "not both" in both.stderr


def test_a_mistake_in_an_override_is_not_told_of_the_recipe_alone(run_llmctl):
    wrong = run_llmctl("--model", "llama", "finetune", "--set", "train.max_step=1").stderr
    assert "recipe starter" in wrong and "and --set: the configuration is not valid" in wrong
