"""The data commands, run in this process."""

import pytest
from click.testing import CliRunner

from llmctl.cli import main
from llmctl.io.progress import silent


def run(*arguments, code=0):
    """Output of ``llmctl data``, in this process; progress would depend on the speed of the machine."""
    with silent(), CliRunner().isolation() as streams, pytest.raises(SystemExit) as stopped:
        main(["data", *map(str, arguments)])
    text = streams[0].getvalue().decode() + (streams[1].getvalue().decode() if len(streams) > 1 else "")
    assert stopped.value.code == code, text
    assert "Traceback" not in text
    return text
