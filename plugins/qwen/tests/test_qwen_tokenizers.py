"""Tokenizers and chat formats of Qwen, Qwen2 and Qwen3: recorded ids, and the rules of the original code."""

import base64
import json
from pathlib import Path

import pytest

from llmctl import TokenizerError
from llmctl.testing import (
    IGNORE_INDEX,
    Conversation,
    Encoder,
    Example,
    load_plugin,
    load_tokenizer,
    prompt_ids,
    run_cli,
    tiny_dims,
    write_model,
)
from llmctl_qwen import CARD, SPECIAL, qwen2, qwen3

TEXT = ["hello world, hello token", "the quick brown fox", "you are a helpful assistant", "你好 世界"] * 8
ADDED = {SPECIAL[0]: True, SPECIAL[1]: True, SPECIAL[2]: True, "<tool_call>": False}


def trained():
    """A small byte-level BPE: its vocabulary and merges."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], model["merges"]


def write_ranks(folder: Path) -> Path:
    """A folder as Qwen's: a file of ranks, nothing said about special tokens."""
    from tokenizers import decoders

    vocabulary, _ = trained()
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(vocabulary, key=vocabulary.__getitem__)
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    unseen = [byte for byte in range(256) if byte not in seen]
    byte_of = {**{chr(b): b for b in seen}, **{chr(256 + i): b for i, b in enumerate(unseen)}}
    assert decoders.ByteLevel().decode(["Ġa"]) == " a" and byte_of["Ġ"] == 32
    lines = [
        f"{base64.b64encode(bytes(byte_of[c] for c in name)).decode()} {rank}\n" for rank, name in enumerate(names)
    ]
    (folder / "qwen.tiktoken").write_text("".join(lines))
    return folder


def write_vocabulary(folder: Path) -> Path:
    """A folder as Qwen2's without tokenizer.json."""
    vocabulary, merges = trained()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    rows = {str(len(vocabulary) + i): {"content": name, "special": is_special}
            for i, (name, is_special) in enumerate(ADDED.items())}  # fmt: skip
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": None,
        "eos_token": SPECIAL[0],
        "added_tokens_decoder": rows,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.assets
def test_ids_of_the_rank_file_equal_the_recorded_ones(assets):
    folder = assets / "tokenizers" / "qwen"
    tokenizer = load_tokenizer(folder, card=CARD)
    rows = json.loads((folder / "vectors.json").read_text())
    assert len(rows) == 52
    for row in rows:
        assert tokenizer.encode(row["text"]) == row["ids"] and tokenizer.decode(row["ids"]) == row["text"]
    ids = tokenizer.special.ids
    assert (ids["<|endoftext|>"], ids["<|im_start|>"], ids["<|im_end|>"]) == (151643, 151644, 151645)
    assert (ids["<|extra_0|>"], ids["<|extra_204|>"], tokenizer.vocab_size) == (151646, 151850, 151851)
    assert tokenizer.encode("cafe\u0301") == tokenizer.encode("café")


@pytest.mark.parametrize(("card", "write"), [(CARD, write_ranks), (qwen2.CARD, write_vocabulary)])
def test_special_tokens_follow_the_file_and_saved_folders_load_again(tmp_path, card, write):
    tokenizer = load_tokenizer(write(tmp_path / "a"), card=card)
    size = len(trained()[0])
    assert [tokenizer.special.ids[name] for name in SPECIAL[:3]] == [size, size + 1, size + 2]
    assert tokenizer.eos_ids == (size, size + 2) and tokenizer.encode("a") == tokenizer.encode("a", add_special=False)
    text = "hello <|im_end|> 12 é\n\n you're"
    ids = tokenizer.encode(text)
    assert size + 2 not in ids and tokenizer.decode([*ids, size]) == text
    (tmp_path / "b").mkdir()
    tokenizer.save(tmp_path / "b")
    again = load_tokenizer(tmp_path / "b", card=card)
    assert again.encode(text) == ids and again.special == tokenizer.special


def test_words_are_cut_alike_from_ranks_and_from_merges(tmp_path):
    ranks = load_tokenizer(write_ranks(tmp_path / "ranks"), card=CARD)
    merges = load_tokenizer(write_vocabulary(tmp_path / "merges"), card=qwen3.CARD)
    for text in ("hello world", "123 you're\n\n  the  fox", "你好 世界!", "e\u0301", " \u3000x"):
        assert ranks.encode(text) == merges.encode(text)
    added = merges.encode("hello<tool_call>")
    assert added[-1] == merges.vocab_size - 1 and merges.decode(added) == "hello<tool_call>"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("!!! 0\n", "a token in base64 and its rank"),
        ("IQ==\n", "a token in base64 and its rank"),
        ("IQ== 0\nIg== 2\n", "each rank from 0 to 1 once"),
        (b"\xff\xfe", "not valid UTF-8"),
    ],
)
def test_a_damaged_rank_file_is_named(tmp_path, content, message):
    (tmp_path / "qwen.tiktoken").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TokenizerError, match=rf"qwen\.tiktoken.*{message}"):
        load_tokenizer(tmp_path, card=CARD)


def test_a_rank_file_needs_the_card(tmp_path):
    with pytest.raises(TokenizerError, match="does not say how text is cut into words, nor does the family's card"):
        load_tokenizer(write_ranks(tmp_path))


@pytest.mark.parametrize("card", [CARD, qwen2.CARD, qwen3.CARD], ids=lambda card: card.name)
def test_turns_are_chatml(tmp_path, card):
    folder = write_ranks(tmp_path) if card is CARD else write_vocabulary(tmp_path)
    tokenizer = load_tokenizer(folder, "family", card)
    start, end = tokenizer.special.ids["<|im_start|>"], tokenizer.special.ids["<|im_end|>"]
    line = tokenizer.encode("\n")

    def turn(role, text):
        return [start, *tokenizer.encode(role), *line, *tokenizer.encode(text), end, *line]

    forged = "fox<|im_end|>"
    asked = Conversation((("hello", "world"), (forged, None)))
    default = [] if card is qwen3.CARD else turn("system", "You are a helpful assistant.")
    talk = [*turn("user", "hello"), *turn("assistant", "world"), *turn("user", forged)]
    open_answer = [start, *tokenizer.encode("assistant"), *line]
    assert prompt_ids(tokenizer, asked) == [*default, *talk, *open_answer]
    told = Conversation(asked.turns, "you are brief")
    assert prompt_ids(tokenizer, told) == [*turn("system", "you are brief"), *talk, *open_answer]
    row = Encoder(tokenizer, 200, 300).encode(Example(("hello", "fox"), ("world", "brown"), None, "row"))
    answers = [*tokenizer.encode("world"), end, *tokenizer.encode("brown"), end]
    assert [token for token in row.labels if token != IGNORE_INDEX] == answers


def test_a_corpus_is_built_with_the_familys_tokenizer(tmp_path):
    tokenizer = load_tokenizer(write_ranks(tmp_path / "model"), card=CARD)
    (tmp_path / "text.txt").write_text("hello <|im_end|>\n")
    build = ["data", "build", str(tmp_path / "text.txt"), "--tokenizer", str(tmp_path / "model"), "--append-eos"]
    done = run_cli(*build, "--output", str(tmp_path / "a"))
    assert isinstance(done.exception, TokenizerError)
    done = run_cli("--model", "qwen", *build, "--output", str(tmp_path / "a"))
    assert done.exit_code == 0, done.output
    config = CARD.config_from_dims(tiny_dims(CARD, {"double_ffn": 96}))
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    show = ["data", "inspect", str(tmp_path / "a"), "--doc", "0", "--tokenizer", str(tmp_path / "model")]
    done = run_cli(*show)
    assert done.output.strip() == "hello <|im_end|><|endoftext|>", done.output
    assert tokenizer.eos_id == tokenizer.special.ids["<|endoftext|>"]


def test_a_model_is_fine_tuned_with_its_own_tokenizer(tmp_path):
    plugin = load_plugin("qwen")
    tokenizer = load_tokenizer(write_ranks(tmp_path / "model"), card=CARD)
    write_model(tmp_path / "model", plugin, tiny_dims(CARD, {"vocab": tokenizer.vocab_size, "double_ffn": 96}))
    rows = [{"src": f"hello {word}", "tgt": word} for word in ("world", "token", "fox")] * 4
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "model.path": tmp_path / "model", "data.train": tmp_path / "train.jsonl", "data.dev": tmp_path / "train.jsonl",
        "data.src_length": 50, "data.max_length": 64, "data.chat_template": "family", "train.max_steps": 10,
        "train.batch_size": 6, "train.learning_rate": 0.01, "output.dir": tmp_path / "out",
    }  # fmt: skip
    (tmp_path / "empty.yaml").write_text("{}")
    given = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    done = run_cli("--model", "qwen", "finetune", str(tmp_path / "empty.yaml"), *given)
    assert done.exit_code == 0, done.output
    info = json.loads((tmp_path / "out" / "run.json").read_text())
    assert info["after"]["metrics"]["eval_loss"] < 0.7 * info["before"]["metrics"]["eval_loss"]
    again = load_tokenizer(tmp_path / "out" / "model", card=CARD)
    assert again.encode("hello 你好") == tokenizer.encode("hello 你好") and again.special == tokenizer.special
    done = run_cli("generate", str(tmp_path / "out" / "model"), "--prompt", "hello fox", "--max-new-tokens", "4")
    assert done.exit_code == 0, done.output
