"""Building blocks of decoder models: what the families' modeling files compose.

Importing this package imports nothing; each module imports paddle when it is imported, except ``frequencies``, which
configuration checks use, and ``blockwise``. How a family puts the blocks together, and its names in the state dict, is in its plugin.

Letters in tensor names, one per axis: B batch, T new positions, S past and new positions, D hidden, F ffn, N query
heads, K key-value heads, G query heads per key-value head, H head_dim, V vocabulary. ``x_BTD`` has three axes.
"""
