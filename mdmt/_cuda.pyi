"""The CUDA backend; there where the package was built with nvcc."""

from typing import Any

module: Any
emulated: int
build: str

def load_cudnn(path: str, /) -> tuple[int, str]: ...
def devices() -> tuple[int, str]: ...
