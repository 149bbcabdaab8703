"""Two processes that write one path at the same time."""

import subprocess
import sys

START = "print('ready', flush=True); sys.stdin.readline()\n"


def race(code, path, marks, look):
    """Runs `code`, which imports sys and holds START, twice, with the arguments path and each of
    `marks`; calls look() again and again while they write. Both must end well."""
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(path), mark], stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE)
        for mark in marks
    ]  # fmt: skip
    for writer in writers:
        writer.stdout.readline()
    for writer in writers:
        writer.stdin.write(b"go\n")
        writer.stdin.flush()
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            look()
    for writer in writers:
        writer.communicate()
    assert [writer.returncode for writer in writers] == [0] * len(marks)
