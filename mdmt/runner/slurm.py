"""sbatch array scripts for clusters without Dask: one array task per training.

The trainings lie in levels: those of a level need only those of earlier ones, so that a level is
one array (or several, by `cluster.array`) that starts after the last. A preempted task gets
SIGTERM, writes its checkpoint and ends with 75; SLURM or the script puts it back in the queue.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from ..errors import BadInput
from ..paths import write_atomic
from .child import prepare_folder, search_path
from .kept import done_and_usable

HEAD = """#!/bin/bash
# {what}
#SBATCH --job-name={name}
#SBATCH --cpus-per-task={cores}
#SBATCH --mem={memory}
#SBATCH --time={time}
#SBATCH --requeue
#SBATCH --open-mode=append
{more}"""

TASK = """
{setup}
export MDMT_NUM_THREADS={cores}
line=$((SLURM_ARRAY_TASK_ID + 1))
folder=$(sed -n "${{line}}p" {list})
[ -n "$folder" ] || exit 2
# A signal to this shell is passed on; the training writes its checkpoint and ends with 75.
child=
trap '[ -z "$child" ] || kill -TERM "$child"' TERM USR1
{python} -m mdmt.runner.job "$folder" >>"$folder/slurm.txt" 2>>"$folder/log.txt" &
child=$!
wait "$child"
code=$?
while kill -0 "$child" 2>/dev/null; do
    wait "$child"
    code=$?
done
if [ "$code" = 75 ]; then
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}" 2>/dev/null
fi
exit "$code"
"""

COLLECT = """
{setup}
exec {python} -m mdmt.run --resume --collect --out {out}
"""

SUBMIT = """#!/bin/bash
# Submits everything; each level starts when the one before it has ended. Trainings that are
# finished end at once, so that after failures the same command submits the rest.
set -euo pipefail
cd {folder}
{lines}
"""


def levels_of(jobs: list) -> list[list]:
    """Jobs by the length of the longest chain before them."""
    level: dict[str, int] = {}
    found: list[list] = []
    for job in jobs:
        level[job.id] = 1 + max((level[n] for n in job.needs), default=-1)
        while len(found) <= level[job.id]:
            found.append([])
        found[level[job.id]].append(job)
    return found


def emit(study, out: Path, inputs_of, more: dict | None = None) -> str:
    """Write the scripts of the jobs that are not finished to `out`/slurm; say how to submit.

    more: environment variables of the trainings."""
    settings, folder = dict(study.values["cluster"]), Path(out).resolve() / "slurm"
    exports = [f"export {name}={shlex.quote(value)}" for name, value in (more or {}).items()]
    settings["setup"] = [*settings["setup"], *exports]
    runs = Path(out).resolve() / "runs"
    if len(str(runs).splitlines()) > 1:
        raise BadInput(f"{out}: has a line break in its name, which sbatch cannot take; rename it")
    done = set(done_and_usable(study.jobs, runs))
    todo = [j for j in study.jobs if j.id not in done]
    for job in todo:
        prepare_folder(runs, job, inputs_of(job))
    lines, before = [], ""
    for number, level in enumerate(levels_of(study.jobs)):
        level = [j for j in level if j.id not in done]
        names = []
        for start in range(0, len(level), settings["array"]):
            part = level[start : start + settings["array"]]
            name = f"level{number}-{start // settings['array']}"
            _write_array(folder, name, study, [runs / j.id for j in part], settings)
            variable = f"j{number}_{start // settings['array']}"
            lines.append(f"{variable}=$(sbatch --parsable {before}{name}.sbatch)")
            lines.append(f'echo "{name}: $(wc -l <{name}.txt) trainings, job ${variable}"')
            names.append(f"${{{variable}%%;*}}")
        if names:
            before = f"--dependency=afterany:{':'.join(names)} "
    text = _head("mdmt-collect", "Writes results.csv and predictions.csv.", settings, 1)
    command = {"setup": _setup(settings), "python": shlex.quote(sys.executable)}
    text += COLLECT.format(**command, out=shlex.quote(str(Path(out).resolve())))
    write_atomic(folder / "collect.sbatch", text)
    lines.append(f"sbatch --parsable {before}collect.sbatch")
    quoted = shlex.quote(str(folder))
    write_atomic(folder / "submit.sh", SUBMIT.format(folder=quoted, lines="\n".join(lines)))
    os.chmod(folder / "submit.sh", 0o755)
    return f"{len(todo)} trainings in {folder}; submit them with\n    bash {folder}/submit.sh"


def _head(name: str, what: str, settings: dict, cores: int, array: str = "") -> str:
    more = [f"#SBATCH --array={array}"] if array else []
    for key in ("partition", "account"):
        if settings[key]:
            more.append(f"#SBATCH --{key}={settings[key]}")
    more += [f"#SBATCH {text}" for text in settings["directives"]]
    return HEAD.format(
        what=what,
        name=name,
        cores=cores,
        memory=settings["memory"].removesuffix("B"),
        time=settings["walltime"],
        more="".join(f"{line}\n" for line in more),
    )


def _pattern(folder: Path) -> str:
    """A folder as sbatch reads it in a file name: % begins a pattern, and spaces end a word."""
    text = str(folder).replace("%", "%%")
    return "".join(c if c.isalnum() or c in "/._-+%=:,@~" else f"\\{c}" for c in text)


def _setup(settings: dict) -> str:
    lines = list(settings["setup"])
    if "PYTHONPATH" in search_path():
        lines.append(f"export PYTHONPATH={shlex.quote(search_path()['PYTHONPATH'])}")
    return "\n".join(lines)


def _write_array(folder: Path, name: str, study, places: list[Path], settings: dict) -> None:
    """One array: NAME.sbatch, and NAME.txt with a line per task."""
    write_atomic(folder / f"{name}.txt", "".join(f"{p}\n" for p in places))
    called = " ".join(str(study.values["name"]).split())  # a line break would end the comment
    what = f"{len(places)} trainings of the study {called}."
    array = f"0-{len(places) - 1}%{settings['jobs']}"
    text = _head(f"mdmt-{name}", what, settings, settings["cores"], array)
    text += f"#SBATCH --output={_pattern(folder)}/{name}-%a.txt\n"
    text += TASK.format(
        setup=_setup(settings),
        cores=settings["cores"],
        list=shlex.quote(str(folder / f"{name}.txt")),
        python=shlex.quote(sys.executable),
    )
    write_atomic(folder / f"{name}.sbatch", text)
