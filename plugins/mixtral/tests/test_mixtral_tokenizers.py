"""The chat format of Mistral and Mixtral against sentencepiece: each part is encoded on its own, as mistral-common does."""

import pytest
from sentencepiece import SentencePieceProcessor

from llmctl.testing import IGNORE_INDEX, Conversation, Encoder, Example, load_tokenizer, prompt_ids
from llmctl_mixtral import CARD, mistral


@pytest.mark.assets
@pytest.mark.parametrize("card", [CARD, mistral.CARD], ids=lambda card: card.name)
def test_questions_stand_in_inst(assets, tmp_path, card):
    folder = assets / "tokenizers" / "mistral"
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(folder / name)
    folder = tmp_path
    tokenizer = load_tokenizer(folder, "family", card)
    pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    parts = [*pieces.encode("[INST]"), *pieces.encode("Be brief.\n\nWho?"), *pieces.encode("[/INST]")]
    first = [1, *parts, *pieces.encode("Me."), 2]
    second = [*pieces.encode("[INST]"), *pieces.encode("你好</s>"), *pieces.encode("[/INST]")]
    talk = Conversation((("Who?", "Me."), ("你好</s>", None)), "Be brief.")
    assert prompt_ids(tokenizer, talk) == [*first, *second]
    row = Encoder(tokenizer, 200, 300).encode(Example(("Who?",), ("Me.",), "Be brief.", "row"))
    assert row.input_ids == first and [t for t in row.labels if t != IGNORE_INDEX] == [*pieces.encode("Me."), 2]
