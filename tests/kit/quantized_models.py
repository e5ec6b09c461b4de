"""Model folders quantized as other tools do, and the weights that their codes stand for, by independent statements in numpy."""

import json

import numpy as np

from llmctl import plugins
from llmctl.card.tiny import tiny_dims
from llmctl.checkpoint.formats.safetensors import PlannedTensor, write_file
from llmctl.infer.loader import Packing, packed_model
from llmctl.infer.model_source import open_model
from llmctl.infer.options import EngineOptions
from llmctl.infer.packed.linear import unpack

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def words(values, bits, axis):
    """Values as little-endian words along an axis, bit by bit."""
    moved = np.moveaxis(np.asarray(values, np.int64), axis, -1)
    bit = ((moved[..., None] >> np.arange(bits)) & 1).reshape(*moved.shape[:-1], -1, 32)
    packed = (bit.astype(np.uint64) << np.arange(32, dtype=np.uint64)).sum(-1).astype(np.uint32).view(np.int32)
    return np.ascontiguousarray(np.moveaxis(packed, -1, axis))


class Quantized:
    """Writes a model folder with random codes, and has the weights [in, out] that they stand for."""

    def __init__(self, folder, config, tensors_of):
        plugin = plugins.load("llama")
        dims = tiny_dims(plugin.card, {"kv_heads": 2, "hidden": 64, "heads": 4, "head_dim": 16, "ffn": 96, "vocab": 64})
        self.folder, self.weights, planned = folder, {}, {}
        self.rng = np.random.default_rng(5)
        folder.mkdir()
        content = {**plugin.card.config_from_dims(dims), "quantization_config": config}
        (folder / "config.json").write_text(json.dumps(content))
        for tensor in plugin.card.expand(dims):
            shape = tensor.shape[::-1] if tensor.transpose else tensor.shape
            found = {tensor.torch_name: self.rng.normal(size=shape).astype("f4")}
            if "proj" in tensor.torch_name:
                linear = tensor.torch_name.removesuffix(".weight")
                parts, self.weights[tensor.torch_name] = tensors_of(self.rng, *shape[::-1])
                found = {f"{linear}.{part}": values for part, values in parts.items()}
            for name, values in found.items():
                dtype, values = values if isinstance(values, tuple) else (str(values.dtype), values)
                planned[name] = PlannedTensor(values.shape, dtype, values.tofile)
        write_file(folder / "model.safetensors", planned)

    def model(self):
        source = open_model(self.folder, "auto", EngineOptions())
        return packed_model(source.folder, source.plugin, source.dims, Packing(), scheme=source.scheme)

    def check(self):
        """The packed model has exactly these weights; returns the kinds of its linears."""
        return check(self.model(), self.weights)


def check(model, weights):
    kinds = set()
    for index, layer in enumerate(model.layers):
        at = f"model.layers.{index}."
        for packed, names in (
            (layer.qkv, ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
            (layer.out, ["self_attn.o_proj"]),
            (layer.up[0], ["mlp.gate_proj", "mlp.up_proj"]),
            (layer.down[0], ["mlp.down_proj"]),
        ):
            expected = np.concatenate([weights[f"{at}{name}.weight"] for name in names], axis=1)
            np.testing.assert_array_equal(unpack(packed.weight), expected)
            kinds.add(packed.weight.kind)
    return kinds


def gptq(bits, group=32, v2=False, symmetric=False, order=None):
    def tensors(rng, inputs, outputs):
        groups = inputs // group
        codes = rng.integers(0, 2**bits, (inputs, outputs))
        # Zero 0 is ambiguous in v1.
        zeros = (
            np.full((groups, outputs), 2 ** (bits - 1)) if symmetric else rng.integers(1, 2**bits, (groups, outputs))
        )
        scales = rng.uniform(0.01, 0.1, (groups, outputs)).astype("f2")
        g_idx = np.arange(inputs) // group if order is None else order(rng, inputs) // group
        stored = zeros if v2 else zeros - 1
        parts = {"qweight": words(codes, bits, 0), "qzeros": words(stored, bits, 1), "scales": scales,
                 "g_idx": g_idx.astype("i4")}  # fmt: skip
        return parts, ((codes - zeros[g_idx]) * scales.astype("f4")[g_idx]).astype("f4")

    settings = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group,
        "sym": symmetric,
        "desc_act": order is not None,
    }
    return {**settings, "checkpoint_format": "gptq_v2" if v2 else "gptq"}, tensors


def awq(group=32):
    def pack(values):
        return words(values.reshape(len(values), -1, 8)[:, :, AWQ_ORDER].reshape(len(values), -1), 4, 1)

    def tensors(rng, inputs, outputs):
        groups = inputs // group
        codes, zeros = rng.integers(0, 16, (inputs, outputs)), rng.integers(0, 16, (groups, outputs))
        scales = rng.uniform(0.01, 0.1, (groups, outputs)).astype("f2")
        g = np.arange(inputs) // group
        weight = ((codes - zeros[g]) * scales.astype("f4")[g]).astype("f4")
        return {"qweight": pack(codes), "qzeros": pack(zeros), "scales": scales}, weight

    return {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "GEMM"}, tensors


def e4m3(byte):
    """A float of 8 bits, by its sign, exponent and mantissa."""
    exponent, mantissa = byte >> 3 & 15, byte & 7
    return (-1) ** (byte >> 7) * (2.0 ** (exponent - 7) * (1 + mantissa / 8) if exponent else 2.0**-6 * mantissa / 8)


E4M3 = np.array([e4m3(byte) for byte in range(256)])
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


def fp8(block, name="weight_scale_inv", powers=False, extra=None):
    """Floats of 8 bits; ``block``: outputs and inputs that share a scale, 0 = all; ``powers``: scales are powers of 2 in a byte."""

    def tensors(rng, inputs, outputs):
        codes = rng.integers(0, 127, (outputs, inputs)) + 128 * rng.integers(0, 2, (outputs, inputs))
        shape = tuple(-(-size // one) if one else 1 for size, one in zip((outputs, inputs), block, strict=True))
        scales = rng.uniform(1e-4, 1e-3, shape).astype("f4")
        stored = scales if block != (0, 0) else scales.reshape(())
        if powers:
            exponents = rng.integers(110, 120, shape).astype("u1")
            scales, stored = np.float32(2) ** (exponents.astype("f4") - 127), (powers, exponents)
        grid = scales[np.arange(outputs) // (block[0] or outputs)][:, np.arange(inputs) // (block[1] or inputs)]
        weight = E4M3[codes].astype("f4") * grid
        return {"weight": ("float8_e4m3fn", codes.astype("u1")), name: stored, **(extra or {})}, weight.T

    return tensors


def fp4(form):
    """Floats of 4 bits: ``mxfp4``, ``nvfp4`` of compressed-tensors, or ``modelopt``."""

    def tensors(rng, inputs, outputs):
        size = 32 if form == "mxfp4" else 16
        codes = rng.integers(0, 16, (outputs, inputs))
        packed = (codes[:, ::2] | codes[:, 1::2] << 4).astype("u1")
        shape = outputs, inputs // size
        if form == "mxfp4":
            exponents = rng.integers(115, 122, shape).astype("u1")
            scales = np.float32(2) ** (exponents.astype("f4") - 127)
            parts = {"weight_packed": packed, "weight_scale": exponents}
        else:
            bits = rng.integers(40, 120, shape).astype("u1")
            whole = np.float32(700.0) if form == "nvfp4" else np.float32(0.0013)
            scales = E4M3[bits].astype("f4")
            scales = scales / whole if form == "nvfp4" else scales * whole
            parts = {"weight_scale": ("float8_e4m3fn", bits)}
            if form == "nvfp4":
                parts |= {"weight_packed": packed, "weight_global_scale": np.array([whole])}
            else:
                parts |= {"weight": packed, "weight_scale_2": np.array(whole), "input_scale": np.array(1, "f4")}
        return parts, (E2M1[codes].astype("f4") * np.repeat(scales, size, axis=1)).T

    return tensors


def compressed(form, bits, group=32, zeros=None):
    """``zeros``: how zero points are stored, ``packed`` or ``int8``; None = symmetric."""

    def tensors(rng, inputs, outputs):
        half, groups = 2 ** (bits - 1), inputs // group if group else 1
        codes = rng.integers(-half + (bits == 8), half, (outputs, inputs))
        scales = rng.uniform(0.01, 0.1, (outputs, groups)).astype("f4")
        parts = {"weight_scale": scales}
        points = np.zeros((outputs, groups), int)
        if zeros:
            points = rng.integers(-half, half, (outputs, groups))
            parts["weight_zero_point"] = points.astype("i1") if zeros == "int8" else words(points + half, bits, 0)
        if form == "int-quantized":
            parts["weight"] = codes.astype("i1")
        else:
            parts["weight_packed"] = words(codes + half, bits, 1)
            parts["weight_shape"] = np.array([outputs, inputs], "i8")
        g = np.arange(inputs) // (group or inputs)
        return parts, ((codes - points[:, g]) * scales[:, g]).astype("f4").T

    weights = {"num_bits": bits, "type": "int", "symmetric": not zeros, "strategy": "group" if group else "channel"}
    weights |= {"group_size": group} if group else {}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": groups,
        "ignore": ["lm_head"],
    }, tensors
