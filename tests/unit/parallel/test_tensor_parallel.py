"""Ranks that share every layer compute what one process does: loss and all gradients of every family, packed rows."""

import pytest
from kit.families import CASES

from llmctl.parallel.topology import Topology
from llmctl.testing.ranks import run_ranks
from llmctl.testing.tensor_ranks import alone, assert_same, shared


def compare(mesh, sequence):
    """What the ranks compute together and, a case each, what one process does."""
    mine = {number: alone(CASES[number]) for number in range(mesh.tensor.rank, len(CASES), mesh.tensor.size)}
    return mine, [shared(mesh, case, sequence) for case in CASES]


@pytest.mark.parametrize(("degree", "sequence"), [(2, True), (4, False)])
def test_every_family_computes_what_one_process_does(degree, sequence):
    found = run_ranks(degree, compare, sequence, topology=Topology(tensor=degree))
    for number, case in enumerate(CASES):
        expected = found[number % degree][0][number]
        assert_same(case, [results[number] for _, results in found], expected, 1e-9)
