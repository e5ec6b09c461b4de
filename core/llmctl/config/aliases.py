"""What other programs call our keys, for errors about unknown keys.

Names are those of transformers' ``TrainingArguments``, PEFT's ``LoraConfig``, TRL and LLaMA-Factory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Alias(NamedTuple):
    """What becomes of another program's key.

    Attributes:
        keys: Our keys, the first that the command has.
        hint: How values differ; empty = they do not. Without keys: why there is none.
    """

    keys: tuple[str, ...]
    hint: str = ""


LENGTH = Alias(("data.max_length", "data.seq_length"))
BITS = Alias(("method.base",), "`nf4` or `int4` for 4 bits, `int8` for 8, with method.name=lora")
ZERO = Alias(("parallel.sharding",), "a number of devices; the stage of ZeRO is parallel.sharding_stage")
STAGE = Alias(("parallel.sharding_stage",), "with the number of devices in parallel.sharding")
CONTEXT = Alias(
    (), "the tokens of a row are not divided inside attention; parallel.sequence divides them elsewhere; leave it out"
)
KERNELS = Alias((), "the fastest kernels are always used; leave it out")

ALIASES: Mapping[str, Alias] = {
    # the model
    "model_name_or_path": Alias(("model.path",)),
    "model_name": Alias(("model.path",)),
    "pretrained_model_name_or_path": Alias(("model.path",)),
    "base_model": Alias(("model.path",)),
    "model_revision": Alias(("model.revision",)),
    "torch_dtype": Alias(("model.dtype",)),
    "tokenizer_name": Alias(("model.tokenizer",), "in finetune and dpo the tokenizer is that of model.path"),
    "trust_remote_code": Alias((), "code in model folders is never run; leave it out"),
    "new_special_tokens": Alias(("model.add_special_tokens",)),
    # the data
    "dataset": Alias(("data.train", "data.corpora"), "a file, folder or pattern"),
    "dataset_name": Alias(("data.train", "data.corpora"), "a file, folder or pattern"),
    "train_file": Alias(("data.train", "data.corpora")),
    "train_dataset": Alias(("data.train", "data.corpora"), "a file, folder or pattern"),
    "validation_file": Alias(("data.dev",)),
    "eval_dataset": Alias(("data.dev",), "a file, folder or pattern"),
    "max_samples": Alias(("data.max_examples",), "of each entry of data.train"),
    "max_train_samples": Alias(("data.max_examples",), "of each entry of data.train"),
    "val_size": Alias(("data.dev_size",)),
    "cutoff_len": LENGTH,
    "max_seq_length": LENGTH,
    "max_seq_len": LENGTH,
    "model_max_length": LENGTH,
    "block_size": LENGTH,
    "max_source_length": Alias(("data.src_length", "data.max_prompt_length")),
    "max_prompt_len": Alias(("data.max_prompt_length", "data.src_length")),
    "template": Alias(("data.chat_template",), "`auto` is the template of the model's tokenizer"),
    "neat_packing": Alias(("data.packing",), "`best-fit`; packed examples never attend to each other"),
    "mask_history": Alias(("data.train_on",), "`last`"),
    "preprocessing_num_workers": Alias((), "files are read in this process; leave it out"),
    "overwrite_cache": Alias((), "there is no cache of examples; leave it out"),
    # what is trained
    "finetuning_type": Alias(("method.name",), "`full`, `lora` or `prefix`"),
    "peft_type": Alias(("method.name",), "`lora` or `prefix`"),
    "r": Alias(("method.rank",)),
    "lora_r": Alias(("method.rank",)),
    "lora_rank": Alias(("method.rank",)),
    "lora_alpha": Alias(("method.alpha",)),
    "lora_dropout": Alias(("method.dropout",)),
    "lora_target": Alias(("method.targets",), "`all`, or a list of names"),
    "lora_target_modules": Alias(("method.targets",), "`all`, or a list of names"),
    "target_modules": Alias(("method.targets",), "`all` instead of `all-linear`, or a list of names"),
    "additional_target": Alias(("method.modules_to_save",), "a list of names"),
    "lora_modules_to_save": Alias(("method.modules_to_save",)),
    "trainable_token_indices": Alias(
        ("method.modules_to_save",), "`[embed_tokens, lm_head]`, which trains the rows of all tokens"
    ),
    "use_rslora": Alias(("method.rslora",)),
    "use_dora": Alias(("method.dora",)),
    "pissa_init": Alias(("method.pissa",)),
    "loraplus_lr_ratio": Alias(("method.lora_plus_ratio",)),
    "num_virtual_tokens": Alias(("method.virtual_tokens",)),
    "quantization_bit": BITS,
    "load_in_4bit": BITS,
    "load_in_8bit": BITS,
    "neftune_noise_alpha": Alias(("method.neftune_alpha",)),
    # training
    "per_device_train_batch_size": Alias(("train.batch_size",)),
    "micro_batch_size": Alias(("train.batch_size",)),
    "per_device_eval_batch_size": Alias(("train.eval_batch_size",)),
    "gradient_accumulation_steps": Alias(("train.grad_accumulation",)),
    "num_train_epochs": Alias(("train.epochs",), "pretraining has train.max_steps instead"),
    "num_epochs": Alias(("train.epochs",), "pretraining has train.max_steps instead"),
    "lr": Alias(("train.learning_rate",)),
    "lr_scheduler_type": Alias(("train.schedule",), "`linear`, `cosine` or `constant`"),
    "lr_scheduler": Alias(("train.schedule",), "`linear`, `cosine` or `constant`"),
    "min_lr": Alias(("train.min_learning_rate", "train.min_lr_ratio")),
    "adam_epsilon": Alias(("train.adam_eps",)),
    "max_grad_norm": Alias(("train.max_grad_norm",)),
    "gradient_clipping": Alias(("train.max_grad_norm",)),
    "optim": Alias((), "the optimizer is AdamW; leave it out"),
    "bf16": Alias(("model.dtype",), "`bfloat16`; mixed precision on GPUs is train.amp=O1"),
    "fp16": Alias(("model.dtype",), "`float16`; mixed precision on GPUs is train.amp=O1"),
    "gradient_checkpointing": Alias(("train.recompute",), "`full`"),
    "use_gradient_checkpointing": Alias(("train.recompute",), "`full`"),
    "logging_steps": Alias(("train.log_every",)),
    "report_to": Alias(("train.log_to",)),
    "wandb_project": Alias(("train.project",)),
    "swanlab_project": Alias(("train.project",)),
    "experiment_name": Alias(("train.run_name",)),
    "eval_steps": Alias(("train.eval_every",)),
    "save_steps": Alias(("train.save_every",)),
    "eval_strategy": Alias(("train.eval_every",), "a number of steps, or 0 for after each epoch"),
    "evaluation_strategy": Alias(("train.eval_every",), "a number of steps, or 0 for after each epoch"),
    "save_strategy": Alias(("train.save_every",), "a number of steps, or 0 for after each epoch"),
    "metric_for_best_model": Alias(("train.best_metric",)),
    "early_stopping_patience": Alias(("train.patience",)),
    "data_seed": Alias(("data.seed", "train.seed")),
    "flash_attn": KERNELS,
    "use_liger_kernel": KERNELS,
    "enable_liger_kernel": KERNELS,
    "use_unsloth": KERNELS,
    "save_on_each_node": Alias((), "all machines share one output folder, on a shared file system; leave it out"),
    "ddp_timeout": Alias(("parallel.hang_seconds",), "after it only a report is printed"),
    # several devices
    "deepspeed": ZERO,
    "fsdp": ZERO,
    "zero": STAGE,
    "zero_stage": STAGE,
    "tp": Alias(("parallel.tensor",)),
    "mp_degree": Alias(("parallel.tensor",)),
    "tensor_parallel_size": Alias(("parallel.tensor",)),
    "tensor_parallel_degree": Alias(("parallel.tensor",)),
    "tensor_model_parallel_size": Alias(("parallel.tensor",)),
    "tp_size": Alias(("parallel.tensor",)),
    "sequence_parallel": Alias(("parallel.sequence",)),
    "pp": Alias(("parallel.pipeline",)),
    "pp_degree": Alias(("parallel.pipeline",)),
    "pipeline_parallel_size": Alias(("parallel.pipeline",)),
    "pipeline_parallel_degree": Alias(("parallel.pipeline",)),
    "pipeline_model_parallel_size": Alias(("parallel.pipeline",)),
    "pp_size": Alias(("parallel.pipeline",)),
    "virtual_pp_degree": Alias(("parallel.chunks",)),
    "dp": Alias(("parallel.data",), "0, the default, is as many as the devices allow"),
    "dp_degree": Alias(("parallel.data",), "0, the default, is as many as the devices allow"),
    "sharding_degree": Alias(("parallel.sharding",)),
    "sharding_parallel_degree": Alias(("parallel.sharding",)),
    "cp": CONTEXT,
    "sep": CONTEXT,
    "context_parallel_size": CONTEXT,
    "sep_parallel_degree": CONTEXT,
    "ep": Alias(("parallel.expert",)),
    "expert_parallel_degree": Alias(("parallel.expert",)),
    "expert_model_parallel_size": Alias(("parallel.expert",)),
    "ep_size": Alias(("parallel.expert",)),
    # preferences
    "pref_beta": Alias(("dpo.beta",)),
    "dpo_beta": Alias(("dpo.beta",)),
    "pref_loss": Alias(("dpo.loss",)),
    "loss_type": Alias(("dpo.loss",)),
    "dpo_label_smoothing": Alias(("dpo.label_smoothing",)),
    "precompute_ref_log_probs": Alias(("dpo.precompute_reference",)),
    # the output
    "output_dir": Alias(("output.dir",)),
    "overwrite_output_dir": Alias(("output.overwrite",)),
    "resume_from_checkpoint": Alias(("output.resume",), "`true` = from the newest checkpoint in output.dir"),
    "load_best_model_at_end": Alias(("output.load_best",)),
    "max_shard_size": Alias(("output.max_shard_bytes",)),
}
"""Key of another program -> ours."""
