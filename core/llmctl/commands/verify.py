"""``llmctl verify``: compares the files of models, checkpoints and runs with the checksums that were stored with them."""

from __future__ import annotations

from pathlib import Path

import click

from llmctl.commands.messages import messages, results
from llmctl.errors import FileError
from llmctl.io.checksums import MANIFEST, find_damage, read_manifest


@click.command()
@click.argument("folders", metavar="FOLDER...", nargs=-1, required=True, type=click.Path(path_type=Path))
@results
@click.pass_context
def command(ctx: click.Context, folders: tuple[Path, ...]) -> None:
    """Compare all files with the checksums that were stored when they were written.

    FOLDER is a trained, merged, converted, packed or exported model, a checkpoint, or the output folder of a run
    (its model and all checkpoints).
    """
    problems = []
    for folder in folders:
        for part in _parts(folder):
            found = _check(part)
            messages(ctx).result(f"{part}: {'damaged' if found else 'ok'}", "verify", folder=part, ok=not found)
            problems += [f"{part}: {problem}" for problem in found]
    if problems:
        raise FileError(
            "files are damaged or were changed:\n  "
            + "\n  ".join(problems)
            + "\nrestore them or write the folder again; "
            f"if a change is intended, delete {MANIFEST}"
        )


def _parts(folder: Path) -> list[Path]:
    """The folder itself, or the model and checkpoints in the output folder of a run."""
    if not folder.is_dir():
        what = "is a file; give the folder that holds it" if folder.exists() else "does not exist"
        raise FileError(f"{folder} {what}")
    if (folder / MANIFEST).is_file() or not (folder / "run.json").is_file():
        return [folder]
    parts = [folder / "model", *sorted((folder / "checkpoints").glob("step-*"))]
    return [part for part in parts if part.is_dir()]


def _check(folder: Path) -> list[str]:
    """A sentence for each damaged file.

    Raises:
        FileError: No checksums were stored with the folder.
        CheckpointError: A packed or exported model is damaged.
    """
    from llmctl.infer.eager import exported
    from llmctl.infer.packed.folder import is_packed, open_packed

    if is_packed(folder):
        open_packed(folder, verify=True)
        return []
    if exported.is_exported(folder):
        exported.read(folder, verify=True)
        return []
    if not read_manifest(folder):
        raise FileError(
            f"{folder} has no {MANIFEST} with checksums: it was written by another program or an earlier version; llmctl "
            "convert --check reads all its tensors"
        )
    return find_damage(folder)
