"""Weights [in, out] of quantized files, read bit by bit as AutoGPTQ, AutoAWQ and compressed-tensors define them."""

import re

import numpy as np

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def fields(words, bits, axis):
    """Unsigned values of little-endian words along an axis."""
    moved = np.moveaxis(np.ascontiguousarray(words).view(np.uint32), axis, -1)
    bit = ((moved[..., None] >> np.arange(32, dtype=np.uint32)) & 1).reshape(*moved.shape[:-1], -1, bits)
    return np.moveaxis((bit * (1 << np.arange(bits))).sum(-1), -1, axis)


def gptq(parts, config, module):
    """AutoGPTQ's linear: v1 adds 1 to the zero points that it reads."""
    codes, zeros = fields(parts["qweight"], config["bits"], 0), fields(parts["qzeros"], config["bits"], 1)
    if config["checkpoint_format"] == "gptq":
        zeros = zeros + 1
    group = parts["g_idx"]
    return (codes - zeros[group]) * parts["scales"].astype(np.float32)[group]


def awq(parts, config, module):
    """AutoAWQ's GEMM linear."""

    def ordered(words):
        values = fields(words, 4, 1).reshape(len(words), -1, 8)
        out = np.empty_like(values)
        out[:, :, AWQ_ORDER] = values
        return out.reshape(len(words), -1)

    codes, zeros = ordered(parts["qweight"]), ordered(parts["qzeros"])
    group = np.arange(len(codes)) // (config["group_size"] if config["group_size"] > 0 else len(codes))
    return (codes - zeros[group]) * parts["scales"].astype(np.float32)[group]


def compressed(parts, config, module):
    """compressed-tensors, ``pack-quantized`` and ``int-quantized``; a target of a module's name goes before its class."""
    targets = [(target, group["weights"]) for group in config["config_groups"].values() for target in group["targets"]]
    named = [weights for target, weights in targets if target[:3] == "re:" and re.match(target[3:], module)]
    weights = (named or [weights for target, weights in targets if target == "Linear"])[0]
    bits = weights["num_bits"]
    half = 2 ** (bits - 1)
    if config["format"] == "int-quantized":
        codes = parts["weight"].astype(int)
    else:
        outputs, inputs = parts["weight_shape"]
        codes = fields(parts["weight_packed"], bits, 1)[:, :inputs] - half
    scales = parts["weight_scale"].astype(np.float32)
    size = weights.get("group_size", codes.shape[1])
    group = np.arange(codes.shape[1]) // size
    zeros = np.zeros(scales.shape, int)
    assert ("weight_zero_point" in parts) is not weights["symmetric"]
    if config["format"] == "int-quantized":
        zeros = parts.get("weight_zero_point", zeros).astype(int)
    elif "weight_zero_point" in parts:
        zeros = fields(parts["weight_zero_point"], bits, 0)[: len(codes)] - half
    return ((codes - zeros[:, group]) * scales[:, group]).T


READERS = {"gptq": gptq, "awq": awq, "compressed-tensors": compressed}
