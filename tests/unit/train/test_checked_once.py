"""What the checks of a job opened, read and loaded is what its run uses: nothing is done twice."""

import json
from pathlib import Path

import numpy as np
import pytest
from kit.corpora import write
from kit.counting import count_calls
from kit.pages import run

from llmctl import plugins
from llmctl.card.family import Family
from llmctl.checkpoint.folder import open_folder
from llmctl.checkpoint.hf_config import read_config
from llmctl.checkpoint.load import check_weights
from llmctl.config import schema
from llmctl.jobs.registry import COMMANDS, resolve
from llmctl.plugins.loading import load_installed
from llmctl.train import trainer

STARTER = Path(__file__).resolve().parents[3] / "plugins" / "llama" / "llmctl_llama" / "starter"
MODEL = str(STARTER / "model")
ONE_STEP = {"max_steps": 1, "batch_size": 2, "eval_batch_size": 16}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eight questions of the starter's task, pairs of answers to them, and a corpus."""
    folder = tmp_path_factory.mktemp("data")
    rows = [json.loads(line) for line in (STARTER / "data" / "dev.jsonl").read_text().splitlines()[:8]]
    pairs = [
        {"src": [row["src"]], "tgt": [], "response": [other["tgt"], row["tgt"]], "sort": [0, 1]}
        for row, other in zip(rows, rows[1:] + rows[:1], strict=True)
    ]
    for kind, lines in (("finetune", rows), ("dpo", pairs)):
        (folder / kind).mkdir()
        for name in ("train", "dev"):
            (folder / kind / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write(folder / "corpus", [np.random.default_rng(i).integers(4, 60, 40) for i in range(40)])
    return folder


def config_of(command, data, folder, **sections):
    """The configuration of one step; sections of keywords are added to it."""
    settings = {"model": {"path": MODEL}, "train": dict(ONE_STEP), "output": {"dir": str(folder), "samples": 1}}
    if command == "pretrain":
        settings["data"] = {"corpora": [str(data / "corpus")], "split": "8,1,1", "seq_length": 16}
        settings["train"]["eval_iters"] = 1
    else:
        settings["data"] = {"train": str(data / command), "max_length": 160}
        settings["data"]["max_prompt_length" if command == "dpo" else "src_length"] = 64
    for name, values in sections.items():
        settings[name] = {**settings.get(name, {}), **values}
    return schema.build(resolve(COMMANDS[command].config), settings)


class Work:
    """What a run does that it need not do twice, counted by what it is done to."""

    def __init__(self, monkeypatch):
        self.loaded = count_calls(monkeypatch, load_installed, lambda found: found.name)
        self.configs = count_calls(monkeypatch, read_config, str)
        self.opened = count_calls(monkeypatch, open_folder, str)
        self.checked = count_calls(monkeypatch, check_weights, lambda weights: str(weights.path))
        self.expanded = {}
        table = Family._table

        def expand(card, dims):
            self.expanded[card.name, dims] = self.expanded.get((card.name, dims), 0) + 1
            return table(card, dims)

        monkeypatch.setattr(Family, "_table", expand)
        plugins.load("llama").card._tables.clear()
        self.loaded.clear()


RUNS = {
    "full": ("finetune", {}),
    "lora": ("finetune", {"method": {"name": "lora", "rank": 2, "dora": True}}),
    "prefix": ("finetune", {"method": {"name": "prefix", "virtual_tokens": 3}}),
    "dpo": ("dpo", {}),
    "dpo with stored log-probabilities": ("dpo", {"dpo": {"precompute_reference": True}}),
    "dpo with lora": ("dpo", {"method": {"name": "lora", "rank": 2}}),
    "pretrain": ("pretrain", {}),
}


@pytest.mark.parametrize("family", ["llama", "auto"])
@pytest.mark.parametrize("name", RUNS)
def test_a_run_loads_reads_opens_checks_and_expands_once(data, tmp_path, monkeypatch, name, family):
    command, sections = RUNS[name]
    config, work = config_of(command, data, tmp_path / "run", **sections), Work(monkeypatch)
    job = resolve(COMMANDS[command].check)(config, family)
    trainer.run(job)
    families = {found.name for found in plugins.installed()} if family == "auto" else {family}
    assert work.loaded == dict.fromkeys(families, 1)
    assert work.configs == work.opened == work.checked == {MODEL: 1}
    assert work.expanded == {("llama", job.model.dims): 1}


def test_a_new_model_is_expanded_once_and_its_plugin_loaded_once(data, tmp_path, monkeypatch):
    sections = {"model": {"path": "", "size": "tiny", "tokenizer": MODEL}}
    config, work = config_of("pretrain", data, tmp_path / "run", **sections), Work(monkeypatch)
    job = resolve(COMMANDS["pretrain"].check)(config, "llama")
    trainer.run(job)
    assert work.loaded == {"llama": 1} and not work.opened and not work.checked
    assert work.expanded == {("llama", job.model.dims): 1}


@pytest.mark.parametrize("name", ["full", "lora"])
def test_a_continued_run_opens_model_and_checkpoint_once_each(data, tmp_path, monkeypatch, name):
    command, sections = RUNS[name]
    check = resolve(COMMANDS[command].check)
    trainer.run(check(config_of(command, data, tmp_path / "run", **sections), "llama"))
    work = Work(monkeypatch)
    sections = {**sections, "output": {"resume": True}}
    trainer.run(check(config_of(command, data, tmp_path / "run", **sections), "llama"))
    checkpoint = str(tmp_path / "run" / "checkpoints" / "step-000001")
    folders = {MODEL: 1, checkpoint: 1} if name == "full" else {MODEL: 1}
    assert work.opened == work.checked == folders and work.configs == {MODEL: 1}


def test_the_command_shares_what_its_recipe_loaded_with_its_checks(tmp_path, monkeypatch):
    """Without CONFIG, the family's starter recipe runs, for which the plugin is loaded before the checks."""
    short = {
        "train.max_steps": 1,
        "train.eval_generate": "false",
        "train.best_metric": "eval_loss",
        "output.samples": 0,
    }
    given = [part for key, value in short.items() for part in ("--set", f"{key}={value}")]
    work = Work(monkeypatch)
    code, output = run(["--model", "llama", "finetune", "--output", str(tmp_path / "run"), *given])
    assert code == 0, output
    assert work.loaded == {"llama": 1} and work.expanded[next(iter(work.expanded))] == 1
    assert list(work.opened.values()) == list(work.configs.values()) == list(work.checked.values()) == [1]
