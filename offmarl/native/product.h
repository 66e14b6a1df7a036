/* Vectors of the processor at hand, and products of matrices that keep a tile of the result in registers. */
#ifndef OFFMARL_PRODUCT_H
#define OFFMARL_PRODUCT_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

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
INLINE vec relu(vec x) {
#if defined(__AVX512F__)
    return (vec)_mm512_max_ps((__m512){0}, (__m512)x); /* of a NaN it takes the second; one operation instead of two */
#else
    return select_where(x < 0, (vec){0}, x);
#endif
}
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

/* The i-th of activations and those after it: floats, or rounded ones if they lie in pairs. */
INLINE vec load_active(int pairs, const float *active, long i) {
    if (pairs) return load_rounded(active + i / 2);
    return load(active + i);
}
INLINE void store_active(int pairs, float *active, long i, vec value) {
    if (pairs) store_rounded(active + i / 2, value);
    else store(active + i, value);
}

/* ---- products */

INLINE vec add_product(int pairs, vec sum, const float *a, vec b) {
    if (pairs) return add_pairs(sum, a, b);
    return sum + *a * b;
}

enum Ending { STORE_RELU, STORE_WHERE_ACTIVE, ADD, STORE };

/* One tile: C[rows, vectors * LANES] from A[rows, depth] B[depth, vectors * LANES]. A's strides are free, so that
 * the transpose of an activation is as good as the activation. `extra` is the bias of STORE and STORE_RELU (or
 * NULL), and the activations [rows, ...], laid out like C, whose ReLU STORE_WHERE_ACTIVE goes back through. With PAIRS
 * entries of A and B are pairs, `depth` counts those, and activations are rounded, in `extra` and as STORE_RELU's C. */
#define UNROLL _Pragma("GCC unroll 8")
#define TILE(PAIRS, ROWS, VECTORS)                                                                               \
    static void tile_##PAIRS##_##ROWS##_##VECTORS(long depth, const float *a, long a_row, long a_step,           \
                                                  const float *b, long b_step, enum Ending ending,               \
                                                  const float *extra, float *c, long c_row) {                    \
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
                    sum[r][v] = add_product(PAIRS, sum[r][v], a + r * a_row, right[v]);                          \
        }                                                                                                        \
        UNROLL for (int r = 0; r < ROWS; r++)                                                                    \
            UNROLL for (int v = 0; v < VECTORS; v++) {                                                           \
                long i = r * c_row + v * LANES;                                                                  \
                vec value = sum[r][v];                                                                           \
                if (PAIRS && ending == STORE_RELU) {                                                             \
                    store_rounded(c + i / 2, relu(value));                                                       \
                    continue;                                                                                    \
                }                                                                                                \
                if (ending == STORE_RELU) value = relu(value);                                                   \
                if (ending == STORE_WHERE_ACTIVE) value = where_active(load_active(PAIRS, extra, i), value);     \
                if (ending == ADD) value += load(c + i);                                                         \
                store(c + i, value);                                                                             \
            }                                                                                                    \
    }

typedef void (*Tile)(long, const float *, long, long, const float *, long, enum Ending, const float *, float *, long);
#define TILES(PAIRS, ROWS)                                                                                       \
    TILE(PAIRS, ROWS, 1) TILE(PAIRS, ROWS, 2) TILE(PAIRS, ROWS, 3) TILE(PAIRS, ROWS, 4)
TILES(0, 1) TILES(0, 2) TILES(0, 3) TILES(0, 4) TILES(0, 5) TILES(0, 6)
TILES(1, 1) TILES(1, 2) TILES(1, 3) TILES(1, 4) TILES(1, 5) TILES(1, 6)

#define ROW_OF_TILES(PAIRS, ROWS)                                                                                \
    {tile_##PAIRS##_##ROWS##_1, tile_##PAIRS##_##ROWS##_2, tile_##PAIRS##_##ROWS##_3, tile_##PAIRS##_##ROWS##_4}
#define ALL_TILES(PAIRS)                                                                                         \
    {ROW_OF_TILES(PAIRS, 1), ROW_OF_TILES(PAIRS, 2), ROW_OF_TILES(PAIRS, 3),                                     \
     ROW_OF_TILES(PAIRS, 4), ROW_OF_TILES(PAIRS, 5), ROW_OF_TILES(PAIRS, 6)}
static const Tile TILE_OF[2][6][4] = {ALL_TILES(0), ALL_TILES(1)};

/* C[rows, width] from A[rows, depth] B[depth, width], in tiles. Panels of PANEL columns of B lie `b_panel` apart. */
INLINE void product(int pairs, long rows, long width, long depth, const float *a, long a_row, long a_step,
                    const float *b, long b_panel, long b_step, enum Ending ending, const float *extra, float *c,
                    long c_row) {
    for (long column = 0; column < width; column += PANEL, b += b_panel) {
        int vectors = width - column < PANEL ? (int)((width - column) / LANES) : TILE_VECTORS;
        for (long row = 0; row < rows; row += TILE_ROWS) {
            int tile_rows = rows - row < TILE_ROWS ? (int)(rows - row) : TILE_ROWS;
            long i = row * c_row + column, active = pairs ? i / 2 : i;
            const float *more = extra ? extra + (ending == STORE_WHERE_ACTIVE ? active : column) : NULL;
            TILE_OF[pairs][tile_rows - 1][vectors - 1](depth, a + row * a_row, a_row, a_step, b, b_step, ending, more,
                                                       c + (ending == STORE_RELU ? active : i), c_row);
        }
    }
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
