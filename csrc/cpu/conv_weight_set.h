/* Template: the weight tiles of 512-bit vectors, 16 input channels x 1 vector of 16 outputs or 8 x
 * 2, and WEIGHT_SET, which names them in an mdmt_conv_micro; see conv_tile.h. */

#define WEIGHTS(channels)                                                                          \
    DEFINE_WEIGHT(weight_1_##channels, channels, 1)                                                \
    DEFINE_WEIGHT(weight_2_##channels, channels, 2)
#define LONG_WEIGHTS(channels) DEFINE_WEIGHT(weight_1_##channels, channels, 1)

WEIGHTS(1)
WEIGHTS(2)
WEIGHTS(3)
WEIGHTS(4)
WEIGHTS(5)
WEIGHTS(6)
WEIGHTS(7)
WEIGHTS(8)
LONG_WEIGHTS(9)
LONG_WEIGHTS(10)
LONG_WEIGHTS(11)
LONG_WEIGHTS(12)
LONG_WEIGHTS(13)
LONG_WEIGHTS(14)
LONG_WEIGHTS(15)
LONG_WEIGHTS(16)

/* clang-format off */
#define WEIGHT_SET                                                                                 \
    .weight_blocks = 2, .channels = {16, 8},                                                       \
    .weight = {{0, weight_1_1, weight_1_2, weight_1_3, weight_1_4, weight_1_5, weight_1_6,         \
                weight_1_7, weight_1_8, weight_1_9, weight_1_10, weight_1_11, weight_1_12,         \
                weight_1_13, weight_1_14, weight_1_15, weight_1_16},                               \
               {0, weight_2_1, weight_2_2, weight_2_3, weight_2_4, weight_2_5, weight_2_6,         \
                weight_2_7, weight_2_8}}
/* clang-format on */
