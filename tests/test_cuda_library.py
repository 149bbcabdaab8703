"""Finding cuDNN, refusing what is none, and what the backend tells it: against a library that
carries out the descriptions by their definition (tests/c/fake_cudnn.c)."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from mdmt import _core, system
from tests import cudahost
from tests.opcase import check
from tests.optable import CASES, convolutions
from tests.test_cuda_ops import library_unit, to_bf16
from tests.test_unet import discs, normalised, tiny

no_race = cudahost.no_race
FAKE = Path(__file__).parent / "c" / "fake_cudnn.c"
PASSES = ("conv2d", "conv2d_bwd_data", "conv2d_bwd_weight")


def fake(folder, version=91002, source=FAKE, name=None, *more):
    if cudahost.compilers() is None:
        pytest.skip("no C compiler is here")
    target = folder / (name or f"libcudnn-{version}.so")
    flags = ["-std=c11", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror"]
    flags.append(f"-DMDMT_FAKE_VERSION={version}")
    command = [*cudahost.compilers()[1], *flags, *more, str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def fresh(folder):
    """A module of its own: a library that was loaded stays in it."""
    cudahost.module()
    path = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    shutil.copy2(cudahost.module().__file__, path)
    return cudahost.load(path)


@pytest.fixture(scope="module")
def with_library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cudnn")
    module = fresh(folder)
    assert module.load_cudnn(str(fake(folder))) == (91002, "cuDNN 9.10.2")
    return module


def small(case):
    """Dense ones of a map, and those of an image."""
    weights = set(case.feeds.values()) & {"w_depth", "w_grouped"}
    grouped = weights or "groups" in case.name or "depth" in case.name
    no_gradient = case.op == "conv2d_bwd_data" and "image" in case.name
    return case.op in PASSES and case.macs < 4e5 and not grouped and not no_gradient


def uneven(case):
    """Whether one side is padded more than the other."""
    pad = re.search(r"pad=(\d+)x(\d+)x(\d+)x(\d+)", case.name)
    return bool(pad) and (pad[1], pad[2]) != (pad[3], pad[4])


def folds(case):
    """Whether the four pixels of a square can become the channels of one."""
    return "image" in case.name and "stride=2x2" in case.name and "dilation" not in case.name


TABLE = [c for c in CASES if small(c) and not (uneven(c) and not folds(c))]
UNEVEN = [c for c in CASES if small(c) and uneven(c) and not folds(c)]

# The stems of the backbones, whole and ragged images, padded as PyTorch and as TensorFlow does it.
STEMS = [
    case
    for x, k, kernel, pad in [
        ((2, 3, 16, 14), 16, (7, 7), (3, 3, 3, 3)),
        ((1, 3, 15, 17), 11, (7, 7), (3, 3, 3, 3)),
        ((2, 3, 12, 12), 8, (3, 3), (1, 1, 1, 1)),
        ((1, 1, 13, 12), 24, (3, 3), (1, 1, 1, 1)),
        ((1, 3, 12, 13), 8, (3, 3), (0, 0, 1, 1)),
        ((1, 4, 11, 10), 8, (5, 3), (1, 0, 2, 1)),
        ((1, 3, 9, 9), 8, (2, 4), (0, 0, 0, 0)),
    ]
    for case in convolutions(x, k, kernel, image=True, bias=True, stride=(2, 2), pad=pad)
    if case.op in ("conv2d", "conv2d_bwd_weight")
]


def program_of(case, module, precision, kernel=None):
    graph, _ = case.graph(_core)
    return _core.Program(graph, kernel=kernel, device=(module.module, 0, precision))


def run(case, module, precision, arrays=None):
    """By the library where it can do the case, even if a kernel of the backend's would be taken."""
    kernel = None if case in UNEVEN else f"cuda_{case.op}_cudnn"
    program, made = program_of(case, module, precision, kernel), case.arrays()
    got = {k: np.array(v) for k, v in program.run(arrays or made).items()}
    got |= {name: np.array(program.read(name)) for name in case.reads}
    return got, next(kernel for op, kernel in program.kernels() if op == case.op)


def test_the_table_has_every_pass_with_addend_and_lazy_input():
    names = {c.op for c in TABLE}
    assert names == set(PASSES)
    for word in ("lazy", "addend", "image"):
        assert any(word in c.name for c in TABLE), word


def test_a_network_for_masks_trains_with_it(with_library, monkeypatch):
    """Its head gives one channel."""
    monkeypatch.setitem(sys.modules, "mdmt._cuda", with_library)
    monkeypatch.setenv("MDMT_CUDA_TUNE", "off")
    pictures, masks = discs(2, 16)
    here, there = tiny(size=16), tiny(size=16, device="cuda")
    there.load_state_dict(here.state_dict())
    x, soft = normalised(here, pictures), masks / np.float32(255)
    (loss, found), (exact, true) = (m.loss_and_gradients(x, [0] * 2, soft) for m in (there, here))
    assert loss == pytest.approx(exact, rel=1e-5)
    mode = there._mode(2, (16, 16), True, True)
    kernels = [op["kernel"] for op in there._network.describe(mode) if op["op"] in PASSES]
    stem = {"cuda_conv2d_stem3", "cuda_conv2d_bwd_weight_stem3"}
    assert len(kernels) > 20 and all(
        kernel.endswith("_cudnn") for kernel in kernels if kernel not in stem
    )
    for name, value in true.items():
        assert np.linalg.norm(found[name] - value) < 1e-3 * np.linalg.norm(value) + 1e-6, name


def test_starts_behind_the_librarys_kernels_can_be_kept_apart(with_library, monkeypatch):
    """MDMT_CUDA_OVERLAP=own: fewer kernels start early than with on, and with off none."""
    monkeypatch.setitem(sys.modules, "mdmt._cuda", with_library)
    monkeypatch.setenv("MDMT_CUDA_TUNE", "off")
    _, get = cudahost.knobs(with_library)
    pictures, _ = discs(2, 16)
    early = {}
    for way in ("on", "own", "off"):
        monkeypatch.setenv("MDMT_CUDA_OVERLAP", way)
        model = tiny(size=16, device="cuda")
        before = get("overlapped"), get("launches")
        model.forward(normalised(model, pictures))
        early[way] = get("overlapped") - before[0]
        launched = get("launches") - before[1]
    assert 0 == early["off"] < early["own"] < early["on"] == launched


@pytest.mark.parametrize("case", TABLE, ids=lambda c: c.id)
def test_what_is_described_is_the_convolution(case, with_library):
    got, kernel = run(case, with_library, "fp32")
    assert kernel == f"cuda_{case.op}_cudnn"
    check(case, got, kernel)


@pytest.mark.parametrize("case", TABLE[::3] + STEMS, ids=lambda c: c.id)
def test_in_bfloat16_too(case, with_library):
    arrays = case.arrays()
    for name, feed in case.feeds.items():
        if feed.startswith(("map", "w_dense", "w_stem", "image")):
            arrays[name] = to_bf16(arrays[name])
    got, kernel = run(case, with_library, "bf16", arrays)
    assert kernel == f"cuda_{case.op}_cudnn"
    outputs, bounds = case.expected(arrays)
    exact = {k: v.astype(np.float64) for k, v in arrays.items()}
    sizes = case.magnitude(exact)
    for name, value in outputs.items():
        size = np.maximum(np.abs(sizes.get(name, value)), np.abs(value))
        error = np.abs(got[name].astype(np.float64) - value)
        assert (error <= bounds[name] + library_unit(case) * size).all(), name


def modules_by_form(tmp_path, monkeypatch):
    """A module for which folded stems are faster, then one for which plain ones are."""
    for faster in ("folded", "plain"):
        folder = tmp_path / faster
        folder.mkdir()
        module = fresh(folder)
        assert module.load_cudnn(str(fake(folder)))[0]
        if faster == "plain":
            monkeypatch.setenv("FAKE_CUDNN_STRIDED", "1")
        yield faster, module


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
@pytest.mark.parametrize("case", STEMS, ids=lambda c: c.id)
def test_stems_in_both_forms(case, precision, tmp_path, monkeypatch):
    """Both are measured, and either is right; plain only where paddings are even."""
    for _, module in modules_by_form(tmp_path, monkeypatch):
        got, kernel = run(case, module, precision)
        assert kernel == f"cuda_{case.op}_cudnn"
        check(case, got, kernel)
        steps = {int(line.split()[15]) for line in module.tuning(0)[1].splitlines()}
        assert steps == ({1} if uneven(case) else {1, 2})


def test_the_faster_form_of_a_stem_is_taken(tmp_path, monkeypatch):
    """Seen by the memory that its map takes."""
    case = next(c for c in STEMS if c.op == "conv2d" and not uneven(c))
    workspace = {}
    for faster, module in modules_by_form(tmp_path, monkeypatch):
        workspace[faster] = program_of(case, module, "fp32").memory()
    assert workspace["folded"] != workspace["plain"]


@pytest.mark.parametrize("case", UNEVEN, ids=lambda c: c.id)
def test_uneven_padding_is_not_left_to_the_library(case, with_library):
    got, kernel = run(case, with_library, "fp32")
    assert not kernel.endswith("_cudnn")
    check(case, got, kernel)


def test_own_kernels_where_the_library_is_not_wanted(with_library):
    case = next(c for c in TABLE if c.op == "conv2d" and "image" not in c.name)
    graph, _ = case.graph(_core)
    program = _core.Program(graph, device=(with_library.module, 0, "fp32", False))
    assert ("conv2d", "cuda_conv2d_dense") in program.kernels()


@pytest.mark.parametrize("version", [8907, 90001, 100000])
def test_other_versions_are_refused(version, tmp_path):
    found, text = fresh(tmp_path).load_cudnn(str(fake(tmp_path, version)))
    assert found == 0
    assert f"is cuDNN {version}, but 9.1 or a later 9 is needed" in text


@pytest.mark.parametrize("where", ["cudnn/lib", "cublas/lib", "cu13/lib"])
def test_without_its_companion_it_is_refused(tmp_path, where):
    """cuDNN would end the process where libcublasLt is missing, when it is asked for an engine."""
    place = tmp_path / "nvidia" / "cudnn" / "lib"
    place.mkdir(parents=True)
    library = fake(place, 91002, FAKE, "libcudnn.so.9", "-DMDMT_FAKE_RUNTIME=99010")
    (tmp_path / "one").mkdir()
    assert fresh(tmp_path / "one").load_cudnn(str(library)) == (
        0, f"{library} needs libcublasLt.so.99, which is not found: pip install nvidia-cublas, or "
           "put its folder into LD_LIBRARY_PATH",
    )  # fmt: skip
    (tmp_path / "nvidia" / where).mkdir(parents=True, exist_ok=True)
    (tmp_path / "nvidia" / "cu13" / "lib").mkdir(parents=True, exist_ok=True)
    empty = tmp_path / "empty.c"
    empty.write_text("int nothing;\n")
    fake(tmp_path / "nvidia" / where, 0, empty, "libcublasLt.so.99")
    (tmp_path / "two").mkdir()
    assert fresh(tmp_path / "two").load_cudnn(str(library)) == (91002, "cuDNN 9.10.2")


def test_what_is_no_library_is_refused(tmp_path):
    module = fresh(tmp_path)
    text = tmp_path / "libcudnn.so.9"
    text.write_text("not a library")
    assert module.load_cudnn(str(text))[0] == 0
    assert module.load_cudnn(str(tmp_path / "missing.so")) == (
        0, f"{tmp_path}/missing.so: cannot open shared object file: No such file or directory",
    )  # fmt: skip
    other = tmp_path / "other.c"
    other.write_text("int nothing(void);\nint nothing(void)\n{\n    return 0;\n}\n")
    found, why = module.load_cudnn(str(fake(tmp_path, 1, other)))
    assert found == 0 and "is no cuDNN with a graph API" in why


def test_where_libraries_are_looked_for(tmp_path, monkeypatch):
    wheel = tmp_path / "site" / "nvidia" / "cudnn" / "lib" / "libcudnn.so.9"
    wheel.parent.mkdir(parents=True)
    wheel.touch()
    torch = tmp_path / "site" / "torch" / "lib" / "libcudnn.so.9"
    torch.parent.mkdir(parents=True)
    torch.touch()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    found = system.cudnn_candidates()
    assert found[-1] == "libcudnn.so.9"
    assert found.index(str(wheel)) < found.index(str(torch))
    monkeypatch.setenv("MDMT_CUDNN", "/some/libcudnn.so")
    assert system.cudnn_candidates() == ["/some/libcudnn.so"]


def number_in(text, name):
    """Of an enumerator that is given by a number."""
    return int(re.search(rf"\b{name}\b\s*=\s*(\d+)", text)[1])


def headers():
    """cudnn_graph.h of every cuDNN that is installed as a package, or lies in a folder that
    MDMT_CUDNN_HEADERS names (separated by colons)."""
    wish = os.environ.get("MDMT_CUDNN_HEADERS", "")
    folders = [Path(f) for f in wish.split(os.pathsep) if f]
    folders += [Path(s, "nvidia", "cudnn", "include") for s in system.site_folders()]
    return [p for f in folders if (p := f / "cudnn_graph.h").exists()]


SIGNATURES = """
size_t (*version)(void) = cudnnGetVersion;
const char *(*error)(cudnnStatus_t) = cudnnGetErrorString;
cudnnStatus_t (*create)(cudnnHandle_t *) = cudnnCreate;
cudnnStatus_t (*destroy)(cudnnHandle_t) = cudnnDestroy;
cudnnStatus_t (*stream)(cudnnHandle_t, cudaStream_t) = cudnnSetStream;
cudnnStatus_t (*make)(cudnnBackendDescriptorType_t, cudnnBackendDescriptor_t *) =
    cudnnBackendCreateDescriptor;
cudnnStatus_t (*drop)(cudnnBackendDescriptor_t) = cudnnBackendDestroyDescriptor;
cudnnStatus_t (*set)(cudnnBackendDescriptor_t, cudnnBackendAttributeName_t,
                     cudnnBackendAttributeType_t, int64_t, const void *) = cudnnBackendSetAttribute;
cudnnStatus_t (*finish)(cudnnBackendDescriptor_t) = cudnnBackendFinalize;
cudnnStatus_t (*execute)(cudnnHandle_t, cudnnBackendDescriptor_t, cudnnBackendDescriptor_t) =
    cudnnBackendExecute;
_Static_assert(sizeof(cudnnBackendAttributeName_t) == sizeof(int), "an enumeration is an int");
"""


def test_numbers_and_functions_are_those_of_the_header(tmp_path):
    """A C compiler compares cudnn_api.h with the headers that are here. Done for cuDNN 9.1.0,
    9.10.2 and 9.28.1."""
    if not headers() or cudahost.compilers() is None:
        pytest.skip("cuDNN's headers are not installed (nvidia-cudnn-cu13)")
    runtime = "#include <stddef.h>\ntypedef struct CUstream_st *cudaStream_t;\n"
    runtime += "typedef struct CUgraph_st *cudaGraph_t;\n"
    (tmp_path / "cuda_runtime_api.h").write_text(runtime)
    (tmp_path / "library_types.h").write_text("typedef int libraryPropertyType;\n")
    ours = (cudahost.CUDA / "cudnn_api.h").read_text()
    lines = [f'_Static_assert({theirs} == {number_in(ours, name)}, "{name}");'
             for name, theirs in NUMBERS.items()]  # fmt: skip
    source = tmp_path / "compare.c"
    source.write_text("\n".join(["#include <cudnn_graph.h>", *lines, SIGNATURES]))
    for header in headers():
        command = [*cudahost.compilers()[1], "-std=c11", f"-I{tmp_path}", f"-I{header.parent}",
                   "-Wno-deprecated-declarations", "-fsyntax-only", str(source)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{header}\n{done.stderr}"


def test_every_number_is_compared():
    ours = (cudahost.CUDA / "cudnn_api.h").read_text()
    assert set(re.findall(r"\b(CUDNN_\w+) = \d+", ours)) == set(NUMBERS)


NUMBERS = {
    "CUDNN_SUCCESS": "CUDNN_STATUS_SUCCESS",
    "CUDNN_CROSS_CORRELATION_MODE": "CUDNN_CROSS_CORRELATION",
    "CUDNN_ENGINE_GLOBAL_INDEX": "CUDNN_ATTR_ENGINE_GLOBAL_INDEX",
    "CUDNN_BF16": "CUDNN_DATA_BFLOAT16", "CUDNN_FLOAT": "CUDNN_DATA_FLOAT",
    "CUDNN_HEUR_A": "CUDNN_HEUR_MODE_A", "CUDNN_HEUR_FALLBACK": "CUDNN_HEUR_MODE_FALLBACK",
    "CUDNN_AS_HANDLE": "CUDNN_TYPE_HANDLE", "CUDNN_AS_DATA_TYPE": "CUDNN_TYPE_DATA_TYPE",
    "CUDNN_AS_INT64": "CUDNN_TYPE_INT64", "CUDNN_AS_FLOAT": "CUDNN_TYPE_FLOAT",
    "CUDNN_AS_POINTER": "CUDNN_TYPE_VOID_PTR", "CUDNN_AS_CONV_MODE": "CUDNN_TYPE_CONVOLUTION_MODE",
    "CUDNN_AS_HEUR_MODE": "CUDNN_TYPE_HEUR_MODE",
    "CUDNN_AS_NUMERICAL_NOTE": "CUDNN_TYPE_NUMERICAL_NOTE",
    "CUDNN_AS_DESCRIPTOR": "CUDNN_TYPE_BACKEND_DESCRIPTOR",
    "CUDNN_IS_CONVOLUTION": "CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR",
    "CUDNN_IS_ENGINE": "CUDNN_BACKEND_ENGINE_DESCRIPTOR",
    "CUDNN_IS_ENGINECFG": "CUDNN_BACKEND_ENGINECFG_DESCRIPTOR",
    "CUDNN_IS_HEURISTIC": "CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR",
    "CUDNN_IS_PLAN": "CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR",
    "CUDNN_IS_CONV_FORWARD": "CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR",
    "CUDNN_IS_CONV_WEIGHT": "CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR",
    "CUDNN_IS_CONV_DATA": "CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR",
    "CUDNN_IS_GRAPH": "CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR",
    "CUDNN_IS_VARIANTS": "CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR",
    "CUDNN_IS_TENSOR": "CUDNN_BACKEND_TENSOR_DESCRIPTOR",
    "CUDNN_CONV_COMPUTE_TYPE": "CUDNN_ATTR_CONVOLUTION_COMP_TYPE",
    "CUDNN_CONV_MODE": "CUDNN_ATTR_CONVOLUTION_CONV_MODE",
    "CUDNN_CONV_DILATIONS": "CUDNN_ATTR_CONVOLUTION_DILATIONS",
    "CUDNN_CONV_STRIDES": "CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES",
    "CUDNN_CONV_POST_PADDINGS": "CUDNN_ATTR_CONVOLUTION_POST_PADDINGS",
    "CUDNN_CONV_PRE_PADDINGS": "CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS",
    "CUDNN_CONV_SPATIAL_DIMS": "CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS",
    "CUDNN_HEUR_MODE": "CUDNN_ATTR_ENGINEHEUR_MODE",
    "CUDNN_HEUR_GRAPH": "CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH",
    "CUDNN_HEUR_RESULTS": "CUDNN_ATTR_ENGINEHEUR_RESULTS",
    "CUDNN_CFG_ENGINE": "CUDNN_ATTR_ENGINECFG_ENGINE",
    "CUDNN_PLAN_HANDLE": "CUDNN_ATTR_EXECUTION_PLAN_HANDLE",
    "CUDNN_PLAN_CFG": "CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG",
    "CUDNN_PLAN_WORKSPACE": "CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE",
    "CUDNN_FORWARD_FIRST": "CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA",
    "CUDNN_DATA_FIRST": "CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA",
    "CUDNN_WEIGHT_FIRST": "CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA",
    "CUDNN_GRAPH_HANDLE": "CUDNN_ATTR_OPERATIONGRAPH_HANDLE",
    "CUDNN_GRAPH_OPS": "CUDNN_ATTR_OPERATIONGRAPH_OPS",
    "CUDNN_TENSOR_ALIGNMENT": "CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT",
    "CUDNN_TENSOR_TYPE": "CUDNN_ATTR_TENSOR_DATA_TYPE",
    "CUDNN_TENSOR_DIMENSIONS": "CUDNN_ATTR_TENSOR_DIMENSIONS",
    "CUDNN_TENSOR_STRIDES": "CUDNN_ATTR_TENSOR_STRIDES",
    "CUDNN_TENSOR_ID": "CUDNN_ATTR_TENSOR_UNIQUE_ID",
    "CUDNN_VARIANT_IDS": "CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS",
    "CUDNN_VARIANT_POINTERS": "CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS",
    "CUDNN_VARIANT_WORKSPACE": "CUDNN_ATTR_VARIANT_PACK_WORKSPACE",
    "CUDNN_ENGINE_NUMERICAL_NOTE": "CUDNN_ATTR_ENGINE_NUMERICAL_NOTE",
    "CUDNN_NOTE_TENSOR_CORE": "CUDNN_NUMERICAL_NOTE_TENSOR_CORE",
    "CUDNN_NOTE_DOWN_CONVERT": "CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS",
    "CUDNN_NOTE_REDUCED_REDUCTION": "CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION",
    "CUDNN_NOTE_FFT": "CUDNN_NUMERICAL_NOTE_FFT",
    "CUDNN_NOTE_NONDETERMINISTIC": "CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC",
    "CUDNN_NOTE_WINOGRAD": "CUDNN_NUMERICAL_NOTE_WINOGRAD",
}  # fmt: skip
