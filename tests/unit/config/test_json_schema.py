"""The JSON Schema of configurations accepts what ``schema.build`` accepts, and refuses what it refuses."""

import json
import random

import jsonschema
import pytest
from kit.readme import shown

from llmctl import plugins
from llmctl.cli import main
from llmctl.commands.config_schema import CONFIGS as CLASSES
from llmctl.commands.recipe import recipes
from llmctl.config import file, schema
from llmctl.config.json_schema import any_of, json_schema
from llmctl.errors import ConfigError
from llmctl.jobs.registry import COMMANDS, resolve

CONFIGS = {name: resolve(where) for name, where in CLASSES.items()}
SCHEMAS = {name: json_schema(cls, name) for name, cls in CONFIGS.items()}
CHECKS = {name: jsonschema.Draft202012Validator(content) for name, content in SCHEMAS.items()}


def accepted(command, data):
    """Whether ``schema.build`` takes it."""
    try:
        schema.build(CONFIGS[command], data)
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize("command", CONFIGS)
def test_it_is_a_schema_and_says_what_every_key_means(command):
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[command])
    for key, _, default, _, doc in schema.describe(CONFIGS[command]):
        section, _, name = key.partition(".")
        field = SCHEMAS[command]["properties"][section]["properties"][name]
        assert field["description"] == doc and field["default"] == json.loads(default)
        CHECKS[command].evolve(schema=field).validate(field["default"])


@pytest.mark.parametrize("command", [*COMMANDS, "quantize"])
def test_every_recipe_is_valid(command):
    families = plugins.Families()
    found = [recipe for name in families.names for recipe in recipes(families.load(name), command).values()]
    assert found
    for recipe in found:
        CHECKS[command].validate(recipe.content())


# Without 1.0, which JSON Schema calls an integer and the program does not.
VALUES = (
    "text",
    "",
    0,
    1,
    -1,
    3,
    0.5,
    -0.5,
    True,
    False,
    [],
    ["all"],
    ["a", "b"],
    [1],
    {"a": 1},
    "1e-4",
    "1.e",
    "5GB",
)


@pytest.mark.parametrize("command", CONFIGS)
def test_random_configurations_are_judged_as_by_the_program(command):
    rng, keys = random.Random(0), [row[0] for row in schema.describe(CONFIGS[command])]
    seen = []
    for _ in range(1500):
        data = {}
        for key in rng.sample(keys, 2):
            section, _, name = key.partition(".")
            field = SCHEMAS[command]["properties"][section]["properties"][name]
            choices = field.get("enum") or [field["default"]]
            value = rng.choice([rng.choice(VALUES), rng.choice(choices), field["default"]])
            data.setdefault(section, {})[name if rng.random() < 0.97 else name + "_"] = value
        data = {key: None if rng.random() < 0.02 else value for key, value in data.items()}
        verdict = accepted(command, data)
        assert CHECKS[command].is_valid(data) == verdict, data
        seen.append(verdict)
    assert 200 < sum(seen) < 1300


@pytest.mark.parametrize(
    "data",
    [{"trian": {}}, {"train": 3}, {"train": {"schedule": "linaer"}}, {"train": {"lr": 1}}, {"method": {"rank": 0}}],
)
def test_mistakes_are_found(data):
    assert not CHECKS["finetune"].is_valid(data) and not accepted("finetune", data)


def test_a_schema_of_all_commands_takes_the_files_of_each():
    every = jsonschema.Draft202012Validator(any_of(SCHEMAS, "llmctl"))
    files = (
        ("dpo", {"dpo": {"beta": 0.2}}),
        ("pretrain", {"data": {"corpora": ["x"]}}),
        ("finetune", {}),
        ("quantize", {"quantize": {"method": "awq"}}),
        ("serve", {"server": {"port": 80}}),
    )
    for name, data in files:
        assert every.is_valid(data) and CHECKS[name].is_valid(data)
    assert not every.is_valid({"data": {"corpora": ["x"]}, "dpo": {}})


def test_the_command_prints_it_and_imports_nothing_heavy(run_llmctl):
    probe = "print('#', [name for name in ('paddle', 'numpy', 'rich') if name in sys.modules])"
    done = run_llmctl("config-schema", "dpo", probe=probe)
    assert done.returncode == 0 and done.stdout.endswith("# []\n"), done.stderr
    assert json.loads(done.stdout.removesuffix("# []\n"))["properties"].keys() == SCHEMAS["dpo"]["properties"].keys()
    assert run_llmctl("config-schema", "sft").returncode == 2


def test_the_command_of_the_page_prints_it(capsys):
    (line,) = shown("docs/configuration.md")
    with pytest.raises(SystemExit) as end:
        main(line.split()[1:])
    assert end.value.code == 0 and json.loads(capsys.readouterr().out) == {
        **SCHEMAS["finetune"],
        "title": "llmctl finetune",
    }


def test_what_is_printed_as_a_configuration_is_valid(tmp_path):
    for name, cls in CONFIGS.items():
        (tmp_path / "all.yaml").write_text(schema.to_yaml(cls()))
        CHECKS[name].validate(file.read_file(tmp_path / "all.yaml"))
