"""DPO: what every family must satisfy; ``FamilyConformance`` inherits it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest

from llmctl import plugins
from llmctl.card.dims import Dims
from llmctl.card.family import Family
from llmctl.testing.evidence import EXACT, KEY_BIAS, proves
from llmctl.testing.tiny import random_model

ANSWERS = ((7, 4), (3, 6), (5, 5))
"""Tokens of the chosen and of the rejected answer of each pair."""


class PreferenceConformance:
    """Tests that use the fixtures of ``FamilyConformance``."""

    def input_ids(self, dims: Dims, rows: int, length: int) -> Any:
        """As in ``FamilyConformance``."""
        raise NotImplementedError

    def pairs(self, dims: Dims) -> list[Any]:
        """Pairs whose prompts begin with the special tokens of the family's rows."""
        from llmctl.data.preference.encoding import Pair

        ids = self.input_ids(dims, 2 * len(ANSWERS), 16).tolist()
        return [
            Pair(ids[2 * i][: 6 + i], ids[2 * i][-chosen:], ids[2 * i + 1][-rejected:], f"pairs:{i}")
            for i, (chosen, rejected) in enumerate(ANSWERS)
        ]

    @proves("dpo")
    @pytest.mark.parametrize("how", ["none", "first-come"])
    def test_pairs_in_rows_equal_each_answer_alone(self, plugin: plugins.Plugin, dims: Dims, how: str) -> None:
        from llmctl.data.preference import rows as pair_rows
        from llmctl.train.methods.dpo_task import answer_log_probs

        model, pairs = random_model(plugin, dims), self.pairs(dims)
        rows = pair_rows.rows_of(pairs, how, 96, dims.get("window"))
        arrays = pair_rows.collate(rows, 0, multiple=8)
        weight_A = np.linspace(-1.0, 1.5, 2 * len(pairs))
        values, gradients = _weighted(model, answer_log_probs(model, arrays), weight_A)
        expected, expected_gradients = np.zeros(len(weight_A)), dict[str, Any]()
        for answer, weight in enumerate(weight_A):
            pair = pairs[int(arrays["pair"][answer // 2])]
            alone = _log_prob_alone(model, pair.prompt, (pair.rejected if answer % 2 else pair.chosen))
            value, parts = _weighted(model, alone, np.array([weight]))
            expected[answer] = value[0]
            for name, part in parts.items():
                expected_gradients[name] = expected_gradients.get(name, 0.0) + part
        np.testing.assert_allclose(values, expected, rtol=EXACT)
        assert gradients.keys() == expected_gradients.keys()
        for name, gradient in gradients.items():
            np.testing.assert_allclose(gradient, expected_gradients[name], atol=10 * EXACT, err_msg=name)

    @proves("dpo")
    def test_a_step_moves_every_tensor_and_prefers_the_chosen_answers(
        self, plugin: plugins.Plugin, card: Family, dims: Dims
    ) -> None:
        import paddle

        model = random_model(plugin, dims)
        task = _task(self.pairs(dims), dims)
        arrays = task.micro_batches(1)[0].arrays
        from llmctl.train.methods.dpo_task import answer_log_probs

        with paddle.no_grad():
            before_A = answer_log_probs(model, arrays)
        task.reference = _Given(before_A)
        state = {name: value.numpy().copy() for name, value in model.state_dict().items()}
        found = []
        for _ in range(2):
            batch = task.micro_batches(1)[0]
            loss = task.loss(model, batch, task.hidden(model, batch))
            found.append((float(loss.total) / loss.items, float(loss.sums["rewards/margins"])))
            loss.total.backward()
            with paddle.no_grad():
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        parameter.set_value(parameter - 1e-3 * parameter.grad)
            model.clear_gradients()
        assert found[0] == (pytest.approx(np.log(2)), pytest.approx(0.0, abs=EXACT))
        assert found[1][0] < found[0][0] and found[1][1] > 0
        now = model.state_dict()
        moving = [tensor.name for tensor in card.expand(dims) if tensor.slot != KEY_BIAS]
        assert not [name for name in moving if np.array_equal(now[name].numpy(), state[name])]

    @proves("dpo")
    def test_dropout_is_off_wherever_it_stands(self, plugin: plugins.Plugin, card: Family, dims: Dims) -> None:
        import paddle

        from llmctl.nn.dropout import disable_dropout
        from llmctl.train.methods.dpo_task import answer_log_probs

        model = random_model(plugin, dims)
        arrays = _task(self.pairs(dims), dims).micro_batches(1)[0].arrays
        model.train()

        def draws() -> list[Any]:
            found = []
            for seed in (1, 2):
                paddle.seed(seed)
                with paddle.no_grad():
                    found.append(answer_log_probs(model, arrays).numpy())
            return found

        one, other = draws()
        rates = [dims.get(setting.name) for setting in card.settings if setting.name.endswith("dropout")]
        assert np.array_equal(one, other) != any(rates)
        disable_dropout(model)
        one, other = draws()
        assert np.array_equal(one, other)


def _task(pairs: list[Any], dims: Dims) -> Any:
    """A task with all pairs in one step."""
    from llmctl.data.preference import rows as pair_rows
    from llmctl.train.methods.dpo_loss import sigmoid
    from llmctl.train.methods.dpo_task import DpoTask

    rows = pair_rows.rows_of(pairs, window=dims.get("window"))
    return DpoTask(rows, [], partial(pair_rows.collate, pad_id=0), partial(sigmoid, beta=0.1), 0.1, len(rows))


def _log_prob_alone(model: Any, prompt: list[int], answer: list[int]) -> Any:
    """Log-probability of an answer [1] from the logits of a plain row."""
    import paddle

    logits_TV = model(paddle.to_tensor([prompt + answer]))[0]
    log_prob_TV = paddle.nn.functional.log_softmax(logits_TV[len(prompt) - 1 : -1], axis=-1)
    return paddle.take_along_axis(log_prob_TV, paddle.to_tensor(answer).reshape([-1, 1]), axis=1).sum().reshape([1])


def _weighted(model: Any, values_A: Any, weight_A: Any) -> tuple[Any, Mapping[str, Any]]:
    """Values, and the gradient of every parameter of their weighted sum."""
    import paddle

    model.clear_gradients()
    (values_A * paddle.to_tensor(weight_A)).sum().backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    return values_A.numpy(), {name: grad.numpy() for name, grad in grads.items() if grad is not None}


class _Given:
    """A reference with these log-probabilities."""

    states = 0

    def __init__(self, log_prob_A: Any) -> None:
        self._log_prob_A = log_prob_A

    def hidden(self, arrays: Any, training: bool) -> tuple[()]:
        return ()

    def log_probs(self, arrays: Any, training: bool, hidden: Any) -> Any:
        return self._log_prob_A
