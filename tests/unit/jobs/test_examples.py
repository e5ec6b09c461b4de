"""The examples of a job: the first of each entry, read at once or when they are needed."""

import json
from types import SimpleNamespace

import pytest

from llmctl.config.finetune import FinetuneDataConfig
from llmctl.data.sft.examples import ExampleReader
from llmctl.jobs.examples import read_data


def questions(found):
    return [example.conversation.question for example in found]


@pytest.mark.parametrize("streaming", [False, True])
def test_the_first_examples_of_each_entry_are_trained_on(tmp_path, streaming):
    for name, count in (("a", 5), ("b", 2)):
        rows = [{"src": f"{name}{number}", "tgt": "yes"} for number in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [str(tmp_path / f"{name}.jsonl") for name in "ab"]

    def read(**more):
        data = FinetuneDataConfig(train=files, streaming=streaming, index_cache=str(tmp_path / "index"), **more)
        return read_data(SimpleNamespace(data=data, train=SimpleNamespace(seed=1)), None, ExampleReader)

    found = read(max_examples=3)
    assert questions(found.train) == ["a0", "a1", "a2", "b0", "b1"] and found.counts == [3, 2]
    held = read(max_examples=3, dev_size=2)
    assert (
        sorted(questions(held.train) + questions(held.dev)) == ["a0", "a1", "a2", "b0", "b1"] and sum(held.counts) == 3
    )
    assert len(read().train) == 7
