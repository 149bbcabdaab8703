"""The CUDA backend without a GPU: csrc/cuda compiled by a C++ compiler, so that the same kernels,
index arithmetic, layouts and launch sizes run on the processor (csrc/cuda/target.cuh), beside a
stand-in for the CUDA runtime (tests/c/fake_cuda) that has streams, events and recordings.

    from tests import cudahost
    device = cudahost.device("fp32")        # for _core.Program(graph, device=device)
"""

import ctypes
import functools
import hashlib
import importlib.machinery
import importlib.util
import os
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent
CUDA, MODULE = TOP / "csrc" / "cuda", TOP / "csrc" / "py" / "cuda" / "module.c"
RUNTIME = TOP / "tests" / "c" / "fake_cuda"
# With the sanitizers of MDMT_SANITIZE, for a Python that has them loaded.
SANITIZE = os.environ.get("MDMT_SANITIZE", "")
FLAGS = "-O2 -fPIC -fvisibility=hidden -fno-strict-aliasing -ffp-contract=off -Wall -Wextra -Werror"

if SANITIZE:
    FLAGS += f" -g -fsanitize={SANITIZE} -fno-sanitize-recover=undefined -Wno-maybe-uninitialized"


def compilers():
    """Commands of the C++ and the C compiler, or None."""
    found = []
    for variable, names in (("CXX", ("c++", "g++", "clang++")), ("CC", ("cc", "gcc", "clang"))):
        wish = shlex.split(os.environ.get(variable, ""))
        for command in ([wish] if wish else []) + [[n] for n in names]:
            if shutil.which(command[0]):
                found.append(command)
                break
    return found if len(found) == 2 else None


def sources():
    return [*sorted(CUDA.glob("*.cu")), RUNTIME / "fake_cuda.cpp", MODULE]


def fingerprint():
    digest = hashlib.sha256(FLAGS.encode())
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
        command = [*how, *FLAGS.split(), "-c", str(source), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, env=plain)
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr}"
        return str(made)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources()))
    target = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    how = [f"-fsanitize={SANITIZE}"] if SANITIZE else []
    subprocess.run(
        [*cxx, *how, "-shared", *objects, "-ldl", "-o", str(target)], check=True, env=plain
    )
    return target


@functools.cache
def module():
    """The module `_cuda` that runs on the processor; built once for these sources."""
    if compilers() is None:
        pytest.skip("no C++ compiler is here: the CUDA kernels cannot be run on the processor")
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
    made = load(place / name)
    assert made.emulated == 1
    return made


def load(path):
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


def device(precision="fp32", ordinal=0):
    """Own kernels only."""
    return (module().module, ordinal, precision, False)
