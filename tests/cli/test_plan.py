"""``llmctl plan``: for every kind of training configuration, without training or writing."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from llmctl.cli import main
from llmctl.data.corpus.indexed import new_corpus

STARTER = Path(__file__).resolve().parents[2] / "plugins" / "llama" / "llmctl_llama" / "starter"


def run(*arguments, code=0):
    with CliRunner().isolation() as streams, pytest.raises(SystemExit) as stopped:
        main(["--model", "llama", "plan", *map(str, arguments)])
    out, err = (stream.getvalue().decode() for stream in streams[:2])
    assert stopped.value.code == code and "Traceback" not in out + err, out + err
    return out if code == 0 else err


@pytest.fixture
def config(tmp_path):
    content = {
        "model": {"path": str(STARTER / "model")},
        "data": {"train": [str(STARTER / "data" / "dev.jsonl")], "src_length": 64, "max_length": 128},
        "train": {"batch_size": 4},
        "output": {"dir": str(tmp_path / "out")},
    }
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(content))
    return file


def planned(*arguments):
    return json.loads(run(*arguments, "--json"))


def test_parts_add_up_and_nothing_is_written(config):
    found = planned(config, "--memory", "2GB")
    assert found["command"] == "finetune" and found["memory"] == 2 * 10**9
    assert max(found["parts"].values()) < found["peak"] < sum(found["parts"].values())
    assert not (config.parent / "out").exists()
    text = run(config, "--memory", "2GB")
    assert "largest train.batch_size that fits" in text and "activations" in text


def test_a_folder_with_an_earlier_run_is_no_obstacle(config):
    (config.parent / "out").mkdir()
    (config.parent / "out" / "run.json").write_text("{}")
    assert planned(config)["peak"]
    assert (config.parent / "out" / "run.json").read_text() == "{}"


def test_the_largest_batch_is_the_last_that_fits(config):
    """Rows of a larger batch are longer in the middle: a tenth is left for that."""
    largest = planned(config, "--memory", "400MB")["largest_batch"]
    fits, over = (
        planned(config, "--memory", "400MB", "--set", f"train.batch_size={size}")["peak"]
        for size in (largest, largest * 3 // 2)
    )
    assert 4 < largest < 130 and fits <= 400e6 < over
    assert planned(config, "--memory", "100MB")["largest_batch"] == 0


def test_packing_adapters_and_recomputation_are_seen(config):
    plain = planned(config)["parts"]
    packed = planned(config, "--set", "data.packing=best-fit")
    assert packed["tokens_of_a_pass"] == 4 * 128
    lora = planned(config, "--set", "method.name=lora")["parts"]
    assert lora["optimizer"] < plain["optimizer"] / 5
    prefix = planned(config, "--set", "method.name=prefix", "--set", "method.virtual_tokens=4")["parts"]
    assert prefix["gradients"] < lora["gradients"]
    assert planned(config, "--set", "train.recompute=full")["parts"]["activations"] < plain["activations"]


def test_a_pretraining_of_few_steps_is_planned(tmp_path):
    """A run takes no more samples than its steps need, though a pass over the corpus has more."""
    with new_corpus(tmp_path / "corpus", np.dtype(np.uint16)) as writer:
        writer.add(np.arange(2000) % 90, np.full(200, 10))
    content = {
        "model": {"size": "tiny", "tokenizer": str(STARTER / "model")},
        "data": {"corpora": str(tmp_path / "corpus"), "split": "1", "seq_length": 8},
        "train": {"max_steps": 2, "batch_size": 4},
        "output": {"dir": str(tmp_path / "out")},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(content))
    found = planned(tmp_path / "config.yaml")
    assert found["command"] == "pretrain" and found["tokens_of_a_pass"] == 4 * 8


def test_sizes_that_are_none_are_refused(config):
    assert "is not a size" in run(config, "--memory", "plenty", code=2)


def test_a_half_type_takes_the_memory_of_what_is_computed_and_says_so(config):
    plain, half = planned(config), planned(config, "--set", "model.dtype=bfloat16")
    assert half["parts"] == plain["parts"] and "precision" not in plain
    assert "float32 is computed" in half["precision"]
    assert half["precision"] in run(config, "--set", "model.dtype=bfloat16")
