"""DenseNet-BC (Huang et al. 2017) with the keys of torchvision."""

# name: (growth rate, layers per block, channels of the first convolution)
VARIANTS = {
    "densenet121": (32, (6, 12, 24, 16), 64),
    "densenet161": (48, (6, 12, 36, 24), 96),
    "densenet169": (32, (6, 12, 32, 32), 64),
    "densenet201": (32, (6, 12, 48, 32), 64),
}


def _layer(b, x, name, growth):
    y = b.conv(b.relu(b.batch_norm(x, f"{name}.norm1")), f"{name}.conv1", 4 * growth, 1)
    y = b.relu(b.batch_norm(y, f"{name}.norm2"))
    return b.conv(y, f"{name}.conv2", growth, 3, padding=1)


def _transition(b, x, name):
    y = b.relu(b.batch_norm(x, f"{name}.norm"))
    return b.avg_pool(b.conv(y, f"{name}.conv", b.shape(x)[1] // 2, 1), 2)


def build(b, variant):
    """Appends the backbone; returns the pooled features (1, C)."""
    growth, blocks, first = VARIANTS[variant]
    b.conv_init = "fan in"
    x = b.conv(b.image, "features.conv0", first, 7, 2, padding=3)
    x = b.max_pool(b.relu(b.batch_norm(x, "features.norm0")), 3, 2, 1)
    for block, layers in enumerate(blocks, 1):
        for i in range(1, layers + 1):
            new = _layer(b, x, f"features.denseblock{block}.denselayer{i}", growth)
            x = b.concat([x, new])
        if block < len(blocks):
            x = _transition(b, x, f"features.transition{block}")
    return b.global_avg_pool(b.relu(b.batch_norm(x, "features.norm5")))
