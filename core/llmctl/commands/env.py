"""``llmctl env``: this machine, what is installed, where files are kept, and process settings; imports none of the packages."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from llmctl import plugins, runtime
from llmctl._version import __version__
from llmctl.errors import DISTRIBUTION, OPERATORS_DISTRIBUTION
from llmctl.runtime import machine
from llmctl.runtime.distributions import version_of

PACKAGES = (
    DISTRIBUTION, OPERATORS_DISTRIBUTION, "paddlepaddle", "paddlepaddle-gpu", "numpy", "tokenizers", "sentencepiece",
    "safetensors", "jinja2",
)  # fmt: skip
"""Shown even where they are not installed."""
OPTIONAL = (
    "huggingface_hub",
    "modelscope",
    "pyarrow",
    "starlette",
    "uvicorn",
    "tensorboardX",
    "visualdl",
    "wandb",
    "swanlab",
    "mlflow",
    "paddlenlp",
    "paddleslim",
    "lm_eval",
)
"""Shown where they are installed."""
FOREIGN = "llmctl"
"""A distribution of another project."""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """Show processor, memory, GPUs, versions, paths and settings of this machine, for reports of problems."""
    facts = _facts()
    if as_json:
        click.echo(json.dumps(facts, indent=1))
        return
    for warning in facts["warnings"]:
        click.echo(f"warning: {warning}", err=True)
    shown = {**facts, "machine": _machine_lines(facts["machine"])}
    for title in ("machine", "versions", "families", "paths"):
        click.echo(title)
        click.echo("\n".join(f"  {name:<18} {value}" for name, value in shown[title].items()) or "  none")
    click.echo("runtime")
    for row in facts["runtime"]:
        click.echo(f"  {row['setting']:<18} {row['value']}  ({row['source']}; {row['override']})")


def _facts() -> dict[str, Any]:
    found, no_gpu = machine.gpus()
    keys = ("setting", "value", "source", "override")
    foreign = version_of(FOREIGN)
    return {
        "machine": {
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "processor": machine.processor(), "memory": machine.memory(), "gpus": found, "no_gpu": no_gpu,
        },
        "versions": {
            "llmctl": __version__,
            "python": platform.python_version(),
            **{name: version_of(name) or "not installed" for name in PACKAGES},
            **{name: version_of(name) for name in OPTIONAL if version_of(name)},
        },
        "families": {found.name: str(found) for found in plugins.installed()},
        "paths": _paths(),
        "runtime": [dict(zip(keys, row, strict=True)) for row in runtime.describe()],
        "warnings": [
            f"the distribution {FOREIGN} {foreign} is another project's; ours is {DISTRIBUTION}. Remove it: pip uninstall "
            f"{FOREIGN}, then install ours again"
        ] if foreign else [],
    }  # fmt: skip


def _machine_lines(facts: Mapping[str, Any]) -> dict[str, str]:
    memory = {key: "unknown" if value is None else f"{value / 1e9:,.1f} GB" for key, value in facts["memory"].items()}
    cards = {
        f"gpu {number}": ", ".join([card["name"], card.get("memory.total", "?"), f"driver {card.get('driver_version', '?')}",
                                    f"compute capability {card.get('compute_cap', '?')}"])
        for number, card in enumerate(facts["gpus"])
    }  # fmt: skip
    return {
        "system": facts["system"],
        "processor": facts["processor"]["model"],
        "cores": facts["processor"]["cores"],
        "instructions": facts["processor"]["instructions"],
        "memory": f"{memory['total']}, {memory['free']} free",
        **(cards or {"gpu": facts["no_gpu"]}),
    }


def _paths() -> dict[str, str]:
    """Folders that decide what is found, and what room they have."""
    caches = Path.home() / ".cache"
    home = os.environ.get("HF_HOME") or str(Path(os.environ.get("XDG_CACHE_HOME") or caches) / "huggingface")
    scope = os.environ.get("MODELSCOPE_CACHE") or str(caches / "modelscope")
    folders = {
        "models (HF)": os.environ.get("HF_HUB_CACHE") or str(Path(home) / "hub"),
        "models (ModelScope)": scope,
        "temporary files": tempfile.gettempdir(),
        "current folder": str(Path.cwd()),
    }
    return {
        "python": sys.executable,
        "llmctl": str(Path(__file__).resolve().parents[1]),
        **{name: f"{path} ({_room(Path(path))})" for name, path in folders.items()},
    }


def _room(path: Path) -> str:
    existing = next((folder for folder in (path, *path.parents) if folder.exists()), None)
    if existing is None:
        return "unknown"
    absent = "" if existing == path else "not there yet, "
    return f"{absent}{shutil.disk_usage(existing).free / 1e9:,.1f} GB free"
