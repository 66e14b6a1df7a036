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

enum { BLOCK_ROWS = 192, LAYERS_MOST = 8 };

/* What perceptron.py passes, in this order (Perceptrons._packed). */
typedef struct {
    int64_t G, M, K, O, A;
    int64_t parameters, gradients; /* floats from one network's parameters, or gradients, to the next one's */
    int64_t obs, action;           /* floats from one network's rows to the next one's */
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

/* The first layer: what all K actions of a state share is computed once. */
static void first_layer(const Shape *s, const Layers *net, const float *packed, long states, const float *obs,
                        const float *action, float *once, float *hidden) {
    long H = s->hidden[0];
    if (!s->A) {
        product(states, H, s->O, obs, s->O, 1, packed, s->O * PANEL, PANEL, STORE_RELU, net->bias[0], hidden, H);
        return;
    }
    product(states, H, s->O, obs, s->O, 1, packed, s->O * PANEL, PANEL, STORE, net->bias[0], once, H);
    const float *to_action = net->weight[0] + s->O * H;
    for (long m = 0; m < states; m++, once += H)
        for (long k = 0; k < s->K; k++, action += s->A, hidden += H)
            for (long h = 0; h < H; h += LANES) {
                vec sum = load(once + h);
                for (long a = 0; a < s->A; a++) sum += action[a] * load(to_action + a * H + h);
                store(hidden + h, relu(sum));
            }
}

/* [rows, H] times the transpose of [outputs, H], few outputs: -> [rows, outputs]. `bias` may be NULL. */
static void dot_rows(long rows, long H, long outputs, const float *values, const float *weight, const float *bias,
                     float *output) {
    for (long r = 0; r < rows; r++, values += H)
        for (long o = 0; o < outputs; o++) {
            vec sum = {0};
            for (long h = 0; h < H; h += LANES) sum += load(values + h) * load(weight + o * H + h);
            *output++ = sum_of_lanes(sum) + (bias ? bias[o] : 0);
        }
}

static void transpose(long rows, long columns, const float *from, float *to) {
    for (long r = 0; r < rows; r++)
        for (long c = 0; c < columns; c++) to[c * rows + r] = from[r * columns + c];
}

/* Where each layer's activations of a block begin: kept ones lie [G][layer][M * K][H], others in `block`. */
static void activations_of(const Shape *s, long g, long m, float *kept, float *block, float **layer) {
    long rows = s->M * s->K, all = 0, below = 0;
    for (long l = 0; l < s->layers; l++) all += s->hidden[l];
    for (long l = 0; l < s->layers; below += s->hidden[l++])
        layer[l] = kept ? kept + rows * (g * all + below) + m * s->K * s->hidden[l]
                        : block + block_states(s) * s->K * below;
}

/* obs [G, M, O], action [G, M, K, A] -> output [G, M * K, outputs] and, unless `kept` is NULL, the activations of the
 * hidden layers. Networks `from` to `to` (excluded). Returns 0, or 1 for want of memory. */
int forward(const Shape *s, const float *flat, const float *obs, const float *action, float *kept, float *output,
            int64_t from, int64_t to) {
    long rows = s->M * s->K, step = block_states(s), packs = 0, all = 0;
    long at[LAYERS_MOST]; /* where a layer's packed weight begins */
    for (long l = 0, inputs = s->O; l < s->layers; inputs = s->hidden[l++]) {
        at[l] = packs;
        packs += packed_size(inputs, s->hidden[l]);
        all += s->hidden[l];
    }
    long last = s->hidden[s->layers - 1];
    float *memory = scratch(packs + step * s->hidden[0] + s->outputs * last + (kept ? 0 : step * s->K * all));
    if (!memory) return 1;
    float *once = memory + packs, *narrow = once + step * s->hidden[0], *block = narrow + s->outputs * last;
    for (long g = from; g < to; g++) {
        Layers net = layers_of(s, flat + g * s->parameters);
        for (long l = 0; l < s->layers; l++)
            pack(l ? net.inputs[l] : s->O, s->hidden[l], net.weight[l], s->hidden[l], 1, memory + at[l]);
        transpose(last, s->outputs, net.weight[s->layers], narrow);
        for (long m = 0; m < s->M; m += step) {
            long states = s->M - m < step ? s->M - m : step;
            float *layer[LAYERS_MOST];
            activations_of(s, g, m, kept, block, layer);
            first_layer(s, &net, memory, states, obs + g * s->obs + m * s->O,
                        action + g * s->action + m * s->K * s->A, once, layer[0]);
            for (long l = 1; l < s->layers; l++)
                product(states * s->K, s->hidden[l], net.inputs[l], layer[l - 1], net.inputs[l], 1, memory + at[l],
                        net.inputs[l] * PANEL, PANEL, STORE_RELU, net.bias[l], layer[l], s->hidden[l]);
            dot_rows(states * s->K, last, s->outputs, layer[s->layers - 1], narrow, net.bias[s->layers],
                     output + (g * rows + m * s->K) * s->outputs);
        }
    }
    free(memory);
    return 0;
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

/* Back through the last layer: slope [rows, outputs] -> `above` [rows, H]; its transposed gradient [outputs, H] and
 * its bias's, if given. */
static void back_through_last(long rows, long H, long outputs, const float *slope, const float *hidden,
                              const float *weight, float *above, float *weight_slope, float *bias_slope) {
    for (long h = 0; h < H; h += LANES)
        for (long r = 0; r < rows; r++) {
            vec sum = {0};
            for (long o = 0; o < outputs; o++) sum += slope[r * outputs + o] * load(weight + o * H + h);
            store(above + r * H + h, where_active(load(hidden + r * H + h), sum));
        }
    if (!weight_slope) return;
    for (long o = 0; o < outputs; o++) {
        for (long h = 0; h < H; h += LANES) {
            vec even = load(weight_slope + o * H + h), odd = {0};
            long r = 0;
            for (; r + 1 < rows; r += 2) {
                even += slope[r * outputs + o] * load(hidden + r * H + h);
                odd += slope[(r + 1) * outputs + o] * load(hidden + (r + 1) * H + h);
            }
            if (r < rows) even += slope[r * outputs + o] * load(hidden + r * H + h);
            store(weight_slope + o * H + h, even + odd);
        }
        for (long r = 0; r < rows; r++) bias_slope[o] += slope[r * outputs + o];
    }
}

/* From dL/doutput [G, M * K, outputs] to dL/dparameters, added to `into` unless it is NULL, and to dL/daction
 * [G, M * K, A] unless `to_action` is NULL. Networks `from` to `to` (excluded). Returns 0, or 1 for want of memory. */
int backward(const Shape *s, const float *flat, const float *obs, const float *action, float *kept, const float *slope,
             float *into, float *to_action, int64_t from, int64_t to) {
    long rows = s->M * s->K, step = block_states(s), packs = 0;
    long at[LAYERS_MOST];
    for (long l = 1; l < s->layers; l++) {
        at[l] = packs;
        packs += packed_size(s->hidden[l], s->hidden[l - 1]);
    }
    long last = s->hidden[s->layers - 1], first = s->hidden[0], block_size = step * s->K * widest(s);
    float *memory = scratch(packs + 2 * block_size + step * first + 2 * s->outputs * last);
    if (!memory) return 1;
    float *once = memory + packs + 2 * block_size, *narrow = once + step * first;
    float *narrow_slope = narrow + s->outputs * last;
    for (long g = from; g < to; g++) {
        Layers net = layers_of(s, flat + g * s->parameters);
        Slopes slopes = slopes_of(s, into ? into + g * s->gradients : NULL);
        for (long l = 1; l < s->layers; l++) /* transposed */
            pack(s->hidden[l], s->hidden[l - 1], net.weight[l], 1, s->hidden[l], memory + at[l]);
        transpose(last, s->outputs, net.weight[s->layers], narrow);
        memset(narrow_slope, 0, sizeof(float) * s->outputs * last);
        for (long m = 0; m < s->M; m += step) {
            long states = s->M - m < step ? s->M - m : step, block = states * s->K;
            float *layer[LAYERS_MOST], *above = memory + packs, *below = above + block_size;
            activations_of(s, g, m, kept, NULL, layer);
            back_through_last(block, last, s->outputs, slope + (g * rows + m * s->K) * s->outputs,
                              layer[s->layers - 1], narrow, above, into ? narrow_slope : NULL, slopes.bias[s->layers]);
            for (long l = s->layers - 1; l > 0; l--) {
                long H = s->hidden[l], inputs = net.inputs[l];
                if (into) {
                    product(inputs, H, block, layer[l - 1], 1, inputs, above, PANEL, H, ADD, NULL, slopes.weight[l], H);
                    add_rows(block, H, above, slopes.bias[l]);
                }
                product(block, inputs, H, above, H, 1, memory + at[l], H * PANEL, PANEL, STORE_WHERE_ACTIVE,
                        layer[l - 1], below, inputs);
                float *swap = above;
                above = below, below = swap;
            }
            const float *here = action + g * s->action + m * s->K * s->A;
            if (into) {
                const float *shared = above; /* by all actions of a state */
                if (s->K > 1) {
                    memset(once, 0, sizeof(float) * states * first);
                    for (long n = 0; n < states; n++) add_rows(s->K, first, above + n * s->K * first, once + n * first);
                    shared = once;
                }
                product(s->O, first, states, obs + g * s->obs + m * s->O, 1, s->O, shared, PANEL, first, ADD, NULL,
                        slopes.weight[0], first);
                add_rows(states, first, shared, slopes.bias[0]);
                product(s->A, first, block, here, 1, s->A, above, PANEL, first, ADD, NULL,
                        slopes.weight[0] + s->O * first, first);
            }
            if (to_action)
                dot_rows(block, first, s->A, above, net.weight[0] + s->O * first, NULL,
                         to_action + (g * rows + m * s->K) * s->A);
        }
        if (into)
            for (long o = 0; o < s->outputs; o++)
                for (long h = 0; h < last; h++) slopes.weight[s->layers][h * s->outputs + o] += narrow_slope[o * last + h];
    }
    free(memory);
    return 0;
}

int lanes_of_a_vector(void) { return LANES; }
