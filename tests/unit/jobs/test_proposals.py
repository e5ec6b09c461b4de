"""Proposals fit by their own plan, and no neighbour is faster."""

import dataclasses
import itertools
import time

import pytest

from llmctl import plugins
from llmctl.checkpoint.build import CheckedModel
from llmctl.config import parallel, schema
from llmctl.config.file import override
from llmctl.config.finetune import FinetuneConfig
from llmctl.config.parallel import ParallelConfig
from llmctl.config.pretrain import PretrainConfig
from llmctl.errors import ConfigError
from llmctl.jobs import degrees
from llmctl.jobs.memory_plan import Outline
from llmctl.jobs.proposals import Planner, settings_of
from llmctl.parallel.arrangement import arrange, check_passes
from llmctl.parallel.costs.hardware import find


def planner(family, size, rows, length=4096, hardware="h100-80", dtype="bfloat16"):
    plugin = plugins.load(family)
    dims = plugin.card.dims_of(size)
    sections = {
        "model": {"dtype": dtype},
        "data": {"seq_length": length},
        "train": {"batch_size": 1, "grad_accumulation": rows},
    }
    config = schema.build(PretrainConfig, sections)
    model = CheckedModel(plugin, dims, plugin.card.config_from_dims(dims))
    return Planner(Outline("pretrain", config, model), find(hardware))


def neighbours(plan):
    """The plans with one degree halved and another doubled."""
    topology = plan.topology
    names = ("data", "tensor", "pipeline", "sharding")
    for less, more in itertools.permutations(names, 2):
        if getattr(topology, less) % 2 == 0:
            changed = {less: getattr(topology, less) // 2, more: getattr(topology, more) * 2}
            try:
                other = dataclasses.replace(topology, **changed)
            except ValueError:
                continue
            for stage in (1, 2, 3) if other.sharding > 1 else (1,):
                yield dataclasses.replace(plan, topology=other, stage=stage, sequence=other.tensor > 1)


@pytest.mark.parametrize(
    ("family", "size", "rows", "devices"),
    [("llama", "llama3-70b", 64, 8), ("llama", "llama3.1-405b", 256, 128), ("mixtral", "8x7b", 128, 32)],
)
def test_the_proposal_fits_and_beats_every_neighbour(family, size, rows, devices):
    # On 8 devices 70 billion parameters are trained with the optimizer in main memory only.
    plan = planner(family, size, rows)
    began = time.process_time()
    best = plan.best(devices)[0]
    assert time.process_time() - began < 5
    assert best.fits and best.peak <= plan.hardware.memory
    assert best.arrangement.plan.topology.size == devices
    others = 0
    for neighbour in neighbours(best.arrangement.plan):
        topology = neighbour.topology
        if degrees.indivisible(plan.card, plan.dims, topology.tensor) or topology.pipeline > int(plan.dims.layers):
            continue
        other = plan.of_plan(neighbour)
        if other is not None:
            others += 1
            assert not other.fits or other.seconds.total >= best.seconds.total, neighbour
    assert others > 3


def test_the_settings_are_a_valid_configuration_of_the_same_rows():
    plan = planner("mixtral", "8x7b", 128)
    for proposal in plan.best(32):
        config = schema.build(
            PretrainConfig, override(schema.to_dict(plan.job.config), settings_of(proposal, plan.global_batch))
        )
        assert config.train.batch_size * config.train.grad_accumulation == 128
        parallel.check(config.parallel, config.train)
        topology = arrange(config.parallel, 32)
        assert topology == proposal.arrangement.plan.topology
        check_passes(config.train.grad_accumulation, config.train.batch_size, topology)
        degrees.check(config.parallel, None, plan.card, plan.dims)


@pytest.mark.parametrize(("base", "most"), [("float", 8), ("int8", 4)])
def test_a_base_that_is_quantized_is_cut_between_its_groups(base, most):
    """11008 inputs are 172 groups of 64, which 8 ranks cannot share."""
    plugin = plugins.load("llama")
    dims = plugin.card.dims_of("llama2-7b")
    config = schema.build(FinetuneConfig, {"method": {"name": "lora", "base": base}})
    model = CheckedModel(plugin, dims, plugin.card.config_from_dims(dims))
    degrees_found = Planner(Outline("finetune", config, model), find("h100-80")).tensor_degrees(32)
    assert max(degrees_found) == most
    for degree in degrees_found:
        degrees.check(ParallelConfig(tensor=degree), config.method, plugin.card, dims)


def test_a_small_model_is_copied_and_not_divided():
    best = planner("llama", "llama3.2-1b", 64, 1024).best(8)[0]
    topology = best.arrangement.plan.topology
    assert (topology.tensor, topology.pipeline, topology.batch) == (1, 1, 8)


def test_what_does_not_fit_says_so_and_what_needs_least():
    best = planner("llama", "llama3.1-405b", 8, hardware="a100-40").best(8)
    assert not any(one.fits for one in best)
    assert best[0].peak / best[0].limit <= best[-1].peak / best[-1].limit


def test_fewer_rows_than_devices_can_share_are_refused():
    with pytest.raises(ConfigError, match=r"77 devices cannot share steps of 1 rows of this model; raise"):
        planner("mixtral", "8x7b", 1).best(7 * 11)
