"""Folders that tests use."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOLDENS = ROOT / "tests" / "goldens"
STARTER = ROOT / "plugins" / "llama" / "llmctl_llama" / "starter"
