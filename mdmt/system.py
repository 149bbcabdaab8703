"""What the engine runs on: threads, processor, build."""

import glob
import importlib
import os
import platform
import re
import sys
import sysconfig
import threading
import time
import warnings

from mdmt import _core
from mdmt.checked import integer
from mdmt.errors import NoSpace
from mdmt.paths import cache_folder, digest, write_atomic


def set_num_threads(n: int) -> None:
    """Uses n threads (1 to 1024) in all networks from now on; the results do not depend on it.

    ValueError otherwise. MDMT_NUM_THREADS says it for the whole process."""
    _core.set_num_threads(integer("the number of threads", n))


def get_num_threads():
    """Threads in use: set_num_threads, else MDMT_NUM_THREADS, else the cores of this process."""
    return _core.get_num_threads()


def peak_memory():
    """Largest resident size of this process so far in bytes."""
    try:
        with open("/proc/self/status") as stream:
            for line in stream:
                if line.startswith("VmHWM"):  # ru_maxrss may be what this process ran before it
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # bytes there, KiB elsewhere


def limit_memory(most):
    """Lets this process have no more than `most` bytes and leave no core dump: the limit is the
    address space, where the system can limit that. macOS cannot (it refuses any limit below the
    hundreds of GB that every process maps); there a thread ends the process once it was larger."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform != "darwin":
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        return

    def watch():
        while peak_memory() <= most:
            time.sleep(0.05)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


GPU_ALONE = ("tf32",)  # precisions that no CPU has
CPU_ALONE = ("fp32-direct",)


CPU_PATHS = ("ref", "avx2", "avx512", "neon")


def cpu_path():
    """The instruction set that kernels are chosen for: "ref" or, on x86-64, "avx2" or "avx512", on
    aarch64 "neon". MDMT_CPU can lower it, but not raise it."""
    paths = _core.cpu_info()["paths"]
    wish = os.environ.get("MDMT_CPU") or paths[-1]
    if wish not in CPU_PATHS:
        raise ValueError(
            f"the environment variable MDMT_CPU is '{wish}'; use ref, avx2, avx512 or neon"
        )
    return wish if wish in paths else paths[-1]


def winograd():
    """The largest tile of Winograd convolutions: "on", or what MDMT_WINOGRAD lowers it to."""
    wish = os.environ.get("MDMT_WINOGRAD")
    if wish and wish not in ("off", "2", "4"):
        raise ValueError(f"the environment variable MDMT_WINOGRAD is '{wish}'; use off, 2 or 4")
    return wish or "on"


def cpu_has_bf16():
    """Whether the CPU has the precision bf16: a build and a processor with AVX512-BF16, within what
    MDMT_CPU allows."""
    return bool(_core.cpu_info()["bf16"]) and cpu_path() == "avx512"


def cpu_has(precision):
    """Whether the CPU can compute in a precision of Model."""
    return precision not in GPU_ALONE and (precision != "bf16" or cpu_has_bf16())


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


TUNING_FORMAT = "mdmt engines 2"
_kept = {}  # identity: choices that were measured when the file was last written


def tuning_file(identity):
    """Where the measured choices for a kind of device, driver and cuDNN are kept."""
    return cache_folder() / "cuda" / f"engines-{digest(identity, 16)}.txt"


def read_tuning(path, identity):
    """The choices in a file as {convolution: line}; empty, with a warning, where it is damaged."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        warnings.warn(f"{path}: cannot be read ({error}); engines are measured anew", stacklevel=2)
        return {}
    lines = text.splitlines()
    if re.fullmatch(r"mdmt engines \d+", lines[0] if lines else "") and lines[0] != TUNING_FORMAT:
        return {}  # another version's
    if lines[:2] != [TUNING_FORMAT, identity] or lines[-1:] != [f"end {len(lines) - 3}"]:
        warnings.warn(f"{path}: is damaged; engines are measured anew", stacklevel=2)
        return {}
    return {" ".join(line.split(" ")[:-4]): line for line in lines[2:-1]}


def load_tuning(module, ordinal):
    """Hands the module the choices of engines that were measured before. `module`: mdmt._cuda."""
    identity, _, measured = module.tuning(ordinal)
    if not identity or identity in _kept:
        return
    _kept[identity] = measured
    path = tuning_file(identity)
    lines = read_tuning(path, identity)
    if module.take_tuning(ordinal, "".join(f"{line}\n" for line in lines.values())) < 0:
        warnings.warn(f"{path}: is damaged; engines are measured anew", stacklevel=2)


def keep_tuning(module, ordinal):
    """Writes the choices to the cache folder when there are new ones, beside those that other
    processes wrote; where that fails, they are measured again the next time."""
    identity, text, measured = module.tuning(ordinal)
    if not identity or measured == _kept.get(identity):
        return
    _kept[identity] = measured
    path = tuning_file(identity)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lines = read_tuning(path, identity)
    lines |= {" ".join(line.split(" ")[:-4]): line for line in text.splitlines()}
    try:
        write_atomic(path, "\n".join([TUNING_FORMAT, identity, *lines.values(),
                                      f"end {len(lines)}", ""]))  # fmt: skip
    except (OSError, NoSpace) as error:
        warnings.warn(f"measured engines are not kept: {error}", stacklevel=2)


def cuda_devices():
    """(number of GPUs that can be used, their names or why there is none)."""
    try:
        module = importlib.import_module("mdmt._cuda")
    except ModuleNotFoundError:
        return 0, "not in this build (made without an nvcc that works, or with MDMT_CUDA=skip)"
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
    load_tuning(module, ordinal)
    return module.module, ordinal


def choose_device(name, precision="fp32"):
    """The device that `name` means on this machine: "auto" is a GPU where one can be used, with
    cuDNN, if GPUs have the `precision`; else the CPU. Of several GPUs, "cuda" means
    another one for each slot of a runner (MDMT_SLOT). Raises what open_device raises."""
    count, _ = cuda_devices() if name in ("auto", "cuda") else (0, "")
    if name == "auto":
        module = sys.modules.get("mdmt._cuda")
        able = count and precision not in CPU_ALONE
        fit = able and not load_cudnn(module).startswith("no ")
        name = "cuda" if fit else "cpu"
    open_device(name)
    slot = os.environ.get("MDMT_SLOT", "")
    if name == "cuda" and count > 1 and slot.isdigit():
        return f"cuda:{int(slot) % count}"
    return name


def device_for(name, precision):
    """choose_device for a training in `precision`. Raises ValueError where the device that is left
    does not have it."""
    device = choose_device(name, precision)
    if device == "cpu" and precision in GPU_ALONE:
        asked = name == "cpu"
        why = "the CPU was asked for" if asked else f"none can be used here: {cuda_text()}"
        raise ValueError(f"precision {precision} needs a GPU, but {why}; use precision fp32")
    if device == "cpu" and not cpu_has(precision):
        raise ValueError(
            "precision bf16 needs a GPU or a processor with AVX512-BF16, and neither can be used "
            f"here (CPU path {cpu_path()}; {cuda_text()}); use precision fp32"
        )
    if device != "cpu" and precision in CPU_ALONE:
        raise ValueError(f"precision {precision} is for the CPU; use fp32 or --device cpu")
    return device


def device_to_measure(name, precision):
    """(device, precision) with which to measure here what is to run elsewhere or later: fp32 on
    this processor where no GPU can be used."""
    try:
        return device_for(name, precision), precision
    except (ValueError, NotImplementedError):
        return "cpu", precision if precision in CPU_ALONE else "fp32"


def cuda_text():
    """One line on GPUs and libraries."""
    count, text = cuda_devices()
    return f"{text}; {load_cudnn(importlib.import_module('mdmt._cuda'))}" if count else text


def device_text(name, device, precision="fp32"):
    """One line on the `device` that choose_device made of `name`; where a GPU is there but left
    unused, why."""
    if device != "cpu":
        text = cuda_text()
        one = re.search(rf"\b{device} .*?(?=, cuda:\d+ |; )", text)
        if ":" in device and one:
            return f"on {one[0]}{text[text.index('; ') :]}"
        return f"on {text}"
    if name == "cpu":
        return "on the CPU, as asked"
    count, text = cuda_devices()
    if count and precision in CPU_ALONE:
        return f"on the CPU, not on {text}: precision {precision} is for the CPU; fp32 is for both"
    if count:
        missing = load_cudnn(importlib.import_module("mdmt._cuda"))
        return (
            f"on the CPU, not on {text}: {missing}; pip install 'mdmt[cuda]' brings it, "
            "--device cuda does without"
        )
    if glob.glob("/dev/nvidia[0-9]*"):
        return f"on the CPU; the NVIDIA GPU here cannot be used: {text}"
    return "on the CPU"


def show_config() -> dict:
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
        "bfloat16": "on the CPU" if cpu_has_bf16() else "not on the CPU (no AVX512-BF16)",
        "threads": get_num_threads(),
        "Winograd": winograd(),
        "CUDA": cuda_text(),
    }
    for key, value in lines.items():
        print(f"{key:10} {value}")
    return lines
