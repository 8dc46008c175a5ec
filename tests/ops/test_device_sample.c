/* Promised: the device's candidates are the k first of all logits sorted by (value descending,
 * index ascending), whatever the values are and however warps run; NaN comes last. */
#include "device.h"

#ifdef DEVICE_WATCHED
enum { SEEDS = 2, WIDE = 5000 };
#else
enum { SEEDS = 4, WIDE = 49152 };
#endif

enum { ROWS = 2 };

static const float *sorted_row;

static int by_value_then_index(const void *a, const void *b)
{
    uint32_t i = *(const uint32_t *)a, j = *(const uint32_t *)b;
    float x = sorted_row[i], y = sorted_row[j];
    if (isnan(x) != isnan(y))
        return isnan(x) ? 1 : -1;
    if (!isnan(x) && x != y)
        return x > y ? -1 : 1;
    return i < j ? -1 : 1;
}

/* Each fills a row. */
static void ordinary(float *x, uint32_t n)
{
    float *r = random_floats(n, 8.0f, n);
    memcpy(x, r, n * sizeof *x);
    free(r);
}

static void few_values(float *x, uint32_t n)
{
    ordinary(x, n);
    for (uint32_t i = 0; i < n; i++)
        x[i] = rintf(x[i] / 4.0f);
}

static void one_value(float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        x[i] = -3.5f;
}

static void zeros_of_both_signs(float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        x[i] = i % 3 ? 0.0f : -0.0f;
}

/* Neighbours in the last bits, which the last digits must tell apart. */
static void close_values(float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t bits = 0x41200000u + i * 7919u % 4096u;
        memcpy(&x[i], &bits, sizeof bits);
    }
}

/* Some far above many that share their first digits. */
static void two_heaps(float *x, uint32_t n)
{
    close_values(x, n);
    for (uint32_t i = 0; i < n; i += 100)
        x[i] = 100.0f;
}

static void odd_values(float *x, uint32_t n)
{
    ordinary(x, n);
    for (uint32_t i = 0; i < n; i++)
        if (i % 5 == 1)
            x[i] = i % 2 ? NAN : -NAN;
        else if (i % 1001 == 7)
            x[i] = i % 2 ? INFINITY : -INFINITY;
}

static void only_nan(float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        x[i] = NAN;
}

static void masked(float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        x[i] = i == n - 1 ? 1.0f : -INFINITY;
}

static const struct {
    const char *name;
    void (*fill)(float *x, uint32_t n);
} fills[] = {
    {"ordinary", ordinary},         {"few values", few_values}, {"one value", one_value},
    {"zeros", zeros_of_both_signs}, {"close", close_values},    {"odd", odd_values},
    {"two heaps", two_heaps},       {"only NaN", only_nan},     {"masked", masked},
};

static void check(size_t fill, uint32_t n, uint32_t k)
{
    float *x = malloc((size_t)ROWS * n * sizeof *x), *values = malloc((size_t)ROWS * k * sizeof *x);
    uint32_t *ids = malloc((size_t)ROWS * k * sizeof *ids), *order = malloc(n * sizeof *order);
    ordinary(x, n); /* a neighbour */
    fills[fill].fill(x + n, n);
    memset(ids, 0xff, (size_t)ROWS * k * sizeof *ids);
    assert_launched(cuda_top_k(NULL, x, ROWS, n, k, values, ids));
    for (uint32_t r = 0; r < ROWS; r++) {
        sorted_row = x + (size_t)r * n;
        for (uint32_t i = 0; i < n; i++)
            order[i] = i;
        qsort(order, n, sizeof *order, by_value_then_index);
        for (uint32_t i = 0; i < k; i++)
            if (ids[r * k + i] != order[i] ||
                memcmp(&values[r * k + i], &sorted_row[order[i]], sizeof *x) != 0)
                fail_msg("%s, row %u of %u, seed %llu: candidate %u of %u is %u, not %u",
                         fills[fill].name, r, n, (unsigned long long)device_options.seed, i, k,
                         ids[r * k + i], order[i]);
    }
    free(x);
    free(values);
    free(ids);
    free(order);
}

static void candidates_are_the_first_of_all(void **state)
{
    (void)state;
    static const struct {
        uint32_t n, k;
    } sizes[] = {{1, 1},    {2, 2},       {33, 5},        {1000, 1000},
                 {2048, 7}, {2049, 1024}, {WIDE + 1, 20}, {WIDE, CUDA_TOP_K_MAX}};
    for (size_t f = 0; f < sizeof fills / sizeof *fills; f++)
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            device_options.seed = 1 + (f + i) % SEEDS;
            check(f, sizes[i].n, sizes[i].k);
        }
}

static void more_than_there_are_is_refused(void **state)
{
    (void)state;
    float x[4] = {0}, values[8];
    uint32_t ids[8];
    assert_int_equal(cuda_top_k(NULL, x, 1, 4, 5, values, ids), cudaErrorInvalidValue);
    assert_int_equal(cuda_top_k(NULL, x, 1, 1u << 20, CUDA_TOP_K_MAX + 1, values, ids),
                     cudaErrorInvalidValue);
    assert_launched(cuda_top_k(NULL, x, 0, 4, 4, values, ids));
    assert_launched(cuda_top_k(NULL, x, 1, 4, 0, values, ids));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(candidates_are_the_first_of_all),
        cmocka_unit_test(more_than_there_are_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
