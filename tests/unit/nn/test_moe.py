"""Mixtures of experts: the sum of the chosen experts, a cost that follows the tokens, a loss that balances them."""

import numpy as np
import paddle

from llmctl.card.family import Moe
from llmctl.nn.mlp import GatedMLP
from llmctl.nn.moe import SoftmaxTopK, SparseMLP, balancing_loss, router_sums


def layer(experts=5, top_k=2, hidden=6):
    paddle.seed(0)
    gate = SoftmaxTopK(hidden, experts, Moe("softmax-topk", top_k), std=1.0)
    return SparseMLP(gate, [GatedMLP(hidden, 8, std=0.5) for _ in range(experts)]).to(dtype="float64")


def inputs(*shape):
    return paddle.to_tensor(np.random.default_rng(1).normal(size=shape))


def test_output_and_gradients_equal_every_expert_on_every_token():
    sparse, x = layer(), inputs(2, 7, 6)
    probability = paddle.nn.functional.softmax(paddle.matmul(x, sparse.gate.weight), axis=-1)
    best = np.sort(probability.numpy(), axis=-1)[..., -2:-1]
    weight = paddle.where(probability >= paddle.to_tensor(best), probability, paddle.zeros_like(probability))
    weight = weight / weight.sum(-1, keepdim=True)
    dense = sum(weight[..., e : e + 1] * expert(x) for e, expert in enumerate(sparse.experts))
    np.testing.assert_allclose(sparse(x).numpy(), dense.numpy(), atol=1e-12)
    probe = inputs(2, 7, 6)
    parameters = sparse.parameters()
    ours = paddle.grad((sparse(x) * probe).sum(), parameters, allow_unused=True)
    theirs = paddle.grad((dense * probe).sum(), parameters, allow_unused=True)
    for mine, other in zip(ours, theirs, strict=True):
        expected = np.zeros(1) if other is None else other.numpy()
        np.testing.assert_allclose(np.zeros(1) if mine is None else mine.numpy(), expected, atol=1e-10)


def test_each_expert_sees_only_the_tokens_that_chose_it():
    sparse, x = layer(), inputs(1, 9, 6)
    seen = []
    for expert in sparse.experts:
        expert.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[0]))
    sparse(x)
    assert sum(seen) == 9 * 2


def test_padding_does_not_count_in_the_balancing_loss():
    scores = np.random.default_rng(2).normal(size=(2, 6, 4))
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    real = [paddle.to_tensor(layer_scores[mask.reshape(-1) == 1]) for layer_scores in scores]
    alone = balancing_loss(*router_sums(real, 2))
    padded = balancing_loss(*router_sums([paddle.to_tensor(s) for s in scores], 2, paddle.to_tensor(mask)))
    np.testing.assert_allclose(float(padded), float(alone), rtol=1e-12)
    probability = np.exp(np.concatenate([s.numpy() for s in real]))
    probability /= probability.sum(-1, keepdims=True)
    chosen = np.argsort(-probability, -1)[:, :2]
    share = [(chosen == e).any(-1).mean() for e in range(4)]
    np.testing.assert_allclose(float(alone), 4 * (np.array(share) * probability.mean(0)).sum(), rtol=1e-12)
