"""Kernels for GPUs: by threads of this CPU, and on a GPU where there is one and the library was built. The same cases for both.

What they are compared with is what the CPU's operators are compared with: numpy.
"""

import dataclasses
import runpy
import shutil
import subprocess
from pathlib import Path

import numpy as np
import paddle
import pytest
from kit.sampling_forms import FORMS, LOGITS, SAID

from llmctl.infer.engine.kernel_check import sampling_difference
from llmctl.infer.sampling.reference import choose_one
from llmctl.infer.sampling.rows import SamplerInput, SamplerOutput
from llmctl_ops import cuda

FOLDER = Path(__file__).parent
ROWS, VOCAB = 5, 701


@pytest.fixture(params=["threads of a cpu", "gpu"])
def device(request, monkeypatch):
    """Makes the operators run by one of the two; gives the place of tensors."""
    if request.param == "gpu":
        if not paddle.is_compiled_with_cuda() or not paddle.device.cuda.device_count() or cuda.load() is None:
            pytest.skip("no GPU, or no library for it")
        return "gpu"
    library = request.getfixturevalue("emulated")
    monkeypatch.setattr(cuda, "load", lambda: library)
    return "cpu"


def _choose(logits, rows, device, **options):
    return SamplerOutput(*cuda.choose(paddle.to_tensor(logits, place=device), rows, **options))


@pytest.mark.parametrize("name", FORMS)
def test_every_form_chooses_what_numpy_does(name, device):
    logits, said = np.ascontiguousarray(LOGITS[:ROWS, :VOCAB]), SAID % VOCAB
    form = FORMS[name]
    form = dataclasses.replace(form, context=form.context % VOCAB, excluded=form.excluded % VOCAB)
    assert not len(form.context) or set(form.context) <= set(said)
    rows = [dataclasses.replace(form, draw=draw) for draw in np.linspace(0, 1, ROWS, endpoint=False).tolist()]
    found = _choose(logits, rows, device, logprobs=True)
    expected = [choose_one(*pair, logprobs=True) for pair in zip(logits, rows, strict=True)]
    assert not found.status_L.any()
    np.testing.assert_array_equal(found.token_L, [token for token, *_ in expected])
    np.testing.assert_allclose(found.logprob_L, [logprob for _, logprob, _ in expected], atol=1e-12)


@pytest.mark.parametrize(
    "choice",
    [
        SamplerInput(sample=True, top_k=2),
        SamplerInput(sample=True, top_p=0.5),
        SamplerInput(sample=True, top_p=0.3),
        SamplerInput(sample=True, min_p=0.99),
        SamplerInput(sample=True, excluded=np.array([4, 1], np.int32), top_k=1),
        SamplerInput(),
        SamplerInput(context=np.array([1, 2, 2], np.int32), generated=2, presence=0.1),
        SamplerInput(context=np.array([2, 1, 1], np.int32), generated=3, frequency=0.1, repetition=1.1),
    ],
)
def test_equal_scores_are_kept_and_taken_in_the_same_order(choice, device):
    logits = np.tile(np.array([0.0, 2.0, 2.0, 0.0, 2.0], np.float32), (20, 1))
    rows = [dataclasses.replace(choice, draw=draw) for draw in np.linspace(0, 1, 20, endpoint=False).tolist()]
    found = _choose(logits, rows, device)
    assert found.token_L.tolist() == [choose_one(row, one)[0] for row, one in zip(logits, rows, strict=True)]


def test_what_the_doctor_compares_is_equal(device):
    assert sampling_difference(lambda logits, *rest: cuda.choose(paddle.to_tensor(logits, place=device), *rest)) < 1e-12


def test_no_rows_choose_nothing(device):
    assert not len(_choose(LOGITS[:0, :VOCAB], [], device).token_L)


def test_a_broken_row_has_a_status_and_the_others_their_tokens(device):
    logits = np.tile(LOGITS[0, :VOCAB], (6, 1))
    logits[1, 77], logits[2, 3], logits[3] = np.nan, np.inf, -np.inf
    everything = np.arange(VOCAB, dtype=np.int32)
    rows = [SamplerInput(), SamplerInput(), SamplerInput(sample=True), SamplerInput(), SamplerInput(excluded=everything, sample=True),
            SamplerInput(context=np.array([VOCAB], np.int32), repetition=2.0)]  # fmt: skip
    found = _choose(logits, rows, device)
    assert found.status_L.tolist() == [0, 1, 1, 1, 2, 3]
    assert found.status_L.tolist() == [choose_one(row, one)[2] for row, one in zip(logits, rows, strict=True)]
    assert found.token_L[0] == logits[0].argmax()


@pytest.mark.parametrize("dtype", cuda.DTYPES)
def test_keys_are_written_in_8_bits_to_their_slots(dtype, device):
    random = np.random.default_rng(2)
    x = paddle.to_tensor(random.standard_normal((7, 3, 16)).astype(np.float32), place=device).astype(dtype)
    wide = x.astype("float32").numpy()
    wide[2, 1] = 0.0
    x = paddle.to_tensor(wide, place=device).astype(dtype)
    slot = np.array([9, 0, 4, 5, 11, 2, 7])
    codes = paddle.to_tensor(np.full((12, 3, 16), 99, np.int8), place=device)
    units = paddle.to_tensor(np.full((12, 3), -1.0, np.float32), place=device)
    cuda.quantize_kv(x, paddle.to_tensor(slot, place=device), codes, units)
    expected = np.abs(wide).max(-1) / np.float32(127)
    np.testing.assert_allclose(units.numpy()[slot], expected, rtol=1e-6)
    found = codes.numpy()[slot] * units.numpy()[slot][..., None]
    assert np.abs(found - wide).max() <= 0.5001 * expected.max() and np.abs(codes.numpy()[slot]).max() == 127
    untouched = np.setdiff1d(np.arange(12), slot)
    assert (codes.numpy()[untouched] == 99).all() and (units.numpy()[untouched] == -1).all()


def test_views_are_read_as_they_are_seen_and_not_written_to(device):
    flag = "FLAGS_use_stride_kernel"
    before = paddle.get_flags(flag)[flag]
    paddle.set_flags({flag: True})
    try:
        wide = paddle.to_tensor(np.repeat(LOGITS[:2, :VOCAB], 2, axis=1), place=device)[:, ::2]
        assert not wide.is_contiguous()
        found = SamplerOutput(*cuda.choose(wide, [SamplerInput(), SamplerInput()]))
        assert found.token_L.tolist() == LOGITS[:2, :VOCAB].argmax(1).tolist()
        x = paddle.to_tensor(np.arange(24, dtype=np.float32).reshape(3, 1, 8), place=device)[..., ::2]
        slot = paddle.to_tensor(np.array([2, 9, 0, 9, 1, 9]), place=device)[::2]
        codes, units = paddle.zeros([3, 1, 4], "int8"), paddle.zeros([3, 1], "float32")
        cuda.quantize_kv(x, slot, codes, units)
        assert units.numpy()[:, 0].tolist() == [np.float32(top / 127) for top in (14, 22, 6)]
        with pytest.raises(ValueError, match="contiguous"):
            cuda.quantize_kv(x, slot, paddle.zeros([3, 1, 8], "int8")[..., ::2], units)
    finally:
        paddle.set_flags({flag: before})


def test_a_key_that_is_no_number_stays_none(device):
    x = paddle.to_tensor(np.array([[[1.0, np.nan]], [[1.0, 2.0]]], np.float32), place=device)
    codes, units = paddle.zeros([2, 1, 2], "int8"), paddle.zeros([2, 1], "float32")
    cuda.quantize_kv(x, paddle.to_tensor(np.array([0, 1]), place=device), codes, units)
    assert np.isnan(units.numpy()[0, 0]) and codes.numpy()[0].all() and units.numpy()[1, 0] == np.float32(2 / 127)


@pytest.mark.cuda
def test_the_sources_compile_for_the_gpus_in_use(tmp_path):
    compiler = shutil.which("nvcc")
    if compiler is None:
        pytest.skip("no nvcc here")
    file = runpy.run_path(str(FOLDER.parent / "cuda_build.py"))["build"](
        FOLDER.parent / "csrc" / "cuda", tmp_path / cuda.FILE.name
    )
    content = file.read_bytes()
    assert b"sm_80" in content and b"sm_90" in content
    symbols = subprocess.run(["nm", "-D", "--defined-only", str(file)], capture_output=True, text=True).stdout
    assert {line.split()[-1] for line in symbols.splitlines() if "llmctl" in line} == {
        "llmctl_ops_cuda_choose", "llmctl_ops_cuda_choose_bytes", "llmctl_ops_cuda_quantize_kv",
        "llmctl_ops_cuda_row_size",
    }  # fmt: skip
