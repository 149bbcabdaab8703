"""Preparation of images against the decoder alone, and a large store in little memory.

    python -m benchmarks.prepare [--images 1000] [--crop box] [--size 256] [--kind jpeg|dicom]
                                 [--workers 2] [--repeats 3] [--store-images 6281]

The images are real radiographs ($MDMT_DATA; drawn ones where there are none), each a little
different, as they are (jpeg) or as DICOM of 12 bits with at least 1,760 rows in seven transfer
syntaxes (dicom). The decoder alone runs on as many processes as the preparation; the two take
turns on a part of the images, and the shares are the medians of the ratios, of images per second
and of time of a core, which other programs on the machine disturb less. Start and end of the
processes count. Memory is the peak of the process that prepares and of the largest worker. Last, a
store of --store-images is opened and iterated; it is filled with what was prepared, over and over,
so that only its size counts.
"""

import argparse
import io
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

MARK = b"--MARK--"


def files(folder, options):
    """Write the images; returns their paths. Each differs from the others in bytes that no decoder
    reads, so that a few pictures make many files."""
    from tests import replicas
    from tests.dicomfiles import SYNTAXES, write_dicom
    from tests.realdata import COVID_CXR

    raw, suffix = [], ".jpg"
    if options.kind == "dicom":
        suffix = ".dcm"
        syntaxes = [s for s in SYNTAXES if s != "deflated"]  # its bytes cannot be changed
        rng = np.random.default_rng(0)
        for i, grey in enumerate(replicas.pictures(2 * len(syntaxes), 1760)):
            values = (grey.astype(np.uint16) << 4) + rng.integers(0, 16, grey.shape, np.uint16)
            path = write_dicom(
                folder / "one", values, bits=12, syntax=syntaxes[i % len(syntaxes)],
                photometric=("MONOCHROME2", "MONOCHROME1")[i % 2], StationName=MARK.decode(),
            )  # fmt: skip
            raw.append(path.read_bytes())
            path.unlink()
    else:
        found = sorted((COVID_CXR / "images").glob("*.jpg"))
        raw = [p.read_bytes() + MARK for p in found]  # after the end of the picture
        if not raw:
            for grey in replicas.pictures(40, 512):
                stream = io.BytesIO()
                Image.fromarray(grey).save(stream, "JPEG", quality=92)
                raw.append(stream.getvalue() + MARK)
    paths = [folder / f"{i:05d}{suffix}" for i in range(options.images)]
    for i, path in enumerate(paths):
        path.write_bytes(raw[i % len(raw)].replace(MARK, b"%08d" % i))
    return paths


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


def processor_seconds():
    """Of this process and of all children that ended."""
    found = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(f.ru_utime + f.ru_stime for f in found)


def timed(action):
    """(result, seconds, processor seconds)."""
    begin, used = time.perf_counter(), processor_seconds()
    result = action()
    return result, time.perf_counter() - begin, processor_seconds() - used


def decode_all(paths, workers):
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(decode, paths, chunksize=8))


def compare(paths, options, folder):
    """Per part: images/s and processor milliseconds per image of the decoder alone and of the
    preparation; and the survey of the last part."""
    rows, survey = [], None
    for k, part in enumerate(np.array_split(np.arange(len(paths)), options.repeats)):
        own = [paths[i] for i in part]
        values = values_of(options, folder / f"s{k}")
        _, alone, used_alone = timed(lambda own=own: decode_all(own, options.workers))
        survey, whole, used = timed(
            lambda own=own, values=values: build.inspect(
                cases_of(own), values, False, options.workers
            )
        )
        assert survey.decoded == len(own)
        n = len(own)
        rows.append((n / alone, n / whole, 1000 * used_alone / n, 1000 * used / n))
        print(
            "part {}: decoder alone {:.1f}, preparation {:.1f} images/s; {:.1f} and {:.1f} ms of a "
            "core per image; {} refused".format(k, *rows[-1], len(survey.refused))
        )
    return rows, survey


LARGE = """
import sys, time
from pathlib import Path
from mdmt.data import store
source, target, count = store.Store(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
usable = [e for e in source.entries if "reason" not in e]

def private():
    lines = Path("/proc/self/status").read_text().splitlines()
    return max(int(l.split()[1]) for l in lines if l.startswith("RssAnon")) / 1024

before, begin = private(), time.perf_counter()
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
      f"{time.perf_counter() - begin:.2f} s; {made.nbytes() / 2**20:.0f} MiB on the disk, private "
      f"memory of the process grew by {private() - before:.0f} MiB")
"""


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
        paths = files(folder / "images", options)
        rows, survey = compare(paths, options, folder)
        alone, whole, used_alone, used = (statistics.median(c) for c in zip(*rows))
        by_time = statistics.median(b / a for a, b, _, _ in rows)
        by_work = statistics.median(c / d for _, _, c, d in rows)
        own, child = (
            resource.getrusage(who).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
            for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        print(
            f"{machine.cpu_name()}: {len(paths)} images ({options.kind}, crop {options.crop}), "
            f"{options.workers} processes: decoder alone {alone:.1f}, preparation {whole:.1f} "
            f"images/s ({100 * by_time:.0f} %); {used_alone:.1f} and {used:.1f} ms of a core per "
            f"image ({100 * by_work:.0f} %); memory {own:.0f} MiB, largest worker {child:.0f} MiB"
        )
        sys.stdout.flush()
        subprocess.run(
            [sys.executable, "-c", LARGE, survey.store.folder, folder / "large-1",
             str(options.store_images)],
            check=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
