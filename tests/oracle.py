"""PyTorch, torchvision and timm as the oracle: found if they are there, skipped visibly if not.

Some machines have a torchvision without its C++ operators (a wheel built for another PyTorch);
its network definitions need none of them, so that declaring two names is enough to import it.
"""

import functools
import importlib
import itertools

import numpy as np
import pytest

HEADS = {"prognosis": 2, "severity": 4}
_KEPT = []  # a torch.library.Library forgets its operators when it is collected


@functools.cache
def load(name="torchvision"):
    """The module torch, torchvision or timm, or None."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return None
    if name == "torch":
        return torch
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError, AttributeError):
        declare_operators(torch)
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError, AttributeError):
        return None


def declare_operators(torch):
    """Names of the operators that torchvision registers at import."""
    library = torch.library.Library("torchvision", "DEF")
    for op in ("nms", "qnms"):
        library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEPT.append(library)


def need(name="torchvision"):
    """The module, or a visible skip of the test or of the whole file."""
    module = load(name)
    if module is None:
        pytest.skip(f"{name} is not importable: nothing to compare with", allow_module_level=True)
    return module


def backbone(name):
    """torchvision's or timm's network with its own random weights, and its features' width; or what
    a function of no arguments makes."""
    if callable(name):
        return name()
    torch = need("torch")
    if name.startswith("efficientnet"):
        net = need("timm").create_model(name, num_classes=0)
        return net, net.num_features
    more = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    net = getattr(need("torchvision").models, name)(weights=None, **more)
    if name == "googlenet":
        net.dropout = torch.nn.Identity()  # a part of the classifier
    last = "classifier" if hasattr(net, "classifier") else "fc"
    layer = getattr(net, last)
    width = (layer if hasattr(layer, "in_features") else layer[-1]).in_features
    setattr(net, last, torch.nn.Identity())
    return net, width


@functools.cache
def two_heads_class():
    torch = need("torch")

    class TwoHeads(torch.nn.Module):
        """A backbone and a head per task: linear layers with ReLU and dropout between."""

        def __init__(self, name, heads=HEADS, hidden=(128, 32), dropout=0.5):
            super().__init__()
            self.net, width = backbone(name)
            self.heads = torch.nn.ModuleDict()
            for task, classes in heads.items():
                sizes, layers = [width, *hidden, classes], []
                for i, o in itertools.pairwise(sizes):
                    layers += [torch.nn.Linear(i, o), torch.nn.ReLU(), torch.nn.Dropout(dropout)]
                self.heads[task] = torch.nn.Sequential(*layers[:-2])

        def forward(self, x):
            features = self.net(x)
            return {"features": features} | {k: head(features) for k, head in self.heads.items()}

        def named(self):
            """Our names of all tensors of its state: heads.<task>.<i-th linear layer>."""
            for key, value in self.state_dict().items():
                yield our_name(key), value

    return TwoHeads


def two_heads(name, **how):
    return two_heads_class()(name, **how)


def our_name(key):
    """net.layer1.0.conv1.weight -> layer1.0.conv1.weight; heads.t.3.bias -> heads.t.1.bias."""
    if key.startswith("net."):
        return key[4:]
    heads, task, index, what = key.split(".")
    return f"{heads}.{task}.{int(index) // 3}.{what}"


def state(model):
    """Its state as NumPy arrays under our names."""
    return {name: value.detach().numpy().copy() for name, value in model.named()}


def gradients(model):
    return {our_name(k): p.grad.numpy().copy() for k, p in model.named_parameters()}


def masked_loss(outputs, task, target):
    """Mean over the batch of each sample's cross-entropy on the head of its task."""
    torch = need("torch")
    heads = [v for k, v in outputs.items() if k != "features"]
    total = 0.0
    for k, logits in enumerate(heads):
        mine = task == k
        if mine.any():
            loss = torch.nn.functional.cross_entropy(logits[mine], target[mine], reduction="sum")
            total = total + loss
    return total / len(task)


def randomize(model, seed=0, smooth=False):
    """Batch norms away from 1 and 0, so that an exchange of two of them would show; biases of
    convolutions away from 0.

    smooth: with shifts of +-3 deviations, so that a channel's ReLUs are nearly all on or nearly all
    off. Near a ReLU's zero (and a ReLU6's six) the gradient jumps, and rounding decides on which
    side a value falls: two right programs then differ by 1e-2. All are on where a residual is added
    and in networks with depthwise convolutions: of a channel that is off, those see next to
    nothing, and the batch norm behind multiplies that, rounding included, by up to 1/sqrt(epsilon).
    """
    torch = need("torch")
    generator = torch.Generator().manual_seed(seed)
    convs = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    depthwise = any(m.groups > 1 for m in convs)

    def uniform(tensor, low, high):
        return low + (high - low) * torch.rand(tensor.shape, generator=generator)

    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Conv2d) and module.bias is not None:
                module.bias.copy_(uniform(module.bias, -0.2, 0.2))
            if not isinstance(module, torch.nn.BatchNorm2d):
                continue
            follows, ceiling = rectifier(model, name, module)
            high = 0.9 if smooth and ceiling else 1.5
            module.weight.copy_(uniform(module.weight, 0.5, high))
            module.bias.copy_(uniform(module.bias, -0.2, 0.2))
            module.running_mean.copy_(uniform(module.running_mean, -0.2, 0.2))
            module.running_var.copy_(uniform(module.running_var, 0.5, 1.5))
            if smooth and follows:
                share = 0.25 if follows == "own" and not depthwise else 0
                off = uniform(module.bias, 0, 1) < share
                side = torch.where(off, -3.0, 3.0)
                module.bias.add_(side * (1.0 if ceiling else module.weight))
    return model


def rectifier(model, name, norm):
    """What rectifies a batch norm's output, and whether at six, too: ("own", ...) right after it,
    ("sum", ...) after a residual was added, or (None, False)."""
    nn = need("torch").nn
    holder, last = parent(model, name), name.rpartition(".")[2]
    after = getattr(norm, "act", None)  # timm's norms have their activation
    if isinstance(holder, nn.Sequential):
        children = list(holder.children())
        place = children.index(norm) + 1
        after = children[place] if place < len(children) else None
    elif after is None:
        after = nn.ReLU()
    if type(holder).__name__ in ("BasicBlock", "Bottleneck"):
        is_last = last == ("bn3" if hasattr(holder, "conv3") else "bn2")
        return "sum" if is_last else "own", False
    if ".downsample." in name:
        return "sum", False
    if last == "norm5":
        return "own", False
    if isinstance(after, nn.ReLU | nn.ReLU6):
        return "own", isinstance(after, nn.ReLU6)
    return None, False


def parent(model, name):
    """The block that a module of that name is part of."""
    return model.get_submodule(name.rpartition(".")[0])


def batch(n, size, seed=0, classes=(2, 4)):
    """x (n,3,H,W) float32, task (n) int64, target (n) int64; both tasks are present. size: of a
    square or (H, W)."""
    rng = np.random.default_rng(seed)
    height, width = (size, size) if isinstance(size, int) else size
    x = rng.standard_normal((n, 3, height, width)).astype(np.float32)
    task = np.arange(n) % len(classes)
    target = np.array([rng.integers(classes[k]) for k in task])
    return x, task, target


def relative(found, exact):
    """||found - exact|| / ||exact||, in float64."""
    found, exact = np.asarray(found, np.float64), np.asarray(exact, np.float64)
    norm = np.linalg.norm(exact)
    return float(np.linalg.norm(found - exact) / norm) if norm else float(np.abs(found).max())
