"""The engine's ops as NumPy functions, for study, tests and teaching.

Arrays are float32 in the order of PyTorch: images and feature maps x (N,C,H,W), convolution
weights w (K,C/groups,kh,kw), rows (N,F). Every function takes `backend`: None (the best path of
this processor), "ref" (portable C), "avx2", "avx512", "neon" or "cuda" (the first GPU). A backward
function takes the gradient at the output, `dy`, and returns the gradients at the inputs in their
order.

Raises ValueError with one sentence for shapes that do not fit, NotImplementedError for a backend
that this machine or build does not have.
"""

import numpy as np

from .checked import array_of

_BACKENDS = (None, "ref", "avx2", "avx512", "neon", "cuda")
_ACTS = ("none", "relu", "relu6", "silu", "sigmoid", "hardswish", "hardsigmoid")


def _array(name, value, dims, shape):
    """float32 and C-ordered, with as many axes as `dims` names: "N,C,H,W"."""
    array = array_of(value)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} must hold real numbers, not {array.dtype}")
    wanted = dims.split(",")
    if array.ndim != len(wanted) or array.size == 0:
        raise ValueError(f"{name} must have the shape ({dims}), not {array.shape}")
    for axis, (letter, length) in enumerate(zip(wanted, array.shape)):
        known = shape.setdefault(letter, length)
        if known != length:
            raise ValueError(
                f"{name} must have the shape ({dims}) with {letter} = {known}, "
                f"but axis {axis} of {array.shape} is {length}"
            )
    return np.ascontiguousarray(array, dtype=np.float32)


def _pair(name, value, least):
    pair = (value, value) if np.ndim(value) == 0 else tuple(value)
    if len(pair) != 2 or any(int(v) != v or v < least for v in pair):
        raise ValueError(
            f"{name} must be one or two whole numbers of at least {least}, not {value}"
        )
    return tuple(int(v) for v in pair)


def _pad(value):
    """One number, (rows, columns) or (top, left, bottom, right), as the last of these."""
    if isinstance(value, str):
        raise ValueError(f"padding must be given in pixels, such as 1 or (1, 2), not as {value!r}")
    pads = (value,) * 4 if np.ndim(value) == 0 else tuple(value)
    pads = pads * 2 if len(pads) == 2 else pads
    if len(pads) != 4 or any(int(v) != v or v < 0 for v in pads):
        raise ValueError(
            "padding must be one number, (rows, columns) or (top, left, bottom, right), each at "
            f"least 0, not {value}"
        )
    return tuple(int(v) for v in pads)


class _Call:
    """One graph, run once."""

    def __init__(self, backend):
        from mdmt import _core
        from mdmt.system import open_device

        if backend not in _BACKENDS:
            raise ValueError(f"backend must be one of {_BACKENDS}, not {backend!r}")
        on_gpu = backend == "cuda"
        self.core, self.isa = _core, None if on_gpu else backend
        self.device = (*open_device("cuda"), "fp32") if on_gpu else None
        self.graph, self.feeds, self.buffers = _core.Graph(), {}, []

    def feed(self, kind, array, role="input"):
        name = f"t{len(self.feeds)}"
        self.feeds[name] = array
        if role == "buffer":
            self.buffers.append(name)
        return getattr(self.graph, role)(name, kind, array.shape)

    def add(self, op, inputs, **attrs):
        return self.graph.add(op, inputs, **attrs)

    def run(self, *outputs, seed=0, step=0):
        """The arrays of these tensors, then the buffers as they are afterwards."""
        for i, tensor in enumerate(outputs):
            self.graph.output(tensor, f"out{i}")
        program = self.core.Program(self.graph, isa=self.isa, device=self.device)
        found = program.run(self.feeds, seed=seed, step=step)
        arrays = [np.array(found[f"out{i}"]) for i in range(len(outputs))]
        return arrays + [np.array(program.read(name)) for name in self.buffers]


def _conv_attrs(stride, padding, dilation, groups):
    if int(groups) != groups or groups < 1:
        raise ValueError(f"groups must be a whole number of at least 1, not {groups}")
    return {
        "stride": _pair("stride", stride, 1),
        "pad": _pad(padding),
        "dilation": _pair("dilation", dilation, 1),
        "groups": int(groups),
    }


def _weight_kind(x_channels, weight, groups):
    outputs, per_group = weight.shape[:2]
    if per_group * groups != x_channels or outputs % groups:
        raise ValueError(
            f"a weight of shape {weight.shape} does not fit an x of {x_channels} channels in "
            f"{groups} groups: it must be (K, C / groups, kh, kw) with K a multiple of groups"
        )
    if groups == 1:
        return "w_dense"
    return "w_depth" if groups == x_channels == outputs else "w_grouped"


def conv2d(x, w, bias=None, stride=1, padding=0, dilation=1, groups=1, backend=None):
    """y[n,k,i,j] = bias[k] + sum_c,r,s w[k,c,r,s] x[n,c,i sh + r dh - top,j sw + s dw - left].

    x (N,C,H,W), w (K,C/groups,kh,kw), bias (K) -> y (N,K,OH,OW), a cross-correlation as in all
    frameworks. stride and dilation: one number or (rows, columns); padding, zeros: one number,
    (rows, columns) or (top, left, bottom, right).
    """
    attrs, shape = _conv_attrs(stride, padding, dilation, groups), {}
    x, w = _array("x", x, "N,C,H,W", shape), _array("w", w, "K,C/groups,kh,kw", shape)
    kind, call = _weight_kind(x.shape[1], w, groups), _Call(backend)
    inputs = [call.feed("map", x), call.feed(kind, w, "param"), None]
    if bias is not None:
        inputs[2] = call.feed("vector", _array("bias", bias, "K", shape), "param")
    return call.run(call.add("conv2d", inputs, **attrs)[0])[0]


def conv2d_backward(dy, x, w, stride=1, padding=0, dilation=1, groups=1, backend=None):
    """Gradients of y = conv2d(x, w, bias): (dx, dw, dbias) of the shapes of x, w and (K).

    dx[n,c,.] = sum over the products of y that used x[n,c,.] of dy w; dw likewise of dy x;
    dbias[k] = sum_n,i,j dy[n,k,i,j].
    """
    attrs, shape = _conv_attrs(stride, padding, dilation, groups), {}
    x, w = _array("x", x, "N,C,H,W", shape), _array("w", w, "K,C/groups,kh,kw", shape)
    dy = _array("dy", dy, "N,K,OH,OW", shape)
    kind, call = _weight_kind(x.shape[1], w, groups), _Call(backend)
    tx, tw = call.feed("map", x), call.feed(kind, w, "param")
    tdy = call.feed("map", dy)
    dx = call.add("conv2d_bwd_data", [tdy, tw], size=x.shape[2:], **attrs)[0]
    dw = call.add("conv2d_bwd_weight", [tx, tdy], kernel=w.shape[2:], **attrs)[0]
    return tuple(call.run(dx, dw, call.add("channel_sum", [tdy])[0]))


def _fold(call, x, vectors, training, momentum, eps):
    """Statistics (of x in training) folded into scale, shift, mean, invstd; see bn_fold."""
    gamma, beta, mean, var = vectors
    tx = call.feed("map", x)
    inputs = [call.feed("vector", v, "param") for v in (gamma, beta)]
    inputs += [call.feed("vector", v, "buffer") for v in (mean, var)]
    stats = call.add("channel_stats", [tx])[0] if training else None
    attrs = {"training": int(training), "count": x.size // x.shape[1]}
    return tx, call.add("bn_fold", [stats, *inputs], momentum=momentum, eps=eps, **attrs)


def batch_norm(
    x, gamma, beta, running_mean, running_var, training=False, momentum=0.1, eps=1e-5, backend=None
):
    """y = gamma (x - mean) / sqrt(var + eps) + beta, per channel (Ioffe & Szegedy 2015).

    x (N,C,H,W); the others (C). In training, mean and var (biased) are those of x over N, H and W,
    and running = (1 - momentum) running + momentum batch, with the unbiased variance; otherwise
    they are the running ones. Returns (y, running_mean, running_var), the latter two as they are
    afterwards.
    """
    shape = {}
    x = _array("x", x, "N,C,H,W", shape)
    named = {"gamma": gamma, "beta": beta, "running_mean": running_mean}
    named["running_var"] = running_var
    call = _Call(backend)
    vectors = [_array(k, v, "C", shape) for k, v in named.items()]
    tx, fold = _fold(call, x, vectors, training, momentum, eps)
    return tuple(call.run(call.add("norm_act", [tx, fold[0], fold[1]])[0]))


def batch_norm_backward(
    dy, x, gamma, running_mean=None, running_var=None, training=True, eps=1e-5, backend=None
):
    """Gradients of y = batch_norm(x, gamma, beta, ...): (dx, dgamma, dbeta).

    With xhat = (x - mean) / sqrt(var + eps) and means over N, H and W: dbeta = sum dy,
    dgamma = sum dy xhat, dx = gamma / sqrt(var + eps) (dy - mean(dy) - xhat mean(dy xhat)) in
    training, where the statistics depend on x; without the two means otherwise. The running
    statistics are needed only where training is False.
    """
    shape = {}
    x, dy = _array("x", x, "N,C,H,W", shape), _array("dy", dy, "N,C,H,W", shape)
    gamma = _array("gamma", gamma, "C", shape)
    if not training and (running_mean is None or running_var is None):
        raise ValueError("batch_norm_backward with training=False needs the running statistics")
    zeros = np.zeros_like(gamma)
    mean = zeros if training else _array("running_mean", running_mean, "C", shape)
    var = zeros if training else _array("running_var", running_var, "C", shape)
    call = _Call(backend)
    tx, fold = _fold(call, x, (gamma, zeros, mean, var), training, 0.0, eps)
    back = call.add("bn_bwd", [call.feed("map", dy), tx, *fold], training=int(training))
    return tuple(call.run(*back[:3])[:3])


def _rows_or_map(name, value, shape):
    value = array_of(value)
    dims = "N,F" if value.ndim == 2 else "N,C,H,W"
    return _array(name, value, dims, shape), "rows" if dims == "N,F" else "map"


def _act(kind):
    if kind not in _ACTS:
        raise ValueError(f"kind must be one of {', '.join(_ACTS)}, not {kind!r}")
    return _ACTS.index(kind)


def act(x, kind, backend=None):
    """The activation `kind` of each element; x (N,F) or (N,C,H,W).

    none: x; relu: max(x, 0); relu6: min(max(x, 0), 6); sigmoid: 1 / (1 + exp(-x)); silu:
    x sigmoid(x); hardsigmoid: relu6(x + 3) / 6; hardswish: x hardsigmoid(x).
    """
    call, code = _Call(backend), _act(kind)
    x, layout = _rows_or_map("x", x, {})
    return call.run(call.add("act", [call.feed(layout, x)], act=code)[0])[0]


def act_backward(dy, x, kind, backend=None):
    """Gradient of y = act(x, kind): dx = dy act'(x), at kinks as in PyTorch."""
    call, code, shape = _Call(backend), _act(kind), {}
    (x, layout), (dy, _) = _rows_or_map("x", x, shape), _rows_or_map("dy", dy, shape)
    v = call.feed(layout, x)
    if kind not in ("silu", "hardswish"):  # the others' slope is taken from their output
        v = call.add("act", [v], act=code)[0]
    return call.run(call.add("act_bwd", [call.feed(layout, dy), v], act=code)[0])[0]


def relu(x, backend=None):
    """max(x, 0); x (N,F) or (N,C,H,W)."""
    return act(x, "relu", backend)


def relu_backward(dy, y, backend=None):
    """Gradient of y = relu(x): dx = dy where y > 0, 0 elsewhere."""
    return act_backward(dy, y, "relu", backend)


def gate(x, s, backend=None):
    """y[n,c,i,j] = x[n,c,i,j] s[n,c]: one factor for each sample and channel (Hu et al. 2018)."""
    call, shape = _Call(backend), {}
    tx = call.feed("map", _array("x", x, "N,C,H,W", shape))
    ts = call.feed("rows", _array("s", s, "N,C", shape))
    return call.run(call.add("gate", [tx, ts])[0])[0]


def gate_backward(dy, x, s, backend=None):
    """Gradients of y = gate(x, s): dx = gate(dy, s), ds[n,c] = sum over H and W of dy x."""
    call, shape = _Call(backend), {}
    tx = call.feed("map", _array("x", x, "N,C,H,W", shape))
    ts = call.feed("rows", _array("s", s, "N,C", shape))
    tdy = call.feed("map", _array("dy", dy, "N,C,H,W", shape))
    return tuple(call.run(call.add("gate", [tdy, ts])[0], call.add("gate_bwd", [tdy, tx])[0]))


def add(a, b, backend=None):
    """a + b of equal shapes, (N,F) or (N,C,H,W). Its gradient at both is dy."""
    call, shape = _Call(backend), {}
    (a, kind), (b, _) = _rows_or_map("a", a, shape), _rows_or_map("b", b, shape)
    return call.run(call.add("add", [call.feed(kind, a), call.feed(kind, b)])[0])[0]


def _pool_attrs(kernel_size, stride, padding, ceil_mode):
    kernel = _pair("kernel_size", kernel_size, 1)
    return {
        "kernel": kernel,
        "stride": kernel if stride is None else _pair("stride", stride, 1),
        "pad": _pad(padding),
        "ceil_mode": int(ceil_mode),
    }


def max_pool2d(x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, backend=None):
    """The maximum of each window; x (N,C,H,W) -> (N,C,OH,OW).

    stride: the kernel's size if None. Padding never wins. In ceil mode a last, partial window is
    kept if it starts inside x or its leading padding, as in PyTorch.
    """
    attrs = _pool_attrs(kernel_size, stride, padding, ceil_mode)
    attrs["dilation"] = _pair("dilation", dilation, 1)
    call = _Call(backend)
    tx = call.feed("map", _array("x", x, "N,C,H,W", {}))
    return call.run(call.add("max_pool", [tx], **attrs)[0])[0]


def max_pool2d_backward(
    dy, x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, backend=None
):
    """Gradient of y = max_pool2d(x, ...): each dy goes to the first maximum of its window."""
    attrs, shape = _pool_attrs(kernel_size, stride, padding, ceil_mode), {}
    attrs["dilation"] = _pair("dilation", dilation, 1)
    call = _Call(backend)
    x, dy = _array("x", x, "N,C,H,W", shape), _array("dy", dy, "N,C,OH,OW", shape)
    argmax = call.add("max_pool", [call.feed("map", x)], want_argmax=1, **attrs)[1]
    inputs = [call.feed("map", dy), argmax]
    return call.run(call.add("max_pool_bwd", inputs, size=x.shape[2:], **attrs)[0])[0]


def avg_pool2d(
    x, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, backend=None
):
    """The mean of each window; x (N,C,H,W) -> (N,C,OH,OW).

    The divisor counts padding where count_include_pad is true, but never what ceil mode lets a
    window reach beyond it, as in PyTorch.
    """
    attrs = _pool_attrs(kernel_size, stride, padding, ceil_mode)
    attrs["count_include_pad"] = int(count_include_pad)
    call = _Call(backend)
    tx = call.feed("map", _array("x", x, "N,C,H,W", {}))
    return call.run(call.add("avg_pool", [tx], **attrs)[0])[0]


def avg_pool2d_backward(
    dy, x, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True,
    backend=None,
):  # fmt: skip
    """Gradient of y = avg_pool2d(x, ...): each dy is shared among the elements of its window."""
    attrs, shape = _pool_attrs(kernel_size, stride, padding, ceil_mode), {}
    attrs["count_include_pad"] = int(count_include_pad)
    call = _Call(backend)
    x, dy = _array("x", x, "N,C,H,W", shape), _array("dy", dy, "N,C,OH,OW", shape)
    tdy = call.feed("map", dy)
    return call.run(call.add("avg_pool_bwd", [tdy], size=x.shape[2:], **attrs)[0])[0]


def _upsample_mode(mode):
    if mode not in ("nearest", "bilinear"):
        raise ValueError(f"mode must be nearest or bilinear, not {mode!r}")
    return mode


def upsample(x, mode="bilinear", backend=None):
    """Twice as high and wide; x (N,C,H,W) -> (N,C,2H,2W).

    PyTorch's interpolate with scale_factor 2; "bilinear" with align_corners=False.
    """
    call = _Call(backend)
    tx = call.feed("map", _array("x", x, "N,C,H,W", {}))
    return call.run(call.add("upsample", [tx], mode=_upsample_mode(mode))[0])[0]


def upsample_backward(dy, mode="bilinear", backend=None):
    """Gradient of y = upsample(x, mode): each dy goes to the elements it was mixed from."""
    call = _Call(backend)
    tdy = call.feed("map", _array("dy", dy, "N,C,2H,2W", {}))
    return call.run(call.add("upsample_bwd", [tdy], mode=_upsample_mode(mode))[0])[0]


def mask_loss(logits, mask, backend=None):
    """Loss of a mask, logits z and mask t (N,1,H,W), t in 0 to 1: for each sample the mean over the
    pixels of the binary cross-entropy plus 1 - D, with p = 1 / (1 + exp(-z)) and the soft Dice
    coefficient D = (2 sum p t + 1) / (sum p + sum t + 1) (Milletari et al. 2016, without squares).

    Returns (losses (N) float64, dlogits (N,1,H,W): gradient of their sum).
    """
    shape = {}
    logits = _array("logits", logits, "N,C,H,W", shape)
    mask = _array("mask", mask, "N,C,H,W", shape)
    if logits.shape[1] != 1 or not ((mask >= 0) & (mask <= 1)).all():
        raise ValueError("mask_loss takes logits of one channel and masks within 0 to 1")
    call = _Call(backend)
    inputs = [call.feed("map", logits), call.feed("image", mask)]
    (sums,) = call.run(call.add("mask_sums", inputs)[0])
    entropy, both, guessed, true = np.float64(sums).T
    every = guessed + true + 1
    rise = (2 * both + 1) / every**2
    dsums = np.stack([np.ones_like(rise), -2 / every, rise, rise], 1)
    call = _Call(backend)
    inputs = [call.feed("rows", np.float32(dsums))]
    inputs += [call.feed("map", logits), call.feed("image", mask)]
    (dlogits,) = call.run(call.add("mask_sums_bwd", inputs)[0])
    return entropy + 1 - (2 * both + 1) / every, dlogits


def global_avg_pool(x, backend=None):
    """The mean over H and W; x (N,C,H,W) -> (N,C)."""
    call = _Call(backend)
    tx = call.feed("map", _array("x", x, "N,C,H,W", {}))
    return call.run(call.add("global_avg_pool", [tx])[0])[0]


def global_avg_pool_backward(dy, x, backend=None):
    """Gradient of y = global_avg_pool(x): dx[n,c,i,j] = dy[n,c] / (H W)."""
    call, shape = _Call(backend), {}
    x, dy = _array("x", x, "N,C,H,W", shape), _array("dy", dy, "N,C", shape)
    attrs = {"size": x.shape[2:], "channels": x.shape[1]}
    return call.run(call.add("global_avg_pool_bwd", [call.feed("rows", dy)], **attrs)[0])[0]


def linear(x, w, bias=None, backend=None):
    """y = x w' + bias; x (N,I), w (O,I), bias (O) -> y (N,O)."""
    call, shape = _Call(backend), {}
    inputs = [call.feed("rows", _array("x", x, "N,I", shape))]
    inputs += [call.feed("matrix", _array("w", w, "O,I", shape), "param"), None]
    if bias is not None:
        inputs[2] = call.feed("vector", _array("bias", bias, "O", shape), "param")
    return call.run(call.add("linear", inputs)[0])[0]


def linear_backward(dy, x, w, backend=None):
    """Gradients of y = linear(x, w, bias): dx = dy w, dw = dy' x, dbias = sum over N of dy."""
    call, shape = _Call(backend), {}
    tx = call.feed("rows", _array("x", x, "N,I", shape))
    tw = call.feed("matrix", _array("w", w, "O,I", shape), "param")
    tdy = call.feed("rows", _array("dy", dy, "N,O", shape))
    dx = call.add("linear_bwd_data", [tdy, tw])[0]
    dw = call.add("linear_bwd_weight", [tx, tdy])[0]
    return tuple(call.run(dx, dw, call.add("channel_sum", [tdy])[0]))


def dropout(x, rate, seed=0, step=0, stream=0, backend=None):
    """x / (1 - rate) with probability 1 - rate, 0 otherwise; x (N,F) or (N,C,H,W).

    Which elements stay depends on (seed, step, stream) and their position alone
    (Philox4x32-10, Salmon et al. 2011).
    """
    call = _Call(backend)
    x, kind = _rows_or_map("x", x, {})
    made = call.add("dropout", [call.feed(kind, x)], rate=float(rate), stream=int(stream))
    return call.run(made[0], seed=seed, step=step)[0]


def dropout_backward(dy, rate, seed=0, step=0, stream=0, backend=None):
    """Gradient of dropout with the same (seed, step, stream): the same mask and factor on dy."""
    return dropout(dy, rate, seed, step, stream, backend)
