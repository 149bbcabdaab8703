"""MobileNetV2 (Sandler et al. 2018) with the keys of torchvision."""

# name: per stage (expansion, channels, blocks, stride of the first)
VARIANTS = {
    "mobilenet_v2": (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ),
}


def _unit(b, x, name, out, kernel, stride=1, groups=1):
    x = b.conv(x, f"{name}.0", out, kernel, stride, padding=kernel // 2, groups=groups)
    return b.act(b.batch_norm(x, f"{name}.1"), "relu6")


def _block(b, x, name, expansion, out, stride):
    channels, y, i = b.shape(x)[1], x, 0
    wide = channels * expansion
    if expansion > 1:
        y, i = _unit(b, y, f"{name}.conv.0", wide, 1), 1
    y = _unit(b, y, f"{name}.conv.{i}", wide, 3, stride, groups=wide)
    y = b.conv(y, f"{name}.conv.{i + 1}", out, 1)
    y = b.batch_norm(y, f"{name}.conv.{i + 2}")
    return b.add(y, x) if stride == 1 and channels == out else y


def build(b, variant):
    """Appends the backbone; returns the pooled features (1, C)."""
    x, number = _unit(b, b.image, "features.0", 32, 3, 2), 1
    for expansion, out, count, stride in VARIANTS[variant]:
        for i in range(count):
            x = _block(b, x, f"features.{number}", expansion, out, 1 if i else stride)
            number += 1
    return b.global_avg_pool(_unit(b, x, f"features.{number}", 1280, 1))
