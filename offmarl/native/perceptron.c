/* Forward and backward pass of a stack of ReLU perceptrons, a block of rows through all layers at a time.
 *
 * The same numbers as networks.py (StackedMLP.forward, Pass.backward) but for rounding; compiled for the machine
 * at hand when first used (library.py). A block is small enough for its activations to stay in the
 * second-level cache, and a product keeps a tile of its result in registers.
 *
 * Letters as in networks.py: G networks, M states, K actions a state, O observation, A action dimensions, H hidden
 * units. Hidden widths are multiples of LANES, the last layer is narrow (at most NARROW_MOST outputs).
 */
#include "product.h"

enum { BLOCK_ROWS = 192, LAYERS_MOST = 8, NARROW_MOST = 15 };

/* What perceptron.py passes, in this order (Perceptrons._packed). */
typedef struct {
    int64_t G, M, K, O, A;
    int64_t parameters, gradients; /* floats from one network's parameters, or gradients, to the next one's */
    int64_t obs, action;           /* floats from one network's rows to the next one's */
    int64_t state, sample, number; /* floats from one state's actions, one action, one of its numbers to the next */
    int64_t pairs;                 /* hidden layers and what is multiplied between them are bfloat16 (bfloat16.h) */
    int64_t layers;                /* hidden */
    int64_t hidden[LAYERS_MOST];
    int64_t outputs;
} Shape;

typedef struct {
    const float *weight[LAYERS_MOST + 1], *bias[LAYERS_MOST + 1];
    long inputs[LAYERS_MOST + 1];
} Layers;

static Layers layers_of(const Shape *s, const float *flat) {
    Layers layers = {0};
    long inputs = s->O + s->A;
    for (long l = 0; l <= s->layers; l++) {
        long outputs = l < s->layers ? s->hidden[l] : s->outputs;
        layers.inputs[l] = inputs;
        layers.weight[l] = flat;
        layers.bias[l] = flat + inputs * outputs;
        flat = layers.bias[l] + outputs;
        inputs = outputs;
    }
    return layers;
}

/* The same places in a gradient, to be written. */
typedef struct {
    float *weight[LAYERS_MOST + 1], *bias[LAYERS_MOST + 1];
} Slopes;

static Slopes slopes_of(const Shape *s, float *into) {
    Slopes slopes = {0};
    if (!into) return slopes;
    Layers layers = layers_of(s, into);
    for (long l = 0; l <= s->layers; l++) {
        slopes.weight[l] = into + (layers.weight[l] - into);
        slopes.bias[l] = into + (layers.bias[l] - into);
    }
    return slopes;
}

static long widest(const Shape *s) {
    long width = 0;
    for (long l = 0; l < s->layers; l++)
        if (s->hidden[l] > width) width = s->hidden[l];
    return width;
}

static long block_states(const Shape *s) { return s->K >= BLOCK_ROWS ? 1 : BLOCK_ROWS / s->K; }

/* ---- products between hidden layers */

static void pack_layer(int pairs, long depth, long width, const float *weight, long depth_stride, long width_stride,
                       float *to) {
    pack(depth, width, weight, depth_stride, width_stride, to);
    long rows = packed_size(depth, width) / PANEL;
    float row[2][PANEL / 2];
    for (long r = 0; pairs && r < rows; r += 2)
        for (long c = 0; c < PANEL; c += LANES) {
            for (long half = 0; half < 2; half++) store_active(1, row[half], 0, load(to + (r + half) * PANEL + c));
            store(to + r / 2 * PANEL + c, zip_rounded(row[0], row[1]));
        }
}

/* values [rows, depth], in pairs if `pairs`, times a packed [depth, width]. */
INLINE void along_rows(int pairs, long rows, long width, long depth, const float *values, const float *packed,
                       enum Ending ending, const float *extra, float *to) {
    long steps = pairs ? depth / 2 : depth;
    product(pairs, rows, width, steps, values, steps, 1, packed, steps * PANEL, PANEL, ending, extra, to, width);
}

/* Rounded [rows, width] -> [(rows + 1) / 2, width]: a row and the one below it make pairs; zeros lie below the last. */
static void zip_rows(long rows, long width, const float *from, float *to) {
    for (long r = 0; r < rows; r += 2, from += width, to += width)
        for (long h = 0; h < width; h += LANES)
            store(to + h, zip_rounded(from + h / 2, r + 1 < rows ? from + (width + h) / 2 : NULL));
}

/* Add the transpose of the activations below [rows, inputs] times slopes above [rows, outputs]; with `pairs` both are
 * rounded, and there is room for them in `zipped`. */
INLINE void add_across_rows(int pairs, long rows, long inputs, long outputs, const float *below, const float *above,
                            float *zipped, float *to) {
    long steps = pairs ? (rows + 1) / 2 : rows;
    if (pairs) {
        zip_rows(rows, inputs, below, zipped);
        zip_rows(rows, outputs, above, zipped + steps * inputs);
        below = zipped, above = zipped + steps * inputs;
    }
    product(pairs, inputs, outputs, steps, below, 1, inputs, above, PANEL, outputs, ADD, NULL, to, outputs);
}

/* ---- the first and the last layer */

/* Actions [states, K, A] one after another: as they are, or copied to `row`. */
static const float *in_a_row(const Shape *s, long states, const float *action, float *row) {
    if (s->number == 1 && s->sample == s->A && s->state == s->K * s->A) return action;
    for (long a = 0; a < s->A; a++)
        for (long k = 0; k < s->K; k++)
            for (long m = 0; m < states; m++)
                row[(m * s->K + k) * s->A + a] = action[m * s->state + k * s->sample + a * s->number];
    return row;
}

/* hidden [states * K, H] = ReLU of `once` [states, H] + action [states * K, A] times weight [A, H]. */
INLINE void add_actions(int pairs, long states, long K, long A, long H, const float *once, const float *action,
                        const float *weight, float *hidden) {
    for (long m = 0; m < states; m++, once += H, action += K * A)
        for (long h = 0; h < H; h += LANES)
            for (long k = 0; k < K; k++) {
                vec sum = load(once + h);
                for (long a = 0; a < A; a++) sum += action[k * A + a] * load(weight + a * H + h);
                store_active(pairs, hidden, (m * K + k) * H + h, relu(sum));
            }
}

/* The first layer: what all K actions of a state share is computed once. */
INLINE void first_layer(int pairs, const Shape *s, const Layers *net, const float *packed, long states,
                        const float *obs, const float *action, float *once, float *hidden) {
    long H = s->hidden[0];
    if (!s->A && !pairs) {
        product(0, states, H, s->O, obs, s->O, 1, packed, s->O * PANEL, PANEL, STORE_RELU, net->bias[0], hidden, H);
        return;
    }
    product(0, states, H, s->O, obs, s->O, 1, packed, s->O * PANEL, PANEL, STORE, net->bias[0], once, H);
    const float *weight = net->weight[0] + s->O * H;
    if (s->A == 2) /* so that the compiler knows: in the plane, as most tasks are */
        add_actions(pairs, states, s->K, 2, H, once, action, weight, hidden);
    else
        add_actions(pairs, states, s->K, s->A, H, once, action, weight, hidden);
}

/* [rows, H] times the transpose of [outputs, H], few outputs: -> [rows, outputs]. `bias` may be NULL. */
INLINE void dot_rows(int rounded, long rows, long H, long outputs, const float *values, const float *weight,
                     const float *bias, float *output) {
    long left = rows * outputs, o = 0, row = 0;
    for (; left > 0; left -= LANES, output += LANES) {
        vec dot[LANES] = {0};
        for (long i = 0; i < LANES && i < left; i++) {
            vec sum = {bias ? bias[o] : 0}; /* in the first lane */
            for (long h = 0; h < H; h += LANES)
                sum += load_active(rounded, values, row + h) * load(weight + o * H + h);
            dot[i] = sum;
            if (++o == outputs) o = 0, row += H;
        }
        vec sums = sums_of_lanes(dot);
        memcpy(output, &sums, sizeof(float) * (left < LANES ? left : LANES));
    }
}

static void transpose(long rows, long columns, const float *from, float *to) {
    for (long r = 0; r < rows; r++)
        for (long c = 0; c < columns; c++) to[c * rows + r] = from[r * columns + c];
}

/* Where each layer's activations of a block begin: kept ones lie [G][layer][M * K][H], others in `block`. */
static void activations_of(const Shape *s, long g, long m, float *kept, float *block, float **layer) {
    long rows = s->M * s->K, all = 0, below = 0, apiece = s->pairs ? 2 : 1; /* numbers in the place of a float */
    for (long l = 0; l < s->layers; l++) all += s->hidden[l];
    for (long l = 0; l < s->layers; below += s->hidden[l++])
        layer[l] = kept ? kept + (rows * (g * all + below) + m * s->K * s->hidden[l]) / apiece
                        : block + block_states(s) * s->K * below;
}

/* obs [G, M, O], action [G, M, K, A] -> output [G, M * K, outputs] and, unless `kept` is NULL, the activations of the
 * hidden layers. Networks `from` to `to` (excluded). Returns 0, or 1 for want of memory. `pairs` is s->pairs, known to
 * the compiler. */
INLINE int forward_of(int pairs, const Shape *s, const float *flat, const float *obs, const float *action, float *kept,
                      float *output, int64_t from, int64_t to) {
    long rows = s->M * s->K, step = block_states(s), packs = 0, all = 0;
    long at[LAYERS_MOST]; /* where a layer's packed weight begins */
    for (long l = 0, inputs = s->O; l < s->layers; inputs = s->hidden[l++]) {
        at[l] = packs;
        packs += packed_size(inputs, s->hidden[l]);
        all += s->hidden[l];
    }
    long last = s->hidden[s->layers - 1];
    long block_size = kept ? 0 : step * s->K * all;
    float *memory = scratch(packs + step * s->hidden[0] + s->outputs * last + block_size + step * s->K * s->A);
    if (!memory) return 1;
    float *once = memory + packs, *narrow = once + step * s->hidden[0], *block = narrow + s->outputs * last;
    float *row = block + block_size;
    for (long g = from; g < to; g++) {
        Layers net = layers_of(s, flat + g * s->parameters);
        pack(s->O, s->hidden[0], net.weight[0], s->hidden[0], 1, memory);
        for (long l = 1; l < s->layers; l++)
            pack_layer(pairs, net.inputs[l], s->hidden[l], net.weight[l], s->hidden[l], 1, memory + at[l]);
        transpose(last, s->outputs, net.weight[s->layers], narrow);
        for (long m = 0; m < s->M; m += step) {
            long states = s->M - m < step ? s->M - m : step;
            float *layer[LAYERS_MOST];
            activations_of(s, g, m, kept, block, layer);
            first_layer(pairs, s, &net, memory, states, obs + g * s->obs + m * s->O,
                        in_a_row(s, states, action + g * s->action + m * s->state, row), once, layer[0]);
            for (long l = 1; l < s->layers; l++)
                along_rows(pairs, states * s->K, s->hidden[l], net.inputs[l], layer[l - 1], memory + at[l], STORE_RELU,
                           net.bias[l], layer[l]);
            dot_rows(pairs, states * s->K, last, s->outputs, layer[s->layers - 1], narrow, net.bias[s->layers],
                     output + (g * rows + m * s->K) * s->outputs);
        }
    }
    free(memory);
    return 0;
}

int forward(const Shape *s, const float *flat, const float *obs, const float *action, float *kept, float *output,
            int64_t from, int64_t to) {
    if (s->pairs) return forward_of(1, s, flat, obs, action, kept, output, from, to);
    return forward_of(0, s, flat, obs, action, kept, output, from, to);
}

/* Add the sum of rows [rows, width] to `sum`. */
static void add_rows(long rows, long width, const float *values, float *sum) {
    for (long h = 0; h < width; h += LANES) {
        vec even = load(sum + h), odd = {0};
        long r = 0;
        for (; r + 1 < rows; r += 2) {
            even += load(values + r * width + h);
            odd += load(values + (r + 1) * width + h);
        }
        if (r < rows) even += load(values + r * width + h);
        store(sum + h, even + odd);
    }
}

/* [states, K, H] -> [states, H] */
static void sum_over_actions(long states, long K, long H, const float *values, float *sums) {
    for (long m = 0; m < states; m++, values += K * H, sums += H)
        for (long h = 0; h < H; h += LANES) {
            vec sum = {0};
            for (long k = 0; k < K; k++) sum += load(values + k * H + h);
            store(sums + h, sum);
        }
}

/* Add the sum of few slopes [rows, outputs] to `sum`. */
static void add_slopes(long rows, long outputs, const float *slope, float *sum) {
    for (long o = 0; o < outputs; o++) {
        float even = 0, odd = 0;
        for (long r = 0; r < rows; r++) {
            if (r % 2) odd += slope[r * outputs + o];
            else even += slope[r * outputs + o];
        }
        sum[o] += even + odd;
    }
}

/* Back through the last layer: slope [rows, outputs] -> `above` [rows, H], rounded if there is another hidden layer to
 * multiply it by; its transposed gradient [outputs, H] and the sum of `above` over rows are added up, unless NULL. */
INLINE void back_through_last(int pairs, int rounded, long rows, long H, long outputs, const float *slope,
                              const float *hidden, const float *weight, float *above, float *weight_slope,
                              float *above_sum) {
    for (long h = 0; h < H; h += LANES) {
        vec to_weight[NARROW_MOST] = {0}, total = {0};
        for (long r = 0; r < rows; r++) {
            vec active = load_active(pairs, hidden, r * H + h), sum = {0};
            for (long o = 0; o < outputs; o++) {
                sum += slope[r * outputs + o] * load(weight + o * H + h);
                to_weight[o] += slope[r * outputs + o] * active;
            }
            sum = where_active(active, sum);
            total += sum;
            store_active(rounded, above, r * H + h, sum);
        }
        if (above_sum) store(above_sum + h, load(above_sum + h) + total);
        if (!weight_slope) continue;
        for (long o = 0; o < outputs; o++)
            store(weight_slope + o * H + h, load(weight_slope + o * H + h) + to_weight[o]);
    }
}

/* From dL/doutput [G, M * K, outputs] to dL/dparameters, added to `into` unless it is NULL, and to dL/daction
 * [G, M * K, A] unless `to_action` is NULL. Actions lie one after another. Networks `from` to `to` (excluded). Returns
 * 0, or 1 for want of memory. `pairs` as above. */
INLINE int backward_of(int pairs, const Shape *s, const float *flat, const float *obs, const float *action, float *kept,
                       const float *slope, float *into, float *to_action, int64_t from, int64_t to) {
    long rows = s->M * s->K, step = block_states(s), packs = 0;
    long at[LAYERS_MOST];
    for (long l = 1; l < s->layers; l++) {
        at[l] = packs;
        packs += packed_size(s->hidden[l], s->hidden[l - 1]);
    }
    long last = s->hidden[s->layers - 1], first = s->hidden[0], block_size = step * s->K * widest(s);
    long zipped_size = pairs ? block_size + widest(s) : 0; /* two factors in pairs, of a row more if that is odd */
    float *memory =
        scratch(packs + zipped_size + (pairs ? 3 : 2) * block_size + step * first + 2 * s->outputs * last);
    if (!memory) return 1;
    float *zipped = memory + packs, *blocks = zipped + zipped_size, *rounded = blocks + 2 * block_size;
    float *once = rounded + (pairs ? block_size : 0);
    float *narrow = once + step * first, *narrow_slope = narrow + s->outputs * last;
    for (long g = from; g < to; g++) {
        Layers net = layers_of(s, flat + g * s->parameters);
        Slopes slopes = slopes_of(s, into ? into + g * s->gradients : NULL);
        for (long l = 1; l < s->layers; l++) /* transposed */
            pack_layer(pairs, s->hidden[l], s->hidden[l - 1], net.weight[l], 1, s->hidden[l], memory + at[l]);
        transpose(last, s->outputs, net.weight[s->layers], narrow);
        memset(narrow_slope, 0, sizeof(float) * s->outputs * last);
        for (long m = 0; m < s->M; m += step) {
            long states = s->M - m < step ? s->M - m : step, block = states * s->K;
            float *layer[LAYERS_MOST], *above = blocks, *below = blocks + block_size;
            activations_of(s, g, m, kept, NULL, layer);
            const float *now = slope + (g * rows + m * s->K) * s->outputs, *active = layer[s->layers - 1];
            float *last_slope = into ? narrow_slope : NULL, *sum = s->layers > 1 ? slopes.bias[s->layers - 1] : NULL;
            if (pairs && s->layers == 1)
                back_through_last(1, 0, block, last, s->outputs, now, active, narrow, above, last_slope, sum);
            else if (s->outputs == 1) /* so that the compiler knows */
                back_through_last(pairs, pairs, block, last, 1, now, active, narrow, pairs ? rounded : above, last_slope,
                                  sum);
            else
                back_through_last(pairs, pairs, block, last, s->outputs, now, active, narrow, pairs ? rounded : above,
                                  last_slope, sum);
            if (into) add_slopes(block, s->outputs, now, slopes.bias[s->layers]);
            for (long l = s->layers - 1; l > 0; l--) {
                long H = s->hidden[l], inputs = net.inputs[l];
                if (pairs && l < s->layers - 1)
                    for (long i = 0; i < block * H; i += LANES) store_active(1, rounded, i, load(above + i));
                const float *factor = pairs ? rounded : above;
                if (into) {
                    add_across_rows(pairs, block, inputs, H, layer[l - 1], factor, zipped, slopes.weight[l]);
                    if (l < s->layers - 1) add_rows(block, H, above, slopes.bias[l]);
                }
                along_rows(pairs, block, inputs, H, factor, memory + at[l], STORE_WHERE_ACTIVE, layer[l - 1], below);
                float *swap = above;
                above = below, below = swap;
            }
            const float *here = action + g * s->action + m * s->K * s->A;
            if (into) {
                const float *shared = above; /* by all actions of a state */
                if (s->K > 1) {
                    sum_over_actions(states, s->K, first, above, once);
                    shared = once;
                }
                product(0, s->O, first, states, obs + g * s->obs + m * s->O, 1, s->O, shared, PANEL, first, ADD, NULL,
                        slopes.weight[0], first);
                add_rows(states, first, shared, slopes.bias[0]);
                product(0, s->A, first, block, here, 1, s->A, above, PANEL, first, ADD, NULL,
                        slopes.weight[0] + s->O * first, first);
            }
            if (to_action)
                dot_rows(0, block, first, s->A, above, net.weight[0] + s->O * first, NULL,
                         to_action + (g * rows + m * s->K) * s->A);
        }
        if (into)
            for (long o = 0; o < s->outputs; o++)
                for (long h = 0; h < last; h++) slopes.weight[s->layers][h * s->outputs + o] += narrow_slope[o * last + h];
    }
    free(memory);
    return 0;
}

int backward(const Shape *s, const float *flat, const float *obs, const float *action, float *kept, const float *slope,
             float *into, float *to_action, int64_t from, int64_t to) {
    if (s->pairs) return backward_of(1, s, flat, obs, action, kept, slope, into, to_action, from, to);
    return backward_of(0, s, flat, obs, action, kept, slope, into, to_action, from, to);
}

int lanes_of_a_vector(void) { return LANES; }

int bfloat16_units(void) { return BFLOAT16_UNITS; }
