"""Kernels one by one, on the shapes of our own networks or on the op table's cases.

    python -m benchmarks.ops [--backbone resnet18] [--batch 16] [--image-size 224] [--threads 1]
    python -m benchmarks.ops --table [--only conv2d]      every case, kernel and instruction set

Each sample runs with caches flushed; the share is that of the rate of multiply-adds in registers
measured around it. Rows go to benchmarks/results/ops.csv.
"""

import argparse
import statistics
import time

import numpy as np

from benchmarks import machine
from mdmt import _core

FLUSH = np.zeros(1 << 24, np.float32)  # 64 MiB, more than a last-level cache's share


def flush():
    """Pushes everything else out of the caches."""
    FLUSH.sum()


def layers(batch, size):
    """Convolutions of a residual network at this image size: (x, outputs, kernel, stride)."""
    s = size // 4
    found = [((batch, 64, s, s), 64, 3, 1), ((batch, 64, s, s), 64, 1, 1),
             ((batch, 64, s, s), 256, 1, 1), ((batch, 256, s, s), 64, 1, 1)]  # fmt: skip
    for c in (64, 128, 256):
        half = s // 2
        found += [
            ((batch, c, s, s), 2 * c, 3, 2),
            ((batch, c, s, s), 2 * c, 1, 2),
            ((batch, 2 * c, half, half), 2 * c, 3, 1),
            ((batch, 2 * c, half, half), 8 * c, 1, 1),
            ((batch, 8 * c, half, half), 2 * c, 1, 1),
        ]
        s = half
    return found


def network_cases(options):
    """Cases of the layers of our networks, fused as a training step runs them."""
    from tests.optable import convolutions

    n, size = options.batch, options.image_size
    cases = convolutions((n, 3, size, size), 64, (7, 7), image=True, stride=(2, 2),
                         pad=(3, 3, 3, 3), stats=True)  # fmt: skip
    cases = [c for c in cases if c.op != "conv2d_bwd_data"]  # images need no gradient
    for x, k, kernel, stride in layers(n, size):
        pad = (kernel // 2,) * 4
        how = {"stride": (stride, stride), "pad": pad}
        made = convolutions(x, k, (kernel, kernel), lazy="relu", stats=True, **how)
        plain = convolutions(x, k, (kernel, kernel), **how)
        cases += made + [c for c in plain if c.op == "conv2d_bwd_data"]
    return cases


def table_cases(options):
    from tests.optable import CASES

    return list(CASES)


def sample(program, arrays, op):
    """Seconds of the op itself in one run with cold caches."""
    flush()
    return sum(seconds for name, _, seconds in program.profile(arrays, 1) if name == op)


def measure(case, options, isa, kernel):
    """A row, or None where the kernel refuses the case."""
    how = {"isa": isa, "threads": options.threads, "kernel": kernel}
    try:
        program, arrays = case.program(_core, **how)
    except NotImplementedError:
        return None
    sample(program, arrays, case.op)
    times, shares = [], []
    before = _core.fma_rate(0.02, options.threads)
    for _ in range(options.repeats):
        seconds = sample(program, arrays, case.op)
        after = _core.fma_rate(0.02, options.threads)
        times.append(seconds)
        shares.append(2 * case.macs / seconds / ((before + after) / 2))
        before = after
    seconds = statistics.median(times)
    chosen = next(name for op, name in program.kernels() if op == case.op)
    return {
        "cpu": machine.cpu_name(),
        "case": case.id,
        "threads": options.threads,
        "kernel": chosen,
        "forced": int(kernel is not None),
        "ms": round(1e3 * seconds, 4),
        "gflops": round(2 * case.macs / seconds / 1e9, 1),
        "share": round(statistics.median(shares), 3),
    }


def main():
    parser = argparse.ArgumentParser("python -m benchmarks.ops", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--table", action="store_true", help="the op table's cases")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--isa", choices=("ref", "avx2", "avx512", "neon"))
    parser.add_argument("--every-kernel", action="store_true", help="not only the chosen one")
    options = parser.parse_args()
    cases = table_cases(options) if options.table else network_cases(options)
    cases = [c for c in cases if options.only in c.id]
    if not cases:
        raise SystemExit(f"no case has '{options.only}' in its name")
    start, rows = time.time(), []
    for case in cases:
        names = [n for n, _ in _core.op_kernels(case.op)] if options.every_kernel else [None]
        for kernel in names:
            row = measure(case, options, options.isa, kernel)
            if row:
                rows.append(row)
                print(f"{row['ms']:>10.3f} ms {row['gflops']:>7.1f} GFLOP/s {row['share']:>6.1%}  "
                      f"{row['kernel']}  {row['case']}", flush=True)  # fmt: skip
    machine.append_csv(machine.RESULTS / "ops.csv", rows)
    print(f"{len(rows)} rows in {time.time() - start:.0f} s: {machine.RESULTS / 'ops.csv'}")


if __name__ == "__main__":
    main()
