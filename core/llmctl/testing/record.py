"""Records goldens: what the original implementation of a family computes with a tiny random checkpoint.

``python -m llmctl.testing.record CASES.py --out FOLDER`` makes a checkpoint for each ``Case`` in the tuple ``CASES`` of a
file, runs the original code in float32 on the CPU and writes folders as described in ``llmctl.testing.golden``. Only this
module needs torch and transformers; it does not need paddle.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import runpy
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmctl.testing.case import Case

LENGTHS = (12, 8, 5)
"""Tokens of the batch's rows, without padding."""
SINGLE, NEW = 10, 8
"""Tokens of the single prompt, and of its continuation."""
FIRST = 5
"""Smaller token ids are special in some family."""
MARGIN, ROUTER_MARGIN, DISTINCT = 0.01, 1e-3, 3
"""Minimum lead of a greedy token, and of a selected expert, over the next best; minimum of distinct tokens in a continuation."""
SEEDS = 400
STD = 0.3


def record(case: Case, folder: Path, code: Path | None) -> dict[str, Any]:
    """Writes the golden of a case, with the first seed without near ties; returns its description.

    Raises:
        SystemExit: There is no such seed.
    """
    model_class, source = original(case, code)
    import torch
    import transformers

    for seed in range(SEEDS):
        rng = np.random.default_rng([seed, *case.name.encode()])
        model = build(case, model_class, rng)
        arrays, facts = run(case, model, rng)
        near = facts["greedy_min_margin"] < MARGIN or facts.get("router_min_margin", 1) < ROUTER_MARGIN
        if not near and len(set(arrays["greedy_ids"][0, SINGLE:].tolist())) >= DISTINCT:
            break
    else:
        sys.exit(f"{case.name}: all of {SEEDS} seeds have near ties")
    about = {"name": case.name, "family": case.family, "about": case.about, "code": source, "seed": seed}
    about |= {"torch": torch.__version__, "transformers": transformers.__version__, **facts}
    write(case, model, arrays, about, folder)
    return about


def original(case: Case, code: Path | None) -> tuple[Any, str]:
    """The class to record and its origin.

    Raises:
        SystemExit: The case needs a model repository, and ``code`` is not one.
    """
    if not case.file:
        return getattr(importlib.import_module("transformers"), case.model), f"transformers {case.model}"
    if code is None or not (code / case.file).is_file():
        sys.exit(f"{case.name}: --code must name a folder with {case.file} and its configuration_*.py")
    for name in case.unused:
        add_empty_module(name)
    package = types.ModuleType("original")
    package.__path__ = [str(code)]
    for name in [name for name in sys.modules if name.partition(".")[0] == "original"]:
        del sys.modules[name]
    sys.modules["original"] = package
    module = importlib.import_module(f"original.{Path(case.file).stem}")
    digest = hashlib.sha256((code / case.file).read_bytes()).hexdigest()
    return getattr(module, case.model), f"{case.file} {case.model}, SHA-256 {digest}"


def add_empty_module(name: str) -> None:
    """Replaces a module that is not installed by empty ones."""
    try:
        importlib.import_module(name)
    except ImportError:
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            made = sys.modules.setdefault(".".join(parts[:end]), types.ModuleType(".".join(parts[:end])))
            if end > 1:
                setattr(sys.modules[".".join(parts[: end - 1])], parts[end - 1], made)


def build(case: Case, model_class: Any, rng: np.random.Generator) -> Any:
    """The original's model with every weight random, so that no value hides a mistake."""
    import torch

    config = model_class.config_class(**case.config)
    config._attn_implementation = "eager"
    model = model_class(config).float()
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            scale = rng.normal(1.0, 0.2, parameter.shape) if parameter.dim() == 1 and name.endswith("weight") else None
            value = rng.normal(0.0, STD, parameter.shape) if scale is None else scale
            kept = torch.tensor(value).to(getattr(torch, case.weights))
            parameter.copy_(kept.float())
    return model.eval()


def run(case: Case, model: Any, rng: np.random.Generator) -> tuple[dict[str, Any], dict[str, Any]]:
    """All arrays of a golden, and facts about them."""
    import torch

    balanced = getattr(model.config, "output_router_logits", False)
    single = draw_rows(case, model, rng, [SINGLE])[0]
    ids, mask = draw_rows(case, model, rng, LENGTHS if case.padded else LENGTHS[:1])
    labels = ids.clone()
    labels[mask == 0] = -100
    labels[torch.arange(len(ids)), (mask == 0).sum(1)] = -100
    passed = {"attention_mask": mask, **positions_of(case, mask)} if case.padded else {}
    arrays = {"input_ids_single": single, "labels": labels, "input_ids" if case.padded else "input_ids_train": ids}
    arrays |= passed
    with torch.no_grad():
        arrays["logits_single"] = model(input_ids=single).logits
        if case.padded:
            arrays["logits"] = model(input_ids=ids, **passed).logits
    arrays |= loss_and_gradients(case, model, ids, labels, passed)
    facts = {"loss": float(arrays["loss"])}
    if balanced:
        model.config.output_router_logits = False
    greedy, facts["greedy_min_margin"] = greedy_tokens(case, model, single, ids, mask)
    if balanced:
        model.config.output_router_logits = True
    if hasattr(model.config, "output_router_logits"):
        facts["router_min_margin"] = router_margin(model, single, ids, passed)
    arrays |= greedy
    return {name: np.asarray(value) for name, value in arrays.items()}, facts


def draw_rows(case: Case, model: Any, rng: np.random.Generator, lengths: Any) -> tuple[Any, Any]:
    """Random rows padded on the left to the longest, and their mask [rows, length]."""
    import torch

    longest = max(lengths)
    pad = model.config.pad_token_id or 0
    ids = np.full((len(lengths), longest), pad, np.int64)
    mask = np.zeros_like(ids)
    for row, length in enumerate(lengths):
        tokens = rng.integers(FIRST, case.ids_below, length)
        for place, key in case.tokens.items():
            tokens[place] = getattr(model.config, key)
        ids[row, longest - length :], mask[row, longest - length :] = tokens, 1
    return torch.tensor(ids), torch.tensor(mask)


def positions_of(case: Case, mask: Any) -> dict[str, Any]:
    """Positions counted from each row's first real token, as the original's generation counts them."""
    return {"position_ids": (mask.cumsum(1) - 1).masked_fill(mask == 0, 1)} if case.positions else {}


def loss_and_gradients(case: Case, model: Any, ids: Any, labels: Any, passed: dict[str, Any]) -> dict[str, Any]:
    """The original's own loss over the labels, and the L2 norm of its gradient by each tensor."""
    model.train(case.trains)
    out = model(input_ids=ids, labels=labels, **passed)
    out.loss.backward()
    model.eval()
    norms = {
        name: float(parameter.grad.double().norm()) if parameter.grad is not None else 0.0
        for name, parameter in model.named_parameters()
    }
    found = {"loss": out.loss.detach(), "grad_norms": np.array(json.dumps(norms))}
    if getattr(out, "aux_loss", None) is not None:
        found["aux_loss"] = out.aux_loss.detach()
    return found


def greedy_tokens(case: Case, model: Any, single: Any, ids: Any, mask: Any) -> tuple[dict[str, Any], float]:
    """Rows with the most probable tokens appended, and the smallest lead of a token over the next best.

    Raises:
        SystemExit: The original's cache changes the tokens although positions do not depend on the length.
    """
    import torch

    row, leads = single, []
    with torch.no_grad():
        for _ in range(NEW):
            scores = model(input_ids=row).logits[:, -1]
            leads.append(lead(scores))
            row = torch.cat([row, scores.argmax(-1, keepdim=True)], 1)
    if not case.generate:
        return {"greedy_ids": row}, min(leads)
    cached, more = generated(model, single, torch.ones_like(single))
    found = {"greedy_ids": cached, "greedy_ids_nocache": row}
    if not (case.cache_differs or torch.equal(cached, row)) and min(leads) >= MARGIN:
        sys.exit(f"{case.name}: generation of the original with a cache gives other tokens than without")
    leads += [more]
    if case.padded:
        found["greedy_ids_padded"], more = generated(model, ids, mask)
        leads += [more]
    return found, min(leads)


def generated(model: Any, ids: Any, mask: Any) -> tuple[Any, float]:
    """What the original's own generation appends, and the smallest lead."""
    model.generation_config.eos_token_id = None
    out = model.generate(
        ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, num_beams=1, use_cache=True,
        pad_token_id=0, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    return out.sequences, min(lead(scores) for scores in out.scores)


def lead(scores: Any) -> float:
    """How far the best score is ahead of the second, in the row where it is least."""
    best = scores.topk(2, dim=-1).values
    return float((best[..., 0] - best[..., 1]).min())


def router_margin(model: Any, single: Any, ids: Any, passed: dict[str, Any]) -> float:
    """How far the last expert chosen is ahead of the first that is not, over the tokens of all rows."""
    import torch

    chosen, margins = model.config.num_experts_per_tok, []
    with torch.no_grad():
        for rows, more in ((single, {}), (ids, passed)):
            for scores in model(input_ids=rows, output_router_logits=True, **more).router_logits:
                best = scores.softmax(-1).topk(chosen + 1, dim=-1).values
                margins.append(float((best[..., -2] - best[..., -1]).min()))
    return min(margins)


def write(case: Case, model: Any, arrays: dict[str, Any], about: dict[str, Any], folder: Path) -> None:
    """Writes the folder: weights, config.json, golden.npz, case.json.

    config.json is what transformers saves. If the code is a file of a model repository, it is what the case states, because
    such code may save keys of its own.
    """
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    model.to(getattr(torch, case.weights)).save_pretrained(folder, safe_serialization=True)
    (folder / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if case.file:
        kept = {key: config[key] for key in ("architectures", "model_type", "torch_dtype")}
        config = {**kept, **case.config, "architectures": list(case.architectures or config["architectures"])}
    np.savez_compressed(folder / "golden.npz", **dict(sorted(arrays.items())))
    for name, content in (("config", config), ("case", about)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def report(case: Case, folder: Path, code: Path | None) -> None:
    """Records a case and prints a line on it."""
    about = record(case, folder, code)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{case.name}: {size} bytes, seed {about['seed']}, smallest lead {about['greedy_min_margin']:.3g}")


def cases_of(file: Path, name: str | None = None) -> list[Case]:
    """The cases of a Python file, or the one of this name.

    Raises:
        SystemExit: There is no such file, or it has no such cases.
    """
    if not file.is_file():
        sys.exit(f"{file} does not exist; it must be a Python file with CASES = (llmctl.testing.case.Case(...), ...)")
    found = [case for case in runpy.run_path(str(file)).get("CASES", ()) if isinstance(case, Case)]
    if not found:
        sys.exit(f"{file} has no CASES = (llmctl.testing.case.Case(...), ...)")
    chosen = [case for case in found if name in (None, case.name)]
    return chosen or sys.exit(f"{file} has no case {name!r}; it has {', '.join(case.name for case in found)}")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m llmctl.testing.record", description=__doc__.splitlines()[0])
    parser.add_argument("cases", type=Path, metavar="CASES.py", help="a file with CASES = (Case(...), ...)")
    parser.add_argument("--case", help="only this one")
    parser.add_argument("--code", type=Path, help="a downloaded model repository with the authors' modeling_*.py")
    parser.add_argument("--out", type=Path, required=True, help="write the folders CASE here")
    options = parser.parse_args(arguments)
    for case in cases_of(options.cases, options.case):
        report(case, options.out / case.name, options.code)


if __name__ == "__main__":
    main()
