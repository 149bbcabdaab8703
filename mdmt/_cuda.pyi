"""The CUDA backend; there where the package was built with nvcc."""

from typing import Any

module: Any
emulated: int
build: str

def devices() -> tuple[int, str]: ...
