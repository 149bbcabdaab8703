"""The CUDA backend without a GPU: csrc/cuda compiled by a C++ compiler, so that the same kernels,
index arithmetic, layouts and launch sizes run on the processor (csrc/cuda/target.cuh), beside a
stand-in for the CUDA runtime (tests/c/fake_cuda) that has streams, events and recordings.

    from tests import cudahost
    device = cudahost.device("fp32")        # for _core.Program(graph, device=device)
"""

import ctypes
import functools
import gc
import hashlib
import importlib.machinery
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent
CUDA, MODULE = TOP / "csrc" / "cuda", TOP / "csrc" / "py" / "cuda" / "module.c"
RUNTIME = TOP / "tests" / "c" / "fake_cuda"
# With the sanitizers of MDMT_SANITIZE, for a Python that has them loaded; "races": with each access
# of a kernel to memory reported to fake_cuda/races.cpp, and checks of alignment, for any Python.
SANITIZE = os.environ.get("MDMT_SANITIZE", "")
RACES = SANITIZE == "races"
FLAGS = "-O2 -fPIC -fvisibility=hidden -fno-strict-aliasing -ffp-contract=off -Wall -Wextra -Werror"

PROGRAM_FLAGS = "-std=c++17 -O2 -fno-strict-aliasing -Wall -Wextra -Werror"
LINKED = ["-fsanitize=undefined"] if RACES else [f"-fsanitize={SANITIZE}"] if SANITIZE else []

if SANITIZE:
    FLAGS += " ".join(["", "-g", *LINKED, "-fno-sanitize-recover=undefined"])
    FLAGS += " -Wno-maybe-uninitialized"


def compilers():
    """Commands of the C++ and the C compiler, or None; none on a Mac, where no CUDA is."""
    if sys.platform == "darwin":
        return None
    found = []
    for variable, names in (("CXX", ("c++", "g++", "clang++")), ("CC", ("cc", "gcc", "clang"))):
        wish = shlex.split(os.environ.get(variable, ""))
        for command in ([wish] if wish else []) + [[n] for n in names]:
            if shutil.which(command[0]):
                found.append(command)
                break
    return found if len(found) == 2 else None


def sources():
    races = [RUNTIME / "races.cpp"] if RACES else []
    return [*sorted(CUDA.glob("*.cu")), RUNTIME / "fake_cuda.cpp", *races, MODULE]


def fingerprint():
    digest = hashlib.sha256(f"{FLAGS} {SANITIZE}".encode())
    inside = [p for p in (TOP / "csrc").rglob("*") if p.suffix in (".h", ".cuh", ".cu")]
    for path in sorted([*inside, MODULE, *RUNTIME.iterdir()]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def compile_into(folder):
    """folder/_cuda<suffix>; raises CalledProcessError."""
    cxx, cc = compilers()
    include = [f"-I{sysconfig.get_paths()['include']}"]
    runtime = [f"-I{RUNTIME}"]
    plain = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}  # of a sanitizer

    def compile_one(source):
        made = folder / f"{source.stem}.o"
        how = [*cc, "-std=c11", *include]
        if source != MODULE:
            how = [*cxx, *runtime, "-x", "c++", "-std=c++17"]
        if RACES and source.suffix == ".cu":
            how += ["-fsanitize=thread"]  # the calls alone: nothing of that name is linked
        command = [*how, *FLAGS.split(), "-c", str(source), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, env=plain)
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr}"
        return str(made)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources()))
    target = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run(
        [*cxx, *LINKED, "-shared", *objects, "-ldl", "-o", str(target)], check=True, env=plain
    )
    return target


def said_by(folder, source, *more, watched=False):
    """What a C++ program prints that includes csrc/cuda: its source and, as they are, `more`.
    watched: with the calls that races.cpp takes in the source."""
    if compilers() is None:
        pytest.skip("no C++ compiler for Linux is here: the CUDA backend's code cannot be run")
    how = [*compilers()[0], *PROGRAM_FLAGS.split()]
    how += [f"-I{TOP}", f"-I{RUNTIME}"]
    watch = ["-fsanitize=thread"] if watched else []
    made, program = folder / f"{Path(source).stem}.o", folder / Path(source).stem
    for step in (
        [*how, *watch, "-c", str(source), "-o", str(made)],
        [*how, *map(str, more), str(made), "-o", str(program)],
    ):
        done = subprocess.run(step, capture_output=True, text=True)
        assert done.returncode == 0, f"{shlex.join(step)}\n{done.stderr}"
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert done.returncode in (0, 1), f"{program}: {done.returncode} {done.stderr}"
    return done.stdout


def compiled():
    """Path of the module `_cuda` that runs on the processor; built once for these sources."""
    place = Path(tempfile.gettempdir()) / f"mdmt-cuda-on-cpu-{os.getuid()}-{fingerprint()}"
    name = f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not (place / name).exists():
        work = Path(tempfile.mkdtemp(prefix="mdmt-cuda-"))
        try:
            made = compile_into(work)
            place.mkdir(exist_ok=True)
            shutil.copy2(made, place / f"{name}.{os.getpid()}")
            (place / f"{name}.{os.getpid()}").replace(place / name)
        finally:
            shutil.rmtree(work)
    return place / name


@functools.cache
def module():
    """The module `_cuda` that runs on the processor."""
    if compilers() is None:
        pytest.skip("no C++ compiler for Linux is here: no CUDA kernel can be run")
    made = load(compiled())
    assert made.emulated == 1
    return made


loaded = []  # paths of modules


def load(path):
    loaded.append(str(path))
    loader = importlib.machinery.ExtensionFileLoader("_cuda", str(path))
    spec = importlib.util.spec_from_file_location("_cuda", path, loader=loader)
    made = importlib.util.module_from_spec(spec)
    loader.exec_module(made)
    return made


def knobs(made=None):
    """set(name, value) and get(name) of the stand-in for the CUDA runtime inside the module `made`
    (tests/c/fake_cuda/fake_cuda.cpp names them); set("reset", 0) puts all back."""
    library = ctypes.CDLL((made or module()).__file__)
    library.fake_cuda_set.argtypes = [ctypes.c_char_p, ctypes.c_longlong]
    library.fake_cuda_get.argtypes = [ctypes.c_char_p]
    library.fake_cuda_get.restype = ctypes.c_longlong

    def put(name, value):
        assert library.fake_cuda_set(name.encode(), value) == 0, name

    return put, lambda name: library.fake_cuda_get(name.encode())


def while_recording(action, made=None):
    """Has another thread do action() within the next recording, which waits for it; list of what
    it returned or raised, filled then."""
    library, said = ctypes.CDLL((made or module()).__file__), []

    def attempt():
        try:
            said.append(action())
        except Exception as error:
            said.append(error)

    def other():
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()

    call = ctypes.CFUNCTYPE(None)(other)
    calls.append(call)  # for as long as it may be called
    library.fake_cuda_beside(call)
    return said


calls = []


def races():
    """Races among the threads of kernels so far, and accesses to what is not the device's memory;
    and a sentence on the first of them; (0, "") where nobody looks for them."""
    total, said = 0, ""
    for path in loaded if RACES else []:
        text = ctypes.c_char_p(b"")
        look = ctypes.CDLL(path).fake_cuda_races
        look.restype = ctypes.c_longlong
        total += look(ctypes.byref(text))
        said = said or text.value.decode()
    return total, said


@pytest.fixture
def gpu(monkeypatch):
    """(set, get) of the stand-in for the CUDA runtime; mdmt._cuda is the build that uses it."""
    put, get = knobs()
    put("reset", 0)
    monkeypatch.setitem(sys.modules, "mdmt._cuda", module())
    yield put, get
    gc.collect()
    put("reset", 0)


@pytest.fixture(autouse=True)
def no_race():
    """For every test of a module that names it: no kernel may have had a race, or have touched
    what is not the device's memory."""
    before, _ = races()
    yield
    after, first = races()
    assert after == before, first


def device(precision="fp32", ordinal=0):
    """Own kernels only."""
    return (module().module, ordinal, precision, False)
