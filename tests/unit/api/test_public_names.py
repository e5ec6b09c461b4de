"""``llmctl``'s own names: complete, and free of paddle and numpy until one that needs them is used."""

import subprocess
import sys

import llmctl

MAX_LISTED = """
import sys, llmctl
assert set(llmctl.__all__) <= set(dir(llmctl))
assert not {"paddle", "numpy", "rich"} & set(sys.modules), "imported too early"
"""


def test_importing_and_listing_the_names_imports_neither_paddle_nor_numpy():
    done = subprocess.run([sys.executable, "-c", MAX_LISTED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there():
    assert all(getattr(llmctl, name) is not None for name in llmctl.__all__)
