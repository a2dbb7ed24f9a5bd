#!/usr/bin/env python3
"""Write the small files on which the unit tests of pickle.rs run.

Usage: python make_goldens.py [FOLDER]      (default: this script's own)

Needs torch >= 2.6 and numpy >= 2. Running it twice gives the same bytes. Values follow one formula, ramp(): element i is
0.25 * i - 1, so that the tests can recompute them and every floating type holds them exactly. Nothing is loaded here: the
files that call os.system are written, never read.
"""

import argparse
import collections
import io
import os
import pickle
import struct
import sys
import types
import warnings
import zipfile

import numpy as np
import torch
from torch.utils.serialization import config

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)))
MARKER = "pickle_was_executed"


def ramp(*shape, dtype=torch.float32):
    """Tensor of `shape` whose element i (row-major) is 0.25 * i - 1."""
    n = int(np.prod(shape))
    return (torch.arange(n, dtype=torch.float64) * 0.25 - 1).to(dtype).reshape(shape)


def weights():
    """The two tensors most files hold; a fresh pair each time, so that no storage is shared by accident."""
    return {"fc.weight": ramp(2, 3), "fc.bias": ramp(2)}


def write(name, data):
    with open(os.path.join(OUT, name), "wb") as f:
        f.write(data)


def saved(obj, **options):
    buffer = io.BytesIO()
    torch.save(obj, buffer, **options)
    return buffer.getvalue()


def rezipped(data, method=zipfile.ZIP_STORED, replace=None, drop=lambda name: False):
    """The same zip archive with another compression, replaced entries or fewer entries; fixed dates."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", method) as new:
        for entry in old.infolist():
            if not drop(entry.filename):
                content = (replace or {}).get(entry.filename, old.read(entry.filename))
                info = zipfile.ZipInfo(entry.filename)
                info.compress_type = method
                new.writestr(info, content)
    return out.getvalue()


# ---------------------------------------------------------------------------------------------------------------------
# The old format (before PyTorch 1.6)


class Legacy:
    """Splits an old-format file into its parts. PyTorch names the storages by their memory address, which changes from run
    to run; here they are renamed 1000, 1001, ... in the order in which the data mentions them."""

    def __init__(self, obj):
        self.order, self.sizes = [], {}
        f = io.BytesIO(saved(obj, _use_new_zipfile_serialization=False))
        for _ in range(3):  # magic number, protocol version, system information
            pickle.load(f)
        start = f.tell()
        self.head = f.getvalue()[:start]
        outer = self

        class Scan(pickle.Unpickler):
            def persistent_load(self, saved_id):
                if saved_id[0] == "storage" and saved_id[2] not in outer.order:
                    outer.order.append(saved_id[2])
                    outer.sizes[saved_id[2]] = saved_id[1](0).element_size()
                return saved_id[1]  # any value will do; for a module it must be the class

            def find_class(self, module, name):
                if name.startswith("_rebuild"):
                    return lambda *args: None
                return super().find_class(module, name)

        Scan(f).load()
        self.data = f.getvalue()[start : f.tell()]
        keys = pickle.load(f)
        self.blocks = {}
        for key in keys:
            count = f.read(8)
            self.blocks[key] = count + f.read(struct.unpack("<q", count)[0] * self.sizes[key])

    def bytes(self):
        data, names, blocks = self.data, [], []
        for i, key in enumerate(self.order):
            name = str(1000 + i)
            names.append(name)
            blocks.append(self.blocks[key])
            data = data.replace(text_opcode(key), text_opcode(name))
        return self.head + data + pickle.dumps(names, 2) + b"".join(blocks)


def text_opcode(text):
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def legacy_view():
    """A file as PyTorch 0.3 wrote it: two storages that are views of one root storage (view_metadata), written with the
    string opcodes of Python 2 and the four-argument _rebuild_tensor."""

    def tensor(cdata, offset, count, shape, stride):
        ints = lambda values: b"(" + b"".join(b"K%c" % v for v in values) + b"t"
        view = b"(" + py2(cdata) + b"K%cK%ct" % (offset, count)
        storage = b"(" + py2(b"storage") + b"ctorch\nFloatStorage\n" + py2(b"77") + py2(b"cpu") + b"K\x06" + view + b"tQ"
        return b"ctorch._utils\n_rebuild_tensor\n(" + storage + b"K\x00" + ints(shape) + ints(stride) + b"tR"

    py2 = lambda raw: b"U%c" % len(raw) + raw
    data = b"\x80\x02}(" + py2(b"head") + tensor(b"78", 0, 2, [2], [1])
    data += py2(b"tail") + tensor(b"79", 2, 4, [2, 2], [2, 1]) + b"u."
    block = struct.pack("<q", 6) + ramp(6).numpy().tobytes()
    return Legacy({}).head + data + pickle.dumps(["77"], 2) + block


# ---------------------------------------------------------------------------------------------------------------------
# Python 2 pickles


class Py2Pickler(pickle._Pickler):
    """Writes bytes and ASCII text as Python 2 wrote its `str`: opcodes U and T; and NumPy's old module name."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_string(self, obj):
        raw = obj if isinstance(obj, bytes) else obj.encode("ascii")
        self.write((b"U%c" % len(raw) if len(raw) < 256 else b"T" + struct.pack("<i", len(raw))) + raw)
        self.memoize(obj)

    dispatch[bytes] = save_string
    dispatch[str] = save_string

    def save_global(self, obj, name=None):
        module = obj.__module__.replace("numpy._core", "numpy.core")
        self.write(f"c{module}\n{name or obj.__qualname__}\n".encode())
        self.memoize(obj)

    dispatch[types.FunctionType] = save_global
    dispatch[types.BuiltinFunctionType] = save_global
    dispatch[type] = save_global


def py2_pickle(obj):
    buffer = io.BytesIO()
    Py2Pickler(buffer, 2).dump(obj)
    return buffer.getvalue()


def batch(rows):
    """A CIFAR batch: pixel i of the flat data is 7 * i modulo 256, label of row r is r modulo 10."""
    data = (np.arange(rows * 3072) * 7 % 256).astype(np.uint8).reshape(rows, 3072)
    return {
        b"batch_label": b"training batch 1 of 5",
        b"labels": [r % 10 for r in range(rows)],
        b"data": data,
        b"filenames": [b"image_%d.png" % r for r in range(rows)],
    }


# ---------------------------------------------------------------------------------------------------------------------
# Whole objects, and objects that call something


USER_CODE = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(2))
"""


def user_net():
    """A module of a class defined in a user's file `usermodels.py`, which only exists while this script runs."""
    module = types.ModuleType("usermodels")
    sys.modules["usermodels"] = module
    exec(USER_CODE, module.__dict__)
    return module.Net()


class Caller:
    """Unpickling this in Python runs a shell command."""

    def __reduce__(self):
        return (os.system, (f"touch {MARKER}",))


def bare_module(module):
    """state_dict() of a small network filled by ramp(), under the key order PyTorch gives it."""
    state = module.state_dict()
    for value in state.values():
        if value.is_floating_point():
            value.copy_(ramp(*value.shape))
        else:
            value.fill_(7)
    return state


def torch_files():
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    state = bare_module(net)
    write("plain.pth", saved(weights()))
    write("ordered.pth", saved(state))
    write("legacy.pth", Legacy(state).bytes())
    write("legacy_view.pth", legacy_view())

    small = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1, momentum=0.9)
    for parameter in small.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])
    wrapped = {
        "epoch": 3,
        "arch": "x",
        "state_dict": weights(),
        "best_acc1": 0.9,
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
    }
    write("wrapped.pth", saved(wrapped))
    args = argparse.Namespace(arch="x", lr=0.1, milestones=[2, 4])
    write("namespace.pth", saved({"args": args, "net": {"model": weights()}, "rng": np.float64(0.5)}))
    write("tensor_beside.pth", saved({"best_acc1": torch.tensor(76.5), "state_dict": weights()}))
    prefixed = collections.OrderedDict(("module." + key, value) for key, value in weights().items())
    write("prefixed.pth", saved({"state_dict": prefixed}))

    base = ramp(4, 6)
    shared = {
        "base": base,
        "transposed": base.t(),
        "sliced": base[1:3, 2:5],
        "stepped": base[:, ::2],
        "expanded": ramp(3).unsqueeze(0).expand(2, 3),
        "empty": torch.zeros(0, 3),
    }
    write("views.pth", saved(shared))
    write("views_legacy.pth", Legacy(shared).bytes())
    floats = {kind: ramp(8, dtype=getattr(torch, kind)) for kind in "float64 float32 float16 bfloat16".split()}
    ints = {kind: torch.arange(-3, 5, dtype=getattr(torch, kind)) for kind in "int64 int32 int16 int8".split()}
    dtypes = {**floats, **ints}
    dtypes["uint8"] = torch.tensor([0, 1, 255], dtype=torch.uint8)
    dtypes["bool"] = torch.tensor([True, False, True])
    dtypes["scalar"] = torch.tensor(1 << 40)
    write("dtypes.pth", saved(dtypes))
    marked = torch.nn.Parameter(ramp(2))
    marked.note = "kept in the state of the parameter"
    write("parameter.pth", saved({"plain": torch.nn.Parameter(ramp(2, 2)), "marked": marked}))

    config.save.compute_crc32 = False
    write("no_crc.pth", saved(weights()))
    config.save.compute_crc32 = True
    write("deflated.pth", rezipped(saved(weights()), zipfile.ZIP_DEFLATED))
    write("big_endian.pth", rezipped(saved(weights()), replace={"archive/byteorder": b"big"}))
    write("complex.pth", saved({"c": torch.zeros(2, dtype=torch.complex64)}))
    write("uint16.pth", saved({"u": torch.zeros(2, dtype=torch.uint16)}))
    write("sparse.pth", saved({"w": ramp(2), "s": torch.eye(2).to_sparse()}))
    write("negated.pth", saved({"n": torch.imag(torch.conj(torch.tensor([1 + 2j])))}))
    write("other.zip", rezipped(saved(weights()), drop=lambda name: name == "archive/data.pkl"))

    write("whole_linear.pth", saved(linear()))
    write("whole_user.pth", saved(user_net()))
    write("whole_user_legacy.pth", Legacy(user_net()).bytes())
    write("whole_in_dict.pth", saved({"epoch": 1, "model": user_net()}))
    write("caller.pth", saved(Caller()))
    write("caller_in_dict.pth", saved({"x": Caller()}))
    write("caller_beside.pth", saved({"x": Caller(), "state_dict": weights()}))
    write("torchscript.pth", torchscript())


def linear():
    module = torch.nn.Linear(2, 1)
    bare_module(module)
    return module


def torchscript():
    """A TorchScript archive, without the debug records: they name source files of the machine that wrote them."""
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(linear(), torch.zeros(1, 2)), buffer)
    return rezipped(buffer.getvalue(), drop=lambda name: name.endswith(".debug_pkl"))


def pickle_files():
    write("cifar_py3.pkl", pickle.dumps(batch(2), protocol=2))
    write("cifar_py2.pkl", py2_pickle(batch(2)))
    hundred = batch(2)
    del hundred[b"labels"]
    hundred |= {b"coarse_labels": [4, 19], b"fine_labels": [77, 99]}
    write("cifar100_py3.pkl", pickle.dumps(hundred, protocol=2))
    shared = [1, 2]
    misc = {
        "none": None,
        "bools": (True, False),
        "ints": [0, -1, 255, 65535, -(2**31), 2**40, 2**64, -(2**100), 2**200],
        "floats": [0.5, -1e300, float("inf")],
        "text": "naïve \u2603\n\\u0041 \U0001f600",
        "bytes": b"\x00\xff'\n",
        "set": {3},
        "frozen": frozenset([4]),
        "ordered": collections.OrderedDict([("a", 1), ("b", 2)]),
        "shared": [shared, shared],
        "array": np.array([[1.5, -2.0, 3.0], [4.0, 5.0, 6.0]], dtype="<f4"),
        "big": np.array([1, 2, 258], dtype=">i2"),
        "fortran": np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
        "scalars": (np.float32(0.5), np.int64(-3), np.bool_(True)),
        "names": np.array(["a", "bc"]),
        "complex": 1 + 2j,
    }
    for protocol in range(6):
        write(f"misc_{protocol}.pkl", pickle.dumps(misc, protocol=protocol))
    loop = []
    loop.append(loop)
    write("loop.pkl", pickle.dumps(loop, protocol=2))
    write("caller.pkl", pickle.dumps(Caller(), protocol=0))


def main():
    global OUT
    if len(sys.argv) > 1:
        OUT = sys.argv[1]
    os.makedirs(OUT, exist_ok=True)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    torch_files()
    pickle_files()


if __name__ == "__main__":
    main()
