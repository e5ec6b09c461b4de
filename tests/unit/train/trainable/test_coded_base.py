"""QLoRA over a checkpoint's own codes: the run of a float twin, the engine's answers, the merged floats, and what is refused."""

import json

import numpy as np
import paddle
import pytest
from kit.cut_runs import check_continues, finished, losses
from kit.model_cli import ASK, STARTER, llmctl, write_questions

from llmctl.adapters.attach import load_adapted
from llmctl.adapters.folder import open_adapter
from llmctl.checkpoint.build import load_model
from llmctl.checkpoint.folder import open_folder
from llmctl.config import finetune as config
from llmctl.config import schema
from llmctl.errors import ConfigError, LlmctlError
from llmctl.infer.engine.feeder import SequenceFeeder
from llmctl.infer.executors.reference import ReferenceExecutor
from llmctl.infer.loader import Packing, packed_model
from llmctl.jobs import finetune
from llmctl.jobs.memory_plan import training_of
from llmctl.parallel.ranks import ALONE
from llmctl.parallel.topology import Topology
from llmctl.testing.fused import executor
from llmctl.testing.ranks import run_ranks
from llmctl.train import trainer
from llmctl.train.console import Console

LORA = {"rank": 4, "targets": ["q_proj", "down_proj"]}
DATA = STARTER.parent / "data" / "dev.jsonl"


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """The starter as GPTQ, and the floats that its codes stand for."""
    folder = tmp_path_factory.mktemp("bases")
    words = ("--method", "weight-only-int4", "--group", "32", "--format", "gptq")
    llmctl("quantize", STARTER, *words, "--output", folder / "gptq")
    llmctl("convert", folder / "gptq", folder / "floats", "--to", "hf")
    return folder


def job_on(base):
    def job(output, method, resume=False, **more):
        settings = {
            "model": {"path": str(base)},
            "method": {"name": "lora", **method},
            "data": {"train": str(DATA), "src_length": 64, "max_length": 128},
            "train": {"max_steps": 4, "batch_size": 2, "save_every": 2, "log_every": 1, "learning_rate": 1e-2},
            "output": {"dir": str(output), "samples": 0, "resume": resume},
            "parallel": {},
        }  # fmt: skip
        for name, values in more.items():
            settings[name] = {**settings[name], **values}
        return finetune.check(schema.build(config.FinetuneConfig, settings))

    return job


@pytest.fixture(scope="module")
def runs(bases, tmp_path_factory):
    return finished(
        tmp_path_factory.mktemp("runs"), job_on(bases / "gptq"), {"lora": LORA, "dora": {**LORA, "dora": True}}
    )


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_a_run_over_codes_is_that_over_their_floats(bases, runs, tmp_path, name):
    twin = finished(tmp_path, job_on(bases / "floats"), {name: {**LORA, "dora": name == "dora"}})(name)
    np.testing.assert_allclose(losses(runs(name)), losses(twin), rtol=1e-4)
    arrays = [open_folder_of(run) for run in (runs(name), twin)]
    for key, values in arrays[0].items():
        np.testing.assert_allclose(values, arrays[1][key], atol=2e-3, err_msg=key)


def open_folder_of(run):
    from safetensors.numpy import load_file

    return load_file(run / "model" / "adapter_model.safetensors")


def train(ranks, base, output, method, parallel):
    ranks.barrier()
    job = job_on(base)(output, method, train={"batch_size": 1, "grad_accumulation": 2}, parallel=parallel)
    trainer.run(job, (), Console(quiet=True), ranks)


@pytest.mark.parallel
@pytest.mark.parametrize("dora", [False, True])
def test_ranks_with_slices_of_codes_train_as_one_process(bases, tmp_path, dora):
    method = {**LORA, "dora": dora}
    train(ALONE, bases / "gptq", tmp_path / "one", method, {})
    sharing = {"sharding": 2, "sharding_stage": 3}
    run_ranks(2, train, bases / "gptq", tmp_path / "two", method, sharing, topology=Topology(sharding=2))
    np.testing.assert_allclose(losses(tmp_path / "one"), losses(tmp_path / "two"), rtol=1e-5)


def test_a_run_that_was_cut_off_continues_bit_for_bit(bases, runs, tmp_path):
    check_continues(runs("lora"), job_on(bases / "gptq"), LORA, tmp_path / "cut")


def test_codes_with_the_adapter_beside_them_and_the_merged_floats_agree(bases, runs, tmp_path):
    adapter = runs("lora") / "model"
    _, told = llmctl("merge", adapter, "--output", tmp_path / "merged", "--verify")
    assert "the base has gptq codes of 4 bits in groups of 32; the merged model has its dequantized weights" in told
    kept = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert "quantization_config" not in kept and not (tmp_path / "merged" / "quantize_config.json").exists()
    assert {"int32"} & {info.dtype for info in open_folder(bases / "gptq").tensors.values()}
    assert not {"int32"} & {info.dtype for info in open_folder(tmp_path / "merged").tensors.values()}
    model, opened = load_adapted(adapter)
    twin = load_model(tmp_path / "merged")[0]
    ids = np.random.default_rng(0).integers(3, 300, (6, 8))
    with paddle.no_grad():
        for layer in (model, twin):
            layer.eval()
        expected = twin(paddle.to_tensor(ids)).numpy()
        np.testing.assert_allclose(model(paddle.to_tensor(ids)).numpy(), expected, atol=2e-4)
    packed = packed_model(opened.base, opened.plugin, opened.dims, Packing(), opened, scheme=opened.scheme)
    assert {layer.out.weight.kind for layer in packed.layers} == {"int4"} and len(packed.adapters) == 1
    for row, ids_T in enumerate(ids):
        assert off(logits(executor("twin", packed), packed, ids_T, 0), expected[row]).max() < 1e-4
        assert off(logits(executor("twin", packed), packed, ids_T, -1), expected[row]).min() > 0.05
    # The kernels round activations, as the twin does on request; few values are ties, whose rounding changes all after them.
    engines = executor("native", packed), ReferenceExecutor(packed, rounding=True)
    found = [[logits(engine, packed, ids_T, 0) for ids_T in ids] for engine in engines]
    assert np.median(off(*np.array(found))) < 1e-5


def off(found, expected):
    """Relative distance of the logits of each token."""
    return np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)


def test_the_engine_answers_with_the_adapter_for_every_prompt_and_by_name(bases, runs, tmp_path):
    adapter, base = runs("lora") / "model", bases / "gptq"
    file = ["--max-new-tokens", "8", "--input"]
    named = write_questions(tmp_path / "named.jsonl", adapter="mine")
    expected = llmctl("generate", base, "--adapter", f"mine={adapter}", *file, named)[0]
    asked = write_questions(tmp_path / "in.jsonl")
    for words in ((adapter,), (base, "--adapter", adapter)):
        assert outputs(llmctl("generate", *words, *file, asked)[0]) == outputs(expected)
    assert outputs(llmctl("generate", base, *file, asked)[0]) != outputs(expected)


def logits(engine, packed, ids, adapter):
    return SequenceFeeder(engine, packed.graph, [adapter], len(ids)).feed((0, ids))[0]


def outputs(text):
    return [json.loads(line)["output"] for line in text.splitlines()]


def test_a_program_keeps_the_codes_and_computes_the_adapter_beside_them(bases, runs, tmp_path):
    adapter, sizes = runs("lora") / "model", []
    expected = [llmctl("generate", model, "--engine", "dynamic", *ASK)[0] for model in (bases / "gptq", adapter)]
    for name, model, more in (("codes", bases / "gptq", []), ("floats", bases / "gptq", ["--weights", "float32"]),
                              ("adapted", adapter, [])):  # fmt: skip
        llmctl("export", model, *more, "--output", tmp_path / name)
        assert llmctl("generate", tmp_path / name, *ASK)[0] == expected[name == "adapted"]
        sizes.append((tmp_path / name / "program.pdiparams").stat().st_size)
    tensors = open_folder(bases / "gptq").tensors.values()
    assert sizes[0] < 1.5 * sum(info.nbytes for info in tensors) < sizes[1] / 3
    llmctl("export", bases / "gptq", "--engine", "fused", "--output", tmp_path / "packed")
    assert llmctl("generate", tmp_path / "packed", "--adapter", adapter, *ASK) == llmctl("generate", adapter, *ASK)
    for words, part in (
        (("export", adapter, "--engine", "fused"), "into which an adapter is not merged"),
        (("export", bases / "gptq", "--weights", "int8"), "--weights has no effect with --engine static"),
        (("export", bases / "gptq", "--engine", "fused", "--weights", "int8"), "is quantized already"),
        (("export", tmp_path / "packed"), "packed for the fused engine, and a static program is made of a model"),
    ):
        assert part in llmctl(*words, "--output", tmp_path / "none", code=2)[1]


def test_the_way_to_merge_and_the_bytes_of_codes_are_told_before_training(bases, tmp_path):
    job = job_on(bases / "gptq")(tmp_path / "out", LORA)
    assert training_of(job).base_bits == 4.5
    assert any("codes of 4 bits in groups of 32, used as they are" in note and "llmctl merge makes floats of codes and adapter, 1.8 MB" in note
               for note in job.notes)  # fmt: skip
    quantized = job_on(STARTER)(tmp_path / "out", {**LORA, "base": "nf4"})
    assert any("llmctl merge adds the adapter to the dequantized weights" in note for note in quantized.notes)
    assert not any(note.startswith("base") for note in job_on(STARTER)(tmp_path / "out", LORA).notes)


@pytest.mark.parametrize(
    ("method", "more", "part"),
    [
        ({"name": "full"}, {}, "method.name=full cannot train; use method.name=lora"),
        ({**LORA, "base": "nf4"}, {}, "used as they are: leave out method.base=nf4"),
        ({**LORA, "pissa": True}, {}, "method.pissa subtracts its initial adapter from the base"),
        (LORA, {"model": {"add_tokens": ["abc"]}}, "write the model anew"),
    ],
)
def test_what_cannot_be_trained_over_codes_is_refused_with_the_reason(bases, tmp_path, method, more, part):
    with pytest.raises(ConfigError, match=part):
        job_on(bases / "gptq")(tmp_path / "out", method, **more)


def test_packed_folders_are_refused_with_the_reason(tmp_path):
    llmctl("export", STARTER, "--engine", "fused", "--weights", "int8", "--output", tmp_path / "packed")
    with pytest.raises(ConfigError, match="is packed for inference, with other tensors"):
        job_on(tmp_path / "packed")(tmp_path / "out", LORA)


def test_an_adapter_of_the_float_model_is_not_taken_for_one_of_its_codes(bases, tmp_path):
    from llmctl.testing.tiny import write_adapter

    with pytest.raises(LlmctlError, match="has the shapes of the adapter's base but other weights"):
        open_adapter(write_adapter(tmp_path / "adapter", STARTER), bases / "gptq")
    with pytest.raises(LlmctlError, match="was trained on a base that was quantized to nf4 in training"):
        open_adapter(write_adapter(tmp_path / "nf4", STARTER, 0, "nf4"), bases / "gptq", allow_other=True)
