"""What checksums cost: writing a checkpoint with and without its manifest, comparing one, and locking a folder.

    python benchmarks/checksums.py --megabytes 1000 --rounds 5

The checkpoint holds two files of random bytes; writing is atomic and synced to disk, as in a run. The two ways of writing take
turns, and medians count.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from llmctl.io.atomic import atomic_folder
from llmctl.io.checksums import find_damage, write_manifest
from llmctl.io.lock import hold


def write(folder: Path, content: bytes, manifest: bool) -> float:
    """Seconds of writing a checkpoint."""
    start = time.perf_counter()
    with atomic_folder(folder, overwrite=True) as work:
        (work / "model.safetensors").write_bytes(content)
        (work / "optimizer.safetensors").write_bytes(content)
        if manifest:
            write_manifest(work)
    return time.perf_counter() - start


def compare(folder: Path) -> float:
    """Seconds of comparing a checkpoint with its manifest, as a resumed run does."""
    start = time.perf_counter()
    if find_damage(folder):
        raise SystemExit("the checkpoint is damaged")
    return time.perf_counter() - start


def lock(folder: Path) -> float:
    """Seconds of taking and releasing the lock of a folder."""
    start = time.perf_counter()
    with hold(folder / ".lock"):
        pass
    return time.perf_counter() - start


def main() -> None:
    """Prints a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    content = np.random.default_rng(0).bytes(options.megabytes * 500_000)
    rows: dict[str, list[float]] = {"without": [], "with": [], "compare": [], "lock": []}
    with tempfile.TemporaryDirectory(dir=".") as home:
        folder = Path(home) / "checkpoint"
        for _ in range(options.rounds):
            rows["without"].append(write(folder, content, False))
            rows["with"].append(write(folder, content, True))
            rows["compare"].append(compare(folder))
            rows["lock"].append(lock(Path(home)))
    found = {name: statistics.median(seconds) for name, seconds in rows.items()}
    print(
        f"write a checkpoint of {options.megabytes} MB: {found['without']:.2f} s without, {found['with']:.2f} s with a manifest"
    )
    print(f"compare it: {found['compare']:.2f} s ({options.megabytes / 1000 / found['compare']:.2f} GB/s)")
    print(f"lock a folder: {found['lock'] * 1e3:.2f} ms")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
