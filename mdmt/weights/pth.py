"""A strict reader of PyTorch's .pth files that executes nothing.

A .pth file is a pickle with the tensors' bytes beside it. This reader walks the pickle's opcodes
itself and knows only those that a dictionary of tensors needs; anything else is refused by name.
Formats: the zip archive of PyTorch 1.6 and later, and the sequence of pickles before it (both as
described in the documentation of torch.save and read off files that PyTorch wrote).
"""

import io
import math
import os
import pickletools
import struct
import zipfile
from dataclasses import dataclass

import numpy as np

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
# Limits of a pickle without its tensors. Real ones stay below 1 MiB, 200,000 opcodes, and 2,100
# values on the stack (a dictionary is filled in portions of 1,000 items).
MAX_PICKLE = 1 << 24  # bytes
MAX_OPCODES = 1 << 21
MAX_STACK = 10_000
MAX_ITEMS = 1 << 15  # of nested dictionaries, each counted as often as it is met
MAX_GROWTH = 8  # bytes of all tensors over bytes of the file: half floats are widened, some shared

# Storage class -> type of its elements; bfloat16 is widened when it is read.
STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bf16",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
FUNCTIONS = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_parameter"),
}


# What zipfile raises where the records of an archive are not what they were.
DAMAGE = (
    zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, MemoryError,
    struct.error, UnicodeDecodeError,
)  # fmt: skip


class Refused(ValueError):
    """What was met is not part of a dictionary of tensors."""


@dataclass(frozen=True)
class Global:
    module: str
    name: str


@dataclass(frozen=True)
class Storage:
    """count: elements."""

    dtype: str
    key: str
    count: int

    @property
    def size(self):
        """Bytes in the file."""
        return self.count * (2 if self.dtype == "bf16" else np.dtype(self.dtype).itemsize)


@dataclass(frozen=True)
class Lazy:
    """A tensor whose bytes are still in the file."""

    storage: Storage
    offset: int
    shape: tuple
    strides: tuple


MARK = object()


def _global(module, name):
    if not (isinstance(module, str) and isinstance(name, str)):
        raise Refused("it wants to call something that has no name")
    known = (module, name) in FUNCTIONS or (module == "torch" and name in STORAGES)
    if not known:
        what = f"{module}.{name}"[:80]
        raise Refused(f"it wants to call {what}, which no dictionary of tensors needs")
    return Global(module, name)


def _whole(value, what, most=1 << 48):
    if not isinstance(value, int) or isinstance(value, bool):
        raise Refused(f"{what} is no number")
    if not 0 <= value <= most:
        raise Refused(f"{what} is negative or beyond {most}")
    return value


def _name(value):
    """Key of a storage."""
    if not isinstance(value, str | int):
        raise Refused("a storage has no name")
    return str(value)


def _tensor(args):
    if len(args) < 4 or not isinstance(args[0], Storage):
        raise Refused("a tensor stands on no storage")
    storage, offset, shape, strides = args[:4]
    if not (isinstance(shape, tuple) and isinstance(strides, tuple)):
        raise Refused("a tensor has no shape")
    if len(shape) != len(strides) or len(shape) > 8:
        raise Refused("the shape and the strides of a tensor do not belong together")
    shape = tuple(_whole(n, "a dimension") for n in shape)
    strides = tuple(_whole(n, "a stride") for n in strides)
    last = _whole(offset, "an offset")
    last += sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    elements = math.prod(shape)
    if elements and (last >= storage.count or elements > storage.count):
        raise Refused(f"a tensor of shape {shape} reaches beyond its storage")
    return Lazy(storage, offset, shape, strides)


def _reduce(function, args):
    if not isinstance(function, Global) or not isinstance(args, tuple):
        raise Refused("it calls something that is not a function")
    if function.name == "OrderedDict":
        if args:
            raise Refused("an OrderedDict is made from something")
        return {}
    if function.name == "_rebuild_parameter":
        if not args or not isinstance(args[0], Lazy):
            raise Refused("a parameter stands on no tensor")
        return args[0]
    if function.name.startswith("_rebuild_tensor"):
        return _tensor(args)
    raise Refused(f"it calls {function.module}.{function.name}")


def _storage(pid):
    ok = isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage"
    if not ok or not isinstance(pid[1], Global) or pid[1].name not in STORAGES:
        raise Refused("a storage is described in an unknown way")
    if len(pid) == 6 and pid[5] is not None:
        raise Refused("a storage is a view of another one")
    return Storage(STORAGES[pid[1].name], _name(pid[2]), _whole(pid[4], "the size of a storage"))


# Opcodes that push their argument, and those that push the same value always.
INTEGERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4")
TEXTS = ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING")
BYTES = ("SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8")
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (), "MARK": MARK}
IGNORED = ("PROTO", "FRAME")


class _Machine:
    """Walks the opcodes of one pickle; `stack` holds plain values, Global, Storage and Lazy.

    storages: {key: Storage} of all that the pickle names.
    """

    def __init__(self):
        self.stack, self.memo, self.storages = [], {}, {}
        push = self.stack.append
        self.actions = {
            **dict.fromkeys((*INTEGERS, *TEXTS, *BYTES, "FLOAT", "BINFLOAT"), push),
            **{name: lambda _, v=value: push(v) for name, value in CONSTANTS.items()},
            **{name: lambda _: None for name in IGNORED},
            "EMPTY_DICT": lambda _: push({}),
            "EMPTY_LIST": lambda _: push([]),
            "TUPLE": lambda _: push(tuple(self.pop_mark())),
            "TUPLE1": lambda _: push((self.pop(),)),
            "TUPLE2": lambda _: push(self.pop_last(2)),
            "TUPLE3": lambda _: push(self.pop_last(3)),
            "LIST": lambda _: push(self.pop_mark()),
            "DICT": self.make_dict,
            "SETITEM": lambda _: self.set_items(self.pop_last(2)),
            "SETITEMS": lambda _: self.set_items(self.pop_mark()),
            "APPEND": lambda _: self.append(self.pop_last(1)),
            "APPENDS": lambda _: self.append(self.pop_mark()),
            "POP": lambda _: self.pop(),
            "PUT": self.remember,
            "BINPUT": self.remember,
            "LONG_BINPUT": self.remember,
            "MEMOIZE": lambda _: self.remember(len(self.memo)),
            "GET": self.recall,
            "BINGET": self.recall,
            "LONG_BINGET": self.recall,
            "GLOBAL": lambda arg: push(_global(*arg.split(" ", 1))),
            "STACK_GLOBAL": lambda _: push(_global(*self.pop_last(2))),
            "REDUCE": lambda _: push(_reduce(*self.pop_last(2))),
            "BINPERSID": self.storage,
            "BUILD": self.build,
        }

    def pop(self):
        if not self.stack:
            raise Refused("its stack is empty where something is taken")
        return self.stack.pop()

    def pop_last(self, count):
        """A tuple of the last ones, the last one last."""
        return tuple(reversed([self.pop() for _ in range(count)]))

    def pop_mark(self):
        for at in range(len(self.stack) - 1, -1, -1):
            if self.stack[at] is MARK:
                items = self.stack[at + 1 :]
                del self.stack[at:]
                return items
        raise Refused("a mark is missing")

    def make_dict(self, _):
        items = self.pop_mark()
        self.stack.append({})
        self.set_items(items)

    def set_items(self, items):
        target = self.stack[-1] if self.stack else None
        if not isinstance(target, dict) or len(items) % 2:
            raise Refused("items are set on something that is not a dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int):
                raise Refused("a key of a dictionary is neither text nor a number")
            target[key] = value

    def append(self, items):
        target = self.stack[-1] if self.stack else None
        if not isinstance(target, list):
            raise Refused("items are appended to something that is not a list")
        target.extend(items)

    def remember(self, number):
        if not self.stack:
            raise Refused("its stack is empty where something is remembered")
        self.memo[number] = self.stack[-1]

    def recall(self, number):
        if number not in self.memo:
            raise Refused(f"it recalls number {number}, which it never remembered")
        self.stack.append(self.memo[number])

    def storage(self, _):
        storage = _storage(self.pop())
        if self.storages.setdefault(storage.key, storage) != storage:
            raise Refused("one storage is described in two ways")
        self.stack.append(storage)

    def build(self, _):
        """Attributes of a dictionary (_metadata of a state_dict): read, not kept."""
        self.pop()
        if not self.stack or not isinstance(self.stack[-1], dict):
            raise Refused("it sets the attributes of something that is not a dictionary")

    def run(self, stream):
        try:
            for count, (opcode, arg, _) in enumerate(pickletools.genops(stream)):
                if opcode.name == "STOP":
                    return self.pop()
                if count > MAX_OPCODES or len(self.stack) > MAX_STACK:
                    raise Refused("its pickle is longer or deeper than a dictionary of tensors")
                if opcode.name not in self.actions:
                    raise Refused(f"it has the pickle opcode {opcode.name}")
                self.actions[opcode.name](arg)
        except Refused:
            raise
        except (ValueError, IndexError, KeyError, UnicodeDecodeError, OverflowError) as error:
            raise Refused(f"its pickle is broken ({str(error)[:80]})") from None
        raise Refused("its pickle has no end")


class _Bounded:
    """A file from which no read asks for more than there is left, nor more than `most` in all."""

    def __init__(self, file, size, most=MAX_PICKLE):
        self.file, self.size, self.left = file, size, most

    def read(self, n=-1):
        rest = self.size - self.file.tell()
        n = rest if n is None or n < 0 else min(n, rest)
        return self._count(self.file.read(min(n, self.left + 1)))

    def readline(self, n=-1):
        return self._count(self.file.readline(min(65536, self.left + 1)))

    def _count(self, data):
        self.left -= len(data)
        if self.left < 0:
            raise Refused(f"its pickle has more than {MAX_PICKLE >> 20} MiB")
        return data


def _elements(dtype, raw):
    """float32 for the half types, so that all who read it can compute with it."""
    if dtype == "bf16":
        return (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
    values = np.frombuffer(raw, dtype)
    return values.astype("<f4") if dtype == "<f2" else values


def _materialise(tensor, storages):
    flat = storages[tensor.storage.key]
    if 0 in tensor.shape:
        return np.zeros(tensor.shape, flat.dtype)
    step = flat.dtype.itemsize
    view = np.lib.stride_tricks.as_strided(
        flat[tensor.offset :], tensor.shape, [s * step for s in tensor.strides], writeable=False
    )
    return np.array(view, order="C")


def _lazies(value, found, budget, depth=0):
    """All Lazy tensors in nested dictionaries, into found[key path]; budget: [items left]."""
    budget[0] -= len(value)
    if depth > 8 or budget[0] < 0:
        raise Refused("its dictionaries are nested too deep or hold too much")
    for key, item in value.items():
        if isinstance(item, dict):
            _lazies(item, found.setdefault(str(key), {}), budget, depth + 1)
        elif isinstance(item, Lazy):
            found[str(key)] = item
    return found


def _chosen(tree, choose, size):
    """What `choose` takes of a pickle's value, {key: Lazy}; size: bytes of the file."""
    if not isinstance(tree, dict):
        raise Refused(f"it holds a {type(tree).__name__}, not a dictionary")
    lazies = choose(_lazies(tree, {}, [MAX_ITEMS]))
    room = MAX_GROWTH * size
    for tensor in lazies.values():
        room -= math.prod(tensor.shape) * 4
    if room < 0:
        raise Refused(f"its tensors have more than {MAX_GROWTH} times the bytes of the file")
    return lazies


def _fill(lazies, storages):
    return {key: _materialise(tensor, storages) for key, tensor in lazies.items()}


def _keys(lazies):
    """Of the storages that the tensors need, each once."""
    return dict.fromkeys(tensor.storage.key for tensor in lazies.values())


def _member(names, name, size, what):
    """An entry of the archive that is stored as it is and lies in the file."""
    info = names.get(name)
    if info is None or info.compress_type != zipfile.ZIP_STORED:
        raise Refused(f"{what} missing or compressed")
    # a cut in the middle of the file puts members before its start
    end = info.header_offset + info.file_size
    if info.file_size != info.compress_size or info.header_offset < 0 or end > size:
        raise Refused(f"{what} cut off: {info.file_size} bytes are claimed")
    return info


def _read_zip(file, size, choose):
    with zipfile.ZipFile(file) as archive:
        names = {i.filename: i for i in archive.infolist()}
        pickles = [n for n in names if n == "data.pkl" or n.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise Refused("it is a zip archive without a data.pkl")
        root = pickles[0].removesuffix("data.pkl")
        info = _member(names, pickles[0], size, "its data.pkl is")
        if info.file_size > MAX_PICKLE:
            raise Refused(f"its data.pkl has more than {MAX_PICKLE >> 20} MiB")
        if root + "byteorder" in names:
            order = _member(names, root + "byteorder", size, "its byte order is")
            if order.file_size > 8 or archive.read(order) != b"little":
                raise Refused("its byte order is not little-endian")
        machine = _Machine()
        lazies = _chosen(machine.run(io.BytesIO(archive.read(info))), choose, size)
        storages = {}
        for key in _keys(lazies):
            storage = machine.storages[key]
            what = f"the bytes of storage {key[:40]} are"
            member = _member(names, f"{root}data/{key}", size, what)
            if member.file_size != storage.size:
                raise Refused(
                    f"storage {key[:40]} has {member.file_size} bytes instead of {storage.size}"
                )
            storages[key] = _elements(storage.dtype, archive.read(member))
    return _fill(lazies, storages)


def _read_legacy(file, size, choose):
    stream = _Bounded(file, size)
    if _Machine().run(stream) != LEGACY_MAGIC or _Machine().run(stream) != LEGACY_PROTOCOL:
        raise Refused("it is no file that torch.save wrote")
    system = _Machine().run(stream)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Refused("its byte order is not little-endian")
    machine = _Machine()
    lazies = _chosen(machine.run(stream), choose, size)
    keys = _Machine().run(stream)
    if not isinstance(keys, list):
        raise Refused("the list of its storages is missing")
    wanted, storages = _keys(lazies), {}
    for key in map(_name, keys):
        head = file.read(8)
        if key not in machine.storages or len(head) != 8:
            raise Refused(f"storage {key[:40]} is unknown or missing")
        storage = machine.storages[key]
        if int.from_bytes(head, "little") != storage.count:
            raise Refused(f"storage {key[:40]} has another size than its description")
        if storage.size > size - file.tell():
            raise Refused(f"storage {key[:40]} is cut off")
        if key in wanted:
            storages[key] = _elements(storage.dtype, file.read(storage.size))
        else:
            file.seek(storage.size, os.SEEK_CUR)
    if set(wanted) - set(storages):
        raise Refused("the bytes of a storage are missing")
    return _fill(lazies, storages)


def read_pth(path, choose):
    """The arrays of a .pth file, {key: array}.

    choose({key: Lazy or such a dictionary}) -> {key: Lazy} takes what is to be read of the file's
    nested dictionaries, in which everything that is no tensor is left out; no tensor has been read
    when it is called.

    Raises ValueError with a sentence that names the file and what was refused.
    """
    path = os.fspath(path)
    size = os.path.getsize(path)
    try:
        with open(path, "rb") as file:
            if file.read(4) == b"PK\x03\x04":
                return _read_zip(file, size, choose)
            file.seek(0)
            return _read_legacy(file, size, choose)
    except Refused as error:
        raise ValueError(f"{path} was refused: {error}") from None
    except DAMAGE as error:
        raise ValueError(f"{path} is not a whole .pth file: {str(error)[:80]}") from None
