"""A model over the codes of GPTQ, AWQ and compressed-tensors: it computes and trains as the floats that its codes stand for."""

import numpy as np
import paddle
import pytest
from kit.quantized_models import Quantized, awq, compressed, gptq

from llmctl.adapters.attach import add_lora
from llmctl.card.sharding import Parallel
from llmctl.checkpoint.build import check_model
from llmctl.checkpoint.coded import coded_linears, codes_of, part_of
from llmctl.checkpoint.partial import Cut
from llmctl.nn.linear import Linear
from llmctl.quant.formats.codes import Codes
from llmctl.quant.linear import QuantizedLinear, weight_bytes
from llmctl.quant.packed import pack, unpack

FORMS = {
    "gptq-2": gptq(2, v2=True),
    "gptq-4": gptq(4, symmetric=True),
    "gptq-act-order": gptq(4, order=lambda rng, inputs: rng.permutation(inputs)),
    "gptq-8": gptq(8),
    "awq": awq(),
    "int4": compressed("pack-quantized", 4, 32, "packed"),
    "int8": compressed("int-quantized", 8, 0),
}


def linears_of(checked):
    return coded_linears(checked.weights.tensors, checked.mappings, checked.plugin.card, checked.dims)


@pytest.mark.parametrize("name", FORMS)
def test_loss_and_gradients_of_adapters_are_those_of_the_floats_that_the_codes_stand_for(tmp_path, name):
    made = Quantized(tmp_path / "m", *FORMS[name])
    checked = check_model(made.folder)
    names = {tensor.torch_name: tensor.name for tensor in checked.plugin.card.expand(checked.dims)}
    models = [checked.layer("float64", codes=codes) for codes in (True, False)]
    state = models[1].state_dict()
    for torch_name, weight in made.weights.items():
        state[names[torch_name]].set_value(weight.astype("f8"))
    paths = [names[torch_name].removesuffix(".weight") for torch_name in made.weights]
    ids, found = paddle.to_tensor(np.arange(20).reshape(2, 10) % 60), []
    for model in models:
        rng = np.random.default_rng(0)
        layers = add_lora(model, paths, 2, 0.5)
        for layer in layers.values():
            layer.set_weights(*(rng.normal(0, 0.1, part.shape) for part in (layer.lora_A, layer.lora_B)))
        loss = paddle.nn.functional.cross_entropy(model(ids)[:, :-1], ids[:, 1:])
        loss.backward()
        found.append((float(loss), [p.grad.numpy() for layer in layers.values() for p in (layer.lora_A, layer.lora_B)]))
        assert {n.rpartition(".")[2] for n, p in model.named_parameters() if p.grad is not None} == {"lora_A", "lora_B"}
    assert all(isinstance(dict(models[0].named_sublayers())[f"{path}.base"], QuantizedLinear) for path in paths)
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "bits"), [("gptq-4", 4.5), ("awq", 5.0), ("int8", 8.25)])
def test_codes_take_their_bits_and_those_of_scales_and_zero_points(tmp_path, name, bits):
    checked = check_model(Quantized(tmp_path / "m", *FORMS[name]).folder)
    both = [weight_bytes(checked.layer(codes=codes)) for codes in (True, False)]
    sizes = [tensor.size for tensor in checked.plugin.card.expand(checked.dims) if tensor.name in linears_of(checked)]
    assert both[1] - both[0] == pytest.approx(sum(sizes) * (32 - bits) / 8, rel=0.01)


@pytest.mark.parametrize("name", ["gptq-act-order", "awq", "int8"])
def test_parts_of_ranks_are_those_of_the_weight_even_inside_of_groups(tmp_path, name):
    """Two ranks have 48 of 96 inputs each, in groups of 32."""
    checked = check_model(Quantized(tmp_path / "m", *FORMS[name]).folder)
    state = checked.layer(codes=False).state_dict()
    for rank in range(2):
        cut = Cut.of(checked.plugin, checked.dims, Parallel(2, rank))
        model = checked.layer(cut=cut)
        for target, sources in linears_of(checked).items():
            part = cut.part(target, state[target].numpy())
            layer = dict(model.named_sublayers())[target.removesuffix(".weight")]
            np.testing.assert_array_equal(layer.weight.numpy(), part)
            codes = part_of(codes_of(tuple(state[target].shape), sources), target, cut)
            np.testing.assert_array_equal(codes.values().T, part)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    "group_I", [np.arange(96) // 32, np.arange(33) * 0, np.arange(90) // 7, np.random.default_rng(1).integers(0, 5, 50)]
)
def test_any_groups_of_inputs_keep_their_values(bits, group_I):
    rng, half = np.random.default_rng(0), 2 ** (bits - 1)
    inputs, groups = len(group_I), int(group_I.max()) + 1
    codes = Codes(
        bits,
        rng.integers(-half, half, (5, inputs)).astype(np.int16),
        rng.random((5, groups)).astype(np.float32),
        rng.integers(-half, half, (5, groups)).astype(np.float32),
        group_I,
    )
    packed = pack(codes)
    np.testing.assert_array_equal(unpack(packed), codes.values().T)
    np.testing.assert_array_equal(QuantizedLinear(Linear(inputs, 5), packed).weight.numpy(), codes.values().T)
