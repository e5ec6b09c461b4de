"""What ranks that share layers do not do as one process."""

import paddle
import pytest

from llmctl.checkpoint.partial import WHOLE
from llmctl.parallel.axis import Axis
from llmctl.train.place import Place


@pytest.mark.parametrize("axis", ["tensor", "expert"])
def test_the_record_says_that_dropout_is_drawn_by_each_of_the_ranks(axis):
    shared = Place(WHOLE, **{axis: Axis(axis, 0, 2)})
    assert shared.notes(paddle.nn.Dropout(0.1))["dropout"].startswith("each of the 2 ranks")
    assert shared.notes(paddle.nn.Dropout(0.0)) == {} == Place(WHOLE).notes(paddle.nn.Dropout(0.1))
