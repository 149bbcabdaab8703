"""Live comparison of every backbone with torchvision's or timm's: names, features and logits,
gradients, running statistics, training.

What is promised is a relative error of 1e-5 of features and logits and of 1e-4 of every gradient
tensor. Where few elements per channel or sums that cancel make rounding count for more, ours may
be at most FACTOR times as far from a float64 run as PyTorch's float32. The full table, at the
original image sizes, is `python -m benchmarks.exactness`.
"""

import functools

import numpy as np
import pytest

import mdmt
from tests import oracle
from tests.exactness import Sides, default_size, errors, gradient_errors, worst

torch = oracle.need("torch")
oracle.need("torchvision")
oracle.need("timm")
pytestmark = pytest.mark.oracle

SIZE, BATCH = 64, 6
ODD = (97, 131)
LOGITS, GRADIENT, FACTOR = 1e-5, 1e-4, 5


# ShuffleNet takes ordinary weights: with ReLUs nearly all on, its channels hardly vary and batch
# norms amplify rounding ten thousandfold, in PyTorch as in ours.
ORDINARY = ("shufflenet_v2_x0_5", "shufflenet_v2_x1_0")


def make(name):
    return Sides(name, SIZE, smooth=name not in ORDINARY)


@pytest.fixture(scope="module", params=mdmt.backbones())
def sides(request):
    return make(request.param)


def apart(sides, run, measure, bound):
    """None where ours agree with PyTorch, or are as near to float64 as the module says; else the
    worst tensor and its errors, of ours and of PyTorch's float32.

    run: of exact (bool), gives ours, single and, if exact, double; measure: their errors.
    """
    sides.reset()
    ours, single = run(False)
    if worst(measure(ours, single))[1] <= bound:
        return None
    sides.reset()
    ours, single, double = run(True)
    (key, mine), (_, theirs) = worst(measure(ours, double)), worst(measure(single, double))
    return None if mine <= max(bound, FACTOR * theirs) else (key, mine, theirs)


def gradients_of(sides, data, exact):
    return sides.gradients(data, exact)[1]


def gradients_agree(sides, n, size):
    """On one batch of three at least. A wrong kernel is wrong on all of them; a value so near a
    ReLU's zero, or to another one in its pooling window, that rounding decides where the gradient
    goes is in one of them, now in PyTorch's float32 and now in ours."""
    found = []
    for seed in range(3):
        data = oracle.batch(n, size, seed)
        run = functools.partial(gradients_of, sides, data)
        found.append(apart(sides, run, gradient_errors, GRADIENT))
        if found[-1] is None:
            return
    pytest.fail(f"on no batch are the gradients those of PyTorch: {found}")


def test_state_dict_is_that_of_the_original(sides):
    """Names, their order, shapes and types; it loads back into the original."""
    ours, theirs = sides.ours.state_dict(), oracle.state(sides.single)
    assert list(ours) == list(theirs)
    for key, value in theirs.items():
        assert ours[key].shape == value.shape, key
        assert ours[key].dtype == (np.int64 if value.dtype == np.int64 else np.float32), key
    backbone = {k: torch.from_numpy(v) for k, v in ours.items() if not k.startswith("heads.")}
    sides.single.net.load_state_dict(backbone, strict=True)


@pytest.mark.parametrize(("size", "n"), [(SIZE, BATCH), (ODD, 1)])
def test_features_and_logits(sides, size, n):
    x, _, _ = oracle.batch(n, size)
    assert not apart(sides, lambda exact: sides.outputs(x, False, exact), errors, LOGITS)


def test_features_logits_and_statistics_of_a_training_pass(sides):
    x, _, _ = oracle.batch(BATCH, SIZE)
    assert not apart(sides, lambda exact: sides.outputs(x, True, exact), errors, LOGITS)
    state = sides.ours.state_dict()
    assert all(state[key] == 1 for key in state if key.endswith("num_batches_tracked"))


def test_every_gradient(sides):
    gradients_agree(sides, BATCH, SIZE)


def test_ten_steps_of_adam(sides):
    def run(exact):
        return [dict(enumerate(losses)) for losses in sides.steps(BATCH, SIZE, exact=exact)]

    assert not apart(sides, run, errors, GRADIENT)


# Where the arithmetic of sizes matters: ceil-mode pooling, floors, padding that follows the size.
SIZES = [
    ("densenet121", ODD),
    ("efficientnet_b1_pruned", ODD),
    ("efficientnet_lite0", ODD),
    ("googlenet", ODD),
    ("shufflenet_v2_x1_0", ODD),
    ("efficientnet_b1_pruned", default_size("efficientnet_b1_pruned")),
    ("mobilenet_v2", default_size("mobilenet_v2")),
]


@pytest.mark.parametrize(("name", "size"), SIZES, ids=str)
def test_every_gradient_at_other_sizes(name, size):
    """The model was made for another size than it is given."""
    gradients_agree(make(name), 2, size)
