/* Transcendentals of the exactness rule: our own polynomials, the same bits on every machine.
 *
 * Each is a fixed sequence of IEEE float32 (or float64) operations with explicit fma; the SIMD
 * kernels repeat the same sequence lane by lane. libm's are not used in exact code because theirs
 * differ between machines with and without FMA. */
#ifndef SLUICE_BASE_EXACT_H
#define SLUICE_BASE_EXACT_H

/* The sequence of sl_exp_f32, for kernels that repeat it in lanes:
 *   t = fma(x, LOG2E, MAGIC); n = t - MAGIC (x in units of ln 2, rounded to nearest even)
 *   r = fma(n, -LN2_LO, fma(n, -LN2_HI, x)); p = Q4
 *   p = fma(p, r, Q3), then Q2, Q1, Q0, 1, 1; result = the bits of p plus n << 23,
 * replaced by +0 where x < MIN, by +inf where x > MAX and by x where x is NaN. */
#define SL_EXP_MIN    -87.0f
#define SL_EXP_MAX    88.72f
#define SL_EXP_LOG2E  0x1.715476p+0f
#define SL_EXP_MAGIC  12582912.0f /* 1.5 * 2^23 */
#define SL_EXP_LN2_HI 0x1.62e430p-1f
#define SL_EXP_LN2_LO -0x1.05c610p-29f
#define SL_EXP_Q0     0x1.fffffcp-2f
#define SL_EXP_Q1     0x1.555490p-3f
#define SL_EXP_Q2     0x1.5558f6p-5f
#define SL_EXP_Q3     0x1.123a8ep-7f
#define SL_EXP_Q4     0x1.6a2318p-10f

/* e^x: exp(0) is exactly 1, below -87 exactly +0, above 88.72 +inf, NaN stays NaN. ~1 ulp. */
float sl_exp_f32(float x);
/* Natural logarithm for x > 0 (subnormals too); 0 gives -inf, negative and NaN give NaN. ~1 ulp. */
float sl_log_f32(float x);
/* For tables: double precision, error below 1e-14 relative to 1 for |x| <= 2^24. Beyond 2^31, where
 * the reduction would lose its digits, sine and cosine are NaN. */
double sl_sin_f64(double x);
double sl_cos_f64(double x);
double sl_exp_f64(double x); /* ~1 ulp; subnormal results too */
double sl_log_f64(double x); /* specials as in sl_log_f32 */

#endif
