"""A tokenizer.json whose merges lack the prefix that it names ends in a message; the library would end the process."""

import json

import pytest
from kit import tiny_tokenizers

from llmctl import tokenizers
from llmctl.errors import TokenizerError


@pytest.mark.parametrize("form", [list, " ".join])
def test_merges_without_the_prefix_are_refused(tmp_path, form):
    folder = tiny_tokenizers.write_json(tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["continuing_subword_prefix"] = "##"
    content["model"]["merges"] = [form(merge) for merge in content["model"]["merges"]]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(
        TokenizerError, match="tokenizer.json cannot be read: the merge .* lacks continuing_subword_prefix='##'"
    ):
        tokenizers.load(folder)
