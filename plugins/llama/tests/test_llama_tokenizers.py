"""Chat formats of LLaMA 2, LLaMA 3 and Baichuan2 against sentencepiece and the rules of their published code."""

import json
import shutil

import pytest
from sentencepiece import SentencePieceProcessor

from llmctl import TokenizerError
from llmctl.testing import IGNORE_INDEX, Conversation, Encoder, Example, load_tokenizer, prompt_ids
from llmctl_llama import CARD, baichuan

TALK = Conversation((("Who? ", "Me."), ("你好 </s>", None)), "Be brief.")


@pytest.fixture
def llama2(assets, tmp_path):
    source = assets / "tokenizers" / "llama2"
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copyfile(source / name, tmp_path / name)
    return tmp_path, SentencePieceProcessor(model_file=str(source / "tokenizer.model"))


@pytest.mark.assets
def test_llama_2_writes_inst_and_sys(llama2):
    folder, pieces = llama2
    tokenizer = load_tokenizer(folder, "family", CARD)
    first = [1, *pieces.encode("[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWho? [/INST] Me. "), 2]
    assert prompt_ids(tokenizer, TALK) == [*first, 1, *pieces.encode("[INST] 你好 </s> [/INST]")]
    row = Encoder(tokenizer, 200, 300).encode(Example(("Who?",), ("Me.",), "Be brief.", "row"))
    assert row.input_ids == first and [token for token in row.labels if token != IGNORE_INDEX][-1] == 2


def write_headers(folder):
    """A byte-level BPE with the special tokens of LLaMA 3."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=names, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["who are you", "be brief"] * 8, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": names[0], "eos_token": names[1], "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_llama_3_is_known_by_its_tokens(tmp_path):
    tokenizer = load_tokenizer(write_headers(tmp_path), "family", CARD)

    def message(role, text, end=True):
        body = tokenizer.encode("\n\n" + text, add_special=False)
        return [2, *tokenizer.encode(role, add_special=False), 3, *body, *([4] if end else [])]

    expected = [0, *message("system", "Be brief."), *message("user", "Who?"), *message("assistant", "Me.")]
    expected += [*message("user", "你好 </s>"), *message("assistant", "", end=False)]
    assert prompt_ids(tokenizer, TALK) == expected
    assert tokenizer.eos_ids == (1, 4)
    row = Encoder(tokenizer, 200, 300).encode(Example(("who",), ("you",), None, "row"))
    assert [token for token in row.labels if token != IGNORE_INDEX] == [*tokenizer.encode("you", add_special=False), 4]


@pytest.mark.assets
@pytest.mark.parametrize("ids", [None, (259, 300)])
def test_baichuan_begins_turns_with_tokens_that_are_known_by_id(llama2, ids):
    folder, pieces = llama2
    config = {"add_bos_token": False, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if ids:
        names = {"user_token_id": ids[0], "assistant_token_id": ids[1], "eos_token_id": 2}
        (folder / "generation_config.json").write_text(json.dumps(names))
    user, assistant = ids or (195, 196)
    tokenizer = load_tokenizer(folder, "family", baichuan.CARD)
    expected = [*pieces.encode("Be brief."), user, *pieces.encode("Who? "), assistant, *pieces.encode("Me.")]
    assert prompt_ids(tokenizer, TALK) == [*expected, user, *pieces.encode("你好 </s>"), assistant]
    assert tokenizer.encode("Who?") == pieces.encode("Who?")
    forged = pieces.id_to_piece(195)
    assert tokenizer.decode(tokenizer.encode(forged)) == forged
    row = Encoder(tokenizer, 200, 300).encode(Example(("Who?",), ("Me.",), None, "row"))
    assert row.input_ids == [user, *pieces.encode("Who?"), assistant, *pieces.encode("Me."), 2]


def test_baichuan_needs_tokens_for_turns(tmp_path):
    import io

    import sentencepiece

    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["hello world"] * 4), model_writer=stream, vocab_size=40, hard_vocab_limit=False,
        minloglevel=2,
    )  # fmt: skip
    (tmp_path / "tokenizer.model").write_bytes(stream.getvalue())
    with pytest.raises(TokenizerError, match="no tokens for the user and the assistant"):
        prompt_ids(load_tokenizer(tmp_path, "family", baichuan.CARD), TALK)
