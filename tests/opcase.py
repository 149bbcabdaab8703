"""A case of the op table: an op at one place, what it should give, and how far it may be off."""

import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from tests import statements as say

EPSILON = float(np.finfo(np.float32).eps)
ISAS = ("ref", "avx2", "avx512", "neon")
ACTS = ("none", "relu", "relu6", "silu", "sigmoid", "hardswish", "hardsigmoid")  # mdmt_act
RELU = {"none": 0, "relu": 1}


def available():
    """Instruction sets of this processor, within what MDMT_CPU allows."""
    from mdmt import _core

    paths = _core.cpu_info()["paths"]
    wish = os.environ.get("MDMT_CPU")
    return tuple(paths[: paths.index(wish) + 1] if wish in paths else paths)


@dataclass
class Case:
    """One op at one place.

    make(rng) gives the arrays; feeds names the kind (and the role, where it is not an input) of
    each; wire(graph, tensors) appends the ops and names the outputs; expect(arrays in float64)
    states them; magnitude(arrays) is, element by element, the sum of the absolute values of all
    that is added up (None: the absolute value itself); length is the number of terms.
    """

    op: str
    name: str
    make: Callable
    feeds: dict
    wire: Callable
    expect: Callable
    magnitude: Callable | None = None
    length: int = 1
    reads: tuple = ()  # buffers whose value afterwards is an output
    also: tuple = ()  # other ops in the same graph
    macs: float = 0.0
    inplace: tuple = ()  # feeds that pass through a copy first, so that their storage may be reused

    @property
    def id(self):
        return f"{self.op}/{self.name}"

    def arrays(self):
        rng = np.random.default_rng(zlib.crc32(self.id.encode()))
        return self.make(rng)

    def expected(self, arrays, rounded=False):
        """Outputs in float64 and, for each, what rounding may change; with the factors of products
        rounded to bfloat16, or as they are."""
        exact = {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in arrays.items()}
        exact |= {"rounded": True} if rounded else {}
        outputs = self.expect(exact)
        sizes = self.magnitude(exact) if self.magnitude else {}
        unit = EPSILON * (2 + np.sqrt(self.length) / 2)
        bounds = {k: unit * np.abs(sizes.get(k, v)) + 1e-37 for k, v in outputs.items()}
        return outputs, bounds

    def graph(self, core):
        arrays, graph = self.arrays(), core.Graph()
        tensors = {}
        for name, feed in self.feeds.items():
            kind, _, role = feed.partition(":")
            shape = arrays[name].shape
            dtype = ["i32"] if arrays[name].dtype == np.int32 else []
            tensors[name] = getattr(graph, role or "input")(name, kind, shape, *dtype)
        for name in self.inplace:
            tensors[name] = graph.add("act", [tensors[name]], act=0)[0]
        for name, tensor in self.wire(graph, tensors).items():
            graph.output(tensor, name)
        return graph, arrays

    def program(self, core, *, isa=None, threads=None, kernel=None, winograd=2, bf16=None):
        graph, arrays = self.graph(core)
        how = {"winograd": winograd, "bf16": rounds(kernel) if bf16 is None else bf16}
        made = core.Program(graph, isa=isa, threads=threads, kernel=kernel, **how)
        return made, arrays

    def run(self, core, **how):
        """Outputs, and the name of the kernel that made them."""
        program, arrays = self.program(core, **how)
        outputs = dict(program.run(arrays, seed=5, step=3))
        outputs |= {name: program.read(name) for name in self.reads}
        chosen = next(kernel for op, kernel in program.kernels() if op == self.op)
        return {k: np.array(v) for k, v in outputs.items()}, chosen

    def repro(self, **how):
        """The line that runs this case alone."""
        flags = "".join(f" --{k} {v}" for k, v in how.items() if v is not None)
        return f"python -m tests.optable {self.id}{flags}"


def rounds(kernel):
    """Whether a kernel (or None) takes maps that are stored in bfloat16."""
    return bool(kernel) and kernel.startswith("mdmt_bf16_")


def mixing(kernel):
    """How far a kernel's error spreads: Winograd adds and subtracts whole tiles, so that its bound
    is the largest magnitude nearby, times the growth of its transforms (Lavin & Gray 2016)."""
    return 4.0 if "winograd" in kernel else None


def check(case, got, kernel, against=None):
    """Compares the outputs of a kernel with the statement (or with the arrays `against`); raises
    AssertionError."""
    outputs, bounds = case.expected(case.arrays())
    spread = mixing(kernel)
    assert set(got) == set(outputs), f"{case.id}: outputs {sorted(got)}, not {sorted(outputs)}"
    for name, exact in outputs.items():
        reference = exact if against is None else against[name].astype(np.float64)
        found, bound = got[name].astype(np.float64), bounds[name]
        assert found.shape == exact.shape, (
            f"{case.id} {name}: shape {found.shape}, not {exact.shape}"
        )
        if spread:
            bound = np.full_like(exact, spread * bound.max(initial=0.0))
        error = np.abs(found - reference)
        bad = ~(error <= (bound if against is None else 2 * bound))
        if bad.any():
            at = np.unravel_index(np.argmax(np.where(bad, error / bound, 0.0)), bad.shape)
            raise AssertionError(
                f"{case.id} {name}: {bad.sum()} of {bad.size} elements off; at "
                f"{tuple(map(int, at))} {found[at]:.9g} instead of {reference[at]:.9g}, "
                f"allowed {bound[at]:.3g}"
            )


def normal(rng, *shape, scale=1.0, shift=0.0):
    return (rng.standard_normal(shape) * scale + shift).astype(np.float32)


def positive(rng, *shape):
    return (rng.random(shape) + 0.5).astype(np.float32)


def label(dims, attrs):
    """A readable name: 2x16x14x14, attributes that are not the usual ones after it."""
    text = "x".join(map(str, dims))
    for key, value in attrs.items():
        numbers = "x".join(map(str, value)) if isinstance(value, tuple) else value
        text += f",{key}={numbers}"
    return text


def load_size(a, lazy):
    """Magnitude of what a lazy load adds up."""
    if not lazy:
        return np.abs(a["x"])
    size = np.abs(say.per_channel(a["xscale"]) * a["x"]) + np.abs(say.per_channel(a["xshift"]))
    size = size + 1.0 if lazy in ("sigmoid", "hardsigmoid") else size
    return size * a["xgate"][:, :, None, None] if "xgate" in a else size


GUARD = 16  # channels on either side of a view; a ragged one ends its root


def guards(channels):
    return GUARD * (1 + (channels % GUARD == 0))


def viewed(case, inputs=(), outputs=None, addend=None):
    """The case with these input MAPs, and the output MAPs of these shapes, as views of larger ones;
    an input `addend` lies where the output does. What lies beside an output is read back, too: no
    kernel may touch it."""
    outputs = outputs or {}

    def make(rng):
        a = case.make(rng)
        for v in inputs:
            n, c, h, w = a[v].shape
            beside = normal(rng, n, guards(c), h, w)
            a[v] = np.concatenate([beside[:, :GUARD], a[v], beside[:, GUARD:]], 1)
        for k, (n, c, h, w) in outputs.items():
            a[f"{k}.beside"] = normal(rng, n, guards(c), h, w)
        return a

    def inner(a):
        def cut(v):
            end = v.shape[1] - (guards(v.shape[1]) - GUARD)
            return v[:, GUARD:end]

        return a | {v: cut(a[v]) for v in inputs}

    def copy(g, t):
        return g.add("act", [t], act=0)[0]

    def wire(g, t):
        t, found, roots = dict(t), {}, {}
        for v in inputs:
            c = g.shape(t[v])[1]
            t[v] = g.view(t[v], GUARD, c - guards(c))
        for k, (n, c, h, w) in outputs.items():
            roots[k] = g.value("", "map", (n, c + guards(c), h, w))
            for at in range(0, guards(c), GUARD):
                beside = g.view(t[f"{k}.beside"], at, GUARD)
                g.place(copy(g, beside), roots[k], at and GUARD + c)
        if addend:
            (root,) = roots.values()
            t[addend] = copy(g, t[addend])
            g.place(t[addend], root, GUARD)
        made = case.wire(g, t)
        for k, tensor in made.items():
            if k in outputs:
                g.place(tensor, roots[k], GUARD)
            found[k] = copy(g, tensor) if k in outputs else tensor
        for k, (_, c, _, _) in outputs.items():
            for at in range(0, guards(c), GUARD):
                found[f"{k}.beside{at}"] = copy(g, g.view(roots[k], at and GUARD + c, GUARD))
        return found

    def expect(a):
        beside = {}
        for k, (_, c, _, _) in outputs.items():
            for at in range(0, guards(c), GUARD):
                beside[f"{k}.beside{at}"] = a[f"{k}.beside"][:, at : at + GUARD]
        return case.expect(inner(a)) | beside

    return replace(
        case,
        name=f"{case.name},views={'+'.join((*inputs, *outputs, *filter(None, [addend])))}",
        make=make,
        feeds=case.feeds | {f"{k}.beside": "map" for k in outputs},
        wire=wire,
        expect=expect,
        magnitude=case.magnitude and (lambda a: case.magnitude(inner(a))),
        also=(*case.also, "act") if outputs else case.also,
    )
