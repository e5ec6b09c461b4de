"""Training data: files, tokens and labels, batches; no model and no paddle.

``files`` finds and reads files of every kind, ``formats`` makes conversations of their lines, ``reading`` reads all of them and
``streaming`` one at a time. ``sft`` encodes prompts with answers, ``preference`` pairs for DPO, ``corpus`` has Megatron corpora for
pretraining; ``encoded`` encodes all examples, ``packing`` puts several into a row, ``mixing`` decides which rows an epoch has,
``doctor`` checks fine-tuning and preference data. ``files``, ``formats``, ``reading`` and the ``examples`` of ``sft`` and
``preference`` need no numpy, so files are checked before anything heavy is imported. Batches are made in
``llmctl.train.methods``, attention masks in ``llmctl.nn.mask``.
"""
