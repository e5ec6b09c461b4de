"""Quantizing a model: what is chosen, that nothing is worse than rounding, that an interrupted run gives the same bytes."""

import gzip
import hashlib
import importlib.util
import json
import os
import shutil
import sys

import numpy as np
import pytest
from kit import packed_toys
from kit.model_cli import STARTER, llmctl
from kit.quantized_models import Quantized, gptq
from safetensors.numpy import load_file, save_file

from llmctl.errors import DataError, FileError
from llmctl.infer.eager import exported
from llmctl.infer.engine.feeder import SequenceFeeder
from llmctl.infer.executors import native
from llmctl.infer.executors.paddle import PaddleExecutor
from llmctl.infer.executors.reference import ReferenceExecutor
from llmctl.infer.packed import folder as packed_folder
from llmctl.infer.packed.folder import open_packed
from llmctl.infer.packed.linear import PackedLinear, codes_of, unpack
from llmctl.infer.quantize import job as quantizing
from llmctl.infer.quantize import quality, quantizer
from llmctl.infer.quantize.block import block_of
from llmctl.infer.quantize.costs import estimate
from llmctl.infer.quantize.quantizer import quantize_layer
from llmctl.infer.quantize.settings import Settings
from llmctl.infer.quantize.streams import CHECK, Streams, Tokens
from llmctl.testing.tiny import write_adapter

MODEL = []
TEXT = "".join(f"{name} has a {color} {thing}. The {thing} is {color}.\n" for name in ("Tom", "Mia", "Leo", "Ida", "Max")
               for color in ("red", "blue", "green", "black") for thing in ("kite", "ball", "hat", "boat", "cup", "cat"))  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "calibration.txt"
    file.write_text(TEXT, encoding="utf-8")
    return file


@pytest.fixture(scope="module", autouse=True)
def model(tmp_path_factory):
    """The first two layers of the starter model in float32."""
    MODEL.append(tmp_path_factory.mktemp("model") / "float")
    llmctl("convert", STARTER, MODEL[0], "--dtype", "float32")
    (file,) = MODEL[0].glob("*.safetensors")
    kept = {name: value for name, value in load_file(file).items() if "layers.2" not in name and "layers.3" not in name}
    save_file(kept, file, {"format": "pt"})
    config = json.loads((MODEL[0] / "config.json").read_text())
    (MODEL[0] / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    yield MODEL[0]
    MODEL.clear()


def quantize(text, output, *words, code=0, model=None):
    few = ("--tokens", "1000", "--window", "64")
    return llmctl("quantize", model or MODEL[0], "--calibration", text, "--output", output, *few, *words, code=code)


def digests(folder):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


@pytest.mark.parametrize("method", ["gptq", "awq", "ptq-a8w8"])
def test_no_linear_is_worse_than_rounding_on_held_out_text(method, text, tmp_path):
    quantize(text, tmp_path / "out", "--method", method, "--max-kl", "100")
    report = json.loads((tmp_path / "out" / "quantization.json").read_text())
    assert {row["stage"] for row in report["linears"]} == {"qkv", "out", "up", "down"}
    for row in report["linears"]:
        assert row["error"] <= row["rounded_error"] * (1 + 1e-9)
    kinds = {layer.qkv.weight.kind for layer in open_packed(tmp_path / "out", verify=True).layers}
    assert kinds == {"int8" if method == "ptq-a8w8" else "int4"}
    assert "largest input of down over the median" in (tmp_path / "out" / "quantization.html").read_text()


def test_gptq_is_nearer_to_the_float_model_than_rounding(text, tmp_path):
    found = {}
    for method in ("gptq", "weight-only-int4"):
        quantize(text, tmp_path / method, "--method", method, "--max-kl", "100")
        found[method] = json.loads((tmp_path / method / "quantization.json").read_text())["quality"]["kl"]
    assert found["gptq"] < 0.75 * found["weight-only-int4"]


def test_the_folder_predicts_as_the_report_says(text, tmp_path):
    quantize(text, tmp_path / "out", "--qkv", "int8")
    out, _ = llmctl("eval", MODEL[0], tmp_path / "out", "--text", text, "--json")
    kl = json.loads(out)[1]["kl"]
    quality = json.loads((tmp_path / "out" / "quantization.json").read_text())["quality"]
    assert quality["tokens"] > 40
    # Other tokens of the same text.
    assert quality["kl"] / 3 < kl < quality["kl"] * 3
    kinds = [layer.qkv.weight.kind + layer.up[0].weight.kind for layer in open_packed(tmp_path / "out").layers]
    assert set(kinds) == {"int8int4"}


def test_keys_and_values_in_8_bits_are_nearer_to_the_float_model(text, tmp_path):
    """And what is reported of them is what the folder has: kinds, bits, tokens that its codes give when they are unpacked."""
    folders = [tmp_path / qkv for qkv in ("int4", "mixed")]
    for folder in folders:
        words = ("--method", "weight-only-int4", "--qkv", folder.name, "--output", folder)
        llmctl("quantize", MODEL[0], *words)
    _, *rows = json.loads(llmctl("eval", MODEL[0], *folders, "--text", text, "--json")[0])
    assert rows[1]["kl"] < 0.6 * rows[0]["kl"]
    plain, mixed = (json.loads((folder / "quantization.json").read_text()) for folder in folders)
    assert mixed["summary"].startswith("weight-only-int4: 2 layers to int4, keys and values to int8, groups of 64")
    assert [(row["stage"], row["bits"]) for row in mixed["linears"]][:3] == [("q", 4), ("kv", 8), ("out", 4)]
    model = open_packed(tmp_path / "mixed", verify=True)
    graph = model.graph
    of_layer = {"kv": 2 * graph.hidden * graph.kv_heads * graph.head_dim,
                "all": 2 * graph.hidden * (graph.heads + graph.kv_heads) * graph.head_dim + 3 * graph.hidden * graph.ffn}  # fmt: skip
    assert mixed["bits"] - plain["bits"] == pytest.approx(4 * of_layer["kv"] / of_layer["all"], abs=1e-3)
    assert {layer.qkv.weight.kind for layer in model.layers} == {"int4+int8"}
    exact = ReferenceExecutor(model, rounding=True)
    packed = native.NativeExecutor(model, 64) if native.available() else PaddleExecutor(model)
    made = [SequenceFeeder(one, graph, [-1]).greedy(0, [*range(5, 25)], 12) for one in (packed, exact)]
    assert made[0] == made[1]


@pytest.fixture
def done(monkeypatch):
    """Numbers of the layers that runs have begun; the first run is interrupted in its second layer."""
    real, begun = quantizer.quantize_layer, []

    def stopping(streams, index, block, settings):
        begun.append(index)
        if begun == [0, 1]:
            raise KeyboardInterrupt
        return real(streams, index, block, settings)

    monkeypatch.setattr(quantizer, "quantize_layer", stopping)
    return begun


def test_a_run_that_was_stopped_continues_to_the_same_bytes(text, tmp_path, request):
    quantize(text, tmp_path / "whole", "--qkv", "mixed")
    done = request.getfixturevalue("done")
    quantize(text, tmp_path / "out", "--qkv", "mixed", code=130)
    assert not (tmp_path / "out").exists()
    quantize(text, tmp_path / "out", "--qkv", "mixed", "--resume")
    assert done == [0, 1, 1]
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_a_link_is_replaced_and_nothing_is_left_where_it_points(text, tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "absent" / "folder")
    quantize(text, tmp_path / "out", "--method", "weight-only-int8")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not (tmp_path / "out").is_symlink() and (tmp_path / "out" / "quantization.json").is_file()


def test_layers_of_another_configuration_are_not_used(text, tmp_path, done):
    quantize(text, tmp_path / "out", code=130)
    quantize(text, tmp_path / "out", "--resume", "--group", "32")
    assert done == [0, 1, 0, 1]


def test_layers_of_other_weights_are_not_used(text, tmp_path, done):
    """Not even if they differ in one value of one norm."""
    shutil.copytree(MODEL[0], tmp_path / "model")
    quantize(text, tmp_path / "out", model=tmp_path / "model", code=130)
    (file,) = (tmp_path / "model").glob("*.safetensors")
    weights = {name: value.copy() for name, value in load_file(file).items()}
    (name,) = (name for name in weights if name.endswith("layers.0.input_layernorm.weight"))
    weights[name][9] += 0.5
    save_file(weights, file, {"format": "pt"})
    quantize(text, tmp_path / "out", "--resume", model=tmp_path / "model")
    assert done == [0, 1, 0, 1]


def test_a_model_too_far_from_the_float_one_is_not_kept(text, tmp_path):
    _, said = quantize(text, tmp_path / "out", "--max-kl", "1e-9", code=1)
    assert "above 1e-09, so" in said and "was not written" in said
    assert list(tmp_path.iterdir()) == []


def test_rounding_needs_no_text(tmp_path):
    out, _ = llmctl("quantize", MODEL[0], "--method", "weight-only-int8", "--output", tmp_path / "out")
    assert "not compared with the float model: no --calibration" in out


@pytest.mark.parametrize(("kind", "group"), [("int8", None), ("int8", 0), ("int4", None), ("int4", 96)])
def test_rounding_gives_the_codes_of_export(kind, group, tmp_path):
    words = [] if group is None else ["--group", group]
    llmctl("export", MODEL[0], "--engine", "fused", "--weights", kind, *words, "--output", tmp_path / "exported")
    llmctl("quantize", MODEL[0], "--method", f"weight-only-{kind}", *words, "--output", tmp_path / "quantized")
    exported, quantized = (open_packed(tmp_path / name) for name in ("exported", "quantized"))
    for one, other in zip(_linears(exported), _linears(quantized), strict=True):
        assert one.kind == other.kind
        for mine, theirs in zip(codes_of(one), codes_of(other), strict=True):
            np.testing.assert_array_equal(mine, theirs)


def _linears(model):
    assert isinstance(model.embed, PackedLinear)
    yield from (model.embed, model.head.weight)
    for layer in model.layers:
        yield from (linear.weight for linear in (layer.qkv, layer.out, *layer.up, *layer.down))


@pytest.mark.parametrize("method", ["gptq", "weight-only-int4"])
@pytest.mark.parametrize(
    ("tensor", "place"),
    [("layers.1.mlp.down_proj.weight", [3, 5]), ("layers.1.input_layernorm.weight", [7]), ("llama.norm.weight", [0])],
)
def test_a_weight_that_is_not_finite_is_named(tensor, place, method, text, tmp_path, monkeypatch):
    """Before any layer is quantized."""
    for name in ("quantize_layer", "quantize_unseen"):
        monkeypatch.setattr(quantizer, name, None)
    shutil.copytree(MODEL[0], tmp_path / "model")
    (file,) = (tmp_path / "model").glob("*.safetensors")
    weights = {name: value.copy() for name, value in load_file(file).items()}
    (name,) = (name for name in weights if name.endswith(tensor))
    weights[name][tuple(place)] = np.nan
    save_file(weights, file, {"format": "pt"})
    _, said = quantize(text, tmp_path / "out", "--method", method, model=tmp_path / "model", code=2)
    assert (
        f"{tensor} cannot be quantized: 1 of its {weights[name].size:,} values are not finite, the first at {place}"
        in said
    )
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("which", ["float", "quantized"])
def test_predictions_that_are_not_finite_keep_nothing(which, text, tmp_path, monkeypatch):
    right = quality.compare

    def broken(*given):
        measures = right(*given)
        measures[which == "quantized"].loss_sum = float("nan")
        return measures

    monkeypatch.setattr(quality, "compare", broken)
    _, said = quantize(text, tmp_path / "out", "--method", "weight-only-int8", code=2)
    assert f"predictions of the {which} model are not finite" in said
    assert not (tmp_path / "out").exists()


def test_predictions_of_prompts_do_not_count():
    model = packed_toys.build(packed_toys.FORMS["rope and shared heads"])
    ids, counted = list(range(1, 25)), [place in (5, 6, 20, 23) for place in range(24)]
    found = []
    for answers in ([], [counted]):
        streams = Streams(model.graph, Tokens([ids], [CHECK], answers))
        streams.embed(model, model)
        found.append(quality.compare(streams, model, model)[0])
    # Behind the last token is none.
    assert [measures.tokens for measures in found] == [23, 3]
    assert found[0].loss != found[1].loss


def test_examples_are_compared_on_their_answers(tmp_path):
    """As ``llmctl eval`` counts tokens of the same examples."""
    row = {"src": "Where does Tom live?", "tgt": "Tom lives in Rome."}
    (tmp_path / "data.jsonl").write_text((json.dumps(row) + "\n") * 30)
    method = ("--method", "weight-only-int8", "--json")
    out, _ = quantize(tmp_path / "data.jsonl", tmp_path / "out", *method, model=STARTER)
    (tmp_path / "one.jsonl").write_text(json.dumps(row) + "\n")
    (one,) = json.loads(llmctl("eval", STARTER, "--data", tmp_path / "one.jsonl", "--json")[0])
    measured = json.loads(out.splitlines()[-1])["quality"]
    assert measured["tokens"] == one["tokens"] * max(1, 30 // 8 // 2)
    assert measured["perplexity"] == pytest.approx(one["perplexity"], rel=1e-4)


def test_a_stopped_run_says_how_to_go_on(text, tmp_path, monkeypatch):
    def stopped(*given):
        raise FileError("disk full")

    monkeypatch.setattr(quantizing, "_layers", stopped)
    _, said = quantize(text, tmp_path / "out", "--method", "weight-only-int8", code=2)
    assert "disk full; layers that are done are kept: run the same command with --resume to continue" in said


def test_the_plan_counts_what_a_comparison_reads():
    graph = packed_toys.build(packed_toys.FORMS["rope and shared heads"]).graph
    one, many = (estimate(graph, Settings("weight-only-int8", 8, 32), [64] * count) for count in (1, 1000))
    assert many.memory > one.memory + 4 * 64 * 999 * 2 * graph.hidden
    assert many.seconds > one.seconds


@pytest.mark.parametrize("read", ["calibration.txt", "more/notes.txt"])
def test_overwriting_deletes_only_what_the_command_wrote(read, text, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "quantization.json").write_text("{}")
    kept = tmp_path / "out" / read
    kept.parent.mkdir(exist_ok=True)
    shutil.copy(text, kept)
    _, said = quantize(kept, tmp_path / "out", "--overwrite", code=2)
    assert "--overwrite would delete" in said
    assert kept.is_file()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("windows.txt", b"\xef\xbb\xbf" + TEXT.encode()),
        ("text.txt.gz", gzip.compress(TEXT.encode())),
        ("verse.txt", b"[Verse 1]\n" + TEXT.encode()),
    ],
)
def test_texts_of_every_kind_calibrate(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    out, _ = quantize(tmp_path / name, tmp_path / "out", "--check")
    assert "windows of text" in out


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_rows_of_documents_are_texts(name, tmp_path):
    """As ``llmctl data build`` reads them: {"text": ...}."""
    lines = [line for line in TEXT.splitlines() if line]
    rows = (
        [json.dumps({"text": line, "url": "x"}) for line in lines]
        if name == "rows.jsonl"
        else ["text,url", *(f"{line},x" for line in lines)]
    )
    (tmp_path / name).write_text("\n".join(rows) + "\n")
    (tmp_path / "same.txt").write_text("\n\n".join(lines))
    counts = [
        json.loads(quantize(file, tmp_path / "out", "--check", "--json")[0].splitlines()[-1])["tokens"]
        for file in (tmp_path / name, tmp_path / "same.txt")
    ]
    assert counts[0] == counts[1] > 500


def test_a_text_that_the_model_predicts_worse_than_by_chance_is_told(tmp_path):
    (tmp_path / "other.txt").write_text(" ".join(f"{number**3 % 9973:x}" for number in range(600)), encoding="utf-8")
    _, said = quantize(tmp_path / "other.txt", tmp_path / "out", "--method", "weight-only-int8", "--max-kl", "50")
    assert "the float model itself predicts it worse than by chance, with a perplexity of" in said


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "latin.txt",
            "A café.\n".encode("latin-1") * 99,
            "latin.txt:1 is not UTF-8: byte 5 is 0xe9; give a text, converted to UTF-8",
        ),
        ("wide.txt", TEXT.encode("utf-16"), "UTF-16 text; convert it to UTF-8"),
        ("keys.jsonl", b'{"question": "Who?", "answer": "Tom."}\n', "read with calibration.columns=[theirs=ours]"),
    ],
)
def test_calibration_that_cannot_be_read_says_what_to_do(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    _, said = quantize(tmp_path / name, tmp_path / "out", code=2)
    assert message in said
    assert "data.columns" not in said


def test_columns_that_are_no_pairs_are_told_by_their_own_key(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"question": "Who?", "answer": "Tom."}\n')
    _, said = quantize(tmp_path / "a.jsonl", tmp_path / "out", "--set", "calibration.columns=[answer]", code=2)
    assert "calibration.columns='answer': write the key in the data, =, and the key of the format" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "gptq"], "give a text, examples or a corpus with --calibration FILE"),
        (["--method", "weight-only-int8", "--set", "quantize.correction=1"], "has no effect with quantize.method=weight-only-int8"),
        (["--method", "weight-only-int8", "--tokens", "99"], "calibration.tokens has no effect without calibration.file"),
        (["--method", "weight-only-int4", "--max-kl", "0.1"], "check.max_kl has no effect without calibration.file"),
        (["--backend", "paddleslim", "--method", "weight-only-int8"], "It has gptq, awq, ptq-a8w8; leave out the backend"),
        (["--backend", "paddleslim", "--set", "quantize.asymmetric=true"], "whose GPTQ is symmetric; leave one out"),
        (["--calibration", "nowhere.txt"], "calibration.file=nowhere.txt does not exist"),
        (["--calibration", "SHORT"], "is too short to calibrate on"),
        (["--calibration", "FULL", "--method", "ptq-a8w8", "--qkv", "mixed"], "quantize.qkv=mixed has fewer bits than quantize.method=ptq-a8w8"),
        (["--calibration", "FULL", "--group", "48"], "must be 0 (a scale for each output) or a multiple of 32"),
        (["--calibration", "FULL", "--set", "quantize.groups=32"], "quantize.groups"),
        (["--calibration", "TURNS", "--set", "calibration.chat_template=none"], "set one with calibration.chat_template"),
        (["--calibration", "PIPE"], "is a pipe or a device, which can be read only once; save its content as a file"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_any_work(words, message, text, tmp_path):
    (tmp_path / "short.txt").write_text("A word. " * 20)
    turn = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    (tmp_path / "turns.jsonl").write_text(json.dumps({"messages": turn * 2}) + "\n")
    os.mkfifo(tmp_path / "pipe")
    files = {
        "PIPE": tmp_path / "pipe",
        "SHORT": tmp_path / "short.txt",
        "FULL": text,
        "TURNS": tmp_path / "turns.jsonl",
    }
    given = [files.get(word, word) for word in words]
    _, said = llmctl("quantize", MODEL[0], "--output", tmp_path / "out", *given, code=2)
    assert message in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [packed_folder.HEADER, exported.NAME])
def test_what_was_exported_or_quantized_is_not_quantized_again(name, tmp_path):
    shutil.copytree(MODEL[0], tmp_path / "model")
    (tmp_path / "model" / name).touch()
    _, said = llmctl(
        "quantize", tmp_path / "model", "--method", "weight-only-int8", "--output", tmp_path / "out", code=2
    )
    assert "give the float model that it was made from" in said


def test_codes_and_adapters_are_refused_with_what_to_give_instead(tmp_path):
    Quantized(tmp_path / "codes", *gptq(4))
    write_adapter(tmp_path / "adapter", MODEL[0])
    for name, message in (
        ("codes", "is quantized already (gptq codes of 4 bits"),
        ("adapter", "is an adapter; merge it first"),
    ):
        words = ("quantize", tmp_path / name, "--method", "weight-only-int8", "--output", tmp_path / "out")
        assert message in " ".join(llmctl(*words, code=2)[1].split())


def test_without_paddleslim_it_is_named(text, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "paddleslim", None)
    _, said = quantize(text, tmp_path / "out", "--backend", "paddleslim", code=2)
    assert (
        "quantize.backend=paddleslim needs paddleslim, which is not installed. Run: pip install 'paddle-llmctl[slim]'"
        in said
    )


@pytest.mark.slim
@pytest.mark.parametrize(
    "words", [["--method", "gptq", "--group", "0"], ["--method", "gptq"], ["--method", "awq"], ["--method", "ptq-a8w8"]]
)
def test_paddleslim_makes_models_as_near_to_the_float_one(words, text, tmp_path):
    if importlib.util.find_spec("paddleslim") is None:
        pytest.skip("PaddleSlim is not installed")
    found = {}
    for backend in ("llmctl", "paddleslim"):
        quantize(text, tmp_path / backend, "--backend", backend, "--max-kl", "10", *words)
        found[backend] = json.loads((tmp_path / backend / "quantization.json").read_text())
        if "gptq" in words:
            assert {row["how"] for row in found[backend]["linears"]} <= {"gptq", "rounded (better)"}
    assert found["paddleslim"]["quality"]["kl"] < 3 * found["llmctl"]["quality"]["kl"]


def test_a_check_writes_nothing(text, tmp_path):
    out, said = quantize(text, tmp_path / "out", "--check")
    assert "ok: gptq: " in out and "of memory" in said
    assert list(tmp_path.iterdir()) == []


def test_options_and_a_file_make_the_same_configuration(text, tmp_path):
    words = ["--method", "awq", "--group", "32", "--output", tmp_path / "out", "--calibration", text]
    printed, _ = llmctl("quantize", MODEL[0], *words, "--print-config")
    (tmp_path / "config.yaml").write_text(printed)
    again, _ = llmctl("quantize", "--config", tmp_path / "config.yaml", "--print-config")
    assert again == printed and 'method: "awq"' in printed
    llmctl("quantize", "--config", tmp_path / "config.yaml", "--check")


@pytest.mark.parametrize("tokens", [1, 8, 40])
def test_experts_with_few_tokens_are_rounded_and_never_zero(tokens):
    model = packed_toys.build(packed_toys.FORMS["experts"])
    ids = np.random.default_rng(0).integers(0, packed_toys.VOCAB, tokens).tolist()
    streams = Streams(model.graph, Tokens([ids, [1, 2, 3]], [0, 1]))
    streams.embed(model, model)
    block = block_of(model.layers[0])
    done = quantize_layer(streams, 0, block, Settings("gptq", 4, 32))
    for ours, linear in zip(done.layer.down, block.down, strict=True):
        weight = unpack(ours.weight)
        assert np.abs(weight - linear.weight).max() < 0.3 * np.abs(linear.weight).max()
    assert {row["how"] for row in done.rows if "how" in row} == {"rounded (few tokens)"}


def test_inputs_that_are_not_finite_are_named():
    model = packed_toys.build(packed_toys.FORMS["rope and shared heads"])
    streams = Streams(model.graph, Tokens([[1, 2, 3, 4]], [0]))
    streams.embed(model, model)
    streams.float_TD[2, 7] = streams.quantized_TD[2, 7] = np.inf
    with (
        pytest.raises(DataError, match="layer 0 cannot be quantized: input .* is not finite"),
        np.errstate(all="ignore"),
    ):
        quantize_layer(streams, 0, block_of(model.layers[0]), Settings("gptq", 4, 32))


def test_the_settings_are_those_of_the_configuration():
    from llmctl.config.quantize import QuantizeConfig
    from llmctl.infer.quantize.settings import BITS, settings_of

    for method, bits in BITS.items():
        config = QuantizeConfig()
        config.quantize.method = method
        settings = settings_of(config)
        assert (settings.bits, settings.q_bits, settings.kv_bits) == (bits, bits, bits)
        assert settings.offsets == (method == "ptq-a8w8")
    assert quantizing.REPORT == "quantization.json"
