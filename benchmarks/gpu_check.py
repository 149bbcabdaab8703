"""All that must be seen on a GPU, in one call: correctness, then speed; and a summary.

    python -m benchmarks.gpu_check [--device cuda:0] [--only SLICE] [--backbones NAME,...]
                                   [--seconds 540] [--list] [--emulate]

Slices: table (every kernel over the op table against its statement), nets (the backbones against
the CPU backend: features, losses of ten steps, checkpoints there and back, the same bits twice),
errors (more memory than there is), sanitizer (compute-sanitizer over small cases, where it is
installed), speed (images per second of the whole training step at batch 128, beside PyTorch's
eager AMP with channels-last memory and torch.compile in the same call). A slice that would begin
after --seconds is left out and named. Rows are added to benchmarks/results/gpu_<slice>.csv with
device and versions. --emulate runs the slices before speed on the processor, with the backend that
tests/cudahost.py builds: it proves this program, not the GPU. Exit code 1 when anything failed.
"""

import argparse
import csv
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import machine

ADAM = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-4}
HEADS = {"prognosis": 2, "severity": 4}
# How far from the CPU's float32: features relative to their size; losses of ten steps.
FEATURES = {"fp32": 1e-4, "tf32": 1e-2, "bf16": 6e-2}
LOSSES = {"fp32": 1e-2, "tf32": 3e-2, "bf16": 1e-1}


class Run:
    """The device and what was found: rows of (slice, case, precision, value, ok, text)."""

    def __init__(self, options):
        self.options, self.rows, self.left_out = options, [], []
        self.began = time.monotonic()

    def device(self, precision, library=True):
        from mdmt import system

        return (*system.open_device(self.options.device), precision, library)

    def note(self, part, case, precision, value, ok, text=""):
        self.rows.append([part, case, precision, value, int(ok), str(text)[:200]])
        if not ok:
            print(f"FAILED {part} {case} {precision}: {text or value}", flush=True)

    def try_one(self, part, case, precision, action):
        """action() -> (value, ok, text); an exception is a failure with its sentence."""
        try:
            self.note(part, case, precision, *action())
        except Exception as error:  # one case must not hide the others
            self.note(part, case, precision, "", False, f"{type(error).__name__}: {error}")

    def late(self):
        return time.monotonic() - self.began > self.options.seconds


# ---------------------------------------------------------------- op table


def table(run):
    from mdmt import _core
    from tests.opcase import check
    from tests.optable import CASES
    from tests.test_cuda_ops import BF16, to_bf16

    def one(case, precision):
        arrays = case.arrays()
        if precision == "bf16":
            for name, feed in case.feeds.items():
                if feed.startswith(("map", "w_dense")) and arrays[name].dtype == np.float32:
                    arrays[name] = to_bf16(arrays[name])
        graph, _ = case.graph(_core)
        program = _core.Program(graph, device=run.device(precision))
        got = {k: np.array(v) for k, v in program.run(arrays, seed=5, step=3).items()}
        got |= {name: np.array(program.read(name)) for name in case.reads}
        kernel = next(kernel for op, kernel in program.kernels() if op == case.op)
        if precision == "fp32":
            check(case, got, kernel)
            return kernel, True, ""
        outputs, bounds = case.expected(arrays)
        exact = {k: v.astype(float) if v.dtype == np.float32 else v for k, v in arrays.items()}
        sizes = case.magnitude(exact) if case.magnitude else {}
        unit = BF16 if precision == "bf16" else 2.0**-10
        worst = 0.0
        for name, value in outputs.items():
            size = np.maximum(np.abs(sizes.get(name, value)), np.abs(value))
            error = np.abs(got[name].astype(np.float64) - value) / (bounds[name] + unit * size)
            worst = max(worst, float(error.max(initial=0.0)))
        return kernel, worst <= 1, f"{worst:.3g} of what rounding explains"

    for precision in ("fp32", "tf32", "bf16"):
        for case in CASES[:: run.options.stride]:
            run.try_one("table", case.id, precision, lambda c=case, p=precision: one(c, p))


# ---------------------------------------------------------------- backbones


def resident(size, count):
    rng = np.random.default_rng(5)
    return [
        {"images": rng.integers(0, 256, (count, size, size), np.uint8), "task": k,
         "target": rng.integers(0, 2, count).astype(np.float32)} for k in range(len(HEADS))
    ]  # fmt: skip


def model_of(name, device, precision, size, count=16):
    import mdmt

    model = mdmt.Model(name, HEADS, image_size=size, device=device, precision=precision, seed=3)
    model.attach(resident(size, count))
    return model


def relative(found, exact):
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def train(model, steps, batch):
    rng = np.random.default_rng(9)
    losses = []
    for _ in range(steps):
        dataset = np.arange(batch) % len(HEADS)
        losses.append(model.fit_step(dataset, rng.integers(0, 16, batch), augment={}, **ADAM)[0])
    return np.array(losses)


def nets(run):
    size, batch, steps = (64, 8, 2) if run.options.emulate else (96, 8, 10)
    dataset, index = np.arange(batch) % len(HEADS), np.arange(batch)
    for name in run.options.backbones:
        here = model_of(name, "cpu", "fp32", size)
        features = here.predict(dataset, index)["features"]
        state, losses = here.state_dict(), train(here, steps, batch)

        def one(precision, name=name, features=features, losses=losses, state=state):
            there = model_of(name, run.options.device, precision, size)
            there.load_state_dict(state)
            off = relative(there.predict(dataset, index)["features"], features)
            found = train(there, steps, batch)
            again = model_of(name, run.options.device, precision, size)
            again.load_state_dict(state)
            same = train(again, steps, batch).tobytes() == found.tobytes()
            with tempfile.TemporaryDirectory() as folder:
                there.save(Path(folder, "m.safetensors"))
                back = type(there).load(Path(folder, "m.safetensors")).state_dict()
            kept = all(np.array_equal(v, back[k]) for k, v in there.state_dict().items())
            drift = float(np.abs(found - losses).max())
            ok = off < FEATURES[precision] and drift < LOSSES[precision] and same and kept
            return f"{off:.3g}", ok, f"losses {drift:.3g}, same bits {same}, checkpoint {kept}"

        for precision in ("fp32", "bf16") if run.options.emulate else ("fp32", "tf32", "bf16"):
            run.try_one("nets", name, precision, lambda p=precision, f=one: f(p))


# ---------------------------------------------------------------- errors, sanitizer


def errors(run):
    import mdmt

    def too_large():
        model = mdmt.Model("resnet18", HEADS, device=run.options.device, precision="bf16")
        x = np.zeros((4096, 3, 224, 224), np.float32)
        try:
            model.train_step(x, np.zeros(4096, np.int64), np.zeros(4096), **ADAM)
        except MemoryError as error:
            return "", "GiB" in str(error), error
        return "", True, "4096 images of 224 px fit"

    if not run.options.emulate:
        run.try_one("errors", "out of memory", "bf16", too_large)


def sanitizer(run):
    tool = shutil.which("compute-sanitizer")
    if run.options.emulate or not tool:
        print("sanitizer: left out, compute-sanitizer is not here")
        return

    def one(check):
        inside = [sys.executable, "-m", "benchmarks.gpu_check", "--only", "table", "--stride", "40"]
        command = [tool, "--tool", check, "--error-exitcode", "9", *inside]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        return done.returncode, done.returncode == 0, done.stdout[-200:]

    for check in ("memcheck", "racecheck", "initcheck"):
        run.try_one("sanitizer", check, "", lambda c=check: one(c))


# ---------------------------------------------------------------- speed


def best_of(step, wait, batch, seconds=2.0):
    """Images per second: the fastest of the rounds that fit."""
    for _ in range(3):
        step()
    wait()
    best, began = 0.0, time.monotonic()
    while time.monotonic() - began < seconds:
        start = time.monotonic()
        for _ in range(5):
            step()
        wait()
        best = max(best, 5 * batch / (time.monotonic() - start))
    return best


def peers(name, batch, size):
    """{kind: images per second} of PyTorch with bfloat16 autocast; empty where it is not here."""
    try:
        from tests import oracle

        torch = oracle.load("torch")
    except ImportError:
        return {}
    found = {}
    x = torch.randn(batch, 3, size, size, device="cuda").to(memory_format=torch.channels_last)
    task, target = torch.arange(batch) % len(HEADS), torch.zeros(batch, dtype=torch.long)
    for kind in ("eager", "compile"):
        model = oracle.two_heads(name).train().cuda().to(memory_format=torch.channels_last)
        forward = torch.compile(model) if kind == "compile" else model
        adam = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4, fused=True)

        def step(forward=forward, adam=adam):
            adam.zero_grad(set_to_none=True)
            with torch.autocast("cuda", torch.bfloat16):
                out = forward(x)
            loss = oracle.masked_loss({k: v.float() for k, v in out.items()}, task, target)
            loss.backward()
            adam.step()

        found[kind] = best_of(step, torch.cuda.synchronize, batch)
    return found


def speed(run):
    if run.options.emulate:
        print("speed: left out, there is nothing to measure without a GPU")
        return
    batch, size = 128, 224
    dataset, index = np.arange(batch) % len(HEADS), np.arange(batch) % 16
    for name in run.options.backbones:
        for precision in ("bf16", "tf32"):

            def one(name=name, precision=precision):
                model = model_of(name, run.options.device, precision, size)
                # fit_step returns the loss: the work is done when it does.
                rate = best_of(lambda: model.fit_step(dataset, index, augment={}, **ADAM),
                               lambda: None, batch)  # fmt: skip
                others = peers(name, batch, size) if precision == "bf16" else {}
                text = ", ".join(f"{k} {v:.0f} ({rate / v:.2f}x)" for k, v in others.items())
                return f"{rate:.0f}", True, text

            run.try_one("speed", name, precision, one)
        if run.late():
            run.left_out.append(f"speed after {name}")
            return


SLICES = {"table": table, "nets": nets, "errors": errors, "sanitizer": sanitizer, "speed": speed}


def write(run):
    from mdmt import __version__, system

    where = system.cuda_text()
    for part in SLICES:
        rows = [r for r in run.rows if r[0] == part]
        if rows and not run.options.emulate:
            path = machine.RESULTS / f"gpu_{part}.csv"
            path.parent.mkdir(exist_ok=True)
            fresh = not path.exists()
            with path.open("a", newline="") as file:
                out = csv.writer(file)
                if fresh:
                    out.writerow(["slice", "case", "precision", "value", "ok", "text", "device",
                                  "mdmt", "when"])  # fmt: skip
                out.writerows([*r, where, __version__, time.strftime("%F %T")] for r in rows)
        if rows:
            bad = sum(not r[4] for r in rows)
            print(f"{part}: {len(rows) - bad} of {len(rows)} right")
    for name in run.left_out:
        print(f"left out for want of time: {name}")


def main(arguments=None):
    import mdmt

    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--only", choices=SLICES)
    parser.add_argument("--backbones", default=",".join(mdmt.backbones()))
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--stride", type=int, default=1, help="every n-th case of the op table")
    parser.add_argument("--list", action="store_true", help="names slices and cases, runs nothing")
    parser.add_argument("--emulate", action="store_true")
    options = parser.parse_args(arguments)
    options.backbones = options.backbones.split(",")
    if options.list:
        from tests.optable import CASES

        names = {"table": [c.id for c in CASES[:: options.stride]], "errors": ["out of memory"],
                 "sanitizer": ["memcheck", "racecheck", "initcheck"]}  # fmt: skip
        for part in SLICES:
            for case in names.get(part, options.backbones):
                print(part, case)
        return 0
    if options.emulate:
        from tests import cudahost

        sys.modules["mdmt._cuda"] = cudahost.module()
        os.environ.setdefault("MDMT_CUDNN", os.devnull)
    run = Run(options)
    for part, action in SLICES.items():
        if options.only not in (None, part):
            continue
        if run.late():
            run.left_out.append(part)
            continue
        action(run)
    write(run)
    return int(any(not r[4] for r in run.rows))


if __name__ == "__main__":
    raise SystemExit(main())
