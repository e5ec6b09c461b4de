"""Lines of every format have the ids of transformers' ``apply_chat_template``, and loss on its assistant mask.

The recordings are made by tools/goldens/make_formats_golden.py, so that transformers is not needed here.
"""

import json

import pytest
from kit.paths import GOLDENS

from llmctl import tokenizers
from llmctl.data.formats import DPO, PROMPTS, SFT
from llmctl.data.preference.encoding import PairEncoder
from llmctl.data.preference.examples import PreferenceReader
from llmctl.data.sft.encoding import IGNORE_INDEX, Encoder, prompt_ids
from llmctl.data.sft.examples import ExampleReader
from llmctl.infer.text.prompt_file import read_prompts
from llmctl.tokenizers.chat import JinjaTemplate

RECORDED = json.loads((GOLDENS / "formats" / "cases.json").read_text(encoding="utf-8"))
TEMPLATES = json.loads((GOLDENS / "messages" / "cases.json").read_text(encoding="utf-8"))["templates"]


def named(cases):
    return pytest.mark.parametrize(
        "case", cases, ids=[f"{case['template']}-{case['format']}-{number}" for number, case in enumerate(cases)]
    )


def tokenizer_of(case):
    tokenizer = tokenizers.load(GOLDENS / "messages")
    tokenizer.chat_template = JinjaTemplate(TEMPLATES[case["template"]], tokenizer, "the template")
    return tokenizer


def trained_only(mask, trained):
    """The mask without the answers that are not trained on."""
    found, answer = [], -1
    for before, now in zip([0, *mask], mask, strict=False):
        answer += now > before
        found.append(now and trained[answer])
    return found


def test_every_format_is_recorded():
    for command, formats in (("finetune", SFT), ("dpo", DPO)):
        assert {case["format"] for case in RECORDED[command]} == {form.name for form in formats}


@named(RECORDED["finetune"])
def test_examples_have_the_ids_and_the_mask_of_transformers(case):
    reader, tokenizer = ExampleReader(), tokenizer_of(case)
    example = reader(json.dumps(case["row"]), "f:1")
    assert reader.counts() == {case["format"]: 1} and not reader.warnings()
    row = Encoder(tokenizer, 2000, 4000).encode(example)
    assert row.input_ids == case["ids"] and not row.truncated
    loss = [0, *(int(label != IGNORE_INDEX) for label in row.labels[:-1])]
    assert loss == trained_only(case["mask"], case["trained"])


@named(RECORDED["dpo"])
def test_pairs_have_the_ids_of_transformers(case):
    reader = PreferenceReader()
    pair = PairEncoder(tokenizer_of(case), 2000, 4000).encode(reader(json.dumps(case["row"]), "f:1"))
    assert reader.counts() == {case["format"]: 1} and not reader.warnings()
    assert pair.prompt == case["prompt"]
    assert (pair.prompt + pair.chosen, pair.prompt + pair.rejected) == (case["chosen"], case["rejected"])


@named([case for case in RECORDED["dpo"] if any(form.fits(case["row"]) for form in PROMPTS)])
def test_prompts_of_generation_are_those_of_transformers(tmp_path, case):
    (tmp_path / "in.jsonl").write_text(json.dumps(case["row"]), encoding="utf-8")
    (line,) = read_prompts(tmp_path / "in.jsonl")
    assert prompt_ids(tokenizer_of(case), line.conversation) == case["prompt"]
