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
import zipfile
from dataclasses import dataclass

import numpy as np

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
MAX_PICKLE = 1 << 26  # bytes of a pickle without its tensors: real ones have less than 1 MiB

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


class Refused(ValueError):
    """What was met is not part of a dictionary of tensors."""


@dataclass(frozen=True)
class Global:
    module: str
    name: str


@dataclass(frozen=True)
class Storage:
    dtype: str
    key: str
    count: int


@dataclass(frozen=True)
class Lazy:
    """A tensor whose bytes are still in the file."""

    storage: Storage
    offset: int
    shape: tuple
    strides: tuple


MARK = object()


def _global(module, name):
    known = (module, name) in FUNCTIONS or (module == "torch" and name in STORAGES)
    if not known:
        raise Refused(f"it wants to call {module}.{name}, which no dictionary of tensors needs")
    return Global(module, name)


def _whole(value, what, most=1 << 48):
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise Refused(f"{what} is {str(value)[:40]}")
    return value


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
    if math.prod(shape) and last >= storage.count:
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
    return Storage(STORAGES[pid[1].name], str(pid[2]), _whole(pid[4], "the size of a storage"))


class _Machine:
    """Walks the opcodes of one pickle; `stack` holds plain values, Global, Storage and Lazy."""

    def __init__(self):
        self.stack, self.memo = [], {}

    def pop(self):
        if not self.stack:
            raise Refused("its stack is empty where something is taken")
        return self.stack.pop()

    def pop_mark(self):
        for at in range(len(self.stack) - 1, -1, -1):
            if self.stack[at] is MARK:
                items = self.stack[at + 1 :]
                del self.stack[at:]
                return items
        raise Refused("a mark is missing")

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

    def constant(self, name, arg):
        """Opcodes that push a value; True if it was one."""
        values = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
        pushed = ("INT", "BININT", "LONG", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "UNICODE")
        if name in values:
            self.stack.append(values[name])
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            self.stack.append({} if name == "EMPTY_DICT" else [])
        elif name.rstrip("128") in pushed or name in (
            "SHORT_BINSTRING",
            "BINSTRING",
            "BINBYTES",
            "SHORT_BINBYTES",
            "FLOAT",
            "STRING",
        ):
            self.stack.append(arg)
        else:
            return False
        return True

    def collect(self, name):
        """Opcodes that build containers; True if it was one."""
        if name == "MARK":
            self.stack.append(MARK)
        elif name in ("TUPLE", "LIST"):
            items = self.pop_mark()
            self.stack.append(tuple(items) if name == "TUPLE" else items)
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            items = [self.pop() for _ in range(int(name[-1]))]
            self.stack.append(tuple(reversed(items)))
        elif name == "DICT":
            items = self.pop_mark()
            self.stack.append({})
            self.set_items(items)
        elif name == "SETITEM":
            value, key = self.pop(), self.pop()
            self.set_items([key, value])
        elif name == "SETITEMS":
            self.set_items(self.pop_mark())
        elif name == "APPEND":
            self.append([self.pop()])
        elif name == "APPENDS":
            self.append(self.pop_mark())
        elif name == "POP":
            self.pop()
        else:
            return False
        return True

    def remember(self, name, arg):
        """Opcodes of the memo; True if it was one."""
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            if not self.stack:
                raise Refused("its stack is empty where something is remembered")
            self.memo[len(self.memo) if name == "MEMOIZE" else arg] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            if arg not in self.memo:
                raise Refused(f"it recalls number {arg}, which it never remembered")
            self.stack.append(self.memo[arg])
        else:
            return False
        return True

    def call(self, name, arg):
        if name == "GLOBAL":
            self.stack.append(_global(*arg.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            function, module = self.pop(), self.pop()
            self.stack.append(_global(str(module), str(function)))
        elif name == "REDUCE":
            args, function = self.pop(), self.pop()
            self.stack.append(_reduce(function, args))
        elif name == "BINPERSID":
            self.stack.append(_storage(self.pop()))
        elif name == "BUILD":
            # Attributes of a dictionary (_metadata of a state_dict): read, not kept.
            self.pop()
            if not self.stack or not isinstance(self.stack[-1], dict):
                raise Refused("it sets the attributes of something that is not a dictionary")
        else:
            raise Refused(f"it has the pickle opcode {name}")

    def run(self, stream):
        try:
            for opcode, arg, _ in pickletools.genops(stream):
                name = opcode.name
                if name == "STOP":
                    return self.pop()
                if name in ("PROTO", "FRAME"):
                    continue
                known = self.constant(name, arg) or self.collect(name) or self.remember(name, arg)
                if not known:
                    self.call(name, arg)
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


def _item_size(dtype):
    return 2 if dtype == "bf16" else np.dtype(dtype).itemsize


def _materialise(tensor, storages):
    flat = storages[tensor.storage.key]
    if 0 in tensor.shape:
        return np.zeros(tensor.shape, flat.dtype)
    step = flat.dtype.itemsize
    view = np.lib.stride_tricks.as_strided(
        flat[tensor.offset :], tensor.shape, [s * step for s in tensor.strides], writeable=False
    )
    return np.array(view, order="C")


def _lazies(value, found, depth=0):
    """All Lazy tensors in nested dictionaries, into found[key path]."""
    if depth > 8:
        raise Refused("its dictionaries are nested more than eight deep")
    for key, item in value.items():
        if isinstance(item, dict):
            _lazies(item, found.setdefault(str(key), {}), depth + 1)
        elif isinstance(item, Lazy):
            found[str(key)] = item
    return found


def _fill(tree, storages):
    return {
        k: _fill(v, storages) if isinstance(v, dict) else _materialise(v, storages)
        for k, v in tree.items()
    }


def _wanted(tree, into):
    for item in tree.values():
        if isinstance(item, dict):
            _wanted(item, into)
        else:
            before = into.setdefault(item.storage.key, item.storage)
            if before != item.storage:
                raise Refused("one storage is described in two ways")
    return into


def _read_zip(file):
    with zipfile.ZipFile(file) as archive:
        names = {i.filename: i for i in archive.infolist()}
        pickles = [n for n in names if n == "data.pkl" or n.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise Refused("it is a zip archive without a data.pkl")
        root = pickles[0].removesuffix("data.pkl")
        info = names[pickles[0]]
        if info.file_size > MAX_PICKLE or info.compress_type != zipfile.ZIP_STORED:
            raise Refused("its data.pkl is compressed or too large")
        order = names.get(root + "byteorder")
        if order and archive.read(order)[:8] != b"little":
            raise Refused("its byte order is not little-endian")
        tree = _Machine().run(io.BytesIO(archive.read(info)))
        if not isinstance(tree, dict):
            raise Refused(f"it holds a {type(tree).__name__}, not a dictionary")
        tree = _lazies(tree, {})
        storages = {}
        for key, storage in _wanted(tree, {}).items():
            member = names.get(f"{root}data/{key}")
            size = storage.count * _item_size(storage.dtype)
            if member is None or member.compress_type != zipfile.ZIP_STORED:
                raise Refused(f"the bytes of storage {key[:40]} are missing or compressed")
            if member.file_size != size:
                raise Refused(f"storage {key[:40]} has {member.file_size} bytes instead of {size}")
            storages[key] = _elements(storage.dtype, archive.read(member))
    return _fill(tree, storages)


def _read_legacy(file, size):
    stream = _Bounded(file, size)
    if _Machine().run(stream) != LEGACY_MAGIC or _Machine().run(stream) != LEGACY_PROTOCOL:
        raise Refused("it is no file that torch.save wrote")
    system = _Machine().run(stream)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Refused("its byte order is not little-endian")
    tree = _Machine().run(stream)
    if not isinstance(tree, dict):
        raise Refused(f"it holds a {type(tree).__name__}, not a dictionary")
    tree = _lazies(tree, {})
    keys = _Machine().run(stream)
    if not isinstance(keys, list):
        raise Refused("the list of its storages is missing")
    wanted, storages = _wanted(tree, {}), {}
    for key in map(str, keys):
        head = file.read(8)
        if key not in wanted or len(head) != 8:
            raise Refused(f"storage {key[:40]} is unknown or missing")
        storage = wanted[key]
        if int.from_bytes(head, "little") != storage.count:
            raise Refused(f"storage {key[:40]} has another size than its description")
        count = storage.count * _item_size(storage.dtype)
        if count > size - file.tell():
            raise Refused(f"storage {key[:40]} is cut off")
        storages[key] = _elements(storage.dtype, file.read(count))
    if set(wanted) - set(storages):
        raise Refused("the bytes of a storage are missing")
    return _fill(tree, storages)


def read_pth(path):
    """The nested dictionary of arrays in a .pth file; what is no tensor is left out.

    Raises ValueError with a sentence that names the file and what was refused.
    """
    path = os.fspath(path)
    size = os.path.getsize(path)
    try:
        with open(path, "rb") as file:
            if file.read(4) == b"PK\x03\x04":
                return _read_zip(file)
            file.seek(0)
            return _read_legacy(file, size)
    except Refused as error:
        raise ValueError(f"{path} was refused: {error}") from None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is not a whole .pth file: {str(error)[:80]}") from None
