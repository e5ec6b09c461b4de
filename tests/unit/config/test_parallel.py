"""The section ``parallel``: keys that do not fit each other are refused."""

import pytest

from llmctl.config.finetune import FinetuneTrainConfig
from llmctl.config.parallel import ParallelConfig, check, degrees
from llmctl.errors import ConfigError


def test_the_degrees_above_one_are_listed():
    assert degrees(ParallelConfig()) == {}
    assert list(degrees(ParallelConfig(tensor=2, data=3, pipeline=4)).items()) == [
        ("pipeline", 4),
        ("data", 3),
        ("tensor", 2),
    ]


@pytest.mark.parametrize(
    ("keys", "passes", "message"),
    [
        ({"sequence": True}, 1, r"parallel\.sequence=true needs parallel\.tensor above 1"),
        ({"stages": [2, 2]}, 1, r"parallel\.stages=\[2, 2\] needs parallel\.pipeline above 1"),
        ({"chunks": 2}, 8, r"parallel\.chunks=2 needs parallel\.pipeline above 1"),
        ({"sharding_stage": 3}, 1, r"parallel\.sharding_stage=3 needs parallel\.sharding above 1"),
        (
            {"stages": [4], "pipeline": 2},
            1,
            r"has length 1, not that of parallel\.pipeline=2; give the layers of each stage",
        ),
        ({"chunks": 2, "pipeline": 2}, 8, r"needs parallel\.pipeline of at least 3, not 2"),
        ({"chunks": 2, "pipeline": 3}, 5, r"needs at least 2 x parallel\.pipeline=6 .* train\.grad_accumulation=5"),
        ({"chunks": 2, "pipeline": 3, "stages": [1, 1, 1]}, 6, r"leave out parallel\.stages"),
        (
            {"chunks": 2, "pipeline": 3, "sharding": 2, "sharding_stage": 3},
            6,
            r"does not combine with parallel\.sharding_stage=3; use stage 1 or 2",
        ),
        ({"bucket": "some"}, 1, r"parallel\.bucket='some' is not a size; write 2GB"),
    ],
)
def test_keys_that_do_not_fit_are_refused(keys, passes, message):
    with pytest.raises(ConfigError, match=message):
        check(ParallelConfig(**keys), FinetuneTrainConfig(grad_accumulation=passes))
