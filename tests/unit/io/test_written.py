"""Damaged files that llmctl wrote end in a message, whatever the damage."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from kit import damage

from llmctl import plugins
from llmctl.data.index_cache import DESCRIPTION, Cache
from llmctl.data.sft.examples import ExampleReader
from llmctl.data.streaming import open_examples
from llmctl.errors import FileError
from llmctl.infer.text.resumable_output import ResumableOutput
from llmctl.io import lock
from llmctl.io.checksums import MANIFEST, find_damage, write_manifest
from llmctl.io.written import Manifest, read_written
from llmctl.plugins import matrix
from llmctl.report.folder import INFO, METRICS
from llmctl.report.write import write
from llmctl.train import resume
from llmctl.train.callbacks import checkpoints

pytestmark = pytest.mark.robust

SAMPLES = [{"prompt": "Who?", "expected": "Tom", "answer": "Ann"}]
RUN = {
    "family": "llama", "task": "finetune", "parameters": 9, "chosen": ["model.path"], "template_time": "2026-01-01T00:00:00",
    "base": {"family": "llama", "card_hash": "00", "path": "/m", "tensors": 3, "shapes_hash": "0", "values_hash": "1"},
    "created": "2026-01-01T00:00:00+00:00", "command": ["llmctl", "finetune"], "versions": {"llmctl": "0.1.0"},
    "hook_api": "0.1", "card_hash": "00", "config": {"model": {"path": "m"}, "method": {"name": "lora"}, "train": {"seed": 1}},
    "precision": {"held": "float32", "note": "slow"}, "before": {"metrics": {"eval_loss": 8.5}, "samples": SAMPLES},
    "after": {"metrics": {"eval_loss": 4.5}, "samples": SAMPLES}, "outcome": {"state": "failed", "step": 3, "steps_planned": 6,
    "message": "disk full"}, "peak_memory": {"peak_memory": 420777984}, "best": {"metric": "eval_loss", "value": 4.5, "step": 3},
    "test": {"eval_loss": 4.6}, "steps": 3, "seconds": 10.3, "next": ["llmctl generate m"],
}  # fmt: skip
STEP = {"step": 1, "epoch": 0.5, "loss": 3.2, "lr": 1e-4, "grad_norm": 1.0, "tokens": 64, "tokens_per_second": 9.5,
        "seconds": 6.7, "peak_memory": 420777984}  # fmt: skip
EVALUATION = {"step": 2, "epoch": 1.0, "eval_loss": 4.5, "perplexity": 90.0}


def run_json(folder):
    (folder / METRICS).write_text(json.dumps(STEP) + "\n" + json.dumps(EVALUATION) + "\n")

    def read():
        write([folder], folder / "report.html")
        resume.template_time(resume.read(SimpleNamespace(output=folder)))

    return folder / INFO, RUN, read


def metrics_row(folder):
    (folder / INFO).write_text(json.dumps(RUN))
    return folder / METRICS, STEP, lambda: write([folder, folder], folder / "report.html")


def best(folder):
    state = checkpoints.checkpoint_of(folder, 3) / "trainer_state.json"
    state.parent.mkdir(parents=True)
    state.write_text("{}")
    return folder / "best.json", RUN["best"], lambda: checkpoints.read_best(folder)


def trainer_state(folder):
    from safetensors.numpy import save_file

    path = checkpoints.checkpoint_of(folder, 3)
    path.mkdir(parents=True)
    save_file({"m": np.zeros(2, np.float32)}, path / "optimizer.safetensors")
    state = {"step": 3, "seed": 1, "fingerprint": "aa"}
    optimizer = SimpleNamespace(load=lambda state: None)
    return path / "trainer_state.json", state, lambda: checkpoints.restore(path, optimizer, "aa", 1)


def manifest(folder):
    (folder / "a").mkdir()
    (folder / "a" / "weights").write_bytes(b"123")
    (folder / "b").write_bytes(b"")
    write_manifest(folder)
    return folder / MANIFEST, json.loads((folder / MANIFEST).read_text()), lambda: find_damage(folder)


def index_description(folder):
    cache = Cache((folder,))
    _, entry = cache.get_or_build({"seed": 1}, lambda: {"numbers": np.arange(7)})
    made = json.loads((entry / DESCRIPTION).read_text())

    def read():
        assert cache.get_or_build({"seed": 1}, lambda: {"numbers": np.arange(7)})[0]["numbers"].tolist() == [*range(7)]

    return entry / DESCRIPTION, made, read


def streamed_data(folder):
    data = folder / "a.jsonl"
    data.write_text('{"src": "a", "tgt": "b", "mood": "c"}\n' * 3)

    def read():
        reader = ExampleReader()
        found = open_examples([data], ExampleReader, reader, "train", folder / "cache")
        assert len(found) == 3 and found[1].question == "a" and (reader.summary(), reader.warnings())

    read()
    (path,) = (file for file in (folder / "cache").glob(f"*/{DESCRIPTION}") if "seen in" in file.read_text())
    return path, json.loads(path.read_text()), read


def evidence(folder):
    plugin = plugins.load("llama")
    content = json.loads((plugin.folder / matrix.EVIDENCE).read_text())
    methods = content["llama"]["outcomes"]
    content = {"llama": {**content["llama"], "outcomes": {name: methods[name] for name in [*methods][:2]}}}
    here = SimpleNamespace(folder=folder, card=plugin.card, installed=plugin.installed)
    return folder / matrix.EVIDENCE, content, lambda: matrix._cell(here, "sft", matrix._evidence(here))


def lock_file(folder):
    path = folder / "run.lock"

    def read():
        handle = path.open("rb")
        try:
            assert lock._holder(handle.fileno())
        finally:
            handle.close()

    return path, lock._this_process(), read


FILES = (run_json, metrics_row, best, trainer_state, manifest, index_description, streamed_data, evidence, lock_file)


@pytest.mark.parametrize("make", FILES, ids=lambda make: make.__name__)
def test_damage_ends_in_a_message(tmp_path, make):
    path, value, read = make(tmp_path)
    whole = damage.json_text(value)
    path.write_bytes(whole)
    read()

    def inputs():
        for seed in range(damage.budget(120, 4000)):
            damaged = damage.json_text(damage.json_value(value, seed)) if seed % 4 else damage.content(whole, seed)
            yield f"seed {seed}", lambda damaged=damaged: path.write_bytes(damaged)

    damage.try_all(path.name if make is not lock_file else "lock files", inputs(), read)


def test_damaged_answers_so_far_end_in_a_message(tmp_path):
    lines = [{"input": "aa", "max_new_tokens": 3}, [0, {"output": "a"}], [1, {"output": "b"}]]
    path = tmp_path / ".out.jsonl.answers"

    def read():
        with ResumableOutput(tmp_path / "out.jsonl", lines[0]) as output:
            assert all(isinstance(row, dict) for row in output.rows.values())

    def inputs():
        for seed in range(damage.budget(120, 4000)):
            changed = [damage.json_value(line, seed) if seed % 3 == index else line for index, line in enumerate(lines)]
            text = b"".join(damage.json_text(line) + b"\n" for line in changed)
            data = text if seed % 4 else damage.content(text, seed)
            yield f"seed {seed}", lambda data=data: path.write_bytes(data)

    assert min(damage.try_all("answers so far", inputs(), read)) > 0


def test_the_message_names_file_place_and_remedy(tmp_path):
    (tmp_path / MANIFEST).write_text('{"files": {"a": {"bytes": -1, "crc32": "0"}}}')
    with pytest.raises(FileError, match=r"manifest.json is damaged: files.a.bytes must be at least 0, not -1; restore"):
        find_damage(tmp_path)
    with pytest.raises(FileError, match="does not exist"):
        read_written(tmp_path / "none.json", Manifest, "", required=True)


def test_a_flipped_bit_in_a_cached_index_builds_it_again(tmp_path):
    cache, built = Cache((tmp_path,)), {"numbers": np.arange(70)}
    _, entry = cache.get_or_build({"seed": 1}, lambda: built)
    data = bytearray((entry / "numbers.npy").read_bytes())
    data[-9] ^= 1
    (entry / "numbers.npy").write_bytes(data)
    assert cache.get_or_build({"seed": 1}, lambda: built)[0]["numbers"].tolist() == [*range(70)]
