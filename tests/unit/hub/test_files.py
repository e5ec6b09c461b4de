import fnmatch
import json

import pytest

from llmctl.adapters import folder as adapters
from llmctl.adapters import paddlenlp_lora, paddlenlp_prefix, paddlenlp_weights, peft_weights
from llmctl.checkpoint import folder as checkpoints
from llmctl.checkpoint import paddlenlp_scales, quantized
from llmctl.checkpoint.hf_config import NAME
from llmctl.errors import CheckpointError
from llmctl.hub import files
from llmctl.io.gguf_files import LINK
from llmctl.tokenizers import chat, special
from llmctl.tokenizers.base import FILES

INDEX = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).encode()


def chosen(*names, index=INDEX):
    return files.weights(names, lambda name: index)


def test_everything_that_is_read_besides_weights_is_downloaded():
    read = {*FILES, *adapters.FORMATS, adapters.RECORD, adapters.GENERATION, NAME, special.CONFIG, *quantized.OLD,
            chat.JINJA_FILE, chat.JSON_FILE, paddlenlp_scales.WEIGHTS, paddlenlp_scales.INPUTS} - {paddlenlp_prefix.CACHES}  # fmt: skip
    assert read - set(files.SMALL) == set()


def test_weights_are_looked_for_as_they_are_opened():
    # A GGUF file is a model of its own, which is named whole; folders only link to one.
    assert tuple(checkpoints._HEADER_READERS) == (*files.MODELS, LINK) and files.INDEX == checkpoints.INDEX
    peft, paddle = files.ADAPTERS
    assert peft == (peft_weights.WEIGHTS, peft_weights.TORCH_WEIGHTS)
    assert {paddlenlp_lora.WEIGHTS, paddlenlp_prefix.WEIGHTS, paddlenlp_prefix.CACHES} <= set(paddle)
    assert fnmatch.fnmatchcase(paddlenlp_weights.UNIFIED, paddle[0])


def test_other_formats_folders_and_papers_are_left_out():
    names = ["README.md", "config.json", "onnx/config.json", "model.gguf", "tf_model.h5", "flax_model.msgpack", "a.py",
             "tokenizer.model", "qwen.tiktoken", "chat_template.jinja", "tokenization_qwen.py", "original/tokenizer.model"]  # fmt: skip
    assert files.small(names) == ["config.json", *names[7:11]]


@pytest.mark.parametrize(
    "names, expected",
    [
        (["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"], ["model.safetensors"]),
        (["pytorch_model.bin", "consolidated.safetensors", "model.onnx"], ["pytorch_model.bin"]),
        (["model_state.pdparams"], ["model_state.pdparams"]),
        (
            ["model.safetensors.index.json", "model-1.safetensors", "pytorch_model.bin", "model.fp16.safetensors"],
            ["model.safetensors.index.json", "model-1.safetensors", "model-2.safetensors"],
        ),
        (["adapter_model.bin", "adapter_model.safetensors"], ["adapter_model.safetensors"]),
        (["onnx/model.safetensors", "model.gguf"], []),
    ],
)
def test_weights_of_one_format_are_chosen(names, expected):
    assert chosen(*names) == expected


def test_other_models_in_gguf_are_left_out_of_commands_for_other_machines():
    assert [files.including(choice) for choice in ("", "Q4_K_M", "a/m-Q8_0-00001-of-00002.gguf")] == [
        "", " --include '*Q4_K_M*'", " --include '*m-Q8_0*'",
    ]  # fmt: skip


@pytest.mark.parametrize("index", [b"", b"[]", b'{"weight_map": 3}', b"[" * 100_000])
def test_a_damaged_index_is_an_error(index):
    with pytest.raises(CheckpointError, match="is not a weight index"):
        chosen("model.safetensors.index.json", index=index)
