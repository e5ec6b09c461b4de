"""A vocabulary divided among ranks against numpy: losses, log-probabilities, logits, grades, embeddings, and gradients."""

import numpy as np
import paddle
import pytest

from llmctl.parallel.topology import Topology
from llmctl.parallel.vocabulary import SplitVocabulary, divide_embedding
from llmctl.testing.ranks import run_ranks

HIDDEN, TOKENS = 4, 7


def weights(vocab):
    rng = np.random.default_rng(vocab)
    head = rng.normal(size=(HIDDEN, vocab)) * 5
    # Two tokens with equal logits, of different ranks: the first one is the most probable.
    head[:, vocab - 1] = head[:, 0]
    hidden = rng.normal(size=(TOKENS, HIDDEN))
    hidden[0] = 10 * head[:, 0]
    labels = rng.integers(0, vocab, TOKENS)
    labels[:2] = 0, vocab - 1
    return head, hidden, labels


def shares(vocab, ranks):
    sizes = [vocab // ranks + (rank < vocab % ranks) for rank in range(ranks)]
    return [range(sum(sizes[:rank]), sum(sizes[: rank + 1])) for rank in range(ranks)]


def ask(mesh, vocab):
    axis = mesh.tensor
    head, hidden, labels = weights(vocab)
    divided = shares(vocab, axis.size)
    own = divided[axis.rank]
    weight = paddle.to_tensor(head[:, own.start : own.stop])
    split = SplitVocabulary(lambda x: paddle.matmul(x, weight), divided, axis)
    labels = paddle.to_tensor(labels)
    found = {"graded": split.graded(paddle.to_tensor(hidden), labels)}
    for name, ask in {
        "loss": lambda x: split.loss(x, labels),
        "log_probs": lambda x: (split.log_probs(x, labels) * paddle.arange(TOKENS, dtype="float64")).sum(),
        "logits": lambda x: (split.logits(x).square() * 1e-3).sum(),
    }.items():
        x = paddle.to_tensor(hidden, stop_gradient=False)
        weight.stop_gradient = False
        weight.clear_gradient(False)
        value = ask(x)
        value.backward()
        found[name] = float(value), x.grad.numpy(), weight.grad.numpy()
    x = paddle.to_tensor(hidden[:0], stop_gradient=False)
    nothing = split.loss(x, labels[:0])
    nothing.backward()
    assert float(nothing) == 0 and split.graded(x.detach(), labels[:0]) == (0.0, 0)
    table = paddle.nn.Embedding(len(own), HIDDEN)
    table.weight = table.create_parameter([len(own), HIDDEN], dtype="float64")
    table.weight.set_value(head.T[own.start : own.stop].copy())
    divide_embedding(table, own, axis)
    rows = table(labels)
    rows.square().sum().backward()
    return found, rows.numpy(), table.weight.grad.numpy()


@pytest.mark.parametrize(("vocab", "ranks"), [(97, 3), (50257, 2)])
def test_every_answer_and_gradient_is_that_of_numpy(vocab, ranks):
    head, hidden, labels = weights(vocab)
    logits = hidden @ head
    log_p = logits - logits.max(-1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(-1, keepdims=True))
    chosen, slope = log_p[np.arange(TOKENS), labels], np.exp(log_p)
    slope[np.arange(TOKENS), labels] -= 1
    expected = {
        "loss": (-chosen.sum(), slope),
        "log_probs": ((chosen * np.arange(TOKENS)).sum(), -slope * np.arange(TOKENS)[:, None]),
        "logits": ((logits**2).sum() * 1e-3, 2e-3 * logits),
    }
    looked_up = np.zeros_like(head.T)
    np.add.at(looked_up, labels, 2 * head.T[labels])
    results = run_ranks(ranks, ask, vocab, topology=Topology(tensor=ranks))
    for (found, rows, table), own in zip(results, shares(vocab, ranks), strict=True):
        loss, right = found.pop("graded")
        assert loss == pytest.approx(-chosen.sum(), rel=1e-12) and right == (logits.argmax(-1) == labels).sum()
        for name, (value, grad) in expected.items():
            assert found[name][0] == pytest.approx(value, rel=1e-12), name
            np.testing.assert_allclose(found[name][1], grad @ head.T, rtol=1e-9, atol=1e-9, err_msg=name)
            np.testing.assert_allclose(
                found[name][2], (hidden.T @ grad)[:, own.start : own.stop], rtol=1e-9, atol=1e-9, err_msg=name
            )
        np.testing.assert_array_equal(rows, head.T[labels])
        np.testing.assert_allclose(table, looked_up[own.start : own.stop], rtol=1e-12)
