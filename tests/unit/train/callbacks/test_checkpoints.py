"""Checkpoints: which are kept, which is best, what continues, and what a full disk or a crash leaves."""

import errno
import json
import os
import shutil

import numpy as np
import pytest
from kit.train_toys import ToyModel, collate, toy_rows
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from llmctl.errors import CheckpointError, ConfigError
from llmctl.io.atomic import locked_folder
from llmctl.io.checksums import read_manifest
from llmctl.train.callbacks import checkpoints
from llmctl.train.callbacks.base import LoopSettings
from llmctl.train.callbacks.checkpoints import CheckpointSaver
from llmctl.train.loop import Loop
from llmctl.train.methods.sft import SftTask
from llmctl.train.optim.adamw import AdamW


def steps(folder):
    return sorted(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").iterdir())


@pytest.fixture(params=["waiting", "behind training"], autouse=True)
def staging(request, tmp_path_factory, monkeypatch):
    """Every test with checkpoints written at once, and written into another folder and moved in a thread."""
    folder = tmp_path_factory.mktemp("memory") if request.param != "waiting" else None
    monkeypatch.setitem(STAGING, "folder", folder)
    yield folder
    assert folder is None or not list(folder.iterdir()), "nothing stays in memory"


STAGING = {}


def saver(folder, metric="eval_loss", limit=0, model=None, write=None):
    adamw = AdamW(dict((model or ToyModel()).named_parameters()))
    write = write or (lambda where: (where / "weights").write_text("whole"))
    one = CheckpointSaver(folder, write, adamw.state, "print", metric, limit, STAGING["folder"])
    one.on_train_begin(1, LoopSettings(100, 10, 10, seed=4))
    return Settled(one)


class Settled:
    """Checkpoints whose every occasion waits until what it began is done."""

    def __init__(self, inner):
        self._inner = inner

    def __getattr__(self, name):
        found = getattr(self._inner, name)
        if not name.startswith("on_"):
            return found
        return lambda *values: (found(*values), self._inner.on_train_end())


def test_the_newest_are_kept_up_to_the_limit(tmp_path):
    one = saver(tmp_path, limit=2)
    for step in (10, 20, 30, 100):
        one.on_save(step)
    assert steps(tmp_path) == [30, 100]


class Killed(Exception):
    """The end of a process, as far as a test in the same process can have it."""


def test_a_checkpoint_that_is_half_removed_is_none_and_goes_with_the_next(tmp_path, monkeypatch):
    def removing(path, **settings):
        if path.name.startswith("step-"):
            raise Killed
        rmtree(path, **settings)

    rmtree = shutil.rmtree
    saver(tmp_path).on_save(1)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(shutil, "rmtree", removing)
        saver(tmp_path, limit=1).on_save(2)
    assert steps(tmp_path) == [1, 2]
    shutil.rmtree(tmp_path / "checkpoints" / "step-000002")
    assert checkpoints.newest(tmp_path / "checkpoints") is None
    saver(tmp_path, limit=1).on_save(3)
    assert steps(tmp_path) == [3]


def test_all_are_kept_without_a_limit(tmp_path):
    one = saver(tmp_path)
    for step in (1, 2, 3):
        one.on_save(step)
    assert steps(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize(("metric", "values", "best"), [
    ("eval_loss", [3.0, 1.0, 2.0, 2.5, float("nan")], 20),
    ("accuracy", [0.3, 0.9, 0.1, 0.8, 0.9], 20),
    ("exact_match", [0.0, 0.0, 0.0, 0.0, 0.1], 50),
])  # fmt: skip
def test_the_best_is_never_deleted(tmp_path, metric, values, best):
    one = saver(tmp_path, metric=metric, limit=1)
    for index, value in enumerate(values, start=1):
        one.on_evaluate(10 * index, index, {metric: value, "perplexity": 1.0})
        one.on_save(10 * index)
    assert checkpoints.read_best(tmp_path).step == best
    assert steps(tmp_path) == sorted({best, 50} if best != 50 else {40, 50})


def test_an_evaluation_that_is_best_is_saved_even_between_checkpoints(tmp_path):
    one = saver(tmp_path)
    one.on_evaluate(7, 0.5, {"eval_loss": 1.0})
    one.on_evaluate(8, 0.6, {"eval_loss": 2.0})
    assert steps(tmp_path) == [7]


def test_a_best_checkpoint_that_a_kill_left_unnamed_is_named_when_the_run_continues(tmp_path, monkeypatch):
    def killed(path):
        raise Killed

    rows = [{"step": 20, "epoch": 1.0, "eval_loss": 1.0}, {"step": 20, "loss": 9.0, "eval_loss": 0.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    saver(tmp_path, limit=1).on_evaluate(10, 1.0, {"eval_loss": 2.0})
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoints, "atomic_file", killed)
        saver(tmp_path, limit=1).on_evaluate(20, 2.0, {"eval_loss": 1.0})
    assert checkpoints.read_best(tmp_path).step == 10 and steps(tmp_path) == [10, 20]
    saver(tmp_path, limit=1).on_train_begin(21, LoopSettings(100, 10, 10, seed=4))
    best = checkpoints.read_best(tmp_path)
    assert (best.step, best.value, steps(tmp_path)) == (20, 1.0, [10, 20])


def test_the_metric_must_be_there_to_choose_by(tmp_path):
    one = saver(tmp_path, metric="exact_match")
    one.on_evaluate(7, 0.5, {"eval_loss": 1.0})
    assert checkpoints.read_best(tmp_path) is None and not (tmp_path / "checkpoints").exists()


def test_only_whole_checkpoints_are_found(tmp_path):
    saver(tmp_path).on_save(5)
    for name in ("step-000009", "step-x", ".step-000011.partial-1234", "other"):
        (tmp_path / "checkpoints" / name).mkdir()
    assert checkpoints.newest(tmp_path / "checkpoints").name == "step-000005"
    assert checkpoints.newest(tmp_path / "nowhere") is None


@pytest.mark.parametrize("error", [OSError(28, os.strerror(28)), SafetensorError("No space left on device")])
def test_a_full_disk_leaves_the_earlier_checkpoint_and_says_so(tmp_path, error):
    def full(folder):
        (folder / "weights").write_text("ha")
        raise error

    saver(tmp_path).on_save(5)
    with pytest.raises(CheckpointError, match=r"(disk full|No space left).*step-000005 is intact"):
        saver(tmp_path, write=full).on_save(6)
    assert steps(tmp_path) == [5]
    assert (tmp_path / "checkpoints" / "step-000005" / "weights").read_text() == "whole"
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000005"]


@pytest.mark.parametrize("staging", ["behind training"], indirect=True)
def test_a_disk_that_is_full_when_a_staged_checkpoint_comes_says_so(tmp_path, monkeypatch):
    def full(file, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))

    saver(tmp_path).on_save(5)
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(CheckpointError, match=r"step 6 could not be saved: disk full while .*step-000005 is intact"):
        saver(tmp_path).on_save(6)
    assert steps(tmp_path) == [5]


def trained(folder, done, steps_in_all, model=None):
    model = model or ToyModel("float32")
    task = SftTask(toy_rows(12), [], collate, 3, seed=4)
    adamw = AdamW(dict(model.named_parameters()), max_norm=1.0)
    if done:
        assert checkpoints.restore(checkpoints.checkpoint_of(folder, done), adamw, task.fingerprint, 4) == done
    one = CheckpointSaver(
        folder, lambda where: (where / "w").write_text(""), adamw.state, task.fingerprint, staging=STAGING["folder"]
    )
    Loop(model, task, adamw, lambda step: 0.1 / step, LoopSettings(steps_in_all, 100, 100, seed=4), [one]).run(done)
    return model


def test_a_restored_optimizer_continues_bit_for_bit(tmp_path):
    whole = trained(tmp_path / "a", 0, 9)
    half = trained(tmp_path / "b", 0, 5)
    copy = ToyModel("float32", seed=9)
    for name, p in copy.named_parameters():
        p.set_value(dict(half.named_parameters())[name])
    trained(tmp_path / "b", 5, 9, model=copy)
    for (name, p), q in zip(whole.named_parameters(), copy.parameters(), strict=True):
        np.testing.assert_array_equal(q.numpy(), p.numpy(), err_msg=name)


def test_a_checkpoint_holds_no_pickle(tmp_path):
    trained(tmp_path, 0, 3)
    path = checkpoints.checkpoint_of(tmp_path, 3)
    names = ["optimizer.safetensors", "trainer_state.json", "w"]
    assert sorted(p.name for p in path.iterdir()) == ["manifest.json", *names]
    assert sorted(read_manifest(path)) == names
    assert json.loads((path / "trainer_state.json").read_text())["step"] == 3


@pytest.mark.parametrize("name", ["optimizer.safetensors", "trainer_state.json", "w"])
def test_a_damaged_file_of_a_checkpoint_is_named(tmp_path, name):
    trained(tmp_path, 0, 3)
    path = checkpoints.checkpoint_of(tmp_path, 3)
    checkpoints.check_files(path)
    content = (path / name).read_bytes()
    flipped = bytes([content[0] ^ 64]) + content[1:] if content else b"x"
    (path / name).write_bytes(flipped)
    with pytest.raises(CheckpointError, match=f"step-000003 is damaged: .*{name}.*; restore it, or delete the folder"):
        checkpoints.check_files(path)
    (path / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        checkpoints.check_files(path)


def test_a_checkpoint_of_an_earlier_version_has_no_manifest_and_passes(tmp_path):
    trained(tmp_path, 0, 3)
    path = checkpoints.checkpoint_of(tmp_path, 3)
    (path / "manifest.json").unlink()
    checkpoints.check_files(path)


def change_state(change):
    def apply(path):
        file = path / "optimizer.safetensors"
        state = load_file(file)
        change(state)
        save_file(state, file)

    return apply


def cut(state):
    name = next(name for name in state if name.startswith("moment1/") and state[name].ndim)
    state[name] = state[name].reshape(-1)[:1]


def drop(state):
    state.pop(next(name for name in state if name.startswith("moment2/")))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_state(cut), r"optimizer.safetensors does not fit the model: moment1/.* has shape \[1\], the parameter"),
        (change_state(drop), "has moment1/.* and lacks moment2/"),
        (
            lambda path: (path / "trainer_state.json").write_text(
                (path / "trainer_state.json").read_text().replace('"step": 3', '"step": 2')
            ),
            "trainer_state.json is of step 2",
        ),
    ],
)
def test_the_state_of_another_model_or_step_is_refused(tmp_path, damage, message):
    trained(tmp_path, 0, 3)
    path = checkpoints.checkpoint_of(tmp_path, 3)
    damage(path)
    model = ToyModel()
    fresh = AdamW(dict(model.named_parameters()))
    fingerprint = SftTask(toy_rows(12), [], collate, 3, seed=4).fingerprint
    with pytest.raises(CheckpointError, match=message):
        checkpoints.restore(path, fresh, fingerprint, 4)


@pytest.mark.parametrize(("fingerprint", "seed", "what"), [("other", 4, "the data"), ("print", 5, "train.seed")])
def test_other_data_or_another_seed_cannot_be_continued(tmp_path, fingerprint, seed, what):
    one = saver(tmp_path)
    one.on_save(5)
    with pytest.raises(ConfigError, match=what):
        checkpoints.restore(
            checkpoints.checkpoint_of(tmp_path, 5), AdamW(dict(ToyModel().named_parameters())), fingerprint, seed
        )


@pytest.mark.parametrize("name", ["optimizer.safetensors", "trainer_state.json"])
def test_a_damaged_checkpoint_says_what_to_do(tmp_path, name):
    one = saver(tmp_path)
    one.on_save(5)
    path = checkpoints.checkpoint_of(tmp_path, 5)
    (path / name).write_bytes(b"{")
    with pytest.raises(CheckpointError, match="delete it"):
        checkpoints.restore(path, AdamW(dict(ToyModel().named_parameters())), "print", 4)


def test_training_goes_on_while_a_checkpoint_is_moved(tmp_path, monkeypatch):
    """The disk is blocked until the next step is done; the step's own weights are stored, not the later ones."""
    import threading

    free, value = threading.Event(), ["first"]
    copy = checkpoints.shutil.copytree
    monkeypatch.setattr(checkpoints.shutil, "copytree", lambda *a, **k: (free.wait(60), copy(*a, **k))[1])
    write = lambda where: (where / "weights").write_text(value[0])  # noqa: E731
    one = CheckpointSaver(tmp_path, write, AdamW(dict(ToyModel().named_parameters())).state, "print", staging=tmp_path)
    one.on_save(5)
    value[0] = "second"
    assert checkpoints.newest(tmp_path / "checkpoints") is None
    free.set()
    one.on_train_end()
    assert (checkpoints.checkpoint_of(tmp_path, 5) / "weights").read_text() == "first"


def test_what_a_killed_run_left_in_memory_is_removed(tmp_path):
    _, lock = locked_folder(tmp_path, "llmctl-checkpoint-")
    kept = list(tmp_path.iterdir())
    (tmp_path / "llmctl-checkpoint-4711-x").mkdir()
    checkpoints.remove_staged(tmp_path)
    assert list(tmp_path.iterdir()) == kept
    os.close(lock)
    checkpoints.remove_staged(tmp_path)
    assert not list(tmp_path.iterdir())


def test_checkpoints_have_the_usual_permissions(tmp_path):
    saver(tmp_path).on_save(5)
    path = checkpoints.checkpoint_of(tmp_path, 5)
    (tmp_path / "like").mkdir()
    assert path.stat().st_mode == (tmp_path / "like").stat().st_mode
