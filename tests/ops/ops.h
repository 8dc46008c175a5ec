/* What the op tests share: the list of backends to compare, numbers from a seed, comparisons. */
#ifndef TESTS_OPS_OPS_H
#define TESTS_OPS_OPS_H

#include <sluice/kernels/op.h>

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

/* Every form whose bits must be scalar's on one thread. */
static const struct sl_cpu_config exact_forms[] = {
    {SL_ISA_SCALAR, 2}, {SL_ISA_AVX2, 1},   {SL_ISA_AVX2, 2},   {SL_ISA_AVX2, 3},
    {SL_ISA_AVX512, 1}, {SL_ISA_AVX512, 2}, {SL_ISA_AVX512, 3},
};
#define N_FORMS (sizeof exact_forms / sizeof *exact_forms)

/* NULL, said aloud, where this machine cannot run the form. */
static inline struct sl_backend *open_form(const struct sl_cpu_config *cfg)
{
    struct sl_backend *b = NULL;
    struct sl_err err;
    if (!sl_cpu_has_isa(cfg->isa)) {
        print_message("[  SKIP  ] %s, %u threads: not on this machine\n", sl_isa_name(cfg->isa),
                      cfg->n_threads);
        return NULL;
    }
    assert_int_equal(sl_cpu_open(cfg, &b, &err), SL_OK);
    assert_int_equal(b->isa, cfg->isa); /* the self-check agreed */
    return b;
}

static inline struct sl_backend *open_scalar(void)
{
    const struct sl_cpu_config cfg = {SL_ISA_SCALAR, 1};
    return open_form(&cfg);
}

static inline struct sl_backend *open_ref(void)
{
    struct sl_backend *b = NULL;
    struct sl_err err;
    assert_int_equal(sl_ref_open(&b, &err), SL_OK);
    return b;
}

/* Roughly normal numbers: the sum of four uniform ones. */
static inline float *random_floats(size_t n, float scale, uint32_t seed)
{
    float *x = malloc((n ? n : 1) * sizeof *x);
    uint64_t s = seed * 0x9e3779b97f4a7c15u + 1;
    for (size_t i = 0; i < n; i++) {
        double sum = 0.0;
        for (int j = 0; j < 4; j++) {
            s = s * 6364136223846793005u + 1442695040888963407u;
            sum += (double)(s >> 40) * 0x1p-24 - 0.5;
        }
        x[i] = (float)sum * scale;
    }
    return x;
}

/* Largest |a - b| in units of the largest |a|. */
static inline double worst_relative(const float *a, const float *b, size_t n)
{
    double worst = 0.0, peak = 0.0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        worst = d > worst ? d : worst;
        peak = fabs((double)a[i]) > peak ? fabs((double)a[i]) : peak;
        assert_true(d == d);
    }
    return peak > 0.0 ? worst / peak : worst;
}

#define assert_same_bits(a, b, n) assert_memory_equal((a), (b), (n) * sizeof(float))

#endif
