/* Template: the tiles of 512-bit vectors - 14 pixels x 2 vectors of 16 outputs, 28 accumulators; for
 * weights 16 input channels x 1 vector or 8 x 2 - and TILE_SET, which names them in an
 * mdmt_conv_micro. The including file defines PIXEL, the words of a block's pixel (16 or 8); see
 * conv_tile.h. */

#define TILES(columns)                                                                             \
    DEFINE_TILE(tile_1_##columns, 1, columns, 1, PIXEL)                                            \
    DEFINE_TILE(tile_2_##columns, 1, columns, 2, PIXEL)
#define PAIRS(columns)                                                                             \
    DEFINE_TILE(pair_1_##columns, 2, columns, 1, PIXEL)                                            \
    DEFINE_TILE(pair_2_##columns, 2, columns, 2, PIXEL)
#define QUADS(columns)                                                                             \
    DEFINE_TILE(quad_1_##columns, 4, columns, 1, PIXEL)                                            \
    DEFINE_TILE(quad_2_##columns, 4, columns, 2, PIXEL)
#define WEIGHTS(channels)                                                                          \
    DEFINE_WEIGHT(weight_1_##channels, channels, 1)                                                \
    DEFINE_WEIGHT(weight_2_##channels, channels, 2)
#define LONG_WEIGHTS(channels) DEFINE_WEIGHT(weight_1_##channels, channels, 1)

TILES(1)
TILES(2)
TILES(3)
TILES(4)
TILES(5)
TILES(6)
TILES(7)
TILES(8)
TILES(9)
TILES(10)
TILES(11)
TILES(12)
TILES(13)
TILES(14)
PAIRS(1)
PAIRS(2)
PAIRS(3)
PAIRS(4)
PAIRS(5)
PAIRS(6)
PAIRS(7)
QUADS(1)
QUADS(2)
QUADS(3)
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
#define ROW7(p)  {0, p##1, p##2, p##3, p##4, p##5, p##6, p##7}
#define ROW14(p) {0, p##1, p##2, p##3, p##4, p##5, p##6, p##7, p##8, p##9, p##10, p##11, p##12,    \
                  p##13, p##14}
#define TILE_SET                                                                                   \
    .columns = 14, .pair_columns = 7, .pair_widest = 7, .quad_columns = 3, .quad_widest = 3,       \
    .tile_blocks = 2, .weight_blocks = 2, .channels = {16, 8},                                     \
    .tile = {ROW14(tile_1_), ROW14(tile_2_)}, .pair = {ROW7(pair_1_), ROW7(pair_2_)},              \
    .quad = {{0, quad_1_1, quad_1_2, quad_1_3}, {0, quad_2_1, quad_2_2, quad_2_3}},                \
    .weight = {{0, weight_1_1, weight_1_2, weight_1_3, weight_1_4, weight_1_5, weight_1_6,         \
                weight_1_7, weight_1_8, weight_1_9, weight_1_10, weight_1_11, weight_1_12,         \
                weight_1_13, weight_1_14, weight_1_15, weight_1_16},                               \
               {0, weight_2_1, weight_2_2, weight_2_3, weight_2_4, weight_2_5, weight_2_6,         \
                weight_2_7, weight_2_8}}
/* clang-format on */
