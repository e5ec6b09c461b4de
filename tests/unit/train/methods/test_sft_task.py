"""Order, division and loss of supervised fine-tuning, and its metrics against numpy."""

from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from kit.train_toys import ToyModel, collate, toy_rows

from llmctl import plugins
from llmctl.card.tiny import tiny_dims
from llmctl.testing.tiny import random_model
from llmctl.train.methods.eval_generate import EvalGenerator
from llmctl.train.methods.evaluate import exact_match, label_states, token_metrics
from llmctl.train.methods.sft import SftTask

ROWS = toy_rows(11)


def sources(batches):
    return [source for batch in batches for source in batch.sources]


def make(**options):
    return SftTask(ROWS, [], collate, 2, grad_accumulation=2, seed=3, **options)


def test_an_epoch_holds_every_row_once():
    task = make()
    assert task.steps_per_epoch == 3
    for epoch in range(2):
        seen = [s for step in range(1, 4) for s in sources(task.micro_batches(epoch * 3 + step))]
        assert sorted(seen) == sorted(row.source for row in ROWS)


def test_batches_depend_on_the_step_alone():
    task = make()
    forward = [sources(task.micro_batches(step)) for step in range(1, 10)]
    backward = [sources(make().micro_batches(step)) for step in range(9, 0, -1)]
    assert forward == backward[::-1]


def test_each_epoch_has_an_order_of_its_own_unless_not_shuffled():
    task, plain = make(), make(shuffle=False)
    orders = [[s for step in range(1, 4) for s in sources(task.micro_batches(e * 3 + step))] for e in range(3)]
    assert len({tuple(order) for order in orders}) == 3
    for step in (1, 4):
        assert sorted(sources(plain.micro_batches(step))) == sorted(row.source for row in ROWS[:4])


def test_the_fingerprint_changes_with_data_and_division():
    prints = {
        make().fingerprint,
        make(shuffle=False).fingerprint,
        SftTask(ROWS, [], collate, 4, seed=3).fingerprint,
        SftTask(ROWS[::-1], [], collate, 2, 2, seed=3).fingerprint,
        SftTask(toy_rows(11, seed=1), [], collate, 2, 2, seed=3).fingerprint,
    }
    assert len(prints) == 5
    assert make().fingerprint == make().fingerprint


def test_states_are_those_of_labelled_positions_and_padding_changes_nothing():
    model = ToyModel()
    hidden, labels = label_states(model, collate(ROWS))
    logits = model.vocabulary.logits(hidden)
    expected, wanted = [], []
    for row in ROWS:
        full = model.logits(model.hidden_states(paddle.to_tensor([row.input_ids]))).numpy()[0]
        asked = [t for t, label in enumerate(row.labels) if label != -100]
        expected.append(full[asked])
        wanted += [row.labels[t] for t in asked]
    np.testing.assert_allclose(logits.numpy(), np.concatenate(expected), rtol=1e-12, atol=1e-14)
    assert labels.tolist() == wanted


def numpy_metrics(model):
    losses, right = [], []
    for row in ROWS:
        logits = model.logits(model.hidden_states(paddle.to_tensor([row.input_ids]))).numpy()[0]
        for t, label in enumerate(row.labels):
            if label != -100:
                losses.append(np.log(np.exp(logits[t]).sum()) - logits[t][label])
                right.append(logits[t].argmax() == label)
    return np.sum(losses), len(losses), np.mean(right)


def test_the_loss_is_the_sum_of_cross_entropies():
    model = ToyModel()
    task = SftTask(ROWS, [], collate, len(ROWS))
    batch = task.micro_batches(1)[0]
    loss, count, _ = task.loss(model, batch, task.hidden(model, batch))
    total, number, _ = numpy_metrics(model)
    assert (float(loss), count) == (pytest.approx(total, rel=1e-12), number)


@pytest.mark.parametrize("size", [1, 4, 50])
def test_metrics_equal_numpy_whatever_the_batch_size(size):
    model = ToyModel()
    total, number, accuracy = numpy_metrics(model)
    metrics = SftTask(ROWS, ROWS, collate, 2, eval_batch_size=size).evaluate(model)
    assert metrics["eval_loss"] == pytest.approx(total / number, rel=1e-12)
    assert metrics["perplexity"] == pytest.approx(np.exp(total / number), rel=1e-12)
    assert metrics["accuracy"] == pytest.approx(accuracy)


def test_an_enormous_loss_has_a_finite_perplexity():
    model = ToyModel()
    model.head.set_value(model.head * 1e6)
    assert np.isfinite(token_metrics(model, [collate(ROWS)])["perplexity"])


def test_without_held_out_rows_nothing_is_evaluated():
    assert make(extra_metrics=lambda model: {"exact_match": 1.0}).evaluate(ToyModel()) == {}


def test_exact_match_ignores_white_space_around_answers_only():
    answers = lambda model, examples: [" yes", "no", "y es"]  # noqa: E731
    assert exact_match(answers, None, [1, 2, 3], ["yes", "no\n", "yes"]) == pytest.approx(2 / 3)


def test_a_prompt_without_room_for_an_answer_gets_none_and_takes_none_from_others():
    plugin = plugins.load("gpt3")
    model = random_model(plugin, tiny_dims(plugin.card, {"max_positions": 16}))
    prompts = [[5, 6, 7], [], [*range(1, 17)], [*range(1, 14)], [*range(1, 40)], [9]]
    words = SimpleNamespace(eos_ids=(), pad_id=0, decode=lambda ids: " ".join(map(str, ids)))
    encoder = SimpleNamespace(tokenizer=words, prompt=lambda prompt: prompt)
    found = EvalGenerator(encoder, 1, 6, 16)(model, prompts)
    assert [len(answer.split()) for answer in found] == [6, 0, 0, 3, 0, 6]
    assert EvalGenerator(encoder, 8, 6, 16)(model, [prompts[0], [], prompts[5]]) == [found[0], "", found[5]]
