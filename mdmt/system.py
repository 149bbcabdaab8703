"""What the engine runs on: threads, processor, build."""

import importlib
import os
import platform
import sys
import sysconfig

from mdmt import _core


def set_num_threads(n):
    """Uses n threads (1 to 1024) in all networks from now on; the results do not depend on it."""
    _core.set_num_threads(n)


def get_num_threads():
    """Threads in use: set_num_threads, else MDMT_NUM_THREADS, else the cores of this process."""
    return _core.get_num_threads()


def cpu_path():
    """The instruction set that kernels are chosen for: "ref", "avx2" or "avx512"."""
    order = ("ref", "avx2", "avx512")
    wish = os.environ.get("MDMT_CPU") or "avx512"
    if wish not in order:
        raise ValueError(f"the environment variable MDMT_CPU is '{wish}'; use ref, avx2 or avx512")
    return order[min(order.index(wish), order.index(_core.cpu_info()["isa"]))]


def site_folders():
    """Folders in which packages of pip lie."""
    return list(dict.fromkeys(p for p in (*sys.path, sysconfig.get_paths()["purelib"]) if p))


def cudnn_candidates():
    """Files to try as cuDNN: MDMT_CUDNN alone where it is set; else pip's packages, those that a
    PyTorch brought, CUDA_HOME, and what the system's loader finds."""
    wish = os.environ.get("MDMT_CUDNN")
    if wish:
        return [wish]
    places = [os.path.join(s, "nvidia", "cudnn", "lib") for s in site_folders()]
    places += [os.path.join(s, "torch", "lib") for s in site_folders()]
    for home in filter(None, (os.environ.get(v) for v in ("CUDA_HOME", "CUDA_PATH"))):
        places += [os.path.join(home, "lib64"), os.path.join(home, "lib")]
    files = [os.path.join(p, "libcudnn.so.9") for p in places]
    return [*filter(os.path.exists, files), "libcudnn.so.9"]


def load_cudnn(module):
    """What was found, or why the backend's own convolutions are used. `module`: mdmt._cuda."""
    said = ""
    for path in cudnn_candidates():
        version, text = module.load_cudnn(path)
        if version:
            return f"{text} ({path})"
        said = said or text
    return f"no cuDNN ({said}): slower convolutions of its own"


def cuda_devices():
    """(number of GPUs that can be used, their names or why there is none)."""
    try:
        module = importlib.import_module("mdmt._cuda")
    except ModuleNotFoundError:
        return 0, "not in this build (nvcc was not found when it was made)"
    except ImportError as error:
        return 0, f"its module cannot be loaded ({error})"
    return module.devices()


def open_device(name):
    """None for "cpu", else (capsule of mdmt._cuda, ordinal) for "cuda" or "cuda:i"."""
    kind, colon, number = str(name).partition(":")
    if name == "cpu":
        return None
    if kind != "cuda" or (colon and not (number.isascii() and number.isdigit())):
        raise ValueError(f"{name!r} is not a device; use cpu, cuda or cuda:i")
    count, text = cuda_devices()
    if not count:
        raise NotImplementedError(f"the device {name!r} is not available here: {text}; use 'cpu'")
    ordinal = int(number or 0)
    if ordinal >= count:
        raise ValueError(f"there is no device {name!r}: the GPUs here are {text}")
    module = importlib.import_module("mdmt._cuda")
    load_cudnn(module)
    return module.module, ordinal


def cuda_text():
    """One line on GPUs and libraries."""
    count, text = cuda_devices()
    return f"{text}; {load_cudnn(importlib.import_module('mdmt._cuda'))}" if count else text


def show_config():
    """Prints version, build, processor, CPU path and what is known of CUDA; returns it too."""
    import numpy

    from mdmt import __version__

    cpu = _core.cpu_info()
    lines = {
        "mdmt": __version__,
        "python": f"{platform.python_version()} ({platform.machine()}, {platform.system()})",
        "numpy": numpy.__version__,
        "processor": f"{cpu['name']}, {cpu['cores']} cores usable",
        "CPU path": f"{cpu_path()} (the processor has {cpu['isa']})",
        "threads": get_num_threads(),
        "Winograd": os.environ.get("MDMT_WINOGRAD") or "on",
        "CUDA": cuda_text(),
    }
    for key, value in lines.items():
        print(f"{key:10} {value}")
    return lines
