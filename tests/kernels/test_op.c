/* Promised: slices are cut at the borders op.h tells, a weight or KV that makes no sense is refused
 * with a reason, and rotary tables hold cosines and sines. */
#include <sluice/kernels/op.h>

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

static void slices_are_cut_on_units(void **state)
{
    (void)state;
    const struct {
        uint32_t k, unit, n, first, last;
    } rows[] = {
        {576, 64, 9, 64, 64}, {1536, 32, 16, 96, 96}, {1536, 96, 16, 96, 96}, {64, 64, 1, 64, 64},
        {32, 64, 1, 32, 32},  {1120, 32, 16, 64, 96}, {100, 32, 3, 32, 36},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct sl_slices s = sl_slices_cut(rows[i].k, rows[i].unit);
        assert_int_equal(s.n, rows[i].n);
        assert_int_equal(s.border[0], 0);
        assert_int_equal(s.border[1], rows[i].first);
        assert_int_equal(s.border[s.n] - s.border[s.n - 1], rows[i].last);
        assert_int_equal(s.border[s.n], rows[i].k);
        for (uint32_t j = 0; j < s.n; j++) {
            assert_true(s.border[j] < s.border[j + 1]);
            assert_int_equal(s.border[j] % rows[i].unit, 0);
        }
    }
    assert_int_equal(sl_slices_one(77).n, 1);
    assert_int_equal(sl_slices_one(77).border[1], 77);
}

static void isa_names_parse_back(void **state)
{
    (void)state;
    enum sl_isa isa;
    for (unsigned i = 0; i < SL_N_ISA; i++) {
        assert_true(sl_isa_parse(sl_isa_name((enum sl_isa)i), &isa));
        assert_int_equal(isa, i);
    }
    assert_false(sl_isa_parse("sse9", &isa));
    assert_true(sl_cpu_has_isa(SL_ISA_SCALAR));
}

static void senseless_weights_are_refused(void **state)
{
    (void)state;
    static const uint8_t data[4096];
    const struct sl_weight_src good = {SL_Q8_0, 2, 64, data, 0};
    const struct {
        struct sl_weight_src a, b;
        uint32_t n_src;
        struct sl_slices slices;
        enum sl_status want;
    } rows[] = {
        {good, good, 2, sl_slices_one(64), SL_OK},
        {good, good, 0, sl_slices_one(64), SL_INVALID},
        {{SL_I8, 2, 64, data, 0}, good, 1, sl_slices_one(64), SL_UNSUPPORTED},
        {{SL_Q8_0, 2, 48, data, 0}, good, 1, sl_slices_one(48), SL_INVALID},
        {{SL_Q8_0, 2, 0, data, 0}, good, 1, sl_slices_one(0), SL_INVALID},
        {{SL_Q8_0, 0, 64, data, 0}, good, 1, sl_slices_one(64), SL_INVALID},
        {good, {SL_Q4_0, 2, 64, data, 0}, 2, sl_slices_one(64), SL_INVALID},
        {good, {SL_Q8_0, 2, 32, data, 0}, 2, sl_slices_one(64), SL_INVALID},
        {good, {SL_Q8_0, UINT32_MAX, 64, data, 0}, 2, sl_slices_one(64), SL_INVALID},
        {good, good, 1, sl_slices_one(32), SL_INVALID},
        {good, good, 1, {.n = 0}, SL_INVALID},
        {good, good, 1, {.n = 65}, SL_INVALID},
        {good, good, 1, {.n = 2, .border = {0, 16, 64}}, SL_INVALID},
        {good, good, 1, {.n = 2, .border = {0, 64, 64}}, SL_INVALID},
    };
    for (int ref = 0; ref < 2; ref++) {
        struct sl_backend *b;
        struct sl_err err;
        struct sl_cpu_config cfg = {SL_ISA_SCALAR, 1};
        assert_int_equal(ref ? sl_ref_open(&b, &err) : sl_cpu_open(&cfg, &b, &err), SL_OK);
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
            const struct sl_weight_src src[2] = {rows[i].a, rows[i].b};
            struct sl_weight w = {0};
            err.msg[0] = '\0';
            assert_int_equal(b->ops->weight_pack(b, src, rows[i].n_src, &rows[i].slices, &w, &err),
                             rows[i].want);
            if (rows[i].want == SL_OK)
                b->ops->weight_free(b, &w);
            else
                assert_true(err.msg[0] != '\0');
        }
        b->ops->close(b);
    }
}

static void senseless_kv_is_refused(void **state)
{
    (void)state;
    const struct {
        struct sl_kv_config cfg;
        enum sl_status want;
    } rows[] = {
        {{2, 3, 64, 16, 4, SL_F16}, SL_OK},
        {{2, 3, 64, 16, 4, SL_Q8_0}, SL_UNSUPPORTED},
        {{2, 3, 64, 0, 4, SL_F16}, SL_INVALID},
        {{2, 3, 64, 48, 4, SL_F16}, SL_INVALID},
        {{2, 3, 64, 512, 4, SL_F16}, SL_INVALID},
        {{0, 3, 64, 16, 4, SL_F16}, SL_INVALID},
        {{2, 0, 64, 16, 4, SL_F16}, SL_INVALID},
        {{2, 3, 0, 16, 4, SL_F16}, SL_INVALID},
        {{2, 3, 4096, 16, 4, SL_F16}, SL_INVALID},
        {{2, 3, 64, 16, 0, SL_F16}, SL_INVALID},
        {{4096, 4096, 1024, 256, UINT32_MAX, SL_F32}, SL_NO_MEMORY},
    };
    for (int ref = 0; ref < 2; ref++) {
        struct sl_backend *b;
        struct sl_err err;
        struct sl_cpu_config cfg = {SL_ISA_SCALAR, 1};
        assert_int_equal(ref ? sl_ref_open(&b, &err) : sl_cpu_open(&cfg, &b, &err), SL_OK);
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
            struct sl_kv kv = {0};
            assert_int_equal(b->ops->kv_open(b, &rows[i].cfg, &kv, &err), rows[i].want);
            if (rows[i].want == SL_OK) {
                assert_true(kv.page_bytes >= (size_t)2 * 3 * 64 * 16 * 2);
                assert_int_equal(kv.bytes, kv.page_bytes * 2 * 4);
                b->ops->kv_close(b, &kv);
            }
        }
        b->ops->close(b);
    }
}

static void unknown_threads_and_isas_are_refused(void **state)
{
    (void)state;
    struct sl_backend *b;
    struct sl_err err;
    struct sl_cpu_config none = {SL_ISA_SCALAR, 0};
    assert_int_equal(sl_cpu_open(&none, &b, &err), SL_USAGE);
    assert_null(b);
    for (unsigned i = SL_ISA_SCALAR; i < SL_N_ISA; i++) {
        struct sl_cpu_config cfg = {(enum sl_isa)i, 1};
        bool has = sl_cpu_has_isa(cfg.isa);
        assert_int_equal(sl_cpu_open(&cfg, &b, &err), has ? SL_OK : SL_USAGE);
        if (!has) {
            print_message("[  SKIP  ] this machine has no %s\n", sl_isa_name(cfg.isa));
            continue;
        }
        assert_int_equal(b->isa, cfg.isa);
        assert_false(b->isa_fell_back);
        b->ops->close(b);
    }
}

static void rope_tables_hold_cosines(void **state)
{
    (void)state;
    enum { N_ROT = 64, N_POS = 300, HALF = N_ROT / 2 };
    float c[N_POS * HALF], s[N_POS * HALF], factors[HALF];
    for (int i = 0; i < HALF; i++)
        factors[i] = i % 2 ? 1.0f : 4.0f;
    sl_rope_table(N_ROT, 7, N_POS, 10000.0, 0.5, factors, c, s);
    for (int t = 0; t < N_POS; t++) {
        for (int i = 0; i < HALF; i++) {
            double freq = pow(10000.0, -2.0 * i / N_ROT) / (double)factors[i];
            double angle = (7 + t) * 0.5 * freq;
            assert_true(fabs((double)c[t * HALF + i] - cos(angle)) < 1e-7);
            assert_true(fabs((double)s[t * HALF + i] - sin(angle)) < 1e-7);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(slices_are_cut_on_units),
        cmocka_unit_test(isa_names_parse_back),
        cmocka_unit_test(senseless_weights_are_refused),
        cmocka_unit_test(senseless_kv_is_refused),
        cmocka_unit_test(unknown_threads_and_isas_are_refused),
        cmocka_unit_test(rope_tables_hold_cosines),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
