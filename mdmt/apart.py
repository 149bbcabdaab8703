"""Work in a process of its own, whose memory goes back to the system when it has ended."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time

from .errors import BadInput, MdmtError

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from mdmt.apart import serve; serve()"
)


def call(name: str, *arguments, holding: tuple = ()):
    """Return what the function `name` ("module:function") gives for plain `arguments`.

    What it prints goes to standard error. Its MdmtErrors are raised here; BadInput when the process
    dies. It ends with this process, however that is killed; until then it has the lock files
    `holding` (handles) open, so that nobody else can take them while it still writes.
    """
    line = [sys.executable, "-c", _START, json.dumps(sys.path)]
    request = json.dumps([os.getpid(), name, arguments]).encode()
    done = subprocess.run(line, input=request, stdout=subprocess.PIPE, pass_fds=holding)
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode:
        code = done.returncode
        how = f"signal {-code}" if code < 0 else f"status {code}, see above"
        if code == -signal.SIGKILL:
            how += " (SIGKILL), as the system does when memory runs out: free some"
        raise BadInput(f"reading and checking the data ended with {how}")
    answer = pickle.loads(done.stdout)  # of our own process
    if isinstance(answer, MdmtError):
        raise answer
    return answer


def serve() -> None:
    """The other process: answer what standard input asks."""
    stream = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed is no answer
    try:
        parent, name, arguments = json.load(sys.stdin)
    except ValueError:  # who started this one was stopped before it could ask
        return
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    module, _, function = name.partition(":")
    try:
        answer = getattr(importlib.import_module(module), function)(*arguments)
    except MdmtError as error:
        answer = error
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os._exit(130)
    with contextlib.suppress(BrokenPipeError), stream:  # the process that asked has ended
        pickle.dump(answer, stream)


def _end_with(parent: int) -> None:
    """End this process when `parent` has gone: what is prepared so far is kept, and nothing is
    written any more into a folder that another run may have by then."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)
