"""A model's generation_config.json is what holds where no option is given: generate, chat and ``LLM``."""

import json
import shutil
from dataclasses import replace

import pytest
from kit.model_cli import STARTER, llmctl, rows_of

import llmctl as library
from llmctl.infer.sampling import SamplingParams

PROMPT = "Deny this: Tom has a red kite."
ASK = ["--prompt", PROMPT, "--no-stream"]
CONTENT = {"do_sample": True, "temperature": 0.8, "top_k": 30, "max_new_tokens": 12, "repetition_penalty": 1.05}
SAME = ["--sample", "--temperature", "0.8", "--top-k", "30", "--max-new-tokens", "12", "--repetition-penalty", "1.05"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("configured") / "model"
    shutil.copytree(STARTER, made)
    (made / "generation_config.json").write_text(json.dumps(CONTENT))
    return made


def answer(model, *options):
    return llmctl("generate", model, *ASK, *options)[0]


def test_generate_samples_as_the_model_says_and_options_go_first(folder):
    assert answer(folder) == answer(STARTER, *SAME) != answer(STARTER, "--max-new-tokens", "12")
    assert answer(folder, "--seed", "5") == answer(STARTER, *SAME, "--seed", "5")
    greedy = answer(STARTER, "--max-new-tokens", "12", "--repetition-penalty", "1.05")
    assert answer(folder, "--greedy") == answer(folder, "--temperature", "0") == greedy
    assert answer(STARTER, "--top-p", "0.9", "--seed", "4") == answer(
        STARTER, "--sample", "--top-p", "0.9", "--seed", "4"
    )


def test_details_say_where_values_come_from(folder):
    said = llmctl("generate", folder, *ASK, "-v", "--top-k", "5")[1]
    for part in ("sample True (--top-k)", "temperature 0.8 (generation_config.json)", "top_k 5 (--top-k)"):
        assert part in said
    assert "sample False (--greedy)" in llmctl("generate", folder, *ASK, "-v", "--greedy")[1]
    assert not llmctl("generate", folder, *ASK, "-q")[1]


def test_an_exported_model_keeps_the_file(folder, tmp_path):
    llmctl("export", folder, "--engine", "fused", "--output", tmp_path / "packed")
    assert answer(tmp_path / "packed") == answer(folder)


def test_an_answer_ends_where_the_positions_of_the_model_end(folder, tmp_path):
    long = tmp_path / "long"
    shutil.copytree(folder, long)
    (long / "generation_config.json").write_text('{"max_new_tokens": 32768}')
    (tmp_path / "in.jsonl").write_text(
        json.dumps({"src": "Tom " * 500}) + "\n" + json.dumps({"src": "Tom " * 470}) + "\n"
    )
    llmctl("generate", long, "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl", "-q")
    assert len(rows_of(tmp_path / "out.jsonl")) == 2
    said = llmctl("generate", long, "--prompt", "Tom " * 470, "--max-new-tokens", "64", code=2)[1]
    assert "over the 512 positions of the model" in said


def test_a_loaded_model_uses_it_where_no_parameters_are_given(folder):
    with library.LLM(folder) as model:
        assert model.default_params == SamplingParams(
            sample=True, temperature=0.8, top_k=30, max_new_tokens=12, repetition_penalty=1.05
        )
        assert model.generate(PROMPT).text == model.generate(PROMPT, model.default_params).text
        plain = SamplingParams(max_new_tokens=12)
        assert model.generate(PROMPT, plain).text != model.generate(PROMPT).text
        assert model.generate(PROMPT, replace(model.default_params, seed=9)).text != model.generate(PROMPT).text
        assert "".join(model.stream(PROMPT)) == model.generate(PROMPT).text
