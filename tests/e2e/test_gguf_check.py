"""tools/llama_cpp/gguf_check.py tells tensors that differ; a stand-in is llama.cpp's conversion here."""

import importlib.util

from kit.gguf_models import Model
from kit.paths import ROOT

spec = importlib.util.spec_from_file_location("gguf_check", ROOT / "tools" / "llama_cpp" / "gguf_check.py")
check = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check)


def test_a_row_says_whether_all_tensors_are_equal(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = Model("bloom", vocab=96).folder(tmp_path / "m")
    program = tmp_path / "python"
    for seed, equal, said in (
        (0, True, "m  bloom, 29 tensors: equal"),
        (1, False, "m  bloom, 29 tensors: 29 differ, such as "),
    ):
        made = Model("bloom", seed, vocab=96).gguf(tmp_path / f"{seed}.gguf", "bloom")
        program.write_text(f"#!/bin/sh\ncp {made} $5\n")
        program.chmod(0o755)
        found, row = check.compare(tmp_path, str(program), folder)
        assert found is equal and row.startswith(said), row
    program.write_text("#!/bin/sh\necho 'KeyError: n_ctx' >&2\nexit 1\n")
    assert check.compare(tmp_path, str(program), folder) == (False, "m  not converted: KeyError: n_ctx")
