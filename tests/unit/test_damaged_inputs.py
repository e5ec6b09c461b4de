"""Files that may come from anywhere, damaged byte by byte and key by key: each is read, or ends in a message.

What comes of every seed is the same on every machine. Each kind is read in a fork: a signal, a time or a memory out of proportion
fails. ``LLMCTL_ROBUST=full`` tries many more seeds.
"""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from kit import corpora, damage, quantized_models, tiny_tokenizers, torch_files

from llmctl import plugins, tokenizers
from llmctl.adapters.folder import open_adapter
from llmctl.checkpoint import open_folder
from llmctl.checkpoint.formats.npy import read_npy
from llmctl.checkpoint.hf_config import read_config
from llmctl.config import file as config_file
from llmctl.config import schema
from llmctl.config.finetune import FinetuneConfig
from llmctl.data.corpus.indexed import Corpus
from llmctl.data.reading import read_files
from llmctl.data.sft.examples import ExampleReader
from llmctl.errors import LlmctlError
from llmctl.tokenizers import chat, sandbox
from llmctl.tokenizers.conversation import Conversation

pytestmark = pytest.mark.robust

GOLDENS = Path(__file__).resolve().parents[1] / "goldens"
TALK = Conversation((("Who lives in Rome?", "Tom"), ("And in Oslo?", None)), "Be brief.")


def each(kind, path, whole, read, few=150, many=4000, value=None, mixed=4):
    """Damages a file: its bytes, or, ``mixed`` - 1 of ``mixed`` times, the JSON value in it."""
    path.write_bytes(whole)
    read()

    def inputs():
        for seed in range(damage.budget(few, many)):
            as_json = value is not None and seed % mixed
            changed = damage.json_text(damage.json_value(value, seed)) if as_json else damage.content(whole, seed)
            yield f"seed {seed}", lambda changed=changed: path.write_bytes(changed)

    accepted, refused = damage.try_all(kind, inputs(), read)
    assert refused, "no damage was found"


def read_weights(folder):
    found = open_folder(folder)
    for info in found.tensors.values():
        assert info.read().shape == info.shape


def test_safetensors_headers_are_read_as_the_package_reads_them(tmp_path):
    safetensors = pytest.importorskip("safetensors")
    header = {
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
        "c": {"dtype": "I8", "shape": [], "data_offsets": [32, 33]},
        "__metadata__": {"format": "pt"},
    }
    path = tmp_path / "model.safetensors"

    def place(text, data=bytes(range(33))):
        path.write_bytes(len(text).to_bytes(8, "little") + text + data)

    def read():
        try:
            theirs = dict(safetensors.deserialize(path.read_bytes()))
        except safetensors.SafetensorError:
            theirs = None
        ours = open_folder(tmp_path).tensors
        assert theirs is not None, "read here, refused by the package"
        assert {name: list(info.shape) for name, info in ours.items()} == {n: row["shape"] for n, row in theirs.items()}
        assert all(info.read().tobytes() == bytes(theirs[name]["data"]) for name, info in ours.items())

    def inputs():
        text = damage.json_text(header)
        for seed in range(damage.budget(300, 20_000)):
            changed = damage.json_text(damage.json_value(header, seed)) if seed % 4 else damage.content(text, seed)
            yield f"seed {seed}", lambda changed=changed: place(changed)

    place(damage.json_text(header))
    read()
    damage.in_fork(lambda: damage.try_all("safetensors", inputs(), read))


def test_indices_of_shards(tmp_path):
    from safetensors.numpy import save_file

    for name in "ab":
        save_file({name: np.zeros(3, "f4")}, tmp_path / f"model-{name}.safetensors")
    value = {"metadata": {"total_size": 24}, "weight_map": {"a": "model-a.safetensors", "b": "model-b.safetensors"}}
    path = tmp_path / "model.safetensors.index.json"
    each("weight indices", path, damage.json_text(value), lambda: read_weights(tmp_path), 200, 8000, value)


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_torch_files(tmp_path, form):
    storage = torch_files.Storage("0", np.arange(24, dtype="f4"))
    state = {"a": torch_files.tensor(storage, (2, 3), (3, 1)), "b": torch_files.tensor(storage, (4, 2), (1, 4), 6)}
    path = tmp_path / "pytorch_model.bin"
    write = torch_files.write_zip if form == "zip" else torch_files.write_legacy
    write(path, state, [storage])
    whole = path.read_bytes()
    damage.in_fork(lambda: each(f"torch {form}", path, whole, lambda: read_weights(tmp_path), 300, 20_000))


def test_arrays_of_numpy(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.arange(12, dtype="f4").reshape(3, 4))
    whole = path.read_bytes()
    damage.in_fork(lambda: each("numpy arrays", path, whole, lambda: read_npy(path), 300, 20_000), memory=1 << 30)
    path.write_bytes(whole.replace(b"(3, 4)", b"(3, 4000000000000)").replace(b" " * 14 + b"\n", b"\n"))
    with pytest.raises(LlmctlError, match="a.npy cannot be read"):
        read_npy(path)


def test_tokenizer_json(tmp_path):
    folder = tiny_tokenizers.write_json(tmp_path / "t")
    value = json.loads((folder / "tokenizer.json").read_text())
    value["model"]["vocab"] = dict([*value["model"]["vocab"].items()][:264])
    value["model"]["merges"] = [row for row in value["model"]["merges"] if "".join(row) in value["model"]["vocab"]]
    value["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Replace", "pattern": {"String": " "},
                           "content": "_"}, {"type": "Prepend", "prepend": "_"}]}  # fmt: skip
    value["post_processor"] = {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}], "pair": [
        {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": {}}  # fmt: skip
    # Damage is where structure is, not in one of hundreds of tokens.
    outer = {key: item for key, item in value.items() if key != "model"}
    outer["model"] = {key: item for key, item in value["model"].items() if key not in ("vocab", "merges")}
    path = folder / "tokenizer.json"

    def read():
        tokenizer = tokenizers.load(folder)
        tokenizer.decode(tokenizer.encode("hello world, naïve\n"))

    def inputs():
        text = damage.json_text(value)
        for seed in range(damage.budget(200, 6000)):
            changed = damage.json_value(outer, seed)
            if isinstance(changed, dict) and isinstance(changed.get("model"), dict):
                changed["model"] = {"vocab": value["model"]["vocab"], "merges": value["model"]["merges"]} | changed[
                    "model"
                ]
            data = damage.json_text(changed) if seed % 4 else damage.content(text, seed)
            yield f"seed {seed}", lambda data=data: path.write_bytes(data)

    path.write_bytes(damage.json_text(value))
    read()
    damage.in_fork(lambda: damage.try_all("tokenizer.json", inputs(), read))


TOKENIZERS = [("sentencepiece", "tokenizer.model"), ("sentencepiece", "tokenizer_config.json"), ("vocabulary", "vocab.json"),
              ("vocabulary", "merges.txt"), ("json", "tokenizer_config.json")]  # fmt: skip


@pytest.mark.parametrize(("form", "name"), TOKENIZERS)
def test_tokenizer_folders(tmp_path, form, name):
    template = "{{ messages[0]['content'] }}"
    folder = tiny_tokenizers.KINDS[form](tmp_path / "t", chat_template=template)
    whole = (folder / name).read_bytes()

    def read():
        tokenizer = tokenizers.load(folder)
        tokenizer.decode(tokenizer.encode("hello world"))

    value = json.loads(whole) if name.endswith("json") else None
    damage.in_fork(lambda: each(name, folder / name, whole, read, 150, 6000, value))


TEMPLATE = """{% set ns = namespace(n=0) %}{%- macro turn(m, k=1) -%}<|{{ m['role'] }}|>{{ m.content | trim }}{%- endmacro -%}
{% for m in messages if m.role != 'tool' %}{% if loop.first and m.role == 'system' %}{{ m.content }}{% endif %}
{{ turn(m) }}{% set ns.n = ns.n + loop.index0 %}{% endfor %}{{ ns.n ~ '.' * 3 }}{{ [1, 2][::-1] | join(',') }}
{% if add_generation_prompt %}<|bot|>{% endif %}{{ range(3) | list | length }}{{ "%s" % bos_token }}"""
WORDS = ("{%", "%}", "{{", "}}", "for", "endfor", "in", "range(10**9)", "* 10**8", "messages", "messages.append", "|", "join", "loop.",
         "[0]", "[::-1]", "~", "**", "''.__class__", "if", "else", "set", "x", "raise_exception('no')", "lipsum()", "cycler",
         "namespace(", ")", "recursive", "loop(messages)", "self", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "| tojson",
         "| batch(1)", "| center(10**9)", "'{:>999999999}'.format(1)", "strftime_now('%Y')", "{% generation %}", "None", "[", "]")  # fmt: skip


def test_chat_templates(tmp_path, monkeypatch):
    tokenizer = tokenizers.load(tiny_tokenizers.write_json(tmp_path / "t"))
    monkeypatch.setattr(sandbox, "TEMPLATE_SECONDS", 0.5)
    path = tmp_path / "template.jinja"

    def read():
        found = chat.load_template(str(path), tmp_path, tokenizer)
        found.prompt(TALK)

    def inputs():
        import random
        import re

        pieces = re.split(r"(\s+|[{}%|.()\[\]])", TEMPLATE)
        for seed in range(damage.budget(150, 5000)):
            if seed % 10 == 0:
                data = damage.content(TEMPLATE.encode(), seed)
                yield f"seed {seed}", lambda data=data: path.write_bytes(data)
                continue
            draw, changed = random.Random(seed), list(pieces)
            for _ in range(draw.choice((1, 2, 4, 8))):
                at = draw.randrange(len(changed))
                changed[at : at + draw.randrange(2)] = [draw.choice((*WORDS, *pieces))]
            text = "".join(changed)
            yield f"seed {seed}", lambda text=text: path.write_text(text)

    path.write_text(TEMPLATE)
    read()
    damage.in_fork(lambda: damage.try_all("chat templates", inputs(), read), memory=2 << 30)


PATTERNS = (r".*\.(q|v)_proj", r"(a|b)*c", "(", "[", r"(x+x+)+y", "q_proj", r"\d{1,99999}", "(?i)(?i)a", "(?P<n>a)(?P=n)", "*", "", "é",
            r"layers\.[0-1]\..*", "x{2}{3}", "(?<=a)b", "\\", "^", "a|")  # fmt: skip


def test_adapter_configs(tmp_path):
    shutil.copytree(GOLDENS / "adapters" / "llama_plain", tmp_path / "m")
    path = tmp_path / "m" / "adapter" / "adapter_config.json"
    whole = path.read_bytes()
    value = json.loads(whole)
    value |= {"target_modules": PATTERNS[0], "rank_pattern": {"layers.0": 3}, "alpha_pattern": {"v_proj": 8}}

    def inputs():
        for seed in range(damage.budget(150, 4000)):
            changed = damage.json_value(value, seed)
            if isinstance(changed, dict) and seed % 3 == 0:
                changed[("target_modules", "exclude_modules", "layers_pattern")[seed % 9 // 3]] = PATTERNS[
                    seed % len(PATTERNS)
                ]
                changed["rank_pattern"] = {PATTERNS[seed // 3 % len(PATTERNS)]: 3}
            data = damage.json_text(changed) if seed % 5 else damage.content(whole, seed)
            yield f"seed {seed}", lambda data=data: path.write_bytes(data)

    damage.in_fork(lambda: damage.try_all("adapter_config.json", inputs(), lambda: open_adapter(path.parent)))


def test_configs_of_every_family(tmp_path):
    path, cards = tmp_path / "config.json", [plugins.load(found.name).card for found in plugins.installed()]
    for card in cards:
        value = {
            **card.config_from_dims(card.dims_of(next(iter(card.sizes)))),
            "architectures": [card.architectures[0]],
        }

        def read(card=card):
            dims = card.dims_from_config(read_config(tmp_path), str(path))
            if dims.layers < 100:
                card.count(dims)

        text = damage.json_text(value)
        damage.in_fork(
            lambda value=value, text=text, read=read, card=card: each(
                f"config.json, {card.name}", path, text, read, 60, 2000, value
            )
        )


YAML = """model: &m {path: model, dtype: float32}
data:
  train: [a.jsonl, &b b.jsonl]
  dev: [*b]
  max_length: 64
train: {max_steps: 3, learning_rate: 1.0e-4, seed: 0x10, batch_size: 2}
method:
  name: lora
  rank: 8
output: {dir: 'out', samples: 2}
"""
YAML_WORDS = ("&a", "*a", "*b", "<<: *m", ": ", "- ", "[", "]", "{", "}", "!!python/object:os.system", "!!binary aGk=", "!!float x", "? ",
              "2001-01-01", "0x_", "1_000", ".nan", ".inf", "~", "|", ">", "\t", "\n", "  ", "'", '"', "\\", "é", "%YAML 9.9\n---\n",
              "---\n", "&a [*a, *a]", "9" * 5000, "[" * 3000, "yes", "null", "1e400", "@", "`", "!", "=")  # fmt: skip


def test_yaml_configurations(tmp_path):
    path = tmp_path / "c.yaml"

    def read():
        schema.build(FinetuneConfig, config_file.read_file(path))

    def inputs():
        import random

        for seed in range(damage.budget(250, 10_000)):
            draw, text = random.Random(seed), YAML
            for _ in range(draw.choice((1, 1, 2, 5))):
                at = draw.randrange(len(text))
                text = text[:at] + draw.choice(YAML_WORDS) + text[at + draw.randrange(3) :]
            data = text.encode() if seed % 4 else damage.content(YAML.encode(), seed)
            yield f"seed {seed}", lambda data=data: path.write_bytes(data)

    path.write_text(YAML)
    read()
    damage.in_fork(lambda: damage.try_all("YAML configurations", inputs(), read))


ROWS = [
    {"src": "Who?", "tgt": "Tom"},
    {"instruction": "Say", "input": "x", "output": "y"},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "tool_calls": [
        {"type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]}], "tools": "[]"},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
]  # fmt: skip


@pytest.mark.parametrize("form", ["jsonl", "json", "jsonl.gz", "jsonl.zst", "parquet", "arrow", "csv"])
def test_training_data(tmp_path, form):
    path = tmp_path / f"train.{form}"
    lines = b"".join(damage.json_text(row) + b"\n" for row in ROWS)
    import pyarrow

    if form == "arrow":
        table = pyarrow.table({"src": ["a", "b"], "tgt": ["c", "d"]})
        with pyarrow.OSFile(str(path), "wb") as stream, pyarrow.ipc.new_stream(stream, table.schema) as writer:
            writer.write_table(table)
        whole = path.read_bytes()
    elif form == "parquet":
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"src": ["a", "b"], "tgt": ["c", "d"]}), path)
        whole = path.read_bytes()
    else:
        table = b'src,tgt\na,b\n"c\n1",d\n'
        whole = {
            "jsonl": lines,
            "json": damage.json_text(ROWS),
            "jsonl.gz": gzip.compress(lines, mtime=0),
            "jsonl.zst": pyarrow.compress(lines, "zstd", asbytes=True),
            "csv": table,
        }[form]

    def read():
        read_files([path], ExampleReader())

    def inputs():
        for seed in range(damage.budget(150, 5000)):
            row = damage.json_value(ROWS[seed % 4], seed)
            changed = damage.json_text(row) + b"\n" if form == "jsonl" and seed % 4 < 3 else damage.content(whole, seed)
            yield f"seed {seed}", lambda changed=changed: path.write_bytes(changed)

    path.write_bytes(whole)
    read()
    damage.in_fork(lambda: damage.try_all(f"training data, {form}", inputs(), read), memory=2 << 30)


@pytest.mark.parametrize("suffix", ["idx", "bin"])
def test_corpora(tmp_path, suffix):
    corpora.write(tmp_path / "c")
    path = tmp_path / f"c.{suffix}"

    def read():
        corpus = Corpus(tmp_path / "c")
        for number in range(min(corpus.documents, 100)):
            corpus.document(number)

    whole = path.read_bytes()
    damage.in_fork(lambda: each(f"corpora, {suffix}", path, whole, read, 200, 8000), memory=1 << 30)


def fp8():
    return {"quant_method": "fp8", "weight_block_size": [32, 32]}, quantized_models.fp8((32, 32))


@pytest.mark.parametrize("make", [lambda: quantized_models.gptq(4), quantized_models.awq, lambda: quantized_models.compressed(
    "pack-quantized", 4, 32, "packed"), fp8], ids=["gptq", "awq", "compressed-tensors", "fp8"])  # fmt: skip
@pytest.mark.parametrize("part", ["config.json", "header"])
def test_quantized_models(tmp_path, make, part):
    config, tensors = make()
    made = quantized_models.Quantized(tmp_path / "m", config, tensors)
    if part == "config.json":
        path, data = made.folder / part, b""
        value = json.loads(path.read_text())["quantization_config"]
        outer = json.loads(path.read_text())
        text = lambda changed: damage.json_text({**outer, "quantization_config": changed})  # noqa: E731
    else:
        path = made.folder / "model.safetensors"
        whole = path.read_bytes()
        size = 8 + int.from_bytes(whole[:8], "little")
        value, data = json.loads(whole[8:size]), whole[size:]

        def text(changed):
            header = damage.json_text(changed)
            return len(header).to_bytes(8, "little") + header + data

    def inputs():
        for seed in range(damage.budget(60, 2000)):
            yield f"seed {seed}", lambda seed=seed: path.write_bytes(text(damage.json_value(value, seed)))

    path.write_bytes(text(value))
    made.model()
    damage.in_fork(lambda: damage.try_all(f"quantized models, {config['quant_method']}, {part}", inputs(), made.model))
