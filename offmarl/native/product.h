/* Vectors of the processor at hand, and products of matrices that keep a tile of the result in registers. */
#ifndef OFFMARL_PRODUCT_H
#define OFFMARL_PRODUCT_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
enum { LANES = 16, TILE_VECTORS = 4, TILE_ROWS = 6 }; /* 24 of 32 registers hold the tile */
#define EVEN_LANES 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30 /* of two vectors */
#define ODD_LANES 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#elif defined(__AVX__)
enum { LANES = 8, TILE_VECTORS = 2, TILE_ROWS = 6 }; /* 12 of 16 */
#define EVEN_LANES 0, 2, 4, 6, 8, 10, 12, 14
#define ODD_LANES 1, 3, 5, 7, 9, 11, 13, 15
#else
enum { LANES = 4, TILE_VECTORS = 4, TILE_ROWS = 4 }; /* 16 of 32 on ARM; x86 without AVX spills */
#define EVEN_LANES 0, 2, 4, 6
#define ODD_LANES 1, 3, 5, 7
#endif
enum { PANEL = LANES * TILE_VECTORS };

typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t lanes __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))

INLINE vec load(const float *at) { return *(const vec *)at; }
INLINE void store(float *at, vec value) { *(vec *)at = value; }
INLINE vec select_where(lanes yes, vec a, vec b) { return (vec)((yes & (lanes)a) | (~yes & (lanes)b)); }
/* Written so that a NaN stays one, as PyTorch's does: a diverged network must be seen to have diverged. */
INLINE vec relu(vec x) { return select_where(x < 0, (vec){0}, x); }
INLINE vec where_active(vec activation, vec slope) { return select_where(activation <= 0, (vec){0}, slope); }

#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (lanes){__VA_ARGS__})
#endif

/* Lane i of the result is the sum of the lanes of x[i]. Uses x up. */
INLINE vec sums_of_lanes(vec x[LANES]) {
    for (int left = LANES / 2; left; left /= 2)
        for (int i = 0; i < left; i++)
            x[i] = SHUFFLE(x[2 * i], x[2 * i + 1], EVEN_LANES) + SHUFFLE(x[2 * i], x[2 * i + 1], ODD_LANES);
    return x[0];
}

#include "bfloat16.h"

/* ---- products */

enum Ending { STORE_RELU, STORE_WHERE_ACTIVE, ADD, STORE };

/* One tile: C[rows, vectors * LANES] from A[rows, depth] B[depth, vectors * LANES]. A's strides are free, so that
 * the transpose of an activation is as good as the activation. `extra` is the bias of STORE and STORE_RELU (or
 * NULL), and the activations [rows, ...], laid out like C, whose ReLU STORE_WHERE_ACTIVE goes back through.
 * ADD_PRODUCT(sum, a, right) knows what entries of A and B are. */
#define UNROLL _Pragma("GCC unroll 8")
#define TILE(KIND, ADD_PRODUCT, ROWS, VECTORS)                                                                   \
    static void KIND##_##ROWS##_##VECTORS(long depth, const float *a, long a_row, long a_step, const float *b,   \
                                          long b_step, enum Ending ending, const float *extra, float *c,         \
                                          long c_row) {                                                          \
        vec sum[ROWS][VECTORS];                                                                                  \
        UNROLL for (int v = 0; v < VECTORS; v++) {                                                               \
            vec start = extra && ending != STORE_WHERE_ACTIVE ? load(extra + v * LANES) : (vec){0};              \
            UNROLL for (int r = 0; r < ROWS; r++) sum[r][v] = start;                                             \
        }                                                                                                        \
        for (long d = 0; d < depth; d++, a += a_step, b += b_step) {                                             \
            vec right[VECTORS];                                                                                  \
            UNROLL for (int v = 0; v < VECTORS; v++) right[v] = load(b + v * LANES);                             \
            UNROLL for (int r = 0; r < ROWS; r++)                                                                \
                UNROLL for (int v = 0; v < VECTORS; v++)                                                         \
                    sum[r][v] = ADD_PRODUCT(sum[r][v], a + r * a_row, right[v]);                                 \
        }                                                                                                        \
        UNROLL for (int r = 0; r < ROWS; r++)                                                                    \
            UNROLL for (int v = 0; v < VECTORS; v++) {                                                           \
                float *to = c + r * c_row + v * LANES;                                                           \
                const float *more = extra + r * c_row + v * LANES;                                               \
                vec value = sum[r][v];                                                                           \
                if (ending == STORE_RELU) value = relu(value);                                                   \
                if (ending == STORE_WHERE_ACTIVE) value = where_active(load(more), value);                       \
                if (ending == ADD) value += load(to);                                                            \
                store(to, value);                                                                                \
            }                                                                                                    \
    }

typedef void (*Tile)(long, const float *, long, long, const float *, long, enum Ending, const float *, float *, long);
#define TILES(KIND, ADD_PRODUCT, ROWS)                                                                           \
    TILE(KIND, ADD_PRODUCT, ROWS, 1)                                                                             \
    TILE(KIND, ADD_PRODUCT, ROWS, 2) TILE(KIND, ADD_PRODUCT, ROWS, 3) TILE(KIND, ADD_PRODUCT, ROWS, 4)
#define ROW_OF_TILES(KIND, ROWS) {KIND##_##ROWS##_1, KIND##_##ROWS##_2, KIND##_##ROWS##_3, KIND##_##ROWS##_4}
#define ALL_TILES(KIND, ADD_PRODUCT)                                                                             \
    TILES(KIND, ADD_PRODUCT, 1) TILES(KIND, ADD_PRODUCT, 2) TILES(KIND, ADD_PRODUCT, 3)                          \
    TILES(KIND, ADD_PRODUCT, 4) TILES(KIND, ADD_PRODUCT, 5) TILES(KIND, ADD_PRODUCT, 6)                          \
    static const Tile KIND[6][4] = {ROW_OF_TILES(KIND, 1), ROW_OF_TILES(KIND, 2), ROW_OF_TILES(KIND, 3),         \
                                    ROW_OF_TILES(KIND, 4), ROW_OF_TILES(KIND, 5), ROW_OF_TILES(KIND, 6)};

INLINE vec add_floats(vec sum, const float *a, vec b) { return sum + *a * b; }

ALL_TILES(of_floats, add_floats)
ALL_TILES(of_pairs, add_pairs)

/* C[rows, width] from A[rows, depth] B[depth, width], in tiles. Panels of PANEL columns of B lie `b_panel` apart. */
static inline void tiled(const Tile tiles[6][4], long rows, long width, long depth, const float *a, long a_row,
                         long a_step, const float *b, long b_panel, long b_step, enum Ending ending,
                         const float *extra, float *c, long c_row) {
    for (long column = 0; column < width; column += PANEL, b += b_panel) {
        int vectors = width - column < PANEL ? (int)((width - column) / LANES) : TILE_VECTORS;
        for (long row = 0; row < rows; row += TILE_ROWS) {
            int tile_rows = rows - row < TILE_ROWS ? (int)(rows - row) : TILE_ROWS;
            const float *more = extra ? extra + column : NULL;
            if (more && ending == STORE_WHERE_ACTIVE) more += row * c_row;
            tiles[tile_rows - 1][vectors - 1](depth, a + row * a_row, a_row, a_step, b, b_step, ending, more,
                                              c + row * c_row + column, c_row);
        }
    }
}

static inline void product(long rows, long width, long depth, const float *a, long a_row, long a_step, const float *b,
                           long b_panel, long b_step, enum Ending ending, const float *extra, float *c, long c_row) {
    tiled(of_floats, rows, width, depth, a, a_row, a_step, b, b_panel, b_step, ending, extra, c, c_row);
}

/* Copy a weight [depth, width], or the transpose of one [width, depth], into panels [width / PANEL][depth][PANEL]. */
static inline void pack(long depth, long width, const float *from, long depth_stride, long width_stride, float *to) {
    for (long column = 0; column < width; column += PANEL)
        for (long d = 0; d < depth; d++, to += PANEL)
            for (long c = 0; c < PANEL && column + c < width; c++)
                to[c] = from[d * depth_stride + (column + c) * width_stride];
}

static inline long packed_size(long depth, long width) { return (width + PANEL - 1) / PANEL * PANEL * depth; }

/* Memory for a call: floats, aligned for vectors. NULL if there is none. */
static inline float *scratch(long floats) {
    void *memory = NULL;
    return posix_memalign(&memory, 64, (size_t)floats * sizeof(float)) ? NULL : memory;
}

#endif
