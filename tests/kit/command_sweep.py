"""Faults at file operations of whole commands: ``python -m kit.command_sweep JOB... [--points N] [--seed S] [--scratch FOLDER]``.

Every command that writes runs in a fork of one process, which has imported paddle. A fault is a SIGKILL before the n-th file
operation, an error of the system in its place, or a limit on the size of a file, which native writers meet too. Afterwards what
was there is the old or the new, nothing in between; the same command, repeated, ends with the new and leaves nothing else.

Prints a JSON object per job: points, how many ended how, and the failures.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from kit.crash_points import DONE, ERRORS, REFUSED, WRONG, operations, with_fault

from llmctl import plugins
from llmctl.data.corpus.indexed import Corpus
from llmctl.errors import LlmctlError

STARTER = plugins.load("llama").folder / "starter"
TIMES = ("seconds", "tokens_per_second", "peak_memory")
SIZES = (0, 1, 100, 4096, 65_536, 500_000, 1_000_000)
"""Limits on the size of a file, in bytes."""
TINY = "--set train.max_steps=4 --set train.batch_size=2 --set train.save_every=1 --set train.eval_every=2 --set train.log_every=1"
TUNE = (
    f"--model llama finetune --set model.path={STARTER}/model --set data.train=[{{home}}/train.jsonl] --set data.dev=[{{home}}/dev.jsonl]"
    f" {TINY} --set train.save_total_limit=2 --set train.eval_generate=false --set output.samples=0 --set data.max_length=64"
    " --set train.best_metric=eval_loss --output {place}/run"
)
PRETRAIN = (
    "--model llama pretrain --set model.size=tiny --set data.corpora=[{home}/old] --set data.seq_length=16 --set data.split=8,1,1"
    f" --set model.tokenizer={STARTER}/model --set train.max_steps=4 --set train.save_every=2 --set train.eval_every=2"
    " --set train.batch_size=2 --set train.eval_iters=1 --set train.test_iters=1 --set train.log_every=1 --output {place}/run"
)
JOBS = {
    # Name: the command, how it is repeated, what it writes.
    "finetune": (TUNE, " --resume", "run"),
    "finetune-async": (TUNE + " --set output.async_save=true", " --resume", "run"),
    "finetune-lora": (TUNE + " --set method.name=lora", " --resume", "run"),
    "pretrain": (PRETRAIN, " --resume", "run"),
    "convert": (f"convert {STARTER}/model {{place}}/out --to native --max-shard-size 600KB --overwrite", "", "out"),
    "export-static": (f"export {STARTER}/model --engine static --output {{place}}/out --overwrite", "", "out"),
    "export-fused": (f"export {STARTER}/model --engine fused --output {{place}}/out --overwrite", "", "out"),
    "export-int4": (f"export {STARTER}/model --engine fused --weights int4 --output {{place}}/out --overwrite", "", "out"),
    "merge": ("merge {home}/adapter/model --output {place}/out", "", "out"),
    "data-build": (f"data build {{home}}/train.jsonl --key src --model {STARTER}/model --output {{place}}/c --overwrite", "", "c"),
    "data-merge": ("data merge {home}/old {home}/old --output {place}/c --overwrite", "", "c"),
    "data-index": ("data index --corpora {home}/old --seq-length 16 --train 50 --index-cache {place}/out", "", "out"),
    "generate": (f"generate {STARTER}/model --input {{home}}/dev.jsonl --output {{place}}/o.jsonl --max-new-tokens 2", "", "o.jsonl"),
    "report": ("report {home}/adapter --output {place}/report.html", "", "report.html"),
}  # fmt: skip


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("jobs", nargs="*", default=[*JOBS])
    parser.add_argument("--points", type=int, default=0)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--scratch", type=Path)
    given = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1")
    with tempfile.TemporaryDirectory(dir=given.scratch) as folder:
        home = _prepare(Path(os.path.realpath(folder)), given.jobs)
        failures = 0
        for name in given.jobs:
            found = Sweep(name, home).run(given.points, random.Random(given.seed))
            print(json.dumps(found), flush=True)
            failures += len(found["failures"])
    sys.exit(failures > 0)


def _prepare(home, jobs):
    import paddle  # noqa: F401 - the forks do not import it again

    for name, count in (("train", 8), ("dev", 3)):
        lines = (STARTER / "data" / f"{name}.jsonl").read_text().splitlines(keepends=True)
        (home / f"{name}.jsonl").write_text("".join(lines[:count]))
    if {"merge", "report"} & set(jobs):
        words = TUNE.replace("{place}/run", "{home}/adapter") + " --set method.name=lora"
        _check(_forked(words.format(home=home, place=home).split(), home))
    if {"data-merge", "data-index", "pretrain"} & set(jobs):
        words = f"data build {home}/train.jsonl --key src --model {STARTER}/model --output {home}/old"
        _check(_forked(words.split(), home))
    return home


def _check(ended):
    code, said = ended
    assert code == DONE, said


class Sweep:
    """The faults of one job."""

    def __init__(self, name, home):
        command, again, self.target = JOBS[name]
        self.name, self.home, self.place = name, home, home / "place"
        self.words, self.again = ((text.format(home=home, place=self.place)).split() for text in (command, again))

    def run(self, points, draw):
        """As many faults of each kind as ``points``, drawn with a seed; 0 = all there are."""
        self._begin()
        _check(self._go())
        self.new = self.state()
        self._begin()
        total = operations(lambda: _main(self.words, os.open(os.devnull, os.O_WRONLY)), self.place)
        found = {
            "job": self.name,
            "operations": total,
            "points": 0,
            "killed": 0,
            "refused": 0,
            "done": 0,
            "failures": [],
        }
        chosen = range(1, total + 1)
        for kind in ("kill", "error", "size"):
            wide = SIZES if kind == "size" else chosen
            for point in sorted(draw.sample(wide, min(points, len(wide)))) if points else wide:
                wrong = self._try(kind, point, found)
                if wrong:
                    found["failures"].append(f"{kind} {point}: {wrong}")
                found["points"] += 1
        shutil.rmtree(self.place)
        return found

    def state(self):
        """What the job has written, without times; None = nothing."""
        if self.target == "run":
            return self._run()
        if self.target == "c":
            try:
                corpus = Corpus(self.place / "c")
            except LlmctlError:
                return None
            return [corpus.document(number).tolist() for number in range(corpus.documents)]
        top = self.place / self.target
        files = sorted(file for file in top.rglob("*") if file.is_file()) if top.is_dir() else [top] * top.exists()
        digest = {}
        for file in files:
            name = str(file.relative_to(self.place))
            if "/." in f"/{name}" or name.endswith(".lock"):
                continue
            data = file.read_bytes()
            if file.name == "report.html":
                data = b"whole" if data.rstrip().endswith(b"</html>") else b"cut"
            digest[name] = hashlib.sha256(data).hexdigest()
        return digest or None

    def _run(self):
        model = self.place / "run" / "model" / "manifest.json"
        if not model.exists():
            return None
        rows = map(json.loads, (self.place / "run" / "metrics.jsonl").read_text().splitlines())
        rows = [{key: value for key, value in row.items() if key not in TIMES} for row in rows]
        kept = sorted(path.name for path in (self.place / "run" / "checkpoints").iterdir())
        return [json.loads(model.read_text())["files"], rows, kept]

    def _try(self, kind, point, found):
        """One fault, then the same command again; returns what is wrong."""
        self._begin()
        fault = {"size": point} if kind == "size" else {"point": point}
        error = {"error": ERRORS[point % len(ERRORS)]} if kind == "error" else {}
        code, said = self._go(**fault, **error)
        allowed = (-signal.SIGKILL, DONE) if kind == "kill" else (REFUSED, DONE)
        found["killed" if code == -signal.SIGKILL else "refused" if code == REFUSED else "done"] += 1
        if code not in allowed:
            return f"exit {code}: {said[-500:]}"
        # An index that cannot be written is kept elsewhere, or in memory.
        if self.state() not in ((self.new,) if code == DONE and self.name != "data-index" else (None, self.new)):
            return f"neither old nor new: {said[-500:]}"
        shutil.rmtree(self.home / "index-cache", ignore_errors=True)
        there = self.state() == self.new
        code, said = self._go(self.again)
        # A fault may have come after all was written.
        if self.state() != self.new or (code != DONE and not (there and "already exists" in said)):
            return f"repeated, exit {code}: {said[-500:]}"
        left = [path.name for path in self.place.rglob("*") if path.name[0] == "." or path.suffix == ".lock"]
        left += [path for path in os.listdir("/dev/shm") if path.startswith("llmctl-checkpoint-")]
        return f"left {left}" if left else ""

    def _begin(self):
        for folder in (self.place, self.home / "index-cache"):
            shutil.rmtree(folder, ignore_errors=True)
        self.place.mkdir()

    def _go(self, more=(), point=0, error=None, size=None):
        """How the command ended, and what it said."""
        return _forked([*self.words, *more], self.place, point, error, size)


def _forked(words, place, point=0, error=None, size=None):
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 1 << 20)

    def job():
        if size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        _main(words, write)

    code = with_fault(job, place, point, error)[1]
    os.close(write)
    os.set_blocking(read, False)
    said = b""
    with contextlib.suppress(BlockingIOError):
        while block := os.read(read, 65_536):
            said += block
    os.close(read)
    said = said.decode(errors="replace")
    return (WRONG if "Traceback" in said else code), said


def _main(words, said):
    """The command line; what it says goes into a pipe, which has no limit on its size."""
    from llmctl import cli

    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(said, number)
        setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115 - until the process ends
    try:
        cli.main(words)
    except SystemExit as end:
        if end.code in (1, 2):
            raise LlmctlError("refused") from None
        assert end.code in (None, 0), end.code


if __name__ == "__main__":
    main()
