"""A whole training step of ours against PyTorch's, interleaved in one process.

    python -m benchmarks.step [--backbone resnet18] [--batch 16] [--image-size 224] [--threads 2]
                              [--repeats 9] [--compile | --autocast] [--precision fp32|bf16]
                              [--all] [--no-memory]

Both sides take the same random images (float32, NCHW) and do forward, masked loss of two heads
(features-128-ReLU-dropout-32-ReLU-dropout-classes), backward and Adam with weight decay. Machines
are shared and noisy: one sample of each side in turn, the rate of multiply-adds in registers
measured around each, and the median of the ratios within the rounds. PyTorch runs eager with NCHW
and with channels-last memory (and torch.compile with --compile), with its fused Adam; the best of
them is the peer. Peak memory is that of a process of its own for each side (VmHWM, everything
included). Without PyTorch only our side is measured. Rows are added to benchmarks/results/step.csv;
with --autocast, where PyTorch's side is in bfloat16 as its autocast has it (channels-last), to
autocast.csv. Our side is in float32 unless --precision says otherwise.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

import numpy as np

from benchmarks import machine

HEADS = {"prognosis": 2, "severity": 4}
ADAM = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-4}
# What is promised: no backbone slower than the best PyTorch, this mean over all of them, and at
# most this share of its peak memory.
SPEED_FLOOR, MEAN_FLOOR, MEMORY_CEILING = 1.0, 1.5, 0.6


def data(options):
    """x (N,3,H,W) float32, task (N) int64, target (N) int64."""
    rng = np.random.default_rng(0)
    n, size = options.batch, options.image_size
    x = rng.standard_normal((n, 3, size, size)).astype(np.float32)
    task = np.arange(n) % len(HEADS)
    classes = np.array(list(HEADS.values()))[task]
    return x, task, rng.integers(classes)


def ours(options, name):
    """(step function, model) of our side."""
    import mdmt

    mdmt.set_num_threads(options.threads)
    how = {"image_size": options.image_size, "precision": options.precision}
    model = mdmt.Model(name, heads=HEADS, **how)
    x, task, target = data(options)
    return (lambda: model.train_step(x, task, target, **ADAM)), model


def theirs(options, name, kind):
    """Step function of PyTorch; kind: "nchw", "channels-last", "compile", or "bf16" (autocast)."""
    from tests import oracle

    torch = oracle.load("torch")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = oracle.two_heads(name).train()
    x, task, target = (torch.from_numpy(a) for a in data(options))
    if kind in ("channels-last", "bf16"):
        model = model.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), fused=True, **ADAM)
    run = torch.compile(model) if kind == "compile" else model

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bf16"):
            out = run(x)
        loss = oracle.masked_loss({k: v.float() for k, v in out.items()}, task, target)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def peers(options):
    """Names of the PyTorch sides that can be had here."""
    from tests import oracle

    if oracle.load("torch") is None or oracle.load("torchvision") is None:
        return []
    if options.autocast:
        return ["bf16"]
    return ["nchw", "channels-last"] + (["compile"] if options.compile else [])


def rate(options):
    """Multiply-add operations per second of these threads now, after the other side's threads have
    stopped spinning."""
    from mdmt import _core

    time.sleep(0.05)
    return _core.fma_rate(0.05, options.threads)


def timed(step):
    start = time.perf_counter()
    loss = step()
    seconds = time.perf_counter() - start
    if not np.isfinite(loss):
        raise SystemExit(f"the loss became {loss}: this timing is worth nothing")
    return seconds


def measure(options, name):
    """{side: [(seconds, rate around it)] per round}, and the training FLOPs of one image."""
    step, model = ours(options, name)
    sides = {"ours": step} | {kind: theirs(options, name, kind) for kind in peers(options)}
    for side in sides.values():
        for _ in range(2):
            timed(side)
    samples = {side: [] for side in sides}
    for _ in range(options.repeats):
        before = rate(options)
        for side, run in sides.items():
            seconds = timed(run)
            after = rate(options)
            samples[side].append((seconds, (before + after) / 2))
            before = after
    return samples, model.cost()["train_flops"]


def memory(options, name, side):
    """Peak resident bytes of three steps in a process of its own."""
    flags = ["--backbone", name, "--batch", str(options.batch), "--threads", str(options.threads)]
    flags += ["--image-size", str(options.image_size), "--memory-of", side]
    flags += ["--precision", options.precision]
    flags += ["--autocast"] if options.autocast else []
    command = [sys.executable, "-m", "benchmarks.step", *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])["peak"]


def report_memory(options, name):
    """Child process: three steps of one side, then its peak."""
    side = options.memory_of
    step = ours(options, name)[0] if side == "ours" else theirs(options, name, side)
    for _ in range(3):
        timed(step)
    print(json.dumps({"peak": machine.peak_memory()}))


def median_of(samples, index):
    return statistics.median(s[index] for s in samples)


def summarize(options, name, samples, flops):
    """One row of the CSV."""
    best = min((k for k in samples if k != "ours"), key=lambda k: median_of(samples[k], 0),
               default=None)  # fmt: skip
    row = {
        "cpu": machine.cpu_name(),
        "backbone": name,
        **({"precision": options.precision} if options.autocast else {}),
        "batch": options.batch,
        "image_size": options.image_size,
        "threads": options.threads,
        "repeats": options.repeats,
        "fma_gflops": round(statistics.median(r for s in samples.values() for _, r in s) / 1e9, 1),
        "ours_ms": round(1e3 * median_of(samples["ours"], 0), 1),
    }
    for kind in ("bf16",) if options.autocast else ("nchw", "channels-last", "compile"):
        found = samples.get(kind)
        row[f"torch_{kind}_ms"] = round(1e3 * median_of(found, 0), 1) if found else ""
    row["peer"] = best or ""
    row["ratio"] = row["ratio_low"] = row["ratio_high"] = row["peer_share"] = ""
    share = [flops * options.batch / s / r for s, r in samples["ours"]]
    row["ours_images_per_s"] = round(options.batch / median_of(samples["ours"], 0), 2)
    row["ours_share"] = round(statistics.median(share), 3)
    if best:
        pairs = zip(samples["ours"], samples[best])
        ratios = sorted(theirs / mine for (mine, _), (theirs, _) in pairs)
        row["ratio"] = round(statistics.median(ratios), 3)
        row["ratio_low"], row["ratio_high"] = round(ratios[0], 3), round(ratios[-1], 3)
        share = [flops * options.batch / s / r for s, r in samples[best]]
        row["peer_share"] = round(statistics.median(share), 3)
    row["ours_mb"] = row["peer_mb"] = row["memory_ratio"] = ""
    if options.memory:
        row["ours_mb"] = round(memory(options, name, "ours") / 2**20)
    if options.memory and best:
        row["peer_mb"] = round(memory(options, name, best) / 2**20)
        row["memory_ratio"] = round(row["ours_mb"] / row["peer_mb"], 3)
    return row


def show(row):
    """The row in words."""
    precision = f", {row['precision']}" if "precision" in row else ""
    text = (
        f"{row['backbone']}, batch {row['batch']}, {row['image_size']} px, {row['threads']} "
        f"threads{precision}: {row['ours_ms']} ms a step, {row['ours_images_per_s']} images/s, "
        f"{row['ours_share']:.0%} of {row['fma_gflops']} GFLOP/s"
    )
    if row["peer"]:
        times = [f"{v} ms ({k[6:-3]})" for k, v in row.items() if k.startswith("torch_") and v]
        text += (
            f"; PyTorch {', '.join(times)}: {row['ratio']} times as fast ({row['ratio_low']} to "
            f"{row['ratio_high']})"
        )
        missed = row["ratio"] < SPEED_FLOOR and row["peer"] != "bf16"
        text += f", floor {SPEED_FLOOR} MISSED" if missed else ""
    if row["ours_mb"]:
        text += f"; peak memory {row['ours_mb']} MB"
    if row["memory_ratio"]:
        text += f", {row['memory_ratio']} of PyTorch's"
    print(text, flush=True)


def show_means(rows):
    """Geometric means over the backbones, against what is promised."""
    for key, word, limit, better in (
        ("ratio", "times as fast", MEAN_FLOOR, np.greater_equal),
        ("memory_ratio", "of PyTorch's peak memory", MEMORY_CEILING, np.less_equal),
    ):
        values = [row[key] for row in rows if row[key] != ""]
        if values:
            mean = float(np.exp(np.mean(np.log(values))))
            met = "met" if better(mean, limit) else "MISSED"
            print(f"geometric mean of {len(values)}: {mean:.3f} {word} ({limit} {met})")


def main():
    parser = machine.parser("step", __doc__)
    parser.add_argument("--compile", action="store_true", help="torch.compile, too")
    parser.add_argument("--autocast", action="store_true", help="PyTorch in bfloat16 instead")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of ours")
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.precision != "fp32" and not options.autocast:
        parser.error("with --precision bf16 the peer is PyTorch's autocast: add --autocast")
    if options.memory_of:
        report_memory(options, options.backbone)
        return
    rows = []
    for name in machine.backbones(options):
        rows.append(summarize(options, name, *measure(options, name)))
        name = "autocast.csv" if options.autocast else "step.csv"
        machine.append_csv(machine.RESULTS / name, rows[-1:])
        show(rows[-1])
    if options.all:
        show_means(rows)


if __name__ == "__main__":
    main()
