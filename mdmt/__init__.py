"""mdmt: multi-data-set multi-task training of chest X-ray networks.

    Model              a backbone with one head per task: forward, train_step, fit_step, predict,
                       state_dict, save, load, export_onnx
    MixedBatchSampler  which samples of which data sets make each batch
    masked_loss        the loss of a mixed batch and its gradients, on arrays
    class_weights      weights that balance the classes of a training part
    augment            images as a training step sees them
    average_weights    where joint training starts; load_weights: .safetensors and .pth files
    backbones          names of the networks; set_num_threads, show_config: this machine
    lung_mask          the lungs in a radiograph; lung_masks: in many
    schedule           learning rate, best epoch, early stopping
    ops                the engine's ops as functions; metrics, stats, splits: on arrays
    run                what `python -m mdmt.run` does

Arrays are NumPy's, or whatever gives one (tensors of PyTorch on the CPU). Wrong input raises
ValueError, or a class of mdmt.errors, with one sentence. Names are loaded when they are first used,
so that `import mdmt` takes milliseconds.
"""

import importlib

__version__ = "0.1.0"

# Public name -> module that defines it.
_EXPORTS = {
    "MixedBatchSampler": "mdmt.sampler",
    "Model": "mdmt.model",
    "augment": "mdmt.augmentation",
    "backbones": "mdmt.nets",
    "class_weights": "mdmt.weighting",
    "masked_loss": "mdmt.loss",
    "average_weights": "mdmt.weights",
    "load_weights": "mdmt.weights",
    "lung_mask": "mdmt.preprocess.lungs",
    "lung_masks": "mdmt.preprocess.lungs",
    "set_num_threads": "mdmt.system",
    "show_config": "mdmt.system",
}
_SUBMODULES = (
    "analysis",
    "augmentation",
    "config",
    "data",
    "engine",
    "errors",
    "experiments",
    "metrics",
    "nets",
    "ops",
    "plots",
    "report",
    "run",
    "schedule",
    "splits",
    "stats",
    "tables",
    "weights",
)

__all__ = [
    "MixedBatchSampler",
    "Model",
    "__version__",
    "augment",
    "average_weights",
    "backbones",
    "class_weights",
    "load_weights",
    "lung_mask",
    "lung_masks",
    "masked_loss",
    "set_num_threads",
    "show_config",
]


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
    own = {name for name in globals() if name.startswith("__")}
    return sorted({*own, *__all__, *_SUBMODULES})
