/* Promised: the exact transcendentals keep their error bounds over their whole range, and their
 * special values are what exact.h says. Compared with long double libm. */
#include <sluice/base/exact.h>

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

static uint32_t bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static float from_bits(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* |got - want| in units of the last place of `want` as a float32. */
static double ulps_f32(float got, long double want)
{
    int e;
    frexpl(want, &e);
    if (e < -125)
        e = -125;
    return (double)(fabsl((long double)got - want) / ldexpl(1.0L, e - 24));
}

static double ulps_f64(double got, long double want)
{
    int e;
    frexpl(want, &e);
    if (e < -1021)
        e = -1021;
    return (double)(fabsl((long double)got - want) / ldexpl(1.0L, e - 53));
}

static void exp_f32_stays_within_an_ulp(void **state)
{
    (void)state;
    double worst = 0.0;
    for (uint32_t i = 0; i < 700000; i++) {
        float x = -87.0f + (float)i * (175.72f / 700000.0f);
        if (x > 88.72f)
            continue;
        double d = ulps_f32(sl_exp_f32(x), expl((long double)x));
        worst = d > worst ? d : worst;
    }
    for (uint32_t u = bits(1e-30f); u < bits(1.0f); u += 4099) {
        double d = ulps_f32(sl_exp_f32(from_bits(u)), expl((long double)from_bits(u)));
        double e = ulps_f32(sl_exp_f32(-from_bits(u)), expl(-(long double)from_bits(u)));
        worst = d > worst ? d : worst;
        worst = e > worst ? e : worst;
    }
    print_message("exp_f32: worst %.3f ulp\n", worst);
    assert_true(worst < 1.0);
}

static void exp_f32_has_its_special_values(void **state)
{
    (void)state;
    const struct {
        float x;
        uint32_t want;
    } rows[] = {
        {0.0f, 0x3f800000},     {-0.0f, 0x3f800000},  {-87.00001f, 0},
        {-1000.0f, 0},          {-INFINITY, 0},       {88.73f, 0x7f800000},
        {INFINITY, 0x7f800000}, {1e-40f, 0x3f800000}, {1.0f, 0x402df854},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        assert_int_equal(bits(sl_exp_f32(rows[i].x)), rows[i].want);
    assert_true(isnan(sl_exp_f32(NAN)));
    assert_true(isnormal(sl_exp_f32(-87.0f)));
    assert_true(isfinite(sl_exp_f32(88.72f)));
}

/* A wrong step at a border of the reduction would show as a fall. */
static void exp_f32_never_falls_by_more_than_rounding(void **state)
{
    (void)state;
    for (int n = -125; n <= 127; n++) {
        float x = (float)(((double)n + 0.5) * 0.69314718055994531);
        for (int k = 0; k < 64; k++) {
            float y = nextafterf(x, INFINITY);
            uint32_t a = bits(sl_exp_f32(x)), b = bits(sl_exp_f32(y));
            assert_true(b + 1 >= a);
            x = y;
        }
    }
}

static void log_f32_stays_within_an_ulp(void **state)
{
    (void)state;
    double worst = 0.0;
    for (uint32_t u = 1; u < 0x7f800000; u += 3001) {
        double d = ulps_f32(sl_log_f32(from_bits(u)), logl((long double)from_bits(u)));
        worst = d > worst ? d : worst;
    }
    for (uint32_t u = bits(0.99f); u < bits(1.01f); u++) {
        double d = ulps_f32(sl_log_f32(from_bits(u)), logl((long double)from_bits(u)));
        worst = d > worst ? d : worst;
    }
    print_message("log_f32: worst %.3f ulp\n", worst);
    assert_true(worst < 0.51);
    assert_int_equal(bits(sl_log_f32(1.0f)), 0);
    assert_true(isinf(sl_log_f32(0.0f)) && sl_log_f32(0.0f) < 0);
    assert_true(isinf(sl_log_f32(-0.0f)) && sl_log_f32(-0.0f) < 0);
    assert_true(isnan(sl_log_f32(-1.0f)) && isnan(sl_log_f32(-INFINITY)));
    assert_true(isnan(sl_log_f32(NAN)));
    assert_true(isinf(sl_log_f32(INFINITY)));
}

static void exp_and_log_f64_stay_within_ulps(void **state)
{
    (void)state;
    double worst_exp = 0.0, worst_log = 0.0;
    for (int i = 0; i <= 300000; i++) {
        double x = -745.0 + i * (1454.7 / 300000.0);
        double d = ulps_f64(sl_exp_f64(x), expl((long double)x));
        worst_exp = d > worst_exp ? d : worst_exp;
        double y = ldexp(1.0 + i / 300001.0, i % 2100 - 1060);
        if (y > 0 && isfinite(y)) {
            double e = ulps_f64(sl_log_f64(y), logl((long double)y));
            worst_log = e > worst_log ? e : worst_log;
        }
        double z = 0.98 + i * (0.04 / 300000.0);
        double e = ulps_f64(sl_log_f64(z), logl((long double)z));
        worst_log = e > worst_log ? e : worst_log;
    }
    print_message("exp_f64: worst %.3f ulp, log_f64: %.3f ulp\n", worst_exp, worst_log);
    assert_true(worst_exp < 1.5);
    assert_true(worst_log < 2.0);
    assert_true(sl_exp_f64(0.0) == 1.0 && sl_exp_f64(-800.0) == 0.0);
    assert_true(isinf(sl_exp_f64(710.0)) && isnan(sl_exp_f64(NAN)));
    assert_true(sl_log_f64(1.0) == 0.0 && isnan(sl_log_f64(-1.0)));
    assert_true(isinf(sl_log_f64(INFINITY)) && isinf(sl_log_f64(0.0)));
}

static void sine_and_cosine_keep_fourteen_digits(void **state)
{
    (void)state;
    double worst = 0.0;
    for (int i = 0; i <= 400000; i++) {
        double span = i < 100000 ? 7.0 : i < 200000 ? 1e4 : 0x1p24;
        double x = span * ((double)((uint32_t)i * 2654435761u) / 0x1p31 - 1.0);
        double s = (double)fabsl((long double)sl_sin_f64(x) - sinl((long double)x));
        double c = (double)fabsl((long double)sl_cos_f64(x) - cosl((long double)x));
        worst = s > worst ? s : worst;
        worst = c > worst ? c : worst;
    }
    print_message("sin, cos: worst error %.2e\n", worst);
    assert_true(worst < 1e-15);
    assert_true(sl_sin_f64(0.0) == 0.0 && sl_cos_f64(0.0) == 1.0);
    assert_true(isnan(sl_sin_f64(INFINITY)) && isnan(sl_cos_f64(NAN)) && isnan(sl_sin_f64(1e300)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exp_f32_stays_within_an_ulp),
        cmocka_unit_test(exp_f32_has_its_special_values),
        cmocka_unit_test(exp_f32_never_falls_by_more_than_rounding),
        cmocka_unit_test(log_f32_stays_within_an_ulp),
        cmocka_unit_test(exp_and_log_f64_stay_within_ulps),
        cmocka_unit_test(sine_and_cosine_keep_fourteen_digits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
