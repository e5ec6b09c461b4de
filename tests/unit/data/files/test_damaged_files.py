"""Damaged files of examples end in a message, whatever the damage."""

import json

import pytest
from kit import damage
from kit.data_files import WRITERS, write_datasets

from llmctl.data.files import find_files, records
from llmctl.data.sft.examples import ExampleReader

pytestmark = pytest.mark.robust
ROWS = [{"instruction": f"ask {number} 你好", "output": 'b,\n"c"'} for number in range(6)]


@pytest.mark.parametrize("name", WRITERS)
def test_damaged_records_end_in_a_message(tmp_path, name):
    path = tmp_path / name
    WRITERS[name](path, ROWS)
    whole = path.read_bytes()

    def read():
        reader = ExampleReader()
        for place, text in records(path):
            try:
                reader(text, place)
            except ValueError as error:
                assert str(error)

    inputs = (
        (f"seed {seed}", lambda seed=seed: path.write_bytes(damage.content(whole, seed)))
        for seed in range(damage.budget(60, 2000))
    )
    damage.try_all(f"examples {name}", inputs, read)


@pytest.mark.parametrize("name", ["dataset_dict.json", "train/state.json"])
def test_damaged_folders_of_datasets_end_in_a_message(tmp_path, name):
    write_datasets(tmp_path / "data", {"train": ROWS, "test": ROWS})
    path = tmp_path / "data" / name
    value = json.loads(path.read_text())

    def inputs():
        for seed in range(damage.budget(60, 2000)):
            damaged = (
                damage.json_text(damage.json_value(value, seed))
                if seed % 4
                else damage.content(path.read_bytes(), seed)
            )
            yield f"seed {seed}", lambda damaged=damaged: path.write_bytes(damaged)

    damage.try_all(f"datasets {name}", inputs(), lambda: find_files(tmp_path / "data", "train"))
