"""Decisions that rounding takes: on which side of a ReLU's zero (or a ReLU6's six) a value falls,
and which value of a pooling window is the largest. There the gradient jumps, so that two right
float32 programs may differ by a thousandth and more.

`taken(sides, data)` tells whether that is all that sets a float32 gradient apart from float64's. It
runs PyTorch in float64 once, finds the values so near a kink that float32 may decide otherwise,
and the gradient's change for every such decision by itself (one backward pass each). A float32
gradient must then be the float64 one plus some of these changes, each times 0 or 1; the float64 run
that takes these decisions, all others as before, is the measure of what is left.
"""

import contextlib
from unittest import mock

import numpy as np

from tests import oracle
from tests.exactness import gradient_errors, layer_scales, torch_step, worst

REACH = 3  # a value may be decided otherwise within so many times float32's error at that place
SAMPLE = 1024  # elements of each gradient tensor that the fit looks at


class Site:
    """One call of an activation or of a pooling: what it was given and what it decided.

    kind: relu, relu6 or max; x: its input; distance: how far a decision is from being another one,
    for every element of the flat input (activations) or output (poolings); decided: the slope there
    or the flat place in the image that was picked; other: the place that would be picked else.
    """

    def __init__(self, kind, x):
        self.kind, self.x = kind, x
        self.distance = self.decided = self.other = None


def _rectify(torch, site):
    class Rectify(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            high = 6.0 if site.kind == "relu6" else float("inf")
            site.distance = torch.minimum(x.abs(), (x - high).abs()).flatten()
            site.decided = ((x > 0) & (x < high)).to(x.dtype)
            return x.clamp(0, high)

        @staticmethod
        def backward(ctx, gradient):
            return gradient * site.decided

    return Rectify


def _largest(torch, site, kernel, stride, padding, ceil):
    f = torch.nn.functional

    class Largest(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            y, index = f.max_pool2d_with_indices(x, kernel, stride, padding, 1, ceil)
            h, w = x.shape[2:]
            # Every window as a row; a value from outside the image is never the largest.
            ends = [
                (n - 1) * stride + kernel - side - padding for n, side in zip(y.shape[2:], (h, w))
            ]
            bottom, right = (max(0, end) for end in ends)
            border = (padding, right, padding, bottom)
            where = torch.arange(h * w, dtype=torch.float64).reshape(1, 1, h, w)
            rows, places = (
                f.pad(t, border, value=float("-inf"))
                .unfold(2, kernel, stride)
                .unfold(3, kernel, stride)[:, :, : y.shape[2], : y.shape[3]]
                .flatten(4)
                for t in (x, where)
            )
            # Equal values come from one value, pooled before: between them nothing is to decide.
            second, order = rows.masked_fill(rows == y[..., None], float("-inf")).max(-1)
            site.distance = (y - second).flatten()
            places = places.expand(*rows.shape[:2], *places.shape[2:])
            site.other = places.gather(-1, order[..., None]).to(torch.int64).flatten()
            site.decided = index.clone()
            return y

        @staticmethod
        def backward(ctx, gradient):
            into = gradient.new_zeros(site.x.shape).flatten(2)
            into.scatter_add_(2, site.decided.flatten(2), gradient.flatten(2))
            return into.view(site.x.shape)

    return Largest


@contextlib.contextmanager
def sites(found, decided):
    """Within it, activations and poolings of PyTorch append themselves to `found`; decided: with
    gradients that can be decided otherwise (float64), else as they are."""
    torch = oracle.need("torch")
    f = torch.nn.functional
    relu, hardtanh, pool = f.relu, f.hardtanh, f.max_pool2d

    def rectified(kind, plain):
        def call(x, *limits, inplace=False):
            found.append(Site(kind, x.detach().clone()))
            return _rectify(torch, found[-1]).apply(x) if decided else plain(x, *limits)

        return call

    def pooled(
        x, kernel, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
    ):
        assert dilation == 1 and not return_indices
        found.append(Site("max", x.detach().clone()))
        if not decided:
            return pool(x, kernel, stride, padding, dilation, ceil_mode)
        return _largest(torch, found[-1], kernel, stride or kernel, padding, ceil_mode).apply(x)

    with (
        mock.patch.object(f, "relu", rectified("relu", relu)),
        mock.patch.object(f, "relu6", rectified("relu6", f.relu6)),
        mock.patch.object(f, "hardtanh", rectified("relu6", hardtanh)),  # torch.nn.ReLU6
        mock.patch.object(f, "max_pool2d", pooled),
    ):
        yield


def _doubts(torch, near, exact):
    """Decisions that float32 may take otherwise, each a list of (site, position). Windows whose two
    largest values are the same two, here or in a later pooling, depend on one comparison."""
    found = {}
    for one, site in zip(near, exact, strict=True):
        reach = REACH * float((one.x.double() - site.x).abs().max())
        for position in torch.nonzero(site.distance < reach).flatten().tolist():
            distance = float(site.distance[position])
            key = distance if site.kind == "max" else (id(site), position)
            found.setdefault(key, []).append((site, position))
    return list(found.values())


@contextlib.contextmanager
def _otherwise(doubts):
    """Within it, these decisions are taken the other way."""
    sites = {id(site): site for doubt in doubts for site, _ in doubt}
    kept = {key: site.decided for key, site in sites.items()}
    for site in sites.values():
        site.decided = site.decided.clone()
    for site, position in (one for doubt in doubts for one in doubt):
        flat = site.decided.view(-1)
        flat[position] = site.other[position] if site.kind == "max" else 1 - flat[position]
    try:
        yield
    finally:
        for key, site in sites.items():
            site.decided = kept[key]


def _sampler(gradients):
    """What makes one vector of a sample of every gradient tensor, in units of its layer."""
    rng = np.random.default_rng(0)
    chosen = {k: rng.permutation(g.size)[:SAMPLE] for k, g in gradients.items()}
    scales = layer_scales(gradients)

    def sampled(found):
        return np.concatenate([(g.ravel()[chosen[k]] / scales[k]) for k, g in found.items()])

    return sampled


def taken(sides, data):
    """(number of decisions in doubt, {"ours" | "torch": (how many of them it took otherwise, the
    worst gradient error as it is, the worst one to the float64 run that decides likewise)})."""
    torch = oracle.need("torch")
    sides.reset()
    near, exact = [], []
    _, ours = sides.ours.loss_and_gradients(*data)
    with sites(near, False):
        torch_step(sides.single.train(), *data)
    single = oracle.gradients(sides.single)
    model = sides.double.train()
    model.zero_grad()
    x, task, target = (torch.from_numpy(a) for a in data)
    with sites(exact, True):
        loss = oracle.masked_loss(model(x.double()), task, target)

    def gradients():
        model.zero_grad()
        loss.backward(retain_graph=True)
        return oracle.gradients(model)

    before = gradients()
    doubts = _doubts(torch, near, exact)
    sampled = _sampler(before)
    base = sampled(before)
    changes = []
    for doubt in doubts:
        with _otherwise([doubt]):
            changes.append(sampled(gradients()) - base)
    found = {}
    for name, one in (("ours", ours), ("torch", single)):
        apart = sampled(one) - base
        shares = np.linalg.lstsq(np.array(changes).T, apart, rcond=None)[0] if changes else []
        otherwise = [doubt for doubt, share in zip(doubts, shares) if share > 0.5]
        with _otherwise(otherwise):
            after = worst(gradient_errors(one, gradients()))[1]
        error = worst(gradient_errors(one, before))[1]
        found[name] = (len(otherwise), error, after)
    return len(doubts), found
