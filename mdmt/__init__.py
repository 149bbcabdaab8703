"""mdmt: multi-data-set multi-task training of chest X-ray networks.

Names are loaded when they are first used, so that `import mdmt` takes milliseconds.
"""

import importlib

__version__ = "0.1.0"

# Public name -> module that defines it.
_EXPORTS = {
    "Model": "mdmt.model",
    "backbones": "mdmt.nets",
    "set_num_threads": "mdmt.config",
    "show_config": "mdmt.config",
}
_SUBMODULES = ("config", "data", "engine", "nets", "ops", "run", "splits", "stats")

__all__ = ["Model", "__version__", "backbones", "set_num_threads", "show_config"]


def __getattr__(name):
    if name in _EXPORTS:
        value = getattr(importlib.import_module(_EXPORTS[name]), name)
        globals()[name] = value
        return value
    if name in _SUBMODULES:
        try:
            return importlib.import_module(f"mdmt.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"mdmt.{name}":
                raise
    raise AttributeError(f"module 'mdmt' has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *_EXPORTS, *_SUBMODULES})
