"""Rules for fields that follow from several keys of LLaMA-Factory, or whose values have other names.

A rule takes the old keys, with aliases resolved, and the command, and returns values of new keys. Old defaults are those of
its argument classes and of transformers' ``TrainingArguments``.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from llmctl.migrate.dialect import Dialect, Old, Rule, Values
from llmctl.migrate.factory import datasets, degrees

NEVER = 10**9
"""An interval in steps that no run reaches."""

LOGGERS = ("tensorboard", "wandb", "swanlab", "mlflow")
OWN = ("stage", "finetuning_type", "cutoff_len", "template", "dataset", "lora_target")
"""Keys that no other program's files have."""

COMMANDS = {"sft": "finetune", "dpo": "dpo", "pt": "pretrain"}
REFUSED = {
    "rm": "trains a reward model, which is not supported; llmctl dpo trains on the same preferences",
    "ppo": "trains with PPO, which is not supported; llmctl dpo trains on preferences",
    "kto": "trains with KTO, which is not supported; llmctl dpo trains on pairs of answers",
    "predict": "does not train; llmctl generate answers the questions of a file",
}

_EPOCHS: Values = {"train.save_total_limit": 0, "output.load_best": False}
DEFAULTS: dict[str, Values] = {
    "finetune": dict(_EPOCHS),
    "dpo": dict(_EPOCHS),
    "pretrain": {
        "data.seq_length": 2048, "train.learning_rate": 5e-5, "train.min_learning_rate": 0.0, "train.weight_decay": 0.0,
        "train.adam_beta2": 0.999, **_EPOCHS,
    },
}  # fmt: skip
"""Old defaults that differ from the new ones, by command."""


def recognise(data: Old) -> bool:
    """Whether a file is flat, with a model, an output folder and a key of its own."""
    return "model_name_or_path" in data and "output_dir" in data and any(key in data for key in OWN)


def command(old: Old) -> str:
    """The command that does the same as the old file, or a key of ``REFUSED``."""
    stage = str(old.get("stage", "sft"))
    if stage in REFUSED:
        return stage
    if not old.get("do_train", False) and (old.get("do_predict") or old.get("do_eval")):
        return "predict"
    return COMMANDS.get(stage, stage)


def evaluates(old: Old) -> bool:
    """Whether the run is evaluated."""
    return _strategy(old, "eval_strategy", "no") != "no" or bool(old.get("do_eval"))


def trains_lora(old: Old) -> bool:
    """Whether an adapter is trained, which is the default."""
    return bool(old.get("finetuning_type", "lora") == "lora")


def method(old: Old, command: str) -> Values:
    """Full training or LoRA, and the quantization of the base."""
    kind = old.get("finetuning_type", "lora")
    if kind not in ("lora", "full"):
        raise ValueError(f"finetuning_type={kind} is not supported; use lora or full")
    if command == "pretrain":
        if kind != "full":
            raise ValueError("finetuning_type=lora: llmctl pretrain trains all parameters; set finetuning_type to full")
        return {}
    bits = old.get("quantization_bit")
    if kind == "full":
        if bits:
            raise ValueError(f"quantization_bit={bits} needs finetuning_type=lora")
        return {"method.name": "full"}
    values: Values = {"method.name": "lora"}
    target = datasets.names_of(old.get("lora_target", "all"))
    if target != ["all"]:
        values["method.targets"] = target
    whole = datasets.names_of(old.get("additional_target"))
    if not whole and any(datasets.names_of(old.get(key)) for key in ("add_tokens", "add_special_tokens")):
        whole = ["embed_tokens", "lm_head"]  # what LLaMA-Factory trains where it resized the vocabulary
    if whole:
        values["method.modules_to_save"] = whole
    if bits:
        names = {4: "nf4", 8: "int8"}
        if bits not in names or old.get("quantization_type", "nf4") != "nf4":
            raise ValueError(
                f"quantization_bit={bits} of type {old.get('quantization_type', 'nf4')}: 8 and nf4 are supported"
            )
        if old.get("quantization_method", "bnb") not in ("bnb", "bitsandbytes"):
            raise ValueError(
                f"quantization_method={old['quantization_method']}: only that of bitsandbytes is supported"
            )
        values["method.base"] = names[bits]
    return values


def model(old: Old, command: str) -> Values:
    """The model, its revision and its new tokens."""
    path, revision = str(old["model_name_or_path"]), old.get("model_revision")
    if command == "pretrain" and old.get("train_from_scratch"):
        return {"model.config": path, "model.tokenizer": path}
    if old.get("train_from_scratch"):
        raise ValueError("train_from_scratch: a new model is trained by stage pt, llmctl pretrain")
    values: Values = {"model.path": path}
    if revision and revision != "main" and not Path(path).exists():
        values["model.revision"] = revision
    tokens = {f"model.{key}": datasets.names_of(old.get(key)) for key in ("add_tokens", "add_special_tokens")}
    given = {key: value for key, value in tokens.items() if value}
    if given and command == "pretrain":
        raise ValueError("add_tokens: llmctl pretrain adds no tokens; add them with llmctl finetune, or leave them out")
    return {**values, **given}


def precision(old: Old, command: str) -> Values:
    """The half type, which GPUs compute in, with master weights in float32; also that of a full model's final weights."""
    half = "bfloat16" if old.get("bf16") or old.get("pure_bf16") else "float16" if old.get("fp16") else ""
    if not half:
        return {}
    adapter = command != "pretrain" and trains_lora(old)
    return {"model.dtype": half, **({} if adapter else {"output.save_dtype": half})}


def data(old: Old, command: str) -> Values:
    """Files to train and evaluate on, from ``dataset_info.json``."""
    if not datasets.names_of(old.get("dataset")):
        raise ValueError("dataset is missing; set it to names of dataset_info.json")
    found = datasets.read(old["dataset"], old.get("dataset_dir"))
    if command == "pretrain":
        return {"data.corpora": [f"{Path(found.files[0]).with_suffix('')}"], **_split(old)}
    values: Values = {"data.train": found.files, **({"data.columns": found.columns} if found.columns else {})}
    if not evaluates(old):
        return values
    if old.get("eval_dataset"):
        dev = datasets.read(old["eval_dataset"], old.get("dataset_dir"))
        if dev.columns != found.columns:
            raise ValueError("dataset and eval_dataset have different names of columns; give their files the same ones")
        return {**values, "data.dev": dev.files}
    return {**values, "data.dev_size": old["val_size"]} if old.get("val_size") else values


def _split(old: Old) -> Values:
    share = old.get("val_size") or 0
    if not evaluates(old) or not share:
        return {"data.split": "1,0,0", "train.eval_iters": 0, "train.test_iters": 0}
    if not 0 < share < 1:
        raise ValueError(f"val_size={share}: llmctl pretrain holds out a share of the documents; set one below 1")
    return {"data.split": f"{1 - share:g},{share:g},0", "train.test_iters": 0}


def texts(old: Old, command: str) -> Values:
    """The chat template, what has loss, and packing."""
    if command == "pretrain":
        return {}
    values: Values = {}
    name = str(old.get("template") or "")
    if name in ("", "empty"):
        values["data.chat_template"] = "none"
    elif name == "default":
        raise ValueError("template=default is not supported; set the name of the model's template, or empty for none")
    if old.get("mask_history") and command == "finetune":
        values["data.train_on"] = "last"
    if old.get("packing") or old.get("neat_packing"):
        values["data.packing"] = "best-fit"
    if old.get("disable_shuffling"):
        values["data.shuffle"] = False
    return values


def preferences(old: Old, command: str) -> Values:
    """The loss of preferences and the reference model."""
    if command != "dpo":
        return {}
    loss = old.get("pref_loss", "sigmoid")
    if loss not in ("sigmoid", "hinge", "ipo", "kto_pair"):
        raise ValueError(f"pref_loss={loss} is not supported; sigmoid, hinge, ipo and kto_pair are")
    if old.get("ref_model") not in (None, old["model_name_or_path"]):
        raise ValueError(
            "ref_model is another model than model_name_or_path; the reference is the model before training"
        )
    return {"dpo.loss": loss}


def length(old: Old, command: str) -> Values:
    """Number of steps; below 1 = by epochs."""
    steps = _number(old, "max_steps", -1)
    if command == "pretrain":
        if steps < 1:
            raise ValueError(
                "max_steps is missing: llmctl pretrain counts steps, not epochs; add max_steps to the file"
            )
        return {"train.max_steps": steps}
    return {"train.max_steps": steps} if steps > 0 else {}


def rate(old: Old, command: str) -> Values:
    """Learning-rate schedule and warm-up."""
    name = str(old.get("lr_scheduler_type", "linear")).lower()
    known = {"linear": "linear", "cosine": "cosine", "constant": "constant", "constant_with_warmup": "constant",
             "cosine_with_min_lr": "cosine"}  # fmt: skip
    if name not in known:
        raise ValueError(f"lr_scheduler_type={name} is not supported; supported are {', '.join(known)}")
    values: Values = {"train.schedule": known[name]}
    more = dict(old.get("lr_scheduler_kwargs") or {})
    if name == "cosine_with_min_lr":
        peak = _number(old, "learning_rate", 5e-5)
        ratio = more.pop("min_lr_rate", None) or (more.pop("min_lr", 0.0) or 0.0) / peak
        values.update(
            {"train.min_learning_rate": ratio * peak} if command == "pretrain" else {"train.min_lr_ratio": ratio}
        )
    if more:
        raise ValueError(f"lr_scheduler_kwargs={more!r} is not supported with lr_scheduler_type={name}; leave it out")
    if name != "constant":
        steps = _number(old, "warmup_steps", 0)
        share = _number(old, "warmup_ratio", 0.0) or (steps if 0 < steps < 1 else 0.0)
        values.update({"train.warmup_steps": int(steps)} if steps >= 1 else {})
        values.update({"train.warmup_ratio": share} if share else {})
    return values


def evaluation(old: Old, command: str) -> Values:
    """Intervals of evaluations and checkpoints, the metric of the best one, and how many are kept."""
    values: Values = {}
    by_steps = _strategy(old, "eval_strategy", "no") == "steps"
    every = old.get("eval_steps") or old.get("logging_steps", 500)
    if command == "pretrain" or by_steps:
        values["train.eval_every"] = every
    saves = _strategy(old, "save_strategy", "steps")
    if saves == "epoch" and command == "pretrain":
        raise ValueError("save_strategy=epoch: pretraining has no epochs; set save_steps")
    values["train.save_every"] = {"steps": old.get("save_steps", 500), "epoch": 0, "no": NEVER}.get(saves, NEVER)
    if old.get("save_total_limit"):
        values["train.save_total_limit"] = old["save_total_limit"]
    return {**values, **_best(old)} if old.get("metric_for_best_model") and evaluates(old) else values


def _best(old: Old) -> Values:
    name = str(old["metric_for_best_model"])
    known = {"loss": "eval_loss", "accuracy": "accuracy", "accuracies": "rewards/accuracies"}
    ours = known.get(name.removeprefix("eval_").removeprefix("rewards/"))
    if ours is None:
        raise ValueError(f"metric_for_best_model={name} is not supported; use loss or accuracy")
    rising = old.get("greater_is_better")
    if rising is not None and bool(rising) != (ours != "eval_loss"):
        raise ValueError(f"greater_is_better={rising} contradicts metric_for_best_model={name}; leave it out")
    return {"train.best_metric": ours}


def the_rest(old: Old, command: str) -> Values:
    """Seed, gradient checkpointing, resuming, loggers."""
    values: Values = {"train.seed": old["seed"]} if "seed" in old else {}
    if command == "pretrain" and "seed" in old:
        values["data.seed"] = old["seed"]
    if old.get("gradient_checkpointing"):
        values["train.recompute"] = "full"
    resume = old.get("resume_from_checkpoint")
    if isinstance(resume, str) and resume.lower() not in ("true", "false"):
        raise ValueError(f"resume_from_checkpoint={resume}: set output_dir to the folder of the run, and true")
    if resume and str(resume).lower() == "true":
        values["output.resume"] = True
    return {**values, "train.log_to": _loggers(old), **_run_names(old)}


def _loggers(old: Old) -> list[str]:
    names = [name for name in datasets.names_of(old.get("report_to")) if name != "none"]
    names += ["swanlab"] if old.get("use_swanlab") and "swanlab" not in names else []
    unknown = [name for name in names if name not in LOGGERS]
    if unknown:
        raise ValueError(f"report_to={', '.join(unknown)} is not supported; use {', '.join(LOGGERS)}")
    return names or ["none"]


def _run_names(old: Old) -> Values:
    """Names that services show."""
    if not set(_loggers(old)) & {"wandb", "swanlab", "mlflow"}:
        return {}
    swanlab = bool(old.get("use_swanlab"))
    names = {
        "train.project": (swanlab and old.get("swanlab_project")) or old.get("project"),
        "train.run_name": (swanlab and old.get("swanlab_run_name")) or old.get("run_name"),
    }
    return {key: value for key, value in names.items() if value}


def effects(old: Old, command: str) -> dict[str, str]:
    """What means something else here."""
    found = {}
    if command == "pretrain":
        file = datasets.read(old["dataset"], old.get("dataset_dir")) if _has_info(old) else None
        if file:
            prefix = Path(file.files[0]).with_suffix("")
            found["dataset"] = (
                f"build the corpus first: llmctl data build {' '.join(file.files)} --tokenizer {old['model_name_or_path']} "
                f"--key {file.key} --append-eos --output {prefix}"
            )
    elif old.get("template") not in (None, "", "empty"):
        found["template"] = (
            f"the chat template of the model's tokenizer is used, not {old['template']} of LLaMA-Factory"
        )
    with contextlib.suppress(ValueError):
        if degrees.sharding(old):
            found["gradient_accumulation_steps"] = (
                "devices share the micro-batches of a step; to keep the old global batch size, multiply "
                "train.grad_accumulation by their number"
            )
    if old.get("packing") or old.get("neat_packing"):
        found["packing"] = "examples in a row never attend to each other"
    if not old.get("disable_gradient_checkpointing") and not old.get("gradient_checkpointing"):
        found["gradient checkpointing"] = "LLaMA-Factory has it on; train.recompute: full saves memory and costs time"
    return found


def _has_info(old: Old) -> bool:
    try:
        datasets.read(old.get("dataset"), old.get("dataset_dir"))
    except ValueError:
        return False
    return True


def _strategy(old: Old, key: str, default: str) -> str:
    name = str(old.get(key, default)).lower()
    # YAML reads a bare no as false.
    name = "no" if name == "false" else name
    if name not in ("no", "steps", "epoch", "best"):
        raise ValueError(f"{key}={name}: allowed are no, steps, epoch")
    return name


def _number(old: Old, key: str, default: float) -> Any:
    value = old.get(key, default)
    if isinstance(value, str):
        # YAML 1.1 reads 1e-4, which has no decimal point, as text.
        with contextlib.suppress(ValueError):
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{key}={value!r}: expected a number")
    return value


INACTIVE = (
    (
        "no effect; max_steps is set", lambda old: not _number(old, "max_steps", -1) > 0 or old.get("stage") != "pt",
        ("num_train_epochs",),
    ),
    (
        "no effect; finetuning_type is not lora", trains_lora,
        ("lora_rank", "lora_alpha", "lora_dropout", "lora_target", "loraplus_lr_ratio", "use_rslora", "use_dora", "pissa_init",
         "additional_target"),
    ),
    (
        "no effect; the stage is not dpo", lambda old: old.get("stage") == "dpo",
        ("pref_beta", "pref_loss", "dpo_label_smoothing", "ref_model"),
    ),
    (
        "no effect; the run is not evaluated", evaluates,
        ("eval_dataset", "val_size", "eval_steps", "per_device_eval_batch_size", "metric_for_best_model", "greater_is_better",
         "load_best_model_at_end", "early_stopping_steps", "predict_with_generate", "max_new_tokens"),
    ),
    ("no effect; nothing is quantized", lambda old: old.get("quantization_bit"), ("quantization_type", "quantization_method")),
)  # fmt: skip

RULES: tuple[Rule, ...] = (
    method, model, precision, data, texts, preferences, length, rate, evaluation, degrees.parallel, the_rest,
)  # fmt: skip

DIALECT = Dialect(
    name="LLaMA-Factory", keys=Path(__file__).with_name("keys.yaml"), recognise=recognise, command=command, refused=REFUSED,
    defaults=DEFAULTS, inactive=INACTIVE, rules=RULES, effects=effects,
)  # fmt: skip
