"""Runs whose ranks have some of the layers each: the model, losses and checkpoints of one process, for every method."""

import pytest
from kit.by_command import assert_same
from kit.short_runs import RUNS, job_of, write_data

from llmctl.parallel.ranks import ALONE
from llmctl.parallel.topology import Topology
from llmctl.testing.ranks import run_ranks
from llmctl.train import trainer
from llmctl.train.console import Console


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Examples, preferences and a corpus."""
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


def train(ranks, names, data, output, parallel, dtype):
    """One run after another; the ranks part after the last."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ranks, "close", lambda: None)
        for name in names:
            job = job_of(name, data, output / name, parallel, dtype)
            # As in the command, all have checked the output folder before one writes there.
            ranks.barrier()
            trainer.run(job, (), Console(quiet=True), ranks)


@pytest.fixture(scope="module")
def one(data, tmp_path_factory):
    """Folder of the output that one process makes of a run."""
    folder = tmp_path_factory.mktemp("one")

    def output(name):
        if not (folder / name).exists():
            train(ALONE, [name], data, folder, {}, "float64")
        return folder / name

    return output


@pytest.fixture
def check(one, data, tmp_path):
    """Trains in a topology, and compares what is written."""

    def run(names, topology, parallel):
        output = tmp_path / str(topology.size)
        options = {"topology": topology, "seconds": 200.0}
        run_ranks(topology.size, train, names, data, output, parallel, "float64", **options)
        for name in names:
            assert_same(one(name), output / name, 1e-8)

    return run


def test_two_stages_write_what_one_process_writes(check):
    check(["full"], Topology(pipeline=2), {"pipeline": 2})


OTHERS = ("full", "deep", "dropout")


@pytest.mark.parallel
@pytest.mark.parametrize("half", [0, 1])
def test_every_method_is_trained_in_two_stages(check, half):
    names = [name for name in RUNS if name not in OTHERS]
    check(names[half::2], Topology(pipeline=2), {"pipeline": 2})


@pytest.mark.parallel
def test_tensor_and_pipeline_ranks_together(check):
    parallel = {"pipeline": 2, "tensor": 2, "sequence": True}
    check(["full", "dora", "prefix", "dpo"], Topology(pipeline=2, tensor=2), parallel)


@pytest.mark.parallel
def test_stages_that_share_the_optimizer_with_other_rows(check):
    """Gradients and weights too: test_topologies."""
    parallel = {"pipeline": 2, "sharding": 2}
    check(["full"], Topology(pipeline=2, sharding=2), parallel)


@pytest.mark.parallel
def test_uneven_stages_with_copies(check):
    check(["dpo"], Topology(pipeline=2, data=2), {"pipeline": 2, "stages": [1, 3], "data": 2})


@pytest.mark.parallel
def test_stages_of_several_parts(check):
    check(["deep"], Topology(pipeline=3), {"pipeline": 3, "chunks": 2})
