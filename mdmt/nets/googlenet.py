"""GoogLeNet (Szegedy et al. 2015) with batch normalisation and the keys of torchvision, without
its auxiliary classifiers. The branch of the 5 x 5 convolution has a 3 x 3 one, as the original
weights do."""

# name: per stage of inception blocks its pooling (kernel) and, per block, the channels of the
# branches 1 x 1, 3 x 3 (reduced, out), 5 x 5 (reduced, out) and pooling
VARIANTS = {
    "googlenet": (
        (3, ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64))),
        (
            3,
            (
                (192, 96, 208, 16, 48, 64),
                (160, 112, 224, 24, 64, 64),
                (128, 128, 256, 24, 64, 64),
                (112, 144, 288, 32, 64, 64),
                (256, 160, 320, 32, 128, 128),
            ),
        ),
        (2, ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128))),
    ),
}


def _unit(b, x, name, out, kernel, stride=1):
    x = b.conv(x, f"{name}.conv", out, kernel, stride, padding=kernel // 2)
    return b.relu(b.batch_norm(x, f"{name}.bn", eps=1e-3))


def _inception(b, x, name, one, three_in, three, five_in, five, pooled):
    branches = [_unit(b, x, f"{name}.branch1", one, 1)]
    y = _unit(b, x, f"{name}.branch2.0", three_in, 1)
    branches.append(_unit(b, y, f"{name}.branch2.1", three, 3))
    y = _unit(b, x, f"{name}.branch3.0", five_in, 1)
    branches.append(_unit(b, y, f"{name}.branch3.1", five, 3))
    y = b.max_pool(x, 3, 1, 1, ceil_mode=True)
    branches.append(_unit(b, y, f"{name}.branch4.1", pooled, 1))
    return b.concat(branches)


def build(b, variant):
    """Appends the backbone; returns the pooled features (1, C)."""
    b.conv_init = "small"
    x = b.max_pool(_unit(b, b.image, "conv1", 64, 7, 2), 3, 2, ceil_mode=True)
    x = _unit(b, _unit(b, x, "conv2", 64, 1), "conv3", 192, 3)
    for stage, (kernel, blocks) in enumerate(VARIANTS[variant], 3):
        x = b.max_pool(x, kernel, 2, ceil_mode=True)
        for letter, channels in zip("abcde", blocks):
            x = _inception(b, x, f"inception{stage}{letter}", *channels)
    return b.global_avg_pool(x)
