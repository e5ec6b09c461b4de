import pytest

from llmctl.config.common import OutputConfig
from llmctl.errors import ConfigError, FileError
from llmctl.io.lock import hold
from llmctl.jobs.paths import LOCK, hold_output, output_folder

FRESH, RESUME, OVERWRITE = OutputConfig(), OutputConfig(resume=True), OutputConfig(overwrite=True)


@pytest.mark.parametrize("settings", [FRESH, RESUME, OVERWRITE])
def test_an_output_folder_has_one_run_at_a_time(tmp_path, settings):
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    with hold(folder / LOCK):
        with pytest.raises(ConfigError, match=r"is in use by process \d+ on .*; wait until that run ends"):
            with hold_output(folder, settings):
                pass
    with hold_output(folder, settings):
        pass
    assert not (folder / LOCK).exists()


def test_results_that_came_after_the_checks_are_not_overwritten(tmp_path):
    with hold_output(tmp_path / "run", FRESH):
        (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(ConfigError, match="is not empty; resume the run with --resume"):
        with hold_output(tmp_path / "run", FRESH):
            pass
    with hold_output(tmp_path / "run", RESUME), pytest.raises(ConfigError, match="in use"):
        with hold_output(tmp_path / "run", OVERWRITE):
            pass


def test_a_run_that_writes_nothing_leaves_no_folder(tmp_path):
    with pytest.raises(RuntimeError), hold_output(tmp_path / "a" / "b", FRESH):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_the_lock_file_of_a_killed_run_does_not_count_as_a_result(tmp_path):
    (tmp_path / LOCK).write_text("{}")
    with hold_output(tmp_path, FRESH):
        pass


def test_a_folder_that_cannot_be_created_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="file"):
        with hold_output(tmp_path / "file" / "run", FRESH):
            pass


def test_a_folder_where_another_rank_tries_to_write_is_empty(tmp_path):
    output = tmp_path / "run"
    (output / ".run.partial-abc").mkdir(parents=True)
    assert output_folder(OutputConfig(dir=str(output)), {}) == output
    (output / "report.html").touch()
    with pytest.raises(ConfigError, match="is not empty"):
        output_folder(OutputConfig(dir=str(output)), {})
