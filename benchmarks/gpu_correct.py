"""The slices of gpu_check that ask whether results are right; that module describes them."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ADAM = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-4}
# Where two backends are compared: from random weights at 1e-3, a change of 1e-7 in the weights
# alone moves a DenseNet's losses by 0.04 within ten steps on one processor; at 1e-4 by 0.002.
SMALL_STEPS = ADAM | {"lr": 1e-4}
HEADS = {"prognosis": 2, "severity": 4}
GREY = {"gamma": 0.5, "contrast": 0.4, "brightness": 0.2, "invert": 0.25, "noise": 0.1}
MASK_NET, MASK_HEADS = "unet_tiny", {"prognosis": 2, "lungs": {"loss": "dice_ce"}}
STEP_NETS = ("shufflenet_v2_x0_5", MASK_NET, "resnet18", "densenet121", "efficientnet_b0")
CHECKS = ("memcheck", "racecheck", "initcheck", "synccheck")


def table(run):
    from mdmt import _core
    from tests.opcase import check
    from tests.test_cuda_ops import CASES as TABLE
    from tests.test_cuda_ops import TENSOR, library_unit, to_bf16

    def one(case, precision):
        arrays = case.arrays()
        if precision == "bf16":
            for name, feed in case.feeds.items():
                rounded = feed.startswith(("map", "image", "w_dense", "w_stem"))
                if rounded and arrays[name].dtype == np.float32:
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
        unit = library_unit(case) if precision == "bf16" else 2.0**-10
        worst = 0.0
        for name, value in outputs.items():
            size = np.maximum(np.abs(sizes.get(name, value)), np.abs(value))
            error = np.abs(got[name].astype(np.float64) - value) / (bounds[name] + unit * size)
            worst = max(worst, float(error.max(initial=0.0)))
        return kernel, worst <= 1, f"{worst:.3g} of what rounding explains"

    for precision in run.precisions():
        for case in TABLE[:: run.options.stride]:
            if run.late(f"{precision} from {case.id} on"):
                break
            run.attempt(case.id, precision, lambda c=case, p=precision: one(c, p))
            if precision == "bf16" and case in TENSOR:  # which are chosen for larger maps alone
                with environment(MDMT_CUDA_DEPTH="tensor"):
                    run.attempt(f"{case.id}, tensor", precision, lambda c=case: one(c, "bf16"))


COLOUR = "in colour, "


def images(run):
    from tests import test_colour, test_cuda_masks, test_cuda_net

    def in_colour(name, device, samples):
        return test_colour.run(test_colour.CASES[name.removeprefix(COLOUR)], device=device)[0]

    def one(name, samples=12 if run.dry else 128):
        made, bound = lambda *how: test_cuda_masks.moved(*how)[0], test_cuda_masks.MASK_BOUND
        if name in test_cuda_net.IMAGE_CASES:
            made, bound = test_cuda_net.images, test_cuda_net.IMAGE_CASES[name][3]
        elif name.startswith(COLOUR):
            made, bound = in_colour, test_cuda_net.BOTH
        device = run.device("fp32")
        found = made(name, device, samples)
        off = float(np.abs(found - made(name, None, samples)).max())
        same = made(name, device, samples).tobytes() == found.tobytes()
        with environment(MDMT_CUDA_STORE_MB="0"):
            streamed = made(name, device, samples).tobytes() == found.tobytes()
        ok = off < bound and same and streamed
        return f"{off:.2g}", ok, f"bound {bound:.2g}; again {same}, streamed {streamed}"

    for name in image_cases(None):
        if not run.late(name):
            run.attempt(name, "fp32", lambda n=name: one(n))


def golden(run):
    import pytest

    import mdmt
    from tests import golden as runs
    from tests import test_golden

    def one(name):
        size = runs.RUNS[name][0]
        made = mdmt.Model(name, heads=test_golden.PLAIN, image_size=size, device=run.device_name)
        made.load_state_dict(runs.weights({k: v.shape for k, v in made.state_dict().items()}))
        wanted = test_golden.recorded(name)
        worst = test_golden.worst_gradient(made, name)[1]
        losses = [made.train_step(*runs.batch(name, i), **runs.ADAM) for i in range(runs.STEPS)]
        drift = float(np.abs(np.array(losses) / wanted["losses"] - 1).max())
        return f"{worst:.2g}", worst < 1e-3 and drift < 1e-3, f"losses {drift:.2g}"

    with pytest.MonkeyPatch.context() as patch:
        test_golden.add_small_networks(patch)
        for name in ("shuffle", "excited") if run.dry else runs.RUNS:
            if not run.late(name):
                run.attempt(name, "fp32", lambda n=name: one(n))


# ---------------------------------------------------------------- backbones


def resident(size, count):
    rng = np.random.default_rng(5)
    return [
        {"images": rng.integers(0, 256, (count, size, size), np.uint8), "task": k,
         "target": rng.integers(0, 2, count).astype(np.float32)} for k in range(len(HEADS))
    ]  # fmt: skip


def model_of(name, device, precision, size, count=16, weighted=False):
    import mdmt

    heads, sets = HEADS, resident(size, count)
    for one in sets if weighted else ():
        one["sample_weight"] = np.linspace(0.5, 2, count, dtype=np.float32)
    if name in mdmt.nets.segmenters():
        heads = MASK_HEADS
        sets[1]["target"] = np.uint8(sets[1]["images"] > 127) * np.uint8(255)
    model = mdmt.Model(name, heads, image_size=size, device=device, precision=precision, seed=3)
    model.attach(sets)
    return model


def relative(found, exact):
    return float(np.linalg.norm(found - exact) / (np.linalg.norm(exact) + 1e-30))


def batches(steps, batch):
    rng = np.random.default_rng(9)
    return np.tile(np.arange(batch) % len(HEADS), (steps, 1)), rng.integers(0, 16, (steps, batch))


def train(model, steps, batch, adam=ADAM, augment=None):
    return model.fit_steps(*batches(steps, batch), augment=augment or {}, **adam)[0]


def bits(model):
    return b"".join(v.tobytes() for _, v in sorted(model.state_dict().items()))


@contextlib.contextmanager
def environment(**values):
    before = {k: os.environ.get(k) for k in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})


# Weights of samples, factors of parameter groups and clipping, which add kernels of their own.
GROUPS = {"backbone": {"lr": 0.5}, "norm": {"weight_decay": 0}}
CLIP = 0.5


def recipe(device, name, size, batch, together=True, precision="fp32"):
    """(losses (steps,), model) of four steps with all of a recipe."""
    model = model_of(name, device, precision, size, weighted=True)
    model.groups, model.micro_batch = GROUPS, batch // 2
    how = dict(ADAM, clip=CLIP)
    if together:
        return train(model, 4, batch, how), model
    losses = [model.fit_step(d, i, augment={}, **how)[0] for d, i in zip(*batches(4, batch))]
    return np.array(losses), model


def steps(run):
    size, batch, count = (64, 4, 4) if run.dry else (96, 8, 14)

    def whole(name, precision):
        """Whether a recipe's steps have the bits of single ones, and are as on the processor."""
        found = [recipe(run.device_name, name, size, batch, t, precision) for t in (True, False)]
        same = bits(found[0][1]) == bits(found[1][1])
        exact = recipe("cpu", name, size, batch)[0]
        off = float(np.abs(found[0][0] / exact - 1).max())
        return same, off < {"fp32": 2e-2, "bf16": 0.1}[precision]

    def one(name, precision):
        def trained(together=True, frozen=False, **values):
            with environment(**values):
                model = model_of(name, run.device_name, precision, size)
                model.freeze_backbone(frozen)
                dataset, index = batches(count, batch)
                losses = (
                    train(model, count, batch, augment=GREY) if together else
                    [model.fit_step(d, i, augment=GREY, **ADAM)[0] for d, i in zip(dataset, index)]
                )  # fmt: skip
                state.append(model._network.recordings())
                return np.asarray(losses, np.float32).tobytes(), bits(model)

        state = []
        recorded = trained()
        same = {
            "recorded": state == [1],
            "again": trained() == recorded,
            "one by one": trained(together=False) == recorded,
            "plain": trained(MDMT_CUDA_RECORD="off") == recorded and state[-1] == 0,
            "streamed": trained(MDMT_CUDA_STORE_MB="0") == recorded,
            "starts": trained(MDMT_CUDA_OVERLAP="measured") == recorded,
            "frozen": trained(frozen=True) == trained(together=False, frozen=True),
        }
        same["recipe"], same["recipe as on the CPU"] = whole(name, precision)
        return (
            sum(same.values()),
            all(same.values()),
            ", ".join(f"{k} {v}" for k, v in same.items()),
        )

    for name in STEP_NETS[: 2 if run.dry else None]:
        for precision in ("fp32", "bf16"):
            if not run.late(f"{name} {precision}"):
                run.attempt(name, precision, lambda n=name, p=precision: one(n, p))


def resume(run):
    size, batch = (64, 4) if run.dry else (96, 8)

    def go_on(source, device, precision, folder):
        """A model on `device` in the state of `source`, through files."""
        source.save(Path(folder, "m.safetensors"))
        moments, step = source.optimizer_state()
        np.savez(Path(folder, "adam.npz"), **moments)
        model = model_of("shufflenet_v2_x0_5", device, precision, size)
        kept = type(source).load(Path(folder, "m.safetensors"))
        model.load_state_dict(kept.state_dict())
        with np.load(Path(folder, "adam.npz")) as file:
            model.load_optimizer_state(dict(file), step)
        return model

    def one(start, end, precision):
        with tempfile.TemporaryDirectory() as folder:
            first = model_of("shufflenet_v2_x0_5", start, precision, size)
            train(first, 3, batch)
            second = go_on(first, end, precision, folder)
            carried = bits(first) == bits(second)
            losses = [train(m, 3, batch) for m in (first, second)]
        off = float(np.abs(losses[0] - losses[1]).max())
        exact = start == end
        ok = carried and (off == 0 and bits(first) == bits(second) if exact else off < 2e-2)
        return f"{off:.2g}", ok, f"weights carried to the bit {carried}"

    gpu = run.device_name
    for start, end in ((gpu, gpu), ("cpu", gpu), (gpu, "cpu")):
        if not run.late(f"{start} to {end}"):
            run.attempt(f"{start} to {end}", "fp32", lambda a=start, b=end: one(a, b, "fp32"))


# ---------------------------------------------------------------- errors


def errors(run):
    import mdmt

    def too_large():
        model = model_of("resnet18", run.device_name, "fp32" if run.dry else "bf16", 224)
        batch, before = 1 << 17, bits(model)
        planned = sum(model.memory(batch, training=True).values())
        try:
            train(model, 1, batch)
        except MemoryError as error:
            sentence = str(error)
        else:
            return "", True, f"{batch} images of 224 px fit ({planned / 2**30:.0f} GiB)"
        usable = np.isfinite(train(model, 2, 4)).all() and bits(model) != before
        return f"{planned / 2**30:.0f} GiB", "GiB" in sentence and usable, sentence

    def no_device():
        try:
            mdmt.Model("resnet18", device="cuda:99")
        except ValueError as error:
            return "", "there is no device 'cuda:99'" in str(error), error
        return "", False, "cuda:99 was accepted"

    def hidden():
        code = "import mdmt; mdmt.Model('resnet18', device='cuda')"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                              env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})  # fmt: skip
        said = done.stderr.strip().splitlines()[-1]
        return "", "the device 'cuda' is not available here" in said, said

    run.attempt("no such device", "", no_device)
    run.attempt("no GPU visible", "", hidden)
    if not run.dry:
        run.attempt("out of memory", "bf16", too_large)


def interrupts(run):
    if run.dry:
        run.left_out.append("there is no GPU for another process")
        return
    small = ["--set", "backbones=[shufflenet_v2_x0_5]", "--set", "folds=[0]",
             "--set", "configurations=[STL-tau1]", "--set", "train.epochs=60",
             "--set", "train.patience=60",
             "--set", "train.checkpoint_seconds=0.3"]  # fmt: skip
    base = [sys.executable, "-m", "mdmt.run", "demo", "--device", run.device_name, *small]

    def stopped(folder, again):
        """Exit status of a run that is sent a signal as soon as it has written a checkpoint."""
        began, ends = time.time(), time.monotonic() + 30

        def written():
            return any(p.stat().st_mtime > began for p in folder.rglob("checkpoint.safetensors"))

        child = subprocess.Popen([*base, "--out", str(folder), *again], stdout=subprocess.DEVNULL,
                                 stderr=subprocess.DEVNULL)  # fmt: skip
        while child.poll() is None and time.monotonic() < ends and not written():
            time.sleep(0.02)
        child.send_signal(signal.SIGTERM)
        try:
            return child.wait(60)
        finally:
            child.kill()  # it must not go on beside what is measured later

    def one():
        with tempfile.TemporaryDirectory() as folder:
            whole, parts = Path(folder, "whole"), Path(folder, "parts")
            done = subprocess.run([*base, "--out", str(whole)], capture_output=True, text=True)
            if done.returncode:
                return done.returncode, False, done.stderr[-200:]
            statuses = [stopped(parts, again) for again in ([], ["--resume"])]
            last = subprocess.run([*base, "--out", str(parts), "--resume"], capture_output=True)
            same = [(whole / n).read_bytes() == (parts / n).read_bytes()
                    for n in ("results.csv", "predictions.csv")]  # fmt: skip
        ok = statuses == [75, 75] and last.returncode == 0 and all(same)
        return str(statuses), ok, f"results and predictions alike: {same}"

    run.attempt("signals", "fp32", one)


def sanitizer(run):
    tool = shutil.which("compute-sanitizer")
    if run.dry or not tool:
        run.left_out.append("compute-sanitizer is not here")
        return

    inside = [sys.executable, "-m", "benchmarks.gpu_check", "--inside", "--only", "table",
              "--stride", "60", "--device", run.device_name]  # fmt: skip

    def start(check, folder):
        """A process group of its own: the tool does not take what it watches down with it."""
        with Path(folder, check).open("w") as log:
            left = max(run.ends - time.monotonic() - 10, 5)
            command = [tool, "--tool", check, "--error-exitcode", "9", *inside,
                       "--out", folder, "--seconds", str(left)]  # fmt: skip
            # Races in the library's kernels are not ours to find, and watching them ends in errors
            # of the tool: all that races are searched for in is our own.
            own = {"MDMT_CUDNN": os.devnull} if check == "racecheck" else {}
            return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True,
                                    env=os.environ | own)  # fmt: skip

    def ended(child):
        try:
            return child.wait(max(run.ends + 15 - time.monotonic(), 1))
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            return "not done in time"

    def verdict(check, status, said):
        found = re.findall(r"ERROR SUMMARY: (.*)|RACECHECK SUMMARY: (.*)", said)
        cases = re.findall(r"table: (\d+ of [1-9]\d* right)", said)
        text = "".join(found[-1]) if found else said[-200:]
        right = status == 0 and bool(cases)  # a tool that came to no case has found nothing
        if not right:  # the first findings and failures in full
            lines = [line for line in said.splitlines() if re.search(r"FAILED|rror|Race|haz", line)]
            print(f"{check}:", *lines[:12], sep="\n  ", flush=True)
        return status, right, f"{text}; {cases[-1] if cases else 'no case done'}"

    with tempfile.TemporaryDirectory() as folder:
        children = {check: start(check, folder) for check in CHECKS}
        for check, child in children.items():
            status, said = ended(child), Path(folder, check).read_text()
            if status != 0 and "Device not supported" in said:  # under gVisor, say
                run.left_out.append(f"{check}: the tool does not support this device here")
                continue
            run.attempt(check, "", lambda c=check, s=status, t=said: verdict(c, s, t))


SLICES = {"table": table, "images": images, "golden": golden, "steps": steps,
          "resume": resume, "errors": errors, "interrupts": interrupts,
          "sanitizer": sanitizer}  # fmt: skip


def table_cases(options):
    from tests.test_cuda_ops import CASES as TABLE

    return [case.id for case in TABLE[:: options.stride]]


def image_cases(options):
    from tests.test_colour import CASES
    from tests.test_cuda_masks import MASK_CASES
    from tests.test_cuda_net import IMAGE_CASES

    return [*IMAGE_CASES, *MASK_CASES, *(COLOUR + name for name in CASES)]


def golden_cases(options):
    from tests.golden import RUNS

    return list(RUNS)


CASES = {
    "table": table_cases,
    "images": image_cases,
    "golden": golden_cases,
    "steps": lambda options: STEP_NETS,
    "resume": lambda options: [f"{options.device} to {options.device}", f"cpu to {options.device}",
                               f"{options.device} to cpu"],
    "errors": lambda options: ["no such device", "no GPU visible", "out of memory"],
    "interrupts": lambda options: ["signals"],
    "sanitizer": lambda options: CHECKS,
}  # fmt: skip
