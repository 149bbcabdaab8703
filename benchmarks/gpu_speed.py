"""The slices of gpu_check that measure; that module describes them."""

import os
import subprocess
import sys
import time

import numpy as np

from benchmarks import gpu_peer
from benchmarks.gpu_correct import ADAM, GREY, MASK_NET, batches, model_of
from benchmarks.gpu_peer import rate_of, torch_here

BATCH = 128
# Limit P in images/s, 224 px, bf16, of a GPU whose memory moves 4.3 TB/s (an H200, measured): the
# bytes of a step with statistics free in the convolutions, one pass that applies batch norm and
# activation forward, two backward, and concatenations in place.
LIMIT_P = {
    "densenet121": 11684, "densenet161": 5950, "densenet169": 9749, "densenet201": 7617,
    "efficientnet_b0": 21916, "efficientnet_b1_pruned": 23260, "efficientnet_es": 17866,
    "efficientnet_es_pruned": 17866, "efficientnet_lite0": 24213, "googlenet": 32720,
    "mobilenet_v2": 24464, "resnet18": 39859, "resnet34": 22398, "resnet50": 11368,
    "resnet101": 7214, "wide_resnet50_2": 6488, "shufflenet_v2_x0_5": 154566,
    "shufflenet_v2_x1_0": 81255,
}  # fmt: skip
LIMIT_BANDWIDTH = 4.3e12
# Least ratio to eager AMP.
FLOORS = {"resnet": 1.3, "wide_resnet": 1.3, "densenet": 1.6, "mobilenet": 1.5,
          "efficientnet": 1.5, "shufflenet": 3.0, "googlenet": 1.3}  # fmt: skip
KERNEL_NETS = ("resnet50", "densenet121", "efficientnet_b0", "shufflenet_v2_x1_0")
SETTINGS = (
    "MDMT_CUDA_OVERLAP=off",
    "MDMT_CUDA_OVERLAP=own",
    "MDMT_CUDA_OVERLAP=measured",
    "MDMT_CUDA_BRANCHES=off",
    "MDMT_CUDA_MIRROR=off",
)
SHARING_NETS = ("shufflenet_v2_x1_0", "resnet18")


def floor_of(name):
    return next(v for k, v in FLOORS.items() if name.startswith(k))


def our_rate(run, name, precision, count, batch, size, wait=None):
    """(images per second, model) in calls of `count` steps each; wait() before it is measured, when
    engines have been chosen."""
    model = model_of(name, run.device_name, precision, size)
    dataset, index = batches(count, batch)
    model.fit_steps(dataset, index, augment={}, **ADAM)
    if wait:
        print("ready", flush=True)
        wait()
    # Steps of ours do not wait for a processor: what compiles goes on.
    rate = rate_of(lambda: model.fit_steps(dataset, index, augment={}, **ADAM), count * batch,
                   0.2 if run.dry else 1.0)  # fmt: skip
    return rate, model


def rate_with(run, setting, name, count, batch, size):
    """our_rate in bfloat16 with a variable of the environment, NAME=VALUE."""
    variable, value = setting.split("=")
    os.environ[variable] = value
    try:
        return our_rate(run, name, "bf16", count, batch, size)[0]
    finally:
        del os.environ[variable]


def bandwidth(torch):
    """Bytes per second that a copy within the GPU's memory moves, read and written."""
    if torch is None:
        return LIMIT_BANDWIDTH
    a = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    b = torch.empty_like(a)

    def copies():
        for _ in range(10):
            b.copy_(a)
        torch.cuda.synchronize()

    return 2 * rate_of(copies, 10 * a.numel(), 0.3)


def speed(run):
    """Ours in bf16, and PyTorch eager in the same process."""
    torch = None if run.dry else torch_here()
    batch, size, count = (4, 64, 2) if run.dry else (BATCH, 224, 12)
    width = bandwidth(torch)
    run.note("memory bandwidth", "", f"{width / 1e12:.2f} TB/s", True,
             "" if torch else "assumed: PyTorch is not here")  # fmt: skip
    for name in run.backbones[: 1 if run.dry else None]:
        if run.late(f"{name} and all after it"):
            return

        run.attempt(
            name, "bf16", lambda n=name: beside_eager(run, torch, n, count, batch, size, width)
        )


def beside_eager(run, torch, name, count, batch, size, width):
    """One network in bfloat16: what run.attempt keeps. width: the memory's bytes per second."""
    ours, model = our_rate(run, name, "bf16", count, batch, size)
    planned = sum(model.memory(batch, training=True).values())
    keep_ops(run, name, step_profile(model, batch))
    del model
    share = ours / (LIMIT_P[name] * width / LIMIT_BANDWIDTH)
    text = f"{100 * share:.0f} % of limit P, planned {planned / 2**20:.0f} MiB"
    if torch is None:
        return f"{ours:.0f}", True, text
    eager, peak = gpu_peer.eager_rate(torch, name, batch, size)
    text += f", eager {eager:.0f} ({ours / eager:.2f}x, {planned / peak:.2f} of its memory)"
    return f"{ours:.0f}", ours >= floor_of(name) * eager, text


def compiled(run):
    """Ours in bf16 again, and torch.compile in a process that waits for its turn; those first that
    are compiled by now, the others while time is left."""
    if gpu_peer.folder() is None:
        run.left_out.append("PyTorch with a GPU is not here")
        return
    for name in gpu_peer.by_readiness(run.backbones, run.ends):
        if run.late(name):
            continue

        run.attempt(name, "bf16", lambda n=name: beside_compiled(run, n))


def beside_compiled(run, name):
    """One network in bfloat16 and torch.compile's: what run.attempt keeps."""
    ours, _ = our_rate(run, name, "bf16", 12, BATCH, 224)
    theirs = gpu_peer.compiled_rate(name, run.ends - time.monotonic())
    return f"{ours / theirs:.2f}", ours >= theirs / 1.1, f"{ours:.0f} and {theirs:.0f}"


def tf32(run):
    """Ours in tf32, and PyTorch eager in float32 whose products are tf32's."""
    torch = None if run.dry else torch_here()
    batch, size, count = (4, 64, 2) if run.dry else (BATCH, 224, 6)
    for name in run.backbones[: 1 if run.dry else None]:
        if run.late(f"{name} and all after it"):
            return
        run.attempt(
            name, "tf32", lambda n=name: beside_eager_tf32(run, torch, n, count, batch, size)
        )


def beside_eager_tf32(run, torch, name, count, batch, size):
    """One network in tf32: what run.attempt keeps."""
    ours, _ = our_rate(run, name, "tf32", count, batch, size)
    if torch is None:
        return f"{ours:.0f}", True, ""
    eager, _ = gpu_peer.eager_rate(torch, name, batch, size, "tf32")
    return f"{ours:.0f}", True, f"eager {eager:.0f} ({ours / eager:.2f}x)"


# ---------------------------------------------------------------- streamed images, shared GPUs

CHILD = """
import sys, time
from benchmarks import gpu_speed
class Run: device_name, dry = sys.argv[1], False
name, precision, batch, size = *sys.argv[2:4], int(sys.argv[4]), int(sys.argv[5])
print(gpu_speed.our_rate(Run, name, precision, 12, batch, size, input)[0], flush=True)
"""


def together(device, name, precision, count, batch, size):
    """Images per second of all `count` processes that train at the same time."""
    command = [sys.executable, "-c", CHILD, device, name, precision, str(batch), str(size)]
    children = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    for child in children:  # each says that it is ready
        child.stdout.readline()
    for child in children:
        child.stdin.write("\n")
        child.stdin.flush()
    return sum(float(child.communicate(timeout=60)[0].split()[-1]) for child in children)


def shared(device, name, precision, counts=(1, 2, 4), batch=16, size=128):
    """What several trainings at once gain, of small batches: one alone does not fill a GPU."""
    rates = [together(device, name, precision, count, batch, size) for count in counts]
    text = f"{', '.join(map(str, counts))} trainings at once: "
    text += ", ".join(f"{rate:.0f}" for rate in rates) + " images/s"
    return f"{rates[-1] / rates[0]:.2f}", True, text


def sharing(run):
    """What streaming costs where images do not fit, and what several trainings at once gain."""
    batch, size, count = (2, 32, 1) if run.dry else (BATCH, 224, 12)
    for name in SHARING_NETS[: 1 if run.dry else None]:
        if run.late(f"{name} and all after it"):
            return

        def streamed(name=name):
            resident, _ = our_rate(run, name, "bf16", count, batch, size)
            rate = rate_with(run, "MDMT_CUDA_STORE_MB=0", name, count, batch, size)
            return f"{rate / resident:.3f}", True, f"{rate:.0f} of {resident:.0f} images/s"

        run.attempt(f"{name}: streamed", "bf16", streamed)
        if run.dry:
            return  # no GPU for other processes

        run.attempt(f"{name}: shared", "bf16", lambda n=name: shared(run.device_name, n, "bf16"))


# ---------------------------------------------------------------- kernels


def step_profile(model, batch, augment=None):
    """[(op, kernel, seconds, bytes)] of a step, one op at a time, the best of three."""
    from mdmt.augmentation import complete

    mode = model._mode(batch, model.image_size, True, True, 1, store=True)
    dataset, index = (a[0] for a in batches(1, batch))
    how = model._samples(dataset, index) | {"step": 0, "epoch": 0}
    how |= {"masks": model._resident} if model._masks else {}
    how["augmentation"] = complete(augment or {})
    feeds = {"task": dataset.astype(np.int32), "target": np.zeros((batch, 1), np.float32)}
    moved = [op["bytes"] for op in model._network.describe(mode)]
    rounds = [model._network.profile(mode, feeds, **how) for _ in range(4)][1:]
    best = np.min([[s for _, _, s in r] for r in rounds], axis=0)
    return [(op, kernel, float(s), b) for (op, kernel, _), s, b in zip(rounds[0], best, moved)]


def kernels(run):
    """Per backbone the step recorded, plain, and the sum of its ops, and the ratio of speeds with
    other settings; then each kernel: its share of the time, and the bytes per second that it moves
    (in bfloat16)."""
    batch, size, count = (2, 32, 2) if run.dry else (BATCH, 224, 12)
    nets = [n for n in KERNEL_NETS if n in run.backbones][: 1 if run.dry else None]
    for name in nets:
        if run.late(f"{name} and all after it"):
            return

        def gaps(name=name):
            recorded, model = our_rate(run, name, "bf16", count, batch, size)
            single = rate_of(lambda: [model.fit_step(d, i, augment={}, **ADAM)
                                      for d, i in zip(*batches(count, batch))],
                             count * batch, 0.5)  # fmt: skip
            plain = rate_with(run, "MDMT_CUDA_RECORD=off", name, count, batch, size)
            for setting in SETTINGS:
                rate = rate_with(run, setting, name, count, batch, size)
                run.note(f"{name}: {setting}", "bf16", f"{rate / recorded:.3f}", True,
                         f"{rate:.0f} of {recorded:.0f} images/s")  # fmt: skip
            ops = step_profile(model, batch)
            alone = sum(s for _, _, s, _ in ops)
            times = [1e3 * batch / r for r in (recorded, single, plain)]
            text = (f"ms per step: recorded {times[0]:.3f}, one per call {times[1]:.3f}, not "
                    f"recorded {times[2]:.3f}; its ops one by one {1e3 * alone:.3f}")  # fmt: skip
            report(run, name, ops)
            if name == nets[-1]:
                grey_cost(run, model, batch, ops)
            # A recording that left gaps would not beat launches that the host waits for.
            return f"{times[0]:.3f}", run.dry or times[0] < 1e3 * alone, text

        run.attempt(f"{name}: a step", "bf16", gaps)

    def masks():
        ops = step_profile(model_of(MASK_NET if run.dry else "unet", run.device_name, "bf16", size),
                           batch)  # fmt: skip
        report(run, "unet", ops)
        return f"{1e3 * sum(s for _, _, s, _ in ops):.3f}", True, "ms, its ops one by one"

    if not run.late("unet"):
        run.attempt("unet: a step", "bf16", masks)


def keep_ops(run, name, ops):
    """Writes each op of a step, its kernel, microseconds and megabytes (in bfloat16), where rows
    are written."""
    if run.path is None:
        return
    lines = [f"{op}\t{kernel}\t{1e6 * s:.1f}\t{b / 2e6:.2f}\n" for op, kernel, s, b in ops]
    folder = run.path.parent / "ops"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.tsv").write_text("op\tkernel\tus\tMB\n" + "".join(lines))


def grey_cost(run, model, batch, ops):
    """What changes of grey values cost, beside a step's images without them."""
    contrast = step_profile(model, batch, GREY)
    others = step_profile(model, batch, GREY | {"contrast": 0})
    plain, least, most = (
        1e3 * sum(s for op, _, s, _ in of if op == "images") for of in (ops, others, contrast)
    )
    text = f"images as they are {plain:.3f} ms, changed {least:.3f}, with contrast {most:.3f}"
    run.note("grey values", "bf16", f"{most - plain:.4f} ms", True, text)


def report(run, name, ops):
    total = sum(s for _, _, s, _ in ops)
    grouped = {}
    for _, kernel, seconds, moved in ops:
        entry = grouped.setdefault(kernel, [0.0, 0.0, 0])
        entry[0] += seconds
        entry[1] += moved / 2  # counted as float32
        entry[2] += 1
    for kernel, (seconds, moved, calls) in sorted(grouped.items(), key=lambda g: -g[1][0]):
        text = f"{100 * seconds / total:.1f} % in {calls} calls, {moved / seconds / 1e9:.0f} GB/s"
        run.note(f"{name}: {kernel}", "bf16", f"{1e3 * seconds:.4f} ms", True, text)


SLICES = {"kernels": kernels, "speed": speed, "sharing": sharing, "tf32": tf32, "compile": compiled}
CASES = {
    "kernels": lambda options: [f"{n}: a step" for n in (*KERNEL_NETS, "unet")],
    "speed": lambda options: options.backbones,
    "tf32": lambda options: options.backbones,
    "compile": lambda options: options.backbones,
    "sharing": lambda options: [
        f"{n}: {what}" for n in SHARING_NETS for what in ("streamed", "shared")
    ],
}
