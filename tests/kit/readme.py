"""What README and the pages show."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


STARTER = ROOT / "plugins" / "llama" / "llmctl_llama" / "starter"


def shown(page: str) -> list[str]:
    """Commands in the page's shell blocks, one a line."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip() and not line.startswith("#")]
