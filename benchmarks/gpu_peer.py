"""PyTorch's side of gpu_check's speed slice: eager, and compiled by torch.compile.

torch.compile needs a minute or more of a processor for each backbone and hardly any of the GPU. So
a process for each compiles while the slices before use the GPU, at a low priority, and halts at its
first own kernel until it is called; it is stopped while something is timed elsewhere.
TORCHINDUCTOR_CACHE_DIR names a folder that keeps what was compiled.

    python -m benchmarks.gpu_peer NAME FOLDER DEVICE BATCH SIZE     (what gpu_check starts)

NAME.pid, .ready, .go, .warm, .measure, .rate and .log in FOLDER are how the two sides meet.
"""

import contextlib
import gc
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.gpu_correct import HEADS

FOLDER = "MDMT_GPU_COMPILED"  # the variable that names the folder to a slice's process
# Those that compile longest go first.
LONGEST, LONG = ("densenet1", "densenet2"), ("efficientnet", "googlenet", "resnet101")
WAIT = 60  # seconds for one that still compiles when nothing else is left to measure
GRACE = 20  # seconds more for one that has compiled


def is_installed():
    """Whether there is a PyTorch, which is not loaded."""
    return importlib.util.find_spec("torch") is not None


def torch_here():
    """PyTorch with a GPU, or None."""
    try:
        from tests import oracle

        torch = oracle.load("torch")
    except ImportError:
        return None
    return torch if torch and torch.cuda.is_available() else None


def rate_of(step, images, seconds=1.0):
    """Images per second of step(): the median of rounds, after two that warm up."""
    step()
    step()
    found, began = [], time.monotonic()
    while len(found) < 3 or time.monotonic() - began < seconds:
        start = time.monotonic()
        step()
        found.append(images / (time.monotonic() - start))
    return float(np.median(found))


def peer_steps(torch, name, device, batch, size, precision="bf16", backend=None, count=5):
    """A function that takes `count` training steps of PyTorch with channels-last memory and
    convolutions chosen by measurement, in bfloat16 autocast or, for "tf32", in float32 whose
    products are tf32's. Its images are on the GPU and normalised already: it need not load, augment
    or copy anything."""
    from tests import oracle

    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    x = torch.randn(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
    task = (torch.arange(batch) % len(HEADS)).to(device)
    target = torch.zeros(batch, dtype=torch.long, device=device)
    model = oracle.two_heads(name).train().to(device).to(memory_format=torch.channels_last)
    forward = torch.compile(model, backend=backend) if backend else model
    adam = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4, fused=True)

    def steps():
        for _ in range(count):
            adam.zero_grad(set_to_none=True)
            with torch.autocast(device.split(":")[0], torch.bfloat16, precision == "bf16"):
                out = forward(x)
            loss = oracle.masked_loss({k: v.float() for k, v in out.items()}, task, target)
            loss.backward()
            adam.step()
        if device != "cpu":
            torch.cuda.synchronize()

    return steps


def eager_rate(torch, name, batch, size, precision="bf16"):
    """(images per second, peak bytes) of PyTorch without compiling."""
    count = 5
    steps = peer_steps(torch, name, "cuda", batch, size, precision, None, count)
    steps()  # here convolutions are chosen
    torch.cuda.reset_peak_memory_stats()
    with quiet():
        rate = rate_of(steps, count * batch)
    peak = torch.cuda.max_memory_allocated()
    del steps
    gc.collect()
    torch.cuda.empty_cache()
    return rate, peak


# ---------------------------------------------------------------- the process that compiles


def halt_at_first_kernel(wait):
    """torch.compile's kernels call wait() before the first of them is tuned or runs. The backward
    pass is compiled together with the forward pass."""
    import torch._functorch.config
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner

    torch._functorch.config.force_non_lazy_backward_lowering = True
    run = CachingAutotuner.run

    def first(self, *arguments, **options):
        CachingAutotuner.run = run
        wait()
        return run(self, *arguments, **options)

    CachingAutotuner.run = first


def child(name, folder, device, batch, size):
    """Compiles, halts, measures when it is called."""
    from tests import oracle

    folder, batch, size = Path(folder), int(batch), int(size)
    torch = oracle.load("torch")
    parent = os.getppid()
    waited = []

    def meet(here, there):
        (folder / f"{name}.{here}").touch()
        while not (folder / f"{name}.{there}").exists():
            time.sleep(0.02)
            if os.getppid() != parent:
                raise SystemExit("the process that asked is gone")

    def wait():
        waited.append(name)
        meet("ready", "go")

    on_gpu = device != "cpu"
    if on_gpu:
        halt_at_first_kernel(wait)
    steps = peer_steps(torch, name, device, batch, size, "bf16", "inductor" if on_gpu else "eager")
    steps()
    if not waited:
        wait()
    steps()  # its kernels have been tuned
    meet("warm", "measure")
    rate = rate_of(steps, 5 * batch)
    made = folder / f"{name}.part"
    made.write_text(str(rate))
    made.rename(folder / f"{name}.rate")


def patience(name):
    """How nice the process that compiles it is."""
    return 8 if name.startswith(LONGEST) else 13 if name.startswith(LONG) else 19


@contextlib.contextmanager
def ahead(names, device="cuda", batch=128, size=224):
    """Lets torch.compile work on all these backbones while the body runs; their folder is named in
    the environment. Ends them all at the end."""
    with tempfile.TemporaryDirectory() as folder:
        children = {}
        cache = os.environ.get("TORCHINDUCTOR_CACHE_DIR", str(Path(folder, "cache")))
        for name in sorted(names, key=patience):
            threads = "4" if name.startswith(LONGEST) else "2"
            where = os.environ | {
                "TORCHINDUCTOR_COMPILE_THREADS": threads,
                "TORCHINDUCTOR_CACHE_DIR": cache,
                "OMP_NUM_THREADS": "1",
            }
            command = ["nice", "-n", str(patience(name)), sys.executable, "-m",
                       "benchmarks.gpu_peer", name, folder, device, str(batch),
                       str(size)]  # fmt: skip
            with Path(folder, f"{name}.log").open("w") as log:
                children[name] = subprocess.Popen(command, stdout=log, stderr=log, env=where,
                                                  start_new_session=True)  # fmt: skip
            Path(folder, f"{name}.pid").write_text(str(children[name].pid))
        os.environ[FOLDER] = folder
        try:
            yield Path(folder)
        finally:
            del os.environ[FOLDER]
            for process in children.values():
                for one in family(process.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(one, signal.SIGKILL)
            for process in children.values():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)  # one that hangs in the driver cannot be ended


# ---------------------------------------------------------------- who calls them


def folder():
    """Where the compiling processes are, or None."""
    return Path(os.environ[FOLDER]) if FOLDER in os.environ else None


def family(process):
    """The process and all that descend from it, as far as can be seen."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rsplit(")", 1)[1].split()[1])
    found = [process]
    for known in found:
        found += [child for child, parent in parents.items() if parent == known]
    return found


def hasten(process):
    """Gives a process and its descendants the usual priority, where that is allowed."""
    for one in family(process):
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, one, 0)


@contextlib.contextmanager
def quiet(but=None):
    """Stops the processes that compile, all but one, and what they started, so that they do not
    slow what is measured."""
    names = [p.stem for p in folder().glob("*.pid") if p.stem != but] if folder() else []
    processes = [one for name in names for one in family(group_of(name))]

    def send(what):
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, what)

    send(signal.SIGSTOP)
    try:
        yield
    finally:
        send(signal.SIGCONT)


def by_readiness(names, ends):
    """The names as they are compiled, or failed to be; at `ends` (of time.monotonic) the others."""
    left = list(names)
    while left:
        ready = [n for n in left if (folder() / f"{n}.ready").exists() or not alive(group_of(n))]
        if not ready and time.monotonic() < ends:
            time.sleep(0.1)
            continue
        name = (ready or left)[0]
        left.remove(name)
        yield name


def compiled_rate(name, wait=WAIT):
    """Images per second of the compiled network; None where no process was started for it."""
    where = folder()
    if where is None or not (where / f"{name}.pid").exists():
        return None
    group, ends = group_of(name), time.monotonic() + wait

    def reach(what, until):
        while not (where / f"{name}.{what}").exists():
            if not alive(group) or time.monotonic() > until:
                lines = (where / f"{name}.log").read_text().strip().splitlines()
                why = "is not done" if what == "ready" or alive(group) else "ended"
                raise RuntimeError(f"torch.compile of {name} {why}: {(lines or [''])[-1]}")
            time.sleep(0.05)

    reach("ready", ends)
    (where / f"{name}.go").touch()
    reach("warm", ends + GRACE)
    hasten(group)
    with quiet(but=name):
        (where / f"{name}.measure").touch()
        reach("rate", ends + GRACE)
    return float((where / f"{name}.rate").read_text())


def group_of(name):
    """The process that compiles it, which leads a group; 0 where none was started."""
    made = folder() / f"{name}.pid"
    return int(made.read_text()) if made.exists() else 0


def alive(process):
    """Whether it runs; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


if __name__ == "__main__":
    child(*sys.argv[1:])
