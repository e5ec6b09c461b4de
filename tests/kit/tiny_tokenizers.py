"""Tokenizers small enough to be made in a test: byte-level BPE as tokenizer.json or older files, and sentencepiece."""

import io
import json
from pathlib import Path

TEXT = [
    "the quick brown fox jumps over the lazy dog",
    "hello world, hello token",
    "naïve café über straße",
    "你好 世界",
] * 8
ROLES = ["<|user|>", "<|bot|>"]


def write_json(folder: Path, **config) -> Path:
    """A byte-level BPE with bos, eos and two role tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>", *ROLES]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": True, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def write_vocabulary(folder: Path, **config) -> Path:
    """The same BPE as vocab.json and merges.txt."""
    write_json(folder)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in model["merges"]))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "additional_special_tokens": ROLES, "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, **config}))
    return folder


def write_sentencepiece(folder: Path, pieces=(), **config) -> Path:
    """A sentencepiece BPE with byte fallback and pieces of one's own, and role tokens that tokenizer_config.json adds."""
    import sentencepiece

    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT), model_writer=stream, vocab_size=340, model_type="bpe", byte_fallback=True,
        character_coverage=0.98, hard_vocab_limit=False, remove_extra_whitespaces=False,
        normalization_rule_name="identity", minloglevel=2, user_defined_symbols=list(pieces),
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(stream.getvalue())
    model = sentencepiece.SentencePieceProcessor(model_proto=stream.getvalue())
    added = {str(model.get_piece_size() + i): {"content": role, "special": True} for i, role in enumerate(ROLES)}
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "added_tokens_decoder": added, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


KINDS = {"json": write_json, "sentencepiece": write_sentencepiece, "vocabulary": write_vocabulary}
