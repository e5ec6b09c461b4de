"""A training step on several ranks over gloo: bytes and calls counted and as the formulas say, seconds measured and predicted.

    python benchmarks/parallel.py --steps 5

Speed of one process, how much slower it is beside as many others as there are ranks, and latency and bandwidth between ranks are
measured in the same run. Ranks have one thread each; where there are more ranks than cores, no core waits for a pipeline to fill.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("LLMCTL_THREADS", "1")

import numpy as np

from llmctl.config import schema
from llmctl.config.parallel import ParallelConfig
from llmctl.data.corpus.indexed import new_corpus
from llmctl.jobs.memory_plan import Outline
from llmctl.jobs.proposals import Planner
from llmctl.jobs.registry import COMMANDS, resolve
from llmctl.parallel.arrangement import arrange
from llmctl.parallel.collectives import TRAFFIC
from llmctl.parallel.costs import step as costs
from llmctl.parallel.costs.hardware import DEFAULT, HARDWARE, Link, fitted
from llmctl.parallel.costs.measure import samples
from llmctl.parallel.ranks import ALONE
from llmctl.parallel.topology import Topology
from llmctl.testing.ranks import run_ranks
from llmctl.train import trainer
from llmctl.train.console import Console
from llmctl.train.loop import Loop

MODEL = Path(__file__).resolve().parents[1] / "plugins" / "llama" / "llmctl_llama" / "starter" / "model"
SHAPE = dict(num_hidden_layers=2, hidden_size=128, intermediate_size=352, num_attention_heads=8, num_key_value_heads=8)
ROWS, PASSES, LENGTH = 2, 4, 128

TOPOLOGIES = [
    (2, {}), (2, {"sharding": 2}), (2, {"sharding": 2, "sharding_stage": 2}), (2, {"sharding": 2, "sharding_stage": 3}),
    (2, {"tensor": 2}), (2, {"tensor": 2, "sequence": True}), (2, {"pipeline": 2}),
    (4, {"tensor": 2}), (4, {"tensor": 2, "pipeline": 2}), (4, {"pipeline": 2, "sharding": 2}),
    (4, {"pipeline": 2, "sharding": 2, "sharding_stage": 3}),
]  # fmt: skip


def job_of(folder, keys, steps):
    settings = {
        "model": {
            "size": "llama2-7b", "tokenizer": str(MODEL), "changes": [f"{key}={value}" for key, value in SHAPE.items()],
        },
        "data": {"corpora": [str(folder / "corpus")], "split": "1,0,0", "seq_length": LENGTH},
        "train": {"max_steps": steps, "batch_size": ROWS, "grad_accumulation": PASSES, "eval_before": False,
                  "eval_iters": 0, "test_iters": 0, "save_every": 10**6},
        "parallel": keys,
        "output": {"dir": tempfile.mkdtemp(dir=folder) + "/out"},
    }  # fmt: skip
    config = schema.build(resolve(COMMANDS["pretrain"].config), settings)
    return resolve(COMMANDS["pretrain"].check)(config, "llama", None)


def steps_of(ranks, job):
    """Seconds of each step of this rank, and what it sent in the last one."""
    seconds, step, sent = [], Loop.train_step, {}

    def timed(loop, number):
        TRAFFIC.clear()
        # A barrier leaves ranks up to 0.1 s apart, a collective together.
        ranks.any([False])
        began = time.perf_counter()
        done = step(loop, number)
        seconds.append(time.perf_counter() - began)
        sent.update(calls=dict(TRAFFIC.calls), sizes=dict(TRAFFIC.bytes))
        return done

    Loop.train_step = timed
    try:
        ranks.barrier()
        trainer.run(job, (), Console(quiet=True), ranks)
    finally:
        Loop.train_step = step
    return statistics.median(seconds[1:]), sent["calls"], sent["sizes"]


def seconds_beside(ranks, folder, steps):
    """Seconds of a step of one process, while each of the other ranks does the same."""
    ranks.barrier()
    return steps_of(ALONE, job_of(folder, {}, steps))[0]


def link_between(ranks):
    """The connection of ranks that are all on one axis."""
    axis, points = ranks.axis("data"), []
    for one in samples(axis, [4096 * 8**n for n in range(5)], 5):
        points.append(((axis.size - 1) * costs.FACTORS[one.op], one.size / axis.size, one.seconds))
    return fitted(points)


def predicted(job, keys, topology, hardware, shared=1.0):
    """Seconds of the slowest stage, whose computing takes so many times as long, and the calls and bytes of rank 0."""
    planner = Planner(Outline("pretrain", job.config, job.model), hardware)
    plan = costs.Plan(topology, keys.get("sequence", False), keys.get("sharding_stage", 1))
    calls, sizes, slowest = {}, {}, 0.0
    for number in sorted({0, topology.pipeline - 1}):
        stage = planner._stage(plan, planner.training, number)
        work = planner._work(stage, planner.training, PASSES // topology.batch, ROWS * LENGTH)
        first, last = stage.share.first, stage.share.last
        found = costs.seconds(work, plan, hardware, first, last)
        busy = found.compute * shared + found.communication
        slowest = max(slowest, max(busy, found.total - found.update) + found.update * shared)
        if number == 0:
            for one in [*costs.in_passes(work, plan, first, last), *costs.in_update(work, plan)]:
                calls[one.axis, one.op] = calls.get((one.axis, one.op), 0) + one.calls
                sizes[one.axis, one.op] = sizes.get((one.axis, one.op), 0) + one.calls * one.size
    return slowest, calls, sizes


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5, help="measured steps of each topology")
    steps = parser.parse_args().steps + 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rng = np.random.default_rng(0)
        with new_corpus(folder / "corpus", np.dtype(np.uint16)) as corpus:
            corpus.add(rng.integers(4, 700, 200 * 500).astype(np.uint16), np.full(200, 500, np.int32))
        job = job_of(folder, {}, steps)
        alone, _, _ = steps_of(ALONE, job)
        base = dataclasses.replace(HARDWARE[DEFAULT], memory_bandwidth=5e9, node=64)
        guess, _, _ = predicted(job, {}, Topology(), dataclasses.replace(base, single=1e9))
        base = dataclasses.replace(base, single=1e9 * guess / alone)
        print(f"one process: {alone:.3f} s a step, {base.single * costs.EFFICIENCY / 1e9:.1f} GFLOPS")
        links, shared = {}, {}
        for count, keys in TOPOLOGIES:
            if count not in links:
                links[count] = run_ranks(count, link_between, topology=Topology(data=count))[0]
                link = links[count]
                shared[count] = max(1.0, statistics.mean(run_ranks(count, seconds_beside, folder, steps)) / alone)
                print(
                    f"{count} ranks: {link.latency * 1e6:.0f} us a step of a ring, {link.bandwidth / 1e9:.2f} GB/s, computing takes "
                    f"{shared[count]:.2f} times as long"
                )
            report(folder, count, keys, steps, base, links[count], shared[count])


def report(folder, count, keys, steps, base, link: Link, shared):
    """Runs a topology and prints how it compares."""
    topology = arrange(ParallelConfig(**keys), count)
    job = job_of(folder, keys, steps)
    expected, calls, sizes = predicted(job, keys, topology, dataclasses.replace(base, inside=link), shared)
    measured, counted, sent = run_ranks(count, steps_of, job, topology=topology, seconds=600.0)[0]
    exact = counted == {k: n for k, n in calls.items() if n} and sent == {k: n for k, n in sizes.items() if n}
    name = " ".join(f"{key}={value}" for key, value in keys.items()) or "data"
    print(
        f"{count} ranks {name:<32} {sum(counted.values()):>5} calls {sum(sent.values()) / 1e6:>8.2f} MB "
        f"{'= formula' if exact else 'NOT the formula'}; {measured:.3f} s measured, {expected:.3f} s predicted, "
        f"ratio {measured / expected:.2f}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
