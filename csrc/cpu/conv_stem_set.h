/* Template: the tiles of 512-bit vectors over the pixels of an IMAGE, 14 x 2 vectors of 16 outputs,
 * and STEM_SET, which names them in an mdmt_conv_micro; see conv_tile.h. */

#define STEMS(columns)                                                                             \
    DEFINE_TILE(stem_1_##columns, 1, columns, 1, 1)                                                \
    DEFINE_TILE(stem_2_##columns, 1, columns, 2, 1)

STEMS(1)
STEMS(2)
STEMS(3)
STEMS(4)
STEMS(5)
STEMS(6)
STEMS(7)
STEMS(8)
STEMS(9)
STEMS(10)
STEMS(11)
STEMS(12)
STEMS(13)
STEMS(14)

/* clang-format off */
#define STEM_ROW(p)  {0, p##1, p##2, p##3, p##4, p##5, p##6, p##7, p##8, p##9, p##10, p##11, p##12,    \
                  p##13, p##14}
#define STEM_SET .stem = {STEM_ROW(stem_1_), STEM_ROW(stem_2_)}
/* clang-format on */
