"""Values from other software, and values that hardly anybody gives."""

import numpy as np
import pytest

import mdmt
from tests.test_misuse import make


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype(np.float32)


class Tensor:
    """What NumPy does with PyTorch's: refuses those with gradients, on a GPU or of bfloat16."""

    def __init__(self, array, *odd):
        self.array, self.odd, self.dtype = array, odd, "torch.bfloat16" if "bf16" in odd else "f32"

    def without(self, what):
        return Tensor(self.array, *(x for x in self.odd if x != what))

    def detach(self):
        return self.without("grad")

    def cpu(self):
        return self.without("cuda")

    def float(self):
        return self.without("bf16")

    def __array__(self, dtype=None, copy=None):
        if self.odd:
            raise TypeError("Got unsupported ScalarType BFloat16")
        return np.asarray(self.array, dtype)


@pytest.mark.parametrize("odd", [(), ("grad",), ("bf16",), ("grad", "cuda", "bf16")])
def test_tensors_will_do(x, odd):
    model, other = make(), make(seed=1)
    state = model.state_dict()
    tensors = {k: Tensor(v, *odd) for k, v in state.items()}
    other.load_state_dict(tensors)
    wanted = model.forward(x)["features"]
    assert np.array_equal(other.forward(Tensor(x, *odd))["features"], wanted)
    assert np.array_equal(make(weights=tensors).forward(x)["features"], wanted)
    half = mdmt.average_weights(tensors, state, 0.5)
    assert all(np.array_equal(half[k], v) for k, v in state.items())
    assert np.array_equal(mdmt.ops.relu(Tensor(x, *odd)), np.maximum(x, 0))


def test_numbers_that_no_float_holds_are_refused_in_a_sentence(x):
    model, batch = make(), (x, [0] * 4, [0, 1, 0, 1])
    for how, words in (({"lr": 10**400}, "lr of Adam cannot be"), ({"clip": 10**400}, "clip")):
        with pytest.raises(ValueError, match=words):
            model.train_step(*batch, **how)
    with pytest.raises(ValueError, match="factor of lr"):
        model.groups = {"backbone": {"lr": 10**400}}
    model.task_weights = {"outcome": 10**400}
    with pytest.raises(ValueError, match="task weight of outcome must be a number"):
        model.train_step(*batch)


def test_an_onnx_file_needs_a_folder_that_is_there(tmp_path):
    for path in (tmp_path / "away" / "m.onnx", tmp_path):
        with pytest.raises(FileNotFoundError, match="choose a file in a folder"):
            make().export_onnx(path)
    assert not list(tmp_path.iterdir())


def test_averaged_models_of_pytorch_are_read(tmp_path, x):
    """torch.optim.swa_utils.AveragedModel: a counter beside the network's own keys."""
    model = make()
    state = {"n_averaged": np.int64(3)} | {f"module.{k}": v for k, v in model.state_dict().items()}
    loaded = make(seed=1, weights={k: v for k, v in state.items() if "heads." not in k})
    assert np.array_equal(loaded.forward(x)["features"], model.forward(x)["features"])
