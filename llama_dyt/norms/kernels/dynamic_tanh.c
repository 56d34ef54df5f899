/* Dynamic Tanh on a CPU: y = weight * tanh(alpha * x) [+ bias] and its gradients, each in one pass over memory.
 *
 * A file of C so that any compiler makes it in a second, for the processor at hand and without torch's headers;
 * dynamic_tanh_cpu.py builds and calls it. Rows are contiguous; x, y and their gradients are fp32, bf16 or fp16;
 * parameters and everything between are fp32. Work is handed out in blocks of ROWS rows, and what a block adds to the
 * gradients of the parameters is kept apart and summed in the blocks' order: the result is the same to the last bit
 * whatever the number of threads.
 */
#include <stdint.h>
#include <string.h>

enum { FLOAT32, BFLOAT16, FLOAT16 };

#define ROWS 32   /* rows a block; as in dynamic_tanh_cpu.py */
#define COLUMNS 64 /* columns summed at a time */
#define INLINE static inline __attribute__((always_inline))

/* The thread pool that torch has started already. Both GNU's and LLVM's OpenMP have this entry, so the file needs no
 * OpenMP of the compiler's own, which might be another one with threads of its own. */
extern void GOMP_parallel(void (*work)(void *), void *data, unsigned threads, unsigned flags);

INLINE float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE uint32_t as_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* Halves by integer arithmetic, without a branch: compilers do not vectorise the processor's own conversions yet. */
INLINE float from_half(uint32_t half) {
    uint32_t magnitude = (half & 0x7fff) << 13;
    uint32_t finite = as_bits(as_float(magnitude) * 0x1p112f); /* moves the exponent; right for subnormals too */
    uint32_t bits = magnitude >= 0x0f800000 ? magnitude | 0x7f800000 : finite; /* inf and nan */
    return as_float(bits | (half & 0x8000) << 16);
}

INLINE uint32_t to_half(float value) { /* to nearest, ties to even */
    uint32_t bits = as_bits(value), sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    uint32_t normal = (bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13;
    uint32_t subnormal = as_bits(as_float(bits) + 0.5f) - 0x3f000000; /* the addition rounds at 2^-24 */
    uint32_t half = bits < 0x38800000 ? subnormal : normal;
    half = bits >= 0x47800000 ? 0x7c00 : half;
    half = bits > 0x7f800000 ? 0x7e00 : half;
    return half | sign;
}

/* To nearest, ties to even. A nan stays one unless the rounding carries through all of its upper bits: those of bf16
 * inputs and of arithmetic have none to carry, and dynamic_tanh_cpu.py sees to those of the parameters. */
INLINE uint32_t to_bfloat(float value) {
    uint32_t bits = as_bits(value);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

INLINE float load(int type, const void *from, int64_t i) {
    if (type == FLOAT32)
        return ((const float *)from)[i];
    uint32_t bits = ((const uint16_t *)from)[i];
    return type == FLOAT16 ? from_half(bits) : as_float(bits << 16);
}

INLINE void store(int type, void *to, int64_t i, float value) {
    if (type == FLOAT32)
        ((float *)to)[i] = value;
    else
        ((uint16_t *)to)[i] = (uint16_t)(type == FLOAT16 ? to_half(value) : to_bfloat(value));
}

/* tanh to a relative error of 4e-7: odd, never beyond one, exactly one from 9 on (where the quotient has passed it and
 * grows with u), nan for nan. The coefficients are a minimax fit on [0, 8], made by scripts/fit_tanh.py;
 * dynamic_tanh_triton.py has the same. */
INLINE float tanh_of(float u) {
    float z = u * u;
    z = z < 81.0f ? z : 81.0f;
    float above = (((1.52303582445e-8f * z + 2.18946194436e-5f) * z + 0.0035715954476f) * z + 0.134444958093f) * z + 1.0f;
    float below = (((8.52242242455e-7f * z + 3.41128780102e-4f) * z + 0.0261644331322f) * z + 0.467778231281f) * z + 1.0f;
    float t = u * above / below;
    t = t > 1.0f ? 1.0f : t;
    return t < -1.0f ? -1.0f : t;
}

typedef struct {
    int type;
    int64_t rows, columns, next; /* next: the first block (or group of columns) that no thread has taken */
    const void *x, *grad;
    void *out; /* y, or the gradient of x */
    float alpha;
    const float *weight, *bias;
    float *weight_parts, *bias_parts; /* (blocks, columns); bias_parts may be null */
    double *alpha_parts;              /* (blocks) */
    float *weight_grad, *bias_grad;   /* (columns) */
} job;

INLINE int64_t take(job *j) { return __atomic_fetch_add(&j->next, 1, __ATOMIC_RELAXED); }

INLINE int64_t blocks_of(const job *j) { return (j->rows + ROWS - 1) / ROWS; }

INLINE void forward_row(int type, int64_t n, const void *restrict x, void *restrict y, float alpha,
                        const float *restrict weight, const float *restrict bias) {
    if (bias)
        for (int64_t i = 0; i < n; i++)
            store(type, y, i, weight[i] * tanh_of(alpha * load(type, x, i)) + bias[i]);
    else
        for (int64_t i = 0; i < n; i++)
            store(type, y, i, weight[i] * tanh_of(alpha * load(type, x, i)));
}

INLINE float backward_row(int type, int64_t n, const void *restrict x, const void *restrict grad, void *restrict out,
                          float alpha, const float *restrict weight, float *restrict weight_part) {
    float alpha_part = 0.0f;
#pragma omp simd reduction(+ : alpha_part)
    for (int64_t i = 0; i < n; i++) {
        float value = load(type, x, i), g = load(type, grad, i);
        float t = tanh_of(alpha * value);
        float slope = g * weight[i] * (1.0f - t * t);
        weight_part[i] += g * t;
        alpha_part += slope * value;
        store(type, out, i, slope * alpha);
    }
    return alpha_part;
}

INLINE void add_row(int type, int64_t n, const void *restrict row, float *restrict sum) {
    for (int64_t i = 0; i < n; i++)
        sum[i] += load(type, row, i);
}

INLINE void forward_blocks(int type, job *j) {
    int64_t size = type == FLOAT32 ? 4 : 2, n = j->columns;
    for (int64_t block = take(j); block < blocks_of(j); block = take(j))
        for (int64_t row = block * ROWS; row < j->rows && row < (block + 1) * ROWS; row++) {
            int64_t at = row * n * size;
            forward_row(type, n, (const char *)j->x + at, (char *)j->out + at, j->alpha, j->weight, j->bias);
        }
}

INLINE void backward_blocks(int type, job *j) {
    int64_t size = type == FLOAT32 ? 4 : 2, n = j->columns;
    for (int64_t block = take(j); block < blocks_of(j); block = take(j)) {
        float *weight_part = j->weight_parts + block * n;
        float *bias_part = j->bias_parts ? j->bias_parts + block * n : 0;
        double alpha_part = 0.0;
        memset(weight_part, 0, n * sizeof(float));
        if (bias_part)
            memset(bias_part, 0, n * sizeof(float));
        for (int64_t row = block * ROWS; row < j->rows && row < (block + 1) * ROWS; row++) {
            int64_t at = row * n * size;
            const char *grad = (const char *)j->grad + at;
            alpha_part += backward_row(type, n, (const char *)j->x + at, grad, (char *)j->out + at, j->alpha, j->weight,
                                       weight_part);
            if (bias_part)
                add_row(type, n, grad, bias_part);
        }
        j->alpha_parts[block] = alpha_part;
    }
}

static void forward_work(void *data) {
    job *j = data;
    if (j->type == FLOAT32)
        forward_blocks(FLOAT32, j);
    else if (j->type == BFLOAT16)
        forward_blocks(BFLOAT16, j);
    else
        forward_blocks(FLOAT16, j);
}

static void backward_work(void *data) {
    job *j = data;
    if (j->type == FLOAT32)
        backward_blocks(FLOAT32, j);
    else if (j->type == BFLOAT16)
        backward_blocks(BFLOAT16, j);
    else
        backward_blocks(FLOAT16, j);
}

/* The sums over the blocks of a few columns, in the blocks' order. */
static void sum_columns(const job *j, const float *parts, float *sums, int64_t first) {
    double sum[COLUMNS] = {0};
    int64_t n = j->columns - first < COLUMNS ? j->columns - first : COLUMNS;
    for (int64_t block = 0; block < blocks_of(j); block++)
        for (int64_t i = 0; i < n; i++)
            sum[i] += parts[block * j->columns + first + i];
    for (int64_t i = 0; i < n; i++)
        sums[first + i] = (float)sum[i];
}

static void sum_work(void *data) {
    job *j = data;
    for (int64_t first = take(j) * COLUMNS; first < j->columns; first = take(j) * COLUMNS) {
        sum_columns(j, j->weight_parts, j->weight_grad, first);
        if (j->bias_parts)
            sum_columns(j, j->bias_parts, j->bias_grad, first);
    }
}

static void run(void (*work)(void *), job *j, int threads) {
    j->next = 0;
    if (threads > 1)
        GOMP_parallel(work, j, threads, 0);
    else
        work(j);
}

void forward(int type, int threads, int64_t rows, int64_t columns, const void *x, const float *alpha,
             const float *weight, const float *bias, void *y) {
    job j = {.type = type, .rows = rows, .columns = columns, .x = x, .out = y};
    j.alpha = *alpha;
    j.weight = weight;
    j.bias = bias;
    run(forward_work, &j, threads);
}

/* parts: fp32, (blocks, columns) for the weight and then as many for the bias if bias_grad is given. */
void backward(int type, int threads, int64_t rows, int64_t columns, const void *grad, const void *x, const float *alpha,
              const float *weight, float *parts, double *alpha_parts, void *x_grad, float *alpha_grad,
              float *weight_grad, float *bias_grad) {
    job j = {.type = type, .rows = rows, .columns = columns, .x = x, .grad = grad, .out = x_grad};
    j.alpha = *alpha;
    j.weight = weight;
    j.weight_parts = parts;
    j.bias_parts = bias_grad ? parts + blocks_of(&j) * columns : 0;
    j.alpha_parts = alpha_parts;
    j.weight_grad = weight_grad;
    j.bias_grad = bias_grad;
    run(backward_work, &j, threads);
    run(sum_work, &j, threads);
    double sum = 0.0;
    for (int64_t block = 0; block < blocks_of(&j); block++)
        sum += alpha_parts[block];
    *alpha_grad = (float)sum;
}
