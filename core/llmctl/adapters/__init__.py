"""Low-rank adapters and prefixes beside a model: which layers they change, how they lie on disk, how they are merged.

``targets`` names the layers, ``adapter`` is an adapter in memory, ``folder`` reads and writes one in the format of the
``peft`` library (``peft_format``) or of PaddleNLP (``nlp_format``), ``base`` tells whether a model is the one that an
adapter was trained on, ``attach`` puts an adapter on a model, ``merge`` writes a model folder without adapters. The layer
itself is ``nn.lora``; only ``attach`` imports paddle.

``prefix`` is a prefix, trained virtual tokens, in memory; ``prefix_format`` and ``nlp_prefix`` are its formats, and all the
rest is shared. Its layer is ``nn.prefix``.
"""
