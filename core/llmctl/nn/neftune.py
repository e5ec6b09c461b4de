"""NEFTune: noise on token vectors while training (https://arxiv.org/abs/2310.05914)."""

from __future__ import annotations

import paddle


def add_noise(embedding: paddle.nn.Layer, alpha: float) -> None:
    """From now on the layer adds noise to its output in training, uniform within alpha / sqrt(T * D).

    T and D are the columns of the batch, padding included, and the width. The generator is paddle's, which a run seeds
    before each update.

    Args:
        embedding: Token ids [B, T] to vectors [B, T, D].
        alpha: The paper's alpha.
    """

    def noisy(layer: paddle.nn.Layer, _: object, vectors: paddle.Tensor) -> paddle.Tensor:
        if not layer.training:
            return vectors
        bound = alpha / (vectors.shape[-2] * vectors.shape[-1]) ** 0.5
        return vectors + paddle.uniform(vectors.shape, vectors.dtype, -bound, bound)

    embedding.register_forward_post_hook(noisy)
