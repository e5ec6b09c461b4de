"""The fused engine: what every family must satisfy; ``FamilyConformance`` inherits it.

The family's model in float64 is the reference; every executor must compute the same from packed weights. ``twin`` is plain
numpy, which separates faults of packing from faults of an executor.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmctl import plugins
from llmctl.card import capabilities, support
from llmctl.card.dims import Dims
from llmctl.card.family import Family
from llmctl.testing.evidence import proves
from llmctl.testing.tiny import random_model

LOGITS = {"twin": 1e-5, "native": 1e-4, "paddle": 1e-4}
"""Executor -> absolute tolerance of its logits."""

GROUP = 32
CODED = 1e-5
"""Relative tolerance of the norm of a token's logits over integer codes, if activations are rounded to 8 bits too."""

NOISE, NOISES = 2e-7, 8
"""Relative noise on the inputs of linears, as of other orders of sums, and how often it is drawn: a token whose logits it changes
by more than ``CODED`` has a value between two codes, which may be rounded either way."""

VIRTUAL = 5


@dataclass(frozen=True)
class Fused:
    """A tiny model in a folder, as a layer and packed; weights are float32 numbers.

    Attributes:
        folder: The checkpoint.
        layer: float64.
        packed: Its ``PackedModel`` of kind float32.
    """

    folder: Path
    layer: Any
    packed: Any


def executor(name: str, model: Any) -> Any:
    """The executor of this name for a packed model; skips the test if it is unavailable."""
    if name == "twin":
        from llmctl.infer.executors.reference import ReferenceExecutor

        return ReferenceExecutor(model)
    if name == "native":
        from llmctl.infer.executors.native import NativeExecutor, available

        if not available():
            pytest.skip("there are no compiled kernels here")
        return NativeExecutor(model, 64)
    from llmctl.infer.executors.paddle import PaddleExecutor

    return PaddleExecutor(model)


@pytest.mark.filterwarnings("ignore:.*experimental:UserWarning")
class FusedConformance:
    """Tests that use the fixtures of ``FamilyConformance``."""

    goldens: tuple[str, ...]

    def input_ids(self, dims: Dims, rows: int, length: int) -> Any:
        """As in ``FamilyConformance``."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def fused(cls, plugin: plugins.Plugin, dims: Dims, tmp_path_factory: pytest.TempPathFactory) -> Fused:
        """The tiny model; its values are exact in float32."""
        from llmctl.checkpoint import save_weights
        from llmctl.infer.packed.pack import pack_model

        if isinstance(support.state(plugin.card, "fused"), capabilities.Unsupported):
            pytest.skip("the family has no fused path")
        folder, layer = tmp_path_factory.mktemp("fused"), single_layer(plugin, dims)
        (folder / "config.json").write_text(json.dumps(plugin.card.config_from_dims(dims)), encoding="utf-8")
        save_weights(folder, layer, plugin.hooks.weight_map(card=plugin.card, dims=dims, source="torch"), "float32")
        return Fused(folder, layer, pack_model(folder, plugin, dims))

    def texts(self, dims: Dims) -> list[Any]:
        """Sequences of several lengths, across block boundaries."""
        return [self.input_ids(dims, 1, length)[0] for length in (22, 7, 15)]

    @proves("fused")
    @pytest.mark.parametrize("name", LOGITS)
    def test_the_fused_engine_computes_what_the_layer_computes(self, dims: Dims, fused: Fused, name: str) -> None:
        texts = self.texts(dims)
        found = mixed(executor(name, fused.packed), fused.packed.graph, texts)
        _near(found, expected(fused.layer, texts), LOGITS[name])
        whole = _stepping(executor(name, fused.packed), fused.packed.graph, 3).feed(*enumerate(texts))
        _near(whole, found, LOGITS[name])

    @proves("fused")
    @pytest.mark.parametrize("name", LOGITS)
    def test_the_fused_engine_continues_a_text_as_the_layer_does(self, dims: Dims, fused: Fused, name: str) -> None:
        from llmctl.infer.eager.generate import generate
        from llmctl.infer.sampling import SamplingParams

        prompt = self.texts(dims)[1].tolist()
        made = generate(fused.layer, [prompt], SamplingParams(max_new_tokens=12), [], 0)
        found = _stepping(executor(name, fused.packed), fused.packed.graph, 1).greedy(0, prompt, 12)
        assert found == made[0].ids

    @proves("wint8")
    @pytest.mark.parametrize("name", LOGITS)
    def test_8_bit_codes_stand_for_rounded_weights(
        self, plugin: plugins.Plugin, dims: Dims, fused: Fused, name: str
    ) -> None:
        self._codes_stand_for_rounded_weights(plugin, dims, fused, name, "int8", GROUP)

    @proves("wint4")
    @pytest.mark.parametrize("name", LOGITS)
    def test_4_bit_codes_stand_for_rounded_weights(
        self, plugin: plugins.Plugin, dims: Dims, fused: Fused, name: str
    ) -> None:
        from llmctl.infer.packed.pack import GROUPS

        self._codes_stand_for_rounded_weights(plugin, dims, fused, name, "int4", GROUPS["int8"])

    def _codes_stand_for_rounded_weights(
        self, plugin: plugins.Plugin, dims: Dims, fused: Fused, name: str, kind: str, outer_group: int
    ) -> None:
        from llmctl.infer.executors.reference import ReferenceExecutor
        from llmctl.infer.packed.pack import pack_model

        packed, texts = pack_model(fused.folder, plugin, dims, kind, GROUP), self.texts(dims)
        graph = packed.graph
        found = mixed(executor(name, packed), graph, texts)
        if name == "native":
            # It rounds activations too, as the twin does on request.
            right = np.concatenate(mixed(ReferenceExecutor(packed, rounding=True), graph, texts))
            noisy = [np.concatenate(mixed(_noisy(packed, seed), graph, texts)) for seed in range(NOISES)]
            sure = np.max([_off(logits, right) for logits in noisy], axis=0) < CODED
            assert sure.mean() > 0.3, f"only {sure.mean():.0%} of the tokens are not between two codes"
            off = _off(np.concatenate(found), right)
            assert off[sure].max() < CODED, f"off by {off[sure].max():.3g} of the logits' length"
        else:
            _near(found, rounded_logits(plugin, dims, graph, texts, (kind, GROUP), ("int8", outer_group)), LOGITS[name])

    @proves("fused-lora")
    @pytest.mark.parametrize("name", LOGITS)
    def test_adapters_of_several_sequences_give_what_merged_ones_give(
        self, plugin: plugins.Plugin, dims: Dims, fused: Fused, name: str
    ) -> None:
        from llmctl.adapters.attach import attach
        from llmctl.adapters.folder import OpenedAdapter
        from llmctl.checkpoint.convert import open_source
        from llmctl.infer.packed.adapters import merged_state, pack_adapter, widths_of
        from llmctl.infer.packed.pack import RoundToNearest, pack, state_of

        graph, widths, texts = fused.packed.graph, widths_of(plugin, dims), self.texts(dims)
        adapters = [random_adapter(plugin, dims, rank=2, every=1), random_adapter(plugin, dims, rank=3, every=2)]
        packed = [pack_adapter(adapter, graph, widths, str(i)) for i, adapter in enumerate(adapters)]
        model = replace(fused.packed, adapters=packed)
        found = mixed(executor(name, model), graph, texts, (1, -1, 0))
        expected_logits = [None, *expected(fused.layer, texts[1:2]), None]
        for row, adapter in ((2, adapters[0]), (0, adapters[1])):
            layer = single_layer(plugin, dims)
            attach(layer, adapter.layers)
            expected_logits[row] = expected(layer, [texts[row]])[0]
        _near(found, expected_logits, LOGITS[name])
        opened = OpenedAdapter(fused.folder, adapters[0], fused.folder, plugin, dims, dims)
        state = merged_state(open_source(fused.folder, plugin, dims).state, opened)
        merged = pack(graph, RoundToNearest(state_of(state, graph)))
        _near(mixed(executor(name, merged), graph, texts)[2:], found[2:], LOGITS[name])

    @proves("fused-prefix")
    @pytest.mark.parametrize("name", LOGITS)
    def test_virtual_tokens_in_the_cache_do_what_they_do_in_the_layer(
        self, card: Family, dims: Dims, fused: Fused, name: str
    ) -> None:
        from llmctl.adapters.attach import add_prefix
        from llmctl.adapters.prefix import Prefix, shape_of
        from llmctl.infer.packed.adapters import pack_prefix

        if isinstance(support.state(card, "prefix-tuning"), capabilities.Unsupported):
            pytest.skip("the family does not support prefix tuning")
        texts, values = self.texts(dims), np.random.default_rng(4).normal(size=shape_of(dims, VIRTUAL))
        add_prefix(fused.layer, shape_of(dims, VIRTUAL)).set_values(values.astype("float32"))
        try:
            expected_logits = expected(fused.layer, texts)
        finally:
            fused.layer.prefix = None
        graph = fused.packed.graph
        found = mixed(executor(name, fused.packed), graph, texts, prefix=pack_prefix(Prefix(values), graph))
        _near(found, expected_logits, LOGITS[name])

    @proves("fused")
    @pytest.mark.parametrize("name", ["native", "paddle"])
    def test_recordings_of_the_original_code_are_repeated_by_the_fused_engine(
        self, request: pytest.FixtureRequest, plugin: plugins.Plugin, fused: Fused, name: str
    ) -> None:
        if not self.goldens:
            pytest.skip("the family has no goldens")
        for golden in self.goldens:
            repeat(request.path.parent / golden, plugin, name)


def single_layer(plugin: plugins.Plugin, dims: Dims) -> Any:
    """A random float64 layer whose values are exact in float32."""
    layer = random_model(plugin, dims)
    for value in layer.state_dict().values():
        value.set_value(value.numpy().astype("float32").astype("float64"))
    return layer


def expected(layer: Any, texts: Sequence[Any]) -> list[Any]:
    """The model's logits of each text alone."""
    import paddle

    with paddle.no_grad():
        return [layer(paddle.to_tensor(np.asarray(ids)[None])).numpy()[0] for ids in texts]


def mixed(
    engine: Any, graph: Any, texts: Sequence[Any], adapters: Sequence[int] = (-1, -1, -1), prefix: Any = None
) -> list[Any]:
    """Logits of three texts in mixed steps: chunked prompts of several sequences together with single tokens."""
    stepping = _stepping(engine, graph, adapters, prefix)
    first, second, third = (len(ids) for ids in texts)
    schedule: tuple[dict[int, int], ...] = (
        {0: 9, 1: second}, {0: first - 10, 2: 6}, {2: third - 7, 0: 1}, {2: 1},
    )  # fmt: skip
    done, found = [0, 0, 0], [[], [], []]
    for step in schedule:
        parts = [(row, texts[row][done[row] : done[row] + count]) for row, count in step.items()]
        for (row, ids), logits in zip(parts, stepping.feed(*parts), strict=True):
            found[row].append(logits)
            done[row] += len(ids)
    return [np.concatenate(parts) for parts in found]


def rounded_logits(
    plugin: plugins.Plugin,
    dims: Dims,
    graph: Any,
    texts: Sequence[Any],
    inner: tuple[str, int],
    outer: tuple[str, int],
) -> list[Any]:
    """Logits of a layer whose linears and embeddings are quantized and dequantized, by (kind, group) inside and outside the layers."""
    import paddle

    from llmctl.infer.packed.linear import pack, unpack

    layer = single_layer(plugin, dims)
    state = layer.state_dict()
    values = {slot: state[tensor].numpy() for slot, tensor in graph.outer.items()}
    for tensor in plugin.card.expand(dims):
        inside = tensor.layer is not None
        if tensor.kind == "linear" and (inside or tensor.slot.startswith("project")):
            codes = unpack(pack(state[tensor.name].numpy(), *(inner if inside else outer)))
            state[tensor.name].set_value(codes.astype("float64"))
    head = values["head"] if "head" in values else values["embed"].T
    head = head / np.linalg.norm(head, axis=0) if graph.unit_head else head
    coded = unpack(pack(head, *outer)).astype("float64")
    state[graph.outer["embed"]].set_value(unpack(pack(values["embed"].T, *outer)).T.astype("float64"))
    with paddle.no_grad():
        return [layer.hidden_states(paddle.to_tensor(np.asarray(ids)[None])).numpy()[0] @ coded for ids in texts]


def random_adapter(plugin: plugins.Plugin, dims: Dims, rank: int, every: int) -> Any:
    """An adapter of every n-th linear (``every``), exact in float32."""
    from llmctl.adapters import targets
    from llmctl.adapters.adapter import Adapter, LoraWeights

    rng, parts = np.random.default_rng(rank), {}
    for path, row in list(targets.linears(plugin.card, dims).items())[::every]:
        a, b = (rng.normal(0, 0.2, shape).astype("f4") for shape in ((row.shape[0], rank), (rank, row.shape[1])))
        parts[path] = LoraWeights(a, b, 2.0)
    return Adapter(parts)


def repeat(folder: Path, plugin: plugins.Plugin, name: str) -> None:
    """Checks that an executor repeats the logits and the greedy tokens of a golden.

    Rows longer than RoPE's stable length are skipped: no cache is valid for them.
    """
    from llmctl.checkpoint.hf_config import read_config
    from llmctl.infer.packed.pack import pack_model
    from llmctl.testing import golden as goldens

    golden = goldens.read(folder)
    model = pack_model(folder, plugin, plugin.card.dims_from_config(read_config(folder)))
    engine, graph = executor(name, model), model.graph
    most = (graph.rope and graph.rope.max_stable_length) or 1 << 30
    for ids, logits in _rows(golden, most):
        found = _stepping(engine, graph, 1).feed((0, ids))[0]
        worst = float(np.abs(found - logits).max())
        assert worst <= goldens.LOGITS, f"{folder.name}: off by {worst:.3g}, allowed {goldens.LOGITS:g}"
    prompt, made = golden["input_ids_single"][0].tolist(), golden["greedy_ids"][0].tolist()
    if len(made) <= most:
        found = _stepping(engine, graph, 1, longest=len(made)).greedy(0, prompt, len(made) - len(prompt))
        assert found == made[len(prompt) :], f"{folder.name}: greedy tokens"


def _rows(golden: Mapping[str, Any], most: int) -> Iterator[tuple[list[int], Any]]:
    """Texts of a golden without padding, and their logits, if the longest text of the batch is within the limit."""
    if golden["input_ids_single"].shape[1] <= most:
        yield golden["input_ids_single"][0].tolist(), golden["logits_single"][0]
    if "logits" in golden and golden["attention_mask"].sum(axis=1).max() <= most:
        for ids, mask, logits in zip(golden["input_ids"], golden["attention_mask"], golden["logits"], strict=True):
            yield ids[mask == 1].tolist(), logits[mask == 1]


def _stepping(engine: Any, graph: Any, adapters: Sequence[int] | int, prefix: Any = None, longest: int = 64) -> Any:
    from llmctl.infer.engine.feeder import SequenceFeeder

    rows = [-1] * adapters if isinstance(adapters, int) else adapters
    return SequenceFeeder(engine, graph, rows, longest, prefix)


def _noisy(model: Any, seed: int) -> Any:
    """The twin that rounds activations, with noise on them before."""
    from llmctl.infer.executors.reference import ReferenceExecutor

    rng = np.random.default_rng(seed)

    class Noisy(ReferenceExecutor):
        def _linear(self, linear: Any, x: Any) -> Any:
            return super()._linear(linear, x * (1 + NOISE * rng.standard_normal(x.shape)))

    return Noisy(model, rounding=True)


def _off(found: Any, right: Any) -> Any:
    """Relative distance of each token's logits."""
    return np.linalg.norm(found - right, axis=-1) / np.linalg.norm(right, axis=-1)


def _near(found: Sequence[Any], expected_logits: Sequence[Any], limit: float) -> None:
    for row, (logits, right) in enumerate(zip(found, expected_logits, strict=True)):
        np.testing.assert_allclose(logits, right, atol=limit, rtol=0, err_msg=f"text {row}")
