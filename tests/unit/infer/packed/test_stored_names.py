"""Packed folders of earlier releases open whatever classes and fields are called now: their names are the format's."""

import json

import pytest

from llmctl import plugins
from llmctl.card.tiny import tiny_dims
from llmctl.infer.packed.stored import STORED, decode, encode

DECODER = [
    "outer", "layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab", "embed", "qkv", "norm", "norm_eps",
    "activation", "rope", "slopes", "position_offset", "window", "score_scales", "norm_after", "carry_normed",
    "carry_scale", "experts", "unit_head", "contexts", "max_positions",
]  # fmt: skip
ROPE = {"is": "Rope", "width": 8, "frequencies": [1.0, 0.1, 0.01, 0.001], "stable_length": None, "log_base": None}


def stored(family, **changes):
    """The graph of a tiny model of a family as a packed folder stores it."""
    plugin = plugins.load(family)
    graph = plugin.hooks.fused_graph(card=plugin.card, dims=tiny_dims(plugin.card, changes))
    row = json.loads(json.dumps(encode(graph, [])))
    assert decode(row, []) == graph
    return row


def test_classes_have_their_stored_names():
    assert {row.name for row in STORED.values()} == {
        "Adapted", "Contexts", "Experts", "FusedDecoder", "JoinedLinear", "Layer", "Linear", "Norm", "PackedAdapter",
        "PackedLinear", "PackedModel", "Rope", "StageFold",
    }  # fmt: skip


@pytest.mark.parametrize("family", ["chatglm", "chatglm2", "mixtral"])
def test_fields_of_a_decoder_have_their_stored_names(family):
    assert list(stored(family)) == ["is", *DECODER] and stored(family)["is"] == "FusedDecoder"


def test_rotations_have_their_stored_names():
    row = stored("qwen3")["rope"]
    assert row == {**ROPE, "pairs": "halves", "frequencies": row["frequencies"]}
    assert stored("chatglm2")["rope"] == {**ROPE, "width": 4, "pairs": "neighbours", "frequencies": [1.0, 0.01]}
    assert stored("qwen3", rope_scaling={"rope_type": "yarn", "factor": 4.0})["rope"]["attention_factor"] > 1.1
    row = stored("chatglm")["rope"]
    assert row == {**ROPE, "pairs": "two-halves", "frequencies": [1.0, pytest.approx(0.01, rel=1e-3)]}


def test_prefixes_read_in_both_directions_have_their_stored_names():
    row = stored("chatglm")
    assert row["contexts"] == {"is": "Contexts", "end": 130004, "marks": [130001, 130000]}
    assert row["carry_normed"] is True and row["carry_scale"] == pytest.approx(56**0.5)


def test_experts_have_their_stored_names():
    assert stored("mixtral")["experts"] == {"is": "Experts", "count": 4, "top_k": 2, "renormalize": True}
