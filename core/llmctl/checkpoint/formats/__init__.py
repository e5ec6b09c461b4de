"""Parsers of weight files: safetensors, torch .bin and .pth, paddle .pdparams; each describes its tensors as ``TensorInfo``.

Nothing of a file is executed: pickles are read by an interpreter that only builds plain values (``inert_pickle``).
"""
