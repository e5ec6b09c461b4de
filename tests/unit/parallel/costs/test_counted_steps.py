"""What each rank sends in a step of a run is exactly what the formulas say, in every topology."""

import dataclasses
from collections import Counter

import pytest
from kit.readme import STARTER

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
from llmctl.train import trainer
from llmctl.train.console import Console
from llmctl.train.loop import Loop

pytestmark = pytest.mark.parallel


def job_of(folder, keys, train):
    settings = {
        "model": {"path": str(STARTER / "model")},
        "data": {"train": str(STARTER / "data" / "dev.jsonl"), "max_length": 64, "max_examples": 32},
        "train": {"max_steps": 1, "batch_size": 2, "grad_accumulation": 4, "eval_before": False, **train},
        "parallel": keys,
        "output": {"dir": str(folder), "samples": 0, "load_best": False},
    }
    return resolve(COMMANDS["finetune"].check)(
        schema.build(resolve(COMMANDS["finetune"].config), settings), "auto", None
    )


def count(ranks, folder, keys, train):
    """What this rank sent in the first step, and rows x columns and labels of each of its passes."""
    job = job_of(folder, keys, train)
    ranks.wait()
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


def expected(topology, rank, keys, train, passes, folder):
    """Calls and bytes by axis and operation."""
    job = job_of(folder, keys, train)
    planner = Planner(Outline("finetune", job.config, job.model), HARDWARE[DEFAULT])
    training = dataclasses.replace(planner.training, recompute=train.get("recompute", "none"))
    plan = Plan(topology, keys.get("sequence", False), keys.get("sharding_stage", 1))
    place = topology.coordinates(rank)
    stage = planner._stage(plan, training, place.pipeline)
    traffic = []
    for tokens, labels in passes:
        work = dataclasses.replace(planner._work(stage, plan, training, 1, tokens), labels=labels)
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
        (4, {"tensor": 2}, {}),
    ],
)
def test_a_step_sends_what_the_formulas_say(ranks, keys, train, tmp_path):
    topology = arrange(ParallelConfig(**keys), ranks)
    found = run_ranks(ranks, count, tmp_path / "out", keys, train, topology=topology)
    for rank, sent in enumerate(found):
        if topology.coordinates(rank).tensor:
            continue  # The vocabulary is cut unevenly; the first rank has most.
        calls, sizes = expected(topology, rank, keys, train, sent["passes"], tmp_path / f"new-{rank}")
        assert sent["calls"] == calls, rank
        assert sent["sizes"] == sizes, rank
