"""OPT's folders hold vocab.json and merges.txt alone, and its texts begin with </s>."""

import json
import shutil

import pytest

from llmctl.testing import load_tokenizer
from llmctl_opt import CARD

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]


@pytest.mark.assets
@pytest.mark.parametrize("stated", [{"add_bos_token": True}, {}])
def test_texts_begin_with_the_end_token(assets, tmp_path, stated):
    source = assets / "tokenizers" / "gpt2"
    shutil.copyfile(source / "merges.txt", tmp_path / "merges.txt")
    vocabulary = {name: token + 4 for name, token in json.loads((source / "vocab.json").read_text()).items()}
    (tmp_path / "vocab.json").write_text(json.dumps({**{name: i for i, name in enumerate(SPECIAL)}, **vocabulary}))
    end = {"__type": "AddedToken", "content": "</s>"}
    names = {"bos_token": end, "eos_token": end, "unk_token": end, "pad_token": {**end, "content": "<pad>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**names, **stated, "add_prefix_space": False}))
    tokenizer = load_tokenizer(tmp_path, card=CARD)
    for row in json.loads((source / "vectors.json").read_text()):
        ids = [2, *(token + 4 for token in row["ids"])]
        assert tokenizer.encode(row["text"]) == ids and tokenizer.decode([*ids, 2]) == row["text"]
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id, tokenizer.unk_id) == (2, (2,), 1, 2)
    assert 2 not in tokenizer.encode("a </s>", add_special=False)
