"""Training data: files, tokens and labels, batches; no model and no paddle.

``sft`` reads and encodes prompts with answers, ``preference`` pairs for DPO, ``corpus`` Megatron corpora for pretraining;
``packing`` puts several documents into a row, ``doctor`` checks fine-tuning data. ``sft.examples`` and
``preference.examples`` need no numpy either, so files are checked before anything heavy is imported. The order of batches
is decided in ``llmctl.train.methods``, attention masks are built in ``llmctl.nn.mask``.
"""
