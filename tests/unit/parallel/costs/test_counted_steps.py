"""What each rank sends in a step of a run is exactly what the formulas say, in every topology."""

import dataclasses
import json
import shutil
from collections import Counter

import pytest
from kit.readme import STARTER

from llmctl import plugins
from llmctl.card.tiny import tiny_dims
from llmctl.config import schema
from llmctl.config.parallel import ParallelConfig
from llmctl.jobs.memory_plan import Outline
from llmctl.jobs.proposals import Planner
from llmctl.jobs.registry import COMMANDS, resolve
from llmctl.parallel.arrangement import arrange
from llmctl.parallel.collectives import TRAFFIC
from llmctl.parallel.costs.hardware import DEFAULT, HARDWARE
from llmctl.parallel.costs.step import Plan, in_passes, in_update
from llmctl.testing.ranks import run_ranks
from llmctl.testing.tiny import write_model
from llmctl.train import trainer
from llmctl.train.console import Console
from llmctl.train.loop import Loop

pytestmark = pytest.mark.parallel


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """A model of four experts, with the tokenizer of the starter model."""
    folder = tmp_path_factory.mktemp("mixture") / "model"
    shutil.copytree(STARTER / "model", folder)
    vocab = json.loads((folder / "config.json").read_text())["vocab_size"]
    plugin = plugins.load("mixtral")
    write_model(folder, plugin, tiny_dims(plugin.card, {"vocab": vocab, "experts": 4, "max_positions": 512}))
    return folder


def job_of(folder, keys, train, model):
    settings = {
        "model": {"path": str(model)},
        "data": {"train": str(STARTER / "data" / "dev.jsonl"), "max_length": 64, "max_examples": 32},
        "train": {"max_steps": 1, "batch_size": 2, "grad_accumulation": 4, "eval_before": False, **train},
        "parallel": keys,
        "output": {"dir": str(folder), "samples": 0, "load_best": False},
    }
    return resolve(COMMANDS["finetune"].check)(
        schema.build(resolve(COMMANDS["finetune"].config), settings), "auto", None
    )


def count(ranks, folder, keys, train, model):
    """What this rank sent in the first step, and rows x columns and labels of each of its passes."""
    job = job_of(folder, keys, train, model)
    ranks.barrier()
    found = {}
    step = Loop.train_step

    def counted(loop, number):
        TRAFFIC.clear()
        done = step(loop, number)
        passes = loop.task.micro_batches(number)[ranks.number :: ranks.size]
        shapes = [(one.arrays["input_ids"].size, int((one.arrays["labels"] != -100).sum())) for one in passes]
        found.update(calls=dict(TRAFFIC.calls), sizes=dict(TRAFFIC.bytes), passes=shapes)
        return done

    Loop.train_step = counted
    trainer.run(job, (), Console(quiet=True), ranks)
    return found


def expected(topology, rank, keys, train, passes, folder, model):
    """Calls and bytes by axis and operation."""
    job = job_of(folder, keys, train, model)
    planner = Planner(Outline("finetune", job.config, job.model), HARDWARE[DEFAULT])
    training = dataclasses.replace(planner.training, recompute=train.get("recompute", "none"))
    plan = Plan(topology, keys.get("sequence", False), keys.get("sharding_stage", 1))
    place = topology.coordinates(rank)
    stage = planner._stage(plan, training, place.pipeline)
    traffic = []
    for tokens, labels in passes:
        work = dataclasses.replace(planner._work(stage, training, 1, tokens), labels=labels)
        traffic += in_passes(work, plan, stage.share.first, stage.share.last)
    calls, sizes = Counter(), Counter()
    for one in [*traffic, *in_update(work, plan)]:
        calls[one.axis, one.op] += one.calls
        sizes[one.axis, one.op] += one.calls * one.size
    return {key: n for key, n in calls.items() if n}, {key: n for key, n in sizes.items() if n}


@pytest.mark.parametrize(
    ("ranks", "keys", "train"),
    [
        (2, {}, {}),
        (2, {"sharding": 2}, {}),
        (2, {"sharding": 2, "sharding_stage": 2}, {}),
        (2, {"sharding": 2, "sharding_stage": 3}, {"recompute": "full"}),
        (2, {"tensor": 2}, {}),
        (2, {"tensor": 2, "sequence": True}, {"recompute": "full"}),
        (2, {"pipeline": 2}, {}),
        (4, {"tensor": 2, "pipeline": 2, "sequence": True}, {}),
        (4, {"pipeline": 2, "sharding": 2}, {}),
        (4, {"pipeline": 2, "sharding": 2, "sharding_stage": 3}, {}),
        (4, {"tensor": 2, "sharding": 2, "sharding_stage": 3}, {}),
        (4, {"tensor": 2}, {}),
    ],
)
def test_a_step_sends_what_the_formulas_say(ranks, keys, train, tmp_path):
    assert_as_said(ranks, keys, train, tmp_path, STARTER / "model")


@pytest.mark.parametrize(
    ("ranks", "keys", "train"),
    [
        (4, {"expert": 2, "sharding": 4}, {}),
        (4, {"expert": 2, "sharding": 2, "sharding_stage": 2}, {}),
        (4, {"expert": 2, "sharding": 4, "sharding_stage": 3}, {"recompute": "full"}),
        (4, {"pipeline": 2, "sharding": 2, "sharding_stage": 3}, {}),
    ],
)
def test_a_step_of_a_mixture_sends_what_the_formulas_say(ranks, keys, train, tmp_path, mixture):
    assert_as_said(ranks, keys, train, tmp_path, mixture)


def assert_as_said(ranks, keys, train, tmp_path, model):
    topology = arrange(ParallelConfig(**keys), ranks)
    found = run_ranks(ranks, count, tmp_path / "out", keys, train, model, topology=topology)
    routed = [0, 0]
    for rank, sent in enumerate(found):
        if topology.coordinates(rank).tensor:
            continue  # The vocabulary is cut unevenly; the first rank has most.
        calls, sizes = expected(topology, rank, keys, train, sent["passes"], tmp_path / f"new-{rank}", model)
        assert sent["calls"] == calls, rank
        # The routers decide how many tokens come to a rank, and go back; all ranks together send what they have.
        both = [one.pop(("expert", "all_to_all"), 0) for one in (sent["sizes"], sizes)]
        routed = [total + size for total, size in zip(routed, both, strict=True)]
        assert sent["sizes"] == sizes, rank
    assert routed[0] == routed[1]
