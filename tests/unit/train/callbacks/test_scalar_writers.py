"""Metrics handed to TensorBoard: read back from its event files, they are those of metrics.jsonl."""

import struct
import sys

import pytest
from kit.metric_logs import play
from tensorboardX.proto.event_pb2 import Event

from llmctl.config import common, finetune, schema
from llmctl.errors import ConfigError, MissingDependencyError
from llmctl.jobs import loggers
from llmctl.train.callbacks import metrics_log
from llmctl.train.callbacks.tracker_writer import RunFacts
from llmctl.train.callbacks.writers import writers_of


def logging_to(*names):
    return common.CommonTrainConfig(log_to=list(names))


def events(folder):
    """Events of all files in a folder, by the framing of TFRecord: length, its checksum, message, its checksum."""
    found = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def run(folder, **steps):
    writers = writers_of(["none", "tensorboard"], folder, RunFacts("project", "run", {}))
    logger = metrics_log.MetricsLogger(folder, 1, writers)

    class Both:
        def __getattr__(self, event):
            return lambda *values: [getattr(callback, event)(*values) for callback in [*writers, logger]]

    play(Both(), **steps)


def test_every_number_of_every_line_is_a_scalar(tmp_path):
    run(tmp_path)
    written = {
        (value.tag, event.step): value.simple_value
        for event in events(tmp_path / "tensorboard")
        for value in event.summary.value
    }
    expected = {
        (f"{'train' if 'loss' in row else 'evaluation'}/{key}", row["step"]): value
        for row in metrics_log.read(tmp_path / "metrics.jsonl")
        for key, value in row.items()
        if key != "step"
    }
    assert len(expected) > 40 and written == pytest.approx(expected)


def test_a_continued_run_has_tensorboard_drop_later_steps(tmp_path):
    run(tmp_path, last=6)
    run(tmp_path, first=5)
    starts = [event.step for event in events(tmp_path / "tensorboard") if event.session_log.status == 1]
    assert starts == [5]


def test_a_package_that_is_absent_is_named_with_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "visualdl", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'paddle-llmctl\[visualdl\]'"):
        loggers.check(logging_to("tensorboard", "visualdl"))
    loggers.check(logging_to("tensorboard"))


def test_one_name_or_a_list_but_not_none_with_others():
    made = schema.build(finetune.FinetuneConfig, {"train": {"log_to": "tensorboard"}})
    assert made.train.log_to == ["tensorboard"]
    with pytest.raises(ConfigError, match="'none' cannot be combined"):
        loggers.check(logging_to("none", "tensorboard"))
    with pytest.raises(ConfigError, match="did you mean tensorboard"):
        schema.build(finetune.FinetuneConfig, {"train": {"log_to": ["tensorbord"]}})
