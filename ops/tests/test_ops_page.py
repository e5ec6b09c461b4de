"""What docs/operators.md shows works as shown."""

import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from llmctl.cli import cli
from llmctl_ops import library

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "operators.md").read_text(encoding="utf-8")


def shown(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_shown_commands_work(monkeypatch):
    commands = "".join(shown("sh")).splitlines()
    assert len(commands) == 2
    for line in commands:
        *settings, program, group, command = line.split()
        assert program == "llmctl"
        choice = settings[0].partition("=")[2] if settings else ""
        found = library.open_library(library.FILE, choice)
        monkeypatch.setattr(library, "load", lambda found=found: found)
        done = CliRunner().invoke(cli, [group, command])
        assert done.exit_code == 0 and found.level in done.output


def test_the_shown_documents_do_not_see_each_other():
    scope = {}
    exec(shown("python")[1], scope)  # a page's code, which is ours
    first = scope["mixed"].numpy()[:, :3]
    q, k, v = (scope[name][:, :3].numpy().astype(np.float64) for name in "qkv")
    scores = np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(8)
    scores = np.where(np.tril(np.ones((3, 3), bool)), scores, -np.inf)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    np.testing.assert_allclose(first, np.einsum("bnts,bsnh->btnh", weights, v), atol=1e-5)


def test_the_shown_product_is_that_of_the_unpacked_weight():
    if library.load().handle is None:
        pytest.skip("no compiled kernels here")
    scope = {}
    exec(shown("python")[0], scope)  # a page's code, which is ours
    assert scope["answers"].shape == (5, 48) and scope["difference"] < 1e-4
    assert (scope["packed"].data.nbytes + scope["packed"].scales.nbytes) * 8 / scope["weight"].size == 4.25


def test_the_page_names_every_choice():
    assert all(f"`{choice}`" in PAGE or f"LLMCTL_OPS={choice}" in PAGE for choice in library.CHOICES)
