"""Comparison of a family with recordings of its original implementation: logits, loss, gradient norms, greedy tokens.

A golden is a model folder with a file ``golden.npz``. These are its arrays; those of ``REQUIRED`` and a batch
(``input_ids`` with ``attention_mask``, or ``input_ids_train``) are required, the others are checked if present:
``input_ids_single`` [1, P], ``logits_single``, ``greedy_ids`` (with a cache) and ``greedy_ids_nocache`` [1, P+N];
``input_ids``, ``attention_mask``, ``position_ids`` [B, L] padded on the left, ``logits``, ``greedy_ids_padded``;
``input_ids_train`` (default: the batch), ``labels`` (the tokens themselves, -100 = no loss), ``loss``, ``aux_loss`` and
``grad_norms`` (JSON: torch's tensor name -> L2 norm of the gradient).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

REQUIRED = ("input_ids_single", "logits_single", "greedy_ids", "labels", "loss", "grad_norms")
LOGITS = 1e-4
LOSS = 1e-5
GRADIENT = 1e-3
GRADIENT_FLOOR = 1e-6
"""Absolute tolerance: the gradient of a key bias is 0 up to rounding."""


def check_golden(folder: Path, family: str = "auto") -> None:
    """Checks that the model of the folder repeats the recording, within the tolerances above.

    Raises:
        AssertionError: Something differs; the message says where, what and by how much.
    """
    from llmctl.checkpoint.build import load_model

    golden = read(folder)
    model, dims, plugin = load_model(folder, family)
    model.eval()
    renames = plugin.hooks.weight_map(card=plugin.card, dims=dims, source="torch")
    try:
        check_logits(model, golden)
        check_greedy(model, golden)
        check_loss(model, golden, renames)
    except AssertionError as error:
        raise AssertionError(f"{folder.name}: {error}") from None


def check_static(folder: Path, family: str, target: Path) -> None:
    """``check_golden`` for logits and tokens of the model as a static program, exported to ``target``.

    Recordings longer than the program's limit are skipped if positions depend on the length.

    Raises:
        AssertionError: Something differs; the message says where, what and by how much.
    """
    from llmctl.checkpoint.build import load_model
    from llmctl.infer.eager.export import export
    from llmctl.infer.eager.program import StaticModel

    golden = read(folder)
    model, dims, plugin = load_model(folder, family)
    single = golden["input_ids_single"]
    about = export(model, plugin, dims, single.tolist(), target, folder)
    if getattr(model, "position_depends_on_length", False) and golden["greedy_ids"].shape[1] > about.max_positions:
        return
    static = StaticModel(target)
    found = static.logits(single, np.ones_like(single))
    try:
        _near("logits of a single row", found, golden["logits_single"])
        if "logits" in golden:
            real = golden["attention_mask"] == 1
            logits = static.logits(golden["input_ids"], golden["attention_mask"])
            _near("logits of a left-padded batch", logits[real], golden["logits"][real])
        check_greedy(static, golden)
    except AssertionError as error:
        raise AssertionError(f"{folder.name} as a program: {error}") from None


def read(folder: Path) -> dict[str, Any]:
    """The arrays of a golden.

    Raises:
        AssertionError: There is no golden, or a required array is missing.
    """
    file = folder / "golden.npz"
    beside = ", ".join(sorted(path.parent.name for path in folder.parent.glob("*/golden.npz"))) or "none"
    assert file.is_file(), f"there is no file {file}; goldens in {folder.parent}: {beside}"
    golden = dict(np.load(file))
    needed = {*REQUIRED, *(() if "input_ids_train" in golden else ("input_ids", "attention_mask"))}
    assert needed <= golden.keys(), f"{file} lacks {', '.join(sorted(needed - golden.keys()))}; see docs/goldens.md"
    return golden


def check_logits(model: Any, golden: Mapping[str, Any]) -> None:
    """Logits of the single row, and of the padded batch, with position ids given and derived."""
    import paddle

    with paddle.no_grad():
        single = model(paddle.to_tensor(golden["input_ids_single"])).numpy()
        _near("logits of a single row", single, golden["logits_single"])
        if "logits" not in golden:
            return
        ids, mask = paddle.to_tensor(golden["input_ids"]), paddle.to_tensor(golden["attention_mask"])
        real = golden["attention_mask"] == 1
        given = [("counted", None)]
        if "position_ids" in golden:
            given.append(("given", paddle.to_tensor(golden["position_ids"])))
        for how, positions in given:
            logits = model(ids, mask, positions).numpy()
            assert np.isfinite(logits).all(), f"positions {how}: padding gives logits that are not finite"
            _near(f"logits of a left-padded batch, positions {how}", logits[real], golden["logits"][real])


def check_greedy(model: Any, golden: Mapping[str, Any]) -> None:
    """The most probable tokens, with and without a cache, alone and in a padded batch."""
    prompt = golden["input_ids_single"][0].tolist()
    uncached = golden.get("greedy_ids_nocache", golden["greedy_ids"])[0, len(prompt) :].tolist()
    changing = getattr(model, "position_depends_on_length", False)
    assert _greedy(model, [prompt], len(uncached), use_cache=False) == [uncached], "greedy tokens without a cache"
    cached = uncached if changing else golden["greedy_ids"][0, len(prompt) :].tolist()
    assert _greedy(model, [prompt], len(cached)) == [cached], "greedy tokens with a cache"
    if "greedy_ids_padded" in golden and not changing:
        rows = zip(golden["input_ids"], golden["attention_mask"], strict=True)
        prompts = [ids[mask == 1].tolist() for ids, mask in rows]
        expected = golden["greedy_ids_padded"][:, golden["input_ids"].shape[1] :].tolist()
        assert _greedy(model, prompts, len(expected[0])) == expected, "greedy tokens of a left-padded batch"


def check_loss(model: Any, golden: Mapping[str, Any], renames: Any) -> None:
    """The mean loss over labels, and the gradient norm of every tensor of the torch checkpoint."""
    import paddle

    from llmctl.nn.loss import token_loss

    alone = "input_ids_train" in golden
    ids = paddle.to_tensor(golden["input_ids_train" if alone else "input_ids"])
    mask = None if alone else paddle.to_tensor(golden["attention_mask"])
    positions = paddle.to_tensor(golden["position_ids"]) if "position_ids" in golden and not alone else None
    if "aux_loss" in golden and getattr(model, "aux_loss", 0):
        model.train()
    hidden = model.hidden_states(ids, mask, positions)
    labels = paddle.to_tensor(golden["labels"])[:, 1:]
    kept = labels != -100
    loss = token_loss(model.logits(hidden[:, :-1][kept]), labels[kept]) / int(kept.sum())
    sums = getattr(model, "auxiliary_sums", lambda arrays: ())({} if mask is None else {"attention_mask": mask})
    loss = loss + model.auxiliary_loss(sums) if sums else loss
    model.eval()
    loss.backward()
    _near("loss", float(loss), float(golden["loss"]), LOSS)
    norms = _gradient_norms(model, renames)
    recorded = json.loads(str(golden["grad_norms"]))
    assert set(norms) == set(recorded), f"gradients of {sorted(set(norms) ^ set(recorded))} on one side only"
    far = [f"{name}: {norms[name]:.6g}, recorded {value:.6g}" for name, value in recorded.items()
           if abs(norms[name] - value) > GRADIENT * value + GRADIENT_FLOOR]  # fmt: skip
    assert not far, "gradient norms differ: " + "; ".join(far)


def _gradient_norms(model: Any, renames: Any) -> dict[str, float]:
    """By name in the torch checkpoint; the norm of a split tensor is that of all its slices."""
    parameters = dict(model.named_parameters())
    squares: dict[str, float] = {}
    for rename in renames:
        gradient = parameters[rename.target].grad
        square = 0.0 if gradient is None else float((gradient.astype("float64") ** 2).sum())
        squares[rename.source] = squares.get(rename.source, 0.0) + square
    return {name: square**0.5 for name, square in squares.items()}


def _greedy(model: Any, prompts: list[list[int]], new: int, use_cache: bool = True) -> list[list[int]]:
    from llmctl.infer.eager.generate import generate
    from llmctl.infer.sampling import SamplingParams

    made = generate(model, prompts, SamplingParams(max_new_tokens=new), [], 0, use_cache=use_cache)
    return [answer.ids for answer in made]


def _near(what: str, found: Any, expected: Any, limit: float = LOGITS) -> None:
    worst = float(np.abs(np.asarray(found) - np.asarray(expected)).max())
    assert worst <= limit, f"{what}: off by {worst:.3g}, allowed {limit:g}"
