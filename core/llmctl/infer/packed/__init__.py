"""Packed models: the weights of any family in one order, ready for the engine's executors.

``pack`` makes a ``PackedModel`` of the tensors of a checkpoint, ``adapters`` packs LoRA adapters and prefixes, ``folder`` keeps
a packed model on disk, ``linear`` is the format of a packed weight. The order is q, k, v, with elements that RoPE rotates
together half the rotary dim apart; packing converts every layout to it, so executors know no family. Where weights come from
is the protocol ``pack.Weights``, of which rounding to nearest is one implementation. A folder is memory-mapped; opening it
checks its header against the header's hash, and small weight files against theirs.
"""
