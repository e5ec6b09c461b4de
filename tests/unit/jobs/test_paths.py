import pytest

from llmctl.config.common import OutputConfig
from llmctl.errors import ConfigError, FileError
from llmctl.io.atomic import atomic_file
from llmctl.io.lock import hold
from llmctl.jobs.paths import CONFIG, LOCK, hold_output, output_folder, settings_of_restart

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


@pytest.mark.parametrize(("settings", "begun"), [(FRESH, True), (RESUME, True), (OVERWRITE, False)])
def test_a_run_that_is_started_again_continues_itself_and_not_one_that_it_was_to_overwrite(tmp_path, settings, begun):
    config, resumes = tmp_path / CONFIG, ["--set", "output.resume=true", "--set", "output.overwrite=false"]
    config.write_text("the earlier run")
    options = settings_of_restart(tmp_path, settings)
    assert options() == (resumes if begun else [])
    # Deleting the earlier run was interrupted.
    config.unlink()
    assert options() == (resumes if begun else [])
    with atomic_file(config) as file:
        file.write_text("the earlier run")
    assert options() == resumes


def test_a_run_in_a_new_folder_that_is_started_again_continues_what_it_wrote(tmp_path):
    options = settings_of_restart(tmp_path / "new", OVERWRITE)
    assert options() == []
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / CONFIG).write_text("")
    assert options()
