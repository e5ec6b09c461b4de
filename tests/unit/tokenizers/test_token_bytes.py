"""The bytes of single tokens, which together are the text."""

import pytest
from kit.tiny_tokenizers import write_json, write_sentencepiece, write_vocabulary

from llmctl import tokenizers
from llmctl.tokenizers.token_names import bytes_of

TEXTS = ("Hello there, world", "a  b", "naïve 你好 🙂")


@pytest.mark.parametrize("write", [write_json, write_sentencepiece, write_vocabulary])
@pytest.mark.parametrize("text", TEXTS)
def test_bytes_of_tokens_make_the_text(tmp_path, write, text):
    tokenizer = tokenizers.load(write(tmp_path), "none")
    ids = tokenizer.encode(text, add_special=False)
    known = tokenizer.unk_id is None or tokenizer.unk_id not in ids
    whole = b"".join(map(tokenizer.token_bytes, ids))
    assert not known or whole.decode().strip() == tokenizer.decode(ids).strip()
    assert tokenizer.token_bytes(10**6) == b""
    for name, token in tokenizer.special.ids.items():
        assert tokenizer.token_bytes(token) == name.encode()


def test_names_of_both_kinds():
    assert bytes_of("Ġthe", True) == b" the" and bytes_of("Ã©", True) == "é".encode()
    assert bytes_of("▁the", False) == b" the" and bytes_of("<0xE4>", False) == b"\xe4" and bytes_of("Ġ", False) != b" "
