/* Gated recurrent units, unrolled over steps of ever fewer rows; the same numbers as learners/recurrent.py but for
 * rounding. Rows do not see each other, so a block of them goes through all steps while its weights are in the cache.
 *
 * Letters: G networks, H hidden units, T steps of `counts` rows, one step after the other P rows in all, M in the first.
 * H is a multiple of LANES. A job is one block of rows of one network.
 */
#include "product.h"

enum { STEP_ROWS = 96 };

/* What recurrent.py passes, in this order. */
typedef struct {
    int64_t G, M, P, T, H;
    int64_t weight, bias; /* floats from one network's [H, 3H], or [3H], to the next one's */
} Unroll;

/* Cephes' expf: relative error 2e-7; a NaN stays one. */
INLINE vec exponential(vec x) {
    x = select_where(x < -87.3f, (vec){0} - 87.3f, x);
    x = select_where(x > 88.3f, (vec){0} + 88.3f, x);
    vec shifted = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: the integer is in the last bits */
    vec whole = shifted - 12582912.0f;
    vec r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (vec)(((lanes)shifted - 0x4B400000 + 127) << 23);
}

INLINE vec sigmoid(vec x) { return 1.0f / (1.0f + exponential(-x)); }

static long blocks_of(const Unroll *u) { return (u->M + STEP_ROWS - 1) / STEP_ROWS; }

/* The rows of a block, which begins at row `first`, that are left at a step. */
static long rows_left(int64_t count, long first) {
    long left = (long)count - first;
    return left < 0 ? 0 : left < STEP_ROWS ? left : STEP_ROWS;
}

/* From what inputs add to the gates, `reset`, `update` and `new` [G, P, H], to the gates themselves, in place; to `own`,
 * the memory's share of the new gate before it is reset, and to `hidden`, [G, P, H] each. Returns 0, or 1 for want of
 * memory. */
int gru_forward(const Unroll *u, const int64_t *counts, const float *weight, const float *bias, const float *start,
                float *reset, float *update, float *new, float *own, float *hidden, int64_t from, int64_t to) {
    long H = u->H, size = packed_size(H, H);
    float *gate[3] = {scratch(3 * size)};
    if (!gate[0]) return 1;
    gate[1] = gate[0] + size, gate[2] = gate[1] + size;
    for (long job = from; job < to; job++) {
        long g = job / blocks_of(u), first = job % blocks_of(u) * STEP_ROWS;
        for (int k = 0; k < 3; k++) pack(H, H, weight + g * u->weight + k * H, 3 * H, 1, gate[k]);
        const float *before = start + (g * u->M + first) * H;
        long at = (g * u->P + first) * H;
        for (long t = 0; t < u->T; at += counts[t++] * H) {
            long rows = rows_left(counts[t], first);
            if (!rows) break;
            product(0, rows, H, H, before, H, 1, gate[0], H * PANEL, PANEL, ADD, NULL, reset + at, H);
            product(0, rows, H, H, before, H, 1, gate[1], H * PANEL, PANEL, ADD, NULL, update + at, H);
            product(0, rows, H, H, before, H, 1, gate[2], H * PANEL, PANEL, STORE, bias + g * u->bias + 2 * H, own + at, H);
            for (long i = 0; i < rows * H; i += LANES) {
                vec r = sigmoid(load(reset + at + i)), z = sigmoid(load(update + at + i));
                vec n = 2.0f * sigmoid(2.0f * (load(new + at + i) + r * load(own + at + i))) - 1.0f; /* tanh */
                store(reset + at + i, r);
                store(update + at + i, z);
                store(new + at + i, n);
                store(hidden + at + i, n + z * (load(before + i) - n));
            }
            before = hidden + at;
        }
    }
    free(gate[0]);
    return 0;
}

/* From dL/dhidden [G, P, H] to the slopes by the gates before their sigmoids (`to_own`: by `own`), [G, P, H] each, and by
 * the first memory [G, M, H]. Returns 0, or 1 for want of memory. */
int gru_backward(const Unroll *u, const int64_t *counts, const float *weight, const float *start, const float *reset,
                 const float *update, const float *new, const float *own, const float *hidden, const float *gradient,
                 float *to_reset, float *to_update, float *to_new, float *to_own, float *to_start, int64_t from,
                 int64_t to) {
    long H = u->H, size = packed_size(H, H);
    float *gate[3] = {scratch(3 * size + STEP_ROWS * H)};
    if (!gate[0]) return 1;
    gate[1] = gate[0] + size, gate[2] = gate[1] + size;
    float *later = gate[2] + size; /* what reaches a step from those after it */
    for (long job = from; job < to; job++) {
        long g = job / blocks_of(u), first = job % blocks_of(u) * STEP_ROWS;
        for (int k = 0; k < 3; k++) pack(H, H, weight + g * u->weight + k * H, 1, 3 * H, gate[k]); /* transposed */
        memset(later, 0, sizeof(float) * STEP_ROWS * H);
        long at = (g * u->P + u->P + first) * H;
        for (long t = u->T - 1; t >= 0; t--) {
            at -= counts[t] * H;
            long rows = rows_left(counts[t], first);
            if (!rows) continue;
            const float *before = t ? hidden + at - counts[t - 1] * H : start + (g * u->M + first) * H;
            for (long i = 0; i < rows * H; i += LANES) {
                vec r = load(reset + at + i), z = load(update + at + i), n = load(new + at + i);
                vec here = load(gradient + at + i) + load(later + i), kept = here * z;
                vec dn = (here - kept) * (1.0f - n * n), dr = dn * load(own + at + i);
                store(to_new + at + i, dn);
                store(to_own + at + i, dn * r);
                store(to_reset + at + i, dr * r * (1.0f - r));
                store(to_update + at + i, here * (load(before + i) - n) * z * (1.0f - z));
                store(later + i, kept);
            }
            product(0, rows, H, H, to_reset + at, H, 1, gate[0], H * PANEL, PANEL, ADD, NULL, later, H);
            product(0, rows, H, H, to_update + at, H, 1, gate[1], H * PANEL, PANEL, ADD, NULL, later, H);
            product(0, rows, H, H, to_own + at, H, 1, gate[2], H * PANEL, PANEL, ADD, NULL, later, H);
        }
        memcpy(to_start + (g * u->M + first) * H, later, sizeof(float) * rows_left(u->M, first) * H);
    }
    free(gate[0]);
    return 0;
}
