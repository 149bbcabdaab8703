"""All that must be seen on a GPU, in one call: correctness, then speed; and a summary.

    python -m benchmarks.gpu_check [--device cuda:0] [--only SLICE,...] [--backbones NAME,...]
                                   [--precisions fp32,...] [--seconds 540] [--stride N]
                                   [--list] [--dry]

Slices, each in a process of its own with its own limit of time, so that a lost device, a crash or
a hang takes one slice and not the rest. Those that ask whether results are right run at the same
time, the others after them, in this order:

    table       every kernel over the op table against its statement, in fp32, tf32 and bf16
    images      augmented images, grey values changed and not, against the CPU's; same bits again
    golden      small networks against PyTorch's float64 figures on file: gradients, ten losses
    steps       recorded steps against plain ones, one by one, with streamed images, with starts of
                kernels that are tried out, with a frozen backbone, with sample weights, parameter
                groups and clipping: same bits
    nets        the 18 backbones and a network for masks against the CPU backend: features, masks,
                gradients, ten losses
    resume      checkpoints from the CPU to the GPU and back, and GPU to GPU to the same bits
    errors      more memory than there is, devices that are none: one sentence, all usable after it
    interrupts  a study on the GPU stopped by a signal (exit status 75) and resumed: same results
    sanitizer   compute-sanitizer over small cases, where it is installed
    speed       images per second of the whole step at batch 128 in bf16, beside PyTorch's eager AMP
                with channels-last memory; share of limit P; memory of both
    sharing     images that are streamed instead of kept on the GPU; several trainings at once
    kernels     time of each kernel of a step against the bytes it moves; gaps between launches
    tf32        speed in tf32, beside eager
    compile     speed in bf16, beside torch.compile, which has compiled since the beginning

One call of nine minutes has time for all that asks for results and for speed, but not for tf32 (10
s a backbone) and compile (15 s, after some minutes of 16 cores) of all: these need a call of their
own, or several with --backbones.

Rows are added to benchmarks/results/gpu_<slice>.csv as they come, with device, driver and versions.
What a limit cuts off is named at the end. --dry runs the same logic on the processor, with the
backend that tests/cudahost.py builds and fewer, smaller cases: it proves this program, not the GPU,
and writes to --out alone. Exit status 1 when anything failed.
"""

import argparse
import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks import gpu_correct, gpu_nets, gpu_peer, gpu_speed, machine

# seconds that a slice may take, and what those after it do not need; those of AT_ONCE run at the
# same time, and may take the longest
LIMITS = {
    "table": 130, "images": 130, "golden": 130, "steps": 130, "nets": 130, "resume": 130,
    "errors": 130, "interrupts": 130, "sanitizer": 130, "speed": 160, "sharing": 25,
    "kernels": 40, "tf32": 60, "compile": 125,
}  # fmt: skip
PRECISIONS = ("fp32", "tf32", "bf16")
COLUMNS = ["slice", "case", "precision", "value", "ok", "text", "device", "mdmt", "when"]


class Run:
    """The device, and where findings go: rows of (slice, case, precision, value, ok, text)."""

    def __init__(self, options, part, limit):
        self.options, self.part = options, part
        self.dry, self.device_name = options.dry, options.device
        self.backbones = options.backbones
        self.rows, self.left_out = [], []
        self.ends = time.monotonic() + limit
        self.where = None
        folder = Path(options.out) if options.out else machine.RESULTS
        self.path = folder / f"gpu_{part}.csv" if options.out or not options.dry else None

    def device(self, precision, library=True):
        """What _core.Program and Network take as `device`."""
        from mdmt import system

        return (*system.open_device(self.device_name), precision, library)

    def precisions(self):
        """Those of this run; a dry one leaves tf32 out, which is fp32 there."""
        return [p for p in self.options.precisions if not (self.dry and p == "tf32")]

    def late(self, what=""):
        """Whether the slice's time is up; `what` is then named as left out."""
        if time.monotonic() < self.ends:
            return False
        if what:
            self.left_out.append(what)
        return True

    def note(self, case, precision, value, ok, text=""):
        """Keeps a row, on disk at once."""
        row = [self.part, case, precision, value, int(ok), " ".join(str(text).split())[:300]]
        self.rows.append(row)
        if not ok:
            print(f"FAILED {self.part} {case} {precision}: {text or value}", flush=True)
        if self.path is None:
            return
        if self.where is None:
            from mdmt import __version__, system

            self.where = [system.cuda_text(), __version__]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = not self.path.exists()
        with self.path.open("a", newline="") as file:
            out = csv.writer(file)
            if fresh:
                out.writerow(COLUMNS)
            out.writerow([*row, *self.where, time.strftime("%F %T")])

    def attempt(self, case, precision, action):
        """action() -> (value, ok, text); an exception is a failure with its sentence."""
        try:
            self.note(case, precision, *action())
        except Exception as error:  # one case must not hide the others
            self.note(case, precision, "", False, f"{type(error).__name__}: {error}")


AT_ONCE = {**gpu_correct.SLICES, "nets": gpu_nets.nets}  # what measures no times
SLICES = {**AT_ONCE, **gpu_speed.SLICES}
SLICES = {name: SLICES[name] for name in LIMITS}
CASES = {**gpu_correct.CASES, **gpu_speed.CASES}
CASES["nets"] = lambda options: with_masks(options.backbones)


def parse(arguments):
    import mdmt

    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--only", default="", help="slices, separated by commas")
    parser.add_argument("--backbones", help="separated by commas (all; --dry: a small one)")
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--stride", type=int, default=1, help="every n-th case of the op table")
    parser.add_argument("--out", help="folder of the CSV files (benchmarks/results)")
    parser.add_argument("--list", action="store_true", help="names the cases, runs nothing")
    parser.add_argument("--dry", "--emulate", action="store_true")
    parser.add_argument(
        "--inside", action="store_true", help="in this process: no slice of its own"
    )
    parser.add_argument("--report", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    every = ["shufflenet_v2_x1_0"] if options.dry else mdmt.backbones()
    options.backbones = options.backbones.split(",") if options.backbones else every
    options.precisions = options.precisions.split(",")
    options.only = [name for name in options.only.split(",") if name]
    for name in options.only:
        if name not in SLICES:
            parser.error(f"there is no slice {name!r}; choose among {', '.join(SLICES)}")
    for name in options.backbones:
        if name not in (*mdmt.backbones(), gpu_correct.MASK_NET):
            parser.error(f"there is no backbone {name!r}")
    for name in options.precisions:
        if name not in PRECISIONS:
            parser.error(f"there is no precision {name!r}; choose among {', '.join(PRECISIONS)}")
    options.slices = [name for name in SLICES if name in (options.only or SLICES)]
    return options


def inside(options, part, limit):
    """Runs a slice in this process; {"rows", "left_out"}."""
    if options.dry:
        from tests import cudahost

        sys.modules["mdmt._cuda"] = cudahost.module()
        os.environ["MDMT_CUDNN"] = os.devnull
    run = Run(options, part, limit)
    began = time.monotonic()
    SLICES[part](run)
    return {"rows": run.rows, "left_out": run.left_out, "seconds": time.monotonic() - began}


def outside(options, part, limit):
    """Runs a slice in a process of its own, and ends it some time after its limit."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [sys.executable, "-m", "benchmarks.gpu_check", "--inside", "--only", part,
                   "--device", options.device, "--seconds", str(limit),
                   "--backbones", ",".join(options.backbones), "--stride", str(options.stride),
                   "--precisions", ",".join(options.precisions),
                   "--report", str(report)]  # fmt: skip
        command += ["--dry"] if options.dry else []
        command += ["--out", options.out] if options.out else []
        began = time.monotonic()
        child = subprocess.Popen(command)
        try:
            why = f"its process ended with status {child.wait(limit + 25)}"
        except subprocess.TimeoutExpired:
            why = f"it hung and was ended after {limit + 25:.0f} s"
        finally:
            end(child)
        try:
            return json.loads(report.read_text())
        except (OSError, ValueError):
            row = [part, "the slice", "", "", 0, why]
            print(f"FAILED {part}: {why}", flush=True)
            return {"rows": [row], "left_out": [], "seconds": time.monotonic() - began}


def end(child):
    """Ends a process that still runs, and what it has started, which would use the GPU while other
    slices measure; what it has stopped for its own measurements goes on."""
    if child.poll() is None:
        for one in gpu_peer.family(child.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(10)  # one that hangs in the driver cannot be ended
        with gpu_peer.quiet():
            pass


def list_cases(options):
    for part in options.slices:
        for case in CASES[part](options):
            print(part, case)
    return 0


def summary(found, left_out):
    """Prints a line per slice, and what was left out; whether all is right."""
    for part, result in found.items():
        rows = result["rows"]
        bad = sum(not row[4] for row in rows)
        print(f"{part}: {len(rows) - bad} of {len(rows)} right ({result['seconds']:.0f} s)")
        left_out = [*left_out, *(f"{part}: {what}" for what in result["left_out"])]
    for what in left_out:
        print(f"left out: {what}")
    return not any(not row[4] for result in found.values() for row in result["rows"])


def pieces(options, part):
    """What a slice that takes long is cut into, each piece for a process of its own: options."""
    if part == "table":
        return [{"precisions": [precision]} for precision in options.precisions]
    if part == "nets":
        names = with_masks(options.backbones)
        return [{"backbones": names[i::6]} for i in range(min(6, len(names)))]
    return [{}]


def with_masks(names):
    """And the network for masks, where all backbones are asked for."""
    import mdmt

    every = set(names) >= set(mdmt.backbones())
    return [*names, gpu_correct.MASK_NET] if every else list(names)


def share(options, parts, left):
    """Seconds of those left that `parts`, side by side, may take: what the slices after them do
    not need, at least their own limit."""
    ends = max((options.slices.index(p) for p in parts), default=-1)
    later = sum(LIMITS[p] for p in options.slices[ends + 1 :])
    return min(left, max([left - later, *(LIMITS[p] for p in parts)]))


def right_at_once(options, parts, seconds):
    """Runs slices that measure no times side by side; {part: result}."""
    limit = share(options, parts, seconds)
    jobs = [(part, argparse.Namespace(**vars(options) | piece)) for part in parts
            for piece in pieces(options, part)]  # fmt: skip
    found = {}
    with ThreadPoolExecutor(max(len(jobs), 1)) as pool:
        done = pool.map(lambda job: outside(job[1], job[0], limit), jobs)
        for (part, _), result in zip(jobs, done):
            known = found.setdefault(part, {"rows": [], "left_out": [], "seconds": 0})
            known["rows"] += result["rows"]
            known["left_out"] += result["left_out"]
            known["seconds"] = max(known["seconds"], result["seconds"])
    return found


def one_after_the_other(options, found):
    """Runs the slices that `found` lacks; what no time was left for."""
    left_out = []
    for part in options.slices:
        left = options.ends - time.monotonic()
        if part in found:
            continue
        if left < 5:
            left_out.append(f"{part}: no time was left")
            continue
        limit = share(options, [part], left)
        found[part] = (inside if options.inside else outside)(options, part, limit)
    return left_out


def main(arguments=None):
    options = parse(arguments)
    if options.list:
        return list_cases(options)
    options.ends = time.monotonic() + options.seconds
    found = {}
    ahead = "compile" in options.slices and not (options.inside or options.dry)
    with contextlib.ExitStack() as stack:
        if ahead and not gpu_peer.folder() and gpu_peer.is_installed():
            stack.enter_context(gpu_peer.ahead(options.backbones))
        if options.dry and not options.inside:
            from tests import cudahost

            cudahost.module()  # which takes a minute to compile, once
        if not options.inside:
            parts = [part for part in options.slices if part in AT_ONCE]
            found = right_at_once(options, parts, options.seconds)
        left_out = one_after_the_other(options, found)
    right = summary(found, left_out) if not options.report else True
    if options.report:
        Path(options.report).write_text(json.dumps(found[options.slices[0]]))
    return int(not right)


if __name__ == "__main__":
    raise SystemExit(main())
