"""U-Net (Ronneberger et al. 2015) with batch normalisation, for masks of images.

The first convolution has stride 2, so that full resolution costs nothing but the last, bilinear
step of the mask head. Each level of the encoder is two units (3 x 3 convolution, batch norm, ReLU)
and a max-pooling; each level of the decoder is the level below, up-sampled by 2 (bilinear), joined
with the encoder's of the same size, and two units.

Its pooled feature, for heads of classes, is that of the deepest level.
"""

# name: channels of the levels, from the shallowest, and of the decoder's levels, likewise
VARIANTS = {
    "unet": ((16, 32, 64, 128, 128), (16, 16, 32, 64)),
    "unet_tiny": ((16, 16, 32), (16, 16)),
}


def _unit(b, x, name, out, stride=1):
    x = b.conv(x, f"{name}.conv", out, 3, stride, padding=1)
    return b.relu(b.batch_norm(x, f"{name}.bn"))


def multiple(variant):
    """What the sides of the images must be multiples of."""
    return 2 ** len(VARIANTS[variant][0])


def build(b, variant):
    """Appends the backbone; returns the pooled features (1, C), and leaves the feature map of half
    the image's size in b.dense."""
    down, up = VARIANTS[variant]
    b.conv_init = "fan in"
    x, levels = _unit(b, b.image, "stem", down[0], 2), []
    for i, out in enumerate(down):
        if i:
            x = _unit(b, b.max_pool(x, 2), f"down.{i}.0", out)
        x = _unit(b, x, f"down.{i}.1", out)
        levels.append(x)
    pooled = b.global_avg_pool(x)
    for i in reversed(range(len(up))):
        x = b.concat([b.upsample(x), levels[i]])
        x = _unit(b, _unit(b, x, f"up.{i}.0", up[i]), f"up.{i}.1", up[i])
    b.dense = x
    return pooled
