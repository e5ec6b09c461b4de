"""Sentencepiece models made in a test, with the conventions of ChatGLM's files."""

import io
import json
from pathlib import Path

TEXT = [
    "the quick brown fox",
    "hello world, hello token",
    "philosophy of soup",
    "你好 世界",
    "[Round 1] 问：你好 答：世界",
] * 8
SPECIAL = ["[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>"]
BLANKS = ["<n>", "<|tab|>", *(f"<|blank_{length}|>" for length in range(2, 81))]


def train(path: Path, **options) -> None:
    """Writes a small model with byte fallback."""
    import sentencepiece

    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT), model_writer=stream, model_type="bpe", byte_fallback=True, minloglevel=2,
        hard_vocab_limit=False, remove_extra_whitespaces=False, normalization_rule_name="identity", **options,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(stream.getvalue())


def write_first(folder: Path, images: int | None = 0) -> Path:
    """A folder as ChatGLM-6B's: special tokens and white space are pieces; the first releases counted image tokens."""
    train(folder / "ice_text.model", vocab_size=460, user_defined_symbols=BLANKS, control_symbols=SPECIAL, pad_id=3)
    first = {"bos_token": "<sop>", "eop_token": "<eop>", "eos_token": "</s>"}
    later = {"bos_token": "<sop>", "eos_token": "<eop>", "end_token": "</s>", "num_image_tokens": images}
    names = {"unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "[MASK]", "gmask_token": "[gMASK]"}
    config = {"tokenizer_class": "ChatGLMTokenizer", **(first if images is None else later), **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def write_second(folder: Path, roles: bool = False) -> Path:
    """A folder as ChatGLM2's or, with roles, ChatGLM3's, whose code alone names them."""
    train(folder / "tokenizer.model", vocab_size=400)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "ChatGLMTokenizer", "remove_space": false}')
    names = ["[MASK]", "[gMASK]", "[sMASK]", "sop", "eop"]
    names += ["<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"] if roles else []
    (folder / "tokenization_chatglm.py").write_text(f"special_tokens = {json.dumps(names)}\n")
    return folder
