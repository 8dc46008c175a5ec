/* Exponential, logarithm, sine and cosine as fixed sequences of IEEE operations.
 *
 * Reductions after Cody and Waite ("Software Manual for the Elementary Functions", 1980) with fma;
 * the float32 exponential is a minimax polynomial (relative error 3.1e-9 before rounding), the
 * float64 ones are Taylor or atanh series cut below 1e-17. */
#include <sluice/base/exact.h>

#include <math.h>
#include <stdint.h>
#include <string.h>

#define MAGIC_F64   0x1.8p52 /* adding it rounds a small double to an integer, to nearest even */
#define LN2_HI_F64  0x1.62e42fefa39efp-1
#define LN2_LO_F64  0x1.abc9e3b39803fp-56
#define PIO2_HI_F64 0x1.921fb54442d18p+0
#define PIO2_LO_F64 0x1.1a62633145c07p-54

static uint32_t bits_f32(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static uint64_t bits_f64(double x)
{
    uint64_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static double from_bits_f64(uint64_t u)
{
    double x;
    memcpy(&x, &u, sizeof x);
    return x;
}

float sl_exp_f32(float x)
{
    if (x != x)
        return x;
    if (x < SL_EXP_MIN)
        return 0.0f;
    if (x > SL_EXP_MAX)
        return INFINITY;
    float t = fmaf(x, SL_EXP_LOG2E, SL_EXP_MAGIC);
    float n = t - SL_EXP_MAGIC;
    float r = fmaf(n, -SL_EXP_LN2_LO, fmaf(n, -SL_EXP_LN2_HI, x));
    float p = SL_EXP_Q4;
    p = fmaf(p, r, SL_EXP_Q3);
    p = fmaf(p, r, SL_EXP_Q2);
    p = fmaf(p, r, SL_EXP_Q1);
    p = fmaf(p, r, SL_EXP_Q0);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    /* The low bits of t are n plus a multiple of 2^9, which the shift drops. p stays normal under
     * it: n = -126 comes only with p > 1 and n = 128 only with p < 1. */
    uint32_t u = bits_f32(p) + (bits_f32(t) << 23);
    memcpy(&p, &u, sizeof p);
    return p;
}

float sl_log_f32(float x)
{
    return (float)sl_log_f64((double)x);
}

static double pow2_f64(int64_t n)
{
    return from_bits_f64((uint64_t)(n + 1023) << 52);
}

double sl_exp_f64(double x)
{
    static const double inv_fact[] = {
        1.0 / 6227020800.0,
        1.0 / 479001600.0,
        1.0 / 39916800.0,
        1.0 / 3628800.0,
        1.0 / 362880.0,
        1.0 / 40320.0,
        1.0 / 5040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    };
    if (x != x)
        return x;
    if (x < -745.2)
        return 0.0;
    if (x > 709.79)
        return INFINITY;
    double n = fma(x, 0x1.71547652b82fep+0, MAGIC_F64) - MAGIC_F64;
    double r = fma(n, -LN2_LO_F64, fma(n, -LN2_HI_F64, x));
    double p = inv_fact[0];
    for (size_t i = 1; i < sizeof inv_fact / sizeof *inv_fact; i++)
        p = fma(p, r, inv_fact[i]);
    /* In two steps: 2^n itself may lie outside the normal range. */
    int64_t half = (int64_t)n / 2;
    return p * pow2_f64(half) * pow2_f64((int64_t)n - half);
}

/* m in [sqrt(1/2), sqrt(2)) with x = m * 2^e. x is positive and finite. */
static double split_f64(double x, double *e)
{
    double shift = 0.0;
    if (x < 0x1p-1022) {
        x *= 0x1p54;
        shift = -54.0;
    }
    uint64_t u = bits_f64(x);
    int64_t exponent = (int64_t)(u >> 52) - 1023;
    double m = from_bits_f64((u & 0xfffffffffffffULL) | 0x3ff0000000000000ULL);
    if (m >= 0x1.6a09e667f3bcdp+0) {
        m *= 0.5;
        exponent++;
    }
    *e = (double)exponent + shift;
    return m;
}

double sl_log_f64(double x)
{
    if (x != x)
        return x;
    if (x < 0.0)
        return NAN;
    if (x == 0.0)
        return -INFINITY;
    if (x > 0x1.fffffffffffffp+1023)
        return x;
    double e;
    double m = split_f64(x, &e);
    double f = m - 1.0; /* exact */
    double s = f / (m + 1.0);
    double z = s * s;
    /* log(m) = 2 atanh(s) = 2s + s * R, R = sum of 2 z^i / (2i + 1); 2s = f - s * f */
    double p = 2.0 / 25.0;
    for (double k = 23.0; k >= 3.0; k -= 2.0)
        p = fma(p, z, 2.0 / k);
    p = p * z;
    double tail = fma(e, LN2_LO_F64, s * (p - f));
    return fma(e, LN2_HI_F64, f + tail);
}

/* r in [-pi/4, pi/4] with x = r + quadrant * pi/2. |x| <= 2^31 */
static double reduce(double x, unsigned *quadrant)
{
    double n = fma(x, 0x1.45f306dc9c883p-1, MAGIC_F64) - MAGIC_F64;
    *quadrant = (unsigned)((int64_t)n & 3);
    return fma(n, -PIO2_LO_F64, fma(n, -PIO2_HI_F64, x));
}

static double sin_series(double r)
{
    double z = r * r;
    double p = -1.0 / 1307674368000.0;
    p = fma(p, z, 1.0 / 6227020800.0);
    p = fma(p, z, -1.0 / 39916800.0);
    p = fma(p, z, 1.0 / 362880.0);
    p = fma(p, z, -1.0 / 5040.0);
    p = fma(p, z, 1.0 / 120.0);
    p = fma(p, z, -1.0 / 6.0);
    return fma(p * z, r, r);
}

static double cos_series(double r)
{
    double z = r * r;
    double p = 1.0 / 20922789888000.0;
    p = fma(p, z, -1.0 / 87178291200.0);
    p = fma(p, z, 1.0 / 479001600.0);
    p = fma(p, z, -1.0 / 3628800.0);
    p = fma(p, z, 1.0 / 40320.0);
    p = fma(p, z, -1.0 / 720.0);
    p = fma(p, z, 1.0 / 24.0);
    p = fma(p, z, -0.5);
    return fma(p, z, 1.0);
}

/* sin(x + shift * pi/2) */
static double sin_shifted(double x, unsigned shift)
{
    if (!(x <= 0x1p31 && x >= -0x1p31))
        return NAN;
    unsigned quadrant;
    double r = reduce(x, &quadrant);
    quadrant = (quadrant + shift) & 3;
    double v = quadrant & 1 ? cos_series(r) : sin_series(r);
    return quadrant & 2 ? -v : v;
}

double sl_sin_f64(double x)
{
    return sin_shifted(x, 0);
}

double sl_cos_f64(double x)
{
    return sin_shifted(x, 1);
}
