"""Errors of mdmt: each is one sentence that names the file, the field, the value and the remedy.

The command line prints that sentence to stderr and ends with the error's exit code; a traceback
is shown only when the environment variable MDMT_DEBUG is 1.
"""

from __future__ import annotations

import difflib
import errno
import os


class MdmtError(Exception):
    """Base of every error that mdmt raises on purpose; `exit_code` is the process's exit status."""

    exit_code = 1

    def __init__(self, message: str = ""):
        # One line, whatever text from a file or a command line it quotes.
        super().__init__("\\n".join(str(message).splitlines()))


class BadInput(MdmtError, ValueError):
    """Data, configuration or command line that cannot be used (exit status 2)."""

    exit_code = 2


class BadConfig(BadInput):
    """A configuration key or value that is unknown, of the wrong type or out of range."""


class BadData(BadInput):
    """A table, an image or a label that cannot be used."""


class NoSpace(BadInput):
    """A file could not be written because the disk is full or the folder is not writable."""


class Interrupted(MdmtError):
    """Stopped by a signal after writing a checkpoint; running the same command goes on from it."""

    exit_code = 75


class JobsFailed(MdmtError):
    """Some jobs of a run failed; the others are finished and kept."""

    def __init__(self, message: str, exit_code: int = 1):
        super().__init__(message)
        self.exit_code = exit_code


def nearest(name: str, known) -> str:
    """Return "; did you mean 'x'?" for the known name closest to `name`, or the list of names."""
    known = [str(k) for k in known]
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.55)
    if not close:
        lower = {k.lower(): k for k in known}
        close = [lower[m] for m in difflib.get_close_matches(str(name).lower(), lower, n=1)]
    if close:
        return f"; did you mean '{close[0]}'?"
    if not known:
        return ""
    shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f"; known: {shown}"


def write_failure(path, error: OSError) -> MdmtError:
    """Return the sentence for an OSError that was raised while `path` was being written."""
    full = (errno.ENOSPC, errno.EDQUOT)
    # The engine's own OSError has no number, but the system's words.
    if error.errno in full or (
        not error.errno and str(error).endswith(tuple(map(os.strerror, full)))
    ):
        return NoSpace(f"{path}: the disk is full; free some space or choose another folder")
    reason = (error.strerror or str(error)).lower()
    return NoSpace(f"{path}: cannot be written ({reason}); choose another folder")


def debugging() -> bool:
    """True when MDMT_DEBUG asks for tracebacks."""
    return os.environ.get("MDMT_DEBUG", "") not in ("", "0")
