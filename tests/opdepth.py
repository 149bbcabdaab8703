"""Rows of the op table: depthwise convolutions (MobileNet, EfficientNet, ShuffleNet)."""


def depth_table(convolutions, views_of):
    """All passes: kernels 3 and 5, strides, the padding of TensorFlow, ragged channels."""

    def row(x, kernel, stride=1, pad=None, make=convolutions, **how):
        pad = pad or (kernel // 2,) * 4
        return make(x, x[1], (kernel, kernel), stride=(stride,) * 2, pad=pad, groups=x[1], **how)

    three, five = (0, 0, 1, 1), (1, 1, 2, 2)  # TensorFlow's SAME of stride 2 where sizes are even
    rows = [
        # sizes of the networks
        row((1, 32, 112, 112), 3, lazy="relu6", stats=True),
        row((2, 16, 112, 112), 3, 2, addend=True, stats=True),
        row((1, 24, 56, 56), 5, 2, five, lazy="silu", stats=True),
        row((2, 24, 28, 28), 5, lazy="silu", stats=True),
        row((2, 40, 28, 28), 5, addend=True, stats=True),
        row((3, 58, 28, 28), 3, 2),
        row((2, 48, 14, 14), 3, lazy="relu6", stats=True),
        row((5, 116, 14, 14), 3, addend=True),
        row((2, 35, 14, 14), 5, 2, five, lazy="relu6", stats=True),
        row((17, 96, 7, 7), 3, lazy="hardswish", stats=True),
        row((19, 80, 7, 7), 5, addend=True, stats=True),
        row((2, 27, 60, 60), 3, 2, three, lazy="silu"),
        row((2, 40, 15, 15), 5, addend=True, stats=True, bias=True),
        row((2, 33, 8, 8), 5, lazy="silu", gate=True, stats=True),
        # every activation, gates
        row((2, 19, 9, 11), 3, lazy="none", gate=True),
        row((2, 19, 11, 9), 3, 2, lazy="relu", gate=True),
        row((2, 19, 9, 11), 5, lazy="sigmoid", gate=True),
        row((2, 19, 11, 9), 5, 2, lazy="hardsigmoid"),
        # 1, small and odd sizes; paddings of all sides
        row((1, 2, 1, 1), 3, addend=True),
        row((3, 17, 2, 1), 5, stats=True),
        row((1, 16, 1, 6), 3, 2, addend=True),
        row((2, 18, 5, 4), 5, 2, (0, 1, 2, 3), bias=True, stats=True),
        row((2, 16, 6, 7), 3, 2, three, addend=True),
        row((1, 16, 7, 6), 5, 2, (2, 1, 1, 2), addend=True, bias=True),
        row((1, 16, 9, 13), 3, 1, (2, 0, 0, 2), addend=True),
        row((1, 16, 9, 10), 3, 1, (0, 0, 0, 0)),
        row((1, 16, 9, 10), 3, 1, (4, 5, 3, 4)),
        row((1, 16, 9, 10), 5, 2, (6, 5, 7, 6)),
        row((1, 20, 17, 100), 3, lazy="relu", stats=True),
        row((1, 16, 131, 5), 5, stats=True),
        row((2, 19, 13, 11), 3, 1, make=views_of, lazy="relu6", stats=True),
        row((2, 32, 13, 11), 5, 2, make=views_of, addend=True, stats=True, bias=True),
        row((3, 21, 10, 12), 3, 2, three, make=views_of, addend=True),
        # several tiles of a GPU's kernel in both directions and in a part, ragged ones, 33 and
        # more channels, several samples in one
        row((2, 72, 37, 45), 3, 2, addend=True, stats=True),
        row((1, 40, 61, 59), 5, 2, lazy="silu", gate=True, stats=True),
        row((2, 40, 61, 58), 5, 2, (1, 2, 2, 1), addend=True),
        row((3, 43, 29, 31), 3, lazy="silu", gate=True, stats=True, bias=True),
        row((2, 69, 33, 35), 5, addend=True),
        row((9, 34, 5, 6), 3, 2, make=views_of, addend=True),
        row((7, 34, 6, 5), 5, make=views_of, lazy="silu", gate=True, stats=True),
        row((1, 2, 3, 33930), 3, lazy="silu", stats=True),
        row((1, 16, 36, 180), 3, 2, addend=True),  # a strip of the last tile begins beyond the map
        # geometries that have no tiles
        row((2, 19, 12, 11), 3, pad=(2, 2, 2, 2), dilation=(2, 2), lazy="relu6", stats=True),
        row((2, 18, 13, 12), 7, 2, addend=True, bias=True),
        convolutions((2, 19, 12, 11), 19, (3, 5), stride=(2, 1), pad=(1, 2, 1, 2), groups=19,
                     addend=True),
    ]  # fmt: skip
    return [case for cases in rows for case in cases]
