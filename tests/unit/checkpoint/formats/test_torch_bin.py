"""Reading torch's .bin without torch: layouts built by hand, and malicious pickles that must not run."""

import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
from kit.torch_files import Storage, parameter, tensor, write_legacy, write_zip

from llmctl.checkpoint import open_folder
from llmctl.checkpoint.formats import torch_bin
from llmctl.checkpoint.formats.dtypes import round_bfloat16
from llmctl.errors import CheckpointError

BASE = np.arange(60, dtype=np.float32)
VIEWS = {
    "whole": ((5, 12), (12, 1), 0),
    "transposed": ((12, 5), (1, 12), 0),
    "window": ((3, 5), (12, 1), 14),
    "column": ((5,), (12,), 3),
    "expanded": ((4, 12), (0, 1), 24),
    "scalar": ((), (), 7),
    "empty": ((0, 4), (4, 1), 0),
    "permuted": ((5, 3, 4), (1, 20, 5), 0),
}


def view(shape, strides, offset):
    return np.lib.stride_tricks.as_strided(BASE[offset:], shape, [4 * step for step in strides])


@pytest.mark.parametrize("layout", ["archive", "pytorch_model", "no byteorder", "big", "legacy", "legacy big"])
def test_views_of_a_shared_storage_are_read_by_stride_and_offset(tmp_path, layout):
    file, storage = tmp_path / "pytorch_model.bin", Storage("0", BASE)
    state = OrderedDict((name, tensor(storage, *spec)) for name, spec in VIEWS.items())
    if layout.startswith("legacy"):
        folder = write_legacy(file, state, [storage], little="big" not in layout)
    else:
        order = {"no byteorder": None, "big": b"big"}.get(layout, b"little")
        folder = write_zip(file, state, [storage], "pytorch_model" if layout == "pytorch_model" else "archive", order)
    weights = open_folder(folder)
    assert list(weights.tensors) == list(VIEWS)
    for name, spec in VIEWS.items():
        np.testing.assert_array_equal(weights.read(name), view(*spec), err_msg=name)


def test_every_dtype_and_parameters_are_read(tmp_path):
    values = np.float32([1.5, -2, 3e-3])
    storages = [
        Storage("0", values),
        Storage("1", values.astype(np.float16)),
        Storage("2", round_bfloat16(values), "BFloat16Storage"),
        Storage("3", values.astype(np.float64)),
        Storage("4", np.int64([1, -2, 3])),
        Storage("5", np.array([True, False, True]), "BoolStorage"),
    ]
    state = {storage.key: parameter(tensor(storage, (3,), (1,))) for storage in storages}
    weights = open_folder(write_zip(tmp_path / "pytorch_model.bin", state, storages))
    dtypes = [weights.tensors[key].dtype for key in state]
    assert dtypes == ["float32", "float16", "bfloat16", "float64", "int64", "bool"]
    assert weights.read("0").tolist() == values.tolist()
    assert weights.read("1").tolist() == values.astype(np.float16).astype(np.float32).tolist()
    np.testing.assert_allclose(weights.read("2"), values, rtol=2**-8)
    assert weights.read("4").tolist() == [1, -2, 3]
    assert weights.read("5").tolist() == [True, False, True]


def test_a_state_dict_with_metadata_is_read(tmp_path):
    state = OrderedDict(a=tensor(Storage("0", BASE), (60,), (1,)))
    state._metadata = OrderedDict({"": {"version": 1}})
    assert open_folder(write_zip(tmp_path / "pytorch_model.bin", state, [Storage("0", BASE)])).read("a").size == 60


def stack_global(*names):
    return b"\x80\x04" + b"".join(b"\x8c" + bytes([len(name)]) + name.encode() for name in names) + b"\x93."


def malicious():
    """Pickles that would create the file ``ran`` in a plain unpickler, by different opcodes."""
    command = "touch ran"

    class System:
        def __reduce__(self):
            import os

            return os.system, (command,)

    class Eval:
        def __reduce__(self):
            return eval, ("open('ran', 'w')",)

    class Getattr:
        def __reduce__(self):
            return getattr, (OrderedDict, "__init__")

    yield "system", pickle.dumps({"a": System()}, 2), "posix.system"
    yield "eval", pickle.dumps({"a": Eval()}, 2), "eval"
    yield "protocol 4", pickle.dumps({"a": Eval()}, 4), "eval"
    yield "nested", pickle.dumps({"a": [OrderedDict(b=(1, {"c": Eval()}))]}, 2), "eval"
    yield "getattr", pickle.dumps(Getattr(), 2), "getattr"
    yield "inst", f"(S'{command}'\nios\nsystem\n.".encode(), "os.system"
    yield "obj", f"(cos\nsystem\nS'{command}'\no.".encode(), "os.system"
    yield "torch's own loader", b"ctorch.storage\n_load_from_bytes\n(S'x'\ntR.", "torch.storage._load_from_bytes"
    yield "dotted name", stack_global("torch._utils", "_rebuild_tensor_v2.__class__"), "__class__"
    yield "dotted module", b"ccollections\nOrderedDict.__init__.__globals__\n.", "__globals__"
    yield "subprocess", b"csubprocess\nPopen\n(S'x'\ntR.", "subprocess.Popen"
    yield "pickled module", b"ctorch.nn.modules.linear\nLinear\n)\x81.", "torch.nn.modules.linear.Linear"


@pytest.mark.parametrize(("content", "name"), [pytest.param(*row, id=title) for title, *row in malicious()])
@pytest.mark.parametrize("layout", ["zip", "legacy"])
def test_a_pickle_that_asks_for_anything_else_is_refused_by_name_and_does_not_run(
    tmp_path, monkeypatch, content, name, layout
):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "pytorch_model.bin"
    if layout == "zip":
        write_zip(file, None, raw=content)
    else:
        parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
        file.write_bytes(b"".join(pickle.dumps(part, 2) for part in parts) + content)
    with pytest.raises(CheckpointError, match="is refused: its pickle refers to .*" + name.replace(".", r"\.")):
        open_folder(tmp_path)
    assert not (tmp_path / "ran").exists()


REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


@pytest.mark.parametrize(
    "content",
    [
        REBUILD + b"}S'x'\nI1\nsb.",  # BUILD with a state dict on a stand-in
        REBUILD + b"(N}S'__class__'\nccollections\nOrderedDict\nstb.",  # BUILD with slots
        b"ctorch\nFloatStorage\n}S'dtype'\nS'x'\nsb.",
        b"ctorch\nFloatStorage\n(tR.",  # calling what cannot be called
        b"ctorch\nfloat32\n(tR.",
        REBUILD + b"(tR.",
        REBUILD + b"(NI0\n(t(ttR.",
        REBUILD + b")\x81.",  # NEWOBJ on an object that is no class
        b"ccollections\nOrderedDict\n(REBUILDtR.",
        b"(S'storage'\nS'x'\nS'0'\nS'cpu'\nI3\ntQ.",
        b"\x82\x01.",  # extension registry
        b"",
        b"garbage",
        b"]" * 1000,
        b"\x8d" + (2**62).to_bytes(8, "little") + b".",  # a string longer than memory
    ],
)
def test_misshapen_pickles_are_refused(tmp_path, content):
    before = set(vars(OrderedDict))
    with pytest.raises(CheckpointError, match="its pickle cannot be read|not a state dict|damaged"):
        open_folder(write_zip(tmp_path / "pytorch_model.bin", None, raw=content))
    assert set(vars(OrderedDict)) == before


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "message"),
    [
        ((61,), (1,), 0, "beyond its storage"),
        ((5, 12), (12, 2), 0, "beyond its storage"),
        ((10,), (1,), 55, "beyond its storage"),
        ((-1,), (1,), 0, "not valid"),
        ((5,), (-1,), 10, "not valid"),
        ((5,), (1,), -1, "not valid"),
        ((5,), (1.0,), 0, "not valid"),
        ((5,), (1, 1), 0, "cannot be read"),
    ],
)
def test_tensors_outside_their_storage_are_refused(tmp_path, shape, strides, offset, message):
    storage = Storage("0", BASE)
    state = {"a": tensor(storage, shape, strides, offset)}
    with pytest.raises(CheckpointError, match=message):
        open_folder(write_zip(tmp_path / "pytorch_model.bin", state, [storage]))


def good(tmp_path, **options):
    storage = Storage("0", BASE)
    return write_zip(tmp_path / "pytorch_model.bin", {"a": tensor(storage, (60,), (1,))}, [storage], **options)


@pytest.mark.parametrize("keep", [3, 40, 200, -1, -30])
def test_truncated_zips_are_refused(tmp_path, keep):
    file = good(tmp_path) / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        open_folder(tmp_path)


@pytest.mark.parametrize("keep", [20, 100, -1, -200])
def test_truncated_legacy_files_are_refused(tmp_path, keep):
    storage = Storage("0", BASE)
    file = tmp_path / "pytorch_model.bin"
    write_legacy(file, {"a": tensor(storage, (60,), (1,))}, [storage])
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="truncated|cannot be read|damaged"):
        open_folder(tmp_path)


def test_a_zip_without_a_storage_is_refused(tmp_path):
    state = {"a": tensor(Storage("0", BASE), (60,), (1,))}
    with pytest.raises(CheckpointError, match="no record archive/data/0"):
        open_folder(write_zip(tmp_path / "pytorch_model.bin", state))


def test_a_storage_shorter_than_its_tensors_is_refused(tmp_path):
    state = {"a": tensor(Storage("0", BASE), (60,), (1,))}
    with pytest.raises(CheckpointError, match="has 40 bytes, its tensors need 240"):
        open_folder(write_zip(tmp_path / "pytorch_model.bin", state, [Storage("0", BASE[:10])]))


def test_compressed_records_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is compressed"):
        open_folder(good(tmp_path, compression=zipfile.ZIP_DEFLATED))


def test_a_zip_that_is_no_checkpoint_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w") as archive:
        archive.writestr("readme.txt", "x")
    with pytest.raises(CheckpointError, match="0 records data.pkl"):
        open_folder(tmp_path)


def test_other_formats_are_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"version https://git-lfs")
    with pytest.raises(CheckpointError, match="neither zip nor"):
        open_folder(tmp_path)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([1, 2], "holds a list, not a state dict"),
        ({"a": 3}, "the entry 'a' is a int, not a tensor"),
        ({"state_dict": {"a": 1}}, "only plain state dicts"),
        ({1: None}, "the entry 1"),
    ],
)
def test_what_is_no_flat_state_dict_is_refused(tmp_path, state, message):
    with pytest.raises(CheckpointError, match=message):
        open_folder(write_zip(tmp_path / "pytorch_model.bin", state))


def test_opening_reads_no_storage(tmp_path, monkeypatch):
    folder, read = good(tmp_path), zipfile.ZipFile.read
    records = []
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda self, info: records.append(info.filename) or read(self, info))
    assert open_folder(folder).tensors["a"].shape == (60,)
    assert sorted(records) == ["archive/byteorder", "archive/data.pkl"]


@pytest.mark.assets
@pytest.mark.parametrize("case", ["goldens_remote/chatglm2_basic", "goldens/mistral_nowindow", "goldens/qwen2_bias"])
def test_files_that_torch_wrote_are_read(assets, case):
    weights = open_folder(assets / case)
    assert len(weights.tensors) > 10
    for name, info in weights.tensors.items():
        assert np.isfinite(weights.read(name)).all()
        assert info.file.suffix == ".bin"


def flipped(file, record):
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        content[content.find(archive.read(record)) + 3] ^= 0x40
    file.write_bytes(content)


def test_a_flipped_bit_is_found_by_the_checksum_of_its_record(tmp_path):
    file = good(tmp_path) / "pytorch_model.bin"
    torch_bin.check_crc([file])
    flipped(file, "archive/data/0")
    with pytest.raises(CheckpointError, match="the record archive/data/0 has another CRC-32 than the archive states"):
        torch_bin.check_crc([file])


def test_records_without_a_checksum_and_files_of_other_kinds_are_passed_over(tmp_path):
    file = good(tmp_path) / "pytorch_model.bin"
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        crc = archive.getinfo("archive/data/0").CRC.to_bytes(4, "little")
    file.write_bytes(content.replace(crc, bytes(4)))
    (tmp_path / "other").write_bytes(b"text")
    torch_bin.check_crc([file, tmp_path / "other"])
