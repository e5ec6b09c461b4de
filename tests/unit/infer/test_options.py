"""Engine options: checks that need no model, spelled for Python and for the command line."""

import subprocess
import sys
from pathlib import Path

import pytest
from kit.imports import MODULES, imports

from llmctl.commands.engine_options import CommandLineOptions, adapters_of, options_of
from llmctl.errors import ConfigError, UnsupportedError
from llmctl.infer.executors import native
from llmctl.infer.options import KV, WEIGHTS, EngineOptions, default_kv
from llmctl.infer.packed.linear import KINDS

MISTAKES = [
    ({"engine": "quick"}, "engine='quick' must be auto, dynamic, static or fused", "--engine quick must be auto"),
    ({"weights": "int2"}, "weights='int2' must be float32, bfloat16, float16, int8 or int4", "--weights int2 must be"),
    ({"group": 33}, "group=33 must be a multiple of 32, or 0", "--group 33 must be"),
    ({"kv": "int4"}, "kv='int4' must be float16, float32 or int8", "--kv int4 must be"),
    ({"batch_size": 0}, "batch_size=0 must be at least 1", "--batch-size 0 must be"),
    ({"speculate": 0}, "speculate=0 must be at least 1", "--speculate 0 must be"),
    ({"beams": 1}, "beams=1 must be at least 2", "--beams 1 must be"),
    ({"beams": 2, "length_penalty": float("nan")}, "length_penalty=nan must be a finite number", "--length-penalty nan"),
    ({"length_penalty": 2.0}, "length_penalty has no effect without beams", "--length-penalty has no effect without --beams"),
    ({"beams": 2, "speculate": 3}, "beams excludes speculate", "--beams excludes --speculate"),
    ({"cache_memory": "lots"}, "cache_memory: 'lots' is not a size", "--cache-memory: 'lots' is not a size"),
    ({"step_tokens": 64}, "step_tokens=64 must be above batch_size=64", "--step-tokens 64 must be above --batch-size 64"),
    ({"adapter": {"": "a"}}, "adapter: the name of a is missing", "--adapter: the name of a is missing"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "python", "shell"), MISTAKES)
def test_a_mistake_is_named_as_it_was_written(values, python, shell):
    for options, said in ((EngineOptions, python), (CommandLineOptions, shell)):
        with pytest.raises(ConfigError) as error:
            options(**values)
        assert str(error.value).startswith(said)


def test_options_that_only_the_fused_engine_has_are_refused_for_others():
    options = EngineOptions(kv="int8", beams=2, adapter={"a": "b"})
    with pytest.raises(ConfigError, match=r"^kv, beams, adapter=\{'a': 'b'\} has no effect with engine='static'"):
        options.refuse_fused_only("static")
    shell = CommandLineOptions(cache_memory="2GB", adapter={"a": "b"})
    with pytest.raises(
        ConfigError, match=r"^--cache-memory, --adapter NAME=FOLDER has no effect with --engine dynamic; leave"
    ):
        shell.refuse_fused_only("dynamic")
    with pytest.raises(UnsupportedError, match="^--cache-memory needs the fused engine: no reason"):
        shell.refuse_without_fused("no reason")
    with pytest.raises(UnsupportedError, match="^engine='fused' needs the fused engine: no reason"):
        EngineOptions(engine="fused").refuse_without_fused("no reason")
    plain = EngineOptions(adapter="b", batch_size=3)
    plain.refuse_fused_only("dynamic")
    plain.refuse_without_fused("no reason")


def test_an_adapter_is_one_for_all_or_several_by_name():
    assert EngineOptions(adapter="b").single_adapter == Path("b") and not EngineOptions(adapter="b").named_adapters
    named = EngineOptions(adapter={"a": "b", "c": Path("d")})
    assert named.single_adapter is None and named.named_adapters == {"a": Path("b"), "c": Path("d")}
    assert EngineOptions().rows("fused") == 64 and EngineOptions(batch_size=3).rows("dynamic") == 3


def test_texts_of_the_command_line_are_folders_or_names_with_folders(tmp_path):
    (tmp_path / "a=b").mkdir()
    assert adapters_of([]) is None and adapters_of(["x"]) == Path("x")
    assert adapters_of([str(tmp_path / "a=b")]) == tmp_path / "a=b"
    assert adapters_of(["a=x", "b=y=z"]) == {"a": Path("x"), "b": Path("y=z")}


def test_values_of_other_options_of_a_command_are_left_out():
    assert options_of({"kv": "int8", "adapter": Path("x"), "rounds": 3}, batch_size=2) == CommandLineOptions(
        kv="int8", adapter=Path("x"), batch_size=2
    )


def test_types_of_weights_and_caches_are_those_that_exist():
    assert WEIGHTS == KINDS and KV == native.CACHES


def test_nothing_of_inference_knows_the_command_line():
    assert not [
        m for m in MODULES if m.startswith("llmctl.infer") and "click" in {i.partition(".")[0] for i in imports(m)}
    ]


def test_options_and_selection_are_imported_without_numpy_and_paddle():
    code = "import llmctl.infer.select, sys; print({'numpy', 'paddle', 'click'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_small_models_keep_keys_and_values_exactly():
    assert [default_kv(layers, 2, 64) for layers in (7, 8)] == ["float32", "float16"]
