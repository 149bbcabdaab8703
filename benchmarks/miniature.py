"""The paper's whole study in miniature: 18 backbones, CV and LOCO, 4 configurations, 3 releases,
2,376 trainings on replicas of its two data sets, at 32 px for one epoch.

    python -m benchmarks.miniature [--jobs 40] [--workers 2] [--out results/miniature] [--no-report]

What is looked at is the sweep, not the results: that it runs unattended, and what it costs.
Interrupted or killed, the same command goes on. --jobs takes a part: N/4 backbones on one fold,
then more folds, then everything. It ends in a summary of all sweeps so far: trainings, failures,
time against the estimate, scheduling overhead, memory of the coordinator, tables made.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import machine

PATIENTS, IMAGES, SIDE = (48, 24, 24), 60, 48  # AIforCOVID by release, BRIXIA, pixels
SETTINGS = {
    "weights": "random",
    "keep_weights": "false",  # 130 GB otherwise
    "image_size": 32,
    "train.epochs": 1,
    "train.batch_size": 16,
    "train.augment": "null",
    "data.crop": "whole",  # these are drawings in which no lungs are found
    "sampler.drop_last": "true",  # at 32 px batch norm cannot train on a last batch of one
}


def make_data(out):
    """The replicas, drawn once; a folder that exists is whole."""
    from tests import replicas

    root, drawing = out / "data", out / "data.drawing"
    if not root.is_dir():
        shutil.rmtree(drawing, ignore_errors=True)
        replicas.make_aiforcovid(drawing / "AIforCOVID", PATIENTS, SIDE)
        replicas.make_brixia(drawing / "BRIXIA", IMAGES, SIDE)
        drawing.rename(root)
    return root


def part(jobs, backbones):
    """Settings that leave about so many of the 2,376 trainings."""
    places = math.ceil(jobs / 4)
    if places <= len(backbones):
        chosen = [backbones[i * len(backbones) // places] for i in range(places)]
        kept = {"backbones": chosen, "folds": [0]}
    elif places <= 5 * len(backbones):
        kept = {"folds": list(range(math.ceil(places / len(backbones))))}
    else:
        return {}
    return {k: json.dumps(v) for k, v in {**kept, "validation": ["cv"]}.items()} | {
        "data.releases": '["1"]'
    }


def settings_of(out, jobs):
    """`KEY=VALUE` of everything that differs from the configuration `paper`."""
    from mdmt import config

    own = {"data.root": make_data(out), "data.store": out / "store", **SETTINGS}
    if jobs:
        own |= part(jobs, config.load("paper", ["weights=random"])["backbones"])
    return [f"{key}={value}" for key, value in own.items()]


def forecast(overrides, out, workers):
    """What --dry-run foretells of the trainings that are left: seconds of one slot."""
    code = (
        "import json, sys; from mdmt import config, run; from mdmt.runner import estimate\n"
        "overrides, out, workers = json.loads(sys.argv[1])\n"
        "values = config.load('paper', overrides)\n"
        "jobs = run.prepare(values, None, True).jobs\n"
        "print(json.dumps(estimate.forecast(values, jobs, out, workers)['seconds']))"
    )
    given = json.dumps([overrides, str(out), workers])
    done = subprocess.run([sys.executable, "-c", code, given], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def sweep(overrides, out, workers, dask=None):
    """Run the study (to the end or until a signal); return its exit status."""
    line = [sys.executable, "-m", "mdmt.run", "paper", "--out", str(out), "--no-report"]
    line += ["--workers", str(workers), *(a for o in overrides for a in ("--set", o))]
    line += ["--dask", dask] if dask else []
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # the sweep had it, too, and is saving


def report(out):
    """(tables made, seconds, what it said if it failed)."""
    begin = time.monotonic()
    line = [sys.executable, "-m", "mdmt", "report", str(out), "--no-images", "--resamples", "1000"]
    done = subprocess.run(line, capture_output=True, text=True)
    tables = sorted(p.name for p in out.glob("table*.csv"))
    return tables, time.monotonic() - begin, done.stderr.strip() if done.returncode else ""


def summary(out):
    """Figures of all sweeps so far, from sweeps.jsonl."""
    sweeps = [json.loads(line) for line in (out / "sweeps.jsonl").read_text().splitlines()]

    def total(key):
        return sum(s[key] for s in sweeps)

    results = list(out.glob("runs/*/result.json"))
    slot_seconds = sum(s["slots"] * s["seconds"] for s in sweeps)
    return {
        "processor": machine.cpu_name(),
        "cores": machine.cores(),
        "slots": sweeps[-1]["slots"],
        "trainings": sweeps[-1]["jobs"],
        "finished": len(results),
        "failed": len(list(out.glob("runs/*/error.json"))),
        "sweeps": len(sweeps),
        "processes": total("processes"),
        "seconds": round(total("seconds"), 1),
        "training_cpu_seconds": round(total("training_cpu_seconds"), 1),
        "coordinator_seconds": round(total("coordinator_seconds"), 1),
        "coordinator_cpu_share": total("coordinator_seconds")
        / max(total("training_cpu_seconds"), 1e-9),
        "idle_share": 1 - total("busy_seconds") / slot_seconds,
        "coordinator_mb": max(s["coordinator_bytes"] for s in sweeps) / 1e6,
    }


def tell(found, dask=None):
    """Print a summary."""
    minutes, cpu = found["seconds"] / 60, found["training_cpu_seconds"] / 60
    own, idle = 100 * found["coordinator_cpu_share"], 100 * found["idle_share"]
    trained = f"; {cpu:.1f} core-minutes of training"
    overhead = f"{own:.2f} % of the trainings' processor time; slots idle {idle:.2f} % of the time"
    if dask:  # the trainings are not this process's children
        trained, overhead = "", f"{found['coordinator_seconds']} s of processor time"
    print(
        f"{found['finished']} of {found['trainings']} trainings finished, {found['failed']} failed "
        f"({found['processes']} processes in {found['sweeps']} sweeps)\n"
        f"time         {minutes:.1f} min with {found['slots']} at a time on {found['cores']} "
        f"cores ({found['processor']}){trained}\n"
        f"overhead     coordinator {overhead}\n"
        f"coordinator  {found['coordinator_mb']:.0f} MB at most"
    )
    if "estimate" in found:
        foretold = found["estimate"] / found["slots"] / 60
        print(f"estimate     {foretold:.1f} min; in fact {minutes / foretold - 1:+.0%}")
    if "tables" in found:
        print(
            f"report       {', '.join(found['tables']) or 'no tables'} in "
            f"{found['report_seconds']:.0f} s {found['report_failure']}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, help="about so many of the 2,376 trainings")
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time (2)")
    parser.add_argument("--dask", help="a scheduler's address or slurm, instead of slots here")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("results/miniature"))
    parser.add_argument("--no-estimate", action="store_true", help="without measuring steps before")
    parser.add_argument("--no-report", action="store_true", help="without tables and figures")
    arguments = parser.parse_args()
    os.environ.setdefault("MDMT_NUM_THREADS", "1")
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    overrides, study = [*settings_of(out, arguments.jobs), *arguments.set], out / "study"
    estimate = None
    if not arguments.no_estimate and not (study / "sweeps.jsonl").is_file():
        estimate = forecast(overrides, study, arguments.workers)
    code = sweep(overrides, study, arguments.workers, arguments.dask)
    if (study / "sweeps.jsonl").is_file():
        found = summary(study)
        if estimate and code == 0:
            found["estimate"] = estimate
        if code == 0 and not arguments.no_report:
            tables, seconds, failure = report(study)
            found |= {"tables": tables, "report_seconds": seconds, "report_failure": failure}
        (out / "summary.json").write_text(json.dumps(found, indent=1) + "\n")
        tell(found, arguments.dask)
    return code


if __name__ == "__main__":
    sys.exit(main())
