"""NVIDIA's own cuDNN on a machine without a GPU: whether it has engines for the convolutions of all
backbones, on GPUs of several kinds. It plans for the properties of a GPU that is not there; nothing
runs. The library is that of pip's nvidia-cudnn-cu13, or the file that MDMT_REAL_CUDNN names."""

import ctypes.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mdmt
from mdmt import system
from tests import cudahost

HERE = Path(__file__).parent / "c"
# As cuDNN 9.28 wants a device described.
DEVICE = {
    "maxGridSize": [2147483647, 65535, 65535], "maxBlockSize": [1024, 1024, 64],
    "regsPerBlock": 65536, "multiProcessorCount": 132, "warpSize": 32,
    "maxSharedMemoryPerBlock": 49152, "maxSharedMemoryPerBlockOptin": 232448,
    "reservedSharedMemoryPerBlock": 1024, "maxRegistersPerSM": 65536, "maxCtasPerSM": 32,
    "maxThreadsPerBlock": 1024, "maxThreadsPerSM": 2048, "pciDeviceId": 0, "isTccDriver": 0,
    "supportCoopLaunch": 1, "totalGlobalMem": 85000000000, "smClockRateKHz": 1980000,
    "memClockRateKHz": 2619000, "memoryBusWidth": 5120, "l2CacheSize": 52428800,
    "cudaDeviceId": 0, "deviceVer": 900, "driverVer": 13000, "deviceName": "NVIDIA H100 80GB HBM3",
}  # fmt: skip
SMALL = {"maxSharedMemoryPerBlockOptin": 101376, "maxThreadsPerSM": 1536, "maxCtasPerSM": 24}
GPUS = {
    "A100": {"deviceVer": 800, "multiProcessorCount": 108, "maxSharedMemoryPerBlockOptin": 166912},
    "A6000": SMALL | {"deviceVer": 860, "multiProcessorCount": 84, "maxCtasPerSM": 16},
    "RTX 4090": SMALL | {"deviceVer": 890, "multiProcessorCount": 128},
    "H100": {},
    "B200": {"deviceVer": 1000, "multiProcessorCount": 148},
    "RTX 5090": SMALL | {"deviceVer": 1200, "multiProcessorCount": 170},
}
NONE = {"GTX 480": {"deviceVer": 200}}
FEW = ("resnet50", "densenet121", "efficientnet_b0", "shufflenet_v2_x1_0")
# Every kernel of a training step's convolutions, in batches of 128.
CHILD = """
import ctypes, json, sys
for library in json.loads(sys.argv[1]):
    ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
from tests import cudahost
sys.modules["mdmt._cuda"] = cudahost.module()
from benchmarks.gpu_correct import model_of
found = {}
for name in sys.argv[3].split(","):
    model = model_of(name, "cuda", sys.argv[2], int(sys.argv[4]))
    ops = model._network.describe(model._mode(128, model.image_size, True, True, 1, store=True))
    found[name] = [(op["op"], op["kernel"], op["inputs"]) for op in ops if "conv2d" in op["op"]]
print(json.dumps(found))
"""


def real_cudnn():
    wish = os.environ.get("MDMT_REAL_CUDNN")
    places = [Path(s, "nvidia", "cudnn", "lib", "libcudnn.so.9") for s in system.site_folders()]
    return next((p for p in ([Path(wish)] if wish else places) if p.exists()), None)


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """ask(gpu, precision, backbones, size) -> {backbone: [(op, kernel, inputs)]}."""
    real = real_cudnn()
    if real is None or cudahost.compilers() is None:
        pytest.skip("NVIDIA's cuDNN is not installed (nvidia-cudnn-cu13), or no C compiler is here")
    folder, before = tmp_path_factory.mktemp("cudnn"), []
    companions = sorted(real.parent.parent.parent.glob("*/lib/libcublasLt.so.*"))
    if not companions:
        pytest.skip("cuDNN's companion is not installed beside it (nvidia-cublas)")

    def library(source, name, *more):
        command = [*cudahost.compilers()[1], "-std=gnu11", "-O1", "-fPIC", "-shared", "-Wall",
                   "-Wextra", "-Werror", str(HERE / source), "-o", str(folder / name)]  # fmt: skip
        done = subprocess.run([*command, *more], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return str(folder / name)

    if not ctypes.util.find_library("cuda"):
        stub = library("stub_cuda.c", "libcuda.so.1", "-Wl,-soname,libcuda.so.1")
        before.append(stub)
    through = library("cudnn_without_gpu.c", "libcudnn.so.9", "-ldl")
    cudahost.module()

    def asked(gpu, precision, backbones, size=224):
        properties = json.dumps(DEVICE | (GPUS | NONE)[gpu])
        how = {"MDMT_CUDNN": through, "REAL_CUDNN": str(real), "GPU_PROPERTIES": properties,
               "MDMT_CUDA_TUNE": "off", "MDMT_CACHE": str(folder / "cache")}  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", CHILD, json.dumps(before), precision, ",".join(backbones),
             str(size)],
            env=os.environ | how, capture_output=True, text=True, cwd=HERE.parent.parent,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout.splitlines()[-1])

    return asked


def by_the_library(kernels):
    """Dense convolutions that are not left to own kernels whatever the library has, and those that
    it was not found to do."""
    own = ("depth", "grouped", "stem3")
    dense = [k for k in kernels if not any(word in k[1] for word in own)]
    return dense, [k for k in dense if not k[1].endswith("_cudnn")]


@pytest.mark.parametrize("gpu", GPUS)
def test_every_dense_convolution_has_an_engine(ask, gpu):
    """In bfloat16, with deterministic engines alone."""
    for name, kernels in ask(gpu, "bf16", mdmt.backbones()).items():
        dense, others = by_the_library(kernels)
        assert len(dense) > 30 and not others, (name, others[:3])


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_every_dense_convolution_in_other_precisions(ask, precision):
    for name, kernels in ask("H100", precision, FEW).items():
        dense, others = by_the_library(kernels)
        assert len(dense) > 30 and not others, (name, others[:3])


def test_where_the_library_has_none_it_shows(ask):
    """No engine for a GPU of 2010: the same question answered with no."""
    kernels = ask("GTX 480", "bf16", ["shufflenet_v2_x0_5"], 64)["shufflenet_v2_x0_5"]
    dense, others = by_the_library(kernels)
    assert others == dense and dense
