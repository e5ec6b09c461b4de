"""The commands of the pages about migrating work as shown, and an old file trains as the configuration it becomes."""

import json
import shlex
import shutil

import pytest
from click.testing import CliRunner
from kit.readme import STARTER, shown

from llmctl.cli import main


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An old configuration for data and a model that are there, and one that asks for several devices."""
    shutil.copytree(STARTER / "model", tmp_path / "model")
    (tmp_path / "data").mkdir()
    for name in ("train", "dev"):
        lines = (STARTER / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:8]
        (tmp_path / "data" / f"{name}.json").write_text("\n".join(lines) + "\n", encoding="utf-8")
    old = {
        "model_name_or_path": "model", "dataset_name_or_path": "data", "output_dir": "out", "do_train": True,
        "do_eval": True, "max_steps": 2, "src_length": 32, "max_length": 64, "metric_for_best_model": "accuracy",
        "load_best_model_at_end": True, "bf16": True, "fp16_opt_level": "O2", "evaluation_strategy": "epoch",
        "lora": True, "lora_rank": 2, "disable_tqdm": True,
    }  # fmt: skip
    (tmp_path / "old_argument.json").write_text(json.dumps(old))
    (tmp_path / "large_argument.json").write_text(json.dumps({**old, "sep_parallel_degree": 8}))
    _write_factory_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


FACTORY = {
    "model_name_or_path": "model", "do_train": True, "cutoff_len": 64, "max_steps": 2, "per_device_train_batch_size": 2,
    "learning_rate": "1e-4", "lr_scheduler_type": "cosine", "warmup_ratio": 0.1, "bf16": True, "plot_loss": True,
    "report_to": "none", "eval_strategy": "steps", "eval_steps": 2, "val_size": 0.25,
}  # fmt: skip


def _write_factory_files(folder):
    """The files of three stages with their data."""
    rows = [{"question": f"What is {number}?", "answer": f"It is {number}."} for number in range(8)]
    pairs = [{"question": row["question"], "good": row["answer"], "bad": "No."} for row in rows]
    for name, content in (("sft", rows), ("pairs", pairs), ("texts", [{"body": row["answer"]} for row in rows])):
        (folder / "data" / f"{name}.json").write_text(json.dumps(content))
    info = {
        "my_sft": {"file_name": "sft.json", "columns": {"prompt": "question", "response": "answer"}},
        "my_pairs": {"file_name": "pairs.json", "columns": {"prompt": "question", "chosen": "good", "rejected": "bad"}},
        "my_texts": {"file_name": "texts.json", "columns": {"prompt": "body"}},
    }
    (folder / "data" / "dataset_info.json").write_text(json.dumps(info))
    stages = {
        "lora_sft": {
            "stage": "sft",
            "dataset": "my_sft",
            "finetuning_type": "lora",
            "lora_rank": 2,
            "template": "llama2",
        },
        "lora_dpo": {
            "stage": "dpo",
            "dataset": "my_pairs",
            "finetuning_type": "lora",
            "pref_beta": 0.2,
            "template": "llama2",
        },
        "full_pretrain": {"stage": "pt", "dataset": "my_texts", "finetuning_type": "full"},
    }
    for name, more in stages.items():
        content = {**FACTORY, **more, "output_dir": f"saves/{name}"}
        (folder / f"{name}.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in content.items()))


def llmctl(*words, code=0):
    with CliRunner().isolation() as streams, pytest.raises(SystemExit) as stopped:
        main(list(words))
    out = streams[0].getvalue().decode()
    assert stopped.value.code == code, out + streams[1].getvalue().decode()
    return out


def test_every_shown_command_works(workplace):
    for line in [*shown("docs/migrating.md"), *shown("docs/migrating-llama-factory.md")]:
        assert llmctl(*shlex.split(line)[1:]), line


def test_an_old_file_runs_and_one_for_another_command_is_refused(workplace):
    llmctl("--model", "llama", "finetune", "old_argument.json", "--set", "output.samples=0")
    info = json.loads((workplace / "out" / "run.json").read_text())
    assert info["config"]["method"]["name"] == "lora" and info["steps"] == 2
    llmctl("--model", "llama", "pretrain", "old_argument.json", code=2)
    llmctl("--model", "llama", "finetune", "large_argument.json", code=2)


@pytest.mark.parametrize(
    "name, command", [("lora_sft", "finetune"), ("lora_dpo", "dpo"), ("full_pretrain", "pretrain")]
)
def test_what_becomes_of_a_file_of_the_other_program_passes_the_checks(workplace, name, command):
    made = llmctl("migrate", f"{name}.yaml")
    assert made.startswith(f"# Run with: llmctl {command} ")
    (workplace / "new.yaml").write_text(made)
    for line in made.splitlines():
        if "llmctl data build" in line:
            llmctl(*shlex.split(line.partition("llmctl ")[2]))
    assert "\nok: " in "\n" + llmctl(command, "new.yaml", "--check")


def test_a_file_of_the_other_program_trains_as_it_is(workplace):
    llmctl("finetune", "lora_sft.yaml", "--set", "output.samples=0")
    info = json.loads((workplace / "saves" / "lora_sft" / "run.json").read_text())
    assert info["steps"] == 2 and info["config"]["method"]["rank"] == 2
    assert info["config"]["data"]["columns"] == ["question=instruction", "answer=output"]
