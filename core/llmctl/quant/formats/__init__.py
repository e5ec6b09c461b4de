"""Quantized weights as other tools store them, read as integer codes: GPTQ, AWQ and compressed-tensors.

A format knows the tensors of one linear and nothing of files: ``config`` says which format a model has, and the other modules
unpack arrays. ``llmctl.checkpoint.quantized`` applies them to the tensors of a folder.
"""
