"""The model against outputs that transformers recorded: logits, loss, gradients, greedy tokens."""

import json

import numpy as np
import paddle
import pytest
from safetensors import deserialize

from llmctl.nn import KVCache, token_loss
from llmctl_llama import CARD
from llmctl_llama.modeling import LlamaForCausalLM

pytestmark = pytest.mark.assets

CASES = ["bf16", "gqa_tied", "headdim_attnbias", "mha_untied", "rope_dynamic", "rope_linear", "rope_llama3"]


def load(folder):
    """The folder's model; weights are read and transposed here without the code under test."""
    dims = CARD.dims_from_config(json.loads((folder / "config.json").read_text()))
    model, weights = LlamaForCausalLM(dims), {}
    for file in folder.glob("*.safetensors"):
        for name, row in deserialize(file.read_bytes()):
            raw = np.frombuffer(row["data"], "<u2" if row["dtype"] == "BF16" else "<f4").reshape(row["shape"])
            value = (raw.astype("<u4") << 16).view("<f4") if row["dtype"] == "BF16" else raw
            weights[name] = paddle.to_tensor(value)
    state = model.state_dict()
    table = {t.name: t for t in CARD.expand(dims)}
    assert set(state) == set(table)
    for name, tensor in table.items():
        value = weights.pop(tensor.torch_name)
        state[name].set_value(value.t() if tensor.transpose else value)
    assert not weights
    model.eval()
    return model


@pytest.fixture(params=CASES)
def case(request, assets):
    folder = assets / "goldens" / f"llama_{request.param}"
    golden = np.load(folder / "golden.npz")
    return load(folder), {name: paddle.to_tensor(golden[name]) for name in golden if name != "grad_norms"}, golden


def greedy(model, ids, steps, mask=None, cached=True):
    """``steps`` tokens appended to ids, always the most probable."""
    mask = paddle.ones_like(ids) if mask is None else mask
    cache, fresh = KVCache(ids.shape[1] + steps) if cached else None, ids
    for _ in range(steps):
        logits = model(fresh if cached else ids, mask, cache=cache)
        fresh = logits[:, -1:].argmax(-1)
        ids, mask = paddle.concat([ids, fresh], 1), paddle.concat([mask, paddle.ones_like(fresh)], 1)
    return ids.numpy()


def test_logits_of_a_left_padded_batch_equal_the_recorded(case):
    model, golden, _ = case
    real = golden["attention_mask"].astype("bool").numpy()
    with paddle.no_grad():
        given = model(golden["input_ids"], golden["attention_mask"], golden["position_ids"])
        counted = model(golden["input_ids"], golden["attention_mask"])
    for logits in (given, counted):
        assert not np.isnan(logits.numpy()).any()
        np.testing.assert_allclose(logits.numpy()[real], golden["logits"].numpy()[real], atol=1e-4, rtol=0)


def test_logits_of_a_single_row_equal_the_recorded(case):
    model, golden, _ = case
    with paddle.no_grad():
        logits = model(golden["input_ids_single"])
    np.testing.assert_allclose(logits.numpy(), golden["logits_single"].numpy(), atol=1e-4, rtol=0)


def test_loss_and_gradient_norms_equal_the_recorded(case):
    model, golden, raw = case
    hidden = model.hidden_states(golden["input_ids"], golden["attention_mask"], golden["position_ids"])
    labels = golden["labels"][:, 1:]
    kept = labels != -100
    loss = token_loss(model.logits(hidden[:, :-1][kept]), labels[kept]) / int(kept.sum())
    loss.backward()
    assert float(loss) == pytest.approx(float(raw["loss"]), abs=1e-5)
    norms = json.loads(str(raw["grad_norms"]))
    ours = {name.replace("llama.", "model."): float(p.grad.norm()) for name, p in model.named_parameters()}
    assert ours == pytest.approx(norms, rel=1e-3)


@paddle.no_grad()
def test_greedy_tokens_equal_the_recorded(case):
    model, golden, raw = case
    prompt = golden["input_ids_single"]
    np.testing.assert_array_equal(greedy(model, prompt, 16, cached=False), raw["greedy_ids_nocache"])
    if model.position_depends_on_length:
        return
    np.testing.assert_array_equal(greedy(model, prompt, 16), raw["greedy_ids"])
    padded = greedy(model, golden["input_ids"], 16, golden["attention_mask"])
    np.testing.assert_array_equal(padded, raw["greedy_ids_padded"])


@paddle.no_grad()
def test_right_padding_gives_the_logits_of_the_row_alone(case):
    model, golden, _ = case
    row = golden["input_ids_single"]
    padding = paddle.zeros([1, 5], "int64")
    mask = paddle.concat([paddle.ones_like(row), padding], 1)
    logits = model(paddle.concat([row, padding], 1), mask)[:, : row.shape[1]]
    np.testing.assert_allclose(logits.numpy(), golden["logits_single"].numpy(), atol=1e-4, rtol=0)


@paddle.no_grad()
def test_a_trained_checkpoint_tells_its_authors_story(assets):
    folder = assets / "models" / "stories260K"
    golden = json.loads((folder / "golden_text.json").read_text())
    ids = greedy(load(folder), paddle.to_tensor([golden["prompt_ids"]]), golden["new_tokens"])
    assert ids[0].tolist() == golden["greedy_ids"]
