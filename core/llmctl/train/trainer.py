"""A training run of any method: from a checked job to an output folder with the trained model.

``_run`` has the steps in order. A ``methods.base.Method`` has what depends on the method, a ``Trainable`` what is trained. The
package's docstring lists what the output folder holds.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from llmctl import runtime
from llmctl.checkpoint import atomic_file, atomic_folder
from llmctl.config import schema
from llmctl.config.common import warmup_steps
from llmctl.io.checksums import write_manifest
from llmctl.jobs import added_tokens, registry
from llmctl.jobs.job import CheckedJob
from llmctl.jobs.paths import STAGING
from llmctl.jobs.precision import Precision
from llmctl.parallel import experts
from llmctl.parallel.mesh import Mesh
from llmctl.parallel.placement import Placement
from llmctl.parallel.ranks import ALONE, Ranks
from llmctl.parallel.topology import AXES
from llmctl.report.next_commands import try_line
from llmctl.runtime import operators
from llmctl.train import activation_checkpointing, alike, banner, resume
from llmctl.train.callbacks import checkpoints, metrics_log
from llmctl.train.callbacks import ema as averages
from llmctl.train.callbacks.base import Callback, LoopSettings
from llmctl.train.callbacks.early_stopping import EarlyStopping
from llmctl.train.callbacks.ema import EMA
from llmctl.train.callbacks.run_record import RunRecord, write_info
from llmctl.train.callbacks.tensor_stats import TensorStats
from llmctl.train.callbacks.tracker_writer import RunFacts
from llmctl.train.callbacks.writers import writers_of
from llmctl.train.console import STDOUT, Console
from llmctl.train.full_state import FullState, Part
from llmctl.train.interrupt import Interrupted, ends_at_once
from llmctl.train.loop import Loop, NonFiniteError
from llmctl.train.methods.base import Method, RunData
from llmctl.train.optim.adamw import AdamW, trained
from llmctl.train.optim.loss_scaler import LossScaler
from llmctl.train.optim.master_weights import MasterWeights
from llmctl.train.optim.schedules import schedule
from llmctl.train.optim.shards import Shards
from llmctl.train.optim.slices import total
from llmctl.train.optim.units import Units
from llmctl.train.output import open_output
from llmctl.train.place import Place
from llmctl.train.summary import show
from llmctl.train.trainable.base import Trainable, precision_of

END = ("steps", "seconds", "best", "before", "after", "next")
"""Keys of ``run.json`` in the event at the end of a run."""


MODEL, OPTIMIZER, AVERAGE = "model", "optimizer", "average"
"""The parts of the state of a run."""

State = Callable[[str], Mapping[str, Any]]


@dataclass(frozen=True)
class Setup:
    """What one run trains, on what and with what; made before its first step.

    Attributes:
        job: The checked job.
        data: What it is trained and evaluated on.
        trainable: What it trains.
        precision: Dtypes of parameters, computation and checkpoints.
        optimizer: The optimizer.
        ema: The averaged weights; None = no averaging.
        console: Where it prints.
        ranks: The processes that train together.
        state: Gives the tensors of a part of the run's state by name: ``MODEL``, ``OPTIMIZER`` or ``AVERAGE``.
    """

    job: CheckedJob[Any]
    data: RunData
    trainable: Trainable
    precision: Precision
    optimizer: AdamW
    ema: EMA | None
    console: Console
    ranks: Ranks
    state: State


def run(
    job: CheckedJob[Any], callbacks: Sequence[Callback] = (), console: Console = STDOUT, ranks: Ranks = ALONE
) -> dict[str, Any]:
    """Trains, and writes the output folder; returns the content of ``run.json``, on rank 0.

    Args:
        job: The checked job.
        callbacks: Called at each event on rank 0, after the run's own callbacks.
        console: Where rank 0 prints.
        ranks: The processes that train together.

    Raises:
        LlmctlError: The model, tokenizer or data do not fit, or a loss or gradient is not finite.
        Interrupted: A signal such as Ctrl-C; during training, a checkpoint was saved.
    """
    runtime.configure()
    console = console if ranks.main else Console(quiet=True)
    try:
        connected = ranks.rank.size > 1
        with ends_at_once(connected), added_tokens.grown(job, ranks.main, ranks.barrier) as grown:
            info = _run(grown, callbacks, console, ranks)
            ranks.close()
    except Interrupted as stop:
        if stop.step is None:
            console.print(
                f"{stop}, before anything was saved for it. To continue from the newest checkpoint, or begin again without one, "
                "run it again with --resume (output.resume=true)"
            )
        raise
    return info


@dataclass(frozen=True)
class _Start:
    """Where a run begins.

    Attributes:
        checkpoint: The checkpoint that it continues from; None = it begins anew.
        before: ``run.json`` of the run that it continues.
        now: What chat templates take for the present.
    """

    checkpoint: Path | None
    before: dict[str, Any] | None
    now: datetime | None


def _start(job: CheckedJob[Any], ranks: Ranks) -> _Start:
    """Where the run begins, as rank 0 finds it in the output folder."""
    found = _find_start(job) if ranks.main else _Start(None, None, None)
    told = ranks.broadcast_object(
        {
            "checkpoint": str(found.checkpoint or ""),
            "now": found.now.isoformat() if found.now else "",
            "facts": alike.facts(job) if ranks.rank.size > 1 else {},
        }
    )
    if not ranks.main:
        alike.check(job, told["facts"])
    start = _Start(
        Path(told["checkpoint"]) if told["checkpoint"] else None,
        found.before,
        datetime.fromisoformat(told["now"]) if told["now"] else None,
    )
    if job.tokenizer.chat_template:
        job.tokenizer.chat_template.now = start.now
    return start


def _find_start(job: CheckedJob[Any]) -> _Start:
    """Where the run begins; a checkpoint to continue from is checked."""
    start = checkpoints.newest(job.output / "checkpoints") if job.config.output.resume else None
    before = resume.read(job) if start else None
    if start and before:
        resume.check_unchanged(job, before, start)
        checkpoints.check_files(start)
    checkpoints.remove_staged(STAGING)
    return _Start(start, before, datetime.now() if before is None else resume.template_time(before))


def _run(job: CheckedJob[Any], callbacks: Sequence[Callback], console: Console, ranks: Ranks = ALONE) -> dict[str, Any]:
    """All ranks do the same; what is printed and written is so by rank 0 alone."""
    began = time.monotonic()
    start = _start(job, ranks)
    method: Method = registry.resolve(registry.COMMANDS[job.command].method)
    setup = _set_up(job, method, start.checkpoint, console, ranks)
    info: dict[str, Any] = {}
    if ranks.main:
        open_output(job, start.checkpoint)
        info.update(resume.describe(job, start.now) if start.before is None else start.before)
    if start.checkpoint:
        console.print(f"resuming from {start.checkpoint}")
    if ranks.rank.size > 1:
        console.print(_arrangement(ranks))
    ranks.barrier()
    method.start(setup.data, ranks)
    record = RunRecord(job.output, info) if ranks.main else None
    loop, done = _loop(setup, start.checkpoint, [*callbacks, record] if record else [])
    if ranks.main:
        info.update(setup.trainable.metadata, precision=setup.precision.record(), processes=ranks.rank.size)
        info.update(setup.trainable.place.notes(setup.trainable.model))
        _show_start(setup, loop, done)
    if ranks.broadcast_object("before" not in info):
        wanted = start.checkpoint is None and job.config.train.eval_before
        info["before"] = _evaluate(setup) if wanted else {"metrics": {}, "samples": []}
        if ranks.main:
            write_info(job.output, info)
    ranks.barrier()
    with record or contextlib.nullcontext():
        last = _train(setup, loop, done)
        info["best"], metrics = _choose_final(setup, last)
        info["after"] = _evaluate(setup, metrics)
        if ranks.evaluates:
            info.update(method.finish(setup.trainable.model, setup.data, console))
        info.update(steps=last, seconds=round(time.monotonic() - began, 1))
        ranks.lead(lambda: _save_model(setup))
        if ranks.main:
            info["next"] = [try_line(job.output, info)]
    if ranks.main:
        _show_end(setup, info)
    return info


def _show_end(setup: Setup, info: dict[str, Any]) -> None:
    output = setup.job.output
    ended = {"output": str(output), "model": str(output / "model"), **{key: info[key] for key in END}}
    if not setup.console.event("end", ended):
        show(output, setup.data.held_out, info, setup.console)


def _arrangement(ranks: Ranks) -> str:
    """How the processes are arranged, for people."""
    topology = ranks.topology
    if topology.data == ranks.rank.size and topology.expert == 1:
        return f"data parallel: {topology.data} processes share the micro-batches of each step"
    degrees = ", ".join(
        f"{name} {getattr(topology, name)}" for name in (*AXES, "expert") if getattr(topology, name) > 1
    )
    return f"{ranks.rank.size} processes: {degrees}"


def _show_start(setup: Setup, loop: Loop, done: int) -> None:
    model, task, console = setup.trainable.model, setup.data.task, setup.console
    found = banner.facts(setup.job, model, task, loop.settings, setup.precision, done)
    if not console.event("start", found):
        for line in banner.lines(found, console.verbose):
            console.print(line)


def _set_up(job: CheckedJob[Any], method: Method, start: Path | None, console: Console, ranks: Ranks = ALONE) -> Setup:
    """Prepares the data, loads the model and creates the optimizer."""
    train, precision = job.config.train, precision_of(job)
    for note in filter(None, (*job.notes, precision.note, operators.note())):
        console.print(note)
    data = method.prepare(job, console)
    trainable = method.load(job, start, Place.of(job, ranks))
    method.bind(job, data, trainable, console)
    card, dims = job.model.plugin.card, job.model.dims
    activation_checkpointing.apply(trainable.model, card, dims, train.recompute, train.recompute_interval)
    placement = _placement(trainable, ranks)
    trained_here = trained(dict(trainable.model.named_parameters()))
    ranks.check_equal(total(p) for name, p in trained_here.items() if name not in placement.experts)
    weights = _weights(job, trainable, ranks, placement)
    optimizer = _optimizer(job, trainable, precision, weights)
    ema = EMA(weights, train.ema_decay) if train.ema_decay else None
    state = _state(trainable, optimizer, ema, ranks)
    return Setup(job, data, trainable, precision, optimizer, ema, console, ranks, state)


def _placement(trainable: Trainable, ranks: Ranks) -> Placement:
    """Where the parameters are."""
    model = trainable.model
    splits, stages = trainable.place.cut.splits, _stages(ranks, [name for name, _ in model.named_parameters()])
    return Placement(ranks.topology, ranks.place, splits, stages, _experts(ranks, model))


def _weights(job: CheckedJob[Any], trainable: Trainable, ranks: Ranks, placement: Placement) -> MasterWeights:
    """What the optimizer updates on this rank."""
    model, stage, offload = trainable.model, job.config.parallel.sharding_stage, job.config.parallel.offload
    parameters = trained(dict(model.named_parameters()))
    complete, sum_stages = (getattr(model, name, None) for name in ("complete_grads", "sum_stages"))
    if not isinstance(ranks, Mesh) or ranks.sharding.size == 1:
        return MasterWeights(parameters, ranks, placement, complete, sum_stages, offload)
    if stage < 3:
        return Shards(parameters, ranks, stage, placement, complete, sum_stages, offload)
    ranks.weights_shared = True
    return Units(parameters, ranks, trainable.place.shared_layers(model), placement, complete, sum_stages, offload)


def _stages(ranks: Ranks, names: Iterable[str]) -> dict[str, list[int]]:
    """Name -> the stages that have a parameter, where there are several stages."""
    found: dict[str, list[int]] = {}
    if ranks.topology.pipeline > 1:
        for stage, held in sorted(ranks.all_gather_object((ranks.place.pipeline, list(names)))):
            for name in held:
                if stage not in found.setdefault(name, []):
                    found[name].append(stage)
    return found


def _experts(ranks: Ranks, model: Any) -> dict[str, int]:
    """Name -> which of the ranks that share experts has a parameter, for those of experts."""
    axis, found = ranks.axis("expert"), dict[str, int]()
    if ranks.topology.expert > 1:
        for place, held in ranks.all_gather_object((axis.rank, sorted(experts.held_by(model)))):
            found.update(dict.fromkeys(held, place))
    return found


def _state(trainable: Trainable, optimizer: AdamW, ema: EMA | None, ranks: Ranks) -> State:
    """Reads the parts of the state of the run."""
    model, weights = trainable.model, optimizer.weights
    parts = {
        MODEL: Part(lambda: {**model.state_dict(), **weights.model_slices()}, lambda name: name, weights.model_slicing),
        OPTIMIZER: Part(optimizer.state, optimizer.parameter_of, weights.slicing),
    }
    if ema:
        parts[AVERAGE] = Part(lambda: ema.average, lambda name: name, weights.slicing)
    if isinstance(ranks, Mesh):
        return FullState(ranks, weights.placement, parts).state
    return lambda part: parts[part].read()


def _optimizer(job: CheckedJob[Any], trainable: Trainable, precision: Precision, weights: MasterWeights) -> AdamW:
    train = job.config.train
    return AdamW(
        weights.parameters,
        beta1=train.adam_beta1,
        beta2=train.adam_beta2,
        eps=train.adam_eps,
        weight_decay=train.weight_decay,
        decays=trainable.decays,
        lr_scales=trainable.lr_scales,
        max_norm=train.max_grad_norm,
        save_masters=precision.needs_masters,
        scaler=LossScaler(train.loss_scale, train.loss_scale_every) if precision.needs_loss_scaling else None,
        weights=weights,
    )


def _loop(setup: Setup, start: Path | None, callbacks: Sequence[Callback]) -> tuple[Loop, int]:
    """The loop with all callbacks, and the number of steps that are done already."""
    train, task, optimizer, ema = setup.job.config.train, setup.data.task, setup.optimizer, setup.ema
    max_steps = train.max_steps or max(1, round(train.epochs * task.steps_per_epoch))
    settings = LoopSettings(
        max_steps=max_steps,
        eval_every=train.eval_every or task.steps_per_epoch,
        save_every=train.save_every or task.steps_per_epoch,
        seed=train.seed,
    )
    fingerprint = task.fingerprint
    done = checkpoints.restore(start, optimizer, fingerprint, train.seed) if start else 0
    if start and ema:
        ema.load(start)
    lr = schedule(
        train.schedule,
        train.learning_rate,
        train.decay_steps or max_steps,
        warmup_steps(max_steps, train.warmup_steps, train.warmup_ratio),
        train.min_lr_ratio,
    )
    own = _own_callbacks(setup, fingerprint) if setup.ranks.main else []
    shared: list[Callback] = [ema] if ema else []
    if train.stats_every:
        shared.append(TensorStats(setup.job.output, optimizer.weights, train.stats_every, setup.ranks))
    evaluating = ema.applied if ema else contextlib.nullcontext
    model, autocast = setup.trainable.model, setup.precision.autocast
    every, passes = [*shared, *own, *callbacks], setup.trainable.place.passes
    loop = Loop(model, task, optimizer, lr, settings, every, evaluating, autocast, setup.ranks, passes)
    return loop, done


def _own_callbacks(setup: Setup, fingerprint: str) -> list[Callback]:
    """The callbacks of rank 0 in every run, in order: later ones read what earlier ones wrote."""
    train, output = setup.job.config.train, setup.job.output
    facts = RunFacts(train.project, train.run_name or output.resolve().name, schema.to_dict(setup.job.config))
    writers = writers_of(train.log_to, output, facts)
    saver = checkpoints.CheckpointSaver(
        output,
        lambda folder: _save_checkpoint(setup, folder),
        lambda: setup.state(OPTIMIZER),
        fingerprint,
        train.best_metric,
        train.save_total_limit,
        STAGING if setup.job.config.output.async_save else None,
    )
    logger = metrics_log.MetricsLogger(output, train.log_every, writers)
    own: list[Callback] = [*writers, logger, setup.console.progress(train.log_every), saver]
    if train.patience:
        own.append(EarlyStopping(output / "metrics.jsonl", train.best_metric, train.patience))
    return own


def _save_checkpoint(setup: Setup, folder: Path) -> None:
    chosen = setup.job.config.output.checkpoint_dtype
    dtype = setup.job.config.model.dtype if chosen == "same" else chosen
    state = setup.state(MODEL)
    setup.trainable.save(folder, dtype, state)
    setup.trainable.save_extra(folder, dtype, state)
    if setup.ema:
        averages.save(folder, setup.state(AVERAGE))


def _save_model(setup: Setup) -> None:
    with atomic_folder(setup.job.output / "model", overwrite=True) as folder:
        setup.trainable.save(folder, setup.job.config.output.save_dtype, setup.state(MODEL))
        write_manifest(folder)


def _train(setup: Setup, loop: Loop, done: int) -> int:
    """Trains to the end; returns the number of the last step."""
    job, console = setup.job, setup.console
    try:
        last = loop.run(done)
    except NonFiniteError as error:
        if not setup.ranks.main:
            raise
        with atomic_file(job.output / "nan_step.json") as file:
            file.write_text(json.dumps(error.report, indent=2) + "\n", encoding="utf-8")
        raise
    except Interrupted as stop:
        if stop.step is not None:
            saved = checkpoints.checkpoint_of(job.output, stop.step)
            console.print(
                f"interrupted after step {stop.step}; saved {saved}. To continue, run it again with --resume "
                "(output.resume=true)"
            )
        raise
    if last < loop.settings.max_steps:
        console.print(f"stopped early after step {last}")
    return last


def _choose_final(setup: Setup, last: int) -> tuple[dict[str, Any] | None, dict[str, float]]:
    """Restores the best checkpoint if the configuration asks for it, and applies the averaged weights if there are any.

    Returns:
        The best checkpoint, and the metrics of the final model.
    """
    job, ema, ranks = setup.job, setup.ema, setup.ranks
    best = checkpoints.read_best(job.output) if ranks.main else None
    wanted = best is not None and job.config.output.load_best and best.step != last
    step = ranks.broadcast_object(best.step if best and wanted else last)
    if step != last:
        chosen = checkpoints.checkpoint_of(job.output, step)
        with setup.optimizer.weights.restoring():
            setup.trainable.restore(chosen)
        if ema:
            ema.load(chosen)
        setup.console.print(f"the final model is the best checkpoint, of step {step}")
    if ema:
        ema.copy_to_model()
    written = metrics_log.read(job.output / "metrics.jsonl") if ranks.main else []
    rows = [row for row in written if row["step"] == step and "eval_loss" in row]
    metrics = {name: value for name, value in rows[-1].items() if name not in ("step", "epoch")} if rows else {}
    return asdict(best) if best else None, metrics


def _evaluate(setup: Setup, metrics: dict[str, float] | None = None) -> dict[str, Any]:
    """Metrics (those given to rank 0, if any) and sample answers of the model; on ranks that do not evaluate nothing."""
    model, data = setup.trainable.model, setup.data
    known = setup.ranks.broadcast_object(bool(metrics))
    if not setup.ranks.evaluates:
        return {}
    model.eval()
    with setup.precision.autocast():
        return {"metrics": metrics if known else data.task.evaluate(model), "samples": data.samples(model)}
