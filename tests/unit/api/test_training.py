"""Training from Python: the same checks, runs and errors as the commands, and nothing left behind in the process."""

import json
import os
import shutil
import signal
import threading
import warnings
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from kit.corpora import write

import llmctl
from llmctl.cli import main
from llmctl.errors import ConfigError, LlmctlError
from llmctl.train import trainer

STARTER = Path(__file__).resolve().parents[3] / "plugins" / "llama" / "llmctl_llama" / "starter"
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def config(folder, **train):
    """The configuration of one step of fine-tuning."""
    return {
        "model": {"path": str(STARTER / "model")},
        "data": {"train": str(STARTER / "data" / "dev.jsonl"), "dev": str(STARTER / "data" / "dev.jsonl"),
                 "src_length": 64, "max_length": 128},
        "train": {"max_steps": 1, "batch_size": 2, "eval_batch_size": 32, "log_every": 1, **train},
        "output": {"dir": str(folder), "samples": 0},
    }  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run."""
    return llmctl.finetune(config(tmp_path_factory.mktemp("runs") / "run"), quiet=True)


def test_a_run_has_metrics_history_and_a_model_read_from_its_folder(run):
    assert run.state == "finished" and run.metrics == run.info["after"]["metrics"] and run.metrics["eval_loss"] > 0
    assert [row["step"] for row in run.history if "loss" in row] == [1]
    assert run.history[-1]["eval_loss"] == run.metrics["eval_loss"]
    assert llmctl.load(run.model)[1].decode([5])
    again = llmctl.Run(str(run.folder))
    assert again.metrics == run.metrics and repr(again) == f"Run({str(run.folder)!r}, finished)"


def test_the_history_is_that_of_the_folder_now(run, tmp_path):
    (tmp_path / "run.json").write_text("{}")
    started = llmctl.Run(tmp_path)
    assert (started.state, started.metrics, started.history) == ("starting", {}, [])
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    assert started.history == [{"step": 1, "loss": 2.0}]
    with pytest.raises(ConfigError, match="has no final model: the run is starting"):
        started.model  # noqa: B018
    with pytest.raises(ConfigError, match="is not the output folder of a run: it has no run.json"):
        llmctl.Run(tmp_path / "none")


def test_a_mapping_a_dataclass_and_a_file_are_the_same_configuration(run, tmp_path):
    data = config(tmp_path / "a")
    made = llmctl.FinetuneConfig()
    for section, values in data.items():
        for key, value in values.items():
            setattr(getattr(made, section), key, [value] if key in ("train", "dev") else value)
    made.output.dir = str(tmp_path / "b")
    (tmp_path / "c.yaml").write_text(json.dumps(data))
    runs = [
        run,
        llmctl.finetune({**data, "train": {**data["train"], "batch_size": np.int64(2)}}, quiet=True),
        llmctl.finetune(made, "llama", quiet=True),
        llmctl.finetune(tmp_path / "c.yaml", overrides=[f"output.dir={tmp_path / 'c'}"], quiet=True),
    ]
    for one in runs:
        one = one.info["config"]
        one["output"].pop("dir")
        assert one == runs[0].info["config"] | {"output": one["output"]}
    assert len({one.metrics["eval_loss"] for one in runs}) == 1
    assert Path(data["output"]["dir"]).is_dir() and data == config(tmp_path / "a"), "the mapping is not changed"


class Events(llmctl.Callback):
    def __init__(self, stop_after=99):
        self.events, self.stop_after = [], stop_after

    def on_train_begin(self, first_step, settings):
        self.events.append(("begin", first_step, settings.max_steps))

    def on_step_end(self, metrics):
        self.events.append(("step", metrics.step))
        self.stop = metrics.step == self.stop_after

    def on_evaluate(self, step, epoch, metrics):
        self.events.append(("evaluate", step))

    def on_save(self, step):
        self.events.append(("save", step))

    def on_train_end(self):
        self.events.append(("end",))


def test_callbacks_see_the_events_and_can_stop_a_run(tmp_path):
    events = Events(stop_after=2)
    run = llmctl.finetune(config(tmp_path / "run", max_steps=5, eval_every=1), callbacks=[events], quiet=True)
    assert events.events == [
        ("begin", 1, 5), ("step", 1), ("evaluate", 1), ("step", 2), ("evaluate", 2), ("save", 2), ("end",),
    ]  # fmt: skip
    assert run.state == "finished" and run.info["steps"] == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"callbacks": [Events]}, r"Events is a class; give an instance, Events\(\)"),
        ({"callbacks": [print]}, "is not an llmctl.Callback"),
        ({"overrides": ["train.max_steps"]}, "overrides: 'train.max_steps': expected a.b=value"),
        ({"overrides": ["train.max_step=3"]}, "did you mean train.max_steps?"),
        ({"config": llmctl.DpoConfig()}, "takes a dict, a FinetuneConfig or the path of a file, not DpoConfig"),
        ({"config": 5}, "not int"),
        ({"config": "nowhere.yaml"}, "configuration file nowhere.yaml does not exist"),
        ({"family": "lama"}, "Did you mean 'llama'"),
    ],
)
def test_mistakes_are_errors_of_llmctl_and_nothing_is_written(tmp_path, given, message):
    arguments = {"config": config(tmp_path / "run"), **given}
    with pytest.raises(LlmctlError, match=message):
        llmctl.finetune(**arguments)
    assert not list(tmp_path.iterdir())


def test_errors_are_those_of_the_command_line(tmp_path):
    data = config(tmp_path / "run", best_metric="exact_match")
    (tmp_path / "c.json").write_text(json.dumps(data))
    with CliRunner().isolation() as streams, pytest.raises(SystemExit):
        main(["finetune", str(tmp_path / "c.json")])
    with pytest.raises(ConfigError) as caught:
        llmctl.finetune(data)
    assert f"error: {caught.value}\n" in b"".join(stream.getvalue() for stream in streams[:2]).decode()


def test_lines_for_a_pipe_and_silence_when_quiet(tmp_path, capfd):
    llmctl.finetune(config(tmp_path / "quiet"), quiet=True)
    assert capfd.readouterr() == ("", "")
    llmctl.finetune(config(tmp_path / "loud"))
    out = capfd.readouterr().out
    assert "step     1/1" in out and "eval loss" in out and f"model in {tmp_path / 'loud' / 'model'}" in out


def surroundings():
    """What a call may not change in the process."""
    return os.getcwd(), list(warnings.filters), warnings.showwarning, [signal.getsignal(one) for one in SIGNALS]


def test_nothing_is_left_behind_and_a_second_call_works(tmp_path):
    before = surroundings()
    seen = []

    class Look(llmctl.Callback):
        def on_step_end(self, metrics):
            seen.append(signal.getsignal(signal.SIGINT))

    for name in ("first", "second"):
        llmctl.finetune(config(tmp_path / name), callbacks=[Look()], quiet=True)
    with pytest.raises(ConfigError, match="is not empty"):
        llmctl.finetune(config(tmp_path / "first"))
    assert surroundings() == before and all(handler is not before[-1][0] for handler in seen)


def test_in_another_thread_no_handler_is_installed(tmp_path):
    before, seen, failures = signal.getsignal(signal.SIGINT), [], []

    class Look(llmctl.Callback):
        def on_step_end(self, metrics):
            seen.append(signal.getsignal(signal.SIGINT))

    def train():
        try:
            llmctl.finetune(config(tmp_path / "run"), callbacks=[Look()], quiet=True)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert not failures and seen == [before] and llmctl.Run(tmp_path / "run").state == "finished"


def test_ctrl_c_before_the_first_step_says_how_to_begin_again(tmp_path, monkeypatch, capsys):
    data = config(tmp_path / "run", max_steps=1)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_show_start", lambda *_: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt, match="interrupted by SIGINT"):
            llmctl.finetune(data)
    printed = "".join(capsys.readouterr())
    assert "interrupted by SIGINT, before anything was saved for it" in printed and "again with --resume" in printed
    assert llmctl.finetune(data, overrides=["output.resume=true"], quiet=True).state == "finished"


def test_ctrl_c_saves_raises_a_keyboard_interrupt_and_the_run_can_be_resumed(tmp_path):
    before = surroundings()

    class Press(llmctl.Callback):
        def on_step_end(self, metrics):
            if metrics.step == 2:
                os.kill(os.getpid(), signal.SIGINT)

    data = config(tmp_path / "run", max_steps=4)
    with pytest.raises(KeyboardInterrupt, match="interrupted after step 2"):
        llmctl.finetune(data, callbacks=[Press()], quiet=True)
    assert surroundings() == before and llmctl.Run(tmp_path / "run").state == "interrupted"
    run = llmctl.finetune(data, overrides=["output.resume=true"], quiet=True)
    assert run.state == "finished" and [row["step"] for row in run.history if "loss" in row] == [1, 2, 3, 4]


def test_a_resumed_run_keeps_the_date_that_its_template_writes(tmp_path, monkeypatch):
    class Yesterday(datetime):
        @classmethod
        def now(cls):
            return cls(2001, 2, 3)

    (tmp_path / "dated.jinja").write_text(
        "{{ strftime_now('%Y %d %B') }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    data = config(tmp_path / "run", max_steps=2, save_every=1)
    data["data"]["chat_template"] = str(tmp_path / "dated.jinja")
    with monkeypatch.context() as patch:
        patch.setattr("llmctl.train.trainer.datetime", Yesterday)
        whole = llmctl.finetune(data, quiet=True)
    assert whole.info["template_time"] == "2001-02-03T00:00:00"
    weights = (whole.model / "model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "run" / "model")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-000002")
    resumed = llmctl.finetune(data, overrides=["output.resume=true"], quiet=True)
    assert (resumed.model / "model.safetensors").read_bytes() == weights


def test_a_loss_that_is_not_finite_is_an_error_and_the_run_failed(tmp_path):
    data = config(tmp_path / "run", max_steps=3, learning_rate=1e30)
    with pytest.raises(LlmctlError, match="training stopped at step 2"):
        llmctl.finetune(data, quiet=True)
    assert llmctl.Run(tmp_path / "run").state == "failed"


def test_preferences_and_corpora_are_trained_on_too(tmp_path):
    row = {"src": ["Deny this: Tom lives in Rome."], "tgt": [], "response": ["Yes.", "Tom does not live in Rome."]}
    (tmp_path / "pairs.jsonl").write_text(json.dumps({**row, "sort": [0, 1]}) + "\n")
    pairs = {"train": str(tmp_path / "pairs.jsonl"), "dev": str(tmp_path / "pairs.jsonl"), "max_length": 64,
             "max_prompt_length": 32}  # fmt: skip
    preferred = llmctl.dpo({**config(tmp_path / "dpo"), "data": pairs}, quiet=True)
    assert "rewards/margins" in preferred.metrics
    write(tmp_path / "corpus", [np.random.default_rng(i).integers(4, 60, 40) for i in range(40)])
    made = llmctl.PretrainConfig()
    made.model.size, made.model.tokenizer = "tiny", str(STARTER / "model")
    made.data.corpora, made.data.seq_length, made.data.split = [str(tmp_path / "corpus")], 16, "8,1,1"
    made.train.max_steps, made.train.eval_iters, made.output.dir = 1, 1, str(tmp_path / "new")
    assert llmctl.pretrain(made, "llama", quiet=True).metrics["perplexity"] > 1
