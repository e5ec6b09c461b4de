"""Training methods: supervised fine-tuning (``sft``), preference optimization (``dpo``), pretraining (``pretrain``).

A method makes a task: batches, a loss, an evaluation. ``batch_sampler`` orders batches, ``loss`` is the next-token loss,
``evaluate`` and ``eval_generate`` measure. ``dpo_task`` is separate from ``dpo`` because ``dpo_reference`` uses it too. Encoding
and packing of examples are in ``llmctl.data``; what is trained is in ``train.trainable``.
"""
