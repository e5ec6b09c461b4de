"""What is in memory on ranks that share the weights: none ever holds a whole model.

Counted are the bytes that Paddle's allocator and numpy's hold at most, not those that this project says.
"""

import gc
import json
import shutil
import tracemalloc
from dataclasses import replace

import pytest
from kit.readme import STARTER
from paddle.base import core

from llmctl import plugins
from llmctl.config import schema
from llmctl.jobs import registry
from llmctl.parallel.regions import units_of
from llmctl.parallel.topology import Topology
from llmctl.testing.ranks import run_ranks
from llmctl.testing.tiny import write_model
from llmctl.train import trainer
from llmctl.train.console import Console
from llmctl.train.place import Place
from llmctl.train.trainable import base

RANKS, LAYERS, WIDTH = 4, 8, 4
FULL = {"name": "full"}
SHARING = {"sharding": RANKS, "sharding_stage": 3}
RUNS = {
    "new": ("finetune", FULL),
    "folder": ("finetune", FULL),
    "two models": ("dpo", FULL),
    "quantized": ("finetune", {"name": "lora", "rank": 2, "base": "nf4"}),
}
STATISTIC = "Allocated", 0


@pytest.fixture(scope="module", params=[False, pytest.param(True, marks=pytest.mark.parallel)], ids=["untied", "tied"])
def made(tmp_path_factory, request):
    """A folder with a model of many blocks and data; its bytes in units, outside of them, and in a block."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copytree(STARTER / "model", folder / "model")
    plugin = plugins.load("llama")
    dims = plugin.card.dims_from_config(json.loads((folder / "model" / "config.json").read_text()))
    dims = dims.replace(layers=LAYERS, tied=request.param)
    write_model(folder / "model", plugin, dims)
    rows = [json.loads(line) for line in (STARTER / "data" / "dev.jsonl").read_text().splitlines()[:8]]
    pairs = [{"prompt": row["src"], "chosen": row["tgt"], "rejected": row["tgt"][::-1]} for row in rows]
    (folder / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "dpo.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    tensors = plugin.card.expand(dims)
    paths = tuple(f"{path}." for path in units_of(tensors))
    inside = sum(tensor.size * WIDTH for tensor in tensors if tensor.name.startswith(paths))
    outside = sum(tensor.size * WIDTH for tensor in tensors) - inside
    assert outside == int(dims.hidden) * WIDTH, "all but the last norm is in units"
    return folder, inside, outside, sum(tensor.size * WIDTH for tensor in tensors if tensor.layer == 0)


def job_of(folder, output, command, method, parallel=SHARING):
    data = str(folder / f"{'dpo' if command == 'dpo' else 'sft'}.jsonl")
    settings = {
        "model": {"path": str(folder / "model"), "dtype": "float32"},
        "data": {"train": data, "dev": data, "max_length": 64},
        "method": method,
        "train": {"max_steps": 2, "batch_size": 1, "grad_accumulation": RANKS, "eval_every": 1, "eval_batch_size": 8, "learning_rate": 1.0},
        "output": {"dir": str(output), "samples": 0},
        "parallel": parallel,
    }  # fmt: skip
    command = registry.COMMANDS[command]
    return registry.resolve(command.check)(schema.build(registry.resolve(command.config), settings), "auto", None)


class Watch:
    """The most bytes of tensors and of arrays at a time, beyond those that were there when it began."""

    def __init__(self):
        gc.collect()
        self._tensors = core.host_memory_stat_current_value(*STATISTIC)
        core.host_memory_stat_reset_peak_value(*STATISTIC)
        tracemalloc.start()

    def now(self):
        gc.collect()
        return core.host_memory_stat_current_value(*STATISTIC) - self._tensors

    def most(self):
        arrays = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return core.host_memory_stat_peak_value(*STATISTIC) - self._tensors, arrays


def _load(ranks, folder, kinds=tuple(RUNS), parallel=SHARING):
    """Bytes at the end, and at most, of models that are loaded or drawn."""
    found = {}
    for kind in kinds:
        command, method = RUNS[kind]
        job = job_of(folder, folder / "out", command, method, parallel)
        place, watch = Place.of(job, ranks), Watch()
        if kind == "new":
            held = place.layer(replace(job.model, weights=None), "float32", 3)
        else:
            held = base.load(job, None, place)
            held = held, held.reference() if command == "dpo" else None
        found[kind] = watch.now(), *watch.most()
        del held
    return found


def test_models_are_loaded_and_drawn_tensor_by_tensor(made):
    folder, inside, outside, block = made
    part = inside / RANKS + outside
    for found in run_ranks(RANKS, _load, folder, topology=Topology(sharding=RANKS)):
        assert found["new"][0] == found["folder"][0] == part and found["two models"][0] == 2 * part
        assert found["quantized"][0] < inside / RANKS / 2 + outside
        for kind, (_, tensors, arrays) in found.items():
            assert tensors <= part * (1 + (kind == "two models")) + 2 * block
            # These are of one tensor, besides objects of Python.
            assert arrays < inside / 2


def test_ranks_with_parts_of_layers_load_and_draw_only_these(made):
    folder, inside, outside, block = made
    topology, kinds = Topology(tensor=2, pipeline=2), ("new", "folder", "two models")
    parallel = {"tensor": 2, "pipeline": 2}
    for found in run_ranks(RANKS, _load, folder, kinds, parallel, topology=topology):
        assert found["new"][0] == found["folder"][0] < 0.3 * inside
        assert found["two models"][0] == 2 * found["folder"][0]
        assert all(tensors <= left + 2 * block and arrays < inside / 2 for left, tensors, arrays in found.values())


def _train(ranks, folder, output):
    """Bytes before and at most, when the best checkpoint is restored and when the model is saved."""
    job, found = job_of(folder, output, "finetune", FULL), {}

    def watched(work):
        def watch(*args):
            one = Watch()
            before, done = one._tensors, work(*args)
            found[work.__name__] = before, *one.most()
            return done

        return watch

    start = core.host_memory_stat_current_value(*STATISTIC)
    train = trainer._train

    def trained(*args):
        last = train(*args)
        trainer._choose_final, ranks.lead = watched(trainer._choose_final), watched(ranks.lead)
        return last

    trainer._train = trained
    ranks.barrier()
    info = trainer.run(job, (), Console(quiet=True), ranks)
    return start, found, info.get("best")


@pytest.mark.parallel
def test_the_best_checkpoint_is_restored_and_the_model_saved_tensor_by_tensor(made, tmp_path):
    folder, inside, outside, block = made
    results = run_ranks(RANKS, _train, folder, tmp_path / "out", topology=Topology(sharding=RANKS))
    assert results[0][2]["step"] == 1
    for start, found, _ in results:
        for before, tensors, arrays in found.values():
            assert before - start < 3 * inside / RANKS + 2 * outside
            assert tensors <= 2 * block and arrays < inside / 2
