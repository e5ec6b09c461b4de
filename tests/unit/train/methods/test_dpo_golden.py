"""Losses, rewards and gradients of preference optimization are those that TRL's trainer recorded of the same batch."""

import json
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from llmctl.checkpoint.build import load_model
from llmctl.data.preference import rows as pair_rows
from llmctl.data.preference.encoding import Pair
from llmctl.train.methods.dpo_loss import LOSSES
from llmctl.train.methods.dpo_reference import ReferenceModel
from llmctl.train.methods.dpo_task import DpoTask

FOLDER = Path(__file__).resolve().parents[3] / "goldens" / "dpo"
CASE = json.loads((FOLDER / "case.json").read_text())


@pytest.fixture(scope="module")
def recorded():
    """The arrays, the pairs that TRL saw, the model and its reference."""
    with np.load(FOLDER / "golden.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    made = []
    for row, (ids, real, answer) in enumerate(
        zip(arrays["input_ids"], arrays["attention_mask"], arrays["completion_mask"], strict=True)
    ):
        made.append((ids[(real == 1) & (answer == 0)].tolist(), ids[answer == 1].tolist(), f"golden:{row}"))
    count = len(made) // 2
    pairs = []
    for (prompt, chosen, source), (again, rejected, _) in zip(made[:count], made[count:], strict=True):
        assert prompt == again
        pairs.append(Pair(prompt, chosen, rejected, source))
    model, reference = (load_model(folder, "llama")[0] for folder in (FOLDER, FOLDER / "reference"))
    return arrays, pairs, model, reference


def torch_name(name, gradient):
    """Name and layout of a gradient in torch."""
    linear = gradient.ndim == 2 and "embed" not in name
    return name.replace("llama.", "model."), gradient.T if linear else gradient


@pytest.mark.parametrize("how", ["none", "first-come"])
@pytest.mark.parametrize("loss", CASE["losses"])
def test_losses_and_gradients_are_those_of_trl(recorded, loss, how):
    arrays, pairs, model, reference = recorded
    expected, beta = CASE["losses"][loss], CASE["beta"]
    rows = pair_rows.rows_of(pairs, how, 40)
    task = DpoTask(rows, [], partial(pair_rows.collate, pad_id=0), partial(LOSSES[loss], beta=beta), beta, len(rows))
    task.reference = ReferenceModel(lambda: nullcontext(reference))
    batch = task.micro_batches(1)[0]
    found = task.loss(model, batch, task.hidden(model, batch))
    assert float(found.total) / found.items == pytest.approx(expected["loss"], rel=1e-4)
    assert {name: float(value) / found.items for name, value in found.sums.items()} == pytest.approx(
        expected["means"], rel=1e-4, abs=1e-4
    )
    model.clear_gradients()
    (found.total / found.items).backward()
    gradients = dict(torch_name(name, p.grad.numpy()) for name, p in model.named_parameters())
    assert gradients.keys() == expected["gradient_norms"].keys()
    for name, gradient in gradients.items():
        assert np.linalg.norm(gradient) == pytest.approx(expected["gradient_norms"][name], rel=1e-4), name
        if f"gradient/{name}" in arrays and loss == "sigmoid":
            np.testing.assert_allclose(gradient, arrays[f"gradient/{name}"], atol=1e-4, err_msg=name)
