"""Quantized weights as other tools store them, as integer codes: GPTQ, AWQ, compressed-tensors, bitsandbytes, GGUF.

A format knows the tensors of one linear and nothing of files: ``config`` says which format a model has, and the other modules
unpack and pack arrays. ``llmctl.checkpoint.quantized`` applies them to the tensors of a folder.
"""
