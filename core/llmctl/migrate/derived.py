"""Rules for settings that follow from several old keys, or whose values are called otherwise here.

A rule takes the old keys, their aliases resolved, and the command; it gives values of our keys. Old defaults are those of
PaddleNLP's arguments, not of its documentation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Old = Mapping[str, Any]
Values = dict[str, Any]

NEVER = 10**9
"""A number of steps that no run reaches."""

REFUSED = {
    "quantize": "quantises a model, which is not in this release",
    "reward": "trains with or for a reward model, which is not offered; llmctl dpo learns from the same preferences",
}
"""What files are for that no command reads."""

BEFORE: dict[str, Values] = {
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
"""Old defaults that differ from ours, by command."""


def command(old: Old) -> str:
    """The command that does what the old file was for; one that ``REFUSED`` names is not offered."""
    if any(key in old for key in ("actor_model_name_or_path", "normalizer_type", "process_reward")):
        return "reward"
    if any(old.get(key) for key in ("do_ptq", "do_gptq", "do_qat", "do_awq")):
        return "quantize"
    if "train_dataset_path" in old:
        return "dpo"
    return "pretrain" if "input_dir" in old else "finetune"


def method(old: Old, command: str) -> Values:
    """What is trained."""
    if command == "pretrain":
        return {}
    if old.get("lora") and old.get("prefix_tuning"):
        raise ValueError("lora and prefix_tuning exclude each other; set one to false")
    held = old.get("weight_quantize_algo")
    if held and not old.get("lora"):
        raise ValueError(f"weight_quantize_algo={held} is offered with lora=true only; set that, or leave it out")
    if old.get("prefix_tuning"):
        return {"method.name": "prefix", "method.virtual_tokens": old.get("num_prefix_tokens", 128)}
    if not old.get("lora"):
        return {"method.name": "full"}
    values: Values = {"method.name": "lora", "method.rank": _number(old, "lora_rank", 8)}
    if "lora_alpha" not in old:
        values["method.alpha"] = 4 if old.get("rslora") else 2 * values["method.rank"]
    return {**values, "method.base": BASES.get(held, held)} if held else values


BASES = {"weight_only_int8": "int8", "weight_only_int4": "int4"}
"""Old names of a base in few bits."""


def noise(old: Old, command: str) -> Values:
    """NEFTune, which needs its switch."""
    return {"method.neftune_alpha": old.get("neftune_noise_alpha", 5.0)} if old.get("neftune") else {}


def evaluates(old: Old) -> bool:
    """Whether the old program evaluated: a strategy turns evaluation on, whatever ``do_eval`` says."""
    return bool(old.get("do_eval")) or _strategy(old, "evaluation_strategy", "no") != "no"


def constant(old: Old) -> bool:
    """Whether the learning rate stayed as it was, after a warm-up at most."""
    return str(old.get("lr_scheduler_type", "")).rpartition(".")[2].lower().startswith("constant")


UNASKED: tuple[tuple[str, Callable[[Old], Any], tuple[str, ...]], ...] = (
    (
        "the file does not ask for LoRA",
        lambda old: old.get("lora"),
        ("lora_rank", "lora_alpha", "rslora", "lora_plus_scale", "pissa"),
    ),
    ("the file does not ask for virtual tokens", lambda old: old.get("prefix_tuning"), ("num_prefix_tokens",)),
    ("the file does not ask for NEFTune", lambda old: old.get("neftune"), ("neftune_noise_alpha",)),
    ("the file does not ask for recomputation", lambda old: old.get("recompute"), ("recompute_granularity",)),
    (
        "the file does not ask for evaluation",
        lambda old: old.get("do_eval") or str(old.get("evaluation_strategy", "no")).lower() != "no",
        ("metric_for_best_model", "greater_is_better", "eval_with_do_generation"),
    ),
    (
        "a constant learning rate has no end",
        lambda old: not constant(old),
        ("decay_steps", "min_learning_rate", "lr_end"),
    ),
    (
        "of the losses only sigmoid has smoothing",
        lambda old: old.get("loss_type", "sigmoid") == "sigmoid",
        ("label_smoothing",),
    ),
)
"""Why keys had no effect, whether the old file asks for what they belong to, and the keys."""


def data(old: Old, command: str) -> Values:
    """Files to train and evaluate on. A folder is named whole only when its dev file is to be used."""
    if command == "pretrain":
        return {}
    if command == "dpo":
        packing = "best-fit" if old.get("greedy_intokens", True) else "first-come"
        dev = {"data.dev": old["dev_dataset_path"]} if old.get("dev_dataset_path") and evaluates(old) else {}
        return {"data.packing": packing, **dev}
    folder = old.get("dataset_name_or_path")
    if not folder:
        raise ValueError("dataset_name_or_path is missing; name the folder with train.json and dev.json")
    packing = "best-fit" if old.get("greedy_zero_padding") else "first-come"
    values: Values = {"data.train": [folder if evaluates(old) else f"{str(folder).rstrip('/')}/train.json"]}
    return {**values, "data.packing": packing} if old.get("zero_padding") else values


def template(old: Old, command: str) -> Values:
    """The chat template: none unless it was asked for, that of the model when the model was named."""
    if command == "pretrain":
        return {}
    asked = old.get("chat_template") or "none"
    return {"data.chat_template": "auto" if asked == old.get("model_name_or_path") else asked}


def model(old: Old, command: str) -> Values:
    """A checkpoint to train on, or the config.json of a new model, and the tokenizer."""
    path, tokenizer = old.get("model_name_or_path"), old.get("tokenizer_name_or_path")
    if not path:
        raise ValueError("model_name_or_path is missing; name the model's folder")
    if command != "pretrain":
        if tokenizer and tokenizer != path:
            raise ValueError(
                "tokenizer_name_or_path differs from the model; copy the tokenizer's files to the model's folder"
            )
        if not old.get("continue_training", True):
            raise ValueError("continue_training=false trains a new model; that is what llmctl pretrain does")
        return {"model.path": path}
    if old.get("continue_training"):
        if old.get("num_hidden_layers"):
            raise ValueError("num_hidden_layers cannot change a checkpoint that is trained on; leave it out")
        return {"model.path": path, **({"model.tokenizer": tokenizer} if tokenizer and tokenizer != path else {})}
    layers = old.get("num_hidden_layers")
    changes = {"model.changes": [f"num_hidden_layers={layers}"]} if layers else {}
    return {"model.config": path, "model.tokenizer": tokenizer or path, **changes}


def evaluation(old: Old, command: str) -> Values:
    """When to evaluate."""
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
    """When to save; there always is a last checkpoint."""
    strategy = _strategy(old, "save_strategy", "steps")
    every = {"steps": old.get("save_steps", 500), "epoch": 0, "no": NEVER}[strategy]
    if command == "pretrain" and strategy == "epoch":
        raise ValueError("save_strategy=epoch: pretraining counts steps only; give save_steps")
    return {"train.save_every": every}


def length(old: Old, command: str) -> Values:
    """How long to train; below 1 means by epochs."""
    steps = _number(old, "max_steps", -1)
    if command == "pretrain" and steps < 1:
        raise ValueError("max_steps is missing; pretraining needs it")
    return {"train.max_steps": max(0, steps)}


def rate(old: Old, command: str) -> Values:
    """The course of the learning rate."""
    name = str(old.get("lr_scheduler_type", "linear")).rpartition(".")[2].lower()
    courses = {
        "linear": "linear",
        "cosine": "cosine",
        "constant": "constant",
        "constant_with_warmup": "constant",
        "polynomial": "linear",
    }
    if name not in courses:
        raise ValueError(f"lr_scheduler_type={name} is not offered; offered are {', '.join(courses)}")
    values: Values = {"train.schedule": courses[name]}
    if name != "constant":
        values.update({f"train.{key}": old[key] for key in ("warmup_steps", "warmup_ratio") if key in old})
    if name == "cosine" and old.get("num_cycles", 0.5) != 0.5:
        raise ValueError(f"num_cycles={old['num_cycles']} is not offered; the cosine goes down once")
    if name == "polynomial":
        if old.get("power", 1.0) != 1 or command == "pretrain":
            raise ValueError("lr_scheduler_type=polynomial is offered for fine-tuning with power=1 only; use linear")
        values["train.min_lr_ratio"] = min(
            1.0, _number(old, "lr_end", 1e-7) / (_number(old, "learning_rate", 5e-5) or 1.0)
        )
    return values


def best(old: Old, command: str) -> Values:
    """What the best checkpoint is chosen by."""
    name = str(old.get("metric_for_best_model") or "loss")
    known = {"loss": "eval_loss", "accuracy": "accuracy", "accuracies": "rewards/accuracies"}
    ours = known.get(name.removeprefix("eval_").removeprefix("rewards/"))
    if ours is None:
        raise ValueError(
            f"metric_for_best_model={name} is not offered; use accuracy or loss, or eval_with_do_generation with "
            "train.best_metric=exact_match"
        )
    rising = old.get("greater_is_better")
    if rising is not None and bool(rising) != (ours != "eval_loss"):
        raise ValueError(f"greater_is_better={rising} contradicts metric_for_best_model={name}; leave it out")
    return {"train.best_metric": ours}


def recompute(old: Old, command: str) -> Values:
    """What is computed again rather than kept; the core of attention alone cannot be chosen."""
    granularity = old.get("recompute_granularity", "full")
    known = {"full": "full", "full_attn": "attention", "core_attn": "attention"}
    if granularity not in known:
        raise ValueError(f"recompute_granularity={granularity}: known are {', '.join(known)}")
    return {"train.recompute": known[granularity] if old.get("recompute") else "none"}


def precision(old: Old, command: str) -> Values:
    """The type of the final weights: a half type only where the old program held its weights in one (O2)."""
    level = old.get("half_level", "O1")
    if level not in ("O0", "O1", "O2"):
        raise ValueError(f"half precision level {level}: known are O1 and O2")
    half = "bfloat16" if old.get("bf16") else "float16" if old.get("fp16") else ""
    return {"output.save_dtype": half if half and level == "O2" else "float32"}


def seed(old: Old, command: str) -> Values:
    """The seed of everything, in pretraining also of the order of samples."""
    if "seed" not in old:
        return {}
    return {"train.seed": old["seed"], **({"data.seed": old["seed"]} if command == "pretrain" else {})}


def logs(old: Old, command: str) -> Values:
    """Programs that get the metrics too."""
    asked = old.get("report_to") or "none"
    names = [asked] if isinstance(asked, str) else list(asked)
    strange = [name for name in names if name not in ("none", "visualdl", "tensorboard", "all")]
    if strange:
        raise ValueError(f"report_to={strange[0]} is not offered; use visualdl or tensorboard")
    return {"train.log_to": ["tensorboard", "visualdl"] if "all" in names else names}


def _strategy(old: Old, key: str, default: str) -> str:
    name = str(old.get(key, default)).lower()
    if name not in ("no", "steps", "epoch"):
        raise ValueError(f"{key}={name}: known are no, steps, epoch")
    return name


def _every(old: Old, key: str) -> Any:
    return old.get(key) or old.get("logging_steps", 500)


def _number(old: Old, key: str, default: float) -> Any:
    value = old.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{key}={value!r}: expected a number")
    return value


RULES: tuple[Callable[[Old, str], Values], ...] = (
    method, noise, data, template, model, evaluation, saving, length, rate, best, recompute, precision, seed, logs,
)  # fmt: skip
