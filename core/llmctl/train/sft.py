"""Supervised fine-tuning of every parameter: from a checked job to an output folder with the finished model.

The steps are in ``run``, in order. What an output folder holds is in the package's docstring; what is trained on is a
``SftTask``, made here from the job's examples.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmctl import config as configs
from llmctl import plugins, runtime
from llmctl.checkpoint import atomic_file, atomic_folder, load_weights, open_folder
from llmctl.checkpoint.model import load_model
from llmctl.checkpoint.run_json import run_info
from llmctl.preflight import FinetuneJob
from llmctl.train import checkpoints, journal
from llmctl.train.display import display, format_metric, table
from llmctl.train.loop import Hook, Interrupted, Loop, NonFiniteError, Plan
from llmctl.train.model_folder import ModelWriter
from llmctl.train.optimizer import AdamW
from llmctl.train.schedules import schedule, warmup_steps
from llmctl.train.sft_data import SftData, prepare

LEFTOVERS = (
    "config.yaml",
    "run.json",
    "metrics.jsonl",
    "curve.svg",
    "best.json",
    "nan_step.json",
    "checkpoints",
    "model",
)
"""What a run leaves in its output folder, and what ``overwrite`` deletes there."""


def run(job: FinetuneJob, hooks: Sequence[Hook] = ()) -> dict[str, Any]:
    """Trains, and writes the output folder; returns the content of its ``run.json``.

    Args:
        job: A job that passed its checks.
        hooks: Called after the run's own at each occasion.

    Raises:
        LlmctlError: The model, tokenizer or data do not fit, or training met a loss that is not finite.
        Interrupted: Ctrl-C; a checkpoint was saved.
    """
    runtime.configure()
    settings = job.config
    begun = time.monotonic()
    start = checkpoints.newest(job.output / "checkpoints") if settings.output.resume else None
    data = prepare(job, job.dims)
    model, dims, plugin = load_model(start or job.model, job.plugin.card.name, settings.model.dtype)
    _open_output(job, start)
    writer = ModelWriter(plugin, dims, job.model, data.tokenizer, configs.parse_bytes(settings.output.max_shard_bytes))
    loop, done = _loop(job, model, data, writer, start, hooks)
    info = _info(job) if start is None else _read_info(job)
    if "before" not in info:
        info["before"] = _measure(model, data) if start is None else {"metrics": {}, "samples": []}
        _write_info(job, info)
    _train(job, loop, done)
    info["best"], metrics = _choose(job, model, writer, loop.plan.steps)
    info["after"] = _measure(model, data, metrics)
    info.update(steps=loop.plan.steps, seconds=round(time.monotonic() - begun, 1))
    with atomic_folder(job.output / "model", overwrite=True) as folder:
        writer.write(folder, model, settings.output.save_dtype)
    _write_info(job, info)
    _show(job, info)
    return info


def _open_output(job: FinetuneJob, start: Path | None) -> None:
    """Makes or clears the output folder."""
    output = job.output
    output.mkdir(parents=True, exist_ok=True)
    if job.config.output.overwrite:
        for name in LEFTOVERS:
            path = output / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    if start:
        print(f"continuing from {start}", flush=True)
    else:
        (output / "metrics.jsonl").unlink(missing_ok=True)
    header = f"Run with: llmctl --model {job.plugin.card.name} finetune config.yaml"
    (output / "config.yaml").write_text(configs.to_yaml(job.config, header), encoding="utf-8")


def _loop(
    job: FinetuneJob, model: Any, data: SftData, writer: ModelWriter, start: Path | None, hooks: Sequence[Hook]
) -> tuple[Loop, int]:
    """The loop with all its hooks, and the number of updates that are done already."""
    settings, task = job.config.train, data.task
    steps = settings.max_steps or max(1, round(settings.epochs * task.steps_per_epoch))
    plan = Plan(
        steps=steps,
        eval_every=settings.eval_every or task.steps_per_epoch,
        save_every=settings.save_every or task.steps_per_epoch,
        seed=settings.seed,
    )
    kinds = {tensor.name: tensor.kind for tensor in job.plugin.card.expand(writer.dims)}
    adamw = AdamW(
        dict(model.named_parameters()),
        beta1=settings.adam_beta1,
        beta2=settings.adam_beta2,
        eps=settings.adam_eps,
        weight_decay=settings.weight_decay,
        decays=lambda name: kinds[name] not in ("norm", "bias"),
        max_norm=settings.max_grad_norm,
    )
    fingerprint = task.fingerprint
    done = checkpoints.restore(start, adamw, fingerprint, settings.seed) if start else 0
    rate = schedule(
        settings.schedule,
        settings.learning_rate,
        steps,
        warmup_steps(steps, settings.warmup_steps, settings.warmup_ratio),
        settings.min_lr_ratio,
    )
    saver = checkpoints.Checkpoints(
        job.output,
        lambda folder: writer.write(folder, model, job.config.model.dtype),
        adamw,
        fingerprint,
        settings.best_metric,
        settings.save_total_limit,
    )
    own = [journal.Journal(job.output, settings.log_every), display(settings.log_every), saver]
    return Loop(model, task, adamw, rate, plan, [*own, *hooks]), done


def _train(job: FinetuneJob, loop: Loop, done: int) -> None:
    try:
        loop.run(done)
    except NonFiniteError as error:
        with atomic_file(job.output / "nan_step.json") as file:
            file.write_text(json.dumps(error.report, indent=2) + "\n", encoding="utf-8")
        raise
    except Interrupted as stop:
        saved = checkpoints.checkpoint_of(job.output, stop.step)
        print(f"interrupted after step {stop.step}; saved {saved}. Run the same command with --resume to continue.")
        raise


def _choose(
    job: FinetuneJob, model: Any, writer: ModelWriter, last: int
) -> tuple[dict[str, Any] | None, dict[str, float]]:
    """Loads the best checkpoint if that is wanted; returns what is best, and the metrics of the model as it now is."""
    best = checkpoints.read_best(job.output)
    step = last
    if best and job.config.output.load_best and best.step != last:
        step = best.step
        renames = writer.plugin.hooks.weight_map(card=writer.plugin.card, dims=writer.dims, source="torch")
        load_weights(open_folder(checkpoints.checkpoint_of(job.output, step)), model, renames)
        print(f"the final model is the best checkpoint, of step {step}", flush=True)
    rows = [row for row in journal.read(job.output / "metrics.jsonl") if row["step"] == step and "eval_loss" in row]
    metrics = {name: value for name, value in rows[-1].items() if name not in ("step", "epoch")} if rows else {}
    return asdict(best) if best else None, metrics


def _measure(model: Any, data: SftData, metrics: dict[str, float] | None = None) -> dict[str, Any]:
    """Metrics (those given, if any) and sample answers of the model as it is."""
    model.eval()
    return {"metrics": metrics or data.task.evaluate(model), "samples": data.samples(model)}


def _info(job: FinetuneJob) -> dict[str, Any]:
    card = job.plugin.card
    return run_info(configs.to_dict(job.config), card.hash(), plugins.versions(job.plugin))


def _read_info(job: FinetuneJob) -> dict[str, Any]:
    try:
        return dict(json.loads((job.output / "run.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return _info(job)


def _write_info(job: FinetuneJob, info: dict[str, Any]) -> None:
    with atomic_file(job.output / "run.json") as file:
        file.write_text(json.dumps(info, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _end(text: str, longest: int = 160) -> str:
    """The end of a text, where the question of a long prompt stands."""
    return text if len(text) <= longest else "..." + text[-longest:]


def _show(job: FinetuneJob, info: dict[str, Any]) -> None:
    """Prints metrics and samples before and after, and where everything is."""
    before, after = info["before"], info["after"]
    if after["metrics"]:
        rows = [
            [name.replace("_", " "), format_metric(name, before["metrics"].get(name)), format_metric(name, value)]
            for name, value in after["metrics"].items()
        ]
        table(f"{len(job.dev)} held-out examples", ["metric", "before", "after"], rows)
    if after["samples"]:
        earlier = [sample["answer"] for sample in before["samples"]] or ["" for _ in after["samples"]]
        rows = [
            [_end(sample["prompt"]), _end(sample["expected"]), _end(old), _end(sample["answer"])]
            for sample, old in zip(after["samples"], earlier, strict=False)
        ]
        table("answers to held-out examples", ["prompt", "expected", "before", "after"], rows)
    model = job.output / "model"
    print(f"model in {model}, learning curve in {job.output / 'curve.svg'}")
    print(f"try it: llmctl --model {job.plugin.card.name} generate {model}", file=sys.stdout, flush=True)
