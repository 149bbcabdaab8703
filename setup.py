"""Builds the C engine `mdmt._core` and, where nvcc is found, the CUDA backend `mdmt._cuda`;
everything else is in pyproject.toml.

All of csrc/**.c except csrc/cuda is compiled file by file, in parallel, and only what changed
(or whose headers changed) is compiled again. The suffix of a file names the instruction set it
is compiled for: `_avx2.c`, `_avx512.c`, `_bf16.c` (AVX-512 with bfloat16), `_neon.c` (every
aarch64); on other processors these are empty.

Environment: CC, CPPFLAGS, CFLAGS, LDFLAGS as usual, on a Mac ARCHFLAGS ("-arch arm64 -arch x86_64")
and MACOSX_DEPLOYMENT_TARGET, too; MDMT_WERROR=1 makes warnings errors;
MDMT_SANITIZE=address,undefined builds with sanitizers; MDMT_BUILD_JOBS=n compiles n files at once.
MDMT_CUDA=skip leaves the CUDA backend out, require fails without it; nvcc (CUDA 12 or newer) is
looked for on PATH, in CUDA_HOME, in /usr/local/cuda and among the packages of pip, a PyTorch's
included; MDMT_CUDA_ARCHS="90 120" names the GPUs to compile for.
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

ROOT = Path(__file__).resolve().parent
FLAGS = [
    "-std=c11",
    "-O3",
    "-fPIC",
    "-pthread",
    "-fvisibility=hidden",
    # Values never depend on the compiler's taste: a fused multiply-add is one only where it is
    # written so. errno and traps are not used.
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    # Ops keep their attributes as bytes and read them as the struct of their record.
    "-fno-strict-aliasing",
    "-Wall",
    "-Wextra",
]
AVX512_FLAGS = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"]
ISA_FLAGS = {
    "_avx2.c": ["-mavx2", "-mfma"],
    "_avx512.c": AVX512_FLAGS,
    "_bf16.c": [*AVX512_FLAGS, "-mavx512bf16"],
}
# gcc, not clang: otherwise it brings loads forward until the sums of a tile no longer fit into the
# 32 registers.
GCC_NEON_FLAG = "-fno-schedule-insns"


NVCC_FLAGS = [
    "-std=c++17",
    "-O3",
    "-Xfatbin=-compress-all",
    "-Xcompiler=-fPIC,-fvisibility=hidden,-fno-strict-aliasing,-Wall,-Wextra",
]
# Compute capabilities with code of their own; the last one's PTX serves what comes after.
CUDA_ARCHS = "80 86 89 90 100 120"
SYSTEM_CUDA = "/usr/local/cuda/bin"


def sources():
    """Paths relative to the top level, in a fixed order."""
    found = (p.relative_to(ROOT) for p in (ROOT / "csrc").rglob("*.c"))
    return sorted(p.as_posix() for p in found if "cuda" not in p.parts[1:3])


def cuda_sources():
    """What mdmt._cuda is made of: kernels and backend, and the binding."""
    found = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "csrc/cuda").glob("*.cu"))
    return [*found, "csrc/py/cuda/module.c"]


def find_nvcc():
    """The CUDA compiler, or None: in CUDA_HOME, on PATH, in /usr/local/cuda, or among packages of
    pip (nvidia-cuda-nvcc: nvidia/cuda_nvcc/bin, nvidia/cu13/bin)."""
    homes = [os.environ.get(v) for v in ("CUDA_HOME", "CUDA_PATH")]
    found = [shutil.which("nvcc", path=str(Path(h, "bin"))) for h in homes if h]
    found += [shutil.which("nvcc"), shutil.which("nvcc", path=SYSTEM_CUDA)]
    for site in dict.fromkeys([*sys.path, sysconfig.get_paths()["purelib"]]):
        places = sorted(Path(site, "nvidia").glob("*/bin")) if site else []
        found += [shutil.which("nvcc", path=str(p)) for p in places]
    return next((n for n in found if n), None)


def said_by(*command):
    """What a command prints, or "" where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout if done.returncode == 0 else ""


def knows_flag(compiler, *flag):
    """Whether the compiler (a list) takes this flag (of one or more words) without complaint."""
    tried = [*compiler, "-Werror", *flag, "-fsyntax-only", "-x", "c", os.devnull]
    try:
        return subprocess.run(tried, capture_output=True).returncode == 0
    except OSError:
        return False


def cuda_archs(nvcc):
    """Compute capabilities to compile for: those asked for, else those of ours that nvcc knows."""
    asked = os.environ.get("MDMT_CUDA_ARCHS", "").replace(",", " ").split()
    if asked:
        wrong = [a for a in asked if not re.fullmatch(r"[1-9][0-9]{1,2}[af]?", a)]
        if wrong:
            raise CompileError(f"MDMT_CUDA_ARCHS holds {wrong[0]!r}; give numbers as 80 or 90a")
        return asked
    known = re.findall(r"compute_(\d+)", said_by(nvcc, "--list-gpu-arch"))
    return [a for a in CUDA_ARCHS.split() if a in known] or CUDA_ARCHS.split()


def too_old(nvcc):
    """Why this nvcc cannot be used, or None."""
    release = re.search(r"release (\d+)\.(\d+)", said_by(nvcc, "--version"))
    if not release:
        return f"{nvcc} does not run"
    if int(release[1]) < 12:
        return f"{nvcc} is of CUDA {release[1]}.{release[2]}, but 12.0 or newer is needed"
    return None


def wheel_flags(nvcc):
    """Where the packages of pip keep the headers and libraries that belong to this nvcc: beside it,
    or each in a folder of its own (nvidia/cuda_runtime, nvidia/cuda_cccl)."""
    home = Path(nvcc).resolve().parent.parent
    if (home / "include" / "cuda_runtime.h").exists():
        places = [home]
    else:
        places = [p for p in sorted(home.parent.glob("*")) if (p / "include").is_dir()]
    flags = [f"-I{p / 'include'}" for p in places]
    return flags + [f"-L{p / 'lib'}" for p in places if (p / "lib").is_dir()]


def want_cuda():
    """The path of nvcc when the CUDA backend is to be built, else None."""
    wish = os.environ.get("MDMT_CUDA", "")
    if wish not in ("", "skip", "require"):
        raise CompileError(f"MDMT_CUDA is {wish!r}; use require or skip, or leave it out")
    if wish == "skip" or (os.environ.get("MDMT_SANITIZE") and not wish):
        return None
    nvcc = find_nvcc()
    why = too_old(nvcc) if nvcc else "nvcc was not found: put it on PATH, or set CUDA_HOME"
    if why and wish == "require":
        raise CompileError(f"MDMT_CUDA=require, but {why}")
    if why and nvcc:
        print(f"mdmt._cuda: {why}", file=sys.stderr)
    return None if why else nvcc


def tell(line):
    """A line that a person sees although pip keeps what a build prints to itself, where there is a
    terminal; and in the log of the build."""
    print(line, flush=True)
    try:
        with open("/dev/tty", "w") as terminal:
            if not sys.stdout.isatty():
                print(f"\n{line}", file=terminal, flush=True)
    except OSError:
        pass  # no terminal


def c_compiler():
    """The command of the C compiler as a list: CC, Python's own, or the first that is found."""
    for command in (os.environ.get("CC"), sysconfig.get_config_var("CC"), "cc", "gcc", "clang"):
        words = shlex.split(command or "")
        if words and shutil.which(words[0]):
            return words
    raise CompileError("no C compiler was found: install gcc or clang, or set CC to one")


def mac_flags(compiler):
    """What a Mac's compiler is told besides: the architectures in ARCHFLAGS, else those that Python
    itself was built for (two in python.org's, and the wheel's name says so), else its processor's;
    and the oldest macOS that Python runs on. Elsewhere nothing."""
    if sys.platform != "darwin":
        return []
    archs = [platform.machine()]
    for text in (os.environ.get("ARCHFLAGS"), sysconfig.get_config_var("CFLAGS")):
        found = re.findall(r"-arch\s+(\S+)", text or "")
        if found:
            archs = list(dict.fromkeys(found))
            break
    if len(archs) > 1 and "clang" not in said_by(*compiler, "--version"):
        archs = [platform.machine()]  # gcc makes one at a time
    oldest = os.environ.get("MACOSX_DEPLOYMENT_TARGET")
    oldest = oldest or sysconfig.get_config_var("MACOSX_DEPLOYMENT_TARGET")
    flags = [word for arch in archs for word in ("-arch", arch)]
    return flags + ([f"-mmacosx-version-min={oldest}"] if oldest else [])


def jobs():
    """How many files are compiled at once."""
    asked = os.environ.get("MDMT_BUILD_JOBS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    affinity = getattr(os, "sched_getaffinity", None)
    return max(2, len(affinity(0)) if affinity else os.cpu_count() or 1)


class Unit:
    """One source file on its way to an object file."""

    def __init__(self, source, objects, command):
        stem = source.removeprefix("csrc/").replace("/", "-")
        self.source = source
        self.object = objects / f"{stem}.o"
        self.depfile = objects / f"{stem}.d"
        self.stamp = objects / f"{stem}.command"
        self.command = [*command, "-MMD", "-MF", str(self.depfile), "-c", source]
        self.command += ["-o", str(self.object)]

    def is_current(self):
        """Whether the object is newer than all it was made from, by the same command."""
        try:
            if self.stamp.read_text() != shlex.join(self.command):
                return False
            made = self.object.stat().st_mtime_ns
            rule = self.depfile.read_text().replace("\\\n", " ").split(":", 1)[1]
            names = [n.replace("\\ ", " ") for n in re.findall(r"(?:\\ |\S)+", rule)]
            return all((ROOT / n).stat().st_mtime_ns <= made for n in names)
        except (OSError, IndexError):
            return False

    def compile(self):
        """Returns what the compiler said; raises CompileError when it refuses."""
        self.stamp.unlink(missing_ok=True)
        done = subprocess.run(self.command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise CompileError(f"{shlex.join(self.command)}\n{done.stderr}")
        self.stamp.write_text(shlex.join(self.command))
        return done.stderr


class BuildEngine(build_ext):
    """build_ext that compiles in parallel and only what is out of date."""

    def build_extension(self, ext):
        if ext.name == "mdmt._cuda":
            self.build_cuda(ext)
            return
        compiler = c_compiler()
        compiler += mac_flags(compiler)
        sanitize = os.environ.get("MDMT_SANITIZE", "")
        flavour = f"sanitize-{sanitize}" if sanitize else "plain"
        objects = Path(self.build_temp).resolve() / flavour
        objects.mkdir(parents=True, exist_ok=True)
        instrument = []
        if sanitize:
            instrument = [f"-fsanitize={sanitize}", "-fno-sanitize-recover=undefined"]
            instrument += ["-fno-omit-frame-pointer", "-g", "-O1"]
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        units = self.units(objects, compiler, instrument)
        self.compile_units([u for u in units if self.force or not u.is_current()], len(units))
        self.link(units, target, [*compiler, *instrument])
        if not sanitize:
            self.copy_beside_sources(target)

    @staticmethod
    def copy_beside_sources(target):
        """`python -m mdmt.run` at the top level of a clone imports ./mdmt, which comes before the
        installed package: it needs the engine, too."""
        place = ROOT / "mdmt" / target.name
        if place == target:
            return
        fresh = place.with_suffix(".new")
        try:
            shutil.copy2(target, fresh)
            fresh.replace(place)
        except OSError as error:  # a read-only source tree: the installed package is complete
            print(f"mdmt._core: not copied to {place}: {error}", file=sys.stderr)

    def build_cuda(self, ext):
        nvcc = want_cuda()
        if not nvcc:
            skipped = os.environ.get("MDMT_CUDA") == "skip"
            why = "left out" if skipped else "no nvcc of CUDA 12 or newer was found"
            print(f"mdmt._cuda: {why}; the package runs on the CPU", flush=True)
            Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)  # of an earlier build
            return
        objects = Path(self.build_temp).resolve() / "cuda"
        objects.mkdir(parents=True, exist_ok=True)
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            archs = cuda_archs(nvcc)
            tell(
                f"mdmt._cuda: compiling the CUDA backend with {nvcc} for the compute capabilities "
                f"{' '.join(archs)} (about two minutes on two cores; MDMT_CUDA=skip leaves it out, "
                f"MDMT_CUDA_ARCHS={archs[-1]} compiles for one alone)"
            )
            units = self.cuda_units(objects, nvcc, archs)
            self.compile_units(
                [u for u in units if self.force or not u.is_current()], len(units), ext.name
            )
            made = [str(u.object) for u in units]
            command = [nvcc, "-shared", "-cudart", "static", *wheel_flags(nvcc), *made]
            command += ["-Xlinker=--exclude-libs,ALL", "-ldl", "-lrt", "-lpthread"]
            self.link_command([*command, "-o", str(target)], units, target)
        except (CompileError, LinkError) as error:
            if os.environ.get("MDMT_CUDA") == "require":
                raise
            # A toolkit that does not work here must not keep anybody from the CPU.
            print(f"mdmt._cuda: not built, the package runs on the CPU: {error}", file=sys.stderr)
            return
        self.copy_beside_sources(target)

    def cuda_units(self, objects, nvcc, archs):
        code = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
        code.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
        strict = os.environ.get("MDMT_WERROR") == "1"
        flags = [
            *NVCC_FLAGS,
            *code,
            *wheel_flags(nvcc),
            *(["-Werror", "all-warnings"] if strict else []),
        ]
        units = []
        for source in cuda_sources():
            if source.endswith(".cu"):
                units.append(Unit(source, objects, [nvcc, *flags]))
            else:
                how = [*c_compiler(), *FLAGS, *(["-Werror"] if strict else [])]
                units.append(Unit(source, objects, [*how, *self.binding_flags()]))
        return units

    def units(self, objects, compiler, instrument):
        archs = [arch for flag, arch in pairwise(compiler) if flag == "-arch"]
        archs = archs or [said_by(*compiler, "-dumpmachine").split("-")[0]]
        x86 = "x86_64" in archs
        only = ["-Xarch_x86_64"] if len(archs) > 1 else []
        flags = [*FLAGS, *instrument]
        if os.environ.get("MDMT_WERROR") == "1":
            flags.append("-Werror")
        user = [f for v in ("CPPFLAGS", "CFLAGS") for f in shlex.split(os.environ.get(v, ""))]
        if not (x86 and knows_flag(compiler, *only, "-mavx512bf16")):
            flags.append("-DMDMT_NO_BF16")
        neon = [] if x86 or not knows_flag(compiler, GCC_NEON_FLAG) else [GCC_NEON_FLAG]
        units = []
        for source in sources():
            extra = [f for s, fs in ISA_FLAGS.items() if x86 and source.endswith(s) for f in fs]
            if "-DMDMT_NO_BF16" in flags:
                extra = [f for f in extra if f != "-mavx512bf16"]
            extra = [word for f in extra for word in (*only, f)]
            extra += neon if source.endswith("_neon.c") else []
            if source.startswith("csrc/py/"):
                extra += self.binding_flags()
            units.append(Unit(source, objects, [*compiler, *flags, *extra, *user]))
        return units

    @staticmethod
    def binding_flags():
        """Only csrc/py sees the headers of Python and NumPy."""
        import numpy

        paths = (sysconfig.get_paths()["include"], sysconfig.get_paths()["platinclude"])
        found = [f"-I{p}" for p in dict.fromkeys(paths)] + ["-isystem", numpy.get_include()]
        return [*found, "-DNPY_NO_DEPRECATED_API=NPY_1_19_API_VERSION"]

    def compile_units(self, stale, total, name="mdmt._core"):
        print(f"{name}: {len(stale)} of {total} files to compile", flush=True)
        with ThreadPoolExecutor(jobs()) as pool:
            running = [(unit, pool.submit(unit.compile)) for unit in stale]
            try:
                for unit, result in running:
                    said = result.result()
                    print(f"  {unit.source}", flush=True)
                    if said:
                        print(said, file=sys.stderr)
            except CompileError:
                pool.shutdown(cancel_futures=True)
                raise

    def link(self, units, target, compiler):
        inputs = [u.object for u in units]
        how = ["-shared"]
        if sys.platform == "darwin":
            how = ["-bundle", "-undefined", "dynamic_lookup"]
        command = [*compiler, *how, *map(str, inputs), "-pthread", "-lm", "-o", str(target)]
        command += shlex.split(os.environ.get("LDFLAGS", ""))
        self.link_command(command, units, target)

    def link_command(self, command, units, target):
        newest = max(u.object.stat().st_mtime_ns for u in units)
        stamp = units[0].object.parent / "link.command"
        same = stamp.exists() and stamp.read_text() == shlex.join(command)
        if same and target.exists() and target.stat().st_mtime_ns >= newest and not self.force:
            return
        stamp.unlink(missing_ok=True)
        # A process that has the old file mapped keeps it: never write into it.
        target.unlink(missing_ok=True)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise LinkError(f"{shlex.join(command)}\n{done.stderr}")
        stamp.write_text(shlex.join(command))


setup(
    ext_modules=[
        Extension("mdmt._core", sources()),
        Extension("mdmt._cuda", cuda_sources(), optional=os.environ.get("MDMT_CUDA") != "require"),
    ],
    cmdclass={"build_ext": BuildEngine},
)
