"""Small networks with one construct each: described for mdmt and, with the same keys, for PyTorch.

Each maker gives (build, make): build(builder) appends the network and returns pooled features,
make() a torch.nn.Module with those features and its layers in the same order. Only make() needs
PyTorch.
"""

from tests import oracle


def _layers():
    torch = oracle.need("torch")
    return torch, torch.nn, torch.nn.functional


def unit(b, x, name, out, kernel=1, act="relu", **how):
    """Convolution, batch norm, activation; keys c<name> and n<name>."""
    groups = b.shape(x)[1] if how.pop("depthwise", False) else 1
    x = b.conv(x, f"c{name}", out, kernel, padding=kernel // 2, groups=groups, **how)
    x = b.batch_norm(x, f"n{name}")
    return b.act(x, act) if act else x


class Parts:
    """What the modules share: the same units, by the same names."""

    def __init__(self, module):
        self.module = module

    def add(self, name, channels, out, kernel=1, stride=1, depthwise=False):
        _, nn, _ = _layers()
        groups = channels if depthwise else 1
        conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
        setattr(self.module, f"c{name}", conv)
        setattr(self.module, f"n{name}", nn.BatchNorm2d(out))

    def run(self, x, name, act="relu"):
        x = getattr(self.module, f"n{name}")(getattr(self.module, f"c{name}")(x))
        return activate(x, act)


def activate(x, act):
    torch, _, f = _layers()
    kinds = {"relu": f.relu, "relu6": f.relu6, "silu": f.silu, "hardswish": f.hardswish}
    kinds |= {"sigmoid": torch.sigmoid, "hardsigmoid": f.hardsigmoid, None: lambda v: v}
    return kinds[act](x)


def module(fill, forward):
    """fill(parts, module) makes the layers, forward(module, parts, x) the features."""
    _, nn, _ = _layers()

    class Tiny(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = Parts(self)
            fill(self.parts, self)

        def forward(self, x):
            return forward(self, self.parts, x)

    return Tiny()


def dense(layers=4, growth=16, first=32):
    """Dense blocks (Huang et al. 2017) with a transition, average pooling and a second block."""

    def build(b):
        x = b.max_pool(unit(b, b.image, "0", first, 3), 3, 2, 1)
        for i in range(layers):
            y = b.conv(b.relu(b.batch_norm(x, f"na{i}")), f"ca{i}", 48, 1)
            y = b.conv(b.relu(b.batch_norm(y, f"nb{i}")), f"cb{i}", growth, 3, padding=1)
            x = b.concat([x, y])
        x = b.avg_pool(b.conv(b.relu(b.batch_norm(x, "nt")), "ct", 32, 1), 2)
        y = b.conv(b.relu(b.batch_norm(x, "ny")), "cy", 16, 3, padding=1)
        return b.global_avg_pool(b.relu(b.batch_norm(b.concat([x, y]), "nz")))

    def fill(parts, m):
        _, nn, _ = _layers()
        parts.add("0", 3, first, 3)
        c = first
        for i in range(layers):
            setattr(m, f"na{i}", nn.BatchNorm2d(c))
            setattr(m, f"ca{i}", nn.Conv2d(c, 48, 1, bias=False))
            setattr(m, f"nb{i}", nn.BatchNorm2d(48))
            setattr(m, f"cb{i}", nn.Conv2d(48, growth, 3, padding=1, bias=False))
            c += growth
        m.nt, m.ct = nn.BatchNorm2d(c), nn.Conv2d(c, 32, 1, bias=False)
        m.ny, m.cy = nn.BatchNorm2d(32), nn.Conv2d(32, 16, 3, padding=1, bias=False)
        m.nz = nn.BatchNorm2d(48)

    def forward(m, parts, x):
        torch, _, f = _layers()
        x = f.max_pool2d(parts.run(x, "0"), 3, 2, 1)
        for i in range(layers):
            y = getattr(m, f"ca{i}")(f.relu(getattr(m, f"na{i}")(x)))
            y = getattr(m, f"cb{i}")(f.relu(getattr(m, f"nb{i}")(y)))
            x = torch.cat([x, y], 1)
        x = f.avg_pool2d(m.ct(f.relu(m.nt(x))), 2)
        x = torch.cat([x, m.cy(f.relu(m.ny(x)))], 1)
        return f.relu(m.nz(x)).mean((2, 3))

    return build, lambda: module(fill, forward)


def inception():
    """Branches joined (Szegedy et al. 2015): aligned, then with a part of 24 channels."""

    def build(b):
        x = b.max_pool(unit(b, b.image, "s", 32, 3), 3, 2, ceil_mode=True)
        c = unit(b, unit(b, x, "b", 32), "d", 48, 3)
        x = b.concat([unit(b, x, "a", 16), c, unit(b, b.max_pool(x, 3, 1, 1), "p", 20)])
        return b.global_avg_pool(b.concat([unit(b, x, "z", 24, 3), unit(b, x, "w", 40), x]))

    def fill(parts, _):
        for name, channels, out, kernel in (
            ("s", 3, 32, 3), ("b", 32, 32, 1), ("d", 32, 48, 3), ("a", 32, 16, 1),
            ("p", 32, 20, 1), ("z", 84, 24, 3), ("w", 84, 40, 1),
        ):  # fmt: skip
            parts.add(name, channels, out, kernel)

    def forward(_, parts, x):
        torch, _, f = _layers()
        x = f.max_pool2d(parts.run(x, "s"), 3, 2, ceil_mode=True)
        c = parts.run(parts.run(x, "b"), "d")
        x = torch.cat([parts.run(x, "a"), c, parts.run(f.max_pool2d(x, 3, 1, 1), "p")], 1)
        return torch.cat([parts.run(x, "z"), parts.run(x, "w"), x], 1).mean((2, 3))

    return build, lambda: module(fill, forward)


def shuffle(half=20, units=4):
    """Units of ShuffleNet V2 (Ma et al. 2018)."""

    def build(b):
        x = unit(b, b.image, "0", 2 * half, 3)
        for i in range(units):
            y = unit(b, b.slice(x, half, half), f"a{i}", half)
            y = unit(b, y, f"d{i}", half, 3, None, depthwise=True)
            x = b.concat([b.slice(x, 0, half), unit(b, y, f"e{i}", half)])
            x = b.shuffle(x, 2)
        return b.global_avg_pool(unit(b, x, "z", 32))

    def fill(parts, _):
        parts.add("0", 3, 2 * half, 3)
        for i in range(units):
            parts.add(f"a{i}", half, half)
            parts.add(f"d{i}", half, half, 3, depthwise=True)
            parts.add(f"e{i}", half, half)
        parts.add("z", 2 * half, 32)

    def forward(_, parts, x):
        torch, _, _ = _layers()
        x = parts.run(x, "0")
        for i in range(units):
            kept, y = x.chunk(2, 1)
            y = parts.run(parts.run(parts.run(y, f"a{i}"), f"d{i}", None), f"e{i}")
            x = torch.nn.functional.channel_shuffle(torch.cat([kept, y], 1), 2)
        return parts.run(x, "z").mean((2, 3))

    return build, lambda: module(fill, forward)


def inverted(act, excite, width=24, kernel=5):
    """Inverted residuals (Sandler et al. 2018), with squeeze-excite or without."""

    def build(b):
        x = unit(b, b.image, "0", width, 3, act, stride=2)
        for i in range(2):
            y = unit(b, x, f"a{i}", 3 * width, 1, act)
            y = unit(b, y, f"d{i}", 3 * width, kernel, act, depthwise=True)
            if excite:
                s = b.act(b.conv_rows(b.global_avg_pool(y), f"r{i}", 6), act)
                y = b.gate(y, b.act(b.conv_rows(s, f"e{i}", 3 * width), "sigmoid"))
            x = b.add(unit(b, y, f"p{i}", width, 1, None), x)
        return b.global_avg_pool(unit(b, x, "z", 40, 1, act))

    def fill(parts, m):
        _, nn, _ = _layers()
        parts.add("0", 3, width, 3, 2)
        for i in range(2):
            parts.add(f"a{i}", width, 3 * width)
            parts.add(f"d{i}", 3 * width, 3 * width, kernel, depthwise=True)
            if excite:
                setattr(m, f"r{i}", nn.Conv2d(3 * width, 6, 1))
                setattr(m, f"e{i}", nn.Conv2d(6, 3 * width, 1))
            parts.add(f"p{i}", 3 * width, width)
        parts.add("z", width, 40)

    def forward(m, parts, x):
        torch, _, _ = _layers()
        x = parts.run(x, "0", act)
        for i in range(2):
            y = parts.run(parts.run(x, f"a{i}", act), f"d{i}", act)
            if excite:
                s = activate(getattr(m, f"r{i}")(y.mean((2, 3), keepdim=True)), act)
                y = y * torch.sigmoid(getattr(m, f"e{i}")(s))
            x = x + parts.run(y, f"p{i}", None)
        return parts.run(x, "z", act).mean((2, 3))

    return build, lambda: module(fill, forward)


def joined_sums():
    """Sums of a map and a convolution of it that are parts of a concatenation as they are."""

    def build(b):
        x = b.conv(unit(b, b.image, "0", 16, 3), "ca", 32, 1)
        y = b.conv(x, "cb", 32, 3, padding=1)
        x = b.concat([b.add(x, y), y])
        d = b.conv(x, "cd", 64, 3, padding=1, groups=64)
        return b.global_avg_pool(unit(b, b.concat([b.add(x, d), b.add(d, x)]), "z", 24))

    def fill(parts, m):
        _, nn, _ = _layers()
        parts.add("0", 3, 16, 3)
        m.ca, m.cb = nn.Conv2d(16, 32, 1, bias=False), nn.Conv2d(32, 32, 3, 1, 1, bias=False)
        m.cd = nn.Conv2d(64, 64, 3, 1, 1, groups=64, bias=False)
        parts.add("z", 128, 24)

    def forward(m, parts, x):
        torch, _, _ = _layers()
        x = m.ca(parts.run(x, "0"))
        y = m.cb(x)
        x = torch.cat([x + y, y], 1)
        d = m.cd(x)
        return parts.run(torch.cat([x + d, d + x], 1), "z").mean((2, 3))

    return build, lambda: module(fill, forward)


def gated_halves(half=10):
    """Halves that change places, are shuffled and gated, joined with what they were made of."""

    def build(b):
        x = unit(b, b.image, "0", 2 * half, 3)
        y = b.shuffle(b.concat([b.slice(x, half, half), b.slice(x, 0, half)]), 2)
        y = b.gate(y, b.act(b.conv_rows(b.global_avg_pool(x), "e", 2 * half), "sigmoid"))
        return b.global_avg_pool(unit(b, b.concat([x, y]), "z", 24))

    def fill(parts, m):
        _, nn, _ = _layers()
        parts.add("0", 3, 2 * half, 3)
        m.e = nn.Conv2d(2 * half, 2 * half, 1)
        parts.add("z", 4 * half, 24)

    def forward(m, parts, x):
        torch, _, f = _layers()
        x = parts.run(x, "0")
        y = f.channel_shuffle(torch.cat([x[:, half:], x[:, :half]], 1), 2)
        y = y * torch.sigmoid(m.e(x.mean((2, 3), keepdim=True)))
        return parts.run(torch.cat([x, y], 1), "z").mean((2, 3))

    return build, lambda: module(fill, forward)
