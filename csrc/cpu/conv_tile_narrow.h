/* Template: the tiles of one block of outputs, 6 pixels wide, and NARROW_TILE_SET, which names them
 * in an mdmt_conv_micro; see conv_tile.h. With 8-float vectors 12 accumulators of 16 registers, with
 * 4-float ones 24 of 32. */

#define TILES(columns)                                                                             \
    DEFINE_TILE(tile_##columns, 1, columns, 1, 16)                                                 \
    DEFINE_TILE(stem_##columns, 1, columns, 1, 1)                                                  \
    DEFINE_WEIGHT(weight_##columns, columns, 1)

TILES(1)
TILES(2)
TILES(3)
TILES(4)
TILES(5)
TILES(6)
DEFINE_TILE(pair_1, 2, 1, 1, 16)
DEFINE_TILE(pair_2, 2, 2, 1, 16)
DEFINE_TILE(pair_3, 2, 3, 1, 16)
DEFINE_TILE(quad_1, 4, 1, 1, 16)

/* clang-format off */
#define NARROW_TILE_SET                                                                            \
    .pixel = MDMT_BLOCK, .columns = 6, .pair_columns = 3, .pair_widest = 7, .quad_columns = 1,     \
    .quad_widest = 1, .tile_blocks = 1, .weight_blocks = 1, .channels = {6, 0},                    \
    .tile = {{0, tile_1, tile_2, tile_3, tile_4, tile_5, tile_6}},                                 \
    .pair = {{0, pair_1, pair_2, pair_3}}, .quad = {{0, quad_1}},                                  \
    .stem = {{0, stem_1, stem_2, stem_3, stem_4, stem_5, stem_6}},                                 \
    .weight = {{0, weight_1, weight_2, weight_3, weight_4, weight_5, weight_6}}
/* clang-format on */
