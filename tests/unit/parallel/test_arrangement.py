"""Degrees and numbers of devices."""

import pytest

from llmctl.config.parallel import ParallelConfig
from llmctl.errors import ConfigError
from llmctl.parallel.arrangement import arrange, check_passes, least_size
from llmctl.parallel.topology import Topology


@pytest.mark.parametrize(
    ("keys", "size", "expected"),
    [
        ({}, 1, Topology()),
        ({}, 6, Topology(data=6)),
        ({"tensor": 2, "pipeline": 2}, 8, Topology(data=2, tensor=2, pipeline=2)),
        ({"sharding": 4}, 4, Topology(sharding=4)),
        ({"data": 2, "tensor": 2}, 4, Topology(data=2, tensor=2)),
        ({"sharding": 0}, 4, Topology(sharding=4)),
        ({"sharding": 0, "data": 2, "tensor": 2}, 12, Topology(data=2, tensor=2, sharding=3)),
        ({"sharding": 0}, 1, Topology()),
        ({"expert": 4, "sharding": 0}, 8, Topology(sharding=8, expert=4)),
        ({"expert": 4, "sharding": 2}, 8, Topology(data=4, sharding=2, expert=4)),
    ],
)
def test_data_parallel_or_sharding_takes_what_the_other_degrees_leave(keys, size, expected):
    assert arrange(ParallelConfig(**keys), size) == expected


@pytest.mark.parametrize(
    ("keys", "size", "message"),
    [
        (
            {"tensor": 2, "pipeline": 2},
            6,
            r"parallel\.pipeline=2 x parallel\.tensor=2 needs 4 devices or a multiple of that, and there are 6",
        ),
        ({"tensor": 2}, 1, r"parallel\.tensor=2 needs 2 devices or a multiple of that, and there is 1; .*--devices"),
        ({"data": 2}, 4, r"parallel\.data=2 needs 2 devices, and there are 4; .*parallel\.data=0"),
        ({"data": 1}, 4, r"parallel\.data=1 needs 1 device, and there are 4"),
        ({"expert": 3}, 4, r"parallel\.expert=3 does not divide the 4 data parallel groups; use one of 1, 2, 4"),
    ],
)
def test_degrees_that_do_not_fit_the_devices_are_refused(keys, size, message):
    with pytest.raises(ConfigError, match=message):
        arrange(ParallelConfig(**keys), size)


def test_the_smallest_number_of_devices_is_the_product_of_the_degrees():
    assert least_size(ParallelConfig()) == 1
    assert least_size(ParallelConfig(tensor=2, pipeline=3, sharding=2)) == 12


def test_more_devices_than_micro_batches_are_refused_with_a_way_out():
    check_passes(4, 8, Topology(data=4))
    check_passes(1, 8, Topology(tensor=4))
    with pytest.raises(ConfigError, match=r"4 devices share .*grad_accumulation=2 .*batch_size=4 a step has"):
        check_passes(2, 8, Topology(data=4))
    with pytest.raises(ConfigError, match=r"batch_size=1 and train\.grad_accumulation=16 a step has as many rows"):
        check_passes(2, 8, Topology(data=3))
    with pytest.raises(
        ConfigError, match=r"grad_accumulation=32 or a multiple of it, which makes more than 16 rows a step"
    ):
        check_passes(2, 8, Topology(data=32))
    with pytest.raises(ConfigError, match=r"4 groups of 2 devices share .*each needs at least one"):
        check_passes(2, 8, Topology(data=2, sharding=2, tensor=2))
    with pytest.raises(ConfigError, match=r"each needs at least 6; set train\.grad_accumulation=12 .*batch_size=4"):
        check_passes(6, 8, Topology(data=2, pipeline=3), chunks=2)
    with pytest.raises(ConfigError, match=r"^the pipeline has the .*micro-batches of a step, and it needs at least 6"):
        check_passes(5, 8, Topology(pipeline=3), chunks=2)
