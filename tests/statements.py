"""What every op means, in float64 NumPy, as plainly as it can be written.

Notation as in csrc/ops/attrs.h: x (N,C,H,W), y (N,K,OH,OW), w (K,C/groups,kh,kw); stride and
dilation (rows, columns); pad (top, left, bottom, right). `magnitude` arguments are what a sum of
absolute values takes in place of the values themselves: the condition of the sum.
"""

import numpy as np


def pooled(length, kernel, stride, before, after, dilation=1, ceil=False):
    """Output length of a window that slides over `length`; PyTorch's rule for ceil mode."""
    span = length + before + after - dilation * (kernel - 1) - 1
    out = (-(-span // stride) if ceil else span // stride) + 1
    if ceil and (out - 1) * stride >= length + before:
        out -= 1  # the last window must start inside the input or its leading padding
    return out


def windows(x, kernel, stride=(1, 1), pad=(0, 0, 0, 0), dilation=(1, 1), fill=0.0, ceil=False):
    """(N,C,OH,OW,kh,kw): what each output position sees."""
    n, c, h, w = x.shape
    top, left, bottom, right = pad
    oh = pooled(h, kernel[0], stride[0], top, bottom, dilation[0], ceil)
    ow = pooled(w, kernel[1], stride[1], left, right, dilation[1], ceil)
    need_h = (oh - 1) * stride[0] + dilation[0] * (kernel[0] - 1) + 1
    need_w = (ow - 1) * stride[1] + dilation[1] * (kernel[1] - 1) + 1
    high, wide = max(need_h, h + top + bottom), max(need_w, w + left + right)
    padded = np.full((n, c, high, wide), fill, x.dtype)
    padded[:, :, top : top + h, left : left + w] = x
    rows = np.arange(oh)[:, None] * stride[0] + np.arange(kernel[0])[None] * dilation[0]
    columns = np.arange(ow)[:, None] * stride[1] + np.arange(kernel[1])[None] * dilation[1]
    return padded[:, :, rows[:, None, :, None], columns[None, :, None, :]]


def bfloat16(v):
    """The nearest values with 8 significant bits, ties to even."""
    bits = np.ascontiguousarray(v, np.float32).view(np.uint32)
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    return bits.view(np.float32).astype(v.dtype)


def conv2d(x, w, bias=None, *, stride=(1, 1), pad=(0, 0, 0, 0), dilation=(1, 1), groups=1):
    """y[n,k,i,j] = bias[k] + sum_c,r,s w[k,c,r,s] x[n,c,i*sh+r*dh-pt,j*sw+s*dw-pl]."""
    seen = windows(x, w.shape[2:], stride, pad, dilation)
    n, c, oh, ow, kh, kw = seen.shape
    seen = seen.reshape(n, groups, c // groups, oh, ow, kh, kw).transpose(1, 0, 3, 4, 2, 5, 6)
    seen = seen.reshape(groups, n * oh * ow, -1)
    weight = w.reshape(groups, w.shape[0] // groups, -1)
    y = np.matmul(seen, weight.transpose(0, 2, 1)).reshape(groups, n, oh, ow, -1)
    y = y.transpose(1, 0, 4, 2, 3).reshape(n, w.shape[0], oh, ow)
    return y if bias is None else y + bias[None, :, None, None]


def conv2d_bwd_data(dy, w, size, *, stride=(1, 1), pad=(0, 0, 0, 0), dilation=(1, 1), groups=1):
    """dx of y = conv2d(x, w): every product is sent back to where its x came from."""
    n, k, oh, ow = dy.shape
    _, cg, kh, kw = w.shape
    top, left, bottom, right = pad
    dx = np.zeros((n, groups, cg, size[0] + top + bottom, size[1] + left + right))
    dy = dy.reshape(n, groups, k // groups, oh, ow)
    w = w.reshape(groups, k // groups, cg, kh, kw)
    for r in range(kh):
        for s in range(kw):
            part = np.einsum("ngkij,gkc->ngcij", dy, w[:, :, :, r, s], optimize=True)
            i, j = r * dilation[0], s * dilation[1]
            rows = slice(i, i + (oh - 1) * stride[0] + 1, stride[0])
            columns = slice(j, j + (ow - 1) * stride[1] + 1, stride[1])
            dx[:, :, :, rows, columns] += part
    dx = dx.reshape(n, groups * cg, *dx.shape[3:])
    return dx[:, :, top : top + size[0], left : left + size[1]]


def _doubling(size, bilinear):
    """(2 size, size): shares of the inputs in each output, half-pixel centres, borders repeated."""
    at = (np.arange(2 * size) + 0.5) / 2 - 0.5 if bilinear else np.arange(2 * size) // 2
    low = np.floor(at).astype(int)
    shares = np.zeros((2 * size, size))
    for out, (first, part) in enumerate(zip(low, at - low)):
        shares[out, min(max(first, 0), size - 1)] += 1 - part
        shares[out, min(max(first + 1, 0), size - 1)] += part
    return shares


def upsample(x, mode):
    """Twice the size: y = A x B' with the shares of both directions."""
    a, b = (_doubling(n, mode == "bilinear") for n in x.shape[2:])
    return np.einsum("hi,ncij,wj->nchw", a, x, b, optimize=True)


def upsample_bwd(dy, mode):
    a, b = (_doubling(n // 2, mode == "bilinear") for n in dy.shape[2:])
    return np.einsum("hi,nchw,wj->ncij", a, dy, b, optimize=True)


def mask_sums(z, t):
    """(N, 4) of logits and masks (N,1,H,W): mean cross-entropy, sums of p t, p and t."""
    p, axes = 1 / (1 + np.exp(-z)), (1, 2, 3)
    entropy = np.logaddexp(0, z) - z * t
    return np.stack([entropy.mean(axes), (p * t).sum(axes), p.sum(axes), t.sum(axes)], 1)


def mask_sums_bwd(dsums, z, t):
    p, pixels = 1 / (1 + np.exp(-z)), z[0].size
    entropy, both, guessed = (dsums[:, k, None, None, None] for k in range(3))
    return entropy * (p - t) / pixels + (both * t + guessed) * p * (1 - p)


def dice_and_entropy(sums):
    """Loss of each mask (N) from mask_sums."""
    entropy, both, guessed, true = sums.T
    return entropy + 1 - (2 * both + 1) / (guessed + true + 1)


def conv2d_bwd_weight(x, dy, kernel, *, stride=(1, 1), pad=(0, 0, 0, 0), dilation=(1, 1), groups=1):
    """dw of y = conv2d(x, w): the products of each window with its dy."""
    top, left, bottom, right = pad
    n, k, oh, ow = dy.shape
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    padded = padded.reshape(n, groups, -1, *padded.shape[2:])
    dy = dy.reshape(n, groups, k // groups, oh, ow)
    dw = np.zeros((groups, k // groups, padded.shape[2], *kernel))
    for r in range(kernel[0]):
        for s in range(kernel[1]):
            i, j = r * dilation[0], s * dilation[1]
            rows = slice(i, i + (oh - 1) * stride[0] + 1, stride[0])
            columns = slice(j, j + (ow - 1) * stride[1] + 1, stride[1])
            seen = padded[:, :, :, rows, columns]
            dw[:, :, :, r, s] = np.einsum("ngcij,ngkij->gkc", seen, dy, optimize=True)
    return dw.reshape(k, -1, *kernel)


def activate(x, act):
    """act: a name of tests.opcase.ACTS."""
    if act == "relu":
        return np.maximum(x, 0.0)
    if act == "relu6":
        return np.clip(x, 0.0, 6.0)
    if act == "silu":
        return x / (1.0 + np.exp(-x))
    if act == "sigmoid":
        return 1.0 / (1.0 + np.exp(-x))
    if act == "hardswish":
        return x * np.clip(x + 3.0, 0.0, 6.0) / 6.0
    if act == "hardsigmoid":
        return np.clip(x + 3.0, 0.0, 6.0) / 6.0
    return x


FROM_INPUT = ("silu", "hardswish")  # activations whose slope cannot be had from their output


def slope(x, act):
    """The derivative of activate(x, act); at kinks as PyTorch defines it."""
    if act == "silu":
        s = 1.0 / (1.0 + np.exp(-x))
        return s * (1.0 + x * (1.0 - s))
    if act == "hardswish":
        return np.where(x <= -3, 0.0, np.where(x >= 3, 1.0, (2.0 * x + 3.0) / 6.0))
    return slope_of_output(activate(x, act), act)


def slope_of_output(y, act):
    """The same from y = activate(x, act), where that is enough."""
    if act == "relu":
        return 1.0 * (y > 0)
    if act == "relu6":
        return 1.0 * ((y > 0) & (y < 6))
    if act == "sigmoid":
        return y * (1.0 - y)
    if act == "hardsigmoid":
        return ((y > 0) & (y < 1)) / 6.0
    assert act == "none"
    return np.ones_like(y)


def per_channel(v):
    """(C) as (1,C,1,1)."""
    return v[None, :, None, None]


def lazy(x, scale, shift, act):
    """act(scale[c] x + shift[c]), what a consumer of a lazy tensor loads."""
    return activate(per_channel(scale) * x + per_channel(shift), act)


def max_pool(x, *, kernel, stride, pad=(0, 0, 0, 0), dilation=(1, 1), ceil_mode=0):
    """y and, for each y, the position inside its window of the first maximum."""
    seen = windows(x, kernel, stride, pad, dilation, -np.inf, bool(ceil_mode))
    flat = seen.reshape(*seen.shape[:4], -1)
    return flat.max(-1), flat.argmax(-1)


def max_pool_bwd(dy, where, size, *, kernel, stride, pad=(0, 0, 0, 0), dilation=(1, 1), **_):
    """Each dy goes to the element that won its window."""
    n, c, oh, ow = dy.shape
    dx = np.zeros((n, c, *size))
    r, s = np.divmod(where, kernel[1])
    i = np.arange(oh)[:, None] * stride[0] - pad[0] + r * dilation[0]
    j = np.arange(ow)[None, :] * stride[1] - pad[1] + s * dilation[1]
    batch, channel = np.arange(n)[:, None, None, None], np.arange(c)[None, :, None, None]
    np.add.at(dx, (batch, channel, i, j), dy)
    return dx


def avg_pool_weights(size, *, kernel, stride, pad=(0, 0, 0, 0), ceil_mode=0, count_include_pad=0):
    """(OH,OW,H,W): the weight of each input in each mean, with PyTorch's divisors."""
    h, w = size
    top, left, bottom, right = pad
    oh = pooled(h, kernel[0], stride[0], top, bottom, 1, bool(ceil_mode))
    ow = pooled(w, kernel[1], stride[1], left, right, 1, bool(ceil_mode))
    weights = np.zeros((oh, ow, h, w))
    for i in range(oh):
        for j in range(ow):
            r0, s0 = i * stride[0] - top, j * stride[1] - left
            r1, s1 = min(r0 + kernel[0], h + bottom), min(s0 + kernel[1], w + right)
            inside = (slice(max(r0, 0), min(r1, h)), slice(max(s0, 0), min(s1, w)))
            count = (r1 - r0) * (s1 - s0)
            if not count_include_pad:
                count = (min(r1, h) - max(r0, 0)) * (min(s1, w) - max(s0, 0))
            weights[(i, j, *inside)] = 1.0 / count
    return weights


def avg_pool(x, **attrs):
    return np.einsum("nchw,ijhw->ncij", x, avg_pool_weights(x.shape[2:], **attrs), optimize=True)


def avg_pool_bwd(dy, size, **attrs):
    return np.einsum("ncij,ijhw->nchw", dy, avg_pool_weights(size, **attrs), optimize=True)


def bn_fold(x, gamma, beta, rmean, rvar, *, eps, momentum, training):
    """scale, shift, mean, invstd and the running statistics afterwards; x (N,C,H,W)."""
    if training:
        count = x.size // x.shape[1]
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
        unbiased = var * count / max(count - 1, 1)
        rmean = (1 - momentum) * rmean + momentum * mean
        rvar = (1 - momentum) * rvar + momentum * unbiased
    else:
        mean, var = rmean, rvar
    invstd = 1.0 / np.sqrt(var + eps)
    scale = gamma * invstd
    named = {"scale": scale, "shift": beta - mean * scale, "mean": mean, "invstd": invstd}
    return named | {"rmean": rmean, "rvar": rvar}


def norm_act(x, scale, shift, residual=None, act="none"):
    pre = per_channel(scale) * x + per_channel(shift)
    return activate(pre if residual is None else pre + residual, act)


def gradient_at_output(dz, gate, pooled, shape):
    """dz gate + pooled / (H W), each of which may be absent (None)."""
    d = np.zeros(shape) if dz is None else dz
    if gate is not None:
        d = d * gate[:, :, None, None]
    if pooled is not None:
        d = d + pooled[:, :, None, None] / (shape[2] * shape[3])
    return d


def bn_bwd(dz, x, scale, shift, mean, invstd, z=None, gate=None, pooled=None, addend=None, *,
           act="none", training=1):  # fmt: skip
    """Gradients of z = act(gamma (x - mean) invstd + beta [+ residual]) [gate].

    The slope is taken from z where it is given (then a residual may have been added), otherwise
    from scale x + shift. In training the mean and the variance depend on x (Ioffe & Szegedy 2015).
    """
    dpre = gradient_at_output(dz, gate, pooled, x.shape)
    dpre = dpre * (slope(norm_act(x, scale, shift), act) if z is None else slope_of_output(z, act))
    xhat = (x - per_channel(mean)) * per_channel(invstd)
    dbeta, dgamma = dpre.sum((0, 2, 3)), (dpre * xhat).sum((0, 2, 3))
    dx = dpre
    if training:
        count = x.size // x.shape[1]
        dx = dpre - per_channel(dbeta / count) - xhat * per_channel(dgamma / count)
    dx = per_channel(scale) * dx
    dx = dx if addend is None else dx + addend
    return {"dx": dx, "dgamma": dgamma, "dbeta": dbeta, "dpre": dpre}


def difference(f, x, direction, step=1e-5):
    """4-point central difference of f at x along `direction`; error of order step ** 4."""
    at = [f(x + k * step * direction) for k in (-2, -1, 1, 2)]
    return (at[0] - 8 * at[1] + 8 * at[2] - at[3]) / (12 * step)
