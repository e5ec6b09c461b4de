"""Configurations of PaddleNLP's llm toolkit become ours: meanings kept, nothing dropped in silence."""

import dataclasses
import json
import typing

import pytest

from llmctl.cli import COMMANDS
from llmctl.config import common, finetune, schema
from llmctl.config.file import read_file
from llmctl.config.pretrain import PretrainConfig
from llmctl.errors import ConfigError, UnsupportedError
from llmctl.jobs import registry
from llmctl.migrate.convert import migrate, to_yaml
from llmctl.migrate.dialects import DIALECTS, dialect_of
from llmctl.migrate.paddlenlp import rules as derived
from llmctl.migrate.paddlenlp.rules import DIALECT

SFT = {
    "model_name_or_path": "hub/name",
    "dataset_name_or_path": "./data",
    "output_dir": "./out",
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "per_device_eval_batch_size": 16,
    "eval_accumulation_steps": 16,
    "num_train_epochs": 5,
    "learning_rate": 3e-05,
    "warmup_steps": 30,
    "logging_steps": 1,
    "evaluation_strategy": "epoch",
    "save_strategy": "epoch",
    "src_length": 100,
    "max_length": 200,
    "bf16": True,
    "fp16": False,
    "fp16_opt_level": "O2",
    "do_train": True,
    "do_eval": True,
    "disable_tqdm": True,
    "load_best_model_at_end": True,
    "metric_for_best_model": "accuracy",
    "recompute": True,
    "save_total_limit": 1,
    "tensor_parallel_degree": 1,
    "pipeline_parallel_degree": -1,
    "sequence_parallel": 0,
    "sharding": "stage2",
    "zero_padding": True,
    "use_flash_attention": True,
}
PRETRAIN = {
    "model_name_or_path": "m",
    "tokenizer_name_or_path": "t",
    "input_dir": "./data",
    "output_dir": "./out",
    "max_seq_length": 256,
    "min_learning_rate": 3e-6,
    "max_steps": 50,
    "save_steps": 20,
    "eval_steps": 10,
    "continue_training": 1,
    "do_eval": 1,
    "seed": 7,
}


def built(old, **changes):
    """The configuration that an old file with changes becomes; None takes a key away."""
    data = {key: value for key, value in {**old, **changes}.items() if value is not None}
    made = migrate(data, "old.json")
    return schema.build(registry.resolve(registry.COMMANDS[made.command].config), made.values)


def test_every_setting_of_a_usual_file_keeps_its_meaning():
    made = built(SFT)
    assert made.model.path == "hub/name" and made.data.train == ["./data"] and made.output.dir == "./out"
    train, data, output = made.train, made.data, made.output
    assert (train.batch_size, train.grad_accumulation, train.eval_batch_size) == (4, 2, 16)
    assert (train.epochs, train.max_steps, train.learning_rate, train.warmup_steps) == (5, 0, 3e-5, 30)
    assert (train.schedule, train.eval_every, train.save_every, train.save_total_limit) == ("linear", 0, 0, 1)
    assert (train.best_metric, train.recompute, train.log_every) == ("accuracy", "full", 1)
    assert (data.src_length, data.max_length, data.packing, data.chat_template) == (100, 200, "first-come", "none")
    assert (output.load_best, output.save_dtype, made.method.name) == (True, "bfloat16", "full")


def test_what_an_old_file_leaves_out_has_the_old_default():
    made = built({"model_name_or_path": "m", "dataset_name_or_path": "d", "output_dir": "o"})
    assert (made.train.epochs, made.train.save_every, made.train.save_total_limit) == (1, 500, 0)
    assert not made.output.load_best and made.output.save_dtype == "float32" and made.data.packing == "none"
    made = built({key: PRETRAIN[key] for key in ("model_name_or_path", "input_dir", "output_dir", "max_steps")})
    train = made.train
    assert (train.learning_rate, train.schedule, train.weight_decay, train.adam_beta2) == (5e-5, "linear", 0, 0.999)
    assert (train.eval_iters, train.test_iters, train.eval_every) == (0, 0, 500)


@pytest.mark.parametrize(
    "changes, key, value",
    [
        ({"lora": True, "lora_rank": 4}, "method.alpha", 8),
        ({"lora": True, "lora_rank": 4, "rslora": True}, "method.alpha", 4),
        ({"lora": True, "lora_plus_scale": 16.0}, "method.lora_plus_ratio", 16.0),
        ({"neftune": True}, "method.neftune_alpha", 5.0),
        ({"neftune_noise_alpha": 5.0}, "method.neftune_alpha", 0.0),
        ({"intokens": True, "zero_padding": None}, "data.packing", "first-come"),
        ({"greedy_zero_padding": True}, "data.packing", "best-fit"),
        ({"do_eval": False, "evaluation_strategy": "no"}, "data.train", ["./data/train.json"]),
        ({"do_eval": False, "evaluation_strategy": "steps", "eval_steps": 7}, "train.eval_every", 7),
        ({"evaluation_strategy": "steps", "logging_steps": 9}, "train.eval_every", 9),
        ({"save_strategy": "no"}, "train.save_every", derived.NEVER),
        ({"max_steps": 12}, "train.max_steps", 12),
        ({"max_steps": -1}, "train.max_steps", 0),
        ({"lr_scheduler_type": "constant"}, "train.warmup_steps", 0),
        ({"lr_scheduler_type": "constant_with_warmup"}, "train.warmup_steps", 30),
        ({"lr_scheduler_type": "cosine"}, "train.schedule", "cosine"),
        ({"lr_scheduler_type": "polynomial", "lr_end": 3e-6}, "train.min_lr_ratio", pytest.approx(0.1)),
        ({"recompute_granularity": "core_attn"}, "train.recompute", "attention"),
        ({"recompute": False, "recompute_granularity": "full"}, "train.recompute", "none"),
        ({"fp16_opt_level": "O1"}, "output.save_dtype", "float32"),
        ({"bf16": False, "fp16": True}, "output.save_dtype", "float16"),
        ({"metric_for_best_model": None}, "train.best_metric", "eval_loss"),
        ({"chat_template": "hub/name"}, "data.chat_template", "auto"),
        ({"chat_template": "my.json"}, "data.chat_template", "my.json"),
        ({"report_to": "visualdl"}, "train.log_to", ["visualdl"]),
        ({"overwrite_output_dir": 1}, "output.overwrite", True),
    ],
)
def test_a_setting_means_what_it_meant(changes, key, value):
    section, _, name = key.partition(".")
    assert getattr(getattr(built(SFT, **changes), section), name) == value


def test_pretraining_goes_on_from_a_checkpoint_or_begins_anew():
    made = built(PRETRAIN)
    assert isinstance(made, PretrainConfig) and (made.model.path, made.model.config) == ("m", "")
    assert made.data.corpora == ["./data"] and made.data.seq_length == 256 and made.data.seed == made.train.seed == 7
    assert (made.train.min_learning_rate, made.train.eval_every, made.train.save_every) == (3e-6, 10, 20)
    assert (made.train.eval_iters, made.train.test_iters) == (10, 0)
    made = built(PRETRAIN, continue_training=0, num_hidden_layers=2, do_predict=True)
    assert (made.model.path, made.model.config, made.model.tokenizer) == ("", "m", "t")
    assert made.model.changes == ["num_hidden_layers=2"] and made.train.test_iters == 100


@pytest.mark.parametrize(
    "changes, texts",
    [
        ({"lerning_rate": 1e-3}, ["unknown key lerning_rate", "did you mean learning_rate"]),
        (
            {"sep_parallel_degree": 8, "hidden_dropout_prob": 0.1},
            ["sep_parallel_degree=8", "hidden_dropout_prob=0.1"],
        ),
        ({"use_expert_parallel": True}, ["use_expert_parallel", "set expert_parallel_degree"]),
        ({"sharding": "stage4"}, ["sharding=stage4: allowed are stage1, stage2 and stage3"]),
        ({"sharding": "offload"}, ["sharding=offload: allowed are"]),
        ({"tensor_parallel_degree": "many"}, ["tensor_parallel_degree='many': expected a number"]),
        ({"metric_for_best_model": "rougel"}, ["rougel", "exact_match"]),
        ({"lr_scheduler_type": "cosine_with_restarts"}, ["cosine_with_restarts", "polynomial"]),
        ({"num_cycles": 3, "lr_scheduler_type": "cosine"}, ["num_cycles=3"]),
        ({"evaluation_strategy": "often"}, ["evaluation_strategy=often", "steps"]),
        ({"dataset_name_or_path": None}, ["dataset_name_or_path is missing"]),
        ({"lora": True, "prefix_tuning": True}, ["exclude each other"]),
        ({"greater_is_better": False}, ["greater_is_better", "accuracy"]),
        ({"learning_rate": "fast"}, ["train.learning_rate='fast'"]),
        ({"max_seq_length": 10}, ["max_seq_length=10", "pretrain"]),
        ({"continue_training": False}, ["llmctl pretrain"]),
        ({"max_steps": "many"}, ["max_steps='many'", "number"]),
        ({"weight_quantize_algo": "nf4"}, ["weight_quantize_algo=nf4", "lora=true"]),
        ({"intokens": False}, ["intokens=False contradicts zero_padding=True, of which it is an alias"]),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(changes, texts):
    with pytest.raises(ConfigError) as refused:
        built(SFT, **changes)
    for text in texts:
        assert text in str(refused.value), refused.value


def test_features_can_be_left_out_knowingly_but_unknown_keys_cannot():
    made = migrate({**SFT, "sep_parallel_degree": 8}, "old.json", allow_ignored=True)
    assert any("sep_parallel_degree=8" in line for line in made.notes())
    with pytest.raises(ConfigError, match="nonsense"):
        migrate({**SFT, "nonsense": 1}, "old.json", allow_ignored=True)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sharding": None}, {}),
        ({"tensor_parallel_degree": 8, "sequence_parallel": 1}, {"tensor": 8, "sequence": True}),
        ({"pipeline_parallel_degree": 4, "virtual_pp_degree": 2}, {"pipeline": 4, "chunks": 2}),
        ({"virtual_pp_degree": 2}, {}),
        ({"sharding": "stage1"}, {"sharding": 0}),
        ({"sharding": "stage2", "sharding_parallel_degree": 1}, {}),
        ({"sharding": "stage3 offload", "sharding_parallel_degree": 8},
         {"sharding": 8, "sharding_stage": 3, "offload": True}),
        ({"sharding": ["stage2", "offload"], "sharding_parallel_degree": -1},
         {"sharding": 0, "sharding_stage": 2, "offload": True}),
        ({"data_parallel_degree": 2, "expert_parallel_degree": 2, "use_expert_parallel": True}, {"data": 2, "expert": 2}),
    ],
)  # fmt: skip
def test_degrees_become_the_section_parallel(changes, expected):
    made = built({**SFT, "sharding": None}, **changes)
    assert {name: getattr(made.parallel, name) for name in schema.changed_fields(made.parallel)} == expected


@pytest.mark.parametrize("changes, text", [({"do_ptq": True}, "quantizes"), ({"do_gptq": True}, "quantizes"),
                                           ({"normalizer_type": "x"}, "reward model")])  # fmt: skip
def test_files_for_what_is_not_offered_say_so(changes, text):
    with pytest.raises(UnsupportedError, match=text):
        migrate({**SFT, **changes}, "old.json")


DPO = {
    "model_name_or_path": "m",
    "train_dataset_path": "./data/train.jsonl",
    "dev_dataset_path": "./data/dev.jsonl",
    "output_dir": "out",
    "do_eval": True,
}


def test_virtual_tokens_and_preferences_have_rules_of_their_own():
    assert derived.method({"prefix_tuning": True}, "finetune") == {
        "method.name": "prefix",
        "method.virtual_tokens": 128,
    }
    assert derived.command(DPO) == "dpo"
    assert derived.data(DPO, "dpo") == {"data.packing": "best-fit", "data.dev": "./data/dev.jsonl"}
    assert derived.data({**DPO, "greedy_intokens": False, "do_eval": False}, "dpo") == {"data.packing": "first-come"}


def test_keys_without_effect_are_named_with_the_reason():
    notes = "\n".join(migrate({**SFT, "model_name_or_path": "from/hub/name"}, "old.json").notes())
    for key in ("sharding", "use_flash_attention", "disable_tqdm", "eval_accumulation_steps", "bf16"):
        assert key in notes
    assert "sequence_parallel" not in notes and "from/hub/name must be a folder" in notes


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"lora_rank": 16, "rslora": True, "pissa": True, "lora_plus_scale": 4.0}, "lora is off"),
        ({"prefix_tuning": True, "lora_rank": 16}, "lora is off"),
        ({"num_prefix_tokens": 16}, "prefix_tuning is off"),
        ({"neftune_noise_alpha": 9.0}, "neftune is off"),
        ({"recompute": False, "recompute_granularity": "core_attn"}, "recompute is off"),
        (
            {"do_eval": False, "evaluation_strategy": "no", "eval_with_do_generation": True},
            "evaluation is off",
        ),
        ({"lr_scheduler_type": "constant", "decay_steps": 100}, "a constant learning rate does not decay"),
    ],
)
def test_keys_of_what_is_not_asked_for_are_named_and_stop_no_run(changes, reason):
    made = migrate({**SFT, **changes}, "old.json")
    settings = schema.build(finetune.FinetuneConfig, made.values)
    common.check_method(settings.method)
    common.check_updates(settings.train)
    (note,) = [line for line in made.notes() if reason in line]
    named = changes.keys() - {"prefix_tuning", "recompute", "do_eval", "evaluation_strategy", "lr_scheduler_type"}
    assert all(key in note for key in named)


def test_only_the_smoothed_loss_keeps_its_smoothing():
    old = {**DPO, "dpo_label_smoothing": 0.1}
    assert migrate(old, "old.json").values["dpo"] == {"label_smoothing": 0.1}
    hinge = migrate({**old, "dpo_loss_type": "hinge"}, "old.json")
    assert hinge.values["dpo"] == {"loss": "hinge"} and "label_smoothing" in hinge.notes()[0]


def test_the_new_file_is_read_back_as_the_same_configuration(tmp_path):
    made = migrate({**SFT, "lora": True}, "old.json")
    (tmp_path / "new.yaml").write_text(to_yaml(made, "parrot"), encoding="utf-8")
    assert (tmp_path / "new.yaml").read_text().startswith("# Run with: llmctl --model parrot finetune ")
    assert schema.build(finetune.FinetuneConfig, read_file(tmp_path / "new.yaml")) == built(SFT, lora=True)


def test_our_own_files_are_not_taken_for_old_ones():
    assert dialect_of(SFT) is DIALECT and dialect_of(PRETRAIN) is DIALECT
    assert dialect_of(schema.to_dict(finetune.FinetuneConfig())) is None


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_the_table_names_each_key_once_and_only_fields_that_exist(dialect):
    found = dialect.table
    assert len(found.names) == len(set(found.names))
    assert set(found.aliases.values()) <= set(found.names)
    for targets in found.same.values():
        for command, target in targets.items():
            if command in COMMANDS:
                section, _, key = target.partition(".")
                sections = typing.get_type_hints(registry.resolve(registry.COMMANDS[command].config))
                assert key in {row.name for row in dataclasses.fields(sections[section])}, (command, target)


def test_the_command_prints_the_file_and_needs_no_paddle(tmp_path, run_llmctl):
    (tmp_path / "old.json").write_text(json.dumps(SFT))
    probe = "print('#', [name for name in ('paddle', 'numpy', 'rich') if name in sys.modules])"
    done = run_llmctl("migrate", str(tmp_path / "old.json"), probe=probe)
    assert done.returncode == 0 and done.stdout.endswith("# []\n"), done.stdout + done.stderr
    (tmp_path / "new.yaml").write_text(done.stdout)
    assert read_file(tmp_path / "new.yaml")["train"]["warmup_steps"] == 30
