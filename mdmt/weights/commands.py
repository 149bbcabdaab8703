"""The command `mdmt weights`: list, fetch, check, where."""

from __future__ import annotations

import sys

from ..errors import BadInput
from . import catalogue, fetch

SHOWN = 8  # differing shapes


def start(arguments) -> None:
    """Do what parsed `arguments` ask for."""
    if arguments.task == "list":
        show(arguments.urls)
    elif arguments.task == "fetch":
        bring(arguments.names)
    elif arguments.task == "check":
        check(arguments.path)
    else:
        print(fetch.weights_folder())


def show(urls: bool = False) -> None:
    """Print the published file of each backbone and whether it is here, or only the addresses."""
    folder = fetch.weights_folder()
    for backbone, source in sorted(catalogue.SOURCES.items()):
        if urls:
            print(source.url)
            continue
        size = f"{source.mebibytes:.1f} MiB" if source.mebibytes else ""
        part = folder / f"{source.file}.part"
        path = folder / source.file
        if path.is_file():
            state = "present" if fetch.whole(path, source.digits) else "damaged"
        elif part.is_file() and part.stat().st_size:
            state = f"begun ({part.stat().st_size / 2**20:.1f} MiB)"
        else:
            state = "-"
        print(f"{backbone:<24}{source.file:<40}{size:>10}  {state}")
    if not urls:
        print(f"folder: {folder}")


def bring(names) -> None:
    """Fetch the files of the backbones `names`; "all" is every one."""
    names = sorted(catalogue.SOURCES) if "all" in names else list(dict.fromkeys(names))
    for name in names:  # a wrong name is told before anything is fetched
        catalogue.source(name)
    for name in names:
        print(f"{name}: {fetch.obtain(name)}")
        sys.stdout.flush()


def check(path) -> None:
    """Read a weight file; print what it is, and which backbones can start from it.

    Raises BadInput when it cannot be read, is not finite or fits none.
    """
    from ..nets import backbones
    from . import load_weights
    from .fit import fits, not_finite

    try:
        state = load_weights(path)
        digest = fetch.digest(path)
    except (ValueError, OSError) as error:
        raise BadInput(str(error)) from error
    numbers = sum(value.size for value in state.values())
    print(f"{path}: {len(state)} arrays, {numbers:,} numbers, SHA-256 {digest}")
    for source in catalogue.SOURCES.values():
        if digest.startswith(source.digits):
            print(f"the file that is published for {source.backbone}")
    bad = not_finite(state)
    if bad:
        raise BadInput(f"{path}: {bad[0]} holds NaN or infinity ({len(bad)} arrays do)")
    found = fits(state)
    for one in found:
        if one.whole:
            modules = list(dict.fromkeys(key.partition(".")[0] for key in one.others))
            left = f" (without {_some(modules)})" if modules else ""
            print(f"fits {one.backbone}{left}")
    if not found[0].whole:
        _explain(found[0])
        raise BadInput(
            f"{path}: fits none of the {len(backbones())} backbones; nearest is "
            f"{found[0].backbone}, {_first_fault(found[0])}"
        )


def _explain(one) -> None:
    print(f"nearest is {one.backbone}: {one.agreeing} arrays agree")
    for key, ours, theirs in one.shapes[:SHOWN]:
        print(f"  {key} is {ours} in the file and {theirs} in {one.backbone}")
    if len(one.shapes) > SHOWN:
        print(f"  and {len(one.shapes) - SHOWN} more shapes differ")
    if one.missing:
        print(f"  not in the file: {_some(one.missing)}")
    if one.extra or one.others:
        print(f"  not in {one.backbone}: {_some(one.extra + one.others)}")


def _first_fault(one) -> str:
    if one.shapes:
        key, ours, theirs = one.shapes[0]
        return f"where {key} is {theirs} and not {ours}"
    if one.missing:
        return f"whose {one.missing[0]} is not in the file"
    return f"which has no {one.extra[0]}"


def _some(keys) -> str:
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(keys[:3]) + more
