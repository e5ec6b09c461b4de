"""The pickle machine: equal to Python's for what weights need, inert and bounded for everything else."""

import io
import pickle
import pickletools
import struct
import sys
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmctl.checkpoint.formats import inert_pickle, pdparams
from llmctl.checkpoint.formats.torch_pickle import unpickle
from llmctl.errors import CheckpointError

KINDS = ["<f4", ">f4", "<f8", "<f2", "<u2", "<i8", ">i4", "i1", "u1", "?"]
SHAPES = [(), (0, 3), (5,), (3, 4), (2, 3, 4)]


def arrays():
    rng = np.random.default_rng(0)
    for kind in KINDS:
        for shape in SHAPES:
            for order in "CF":
                values = rng.integers(0, 2 if kind == "?" else 99, shape).astype(kind)
                yield f"{kind}{shape}{order}", np.array(values, order=order)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_of_every_form_are_read_as_pickle_reads_them(tmp_path, protocol):
    state = dict(arrays())
    path = tmp_path / "model_state.pdparams"
    path.write_bytes(pickle.dumps(state, protocol))
    found = pdparams.read_header(path)
    assert list(found) == list(state)
    for name, values in pickle.loads(path.read_bytes()).items():
        read = found[name].read()
        assert read.shape == values.shape and np.array_equal(read, values), name


def test_a_file_of_protocol_4_is_described_without_reading_its_arrays(tmp_path):
    path = tmp_path / "model_state.pdparams"
    path.write_bytes(pickle.dumps({"a": np.ones((4096, 1024), "f4")}, 4))
    tracemalloc.start()
    found = pdparams.read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20 and found["a"].read().sum() == 4096 * 1024


def refused(content, path):
    """Whether both readers refuse a pickle, quickly, without a numpy object or an import."""
    path.write_bytes(content)
    modules, begun = set(sys.modules), time.process_time()
    outcomes = []
    for read in (pdparams.read_header, lambda p: unpickle(io.BytesIO(content), p)):
        try:
            read(path)
            outcomes.append(None)
        except CheckpointError as error:
            assert len(str(error)) < 1000 + len(str(path))
            outcomes.append(str(error))
    assert set(sys.modules) == modules
    assert time.process_time() - begun < 30
    return outcomes


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def number(value):
    return b"J" + struct.pack("<i", value)


def text(value):
    return b"\x8c" + bytes([len(value)]) + value.encode()


DTYPE = name("numpy", "dtype") + text("V8") + number(0) + number(1) + b"\x87Rq\x00"
ENLARGED = b"h\x00(" + number(3) + text("|") + b"NNN" + number(2**31 - 8) + number(1) + number(0) + b"tb0"
NESTED = b")" + b"2\x86" * 60
TWINS = b"(" + b")" + b"q\x00h\x00h\x00\x86q\x00" * 60
ATTACKS = {
    "an array made by calling its class": b"\x80\x04"
    + DTYPE
    + name("numpy", "ndarray")
    + number(1)
    + b"\x85h\x00\x86R.",
    "a dtype enlarged by its state": b"\x80\x04" + DTYPE + ENLARGED + b"}.",
    "an item of an array": b"\x80\x04" + name("numpy", "ndarray") + number(1) + b"\x85R" + number(9) + b"K\x41s.",
    "nested tuples as a key": b"\x80\x02})" + b"q\x00h\x00\x86" * 60 + b"K\x01s.",
    "tuples of one tuple as a key": b"\x80\x02})" + b"q\x00h\x00h\x00\x86q\x00" * 60 + b"K\x01s.",
    "the same in a set": b"\x80\x04\x8f(" + TWINS + b"\x90.",
    "a persistent id": b"\x80\x02)" + b"q\x00h\x00h\x00\x86q\x00" * 60 + b"Q.",
    "DUP": b"\x80\x02" + NESTED + b".",
    "a large index of the memo": b"\x80\x02}r" + struct.pack("<I", 2**31) + b"x.",
    "a string of 2^62 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b".",
    "a number of 2^31 bytes": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b".",
    "two million dicts": b"\x80\x02" + b"}" * 3_000_000 + b".",
    "endless marks": b"(" * 3_000_000,
    "NEWOBJ": b"\x80\x04" + name("numpy", "ndarray") + number(1) + b"\x85\x81.",
    "NEWOBJ_EX": b"\x80\x04" + name("collections", "OrderedDict") + b")}\x92.",
    "an extension": b"\x82\x01.",
    "out of band": b"\x80\x05\x97.",
    "a dict with attributes": b"}" + b"}" + text("__class__") + b"Ns" + text("x") + b"bb.",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_are_refused_within_bounds_of_time_and_memory(tmp_path, attack):
    path = tmp_path / "model_state.pdparams"
    path.write_bytes(ATTACKS[attack])
    begun = time.process_time()
    tracemalloc.start()
    with pytest.raises(CheckpointError):
        pdparams.read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500 << 20 and time.process_time() - begun < 30
    if len(ATTACKS[attack]) < 1 << 20:
        assert refused(ATTACKS[attack], path)[0]


OPCODES = [opcode.code.encode("latin1") for opcode in pickletools.opcodes]
NAMES = ["numpy.ndarray", "numpy.dtype", "numpy.core.multiarray._reconstruct", "numpy._core.numeric._frombuffer"]
NAMES += ["collections.OrderedDict", "_codecs.encode", "torch.FloatStorage", "torch._utils._rebuild_tensor_v2"]
NAMES += ["builtins.eval", "os.system", "torch.Size", "torch._utils._rebuild_parameter"]
SMALL = st.integers(0, 3).map(lambda n: b"K" + bytes([n]))
PIECES = st.one_of(
    st.sampled_from(OPCODES),
    st.sampled_from([name(*full.rsplit(".", 1)) for full in NAMES]),
    st.sampled_from([text(word) for word in ("f4", "V8", "O", "|", "<", "latin1", "storage", "b", "0", "x")]),
    SMALL,
    st.integers(-(2**31), 2**31 - 1).map(number),
    st.integers(0, 4).map(lambda n: b"h" + bytes([n])),
    st.integers(0, 4).map(lambda n: b"q" + bytes([n])),
    st.binary(max_size=8).map(lambda b: b"C" + bytes([len(b)]) + b),
    st.sampled_from(
        [b"}", b"]", b")", b"(", b"t", b"R", b"b", b"s", b"u", b"e", b"a", b"\x85", b"\x86", b"\x87", b"N"]
    ),
    st.binary(max_size=4),
)


@settings(max_examples=2000, deadline=None)
@given(st.lists(PIECES, max_size=40))
@example([b"\x80\x04", DTYPE, ENLARGED])
def test_any_sequence_of_opcodes_is_refused_or_gives_plain_values(tmp_path_factory, pieces):
    path = tmp_path_factory.getbasetemp() / "fuzz.pdparams"
    content = b"".join(pieces) + b"."
    refused(content, path)
    try:
        value = inert_pickle.load(io.BytesIO(content), path, pdparams._GLOBALS)
    except CheckpointError:
        return
    plain = (type(None), bool, int, float, str, inert_pickle.Bytes, tuple, list, dict, inert_pickle.Built)
    assert isinstance(value, (*plain, inert_pickle._Function)) and not isinstance(value, (np.ndarray, np.dtype))


VALID = pickle.dumps({"a": np.arange(6, dtype="f4").reshape(2, 3), "b": np.ones(3, ">f8", order="F")}, 4)


@settings(max_examples=1500, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=3))
def test_a_damaged_file_is_refused_or_its_arrays_have_the_bytes_that_their_shapes_need(tmp_path_factory, changes):
    content = bytearray(VALID)
    for place, value in changes:
        content[place] = value
    path = tmp_path_factory.getbasetemp() / "damaged.pdparams"
    path.write_bytes(content)
    try:
        found = pdparams.read_header(path)
    except CheckpointError:
        return
    for info in found.values():
        assert info.read().shape == info.shape and info.offset + info.nbytes <= len(content)


def test_settings_of_a_torch_tensor_that_are_not_read_are_refused(tmp_path):
    call = b"\x80\x02" + name("torch._utils", "_rebuild_tensor_v2")
    storage = b"(" + text("storage") + name("torch", "FloatStorage") + text("0") + text("cpu") + b"K\x04tQ"
    plain = call + b"(" + storage + b"K\x00K\x04\x85K\x01\x85\x89)"
    assert unpickle(io.BytesIO(plain + b"tR."), tmp_path).shape == (4,)
    for extra in (b"}" + text("neg") + b"\x88s", b"K\x01"):
        with pytest.raises(CheckpointError, match="unsupported attributes"):
            unpickle(io.BytesIO(plain + extra + b"tR."), tmp_path)
