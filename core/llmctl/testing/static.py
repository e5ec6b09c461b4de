"""Static export: what every family must satisfy; ``FamilyConformance`` inherits it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from llmctl import plugins
from llmctl.card.dims import Dims
from llmctl.testing.evidence import proves

NEW = 6
"""Tokens to generate."""

LENGTHS = (11, 7, 9)
"""Lengths of the prompts in tokens."""

CLOSE = 1e-6
"""Tolerance of logits: programs hold factors such as 1/sqrt(head_dim) in float32."""


class StaticConformance:
    """Tests that use the fixtures of ``FamilyConformance``."""

    goldens: ClassVar[tuple[str, ...]] = ()

    def input_ids(self, dims: Dims, rows: int, length: int) -> Any:
        """As in ``FamilyConformance``."""
        raise NotImplementedError

    def prompts(self, dims: Dims) -> list[list[int]]:
        """Token ids of different lengths."""
        return [self.input_ids(dims, row + 1, length)[row].tolist() for row, length in enumerate(LENGTHS)]

    @proves("static")
    def test_a_program_gives_the_layers_logits_and_tokens_where_no_plugin_is_installed(
        self, plugin: plugins.Plugin, dims: Dims, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from llmctl.infer.eager.export import export

        prompts = self.prompts(dims)
        about = export(model, plugin, dims, prompts, tmp_path / "program")
        assert about.difference < CLOSE
        expected = _greedy(model, prompts, use_cache=False)
        monkeypatch.setattr(plugins, "installed", lambda: [])
        static = _opened(tmp_path / "program")
        for row, ids in enumerate(prompts):
            found = static.logits(np.array([ids]), np.ones((1, len(ids)), np.int64))[0]
            np.testing.assert_allclose(found, _whole(model, ids), rtol=CLOSE, atol=10 * CLOSE, err_msg=str(row))
        assert _greedy(static, prompts) == expected

    @proves("static")
    def test_a_program_holds_virtual_tokens(
        self, plugin: plugins.Plugin, dims: Dims, prefixed: Any, tmp_path: Path
    ) -> None:
        from llmctl.infer.eager.export import export

        prompts = self.prompts(dims)
        about = export(prefixed.model, plugin, dims, prompts, tmp_path / "program")
        assert about.difference < CLOSE and about.virtual_tokens == prefixed.prefix.length
        static = _opened(tmp_path / "program")
        for ids in prompts:
            found = static.logits(np.array([ids]), np.ones((1, len(ids)), np.int64))[0]
            np.testing.assert_allclose(found, _whole(prefixed.model, ids), rtol=CLOSE, atol=10 * CLOSE)

    @proves("static")
    def test_programs_repeat_recordings_of_the_original_code(
        self, request: pytest.FixtureRequest, plugin: plugins.Plugin, tmp_path: Path
    ) -> None:
        from llmctl.testing.golden import check_static

        if not self.goldens:
            pytest.skip("the family has no goldens")
        for golden in self.goldens:
            check_static(request.path.parent / golden, plugin.card.name, tmp_path / Path(golden).name)


def _opened(folder: Path) -> Any:
    from llmctl.infer.eager.program import StaticModel

    return StaticModel(folder)


def _whole(model: Any, ids: list[int]) -> Any:
    """The model's logits [T, V] of a row, computed without padding or cache."""
    import paddle

    with paddle.no_grad():
        return model(paddle.to_tensor([ids])).numpy()[0]


def _greedy(model: Any, prompts: list[list[int]], use_cache: bool = True) -> list[list[int]]:
    from llmctl.infer.eager.generate import generate
    from llmctl.infer.sampling import SamplingParams

    return [row.ids for row in generate(model, prompts, SamplingParams(max_new_tokens=NEW), [], 0, None, use_cache)]
