"""``llmctl plan``: for every kind of training configuration, without training or writing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from kit.model_cli import llmctl

from llmctl.cli import main
from llmctl.data.corpus.indexed import new_corpus

STARTER = Path(__file__).resolve().parents[2] / "plugins" / "llama" / "llmctl_llama" / "starter"


def run(*arguments, code=0):
    with CliRunner().isolation() as streams, pytest.raises(SystemExit) as stopped:
        main(["--model", "llama", "plan", *map(str, arguments)])
    out, err = (stream.getvalue().decode() for stream in streams[:2])
    assert stopped.value.code == code and "Traceback" not in out + err, out + err
    return out if code in (0, 1) else err


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


def planned(*arguments, code=0):
    found = json.loads(run(*arguments, "--json", code=code))
    assert found["fits"] == (code == 0)
    return found


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
        planned(config, "--memory", "400MB", "--set", f"train.batch_size={size}", code=code)["peak"]
        for size, code in ((largest, 0), (largest * 3 // 2, 1))
    )
    assert 4 < largest < 130 and fits <= 400e6 < over
    assert planned(config, "--memory", "100MB", code=1)["largest_batch"] == 0


def test_no_batch_is_planned_that_is_larger_than_the_data(config):
    found = planned(config, "--memory", "64GB")
    assert found["largest_batch"] == found["rows_of_the_data"] == 200
    assert "largest train.batch_size that fits: 200, all rows of the data" in run(config, "--memory", "64GB")
    few = config.parent / "few.jsonl"
    few.write_text((STARTER / "data" / "dev.jsonl").read_text().split("\n", 1)[0] + "\n")
    one = planned(config, "--memory", "64GB", "--set", f"data.train={few}", "--set", "train.batch_size=64")
    assert one["largest_batch"] == one["rows_of_the_data"] == 1 and one["tokens_per_micro_batch"] < 128


def test_what_does_not_fit_is_said_with_settings_that_do(config):
    settings = ["--set", "data.packing=best-fit", "--set", "train.batch_size=64", "--memory", "500MB"]
    text = run(config, *settings, code=1)
    assert ": does not fit" in text and "it fits with one of" in text
    for change in planned(config, *settings, code=1)["changes"]:
        sets = [word for one in change["set"] for word in ("--set", one)]
        found = planned(config, *settings, *sets)
        assert found["peak"] <= 500e6 and abs(found["peak"] - change["peak"]) < 0.1 * found["peak"], change
    assert "take a smaller model" in run(config, "--memory", "50MB", code=1)


def test_config_json_alone_is_enough(tmp_path, config):
    (tmp_path / "model").mkdir()
    shutil.copy(STARTER / "model" / "config.json", tmp_path / "model")
    alone = ["plan", "--model", str(tmp_path / "model"), "--memory", "2GB"]
    found = json.loads(llmctl(*alone, "--json")[0])
    assert found["tokens_per_micro_batch"] == 8 * 512 and found["rows_of_the_data"] is None
    for more in (["--set", "method.name=lora"], ["--set", "dpo.beta=0.1", "--set", "train.batch_size=2"]):
        assert ": fits" in llmctl(*alone, *more)[0]
    assert ": fits" in llmctl(*alone, "--set", "data.corpora=", "--set", "data.seq_length=64")[0]
    for name in ("model.safetensors",):
        folder = tmp_path / "without"
        shutil.copytree(STARTER / "model", folder)
        (folder / name).unlink()
        without = planned(config, "--set", f"model.path={folder}", "--memory", "2GB")
        assert without == planned(config, "--memory", "2GB")
    for words in ([], ["--model", "llama"]):
        assert "a folder or a name on a hub: a family alone has no size" in llmctl("plan", *words, code=2)[1]
    assert "needs the config.json of a model" in llmctl("plan", "--set", "train.batch_size=2", code=2)[1]


def test_packing_adapters_and_recomputation_are_seen(config):
    plain = planned(config)["parts"]
    packed = planned(config, "--set", "data.packing=best-fit")
    assert packed["tokens_per_micro_batch"] == 4 * 128
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
    assert found["command"] == "pretrain" and found["tokens_per_micro_batch"] == 4 * 8


def test_sizes_that_are_none_are_refused(config):
    assert "is not a size" in run(config, "--memory", "plenty", code=2)


def test_a_half_type_takes_the_memory_of_what_is_computed_and_says_so(config):
    plain, half = planned(config), planned(config, "--set", "model.dtype=bfloat16")
    assert half["parts"] == plain["parts"] and "precision" not in plain
    assert "float32 is computed" in half["precision"]
    assert half["precision"] in run(config, "--set", "model.dtype=bfloat16")


def test_of_several_devices_the_one_that_needs_most_is_planned(config):
    whole = planned(config, "--memory", "2GB")
    shared = planned(config, "--memory", "2GB", "--set", "parallel.tensor=2", "--set", "parallel.sharding=2",
                     "--set", "train.grad_accumulation=2")  # fmt: skip
    assert (whole["devices"], shared["devices"]) == (1, 4)
    assert shared["parts"]["optimizer"] < whole["parts"]["optimizer"] / 3 and shared["peak"] < whole["peak"]
    text = run(config, "--memory", "2GB", "--devices", "4", "--set", "train.grad_accumulation=4")
    assert "each of 4 devices, the one that needs most" in text
    assert "needs 2 devices or a multiple of that, and there are 3" in run(
        config, "--memory", "2GB", "--devices", "3", "--set", "parallel.tensor=2", code=2
    )


def test_states_in_main_memory_are_not_in_that_of_a_device(config):
    plain = planned(config, "--memory", "2GB")
    offloaded = planned(config, "--memory", "2GB", "--set", "parallel.offload=true")
    assert offloaded["host_memory"] == plain["parts"]["optimizer"] and "optimizer" not in offloaded["parts"]
    assert offloaded["peak"] == plain["peak"] - plain["parts"]["optimizer"]
    assert "main memory" in run(config, "--memory", "2GB", "--set", "parallel.offload=true")
    here = planned(config, "--set", "parallel.offload=true")
    assert here["parts"] == plain["parts"], "without a device all is in main memory"


NEW = ["--set", "model.size=llama3-8b", "--set", "model.dtype=bfloat16", "--set", "data.seq_length=4096",
       "--set", "train.grad_accumulation=64"]  # fmt: skip


def test_arrangements_are_proposed_in_two_seconds_without_paddle(run_llmctl):
    probe = "import time; print('paddle' in sys.modules, time.process_time())"
    done = run_llmctl("--model", "llama", "plan", "--devices", "64", "--propose", "--json", *NEW, probe=probe)
    text, _, last = done.stdout.rstrip().rpartition("\n")
    paddle, seconds = last.split()
    assert paddle == "False" and float(seconds) < 4, last
    first = json.loads(text)["proposals"][0]
    assert first["fits"] and first["peak"] <= first["memory"] and first["seconds"]["total"] > 0


def test_a_proposal_is_settings_memory_and_seconds(tmp_path):
    text = run("--devices", "8", "--propose", *NEW)
    assert "--set parallel.sharding" in text and "of each device: fits" in text and "estimated, not measured" in text
    assert "next:" in text
    (tmp_path / "slow.json").write_text(json.dumps({"inside": {"bandwidth": 1e6, "latency": 1.0}}))
    slow = run("--devices", "8", "--propose", *NEW, "--measured", tmp_path / "slow.json", code=0)
    assert slow != text
    small = run("--devices", "1", "--propose", "--memory", "8GB", *NEW, code=1)
    assert "does not fit; this needs least" in small
    assert "--propose needs --devices N" in run("--propose", *NEW, code=2)
