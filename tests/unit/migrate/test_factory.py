"""Configurations of LLaMA-Factory become ours: each key converted, or named with a reason."""

import json

import pytest
import yaml

from llmctl.config import schema
from llmctl.errors import ConfigError, UnsupportedError
from llmctl.jobs import registry
from llmctl.migrate.convert import migrate
from llmctl.migrate.dialects import dialect_of
from llmctl.migrate.factory.rules import DIALECT

INFO = {
    "plain": {"file_name": "plain.json"},
    "named": {"file_name": "named.json", "columns": {"prompt": "question", "query": "more", "response": "answer"}},
    "chats": {"file_name": "chats.jsonl", "formatting": "sharegpt", "columns": {"messages": "talk", "system": "sys"}},
    "openai": {
        "file_name": "openai.json", "formatting": "sharegpt", "columns": {"messages": "messages"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    },
    "odd": {"file_name": "odd.json", "formatting": "sharegpt", "tags": {"role_tag": "who"}},
    "remote": {"hf_hub_url": "owner/data"},
    "pictures": {"file_name": "p.json", "columns": {"images": "images"}},
    "pairs": {"file_name": "pairs.json", "ranking": True, "columns": {"prompt": "question", "chosen": "good", "rejected": "bad"}},
    "wiki": {"file_name": "wiki.jsonl", "columns": {"prompt": "body"}},
}  # fmt: skip
EXAMPLE = """
model_name_or_path: owner/name
trust_remote_code: true
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
dataset: plain
template: parrot
cutoff_len: 2048
preprocessing_num_workers: 16
dataloader_num_workers: 4
output_dir: saves/name/lora/sft
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
save_only_model: false
report_to: none
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
resume_from_checkpoint: null
val_size: 0.1
per_device_eval_batch_size: 1
eval_strategy: steps
eval_steps: 500
"""
SFT = yaml.safe_load(EXAMPLE)
DPO = {**SFT, "stage": "dpo", "dataset": "pairs", "pref_beta": 0.2, "pref_loss": "sigmoid"}
PT = {**SFT, "stage": "pt", "dataset": "wiki", "finetuning_type": "full", "max_steps": 100, "template": None}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(INFO))


def converted(old, **changes):
    return migrate({key: value for key, value in {**old, **changes}.items() if value is not None}, "old.yaml")


def flat(made):
    return {f"{section}.{key}": value for section, rows in made.values.items() for key, value in rows.items()}


def refusal(old, error=ConfigError, **changes):
    with pytest.raises(error) as caught:
        converted(old, **changes)
    return str(caught.value)


def test_every_setting_of_the_usual_example_keeps_its_meaning():
    made = converted(SFT)
    assert dialect_of(SFT) is DIALECT and made.command == "finetune" and not made.ignored
    assert flat(made) == {
        "model.path": "owner/name", "model.dtype": "bfloat16", "method.name": "lora",
        "data.train": ["data/plain.json"], "data.dev_size": 0.1, "data.max_length": 2048,
        "train.batch_size": 1, "train.eval_batch_size": 1, "train.grad_accumulation": 8, "train.learning_rate": 1e-4,
        "train.schedule": "cosine", "train.warmup_ratio": 0.1, "train.eval_every": 500, "train.save_every": 500,
        "train.save_total_limit": 0, "output.dir": "saves/name/lora/sft", "output.overwrite": True, "output.load_best": False,
    }  # fmt: skip
    notes = "\n".join(made.notes())
    for key in (
        "trust_remote_code",
        "preprocessing_num_workers",
        "plot_loss",
        "ddp_timeout",
        "template",
        "checkpointing",
    ):
        assert key in notes
    assert "not parrot of LLaMA-Factory" in notes


@pytest.mark.parametrize(
    "changes, key, value",
    [
        ({"finetuning_type": None, "lora_rank": None}, "method.name", "lora"),
        ({"finetuning_type": "full", "bf16": None, "fp16": True}, "model.dtype", "float16"),
        ({"finetuning_type": "full"}, "output.save_dtype", "bfloat16"),
        ({"finetuning_type": "full", "bf16": None, "pure_bf16": True}, "model.dtype", "bfloat16"),
        ({"lora_target": "q_proj, v_proj"}, "method.targets", ["q_proj", "v_proj"]),
        ({"additional_target": "embed_tokens,lm_head"}, "method.modules_to_save", ["embed_tokens", "lm_head"]),
        ({"add_special_tokens": "<a>"}, "method.modules_to_save", ["embed_tokens", "lm_head"]),
        ({"add_tokens": "<a>", "additional_target": "norm"}, "method.modules_to_save", ["norm"]),
        ({"quantization_bit": 4}, "method.base", "nf4"),
        ({"quantization_bit": 8}, "method.base", "int8"),
        ({"lora_rank": 16, "lora_alpha": 24}, "method.alpha", 24),
        ({"pissa_init": True}, "method.pissa", True),
        ({"model_revision": "v1"}, "model.revision", "v1"),
        ({"add_special_tokens": "<a>,<b>"}, "model.add_special_tokens", ["<a>", "<b>"]),
        ({"template": "empty"}, "data.chat_template", "none"),
        ({"template": None}, "data.chat_template", "none"),
        ({"mask_history": True}, "data.train_on", "last"),
        ({"max_samples": 1000}, "data.max_examples", 1000),
        ({"neat_packing": True}, "data.packing", "best-fit"),
        ({"disable_shuffling": True}, "data.shuffle", False),
        ({"dataset": "plain,plain"}, "data.train", ["data/plain.json", "data/plain.json"]),
        ({"dataset": "named"}, "data.columns", ["question=instruction", "more=input", "answer=output"]),
        ({"dataset": "chats"}, "data.columns", ["talk=conversations", "sys=system"]),
        ({"val_size": None, "eval_dataset": "plain"}, "data.dev", ["data/plain.json"]),
        ({"max_steps": 7}, "train.max_steps", 7),
        ({"warmup_ratio": None, "warmup_steps": 20}, "train.warmup_steps", 20),
        ({"warmup_ratio": None, "warmup_steps": 0.2}, "train.warmup_ratio", 0.2),
        ({"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}}, "train.min_lr_ratio", 0.1),
        ({"save_strategy": "epoch"}, "train.save_every", None),
        ({"eval_strategy": "epoch"}, "train.eval_every", None),
        ({"eval_strategy": False}, "data.dev_size", None),
        ({"save_total_limit": 3}, "train.save_total_limit", 3),
        ({"metric_for_best_model": "eval_accuracy"}, "train.best_metric", "accuracy"),
        ({"gradient_checkpointing": True}, "train.recompute", "full"),
        ({"resume_from_checkpoint": True, "overwrite_output_dir": None}, "output.resume", True),
        ({"report_to": "tensorboard"}, "train.log_to", ["tensorboard"]),
        ({"report_to": ["wandb"], "run_name": "first"}, "train.run_name", "first"),
        ({"use_swanlab": True, "swanlab_project": "mine"}, "train.log_to", ["swanlab"]),
        ({"use_swanlab": True, "swanlab_project": "mine"}, "train.project", "mine"),
        ({"run_name": "first"}, "train.run_name", None),
        ({"streaming": True}, "data.streaming", True),
        ({"early_stopping_steps": 3}, "train.patience", 3),
        ({"neftune_noise_alpha": 5}, "method.neftune_alpha", 5),
    ],
)  # fmt: skip
def test_a_setting_means_what_it_meant(changes, key, value):
    assert flat(converted(SFT, **changes)).get(key) == value


def test_preferences_keep_loss_and_columns():
    made = converted(DPO, pref_loss="ipo")
    assert made.command == "dpo" and made.values["dpo"] == {"loss": "ipo", "beta": 0.2}
    assert made.values["data"]["columns"] == ["question=instruction", "good=chosen", "bad=rejected"]


def test_pretraining_says_how_its_corpus_is_built():
    made = converted(PT)
    assert made.command == "pretrain" and made.values["data"]["corpora"] == ["data/wiki"]
    assert made.values["data"]["split"] == "0.9,0.1,0" and made.values["data"]["seq_length"] == 2048
    note = next(line for line in made.notes() if "build the corpus first" in line)
    assert "llmctl data build data/wiki.jsonl --tokenizer owner/name --key body --append-eos --output data/wiki" in note
    new = converted(PT, train_from_scratch=True, bf16=None).values["model"]
    assert new == {"config": "owner/name", "tokenizer": "owner/name"}


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"finetuning_type": "freeze"}, "finetuning_type=freeze is not supported; use lora or full"),
        (
            {"dataset": "remote"},
            "download it: hf download owner/data --repo-type dataset --local-dir data/remote, and set file_name instead",
        ),
        ({"dataset": "nowhere"}, "dataset=nowhere is not in data/dataset_info.json, which has plain, named"),
        ({"dataset": "odd"}, "rename these keys of its messages to from and value"),
        ({"dataset": "pictures"}, "has images, which llmctl does not train on"),
        ({"dataset": "plain,named"}, "convert them one by one"),
        ({"dataset_dir": "elsewhere"}, "there is no elsewhere/dataset_info.json here"),
        ({"dataset": None}, "dataset is missing"),
        ({"train_on_prompt": True}, "train_on_prompt=True: loss is on answers only"),
        ({"mix_strategy": "interleave_under"}, "set the share of each entry of data.train with data.weights"),
        ({"use_galore": True}, "the only optimizer is AdamW"),
        ({"adapter_name_or_path": "x"}, "start from the model that llmctl merge makes"),
        ({"quantization_bit": 2}, "8 and nf4 are supported"),
        ({"lr_scheduler_type": "cosine_with_restarts"}, "supported are linear, cosine"),
        ({"resume_from_checkpoint": "saves/x/checkpoint-5"}, "set output_dir to the folder of the run"),
        ({"report_to": "trackio"}, "report_to=trackio is not supported"),
        ({"template": "default"}, "template=default is not supported"),
        ({"cutof_len": 9}, "unknown key cutof_len; did you mean cutoff_len?"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(changes, text):
    assert text in refusal(SFT, **changes)


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"stage": "kto"}, "trains with KTO"),
        ({"stage": "rm"}, "trains a reward model"),
        ({"stage": "ppo"}, "trains with PPO"),
        ({"do_train": False, "do_predict": True}, "does not train; llmctl generate"),
    ],
)
def test_stages_that_are_not_offered_say_so(changes, text):
    assert text in refusal(SFT, UnsupportedError, **changes)


def test_pretraining_with_adapters_or_epochs_is_refused():
    assert "trains all parameters; set finetuning_type to full" in refusal(PT, finetuning_type="lora")
    assert "counts steps, not epochs; add max_steps" in refusal(PT, max_steps=None)


def test_features_can_be_left_out_knowingly():
    made = migrate({**SFT, "train_on_prompt": True}, "old.yaml", allow_ignored=True)
    assert made.notes()[0].startswith("left out, not supported: train_on_prompt=True: loss is on answers only")


@pytest.mark.parametrize("old", [SFT, DPO, PT], ids=["sft", "dpo", "pt"])
def test_the_new_configuration_is_valid(old):
    made = converted(old)
    schema.build(registry.resolve(registry.COMMANDS[made.command].config), made.values)


ZERO = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"deepspeed": "examples/deepspeed/ds_z3_config.json"}, {"sharding": 0, "sharding_stage": 3}),
        ({"deepspeed": "ds_z2_offload_config.json"}, {"sharding": 0, "sharding_stage": 2, "offload": True}),
        ({"deepspeed": "ds_z0_config.json"}, {}),
        ({"deepspeed": ZERO}, {"sharding": 0, "sharding_stage": 2, "offload": True}),
        ({"deepspeed": "own.json"}, {"sharding": 0, "sharding_stage": 2, "offload": True}),
        ({"fsdp": "full_shard auto_wrap"}, {"sharding": 0, "sharding_stage": 3}),
        ({"fsdp": ["shard_grad_op", "offload"]}, {"sharding": 0, "sharding_stage": 2, "offload": True}),
        ({"fsdp": ""}, {}),
        (
            {"use_mca": True, "tensor_model_parallel_size": 2, "sequence_parallel": True,
             "pipeline_model_parallel_size": 4, "virtual_pipeline_model_parallel_size": 2, "expert_model_parallel_size": 2},
            {"tensor": 2, "sequence": True, "pipeline": 4, "chunks": 2, "expert": 2},
        ),
    ],
)  # fmt: skip
def test_what_shares_a_step_over_devices_becomes_the_section_parallel(changes, expected, tmp_path):
    (tmp_path / "own.json").write_text(json.dumps(ZERO))
    made = converted(SFT, **changes)
    assert made.values.get("parallel", {}) == expected
    assert ("multiply" in "\n".join(made.notes())) or expected.get("sharding", 1) != 0


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"deepspeed": "absent.json"}, "deepspeed=absent.json: the file cannot be read"),
        ({"deepspeed": {"zero_optimization": {"stage": 5}}}, "zero_optimization.stage must be 0, 1, 2 or 3"),
        ({"fsdp": "hybrid_shard"}, "hybrid_shard is not supported"),
        ({"fsdp": "full_shard", "deepspeed": "ds_z3_config.json"}, "exclude each other"),
        ({"context_parallel_size": 2}, "sequence_parallel and tensor_model_parallel_size only"),
    ],
)
def test_sharing_that_cannot_be_kept_is_refused(changes, text):
    assert text in refusal(SFT, **changes)
