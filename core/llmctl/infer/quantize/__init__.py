"""Quantization of a model for the fused engine, block by block, for every family at once.

``calibration`` makes windows of tokens, ``block`` computes one layer of a decoder in numpy, ``streams`` carries the activations
of the float and of the quantized model from layer to layer, ``folds`` rewrites a layer so that scales and offsets of its inputs
become part of it, ``scales`` searches them, ``quantizer`` puts the methods of ``llmctl.quant.methods`` to work, ``quality``
compares both models, ``journal`` keeps what is done, ``job`` is what the command runs. Nothing here imports paddle.
"""
