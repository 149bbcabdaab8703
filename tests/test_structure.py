"""The shape of the sources: who may include and import whom, lengths, what the README says."""

import ast
import re
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent
CSRC, PACKAGE = TOP / "csrc", TOP / "mdmt"
C_FILES = sorted(p for s in ("*.c", "*.h", "*.cu", "*.cuh") for p in CSRC.rglob(s))
C_TESTS = sorted((TOP / "tests" / "c").glob("*.c"))
PY_FILES = sorted(
    p for f in ("mdmt", "tests", "benchmarks") for p in (TOP / f).rglob("*.py")
) + [TOP / "setup.py"]  # fmt: skip

# A folder may include only what stands before it; cpu and cuda do not see each other.
FOLDERS = ["base", "ir", "ops", "backend.h", "cpu", "cuda", "exec", "train", "py"]
MAX_LINES, MAX_FUNCTION = 800, 80

# The order of the data's way: a module may import only from its own stage or an earlier one. The
# stages of a line are level with each other.
STAGES = [
    ["__init__", "_core", "errors", "kinds", "schema", "config", "paths", "shown", "system",
     "apart", "alone", "checked",
     "py"],
    ["ops", "sampler", "loss", "augmentation", "schedule", "metrics", "measures", "points",
     "weighting"],
    ["nets", "weights", "onnx", "summary", "inputs", "groups"],
    ["network"],
    ["model"],
    ["engine"],
    ["data"],
    ["preprocess"],
    ["published"],
    ["kfold"],
    ["audit"],
    ["splits"],
    ["experiments"],
    ["runner"],
    ["study", "results", "mask_study", "known"],
    ["prepare", "predict"],
    ["stats"],
    ["analysis"],
    ["tables"],
    ["plots"],
    ["report"],
    ["checks", "explain", "evaluate"],
    ["cli", "run", "__main__"],
]  # fmt: skip
# heavy module -> the only place that may import it
HEAVY = {
    "dask": "runner", "distributed": "runner", "dask_jobqueue": "runner",
    "matplotlib": "plots", "pydicom": "data/dicom.py",
}  # fmt: skip
NEVER = {"torch", "torchvision", "timm", "cv2", "hydra", "tensorflow"}


def ids(paths):
    return {"argvalues": paths, "ids": lambda p: p.relative_to(TOP).as_posix()}


def folder(path):
    """base, ir, ..., or backend.h itself."""
    first = path.relative_to(CSRC).parts[0]
    return first if first in FOLDERS else None


@pytest.mark.parametrize("path", **ids(C_FILES))
def test_c_includes_only_what_stands_above(path):
    own = folder(path)
    assert own, f"{path} is in no folder of the design"
    allowed = set(FOLDERS[: FOLDERS.index(own) + 1])
    if own == "cuda":
        allowed -= {"cpu"}
    for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), re.M):
        target = (path.parent / name).resolve()
        assert target.exists(), f"{path}: {name} is not there"
        assert folder(target) in allowed, f"{path.relative_to(TOP)} includes {name}"
    if own != "py":
        assert not re.search(r"#\s*include\s+[<\"](Python|numpy)", path.read_text())


@pytest.mark.parametrize("path", **ids(C_FILES))
def test_c_never_exits_or_prints(path):
    text = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.S)
    assert not re.search(r"\b(exit|abort|printf|puts|perror)\s*\(", text)


def c_functions(path):
    """(line, length) of every function: from the line before a `{` in column 0 to its `}`."""
    lines, start = path.read_text().splitlines(), None
    for number, line in enumerate(lines, 1):
        if line == "{":
            start = number
        elif line == "}" and start:
            yield start, number - start + 1
            start = None


@pytest.mark.parametrize("path", **ids(C_FILES + C_TESTS))
def test_c_lengths(path):
    assert len(path.read_text().splitlines()) <= MAX_LINES
    long = [(line, n) for line, n in c_functions(path) if n > MAX_FUNCTION]
    assert not long, f"functions over {MAX_FUNCTION} lines (line, length): {long}"


@pytest.mark.parametrize("path", **ids(PY_FILES))
def test_python_lengths(path):
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_LINES
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    long = [
        (node.name, node.end_lineno - node.lineno + 1)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, kinds) and node.end_lineno - node.lineno + 1 > MAX_FUNCTION
    ]
    assert not long, f"functions over {MAX_FUNCTION} lines: {long}"


def imports(path):
    """Every module that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                base = path.relative_to(TOP).with_suffix("").parts[: -node.level]
                module = ".".join([*base, *([module] if module else [])])
            yield module
            if module == "mdmt":
                yield from (f"mdmt.{alias.name}" for alias in node.names)


def stage(name):
    for number, names in enumerate(STAGES):
        if name in names:
            return number
    return None


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", **ids(MODULES))
def test_python_imports_go_with_the_data(path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    assert stage(own) is not None, f"mdmt.{own} has no stage: add it to STAGES"
    for module in imports(path):
        parts = module.split(".")
        if parts[0] == "mdmt" and len(parts) > 1 and stage(parts[1]) is not None:
            assert stage(parts[1]) <= stage(own), f"mdmt.{own} imports {module}"
        assert parts[0] not in NEVER, f"{path.name} imports {module}"
        if parts[0] in HEAVY:
            place = path.relative_to(PACKAGE).as_posix()
            assert place.startswith(HEAVY[parts[0]]), f"{place} imports {module}"


def test_top_level_holds_what_is_described():
    allowed = {
        "pyproject.toml", "setup.py", "csrc", "mdmt", "notebooks", "tests", "benchmarks",
        "README.md", ".ci", "LICENSE", "CONTRIBUTING.md", "CHANGELOG.md", "MANIFEST.in",
        ".clang-format", ".gitignore", ".git",
    }  # fmt: skip
    if not (TOP / ".git").exists():
        pytest.skip("not a clone: generated files lie about")
    ignored = {"build", "dist", ".venv", "tmp", "runs", "results", "mdmt_demo", "setup.cfg"}
    found = {p.name for p in TOP.iterdir() if not p.name.startswith(".") or p.name in allowed}
    found = {n for n in found if not n.endswith((".egg-info", "_cache", "__"))}
    assert found - ignored <= allowed


def test_readme_has_the_two_commands_and_existing_links():
    text = (TOP / "README.md").read_text()
    assert "\n    pip install . && python -m mdmt.run\n" in text
    assert '\n    pip install ".[test]" && pytest\n' in text
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/RESULTS.md"):
        page = TOP / name
        links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text())
        missing = [link for link in links if not (page.parent / link).exists()]
        assert not missing, f"{name} links to {missing}"


def test_supported_python():
    assert sys.version_info >= (3, 10)


def uses(node):
    """Names that a function mentions, and those of the fixtures that it takes."""
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    names |= {f"{n.value.id}.{n.attr}" for n in ast.walk(node)
              if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)}  # fmt: skip
    calls = [n for n in ast.walk(node) if isinstance(n, ast.Call) and n.args]
    names |= {ast.unparse(n.args[0]) for n in calls if ast.unparse(n.func) == "pytest.importorskip"}
    return names | {a.arg for a in node.args.args}


def test_comparisons_with_pytorch_are_marked():
    """`pytest -m oracle` is all of them: what needs PyTorch itself, or by way of a function of the
    same file, has the mark."""
    missing, marked = [], 0
    for path in sorted((TOP / "tests").glob("test_*.py")):
        tree = ast.parse(path.read_text())
        if "pytestmark = pytest.mark.oracle" in path.read_text():
            marked += 1
            continue
        functions = {n.name: n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
        need = {"oracle.need", "oracle.load", "'torch'", "torch_or_skip"}
        while more := {k for k, n in functions.items() if k not in need and uses(n) & need}:
            need |= more
        for name in sorted(need & set(functions)):
            decorators = [ast.unparse(d) for d in functions[name].decorator_list]
            if name.startswith("test_") and "pytest.mark.oracle" not in decorators:
                missing.append(f"{path.name}::{name}")
            marked += name.startswith("test_")
    assert not missing and marked > 10
