"""Small packed models of every form that ``DecoderSpec`` has, and what they compute, from its definition in float64.

The twin knows no cache, no blocks and no steps: a sequence is computed whole, token by token and head by head.
"""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import numpy as np

from llmctl.card.decoder_spec import DecoderSpec, Experts, Rope
from llmctl.infer.executors.base import BLOCK, Batch
from llmctl.infer.packed import model as packed
from llmctl.infer.packed.linear import pack, unpack

HEADS, KV_HEADS, WIDTH, HIDDEN, FFN, VOCAB, LAYERS, PLACES = 4, 2, 8, 24, 20, 37, 2, 64
PLAIN = {"norm": "rmsnorm", "norm_eps": 1e-5, "activation": "swiglu"}
ROPE = Rope(rotary_dim=8, frequencies=(1.0, 0.3, 0.1, 0.03))
LAYER_NORM = {"norm": "layernorm", "norm_eps": 1e-5}

FORMS: dict[str, dict] = {
    "rope and shared heads": {"rope": ROPE},
    "part of a head is turned": {"rope": Rope(rotary_dim=4, frequencies=(1.0, 0.2))},
    "norms of heads": {"rope": ROPE, "head_norms": True},
    "queries grow with the logarithm": {"rope": dataclasses.replace(ROPE, log_base=5)},
    "learned positions": {**LAYER_NORM, "activation": "gelu", "positions": True},
    "tanh": {**LAYER_NORM, "activation": "gelu-tanh", "positions": True, "bias": False},
    "penalties": {**LAYER_NORM, "activation": "gelu-tanh", "slopes": (0.5, 0.25, 0.125, 0.0625), "embed_norm": True},
    "norms carried": {
        **LAYER_NORM,
        "activation": "gelu-tanh",
        "residual_after_norm": True,
        "slopes": (0.5, 0.2, 0.1, 0.05),
    },
    "two positions and contexts": {
        **LAYER_NORM,
        "activation": "gelu",
        "residual_after_norm": True,
        "residual_scale": 2.0,
        "score_scales": (0.3, 0.15),
        "rope": Rope(rotary_dim=8, pairs="2d", frequencies=(1.0, 0.1)),
    },
    "norms after and projections": {
        **LAYER_NORM,
        "activation": "relu",
        "norm_after": True,
        "embed": 16,
        "positions": True,
        "final_norm": False,
        "embed_norm": True,
    },  # fmt: skip
    "windows": {"rope": ROPE, "window": 3},
    "experts": {"rope": ROPE, "experts": Experts(count=5, top_k=2, renormalize=True)},
    "experts as they score": {"rope": ROPE, "experts": Experts(count=4, top_k=3, renormalize=False)},
}


def build(form: dict, kind: str = "float32", seed: int = 0, **options) -> packed.PackedModel:
    """A model with random weights.

    Args:
        form: Fields of the graph, and ``positions``, ``embed_norm``, ``final_norm``, ``head_norms``, ``bias``.
        kind: How linears are packed.
        seed: Seed of the weights.
        options: ``adapters``, their number, and ``prefix``, virtual tokens.
    """
    random = np.random.default_rng(seed)
    known = {row.name for row in dataclasses.fields(DecoderSpec)}
    fields = {name: value for name, value in form.items() if name in known}
    graph = DecoderSpec(
        outer={}, layers=({},) * LAYERS, hidden=HIDDEN, heads=HEADS, kv_heads=KV_HEADS, head_dim=WIDTH, ffn=FFN,
        vocab=VOCAB, **{**PLAIN, "embed": HIDDEN, **fields},
    )  # fmt: skip

    def noise(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (random.standard_normal(shape) * scale).astype(np.float32)

    def linear(inputs: int, outputs: int) -> packed.Linear:
        bias = noise(outputs, scale=0.1) if form.get("bias", graph.norm == "layernorm") else None
        return packed.Linear(pack(noise(inputs, outputs, scale=inputs**-0.5), kind), bias)

    def norm(width: int = HIDDEN) -> packed.Norm:
        return packed.Norm(1 + noise(width, scale=0.1), noise(width, scale=0.1) if graph.norm == "layernorm" else None)

    up = FFN * (2 if graph.activation == "swiglu" else 1)
    count = graph.experts.count if graph.experts else 1
    layers = tuple(
        packed.Layer(
            norm=norm(),
            qkv=linear(HIDDEN, (HEADS + 2 * KV_HEADS) * WIDTH),
            out=linear(HEADS * WIDTH, HIDDEN),
            ffn_norm=norm(),
            up=tuple(linear(HIDDEN, up) for _ in range(count)),
            down=tuple(linear(FFN, HIDDEN) for _ in range(count)),
            router=noise(count, HIDDEN, scale=0.5) if graph.experts else None,
            q_norm=1 + noise(WIDTH, scale=0.2) if form.get("head_norms") else None,
            k_norm=1 + noise(WIDTH, scale=0.2) if form.get("head_norms") else None,
        )
        for _ in range(LAYERS)
    )
    projected = graph.embed != HIDDEN
    model = packed.PackedModel(
        graph=graph,
        embed=noise(VOCAB, graph.embed),
        head=packed.Linear(pack(noise(graph.embed, VOCAB, scale=0.3), kind)),
        layers=layers,
        final_norm=norm() if form.get("final_norm", True) else None,
        positions=noise(PLACES, HIDDEN, scale=0.3) if form.get("positions") else None,
        embed_norm=norm(graph.embed) if form.get("embed_norm") else None,
        project_in=linear(graph.embed, HIDDEN) if projected else None,
        project_out=linear(HIDDEN, graph.embed) if projected else None,
        prefix=noise(LAYERS, 2, options["prefix"], KV_HEADS, WIDTH) if "prefix" in options else None,
    )
    for number in range(options.get("adapters", 0)):
        changes = {
            (index, place, expert): packed.LoraDelta(
                noise(one.weight.inputs, 3, scale=0.2), noise(3, one.weight.outputs, scale=0.2)
            )
            for index, layer in enumerate(layers)
            for place, parts in (("qkv", [layer.qkv]), ("out", [layer.out]), ("up", layer.up), ("down", layer.down))
            for expert, one in enumerate(parts)
            if (index + len(place)) % 2 or number
        }
        model.adapters.append(packed.PackedAdapter(f"adapter {number}", changes))
    return model


@dataclasses.dataclass
class Text:
    """A sequence to compute.

    Attributes:
        ids: Its tokens.
        context: So many of them are read in both directions.
        adapter: Index of its adapter; -1 = none.
    """

    ids: list[int]
    context: int = 0
    adapter: int = -1


def marks(model: packed.PackedModel, text: Text) -> dict[str, np.ndarray]:
    """Place, both positions, begin and end of each token, as ``Batch`` has them."""
    virtual = 0 if model.prefix is None else model.prefix.shape[2]
    place = virtual + np.arange(len(text.ids))
    inner = np.maximum(0, np.arange(len(text.ids)) - max(text.context - 1, 0))
    window = model.graph.window
    begin = np.zeros_like(place) if window is None else np.maximum(0, place - window + 1)
    end = np.maximum(place + 1, virtual + text.context)
    position = np.minimum(place, virtual + text.context) if text.context else place
    return {"place": place, "position": position, "second": inner, "begin": begin, "end": end}


def batch(model: packed.PackedModel, pieces: list[tuple[Text, int, int]], blocks: np.ndarray) -> Batch:
    """A step with a stretch (text, start, stop) of each text; row r of ``blocks`` belongs to piece r. All logits are wanted."""
    tokens = [
        (row, {n: v[a:b] for n, v in marks(model, t).items()}, t.ids[a:b]) for row, (t, a, b) in enumerate(pieces)
    ]
    rows = np.concatenate([np.full(len(ids), row) for row, _, ids in tokens])
    joined = {name: np.concatenate([found[name] for _, found, _ in tokens]) for name in tokens[0][1]}
    ids = np.concatenate([ids for *_, ids in tokens])
    cast = {name: values.astype(np.int32) for name, values in joined.items()}
    return Batch(
        ids.astype(np.int32), rows.astype(np.int32), cast["place"], cast["position"], cast["second"], cast["begin"],
        cast["end"], blocks.astype(np.int32), np.array([t.adapter for t, *_ in pieces], np.int32),
        np.arange(len(ids), dtype=np.int32),
    )  # fmt: skip


def blocks_for(count: int, total: int, seed: int = 0) -> np.ndarray:
    """Tables of ``total`` blocks for so many sequences, in no order."""
    per = total // count
    return np.random.default_rng(seed).permutation(count * per).reshape(count, per)


def expected(model: packed.PackedModel, text: Text) -> np.ndarray:
    """Logits of every token of a text [T, V], from the definition."""
    graph, at = model.graph, SimpleNamespace(**marks(model, text))
    x = np.stack([model.embed[i].astype(np.float64) for i in text.ids])
    if model.embed_norm is not None:
        x = _norm(graph, model.embed_norm, x)
    if model.project_in is not None:
        x = _linear(model.project_in, x)
    if model.positions is not None:
        x = x + model.positions[at.position]
    changes = model.adapters[text.adapter].deltas if text.adapter >= 0 else {}
    for index, layer in enumerate(model.layers):
        past = None if model.prefix is None else model.prefix[index].astype(np.float64)

        def attention(h, layer=layer, index=index, past=past):
            return _attention(graph, layer, index, h, at, past, changes)

        def feed_forward(h, layer=layer, index=index):
            return _feed_forward(graph, layer, index, h, changes)

        x = _part(graph, layer.norm, x, attention)
        x = _part(graph, layer.ffn_norm, x, feed_forward)
    if model.final_norm is not None:
        x = _norm(graph, model.final_norm, x)
    if model.project_out is not None:
        x = _linear(model.project_out, x)
    return _linear(model.head, x)


def _part(graph, norm, x, part):
    if graph.norm_after:
        return _norm(graph, norm, graph.residual_scale * x + part(x))
    h = _norm(graph, norm, x)
    return graph.residual_scale * (h if graph.residual_after_norm else x) + part(h)


def _linear(linear, x, change=None):
    y = x @ unpack(linear.weight).astype(np.float64)
    if linear.bias is not None:
        y = y + linear.bias
    return y if change is None else y + x @ change.a.astype(np.float64) @ change.b


def _norm(graph, norm, x):
    if graph.norm == "layernorm":
        x = x - x.mean(-1, keepdims=True)
    y = x / np.sqrt((x * x).mean(-1, keepdims=True) + graph.norm_eps) * norm.weight
    return y if norm.bias is None else y + norm.bias


def _turned(head, rope, position, second):
    """One head of one token, its pairs i and i + width/2 turned."""
    frequencies = list(rope.frequencies)
    angles = [position * f for f in frequencies]
    if rope.pairs == "2d":
        angles += [second * f for f in frequencies]
    out, half = head.copy(), rope.rotary_dim // 2
    for i, angle in enumerate(angles):
        turned = complex(head[i], head[i + half]) * complex(math.cos(angle), math.sin(angle))
        out[i], out[i + half] = turned.real, turned.imag
    return out


def _attention(graph, layer, index, h, at, past, changes):
    rows = _linear(layer.qkv, h, changes.get((index, "qkv", 0))).reshape(len(h), -1, WIDTH)
    q, k, v = rows[:, :HEADS], rows[:, HEADS : HEADS + KV_HEADS], rows[:, HEADS + KV_HEADS :]
    for heads, weight in ((q, layer.q_norm), (k, layer.k_norm)):
        if weight is not None:
            heads /= np.sqrt((heads * heads).mean(-1, keepdims=True) + graph.norm_eps)
            heads *= weight
    if graph.rope is not None:
        for heads in (q, k):
            for t, n in np.ndindex(heads.shape[:2]):
                heads[t, n] = _turned(heads[t, n], graph.rope, at.position[t], at.second[t])
    if past is not None:
        k, v = np.concatenate([past[0], k]), np.concatenate([past[1], v])
    scale = graph.score_scales[index] if graph.score_scales else WIDTH**-0.5
    out = np.zeros((len(h), HEADS, WIDTH))
    for t, n in np.ndindex(out.shape[:2]):
        seen = np.arange(at.begin[t], at.end[t])
        scores = k[seen, n * KV_HEADS // HEADS] @ q[t, n] * scale
        if graph.rope is not None and graph.rope.log_base:
            scores = scores * max(1.0, math.log(at.place[t] + 1) / math.log(graph.rope.log_base))
        if graph.slopes:
            scores = scores + graph.slopes[n] * seen
        weights = np.exp(scores - scores.max())
        out[t, n] = weights / weights.sum() @ v[seen, n * KV_HEADS // HEADS]
    return _linear(layer.out, out.reshape(len(h), -1), changes.get((index, "out", 0)))


def _feed_forward(graph, layer, index, h, changes):
    if layer.router is None:
        return _expert(graph, layer, index, 0, h, changes)
    out = np.zeros_like(h)
    for t, token in enumerate(h):
        scores = np.exp(layer.router.astype(np.float64) @ token)
        scores /= scores.sum()
        best = np.argsort(-scores)[: graph.experts.top_k]
        weights = scores[best] / (scores[best].sum() if graph.experts.renormalize else 1.0)
        for weight, expert in zip(weights, best, strict=True):
            out[t] += weight * _expert(graph, layer, index, int(expert), token[None], changes)[0]
    return out


def _expert(graph, layer, index, expert, h, changes):
    wide = _linear(layer.up[expert], h, changes.get((index, "up", expert)))
    if graph.activation == "swiglu":
        gate, up = wide[:, :FFN], wide[:, FFN:]
        wide = gate / (1 + np.exp(-gate)) * up
    elif graph.activation == "relu":
        wide = np.maximum(wide, 0)
    elif graph.activation == "gelu":
        wide = wide * 0.5 * (1 + np.vectorize(math.erf)(wide / math.sqrt(2)))
    else:
        wide = wide / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)))
    return _linear(layer.down[expert], wide, changes.get((index, "down", expert)))


def run(executor, model: packed.PackedModel, texts: list[Text], schedule: list[list[tuple[int, int, int]]]) -> list:
    """Logits of all tokens of each text [T, V], computed in steps of pieces (text, start, stop) over blocks in no order."""
    per = -(-PLACES // BLOCK)
    blocks = blocks_for(len(texts), per * len(texts))
    executor.allocate(int(blocks.max()) + 1)
    found = [np.full((len(text.ids), VOCAB), np.nan) for text in texts]
    if model.prefix is not None:
        for row in blocks:
            executor.write_virtual_tokens(row[: -(-model.prefix.shape[2] // BLOCK)].astype(np.int32), model.prefix)
    for pieces in schedule:
        step = batch(model, [(texts[n], a, b) for n, a, b in pieces], blocks[[n for n, *_ in pieces]])
        logits = executor.run(step).copy()
        for n, a, b in pieces:
            found[n][a:b], logits = logits[: b - a], logits[b - a :]
    return found


def several(count: int = 3, longest: int = 21, **fields) -> list[Text]:
    """Texts of different lengths."""
    random = np.random.default_rng(1)
    return [Text(random.integers(0, VOCAB, longest - 4 * n).tolist(), **fields) for n in range(count)]


def in_pieces(texts: list[Text]) -> list[list[tuple[int, int, int]]]:
    """Steps: prompts in pieces, mixed with single tokens of other texts, over the borders of blocks."""
    pieces = [[(0, 0, 5)], [(1, 0, 1), (0, 5, 17)], [(2, 0, len(texts[2].ids)), (1, 1, 9), (0, 17, 18)]]
    rest = [[(0, 18, 19), (1, 9, len(texts[1].ids))], [(0, 19, len(texts[0].ids))]]
    return pieces + rest


def assert_defined(found: list, texts: list[Text], model: packed.PackedModel, tolerance: float = 2e-5) -> None:
    """Checks that logits are what the definition gives."""
    for logits, text in zip(found, texts, strict=True):
        np.testing.assert_allclose(logits, expected(model, text), atol=tolerance, rtol=tolerance)
