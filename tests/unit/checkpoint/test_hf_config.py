"""config.json in one spelling, and what run.json records."""

import json
import subprocess
import sys

import pytest

from llmctl.checkpoint.hf_config import normalize, read_config
from llmctl.errors import CheckpointError, FileError
from llmctl.train.run_info import run_info


def folder_with(tmp_path, text):
    (tmp_path / "config.json").write_text(text if isinstance(text, str) else json.dumps(text))
    return tmp_path


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("{", FileError, "not valid JSON"),
        ("[]", FileError, "must be a JSON object, not a list"),
        ("{}", CheckpointError, "names no architecture"),
        ('{"architectures": []}', CheckpointError, "names no architecture"),
        ('{"architectures": "X"}', CheckpointError, "names no architecture"),
        ("\xff", FileError, "not valid JSON"),
    ],
)
def test_unusable_configs_are_refused(tmp_path, text, error, message):
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(error, match=message):
        read_config(tmp_path)


def test_absent_configs_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        read_config(tmp_path)
    with pytest.raises(CheckpointError, match="absent does not exist; a model folder holds"):
        read_config(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file is not a folder"):
        read_config(tmp_path / "file")


def test_the_newer_spelling_becomes_the_older(tmp_path):
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
    new = {
        "architectures": ["A"],
        "dtype": "bfloat16",
        "rope_parameters": {"rope_theta": 5e5, "partial_rotary_factor": 0.5, **scaling},
        "other": {"kept": 1},
    }
    assert read_config(folder_with(tmp_path, new)) == {
        "architectures": ["A"],
        "torch_dtype": "bfloat16",
        "rope_theta": 5e5,
        "partial_rotary_factor": 0.5,
        "rope_scaling": scaling,
        "other": {"kept": 1},
    }


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, {"rope_theta": 1e4, "rope_scaling": None}),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
        ({"rope_scaling": None, "rope_theta": 1e4}, {"rope_scaling": None, "rope_theta": 1e4}),
        ({"rope_parameters": None}, {}),
        ({"dtype": "float32", "torch_dtype": "float32"}, {"torch_dtype": "float32"}),
        (
            {
                "rope_scaling": {"type": "linear", "factor": 2.0},
                "rope_parameters": {"rope_type": "linear", "factor": 2.0},
            },
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        ),
    ],
)
def test_both_spellings_mean_the_same(config, expected):
    before = json.dumps(config)
    assert normalize(config) == expected
    assert json.dumps(config) == before


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"dtype": "float32", "torch_dtype": "float16"}, "torch_dtype twice"),
        ({"rope_theta": 1.0, "rope_parameters": {"rope_theta": 2.0}}, "rope_theta twice"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "differ between kinds of layers"),
        ({"rope_parameters": 3}, "not an object"),
    ],
)
def test_contradictions_are_refused(config, message):
    with pytest.raises(CheckpointError, match=message):
        normalize(config)


def test_run_info_records_what_made_a_folder():
    info = run_info({"train": {"epochs": 1}}, "abc", {"llmctl": "0.1.0"}, command=["llmctl", "finetune"])
    assert json.loads(json.dumps(info)) == info
    assert info["versions"]["llmctl"] == "0.1.0"
    assert info["versions"]["python"] == sys.version.split()[0]
    assert {"numpy", "paddlepaddle"} & set(info["versions"])
    assert (info["config"], info["card_hash"]) == ({"train": {"epochs": 1}}, "abc")
    assert info["command"] == ["llmctl", "finetune"]
    assert info["hook_api"].count(".") == 1
    assert info["created"].endswith("+00:00")


def test_reading_a_config_imports_neither_numpy_nor_paddle():
    code = (
        "import sys; import llmctl.checkpoint.hf_config, llmctl.train.run_info; "
        "sys.exit(bool({'numpy', 'paddle'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0
