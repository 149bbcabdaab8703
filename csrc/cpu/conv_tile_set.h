/* Template: the tiles of 512-bit vectors, 14 pixels x 2 vectors of 16 outputs, 28 accumulators, and
 * TILE_SET, which names them and those of conv_weight_set.h in an mdmt_conv_micro. The including
 * file defines PIXEL, the words of a block's pixel (16 or 8); see conv_tile.h. */
#include "conv_weight_set.h"

#define TILES(columns)                                                                             \
    DEFINE_TILE(tile_1_##columns, 1, columns, 1, PIXEL)                                            \
    DEFINE_TILE(tile_2_##columns, 1, columns, 2, PIXEL)
#define PAIRS(columns)                                                                             \
    DEFINE_TILE(pair_1_##columns, 2, columns, 1, PIXEL)                                            \
    DEFINE_TILE(pair_2_##columns, 2, columns, 2, PIXEL)
#define QUADS(columns)                                                                             \
    DEFINE_TILE(quad_1_##columns, 4, columns, 1, PIXEL)                                            \
    DEFINE_TILE(quad_2_##columns, 4, columns, 2, PIXEL)
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

/* clang-format off */
#define ROW7(p)  {0, p##1, p##2, p##3, p##4, p##5, p##6, p##7}
#define ROW14(p) {0, p##1, p##2, p##3, p##4, p##5, p##6, p##7, p##8, p##9, p##10, p##11, p##12,    \
                  p##13, p##14}
#define TILE_SET                                                                                   \
    .columns = 14, .pair_columns = 7, .pair_widest = 7, .quad_columns = 3, .quad_widest = 3,       \
    .tile_blocks = 2, .tile = {ROW14(tile_1_), ROW14(tile_2_)},                                    \
    .pair = {ROW7(pair_1_), ROW7(pair_2_)},                                                        \
    .quad = {{0, quad_1_1, quad_1_2, quad_1_3}, {0, quad_2_1, quad_2_2, quad_2_3}}, WEIGHT_SET
/* clang-format on */
