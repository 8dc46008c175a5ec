/* Promised: number and block formats read back what the format says, rounding is to nearest even,
 * and a quantiser never errs by more than its step allows. */
#include <sluice/kernels/dtype.h>

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

static float from_bits(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

static uint32_t bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static void every_f16_survives_the_round_trip(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float f = sl_f16_to_f32((uint16_t)h);
        uint16_t back = sl_f32_to_f16(f);
        if ((h & 0x7fff) > 0x7c00)
            assert_true(isnan(f) && (back & 0x7fff) > 0x7c00 && (back ^ h) >> 15 == 0);
        else
            assert_int_equal(back, h);
    }
}

static void every_bf16_survives_the_round_trip(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float f = sl_bf16_to_f32((uint16_t)h);
        uint16_t back = sl_f32_to_bf16(f);
        if ((h & 0x7fff) > 0x7f80)
            assert_true(isnan(f) && (back & 0x7fff) > 0x7f80);
        else
            assert_int_equal(back, h);
    }
}

static void f16_values_are_those_of_the_format(void **state)
{
    (void)state;
    const struct {
        uint16_t h;
        float f;
    } rows[] = {
        {0x0000, 0.0f},         {0x3c00, 1.0f},
        {0xc000, -2.0f},        {0x7bff, 65504.0f},
        {0x0400, 0x1p-14f},     {0x0001, 0x1p-24f},
        {0x03ff, 0x1.ff8p-15f}, {0x7c00, INFINITY},
        {0xfc00, -INFINITY},    {0x3555, 0.333251953125f},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        assert_true(sl_f16_to_f32(rows[i].h) == rows[i].f);
    assert_int_equal(bits(sl_f16_to_f32(0x8000)), 0x80000000u);
}

/* Between two neighbours: below the middle down, above up, the middle to the even one. */
static void f16_rounds_to_nearest_even(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x7bff; h++) {
        float a = sl_f16_to_f32((uint16_t)h), b = sl_f16_to_f32((uint16_t)(h + 1));
        float mid = (float)(((double)a + (double)b) / 2);
        assert_int_equal(sl_f32_to_f16(mid), h & 1 ? h + 1 : h);
        assert_int_equal(sl_f32_to_f16(nextafterf(mid, 0.0f)), h);
        assert_int_equal(sl_f32_to_f16(nextafterf(mid, INFINITY)), h + 1);
        assert_int_equal(sl_f32_to_f16(-mid), 0x8000 | (h & 1 ? h + 1 : h));
    }
    assert_int_equal(sl_f32_to_f16(65519.99f), 0x7bff);
    assert_int_equal(sl_f32_to_f16(65520.0f), 0x7c00);
    assert_int_equal(sl_f32_to_f16(1e-10f), 0);
    assert_int_equal(sl_f32_to_f16(-1e-10f), 0x8000);
}

static void bf16_rounds_to_nearest_even(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x7f7f; h += 3) {
        uint32_t u = h << 16;
        assert_int_equal(sl_f32_to_bf16(from_bits(u | 0x7fff)), h);
        assert_int_equal(sl_f32_to_bf16(from_bits(u | 0x8000)), h & 1 ? h + 1 : h);
        assert_int_equal(sl_f32_to_bf16(from_bits(u | 0x8001)), h + 1);
    }
}

static void names_parse_back(void **state)
{
    (void)state;
    for (unsigned i = 0; i < SL_N_DTYPE; i++) {
        enum sl_dtype t;
        assert_true(sl_dtype_parse(sl_dtype_row((enum sl_dtype)i)->text, &t));
        assert_int_equal(t, i);
    }
    enum sl_dtype t;
    assert_false(sl_dtype_parse("q9_9", &t));
    assert_int_equal(sl_dtype_bytes(SL_Q4_1, 576), 360);
    assert_int_equal(sl_dtype_bytes(SL_Q8_0, 576), 612);
    assert_int_equal(sl_dtype_bytes(SL_F16, 5), 10);
}

/* Bytes written out by hand after the format's description. */
static void blocks_are_read_as_the_format_says(void **state)
{
    (void)state;
    uint8_t q8[34] = {0x00, 0x38};              /* d = 0.5 */
    uint8_t q40[18] = {0x00, 0x40};             /* d = 2 */
    uint8_t q41[20] = {0x00, 0x34, 0x00, 0xbc}; /* d = 0.25, m = -1 */
    for (int i = 0; i < 32; i++)
        q8[2 + i] = (uint8_t)(i * 8 - 128);
    for (int i = 0; i < 16; i++) {
        q40[2 + i] = (uint8_t)(i | (15 - i) << 4);
        q41[4 + i] = q40[2 + i];
    }
    float a[32], b[32], c[32];
    sl_dequantize_row(SL_Q8_0, q8, a, 32);
    sl_dequantize_row(SL_Q4_0, q40, b, 32);
    sl_dequantize_row(SL_Q4_1, q41, c, 32);
    for (int i = 0; i < 32; i++) {
        int nibble = i < 16 ? i : 31 - i;
        assert_true(a[i] == 0.5f * (float)(i * 8 - 128));
        assert_true(b[i] == 2.0f * (float)(nibble - 8));
        assert_true(c[i] == 0.25f * (float)nibble - 1.0f);
    }
}

static void quantisers_err_by_at_most_their_step(void **state)
{
    (void)state;
    /* Greatest error in parts of the block's range; the scale itself is an F16. */
    const struct {
        enum sl_dtype t;
        float part;
    } rows[] = {{SL_F32, 0.0f},    {SL_F16, 0.0006f}, {SL_BF16, 0.005f},
                {SL_Q8_0, 0.006f}, {SL_Q4_0, 0.14f},  {SL_Q4_1, 0.07f}};
    uint32_t seed = 1;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        for (int n = 0; n < 200; n++) {
            float x[64], y[64], amax = 0.0f;
            uint8_t raw[256];
            for (int j = 0; j < 64; j++) {
                seed = seed * 1664525u + 1013904223u;
                x[j] = (float)(int32_t)seed * 0x1p-31f;
                amax = fabsf(x[j]) > amax ? fabsf(x[j]) : amax;
            }
            sl_quantize_row(rows[i].t, x, raw, 64);
            sl_dequantize_row(rows[i].t, raw, y, 64);
            for (int j = 0; j < 64; j++)
                assert_true(fabsf(x[j] - y[j]) <= rows[i].part * amax);
        }
    }
}

static void zeros_quantise_to_zeros(void **state)
{
    (void)state;
    const float x[32] = {0};
    uint8_t raw[128];
    float y[32];
    for (unsigned t = 0; t < SL_I8; t++) {
        sl_quantize_row((enum sl_dtype)t, x, raw, 32);
        sl_dequantize_row((enum sl_dtype)t, raw, y, 32);
        for (int i = 0; i < 32; i++)
            assert_true(y[i] == 0.0f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_f16_survives_the_round_trip),
        cmocka_unit_test(every_bf16_survives_the_round_trip),
        cmocka_unit_test(f16_values_are_those_of_the_format),
        cmocka_unit_test(f16_rounds_to_nearest_even),
        cmocka_unit_test(bf16_rounds_to_nearest_even),
        cmocka_unit_test(names_parse_back),
        cmocka_unit_test(blocks_are_read_as_the_format_says),
        cmocka_unit_test(quantisers_err_by_at_most_their_step),
        cmocka_unit_test(zeros_quantise_to_zeros),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
