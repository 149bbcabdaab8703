"""ShuffleNetV2 (Ma et al. 2018) with the keys of torchvision."""

# name: channels of the stages
VARIANTS = {
    "shufflenet_v2_x0_5": (48, 96, 192),
    "shufflenet_v2_x1_0": (116, 232, 464),
}
BLOCKS = (4, 8, 4)


def _unit(b, x, name, i, out, kernel=1, stride=1, groups=1):
    """Convolution `i` of a branch and its batch norm."""
    x = b.conv(x, f"{name}.{i}", out, kernel, stride, padding=kernel // 2, groups=groups)
    return b.batch_norm(x, f"{name}.{i + 1}")


def _main(b, x, name, half, stride):
    x = b.relu(_unit(b, x, name, 0, half))
    x = _unit(b, x, name, 3, half, 3, stride, groups=half)
    return b.relu(_unit(b, x, name, 5, half))


def _block(b, x, name, out):
    """A block that changes the number of channels is the first of its stage and has stride 2."""
    channels, half = b.shape(x)[1], out // 2
    if channels == out:
        left, right = b.slice(x, 0, half), b.slice(x, half, half)
        right = _main(b, right, f"{name}.branch2", half, 1)
    else:
        left = _unit(b, x, f"{name}.branch1", 0, channels, 3, 2, groups=channels)
        left = b.relu(_unit(b, left, f"{name}.branch1", 2, half))
        right = _main(b, x, f"{name}.branch2", half, 2)
    return b.shuffle(b.concat([left, right]), 2)


def build(b, variant):
    """Appends the backbone; returns the pooled features (1, C)."""
    b.conv_init = "default"
    x = b.max_pool(b.relu(_unit(b, b.image, "conv1", 0, 24, 3, 2)), 3, 2, 1)
    for stage, (out, count) in enumerate(zip(VARIANTS[variant], BLOCKS), 2):
        for i in range(count):
            x = _block(b, x, f"stage{stage}.{i}", out)
    return b.global_avg_pool(b.relu(_unit(b, x, "conv5", 0, 1024)))
