"""The sum of cross entropies against logarithms in float64, and its gradient against softmax minus one-hot."""

import numpy as np
import paddle

from llmctl.nn.loss import token_loss


def test_loss_and_gradient_equal_their_formulas():
    logits = np.random.default_rng(0).standard_normal((6, 9)) * 10
    labels = np.array([0, 8, 3, 3, 1, 7])
    # Paddle's kernel clips the loss of a token at 64; these stay below.
    given = paddle.to_tensor(logits, stop_gradient=False)
    loss = token_loss(given, paddle.to_tensor(labels))
    loss.backward()
    shifted = logits - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    np.testing.assert_allclose(float(loss), -log_p[np.arange(6), labels].sum(), rtol=1e-12)
    np.testing.assert_allclose(given.grad.numpy(), np.exp(log_p) - np.eye(9)[labels], rtol=1e-9, atol=1e-12)
