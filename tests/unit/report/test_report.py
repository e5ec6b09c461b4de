"""The page that explains a run's folder: complete, self-contained, safe for any text, true to how the run ended."""

import contextlib
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

from llmctl.errors import ConfigError, FileError
from llmctl.report.chart import Series, figure, summary
from llmctl.report.comparison import labels
from llmctl.report.folder import open_run
from llmctl.report.hover import SCRIPT
from llmctl.report.page import page
from llmctl.report.write import write
from llmctl.train.callbacks.base import LoopSettings
from llmctl.train.callbacks.run_record import RunRecord, write_info
from llmctl.train.interrupt import Interrupted
from llmctl.train.loop import NonFiniteError

NASTY = '<script>alert(1)</script> & "引号" <img src=x onerror=y>'
INFO = {
    "family": "parrot",
    "task": "finetune",
    "parameters": 1234567,
    "created": "2026-11-29T09:55:54+00:00",
    "chosen": ["train.epochs"],
    "command": ["llmctl", "finetune", "a b.yaml"],
    "versions": {"llmctl": "9.9"},
    "config": {"method": {"name": "full"}, "train": {"epochs": 7.0, "seed": 42}, "output": {"dir": NASTY}},
    "before": {"metrics": {"eval_loss": 8.25, "accuracy": 0.125}, "samples": [{"prompt": NASTY, "answer": "no"}]},
    "after": {"metrics": {"eval_loss": 0.5, "accuracy": 0.875}, "samples": [{"prompt": NASTY, "answer": NASTY}]},
}
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Reader(HTMLParser):
    """Checks nesting and collects tags and texts."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.tags, self.texts, self.scripts = [], [], [], []
        self.feed(text)
        assert not self.stack

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if "script" in self.stack:
            self.scripts.append(data)
        elif "style" not in self.stack:
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def rows(steps=30):
    lines = [
        {"step": s, "epoch": s / 10, "loss": 9 / s, "lr": 1e-3, "grad_norm": 2.0, "tokens": 9, "tokens_per_second": 450.0,
         "seconds": 0.5, "peak_memory": 5 * 10**8}
        for s in range(1, steps + 1)
    ]  # fmt: skip
    return [*lines, {"step": steps, "epoch": 3.0, "eval_loss": 0.5, "accuracy": 0.875}]


def folder(path, info=INFO, lines=None):
    path.mkdir(exist_ok=True)
    write_info(path, info)
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (rows() if lines is None else lines)))
    return path


def read(path):
    return Reader(write([path]).read_text(encoding="utf-8"))


def test_the_page_tells_outcome_metrics_curves_answers_configuration_and_versions(tmp_path):
    shown = read(folder(tmp_path / "run"))
    text = shown.text
    assert "parrot finetune (full)" in text and "1,234,567 parameters" in text
    assert "1,234,567 parameters, all trained" in text and "started 2026-11-29 09:55 UTC" in text
    assert "Finished after 30 steps, 0:15 of training." in text
    assert (
        "eval loss 8.25 0.5" in text
        and "accuracy 12.5 % 87.5 % Training training loss 9 at step 1, 0.3 at step 30" in text
    )
    assert "tokens seen 270 tokens per second 450 in the middle, 450 at best epochs 3" in text
    for title in ("loss", "learning rate", "gradient norm before clipping", "tokens per second", "peak memory"):
        assert ("svg", title) in [(tag, attrs.get("aria-label")) for tag, attrs in shown.tags], title
    assert "what differs from the defaults (1)" in text and "train.epochs 7.0" in text and "train.seed 42" in text
    assert "llmctl finetune 'a b.yaml'" in text and "llmctl 9.9" in text


def test_no_text_of_a_run_becomes_markup(tmp_path):
    text = page(
        open_run(folder(tmp_path / NASTY.replace("/", "_"), {**INFO, "outcome": {"state": "failed", "message": NASTY}}))
    )
    shown = Reader(text)
    assert "img" not in {tag for tag, _ in shown.tags} and shown.scripts == [SCRIPT]
    assert shown.text.count("<script>alert(1)</script>") >= 4


def test_the_page_loads_nothing(tmp_path):
    text = page(open_run(folder(tmp_path / "run")))
    shown = Reader(text)
    assert [attrs for tag, attrs in shown.tags if tag == "script"] == [{}] and shown.scripts == [SCRIPT]
    loading = {"link", "img", "iframe", "object", "image", "use"}
    assert not loading & {tag for tag, _ in shown.tags}
    assert not re.search(r"https?:|url\(|@import", text)


@pytest.mark.parametrize(
    "info, lines",
    [({}, [{"step": 1, "loss": 2.0}]), (INFO, []), ({"before": INFO["before"]}, []), (INFO, rows()[:-1]),
     (INFO, [{"step": 3, "loss": float("nan"), "lr": None}])],
)  # fmt: skip
def test_whatever_of_a_run_is_there_makes_a_page(tmp_path, info, lines):
    assert read(folder(tmp_path / "run", info, lines)).text


def points_of(svg, kind):
    """Heights of the points of a drawn path."""
    path = next(part for part in ET.fromstring(svg).iter("path") if part.get("class").split()[0] == kind)
    return [float(pair.split()[1]) for pair in re.findall(r"[\d.]+ [\d.]+", path.get("d"))]


def series_of(shown, chart):
    """Name of a line -> {step: value as text} of the large picture of a chart, as the script reads them."""
    found, inside = {}, False
    for tag, attrs in shown.tags:
        inside = attrs.get("aria-label") == chart if tag == "svg" and "aria-label" in attrs else inside
        if tag == "g" and inside:
            pairs = zip(attrs["data-steps"].split("|"), attrs["data-values"].split("|"), strict=True)
            found.setdefault(attrs["data-name"], dict(pairs))
    return found


def test_the_evaluation_before_training_is_a_point_at_step_0(tmp_path):
    shown = read(folder(tmp_path / "run"))
    assert series_of(shown, "loss")["evaluation loss"] == {"0": "8.25", "30": "0.5"}
    assert series_of(shown, "accuracy") == {"accuracy": {"0": "12.5 %", "30": "87.5 %"}}
    later = read(folder(tmp_path / "later", {**INFO, "before": {"metrics": {}, "samples": []}}))
    assert series_of(later, "accuracy") == {"accuracy": {"30": "87.5 %"}}


def test_values_under_the_pointer_are_those_of_the_rows(tmp_path):
    shown = series_of(read(folder(tmp_path / "run")), "loss")["training loss"]
    assert shown == {str(row["step"]): f"{row['loss']:.3g}" for row in rows() if "loss" in row}


def test_an_adapter_says_how_many_parameters_were_trained(tmp_path):
    text = read(folder(tmp_path / "run", {**INFO, "trained_parameters": 12345})).text
    assert "1,234,567 parameters, 12,345 trained (1 %)" in text


def test_the_command_is_shown_as_it_was_typed(tmp_path):
    info = {**INFO, "command": ["/somewhere/llmctl/__main__.py", "finetune", "a.yaml"]}
    assert "llmctl finetune a.yaml" in read(folder(tmp_path / "run", info)).text


def test_a_long_series_keeps_its_extremes_in_a_band():
    points = [(float(step), 1.0) for step in range(1, 50_001)]
    points[33_333] = (33_334.0, 9.0)
    lows, means, highs = summary(points)
    assert len(means) <= 240 and max(value for _, value in highs) == 9.0 and min(value for _, value in lows) == 1.0
    assert sum(value for _, value in means) / len(means) == pytest.approx(1 + 8 / 50_000, rel=1e-3)
    drawn = figure("loss", [Series("loss", points)], str, wide=True)
    assert len(drawn) < 40_000
    svg = re.search(r"<svg viewBox=\"0 0 900.*?</svg>", drawn, re.DOTALL)[0]
    assert min(points_of(svg, "band")) < min(points_of(svg, "line"))


def test_values_of_many_magnitudes_get_a_logarithmic_axis():
    values = [(1.0, 1.0), (2.0, 1.0), (3.0, 1.0), (4.0, 10.0), (5.0, 100.0)]
    svg = re.search(r"<svg viewBox=\"0 0 420.*?</svg>", figure("norm", [Series("n", values)], str), re.DOTALL)[0]
    heights = points_of(svg, "line")
    assert heights[3] - heights[4] == pytest.approx(heights[2] - heights[3], abs=0.2) and heights[3] < heights[2]


PLAN = LoopSettings(max_steps=9, eval_every=9, save_every=9)
REPORT = {"step": 5, "loss": "nan", "grad_norm": "nan", "lr": 0.1, "examples": ["a.jsonl:3"]}


@pytest.mark.parametrize(
    "error, state, text",
    [
        (None, "finished", "Finished after 5 steps of 9"),
        (Interrupted(step=5), "interrupted", "Interrupted after step 5 of 9"),
        (NonFiniteError(REPORT), "failed", "a.jsonl:3"),
        (MemoryError("no room"), "failed", "MemoryError: no room"),
    ],
)
def test_the_page_says_how_the_run_ended_and_how_to_go_on(tmp_path, error, state, text):
    path = folder(tmp_path / "run", {}, rows(5))
    info = {key: value for key, value in INFO.items() if key != "after"}
    ends = pytest.raises(type(error)) if error else contextlib.nullcontext()
    with ends, RunRecord(path, info) as record:
        record.on_train_begin(1, PLAN)
        assert "Not finished" in Reader((path / "report.html").read_text()).text
        if error:
            raise error
        info["after"] = INFO["after"]
    stored = json.loads((path / "run.json").read_text())
    assert stored["outcome"]["state"] == state and stored["peak_memory"]["peak_memory"] > 10**7
    shown = Reader((path / "report.html").read_text()).text
    assert text in shown and ("--resume" in shown) == (state != "finished")


def test_steps_between_two_lines_of_metrics_count(tmp_path):
    path = folder(tmp_path / "run", {}, [{"step": 1, "loss": 2.0}])
    with pytest.raises(Interrupted), RunRecord(path, dict(INFO)) as record:
        record.on_train_begin(1, PLAN)
        record.on_save(7)
        raise Interrupted(step=7)
    assert "Interrupted after step 7 of 9" in Reader((path / "report.html").read_text()).text


def test_a_resumed_run_forgets_how_it_ended_before(tmp_path):
    path = folder(tmp_path / "run")
    info = {**INFO, "outcome": {"state": "failed", "message": "loss nan"}}
    with RunRecord(path, info) as record:
        record.on_train_begin(6, PLAN)
        shown = Reader((path / "report.html").read_text()).text
        assert "loss nan" not in shown and "Not finished" in shown and "after" not in info


def test_several_runs_are_drawn_together_and_their_differences_listed(tmp_path):
    other = {**INFO, "config": {**INFO["config"], "train": {"epochs": 2.0, "seed": 42}}}
    one, two = folder(tmp_path / "one"), folder(tmp_path / "two", other, rows(12))
    shown = Reader(write([one, two], tmp_path / "both.html").read_text())
    assert "train.epochs 7.0 2.0" in shown.text and "train.seed" not in shown.text
    assert "steps 30 12" in shown.text
    assert {"t0", "t1"} <= {name for tag, attrs in shown.tags if tag == "path" for name in attrs["class"].split()}


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    runs = [open_run(folder(tmp_path / name / "run")) for name in ("a", "b")]
    assert labels(runs) == ["a/run", "b/run"]


def test_what_is_no_run_is_refused_and_other_files_are_not_replaced(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        write([tmp_path / "absent"])
    with pytest.raises(ConfigError, match="neither run.json nor"):
        write([tmp_path])
    path = folder(tmp_path / "run")
    (tmp_path / "mine.html").write_text("my own page")
    with pytest.raises(ConfigError, match="not a report"):
        write([path], tmp_path / "mine.html")
    assert (tmp_path / "mine.html").read_text() == "my own page"
    write([path])
    write([path])
    (path / "run.json").write_text("{")
    with pytest.raises(FileError, match="run.json is not valid JSON"):
        write([path])


def test_the_command_needs_no_paddle(tmp_path, run_llmctl):
    path = folder(tmp_path / "run")
    probe = "print([name for name in ('paddle', 'numpy', 'rich') if name in sys.modules])"
    done = run_llmctl("report", str(path), probe=probe)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]" and "report.html written" in done.stdout
