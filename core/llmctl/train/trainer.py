"""A run, whatever its method: from a checked job to an output folder with what was trained.

The steps are in ``run``, in order. What a method adds is a ``methods.base.Method``, what is trained a ``Subject``. What an
output folder holds is in the package's docstring.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmctl import runtime
from llmctl.checkpoint import atomic_file, atomic_folder
from llmctl.config.common import warmup_steps
from llmctl.jobs import registry
from llmctl.jobs.job import CheckedJob
from llmctl.jobs.paths import STAGING
from llmctl.jobs.precision import Precision
from llmctl.runtime import operators
from llmctl.train import activation_checkpointing, resume
from llmctl.train.callbacks import checkpoints, metrics_log, scalar_writers
from llmctl.train.callbacks.early_stopping import Patience
from llmctl.train.callbacks.ema import Average
from llmctl.train.callbacks.progress import display
from llmctl.train.callbacks.run_record import Record, write_info
from llmctl.train.callbacks.tensor_stats import Statistics
from llmctl.train.loop import Hook, Interrupted, Loop, NonFiniteError, Plan
from llmctl.train.methods.base import Method, RunData
from llmctl.train.optim.adamw import AdamW
from llmctl.train.optim.loss_scaler import LossScale
from llmctl.train.optim.schedules import schedule
from llmctl.train.output import open_output
from llmctl.train.summary import show
from llmctl.train.trainable.base import Subject, precision_of


@dataclass(frozen=True)
class Setup:
    """What one run trains, on what and with what; made before its first step.

    Attributes:
        job: The checked job.
        data: What it trains and is measured on.
        subject: What it trains.
        types: Types of parameters, computation and checkpoints.
        adamw: The optimizer.
        average: The averaged weights; None = none are kept.
    """

    job: CheckedJob[Any]
    data: RunData
    subject: Subject
    types: Precision
    adamw: AdamW
    average: Average | None


def run(job: CheckedJob[Any], hooks: Sequence[Hook] = ()) -> dict[str, Any]:
    """Trains, and writes the output folder; returns the content of its ``run.json``.

    Args:
        job: A job that passed its checks.
        hooks: Called after the run's own at each occasion.

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
    method: Method = registry.resolve(registry.COMMANDS[job.command].method)
    setup = _set_up(job, method, start)
    open_output(job, start)
    info = resume.describe(job) if before is None else before
    record = Record(job.output, info)
    loop, done = _loop(setup, start, [*hooks, record])
    info.update(setup.subject.notes, precision=setup.types.record())
    if "before" not in info:
        info["before"] = _measure(setup) if start is None else {"metrics": {}, "samples": []}
        write_info(job.output, info)
    with record:
        last = _train(setup, loop, done)
        info["best"], metrics = _choose(setup, last)
        info["after"] = _measure(setup, metrics)
        info.update(method.finish(setup.subject.model, setup.data))
        info.update(steps=last, seconds=round(time.monotonic() - begun, 1))
        with atomic_folder(job.output / "model", overwrite=True) as folder:
            setup.subject.write(folder, job.config.output.save_dtype)
        family = job.model.plugin.card.name
        info["next"] = [f"llmctl --model {family} generate {shlex.quote(str(job.output / 'model'))}"]
    show(job.output, setup.data.held_out, info)
    return info


def _set_up(job: CheckedJob[Any], method: Method, start: Path | None) -> Setup:
    """Prepares the data, loads the model and makes the optimizer."""
    train, types = job.config.train, precision_of(job)
    if types.note:
        print(types.note, flush=True)
    if line := operators.note():
        print(line, flush=True)
    data = method.prepare(job)
    subject = method.load(job, start)
    method.bind(job, data, subject)
    card, dims = job.model.plugin.card, job.model.dims
    activation_checkpointing.apply(subject.model, card, dims, train.recompute, train.recompute_interval)
    adamw = _optimizer(job, subject, types)
    average = Average(adamw.parameters, train.ema_decay, adamw.moved) if train.ema_decay else None
    return Setup(job, data, subject, types, adamw, average)


def _optimizer(job: CheckedJob[Any], subject: Subject, types: Precision) -> AdamW:
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


def _loop(setup: Setup, start: Path | None, hooks: Sequence[Hook]) -> tuple[Loop, int]:
    """The loop with all its hooks, and the number of updates that are done already."""
    job, task, adamw, average = setup.job, setup.data.task, setup.adamw, setup.average
    settings = job.config.train
    steps = settings.max_steps or max(1, round(settings.epochs * task.steps_per_epoch))
    plan = Plan(
        steps=steps,
        eval_every=settings.eval_every or task.steps_per_epoch,
        save_every=settings.save_every or task.steps_per_epoch,
        seed=settings.seed,
    )
    fingerprint = task.fingerprint
    done = checkpoints.restore(start, adamw, fingerprint, settings.seed) if start else 0
    if start and average:
        average.read(start)
    rate = schedule(
        settings.schedule,
        settings.learning_rate,
        settings.decay_steps or steps,
        warmup_steps(steps, settings.warmup_steps, settings.warmup_ratio),
        settings.min_lr_ratio,
    )
    own = _own_hooks(setup, fingerprint)
    evaluating = average.in_place if average else contextlib.nullcontext
    model = setup.subject.model
    return Loop(model, task, adamw, rate, plan, [*own, *hooks], evaluating, setup.types.computing), done


def _own_hooks(setup: Setup, fingerprint: str) -> list[Hook]:
    """What a run does beside its updates, in order: later ones read what earlier ones wrote."""
    job, average = setup.job, setup.average
    settings, output = job.config.train, job.output
    sinks = scalar_writers.scalars(settings.log_to, output)
    saver = checkpoints.Checkpoints(
        output,
        lambda folder: _write_checkpoint(setup, folder),
        setup.adamw,
        fingerprint,
        settings.best_metric,
        settings.save_total_limit,
        STAGING if job.config.output.async_save else None,
    )
    own: list[Hook] = [average] if average else []
    own += [*sinks, metrics_log.Journal(output, settings.log_every, sinks), display(settings.log_every), saver]
    if settings.patience:
        own.append(Patience(output / "metrics.jsonl", settings.best_metric, settings.patience))
    if settings.stats_every:
        own.append(Statistics(output, setup.adamw.moved, settings.stats_every))
    return own


def _write_checkpoint(setup: Setup, folder: Path) -> None:
    chosen = setup.job.config.output.checkpoint_dtype
    dtype = setup.job.config.model.dtype if chosen == "same" else chosen
    setup.subject.write(folder, dtype)
    setup.subject.write_more(folder, dtype)
    if setup.average:
        setup.average.write(folder)


def _train(setup: Setup, loop: Loop, done: int) -> int:
    """Trains to the end; the number of the last step."""
    job = setup.job
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


def _choose(setup: Setup, last: int) -> tuple[dict[str, Any] | None, dict[str, float]]:
    """Makes the model the final one: the best checkpoint if that is wanted, averaged if weights are.

    Returns:
        What is best, and the metrics of the model as it now is.
    """
    job, average = setup.job, setup.average
    best = checkpoints.read_best(job.output)
    step = last
    if best and job.config.output.load_best and best.step != last:
        step = best.step
        chosen = checkpoints.checkpoint_of(job.output, step)
        setup.subject.read(chosen)
        if average:
            average.read(chosen)
        print(f"the final model is the best checkpoint, of step {step}", flush=True)
    if average:
        average.keep()
    rows = [row for row in metrics_log.read(job.output / "metrics.jsonl") if row["step"] == step and "eval_loss" in row]
    metrics = {name: value for name, value in rows[-1].items() if name not in ("step", "epoch")} if rows else {}
    return asdict(best) if best else None, metrics


def _measure(setup: Setup, metrics: dict[str, float] | None = None) -> dict[str, Any]:
    """Metrics (those given, if any) and sample answers of the model as it is."""
    model, data = setup.subject.model, setup.data
    model.eval()
    with setup.types.computing():
        return {"metrics": metrics or data.task.evaluate(model), "samples": data.samples(model)}
