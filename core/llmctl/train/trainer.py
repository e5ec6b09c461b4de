"""A run, whatever its method: from a checked job to an output folder with what was trained.

The steps are in ``run``, in order. What is trained on is a ``RunData``, what is trained a ``Subject``. What an output
folder holds is in the package's docstring.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from llmctl import runtime
from llmctl.checkpoint import atomic_file, atomic_folder
from llmctl.config import schema
from llmctl.config.common import warmup_steps
from llmctl.io.atomic import explain_os_errors
from llmctl.jobs import precision
from llmctl.jobs.loggers import PACKAGES
from llmctl.jobs.paths import STAGING
from llmctl.jobs.precision import Precision
from llmctl.runtime import operators
from llmctl.train import activation_checkpointing, resume
from llmctl.train.callbacks import checkpoints, metrics_log, scalar_writers
from llmctl.train.callbacks.early_stopping import Patience
from llmctl.train.callbacks.ema import Average
from llmctl.train.callbacks.progress import display
from llmctl.train.callbacks.run_record import Record, write_info
from llmctl.train.callbacks.tensor_stats import FILE as STATISTICS
from llmctl.train.callbacks.tensor_stats import Statistics
from llmctl.train.loop import Hook, Interrupted, Loop, NonFiniteError, Plan
from llmctl.train.optim.adamw import AdamW
from llmctl.train.optim.loss_scaler import LossScale
from llmctl.train.optim.schedules import schedule
from llmctl.train.resume import Job
from llmctl.train.summary import show
from llmctl.train.task import Task
from llmctl.train.trainable.base import Subject

REFERENCE = "reference.npz"
"""What ``dpo.precompute_reference`` keeps in the output folder."""

LEFTOVERS = (
    "config.yaml",
    "run.json",
    "metrics.jsonl",
    "curve.svg",
    "report.html",
    *PACKAGES,
    "best.json",
    "nan_step.json",
    STATISTICS,
    REFERENCE,
    "checkpoints",
    "model",
)
"""What a run leaves in its output folder, and what ``overwrite`` deletes there."""


class RunData(Protocol):
    """What a run trains and is measured on."""

    task: Task
    held_out: str

    def samples(self, model: Any) -> list[dict[str, str]]:
        """``prompt``, ``expected`` and ``answer`` of held-out examples to show; may be empty."""


def run(
    job: Job,
    prepare: Callable[[Any], RunData],
    load: Callable[[Any, Path | None], Subject],
    hooks: Sequence[Hook] = (),
    finish: Callable[[Any, RunData], Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Trains, and writes the output folder; returns the content of its ``run.json``.

    Args:
        job: A job that passed its checks.
        prepare: Makes the data from the job.
        load: Makes the subject from the job and the checkpoint to continue, if any.
        hooks: Called after the run's own at each occasion.
        finish: Measures the final model once, for ``run.json``.

    Raises:
        LlmctlError: The model, tokenizer or data do not fit, or training met a loss that is not finite.
        Interrupted: Ctrl-C; a checkpoint was saved.
    """
    runtime.configure()
    begun = time.monotonic()
    start = checkpoints.newest(job.output / "checkpoints") if job.config.output.resume else None
    before = resume.read(job) if start else None
    if start and before:
        resume.check_unchanged(job, before, start)
    types = precision.of(job.config.model.dtype, job.config.train)
    if types.note:
        print(types.note, flush=True)
    if line := operators.note():
        print(line, flush=True)
    data = prepare(job)
    subject = load(job, start)
    train = job.config.train
    activation_checkpointing.apply(subject.model, job.plugin.card, job.dims, train.recompute, train.recompute_interval)
    _open_output(job, start)
    adamw = _optimizer(job, subject, types)
    average = Average(adamw.parameters, train.ema_decay, adamw.moved) if train.ema_decay else None
    info = resume.describe(job) if before is None else before
    record = Record(job.output, info)
    loop, done = _loop(job, subject, data, start, adamw, average, types, [*hooks, record])
    info.update(subject.notes, precision=types.record())
    if "before" not in info:
        info["before"] = _measure(subject, data, types) if start is None else {"metrics": {}, "samples": []}
        write_info(job.output, info)
    with record:
        last = _train(job, loop, done)
        info["best"], metrics = _choose(job, subject, last, average)
        info["after"] = _measure(subject, data, types, metrics)
        info.update(finish(subject.model, data) if finish else {})
        info.update(steps=last, seconds=round(time.monotonic() - begun, 1))
        with atomic_folder(job.output / "model", overwrite=True) as folder:
            subject.write(folder, job.config.output.save_dtype)
        info["next"] = [f"llmctl --model {job.plugin.card.name} generate {shlex.quote(str(job.output / 'model'))}"]
    show(job.output, data.held_out, info)
    return info


def _open_output(job: Job, start: Path | None) -> None:
    """Makes or clears the output folder.

    Raises:
        CheckpointError: It cannot be written.
    """
    output = job.output
    header = f"Run with: llmctl --model {job.plugin.card.name} {job.command} config.yaml"
    with explain_os_errors(output):
        output.mkdir(parents=True, exist_ok=True)
        if job.config.output.overwrite:
            for name in LEFTOVERS:
                path = output / name
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        if start is None:
            (output / "metrics.jsonl").unlink(missing_ok=True)
        (output / "config.yaml").write_text(schema.to_yaml(job.config, header), encoding="utf-8")
    if start:
        print(f"continuing from {start}", flush=True)


def _optimizer(job: Job, subject: Subject, types: Precision) -> AdamW:
    settings = job.config.train
    return AdamW(
        dict(subject.model.named_parameters()),
        beta1=settings.adam_beta1,
        beta2=settings.adam_beta2,
        eps=settings.adam_eps,
        weight_decay=settings.weight_decay,
        decays=subject.decays,
        rates=subject.rates,
        max_norm=settings.max_grad_norm,
        keeps_weights=types.keeps_weights,
        scaling=LossScale(settings.loss_scale, settings.loss_scale_every) if types.scales_losses else None,
    )


def _loop(
    job: Job,
    subject: Subject,
    data: RunData,
    start: Path | None,
    adamw: AdamW,
    average: Average | None,
    types: Precision,
    hooks: Sequence[Hook],
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
    fingerprint = task.fingerprint
    done = checkpoints.restore(start, adamw, fingerprint, settings.seed) if start else 0
    rate = schedule(
        settings.schedule,
        settings.learning_rate,
        settings.decay_steps or steps,
        warmup_steps(steps, settings.warmup_steps, settings.warmup_ratio),
        settings.min_lr_ratio,
    )
    if start and average:
        average.read(start)
    saver = checkpoints.Checkpoints(
        job.output,
        lambda folder: _write_checkpoint(job, subject, average, folder),
        adamw,
        fingerprint,
        settings.best_metric,
        settings.save_total_limit,
        STAGING if job.config.output.async_save else None,
    )
    own: list[Hook] = [average] if average else []
    sinks = scalar_writers.scalars(settings.log_to, job.output)
    own += [*sinks, metrics_log.Journal(job.output, settings.log_every, sinks), display(settings.log_every), saver]
    if settings.patience:
        own.append(Patience(job.output / "metrics.jsonl", settings.best_metric, settings.patience))
    if settings.stats_every:
        own.append(Statistics(job.output, adamw.moved, settings.stats_every))
    evaluating = average.in_place if average else contextlib.nullcontext
    return Loop(subject.model, task, adamw, rate, plan, [*own, *hooks], evaluating, types.computing), done


def _write_checkpoint(job: Job, subject: Subject, average: Average | None, folder: Path) -> None:
    chosen = job.config.output.checkpoint_dtype
    dtype = job.config.model.dtype if chosen == "same" else chosen
    subject.write(folder, dtype)
    subject.write_more(folder, dtype)
    if average:
        average.write(folder)


def _train(job: Job, loop: Loop, done: int) -> int:
    """Trains to the end; the number of the last step."""
    try:
        last = loop.run(done)
    except NonFiniteError as error:
        with atomic_file(job.output / "nan_step.json") as file:
            file.write_text(json.dumps(error.report, indent=2) + "\n", encoding="utf-8")
        raise
    except Interrupted as stop:
        saved = checkpoints.checkpoint_of(job.output, stop.step)
        print(f"interrupted after step {stop.step}; saved {saved}. Run the same command with --resume to continue.")
        raise
    if last < loop.plan.steps:
        print(f"stopped early after step {last}: no better evaluation in {job.config.train.patience}", flush=True)
    return last


def _choose(
    job: Job, subject: Subject, last: int, average: Average | None
) -> tuple[dict[str, Any] | None, dict[str, float]]:
    """Makes the model the final one: the best checkpoint if that is wanted, averaged if weights are.

    Returns:
        What is best, and the metrics of the model as it now is.
    """
    best = checkpoints.read_best(job.output)
    step = last
    if best and job.config.output.load_best and best.step != last:
        step = best.step
        chosen = checkpoints.checkpoint_of(job.output, step)
        subject.read(chosen)
        if average:
            average.read(chosen)
        print(f"the final model is the best checkpoint, of step {step}", flush=True)
    if average:
        average.keep()
    rows = [row for row in metrics_log.read(job.output / "metrics.jsonl") if row["step"] == step and "eval_loss" in row]
    metrics = {name: value for name, value in rows[-1].items() if name not in ("step", "epoch")} if rows else {}
    return asdict(best) if best else None, metrics


def _measure(
    subject: Subject, data: RunData, types: Precision, metrics: dict[str, float] | None = None
) -> dict[str, Any]:
    """Metrics (those given, if any) and sample answers of the model as it is."""
    subject.model.eval()
    with types.computing():
        return {"metrics": metrics or data.task.evaluate(subject.model), "samples": data.samples(subject.model)}
