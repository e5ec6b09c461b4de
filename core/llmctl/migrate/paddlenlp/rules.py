"""Rules for fields that follow from several old keys, or whose values have other names.

A rule takes the old keys, with aliases resolved, and the command, and returns values of new keys. Old defaults are those
of PaddleNLP's argument classes, not of its documentation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmctl.migrate.dialect import Dialect, Old, Rule, Values

NEVER = 10**9
"""An interval in steps that no run reaches."""

REFUSED = {
    "quantize": "quantizes a model; llmctl quantize MODEL --method ptq-a8w8, gptq or awq --calibration FILE --output FOLDER does that",
    "reward": "uses a reward model, which is not supported; llmctl dpo trains on the same preferences",
}
"""Purposes of old files that no command serves, and the message."""

OLD_DEFAULTS: dict[str, Values] = {
    "finetune": {"train.epochs": 1.0, "train.save_total_limit": 0, "output.load_best": False},
    "dpo": {
        "train.epochs": 1.0,
        "train.save_total_limit": 0,
        "output.load_best": False,
        "data.max_length": 4096,
        "data.max_prompt_length": 2048,
    },
    "pretrain": {
        "train.learning_rate": 5e-5,
        "train.weight_decay": 0.0,
        "train.adam_beta2": 0.999,
        "train.save_total_limit": 0,
        "output.load_best": False,
    },
}
"""Old defaults that differ from the new ones, by command."""


def command(old: Old) -> str:
    """The command that does the same as the old file, or a key of ``REFUSED``."""
    if any(key in old for key in ("actor_model_name_or_path", "normalizer_type", "process_reward")):
        return "reward"
    if any(old.get(key) for key in ("do_ptq", "do_gptq", "do_qat", "do_awq")):
        return "quantize"
    if "train_dataset_path" in old:
        return "dpo"
    return "pretrain" if "input_dir" in old else "finetune"


def method(old: Old, command: str) -> Values:
    """Full training, LoRA or prefix tuning, and the quantization of the base."""
    if command == "pretrain":
        return {}
    if old.get("lora") and old.get("prefix_tuning"):
        raise ValueError("lora and prefix_tuning exclude each other; set one to false")
    quantized = old.get("weight_quantize_algo")
    if quantized and not old.get("lora"):
        raise ValueError(f"weight_quantize_algo={quantized} needs lora=true; set that, or leave it out")
    if old.get("prefix_tuning"):
        return {"method.name": "prefix", "method.virtual_tokens": old.get("num_prefix_tokens", 128)}
    if not old.get("lora"):
        return {"method.name": "full"}
    values: Values = {"method.name": "lora", "method.rank": _number(old, "lora_rank", 8)}
    if "lora_alpha" not in old:
        values["method.alpha"] = 4 if old.get("rslora") else 2 * values["method.rank"]
    return {**values, "method.base": BASES.get(quantized, quantized)} if quantized else values


BASES = {"weight_only_int8": "int8", "weight_only_int4": "int4"}
"""Old name of a quantized base -> new name."""


def noise(old: Old, command: str) -> Values:
    """NEFTune alpha, if NEFTune is on."""
    return {"method.neftune_alpha": old.get("neftune_noise_alpha", 5.0)} if old.get("neftune") else {}


def evaluates(old: Old) -> bool:
    """Whether PaddleNLP evaluated: ``evaluation_strategy`` turns evaluation on, whatever ``do_eval`` is."""
    return bool(old.get("do_eval")) or _strategy(old, "evaluation_strategy", "no") != "no"


def constant(old: Old) -> bool:
    """Whether the learning-rate schedule is constant."""
    return str(old.get("lr_scheduler_type", "")).rpartition(".")[2].lower().startswith("constant")


OFF = (None, False, 0, 1, -1)
"""Degrees of what is not shared."""

INACTIVE: tuple[tuple[str, Callable[[Old], Any], tuple[str, ...]], ...] = (
    (
        "lora is off",
        lambda old: old.get("lora"),
        ("lora_rank", "lora_alpha", "rslora", "lora_plus_scale", "pissa"),
    ),
    ("prefix_tuning is off", lambda old: old.get("prefix_tuning"), ("num_prefix_tokens",)),
    ("neftune is off", lambda old: old.get("neftune"), ("neftune_noise_alpha",)),
    (
        "tensor_parallel_degree is off",
        lambda old: old.get("tensor_parallel_degree") not in OFF,
        ("sequence_parallel",),
    ),
    (
        "pipeline_parallel_degree is off",
        lambda old: old.get("pipeline_parallel_degree") not in OFF,
        ("virtual_pp_degree",),
    ),
    ("sharding is off", lambda old: old.get("sharding"), ("sharding_parallel_degree",)),
    ("recompute is off", lambda old: old.get("recompute"), ("recompute_granularity",)),
    (
        "evaluation is off",
        lambda old: old.get("do_eval") or str(old.get("evaluation_strategy", "no")).lower() != "no",
        ("metric_for_best_model", "greater_is_better", "eval_with_do_generation"),
    ),
    (
        "a constant learning rate does not decay",
        lambda old: not constant(old),
        ("decay_steps", "min_learning_rate", "lr_end"),
    ),
    (
        "only the loss sigmoid has label smoothing",
        lambda old: old.get("loss_type", "sigmoid") == "sigmoid",
        ("label_smoothing",),
    ),
)
"""(reason, whether a feature is on, keys that have no effect unless it is)."""


def data(old: Old, command: str) -> Values:
    """Files to train and evaluate on. A folder is given as such only if its dev file is to be used."""
    if command == "pretrain":
        return {}
    if command == "dpo":
        packing = "best-fit" if old.get("greedy_intokens", True) else "first-come"
        dev = {"data.dev": old["dev_dataset_path"]} if old.get("dev_dataset_path") and evaluates(old) else {}
        return {"data.packing": packing, **dev}
    folder = old.get("dataset_name_or_path")
    if not folder:
        raise ValueError("dataset_name_or_path is missing; set it to the folder with train.json and dev.json")
    packing = "best-fit" if old.get("greedy_zero_padding") else "first-come"
    values: Values = {"data.train": [folder if evaluates(old) else f"{str(folder).rstrip('/')}/train.json"]}
    return {**values, "data.packing": packing} if old.get("zero_padding") else values


def template(old: Old, command: str) -> Values:
    """The chat template: none by default; the model's own if the value is the model's path."""
    if command == "pretrain":
        return {}
    value = old.get("chat_template") or "none"
    return {"data.chat_template": "auto" if value == old.get("model_name_or_path") else value}


def model(old: Old, command: str) -> Values:
    """The checkpoint, or the config.json of a new model, and the tokenizer."""
    path, tokenizer = old.get("model_name_or_path"), old.get("tokenizer_name_or_path")
    if not path:
        raise ValueError("model_name_or_path is missing; set it to the folder of the model")
    if command != "pretrain":
        if tokenizer and tokenizer != path:
            raise ValueError(
                "tokenizer_name_or_path is another folder than the model; copy the tokenizer's files to the folder of the model"
            )
        if not old.get("continue_training", True):
            raise ValueError("continue_training=false trains a new model; that is what llmctl pretrain does")
        return {"model.path": path}
    if old.get("continue_training"):
        if old.get("num_hidden_layers"):
            raise ValueError("num_hidden_layers has no effect with continue_training; leave it out")
        return {"model.path": path, **({"model.tokenizer": tokenizer} if tokenizer and tokenizer != path else {})}
    layers = old.get("num_hidden_layers")
    changes = {"model.changes": [f"num_hidden_layers={layers}"]} if layers else {}
    return {"model.config": path, "model.tokenizer": tokenizer or path, **changes}


def evaluation(old: Old, command: str) -> Values:
    """Evaluation interval."""
    if command == "pretrain":
        off = {} if evaluates(old) else {"train.eval_iters": 0}
        return {
            "train.eval_every": _every(old, "eval_steps"),
            "train.test_iters": 100 if old.get("do_predict") else 0,
            **off,
        }
    if _strategy(old, "evaluation_strategy", "no") == "steps":
        return {"train.eval_every": _every(old, "eval_steps")}
    return {"train.eval_every": 0}


def saving(old: Old, command: str) -> Values:
    """Checkpoint interval; the last step is always saved."""
    strategy = _strategy(old, "save_strategy", "steps")
    every = {"steps": old.get("save_steps", 500), "epoch": 0, "no": NEVER}[strategy]
    if command == "pretrain" and strategy == "epoch":
        raise ValueError("save_strategy=epoch: pretraining has no epochs; set save_steps")
    return {"train.save_every": every}


def length(old: Old, command: str) -> Values:
    """Number of steps; below 1 = by epochs."""
    steps = _number(old, "max_steps", -1)
    if command == "pretrain" and steps < 1:
        raise ValueError("max_steps is missing; pretraining requires it")
    return {"train.max_steps": max(0, steps)}


def rate(old: Old, command: str) -> Values:
    """Learning-rate schedule."""
    name = str(old.get("lr_scheduler_type", "linear")).rpartition(".")[2].lower()
    schedules = {
        "linear": "linear",
        "cosine": "cosine",
        "constant": "constant",
        "constant_with_warmup": "constant",
        "polynomial": "linear",
    }
    if name not in schedules:
        raise ValueError(f"lr_scheduler_type={name} is not supported; supported are {', '.join(schedules)}")
    values: Values = {"train.schedule": schedules[name]}
    if name != "constant":
        values.update({f"train.{key}": old[key] for key in ("warmup_steps", "warmup_ratio") if key in old})
    if name == "cosine" and old.get("num_cycles", 0.5) != 0.5:
        raise ValueError(f"num_cycles={old['num_cycles']} is not supported; the cosine schedule has half a cycle")
    if name == "polynomial":
        if old.get("power", 1.0) != 1 or command == "pretrain":
            raise ValueError("lr_scheduler_type=polynomial is supported only for fine-tuning with power=1; use linear")
        values["train.min_lr_ratio"] = min(
            1.0, _number(old, "lr_end", 1e-7) / (_number(old, "learning_rate", 5e-5) or 1.0)
        )
    return values


def best(old: Old, command: str) -> Values:
    """Metric that chooses the best checkpoint."""
    name = str(old.get("metric_for_best_model") or "loss")
    known = {"loss": "eval_loss", "accuracy": "accuracy", "accuracies": "rewards/accuracies"}
    ours = known.get(name.removeprefix("eval_").removeprefix("rewards/"))
    if ours is None:
        raise ValueError(
            f"metric_for_best_model={name} is not supported; use accuracy or loss, or eval_with_do_generation with "
            "train.best_metric=exact_match"
        )
    rising = old.get("greater_is_better")
    if rising is not None and bool(rising) != (ours != "eval_loss"):
        raise ValueError(f"greater_is_better={rising} contradicts metric_for_best_model={name}; leave it out")
    return {"train.best_metric": ours}


def recompute(old: Old, command: str) -> Values:
    """Gradient checkpointing; ``core_attn`` becomes the whole attention."""
    granularity = old.get("recompute_granularity", "full")
    known = {"full": "full", "full_attn": "attention", "core_attn": "attention"}
    if granularity not in known:
        raise ValueError(f"recompute_granularity={granularity}: allowed are {', '.join(known)}")
    return {"train.recompute": known[granularity] if old.get("recompute") else "none"}


def precision(old: Old, command: str) -> Values:
    """Type of the final weights: a half type only if the old weights were in one (O2)."""
    level = old.get("half_level", "O1")
    if level not in ("O0", "O1", "O2"):
        raise ValueError(f"half_level={level}: allowed are O0, O1 and O2")
    half = "bfloat16" if old.get("bf16") else "float16" if old.get("fp16") else ""
    return {"output.save_dtype": half if half and level == "O2" else "float32"}


DEGREES = {
    "tensor_parallel_degree": "parallel.tensor",
    "pipeline_parallel_degree": "parallel.pipeline",
    "data_parallel_degree": "parallel.data",
    "expert_parallel_degree": "parallel.expert",
}
"""Old degree -> new key; -1, 0 and 1 are off."""


def parallel(old: Old, command: str) -> Values:
    """How devices share a step."""
    found: Values = {new: int(old[key]) for key, new in DEGREES.items() if _number(old, key, 1) > 1}
    if old.get("use_expert_parallel") and "parallel.expert" not in found:
        raise ValueError(
            "use_expert_parallel shares experts over all data ranks; set expert_parallel_degree to their number"
        )
    if old.get("sequence_parallel") and "parallel.tensor" in found:
        found["parallel.sequence"] = True
    if "parallel.pipeline" in found and _number(old, "virtual_pp_degree", 1) > 1:
        found["parallel.chunks"] = int(old["virtual_pp_degree"])
    return {**found, **_sharding(old)}


def _sharding(old: Old) -> Values:
    """The stage and the devices that share; without a degree all that are left share."""
    value = old.get("sharding") or ""
    words = {word for part in (value if isinstance(value, list) else [value]) for word in str(part).split()}
    unknown = words - {"stage1", "stage2", "stage3", "offload"}
    stages = sorted(words - {"offload"} - unknown)
    if unknown or len(stages) > 1 or words == {"offload"}:
        raise ValueError(f"sharding={value}: allowed are stage1, stage2 and stage3, with offload or without")
    degree = _number(old, "sharding_parallel_degree", -1)
    if not stages or degree in (0, 1):
        return {}
    stage = {"parallel.sharding_stage": int(stages[0][-1])} if stages[0] != "stage1" else {}
    offload = {"parallel.offload": True} if "offload" in words else {}
    return {"parallel.sharding": int(max(0, degree)), **stage, **offload}


def seed(old: Old, command: str) -> Values:
    """Random seed, in pretraining also that of the data order."""
    if "seed" not in old:
        return {}
    return {"train.seed": old["seed"], **({"data.seed": old["seed"]} if command == "pretrain" else {})}


def logs(old: Old, command: str) -> Values:
    """Where metrics are logged."""
    value = old.get("report_to") or "none"
    names = [value] if isinstance(value, str) else list(value)
    unknown = [name for name in names if name not in ("none", "visualdl", "tensorboard", "wandb", "all")]
    if unknown:
        raise ValueError(f"report_to={unknown[0]} is not supported; use visualdl, tensorboard or wandb")
    return {"train.log_to": ["tensorboard", "visualdl"] if "all" in names else names}


def _strategy(old: Old, key: str, default: str) -> str:
    name = str(old.get(key, default)).lower()
    if name not in ("no", "steps", "epoch"):
        raise ValueError(f"{key}={name}: allowed are no, steps, epoch")
    return name


def _every(old: Old, key: str) -> Any:
    return old.get(key) or old.get("logging_steps", 500)


def _number(old: Old, key: str, default: float) -> Any:
    value = old.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{key}={value!r}: expected a number")
    return value


RULES: tuple[Rule, ...] = (
    method, noise, data, template, model, evaluation, saving, length, rate, best, recompute, precision, parallel, seed, logs,
)  # fmt: skip


def _is_old(data: Old) -> bool:
    """Whether a file is flat, with a model and an output folder."""
    return "output_dir" in data and any(key.endswith("model_name_or_path") for key in data)


def _effects(old: Old, command: str) -> dict[str, str]:
    """The half types, which mean less here, and passes, which devices share."""
    kind = "bf16" if old.get("bf16") else "fp16" if old.get("fp16") else ""
    found = {kind: "training computes in float32; with O2 it sets the type of the final weights"} if kind else {}
    shared: Any = False
    with contextlib.suppress(ValueError):
        shared = _sharding(old) or _number(old, "data_parallel_degree", 1) > 1
    return {**found, "gradient_accumulation_steps": PASSES} if shared else found


PASSES = (
    "devices share the micro-batches of a step; to keep the old global batch size, multiply train.grad_accumulation by the "
    "number of data parallel and sharding ranks"
)


DIALECT = Dialect(
    name="PaddleNLP", keys=Path(__file__).with_name("keys.yaml"), recognise=_is_old, command=command, refused=REFUSED,
    defaults=OLD_DEFAULTS, inactive=INACTIVE, rules=RULES, effects=_effects,
)  # fmt: skip
