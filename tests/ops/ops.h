/* What the op tests share: the list of backends to compare, numbers from a seed, comparisons. */
#ifndef TESTS_OPS_OPS_H
#define TESTS_OPS_OPS_H

#include <sluice/kernels/cuda.h>
#include <sluice/kernels/op.h>

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#ifdef OPS_ON_CPU_ONLY /* a test that is its own device */
#define N_FORMS 7
#elif defined(OPS_PLUGIN) /* a device's plug-in: one form, since nothing there follows a seed */
#include "on_device.h"
#define N_FORMS 8
#else
#include "emu/control.h"
#include "on_device.h"

sl_cuda_entry sl_cuda_plugin; /* linked in: the emulated one */
#ifdef __SANITIZE_THREAD__ /* kernels have none of it: their fibers are not threads */
#define N_FORMS 7
/* Races and bad accesses do not depend on the order that is drawn: a seed of each parity. */
#elif defined(DEVICE_WATCHED) || defined(__SANITIZE_ADDRESS__)
#define N_FORMS 9
#else
#define N_FORMS 11
#endif
#endif

/* The CPU on one instruction set, or the device emulated under a seed of scheduling: odd ones
 * complete copies at once, even ones as late as allowed. */
struct form {
    enum sl_isa isa;
    uint32_t n_threads;
    uint64_t seed; /* 0: the CPU */
};

/* Every form whose bits must be scalar's on one thread. */
static const struct form exact_forms[11] = {
    {SL_ISA_SCALAR, 2, 0}, {SL_ISA_AVX2, 1, 0},   {SL_ISA_AVX2, 2, 0},   {SL_ISA_AVX2, 3, 0},
    {SL_ISA_AVX512, 1, 0}, {SL_ISA_AVX512, 2, 0}, {SL_ISA_AVX512, 3, 0}, {SL_ISA_SCALAR, 1, 1},
    {SL_ISA_SCALAR, 1, 2}, {SL_ISA_SCALAR, 1, 3}, {SL_ISA_SCALAR, 1, 4},
};

/* Tensor cores multiply these formats: bits of their own. */
static inline bool has_own_bits(const struct form *f, enum sl_dtype weight)
{
    return f->seed && (weight == SL_F16 || weight == SL_BF16);
}

#ifdef OPS_PLUGIN
/* NULL where there is no device; ctest takes the message as this test's being skipped. */
static inline struct sl_backend *open_device(const struct sl_cuda_config *cuda)
{
    const struct sl_cuda_plugin *p;
    struct sl_backend *b;
    struct sl_err err;
    uint32_t n = 0;
    assert_int_equal(sl_cuda_load("cuda", OPS_PLUGIN, &p, &err), SL_OK);
    if (p->count(&n, &err) || n == 0) {
        print_message("[  SKIP  ] no CUDA device: %s\n", n ? "" : err.msg);
        return NULL;
    }
    if (p->open(cuda, &b, &err))
        fail_msg("%s", err.msg);
    return on_device_open(b);
}
#endif

/* NULL, said aloud, where this machine cannot run the form. */
static inline struct sl_backend *open_form(const struct form *f)
{
    struct sl_backend *b = NULL;
    struct sl_err err;
    const struct sl_cpu_config cpu = {f->isa, f->n_threads};
#ifdef OPS_PLUGIN
    const struct sl_cuda_config cuda = {0, f->n_threads};
    if (f->seed)
        return open_device(&cuda);
#elif !defined(OPS_ON_CPU_ONLY)
    const struct sl_cuda_config cuda = {0, f->n_threads};
    if (f->seed) {
        emu_seed(f->seed);
        assert_int_equal(sl_cuda_plugin()->open(&cuda, &b, &err), SL_OK);
        return on_device_open(b);
    }
#endif
    if (!sl_cpu_has_isa(f->isa)) {
        print_message("[  SKIP  ] %s, %u threads: not on this machine\n", sl_isa_name(f->isa),
                      f->n_threads);
        return NULL;
    }
    assert_int_equal(sl_cpu_open(&cpu, &b, &err), SL_OK);
    assert_int_equal(b->isa, f->isa); /* the self-check agreed */
    return b;
}

static inline struct sl_backend *open_scalar(void)
{
    const struct form f = {SL_ISA_SCALAR, 1, 0};
    return open_form(&f);
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

/* Largest |a - b| between scalar's and the device's sums of products of 16-bit weights, of the
 * largest value: 11 bits of the activations are left where weights are f16, 8 where bf16. */
#define OWN_BITS_TOLERANCE 1e-2

#define assert_same_bits(a, b, n) assert_memory_equal((a), (b), (n) * sizeof(float))

#endif
