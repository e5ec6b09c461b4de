"""Reading configurations: strict keys, types and ranges, overrides, and both file formats."""

import dataclasses
import typing

import pytest

from llmctl.config import file, schema
from llmctl.config.file import override, read_file
from llmctl.config.finetune import FinetuneConfig
from llmctl.config.schema import build
from llmctl.errors import ConfigError


def test_defaults_are_valid_and_survive_yaml(tmp_path):
    made = build(FinetuneConfig, {"model": {"path": "m"}, "data": {"train": "a.jsonl"}})
    assert made.data.train == ["a.jsonl"]
    (tmp_path / "c.yaml").write_text(schema.to_yaml(made, "header"))
    assert build(FinetuneConfig, file.read_file(tmp_path / "c.yaml")) == made


def test_every_field_has_one_line_of_documentation():
    for key, _, _, _, doc in schema.describe(FinetuneConfig):
        assert doc and "\n" not in doc and doc[0].isupper() | (doc[0] == "`") and doc.endswith("."), key


def test_every_field_type_can_be_read():
    for part in dataclasses.fields(FinetuneConfig):
        section = typing.get_type_hints(FinetuneConfig)[part.name]
        build(FinetuneConfig, {part.name: dataclasses.asdict(section())})


def test_all_problems_are_reported_at_once_with_the_nearest_key():
    with pytest.raises(ConfigError) as caught:
        build(
            FinetuneConfig,
            {
                "trian": {},
                "train": {"learning_rat": 1, "epochs": -1, "schedule": "linaer", "batch_size": 2.5, "seed": True},
                "output": 3,
            },
            "c.yaml",
        )
    message = str(caught.value)
    for part in (
        "c.yaml",
        "unknown key trian; did you mean train?",
        "unknown key train.learning_rat; did you mean train.learning_rate?",
        "train.epochs=-1.0: must be above 0",
        "train.schedule='linaer': allowed are linear, cosine, constant; did you mean linear?",
        "train.batch_size=2.5: expected an integer",
        "train.seed=True: expected an integer",
        "output=3: expected a section",
    ):
        assert part in message, part


@pytest.mark.parametrize("value", ["nan", ".inf", "-1", "0"])
def test_learning_rate_must_be_a_finite_number_above_zero(value):
    with pytest.raises(ConfigError, match=r"train.learning_rate"):
        build(FinetuneConfig, override({}, [f"train.learning_rate={value}"]))


def test_set_overrides_and_reads_yaml_values():
    data = override({"train": {"seed": 1}}, ["train.seed=7", "data.train=[a, b]", "train.learning_rate=1e-4"])
    made = build(FinetuneConfig, data)
    assert (made.train.seed, made.data.train, made.train.learning_rate) == (7, ["a", "b"], 1e-4)


def test_set_fills_a_section_that_a_file_leaves_empty():
    assert override({"train": None}, ["train.seed=7"]) == {"train": {"seed": 7}}


@pytest.mark.parametrize("bad", ["train.seed", "=3", "train.seed.x=3"])
def test_malformed_set_is_refused(bad):
    with pytest.raises(ConfigError, match="--set"):
        override({"train": {"seed": 1}}, [bad])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.yaml", "a: [1", r"c\.yaml:\d+:\d+: not valid YAML"),
        ("c.yaml", "train: {seed: 1}\ntrain: {}", r"c\.yaml:2: the key 'train' is given twice"),
        ("c.yaml", "- 1", "expected sections such as model"),
        ("c.yaml", "", "expected sections such as model"),
        ("c.json", '{"a": 1,}', r"c\.json:1:\d+: not valid JSON"),
        ("c.json", '{"a": 1, "a": 2}', "the key 'a' is given twice"),
        ("c.yaml", "a: !!python/object/apply:os.system [true]", "not valid YAML"),
    ],
)
def test_broken_files_are_refused_with_their_place(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        file.read_file(tmp_path / name)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"configuration file .*absent\.yaml does not exist"):
        file.read_file(tmp_path / "absent.yaml")


@pytest.mark.parametrize("size", ["4GiB", 2_000_000_000])
def test_the_largest_weight_file_is_a_size_or_a_number_of_bytes(size):
    config = build(FinetuneConfig, {"output": {"max_shard_bytes": size}})
    assert config.output.max_shard_bytes == size
    with pytest.raises(ConfigError, match="output.max_shard_bytes=0.5: expected a string or an integer"):
        build(FinetuneConfig, {"output": {"max_shard_bytes": 0.5}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {seed: 0x_}", "not valid YAML"),
        ("train: {seed: 2001-99-99}", "not valid YAML: month must be in 1..12; put text in quotes"),
        ("train: {seed: " + "9" * 5000 + "}", "not valid YAML"),
        ("train: " + "[" * 3000 + "]" * 3000, "nested too deeply"),
        ("2001-01-01: x", r"the key datetime.date\(2001, 1, 1\) is not text"),
        ("a: &a [*a]", "its aliases stand for more than"),
        (
            "a: &a ["
            + "x," * 9
            + "]\n"
            + "".join(f"{n}: &{n} [" + f"*{chr(ord(n) - 1)}," * 9 + "]\n" for n in "bcdef"),
            "aliases",
        ),
    ],
)
def test_values_and_shapes_that_yaml_cannot_hold_are_refused_without_a_traceback(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_file(tmp_path / "c.yaml")


@pytest.mark.parametrize("text", ['{"a":' * 50000 + "1" + "}" * 50000, '{"train": {"seed": ' + "1" * 5000 + "}}"])
def test_json_that_is_too_deep_or_too_long_is_refused_without_a_traceback(tmp_path, text):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ConfigError, match="c.json: not valid JSON"):
        read_file(tmp_path / "c.json")
