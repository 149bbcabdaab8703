"""ResNet (He et al. 2016; stride in the 3x3 as in torchvision) and Wide ResNet (Zagoruyko &
Komodakis 2016), with the keys of torchvision."""

# name: (bottleneck, blocks per layer, width of a bottleneck's 3x3 over 64)
VARIANTS = {
    "resnet18": (False, (2, 2, 2, 2), 1),
    "resnet34": (False, (3, 4, 6, 3), 1),
    "resnet50": (True, (3, 4, 6, 3), 1),
    "resnet101": (True, (3, 4, 23, 3), 1),
    "wide_resnet50_2": (True, (3, 4, 6, 3), 2),
}


def _unit(b, x, conv, norm, out, kernel, stride=1):
    x = b.conv(x, conv, out, kernel, stride, padding=kernel // 2)
    return b.batch_norm(x, norm)


def _block(b, x, name, planes, stride, bottleneck, widen):
    out = 4 * planes if bottleneck else planes
    if bottleneck:
        y = b.relu(_unit(b, x, f"{name}.conv1", f"{name}.bn1", planes * widen, 1))
        y = b.relu(_unit(b, y, f"{name}.conv2", f"{name}.bn2", planes * widen, 3, stride))
        y = _unit(b, y, f"{name}.conv3", f"{name}.bn3", out, 1)
    else:
        y = b.relu(_unit(b, x, f"{name}.conv1", f"{name}.bn1", planes, 3, stride))
        y = _unit(b, y, f"{name}.conv2", f"{name}.bn2", planes, 3)
    if stride != 1 or b.shape(x)[1] != out:
        x = _unit(b, x, f"{name}.downsample.0", f"{name}.downsample.1", out, 1, stride)
    return b.relu(b.add(y, x))


def build(b, variant):
    """Appends the backbone; returns the pooled features (1, C)."""
    bottleneck, blocks, widen = VARIANTS[variant]
    x = b.relu(_unit(b, b.image, "conv1", "bn1", 64, 7, 2))
    x = b.max_pool(x, 3, 2, 1)
    for layer, count in enumerate(blocks):
        for i in range(count):
            stride = 2 if layer and not i else 1
            name = f"layer{layer + 1}.{i}"
            x = _block(b, x, name, 64 << layer, stride, bottleneck, widen)
    return b.global_avg_pool(x)
