"""What a run leaves in writing and shows: metrics lines, the learning curve, plain progress lines."""

import errno
import io
import json
import math
import os
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import rich.console
from kit.metric_logs import PLAN, play, update

from llmctl.errors import FileError
from llmctl.report.curve import draw
from llmctl.report.wording import clock
from llmctl.train import console
from llmctl.train.callbacks import metrics_log
from llmctl.train.callbacks.progress import ProgressBar, ProgressLines, format_metrics
from llmctl.train.console import Console

SVG = "{http://www.w3.org/2000/svg}"


def test_updates_are_logged_at_the_first_each_third_and_the_last_step(tmp_path):
    play(metrics_log.MetricsLogger(tmp_path, every=3))
    rows = metrics_log.read(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 3, 4, 6, 7]
    keys = {"step", "epoch", "loss", "lr", "grad_norm", "tokens", "tokens_per_second", "seconds", "peak_memory"}
    assert set(rows[0]) - {"peak_gpu_memory"} == keys
    assert [row.get("tokens") for row in rows] == [100, 200, None, 300, 100]
    assert rows[3]["tokens_per_second"] == 400.0
    assert rows[2] == {"step": 4, "epoch": 1.0, "eval_loss": 1.5, "accuracy": 0.25}


def test_lines_are_on_disk_while_the_run_goes_on(tmp_path):
    one = metrics_log.MetricsLogger(tmp_path, every=1)
    one.on_train_begin(1, PLAN)
    one.on_step_end(update(1))
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_losses_are_written_with_all_their_digits(tmp_path):
    one = metrics_log.MetricsLogger(tmp_path, every=1)
    one.on_train_begin(1, PLAN)
    one.on_step_end(update(1, loss=math.pi))
    assert metrics_log.read(tmp_path / "metrics.jsonl")[0]["loss"] == math.pi


def test_a_continued_run_drops_later_lines_and_one_that_was_cut_off(tmp_path):
    play(metrics_log.MetricsLogger(tmp_path, every=1), last=6)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    play(metrics_log.MetricsLogger(tmp_path, every=1), first=5)
    rows = metrics_log.read(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 4, 5, 6, 7]


def rows_of_a_run():
    rows = [{"step": s, "loss": 4 / s, "lr": 1e-3 * (1 - s / 100)} for s in range(1, 90, 2)]
    return rows + [{"step": 40, "eval_loss": 0.3}, {"step": 80, "eval_loss": 0.2}]


def test_the_curve_is_an_svg_document_with_a_line_for_each_quantity():
    root = ET.fromstring(draw(rows_of_a_run()))
    lines = root.findall(f"{SVG}polyline")
    assert [len(line.get("points").split()) for line in lines] == [45, 2, 45]
    texts = {text.text for text in root.findall(f"{SVG}text")}
    assert {"training loss", "evaluation loss", "learning rate", "step"} <= texts
    width, height = float(root.get("width")), float(root.get("height"))
    for line in lines:
        for point in line.get("points").split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= width and 0 <= y <= height


def test_higher_values_are_drawn_higher_and_later_ones_further_right():
    root = ET.fromstring(draw([{"step": 1, "loss": 3.0, "lr": 1.0}, {"step": 9, "loss": 1.0, "lr": 1.0}]))
    (x1, y1), (x2, y2) = (map(float, p.split(",")) for p in root.find(f"{SVG}polyline").get("points").split())
    assert x1 < x2 and y1 < y2


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"step": 1, "loss": 0.0, "lr": 0.0}],
        [{"step": 1, "loss": math.nan, "lr": 1e-5}],
        [{"step": 3, "eval_loss": 2.0}],
    ],
)
def test_a_curve_of_little_or_odd_data_is_still_a_document(rows):
    assert ET.fromstring(draw(rows)).tag == f"{SVG}svg"


def test_the_curve_is_written_beside_the_metrics(tmp_path):
    play(metrics_log.MetricsLogger(tmp_path, every=1))
    assert ET.parse(tmp_path / "curve.svg").getroot().tag == f"{SVG}svg"


def test_a_full_disk_is_said_and_only_the_curve_is_done_without(tmp_path, monkeypatch):
    def full(self, *arguments, **settings):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    logger = metrics_log.MetricsLogger(tmp_path, every=1)
    logger.on_train_begin(1, PLAN)
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(FileError, match="disk full while writing .*metrics.jsonl"):
        logger.on_step_end(update(1))
    with pytest.warns(UserWarning, match="curve.svg could not be written: .*No space left"):
        logger.on_train_end()


def test_plain_lines_tell_loss_rate_speed_and_time_left(capsys):
    play(ProgressLines(every=3))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert "3/7" in lines[1] and "loss 2.0000" in lines[1] and "lr 1.00e-03" in lines[1]
    assert "400 tokens/s" in lines[1] and "left" in lines[1]
    assert "eval loss 1.5" in lines[2] and "accuracy 25.0 %" in lines[2]


def test_a_bar_shows_steps_and_evaluations(capsys):
    play(ProgressBar(1))
    out = capsys.readouterr().out
    assert "7/7" in out and "loss 2.0000" in out and "eval loss 1.5" in out


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_on_a_terminal_or_in_a_notebook_with_widgets_and_lines_elsewhere(monkeypatch):
    assert isinstance(Console().progress(1), ProgressLines)
    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
    for widgets, kind in (("json", ProgressBar), ("a_module_that_nobody_has", ProgressLines)):
        monkeypatch.setattr(console, "WIDGETS", widgets)
        assert isinstance(Console().progress(1), kind)
    monkeypatch.undo()
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert isinstance(Console().progress(1), ProgressBar)


def test_a_quiet_console_prints_nothing(capsys):
    quiet = Console(quiet=True)
    quiet.print("a line")
    quiet.table("title", ["column"], [["cell"]])
    play(quiet.progress(1))
    assert capsys.readouterr() == ("", "")


def test_times_and_metrics_read_well():
    assert [clock(s) for s in (0, 59.6, 61, 3661)] == ["0:00", "1:00", "1:01", "1:01:01"]
    assert format_metrics({"eval_loss": 0.123456, "exact_match": 1.0}) == "eval loss 0.1235  exact match 100.0 %"


def test_metrics_are_json_lines(tmp_path):
    play(metrics_log.MetricsLogger(tmp_path, every=1))
    assert all(json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
