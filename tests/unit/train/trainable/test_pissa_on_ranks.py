"""PiSSA's beginning on several ranks: each decomposes some of the layers, and all have what one process has."""

import numpy as np
import pytest
from kit.readme import STARTER

from llmctl.config import finetune as config
from llmctl.config import schema
from llmctl.jobs import finetune
from llmctl.nn.arrays import to_numpy
from llmctl.parallel.ranks import ALONE
from llmctl.parallel.topology import Topology
from llmctl.testing.ranks import run_ranks
from llmctl.train.place import Place
from llmctl.train.trainable import base, lora

pytestmark = pytest.mark.parallel


def begun(ranks, output, parallel):
    """Number of decompositions of this rank, and its parts of A0, B0 and of the bases, by layer."""
    settings = {
        "model": {"path": str(STARTER / "model")},
        "method": {"name": "lora", "pissa": True, "rank": 4, "targets": ["q_proj", "down_proj"]},
        "data": {"train": str(STARTER / "data" / "dev.jsonl")},
        "output": {"dir": str(output)},
        "parallel": parallel,
    }
    job = finetune.check(schema.build(config.FinetuneConfig, settings))
    decomposed, pissa_init = [], lora.pissa_init
    lora.pissa_init = lambda *args: decomposed.append(1) or pissa_init(*args)
    try:
        model = base.load(job, None, Place.of(job, ranks)).model
    finally:
        lora.pissa_init = pissa_init
    layers = {path: layer for path, layer in model.named_sublayers() if hasattr(layer, "initial_A")}
    return len(decomposed), {
        path: [to_numpy(tensor) for tensor in (layer.initial_A, layer.initial_B, layer.base.weight)]
        for path, layer in layers.items()
    }


@pytest.mark.parametrize(
    ("topology", "parallel"),
    [
        (Topology(tensor=2, sharding=2), {"tensor": 2, "sharding": 2}),
        (Topology(pipeline=2, data=2), {"pipeline": 2}),
    ],
)
def test_each_layer_is_decomposed_once(topology, parallel, tmp_path):
    _, expected = begun(ALONE, tmp_path / "alone", {})
    found = run_ranks(topology.size, begun, tmp_path / "ranks", parallel, topology=topology)
    assert sum(count for count, _ in found) == len(expected) > topology.size
    assert max(count for count, _ in found) - min(count for count, _ in found) <= 1
    for rank, (_, layers) in enumerate(found):
        for path, arrays in layers.items():
            for whole, part in zip(expected[path], arrays, strict=True):
                for axis in (axis for axis in range(2) if part.shape[axis] != whole.shape[axis]):
                    whole = np.split(whole, topology.tensor, axis)[topology.coordinates(rank).tensor]
                np.testing.assert_array_equal(part, whole)
