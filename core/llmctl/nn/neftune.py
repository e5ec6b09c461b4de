"""NEFTune: noise on token embeddings in training (https://arxiv.org/abs/2310.05914)."""

from __future__ import annotations

import paddle


def add_noise(embedding: paddle.nn.Layer, alpha: float) -> None:
    """Adds noise to the layer's output in training from now on, uniform within alpha / sqrt(T * D).

    T is the length of the batch with padding, D the hidden size. The noise uses paddle's generator, which a run seeds before
    each step.

    Args:
        embedding: Token ids [B, T] to embeddings [B, T, D].
        alpha: The paper's alpha.
    """

    def noisy(layer: paddle.nn.Layer, _: object, vectors: paddle.Tensor) -> paddle.Tensor:
        if not layer.training:
            return vectors
        bound = alpha / (vectors.shape[-2] * vectors.shape[-1]) ** 0.5
        return vectors + paddle.uniform(vectors.shape, vectors.dtype, -bound, bound)

    embedding.register_forward_post_hook(noisy)
