"""``llmctl pretrain``: what cannot work is refused before paddle is imported and before anything is written."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from llmctl import plugins
from llmctl.card import capabilities, support
from llmctl.cli import main
from llmctl.commands.recipe import recipes
from llmctl.data.corpus.indexed import new_corpus

ROOT = Path(__file__).resolve().parents[2]
STARTER = ROOT / "plugins" / "llama" / "llmctl_llama" / "starter" / "model"


def run(*arguments, family="llama", code=0):
    with CliRunner().isolation() as streams, pytest.raises(SystemExit) as stopped:
        main(["--model", family, "pretrain", *map(str, arguments)])
    text = streams[0].getvalue().decode() + (streams[1].getvalue().decode() if len(streams) > 1 else "")
    assert stopped.value.code == code and "Traceback" not in text, text
    return text


@pytest.fixture
def folder(tmp_path):
    for name, highest in (("corpus", 90), ("foreign", 5000)):
        with new_corpus(tmp_path / name, np.uint16) as writer:
            writer.add(np.arange(40) % highest if highest < 100 else np.full(40, highest), np.full(4, 10))
    for name, dtype, value in (("negative", np.int32, -1), ("numbers", np.float32, np.nan)):
        with new_corpus(tmp_path / name, np.dtype(dtype)) as writer:
            writer.add(np.full(40, value, dtype), np.full(4, 10))
    config = {
        "model": {"size": "tiny", "tokenizer": str(STARTER)},
        "data": {"corpora": str(tmp_path / "corpus"), "split": "1", "seq_length": 8},
        "train": {"max_steps": 2, "batch_size": 2},
        "output": {"dir": str(tmp_path / "out")},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    return tmp_path


def test_a_sound_job_is_described(folder):
    said = run(folder / "config.yaml", "--check")
    assert "llama with" in said and "from scratch, 2 steps on 32 tokens of" in said
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("documents", "left_out"), [(4, "valid and test, which are"), (20, "test, which is"), (1000, "")]
)
def test_the_default_split_leaves_out_parts_for_which_there_are_too_few_documents(folder, documents, left_out):
    with new_corpus(folder / "more", np.uint16) as writer:
        writer.add(np.arange(10 * documents) % 90, np.full(documents, 10))
    said = run(
        folder / "config.yaml", "--set", f"data.corpora={folder / 'more'}", "--set", "data.split=null", "--check"
    )
    assert (f"too few documents for {left_out} left out" in said) if left_out else "too few" not in said


def test_indices_are_built_in_advance_for_the_split_of_the_run(folder):
    run(folder / "config.yaml", "--set", "data.split=null", "--check")
    config = json.loads((folder / "config.yaml").read_text())
    del config["data"]["split"]
    (folder / "config.yaml").write_text(json.dumps(config))
    with CliRunner().isolation() as streams, pytest.raises(SystemExit) as stopped:
        main(["data", "index", str(folder / "config.yaml")])
    said = streams[0].getvalue().decode()
    assert stopped.value.code == 0 and "train: 4 samples" in said and "valid" not in said


def test_null_is_as_if_the_key_were_not_there(folder):
    checkpoint = ["--set", f"model.path={STARTER}", "--set", "model.size=null"]
    assert "parameters from " in run(folder / "config.yaml", *checkpoint, "--check")


def test_a_constant_learning_rate_may_be_any(folder):
    run(folder / "config.yaml", "--check", "--set", "train.schedule=constant", "--set", "train.learning_rate=0.01")


def test_the_printed_configuration_is_the_same_job(folder):
    (folder / "printed.yaml").write_text(run(folder / "config.yaml", "--print-config"))
    assert run(folder / "printed.yaml", "--check") == run(folder / "config.yaml", "--check")


REFUSALS = {
    "nothing": (["model.size=''"], "no model is set; set model.path"),
    "two-models": ([f"model.path={STARTER}"], "model.path and model.size exclude each other"),
    "changes-of-old": (
        ["model.size=''", f"model.path={STARTER}", "model.changes=[a=1]"],
        "has no effect with model.path",
    ),
    "no-tokenizer": (["model.tokenizer=''"], "model.tokenizer is not set"),
    "no-corpora": (["data.corpora=[]"], "data.corpora is not set"),
    "no-output": (["output.dir=''"], "output.dir is not set"),
    "size": (["model.size=huge"], "has no size 'huge'; its card lists llama1-7b"),
    "change": (["model.changes=[num_layers=3]"], "has no 'num_layers'; it has"),
    "change-form": (["model.changes=[layers]"], "'layers' is not of the form key=value"),
    "change-value": (["model.changes=[num_hidden_layers=0]"], "must be a whole number above 0"),
    "positions": (["data.seq_length=100"], "data.seq_length=100 exceeds the 64 positions"),
    "missing": (["data.corpora=absent"], "corpus absent does not exist"),
    "weights": (["data.corpora=0.5 corpus foreign"], "foreign has no weight, but others have"),
    "negative": (["data.corpora=negative"], "negative has the id -1, but the model has"),
    "numbers": (["data.corpora=numbers"], "numbers holds float32, not token ids"),
    "foreign": (["data.corpora=foreign"], "foreign has the id 5000, but the model has"),
    "split": (["data.split='0,1,1'"], "has no documents for train: data.split=0,1,1 of 4"),
    "small-split": (["data.split='98,1,1'"], "has no documents for valid: data.split=98,1,1 of 4 documents"),
    "no-split": (["data.split=most"], "split 'most': expected one to three weights"),
    "rates": (["train.min_learning_rate=1"], "min_learning_rate=1.0 is above train.learning_rate"),
    "decay-ratio": (
        ["train.warmup_ratio=0.9", "train.decay_steps=2"],
        "must be above the 2 warm-up steps of train.warmup_r",
    ),
    "too long": ([f"train.max_steps={10**23}"], f"train.max_steps={10**23} asks for more samples"),
    "too many": ([f"train.test_iters={10**400}"], "than can be counted; lower it, or the batch size"),
    "interval": (["train.recompute_interval=2"], "train.recompute_interval has no effect with train.recompute=none"),
    "constant": (["train.schedule=constant", "train.decay_steps=2"], "train.decay_steps has no effect with train.sch"),
    "constant-end": (["train.schedule=constant", "train.min_learning_rate=0"], "train.min_learning_rate has no effect"),
    "seed": (["train.seed=4294967296"], "train.seed=4294967296: must be at least 0, at most 4294967295"),
    "vocabulary": (["model.changes=[vocab_size=many]"], "vocab_size='many' must be an integer"),
    "small-vocabulary": (["model.changes=[vocab_size=10]"], r"vocab_size=10 is less than the \d+ ids of the tokenizer"),
    "multiple-of-old": (
        ["model.size=''", f"model.path={STARTER}", "model.vocab_multiple=64"],
        "model.vocab_multiple has no effect with model.path",
    ),
    "best": (["train.best_metric=accuracy"], "train.best_metric=accuracy has no effect without evaluations"),
    "decay": (["train.warmup_steps=9", "train.decay_steps=9"], "train.decay_steps=9 must be above the 9 warm-up steps"),
    "patience": (["train.patience=2"], "train.patience=2 has no effect without evaluations"),
    "config": (["model.size=''", "model.config=config.yaml"], "is not a config.json|is not valid JSON|no config.json"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_what_cannot_work_is_refused(folder, monkeypatch, kind):
    import re

    monkeypatch.chdir(folder)
    changes, message = REFUSALS[kind]
    before = sorted(folder.rglob("*"))
    said = run("config.yaml", *(part for change in changes for part in ("--set", change)), code=2)
    assert re.search(message.replace("(", r"\("), said), said
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("key", ["tokenizer", "config"])
def test_what_a_run_reads_is_not_overwritten(folder, key):
    shutil.copytree(STARTER, folder / "out" / "model")
    changes = [f"model.{key}={folder / 'out' / 'model'}", *(["model.size=''"] if key == "config" else [])]
    given = [part for change in changes for part in ("--set", change)]
    said = run(folder / "config.yaml", "--overwrite", "--check", *given, code=2)
    assert f"model.{key}={folder / 'out' / 'model'} is in output.dir" in said


def test_a_family_is_needed_for_a_size_and_a_recipe(folder):
    assert "llmctl --model FAMILY pretrain" in run(folder / "config.yaml", family="auto", code=2)
    assert "name it: llmctl --model FAMILY" in run("--recipe", "small", family="auto", code=2)
    assert "no pretrain recipe 'x'; it has small" in run("--recipe", "x", code=2)


def test_a_family_that_cannot_is_refused_with_its_reason(folder):
    assert "chatglm does not support pretraining: rows need" in run(
        folder / "config.yaml", family="chatglm", code=2
    )  # fmt: skip


def test_every_recipe_is_a_job_once_it_has_data(folder):
    settings = {"data.corpora": folder / "corpus", "model.tokenizer": STARTER, "output.dir": folder / "out"}
    given = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    for found in plugins.installed():
        plugin = plugins.load(found.name)
        if isinstance(support.state(plugin.card, "pretrain"), capabilities.Unsupported):
            continue
        assert recipes(plugin, "pretrain")
        for name in recipes(plugin, "pretrain"):
            said = run("--recipe", name, *given, "--set", "data.split='1'", "--check", family=found.name)
            assert "from scratch" in said and plugin.card.name in said


def test_checking_needs_no_paddle(folder, run_llmctl):
    done = run_llmctl("--model", "llama", "pretrain", str(folder / "config.yaml"), "--check",
                      probe="assert 'paddle' not in sys.modules")  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_help_needs_neither_numpy_nor_paddle(run_llmctl):
    probe = "print([m for m in ('numpy', 'paddle', 'rich') if m in sys.modules], file=sys.stderr)"
    done = run_llmctl("pretrain", "--help", probe=probe)
    assert done.returncode == 0 and "[]" in done.stderr, done.stderr
