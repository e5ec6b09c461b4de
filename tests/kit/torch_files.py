"""Files as torch writes them, written without torch: pickles by names of globals, zips and the legacy format."""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict

KINDS = {
    "<f4": "FloatStorage",
    "<f8": "DoubleStorage",
    "<f2": "HalfStorage",
    "<i8": "LongStorage",
    "|u1": "ByteStorage",
}


class Global:
    """Pickled as a reference to a global that need not exist here."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Call:
    """Pickled as a call of a global."""

    def __init__(self, function, *args):
        self.function, self.args = function, args


class Storage:
    def __init__(self, key, data, kind=None):
        self.key, self.data, self.kind = key, data, kind or KINDS[data.dtype.str]

    def pid(self, size=None):
        return ("storage", Global("torch", self.kind), self.key, "cpu", len(self.data) if size is None else size)


class Writer(pickle._Pickler):
    """Writes the pickles that torch writes, by name, without torch."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_global_by_name(self, obj):
        self.write(f"c{obj.module}\n{obj.name}\n".encode())

    def save_call(self, obj):
        self.save(obj.function)
        self.save(obj.args)
        self.write(pickle.REDUCE)

    def save_storage(self, obj):
        self.save(obj.pid() + self.extra)
        self.write(pickle.BINPERSID)

    dispatch[Global] = save_global_by_name
    dispatch[Call] = save_call
    dispatch[Storage] = save_storage
    extra = ()


def pickled(obj, extra=()):
    stream = io.BytesIO()
    writer = Writer(stream, 2)
    writer.extra = extra
    writer.dump(obj)
    return stream.getvalue()


def tensor(storage, shape, strides, offset=0):
    function = Global("torch._utils", "_rebuild_tensor_v2")
    return Call(function, storage, offset, shape, strides, False, OrderedDict())


def parameter(data):
    return Call(Global("torch._utils", "_rebuild_parameter"), data, True, OrderedDict())


def write_zip(path, state, storages=(), name="archive", order=b"little", raw=None, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{name}/data.pkl", pickled(state) if raw is None else raw)
        if order:
            archive.writestr(f"{name}/byteorder", order)
        for storage in storages:
            data = storage.data.byteswap() if order == b"big" else storage.data
            archive.writestr(f"{name}/data/{storage.key}", data.tobytes())
        archive.writestr(f"{name}/version", b"3\n")
    return path.parent


def write_legacy(path, state, storages, little=True):
    parts = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": little}]
    content = b"".join(pickle.dumps(part, 2) for part in parts) + pickled(state, extra=(None,))
    content += pickle.dumps([storage.key for storage in storages], 2)
    for storage in storages:
        content += struct.pack("<q" if little else ">q", len(storage.data))
        content += (storage.data if little else storage.data.byteswap()).tobytes()
    path.write_bytes(content)
    return path.parent
