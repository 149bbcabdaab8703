"""Preparation of images against the decoder alone, and a large store in little memory.

    python -m benchmarks.prepare [--images 1000] [--crop box] [--size 256] [--kind jpeg|dicom]
                                 [--workers 2] [--repeats 3] [--store-images 6281]

The images are real radiographs ($MDMT_DATA; drawn ones where there are none), each a little
different, as they are (jpeg) or as DICOM of 12 bits with 1,760 rows in eight transfer syntaxes
(dicom). The decoder alone runs on as many processes as the preparation; the two take turns on a
part of the images, and the share is the median of the ratios. Memory is the peak of the process
that prepares and of the largest worker. Last, a store of --store-images is opened and iterated;
it is filled with what was prepared, over and over, so that only its size counts.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import machine
from mdmt import config
from mdmt.data.images import read_levels
from mdmt.data.table import Cases
from mdmt.preprocess import build


def files(folder, options):
    """Write the images; returns their paths."""
    from tests import replicas
    from tests.dicomfiles import SYNTAXES, write_dicom
    from tests.realdata import COVID_CXR

    found = sorted((COVID_CXR / "images").glob("*.jpg"))
    if options.kind == "jpeg" and found:
        for i in range(options.images):
            path = folder / f"{i:05d}.jpg"
            # Bytes after the end of a JPEG: another file with the same picture.
            path.write_bytes(found[i % len(found)].read_bytes() + i.to_bytes(4, "little"))
            yield path
        return
    size = 512 if options.kind == "jpeg" else 1760
    rng = np.random.default_rng(0)
    for i, grey in enumerate(replicas.pictures(options.images, size)):
        if options.kind == "jpeg":
            path = folder / f"{i:05d}.jpg"
            Image.fromarray(grey).save(path, quality=92)
        else:
            values = (grey.astype(np.uint16) << 4) + rng.integers(0, 16, grey.shape, np.uint16)
            path = write_dicom(
                folder / f"{i:05d}.dcm", values, bits=12, syntax=SYNTAXES[i % len(SYNTAXES)],
                photometric=("MONOCHROME2", "MONOCHROME1")[i % 2],
            )  # fmt: skip
        yield path


def decode(path):
    return read_levels(path, alone=True).shape


def cases_of(paths):
    names = [p.stem for p in paths]
    count = len(paths)
    return Cases("images", "t", ["a", "b"], names, names, [""] * count, np.zeros(count, int),
                 np.full(count, np.nan), list(paths))  # fmt: skip


def values_of(options, folder):
    values = config.load("demo", [f"image_size={options.size}"])
    values["data"].update(crop=options.crop, minmax=True, store=str(folder),
                          on_bad_image="exclude")  # fmt: skip
    values["data"]["datasets"] = []
    return values


def compare(paths, options, folder):
    """[(decoder alone, preparation)] in images per second; survey of the last part."""
    parts = np.array_split(np.arange(len(paths)), options.repeats)
    rates, last = [], None
    with ProcessPoolExecutor(options.workers) as pool:
        list(pool.map(decode, paths[:32]))
        for k, part in enumerate(parts):
            own = [paths[i] for i in part]
            begin = time.perf_counter()
            list(pool.map(decode, own, chunksize=8))
            alone = len(own) / (time.perf_counter() - begin)
            survey = build.inspect(
                cases_of(own), values_of(options, folder / f"s{k}"), False, options.workers
            )
            assert survey.decoded == len(own)
            rates.append((alone, len(own) / survey.seconds))
            print(
                f"part {k}: decoder alone {alone:.1f}, preparation {rates[-1][1]:.1f} images/s; "
                f"{len(survey.refused)} refused"
            )
            last = survey
    return rates, last


LARGE = """
import resource, sys, time
from pathlib import Path
import numpy as np
source, target, count = store.Store(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
pixels, peak = source.settings["size"] ** 2, lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
usable = [e for e in source.entries if "reason" not in e]
before, begin = peak(), time.perf_counter()
with store.Builder(target, source.settings, count) as builder:
    for i in range(count):
        k = i % len(usable)
        builder.add([({**usable[k], "source": str(i)}, source.images[k], None)])
    builder.finish()
written = time.perf_counter() - begin
begin = time.perf_counter()
made = store.Store(target)
opened = time.perf_counter() - begin
begin, total = time.perf_counter(), 0
for image in made.images:
    total += int(image[::16, ::16].sum())
print(f"{count} images: written in {written:.1f} s, opened in {1000 * opened:.0f} ms, iterated in "
      f"{time.perf_counter() - begin:.2f} s; {made.nbytes() / 2**20:.0f} MiB on the disk, memory of "
      f"the process grew by {peak() - before:.0f} MiB (pages of the map included)")
"""  # noqa: E501


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--crop", default="box", choices=("whole", "box", "masked"))
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--kind", default="jpeg", choices=("jpeg", "dicom"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--store-images", type=int, default=6281)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mdmt-prepare-") as place:
        folder = Path(place)
        (folder / "images").mkdir()
        paths = list(files(folder / "images", options))
        rates, survey = compare(paths, options, folder)
        share = statistics.median(b / a for a, b in rates)
        own, child = (
            resource.getrusage(who).ru_maxrss / 1024
            for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        print(
            f"{machine.cpu_name()}: {len(paths)} images ({options.kind}, crop {options.crop}), "
            f"{options.workers} processes: decoder alone "
            f"{statistics.median(a for a, _ in rates):.1f}, preparation "
            f"{statistics.median(b for _, b in rates):.1f} images/s, {100 * share:.0f} % of it; "
            f"memory {own:.0f} MiB, largest worker {child:.0f} MiB"
        )
        sys.stdout.flush()
        subprocess.run(
            [sys.executable, "-c", LARGE, survey.store.folder, folder / "large-1",
             str(options.store_images)],
            check=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
